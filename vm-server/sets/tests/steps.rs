//! Between any two system calls nothing short, mixed or readable by others lies anywhere, and the calls come in the
//! order that makes it so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

mod world;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use host_policy::Principal;
use sets::{Disk, Gate};
use world::{LENGTH, World, number_of, walk};

/// Who owns the files, where we may say so.
const OWNER: u32 = 65_534;

fn world(root: Option<&Path>) -> World {
    let mut world = root.map_or_else(World::new, World::at);
    if rustix::process::geteuid().is_root() {
        world.policy.access.owner = Some(Principal::Id(OWNER));
        world.policy.access.group = Some(Principal::Id(OWNER));
        world.policy.places[1].access = world.policy.access.clone();
    }
    world
}

fn owner() -> u32 {
    let own = rustix::process::geteuid();
    if own.is_root() { OWNER } else { own.as_raw() }
}

/// What somebody who looks at this moment may find of every file. Returns how many had no mode yet.
fn look(root: &Path, when: &str) -> usize {
    let mut closed = 0;
    for path in walk(root) {
        // It may have been removed between the two looks.
        let Ok(stat) = fs::symlink_metadata(&path) else { continue };
        if !stat.is_file() {
            continue;
        }
        let (mode, at) = (stat.mode() & 0o7777, format!("{when}: {}", path.display()));
        assert!(mode == 0 || mode == 0o440, "{at} has mode {mode:04o}");
        closed += usize::from(mode == 0);
        if mode != 0 {
            assert_eq!(stat.uid(), owner(), "{at} may be opened before it has its owner");
        }
        if stat.len() > 0 {
            assert_eq!(mode, 0o440, "{at} has a content before it has its mode");
            assert!(stat.len() <= LENGTH as u64, "{at}");
        }
    }
    for way in ["sets/orders-db/..data/password", "etc/orders/linked", "etc/orders/copied"] {
        let read = fs::read(root.join(way)).unwrap_or_else(|error| panic!("{when}: {way}: {error}"));
        assert!(number_of(&read).is_some(), "{when}: {way} is short or mixed");
    }
    closed
}

/// Looks before every operation.
struct Looks {
    root: PathBuf,
    closed: AtomicUsize,
    steps: AtomicUsize,
}

impl Gate for Looks {
    fn before(&self, operation: &'static str) -> Result<(), std::io::Error> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        let closed = look(&self.root, &format!("step {step}, before {operation}"));
        self.closed.fetch_add(closed, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn at_every_step_a_look_finds_nothing_short_mixed_or_open_to_others() {
    let world = world(None);
    world.rotate(&Disk::default(), 1).unwrap();
    let (closed, steps) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let looks = Arc::new(Looks { root: world.root.clone(), closed, steps });
    world.rotate(&Disk::gated(looks.clone()), 2).unwrap();
    assert!(looks.steps.load(Ordering::SeqCst) > 40, "operations do not pass the gate");
    assert!(looks.closed.load(Ordering::SeqCst) > 0, "no file was ever seen without a mode");
}

const CHILD_WORLD: &str = "ESO_TEST_TRACED_WORLD";

/// Not a test of its own: what `strace` runs.
#[test]
#[ignore = "run by the test below"]
fn what_is_traced() {
    let root = PathBuf::from(std::env::var_os(CHILD_WORLD).unwrap());
    world(Some(&root)).rotate(&Disk::default(), 2).unwrap();
}

/// A real process in slow motion: after each call that changes something it rests, while a reader looks all the time.
#[test]
fn under_strace_the_calls_come_in_order_and_a_reader_looks_all_the_time() {
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !tests_needs::is_there(strace, "the order of system calls: needs strace (apt-get install strace)") {
        return;
    }
    let world = world(None);
    world.rotate(&Disk::default(), 1).unwrap();
    let log = world.root.with_extension("strace");
    let changes = "openat2,fchown,fchmod,write,fsync,rename,renameat,renameat2,symlinkat,linkat,unlinkat";
    let mut traced = Command::new("strace")
        .args(["-f", "-qq", "-y", "-s", "0", "-o"])
        .arg(&log)
        .args(["-e", &format!("trace={changes}"), "-e", &format!("inject={changes}:delay_exit=4000")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "what_is_traced", "--ignored"])
        .env(CHILD_WORLD, &world.root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut looks, mut closed) = (0, 0);
    let deadline = Instant::now() + Duration::from_mins(2);
    let ended = loop {
        closed += look(&world.root, &format!("look {looks}"));
        looks += 1;
        if let Some(ended) = traced.try_wait().unwrap() {
            break ended;
        }
        assert!(Instant::now() < deadline, "it does not end under strace");
    };
    let calls = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    assert!(ended.success(), "{calls}");
    assert!(looks > 50 && closed > 0, "{looks} looks saw {closed} files without a mode");
    check_order(&calls);
}

/// For each file that was made: created for us alone and empty, owner, mode, content, made durable, renamed, and
/// then its directory made durable.
fn check_order(calls: &str) {
    let calls: Vec<&str> =
        calls.lines().filter(|line| line.contains(") = ") && !line.contains("= -1")).collect();
    let created: Vec<(usize, &str)> = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| call.contains("openat2(") && call.contains("O_EXCL"))
        .map(|(at, call)| (at, call.rsplit_once('<').unwrap().1.split('>').next().unwrap()))
        .collect();
    // Two files of the set, and the copy.
    assert_eq!(created.len(), 3, "{calls:#?}");
    for (begin, path) in created {
        assert!(
            calls[begin].contains("O_NOFOLLOW") && calls[begin].contains("RESOLVE_NO_SYMLINKS"),
            "{}",
            calls[begin]
        );
        assert!(!calls[begin].contains("mode=0") || calls[begin].contains("mode=000"), "{}", calls[begin]);
        let next = |from: usize, call: &str, of: &str| {
            let found = calls[from..].iter().position(|line| line.contains(call) && line.contains(of));
            from + found.unwrap_or_else(|| panic!("no {call} of {of} after {}: {calls:#?}", calls[from]))
        };
        let mut at = begin;
        let own = format!("<{path}>");
        let steps: &[&str] = if rustix::process::geteuid().is_root() {
            &["fchown(", "fchmod(", "write(", "fsync("]
        } else {
            &["fchmod(", "write(", "fsync("]
        };
        for call in steps {
            at = next(at, call, &own);
        }
        let directory = Path::new(path).parent().unwrap();
        // A version becomes visible with its directory's name, a copy with its own.
        let (name, parent) = if path.contains("/sets/") {
            (directory.file_name().unwrap(), directory.parent().unwrap())
        } else {
            (Path::new(path).file_name().unwrap(), directory)
        };
        at = next(at, "rename", &format!("\"{}\"", name.to_str().unwrap()));
        next(at, "fsync(", &format!("<{}>", parent.display()));
    }
    // What readers follow is replaced by one rename, after all of it, and never unlinked or written.
    let flips = calls.iter().filter(|line| line.contains("\"..data\"")).collect::<Vec<_>>();
    assert!(flips.iter().all(|line| line.contains("rename")) && flips.len() == 1, "{flips:#?}");
}
