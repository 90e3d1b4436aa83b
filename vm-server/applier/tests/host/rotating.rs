//! The whole road on one host.

use std::time::{Duration, Instant};

use lifecycle::OrderKind;
use lifecycle::report::ConsumerState;

use crate::application::Application;
use crate::control::{Host, activate, arm, seal, secret, stage, v};

/// One application, adopting in this way.
pub(crate) fn policy(adopt: &str, more: &str) -> String {
    format!(
        r#"
[set.db]
refresh_ms = 1000
places = [{{ path = "{{app}}/password", file = "password", kind = "link" }}]
consumers = [{{ name = "app", pidfile = "{{app}}/app.pid", exe = "{}", {adopt}, settle_ms = 300 {more} }}]
"#,
        Application::exe()
    )
}

/// A host on version 1, adopted by its application.
pub(crate) fn on_one(adopt: &str, more: &str) -> (Host, Application) {
    let mut host = Host::new(&policy(adopt, more));
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let app = Application::start(&host.app_dir(), &host.app_dir().join("password"));
    app.until_loaded(&secret(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    host.until("the first adoption", |report| report.adopted == Some(v(1)));
    (host, app)
}

#[test]
fn a_restarted_application_rotates_from_stage_to_gone() {
    let (mut host, app) = on_one(r#"adopt = "restart""#, "");
    let starts = app.starts();
    let report = host.order(2, stage(2));
    assert_eq!(host.current("password"), Some(secret(1)), "staged is invisible");
    assert!(report.present.contains_key(&v(2)));
    let armed = Instant::now();
    let report = host.order(2, arm(2, 500));
    assert_eq!((report.armed, report.current), (Some(v(2)), Some(v(1))));
    let report = host.until("the flip", |report| report.current == Some(v(2)));
    assert!(armed.elapsed() >= Duration::from_millis(490), "not before the instant");
    assert_eq!(host.current("password"), Some(secret(2)));
    assert_eq!(app.starts(), starts, "nobody is restarted without a permit");
    assert!(report.holders.iter().any(|holder| holder.version == v(1)), "{report:#?}");
    host.order(2, OrderKind::Adopt { version: v(2) });
    let report = host.until("adopted", |report| report.adopted == Some(v(2)));
    assert_eq!(app.loaded(), Some(secret(2)));
    assert_eq!(app.starts(), starts + 1);
    assert!(report.may_return_to.is_empty());
    host.until("the old life's end", |report| report.holders.iter().all(|holder| holder.version != v(1)));
    host.order(2, seal(1));
    let report = host.until("gone", |report| report.gone.contains(v(1)));
    assert_eq!(report.present.keys().copied().collect::<Vec<_>>(), [v(2)]);
    assert!(!host.disk().values().any(|content| content.contains(&secret(1))), "nothing of it is left");
    assert_eq!(app.starts(), starts + 1, "one restart a rotation");
}

#[test]
fn an_application_that_is_signalled_holds_the_old_version_until_its_life_ends() {
    let (mut host, app) = on_one(r#"adopt = "signal", signal = "HUP""#, "");
    host.roll_out(2, 2);
    app.until_loaded(&secret(2));
    let report = host.order(2, seal(1));
    assert!(report.not_gone[&v(1)].contains("held by"), "{report:#?}");
    assert_eq!(app.starts(), 1, "it was not restarted");
    assert!(host.disk().values().any(|content| content.contains(&secret(1))), "kept while it is held");
    // Whoever supervises it starts it again.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(app.pid().unwrap()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    host.until("gone", |report| report.gone.contains(v(1)));
}

#[test]
fn a_manual_application_keeps_the_old_version_until_somebody_restarts_it() {
    let (mut host, app) = on_one(r#"adopt = "manual""#, "");
    host.order(2, stage(2));
    host.order(2, activate(2));
    host.order(2, OrderKind::Adopt { version: v(2) });
    let report = host.until("postponed", |report| {
        report.consumers.values().all(|consumer| consumer.state == ConsumerState::Postponed)
    });
    assert_eq!(report.adopted, None);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(app.pid().unwrap()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    host.until("adopted by its own new life", |report| report.adopted == Some(v(2)));
    host.order(2, seal(1));
    host.until("gone", |report| report.gone.contains(v(1)));
}

#[test]
fn a_question_is_answered_also_for_a_set_that_was_never_here() {
    let mut host = Host::new("");
    host.up();
    let report = host.ask(41);
    assert_eq!(report.sets[&host.set()].answers, 41);
    assert_eq!(report.epoch, Some(host.epoch));
    host.order(9, seal(3));
    assert!(host.db().gone.contains(v(3)), "never had the set");
}

#[test]
fn reports_are_chained_and_sent_until_they_are_acknowledged() {
    let mut host = Host::new(&policy(r#"adopt = "restart""#, ""));
    host.acknowledging = false;
    host.up();
    let first = host.until_report("a first report", |_| true);
    assert!(first.acknowledged.is_none());
    let again = host.until_report("it again", |report| report.sequence == first.sequence);
    assert_eq!(again, first);
    host.acknowledging = true;
    host.order(1, stage(1));
    let report = host.until_report("the chain", |report| report.acknowledged.is_some());
    let sequence = report.sequence;
    host.restart();
    let report = host.until_report("after a restart", |report| report.sequence > sequence);
    assert!(report.acknowledged.is_some(), "the chain survives");
}

#[test]
fn an_armed_flip_comes_at_its_instant() {
    let mut host = Host::new("[set.db]\n");
    host.up();
    host.roll_out(1, 1);
    let mut late = Vec::new();
    for number in 2..7 {
        host.order(number, stage(number));
        let sent = Instant::now();
        host.order(number, arm(number, 300));
        let link = host.root().join("run/sets/db/..data");
        let wanted = format!("v1.{number}");
        while std::fs::read_link(&link).unwrap().to_str() != Some(&wanted) {
            assert!(sent.elapsed() < crate::control::PATIENCE);
            std::hint::spin_loop();
        }
        let skew = sent.elapsed().as_millis().cast_signed() - 300;
        assert!(skew >= -20, "{skew} ms before its instant");
        late.push(skew);
        let report = host.until("the flip is shown", |db| db.current == Some(v(number)));
        let flipped = report.flipped.unwrap();
        assert_eq!(flipped.version, v(number));
        assert!(flipped.ahead_ms_max.is_some_and(|ms| (0..10_000).contains(&ms)), "{flipped:?}");
        let ago = protocol::UnixMillis::now().ms_ahead_of(protocol::UnixMillis(flipped.unix_ms));
        assert!((0..60_000).contains(&ago), "{flipped:?}");
    }
    late.sort_unstable();
    // The machine that runs the tests may be busy for a moment, but not each time.
    assert!(late[1] <= 20, "late by {late:?} ms");
}

#[test]
fn an_idle_applier_sleeps() {
    let (mut host, _app) = on_one(r#"adopt = "restart""#, "");
    host.ask(1);
    // What the last question stirred up settles first.
    std::thread::sleep(Duration::from_millis(500));
    let before = host.sleeps();
    let time = Duration::from_secs(3);
    std::thread::sleep(time);
    let wakes = host.sleeps() - before;
    assert!(wakes < 60, "{wakes} times awake in {time:?}");
}
