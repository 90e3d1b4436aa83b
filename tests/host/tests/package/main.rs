//! A real systemd host with its own PID 1, installed from the package, through one rotation, our own restart, an
//! upgrade and a removal.
//!
//! Needs root and the Debian packages systemd-container and mmdebstrap, and cargo-deb; says which one is missing. It
//! boots a machine, so it runs only when asked for: `cargo test -p tests-host -- --ignored`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RESOURCES: &str = "\
apiVersion: generators.external-secrets.io/v1alpha1
kind: Password
metadata: { name: orders }
spec: { length: 24 }
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: { name: orders-db }
spec:
  generator: { kind: Password, name: orders }
  targets: { hosts: { matchLabels: { app: orders } } }
  files: { password: '{{ .password }}' }
  policy: { flipIn: 1s, grace: 0s, barrier: 10s, evidence: kernel }
";

/// What is missing here, if anything.
fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("this test needs root");
    }
    let works = |program: &str, word: &str| {
        let tried = Command::new(program).arg(word).stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    if !works("systemd-nspawn", "--version") || !works("mmdebstrap", "--version") {
        return Some("apt-get install systemd-container mmdebstrap");
    }
    (!works("cargo-deb", "--version")).then_some("cargo install --locked cargo-deb")
}

fn run(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Asked to end, systemd-nspawn powers its machine off.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Builds our programs as they are tested, and the package of those of a host.
fn build(package: &Path) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = ["eso-vm-applier", "eso-vm-server", "eso-control-plane", "esoctl"];
    let mut build = Command::new(&cargo);
    build.args(["build", "--quiet"]).args(packages.iter().flat_map(|name| ["-p", name]));
    run(build.current_dir(workspace()));
    let mut deb = Command::new("cargo-deb");
    // Without `--no-build` it would make a release.
    deb.args(["--no-build", "--no-strip", "--profile", "dev", "-p", "eso-vm-applier", "-o"]).arg(package);
    run(deb.current_dir(workspace()));
    // Beside the directory of this very program.
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

struct ControlPlane {
    _running: Running,
    esoctl: PathBuf,
    data: PathBuf,
    url: String,
}

impl ControlPlane {
    fn start(programs: &Path, dir: &Path) -> Self {
        let (data, resources, out) = (dir.join("data"), dir.join("resources"), dir.join("out"));
        fs::create_dir(&resources).unwrap();
        fs::write(resources.join("orders.yaml"), RESOURCES).unwrap();
        let program = programs.join("eso-control-plane");
        run(Command::new(&program).arg("init").arg("--data").arg(&data));
        let mut serve = Command::new(&program);
        serve.arg("serve").arg("--data").arg(&data).arg("--resources").arg(&resources);
        serve.args(["--listen", "127.0.0.1:0"]).stdout(File::create(&out).unwrap()).stderr(Stdio::null());
        let running = Running(serve.spawn().unwrap());
        let url = wait_for("the control plane is ready", Duration::from_secs(30), || {
            let text = fs::read_to_string(&out).ok()?;
            text.split_whitespace().find_map(|word| word.strip_prefix("url=").map(ToOwned::to_owned))
        });
        Self { _running: running, esoctl: programs.join("esoctl"), data, url }
    }

    fn ask(&self, words: &[&str]) -> String {
        let config = self.data.join("admin/esoctl.toml");
        run(Command::new(&self.esoctl).arg("--config").arg(config).arg("--server").arg(&self.url).args(words))
    }
}

/// A Debian machine that runs `inside.sh` once it has booted. It shares our network, so that both ends are on
/// loopback.
fn machine(root: &Path) {
    let mut debian = Command::new("mmdebstrap");
    debian.args(["--quiet", "--variant=important", "--include=systemd,systemd-sysv,dbus", "bookworm"]);
    run(debian.arg(root));
    let inside = root.join("usr/local/bin/inside");
    fs::write(&inside, include_str!("inside.sh")).unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).unwrap();
    let unit = "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\n\
        ExecStart=/bin/sh -c '/usr/local/bin/inside >/result.part 2>&1; mv /result.part /result; systemctl --no-block poweroff'\n";
    fs::write(root.join("etc/systemd/system/inside.service"), unit).unwrap();
    let wanted = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wanted).unwrap();
    std::os::unix::fs::symlink("/etc/systemd/system/inside.service", wanted.join("inside.service")).unwrap();
}

fn boot(root: &Path) -> Running {
    let calls = "fanotify_init fanotify_mark pidfd_open pidfd_getfd pidfd_send_signal openat2 fsopen fsconfig \
        landlock_create_ruleset landlock_add_rule landlock_restrict_self";
    let mut boot = Command::new("systemd-nspawn");
    boot.arg("--quiet").arg("--directory").arg(root).args(["--boot", "--register=no", "--keep-unit"]);
    boot.args(["--console=pipe", "--capability=all", &format!("--machine=eso-{}", std::process::id())]);
    boot.arg(format!("--system-call-filter={calls}")).env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    Running(boot.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
#[ignore = "boots a machine, which takes minutes: cargo test -p tests-host -- --ignored"]
fn a_host_from_the_package_rotates_and_our_own_restarts_restart_nothing() {
    if let Some(missing) = missing() {
        panic!("{missing}");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("machine");
    machine(&root);
    let programs = build(&root.join("root/eso.deb"));
    let control_plane = ControlPlane::start(&programs, dir.path());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "[daemon]\nlisten = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\nreport_ms = 1_000\n"
    );
    fs::write(root.join("root/config.toml"), config).unwrap();
    let bundle = control_plane.ask(&["host", "enroll-token", "vm1", "--label", "app=orders"]);
    fs::write(root.join("root/bundle.json"), bundle).unwrap();

    let _running = boot(&root);
    let result = root.join("result");
    wait_for("the machine has its first version", Duration::from_mins(2), || {
        (root.join("root/rotate").exists() || result.exists()).then_some(())
    });
    if !result.exists() {
        control_plane.ask(&["credential", "rotate", "orders-db"]);
    }
    wait_for("the machine has ended", Duration::from_mins(5), || result.exists().then_some(()));
    let text = fs::read_to_string(&result).unwrap();
    let said: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("SAY ")).map(str::trim).collect();
    let expected = [
        // The applier waits for its enrolment; the network half runs.
        "installed enabled enabled  inactive active",
        "first v1.1",
        "mounted 1",
        // One descriptor is kept: who opened what is still known.
        "restarted same 1",
        "rotated v1.2 gone",
        "upgraded same active active  1",
        // Sets outlive the package, since applications read them.
        "removed inactive inactive active  v1.2",
    ];
    assert_eq!(said, expected, "the machine said:\n{text}");
}
