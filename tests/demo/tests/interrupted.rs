//! Ctrl-C at any moment leaves nothing: no process, no mount, no file. On the login server, which needs no package; as root
//! also without root, and on PostgreSQL where it is installed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test ends at the first surprise, and says what it left out"
)]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tests_services::PostgresKind;

/// How long the demo may take to come to a moment, and to end.
const PATIENCE: Duration = Duration::from_mins(3);
/// A user without any rights.
const NOBODY: u32 = 65534;

/// When somebody presses Ctrl-C.
struct Moment {
    server: &'static str,
    act: &'static str,
    /// What the demo says then.
    says: &'static str,
    /// Whether all of the foreground process group is told, as a terminal does it, or the demo alone.
    whole_group: bool,
}

impl Moment {
    const fn alone(act: &'static str, says: &'static str) -> Self {
        Self { server: "login", act, says, whole_group: false }
    }

    const fn from_a_terminal(act: &'static str, says: &'static str) -> Self {
        Self { whole_group: true, ..Self::alone(act, says) }
    }
}

/// At once, servers up, hosts up, applications running, in the middle of a rotation, with frozen processes and a killed
/// control plane, between two values of somebody else.
const MOMENTS: [Moment; 8] = [
    Moment::alone("1", "setting the scene"),
    Moment::alone("1", "its own log is the judge"),
    Moment::alone("1", "host vm-b enrols"),
    Moment::from_a_terminal("1", "search on vm-b logs in"),
    Moment::alone("1", "is named as the one that keeps"),
    Moment::from_a_terminal("1", "is named as the one that keeps"),
    Moment::alone("2", "the control plane is killed"),
    Moment::alone("4", "somebody else replaces the file"),
];

/// With a PostgreSQL, whose processes belong to another user.
const ON_POSTGRESQL: Moment =
    Moment { server: "pg15", ..Moment::from_a_terminal("1", "is named as the one that keeps") };

#[test]
fn ctrl_c_leaves_nothing() {
    for moment in &MOMENTS {
        interrupted_at(moment, false);
    }
    let root = nix::unistd::geteuid().is_root();
    if !tests_needs::is_there(
        root,
        "Ctrl-C to a demo as root, which has mounts and process ids apart: needs root",
    ) {
        return;
    }
    for moment in &MOMENTS {
        interrupted_at(moment, true);
    }
    let postgresql = PostgresKind::Debian(15).programs().is_ok();
    if tests_needs::is_there(postgresql, "Ctrl-C to a demo on PostgreSQL: needs postgresql-15") {
        interrupted_at(&ON_POSTGRESQL, true);
    }
}

/// Everything of this run lies below a directory of its own, by which what is left of it is found.
fn interrupted_at(moment: &Moment, as_root: bool) {
    let Moment { server, act, says, whole_group } = *moment;
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = nix::unistd::geteuid().is_root();
    let lowered = root && !as_root;
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    if lowered {
        chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY).env("HOME", "/nonexistent");
    }
    let mut demo = command
        .args(["--server", server, "--act", act])
        .env("TMPDIR", home.path())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = wait_for(&mut demo, says);
    let process = Pid::from_raw(demo.id().try_into().unwrap());
    if whole_group { killpg(process, Signal::SIGINT) } else { kill(process, Signal::SIGINT) }.unwrap();
    let status = ended(&mut demo).unwrap_or_else(|| panic!("it did not end after: {says}"));
    assert_eq!(
        status.code(),
        Some(130),
        "interrupted at {says:?}, whole group: {whole_group}, after:\n{said}"
    );
    nothing_is_left(home.path(), says);
}

/// Reads on until the demo says it; what it said.
fn wait_for(demo: &mut Child, moment: &str) -> String {
    let output = demo.stdout.take().unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Goes on to the end: a demo that nobody reads would stop.
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + PATIENCE;
    let mut said = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(line) = lines.recv_timeout(left) else {
            let _ = demo.kill();
            panic!("the demo never said {moment:?}:\n{said}");
        };
        said.push_str(&line);
        said.push('\n');
        if line.contains(moment) {
            return said;
        }
    }
}

fn ended(demo: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = demo.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = demo.kill();
    None
}

fn nothing_is_left(home: &Path, moment: &str) {
    let left: Vec<_> = std::fs::read_dir(home).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "interrupted at {moment:?}, it left {left:?}");
    let home = home.to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(home), "interrupted at {moment:?}, it left a mount:\n{mounts}");
    for process in std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()) {
        let said = |what: &str| {
            let bytes = std::fs::read(process.join(what)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        // The directory stands in the environment of all of them, and in most command lines.
        let (command, environment) = (said("cmdline"), said("environ"));
        assert!(
            !command.contains(home) && !environment.contains(home),
            "interrupted at {moment:?}, it left {}: {command}",
            process.display()
        );
    }
}
