//! A full disk of the journal: what can be done without it is done, and nothing is said that it does not have.

use lifecycle::OrderKind;
use lifecycle::report::ConsumerState;

use crate::application::Application;
use crate::control::{Host, activate, arm, seal, secret, stage, v};
use crate::refusing::{POLICY, on_one};

#[test]
fn a_journal_without_room_takes_no_order_and_keeps_a_whole_working_set() {
    if !crate::control::is_root_for("a journal without room: mounting needs root") {
        return;
    }
    let mut host = on_one();
    let disk = SmallDisk::under(&mut host);
    host.ask(1);
    disk.fill();
    let mut refusals = Vec::new();
    // What little room is left in the last page is used up first.
    for generation in 6..60 {
        if let Err(code) = host.try_order(generation, stage(2)) {
            refusals.push(code);
            break;
        }
        let _ = host.try_order(generation, OrderKind::Discard { version: v(2) });
    }
    assert!(refusals.iter().all(|code| code == "not_kept" || code == "copy_failed"), "{refusals:?}");
    assert!(!refusals.is_empty());
    assert_eq!(host.current("password"), Some(secret(1)));
    disk.empty();
    host.order(70, stage(2));
    host.order(70, activate(2));
    assert_eq!(host.current("password"), Some(secret(2)));
    host.kill();
}

/// A flip that was agreed upon comes also where nothing can be written down. What a loss of power would bring the host
/// back to is not taken away then, although nobody has it any more.
#[test]
fn without_room_for_what_is_current_nothing_is_unlinked() {
    if !crate::control::is_root_for("a flip without room for it: mounting needs root") {
        return;
    }
    let mut host = on_one();
    let disk = SmallDisk::under(&mut host);
    host.order(6, stage(2));
    // It is still the current version, and stays to be sealed.
    host.order(6, seal(1));
    host.order(6, arm(2, 3_000));
    disk.fill();
    use_up(&mut host);
    wait_for_two(&host);
    // Long enough for several looks.
    crate::control::for_a_while(std::time::Duration::from_millis(700), || {
        host.ask(60);
    });
    host.kill();
    std::fs::remove_dir_all(host.root().join("run/sets")).unwrap();
    host.start();
    crate::control::wait_until("the set does not come back", || host.current("password") == Some(secret(1)));
    host.kill();
    disk.empty();
    host.up();
    // The instant may be long past by now.
    host.order(6, activate(2));
    host.until("on the new version, and the old one gone", |report| {
        report.current == Some(v(2)) && !report.present.contains_key(&v(1))
    });
    host.kill();
}

/// Where nothing can be written down it still makes again what a boot has taken, and says so once it can.
#[test]
fn a_start_without_room_for_the_journal_has_a_whole_working_set() {
    if !crate::control::is_root_for("a start without room for the journal: mounting needs root") {
        return;
    }
    let mut host = on_one();
    let disk = SmallDisk::under(&mut host);
    host.kill();
    std::fs::remove_dir_all(host.root().join("run/sets")).unwrap();
    disk.fill();
    host.up();
    assert_eq!(host.current("password"), Some(secret(1)));
    assert!(!host.journal().with_extension("new").exists());
    assert!(!host.has_ended());
    host.report = None;
    // It waits for room, and does not turn in circles for it.
    host.sleeps_through_a_second();
    disk.empty();
    let report = host.until_report("a report", |_| true);
    assert_eq!(report.sets[&host.set()].current, Some(v(1)));
    host.order(6, stage(2));
    host.order(6, activate(2));
    assert_eq!(host.current("password"), Some(secret(2)));
    host.kill();
}

/// Whoever hands our group back to the next of us does not know that it was not the first one.
#[test]
fn a_gap_that_could_not_be_written_down_is_one_of_the_next_start() {
    if !crate::kernel::is_able() {
        return;
    }
    let mut host = Host::with("[set.db]\n", "");
    host.up();
    host.roll_out(5, 1);
    let disk = SmallDisk::under(&mut host);
    host.end_in_good_order();
    disk.fill();
    let store = crate::kernel::Store::new(&mut host);
    host.up();
    let kept = store.take();
    host.kill();
    host.environment.clear();
    disk.empty();
    host.kept = Some(kept);
    host.up();
    host.until("the gap", |report| report.gaps.iter().any(|gap| gap.versions.contains(&v(1))));
    host.kill();
}

/// A boot that cannot be written down is met all the same, and once.
#[cfg(feature = "failpoints")]
#[test]
fn a_boot_without_room_for_the_journal_shows_links_and_makes_no_gaps() {
    if !crate::kernel::is_able() {
        return;
    }
    let places = r#"
[set.db]
places = [
    { path = "{app}/password", file = "password", kind = "link" },
    { path = "{app}/copy", file = "password", kind = "copy" },
]
"#;
    let mut host = Host::with(places, "");
    host.up();
    host.roll_out(5, 1);
    let disk = SmallDisk::under(&mut host);
    host.boot();
    for place in ["password", "copy"] {
        std::fs::remove_file(host.app_dir().join(place)).unwrap();
    }
    disk.fill();
    host.up();
    for place in ["password", "copy"] {
        let place = host.app_dir().join(place);
        let missing = format!("{} is missing", place.display());
        crate::control::wait_until(&missing, || std::fs::read_to_string(&place).ok() == Some(secret(1)));
    }
    // Long enough for several tries.
    crate::control::for_a_while(std::time::Duration::from_secs(1), || {});
    host.report = None;
    disk.empty();
    let report = host.until_report("a report of the set", |report| {
        report.sets.get(&lifecycle::SetName::new("db").unwrap()).is_some_and(|set| set.current.is_some())
    });
    let db = &report.sets[&host.set()];
    assert_eq!((db.current, db.evidence), (Some(v(1)), lifecycle::Evidence::Kernel));
    assert!(db.gaps.is_empty(), "{db:#?}");
    host.kill();
}

/// A report shows what a next life of ours will know of.
#[test]
fn no_acknowledgement_is_shown_that_the_journal_does_not_have() {
    if !crate::control::is_root_for("an acknowledgement without room for it: mounting needs root") {
        return;
    }
    let mut host = on_one();
    let disk = SmallDisk::under(&mut host);
    disk.fill();
    use_up(&mut host);
    let shown = host.ask(60).acknowledged;
    assert!(shown.is_some());
    for question in 61..64 {
        assert_eq!(host.ask(question).acknowledged, shown);
    }
    disk.empty();
    host.until_report("a newer one", |report| report.acknowledged != shown);
    host.kill();
}

/// A copy that the journal knows nothing of would not be read back by a seal.
#[test]
fn no_copy_is_written_that_the_journal_does_not_have() {
    if !crate::control::is_root_for("a copy without room in the journal: mounting needs root") {
        return;
    }
    let mut host = Host::new(&POLICY.replace("\"link\"", "\"copy\""));
    host.up();
    host.roll_out(5, 1);
    let disk = SmallDisk::under(&mut host);
    host.order(6, stage(2));
    host.order(6, arm(2, 3_000));
    disk.fill();
    use_up(&mut host);
    wait_for_two(&host);
    let (copy, beside) = (host.app_dir().join("password"), host.app_dir().join("beside"));
    crate::control::for_a_while(std::time::Duration::from_millis(700), || {
        // The directory of the place is looked at again each time.
        std::fs::write(&beside, "").unwrap();
        host.ask(60);
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), secret(1));
    });
    disk.empty();
    crate::control::wait_until("the copy stays as it is", || {
        std::fs::read_to_string(&copy).unwrap() == secret(2)
    });
    host.kill();
}

/// What came to light while nothing could be written down comes about once it can, all of it and in its order.
#[test]
fn no_outcome_is_lost_for_want_of_room() {
    if !crate::control::is_root_for("outcomes without room for them: mounting needs root") {
        return;
    }
    let mut host = Host::new("");
    let (dir, other_dir) = (host.app_dir(), host.app_dir().join("other"));
    std::fs::create_dir(&other_dir).unwrap();
    let (ill, probed) = (dir.join("ill"), dir.join("probed"));
    let health = crate::staging::script(
        &dir,
        "health",
        &format!("test ! -e {0} || {{ echo > {1}; exit 1; }}", ill.display(), probed.display()),
    );
    let probe = crate::staging::command(&health).replace('}', ", tries = 1, pause_ms = 10 }");
    let exe = Application::exe();
    host.write_policy(&format!(
        r#"
[set.db]
places = [{{ path = "{{app}}/password", file = "password", kind = "link" }}]
consumers = [
    {{ name = "app", pidfile = "{{app}}/app.pid", exe = "{exe}", adopt = "restart", settle_ms = 700 }},
    {{ name = "other", pidfile = "{{app}}/other/app.pid", exe = "{exe}", adopt = "restart", settle_ms = 1500, probe = {probe} }},
]
"#
    ));
    host.up();
    let disk = SmallDisk::under(&mut host);
    host.order(5, stage(1));
    host.order(5, activate(1));
    let apps = [&dir, &other_dir].map(|at| Application::start(at, &dir.join("password")));
    for app in &apps {
        app.until_loaded(&secret(1));
    }
    host.order(5, OrderKind::Adopt { version: v(1) });
    host.until("the first adoption", |report| report.adopted == Some(v(1)));
    host.order(6, stage(2));
    host.order(6, activate(2));
    host.order(6, OrderKind::Adopt { version: v(2) });
    host.until("both within their settle time", |report| {
        report.consumers.values().all(|consumer| consumer.state == ConsumerState::Settling)
    });
    std::fs::write(&ill, "").unwrap();
    disk.fill();
    use_up(&mut host);
    crate::control::wait_until("the other one is not probed", || probed.exists());
    let report = host.ask(60);
    let report = &report.sets[&host.set()];
    assert_eq!((report.rolled_back.as_ref(), report.current), (None, Some(v(2))), "{report:#?}");
    std::fs::remove_file(&ill).unwrap();
    disk.empty();
    let report = host.until("the way back", |report| report.adopted == Some(v(1)));
    assert_eq!(report.rolled_back.map(|rolled_back| rolled_back.from), Some(v(2)));
    host.kill();
}

/// What little room is left in the last page is used up first.
#[track_caller]
fn use_up(host: &mut Host) {
    let refused = (1..60).find(|question| host.ask(*question).sets[&host.set()].answers < *question);
    assert!(refused.is_some());
}

#[track_caller]
fn wait_for_two(host: &Host) {
    crate::control::wait_until("it does not flip", || host.current("password") == Some(secret(2)));
}

/// A small file system for the applier's state, as long as it is needed.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// Moves the state there.
    fn under(host: &mut Host) -> Self {
        host.kill();
        let state = host.root().join("state/applier");
        let moved = host.root().join("state/moved");
        std::fs::rename(&state, &moved).unwrap();
        std::fs::create_dir(&state).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &state, "tmpfs", flags, c"size=192k,mode=0700").unwrap();
        let disk = Self(state.clone());
        for entry in std::fs::read_dir(&moved).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(state.join(entry.file_name())).unwrap();
                for copy in std::fs::read_dir(entry.path()).unwrap() {
                    let copy = copy.unwrap();
                    std::fs::copy(copy.path(), state.join(entry.file_name()).join(copy.file_name())).unwrap();
                }
            } else {
                std::fs::copy(entry.path(), state.join(entry.file_name())).unwrap();
            }
        }
        host.up();
        disk
    }

    /// Leaves no more than what is free in the last page of each file.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("ballast")).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
