//! Small models, one for each danger, searched to the end over the same machines that run in production: the control
//! plane's `step` and the hosts' `step` together.
//!
//! The network is a set that never forgets a message: whatever was ever sent may arrive at any time, in any order, any
//! number of times, or never. What can no longer change anything is dropped from it, which changes nothing. State holds
//! no clock and no id that only counts, so that ways which meet are seen to meet. A search that meets its limit fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what does not fit ends the test")]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lifecycle::credential::{
    Credential, EffectKind, Event, Input, Outcome, Overlap, Phase, Policy, Rotate, RotateReason, step,
};
use lifecycle::host::HostEvent;
use lifecycle::{EffectId, Epoch, Millis, Order, OrderKind, SetReport, Version};
use stateright::{Checker, Model, Property};
use world::{FIRST, Host, Role, World, h, v};

const TIME_MAX: Duration = Duration::from_mins(15);
/// Some 4 KB each: within 2 GB.
const STATES_MAX: usize = 400_000;
/// Ways into states, also into those that are known.
const LOOKS_MAX: usize = 20 * STATES_MAX;

/// What may still happen, and how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Budget {
    rotate: u8,
    abort: u8,
    resume: u8,
    crash_us: u8,
    crash_host: u8,
    ticks: u8,
    part: u8,
    revert: u8,
    unhold: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    now: u64,
    credential: Credential,
    values: BTreeSet<EffectId>,
    /// An earlier copy of the store.
    copy: Option<Box<(Credential, BTreeSet<EffectId>)>>,
    roles: BTreeMap<EffectId, Role>,
    hosts: Vec<Host>,
    orders: BTreeSet<(usize, Order, Option<EffectId>)>,
    asks: BTreeSet<(usize, Epoch, u64)>,
    reports: BTreeMap<(usize, u64), SetReport>,
    budget: Budget,
    failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    Arrives(usize, Order, Option<EffectId>),
    Asked(usize, Epoch, u64),
    Heard(usize, u64),
    Flips(usize),
    Settles(usize),
    HostStarts(usize, bool),
    Rotate,
    Abort,
    Resume,
    Tick,
    WeStart,
    /// An effect at the backend is carried out, and we die before we know.
    DiesAfter(EffectId),
    Does(EffectId),
    Parted(usize),
    Joined(usize),
    Copied,
    /// The store is the copy again; somebody says so, or nobody does.
    Reverted {
        told: bool,
    },
    Unhold(Version),
}

struct Danger {
    name: &'static str,
    start: State,
    /// Effects at the backend are steps of their own, with a crash after any of them.
    slow_backend: bool,
    /// Nobody says that the store was put back.
    silent: bool,
    reaches: Vec<Property<Danger>>,
}

impl State {
    fn start(policy: Policy, sick: bool, budget: Budget) -> Self {
        let pair = policy.overlap == Overlap::Pair;
        let mut world = World::on_one(2, Policy { barrier_ms: Millis(0), ..policy });
        if pair {
            world = world.rotated(v(2));
            world.settle();
        }
        if sick {
            world.host(1).sick.insert(v(2));
        }
        let hosts = world.hosts.values().cloned().collect();
        let mut state = Self {
            now: world.now,
            credential: world.store.credential,
            values: world.store.values,
            copy: None,
            roles: world.backend.roles,
            hosts,
            orders: BTreeSet::new(),
            asks: BTreeSet::new(),
            reports: BTreeMap::new(),
            budget,
            failed: false,
        };
        state.tidy();
        state
    }

    fn give(&mut self, event: Event, slow_backend: bool) -> bool {
        let used = self.roles.keys().chain(&self.values).map(|id| id.0).max().unwrap_or(0).max(1 << 40);
        let input = Input { now: Millis(self.now), fresh: EffectId(used + 1) };
        let Ok((credential, _)) = step(self.credential.clone(), input, event) else { return false };
        self.credential = credential.with_plain_ids();
        self.send();
        if !slow_backend {
            self.work();
        }
        true
    }

    /// Everything in the outbox is on its way.
    fn send(&mut self) {
        let epoch = self.credential.epoch();
        for effect in self.credential.outbox() {
            match &effect.kind {
                EffectKind::Send { target, order, value, .. } => {
                    let mut order = order.clone();
                    if let OrderKind::Arm { in_ms, .. } = &mut order.kind {
                        *in_ms = Millis(1);
                    }
                    self.orders.insert((number(target.as_str()), order, *value));
                }
                EffectKind::Ask { target, question } => {
                    self.asks.insert((number(target.as_str()), epoch, *question));
                }
                _ => {}
            }
        }
    }

    /// The backend does at once what is asked of it.
    fn work(&mut self) {
        while let Some(id) = self.open_work().first().copied() {
            let Some(event) = self.does(id) else { return };
            self.give(event, true);
        }
    }

    fn open_work(&self) -> Vec<EffectId> {
        let is_work = |kind: &EffectKind| !matches!(kind, EffectKind::Send { .. } | EffectKind::Ask { .. });
        self.credential.outbox().filter(|e| is_work(&e.kind)).map(|e| e.id).collect()
    }

    fn does(&mut self, id: EffectId) -> Option<Event> {
        let kind = self.credential.outbox().find(|e| e.id == id)?.kind.clone();
        let outcome = Outcome::Done;
        Some(match kind {
            EffectKind::Preflight => Event::Preflighted { effect: id, outcome },
            EffectKind::Mint { replaces, .. } => {
                self.values.insert(id);
                if let Some(role) = replaces.and_then(|old| self.roles.get_mut(&old)) {
                    *role = Role::Revoked;
                }
                self.roles.entry(id).or_insert(Role::Alive);
                Event::Minted { effect: id, outcome }
            }
            EffectKind::Verify { minted_by, .. } => {
                let works =
                    self.roles.get(&minted_by) == Some(&Role::Alive) && self.values.contains(&minted_by);
                let outcome = if works { outcome } else { Outcome::Refused("login refused".into()) };
                Event::Verified { effect: id, outcome }
            }
            // It counts nothing, so that only what the hosts say holds the gate.
            EffectKind::Sample { .. } => Event::Sampled { effect: id, sessions: None },
            EffectKind::EndSessions { .. } => Event::SessionsEnded { effect: id, outcome },
            EffectKind::Revoke { minted_by, .. } => {
                if let Some(role) = self.roles.get_mut(&minted_by) {
                    *role = Role::Revoked;
                }
                Event::Revoked { effect: id, outcome }
            }
            EffectKind::Sweep => {
                let alive = self.roles.iter().filter(|(_, role)| **role == Role::Alive);
                Event::Swept { effect: id, found: Some(alive.map(|(id, _)| (*id, FIRST)).collect()) }
            }
            EffectKind::Send { .. } | EffectKind::Ask { .. } | EffectKind::Audit { .. } => return None,
        })
    }

    /// Hosts report what changed; what can change nothing any more leaves the network; the judge looks.
    fn tidy(&mut self) {
        for (n, host) in self.hosts.iter_mut().enumerate() {
            host.shown.clear();
            host.refusals.clear();
            host.restarts = 0;
            host.incoming = None;
            let report = host.report();
            self.reports.insert((n, report.sequence), report);
        }
        let known = |n: usize| self.credential.report(&h(n)).map_or(0, |r| r.sequence);
        self.reports.retain(|(n, sequence), _| *sequence > known(*n));
        self.asks.retain(|(n, epoch, question)| {
            let host = &self.hosts[*n].state;
            host.epoch().is_none_or(|mine| {
                mine.counter < epoch.counter || (mine == *epoch && host.report().answers < *question)
            })
        });
        self.orders.retain(|(n, order, _)| {
            let host = &self.hosts[*n].state;
            let outlived = host.generation().is_some_and(|newest| order.generation < newest);
            let is_seal = matches!(order.kind, OrderKind::Seal { .. });
            let sealed = is_seal && host.report().gone.contains(order.kind.version());
            let buries = !order.dead.iter().all(|version| host.dead().contains(*version));
            buries || !(sealed || (outlived && !is_seal))
        });
        for host in &self.hosts {
            let own = host.life.and(host.loaded).map(|(_, by)| by);
            let found = host.link.and_then(|version| host.files.get(&version).copied());
            let dead = |by: &EffectId| self.roles.get(by) == Some(&Role::Revoked);
            self.failed |= own.iter().chain(&found).any(dead);
        }
    }

    fn is_on(&self, n: usize, version: Version) -> bool {
        self.hosts[n].loaded.is_some_and(|(on, _)| on == version)
    }

    fn is_revoked(&self, version: Version) -> bool {
        matches!(self.credential.phase(version), Some(Phase::Retired))
    }
}

fn number(target: &str) -> usize {
    target[1..].parse().unwrap()
}

impl Model for Danger {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start.clone()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions
            .extend(state.orders.iter().cloned().map(|(n, order, value)| Action::Arrives(n, order, value)));
        actions.extend(state.asks.iter().map(|(n, epoch, question)| Action::Asked(*n, *epoch, *question)));
        actions.extend(state.reports.keys().map(|(n, sequence)| Action::Heard(*n, *sequence)));
        let budget = state.budget;
        for (n, host) in state.hosts.iter().enumerate() {
            if host.state.next_due().is_some() {
                actions.push(Action::Flips(n));
            }
            if host.slow
                && host
                    .state
                    .report()
                    .consumers
                    .values()
                    .any(|c| c.state == lifecycle::report::ConsumerState::Settling)
            {
                actions.push(Action::Settles(n));
            }
            if budget.crash_host > 0 {
                actions.push(Action::HostStarts(n, false));
                actions.push(Action::HostStarts(n, true));
            }
        }
        if self.slow_backend {
            for id in state.open_work() {
                actions.push(Action::Does(id));
                if budget.crash_us > 0 {
                    actions.push(Action::DiesAfter(id));
                }
            }
        }
        if budget.part > 0 {
            actions.push(Action::Parted(1));
        }
        if state.credential.targets().any(|t| t.target == h(1) && !t.connected) {
            actions.push(Action::Joined(1));
        }
        let may = [
            (budget.rotate > 0, Action::Rotate),
            (budget.abort > 0, Action::Abort),
            (budget.resume > 0, Action::Resume),
            (budget.ticks > 0, Action::Tick),
            (budget.crash_us > 0, Action::WeStart),
            (budget.revert > 0 && state.copy.is_none(), Action::Copied),
            (budget.revert > 0 && state.copy.is_some(), Action::Reverted { told: !self.silent }),
        ];
        if budget.unhold > 0 {
            let held = state.credential.versions().filter(|view| !view.holds.is_empty());
            actions.extend(held.map(|view| Action::Unhold(view.version)));
        }
        actions.extend(may.into_iter().filter(|(may, _)| *may).map(|(_, action)| action));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let slow = self.slow_backend;
        match action {
            Action::Arrives(n, order, value) => state.hosts[n].order(&order, value),
            Action::Asked(n, epoch, question) => state.hosts[n].give(HostEvent::Asked { epoch, question }),
            Action::Heard(n, sequence) => {
                let report = state.reports.get(&(n, sequence))?.clone();
                state.give(Event::Reported { target: h(n), report }, slow);
            }
            Action::Flips(n) => {
                let host = &mut state.hosts[n];
                let at = host.state.next_due()?;
                host.boot = at.0;
                host.give(HostEvent::Tick);
                host.boot = 0;
            }
            Action::Settles(n) => {
                state.hosts[n].slow = false;
                state.hosts[n].start(false);
                state.hosts[n].slow = true;
            }
            Action::HostStarts(n, rebooted) => {
                state.budget.crash_host -= 1;
                state.hosts[n].start(rebooted);
            }
            Action::Rotate => {
                state.budget.rotate -= 1;
                state.give(Event::Rotate(Rotate { reason: RotateReason::Demand }), slow).then_some(())?;
            }
            Action::Abort => {
                state.budget.abort -= 1;
                state.give(Event::Abort { reason: "said".into() }, slow).then_some(())?;
            }
            Action::Resume => {
                state.budget.resume -= 1;
                state.give(Event::Resume, slow).then_some(())?;
            }
            Action::Tick => {
                state.budget.ticks -= 1;
                state.now = state.credential.next_due(Millis(state.now))?.0;
                state.give(Event::Tick, slow);
            }
            Action::WeStart => state.we_start(slow),
            Action::DiesAfter(id) => {
                state.does(id)?;
                state.we_start(slow);
            }
            Action::Does(id) => {
                let event = state.does(id)?;
                state.give(event, slow);
            }
            Action::Parted(n) => {
                state.budget.part -= 1;
                state.give(Event::Disconnected { target: h(n) }, slow);
            }
            Action::Joined(n) => {
                state.give(Event::Connected { target: h(n) }, slow);
            }
            Action::Copied => {
                state.copy = Some(Box::new((state.credential.clone(), state.values.clone())));
            }
            Action::Unhold(version) => {
                state.budget.unhold -= 1;
                state.give(Event::Unhold { version }, slow).then_some(())?;
            }
            Action::Reverted { told } => {
                state.budget.revert -= 1;
                let (credential, values) = *state.copy.take()?;
                state.credential = credential;
                state.values = values;
                // Our own signature on what the hosts show tells: a new epoch. Until it does, nobody knows.
                let epoch = if told { Epoch { counter: 2, id: 22 } } else { state.credential.epoch() };
                state.give(Event::Started { epoch, restored: told }, slow);
                for n in 0..state.hosts.len() {
                    state.give(Event::Connected { target: h(n) }, slow);
                }
            }
        }
        state.tidy();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![Property::always("nobody fails", |_: &Self, state: &State| !state.failed)];
        all.extend(self.reaches.iter().map(|p| Property {
            expectation: p.expectation.clone(),
            name: p.name,
            condition: p.condition,
        }));
        all
    }
}

impl State {
    fn we_start(&mut self, slow: bool) {
        self.budget.crash_us -= 1;
        let epoch = self.credential.epoch();
        self.give(Event::Started { epoch, restored: false }, slow);
        for n in 0..self.hosts.len() {
            self.give(Event::Connected { target: h(n) }, slow);
        }
    }
}

fn old_one_dies() -> Property<Danger> {
    Property::sometimes("the old version is revoked", |_: &Danger, state: &State| state.is_revoked(v(1)))
}

fn new_one_dies() -> Property<Danger> {
    Property::sometimes("the aborted version is revoked", |_: &Danger, state: &State| state.is_revoked(v(2)))
}

fn search(danger: Danger) {
    let name = danger.name;
    let budget = danger.start.budget;
    let began = Instant::now();
    let checker =
        danger.checker().target_state_count(LOOKS_MAX).timeout(TIME_MAX).threads(1).spawn_bfs().join();
    let (states, looks, took) = (checker.unique_state_count(), checker.state_count(), began.elapsed());
    println!("{name}: {states} states, depth {}, {took:.1?}, bounds {budget:?}", checker.max_depth());
    // A search that meets a limit says nothing of it, and counts as done.
    assert!(
        took < TIME_MAX && states < STATES_MAX && looks < LOOKS_MAX,
        "{name}: the search met its limit: {states} states in {looks} looks, {took:?}"
    );
    for (property, path) in checker.discoveries() {
        if property == "nobody fails" {
            let state = path.last_state();
            panic!(
                "{name}: somebody fails after {:#?}\n{:#?}",
                path.clone().into_actions(),
                state.credential
            );
        }
    }
    checker.assert_properties();
}

fn quick() -> Policy {
    Policy {
        grace_ms: Millis(0),
        arm_ms: Millis(0),
        start_wait_ms: Millis(0),
        sample_ms: Millis(u64::MAX / 4),
        adopt_ms_max: Millis(u64::MAX / 4),
        sweep_ms: Millis(u64::MAX / 4),
        intent_ms: Millis(0),
        ..Policy::default()
    }
}

#[test]
fn duplicated_lost_and_late_orders() {
    let budget = Budget { rotate: 1, abort: 1, ..Budget::default() };
    search(Danger {
        name: "duplicated, lost and late orders",
        start: State::start(quick(), false, budget),
        slow_backend: false,
        silent: false,
        reaches: vec![old_one_dies(), new_one_dies()],
    });
}

#[test]
fn a_crash_after_any_effect() {
    let budget = Budget { rotate: 1, crash_us: 1, crash_host: 1, ..Budget::default() };
    search(Danger {
        name: "a crash after any effect",
        start: State::start(quick(), false, budget),
        slow_backend: true,
        silent: false,
        reaches: vec![old_one_dies()],
    });
}

#[test]
fn a_lost_disarm() {
    let policy = Policy { arm_ms: Millis(1_000), ..quick() };
    let budget = Budget { rotate: 1, abort: 1, ticks: 1, ..Budget::default() };
    search(Danger {
        name: "a lost disarm",
        start: State::start(policy, false, budget),
        slow_backend: false,
        silent: false,
        reaches: vec![
            new_one_dies(),
            Property::sometimes(
                "an armed host flips although the rollout was aborted",
                |_: &Danger, state: &State| {
                    let aborted = state.credential.version(v(2)).is_some_and(|view| view.aborted.is_some());
                    aborted && state.hosts[1].link == Some(v(2))
                },
            ),
        ],
    });
}

#[test]
fn a_partitioned_armed_host() {
    let policy = Policy { arm_ms: Millis(1_000), ..quick() };
    let budget = Budget { rotate: 1, part: 1, ticks: 1, ..Budget::default() };
    search(Danger {
        name: "a partitioned armed host",
        start: State::start(policy, false, budget),
        slow_backend: false,
        silent: false,
        reaches: vec![
            old_one_dies(),
            Property::sometimes("the others go on without it", |_: &Danger, state: &State| {
                state.credential.active() == Some(v(2)) && state.is_on(1, v(1))
            }),
        ],
    });
}

#[test]
fn a_late_rollback() {
    let budget = Budget { rotate: 1, abort: 1, resume: 1, ..Budget::default() };
    let mut start = State::start(quick(), true, budget);
    start.hosts[1].slow = true;
    search(Danger {
        name: "a late rollback",
        start,
        slow_backend: false,
        silent: false,
        reaches: vec![
            new_one_dies(),
            Property::sometimes("the host goes back by itself", |_: &Danger, state: &State| {
                state.hosts[1].state.report().rolled_back.is_some()
            }),
        ],
    });
}

fn kept_unnamed() -> Property<Danger> {
    Property::sometimes("a version that no record names is kept", |_: &Danger, state: &State| {
        state.credential.version(v(2)).is_some_and(|view| !view.holds.is_empty())
    })
}

#[test]
fn a_reverted_store() {
    let budget = Budget { rotate: 1, revert: 1, unhold: 2, ..Budget::default() };
    search(Danger {
        name: "a reverted store",
        start: State::start(quick(), false, budget),
        slow_backend: false,
        silent: false,
        reaches: vec![
            old_one_dies(),
            kept_unnamed(),
            Property::sometimes("an older version is revoked after that", |_: &Danger, state: &State| {
                state.credential.epoch().counter == 2 && state.is_revoked(v(1))
            }),
        ],
    });
}

#[test]
fn a_store_reverted_in_silence() {
    let budget = Budget { rotate: 1, revert: 1, unhold: 1, ..Budget::default() };
    search(Danger {
        name: "a store reverted in silence",
        start: State::start(quick(), false, budget),
        slow_backend: false,
        silent: true,
        reaches: vec![old_one_dies(), kept_unnamed()],
    });
}

#[test]
fn a_pair_of_which_the_mint_ends_the_older() {
    let budget = Budget { rotate: 1, abort: 1, crash_us: 1, ..Budget::default() };
    search(Danger {
        name: "a pair of which the mint ends the older",
        start: State::start(Policy { overlap: Overlap::Pair, ..quick() }, false, budget),
        slow_backend: true,
        silent: false,
        reaches: vec![
            old_one_dies(),
            Property::sometimes("the third of them is active", |_: &Danger, state: &State| {
                state.credential.active() == Some(v(3))
            }),
        ],
    });
}
