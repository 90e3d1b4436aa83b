//! What is refused before it could become current, what waits for nobody, and how a set ends.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifecycle::report::ConsumerState;
use lifecycle::{Evidence, OrderKind, SetName};
use protocol::order::Body;

use crate::application::Application;
use crate::control::{Host, PATIENCE, activate, arm, secret, stage, v};

/// A command that a policy may name.
pub(crate) fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// As a policy names it. Only whoever runs the tests may enter their directories.
pub(crate) fn command(script: &Path) -> String {
    let user = std::process::Command::new("id").arg("-un").output().unwrap();
    let user = String::from_utf8(user.stdout).unwrap();
    format!(r#"{{ command = ["{}"], user = "{}" }}"#, script.display(), user.trim())
}

#[test]
fn a_version_that_its_validation_refuses_is_refused_and_leaves_nothing() {
    let mut host = Host::new("");
    let check = script(&host.app_dir(), "check", r#"! grep -q BAD "$ESO_SET_DIR/password""#);
    host.write_policy(&format!("[set.db]\nvalidate = {}\n", command(&check)));
    host.up();
    host.roll_out(1, 1);
    let before = host.disk();
    let frame = host.sign(&host.payload_with(2, stage(2), "-BAD", BTreeSet::new()));
    assert_eq!(host.try_frame(frame), Err("not_valid".to_owned()));
    assert_eq!(host.disk(), before);
    assert_eq!(host.try_order(2, activate(2)), Err("not_staged".to_owned()));
    host.roll_out(3, 3);
}

#[test]
fn a_slow_validation_of_one_set_delays_no_flip_of_another() {
    let mut host = Host::new("");
    let check = script(&host.app_dir(), "check", "sleep 3");
    host.write_policy(&format!("[set.db]\n[set.slow]\nvalidate = {}\n", command(&check)));
    host.up();
    host.roll_out(1, 1);
    host.order(2, stage(2));
    host.order(2, arm(2, 700));
    let armed = Instant::now();
    let link = host.root().join("run/sets/db/..data");
    let flipped = std::thread::spawn(move || {
        while std::fs::read_link(&link).unwrap().to_str() != Some("v1.2") {
            assert!(armed.elapsed() < PATIENCE, "it does not flip");
            std::thread::sleep(Duration::from_millis(1));
        }
        armed.elapsed()
    });
    let mut payload = host.payload(1, stage(1));
    if let Body::Set(order) = &mut payload.body {
        order.set = SetName::new("slow").unwrap();
    }
    let sealed = host.files(v(1), "").seal(&payload.seal_context().unwrap(), &host.keys.sealing_key);
    if let Body::Set(order) = &mut payload.body {
        order.stage = Some(sealed.unwrap());
    }
    let frame = host.sign(&payload);
    assert_eq!(host.try_frame(frame), Ok(()));
    let answered = armed.elapsed();
    let flipped = flipped.join().unwrap();
    assert!(answered >= Duration::from_millis(2_500), "it was not slow: {answered:?}");
    assert!(flipped < Duration::from_secs(2), "{flipped:?}");
}

#[test]
fn without_a_count_of_inodes_evidence_is_declared_only() {
    if !crate::kernel::is_able() {
        return;
    }
    let mut host = Host::with("[set.db]\n", "mount = \"directory\"\n");
    host.up();
    host.roll_out(1, 1);
    assert_eq!(host.db().evidence, Evidence::Declared);
    let means = &host.report.as_ref().unwrap().means;
    assert!(means.iter().any(|mean| mean.name == "fanotify" && mean.in_use), "{means:#?}");
    assert!(means.iter().any(|mean| mean.name == "tmpfs" && mean.detail.contains("declared")), "{means:#?}");
}

#[test]
fn an_application_that_was_unhealthy_before_is_not_the_credentials_fault() {
    let mut host = Host::new("");
    let health = script(&host.app_dir(), "health", &format!("test -e {}/well", host.app_dir().display()));
    let probe = command(&health).replace('}', ", tries = 1, pause_ms = 10 }");
    let probe = format!(", probe = {probe}");
    host.write_policy(&crate::rotating::policy(r#"adopt = "restart""#, &probe));
    let well = host.app_dir().join("well");
    std::fs::write(&well, "").unwrap();
    host.up();
    host.order(1, stage(1));
    host.order(1, activate(1));
    let app = Application::start(&host.app_dir(), &host.app_dir().join("password"));
    app.until_loaded(&secret(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    host.until("the first adoption", |report| report.adopted == Some(v(1)));
    // It falls ill before the flip and stays so.
    std::fs::remove_file(well).unwrap();
    host.order(2, stage(2));
    host.order(2, activate(2));
    host.order(2, OrderKind::Adopt { version: v(2) });
    let report = host.until("its state", |report| {
        report.consumers.values().all(|consumer| consumer.state == ConsumerState::NotTheCredential)
    });
    assert_eq!((report.rolled_back, report.current), (None, Some(v(2))), "nobody goes back for it");
}

#[test]
fn a_version_that_cannot_be_unlinked_keeps_no_other_from_its_end() {
    if !crate::control::is_root_for("something that cannot be unlinked: mounting needs root") {
        return;
    }
    let mut host = Host::new("[set.db]\n");
    host.up();
    host.roll_out(1, 1);
    host.order(2, stage(2));
    let foreign = host.root().join("run/sets/db/v1.2/of-somebody");
    std::fs::create_dir(&foreign).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &foreign, "tmpfs", flags, c"size=4k").unwrap();
    host.order(2, OrderKind::Discard { version: v(2) });
    host.until_report("the notice", |report| report.notices.iter().any(|notice| notice.code == "unlink"));
    host.roll_out(3, 3);
    host.order(3, crate::control::seal(1));
    host.until("gone", |report| report.gone.contains(v(1)));
    let left = std::fs::read_dir(host.root().join("run/sets/db")).unwrap();
    let mut left = left.map(|entry| entry.unwrap().path().join("of-somebody"));
    let foreign = left.find(|path| path.exists()).unwrap();
    rustix::mount::unmount(&foreign, rustix::mount::UnmountFlags::DETACH).unwrap();
    host.until_report("the end", |report| report.notices.is_empty());
    assert!(!foreign.exists());
}

#[test]
fn a_set_that_is_withdrawn_leaves_nothing_where_applications_look() {
    let places = r#"
[set.db]
places = [
    { path = "{app}/password", file = "password", kind = "link" },
    { path = "{app}/copied", file = "password", kind = "copy" },
]
"#;
    let mut host = Host::new(places);
    host.up();
    host.roll_out(1, 1);
    let withdraw = |withdraw| OrderKind::Seal {
        version: v(1),
        cleared: BTreeSet::new(),
        cleared_gaps: BTreeSet::new(),
        withdraw,
    };
    let report = host.order(2, withdraw(false));
    assert!(report.not_gone[&v(1)].contains("current"), "{report:#?}");
    host.order(2, withdraw(true));
    let report = host.until("gone", |report| report.gone.contains(v(1)));
    assert_eq!(report.current, None);
    assert!(std::fs::symlink_metadata(host.app_dir().join("password")).is_err(), "a link that leads nowhere");
    assert!(!host.disk().values().any(|content| content.contains(&secret(1))), "{:#?}", host.disk());
    host.restart();
    host.ask(1);
    assert_eq!((host.db().current, host.current("password")), (None, None), "nor after a restart");
}
