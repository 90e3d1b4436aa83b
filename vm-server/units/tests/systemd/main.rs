//! How consumers are asked through systemd, against a systemd at the other end of a socket pair.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

#[allow(unreachable_pub, reason = "a module of one test")]
mod fake;

use fake::{Change, Fake, Signal};
use host_policy::{Adopt, Command, Consumer, HostPolicy, Principal, Probe, ProbeKind};
use units::{Adopted, Direction, LifeId, Settled, Supervisor, UnitError};

/// The consumer `orders.service` as a policy with these keys has it.
fn consumer(keys: &str) -> Consumer {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let text = format!("[set.a]\nconsumers = [{{ unit = \"orders.service\", settle_ms = 200, {keys} }}]\n");
    std::fs::write(&file, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&file, mode).unwrap();
    let policy = HostPolicy::load(dir.path()).unwrap();
    policy.sets.values().next().unwrap().consumers[0].clone()
}

fn supervisor(fake: &Fake) -> Supervisor {
    Supervisor::with_systemd(fake.systemd.clone(), "/usr/sbin/eso-vm-applier".into())
}

fn invocation(number: u8) -> LifeId {
    LifeId::Invocation(format!("{number:02x}").repeat(16))
}

#[tokio::test]
async fn a_job_signal_before_the_reply_is_not_missed() {
    for signal in [Signal::BeforeReply, Signal::AfterReply] {
        // Whoever missed the signal asks for the job, and so does a machine on which it took a second, now and then.
        let mut missed = true;
        for _ in 0..10 {
            let fake = Fake::new();
            fake.set(|state| state.signal = signal);
            let consumer = consumer("adopt = \"restart\"");
            let adopted =
                supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
            assert_eq!(adopted, Adopted::Asked(invocation(2)));
            assert_eq!(fake.asked(), ["TryRestartUnit"]);
            missed &= fake.state.lock().unwrap().asked_for_job > 0;
        }
        assert!(!missed, "the signal was missed and the job was asked for");
    }
}

#[tokio::test]
async fn a_lost_job_signal_is_found_out() {
    let fake = Fake::new();
    fake.set(|state| state.signal = Signal::Never);
    let consumer = consumer("adopt = \"restart\"");
    let adopted = supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
    assert_eq!(adopted, Adopted::Asked(invocation(2)));
}

#[tokio::test]
async fn nothing_is_restarted_twice() {
    let fake = Fake::new();
    let supervisor = supervisor(&fake);
    let consumer = consumer("adopt = \"restart\"");
    let before = supervisor.look(&consumer).await.unwrap().life;
    assert_eq!(before, Some(invocation(1)));
    for expected in [
        Adopted::Asked(invocation(2)),
        Adopted::AlreadyNew(invocation(2)),
        Adopted::AlreadyNew(invocation(2)),
    ] {
        assert_eq!(supervisor.adopt(&consumer, before.as_ref(), Direction::Forward).await.unwrap(), expected);
    }
    assert_eq!(fake.asked(), ["TryRestartUnit"]);
}

#[tokio::test]
async fn a_lost_bus_restarts_nothing_twice() {
    let fake = Fake::new();
    fake.set(|state| state.signal = Signal::ConnectionEnds);
    let supervisor = supervisor(&fake);
    let consumer = consumer("adopt = \"restart\"");
    let lost = supervisor.adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap_err();
    assert!(matches!(lost, UnitError::Lost(_)) && lost.is_passing(), "{lost}");
    // The job was done all the same: asked again, the unit is found in its new life.
    let adopted = supervisor.adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
    assert_eq!(adopted, Adopted::AlreadyNew(invocation(2)));
    assert_eq!(fake.asked(), ["TryRestartUnit"]);
    assert_eq!(fake.connections(), 2);
}

#[tokio::test]
async fn systemd_that_cannot_be_reached_is_said_and_tried_again() {
    let tries = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = tries.clone();
    let systemd = units::Systemd::new(units::Connector::new(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::pin(async { Err(zbus::Error::Failure("no bus".into())) })
    }));
    let supervisor = Supervisor::with_systemd(systemd, "/x".into());
    let consumer = consumer("adopt = \"restart\"");
    for _ in 0..2 {
        assert!(matches!(supervisor.look(&consumer).await, Err(UnitError::Lost(_))));
    }
    assert_eq!(tries.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_idle_unit_is_not_started() {
    let fake = Fake::new();
    fake.set(|state| (state.active, state.sub) = ("inactive", "dead"));
    let consumer = consumer("adopt = \"restart\"");
    let adopted = supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
    assert_eq!(adopted, Adopted::Idle);
    assert_eq!(fake.asked(), Vec::<String>::new());
}

/// `Type=simple`: the restart job says done although the program exits 1.
#[tokio::test]
async fn a_start_that_fails_after_a_done_job_is_a_failure() {
    let fake = Fake::new();
    fake.set(|state| state.started = ("failed", "failed", "exit-code"));
    let consumer = consumer("adopt = \"restart\"");
    let adopted = supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
    assert!(matches!(&adopted, Adopted::Failed(why) if why.contains("exit-code")), "{adopted:?}");
}

#[tokio::test]
async fn the_way_back_leads_past_the_start_limit() {
    let fake = Fake::new();
    fake.set(|state| {
        (state.active, state.sub, state.result) = ("failed", "failed", "start-limit-hit");
        state.limit_hit = true;
    });
    let consumer = consumer("adopt = \"restart\"");
    let adopted = supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Back).await.unwrap();
    assert_eq!(adopted, Adopted::Asked(invocation(2)));
    assert_eq!(fake.asked(), ["ResetFailedUnit", "StartUnit"]);
}

#[tokio::test]
async fn a_failed_job_is_a_failure_with_systemds_word() {
    for word in ["failed", "timeout", "canceled", "dependency"] {
        let fake = Fake::new();
        fake.set(|state| state.job_result = word);
        let consumer = consumer("adopt = \"reload\"");
        let adopted =
            supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
        assert!(matches!(&adopted, Adopted::Failed(why) if why.contains(word)), "{adopted:?}");
        assert_eq!(fake.asked(), ["ReloadOrTryRestartUnit"]);
    }
}

#[tokio::test]
async fn a_reload_keeps_the_life() {
    let fake = Fake::new();
    let consumer = consumer("adopt = \"reload\"");
    let adopted = supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
    assert_eq!(adopted, Adopted::Asked(invocation(1)));
}

#[tokio::test]
async fn a_signal_goes_to_the_main_process() {
    let fake = Fake::new();
    let consumer = consumer("adopt = \"signal\", signal = \"USR1\"");
    assert!(matches!(consumer.adopt, Adopt::Signal(_)));
    supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
    assert_eq!(fake.asked(), ["KillUnit main 10"]);
}

#[tokio::test]
async fn what_adopts_by_itself_is_asked_nothing() {
    for adopt in ["reopen", "next_start", "manual"] {
        let fake = Fake::new();
        let consumer = consumer(&format!("adopt = \"{adopt}\""));
        let adopted =
            supervisor(&fake).adopt(&consumer, Some(&invocation(1)), Direction::Forward).await.unwrap();
        assert_eq!(adopted, Adopted::Waiting);
        assert_eq!(fake.asked(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_unit_whose_failure_reboots_the_host_is_refused() {
    let fake = Fake::new();
    fake.set(|state| state.failure_action = "reboot-force");
    let (same, other) = (invocation(1), invocation(9));
    for adopt in ["adopt = \"restart\"", "adopt = \"reload\"", "adopt = \"signal\", signal = \"HUP\""] {
        let (consumer, supervisor) = (consumer(adopt), supervisor(&fake));
        assert_eq!(supervisor.check(&consumer).await.unwrap_err().code(), "unit_dangerous", "{adopt}");
        let asked = supervisor.adopt(&consumer, Some(&same), Direction::Forward);
        let refused = asked.await.unwrap_err();
        assert_eq!(refused.code(), "unit_dangerous", "{adopt}");
        assert!(refused.to_string().contains("FailureAction=reboot-force"), "{refused}");
        // Whoever began a new life by itself is asked nothing.
        let asked = supervisor.adopt(&consumer, Some(&other), Direction::Forward);
        assert_eq!(asked.await.unwrap(), Adopted::AlreadyNew(invocation(1)), "{adopt}");
    }
    // A person restarts it: nothing of ours touches it.
    supervisor(&fake).check(&consumer("adopt = \"manual\"")).await.unwrap();
    fake.set(|state| (state.active, state.sub, state.result) = ("failed", "failed", "exit-code"));
    let asked = consumer("adopt = \"reopen\"");
    let refused = supervisor(&fake).adopt(&asked, Some(&invocation(1)), Direction::Back).await.unwrap_err();
    assert_eq!(refused.code(), "unit_dangerous", "nor is it started again");
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_vanished_unit_is_named() {
    let fake = Fake::new();
    fake.set(|state| state.load = "not-found");
    let consumer = consumer("adopt = \"restart\"");
    let vanished = supervisor(&fake).look(&consumer).await.unwrap_err();
    assert_eq!(vanished.code(), "unit_vanished");
    fake.set(|state| state.load = "masked");
    assert_eq!(supervisor(&fake).check(&consumer).await.unwrap_err().code(), "unit_vanished");
}

#[tokio::test]
async fn settled_is_the_same_life_all_through() {
    let consumer = consumer("adopt = \"restart\"");
    let fake = Fake::new();
    assert_eq!(supervisor(&fake).settle(&consumer, &invocation(1)).await.unwrap(), Settled::Healthy);
    for change in [Change::Restarted, Change::MainReplaced, Change::Failed] {
        let fake = Fake::new();
        fake.set(|state| state.changes_after = Some((1, change)));
        let settled = supervisor(&fake).settle(&consumer, &invocation(1)).await.unwrap();
        assert!(matches!(settled, Settled::Failed(_)), "{settled:?}");
    }
    let fake = Fake::new();
    fake.set(|state| state.changes_after = Some((1, Change::Stopped)));
    assert_eq!(supervisor(&fake).settle(&consumer, &invocation(1)).await.unwrap(), Settled::Idle);
    let settled = supervisor(&Fake::new()).settle(&consumer, &invocation(9)).await.unwrap();
    assert!(matches!(settled, Settled::Failed(_)), "another life was taken for the one that was asked");
}

#[tokio::test]
async fn a_oneshot_that_ended_with_exit_status_0_has_settled() {
    let consumer = consumer("adopt = \"restart\"");
    let fake = Fake::new();
    fake.set(|state| {
        (state.kind, state.active, state.sub) = ("oneshot", "activating", "start");
        state.changes_after = Some((2, Change::Finished));
    });
    assert_eq!(supervisor(&fake).settle(&consumer, &invocation(1)).await.unwrap(), Settled::Healthy);
    let fake = Fake::new();
    fake.set(|state| {
        (state.kind, state.active, state.sub) = ("oneshot", "activating", "start");
        state.changes_after = Some((2, Change::Failed));
    });
    assert!(matches!(supervisor(&fake).settle(&consumer, &invocation(1)).await.unwrap(), Settled::Failed(_)));
}

/// The applier has no network and a command never gets its rights: both run as units of their own.
#[tokio::test]
async fn probes_and_commands_run_as_transient_units_with_their_own_user() {
    let fake = Fake::new();
    let supervisor = supervisor(&fake);
    let probe = |kind| Probe { kind, timeout_ms: 1_000, tries: 1, pause_ms: 0 };
    let page = ProbeKind::Tcp("127.0.0.1:9".parse().unwrap());
    assert_eq!(supervisor.probe(&probe(page)).await.unwrap(), Ok(()));
    let seen = fake.state.lock().unwrap().transient.clone();
    assert!(seen.contains("/usr/sbin/eso-vm-applier") && seen.contains("DynamicUser"), "{seen}");
    let command = Command {
        argv: vec!["/bin/check".into()],
        user: Some(Principal::Name("orders".into())),
        timeout_ms: 1_000,
    };
    supervisor.validate(&command, "/run/sets/a/v1.1".as_ref()).await.unwrap().unwrap();
    let seen = fake.state.lock().unwrap().transient.clone();
    assert!(seen.contains("ESO_SET_DIR=/run/sets/a/v1.1"), "{seen}");
    assert!(seen.contains("orders") && !seen.contains("DynamicUser"), "{seen}");
    fake.set(|state| state.job_result = "failed");
    assert!(supervisor.probe(&probe(ProbeKind::Command(command))).await.unwrap().is_err());
}
