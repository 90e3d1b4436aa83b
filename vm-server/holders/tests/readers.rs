//! Real readers on the real kernel. However one hides, it holds the version until it is gone.
//!
//! Runs in process and mount namespaces of its own, so that the candidates of a gap are the test's own processes and
//! no stranger of the machine keeps it from healing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what it did not expect"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use holders::{
    Detail, Evidence, File as Watched, Needle, Proc, Rules, Scene, Sweep, Traces, boot_clock, boot_id,
};
use lifecycle::{Evidence as Kind, Version};
use nix::mount::{MsFlags, mount};
use opens::exact::{self, Exact};
use opens::{Capability, Group, Inode, Queue};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

const OLD: Version = Version::new(1, 1);
const VALUE: &str = "correct-horse-battery-staple";
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("respond-on-stdio") => return code(exact::respond_on_stdio().is_ok()),
        Some("watch-on-stdio") => return code(exact::watch_on_stdio().is_ok()),
        Some("role") => return role(&arguments[1], &arguments[2..]),
        Some("inside") => return inside(),
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let capability = Capability::probe();
    if !tests_needs::is_there(
        capability.sees_opens(),
        &format!("real readers on the real kernel: {capability}"),
    ) {
        return ExitCode::SUCCESS;
    }
    let status = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .arg("inside")
        .status()
        .unwrap();
    code(status.success())
}

fn code(success: bool) -> ExitCode {
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn inside() -> ExitCode {
    let tests: &[(&str, fn())] = &[
        ("who_opened_and_closed_at_once_holds", who_opened_and_closed_at_once_holds),
        ("who_reads_a_descriptor_that_it_inherited_holds", who_reads_a_descriptor_that_it_inherited_holds),
        (
            "who_reads_a_descriptor_passed_over_a_socket_holds",
            who_reads_a_descriptor_passed_over_a_socket_holds,
        ),
        ("a_descriptor_in_flight_is_counted_by_the_kernel", a_descriptor_in_flight_is_counted_by_the_kernel),
        (
            "a_child_of_ours_has_our_descriptors_only_until_it_is_another_program",
            a_child_of_ours_has_our_descriptors_only_until_it_is_another_program,
        ),
        ("a_mapping_without_a_descriptor_is_found", a_mapping_without_a_descriptor_is_found),
        ("a_descriptor_that_was_only_kept_is_found", a_descriptor_that_was_only_kept_is_found),
        ("a_copy_in_the_environment_is_found", a_copy_in_the_environment_is_found),
        ("a_copy_on_the_command_line_is_found", a_copy_on_the_command_line_is_found),
        (
            "a_bind_mount_in_another_mount_namespace_is_found",
            a_bind_mount_in_another_mount_namespace_is_found,
        ),
        ("the_parent_of_a_reader_that_is_gone_holds", the_parent_of_a_reader_that_is_gone_holds),
        ("in_the_exact_mode_it_is_named", in_the_exact_mode_it_is_named),
        ("who_read_while_the_watcher_was_away_holds", who_read_while_the_watcher_was_away_holds),
        ("a_gap_heals_with_its_last_candidate", a_gap_heals_with_its_last_candidate),
        ("a_name_with_newlines_and_escapes_is_shown_plain", a_name_with_newlines_and_escapes_is_shown_plain),
        ("a_number_used_again_is_not_believed", a_number_used_again_is_not_believed),
        ("processes_that_come_and_go_are_normal", processes_that_come_and_go_are_normal),
    ];
    for (name, test) in tests {
        eprint!("test {name} ... ");
        test();
        eprintln!("ok");
    }
    eprintln!("readers: {} passed", tests.len());
    ExitCode::SUCCESS
}

// Readers

/// What this program does when it is a reader: says `ready` when it has done it, and ends with its standard input.
fn role(name: &str, arguments: &[String]) -> ExitCode {
    let kept: Option<OwnedFd> = match name {
        "open-and-close" => {
            fs::read(&arguments[0]).unwrap();
            None
        }
        // Standard error is the inherited descriptor.
        "read-inherited" => {
            let mut file = File::from(std::io::stderr().as_fd().try_clone_to_owned().unwrap());
            file.read_to_end(&mut Vec::new()).unwrap();
            None
        }
        "read-received" => {
            let file = received(std::io::stderr().as_fd());
            File::from(file.try_clone().unwrap()).read_to_end(&mut Vec::new()).unwrap();
            None
        }
        "keep-received" => Some(received(std::io::stderr().as_fd())),
        // The socket is kept, the descriptor stays in it.
        "keep-socket" => Some(std::io::stderr().as_fd().try_clone_to_owned().unwrap()),
        "become-another" => {
            println!("ready");
            std::io::stdin().read_exact(&mut [0]).unwrap();
            let error = Command::new("cat").stderr(Stdio::null()).exec();
            panic!("failed to become another program: {error}");
        }
        "wait" => None,
        other => panic!("unknown role {other}"),
    };
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(kept);
    ExitCode::SUCCESS
}

fn received(socket: impl AsFd) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    files.next().unwrap()
}

fn passed(socket: impl AsFd, file: impl AsFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    sendmsg(socket, &[IoSlice::new(b"f")], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// A reader in a session of its own, as an application is.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        Self(child)
    }

    fn role(name: &str, arguments: &[&Path], handed: Option<OwnedFd>) -> Self {
        let mut command = Command::new("setsid");
        command.arg(std::env::current_exe().unwrap()).args(["role", name]).args(arguments);
        if let Some(handed) = handed {
            command.stderr(Stdio::from(handed));
        }
        Self::start(command)
    }

    fn shell(script: &str, path: &Path) -> Self {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script]).arg(path);
        Self::start(command)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// The watcher

/// One version in a tmpfs of its own, and the watcher over it. We are the applier.
struct Host {
    directory: tempfile::TempDir,
    group: Group,
    proc: Proc,
    rules: Rules,
    units: BTreeMap<String, holders::UnitLife>,
    evidence: Evidence,
    exact: Option<Exact>,
}

impl Host {
    fn new() -> Self {
        Self::with(VALUE.as_bytes())
    }

    fn with(content: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(Some("eso-test"), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::create_dir(directory.path().join("1")).unwrap();
        let mut host = Self {
            group: Group::open(Queue::Unlimited).unwrap(),
            proc: Proc::new(),
            rules: Rules { ours: BTreeSet::from([identity_of(own_pid())]), ..Rules::default() },
            units: BTreeMap::new(),
            evidence: Evidence::new(boot_id().unwrap(), Kind::Kernel, "", boot_clock()),
            exact: None,
            directory,
        };
        fs::write(host.path(), content).unwrap();
        let metadata = fs::metadata(host.path()).unwrap();
        host.group.mark(File::open(host.path()).unwrap()).unwrap();
        host.evidence.watch(
            OLD,
            Watched {
                name: "password".into(),
                place: None,
                device: metadata.dev(),
                inode: metadata.ino(),
                owner: metadata.uid(),
                group: metadata.gid(),
                mode: 0o400,
            },
        );
        host
    }

    fn exact() -> Self {
        let mut host = Self::new();
        let program = std::env::current_exe().unwrap();
        let mut exact = Exact::start(&program, &["respond-on-stdio"], &["watch-on-stdio"]).unwrap();
        exact.mark(File::open(host.path()).unwrap()).unwrap();
        for ours in [exact.responder(), exact.watcher()] {
            host.rules.ours.insert(identity_of(i32::try_from(ours).unwrap()));
        }
        host.exact = Some(exact);
        host
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("1/password")
    }

    fn inode(&self) -> Inode {
        Inode::of(File::open(self.path()).unwrap()).unwrap()
    }

    fn look(&mut self) {
        let (look, table) = self.proc.look(&self.group, self.exact.as_mut());
        let scene = Scene { table: &table, rules: &self.rules, units: &self.units };
        self.evidence.observe(&look, &scene);
        self.evidence.refresh(&scene);
        // What is journaled comes back as it was.
        let text = serde_json::to_string(&self.evidence).unwrap();
        let back: Evidence = serde_json::from_str(&text).unwrap();
        assert_eq!(back.is_free(OLD), self.evidence.is_free(OLD));
    }

    /// The reader runs: the version must be held, look after look.
    fn must_be_held(&mut self) {
        for _ in 0..3 {
            self.look();
            assert!(!self.evidence.is_free(OLD), "nobody holds it");
        }
    }

    /// The reader has ended: the version must become free.
    fn must_become_free(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.look();
            if self.evidence.is_free(OLD) {
                return;
            }
            assert!(Instant::now() < deadline, "still held: {:?}", self.evidence);
            std::thread::yield_now();
        }
    }

    fn sweep(&mut self, sweep: &Sweep) -> Traces {
        let table = self.proc.table(Detail::Lives);
        sweep.run(&self.proc, &table, &self.rules)
    }

    /// Sweeps, and lets the evidence take up what was found. Gives it in words.
    fn swept(&mut self, sweep: &Sweep) -> Vec<String> {
        self.look();
        let table = self.proc.table(Detail::Lives);
        let traces = sweep.run(&self.proc, &table, &self.rules);
        assert!(traces.complete && traces.unreadable.is_empty(), "{traces:?}");
        let scene = Scene { table: &table, rules: &self.rules, units: &self.units };
        self.evidence.found(OLD, &traces, &scene);
        traces.found.into_iter().map(|found| found.what).collect()
    }

    fn inodes_in_use(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.directory.path()).unwrap();
        stat.f_files - stat.f_ffree
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.directory.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

fn identity_of(pid: i32) -> holders::ProcessId {
    Proc::new().process(pid).unwrap().id
}

fn sweep_of(inodes: impl IntoIterator<Item = Inode>) -> Sweep {
    Sweep { inodes: inodes.into_iter().collect(), directory: None, needles: Vec::new() }
}

fn sweep_for_value() -> Sweep {
    let needles = vec![Needle::value("password", VALUE.as_bytes()).unwrap()];
    Sweep { inodes: BTreeSet::new(), directory: None, needles }
}

// What they show

fn who_opened_and_closed_at_once_holds() {
    let mut host = Host::new();
    let reader = Running::role("open-and-close", &[&host.path()], None);
    host.must_be_held();
    let holder = &host.evidence.holders(OLD)[0];
    assert!(holder.id.as_str().starts_with("session:"), "{holder:?}");
    assert_eq!(holder.evidence, Kind::Kernel);
    assert!(host.evidence.awaited().iter().any(|id| id.pid == i32::try_from(reader.0.id()).unwrap()));
    reader.end();
    host.must_become_free();
}

fn who_reads_a_descriptor_that_it_inherited_holds() {
    let mut host = Host::new();
    let file = File::open(host.path()).unwrap();
    let reader = Running::role("read-inherited", &[], Some(file.into()));
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn who_reads_a_descriptor_passed_over_a_socket_holds() {
    let mut host = Host::new();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    passed(&ours, File::open(host.path()).unwrap());
    let reader = Running::role("read-received", &[], Some(theirs));
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn a_descriptor_in_flight_is_counted_by_the_kernel() {
    let mut host = Host::new();
    let sweep = sweep_of([host.inode()]);
    let before = host.inodes_in_use();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    passed(&ours, File::open(host.path()).unwrap());
    drop(ours);
    let reader = Running::role("keep-socket", &[], Some(theirs));
    fs::remove_file(host.path()).unwrap();
    host.look();
    assert!(host.sweep(&sweep).found.is_empty(), "it is in nobody's table");
    assert_eq!(host.inodes_in_use(), before, "unlinked, and in use");
    reader.end();
    let deadline = Instant::now() + DEADLINE;
    while host.inodes_in_use() == before {
        assert!(Instant::now() < deadline, "still in use");
        host.look();
    }
}

fn a_child_of_ours_has_our_descriptors_only_until_it_is_another_program() {
    let mut host = Host::new();
    let sweep = sweep_of([host.inode()]);
    for _ in 0..20 {
        let file = File::open(host.path()).unwrap();
        let mut child = Running::role("become-another", &[], Some(file.into()));
        child.0.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        let found = host.sweep(&sweep).found;
        assert!(found.is_empty(), "it is another program, and lives on: {found:?}");
        child.end();
    }
    // Another program is believed at the first look, whoever started it.
    let other = Running::shell("exec 7<\"$0\"; echo ready; read -r _", &host.path());
    assert!(!host.sweep(&sweep).found.is_empty());
    other.end();
}

fn a_mapping_without_a_descriptor_is_found() {
    // A program that runs maps its file and has no descriptor of it.
    let mut host = Host::with(&fs::read("/bin/cat").unwrap());
    let inode = host.inode();
    let path = host.path();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut child =
        Command::new("setsid").arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    fs::remove_file(&path).unwrap();
    host.must_be_held();
    let found = host.swept(&sweep_of([inode]));
    assert!(found.iter().any(|what| what.starts_with("has a mapping of inode")), "{found:?}");
    drop(child.stdin.take());
    child.wait().unwrap();
    host.must_become_free();
}

fn a_descriptor_that_was_only_kept_is_found() {
    let mut host = Host::new();
    let sweep = sweep_of([host.inode()]);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    // Opened before by us, and never read by whom it was given to; `O_PATH` as good as any.
    passed(
        &ours,
        rustix::fs::open(host.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap(),
    );
    let reader = Running::role("keep-received", &[], Some(theirs));
    host.look();
    assert!(host.evidence.is_free(OLD), "it did not read: {:?}", host.evidence);
    let found = host.swept(&sweep);
    assert!(found.iter().any(|what| what.starts_with("has a descriptor of inode")), "{found:?}");
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn a_copy_in_the_environment_is_found() {
    let mut host = Host::new();
    let mut command = Command::new("setsid");
    command.arg(std::env::current_exe().unwrap()).args(["role", "wait"]).env("PASSWORD", VALUE);
    let reader = Running::start(command);
    host.look();
    assert!(host.evidence.is_free(OLD), "it never read the file");
    assert_eq!(host.swept(&sweep_for_value()), ["has the content of password in its environment"]);
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn a_copy_on_the_command_line_is_found() {
    let mut host = Host::new();
    let mut command = Command::new("setsid");
    command.arg(std::env::current_exe().unwrap()).args(["role", "wait"]).arg(format!("--password={VALUE}"));
    let reader = Running::start(command);
    assert_eq!(host.swept(&sweep_for_value()), ["has the content of password in its command line"]);
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn a_bind_mount_in_another_mount_namespace_is_found() {
    let mut host = Host::new();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("setsid");
    command
        .args(["unshare", "--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind \"$0\" \"$1\"; echo ready; read answer")
        .arg(host.path())
        .arg(elsewhere.path());
    let reader = Running::start(command);
    let device = host.inode().device;
    fs::remove_file(host.path()).unwrap();
    let sweep =
        Sweep { inodes: BTreeSet::new(), directory: Some((device, "/1".into())), needles: Vec::new() };
    assert!(host.swept(&sweep).contains(&"has a file of it mounted somewhere else".to_owned()));
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn the_parent_of_a_reader_that_is_gone_holds() {
    let mut host = Host::new();
    let reader = Running::shell("P=$(cat \"$0\"); echo ready; read answer", &host.path());
    // Seen in time or not: the shell counts as its parent, or as a candidate.
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn in_the_exact_mode_it_is_named() {
    let mut host = Host::exact();
    let reader = Running::shell("P=$(cat \"$0\"); echo ready; read answer", &host.path());
    host.must_be_held();
    let table = host.proc.table(Detail::Lives);
    assert!(host.evidence.gaps(1, &table).is_empty(), "{:?}", host.evidence);
    assert!(host.evidence.holders(OLD)[0].description.contains("(sh"), "{:?}", host.evidence.holders(OLD));
    reader.end();
    host.must_become_free();
}

fn who_read_while_the_watcher_was_away_holds() {
    let mut host = Host::new();
    // Killed, and started again with what was kept and what was journaled.
    let journal = serde_json::to_string(&host.evidence).unwrap();
    let kept = host.group.as_fd().try_clone_to_owned().unwrap();
    let reader = Running::role("open-and-close", &[&host.path()], None);
    let gone = Running::shell("cat \"$0\" >/dev/null; echo ready; read answer", &host.path());
    host.group = Group::take_back(kept).unwrap();
    host.evidence = serde_json::from_str(&journal).unwrap();
    host.evidence.resume(&boot_id().unwrap(), Kind::Kernel, "", boot_clock());
    host.must_be_held();
    assert_eq!(host.evidence.holders(OLD).len(), 1);
    let table = host.proc.table(Detail::Lives);
    assert_eq!(host.evidence.gaps(1, &table).len(), 1, "who was gone by then is a gap");
    gone.end();
    host.must_be_held();
    reader.end();
    host.must_become_free();
}

fn a_gap_heals_with_its_last_candidate() {
    let mut host = Host::new();
    let candidate = Running::role("wait", &[], None);
    let mut reader = Command::new("cat").arg(host.path()).stdout(Stdio::null()).spawn().unwrap();
    reader.wait().unwrap();
    host.must_be_held();
    assert!(host.evidence.holders(OLD).is_empty());
    let table = host.proc.table(Detail::Lives);
    let gap = host.evidence.gaps(7, &table).remove(0);
    assert!(gap.description.starts_with("a reader was gone before we looked"), "{}", gap.description);
    candidate.end();
    host.must_become_free();
}

fn a_name_with_newlines_and_escapes_is_shown_plain() {
    let mut host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    let fake = directory.path().join("a\n\u{1b}[2J) S 1 1");
    fs::copy(std::env::current_exe().unwrap(), &fake).unwrap();
    let mut command = Command::new("setsid");
    command.arg(&fake).args(["role", "open-and-close"]).arg(host.path());
    let reader = Running::start(command);
    host.must_be_held();
    let holder = &host.evidence.holders(OLD)[0];
    assert!(!holder.description.chars().any(char::is_control), "{:?}", holder.description);
    reader.end();
    host.must_become_free();
}

/// Sets the next number that the kernel gives out, so that a number is used again at once.
fn next_pid(pid: i32) {
    fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
}

fn a_number_used_again_is_not_believed() {
    let mut host = Host::new();
    let mut first = Command::new("cat").arg(host.path()).stdout(Stdio::null()).spawn().unwrap();
    let number = i32::try_from(first.id()).unwrap();
    first.wait().unwrap();
    // The event names a number that an innocent process has now.
    next_pid(number);
    let innocent = Running::role("wait", &[], None);
    assert_eq!(i32::try_from(innocent.0.id()).unwrap(), number);
    host.must_be_held();
    assert!(host.evidence.holders(OLD).is_empty(), "{:?}", host.evidence.holders(OLD));
    innocent.end();
    host.must_become_free();

    // A holder's number that is used again is no holder.
    let reader = Running::role("open-and-close", &[&host.path()], None);
    let number = i32::try_from(reader.0.id()).unwrap();
    host.must_be_held();
    reader.end();
    // Within one tick both would be the same to us, and the version would be held for too long.
    let ended = boot_clock();
    while boot_clock().since(ended).0 <= 10 {
        std::thread::yield_now();
    }
    next_pid(number);
    let innocent = Running::role("wait", &[], None);
    assert_eq!(i32::try_from(innocent.0.id()).unwrap(), number);
    host.must_become_free();
    innocent.end();
}

fn processes_that_come_and_go_are_normal() {
    let mut host = Host::new();
    let mut storm = Command::new("sh")
        .args(["-c", "while :; do cat \"$0\" >/dev/null; done"])
        .arg(host.path())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_millis(700);
    let needle = sweep_for_value();
    while Instant::now() < until {
        host.look();
        host.sweep(&needle);
    }
    storm.kill().unwrap();
    storm.wait().unwrap();
    host.must_become_free();
}
