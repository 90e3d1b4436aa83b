//! A leak of every form is planted in every kind of output, and each has to be found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use lifecycle::credential::Event;
use protocol::UnixMillis;
use protocol::api::{AuditEntry, AuditPage, Problem};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use store::{Audit, KeyEncryptionKey, Store};
use tests_canary::{Canaries, Encoding, Leak, Unsuitable};

/// Each form of it is another text.
const CANARY: &str = "k7/Q+\"x 9\\e~Tz04?planted>canary=";

fn canaries() -> &'static Canaries {
    static CANARIES: LazyLock<Canaries> =
        LazyLock::new(|| Canaries::new([("the planted value", CANARY)]).unwrap());
    &CANARIES
}

/// The forms, made here by other means than the search makes them.
fn plants() -> Vec<(Encoding, Vec<u8>)> {
    let bytes = CANARY.as_bytes();
    let hex = |digits: fn(&u8) -> String| bytes.iter().map(digits).collect::<String>().into_bytes();
    let mut plants = vec![
        (Encoding::Raw, bytes.to_vec()),
        (Encoding::Hex, hex(|byte| format!("{byte:02x}"))),
        (Encoding::Hex, hex(|byte| format!("{byte:02X}"))),
        (Encoding::Url, hex(|byte| format!("%{byte:02X}"))),
        (Encoding::Url, b"k7%2fQ%2b%22x+9%5ce~Tz04%3fplanted%3ecanary%3d".to_vec()),
        (Encoding::Url, b"k7%2FQ%2B%22x%209%5Ce~Tz04%3Fplanted%3Ecanary%3D".to_vec()),
        (Encoding::Utf16Le, bytes.iter().flat_map(|&byte| [byte, 0]).collect()),
        (Encoding::Utf16Be, bytes.iter().flat_map(|&byte| [0, byte]).collect()),
        (Encoding::Json, serde_json::json!({ "password": CANARY }).to_string().into_bytes()),
        (Encoding::Json, format!("{CANARY:?}").into_bytes()),
        (Encoding::Json, serde_json::json!({ "answer": format!("{CANARY:?}") }).to_string().into_bytes()),
        (Encoding::Numbers, format!("{bytes:?}").into_bytes()),
        (Encoding::Numbers, serde_json::to_vec(bytes).unwrap()),
    ];
    for alphabet in [base64_standard(), base64_standard().replace("+/", "-_")] {
        for ahead in ["", "x", "yz"] {
            let text = format!("{ahead}{CANARY}and more");
            plants.push((Encoding::Base64, base64(text.as_bytes(), &alphabet).into_bytes()));
        }
    }
    assert_eq!(plants.iter().map(|(encoding, _)| *encoding).collect::<BTreeSet<_>>(), all());
    plants
}

fn all() -> BTreeSet<Encoding> {
    Encoding::ALL.into()
}

fn base64_standard() -> String {
    ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect()
}

fn base64(bytes: &[u8], alphabet: &str) -> String {
    let bits = bytes.iter().map(|byte| format!("{byte:08b}")).collect::<Vec<_>>().concat();
    let sextets = bits.as_bytes().chunks(6).map(|sextet| {
        let digits = format!("{:0<6}", std::str::from_utf8(sextet).unwrap());
        char::from(alphabet.as_bytes()[usize::from_str_radix(&digits, 2).unwrap()])
    });
    sextets.collect()
}

/// As text, where the output takes nothing else.
fn text(plant: &[u8]) -> String {
    String::from_utf8(plant.to_vec()).unwrap()
}

/// What the search must not do: show the value in any form.
fn assert_silent(leaks: &[Leak]) {
    for leak in leaks {
        let said = format!("{leak} {leak:?}");
        assert_eq!(canaries().in_bytes("what was said", said.as_bytes()), [], "the value was shown");
    }
}

fn assert_found(kind: &str, encoding: Encoding, leaks: &[Leak]) {
    assert!(!leaks.is_empty(), "{encoding} in {kind} was not found");
    assert_silent(leaks);
}

/// The form is told too where nothing escapes it a second time.
fn assert_told(kind: &str, encoding: Encoding, leaks: &[Leak]) {
    assert_found(kind, encoding, leaks);
    assert!(leaks.iter().any(|leak| leak.encoding == encoding), "{encoding} in {kind} was told as {leaks:?}");
}

#[test]
fn in_bytes_streams_and_files_and_their_names() {
    let directory = tempfile::tempdir().unwrap();
    for (encoding, plant) in plants() {
        assert_told("bytes", encoding, &canaries().in_bytes("bytes", &plant));
        let file = directory.path().join("a file");
        // Far into a file that is much larger than any window, across the borders of reads.
        for ahead in [0, 1, (1 << 16) - 7, 3_000_001] {
            let mut bytes = vec![b'.'; ahead];
            bytes.extend_from_slice(&plant);
            bytes.extend_from_slice(b"behind");
            std::fs::write(&file, &bytes).unwrap();
            let leaks = canaries().in_tree(directory.path(), &[]).unwrap();
            assert_told("a file", encoding, &leaks);
            let span = ahead as u64..=(ahead + plant.len()) as u64;
            assert!(leaks.iter().all(|leak| leak.place == file && span.contains(&leak.offset)), "{leaks:?}");
        }
        std::fs::write(&file, plant.iter().rev().copied().collect::<Vec<_>>()).unwrap();
        assert_eq!(canaries().in_tree(directory.path(), &[]).unwrap(), []);
    }
    let named = directory.path().join("of planted>canary= k7_Q");
    std::fs::create_dir(&named).unwrap();
    let link = named.join("link");
    std::os::unix::fs::symlink(CANARY, &link).unwrap();
    let found: Vec<_> =
        canaries().in_tree(directory.path(), &[]).unwrap().into_iter().map(|leak| leak.place).collect();
    assert!(found.contains(&link), "{found:?}");
}

#[test]
fn exceptions_are_paths_that_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let (set, log) = (directory.path().join("set"), directory.path().join("log"));
    std::fs::create_dir(&set).unwrap();
    std::fs::write(set.join("password"), CANARY).unwrap();
    std::fs::write(&log, CANARY).unwrap();
    let leaks = canaries().in_tree(directory.path(), &[&set]).unwrap();
    assert!(!leaks.is_empty() && leaks.iter().all(|leak| leak.place == log), "{leaks:?}");
    let none = canaries().none_in([directory.path()], &[&set, &log]);
    assert_eq!(none, Ok(()));
    let said = canaries().none_in([directory.path()], &[&set]).unwrap_err();
    assert!(said.contains("the planted value") && said.contains("/log"), "{said}");
    std::fs::remove_file(&log).unwrap();
    assert!(canaries().in_tree(directory.path(), &[&log]).is_err(), "an exception of no use");
    assert!(canaries().in_tree(directory.path().join("nothing"), &[]).is_err(), "nothing to look through");
}

#[test]
fn what_chance_would_find_is_no_canary() {
    let short = Canaries::new([("a", "0123456789a")]).err();
    assert_eq!(short, Some(Unsuitable::TooShort { canary: "a".to_owned() }));
    assert_eq!(Canaries::new(Vec::<(String, String)>::new()).err(), Some(Unsuitable::Nothing));
}

#[test]
fn in_a_log() {
    #[derive(Clone)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for (encoding, plant) in plants() {
        for json in [false, true] {
            for as_debug in [false, true] {
                let log = Log(std::sync::Arc::default());
                let writer = log.clone();
                let fmt = tracing_subscriber::fmt().with_writer(move || writer.clone());
                let subscriber: Box<dyn tracing::Subscriber + Send + Sync> =
                    if json { Box::new(fmt.json().finish()) } else { Box::new(fmt.finish()) };
                let plant = text(&plant);
                tracing::subscriber::with_default(subscriber, || {
                    if as_debug {
                        tracing::warn!(answer = ?plant, "failed to log in");
                    } else {
                        tracing::warn!("failed to log in: {plant}");
                    }
                });
                let log = log.0.lock().unwrap().clone();
                assert_found("a log", encoding, &canaries().in_bytes("log", log));
            }
        }
    }
}

#[test]
fn in_metrics() {
    use prometheus_client::metrics::{counter::Counter, family::Family};
    for (encoding, plant) in plants() {
        let family = Family::<Vec<(String, String)>, Counter>::default();
        family.get_or_create(&vec![("reason".to_owned(), text(&plant))]).inc();
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("eso_refusals", "Why", family);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        assert_found("metrics", encoding, &canaries().in_bytes("/metrics", page));
    }
}

#[test]
fn in_events_and_answers() {
    for (encoding, plant) in plants() {
        let event = Event::Halt { reason: text(&plant) };
        assert_found(
            "an event",
            encoding,
            &canaries().in_bytes("event", serde_json::to_vec(&event).unwrap()),
        );
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: "Conflict".to_owned(),
            status: 409,
            code: "too_many_live".to_owned(),
            detail: text(&plant),
            action: "wait".to_owned(),
        };
        for answer in [serde_json::to_vec(&problem).unwrap(), serde_json::to_vec_pretty(&problem).unwrap()] {
            assert_found("an answer", encoding, &canaries().in_bytes("answer", answer));
        }
        let page = AuditPage {
            entries: vec![AuditEntry {
                sequence: 1,
                at: UnixMillis::now(),
                actor: "engine".to_owned(),
                action: "minted".to_owned(),
                subject: "credential/orders".to_owned(),
                detail: text(&plant),
                link: String::new(),
            }],
            next: None,
            previous: None,
        };
        assert_found(
            "an audit page",
            encoding,
            &canaries().in_bytes("page", serde_json::to_vec(&page).unwrap()),
        );
    }
}

#[tokio::test]
async fn in_an_audit_row_of_the_real_store() {
    for (encoding, plant) in plants() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        KeyEncryptionKey::generate().unwrap().write_file(&key).unwrap();
        let key = KeyEncryptionKey::from_file(&key).unwrap();
        let store = Store::open(directory.path().join("eso.db"), key).await.unwrap();
        store.audit(Audit { detail: text(&plant), ..Audit::default() }).await.unwrap();
        // While it is open, so that the row may still lie in the write-ahead log only.
        assert_told("an audit row", encoding, &canaries().in_tree(directory.path(), &[]).unwrap());
        drop(store);
    }
}

/// Where the page ends in the middle of it, wherever that is, it is found by one of its halves.
#[test]
fn in_a_database_page_and_across_two() {
    for (encoding, plant) in plants() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pages.db");
        let database = rusqlite::Connection::open(&file).unwrap();
        database
            .execute_batch("PRAGMA page_size = 512; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")
            .unwrap();
        database.execute_batch("PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (v BLOB)").unwrap();
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let step = if encoding == Encoding::Raw { 1 } else { 7 };
        for ahead in (0..512 + plant.len()).step_by(step) {
            let mut value = vec![b'.'; ahead];
            value.extend_from_slice(&plant);
            value.resize(2048, b'.');
            database.execute("DELETE FROM t", []).unwrap();
            database.query_row(checkpoint, [], |_| Ok(())).unwrap();
            database.execute("INSERT INTO t VALUES (?1)", [value]).unwrap();
            let log = std::fs::read(directory.path().join("pages.db-wal")).unwrap();
            assert_found("a write-ahead log", encoding, &canaries().in_bytes("wal", log));
            database.query_row(checkpoint, [], |_| Ok(())).unwrap();
            assert_found("a page", encoding, &canaries().in_bytes("db", std::fs::read(&file).unwrap()));
        }
    }
}

/// This program again, as the test below that waits to be told what to keep.
fn child(what: &str, directory: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "what_the_children_do", "--ignored", "--nocapture"]).env("ESO_CHILD", what);
    command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for (_, plant) in plants() {
        input.write_all(&u32::try_from(plant.len()).unwrap().to_be_bytes()).unwrap();
        input.write_all(&plant).unwrap();
    }
    drop(input);
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn refused<T>(value: T) -> Result<(), T> {
    Err(value)
}

/// Not a test of its own.
#[test]
#[ignore = "run by the tests below"]
fn what_the_children_do() {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).unwrap();
    let mut plants = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (plant, behind) = behind.split_at(u32::from_be_bytes(*length) as usize);
        plants.push(plant.to_vec());
        rest = behind;
    }
    match std::env::var("ESO_CHILD").unwrap().as_str() {
        "panic" => {
            let all: Vec<_> = plants.iter().map(|plant| text(plant)).collect();
            for plant in &all {
                let _ = std::panic::catch_unwind(|| panic!("cannot parse {plant}"));
                let _ = std::panic::catch_unwind(|| refused(plant).unwrap());
            }
        }
        "abort" => {
            let maximum = getrlimit(Resource::Core).maximum;
            setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
            std::process::abort();
        }
        _ => {
            println!("kept {}", plants.len());
            std::thread::park();
        }
    }
    drop(plants);
}

#[test]
fn in_a_panic_message() {
    let directory = tempfile::tempdir().unwrap();
    let (child, _output) = child("panic", directory.path());
    let said = child.wait_with_output().unwrap().stderr;
    let leaks = canaries().in_bytes("stderr", &said);
    assert_silent(&leaks);
    let told: BTreeSet<_> = leaks.iter().map(|leak| leak.encoding).collect();
    assert_eq!(told, all());
    // Each by itself too.
    for (encoding, plant) in plants() {
        let line = format!("cannot parse {}", text(&plant));
        assert_told("a panic", encoding, &canaries().in_bytes("line", line));
    }
}

/// Where this machine writes no core dump to where we find it, the memory that it would hold is searched, and that is said.
#[test]
fn in_a_core_dump() {
    let directory = tempfile::tempdir().unwrap();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let told = if pattern.starts_with('|') || pattern.contains('/') {
        Err(format!("core dumps go to {}", pattern.trim()))
    } else {
        let (mut child, _output) = child("abort", directory.path());
        let status = child.wait().unwrap();
        let leaks = canaries().in_tree(directory.path(), &[]).unwrap();
        assert_silent(&leaks);
        let told: BTreeSet<_> = leaks.iter().map(|leak| leak.encoding).collect();
        if status.core_dumped() { Ok(told) } else { Err(format!("its limits forbid core dumps ({status})")) }
    };
    let told = told.unwrap_or_else(|why| {
        // Past the harness, which hides what a passing test prints.
        let said = "the memory that a core dump would hold is searched instead";
        let _ = writeln!(std::io::stderr(), "of this machine {why}: {said}");
        in_memory()
    });
    assert_eq!(told, all());
}

/// What a core dump would hold, read from the living process.
#[test]
fn in_the_memory_of_a_process() {
    assert_eq!(in_memory(), all());
}

fn in_memory() -> BTreeSet<Encoding> {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, mut output) = child("stay", directory.path());
    let mut line = String::new();
    while !line.contains("kept") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended");
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{}/mem", child.id())).unwrap();
    let mut told = BTreeSet::new();
    for map in maps.lines().filter(|map| map.contains("rw-p")) {
        let (from, to) = map.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        memory.seek(std::io::SeekFrom::Start(from)).unwrap();
        let mapping = (&memory).take(to - from);
        // Some mappings cannot be read by anybody.
        let Ok(leaks) = canaries().in_stream("memory", mapping) else { continue };
        assert_silent(&leaks);
        told.extend(leaks.iter().map(|leak| leak.encoding));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    told
}

#[test]
fn in_the_arguments_and_the_environment_of_a_process() {
    for (encoding, plant) in plants() {
        // Neither holds a zero.
        if plant.contains(&0) {
            continue;
        }
        let plant = std::ffi::OsStr::from_bytes(&plant);
        let told = |command: &mut Command, what: &str| {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            // Before it runs it shows nothing.
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let bytes = std::fs::read(format!("/proc/{}/{what}", child.id())).unwrap();
            // The end of its input ends it.
            drop(child.stdin.take());
            child.wait().unwrap();
            assert_told(what, encoding, &canaries().in_bytes(what, bytes));
        };
        let waits = || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "echo runs; read _ || :", "sh"]);
            command
        };
        told(waits().arg(plant), "cmdline");
        told(waits().env("PASSWORD", plant), "environ");
    }
}
