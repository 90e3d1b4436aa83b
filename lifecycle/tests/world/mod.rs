//! A small world around the real machines: a backend that accepts and refuses logins, hosts that run the real host
//! machine, applications that log in with what they read, and a control plane that keeps its state in a "store".
//!
//! The judge speaks of the world only: which login was refused, which host lies on a revoked version.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::similar_names,
    reason = "what does not fit ends the test"
)]

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::credential::{
    Blocker, Clause, Credential, Effect, EffectKind, Event, IllegalEvent, Input, Outcome, Phase, Policy,
    Rotate, RotateReason, Selection, step,
};
use lifecycle::host::{
    self, By, Digest, HostEffect, HostEvent, HostInput, Life, RefusalCode, Rules, SetState,
};
use lifecycle::report::{Gap, Holder, PlaceFault};
use lifecycle::{
    BootId, ConsumerName, EffectId, Epoch, Evidence, Flipped, GapId, HolderId, Millis, Order, SetReport,
    TargetId, Version,
};

pub const FIRST: Epoch = Epoch { counter: 1, id: 11 };

pub fn v(number: u32) -> Version {
    Version::new(1, number)
}

pub fn h(number: usize) -> TargetId {
    TargetId::new(format!("h{number}")).unwrap()
}

pub fn app() -> ConsumerName {
    ConsumerName::new("orders.service").unwrap()
}

/// Everything quick, so that what a test waits for is what it is about.
pub fn policy() -> Policy {
    Policy { grace_ms: Millis(0), ..Policy::default() }
}

/// What the protected server knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Roles by the effect that minted them.
    pub roles: BTreeMap<EffectId, Role>,
    /// The next mint times out at the client, and arrives when the test says so.
    pub late_create: bool,
    pub late: Vec<EffectId>,
    /// The life of the store in which each role was minted.
    pub minted_in: BTreeMap<EffectId, Epoch>,
    /// It cannot list what carries our mark.
    pub blind: bool,
    /// It does not say how many sessions there are.
    pub mute: bool,
    /// Mints fail in this way.
    pub mint: Option<Outcome>,
    /// Sessions of somebody who is none of our applications, by role. Whoever ends them sees them again.
    pub thief: BTreeMap<EffectId, u32>,
    /// Honest users on no host of ours, by role.
    pub strangers: BTreeMap<EffectId, u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Alive,
    Revoked,
}

/// One host: the real machine, and what it is told about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Host {
    pub state: SetState,
    pub boot: u64,
    pub boots: u32,
    /// The daemon answers.
    pub up: bool,
    pub link: Option<Version>,
    pub files: BTreeMap<Version, EffectId>,
    /// Versions that the application cannot use.
    pub bad: BTreeSet<Version>,
    /// Versions whose files are not as the host's policy wants them.
    pub unfit: BTreeSet<Version>,
    pub life: Option<u32>,
    pub lives: u32,
    /// What the application read at the start of its life.
    pub loaded: Option<(Version, EffectId)>,
    pub restarts: u32,
    /// Other processes that have a version.
    pub others: BTreeMap<HolderId, (Version, EffectId)>,
    pub gaps: Vec<Gap>,
    pub places: Vec<PlaceFault>,
    pub evidence: Evidence,
    pub sequence: u64,
    pub last: Option<SetReport>,
    pub clock_off: bool,
    /// Every version that readers ever found here.
    pub shown: Vec<Version>,
    pub refusals: Vec<RefusalCode>,
    /// The application needs longer than anybody waits to settle.
    pub slow: bool,
    /// Versions on which the application runs, and is not healthy.
    pub sick: BTreeSet<Version>,
    /// Does its work and ends well, before its settle time is over.
    pub oneshot: bool,
    /// Processes that nothing shows.
    pub hidden: Vec<(Version, EffectId)>,
    /// What it says of its last flip.
    pub says: Option<Flipped>,
    /// The value that came with the newest order.
    pub incoming: Option<EffectId>,
}

impl Host {
    pub fn new() -> Self {
        let mut host =
            Self { up: true, life: Some(0), lives: 1, evidence: Evidence::Declared, ..Self::default() };
        host.give(HostEvent::Started { boot: host.boot_id(), link: None, files: BTreeSet::new() });
        host.give(HostEvent::Policy(Some(rules(By::Permit))));
        host
    }

    fn boot_id(&self) -> BootId {
        BootId(self.boots.to_string())
    }

    pub fn input(&self) -> HostInput {
        HostInput { boot: Millis(self.boot) }
    }

    pub fn give(&mut self, event: HostEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let (state, effects) = host::step(self.state.clone(), self.input(), event);
            self.state = state;
            let outcomes: Vec<HostEvent> = effects.into_iter().filter_map(|e| self.carry_out(e)).collect();
            events.extend(outcomes.into_iter().rev());
        }
    }

    pub fn carry_out(&mut self, effect: HostEffect) -> Option<HostEvent> {
        match effect {
            HostEffect::Answer(host::Answer::Refused { code, .. }) => {
                self.refusals.push(code);
                None
            }
            HostEffect::Answer(host::Answer::Accepted) => None,
            HostEffect::Write { version } if self.unfit.contains(&version) => {
                Some(HostEvent::WriteFailed { version, code: "no_such_file".into(), message: "no".into() })
            }
            HostEffect::Write { version } => {
                if let Some(value) = self.incoming {
                    self.files.insert(version, value);
                }
                Some(HostEvent::Written { version })
            }
            HostEffect::Flip { version } => {
                self.link = Some(version);
                self.shown.push(version);
                Some(HostEvent::Flipped { version })
            }
            HostEffect::Unlink { version } => {
                self.files.remove(&version);
                Some(HostEvent::Unlinked { version })
            }
            HostEffect::Seal { version, cleared, cleared_gaps, withdraw } => {
                let held = self.holders().iter().any(|h| h.version == version && !cleared.contains(&h.id));
                let open = |versions: &BTreeSet<Version>, id: &GapId| {
                    versions.contains(&version) && !cleared_gaps.contains(id)
                };
                let gap = self.gaps.iter().any(|g| open(&g.versions, &g.id));
                let place = self.places.iter().any(|p| open(&p.versions, &p.id));
                if held || gap || place {
                    return Some(HostEvent::NotGone { version, reason: "held".into() });
                }
                if withdraw && self.link == Some(version) {
                    self.link = None;
                }
                self.files.remove(&version);
                Some(HostEvent::Gone { version })
            }
            HostEffect::Look { turn, consumer } => {
                Some(HostEvent::Looked { turn, consumer, life: self.life(), healthy: self.is_healthy() })
            }
            HostEffect::Adopt { turn, consumer, was, revive } => {
                if was == self.life() && (revive || self.life.is_some()) {
                    self.restart();
                }
                Some(match self.life() {
                    Some(life) => HostEvent::TookUp { turn, consumer, life },
                    None => HostEvent::Unhealthy { turn, consumer, reason: "exits at once".into() },
                })
            }
            HostEffect::Settle { .. } if self.slow => None,
            HostEffect::Settle { turn, consumer, .. } => Some(if self.is_healthy() {
                if self.oneshot {
                    self.stop_app();
                }
                HostEvent::Healthy { turn, consumer }
            } else {
                HostEvent::Unhealthy { turn, consumer, reason: "cannot log in".into() }
            }),
        }
    }

    /// The application starts (again) and reads what readers find. One that cannot use it exits at once.
    pub fn restart(&mut self) {
        self.restarts += 1;
        self.lives += 1;
        let found = self.link.and_then(|version| Some((version, *self.files.get(&version)?)));
        let usable = found.is_none_or(|(version, _)| !self.bad.contains(&version));
        self.life = usable.then_some(self.lives);
        self.loaded = found.filter(|_| usable);
    }

    /// The application starts by itself, and the host notices.
    pub fn start_app(&mut self) {
        self.restart();
        if let Some(life) = self.life() {
            self.give(HostEvent::Appeared { consumer: app(), life, on_another: false });
        }
    }

    pub fn stop_app(&mut self) {
        self.life = None;
        self.loaded = None;
    }

    pub fn life(&self) -> Option<Life> {
        self.life.map(|life| Life(life.to_string()))
    }

    fn is_healthy(&self) -> bool {
        self.life.is_some() && self.loaded.is_none_or(|(version, _)| !self.sick.contains(&version))
    }

    pub fn holders(&self) -> Vec<Holder> {
        let of = |id: HolderId, version, consumer| Holder {
            id,
            version,
            consumer,
            evidence: self.evidence,
            description: "a process".into(),
        };
        let own = self.life.zip(self.loaded).map(|(life, (version, _))| {
            of(HolderId::new(format!("unit:orders.service:{life}")).unwrap(), version, Some(app()))
        });
        let others = self.others.iter().map(|(id, (version, _))| of(id.clone(), *version, None));
        own.into_iter().chain(others).collect()
    }

    /// The snapshot; its number grows only when something changed, so that a model stays finite.
    pub fn report(&mut self) -> SetReport {
        let mut report = SetReport {
            sequence: self.sequence,
            evidence: self.evidence,
            holders: self.holders(),
            gaps: self.gaps.clone(),
            places: self.places.clone(),
            flipped: self.says,
            ..self.state.report()
        };
        if self.last.as_ref() != Some(&report) {
            self.sequence += 1;
            report.sequence = self.sequence;
            self.last = Some(report.clone());
        }
        report
    }

    pub fn order(&mut self, order: &Order, value: Option<EffectId>) {
        self.incoming = value;
        let digest = value.map(|value| Digest(value.to_string()));
        let age = (!self.clock_off).then_some(Millis(0));
        self.give(HostEvent::Order { order: order.clone(), digest, age });
    }

    /// A crash of the daemon, or of the machine.
    pub fn start(&mut self, rebooted: bool) {
        self.up = true;
        if rebooted {
            self.boot = 0;
            self.boots += 1;
            self.link = self.state.current();
        }
        let files = self.state.present();
        self.give(HostEvent::Started { boot: self.boot_id(), link: self.link, files });
        if rebooted && self.life.is_some() {
            self.start_app();
        }
    }
}

pub fn rules(by: By) -> Rules {
    Rules { consumers: BTreeMap::from([(app(), by)]) }
}

/// What is stored: the state, and the values by effect.
#[derive(Debug, Clone)]
pub struct Store {
    pub credential: Credential,
    pub values: BTreeSet<EffectId>,
    pub retired: BTreeSet<TargetId>,
}

pub struct World {
    pub store: Store,
    pub now: u64,
    pub fresh: u128,
    pub backend: Backend,
    pub hosts: BTreeMap<TargetId, Host>,
    pub audit: Vec<String>,
    /// Logins that were refused.
    pub refused: Vec<String>,
    /// Effects carried out, in words.
    pub done: Vec<String>,
    /// Every effect is carried out, and its outcome told, twice.
    pub twice: bool,
    /// An operator said that what this host holds does not count.
    pub written_off: BTreeSet<TargetId>,
    /// The control plane does nothing.
    pub down: bool,
    /// Orders that were sent, for replays.
    pub sent: Vec<(TargetId, Order, Option<EffectId>)>,
    /// Orders of these words are lost.
    pub lost: BTreeSet<&'static str>,
    /// An earlier copy of the store.
    pub backup: Option<Store>,
    /// How often each effect was handed to the caller.
    pub handed_out: BTreeMap<EffectId, u32>,
    delivered: BTreeSet<EffectId>,
}

impl World {
    /// No version yet. h0 is the canary.
    pub fn empty(hosts: usize, policy: Policy) -> Self {
        let mut world = Self {
            store: Store {
                credential: Credential::new(policy, FIRST),
                values: BTreeSet::new(),
                retired: BTreeSet::new(),
            },
            now: 1_000_000,
            fresh: 1 << 64,
            backend: Backend::default(),
            hosts: (0..hosts).map(|n| (h(n), Host::new())).collect(),
            audit: Vec::new(),
            refused: Vec::new(),
            done: Vec::new(),
            twice: false,
            written_off: BTreeSet::new(),
            down: false,
            sent: Vec::new(),
            lost: BTreeSet::new(),
            backup: None,
            handed_out: BTreeMap::new(),
            delivered: BTreeSet::new(),
        };
        world.select();
        world.connect();
        world.give(Event::Started { epoch: FIRST, restored: false });
        world.connect();
        world.settle();
        world
    }

    /// Version 1 is active and adopted everywhere.
    pub fn on_one(hosts: usize, policy: Policy) -> Self {
        Self::empty(hosts, policy).rotated(v(1))
    }

    pub fn rotated(mut self, version: Version) -> Self {
        self.rotate();
        self.settle();
        assert_eq!(self.credential().active(), Some(version), "{}", self.picture());
        for (id, host) in &self.hosts {
            assert_eq!(host.link, Some(version), "{id}: {}", self.picture());
        }
        self
    }

    pub fn select(&mut self) {
        let one =
            |(n, id): (usize, &TargetId)| (id.clone(), Selection { canary: n == 0, ..Selection::default() });
        let present = self.hosts.keys().enumerate().filter(|(_, id)| !self.store.retired.contains(*id));
        let selected = present.map(one).collect();
        self.give(Event::Selected(selected));
    }

    pub fn connect(&mut self) {
        for (id, up) in self.hosts.iter().map(|(id, host)| (id.clone(), host.up)).collect::<Vec<_>>() {
            if up && !self.store.retired.contains(&id) {
                self.give(Event::Connected { target: id });
            }
        }
    }

    pub fn rotate(&mut self) {
        self.give(Event::Rotate(Rotate { reason: RotateReason::Demand }));
    }

    pub fn compromise(&mut self, deadline_ms: Option<u64>) -> Result<(), IllegalEvent> {
        let reason = RotateReason::Compromised { deadline_ms: deadline_ms.map(Millis) };
        self.try_give(Event::Rotate(Rotate { reason }))
    }

    pub fn credential(&self) -> &Credential {
        &self.store.credential
    }

    pub fn host(&mut self, n: usize) -> &mut Host {
        self.hosts.get_mut(&h(n)).unwrap()
    }

    pub fn phase(&self, version: Version) -> Option<Phase> {
        self.credential().phase(version)
    }

    pub fn is_finished(&self) -> bool {
        self.credential().is_finished(Millis(self.now))
    }

    pub fn role(&self, version: Version) -> Option<Role> {
        self.backend.roles.get(&self.credential().minted_by(version)?).copied()
    }

    pub fn why_not(&self, version: Version) -> Vec<Blocker> {
        self.credential().why_not(version, Millis(self.now))
    }

    pub fn blocks(&self, version: Version, clause: Clause) -> bool {
        self.why_not(version).iter().any(|b| b.clause == clause)
    }

    pub fn give(&mut self, event: Event) {
        let word = format!("{event:?}");
        if let Err(illegal) = self.try_give(event) {
            panic!("{word}: {illegal}");
        }
    }

    pub fn try_give(&mut self, event: Event) -> Result<(), IllegalEvent> {
        self.fresh += 1 << 32;
        let input = Input { now: Millis(self.now), fresh: EffectId(self.fresh) };
        let (credential, effects) = step(self.store.credential.clone(), input, event)?;
        self.store.credential = credential;
        for effect in effects {
            *self.handed_out.entry(effect.id).or_default() += 1;
            if let EffectKind::Audit { entry } = effect.kind {
                self.audit.push(entry);
            }
        }
        Ok(())
    }

    /// Carries out what is to be done until nothing more happens without time passing.
    pub fn pump(&mut self) {
        for _ in 0..2_000 {
            self.log_in();
            if self.down {
                return;
            }
            let effects: Vec<Effect> = self.credential().outbox().cloned().collect();
            let next = effects.into_iter().find(|e| self.is_due(e));
            let Some(effect) = next else { return };
            self.delivered.insert(effect.id);
            self.carry_out(&effect);
            if self.twice {
                self.carry_out(&effect);
            }
        }
        panic!("it does not come to rest: {}", self.picture());
    }

    /// Carries effects out one by one until the world looks as told.
    pub fn pump_until(&mut self, seen: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if seen(self) {
                return;
            }
            let effects: Vec<Effect> = self.credential().outbox().cloned().collect();
            if let Some(effect) = effects.into_iter().find(|e| self.is_due(e)) {
                self.delivered.insert(effect.id);
                self.carry_out(&effect);
            } else {
                let due = self.credential().next_due(Millis(self.now)).expect("something is due");
                self.now = due.0;
                self.give(Event::Tick);
            }
        }
        panic!("it never came to that: {}", self.picture());
    }

    pub fn holds_open(&self, is: impl Fn(&EffectKind) -> bool) -> bool {
        self.credential().outbox().any(|effect| is(&effect.kind))
    }

    /// An operator releases whatever is held, and everything that follows from it happens.
    pub fn unhold_all(&mut self) {
        let held: Vec<Version> =
            self.credential().versions().filter(|v| !v.holds.is_empty()).map(|v| v.version).collect();
        for version in held {
            self.give(Event::Unhold { version });
        }
        self.settle();
    }

    /// The store falls back to an earlier copy, and nobody says so.
    pub fn revert(&mut self, store: &Store) {
        self.store = store.clone();
        self.delivered.clear();
    }

    pub fn effect_of(&self, version: Version) -> EffectId {
        self.credential().minted_by(version).unwrap()
    }

    fn is_due(&self, effect: &Effect) -> bool {
        if self.delivered.contains(&effect.id) {
            return false;
        }
        match &effect.kind {
            EffectKind::Sample { .. } => !self.backend.mute,
            EffectKind::Send { target, order, .. } => {
                self.hosts[target].up && !self.lost.contains(order.kind.word())
            }
            EffectKind::Ask { target, .. } => self.hosts[target].up,
            _ => true,
        }
    }

    /// Lets time pass until nothing is left to wait for, at most a day.
    pub fn settle(&mut self) {
        let end = self.now + 86_400_000;
        for _ in 0..3_000 {
            self.pump();
            let at = self.credential().next_due(Millis(self.now));
            match at {
                Some(at) if at.0 <= end && !self.is_idle() => self.pass(at.0.saturating_sub(self.now)),
                _ => return,
            }
        }
        panic!("it does not come to rest: {}", self.picture());
    }

    /// Only the counting of sessions goes on.
    fn is_idle(&self) -> bool {
        let before = self.credential();
        let mut after = before.clone();
        let Some(at) = after.next_due(Millis(self.now)) else { return true };
        let input = Input { now: at, fresh: EffectId(u128::MAX / 2) };
        let Ok(effects) = after.apply(input, Event::Tick) else { return false };
        let dull = |e: &Effect| matches!(e.kind, EffectKind::Sample { .. } | EffectKind::Sweep);
        !effects.is_empty()
            && effects.iter().all(dull)
            && before.rollout().is_none_or(|rollout| rollout.halted.is_some())
            && before.versions().all(|view| {
                view.phase.is_ended()
                    || !self
                        .why_not(view.version)
                        .iter()
                        .all(|b| matches!(b.clause, Clause::Grace | Clause::BackendQuiet | Clause::Fresh))
            })
    }

    /// Time passes, everywhere.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        self.pump();
        loop {
            let due =
                self.credential().next_due(Millis(self.now)).map_or(end, |due| due.0).clamp(self.now, end);
            let due = self.next_flip().map_or(due, |at| at.min(due)).max(self.now);
            let span = due - self.now;
            self.now = due;
            for host in self.hosts.values_mut() {
                host.boot += span;
            }
            for id in self.hosts.keys().cloned().collect::<Vec<_>>() {
                let host = self.hosts.get_mut(&id).unwrap();
                if host.up {
                    host.give(HostEvent::Tick);
                    host.give(HostEvent::Recheck);
                    self.hear(&id);
                }
            }
            // What was sent in vain is sent again.
            self.delivered.clear();
            if !self.down {
                self.give(Event::Tick);
            }
            self.pump();
            if self.now >= end {
                return;
            }
            if span == 0 && self.credential().next_due(Millis(self.now)).is_none_or(|due| due.0 <= self.now) {
                self.now += 1;
            }
        }
    }

    fn next_flip(&self) -> Option<u64> {
        let flips = self.hosts.values().filter(|host| host.up);
        flips.filter_map(|host| Some(self.now + host.state.next_due()?.0.saturating_sub(host.boot))).min()
    }

    /// The host sends its report, when it is up and the control plane listens.
    pub fn hear(&mut self, id: &TargetId) {
        let host = self.hosts.get_mut(id).unwrap();
        let report = host.report();
        if host.up && !self.down && !self.store.retired.contains(id) {
            self.give(Event::Reported { target: id.clone(), report });
        }
        self.log_in();
    }

    pub fn hear_all(&mut self) {
        for id in self.hosts.keys().cloned().collect::<Vec<_>>() {
            self.hear(&id);
        }
        self.pump();
    }

    fn carry_out(&mut self, effect: &Effect) {
        let id = effect.id;
        let done = Outcome::Done;
        let event = match &effect.kind {
            EffectKind::Preflight => Event::Preflighted { effect: id, outcome: done },
            EffectKind::Mint { replaces, .. } => {
                Event::Minted { effect: id, outcome: self.mint(id, *replaces) }
            }
            EffectKind::Verify { minted_by, .. } => {
                let works = self.backend.roles.get(minted_by) == Some(&Role::Alive)
                    && self.store.values.contains(minted_by);
                let outcome = if works { done } else { Outcome::Refused("login refused".into()) };
                Event::Verified { effect: id, outcome }
            }
            EffectKind::Sample { minted_by, .. } => {
                Event::Sampled { effect: id, sessions: Some(self.sessions(*minted_by)) }
            }
            EffectKind::EndSessions { minted_by, .. } => {
                self.done.push(format!("end sessions of {minted_by}"));
                Event::SessionsEnded { effect: id, outcome: done }
            }
            EffectKind::Revoke { version, minted_by } => {
                self.done.push(format!("revoke {version}"));
                if let Some(role) = self.backend.roles.get_mut(minted_by) {
                    *role = Role::Revoked;
                }
                Event::Revoked { effect: id, outcome: done }
            }
            EffectKind::Sweep => {
                let alive = self.backend.roles.iter().filter(|(_, role)| **role == Role::Alive);
                let life = |id: &EffectId| self.backend.minted_in.get(id).copied().unwrap_or(FIRST);
                let found = alive.map(|(mark, _)| (*mark, life(mark))).collect();
                Event::Swept { effect: id, found: (!self.backend.blind).then_some(found) }
            }
            EffectKind::Send { target, order, value, .. } => {
                self.done.push(format!("{} {} to {target}", order.kind.word(), order.kind.version()));
                self.sent.push((target.clone(), order.clone(), *value));
                self.hosts.get_mut(target).unwrap().order(order, *value);
                return self.hear(&target.clone());
            }
            EffectKind::Ask { target, question } => {
                let epoch = self.credential().epoch();
                let host = self.hosts.get_mut(target).unwrap();
                host.give(HostEvent::Asked { epoch, question: *question });
                return self.hear(&target.clone());
            }
            EffectKind::Audit { .. } => return,
        };
        self.give(event);
    }

    fn mint(&mut self, id: EffectId, replaces: Option<EffectId>) -> Outcome {
        self.store.values.insert(id);
        self.backend.minted_in.insert(id, self.credential().epoch());
        if let Some(outcome) = self.backend.mint.clone() {
            return outcome;
        }
        if self.backend.late_create {
            if !self.backend.late.contains(&id) {
                self.backend.late.push(id);
            }
            return Outcome::Failed("timeout".into());
        }
        if let Some(role) = replaces.and_then(|old| self.backend.roles.get_mut(&old)) {
            *role = Role::Revoked;
        }
        self.backend.roles.insert(id, Role::Alive);
        self.done.push("mint".into());
        Outcome::Done
    }

    fn sessions(&self, minted_by: EffectId) -> u32 {
        let loaded = self.hosts.values().filter(|host| host.life.is_some());
        let ours = loaded.filter(|host| host.loaded.is_some_and(|(_, by)| by == minted_by)).count();
        let strangers = self.backend.strangers.get(&minted_by).copied().unwrap_or(0);
        u32::try_from(ours).unwrap() + strangers + self.backend.thief.get(&minted_by).copied().unwrap_or(0)
    }

    /// Every application logs in with what it read, all the time.
    pub fn log_in(&mut self) {
        for minted_by in self.backend.strangers.keys() {
            if self.backend.roles.get(minted_by) == Some(&Role::Revoked) {
                self.refused.push("a user on no host of ours".into());
            }
        }
        for (id, host) in &self.hosts {
            if self.written_off.contains(id) {
                continue;
            }
            let own = host.life.and(host.loaded);
            for (version, minted_by) in
                own.into_iter().chain(host.others.values().copied()).chain(host.hidden.iter().copied())
            {
                if self.backend.roles.get(&minted_by) == Some(&Role::Revoked) {
                    self.refused.push(format!("{id} with version {version}"));
                }
            }
            let found = host.link.and_then(|version| Some((version, *host.files.get(&version)?)));
            if let Some((version, minted_by)) = found
                && self.backend.roles.get(&minted_by) == Some(&Role::Revoked)
            {
                self.refused.push(format!("{id} lies on version {version}"));
            }
        }
    }

    /// An order of this word that is on its way.
    pub fn pending_send(&self, word: &str) -> Option<(TargetId, Order, Option<EffectId>)> {
        self.credential().outbox().find_map(|effect| match &effect.kind {
            EffectKind::Send { target, order, value, .. } if order.kind.word() == word => {
                Some((target.clone(), order.clone(), *value))
            }
            _ => None,
        })
    }

    /// The control plane starts (again) with what it stored.
    pub fn restart(&mut self) {
        self.down = false;
        self.delivered.clear();
        let epoch = self.credential().epoch();
        self.give(Event::Started { epoch, restored: false });
        self.connect();
    }

    /// The store is an earlier one: a new epoch.
    pub fn restore(&mut self, store: &Store) {
        self.store = store.clone();
        self.delivered.clear();
        let newest = self.hosts.values().filter_map(|host| host.state.epoch()).map(|e| e.counter).max();
        let counter = newest.unwrap_or(0).max(store.credential.epoch().counter) + 1;
        let epoch = Epoch { counter, id: u64::from(counter) * 100 + self.now };
        self.give(Event::Started { epoch, restored: true });
        self.connect();
    }

    pub fn go_down(&mut self, n: usize) {
        self.host(n).up = false;
        if !self.down && !self.store.retired.contains(&h(n)) {
            self.give(Event::Disconnected { target: h(n) });
        }
    }

    pub fn come_back(&mut self, n: usize) {
        self.host(n).up = true;
        self.delivered.clear();
        if !self.store.retired.contains(&h(n)) {
            self.give(Event::Connected { target: h(n) });
        }
        self.hear(&h(n));
        self.pump();
    }

    /// No application was refused a login, and nobody lies on a revoked version.
    #[track_caller]
    pub fn nobody_failed(&self) {
        assert!(self.refused.is_empty(), "{:?}\n{}", self.refused, self.picture());
    }

    pub fn picture(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for view in self.credential().versions() {
            let why: Vec<String> = self
                .why_not(view.version)
                .iter()
                .map(|b| {
                    format!(
                        "{}{}: {}",
                        b.target.as_ref().map(|t| format!("{t} ")).unwrap_or_default(),
                        b.clause,
                        b.who
                    )
                })
                .collect();
            writeln!(
                text,
                "{} {:?} aborted {:?} stuck {:?} {why:?}",
                view.version, view.phase, view.aborted, view.stuck
            )
            .unwrap();
        }
        writeln!(text, "rollout {:?} stuck {:?}", self.credential().rollout(), self.credential().stuck())
            .unwrap();
        for view in self.credential().targets() {
            writeln!(text, "{view:?}").unwrap();
        }
        for effect in self.credential().outbox() {
            writeln!(text, "{effect:?}").unwrap();
        }
        for line in self.done.iter().rev().take(15).rev() {
            writeln!(text, "  {line}").unwrap();
        }
        text
    }
}
