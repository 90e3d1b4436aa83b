//! Adoption, the host's own rollback, places.

use lifecycle::report::ConsumerState;
use lifecycle::{Evidence, OrderKind};
use protocol::reported::{Reply, SOCKET, Statement};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::application::Application;
use crate::control::{Host, activate, seal, secret, stage, v};
use crate::rotating::{on_one, policy};

/// As editors do, and as anybody can who owns the directory, whatever the file's mode is.
fn replace(path: &std::path::Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn an_application_that_cannot_use_a_version_takes_its_host_back() {
    let (mut host, app) = on_one(r#"adopt = "restart""#, "");
    let frame = host.sign(&host.payload_with(2, stage(2), "-BAD", [].into()));
    assert_eq!(host.try_frame(frame), Ok(()));
    host.order(2, activate(2));
    host.order(2, OrderKind::Adopt { version: v(2) });
    let report = host.until("the way back", |report| report.adopted == Some(v(1)));
    let rolled_back = report.rolled_back.unwrap();
    assert_eq!((rolled_back.from, rolled_back.to), (v(2), Some(v(1))));
    app.until_loaded(&secret(1));
    assert_eq!(host.try_order(2, activate(2)), Err("rolled_back".to_owned()));
    host.restart();
    host.ask(1);
    assert_eq!(host.try_order(3, activate(2)), Err("rolled_back".to_owned()), "also after a restart");
    host.order(3, OrderKind::RollBack { to: v(1) });
    assert_eq!(host.db().rolled_back, None);
    host.order(4, seal(2));
    host.until("gone", |report| report.gone.contains(v(2)));
}

#[test]
fn a_copy_that_cannot_be_written_keeps_the_old_version() {
    let place = r#"
[set.db]
refresh_ms = 200
places = [{ path = "{app}/conf/password", file = "password", kind = "copy" }]
"#;
    let mut host = Host::new(place);
    let conf = host.app_dir().join("conf");
    std::fs::create_dir(&conf).unwrap();
    host.up();
    host.roll_out(1, 1);
    let copy = conf.join("password");
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), secret(1));
    // The place is out of reach: its directory is away when the flip comes.
    std::fs::rename(&conf, host.app_dir().join("away")).unwrap();
    std::os::unix::fs::symlink(host.app_dir().join("away"), &conf).unwrap();
    host.order(2, stage(2));
    let report = host.order(2, activate(2));
    assert!(report.places.iter().any(|place| place.versions.contains(&v(1))), "{report:#?}");
    host.order(2, OrderKind::Adopt { version: v(2) });
    let report = host.order(2, seal(1));
    assert!(!report.gone.contains(v(1)) && report.not_gone[&v(1)].contains("password"), "{report:#?}");
    std::fs::remove_file(&conf).unwrap();
    std::fs::rename(host.app_dir().join("away"), &conf).unwrap();
    host.until("gone", |report| report.gone.contains(v(1)));
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), secret(2));
}

/// Whoever starts while a place is behind has the old version, whenever that was current.
#[test]
fn an_application_that_began_while_its_copy_was_behind_holds_the_old_version() {
    let text = format!(
        r#"
[set.db]
refresh_ms = 200
places = [{{ path = "{{app}}/conf/password", file = "password", kind = "copy" }}]
consumers = [{{ name = "app", pidfile = "{{app}}/app.pid", exe = "{}", adopt = "manual", settle_ms = 100 }}]
"#,
        Application::exe()
    );
    let mut host = Host::new(&text);
    let (conf, away) = (host.app_dir().join("conf"), host.app_dir().join("away"));
    std::fs::create_dir(&conf).unwrap();
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let app = Application::start(&host.app_dir(), &conf.join("password"));
    app.until_loaded(&secret(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    host.until("the first adoption", |report| report.adopted == Some(v(1)));
    std::fs::rename(&conf, &away).unwrap();
    std::os::unix::fs::symlink(&away, &conf).unwrap();
    host.order(2, stage(2));
    host.order(2, activate(2));
    host.order(2, OrderKind::Adopt { version: v(2) });
    let again = |app: &Application, value: u32| {
        let starts = app.starts();
        std::fs::remove_file(host.app_dir().join("loaded")).unwrap();
        let pid = rustix::process::Pid::from_raw(app.pid().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        app.until_started(starts + 1);
        app.until_loaded(&secret(value));
    };
    again(&app, 1);
    std::fs::remove_file(&conf).unwrap();
    std::fs::rename(&away, &conf).unwrap();
    crate::control::wait_until("the place is not put right", || {
        std::fs::read_to_string(conf.join("password")).unwrap() == secret(2)
    });
    let report = {
        host.order(2, seal(1));
        host.ask(1);
        host.db()
    };
    assert!(!report.gone.contains(v(1)), "{report:#?}");
    assert!(report.holders.iter().any(|holder| holder.version == v(1)), "{report:#?}");
    let starts = app.starts();
    let pid = rustix::process::Pid::from_raw(app.pid().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    app.until_started(starts + 1);
    app.until_loaded(&secret(2));
    host.until("gone", |report| report.gone.contains(v(1)));
}

#[test]
fn policy_drops_a_place() {
    let with = r#"
[set.db]
refresh_ms = 200
places = [{ path = "{app}/password", file = "password", kind = "copy" }]
"#;
    let mut host = Host::new(with);
    host.up();
    host.roll_out(1, 1);
    host.write_policy("[set.db]\nrefresh_ms = 300\n");
    host.order(2, stage(2));
    // Wait for the policy: the place is not written any more.
    host.order(2, activate(2));
    let place = host.app_dir().join("password");
    replace(&place, &secret(1));
    let report = host.order(2, seal(1));
    if !report.not_gone.is_empty() {
        assert!(report.not_gone[&v(1)].contains("password"), "{report:#?}");
        std::fs::remove_file(&place).unwrap();
    }
    host.until("gone", |report| report.gone.contains(v(1)));
    let still = std::fs::read_to_string(&place).unwrap_or_default();
    assert_ne!(still, secret(1));
}

#[test]
fn a_place_that_somebody_edits_is_repaired_and_reported() {
    let place = r#"
[set.db]
refresh_ms = 60000
places = [{ path = "{app}/password", file = "password", kind = "copy" }]
"#;
    let mut host = Host::new(place);
    host.up();
    std::fs::write(host.app_dir().join("password"), "by hand").unwrap();
    host.roll_out(1, 1);
    let place = host.app_dir().join("password");
    let kept = host.app_dir().join("password.before-eso-1");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "by hand", "the first time it may be the only copy");
    std::fs::remove_file(&place).unwrap();
    std::fs::write(&place, "edited").unwrap();
    host.until_report("the repair", |report| report.notices.iter().any(|notice| notice.code == "drift"));
    assert_eq!(std::fs::read_to_string(&place).unwrap(), secret(1));
}

#[test]
fn a_repair_is_reported_until_somebody_has_heard_of_it() {
    let places = r#"
[set.db]
refresh_ms = 60000
places = [
    { path = "{app}/one", file = "password", kind = "copy" },
    { path = "{app}/two", file = "password", kind = "copy" },
]
"#;
    let mut host = Host::new(places);
    host.up();
    host.roll_out(1, 1);
    host.acknowledging = false;
    let drifts = |report: &protocol::report::Report, place: &str| {
        report.notices.iter().any(|notice| notice.code == "drift" && notice.message.contains(place))
    };
    replace(&host.app_dir().join("one"), "edited");
    host.until_report("the first repair", |report| drifts(report, "/one"));
    // The second is found by a later look, which finds the first as it should be.
    replace(&host.app_dir().join("two"), "edited");
    let report = host.until_report("the second repair", |report| drifts(report, "/two"));
    assert!(drifts(&report, "/one"), "nobody has heard of it yet: {:#?}", report.notices);
    host.acknowledging = true;
    host.ask(1);
    host.until_report("an end of it", |report| !drifts(report, "/one") && !drifts(report, "/two"));
}

#[test]
fn one_user_cannot_take_every_place_on_the_application_socket() {
    let (policy, pid) = itself("reopen", r#", evidence = "reported""#);
    let mut host = Host::new(&policy);
    std::fs::write(host.app_dir().join("app.pid"), pid).unwrap();
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let socket = host.root().join("run").join(SOCKET);
    // One more than a user may have. Which of them finds no place is chance.
    let silent: Vec<UnixStream> = (0..33).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let deadline = std::time::Instant::now() + crate::control::PATIENCE;
    let line = loop {
        assert!(std::time::Instant::now() < deadline, "all of them were let in");
        let refused = silent.iter().find_map(|mut stream| {
            stream.set_nonblocking(true).unwrap();
            let mut line = vec![0; 4096];
            let length = stream.read(&mut line).ok().filter(|length| *length > 0)?;
            Some(line[..length].to_vec())
        });
        if let Some(line) = refused {
            break line;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let Reply::Refused { code, .. } = Reply::from_line(&line).unwrap() else { panic!("let in") };
    assert_eq!(code, "too_many");
    // Whoever lets go of one may speak.
    drop(silent);
    while try_say(&host, 1) != Some(Reply::Noted {}) {
        assert!(std::time::Instant::now() < deadline, "there is no place");
    }
}

/// None when there was no place.
fn try_say(host: &Host, on: u32) -> Option<Reply> {
    let mut stream = UnixStream::connect(host.root().join("run").join(SOCKET)).unwrap();
    stream.set_read_timeout(Some(crate::control::PATIENCE)).unwrap();
    let statement = Statement { set: host.set(), on: v(on), dropped: [].into() };
    stream.write_all(&statement.to_line().unwrap()).ok()?;
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line).ok()?;
    Reply::from_line(&line).ok()
}

/// Speaks from this very process, which the policy names as the application.
pub(crate) fn say(host: &Host, on: u32, dropped: &[u32]) -> Reply {
    let mut stream = UnixStream::connect(host.root().join("run").join(SOCKET)).unwrap();
    let statement =
        Statement { set: host.set(), on: v(on), dropped: dropped.iter().map(|number| v(*number)).collect() };
    stream.write_all(&statement.to_line().unwrap()).unwrap();
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
    Reply::from_line(&line).unwrap()
}

pub(crate) fn itself(adopt: &str, evidence: &str) -> (String, String) {
    let exe = std::env::current_exe().unwrap().canonicalize().unwrap();
    let text = format!(
        r#"
[set.db]
consumers = [{{ name = "app", pidfile = "{{app}}/app.pid", exe = "{}", adopt = "{adopt}", settle_ms = 100{evidence} }}]
"#,
        exe.display()
    );
    (text, std::process::id().to_string())
}

#[test]
fn an_application_that_is_trusted_releases_a_version_by_its_word() {
    let (policy, pid) = itself("reopen", r#", evidence = "reported""#);
    let mut host = Host::new(&policy);
    std::fs::write(host.app_dir().join("app.pid"), pid).unwrap();
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    assert_eq!(host.db().adopted, None, "it has not said so yet");
    assert_eq!(say(&host, 1, &[]), Reply::Noted {});
    let report = host.until("adopted", |report| report.adopted == Some(v(1)));
    assert_eq!(report.evidence, Evidence::Reported);
    host.order(2, stage(2));
    host.order(2, activate(2));
    host.order(2, OrderKind::Adopt { version: v(2) });
    let report = host.order(2, seal(1));
    assert!(report.not_gone[&v(1)].contains("held by"), "{report:#?}");
    assert_eq!(say(&host, 2, &[]), Reply::Noted {});
    host.until("adopted", |report| report.adopted == Some(v(2)));
    assert!(!host.db().gone.contains(v(1)), "it did not say that it dropped it");
    assert_eq!(say(&host, 2, &[1]), Reply::Noted {});
    host.until("gone", |report| report.gone.contains(v(1)));
}

#[test]
fn the_word_of_an_application_that_is_not_trusted_counts_for_nothing() {
    let (policy, pid) = itself("reopen", "");
    let mut host = Host::new(&policy);
    std::fs::write(host.app_dir().join("app.pid"), pid).unwrap();
    host.up();
    host.roll_out(1, 1);
    host.roll_out(2, 2);
    let Reply::Refused { code, .. } = say(&host, 2, &[1]) else { panic!("believed") };
    assert_eq!(code, "not_trusted");
    let report = host.order(2, seal(1));
    assert!(report.not_gone[&v(1)].contains("held by"));
}

#[test]
fn an_idle_application_keeps_the_old_version_until_its_first_healthy_start() {
    let mut host = Host::new(&policy(r#"adopt = "restart""#, ""));
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    let report = host.until("idle", |report| {
        report.consumers.values().any(|consumer| consumer.state == ConsumerState::Idle)
    });
    assert_eq!(report.adopted, None);
    let _app = Application::start(&host.app_dir(), &host.app_dir().join("password"));
    host.until("adopted", |report| report.adopted == Some(v(1)));
}

#[test]
fn an_application_that_began_before_the_flip_and_shows_itself_after_it_is_restarted() {
    let mut host = Host::new(&policy(r#"adopt = "restart""#, ""));
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    let late = host.app_dir().join("late");
    std::fs::write(&late, "").unwrap();
    let app = Application::start(&host.app_dir(), &host.app_dir().join("password"));
    app.until_started(1);
    host.order(2, stage(2));
    host.order(2, activate(2));
    host.order(2, OrderKind::Adopt { version: v(2) });
    host.until("idle", |report| {
        report.consumers.values().any(|consumer| consumer.state == ConsumerState::Idle)
    });
    std::fs::remove_file(&late).unwrap();
    host.until("adopted", |report| report.adopted == Some(v(2)));
    assert_eq!(
        app.starts(),
        2,
        "where nobody can see what it reads, its first life counts as one of version 1"
    );
    host.order(2, seal(1));
    host.until("gone", |report| report.gone.contains(v(1)));
}
