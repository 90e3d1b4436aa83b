//! A directory whose files somebody else replaces: each file is a field.
//!
//! Where the directory has a `..data` link (as the kubelet and our own hosts lay it out) all files are read through the
//! one directory that the link names, so that they belong together. Without it a change counts once two readings in a
//! row agree.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use notify::{RecursiveMode, Watcher as _};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::Failure;
use crate::generator::Answer;
use crate::reference::read_bounded;
use crate::source::{Destroyed, Notice, Retiring, Snapshot, Source};
use crate::spec::SpecError;
use crate::value::{FIELD_BYTES_MAX, FIELDS_MAX, SecretValue};

const KIND: &str = "Directory";
/// How long a directory must be quiet before it is read.
const QUIET: Duration = Duration::from_millis(100);
/// How long a directory that is never quiet is waited for.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// How often it is read although nothing was heard: watching fails in silence on some file systems.
const LOOK: Duration = Duration::from_mins(1);
/// The first wait after a failure; doubled up to [`LOOK`].
const BACKOFF: Duration = Duration::from_secs(1);
/// How often a reading is begun anew because the directory changed meanwhile.
const READS_MAX: usize = 5;

/// A directory whose files are the fields of a value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DirectorySpec {
    /// The directory; an absolute path.
    pub path: PathBuf,
    /// The files that must be there and are taken; all without a leading dot.
    #[serde(default)]
    pub files: Vec<String>,
    /// What retiring an old version means.
    #[serde(default)]
    pub retiring: Retiring,
}

/// A watched directory.
pub(crate) struct Directory {
    spec: DirectorySpec,
    refresh: Notify,
}

impl Directory {
    pub(crate) fn new(spec: DirectorySpec) -> Result<Self, SpecError> {
        let wrong = |words: String| Err(SpecError::new(KIND, words));
        if !spec.path.is_absolute() {
            return wrong(format!("`path` is {}: use an absolute path", spec.path.display()));
        }
        if spec.retiring == Retiring::DestroyVersion {
            return wrong(
                "`retiring: destroy-version` is for stores that keep versions: use notify or none".to_owned(),
            );
        }
        if let Some(file) =
            spec.files.iter().find(|file| file.is_empty() || file.contains('/') || file.starts_with(".."))
        {
            return wrong(format!("`files` names {file:?}: use plain names of files in the directory"));
        }
        Ok(Self { spec, refresh: Notify::new() })
    }

    async fn read(&self) -> Result<SecretValue, Failure> {
        let spec = self.spec.clone();
        match tokio::task::spawn_blocking(move || read_whole(&spec)).await {
            Ok(read) => read,
            Err(_) => Err(Failure::retry("reading the directory was broken off")),
        }
    }
}

/// Reads until what was read belongs together.
fn read_whole(spec: &DirectorySpec) -> Result<SecretValue, Failure> {
    let data = spec.path.join("..data");
    let mut before: Option<SecretValue> = None;
    for _ in 0..READS_MAX {
        match fs::read_link(&data) {
            Ok(target) => {
                let value = read_files(&spec.path.join(&target), &spec.files)?;
                if fs::read_link(&data).is_ok_and(|now| now == target) {
                    return Ok(value);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let value = read_files(&spec.path, &spec.files)?;
                if before.as_ref().is_some_and(|before| before.same_as(&value)) {
                    return Ok(value);
                }
                before = Some(value);
                std::thread::sleep(QUIET / 2);
            }
            Err(error) => {
                return Err(Failure::retry(format!("failed to read the link {}: {error}", data.display())));
            }
        }
    }
    Err(Failure::retry(format!("{} changes while it is read, again and again", spec.path.display())))
}

fn read_files(directory: &Path, wanted: &[String]) -> Result<SecretValue, Failure> {
    let names = if wanted.is_empty() { names(directory)? } else { wanted.iter().cloned().collect() };
    if names.is_empty() {
        return Err(Failure::retry(format!(
            "{} holds no file: put the value's files there",
            directory.display()
        )));
    }
    let mut value = SecretValue::new();
    for name in names {
        let path = directory.join(&name);
        let content = read_bounded(&path, FIELD_BYTES_MAX as u64)?;
        if content.is_empty() {
            return Err(Failure::retry(format!(
                "{} is empty, as a file is that is just being written",
                path.display()
            )));
        }
        value
            .insert(&name, content)
            .map_err(|error| Failure::refused(format!("{}: {error}", path.display())))?;
    }
    Ok(value)
}

fn names(directory: &Path) -> Result<BTreeSet<String>, Failure> {
    let failed = |error: io::Error| {
        Failure::retry(format!(
            "failed to list {}: {error}; is it there, and may this process read it?",
            directory.display()
        ))
    };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_file = fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file());
        if name.starts_with('.') || !is_file {
            continue;
        }
        names.insert(name);
        if names.len() > FIELDS_MAX {
            return Err(Failure::refused(format!(
                "{} holds more than {FIELDS_MAX} files: name the ones to take in `files`",
                directory.display()
            )));
        }
    }
    Ok(names)
}

/// What one watcher knows.
struct Watching {
    directory: Arc<Directory>,
    stirred: Arc<Notify>,
    watcher: Option<notify::RecommendedWatcher>,
    told: Option<SecretValue>,
    failing: bool,
    backoff: Duration,
    first: bool,
}

impl Watching {
    /// Watches from before the first reading, so that nothing falls between.
    fn watch(&mut self) {
        let stirred = Arc::clone(&self.stirred);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                stirred.notify_one();
            }
        });
        let path = &self.directory.spec.path;
        self.watcher = watcher.ok().and_then(|mut watcher| {
            watcher.watch(path, RecursiveMode::NonRecursive).is_ok().then_some(watcher)
        });
    }

    /// Waits for a reason to look, then for quiet.
    async fn wait(&mut self) {
        let pause = if self.failing || self.watcher.is_none() { self.backoff } else { LOOK };
        tokio::select! {
            () = self.stirred.notified() => {}
            () = self.directory.refresh.notified() => return,
            () = sleep(pause) => return,
        }
        let latest = Instant::now() + QUIET_MAX;
        while Instant::now() < latest
            && timeout_at((Instant::now() + QUIET).min(latest), self.stirred.notified()).await.is_ok()
        {
        }
    }

    /// The next thing to tell.
    async fn next(&mut self) -> Notice {
        loop {
            if !std::mem::take(&mut self.first) {
                self.wait().await;
            }
            if self.failing || self.watcher.is_none() {
                self.watch();
            }
            match self.directory.read().await {
                Ok(value) => {
                    let failed_before = std::mem::take(&mut self.failing);
                    self.backoff = BACKOFF;
                    if self.told.as_ref().is_none_or(|told| !told.same_as(&value)) {
                        self.told = Some(value.clone());
                        return Notice::Value(Snapshot { value, revision: None });
                    }
                    if failed_before {
                        return Notice::Available;
                    }
                }
                Err(failure) => {
                    self.backoff = if self.failing { (self.backoff * 2).min(LOOK) } else { BACKOFF };
                    if !std::mem::replace(&mut self.failing, true) {
                        return Notice::Unavailable(failure);
                    }
                }
            }
        }
    }
}

impl Source for Directory {
    fn retiring(&self) -> Retiring {
        self.spec.retiring
    }

    fn current(&self) -> Answer<'_, Snapshot> {
        async { Ok(Snapshot { value: self.read().await?, revision: None }) }.boxed()
    }

    fn changes(self: Arc<Self>) -> BoxStream<'static, Notice> {
        let mut watching = Watching {
            directory: self,
            stirred: Arc::new(Notify::new()),
            watcher: None,
            told: None,
            failing: false,
            backoff: BACKOFF,
            first: true,
        };
        watching.watch();
        stream::unfold(watching, |mut watching| async move { Some((watching.next().await, watching)) })
            .boxed()
    }

    fn refresh(&self) {
        self.refresh.notify_one();
    }

    fn destroy(&self, _: u64) -> Answer<'_, Destroyed> {
        async { Err(Failure::refused("a directory keeps no versions: there is nothing to destroy")) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use futures_util::stream::BoxStream;
    use tokio::time::timeout;

    use super::*;

    /// Replaced as the kubelet does it: a new directory, then one rename of the link.
    fn swap(directory: &Path, number: u32, files: &[(&str, &str)]) {
        let name = format!("..{number}");
        fs::create_dir(directory.join(&name)).unwrap();
        for (file, content) in files {
            fs::write(directory.join(&name).join(file), content).unwrap();
            drop(symlink(Path::new("..data").join(file), directory.join(file)));
        }
        symlink(&name, directory.join("..new")).unwrap();
        fs::rename(directory.join("..new"), directory.join("..data")).unwrap();
    }

    fn watch(path: &Path) -> (Arc<Directory>, BoxStream<'static, Notice>) {
        let spec = serde_json::json!({"path": path});
        let directory = Arc::new(Directory::new(crate::spec::parse(KIND, &spec).unwrap()).unwrap());
        (Arc::clone(&directory), directory.changes())
    }

    async fn next(changes: &mut BoxStream<'static, Notice>) -> Notice {
        timeout(Duration::from_secs(20), changes.next()).await.expect("a notice in time").unwrap()
    }

    async fn value(changes: &mut BoxStream<'static, Notice>) -> SecretValue {
        match next(changes).await {
            Notice::Value(snapshot) => snapshot.value,
            Notice::Unavailable(failure) => panic!("unavailable: {failure}"),
            Notice::Available => panic!("available again"),
        }
    }

    #[tokio::test]
    async fn two_swaps_in_a_row_are_seen_whole() {
        let directory = tempfile::tempdir().unwrap();
        swap(directory.path(), 1, &[("username", "a"), ("password", "1")]);
        let (_, mut changes) = watch(directory.path());
        assert_eq!(value(&mut changes).await.expose("password"), Some(&b"1"[..]));
        for number in 2..5 {
            let text = number.to_string();
            swap(directory.path(), number, &[("username", "a"), ("password", &text)]);
            assert_eq!(value(&mut changes).await.expose_text("password"), Some(text.as_str()));
        }
    }

    #[tokio::test]
    async fn the_last_good_value_stays_when_a_file_is_emptied_or_the_directory_vanishes() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("value");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("password"), "1").unwrap();
        let (directory, mut changes) = watch(&path);
        value(&mut changes).await;

        fs::write(path.join("password"), "").unwrap();
        assert!(
            matches!(next(&mut changes).await, Notice::Unavailable(failure) if failure.words().contains("empty"))
        );
        fs::write(path.join("password"), "1").unwrap();
        directory.refresh();
        assert!(matches!(next(&mut changes).await, Notice::Available));

        fs::remove_dir_all(&path).unwrap();
        directory.refresh();
        assert!(matches!(next(&mut changes).await, Notice::Unavailable(_)));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("password"), "2").unwrap();
        directory.refresh();
        assert_eq!(value(&mut changes).await.expose("password"), Some(&b"2"[..]));
        // And the new directory is watched.
        fs::write(path.join("password"), "3").unwrap();
        assert_eq!(value(&mut changes).await.expose("password"), Some(&b"3"[..]));
    }

    #[tokio::test]
    async fn only_named_files_are_taken_and_all_of_them_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("password"), "1").unwrap();
        fs::write(directory.path().join("readme"), "x").unwrap();
        let source = |files: &[&str]| {
            let spec = serde_json::json!({"path": directory.path(), "files": files});
            Directory::new(crate::spec::parse(KIND, &spec).unwrap()).unwrap()
        };
        let current = source(&["password"]).current().await.ok().unwrap();
        assert_eq!(current.value.names().collect::<Vec<_>>(), ["password"]);
        assert!(source(&["password", "username"]).current().await.is_err());
    }

    #[test]
    fn a_spec_that_cannot_be_met_is_refused() {
        for spec in [
            serde_json::json!({"path": "relative"}),
            serde_json::json!({"path": "/x", "retiring": "destroy-version"}),
            serde_json::json!({"path": "/x", "files": ["../y"]}),
            serde_json::json!({"path": "/x", "file": []}),
        ] {
            assert!(crate::spec::parse(KIND, &spec).and_then(Directory::new).is_err(), "{spec}");
        }
    }
}
