//! One set on this host: the shell around its pure machine.
//!
//! An event goes in, the new state is journalled, the effects are carried out, their outcomes go in as events, until
//! nothing is left to do. Only a flip that was armed is carried out before its state is journalled: the link is the
//! truth, and nothing of it is reported before the journal has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holders::ProcessId;
use host_policy::{Access, Adopt, SetPolicy};
use lifecycle::host::{self, Answer, By, HostEffect, HostEvent, HostInput, Rules, SetState};
use lifecycle::{BootId, ConsumerName, Evidence, Flipped, Millis, SetName, Version};
use protocol::UnixMillis;
use protocol::seal::StagedSet;
use sets::{SetDir, SetError, SetFile, mount};
use units::{LifeId, UnitError};
use zeroize::Zeroizing;

use crate::consumers::{Wanted, life_of};
use crate::copies::CopyError;
use crate::journal::JournalError;
use crate::record::{KeptAccess, SetRecord};
use crate::tools::Tools;
use crate::witness::Pins;

/// How long PID 1 may take over a question. Most are answered in a moment.
pub(crate) const ASK_MAX: Duration = Duration::from_secs(5);
/// How long it may take over a mount.
const MOUNT_MAX: Duration = Duration::from_secs(30);
/// Why nothing is unlinked.
const UNKEPT: &str = "the journal does not have yet what is current";
/// The end of a validation command whose own limit did not end it.
const VALIDATE_MAX: Duration = Duration::from_millis(host_policy::defaults::SPAN_MS_MAX);

/// One set on this host.
pub(crate) struct Set {
    pub(crate) name: SetName,
    pub(crate) record: SetRecord,
    pub(crate) policy: Option<SetPolicy>,
    pub(crate) dir: Option<SetDir>,
    pub(crate) pins: Pins,
    /// The files of a stage order that is being carried out.
    pub(crate) incoming: Option<(Version, StagedSet)>,
    /// The values of versions that are being sealed, for the sweep.
    pub(crate) sought: BTreeMap<Version, StagedSet>,
    /// Whether the places have to be looked at.
    pub(crate) places_due: bool,
    /// The version that the places were last made to show.
    pub(crate) shown_in_places: Option<Version>,
    /// What the journal has of the machine: nothing else is said.
    pub(crate) kept: SetState,
    /// Events that could not be journalled, and so have not happened yet.
    deferred: Vec<HostEvent>,
    /// What lies here could not be looked at yet since our start, or the machine could not be told of it.
    pub(crate) is_unstarted: bool,
    /// Whether the record differs from what the journal has: writing it failed, or is put off for a moment.
    pub(crate) unkept: bool,
    /// Whether an agreed instant has come and is being met.
    at_instant: bool,
    /// The number of the last look before files were unlinked: who opened them until then is seen by the next.
    pub(crate) unlinked_in: Option<u64>,
}

impl Set {
    pub(crate) fn new(name: SetName, record: SetRecord) -> Self {
        Self {
            name,
            kept: record.machine.clone(),
            deferred: Vec::new(),
            is_unstarted: false,
            unlinked_in: None,
            record,
            policy: None,
            dir: None,
            pins: Pins::default(),
            incoming: None,
            sought: BTreeMap::new(),
            places_due: false,
            shown_in_places: None,
            unkept: false,
            at_instant: false,
        }
    }

    /// One that the journal does not know.
    pub(crate) fn fresh(name: SetName, tools: &Tools) -> Self {
        let evidence = holders::Evidence::new(
            tools.witness.boot_id.clone(),
            tools.witness.kind(),
            tools.witness.why(),
            crate::clock::boot(),
        );
        Self::new(name, SetRecord { evidence, ..SetRecord::default() })
    }

    /// Whether nothing was ever said of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.record.machine.is_untouched()
    }

    pub(crate) const fn machine(&self) -> &SetState {
        &self.record.machine
    }

    /// What notices of a version are about.
    pub(crate) fn about(&self, version: Version) -> String {
        format!("{}@{version}", self.name)
    }

    /// Takes one event in and carries out everything that follows. The answer is that to an order or question.
    pub(crate) fn give(
        &mut self,
        tools: &mut Tools,
        event: HostEvent,
    ) -> Result<Option<Answer>, JournalError> {
        if self.is_unstarted && !matches!(event, HostEvent::Started { .. }) {
            self.start(tools)?;
            if self.is_unstarted {
                return Err(JournalError::Unready(self.name.clone()));
            }
        }
        if !matches!(event, HostEvent::Order { .. } | HostEvent::Asked { .. } | HostEvent::Tick) {
            let mut deferred = std::mem::take(&mut self.deferred).into_iter();
            while let Some(earlier) = deferred.next() {
                if let Err(error) = self.give_one(tools, earlier) {
                    // What cannot be kept was put back, and what comes after it waits with it.
                    self.deferred.extend(deferred);
                    if !matches!(event, HostEvent::Recheck | HostEvent::Started { .. }) {
                        self.deferred.push(event);
                    }
                    return Err(error);
                }
            }
        }
        let at_instant = matches!(event, HostEvent::Tick);
        let answer = self.give_one(tools, event);
        // Other sets may have the same instant: theirs are met first.
        if !at_instant {
            self.show_in_places(tools);
        }
        self.await_lives(tools);
        answer
    }

    /// Has the places show what is current, if they have to be looked at.
    pub(crate) fn show_in_places(&mut self, tools: &mut Tools) {
        if !self.is_unstarted && self.places_due {
            self.put_places_right(tools);
        }
    }

    fn give_one(&mut self, tools: &mut Tools, first: HostEvent) -> Result<Option<Answer>, JournalError> {
        let mut answer = None;
        // What comes of an order is said in the answer to its push, and is kept before: see `set_report`. What comes of an
        // agreed instant is kept once every set has met it: see `Applier::tick`. A look at a consumer changes nothing, and
        // before what comes of it does, all is kept.
        let kept_later = matches!(first, HostEvent::Order { .. } | HostEvent::Tick);
        // A seal goes by who has what right now: it follows a look, as `Recheck` does, and where it is not begun by that it
        // asks for one.
        let looked = matches!(first, HostEvent::Recheck);
        // Whoever is told a moment later to flip at once flips for the instant all the same.
        self.at_instant = self.machine().next_due().is_some_and(|due| due <= crate::clock::boot());
        let mut effects = self.step_first(tools, first)?;
        let mut events = VecDeque::new();
        loop {
            let mut outcomes = Vec::new();
            for effect in effects {
                match effect {
                    HostEffect::Answer(said) => answer = Some(said),
                    HostEffect::Seal { .. } if !looked => tools.recheck = true,
                    effect => outcomes.extend(self.carry_out(tools, effect)),
                }
            }
            for outcome in outcomes.into_iter().rev() {
                events.push_front(outcome);
            }
            let Some(outcome) = events.pop_front() else { break };
            let (state, next) = self.step(&outcome);
            if state != self.record.machine {
                self.record.machine = state;
                tools.changed = true;
                // What has come about stands, whether it can be journalled now or later. Before something else is begun
                // it is now.
                let waits =
                    |effect: &HostEffect| matches!(effect, HostEffect::Look { .. } | HostEffect::Seal { .. });
                if kept_later && next.iter().all(waits) && events.is_empty() {
                    self.unkept = true;
                } else {
                    let _ = self.keep(tools);
                }
            }
            effects = next;
        }
        if self.unkept && !kept_later {
            let _ = self.keep(tools);
        }
        Ok(answer)
    }

    fn step(&mut self, event: &HostEvent) -> (SetState, Vec<HostEffect>) {
        self.foresee(event);
        let input = HostInput { boot: crate::clock::boot() };
        host::step(self.record.machine.clone(), input, event.clone())
    }

    /// Takes an event from outside in. What cannot be journalled has not happened: an order is refused, anything else
    /// comes again. Only the flip of an armed instant goes first, its record with its outcome.
    fn step_first(&mut self, tools: &mut Tools, event: HostEvent) -> Result<Vec<HostEffect>, JournalError> {
        let (state, effects) = self.step(&event);
        if state == self.record.machine {
            return Ok(effects);
        }
        let was_unkept = self.unkept;
        let before = std::mem::replace(&mut self.record.machine, state);
        tools.changed = true;
        if matches!(event, HostEvent::Tick) {
            self.unkept = true;
            return Ok(effects);
        }
        let Err(error) = self.keep(tools) else { return Ok(effects) };
        self.record.machine = before;
        match event {
            HostEvent::Order { .. } | HostEvent::Asked { .. } => self.unkept = was_unkept,
            HostEvent::Started { .. } => self.is_unstarted = true,
            event => self.deferred.push(event),
        }
        Err(error)
    }

    /// Makes the record durable, or remembers that it is not.
    pub(crate) fn keep(&mut self, tools: &mut Tools) -> Result<(), JournalError> {
        let kept = tools.keep(&self.name, &self.record);
        self.unkept = kept.is_err();
        match &kept {
            Ok(()) => {
                self.kept.clone_from(&self.record.machine);
                tools.unnotice("journal", self.name.as_str());
            }
            Err(error) => tools.notice("journal", self.name.as_str(), error.to_string()),
        }
        kept
    }

    /// What an outcome means for the evidence, in the same record as what it means for the machine.
    fn foresee(&mut self, event: &HostEvent) {
        let now = crate::clock::boot();
        match event {
            HostEvent::Flipped { version } => self.record.evidence.current(Some(*version), now),
            HostEvent::TookUp { turn, consumer, .. } => {
                self.record.evidence.adopted(consumer.clone(), turn.version, now);
            }
            HostEvent::Gone { version } => {
                if self.record.machine.current() == Some(*version) {
                    self.record.evidence.current(None, now);
                }
                self.record.evidence.forget(*version);
                self.record.digests.remove(version);
                self.sought.remove(version);
                self.pins.forget(*version);
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, tools: &mut Tools, effect: HostEffect) -> Vec<HostEvent> {
        match effect {
            HostEffect::Write { version } => vec![self.write(tools, version)],
            HostEffect::Flip { version } => vec![self.flip(tools, version)],
            // What a loss of power would bring the host back to is not taken away.
            HostEffect::Unlink { version }
                if self.unkept && self.kept.current() == Some(version) && self.keep(tools).is_err() =>
            {
                tools.notice("unlink", self.about(version), UNKEPT);
                vec![]
            }
            HostEffect::Seal { version, .. } if self.unkept && self.keep(tools).is_err() => {
                vec![HostEvent::NotGone { version, reason: UNKEPT.to_owned() }]
            }
            HostEffect::Unlink { version } => {
                self.unlink(tools, version).then_some(HostEvent::Unlinked { version }).into_iter().collect()
            }
            HostEffect::Seal { version, cleared, cleared_gaps, withdraw } => {
                self.seal(tools, version, &cleared, &cleared_gaps, withdraw)
            }
            HostEffect::Look { ref consumer, .. }
            | HostEffect::Adopt { ref consumer, .. }
            | HostEffect::Settle { ref consumer, .. } => {
                self.ask_consumer(tools, &consumer.clone(), effect);
                vec![]
            }
            HostEffect::Answer(_) => vec![],
        }
    }

    fn ask_consumer(&self, tools: &mut Tools, consumer: &ConsumerName, effect: HostEffect) {
        let policy = self.policy.as_ref().and_then(|policy| policy.consumer(consumer));
        let Some(consumer) = policy.cloned() else { return };
        let shows_itself = consumer.trust_reported || self.record.evidence.kind() == Evidence::Kernel;
        let in_its_window = self.machine().awaits_window(&consumer.name);
        tools.tasks.begin(&self.name, Wanted { consumer, shows_itself, in_its_window, effect });
    }

    /// What came of looking at a consumer, too early: the permit came while it was looked at, and its window is closed.
    /// It is looked at again once that is open.
    pub(crate) fn is_too_early(&self, tools: &mut Tools, outcome: &HostEvent) -> bool {
        let HostEvent::Looked { turn, consumer, life: Some(_), .. } = outcome else { return false };
        let policy = self.policy.as_ref().and_then(|policy| policy.consumer(consumer));
        let window = policy.and_then(|consumer| consumer.window);
        let closed = window.is_some_and(|window| !window.is_open(UnixMillis::now().0 / 1000));
        let early = closed && self.machine().turn() == Some(*turn) && self.machine().awaits_window(consumer);
        if early {
            let look = HostEffect::Look { turn: *turn, consumer: consumer.clone() };
            self.ask_consumer(tools, consumer, look);
        }
        early
    }

    /// A consumer that was waited for lives another life, and everybody was looked at since. systemd shows a unit from
    /// its very start; a process shows itself when it writes its pid file, and may have read its files long before.
    pub(crate) fn appeared(
        &mut self,
        tools: &mut Tools,
        consumer: ConsumerName,
        life: &LifeId,
    ) -> Result<Option<Answer>, JournalError> {
        let on_another = match (life, self.machine().current()) {
            (LifeId::Process { pid, start }, Some(current)) => {
                let rules = tools.witness.rules(self.policy.as_ref(), &tools.daemon.not_a_consumer);
                let id = ProcessId { pid: *pid, start: *start };
                self.record.evidence.is_on_another(id, current, &tools.view.scene(&rules))
            }
            (LifeId::Process { .. }, None) | (LifeId::Invocation(_), _) => false,
        };
        self.give(tools, HostEvent::Appeared { consumer, life: life_of(life), on_another })
    }

    fn write(&mut self, tools: &mut Tools, version: Version) -> HostEvent {
        let Some((_, files)) = self.incoming.take().filter(|(incoming, _)| *incoming == version) else {
            let message = "the files did not come with the order".to_owned();
            return HostEvent::WriteFailed { version, code: "no_files".to_owned(), message };
        };
        match self.try_write(tools, version, &files) {
            Ok(()) => {
                self.record.digests.insert(version, files.digests());
                if let Some(policy) = &self.policy {
                    let kept = files.files().keys().map(|name| {
                        (name.as_str().to_owned(), KeptAccess::from(policy.access_of(name.as_str())))
                    });
                    self.record.access.extend(kept);
                }
                HostEvent::Written { version }
            }
            Err((code, message)) => HostEvent::WriteFailed { version, code, message },
        }
    }

    fn try_write(
        &mut self,
        tools: &mut Tools,
        version: Version,
        files: &StagedSet,
    ) -> Result<(), (String, String)> {
        let set_failed = |error: SetError| (error.code().to_owned(), error.to_string());
        let policy = self.policy.clone().ok_or(("not_in_policy".to_owned(), "no such set".to_owned()))?;
        let missing =
            policy.places.iter().find(|place| !files.files().keys().any(|name| name.as_str() == place.file));
        if let Some(place) = missing {
            let message =
                format!("the set has no file {:?}, which {} asks for", place.file, place.path.display());
            return Err(("no_such_file".to_owned(), message));
        }
        check_units(tools, &policy)?;
        self.open_dir(tools).map_err(set_failed)?;
        let copied = tools.copies.write(&self.name, version, files);
        copied.map_err(|error: CopyError| ("copy_failed".to_owned(), error.to_string()))?;
        let Some(dir) = &self.dir else { return Err(("write_failed".to_owned(), "no directory".to_owned())) };
        let evidence = &mut self.record.evidence;
        let mut mark = tools.witness.marker(evidence, &mut self.pins, version, &policy);
        dir.stage(version, &set_files(files), &policy, &mut mark).map_err(set_failed)?;
        drop(mark);
        self.validate(tools, version, &policy)
    }

    /// Asks the policy's command whether the version is any good, before it may become current.
    fn validate(
        &self,
        tools: &mut Tools,
        version: Version,
        policy: &SetPolicy,
    ) -> Result<(), (String, String)> {
        let (Some(command), Some(dir)) = (&policy.validate, &self.dir) else { return Ok(()) };
        let code = "not_valid".to_owned();
        dir.show(version).map_err(|error| (code.clone(), error.to_string()))?;
        let path = dir.path().join(version_dir(version));
        let (supervisor, command) = (Arc::clone(tools.tasks.supervisor()), command.clone());
        let validated = tools.wait(VALIDATE_MAX, async move { supervisor.validate(&command, &path).await });
        match validated {
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(why))) => Err((code, format!("the validation command said no: {why}"))),
            Some(Err(error)) => Err((code, error.to_string())),
            None => Err((code, "the validation command did not end".to_owned())),
        }
    }

    fn flip(&mut self, tools: &mut Tools, version: Version) -> HostEvent {
        let flipped = match &self.dir {
            Some(dir) => dir.flip(version),
            None => Err(SetError::Missing(version)),
        };
        match flipped {
            Ok(()) => {
                self.note_flip(version);
                // The set's own directory is watched, so that its files are looked at in a moment.
                self.places_due |= self.policy.as_ref().is_some_and(|policy| !policy.places.is_empty());
                // Who runs now is written down before anybody is restarted.
                tools.recheck |= self.policy.as_ref().is_some_and(|policy| !policy.consumers.is_empty());
                HostEvent::Flipped { version }
            }
            Err(error) => HostEvent::FlipFailed { version, message: error.to_string() },
        }
    }

    fn note_flip(&mut self, version: Version) {
        let armed = self.record.ahead_ms_max.filter(|(armed, _)| self.at_instant && *armed == version);
        self.record.flipped = Some(Flipped {
            version,
            unix_ms: UnixMillis::now().0,
            ahead_ms_max: armed.map(|(_, ahead_ms)| ahead_ms),
        });
    }

    /// An `arm` of this version came: our clock is not further ahead of the sender's than that.
    pub(crate) fn note_arm(&mut self, version: Version, ahead_ms: i64) {
        let known = self.record.ahead_ms_max.filter(|(known, _)| *known == version);
        self.record.ahead_ms_max = Some((version, known.map_or(ahead_ms, |(_, known)| known.min(ahead_ms))));
    }

    /// Unlinks files and copy. Whether that worked; an operator is told if not, and it is tried again.
    pub(crate) fn unlink(&mut self, tools: &mut Tools, version: Version) -> bool {
        let about = self.about(version);
        let unlinked = self.dir.as_ref().map_or(Ok(false), |dir| dir.unlink(version));
        if !matches!(unlinked, Ok(false)) {
            self.unlinked_in = Some(tools.looks);
        }
        if let Err(error) = unlinked {
            tools.notice("unlink", about, error.to_string());
            return false;
        }
        if let Err(error) = tools.copies.unlink(&self.name, version) {
            tools.notice("unlink", about, error.to_string());
            return false;
        }
        tools.unnotice("unlink", &about);
        tools.unnotice("copy", &about);
        true
    }

    /// Opens the set's directory, on a file system of its own where that works.
    pub(crate) fn open_dir(&mut self, tools: &mut Tools) -> Result<(), SetError> {
        if self.dir.is_some() {
            return Ok(());
        }
        let sets_dir = tools.daemon.sets_dir();
        let supervisor = tools.tasks.supervisor().clone();
        let mode = tools.daemon.mount;
        let (at, name) = (sets_dir.clone(), self.name.clone());
        let mounted = async move { mount::prepare(&at, &name, mode, supervisor.systemd()).await };
        let mounted = tools.wait(MOUNT_MAX, mounted).ok_or_else(|| SetError::Io {
            doing: "mount",
            path: sets_dir.join(self.name.as_str()),
            source: std::io::ErrorKind::TimedOut.into(),
        })??;
        tools.mounts.insert(self.name.clone(), mounted);
        let dir = SetDir::open(&sets_dir, &self.name, tools.disk.clone())?;
        if dir.inodes()?.is_some() {
            self.pins.own_device = rustix::fs::stat(dir.path()).ok().map(|stat| stat.st_dev);
        }
        self.dir = Some(dir);
        Ok(())
    }

    /// After a start: finds or makes again what should lie here, and tells the machine.
    pub(crate) fn start(&mut self, tools: &mut Tools) -> Result<(), JournalError> {
        self.is_unstarted = true;
        let mut found = (None, BTreeSet::new());
        if !self.machine().known().is_empty() || self.policy.is_some() {
            match self.find(tools) {
                Ok(all) => found = all,
                // Not knowing is not the same as finding nothing: it is tried again, and nothing is done before.
                Err(error) => {
                    tools.notice("set", self.name.as_str(), error.to_string());
                    return Ok(());
                }
            }
        }
        tools.unnotice("set", self.name.as_str());
        self.is_unstarted = false;
        self.places_due = true;
        let (link, files) = found;
        self.resume_evidence(tools, link, &files);
        let boot = BootId(tools.witness.boot_id.clone());
        self.give(tools, HostEvent::Started { boot, link, files })?;
        self.watch_copies(tools);
        let rules = self.rules(tools);
        self.give(tools, HostEvent::Policy(rules))?;
        Ok(())
    }

    /// Has the readers of all that lies here held, once that is possible again.
    pub(crate) fn watch_again(&mut self, tools: &Tools) {
        let policy = self.policy.clone().unwrap_or_else(|| last_policy(&self.name, &self.record));
        let Some(dir) = &self.dir else { return };
        for version in self.record.machine.present() {
            let mut mark = tools.witness.marker(&mut self.record.evidence, &mut self.pins, version, &policy);
            if let Err(error) = dir.mark_again(version, &mut mark) {
                tracing::warn!(set = %self.name, %error, "failed to watch a version again");
            }
        }
        if let Some(current) = self.machine().current() {
            let evidence = &mut self.record.evidence;
            // Those that are known are marked, and there are no others.
            tools.witness.watch_copies(evidence, &mut self.pins, current, &policy);
        }
    }

    /// A copy outlives a boot, and an applier whose group nobody kept: it may have been read unseen.
    fn watch_copies(&mut self, tools: &mut Tools) {
        let (Some(policy), Some(current)) = (self.policy.clone(), self.machine().current()) else { return };
        let evidence = &mut self.record.evidence;
        let unwatched = tools.witness.watch_copies(evidence, &mut self.pins, current, &policy);
        if evidence.kind() != Evidence::Kernel || unwatched.is_empty() {
            return;
        }
        let rules = tools.witness.rules(self.policy.as_ref(), &tools.daemon.not_a_consumer);
        tools.view.table = tools.witness.proc.table(holders::Detail::Reach);
        let scene = tools.view.scene(&rules);
        self.record.evidence.blind(unwatched, "a copy lay there while nobody watched it", &scene);
        let _ = self.keep(tools);
    }

    /// Watches again what lies here. Where nobody kept our group of opens, there was a time without marks.
    fn resume_evidence(&mut self, tools: &mut Tools, link: Option<Version>, files: &BTreeSet<Version>) {
        let (boot_id, kind) = (tools.witness.boot_id.clone(), tools.witness.kind());
        let rebooted = self.record.evidence.boot() != boot_id;
        let was_kernel = self.record.evidence.kind() == Evidence::Kernel && !rebooted;
        if rebooted {
            self.record.removed.clear();
        }
        self.record.evidence.resume(&boot_id, kind, tools.witness.why(), crate::clock::boot());
        if let (Some(policy), Some(dir)) = (self.policy.clone(), &self.dir) {
            for version in files {
                let mut mark =
                    tools.witness.marker(&mut self.record.evidence, &mut self.pins, *version, &policy);
                if let Err(error) = dir.mark_again(*version, &mut mark) {
                    tracing::warn!(set = %self.name, %error, "failed to watch a version again");
                }
            }
        }
        self.record.evidence.current(link, crate::clock::boot());
        let why = match (tools.witness.kept, tools.witness.interrupted) {
            (true, false) => return,
            (true, true) => "the applier was killed while it took over what the kernel had seen",
            (false, _) => "the applier was restarted and nobody kept its group of opens",
        };
        if was_kernel && kind == Evidence::Kernel {
            let rules = tools.witness.rules(self.policy.as_ref(), &tools.daemon.not_a_consumer);
            tools.view.table = tools.witness.proc.table(holders::Detail::Reach);
            let scene = tools.view.scene(&rules);
            self.record.evidence.blind(files.clone(), why, &scene);
        }
    }

    fn find(&mut self, tools: &mut Tools) -> Result<(Option<Version>, BTreeSet<Version>), SetError> {
        self.open_dir(tools)?;
        let Some(dir) = &self.dir else { return Ok((None, BTreeSet::new())) };
        let mut found = dir.recover()?;
        // A set that policy dropped is still served, as it was.
        let policy = self.policy.clone().unwrap_or_else(|| last_policy(&self.name, &self.record));
        for version in self.record.machine.present() {
            if !found.present.contains(&version) {
                let policy = &policy;
                match tools.copies.read(&self.name, version) {
                    Ok(copy) => {
                        let evidence = &mut self.record.evidence;
                        let mut mark = tools.witness.marker(evidence, &mut self.pins, version, policy);
                        dir.stage(version, &set_files(&copy), policy, &mut mark)?;
                        found.present.insert(version);
                    }
                    Err(error) => {
                        tools.notice("copy", format!("{}@{version}", self.name), error.to_string());
                    }
                }
            }
        }
        if let (None, Some(pointer)) = (found.current, self.record.machine.current())
            && found.present.contains(&pointer)
        {
            dir.flip(pointer)?;
            self.record.evidence.current(Some(pointer), crate::clock::boot());
            found.current = Some(pointer);
        }
        Ok((found.current, found.present))
    }

    /// The policy was read anew.
    pub(crate) fn policy(
        &mut self,
        tools: &mut Tools,
        policy: Option<SetPolicy>,
    ) -> Result<(), JournalError> {
        if self.policy != policy {
            self.policy = policy;
            tools.tasks.follow(&self.name, self.policy.as_ref());
            self.places_due = true;
            tools.changed = true;
        }
        if !self.is_unstarted {
            let rules = self.rules(tools);
            self.give(tools, HostEvent::Policy(rules))?;
        }
        Ok(())
    }

    fn rules(&self, tools: &Tools) -> Option<Rules> {
        let may = |policy: &&SetPolicy| policy.may_deliver(&tools.installation.to_string());
        self.policy.as_ref().filter(may).map(rules_of)
    }

    /// Has the next lives of those watched that begin them by themselves.
    fn await_lives(&self, tools: &mut Tools) {
        let awaited = self.machine().awaited().into_iter().filter_map(|(name, was)| {
            let consumer = self.policy.as_ref()?.consumer(&name)?.clone();
            Some((consumer, was))
        });
        tools.tasks.await_lives(&self.name, awaited.collect());
    }

    /// Meets an agreed instant that has come.
    pub(crate) fn flip_if_due(&mut self, tools: &mut Tools) {
        if self.next_due().is_none_or(|due| due > crate::clock::boot()) {
            return;
        }
        if let Err(error) = self.give(tools, HostEvent::Tick) {
            tracing::error!(set = %self.name, %error, "a flip is not in the journal yet");
        }
        tools.rest();
    }

    /// When an agreed flip is due, once it could be carried out.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        self.machine().next_due().filter(|_| !self.is_unstarted)
    }

    /// Whether something has to be tried again until it works.
    pub(crate) const fn is_behind(&self) -> bool {
        self.unkept || self.is_unstarted || !self.deferred.is_empty()
    }

    /// Whether consumers have to be looked at: somebody whom we could see could hold a version that is not the current
    /// one, or its seal waits for something, or a reader is about to start.
    pub(crate) fn has_to_look(&self) -> bool {
        let evidence = &self.record.evidence;
        let old = self.machine().left_behind();
        if evidence.awaits_a_start() {
            return true;
        }
        let is_used = || self.policy.as_ref().is_none_or(|policy| !policy.consumers.is_empty());
        let could_see = || evidence.kind() == Evidence::Kernel || is_used();
        let waits =
            || self.machine().has_open_seals() || old.iter().any(|version| !evidence.is_free(*version));
        !old.is_empty() && (could_see() || waits())
    }
}

/// A unit that must not be disturbed by us is no consumer that a version could be staged for: the flip could not be
/// followed by its adoption. One that is not installed yet does not run either, which an operator is told.
fn check_units(tools: &mut Tools, policy: &SetPolicy) -> Result<(), (String, String)> {
    for consumer in policy.consumers.iter().filter(|consumer| consumer.unit().is_some()) {
        let (supervisor, asked) = (Arc::clone(tools.tasks.supervisor()), consumer.clone());
        match tools.wait(ASK_MAX, async move { supervisor.check(&asked).await }) {
            Some(Err(error @ (UnitError::Dangerous { .. } | UnitError::NoSystemd(_)))) => {
                return Err((error.code().to_owned(), error.to_string()));
            }
            Some(Err(error @ UnitError::Vanished { .. })) => {
                tools.trouble(&policy.name, &consumer.name, Some((error.code(), error.to_string())));
            }
            // Asked again before anything is done to it.
            Some(Ok(()) | Err(_)) | None => {}
        }
    }
    Ok(())
}

/// What is left of the policy of a set that is no longer in it: owners and modes.
fn last_policy(name: &SetName, record: &SetRecord) -> SetPolicy {
    SetPolicy {
        name: name.clone(),
        controllers: Vec::new(),
        access: Access { owner: None, group: None, mode: host_policy::defaults::MODE },
        access_by_file: record.access.iter().map(|(file, kept)| (file.clone(), kept.into())).collect(),
        places: Vec::new(),
        consumers: Vec::new(),
        not_a_consumer: Vec::new(),
        validate: None,
        refresh_ms: host_policy::defaults::REFRESH_MS,
    }
}

/// What the host machine needs to know of the policy.
fn rules_of(policy: &SetPolicy) -> Rules {
    let by = |consumer: &host_policy::Consumer| match consumer.adopt {
        Adopt::NextStart | Adopt::Manual => By::Itself,
        _ if consumer.window.is_some() => By::Window,
        _ => By::Permit,
    };
    Rules {
        consumers: policy.consumers.iter().map(|consumer| (consumer.name.clone(), by(consumer))).collect(),
    }
}

/// The files as the set's directory takes them.
pub(crate) fn set_files(files: &StagedSet) -> Vec<SetFile> {
    let file = |(name, value): (&protocol::FileName, &protocol::seal::Value)| SetFile {
        name: name.as_str().to_owned(),
        content: Zeroizing::new(value.expose().to_vec()),
    };
    files.files().iter().map(file).collect()
}

/// The name of a version's directory.
pub(crate) fn version_dir(version: Version) -> String {
    format!("v{}.{}", version.epoch, version.number)
}
