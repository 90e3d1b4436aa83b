//! Reading a directory of resources: each file whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lifecycle::CredentialName;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::credential::{Backing, Credential, Reference};
use crate::machine::VirtualMachine;
use crate::{CREDENTIAL_API, GENERATOR_API, SOURCE_API, TARGET_API, credential, machine};

/// Bytes of one resource file.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Resource files in the directory.
pub const FILES_MAX: usize = 10_000;

/// Everything that was taken, and what was not.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// The credentials.
    pub credentials: BTreeMap<CredentialName, Credential>,
    /// The generators by kind and name.
    pub generators: BTreeMap<Reference, Setting>,
    /// The sources by kind and name.
    pub sources: BTreeMap<Reference, Setting>,
    /// The store targets by kind and name.
    pub stores: BTreeMap<Reference, Setting>,
    /// The virtual machines by name.
    pub machines: BTreeMap<String, VirtualMachine>,
    /// What was not taken.
    pub faults: Vec<Fault>,
    /// Where each object stands, by kind and name.
    places: BTreeMap<Reference, Place>,
    /// The objects of each file, as they were taken last.
    files: BTreeMap<PathBuf, Vec<Object>>,
}

/// The `spec` of a generator, source or store, as its backend reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// As JSON.
    pub spec: serde_json::Value,
}

/// A resource that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {message}", file.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct Fault {
    /// Which file.
    pub file: PathBuf,
    /// Which line, from 1, where it is known.
    pub line: Option<u32>,
    /// Why, and what to do.
    pub message: String,
}

#[derive(Debug, Clone)]
struct Place {
    file: PathBuf,
    line: u32,
    text: String,
}

#[derive(Debug, Clone)]
struct Object {
    reference: Reference,
    place: Place,
    body: ObjectBody,
}

#[derive(Debug, Clone)]
enum ObjectBody {
    Credential(Box<Credential>),
    Generator(Setting),
    Source(Setting),
    Store(Setting),
    Machine(VirtualMachine),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document<T> {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: T,
    #[serde(default, rename = "status")]
    _status: serde::de::IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default, rename = "namespace")]
    _namespace: Option<String>,
    #[serde(default, rename = "labels")]
    _labels: BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

/// Reads all resources of `directory`. A file with a fault keeps what it had in `before`.
///
/// A directory that cannot be read is one fault and no resources: their credentials become orphaned, never deleted.
pub fn load(directory: &Path, before: &Resources) -> Resources {
    let mut resources = Resources::default();
    let files = match list(directory) {
        Ok(files) => files,
        Err(fault) => {
            resources.faults.push(fault);
            return resources;
        }
    };
    for file in files {
        match read(&file) {
            Ok(objects) => {
                resources.files.insert(file, objects);
            }
            Err(fault) => {
                resources.faults.push(fault);
                if let Some(objects) = before.files.get(&file) {
                    resources.files.insert(file, objects.clone());
                }
            }
        }
    }
    resources.gather();
    resources.check();
    resources
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Fault> {
    let failed = |why: std::io::Error| Fault {
        file: directory.to_owned(),
        line: None,
        message: format!("failed to read the directory: {why}"),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if !hidden && known && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.len() > FILES_MAX {
        return Err(Fault {
            file: directory.to_owned(),
            line: None,
            message: format!("{} files where at most {FILES_MAX} are allowed", files.len()),
        });
    }
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<Object>, Fault> {
    let failed = |message: String| Fault { file: file.to_owned(), line: None, message };
    let length = std::fs::metadata(file).map_err(|why| failed(format!("failed to read it: {why}")))?.len();
    if length > FILE_BYTES_MAX {
        return Err(failed(format!("{length} bytes where at most {FILE_BYTES_MAX} are allowed")));
    }
    let text = std::fs::read_to_string(file).map_err(|why| failed(format!("failed to read it: {why}")))?;
    documents(&text).into_iter().map(|(line, text)| object(file, line, text)).collect()
}

/// The documents of a stream with the line on which each begins. Each text is padded with empty lines, so that the
/// parser's line numbers are those of the file.
fn documents(text: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let mut current = String::new();
    let mut first = None;
    for (number, line) in (0_u32..).zip(text.lines().chain(["---"])) {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            if let Some(first) = first.take() {
                found.push((first, current));
            }
            current = "\n".repeat(number as usize + 1);
        } else {
            let content = line.trim();
            if !content.is_empty() && !content.starts_with('#') {
                first.get_or_insert(number + 1);
            }
            current.push_str(line);
            current.push('\n');
        }
    }
    found
}

fn object(file: &Path, line: u32, text: String) -> Result<Object, Fault> {
    let head: Document<serde_json::Value> = parse(file, line, &text)?;
    let reference = Reference { kind: head.kind.clone(), name: head.metadata.name.clone() };
    let fault = |message| Fault { file: file.to_owned(), line: Some(line), message };
    let name = &head.metadata.name;
    if name.is_empty() || name.len() > 253 {
        return Err(fault("`metadata.name` must have 1 to 253 characters".to_owned()));
    }
    let body = match (head.api_version.as_str(), head.kind.as_str()) {
        (CREDENTIAL_API, "Credential") => {
            let written: Document<credential::Written> = parse(file, line, &text)?;
            ObjectBody::Credential(Box::new(written.spec.validate(name).map_err(fault)?))
        }
        (TARGET_API, "VirtualMachine") => {
            let written: Document<machine::Written> = parse(file, line, &text)?;
            ObjectBody::Machine(written.spec.validate(name).map_err(fault)?)
        }
        (GENERATOR_API, _) => ObjectBody::Generator(Setting { spec: head.spec }),
        (SOURCE_API, _) => ObjectBody::Source(Setting { spec: head.spec }),
        (TARGET_API, _) => ObjectBody::Store(Setting { spec: head.spec }),
        (api, kind) => return Err(fault(unknown_kind(api, kind))),
    };
    Ok(Object { reference, place: Place { file: file.to_owned(), line, text }, body })
}

fn unknown_kind(api: &str, kind: &str) -> String {
    let known = [CREDENTIAL_API, GENERATOR_API, SOURCE_API, TARGET_API];
    match (known.contains(&api), nearest(api, known.into_iter())) {
        (true, _) => format!("kind {kind:?} is not known in {api}"),
        (false, Some(near)) => format!("apiVersion {api:?} is not known; did you mean {near:?}?"),
        (false, None) => format!("apiVersion {api:?} is not known; the known ones are {}", known.join(", ")),
    }
}

fn parse<T: DeserializeOwned>(file: &Path, line: u32, text: &str) -> Result<T, Fault> {
    serde_yaml_ng::from_str(text).map_err(|error| {
        let found = error.location().and_then(|location| u32::try_from(location.line()).ok());
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        Fault { file: file.to_owned(), line: Some(found.unwrap_or(line)), message: with_nearest(&message) }
    })
}

/// Adds the nearest known key to serde's word about an unknown one.
fn with_nearest(message: &str) -> String {
    let Some((_, known)) = message.split_once("expected ") else { return message.to_owned() };
    match (unknown_key(message), message.contains("unknown field") || message.contains("unknown variant")) {
        (Some(key), true) => {
            let known = known.split('`').skip(1).step_by(2);
            nearest(key, known)
                .map_or_else(|| message.to_owned(), |near| format!("{message}; did you mean `{near}`?"))
        }
        _ => message.to_owned(),
    }
}

fn unknown_key(message: &str) -> Option<&str> {
    let (_, rest) =
        message.split_once("unknown field `").or_else(|| message.split_once("unknown variant `"))?;
    rest.split_once('`').map(|(key, _)| key)
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(&word.to_lowercase(), &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= known.len().max(word.len()).div_ceil(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

impl Resources {
    /// A fault of the object that this names, said by its backend: with the line of an unknown key where it names
    /// one, else the line on which the object begins.
    pub fn fault_of(&self, reference: &Reference, words: &str) -> Fault {
        let Some(place) = self.places.get(reference) else {
            return Fault {
                file: PathBuf::from(reference.to_string()),
                line: None,
                message: words.to_owned(),
            };
        };
        let key_line = unknown_key(words).and_then(|key| {
            let is_key = |line: &str| {
                let line = line.trim_start().trim_start_matches("- ").trim_start_matches(['"', '\'']);
                line.strip_prefix(key)
                    .is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
            };
            place.text.lines().position(is_key).and_then(|at| u32::try_from(at + 1).ok())
        });
        let line = Some(key_line.unwrap_or(place.line));
        Fault { file: place.file.clone(), line, message: with_nearest(words) }
    }

    /// Whether both were read from the same texts with the same faults.
    pub fn same_as(&self, other: &Self) -> bool {
        let texts = |resources: &Self| -> Vec<(PathBuf, Vec<String>)> {
            let of = |objects: &Vec<Object>| objects.iter().map(|object| object.place.text.clone()).collect();
            resources.files.iter().map(|(file, objects)| (file.clone(), of(objects))).collect()
        };
        self.faults == other.faults && texts(self) == texts(other)
    }

    /// A credential cannot be used: takes it out and says why.
    pub fn refuse(&mut self, name: &CredentialName, words: &str) {
        self.credentials.remove(name);
        self.fault(name, words);
    }

    /// What is written about a credential cannot be taken, and why.
    pub fn fault(&mut self, name: &CredentialName, words: &str) {
        let reference = Reference { kind: "Credential".to_owned(), name: name.to_string() };
        let fault = self.fault_of(&reference, words);
        self.faults.push(fault);
    }

    fn gather(&mut self) {
        let files = std::mem::take(&mut self.files);
        for object in files.values().flatten() {
            let reference = object.reference.clone();
            if let Some(other) = self.places.get(&reference) {
                self.faults.push(Fault {
                    file: object.place.file.clone(),
                    line: Some(object.place.line),
                    message: format!(
                        "{reference} stands in {}:{} too; remove one",
                        other.file.display(),
                        other.line
                    ),
                });
                continue;
            }
            self.places.insert(reference.clone(), object.place.clone());
            match object.body.clone() {
                ObjectBody::Credential(credential) => {
                    self.credentials.insert(credential.name.clone(), *credential);
                }
                ObjectBody::Generator(setting) => drop(self.generators.insert(reference, setting)),
                ObjectBody::Source(setting) => drop(self.sources.insert(reference, setting)),
                ObjectBody::Store(setting) => drop(self.stores.insert(reference, setting)),
                ObjectBody::Machine(machine) => {
                    if !machine.condition.ready {
                        let words = format!("{}: {}", machine.condition.reason, machine.condition.message);
                        let fault = self.fault_of(&reference, &words);
                        self.faults.push(fault);
                    }
                    self.machines.insert(machine.name.clone(), machine);
                }
            }
        }
        self.files = files;
    }

    /// What one object says about others must be true.
    fn check(&mut self) {
        let mut sets: BTreeMap<&str, &CredentialName> = BTreeMap::new();
        let mut refused = Vec::new();
        for (name, credential) in &self.credentials {
            let wanted = credential.backing.reference();
            let (what, known) = match &credential.backing {
                Backing::Generator(_) => ("generator", &self.generators),
                Backing::Source(_) => ("source", &self.sources),
            };
            if !known.contains_key(wanted) {
                refused.push((name.clone(), missing(what, wanted, known)));
            }
            for store in credential.stores.iter().filter(|store| !self.stores.contains_key(store)) {
                refused.push((name.clone(), missing("store", store, &self.stores)));
            }
            if let Some(other) = sets.insert(credential.set.as_str(), name) {
                let set = &credential.set;
                refused
                    .push((name.clone(), format!("the set {set} is that of the credential {other} already")));
            }
        }
        for (name, words) in refused {
            self.refuse(&name, &words);
        }
    }
}

fn missing(what: &str, wanted: &Reference, known: &BTreeMap<Reference, Setting>) -> String {
    let wanted = wanted.to_string();
    let names: Vec<String> = known.keys().map(ToString::to_string).collect();
    match nearest(&wanted, names.iter().map(String::as_str)) {
        Some(near) => format!("the {what} {wanted} does not exist; did you mean {near}?"),
        None => format!("the {what} {wanted} does not exist; add its resource"),
    }
}
