//! What the core costs per event in a large fleet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use anyhow::{Context, ensure};
use lifecycle::credential::{
    Credential, EffectKind, Event, Input, Outcome, Policy, Rotate, RotateReason, Selection,
};
use lifecycle::host::{self, By, Digest, HostEffect, HostEvent, HostInput, Life, Rules, SetState};
use lifecycle::report::Holder;
use lifecycle::{
    BootId, ConsumerName, EffectId, Evidence, HolderId, Millis, Order, SetReport, TargetId, Version,
};

use crate::desk::{EPOCH, version};
use crate::figure::Figure;
use crate::figures::Scale;
use crate::samples::{Samples, progress};

/// Holders of each version on each host.
const HOLDERS: usize = 3;
/// More events than any rotation has.
const EVENTS_PER_HOST_MAX: usize = 100;
/// How often the state is written while events go through.
const WRITTEN_EVERY: usize = 25;

/// Measures it.
pub fn measure(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let hosts = scale.of(1000, 20);
    let mut world = World::new(hosts)?;
    world.give(Event::Started { epoch: EPOCH, restored: false })?;
    let targets = world.hosts.keys().map(|target| (target.clone(), Selection::default()));
    let selected = Event::Selected(targets.collect());
    world.give(selected)?;
    for target in world.hosts.keys().cloned().collect::<Vec<_>>() {
        world.give(Event::Connected { target })?;
    }
    let bar = progress("step", 3);
    for number in 1..=3 {
        world.measured = Samples::default();
        world.written = Samples::default();
        let reason = RotateReason::Demand;
        world.give(Event::Rotate(Rotate { reason }))?;
        world.settle(version(number))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (steps, written) = (&world.measured, &world.written);
    let words = format!(
        "one event taken in by the core during a rotation over {hosts} hosts with {HOLDERS} holders each, {} events from `rotate` to the old version's end; against writing the state down once as JSON ({} KiB), which every commit must",
        steps.len(),
        world.bytes / 1024
    );
    let name = format!("step, {hosts} hosts x {HOLDERS} holders");
    Ok(vec![
        Figure::new(format!("{name}, median"), steps.median_ms(), "ms", Some(written.median_ms()))
            .meaning(words),
        Figure::new(format!("{name}, p99"), steps.p99_ms(), "ms", Some(written.p99_ms())),
    ])
}

/// The core, and hosts that run the other half of it.
struct World {
    state: Credential,
    hosts: BTreeMap<TargetId, Host>,
    now: Millis,
    drawn: u128,
    events: VecDeque<Event>,
    seen: BTreeSet<EffectId>,
    measured: Samples,
    written: Samples,
    bytes: usize,
}

impl World {
    fn new(hosts: usize) -> anyhow::Result<Self> {
        let policy = Policy {
            wave: u32::MAX,
            grace_ms: Millis(0),
            tail_ms: Millis(0),
            live_versions_max: 8,
            ..Policy::default()
        };
        let named =
            (0..hosts).map(|number| Ok((TargetId::new(format!("host-{number:04}"))?, Host::default())));
        let hosts: anyhow::Result<BTreeMap<TargetId, Host>> = named.collect();
        Ok(Self {
            state: Credential::new(policy, EPOCH),
            hosts: hosts?,
            now: Millis(1_000),
            drawn: 0,
            events: VecDeque::new(),
            seen: BTreeSet::new(),
            measured: Samples::default(),
            written: Samples::default(),
            bytes: 0,
        })
    }

    fn give(&mut self, event: Event) -> anyhow::Result<()> {
        self.drawn += 1;
        let fresh = EffectId(self.drawn << 64);
        let began = Instant::now();
        let effects = self.state.apply(Input { now: self.now, fresh }, event)?;
        self.measured.push(began.elapsed());
        drop(effects);
        if self.measured.len().is_multiple_of(WRITTEN_EVERY) {
            let began = Instant::now();
            let text = serde_json::to_string(&self.state)?;
            self.written.push(began.elapsed());
            self.bytes = text.len();
        }
        Ok(())
    }

    /// Carries everything out until only this version is alive.
    fn settle(&mut self, wanted: Version) -> anyhow::Result<()> {
        for _ in 0..EVENTS_PER_HOST_MAX * self.hosts.len() {
            if let Some(event) = self.events.pop_front() {
                self.give(event)?;
                continue;
            }
            self.carry_out()?;
            if !self.events.is_empty() {
                continue;
            }
            let alive: Vec<Version> = self
                .state
                .versions()
                .filter(|view| !view.phase.is_ended())
                .map(|view| view.version)
                .collect();
            if alive == [wanted] && self.state.rollout().is_none() {
                return Ok(());
            }
            self.pass_time()?;
        }
        let views: Vec<_> = self.state.pending(self.now);
        anyhow::bail!("the rotation does not end: {views:?}")
    }

    fn carry_out(&mut self) -> anyhow::Result<()> {
        let effects: Vec<_> =
            self.state.outbox().filter(|effect| !self.seen.contains(&effect.id)).cloned().collect();
        for effect in effects {
            self.seen.insert(effect.id);
            let (id, done) = (effect.id, Outcome::Done);
            let event = match effect.kind {
                EffectKind::Preflight => Event::Preflighted { effect: id, outcome: done },
                EffectKind::Mint { .. } => Event::Minted { effect: id, outcome: done },
                EffectKind::Verify { .. } => Event::Verified { effect: id, outcome: done },
                EffectKind::Sample { .. } => Event::Sampled { effect: id, sessions: Some(0) },
                EffectKind::EndSessions { .. } => Event::SessionsEnded { effect: id, outcome: done },
                EffectKind::Revoke { .. } => Event::Revoked { effect: id, outcome: done },
                EffectKind::Sweep => Event::Swept { effect: id, found: Some([].into()) },
                EffectKind::Send { target, order, .. } => {
                    self.at_host(&target, |host, now| host.order(now, order))?
                }
                EffectKind::Ask { target, question } => self.at_host(&target, |host, now| {
                    host.give(now, HostEvent::Asked { epoch: EPOCH, question });
                })?,
                EffectKind::Audit { .. } => continue,
            };
            self.events.push_back(event);
        }
        Ok(())
    }

    fn at_host(&mut self, target: &TargetId, act: impl FnOnce(&mut Host, Millis)) -> anyhow::Result<Event> {
        let host = self.hosts.get_mut(target).context("an order for nobody")?;
        act(host, self.now);
        Ok(Event::Reported { target: target.clone(), report: host.report()? })
    }

    /// Time passes until something is due, for the core or at a host.
    fn pass_time(&mut self) -> anyhow::Result<()> {
        let core = self.state.next_due(self.now.plus(Millis(1)));
        let flips = self.hosts.values().filter_map(|host| host.state.next_due());
        let next = flips.chain(core).min().context("nothing is due, and the rotation has not ended")?;
        self.now = next.max(self.now.plus(Millis(1)));
        ensure!(self.now < Millis(3_600_000), "the rotation takes more than an hour of its own time");
        for (target, host) in &mut self.hosts {
            if host.state.next_due().is_some_and(|due| due <= self.now) {
                host.give(self.now, HostEvent::Tick);
                self.events.push_back(Event::Reported { target: target.clone(), report: host.report()? });
            }
        }
        self.events.push_back(Event::Tick);
        Ok(())
    }
}

/// One host: the real machine of its set, and an application that comes up on everything.
#[derive(Default)]
struct Host {
    state: SetState,
    known: bool,
    life: u32,
    sequence: u64,
}

impl Host {
    fn order(&mut self, now: Millis, order: Order) {
        let digest = Some(Digest(order.kind.version().to_string()));
        self.give(now, HostEvent::Order { order, digest, age: Some(Millis(0)) });
    }

    fn give(&mut self, now: Millis, event: HostEvent) {
        let mut events = vec![event];
        if !std::mem::replace(&mut self.known, true) {
            let consumers = names().map(|name| (name, By::Permit)).collect();
            events.push(HostEvent::Policy(Some(Rules { consumers })));
            events.push(HostEvent::Started { boot: BootId::default(), link: None, files: BTreeSet::new() });
        }
        while let Some(event) = events.pop() {
            let (state, effects) =
                host::step(std::mem::take(&mut self.state), HostInput { boot: now }, event);
            self.state = state;
            let outcomes: Vec<HostEvent> =
                effects.into_iter().flat_map(|effect| self.carry_out(effect)).collect();
            events.extend(outcomes.into_iter().rev());
        }
    }

    fn carry_out(&mut self, effect: HostEffect) -> Vec<HostEvent> {
        let life = |life: u32| Life(life.to_string());
        match effect {
            HostEffect::Answer(_) => vec![],
            HostEffect::Write { version } => vec![HostEvent::Written { version }],
            HostEffect::Flip { version } => vec![HostEvent::Flipped { version }],
            HostEffect::Unlink { version } => vec![HostEvent::Unlinked { version }],
            HostEffect::Seal { version, .. } => {
                vec![HostEvent::Unlinked { version }, HostEvent::Gone { version }]
            }
            HostEffect::Look { turn, consumer } => {
                vec![HostEvent::Looked { turn, consumer, life: Some(life(self.life)), healthy: true }]
            }
            HostEffect::Adopt { turn, consumer, .. } => {
                self.life += 1;
                vec![HostEvent::TookUp { turn, consumer, life: life(self.life) }]
            }
            HostEffect::Settle { turn, consumer, .. } => vec![HostEvent::Healthy { turn, consumer }],
        }
    }

    /// As the applier says it: each consumer holds the version that it has taken up.
    fn report(&mut self) -> anyhow::Result<SetReport> {
        self.sequence += 1;
        let mut report = self.state.report();
        report.sequence = self.sequence;
        report.epoch = Some(EPOCH);
        report.evidence = Evidence::Kernel;
        let held = report.adopted.or(report.permitted).or(report.current);
        if let Some(version) = held {
            let holders = names().map(|consumer| {
                Ok(Holder {
                    id: HolderId::new(format!("unit-{consumer}-{}", self.life))?,
                    version,
                    consumer: Some(consumer),
                    evidence: Evidence::Kernel,
                    description: "app.service, pid 4711, read password".to_owned(),
                })
            });
            report.holders = holders.collect::<anyhow::Result<_>>()?;
        }
        Ok(report)
    }
}

fn names() -> impl Iterator<Item = ConsumerName> {
    (0..HOLDERS).filter_map(|number| ConsumerName::new(format!("app-{number}.service")).ok())
}
