//! A control plane and a network half in one, for one real applier.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifecycle::{EffectId, Epoch, Generation, Millis, Order, OrderKind, SetName, SetReport, Version};
use protocol::ack::Ack;
use protocol::enrol::{Bundle, PENDING_FILE, PendingEnrolment, RegisteredKeys, TokenId};
use protocol::key::EnrolmentSecret;
use protocol::local::{self, FromApplier, LOCAL_VERSION, ToApplier};
use protocol::order::{Ask, Body, OrderPayload, SetOrder};
use protocol::report::{self, Outcome, Report};
use protocol::seal::{StagedSet, Value};
use protocol::{FileName, Frame, InstallationId, SigningKey, UnixMillis, VersionKey};

pub(crate) const EPOCH: Epoch = Epoch { counter: 1, id: 7 };

pub(crate) fn v(number: u32) -> Version {
    Version::new(1, number)
}

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so, and says what is not if it does not come.
#[track_caller]
pub(crate) fn wait_until(what_is_not: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what_is_not}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Does something again and again for so long: what must not come would have come by then.
pub(crate) fn for_a_while(time: Duration, mut each: impl FnMut()) {
    let began = Instant::now();
    while began.elapsed() < time {
        each();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether we are root; without it this is left out, and said so.
pub(crate) fn is_root_for(what: &str) -> bool {
    tests_needs::is_there(rustix::process::geteuid().is_root(), what)
}

/// One host: its directories, its applier, and those who speak with it.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) installation: InstallationId,
    pub(crate) key: SigningKey,
    /// Keys before a rekey: the host may show an acknowledgement by one of them.
    pub(crate) former: Vec<protocol::VerifyingKey>,
    /// The offline root.
    pub(crate) root: SigningKey,
    pub(crate) keys: RegisteredKeys,
    pub(crate) epoch: Epoch,
    pub(crate) environment: Vec<(String, String)>,
    /// A descriptor that is handed back at the next start, as a descriptor store does.
    pub(crate) kept: Option<std::os::fd::OwnedFd>,
    /// The same version has the same digest key, as at a real control plane.
    version_keys: BTreeMap<Version, [u8; 32]>,
    listener: UnixListener,
    applier: Option<Child>,
    pub(crate) stream: Option<UnixStream>,
    pushes: u64,
    /// The newest report.
    pub(crate) report: Option<Report>,
    pub(crate) acknowledging: bool,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        // Where the set has a file system of its own.
        let _ = rustix::mount::unmount(self.root().join("run/sets/db"), rustix::mount::UnmountFlags::DETACH);
    }
}

impl Host {
    /// Enrols a host with this policy for the set `db`.
    pub(crate) fn new(set_policy: &str) -> Self {
        Self::with(set_policy, "mount = \"directory\"\nevidence = \"declared\"\n")
    }

    /// With these further keys of `[daemon]`.
    pub(crate) fn with(set_policy: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A directory that others may write is refused, and so is a link.
        let root = dir.path().canonicalize().unwrap();
        let config = root.join("config");
        std::fs::create_dir_all(&config).unwrap();
        std::fs::create_dir_all(root.join("app")).unwrap();
        let daemon = format!(
            "[daemon]\nstate_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\nsupervisor = \"none\"\nreport_ms = 5000\n{more}",
            root.display()
        );
        std::fs::write(config.join("config.toml"), daemon).unwrap();
        let (key, root_key) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let bundle = Bundle {
            installation: InstallationId::random(),
            control_plane: "https://localhost:1".to_owned(),
            ca_pem: String::new(),
            order_key: key.public(),
            root_key: Some(root_key.public()),
            rekeys: 0,
            token: TokenId::random(),
            expires_at: UnixMillis::now().plus_ms(60_000),
            network_secret: EnrolmentSecret::random().unwrap(),
            applier_secret: EnrolmentSecret::random().unwrap(),
        };
        std::fs::write(root.join("bundle.json"), bundle.to_json().unwrap()).unwrap();
        let enrolled =
            Self::binary(&config).args(["enroll", "--bundle"]).arg(root.join("bundle.json")).output();
        let enrolled = enrolled.unwrap();
        assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        let pending = std::fs::read(root.join("state/server").join(PENDING_FILE)).unwrap();
        let pending = PendingEnrolment::from_json(&pending).unwrap();
        let keys =
            pending.registration.verify(bundle.installation, &bundle.token, &bundle.applier_secret).unwrap();
        std::fs::create_dir_all(root.join("run/private")).unwrap();
        let listener = UnixListener::bind(root.join("run/private/applier.sock")).unwrap();
        let host = Self {
            dir,
            installation: bundle.installation,
            key,
            former: Vec::new(),
            root: root_key,
            keys,
            epoch: EPOCH,
            environment: Vec::new(),
            kept: None,
            version_keys: BTreeMap::new(),
            listener,
            applier: None,
            stream: None,
            pushes: 0,
            report: None,
            acknowledging: true,
        };
        host.write_policy(set_policy);
        host
    }

    pub(crate) fn binary(config: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eso-vm-applier"));
        // By a path as people write it by hand.
        command.current_dir(config.parent().unwrap()).arg("--config").arg(config.file_name().unwrap());
        command.env("ESO_LOG", "warn").stdin(Stdio::null());
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    pub(crate) fn app_dir(&self) -> PathBuf {
        self.root().join("app")
    }

    /// `{app}` in the text is the application's directory.
    pub(crate) fn write_policy(&self, set_policy: &str) {
        let conf_d = self.root().join("config/conf.d");
        std::fs::create_dir_all(&conf_d).unwrap();
        let text = set_policy.replace("{app}", &self.app_dir().display().to_string());
        let new = self.root().join("config/new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, conf_d.join("db.toml")).unwrap();
    }

    pub(crate) fn start(&mut self) {
        let root = self.root();
        let mut command = Self::binary(&root.join("config"));
        if let Some(kept) = &self.kept {
            // A shell puts the descriptor where `LISTEN_FDS` says it is, and becomes the applier.
            let script = format!(
                r#"exec 3<&{0}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=opens; exec "$@" "#,
                std::os::fd::AsRawFd::as_raw_fd(kept)
            );
            rustix::io::fcntl_setfd(kept, rustix::io::FdFlags::empty()).unwrap();
            let applier = command;
            command = Command::new("/bin/bash");
            command.args(["-c", &script, "bash"]).arg(applier.get_program()).args(applier.get_args());
            command.current_dir(&root);
            command.env("ESO_LOG", "warn").stdin(Stdio::null());
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.applier = Some(command.spawn().unwrap());
        if let Some(kept) = &self.kept {
            rustix::io::fcntl_setfd(kept, rustix::io::FdFlags::CLOEXEC).unwrap();
        }
    }

    /// Starts the applier and takes its call.
    pub(crate) fn up(&mut self) {
        self.start();
        self.accept();
    }

    pub(crate) fn accept(&mut self) {
        assert!(self.try_accept(), "the applier ended before it called");
    }

    /// False when the applier ended instead of calling.
    pub(crate) fn try_accept(&mut self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if self.has_ended() {
                return false;
            }
            assert!(Instant::now() < deadline, "the applier does not call");
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let hello = ToApplier::Hello { version: LOCAL_VERSION, means: Vec::new() };
        if stream.write_all(&hello.to_bytes().unwrap()).is_err() {
            return false;
        }
        match read(&mut stream) {
            Some(FromApplier::Hello { host, .. }) => assert_eq!(host, Some(self.keys.host())),
            Some(other) => panic!("{other:?}"),
            None => return false,
        }
        self.stream = Some(stream);
        true
    }

    /// The file that the applier keeps its state in.
    pub(crate) fn journal(&self) -> PathBuf {
        self.root().join("state/applier/journal")
    }

    /// The newest record of the host and of each set, by the word that it begins with.
    pub(crate) fn records(&self) -> BTreeMap<String, serde_json::Value> {
        let journal = std::fs::read(self.journal()).unwrap();
        let mut at = journal.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let mut records = BTreeMap::new();
        while let Some((length, _)) = journal[at..].split_first_chunk::<4>() {
            let end = at + 12 + usize::try_from(u32::from_be_bytes(*length)).unwrap();
            let record: serde_json::Value = serde_json::from_slice(&journal[at + 12..end]).unwrap();
            records.insert(record.as_object().unwrap().keys().next().unwrap().clone(), record);
            at = end;
        }
        records
    }

    /// The bytes of the journal with one more record.
    pub(crate) fn journal_with(&self, record: &serde_json::Value) -> Vec<u8> {
        let payload = serde_json::to_vec(record).unwrap();
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &payload);
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&std::fs::read(self.journal()).unwrap(), length.as_slice(), &sum.as_ref()[..8], &payload].concat()
    }

    /// As if the machine had been booted lately, and of another set it could not be looked at yet what lies there.
    pub(crate) fn leave_another_set_behind(&self) {
        let mut record = self.records()["set"].clone();
        let [name, set] = record["set"].as_array_mut().unwrap().as_mut_slice() else { panic!("{record}") };
        *name = "other".into();
        set["machine"]["boot"] = "of-the-boot-before".into();
        set["evidence"]["boot"] = "of-the-boot-before".into();
        std::fs::write(self.journal(), self.journal_with(&record)).unwrap();
        std::fs::write(self.root().join("run/sets/other"), "in the way").unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.applier.as_ref().unwrap().id()
    }

    /// How often its threads have gone to sleep so far.
    pub(crate) fn sleeps(&self) -> u64 {
        let pid = self.applier.as_ref().unwrap().id();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let sleeps = |status: String| {
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        threads
            .map(|thread| sleeps(std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap()))
            .sum()
    }

    /// It waits, and does not turn in circles.
    #[track_caller]
    pub(crate) fn sleeps_through_a_second(&self) {
        let before = self.sleeps();
        for_a_while(Duration::from_secs(1), || {});
        let sleeps = self.sleeps() - before;
        assert!(sleeps < 200, "woken {sleeps} times within a second");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.applier.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// As a crash does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.applier.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.stream = None;
    }

    /// SIGTERM, as whoever supervises us ends us; waits for the end.
    pub(crate) fn end_in_good_order(&mut self) {
        let child = self.applier.as_mut().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        self.kill();
    }

    /// As a boot does: what it takes, and another name for it.
    #[cfg(feature = "failpoints")]
    pub(crate) fn boot(&mut self) {
        self.kill();
        let sets = self.root().join("run/sets");
        let _ = rustix::mount::unmount(sets.join("db"), rustix::mount::UnmountFlags::DETACH);
        std::fs::remove_dir_all(sets).unwrap();
        let _ = std::fs::remove_file(self.root().join("run/taking"));
        self.environment.retain(|(name, _)| name != "ESO_BOOT_ID");
        self.environment.push(("ESO_BOOT_ID".to_owned(), InstallationId::random().to_string()));
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        self.up();
    }

    #[expect(clippy::unused_self, reason = "reads like the other questions to a host")]
    pub(crate) fn set(&self) -> SetName {
        SetName::new("db").unwrap()
    }

    pub(crate) fn payload(&self, generation: u32, kind: OrderKind) -> OrderPayload {
        self.payload_with(generation, kind, "", BTreeSet::new())
    }

    /// The content of a stage is told apart by `other`.
    pub(crate) fn payload_with(
        &self,
        generation: u32,
        kind: OrderKind,
        other: &str,
        dead: BTreeSet<Version>,
    ) -> OrderPayload {
        let generation = Generation::new(self.epoch.counter, generation);
        let order = Order { epoch: self.epoch, generation, kind: kind.clone(), dead };
        let now = UnixMillis::now();
        let mut payload = OrderPayload {
            installation: self.installation,
            epoch: self.epoch,
            host: self.keys.host(),
            sent_at: now,
            expires_at: now.plus_ms(60_000),
            body: Body::Set(SetOrder { set: self.set(), order, stage: None }),
        };
        if let OrderKind::Stage { version, .. } = kind {
            let staged = self.files(version, other);
            let stage = staged.seal(&payload.seal_context().unwrap(), &self.keys.sealing_key).unwrap();
            if let Body::Set(order) = &mut payload.body {
                order.stage = Some(stage);
            }
        }
        payload
    }

    pub(crate) fn files(&self, version: Version, other: &str) -> StagedSet {
        let key =
            self.version_keys.get(&version).copied().unwrap_or([u8::try_from(version.number).unwrap(); 32]);
        let content = secret(version.number) + other;
        let files = [("password", content), ("user", format!("orders_v{}", version.number))];
        let files = files.map(|(name, text)| (FileName::new(name).unwrap(), Value::new(text.into_bytes())));
        StagedSet::new(VersionKey::from_bytes(key), files.into(), None).unwrap()
    }

    pub(crate) fn sign(&self, payload: &OrderPayload) -> Frame {
        payload.sign(&self.key).unwrap()
    }

    /// Pushes frames and takes the answer; none when the applier died on the way.
    pub(crate) fn try_push(&mut self, frames: Vec<Frame>) -> Option<Report> {
        self.pushes += 1;
        let push = self.pushes;
        let message = ToApplier::Orders { push, frames }.to_bytes().unwrap();
        self.stream.as_mut()?.write_all(&message).ok()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "a push is not answered: {:#?}", self.report);
            match self.read()? {
                FromApplier::Answer { push: answered, report } if answered == push => {
                    return Some(self.take(&report));
                }
                FromApplier::Report { report } => {
                    self.take(&report);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn read(&mut self) -> Option<FromApplier> {
        read(self.stream.as_mut()?)
    }

    /// Verifies a report and acknowledges it.
    fn take(&mut self, frame: &Frame) -> Report {
        let own: Vec<_> = self.former.iter().copied().chain([self.key.public()]).collect();
        let verified = report::verify(frame, self.installation, &self.keys.report_key, &own).unwrap();
        let report = verified.report().clone();
        if self.acknowledging {
            let ack = self.ack(&report, frame, BTreeMap::new());
            let message = ToApplier::Acknowledged { ack }.to_bytes().unwrap();
            // It may have died meanwhile.
            let _ = self.stream.as_mut().map(|stream| stream.write_all(&message));
        }
        self.report = Some(report.clone());
        report
    }

    pub(crate) fn ack(
        &self,
        report: &Report,
        frame: &Frame,
        dead: BTreeMap<SetName, BTreeSet<Version>>,
    ) -> Frame {
        let ack = Ack {
            installation: self.installation,
            epoch: self.epoch,
            host: self.keys.host(),
            sequence: report.sequence,
            report: frame.digest(),
            acknowledged_at: UnixMillis::now(),
            dead,
        };
        ack.sign(&self.key).unwrap()
    }

    pub(crate) fn push(&mut self, frames: Vec<Frame>) -> Report {
        self.try_push(frames).expect("the applier answers")
    }

    /// Sends one order; the code of its refusal, if it is refused.
    pub(crate) fn try_order(&mut self, generation: u32, kind: OrderKind) -> Result<(), String> {
        let frame = self.sign(&self.payload(generation, kind));
        self.try_frame(frame)
    }

    pub(crate) fn try_frame(&mut self, frame: Frame) -> Result<(), String> {
        let digest = frame.digest();
        let report = self.push(vec![frame]);
        assert_eq!(report.receipts.len(), 1);
        assert_eq!(report.receipts[0].frame, digest);
        match &report.receipts[0].outcome {
            Outcome::Accepted { .. } => Ok(()),
            Outcome::Refused { code, .. } => Err(code.clone()),
        }
    }

    #[track_caller]
    pub(crate) fn order(&mut self, generation: u32, kind: OrderKind) -> SetReport {
        let word = kind.word();
        self.try_order(generation, kind).unwrap_or_else(|code| panic!("{word} was refused as {code}"));
        self.db()
    }

    pub(crate) fn ask(&mut self, question: u64) -> Report {
        let now = UnixMillis::now();
        let payload = OrderPayload {
            installation: self.installation,
            epoch: self.epoch,
            host: self.keys.host(),
            sent_at: now,
            expires_at: now.plus_ms(60_000),
            body: Body::Ask(Ask { questions: [(self.set(), question)].into() }),
        };
        let frame = self.sign(&payload);
        self.push(vec![frame])
    }

    /// What the newest report says of the set.
    pub(crate) fn db(&self) -> SetReport {
        self.report.as_ref().and_then(|report| report.sets.get(&self.set())).cloned().unwrap_or_default()
    }

    /// Reads reports until one is as awaited.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, is: impl Fn(&SetReport) -> bool) -> SetReport {
        let deadline = Instant::now() + PATIENCE;
        while !is(&self.db()) {
            assert!(Instant::now() < deadline, "{what} did not come: {:#?}", self.report);
            match self.read() {
                Some(FromApplier::Report { report } | FromApplier::Answer { report, .. }) => {
                    self.take(&report);
                }
                Some(other) => panic!("{other:?}"),
                None => panic!("the applier is gone while {what} is awaited"),
            }
        }
        self.db()
    }

    /// Reads reports until one is as awaited; false when the applier is gone before.
    #[cfg(feature = "failpoints")]
    pub(crate) fn until_or_gone(&mut self, is: impl Fn(&SetReport) -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.report.is_none() || !is(&self.db()) {
            assert!(Instant::now() < deadline, "neither came: {:#?}", self.report);
            match self.read() {
                Some(FromApplier::Report { report } | FromApplier::Answer { report, .. }) => {
                    self.take(&report);
                }
                Some(other) => panic!("{other:?}"),
                None => return false,
            }
        }
        true
    }

    /// Reads reports until one is as awaited.
    #[track_caller]
    pub(crate) fn until_report(&mut self, what: &str, is: impl Fn(&Report) -> bool) -> Report {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(report) = self.report.clone().filter(&is) {
                return report;
            }
            assert!(Instant::now() < deadline, "{what} did not come: {:#?}", self.report);
            match self.read() {
                Some(FromApplier::Report { report } | FromApplier::Answer { report, .. }) => {
                    self.take(&report);
                }
                Some(other) => panic!("{other:?}"),
                None => panic!("the applier is gone while {what} is awaited"),
            }
        }
    }

    /// Stages, activates and has the set adopted.
    pub(crate) fn roll_out(&mut self, generation: u32, number: u32) -> SetReport {
        self.order(generation, stage(number));
        self.order(generation, activate(number));
        self.order(generation, OrderKind::Adopt { version: v(number) });
        self.until("adopted", |report| report.adopted == Some(v(number)))
    }

    /// What readers find.
    pub(crate) fn current(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.root().join("run/sets/db/..data").join(file)).ok()
    }

    /// Every name below the directories of sets and places, with what it holds.
    pub(crate) fn disk(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.root().join("run/sets"), self.app_dir()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                let kind = std::fs::symlink_metadata(&path).unwrap();
                if kind.is_dir() {
                    open.push(path);
                } else if kind.is_symlink() {
                    found.insert(path.clone(), std::fs::read_link(&path).unwrap().display().to_string());
                } else {
                    found.insert(path.clone(), std::fs::read_to_string(&path).unwrap_or_default());
                }
            }
        }
        found
    }
}

pub(crate) fn read(stream: &mut UnixStream) -> Option<FromApplier> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).ok()?;
    let mut json = vec![0; local::length(header).unwrap()];
    stream.read_exact(&mut json).ok()?;
    Some(FromApplier::from_json(&json).unwrap())
}

/// A value that is found by nothing but itself.
pub(crate) fn secret(number: u32) -> String {
    format!("secret-of-version-{number}-0123456789")
}

pub(crate) fn stage(number: u32) -> OrderKind {
    OrderKind::Stage { version: v(number), effect: EffectId(u128::from(number)) }
}

pub(crate) fn activate(number: u32) -> OrderKind {
    OrderKind::Activate { version: v(number), answers: None }
}

pub(crate) fn arm(number: u32, in_ms: u64) -> OrderKind {
    OrderKind::Arm { version: v(number), in_ms: Millis(in_ms), answers: None }
}

pub(crate) fn seal(number: u32) -> OrderKind {
    OrderKind::Seal {
        version: v(number),
        cleared: BTreeSet::new(),
        cleared_gaps: BTreeSet::new(),
        withdraw: false,
    }
}
