//! Who is believed on the application socket, and what it costs to be asked by those who are not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use lifecycle::OrderKind;
use protocol::reported::{Reply, SOCKET, Statement};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::control::{Host, PATIENCE, activate, seal, stage, v};

/// A program that waits, as the application of these tests.
fn sleeper() -> String {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|dir| dir.join("sleep")).find(|path| path.exists());
    found.unwrap().canonicalize().unwrap().display().to_string()
}

fn policy() -> String {
    format!(
        r#"
[set.db]
consumers = [{{ name = "app", pidfile = "{{app}}/app.pid", exe = "{}", adopt = "reopen", settle_ms = 100, evidence = "reported" }}]
"#,
        sleeper()
    )
}

/// The application, until it is dropped.
struct App(Child);

impl App {
    fn start() -> Self {
        let quiet = || Stdio::null();
        Self(
            Command::new(sleeper())
                .arg("1000")
                .stdin(quiet())
                .stdout(quiet())
                .stderr(quiet())
                .spawn()
                .unwrap(),
        )
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn speak(stream: UnixStream, host: &Host, on: u32, dropped: &[u32]) -> Option<Reply> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let dropped = dropped.iter().map(|number| v(*number)).collect();
    let statement = Statement { set: host.set(), on: v(on), dropped };
    (&stream).write_all(&statement.to_line().unwrap()).ok()?;
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line).ok()?;
    Reply::from_line(&line).ok()
}

/// Connects, and is killed by the test, which has taken the connection over by then.
#[test]
#[ignore = "a process of another test"]
fn connects() {
    let _connection = UnixStream::connect(std::env::var_os("ESO_SOCKET").unwrap()).unwrap();
    std::thread::park_timeout(PATIENCE);
}

/// A connection of a process that is gone: somebody else has kept it.
fn left_behind(socket: &PathBuf) -> (UnixStream, i32) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "speaking::connects", "--ignored", "--nocapture"]).env("ESO_SOCKET", socket);
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_child(&process);
    let stream = UnixStream::from(connection_of(pid));
    process.kill().unwrap();
    process.wait().unwrap();
    (stream, pid.as_raw_nonzero().get())
}

fn connection_of(pid: Pid) -> OwnedFd {
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
        let is_socket = |path: &PathBuf| {
            std::fs::read_link(path).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
        };
        let sockets = descriptors.map(|entry| entry.unwrap().path()).filter(is_socket);
        for socket in sockets {
            let number = socket.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let taken = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty());
            let connected = taken.ok().filter(|taken| rustix::net::getpeername(taken).is_ok());
            if let Some(connected) = connected {
                return connected;
            }
        }
        assert!(Instant::now() < deadline, "it does not connect");
        std::thread::yield_now();
    }
}

/// The application, with a number that somebody had before. Others start processes too, so it may not get it.
fn with_number(pid: i32) -> Option<App> {
    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
    Some(App::start()).filter(|app| app.pid() == pid)
}

#[test]
fn a_number_used_again_does_not_speak_for_who_has_it_now() {
    let root = rustix::process::geteuid().is_root();
    if !tests_needs::is_there(root, "a number used again on the application socket: choosing one needs root")
    {
        return;
    }
    let mut host = Host::new(&policy());
    let socket = host.root().join("run").join(SOCKET);
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let deadline = Instant::now() + PATIENCE;
    let (stream, app) = loop {
        assert!(Instant::now() < deadline, "no number came back");
        let (stream, pid) = left_behind(&socket);
        if let Some(app) = with_number(pid) {
            break (stream, app);
        }
    };
    std::fs::write(host.app_dir().join("app.pid"), app.pid().to_string()).unwrap();
    host.order(1, OrderKind::Adopt { version: v(1) });
    host.order(2, stage(2));
    host.order(2, activate(2));
    let report = host.order(2, seal(1));
    assert!(report.not_gone[&v(1)].contains("held by"), "{report:#?}");
    // Whoever kept the connection says that the application has let go.
    let Some(Reply::Refused { code, .. }) = speak(stream, &host, 2, &[1]) else { panic!("believed") };
    assert_eq!(code, "unknown_process");
    let report = host.order(2, seal(1));
    assert!(report.not_gone[&v(1)].contains("held by"), "{report:#?}");
    drop(app);
    host.until("gone", |report| report.gone.contains(v(1)));
}

/// Threads that say the same without end, until it is dropped.
struct Talkers {
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Talkers {
    fn start(host: &Host, count: usize) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let socket = host.root().join("run").join(SOCKET);
        let line = Statement { set: host.set(), on: v(1), dropped: [].into() }.to_line().unwrap();
        let talk = |_| {
            let (over, socket, line) = (Arc::clone(&ending), socket.clone(), line.clone());
            std::thread::spawn(move || {
                let stream = UnixStream::connect(socket).unwrap();
                let mut answers = BufReader::new(stream.try_clone().unwrap());
                while !over.load(Ordering::SeqCst) && (&stream).write_all(&line).is_ok() {
                    let _ = answers.read_until(b'\n', &mut Vec::new());
                }
            })
        };
        let threads = (0..count).map(talk).collect();
        Self { ending, threads }
    }
}

impl Drop for Talkers {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn an_application_that_talks_without_end_keeps_nothing_else_waiting() {
    let (policy, pid) = crate::adopting::itself("reopen", r#", evidence = "reported""#);
    let place = "\n[[set.db.places]]\nfile = \"password\"\npath = \"{app}/password\"\nkind = \"copy\"\n";
    let mut host = Host::new(&(policy + place));
    std::fs::write(host.app_dir().join("app.pid"), pid).unwrap();
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let _talkers = Talkers::start(&host, 8);
    // Nobody asks: the repair and its report come by themselves.
    std::fs::remove_file(host.app_dir().join("password")).unwrap();
    std::fs::write(host.app_dir().join("password"), "edited").unwrap();
    host.until_report("a repair", |report| report.notices.iter().any(|notice| notice.code == "drift"));
}

#[test]
fn whom_policy_does_not_name_is_told_so() {
    let mut host = Host::new(&policy());
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let socket = host.root().join("run").join(SOCKET);
    let stream = UnixStream::connect(&socket).unwrap();
    let Some(Reply::Refused { code, .. }) = speak(stream, &host, 1, &[]) else { panic!("believed") };
    assert_eq!(code, "not_a_consumer");
}
