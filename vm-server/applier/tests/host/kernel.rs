//! With privilege: opens are seen by the kernel, and the set has a file system of its own that counts inodes.

use std::io::{IoSliceMut, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use lifecycle::{Evidence, OrderKind};

use crate::application::Application;
use crate::control::{Host, activate, seal, secret, stage, v};

/// Whether the tests of this file can run.
pub(crate) fn is_able() -> bool {
    tests_needs::is_there(
        rustix::process::geteuid().is_root(),
        "evidence of the kernel on a host: needs root",
    )
}

/// This very process starts all applications and reads nothing: without cgroups it would count as one that may have
/// got the value from its children.
pub(crate) fn policy(adopt: &str) -> String {
    let exe = std::env::current_exe().unwrap().canonicalize().unwrap();
    let more = format!("not_a_consumer = [{{ exe = \"{}\", why = \"starts the others\" }}]\n", exe.display());
    crate::rotating::policy(adopt, "") + &more
}

fn on_one(adopt: &str) -> (Host, Application) {
    let mut host = Host::with(&policy(adopt), "");
    host.up();
    started(host)
}

fn started(mut host: Host) -> (Host, Application) {
    host.order(1, stage(1));
    host.order(1, activate(1));
    let app = Application::start(&host.app_dir(), &host.app_dir().join("password"));
    app.until_loaded(&secret(1));
    host.order(1, OrderKind::Adopt { version: v(1) });
    host.until("the first adoption", |report| report.adopted == Some(v(1)));
    (host, app)
}

#[test]
fn readers_are_seen_and_their_version_lives_until_they_let_go() {
    if !is_able() {
        return;
    }
    let (mut host, app) = on_one(r#"adopt = "restart""#);
    let report = host.db();
    assert_eq!(report.evidence, Evidence::Kernel, "{:#?}", host.report.as_ref().unwrap().means);
    // It keeps the value in memory and no descriptor.
    let mut stranger = stranger(&host);
    host.roll_out(2, 2);
    assert_eq!(app.loaded(), Some(secret(2)));
    let report = host.order(2, seal(1));
    assert!(!report.gone.contains(v(1)), "{report:#?}");
    host.until("the stranger by name", |report| {
        report.holders.iter().any(|holder| holder.version == v(1) && holder.consumer.is_none())
            || report.gaps.iter().any(|gap| gap.versions.contains(&v(1)))
    });
    drop(stranger.stdin.take());
    stranger.wait().unwrap();
    host.until("gone", |report| report.gone.contains(v(1)));
}

#[test]
fn in_the_exact_mode_a_reader_of_a_moment_is_named_by_its_parent() {
    if !is_able() {
        return;
    }
    let mut host = Host::with(&policy(r#"adopt = "restart""#), "evidence = \"exact\"\n");
    host.up();
    let (mut host, _app) = started(host);
    let means = &host.report.as_ref().unwrap().means;
    assert!(means.iter().any(|mean| mean.name == "exact" && mean.in_use), "{means:#?}");
    let script = r#"for _ in 1 2 3 4 5 6 7 8; do value=$(cat "$1"); done; echo read; read _"#;
    let mut parent = Command::new("setsid")
        .args(["/bin/bash", "-c", script, "parent"])
        .arg(host.app_dir().join("password"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    parent.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    host.roll_out(2, 2);
    let report = host.order(2, seal(1));
    assert!(!report.gone.contains(v(1)), "{report:#?}");
    host.until("the parent by name", |report| {
        report.gaps.is_empty()
            && report.holders.iter().any(|holder| holder.version == v(1) && holder.consumer.is_none())
    });
    drop(parent.stdin.take());
    parent.wait().unwrap();
    host.until("gone", |report| report.gone.contains(v(1)));
}

/// The process of this applier that holds openers.
fn responder(host: &Host) -> Option<i32> {
    let parent = format!("PPid:\t{}", host.pid());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("status").lines().any(|line| line == parent) && read("cmdline").contains("exact-responder")
    })
}

#[test]
fn a_responder_that_died_is_started_again_and_holds_readers_of_what_lies_here() {
    if !is_able() {
        return;
    }
    let mut host = Host::with(&policy(r#"adopt = "restart""#), "evidence = \"exact\"\n");
    host.up();
    let (mut host, _app) = started(host);
    host.acknowledging = false;
    let died = rustix::process::Pid::from_raw(responder(&host).unwrap()).unwrap();
    rustix::process::kill_process(died, rustix::process::Signal::KILL).unwrap();
    host.until_report("the time without it, by name", |report| {
        report.notices.iter().any(|notice| notice.code == "exact_ended" && notice.message.contains(" to "))
    });
    let means = &host.report.as_ref().unwrap().means;
    assert!(means.iter().any(|mean| mean.name == "exact" && mean.in_use), "{means:#?}");
    let script = r#"for _ in 1 2 3 4 5 6 7 8; do value=$(cat "$1"); done; echo read; read _"#;
    let mut parent = Command::new("setsid")
        .args(["/bin/bash", "-c", script, "parent"])
        .arg(host.app_dir().join("password"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    parent.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    host.until("the parent by name", |report| {
        report.holders.iter().any(|holder| holder.version == v(1) && holder.consumer.is_none())
    });
    assert!(host.db().gaps.is_empty(), "no reader got away: {:#?}", host.db().gaps);
    drop(parent.stdin.take());
    parent.wait().unwrap();
}

#[test]
fn a_reload_that_reads_the_new_version_releases_the_old_one() {
    if !is_able() {
        return;
    }
    let (mut host, app) = on_one(r#"adopt = "signal", signal = "HUP""#);
    host.roll_out(2, 2);
    app.until_loaded(&secret(2));
    host.order(2, seal(1));
    host.until("gone", |report| report.gone.contains(v(1)));
    assert_eq!(app.starts(), 1, "the same life went on");
}

/// A descriptor that is in nobody's `/proc/PID/fd`: only the kernel's count of inodes shows it. It is opened `O_PATH`,
/// which no mark sees.
struct InFlight {
    _ends: (UnixDatagram, UnixDatagram),
}

impl InFlight {
    fn of(path: &std::path::Path) -> Self {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let held = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        let mut space = vec![std::mem::MaybeUninit::uninit(); 64];
        let mut message = rustix::net::SendAncillaryBuffer::new(&mut space);
        let descriptors = [std::os::fd::AsFd::as_fd(&held)];
        assert!(message.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let data = [std::io::IoSlice::new(b"x")];
        rustix::net::sendmsg(&ours, &data, &mut message, rustix::net::SendFlags::empty()).unwrap();
        Self { _ends: (ours, theirs) }
    }
}

fn counted_by_the_kernel(report: &lifecycle::SetReport, number: u32) -> bool {
    report.not_gone.get(&v(number)).is_some_and(|why| why.contains("kernel counts"))
}

#[test]
fn a_descriptor_in_other_hands_keeps_a_version() {
    if !is_able() {
        return;
    }
    let (mut host, _app) = on_one(r#"adopt = "restart""#);
    let held = InFlight::of(&host.root().join("run/sets/db/..data/password"));
    host.roll_out(2, 2);
    host.order(2, seal(1));
    host.until("the kernel's count", |report| counted_by_the_kernel(report, 1));
    drop(held);
    host.until("gone", |report| report.gone.contains(v(1)));
}

/// Somebody that no policy names, with descriptors of these files.
struct Stranger(std::process::Child);

impl Stranger {
    fn with_open(files: &[std::path::PathBuf]) -> Self {
        let script =
            r#"fd=10; for file; do eval "exec $fd<\"\$file\""; fd=$((fd + 1)); done; echo open; read _"#;
        let mut child = Command::new("setsid")
            .args(["/bin/bash", "-c", script, "stranger"])
            .args(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        Self(child)
    }

    fn leave(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Has everybody cleared who holds the version but the application, whose new life is waited for.
fn clear_strangers(host: &mut Host, generation: u32, number: u32) {
    host.order(generation, seal(number));
    let report = host.until("the stranger alone", |report| {
        let mut of_it = report.holders.iter().filter(|holder| holder.version == v(number)).peekable();
        of_it.peek().is_some() && of_it.all(|holder| holder.consumer.is_none())
    });
    let of_it = report.holders.iter().filter(|holder| holder.version == v(number));
    let cleared = of_it.map(|holder| holder.id.clone()).collect();
    let cleared_gaps = report.gaps.iter().map(|gap| gap.id.clone()).collect();
    let kind = OrderKind::Seal { version: v(number), cleared, cleared_gaps, withdraw: false };
    host.order(generation, kind);
}

#[test]
fn a_holder_that_was_cleared_keeps_its_descriptor_and_excuses_nobody_else() {
    if !is_able() {
        return;
    }
    let (mut host, _app) = on_one(r#"adopt = "restart""#);
    let stranger = Stranger::with_open(&[host.app_dir().join("password")]);
    host.roll_out(2, 2);
    clear_strangers(&mut host, 2, 1);
    host.until("gone, although its file is still open", |report| report.gone.contains(v(1)));
    // Beside it: what it keeps is known, and counts for nothing else.
    let held = InFlight::of(&host.root().join("run/sets/db/..data/password"));
    host.roll_out(3, 3);
    host.order(3, seal(2));
    host.until("the kernel's count", |report| counted_by_the_kernel(report, 2));
    // Nor after it has let go.
    stranger.leave();
    let report = host.order(3, seal(2));
    assert!(counted_by_the_kernel(&report, 2), "{report:#?}");
    drop(held);
    host.until("gone", |report| report.gone.contains(v(2)));
}

#[test]
fn a_holder_of_copies_elsewhere_excuses_nobody_in_the_set() {
    if !is_able() {
        return;
    }
    let copies = r#"{ path = "{app}/one", file = "password", kind = "copy" }, { path = "{app}/two", file = "password", kind = "copy" }, "#;
    let with_copies = policy(r#"adopt = "restart""#).replace("places = [", &format!("places = [{copies}"));
    let mut host = Host::with(&with_copies, "");
    host.up();
    let (mut host, _app) = started(host);
    let stranger = Stranger::with_open(&[host.app_dir().join("one"), host.app_dir().join("two")]);
    let held = InFlight::of(&host.root().join("run/sets/db/..data/password"));
    host.roll_out(2, 2);
    clear_strangers(&mut host, 2, 1);
    host.until("the kernel's count", |report| counted_by_the_kernel(report, 1));
    drop(held);
    host.until("gone", |report| report.gone.contains(v(1)));
    stranger.leave();
}

/// What systemd does for a unit with a descriptor store, for one applier.
pub(crate) struct Store {
    socket: UnixDatagram,
}

impl Store {
    pub(crate) fn new(host: &mut Host) -> Self {
        let path = host.root().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(crate::control::PATIENCE)).unwrap();
        host.environment.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
        Self { socket }
    }

    /// The first descriptor that is given to be kept.
    pub(crate) fn take(&self) -> OwnedFd {
        loop {
            let mut bytes = [0; 4096];
            let mut space = vec![std::mem::MaybeUninit::uninit(); 256];
            let mut messages = rustix::net::RecvAncillaryBuffer::new(&mut space);
            let mut data = [IoSliceMut::new(&mut bytes)];
            let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
            rustix::net::recvmsg(&self.socket, &mut data, &mut messages, flags).unwrap();
            for message in messages.drain() {
                if let rustix::net::RecvAncillaryMessage::ScmRights(mut descriptors) = message
                    && let Some(descriptor) = descriptors.next()
                {
                    return descriptor;
                }
            }
        }
    }
}

/// Somebody whom policy does not name has read the password, and lives on.
fn stranger(host: &Host) -> std::process::Child {
    let script = r#"IFS= read -r value < "$1" || [ -n "$value" ]; echo read; read _"#;
    let mut stranger = Command::new("setsid")
        .args(["/bin/bash", "-c", script, "stranger"])
        .arg(host.app_dir().join("password"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    stranger.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    stranger
}

#[test]
fn who_read_while_we_were_away_is_seen_where_somebody_kept_our_group() {
    if !is_able() {
        return;
    }
    let mut host = Host::with(&policy(r#"adopt = "restart""#), "");
    let store = Store::new(&mut host);
    host.up();
    let kept = store.take();
    let (mut host, _app) = started(host);
    // Nothing that it has opened itself is in the kernel's queue any more.
    host.ask(1);
    host.kill();
    let mut stranger = stranger(&host);
    host.kept = Some(kept);
    host.up();
    let report = host.until("the stranger", |report| {
        report.holders.iter().any(|holder| holder.version == v(1) && holder.consumer.is_none())
    });
    assert!(report.gaps.is_empty(), "nothing was missed: {report:#?}");
    let _ = stranger.kill();
    let _ = stranger.wait();
}

/// What was taken from the kernel and is in no journal yet is left to the next of us.
#[cfg(feature = "failpoints")]
#[test]
fn who_read_and_was_not_journaled_before_we_were_killed_is_seen_where_somebody_kept_our_group() {
    if !is_able() {
        return;
    }
    let mut host = Host::with(&policy(r#"adopt = "restart""#), "");
    let store = Store::new(&mut host);
    host.up();
    let kept = store.take();
    let (mut host, _app) = started(host);
    // From now on it is this test that hands the group back.
    host.environment.clear();
    let from = host.root().join("from");
    let mut step = 0;
    let (mut was_killed, mut question) = (true, 0);
    while was_killed {
        step += 1;
        host.end_in_good_order();
        host.kept = Some(kept.try_clone().unwrap());
        host.environment.push(("ESO_FAILPOINT".to_owned(), step.to_string()));
        host.environment.push(("ESO_FAILPOINT_FROM".to_owned(), from.display().to_string()));
        host.up();
        // It has read what it reads itself at its start.
        question += 1;
        host.ask(question);
        std::fs::write(&from, "").unwrap();
        let mut stranger = stranger(&host);
        let description = format!("process {} ", stranger.id());
        let shows = |report: &lifecycle::SetReport| {
            report.holders.iter().any(|holder| holder.description.contains(&description))
        };
        was_killed = !host.until_or_gone(shows);
        host.kill();
        std::fs::remove_file(&from).unwrap();
        host.environment.clear();
        host.kept = Some(kept.try_clone().unwrap());
        host.up();
        let report = host.until("the stranger", shows);
        assert!(report.gaps.is_empty(), "killed at step {step}: {report:#?}");
        let _ = stranger.kill();
        let _ = stranger.wait();
    }
    assert!(step > 2, "it was killed at {} steps", step - 1);
}

#[test]
fn a_restart_without_a_kept_group_is_a_gap() {
    if !is_able() {
        return;
    }
    let (mut host, _app) = on_one(r#"adopt = "restart""#);
    host.restart();
    host.until("the gap", |report| report.gaps.iter().any(|gap| gap.versions.contains(&v(1))));
}

#[test]
fn a_restart_without_a_kept_group_is_a_gap_also_while_another_set_has_not_come_back_from_the_boot() {
    if !is_able() {
        return;
    }
    let (mut host, _app) = on_one(r#"adopt = "restart""#);
    host.kill();
    host.leave_another_set_behind();
    host.up();
    host.until("the gap", |report| report.gaps.iter().any(|gap| gap.versions.contains(&v(1))));
}

/// Nobody was told of the readers of a copy that lay there from before, until we came.
#[cfg(feature = "failpoints")]
#[test]
fn a_copy_that_still_shows_the_old_version_after_a_boot_is_a_gap_of_that() {
    if !is_able() {
        return;
    }
    let place = "[set.db]\nplaces = [{ path = \"{app}/password\", file = \"password\", kind = \"copy\" }]\n";
    for in_policy in [true, false] {
        let mut host = Host::with(place, "");
        host.up();
        host.roll_out(1, 1);
        host.order(2, stage(2));
        host.order(2, activate(2));
        let copy = host.app_dir().join("password");
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), secret(2));
        host.boot();
        // A loss of power came before it was durable.
        std::fs::remove_file(&copy).unwrap();
        std::fs::write(&copy, secret(1)).unwrap();
        if !in_policy {
            host.write_policy("[set.db]\n");
        }
        let mut stranger = stranger(&host);
        host.up();
        host.ask(1);
        let db = host.db();
        assert!(db.gaps.iter().any(|gap| gap.versions == [v(1)].into()), "{db:#?}");
        let shown = std::fs::read_to_string(&copy).unwrap();
        assert_eq!(shown, secret(if in_policy { 2 } else { 1 }));
        let _ = stranger.kill();
        let _ = stranger.wait();
    }
}

/// A restore, a configuration tool or a file system that comes late brings a file that nobody watches.
#[test]
fn a_copy_that_came_to_its_place_behind_our_back_is_a_gap() {
    if !is_able() {
        return;
    }
    let place = "[set.db]\nrefresh_ms = 200\n\
        places = [{ path = \"{app}/password\", file = \"password\", kind = \"copy\" }]\n";
    let mut host = Host::with(place, "");
    host.up();
    host.roll_out(1, 1);
    let copy = host.app_dir().join("password");
    let bring = |content: String| {
        let new = copy.with_extension("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, &copy).unwrap();
    };
    assert!(host.ask(1).sets[&host.set()].gaps.is_empty());
    bring(secret(1));
    host.until("a gap of the current version", |report| {
        report.gaps.iter().any(|gap| gap.versions == [v(1)].into())
    });
    host.roll_out(2, 2);
    let gaps = host.ask(2).sets[&host.set()].gaps.len();
    bring(secret(1));
    let report = host.until("another one of the old version", |report| report.gaps.len() > gaps);
    assert!(report.gaps.iter().all(|gap| gap.versions == [v(1)].into()), "{report:#?}");
    // What is no version is no matter of ours.
    bring("something else".to_owned());
    host.until_report("the repair", |report| report.notices.iter().any(|notice| notice.code == "drift"));
    assert_eq!(host.db().gaps.len(), gaps + 1);
}

/// Whoever reads it has the current version, and it stays watched when the one before is gone.
#[test]
fn a_copy_that_both_versions_say_is_one_of_the_current() {
    if !is_able() {
        return;
    }
    let place = "[set.db]\nrefresh_ms = 200\n\
        places = [{ path = \"{app}/password\", file = \"authority\", kind = \"copy\" }]\n";
    let mut host = Host::with(place, "");
    host.up();
    for number in 1..=2 {
        let files = [("password", secret(number)), ("authority", "the same".to_owned())];
        let files = files.map(|(name, text)| {
            (protocol::FileName::new(name).unwrap(), protocol::seal::Value::new(text.into_bytes()))
        });
        let key = protocol::VersionKey::from_bytes([u8::try_from(number).unwrap(); 32]);
        let set = protocol::seal::StagedSet::new(key, files.into(), None).unwrap();
        let mut payload = host.payload(number, stage(number));
        let sealed = set.seal(&payload.seal_context().unwrap(), &host.keys.sealing_key).unwrap();
        if let protocol::order::Body::Set(order) = &mut payload.body {
            order.stage = Some(sealed);
        }
        let frame = host.sign(&payload);
        assert_eq!(host.try_frame(frame), Ok(()));
        host.order(number, activate(number));
        host.order(number, OrderKind::Adopt { version: v(number) });
    }
    let mut stranger = stranger(&host);
    let report = host.until("the reader", |report| !report.holders.is_empty());
    assert!(report.holders.iter().all(|holder| holder.version == v(2)), "{report:#?}");
    host.order(2, seal(1));
    host.until("gone", |report| report.gone.contains(v(1)));
    crate::control::for_a_while(std::time::Duration::from_millis(600), || {
        let db = host.ask(1).sets[&host.set()].clone();
        assert!(db.gaps.is_empty() && !db.holders.is_empty(), "{db:#?}");
    });
    let _ = stranger.kill();
    let _ = stranger.wait();
}

/// A restart as of a package's upgrade, with all that was made since.
#[test]
fn an_ordinary_restart_makes_no_gap() {
    if !is_able() {
        return;
    }
    let place = "[set.db]\nrefresh_ms = 200\n\
        places = [{ path = \"{app}/password\", file = \"password\", kind = \"copy\" }]\n";
    let mut host = Host::with(place, "");
    let store = Store::new(&mut host);
    host.up();
    let kept = store.take();
    host.roll_out(1, 1);
    host.roll_out(2, 2);
    // An editor's file is put right.
    let copy = host.app_dir().join("password");
    std::fs::remove_file(&copy).unwrap();
    crate::control::wait_until("it is not put right", || copy.exists());
    for question in 1..=3 {
        host.end_in_good_order();
        host.kept = Some(kept.try_clone().unwrap());
        host.up();
        let db = host.ask(question).sets[&host.set()].clone();
        assert!(db.gaps.is_empty(), "{db:#?}");
    }
}

/// Also of a set that has nothing, and whose policy comes later.
#[cfg(feature = "failpoints")]
#[test]
fn evidence_is_always_of_this_boot() {
    if !is_able() {
        return;
    }
    let mut host = Host::with("[set.db]\n", "");
    host.up();
    host.roll_out(1, 1);
    let seal = OrderKind::Seal { version: v(1), cleared: [].into(), cleared_gaps: [].into(), withdraw: true };
    host.order(2, seal);
    host.until("gone", |report| report.gone.contains(v(1)));
    host.write_policy("");
    host.boot();
    host.up();
    host.report = None;
    host.write_policy("[set.db]\n");
    host.until("the set", |report| report.in_policy);
    host.roll_out(3, 2);
    host.kill();
    let boot = &host.environment.iter().find(|(name, _)| name == "ESO_BOOT_ID").unwrap().1;
    assert_eq!(host.records()["set"]["set"][1]["evidence"]["boot"], serde_json::json!(boot));
}

/// What a start of this boot could not write down was there all the same.
#[cfg(feature = "failpoints")]
#[test]
fn what_a_start_of_this_boot_could_not_write_down_is_a_gap_of_the_next() {
    if !is_able() {
        return;
    }
    let mut host = Host::with("[set.db]\n", "");
    host.up();
    host.roll_out(1, 1);
    host.boot();
    let journal = std::fs::read(host.journal()).unwrap();
    host.up();
    assert!(host.ask(1).sets[&host.set()].gaps.is_empty(), "nobody could read it before us");
    host.kill();
    // As if there had been no room.
    std::fs::write(host.journal(), journal).unwrap();
    host.up();
    host.until("the gap", |report| report.gaps.iter().any(|gap| gap.versions.contains(&v(1))));
}

/// What was unlinked and not looked for since may have been read in the last moment before.
#[cfg(feature = "failpoints")]
#[test]
fn a_restart_without_a_kept_group_within_a_seal_is_a_gap_of_what_is_sealed() {
    if !is_able() {
        return;
    }
    let (mut step, mut was_killed, mut within) = (0, true, 0);
    while was_killed {
        step += 1;
        let mut host = Host::with("[set.db]\n", "");
        let from = host.root().join("from");
        host.environment.push(("ESO_FAILPOINT".to_owned(), step.to_string()));
        host.environment.push(("ESO_FAILPOINT_FROM".to_owned(), from.display().to_string()));
        host.up();
        host.roll_out(1, 1);
        host.roll_out(2, 2);
        std::fs::write(&from, "").unwrap();
        let frame = host.sign(&host.payload(2, seal(1)));
        host.try_push(vec![frame]);
        was_killed = !host.until_or_gone(|report| report.gone.contains(v(1)));
        if was_killed {
            host.kill();
            host.environment.clear();
            let machine = &host.records()["set"]["set"][1]["machine"];
            let files = machine["known"]["1"]["files"].as_str().map(str::to_owned);
            host.up();
            let db = host.ask(1).sets[&host.set()].clone();
            let is_gap = db.gaps.iter().any(|gap| gap.versions.contains(&v(1)));
            assert_eq!(is_gap, files.is_some(), "step {step}, {files:?}: {db:#?}");
            within += u32::from(files.as_deref() == Some("unlinked"));
        }
    }
    assert!(within > 0, "it was never killed between the two");
}

/// Else the next of us would not know of it.
#[test]
fn a_gap_of_a_start_is_in_the_journal_before_anybody_hears_of_it() {
    if !is_able() {
        return;
    }
    let (mut host, _app) = on_one(r#"adopt = "restart""#);
    host.kill();
    let gaps = |host: &Host| {
        let records = host.records();
        records["set"]["set"][1]["evidence"]["gaps"].as_array().unwrap().len()
    };
    assert_eq!(gaps(&host), 0);
    host.start();
    crate::control::wait_until("it is not written down", || gaps(&host) != 0);
    host.kill();
}

#[test]
fn an_end_in_good_order_loses_no_reader() {
    if !is_able() {
        return;
    }
    let (mut host, app) = on_one(r#"adopt = "restart""#);
    let (file, mark) = (host.app_dir().join("password"), host.root().join("run/taking"));
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = std::thread::spawn({
        let over = over.clone();
        move || {
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                // Replaced places are no matter of this test.
                let _ = std::fs::read(&file);
            }
        }
    });
    for time in 0..4 {
        host.end_in_good_order();
        let taken = std::fs::read(&mark).unwrap();
        assert_eq!(taken, b"0", "time {time}: something was taken from the kernel and is in no journal");
        host.up();
        host.ask(time + 1);
    }
    over.store(true, std::sync::atomic::Ordering::SeqCst);
    reader.join().unwrap();
    assert_eq!(app.starts(), 1);
}
