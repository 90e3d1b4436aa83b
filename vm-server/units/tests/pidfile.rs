//! How consumers outside any unit are asked: real processes, a real pid file, and somebody who starts them again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host_policy::{Consumer, HostPolicy, Principal, Probe, ProbeKind};
use units::{Adopted, Direction, Health, LifeId, Settled, Supervisor};

/// Runs `sleep` and starts it again whenever it ends, as an init would.
struct Init {
    dir: tempfile::TempDir,
    child: Arc<Mutex<Child>>,
    over: Arc<AtomicBool>,
    starts: Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn sleep_program() -> PathBuf {
    fs::canonicalize("/bin/sleep").unwrap()
}

fn start(pidfile: &Path) -> Child {
    let child = Command::new(sleep_program()).arg("1000").stdin(Stdio::null()).spawn().unwrap();
    fs::write(pidfile, format!("{}\n", child.id())).unwrap();
    child
}

impl Init {
    fn new(starts_again: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pidfile = dir.path().join("pid");
        let child = Arc::new(Mutex::new(start(&pidfile)));
        let (over, starts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(1)));
        let (inner, ended, count) = (child.clone(), over.clone(), starts.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let mut child = inner.lock().unwrap();
                if child.try_wait().unwrap().is_some() && starts_again && !ended.load(Ordering::Relaxed) {
                    *child = start(&pidfile);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                drop(child);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { dir, child, over, starts, thread: Some(thread) }
    }

    fn consumer(&self, keys: &str) -> Consumer {
        consumer(&self.dir.path().join("pid"), &sleep_program(), keys)
    }

    fn kill(&self) {
        self.child.lock().unwrap().kill().unwrap();
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn consumer(pidfile: &Path, exe: &Path, keys: &str) -> Consumer {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let text = format!(
        "[set.a]\nconsumers = [{{ name = \"orders\", pidfile = \"{}\", exe = \"{}\", {keys} }}]\n",
        pidfile.display(),
        exe.display()
    );
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    HostPolicy::load(dir.path()).unwrap().sets.values().next().unwrap().consumers[0].clone()
}

async fn life(consumer: &Consumer) -> LifeId {
    let supervisor = Supervisor::without_systemd();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // Between fork and exec a child is not yet the program.
        if let Ok(Some(life)) = supervisor.look(consumer).await.map(|look| look.life) {
            return life;
        }
        assert!(Instant::now() < deadline, "it never ran");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_restart_is_waited_for_and_done_once() {
    let init = Init::new(true);
    let consumer = init.consumer("adopt = \"restart\", settle_ms = 50");
    let supervisor = Supervisor::without_systemd();
    let before = life(&consumer).await;
    let Adopted::Asked(after) = supervisor.adopt(&consumer, Some(&before), Direction::Forward).await.unwrap()
    else {
        unreachable!("it was not asked")
    };
    assert_ne!(before, after);
    assert_eq!(supervisor.settle(&consumer, &after).await.unwrap(), Settled::Healthy);
    let again = supervisor.adopt(&consumer, Some(&before), Direction::Forward).await.unwrap();
    assert_eq!(again, Adopted::AlreadyNew(after));
    assert_eq!(init.starts.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn who_ends_within_the_settle_time_has_not_settled() {
    let init = Init::new(true);
    let consumer = init.consumer("adopt = \"reopen\", settle_ms = 60_000");
    let before = life(&consumer).await;
    let supervisor = Supervisor::without_systemd();
    let settling = supervisor.settle(&consumer, &before);
    let killing = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        init.kill();
    };
    let (settled, ()) = tokio::join!(settling, killing);
    assert!(matches!(settled.unwrap(), Settled::Failed(_)));
}

#[tokio::test]
async fn who_does_not_run_is_idle() {
    let init = Init::new(false);
    let consumer = init.consumer("adopt = \"restart\"");
    life(&consumer).await;
    init.kill();
    init.child.lock().unwrap().wait().unwrap();
    let supervisor = Supervisor::without_systemd();
    let look = supervisor.look(&consumer).await.unwrap();
    assert_eq!((look.life, look.health), (None, Health::Idle));
    assert_eq!(supervisor.adopt(&consumer, None, Direction::Forward).await.unwrap(), Adopted::Idle);
}

#[tokio::test]
async fn a_signal_reaches_the_process_and_keeps_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let (pidfile, heard) = (dir.path().join("pid"), dir.path().join("heard"));
    let shell = fs::canonicalize("/bin/sh").unwrap();
    let script = format!(
        "trap 'echo x > {}' USR1; echo $$ > {}; while :; do sleep 0.02; done",
        heard.display(),
        pidfile.display()
    );
    let mut child = Command::new(&shell).args(["-c", &script]).spawn().unwrap();
    let consumer = consumer(&pidfile, &shell, "adopt = \"signal\", signal = \"USR1\"");
    let before = life(&consumer).await;
    let supervisor = Supervisor::without_systemd();
    let adopted = supervisor.adopt(&consumer, Some(&before), Direction::Forward).await.unwrap();
    assert_eq!(adopted, Adopted::Asked(before));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !heard.exists() {
        assert!(Instant::now() < deadline, "the signal was never heard");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A pid file may be written by whom it likes: it never leads a signal to another program or another user's process.
#[tokio::test]
async fn a_pid_file_alone_is_not_believed() {
    let init = Init::new(false);
    let supervisor = Supervisor::without_systemd();
    let mine = consumer(&init.dir.path().join("pid"), Path::new("/usr/bin/true"), "adopt = \"restart\"");
    let wrong = supervisor.adopt(&mine, None, Direction::Forward).await.unwrap_err();
    assert!(wrong.to_string().contains("does not run /usr/bin/true"), "{wrong}");
    let mut other = init.consumer("adopt = \"restart\"");
    life(&other).await;
    if let host_policy::Life::PidFile(process) = &mut other.life {
        process.user = Some(Principal::Id(4_242));
    }
    let wrong = supervisor.adopt(&other, None, Direction::Forward).await.unwrap_err();
    assert!(wrong.to_string().contains("not of user 4242"), "{wrong}");
    assert!(
        init.child.lock().unwrap().try_wait().unwrap().is_none(),
        "a process was signalled that is not ours to ask"
    );
    for text in ["", "1", "0", "-1", "-4711", "nonsense", "99999999999999999999", "4711 4712", "\u{0}"] {
        fs::write(init.dir.path().join("pid"), text).unwrap();
        let look = supervisor.look(&init.consumer("adopt = \"restart\"")).await.unwrap();
        assert_eq!(look.health, Health::Idle, "{text:?} was taken for a process");
    }
}

#[tokio::test]
async fn probes_without_systemd_have_a_deadline() {
    let supervisor = Supervisor::without_systemd();
    let user = rustix::process::geteuid().is_root().then_some(Principal::Id(65_534));
    let command = |argv: &[&str]| {
        ProbeKind::Command(host_policy::Command {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            user: user.clone(),
            timeout_ms: 300,
        })
    };
    let ask = |kind| {
        let probe = Probe { kind, timeout_ms: 300, tries: 2, pause_ms: 1 };
        let supervisor = &supervisor;
        async move { supervisor.probe(&probe).await.unwrap() }
    };
    assert_eq!(ask(command(&["/bin/true"])).await, Ok(()));
    assert!(ask(command(&["/bin/false"])).await.is_err());
    let begun = Instant::now();
    assert!(ask(command(&["/bin/sleep", "1000"])).await.unwrap_err().contains("took longer"));
    assert!(begun.elapsed() < Duration::from_secs(10));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(ask(ProbeKind::Tcp(address)).await, Ok(()));
    let page = |status| ProbeKind::Http(host_policy::Http { address, path: "/health".into(), status });
    // Accepts and says nothing.
    assert!(ask(page(200)).await.is_err());
    let answering = std::thread::spawn(move || {
        use std::io::{Read, Write};
        listener.set_nonblocking(false).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0; 512];
            // Connections of earlier probes are closed already.
            let read = stream.read(&mut first).unwrap_or(0);
            if first[..read].starts_with(b"GET /stop") {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    assert_eq!(ask(page(204)).await, Ok(()));
    assert!(ask(page(200)).await.unwrap_err().contains("answered 204"));
    std::io::Write::write_all(&mut std::net::TcpStream::connect(address).unwrap(), b"GET /stop").unwrap();
    answering.join().unwrap();
}

/// A command of the policy never runs as root by itself.
#[tokio::test]
async fn a_command_without_a_user_is_refused_to_root() {
    let supervisor = Supervisor::without_systemd();
    let command = host_policy::Command { argv: vec!["/bin/true".into()], user: None, timeout_ms: 1_000 };
    let asked = supervisor.validate(&command, Path::new("/")).await;
    if rustix::process::geteuid().is_root() {
        assert!(asked.unwrap_err().to_string().contains("never runs as root"));
    } else {
        asked.unwrap().unwrap();
    }
}
