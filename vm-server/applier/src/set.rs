//! One set on this host: the shell around its pure machine.
//!
//! An event goes in, the new state is journalled, the effects are carried out, their outcomes go in as events, until
//! nothing is left to do. Only a flip that was armed is carried out before its state is journalled: the link is the
//! truth, and nothing of it is reported before the journal has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holders::ProcessId;
use host_policy::{Adopt, SetPolicy};
use lifecycle::host::{self, Answer, By, HostEffect, HostEvent, HostInput, Rules, SetState};
use lifecycle::{ConsumerName, Evidence, Flipped, Millis, SetName, Version};
use protocol::UnixMillis;
use protocol::seal::StagedSet;
use sets::{SetDir, SetError, SetFile};
use units::LifeId;
use zeroize::Zeroizing;

use crate::consumers::{Wanted, life_of};
use crate::journal::JournalError;
use crate::record::SetRecord;
use crate::starting::Before;
use crate::tools::Tools;
use crate::witness::Pins;

/// How long PID 1 may take over a question. Most are answered in a moment.
pub(crate) const ASK_MAX: Duration = Duration::from_secs(5);
/// Why nothing is unlinked.
const UNKEPT: &str = "the journal does not have yet what is current";

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
    /// What lies here was not looked at yet in this life of ours, or the machine could not be told of it.
    pub(crate) is_unstarted: bool,
    /// Whether the record differs from what the journal has: writing it failed, or is put off for a moment.
    pub(crate) unkept: bool,
    /// Whether an agreed instant has come and is being met.
    at_instant: bool,
    /// When files of versions were last unlinked: who opened them until then is seen by a look that began later.
    pub(crate) unlinked: BTreeMap<Version, Millis>,
    /// When a start that did not work is tried again, and the pause before that.
    pub(crate) start_again: Option<(Instant, Duration)>,
    /// When the places were last looked at.
    pub(crate) places_looked: Millis,
    /// When a sealed copy could first not be read.
    pub(crate) unreadable: Option<Instant>,
    /// What was before this start, as its first try found it.
    pub(crate) before: Option<Before>,
    /// Its evidence goes on from where an earlier life left it.
    pub(crate) is_looked_at: bool,
    /// Which places may hold which versions, by the journal.
    pub(crate) kept_places: BTreeMap<PathBuf, BTreeSet<Version>>,
}

impl Set {
    pub(crate) fn new(name: SetName, record: SetRecord) -> Self {
        Self {
            name,
            kept: record.machine.clone(),
            deferred: Vec::new(),
            is_unstarted: true,
            unlinked: BTreeMap::new(),
            start_again: None,
            places_looked: Millis(0),
            unreadable: None,
            before: None,
            is_looked_at: false,
            kept_places: record.places.clone(),
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
            let waits = self.start_due().is_some_and(|due| due > Instant::now());
            match event {
                HostEvent::Recheck if waits => return Ok(None),
                // A try may take long; only an order is worth one before its time.
                HostEvent::Order { .. } => {}
                _ if waits => return Err(JournalError::Unready(self.name.clone())),
                _ => {}
            }
            self.start(tools)?;
            if self.is_unstarted {
                return Err(JournalError::Unready(self.name.clone()));
            }
            if matches!(event, HostEvent::Recheck) {
                // What was looked at was not this set yet.
                tools.recheck = true;
                return Ok(None);
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
        if self.is_looked_at && self.places_due {
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
            // Comes again with the next look.
            HostEvent::Recheck => {}
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
                self.kept_places.clone_from(&self.record.places);
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
                self.unlinked.remove(version);
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
                let sealed = self.seal(tools, version, &cleared, &cleared_gaps, withdraw);
                sealed.unwrap_or_else(|reason| vec![HostEvent::NotGone { version, reason }])
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
            self.unlinked.insert(version, crate::clock::boot());
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
        if self.is_unstarted {
            return self.start(tools);
        }
        let rules = self.rules(tools);
        self.give(tools, HostEvent::Policy(rules))?;
        Ok(())
    }

    pub(crate) fn rules(&self, tools: &Tools) -> Option<Rules> {
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
    pub(crate) fn is_behind(&self) -> bool {
        let starts = self.start_due().is_some_and(|due| due <= Instant::now());
        self.unkept || starts || !self.deferred.is_empty()
    }

    /// When its start is to be tried again.
    pub(crate) fn start_due(&self) -> Option<Instant> {
        self.start_again.filter(|_| self.is_unstarted).map(|(at, _)| at)
    }

    /// Whether consumers have to be looked at: somebody whom we could see could hold a version that is not the current
    /// one, or its seal waits for something, or a reader is about to start.
    pub(crate) fn has_to_look(&self) -> bool {
        let evidence = &self.record.evidence;
        if evidence.awaits_a_start() || self.machine().has_open_seals() {
            return true;
        }
        let old = self.machine().left_behind();
        let is_used = || self.policy.as_ref().is_none_or(|policy| !policy.consumers.is_empty());
        let could_see = || evidence.kind() == Evidence::Kernel || is_used();
        let is_held = || old.iter().any(|version| !evidence.is_free(*version));
        !old.is_empty() && (could_see() || is_held())
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
