//! A real systemd: restarts with job tracking, the way back past the start limit, oneshots, probes as transient
//! units, and a tmpfs that PID 1 mounts.
//!
//! Needs a PID 1 that is systemd, and root: `cargo test -p tests-host` runs every one of them in a machine of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use host_policy::{Consumer, HostPolicy, Probe, ProbeKind};
use units::{Adopted, Connector, Direction, Health, Settled, Supervisor, Systemd};

fn must_be_able() {
    assert!(Systemd::is_here(), "PID 1 is not systemd");
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
}

/// A unit of this test, removed at its end.
struct Unit(&'static str);

impl Unit {
    fn new(name: &'static str, service: &str) -> Self {
        let text = format!("[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n[Service]\n{service}\n");
        fs::write(Path::new("/run/systemd/system").join(name), text).unwrap();
        systemctl(&["daemon-reload"]);
        Self(name)
    }

    fn consumer(&self, adopt: &str) -> Consumer {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let text = format!(
            "[set.a]\nconsumers = [{{ unit = \"{}\", adopt = \"{adopt}\", settle_ms = 1_500 }}]\n",
            self.0
        );
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        HostPolicy::load(dir.path()).unwrap().sets.values().next().unwrap().consumers[0].clone()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        systemctl(&["stop", self.0]);
        let _ = fs::remove_file(Path::new("/run/systemd/system").join(self.0));
        systemctl(&["daemon-reload"]);
        systemctl(&["reset-failed", self.0]);
    }
}

fn systemctl(words: &[&str]) {
    let _ = Command::new("systemctl").args(words).output().unwrap();
}

fn supervisor() -> Supervisor {
    Supervisor::with_systemd(Systemd::new(Connector::system_bus()), "/bin/false".into())
}

#[tokio::test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
async fn a_restart_makes_a_new_life_that_settles() {
    must_be_able();
    let unit = Unit::new("eso-test-restart.service", "ExecStart=/bin/sleep 1000");
    systemctl(&["start", unit.0]);
    let (supervisor, consumer) = (supervisor(), unit.consumer("restart"));
    let before = supervisor.look(&consumer).await.unwrap().life.expect("it does not run");
    let adopted = supervisor.adopt(&consumer, Some(&before), Direction::Forward).await.unwrap();
    let Adopted::Asked(after) = adopted else { panic!("{adopted:?}") };
    assert_ne!(before, after);
    assert_eq!(supervisor.settle(&consumer, &after).await.unwrap(), Settled::Healthy);
    let again = supervisor.adopt(&consumer, Some(&before), Direction::Forward).await.unwrap();
    assert_eq!(again, Adopted::AlreadyNew(after));
}

#[tokio::test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
async fn an_idle_unit_stays_idle() {
    must_be_able();
    let unit = Unit::new("eso-test-idle.service", "ExecStart=/bin/sleep 1000");
    let (supervisor, consumer) = (supervisor(), unit.consumer("restart"));
    assert_eq!(supervisor.adopt(&consumer, None, Direction::Forward).await.unwrap(), Adopted::Idle);
    assert_eq!(supervisor.look(&consumer).await.unwrap().health, Health::Idle);
}

/// The program exits 1 while the new version is there, until the start limit refuses it; with the old one it starts.
#[tokio::test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
async fn a_failing_start_is_seen_and_the_way_back_passes_the_start_limit() {
    must_be_able();
    let bad = "/run/eso-test-bad";
    let unit = Unit::new(
        "eso-test-fails.service",
        &format!(
            "Restart=on-failure\nRestartSec=10ms\nExecStart=/bin/sh -c 'test ! -e {bad} && exec sleep 1000'"
        ),
    );
    let _ = fs::remove_file(bad);
    systemctl(&["start", unit.0]);
    let (supervisor, consumer) = (supervisor(), unit.consumer("restart"));
    let before = supervisor.look(&consumer).await.unwrap().life.unwrap();
    fs::write(bad, "").unwrap();
    let adopted = supervisor.adopt(&consumer, Some(&before), Direction::Forward).await.unwrap();
    let failed = match &adopted {
        Adopted::Failed(_) => true,
        Adopted::Asked(life) => {
            matches!(supervisor.settle(&consumer, life).await.unwrap(), Settled::Failed(_))
        }
        _ => false,
    };
    assert!(failed, "{adopted:?}");
    // Waits until systemd has given up, so that the limit is really hit.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !matches!(supervisor.look(&consumer).await.unwrap().health, Health::Failed(why) if why.starts_with("failed"))
    {
        assert!(std::time::Instant::now() < deadline, "systemd never gave up");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    fs::remove_file(bad).unwrap();
    let back = supervisor.adopt(&consumer, Some(&before), Direction::Back).await.unwrap();
    let Adopted::Asked(life) = back else { panic!("{back:?}") };
    assert_eq!(supervisor.settle(&consumer, &life).await.unwrap(), Settled::Healthy);
}

#[tokio::test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
async fn a_oneshot_settles_with_exit_status_0() {
    must_be_able();
    let unit = Unit::new("eso-test-oneshot.service", "Type=oneshot\nExecStart=/bin/sleep 0.2");
    let (supervisor, consumer) = (supervisor(), unit.consumer("next_start"));
    assert_eq!(supervisor.look(&consumer).await.unwrap().health, Health::Idle);
    // Nothing else names this unit: without our interest systemd would forget its run.
    systemctl(&["start", unit.0]);
    let look = supervisor.look(&consumer).await.unwrap();
    assert_eq!((look.health, look.life), (Health::Finished, None));
    let settled = supervisor.settle(&consumer, &look.last_life.unwrap()).await.unwrap();
    assert_eq!(settled, Settled::Healthy);
}

#[tokio::test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
async fn a_unit_that_would_reboot_the_host_is_not_touched() {
    must_be_able();
    let unit =
        Unit::new("eso-test-reboots.service", "ExecStart=/bin/sleep 1000\n[Unit]\nFailureAction=reboot");
    systemctl(&["start", unit.0]);
    let (supervisor, consumer) = (supervisor(), unit.consumer("restart"));
    let before = supervisor.look(&consumer).await.unwrap().life;
    let refused = supervisor.adopt(&consumer, before.as_ref(), Direction::Forward).await.unwrap_err();
    assert!(refused.to_string().contains("FailureAction=reboot"), "{refused}");
    assert_eq!(supervisor.look(&consumer).await.unwrap().life, before);
}

#[tokio::test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
async fn commands_run_as_transient_units_with_a_user_of_their_own() {
    must_be_able();
    let supervisor = supervisor();
    let command = |argv: &[&str], user: Option<&str>| host_policy::Command {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        user: user.map(|name| host_policy::Principal::Name(name.to_owned())),
        timeout_ms: 700,
    };
    let dir = PathBuf::from("/run/sets-of-this-test");
    let run = async |argv: &[&str], user| supervisor.validate(&command(argv, user), &dir).await.unwrap();
    assert_eq!(run(&["/bin/sh", "-c", "test \"$(id -un)\" = nobody"], Some("nobody")).await, Ok(()));
    assert_eq!(run(&["/bin/sh", "-c", "test \"$(id -u)\" != 0"], None).await, Ok(()));
    assert_eq!(run(&["/bin/sh", "-c", "test $ESO_SET_DIR = /run/sets-of-this-test"], None).await, Ok(()));
    assert!(run(&["/bin/false"], None).await.is_err());
    assert!(run(&["/bin/sleep", "1000"], None).await.is_err(), "its deadline passed unseen");
    let probe = Probe {
        kind: ProbeKind::Command(command(&["/bin/true"], None)),
        timeout_ms: 500,
        tries: 1,
        pause_ms: 0,
    };
    assert_eq!(supervisor.probe(&probe).await.unwrap(), Ok(()));
    let left =
        Command::new("systemctl").args(["list-units", "--all", "--no-legend", "eso-run-*"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "", "a transient unit was left behind");
}

#[tokio::test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
async fn a_tmpfs_is_mounted_by_pid_1() {
    must_be_able();
    let at = Path::new("/run/eso-test-mount/a-set");
    fs::create_dir_all(at).unwrap();
    let systemd = Systemd::new(Connector::system_bus());
    systemd.mount_tmpfs(at, "nosuid,nodev,noexec,mode=0755,size=1m,nr_inodes=64").await.unwrap();
    assert_ne!(fs::metadata(at).unwrap().dev(), fs::metadata("/run").unwrap().dev());
    let mounts = fs::read_to_string("/proc/1/mountinfo").unwrap();
    assert!(mounts.contains("/run/eso-test-mount/a-set"), "PID 1 does not see it");
    systemctl(&["stop", "run-eso\\x2dtest\\x2dmount-a\\x2dset.mount"]);
    assert_eq!(fs::metadata(at).unwrap().dev(), fs::metadata("/run").unwrap().dev());
}
