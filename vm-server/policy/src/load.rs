//! Reads a policy directory and turns what is written into what is valid.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lifecycle::{ConsumerName, SetName};

use crate::consumer::{
    Adopt, Command, Consumer, Days, Http, Life, NotAConsumer, PidFileLife, Principal, Probe, ProbeKind,
    Signal, UnitName, Window,
};
use crate::daemon::{Daemon, EvidenceMode, MountMode, SupervisorMode};
use crate::defaults;
use crate::error::PolicyError;
use crate::path;
use crate::set::{Access, HostPolicy, Place, PlaceKind, SetPolicy};
use crate::written::{Document, Section, Value};

const TOP: &[&str] = &["daemon", "set"];
const DAEMON: &[&str] = &[
    "state_dir",
    "run_dir",
    "listen",
    "control_plane",
    "advertise",
    "supervisor",
    "mount",
    "evidence",
    "report_ms",
    "not_a_consumer",
];
const SET: &[&str] = &[
    "controllers",
    "owner",
    "group",
    "mode",
    "places",
    "consumers",
    "not_a_consumer",
    "validate",
    "refresh_ms",
];
const PLACE: &[&str] = &["path", "file", "kind", "owner", "group", "mode"];
const CONSUMER: &[&str] = &[
    "unit",
    "name",
    "pidfile",
    "exe",
    "user",
    "adopt",
    "signal",
    "window",
    "start_ms",
    "settle_ms",
    "probe",
    "evidence",
];
const WINDOW: &[&str] = &["days", "from", "to", "then", "signal"];
const PROBE: &[&str] = &["command", "user", "tcp", "http", "status", "timeout_ms", "tries", "pause_ms"];
const VALIDATE: &[&str] = &["command", "user", "timeout_ms"];
const NOT_A_CONSUMER: &[&str] = &["unit", "exe", "user", "why"];

/// Our own services: restarting one would end the work that restarts it.
const OURS: &[&str] = &["eso-vm-applier.service", "eso-vm-server.service"];
/// Trees that are no files on a disk.
const NO_PLACES: &[&str] = &["/proc", "/sys", "/dev"];

impl HostPolicy {
    /// Reads `config.toml` and `conf.d/*.toml` of this directory: all of it, or an error.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let documents = read_all(dir)?;
        let tables = documents.iter().map(Document::parse).collect::<Result<Vec<_>, _>>()?;
        let mut daemon: Option<Section<'_>> = None;
        let mut sets: Option<Section<'_>> = None;
        for (document, table) in documents.iter().zip(&tables) {
            let top = Section::document(document, table.get_ref(), TOP)?;
            if let Some(value) = top.get("daemon") {
                merge(&mut daemon, value.section(DAEMON)?)?;
            }
            if let Some(value) = top.get("set") {
                merge(&mut sets, value.names()?)?;
            }
        }
        let daemon = read_daemon(daemon.as_ref())?;
        let sets = read_sets(sets.as_ref(), &daemon, dir)?;
        Ok(Self { daemon, sets, files: documents.into_iter().map(|document| document.file).collect() })
    }
}

fn merge<'d>(into: &mut Option<Section<'d>>, section: Section<'d>) -> Result<(), PolicyError> {
    if let Some(first) = into {
        return first.merge(section);
    }
    *into = Some(section);
    Ok(())
}

fn read_all(dir: &Path) -> Result<Vec<Document>, PolicyError> {
    check_owner(dir, &fs::metadata(dir).map_err(|error| failed(dir, "read", &error))?)?;
    let mut files = vec![dir.join("config.toml")];
    let parts = dir.join("conf.d");
    match fs::read_dir(&parts) {
        Ok(entries) => {
            check_owner(&parts, &fs::metadata(&parts).map_err(|error| failed(&parts, "read", &error))?)?;
            let mut more = Vec::new();
            for entry in entries {
                let path = entry.map_err(|error| failed(&parts, "list", &error))?.path();
                let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
                if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
                    more.push(path);
                }
            }
            if more.len() > defaults::FILES_MAX {
                let message = format!("has {} files, at most {} are read", more.len(), defaults::FILES_MAX);
                return Err(whole(&parts, message));
            }
            more.sort();
            files.append(&mut more);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&parts, "list", &error)),
    }
    files.into_iter().map(read).collect()
}

fn read(file: PathBuf) -> Result<Document, PolicyError> {
    let opened = fs::File::open(&file).map_err(|error| failed(&file, "open", &error))?;
    let metadata = opened.metadata().map_err(|error| failed(&file, "read", &error))?;
    check_owner(&file, &metadata)?;
    let mut text = String::new();
    let limit = defaults::FILE_BYTES_MAX;
    opened.take(limit + 1).read_to_string(&mut text).map_err(|error| failed(&file, "read", &error))?;
    if text.len() as u64 > limit {
        return Err(whole(&file, format!("is longer than {limit} bytes: split it into conf.d")));
    }
    Ok(Document { file, text })
}

/// Who may write the policy may have any file written and any unit restarted.
fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), PolicyError> {
    if metadata.mode() & 0o022 != 0 {
        let message = format!("may be written by others: run `chmod go-w {}`", path.display());
        return Err(whole(path, message));
    }
    let ours = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != ours {
        let message = format!("belongs to user {}: run `chown root {}`", metadata.uid(), path.display());
        return Err(whole(path, message));
    }
    Ok(())
}

fn failed(file: &Path, what: &str, error: &std::io::Error) -> PolicyError {
    let advice = match error.kind() {
        std::io::ErrorKind::NotFound => ": write it, an annotated example comes with the package",
        std::io::ErrorKind::PermissionDenied => ": make it readable for the user that runs this program",
        _ => "",
    };
    whole(file, format!("failed to {what} it: {error}{advice}"))
}

fn whole(file: &Path, message: String) -> PolicyError {
    PolicyError { file: file.to_owned(), line: None, key: None, nearest: None, message }
}

fn read_daemon(section: Option<&Section<'_>>) -> Result<Daemon, PolicyError> {
    let get = |key| section.and_then(|section| section.get(key));
    let path_or = |key, default: &str| get(key).map_or_else(|| Ok(PathBuf::from(default)), absolute);
    let word_or = |key, default: &'static str, words: &[&'static str]| {
        get(key).map_or(Ok(default), |value| value.word(words))
    };
    Ok(Daemon {
        state_dir: path_or("state_dir", defaults::STATE_DIR)?,
        run_dir: path_or("run_dir", defaults::RUN_DIR)?,
        listen: match get("listen") {
            Some(value) => address(value)?,
            None => SocketAddr::from(([0, 0, 0, 0], 1323)),
        },
        control_plane: get("control_plane").map(control_plane).transpose()?,
        advertise: get("advertise").map(advertise).transpose()?,
        supervisor: match word_or("supervisor", "auto", &["auto", "systemd", "none"])? {
            "systemd" => SupervisorMode::Systemd,
            "none" => SupervisorMode::None,
            _ => SupervisorMode::Auto,
        },
        mount: match word_or("mount", "auto", &["auto", "directory"])? {
            "directory" => MountMode::Directory,
            _ => MountMode::Auto,
        },
        evidence: match word_or("evidence", "auto", &["auto", "exact", "declared"])? {
            "declared" => EvidenceMode::Declared,
            "exact" => EvidenceMode::Exact,
            _ => EvidenceMode::Auto,
        },
        report_ms: match get("report_ms") {
            Some(value) => value.number(defaults::INTERVAL_MS_MIN, defaults::SPAN_MS_MAX)?,
            None => defaults::REPORT_MS,
        },
        not_a_consumer: bystanders(get("not_a_consumer"))?,
    })
}

fn address(value: &Value<'_>) -> Result<SocketAddr, PolicyError> {
    let text = value.text()?;
    text.parse().map_err(|_| {
        value.error(format!("{text:?} is not an address with a port: write 0.0.0.0:1323 or [::]:1323"))
    })
}

fn control_plane(value: &Value<'_>) -> Result<String, PolicyError> {
    let text = value.text()?;
    let host = text.strip_prefix("https://").unwrap_or_default();
    let clean = !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if host.is_empty() || host.starts_with('/') || host.contains('@') || !clean {
        return Err(value.error(format!(
            "{text:?} is not the address of a control plane: write https://HOST:PORT, without user or password"
        )));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn advertise(value: &Value<'_>) -> Result<String, PolicyError> {
    let text = value.text()?;
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        let clean =
            !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-[]:".contains(c));
        port.parse::<u16>().ok().filter(|port| clean && *port != 0)
    });
    match port {
        Some(_) => Ok(text.to_owned()),
        None => {
            Err(value.error(format!("{text:?} is not HOST:PORT: write for example vm1.example.com:1323")))
        }
    }
}

fn read_sets(
    section: Option<&Section<'_>>,
    daemon: &Daemon,
    dir: &Path,
) -> Result<BTreeMap<SetName, SetPolicy>, PolicyError> {
    let mut sets = BTreeMap::new();
    let mut taken = BTreeMap::new();
    let Some(section) = section else { return Ok(sets) };
    for (name, value) in section.iter() {
        if sets.len() == defaults::SETS_MAX {
            return Err(value.error(format!("is one set too many: at most {}", defaults::SETS_MAX)));
        }
        let set = read_set(name, value, daemon, dir, &mut taken)?;
        sets.insert(set.name.clone(), set);
    }
    Ok(sets)
}

fn read_set(
    name: &str,
    value: &Value<'_>,
    daemon: &Daemon,
    dir: &Path,
    taken: &mut BTreeMap<PathBuf, String>,
) -> Result<SetPolicy, PolicyError> {
    let name = SetName::new(name).map_err(|error| value.error(error.to_string()))?;
    if name.as_str().contains(['/', '\\']) {
        return Err(value.error("is the name of a directory too: leave out / and \\"));
    }
    let section = value.section(SET)?;
    let access = access(&section, &Access { owner: None, group: None, mode: defaults::MODE })?;
    let (places, access_by_file) = read_places(&section, &access, daemon, dir, taken)?;
    let consumers = read_consumers(&section, daemon)?;
    Ok(SetPolicy {
        name,
        controllers: match section.get("controllers") {
            None => Vec::new(),
            Some(list) => read_controllers(list)?,
        },
        access,
        access_by_file,
        places,
        consumers,
        not_a_consumer: bystanders(section.get("not_a_consumer"))?,
        validate: section.get("validate").map(validate).transpose()?,
        refresh_ms: section.number_or(
            "refresh_ms",
            defaults::REFRESH_MS,
            defaults::INTERVAL_MS_MIN,
            defaults::SPAN_MS_MAX,
        )?,
    })
}

fn read_controllers(list: &Value<'_>) -> Result<Vec<String>, PolicyError> {
    let controllers = list
        .items(64)?
        .iter()
        .map(|item| {
            let text = item.text()?;
            if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(item.error("is not an installation id: `esoctl status` shows it"));
            }
            Ok(text.to_owned())
        })
        .collect::<Result<Vec<_>, _>>()?;
    if controllers.is_empty() {
        return Err(list.error(
            "names nobody, so nothing could ever be delivered: name an installation, or leave the key out to mean the one that this host is enrolled with",
        ));
    }
    Ok(controllers)
}

fn access(section: &Section<'_>, default: &Access) -> Result<Access, PolicyError> {
    Ok(Access {
        owner: section.get("owner").map(principal).transpose()?.or_else(|| default.owner.clone()),
        group: section.get("group").map(principal).transpose()?.or_else(|| default.group.clone()),
        mode: section.get("mode").map_or(Ok(default.mode), mode)?,
    })
}

fn mode(value: &Value<'_>) -> Result<u32, PolicyError> {
    if value.is_number() {
        return Err(value.error("must be a string of octal digits, such as \"0440\""));
    }
    let text = value.text()?;
    let octal = (3..=4).contains(&text.len()).then(|| u32::from_str_radix(text, 8).ok()).flatten();
    let Some(mode) = octal else {
        return Err(value.error(format!("{text:?} is not a mode: write octal digits, such as \"0440\"")));
    };
    if mode & !0o640 != 0 {
        return Err(value.error(format!(
            "{text:?} gives too much: owner may read and write, the group may read, nobody else (at most \"0640\")"
        )));
    }
    if mode & 0o440 == 0 {
        return Err(value.error(format!("{text:?} lets nobody read: write \"0400\" or \"0440\"")));
    }
    Ok(mode)
}

fn principal(value: &Value<'_>) -> Result<Principal, PolicyError> {
    if value.is_number() {
        let id = value.number(0, u64::from(u32::MAX - 1))?;
        return Ok(Principal::Id(u32::try_from(id).unwrap_or(u32::MAX - 1)));
    }
    let text = value.text()?;
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let legal = |c: char| c.is_ascii_alphanumeric() || "_-.$".contains(c);
    if !first || text.len() > 32 || !text.chars().all(legal) {
        let message =
            format!("{text:?} is not a user or group name: write a name, or a number without quotes");
        return Err(value.error(message));
    }
    Ok(Principal::Name(text.to_owned()))
}

fn absolute(value: &Value<'_>) -> Result<PathBuf, PolicyError> {
    let text = value.text()?;
    path::check(text).map_err(|message| value.error(message))?;
    Ok(PathBuf::from(text))
}

type Places = (Vec<Place>, BTreeMap<String, Access>);

fn read_places(
    section: &Section<'_>,
    default: &Access,
    daemon: &Daemon,
    dir: &Path,
    taken: &mut BTreeMap<PathBuf, String>,
) -> Result<Places, PolicyError> {
    let mut places = Vec::new();
    let mut by_file: BTreeMap<String, Access> = BTreeMap::new();
    let Some(list) = section.get("places") else { return Ok((places, by_file)) };
    for item in list.items(defaults::PLACES_MAX)? {
        let place = read_place(&item, default, daemon, dir)?;
        for (other, spot) in taken.iter() {
            if path::is_beneath(&place.path, other) || path::is_beneath(other, &place.path) {
                return Err(item.error(format!("{} is taken by the place at {spot}", place.path.display())));
            }
        }
        taken.insert(place.path.clone(), item.spot.place());
        if place.kind == PlaceKind::Link {
            let first = by_file.entry(place.file.clone()).or_insert_with(|| place.access.clone());
            if *first != place.access {
                return Err(item.error(format!(
                    "asks for another owner, group or mode of {:?} than an earlier link, but both show the same file: use kind = \"copy\" for one",
                    place.file
                )));
            }
        }
        places.push(place);
    }
    Ok((places, by_file))
}

fn read_place(item: &Value<'_>, default: &Access, daemon: &Daemon, dir: &Path) -> Result<Place, PolicyError> {
    let section = item.section(PLACE)?;
    let value = section.need("path", "where should the application find the file?")?;
    let place = absolute(value)?;
    let ours = [&daemon.state_dir, &daemon.run_dir];
    let kept = NO_PLACES.iter().map(Path::new).chain(ours.into_iter().map(PathBuf::as_path)).chain([dir]);
    if let Some(kept) = kept.into_iter().find(|kept| path::is_beneath(&place, kept)) {
        return Err(value.error(format!("lies in {}, where no place may be", kept.display())));
    }
    let file = section.need("file", "which file of the set belongs there?")?;
    path::check_file_name(file.text()?).map_err(|message| file.error(message))?;
    let kind = match section.get("kind").map_or(Ok("link"), |value| value.word(&["link", "copy"]))? {
        "copy" => PlaceKind::Copy,
        _ => PlaceKind::Link,
    };
    Ok(Place { path: place, file: file.text()?.to_owned(), kind, access: access(&section, default)? })
}

fn read_consumers(section: &Section<'_>, daemon: &Daemon) -> Result<Vec<Consumer>, PolicyError> {
    let mut consumers: Vec<Consumer> = Vec::new();
    let Some(list) = section.get("consumers") else { return Ok(consumers) };
    for item in list.items(defaults::CONSUMERS_MAX)? {
        let consumer = read_consumer(&item, daemon)?;
        if consumers.iter().any(|other| other.name == consumer.name) {
            return Err(item.error(format!("{} is named twice in this set", consumer.name)));
        }
        consumers.push(consumer);
    }
    Ok(consumers)
}

fn read_consumer(item: &Value<'_>, daemon: &Daemon) -> Result<Consumer, PolicyError> {
    let section = item.section(CONSUMER)?;
    let (name, life) = match section.get("unit") {
        Some(value) => {
            section.refuse(&["name", "pidfile", "exe", "user"], "systemd knows the processes of a unit")?;
            section.refuse(&["start_ms"], "a unit has TimeoutStartSec=")?;
            let unit = unit(value)?;
            if daemon.supervisor == SupervisorMode::None {
                return Err(value.error(
                    "needs systemd, but `daemon.supervisor` is \"none\": name a pidfile and exe instead",
                ));
            }
            if OURS.contains(&unit.as_str()) {
                return Err(value.error(format!("{unit} is our own: it reads no set")));
            }
            (
                ConsumerName::new(unit.as_str()).map_err(|error| value.error(error.to_string()))?,
                Life::Unit(unit),
            )
        }
        None => pidfile_life(&section)?,
    };
    let (adopt, window) = read_adopt(&section, &life)?;
    Ok(Consumer {
        name,
        life,
        adopt,
        window,
        start_ms: section.number_or("start_ms", defaults::START_MS, 1, defaults::SPAN_MS_MAX)?,
        settle_ms: section.number_or("settle_ms", defaults::SETTLE_MS, 0, defaults::SPAN_MS_MAX)?,
        probe: section.get("probe").map(probe).transpose()?,
        trust_reported: section.get("evidence").map(|value| value.word(&["reported"])).transpose()?.is_some(),
    })
}

fn pidfile_life(section: &Section<'_>) -> Result<(ConsumerName, Life), PolicyError> {
    let name = section.need("name", "name a systemd `unit`, or a `name` with `pidfile` and `exe`")?;
    let pidfile = section.need("pidfile", "how else should the process be found?")?;
    let exe = section.need("exe", "a pid file alone could name any process")?;
    let life = PidFileLife {
        pidfile: absolute(pidfile)?,
        exe: absolute(exe)?,
        user: section.get("user").map(principal).transpose()?,
    };
    let name = ConsumerName::new(name.text()?).map_err(|error| name.error(error.to_string()))?;
    Ok((name, Life::PidFile(life)))
}

fn unit(value: &Value<'_>) -> Result<UnitName, PolicyError> {
    let text = value.text()?;
    UnitName::new(text).map_err(|message| value.error(format!("{text:?} {message}")))
}

fn read_adopt(section: &Section<'_>, life: &Life) -> Result<(Adopt, Option<Window>), PolicyError> {
    const WORDS: &[&str] = &["restart", "reload", "reopen", "signal", "next_start", "manual", "window"];
    let value = section.need("adopt", "how does it take up a new version? `restart` fits most programs")?;
    let word = value.word(WORDS)?;
    if word == "window" {
        section.refuse(&["signal"], "write it into `window`, beside `then`")?;
        let inner =
            section.need("window", "when may it be disturbed, and what is done `then`?")?.section(WINDOW)?;
        let then = inner.need("then", "what is done in the window?")?;
        let adopt = adopt_word(&inner, then, then.word(&["restart", "reload", "signal"])?, life)?;
        return Ok((adopt, Some(read_window(&inner)?)));
    }
    section.refuse(&["window"], "it belongs to adopt = \"window\"")?;
    Ok((adopt_word(section, value, word, life)?, None))
}

fn adopt_word(
    section: &Section<'_>,
    value: &Value<'_>,
    word: &str,
    life: &Life,
) -> Result<Adopt, PolicyError> {
    if word != "signal" {
        section.refuse(&["signal"], "it belongs to adopt = \"signal\"")?;
    }
    Ok(match word {
        "restart" => Adopt::Restart,
        "reload" if matches!(life, Life::PidFile(_)) => {
            return Err(value.error("needs a systemd unit: write adopt = \"signal\" and which `signal`"));
        }
        "reload" => Adopt::Reload,
        "reopen" => Adopt::Reopen,
        "next_start" => Adopt::NextStart,
        "signal" => {
            let signal = section.need("signal", "which one makes it read its files again?")?;
            let word = signal.text()?;
            let word = word.strip_prefix("SIG").unwrap_or(word);
            match Signal::from_word(word) {
                Some(signal) => Adopt::Signal(signal),
                None => {
                    return Err(signal.word(Signal::WORDS).err().unwrap_or_else(|| signal.error("unknown")));
                }
            }
        }
        _ => Adopt::Manual,
    })
}

fn read_window(section: &Section<'_>) -> Result<Window, PolicyError> {
    let mut days = Days::ALL;
    if let Some(list) = section.get("days") {
        days = Days::NONE;
        for item in list.items(Days::WORDS.len())? {
            let word = item.word(Days::WORDS)?;
            let place = Days::WORDS.iter().position(|known| *known == word).unwrap_or_default();
            days = days.with(place);
        }
        if days == Days::NONE {
            return Err(list.error("names no day, so the window never opens"));
        }
    }
    Ok(Window {
        days,
        from_minute: minute(section.need("from", "when does the window open (UTC)?")?)?,
        to_minute: minute(section.need("to", "when does the window close (UTC)?")?)?,
    })
}

fn minute(value: &Value<'_>) -> Result<u16, PolicyError> {
    let text = value.text()?;
    let parsed = text.split_once(':').and_then(|(hour, minute)| {
        let hour = hour.parse::<u16>().ok().filter(|hour| *hour < 24)?;
        let minute = minute.parse::<u16>().ok().filter(|minute| *minute < 60)?;
        Some(hour * 60 + minute)
    });
    parsed.ok_or_else(|| value.error(format!("{text:?} is not a time of the day: write HH:MM in UTC")))
}

fn probe(value: &Value<'_>) -> Result<Probe, PolicyError> {
    let section = value.section(PROBE)?;
    let timeout_ms = section.number_or("timeout_ms", defaults::PROBE_TIMEOUT_MS, 1, defaults::SPAN_MS_MAX)?;
    let written: Vec<_> = ["command", "tcp", "http"].iter().filter_map(|key| section.get(key)).collect();
    let [only] = written[..] else {
        return Err(value.error("must have exactly one of `command`, `tcp` and `http`"));
    };
    if section.get("command").is_none() {
        section.refuse(&["user"], "only a command runs as somebody")?;
    }
    if section.get("http").is_none() {
        section.refuse(&["status"], "only a page answers with a status")?;
    }
    let kind = if section.get("command").is_some() {
        ProbeKind::Command(command(&section, only, timeout_ms)?)
    } else if section.get("tcp").is_some() {
        ProbeKind::Tcp(address(only)?)
    } else {
        ProbeKind::Http(page(&section, only)?)
    };
    let tries = u64::from(defaults::PROBE_TRIES);
    let tries = section.number_or("tries", tries, 1, u64::from(defaults::PROBE_TRIES_MAX))?;
    Ok(Probe {
        kind,
        timeout_ms,
        tries: u32::try_from(tries).unwrap_or(defaults::PROBE_TRIES),
        pause_ms: section.number_or("pause_ms", defaults::PROBE_PAUSE_MS, 0, defaults::SPAN_MS_MAX)?,
    })
}

fn page(section: &Section<'_>, value: &Value<'_>) -> Result<Http, PolicyError> {
    let text = value.text()?;
    let rest = text.strip_prefix("http://");
    let (address, path) = match rest.and_then(|rest| rest.split_once('/')) {
        Some((address, path)) => (address, format!("/{path}")),
        None => (rest.unwrap_or_default(), "/".to_owned()),
    };
    let clean = path.chars().all(|c| c.is_ascii_graphic());
    let address = address.parse::<SocketAddr>().ok().filter(|address| clean && address.ip().is_loopback());
    let Some(address) = address else {
        let message = format!("{text:?} is not a page of this machine: write http://127.0.0.1:PORT/PATH");
        return Err(value.error(message));
    };
    let default = u64::from(defaults::PROBE_HTTP_STATUS);
    let status = section.number_or("status", default, 100, 599)?;
    Ok(Http { address, path, status: u16::try_from(status).unwrap_or(defaults::PROBE_HTTP_STATUS) })
}

fn validate(value: &Value<'_>) -> Result<Command, PolicyError> {
    let section = value.section(VALIDATE)?;
    let argv = section.need("command", "which program must accept the version?")?;
    let timeout_ms =
        section.number_or("timeout_ms", defaults::VALIDATE_TIMEOUT_MS, 1, defaults::SPAN_MS_MAX)?;
    command(&section, argv, timeout_ms)
}

fn command(section: &Section<'_>, argv: &Value<'_>, timeout_ms: u64) -> Result<Command, PolicyError> {
    let words = argv.items(64)?;
    let Some(program) = words.first() else {
        return Err(argv.error("is empty: write the program's absolute path and its arguments"));
    };
    absolute(program)?;
    let mut texts = Vec::new();
    for word in &words {
        let text = word.text()?;
        if text.contains('\0') || text.len() > path::PATH_BYTES_MAX {
            return Err(word.error("is too long or has a NUL"));
        }
        texts.push(text.to_owned());
    }
    Ok(Command { argv: texts, user: section.get("user").map(principal).transpose()?, timeout_ms })
}

fn bystanders(list: Option<&Value<'_>>) -> Result<Vec<NotAConsumer>, PolicyError> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let mut bystanders = Vec::new();
    for item in list.items(defaults::CONSUMERS_MAX)? {
        let section = item.section(NOT_A_CONSUMER)?;
        let bystander = NotAConsumer {
            unit: section.get("unit").map(unit).transpose()?,
            exe: section.get("exe").map(absolute).transpose()?,
            user: section.get("user").map(principal).transpose()?,
            why: section.need("why", "the audit names the reason")?.text()?.to_owned(),
        };
        if bystander.unit.is_none() && bystander.exe.is_none() {
            return Err(item.error("names nobody: write `unit` or `exe`"));
        }
        if bystander.why.trim().is_empty() {
            return Err(section.need("why", "")?.error("is empty: the audit names the reason"));
        }
        bystanders.push(bystander);
    }
    Ok(bystanders)
}
