//! Crashes of ours, and boots, restart nothing of theirs and lose nothing.

#[cfg(feature = "failpoints")]
use lifecycle::OrderKind;

use crate::control::{Host, activate, arm, secret, stage, v};
use crate::rotating::on_one;

#[test]
fn our_restart_restarts_nothing_of_theirs() {
    let (mut host, app) = on_one(r#"adopt = "restart""#, "");
    let starts = app.starts();
    for question in 1..4 {
        host.restart();
        let report = host.ask(question);
        assert_eq!(report.sets[&host.set()].adopted, Some(v(1)));
    }
    assert_eq!(app.starts(), starts);
}

#[test]
fn an_instant_that_passed_while_we_were_away_is_met_when_told() {
    let (mut host, _app) = on_one(r#"adopt = "restart""#, "");
    host.order(2, stage(2));
    host.order(2, arm(2, 30_000));
    host.restart();
    assert_eq!(host.ask(1).sets[&host.set()].armed, Some(v(2)), "an agreement survives our restart");
    host.order(2, activate(2));
    assert_eq!(host.current("password"), Some(secret(2)));
}

/// A boot is over for each set once that one has come back from it.
#[test]
fn an_agreement_survives_our_restart_also_while_another_set_has_not_come_back_from_a_boot() {
    let (mut host, _app) = on_one(r#"adopt = "restart""#, "");
    host.order(2, stage(2));
    host.order(2, arm(2, 30_000));
    host.kill();
    host.leave_another_set_behind();
    host.up();
    let report = host.ask(1);
    assert!(report.notices.iter().any(|notice| notice.message.contains("other")), "{report:#?}");
    let db = &report.sets[&host.set()];
    assert_eq!((db.armed, db.answers), (Some(v(2)), 1), "and it is answered for");
}

/// A set that policy brings while we run is told of the next boot like any other.
#[cfg(feature = "failpoints")]
#[test]
fn an_agreement_of_a_new_set_ends_with_the_boot() {
    let mut host = Host::new("");
    host.up();
    host.ask(1);
    host.write_policy("[set.db]\n");
    host.until("the set", |report| report.in_policy);
    host.roll_out(1, 1);
    host.order(2, stage(2));
    host.order(2, arm(2, 60_000));
    host.boot();
    host.up();
    let db = host.ask(2).sets[&host.set()].clone();
    assert_eq!((db.armed, db.current), (None, Some(v(1))));
}

#[test]
fn a_set_that_cannot_start_keeps_nobody_busy() {
    let mut host = Host::new("[set.db]\n");
    let sets = host.root().join("run/sets");
    std::fs::create_dir_all(&sets).unwrap();
    std::fs::write(sets.join("db"), "in the way").unwrap();
    host.up();
    host.until_report("the reason", |report| report.notices.iter().any(|notice| notice.code == "set"));
    host.sleeps_through_a_second();
    std::fs::remove_file(sets.join("db")).unwrap();
    host.until_report("the set", |report| report.notices.is_empty());
    host.roll_out(1, 1);
}

/// A disk that does not give a copy for a moment has not lost it.
#[test]
fn a_copy_that_cannot_be_read_for_a_moment_is_waited_for() {
    let mut host = Host::new("[set.db]\n");
    host.up();
    host.roll_out(1, 1);
    host.kill();
    std::fs::remove_dir_all(host.root().join("run/sets")).unwrap();
    let copy = host.root().join("state/applier/copies/db@1.1");
    let away = host.root().join("away");
    std::fs::rename(&copy, &away).unwrap();
    std::fs::create_dir(&copy).unwrap();
    host.up();
    host.until_report("the reason", |report| report.notices.iter().any(|notice| notice.code == "set"));
    std::fs::remove_dir(&copy).unwrap();
    std::fs::rename(&away, &copy).unwrap();
    host.until_report("the set", |report| {
        report.notices.is_empty() && report.sets.values().all(|set| set.current == Some(v(1)))
    });
    assert_eq!(host.current("password"), Some(secret(1)));
}

/// What comes of a flip that was agreed upon is written down a moment after it.
#[test]
fn killed_right_after_an_agreed_flip_it_knows_what_readers_find() {
    let (mut host, app) = on_one(r#"adopt = "restart""#, "");
    host.order(2, stage(2));
    host.order(2, arm(2, 200));
    crate::control::wait_until("it does not flip", || host.current("password") == Some(secret(2)));
    host.restart();
    let report = host.ask(1).sets[&host.set()].clone();
    assert_eq!((report.current, report.armed), (Some(v(2)), None), "{report:#?}");
    host.order(2, lifecycle::OrderKind::Adopt { version: v(2) });
    host.until("adopted", |report| report.adopted == Some(v(2)));
    app.until_loaded(&secret(2));
}

#[test]
fn sets_come_back_after_a_boot_without_the_control_plane() {
    let mut host = Host::new("[set.db]\nplaces = [{ path = \"{app}/password\", file = \"password\" }]\n");
    host.up();
    host.roll_out(1, 1);
    host.order(2, stage(2));
    host.kill();
    // What a boot takes: everything below the run directory but the test's own socket.
    std::fs::remove_dir_all(host.root().join("run/sets")).unwrap();
    host.start();
    crate::control::wait_until("the set does not come back", || host.current("password") == Some(secret(1)));
    host.accept();
    let report = host.ask(1).sets[&host.set()].clone();
    assert_eq!((report.current, report.present.len()), (Some(v(1)), 2));
    host.order(2, activate(2));
    assert_eq!(host.current("password"), Some(secret(2)));
}

#[test]
fn nothing_is_left_of_a_copy_that_cannot_be_read() {
    let mut host = Host::new("[set.db]\n");
    host.up();
    host.roll_out(1, 1);
    host.order(2, stage(2));
    host.kill();
    std::fs::remove_dir_all(host.root().join("run/sets")).unwrap();
    let copy = host.root().join("state/applier/copies/db@1.2");
    let mut content = std::fs::read(&copy).unwrap();
    content[20] ^= 1;
    std::fs::write(&copy, content).unwrap();
    host.up();
    let report = host.ask(1);
    assert!(report.notices.iter().any(|notice| notice.code == "copy"), "{report:#?}");
    let db = &report.sets[&host.set()];
    assert_eq!((db.current, db.present.contains_key(&v(2))), (Some(v(1)), false));
    assert!(!copy.exists());
    // It can be staged again.
    host.roll_out(3, 2);
}

#[test]
fn a_set_that_policy_dropped_comes_back_after_a_boot_too() {
    let mut host = Host::new("[set.db]\n");
    host.up();
    host.roll_out(1, 1);
    host.kill();
    host.write_policy("");
    std::fs::remove_dir_all(host.root().join("run/sets")).unwrap();
    host.up();
    assert_eq!(host.ask(1).sets[&host.set()].current, Some(v(1)));
    assert_eq!(host.current("password"), Some(secret(1)));
}

#[test]
fn two_appliers_cannot_run_on_one_state() {
    let mut host = Host::new("");
    host.up();
    host.ask(1);
    let config = host.root().join("config");
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_eso-vm-applier"))
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another applier"));
}

#[test]
fn a_journal_of_a_newer_program_is_left_as_it_is() {
    let (mut host, _app) = on_one(r#"adopt = "restart""#, "");
    host.order(2, stage(2));
    host.order(2, crate::control::seal(1));
    host.order(2, arm(2, 50_000));
    host.kill();
    let path = host.journal();
    let copies = host.root().join("state/applier/copies");
    let journal = std::fs::read(&path).unwrap();
    let records = host.records();
    assert_eq!(records.len(), 2, "one of the host, one of its set");
    let mut tried = 0;
    for record in records.values() {
        // An epoch stands in orders too, and has the form that hosts of all ages read.
        for place in objects("", record).into_iter().filter(|place| !place.ends_with("/epoch")) {
            let mut newer = record.clone();
            let object = newer.pointer_mut(&place).unwrap().as_object_mut().unwrap();
            object.insert("of_tomorrow".to_owned(), serde_json::json!({ "of": ["tomorrow"] }));
            std::fs::write(&path, &journal).unwrap();
            let with_newer = host.journal_with(&newer);
            std::fs::write(&path, &with_newer).unwrap();
            let (status, said) = ended_by_itself(Host::binary(&host.root().join("config")));
            assert!(!status.success() && said.contains("install that one again"), "{place}: {said}");
            assert_eq!(std::fs::read(&path).unwrap(), with_newer, "{place}");
            tried += 1;
        }
    }
    assert!(tried > 15, "{tried}");
    assert_eq!(host.current("password"), Some(secret(1)));
    assert!(copies.join("db@1.1").exists());
    // With the record away it goes on from where it was.
    std::fs::write(&path, &journal).unwrap();
    host.up();
    assert_eq!(host.ask(1).sets[&host.set()].current, Some(v(1)));
}

/// How it ended, and what it said.
fn ended_by_itself(mut command: std::process::Command) -> (std::process::ExitStatus, String) {
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let deadline = std::time::Instant::now() + crate::control::PATIENCE;
    while child.try_wait().unwrap().is_none() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    // One that goes on is ended, and has not failed by itself.
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Where objects stand in this one, itself among them.
fn objects(place: &str, value: &serde_json::Value) -> Vec<String> {
    let within: Vec<(String, &serde_json::Value)> = match value {
        serde_json::Value::Object(object) => {
            let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
            object.iter().map(|(key, value)| (escaped(key), value)).collect()
        }
        serde_json::Value::Array(array) => {
            array.iter().enumerate().map(|(number, value)| (number.to_string(), value)).collect()
        }
        _ => return vec![],
    };
    let itself = value.is_object().then(|| place.to_owned());
    let within = within.into_iter().flat_map(|(key, value)| objects(&format!("{place}/{key}"), value));
    itself.into_iter().chain(within).collect()
}

/// Each run waits most of its time, so several go side by side.
#[cfg(feature = "failpoints")]
const SIDE_BY_SIDE: usize = 6;

/// What happens to the applier on the way.
#[cfg(feature = "failpoints")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Nothing,
    /// It is killed at this step.
    Killed(usize),
    /// This step fails once.
    Fails(usize),
}

/// Kills the applier at each of its persisted steps in turn. The unkilled run says how many there are.
#[cfg(feature = "failpoints")]
#[test]
fn killed_at_every_step_it_ends_the_same_and_restarts_nobody_twice() {
    let (steps, _) = rotation(Trouble::Nothing);
    assert!(steps > 20, "{steps} steps");
    for_each(steps, Trouble::Killed);
}

/// Each step that can fail does so once: a full disk, a directory that is away.
#[cfg(feature = "failpoints")]
#[test]
fn with_every_step_failing_once_it_ends_the_same_and_restarts_nobody_twice() {
    let (_, checks) = rotation(Trouble::Nothing);
    assert!(checks > 20, "{checks} steps that can fail");
    for_each(checks, Trouble::Fails);
}

#[cfg(feature = "failpoints")]
fn for_each(steps: usize, trouble: impl Fn(usize) -> Trouble + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let step = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if step > steps {
                        return;
                    }
                    rotation(trouble(step));
                }
            });
        }
    });
}

/// One rotation as a control plane drives it: it looks at each report and orders what is missing. An applier that was
/// killed is started again and never killed a second time. Gives how many steps there were, and how many of them can
/// fail.
#[cfg(feature = "failpoints")]
fn rotation(trouble: Trouble) -> (usize, usize) {
    let (mut host, app) = on_one(r#"adopt = "restart""#, "");
    let starts = app.starts();
    let log = host.root().join("steps.all");
    host.kill();
    host.environment = vec![("ESO_FAILPOINT_LOG".to_owned(), log.display().to_string())];
    match trouble {
        Trouble::Nothing => {}
        Trouble::Killed(step) => host.environment.push(("ESO_FAILPOINT".to_owned(), step.to_string())),
        Trouble::Fails(step) => host.environment.push(("ESO_FAILPOINT_FAIL".to_owned(), step.to_string())),
    }
    host.start();
    let mut question = 0;
    let mut up = host.try_accept();
    let deadline = std::time::Instant::now() + 2 * crate::control::PATIENCE;
    loop {
        assert!(std::time::Instant::now() < deadline, "{trouble:?} does not end: {:#?}", host.report);
        if !up {
            host.kill();
            // Whatever the step was: a reader finds a whole version.
            let found = host.current("password");
            assert!(found == Some(secret(1)) || found == Some(secret(2)), "{trouble:?}: {found:?}");
            // What failed at the start stops the applier, and whoever supervises it starts it again.
            host.environment.retain(|(name, _)| name == "ESO_FAILPOINT_LOG");
            host.up();
        }
        question += 1;
        let Some(frame) = next_order(&host, question) else { break };
        up = host.try_push(vec![frame]).is_some();
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(app.loaded(), Some(secret(2)), "{trouble:?}");
    assert_eq!(app.starts(), starts + 1, "{trouble:?}: restarted twice");
    assert!(!host.disk().values().any(|content| content.contains(&secret(1))), "{trouble:?}");
    let lines = |path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    (lines(log.clone()), lines(log.with_extension("checked")))
}

/// What is missing by the newest report; a question where nothing can be done but wait. None at the end.
#[cfg(feature = "failpoints")]
fn next_order(host: &Host, question: u64) -> Option<protocol::Frame> {
    use protocol::order::{Ask, Body};
    let report = host.db();
    let free = report.holders.iter().all(|holder| holder.version != v(1));
    let kind = if report.gone.contains(v(1)) && report.adopted == Some(v(2)) {
        return None;
    } else if question.is_multiple_of(2) {
        None
    } else if report.current != Some(v(2)) && !report.present.contains_key(&v(2)) {
        Some(stage(2))
    } else if report.current != Some(v(2)) {
        Some(activate(2))
    } else if report.permitted != Some(v(2)) {
        Some(OrderKind::Adopt { version: v(2) })
    } else if report.adopted == Some(v(2)) && free && report.may_return_to.is_empty() {
        Some(crate::control::seal(1))
    } else {
        None
    };
    let payload = if let Some(kind) = kind {
        host.payload(2, kind)
    } else {
        let mut payload = host.payload(2, activate(2));
        payload.body = Body::Ask(Ask { questions: [(host.set(), question)].into() });
        payload
    };
    Some(host.sign(&payload))
}
