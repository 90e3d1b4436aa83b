//! The exact mode on the real kernel: nobody escapes, and nobody is held for more than a second.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what it did not expect"
)]

mod privilege;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use opens::exact::{self, Exact, Held};
use rustix::process::{Pid, Signal, kill_process};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("respond-on-stdio") => return ended(exact::respond_on_stdio()),
        Some("watch-on-stdio") => return ended(exact::watch_on_stdio()),
        // What cargo's test runners ask of a harness.
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    if !privilege::sees_opens() {
        return ExitCode::SUCCESS;
    }
    a_reader_that_is_gone_at_once_is_known_all_the_same();
    its_ancestors_are_known_too();
    a_reader_of_a_handed_descriptor_is_known();
    a_stopped_responder_holds_nobody_for_more_than_a_second();
    a_killed_responder_lets_everybody_through();
    a_responder_without_its_watcher_ends();
    both_processes_end_with_their_parent();
    eprintln!("exact: 7 passed");
    ExitCode::SUCCESS
}

fn ended(result: Result<(), exact::ExactError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    exact: Exact,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    fs::write(&path, "a value").unwrap();
    let program = std::env::current_exe().unwrap();
    let mut exact = Exact::start(&program, &["respond-on-stdio"], &["watch-on-stdio"]).unwrap();
    exact.mark(File::open(&path).unwrap()).unwrap();
    Fixture { _directory: directory, path, exact }
}

fn held_until(exact: &mut Exact, enough: impl Fn(&Held) -> bool) -> Held {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(held) = exact.read().held.into_iter().find(&enough) {
            return held;
        }
        assert!(Instant::now() < deadline, "nobody was seen");
        std::thread::yield_now();
    }
}

fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

fn wait_for(what: &str, within: Duration, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn cat(path: &Path) -> u32 {
    let mut child = Command::new("cat").arg(path).stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    pid
}

fn a_reader_that_is_gone_at_once_is_known_all_the_same() {
    let Fixture { _directory, path, mut exact } = fixture();
    // Reaped before we look.
    let pid = cat(&path);
    let held = held_until(&mut exact, |held| held.opened && u32::try_from(held.pid) == Ok(pid));
    assert_eq!(held.texts[0].pid, held.pid);
    assert!(String::from_utf8_lossy(&held.texts[0].stat).contains("(cat)"));
    assert!(held.texts[0].exe.ends_with(b"cat"));
}

fn its_ancestors_are_known_too() {
    let Fixture { _directory, path, mut exact } = fixture();
    let mut shell = Command::new("sh")
        .args(["-c", "P=$(cat \"$0\"); test \"$P\" = 'a value'", path.to_str().unwrap()])
        .spawn()
        .unwrap();
    let shell_pid = i32::try_from(shell.id()).unwrap();
    assert!(shell.wait().unwrap().success());
    let held = held_until(&mut exact, |held| held.opened);
    if held.texts[0].is_in_root_cgroup() {
        assert!(held.texts.iter().any(|text| text.pid == shell_pid));
        assert_eq!(held.texts.last().unwrap().pid, 1);
    }
}

fn a_reader_of_a_handed_descriptor_is_known() {
    let Fixture { _directory, path, mut exact } = fixture();
    let file = File::open(&path).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::from(file)).stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    child.wait().unwrap();
    let held = held_until(&mut exact, |held| held.pid == pid);
    assert!(held.accessed && !held.opened);
}

fn a_stopped_responder_holds_nobody_for_more_than_a_second() {
    let Fixture { _directory, path, mut exact } = fixture();
    signal(exact.responder(), Signal::STOP);
    let began = Instant::now();
    cat(&path);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1) + Duration::from_millis(200), "the opener was held for {took:?}");
    wait_for("the end of the responder", Duration::from_secs(5), || is_gone(exact.responder()));
    assert!(exact.read().ended);
    cat(&path);
}

fn a_killed_responder_lets_everybody_through() {
    let Fixture { _directory, path, mut exact } = fixture();
    signal(exact.responder(), Signal::KILL);
    cat(&path);
    wait_for("the end of the responder", Duration::from_secs(5), || is_gone(exact.responder()));
    assert!(exact.read().ended);
    assert!(exact.mark(File::open(&path).unwrap()).is_err());
    wait_for("the end of the watcher", Duration::from_secs(5), || is_gone(exact.watcher()));
}

fn a_responder_without_its_watcher_ends() {
    let Fixture { _directory, path, exact } = fixture();
    signal(exact.watcher(), Signal::KILL);
    wait_for("the end of the responder", Duration::from_secs(5), || is_gone(exact.responder()));
    cat(&path);
}

fn both_processes_end_with_their_parent() {
    let Fixture { exact, .. } = fixture();
    let (responder, watcher) = (exact.responder(), exact.watcher());
    drop(exact);
    assert!(is_gone(responder) && is_gone(watcher));
}
