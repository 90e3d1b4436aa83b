//! A host in miniature: a link, files, a consumer that can or cannot use a version.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::id::{BootId, EffectId};
use crate::order::OrderKind;
use crate::report::ConsumerState;
use crate::versions::Versions;

const ONE: Epoch = Epoch { counter: 1, id: 11 };

fn v(number: u32) -> Version {
    Version::new(1, number)
}

fn g(number: u32) -> Generation {
    Generation::new(1, number)
}

fn app() -> ConsumerName {
    ConsumerName::new("orders.service").unwrap()
}

fn digest(number: u32) -> Digest {
    Digest(format!("digest-{number}"))
}

/// What the machine is told about, and what survives it.
#[derive(Debug, Clone, Default)]
struct World {
    state: SetState,
    boot: u64,
    link: Option<Version>,
    files: BTreeSet<Version>,
    /// Versions that the consumer cannot use.
    bad: BTreeSet<Version>,
    boots: u32,
    /// The consumer's life; none when it does not run.
    life: Option<u32>,
    /// The next life that it will have.
    lives: u32,
    /// What the consumer read at the start of its life.
    loaded: Option<Version>,
    restarts: u32,
    flips: Vec<Version>,
    unlinks: u32,
    /// Nothing can be unlinked.
    stuck: bool,
    held: BTreeSet<Version>,
    answers: Vec<Answer>,
    /// Dies before the effect that makes this 0.
    dies_in: Option<u32>,
    dead_now: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self { life: Some(0), lives: 1, ..Self::default() };
        world.give(HostEvent::Started { boot: BootId::default(), link: None, files: BTreeSet::new() });
        world.give(HostEvent::Policy(Some(Rules { consumers: BTreeMap::from([(app(), By::Permit)]) })));
        world
    }

    /// On version 0, adopted.
    fn on_zero() -> Self {
        let mut world = Self::new();
        for kind in [stage(0), activate(0), OrderKind::Adopt { version: v(0) }] {
            assert_eq!(world.order(1, kind), Answer::Accepted);
        }
        assert_eq!(world.report().adopted, Some(v(0)));
        world
    }

    fn input(&self) -> HostInput {
        HostInput { boot: Millis(self.boot) }
    }

    fn give(&mut self, event: HostEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if self.dead_now {
                return;
            }
            let (state, effects) = step(self.state.clone(), self.input(), event);
            self.state = state;
            let mut outcomes = Vec::new();
            for effect in effects {
                if let Some(left) = self.dies_in.as_mut() {
                    if *left == 0 {
                        self.dead_now = true;
                        return;
                    }
                    *left -= 1;
                }
                outcomes.extend(self.carry_out(effect));
            }
            events.extend(outcomes.into_iter().rev());
        }
    }

    fn carry_out(&mut self, effect: HostEffect) -> Vec<HostEvent> {
        match effect {
            HostEffect::Answer(answer) => {
                self.answers.push(answer);
                vec![]
            }
            HostEffect::Write { version } => {
                self.files.insert(version);
                vec![HostEvent::Written { version }]
            }
            HostEffect::Flip { version } => {
                assert!(self.files.contains(&version), "a flip to {version} without files");
                self.link = Some(version);
                self.flips.push(version);
                vec![HostEvent::Flipped { version }]
            }
            HostEffect::Unlink { .. } if self.stuck => {
                self.unlinks += 1;
                vec![]
            }
            HostEffect::Unlink { version } => {
                self.unlinks += 1;
                self.files.remove(&version);
                vec![HostEvent::Unlinked { version }]
            }
            HostEffect::Seal { version, withdraw, .. } => {
                if self.held.contains(&version) {
                    return vec![HostEvent::NotGone { version, reason: "held".to_owned() }];
                }
                if withdraw && self.link == Some(version) {
                    self.link = None;
                }
                assert_ne!(self.link, Some(version), "a seal of what readers find");
                self.files.remove(&version);
                vec![HostEvent::Unlinked { version }, HostEvent::Gone { version }]
            }
            HostEffect::Look { turn, consumer } => {
                vec![HostEvent::Looked { turn, consumer, life: self.life(), healthy: self.is_healthy() }]
            }
            HostEffect::Adopt { turn, consumer, was, revive } => {
                if was == self.life() && (revive || self.life.is_some()) {
                    self.restart();
                }
                let life = self.life().unwrap_or(Life("none".to_owned()));
                vec![HostEvent::TookUp { turn, consumer, life }]
            }
            HostEffect::Settle { turn, consumer, .. } => vec![if self.is_healthy() {
                HostEvent::Healthy { turn, consumer }
            } else {
                HostEvent::Unhealthy { turn, consumer, reason: "exited 1".to_owned() }
            }],
        }
    }

    fn life(&self) -> Option<Life> {
        self.life.map(|life| Life(life.to_string()))
    }

    fn is_healthy(&self) -> bool {
        self.life.is_some() && self.loaded.is_none_or(|version| !self.bad.contains(&version))
    }

    fn restart(&mut self) {
        self.restarts += 1;
        self.life = Some(self.lives);
        self.lives += 1;
        self.loaded = self.link;
    }

    fn order(&mut self, generation: u32, kind: OrderKind) -> Answer {
        self.order_of(ONE, generation, kind, &[])
    }

    fn order_of(&mut self, epoch: Epoch, generation: u32, kind: OrderKind, dead: &[Version]) -> Answer {
        let digest = matches!(kind, OrderKind::Stage { .. }).then(|| digest(kind.version().number));
        let generation = Generation::new(epoch.counter, generation);
        let order = Order { epoch, generation, kind, dead: dead.iter().copied().collect() };
        self.answers.clear();
        self.give(HostEvent::Order { order, digest, age: Some(Millis(10)) });
        self.answers.pop().unwrap_or(Answer::Accepted)
    }

    fn report(&self) -> crate::SetReport {
        self.state.report()
    }

    fn crash(&mut self, rebooted: bool) {
        self.dead_now = false;
        self.dies_in = None;
        if rebooted {
            self.boot = 0;
            self.boots += 1;
            self.link = self.state.current().filter(|version| self.files.contains(version));
            self.restart();
        }
        let (link, files) = (self.link, self.files.clone());
        let boot = boot(self.boots);
        self.give(HostEvent::Started { boot, link, files });
        for (consumer, was) in self.state.awaited() {
            if let Some(life) = self.life().filter(|life| Some(life) != was.as_ref()) {
                self.give(HostEvent::Appeared { consumer, life, on_another: false });
            }
        }
    }
}

/// The first one has no name.
fn boot(number: u32) -> BootId {
    BootId(if number == 0 { String::new() } else { number.to_string() })
}

fn stage(number: u32) -> OrderKind {
    OrderKind::Stage { version: v(number), effect: EffectId(u128::from(number)) }
}

fn activate(number: u32) -> OrderKind {
    OrderKind::Activate { version: v(number), answers: None }
}

fn arm(number: u32, in_ms: u64) -> OrderKind {
    OrderKind::Arm { version: v(number), in_ms: Millis(in_ms), answers: None }
}

fn seal(number: u32) -> OrderKind {
    OrderKind::Seal {
        version: v(number),
        cleared: BTreeSet::new(),
        cleared_gaps: BTreeSet::new(),
        withdraw: false,
    }
}

#[track_caller]
fn refused(answer: Answer) -> &'static str {
    match answer {
        Answer::Accepted => panic!("accepted"),
        Answer::Refused { code, .. } => code.word(),
    }
}

#[test]
fn a_rotation_from_stage_to_gone() {
    let mut world = World::on_zero();
    assert_eq!(world.order(2, stage(1)), Answer::Accepted);
    assert_eq!(world.order(2, arm(1, 1000)), Answer::Accepted);
    assert_eq!(world.report().armed, Some(v(1)));
    assert_eq!(world.state.next_due(), Some(Millis(990)), "corrected for the message's age");
    world.boot = 990;
    world.give(HostEvent::Tick);
    assert_eq!((world.link, world.report().current, world.report().adopted), (Some(v(1)), Some(v(1)), None));
    assert_eq!(world.restarts, 1, "nobody is restarted without a permit");
    assert_eq!(world.report().may_return_to, BTreeSet::from([v(0)]));
    assert_eq!(world.order(2, OrderKind::Adopt { version: v(1) }), Answer::Accepted);
    assert_eq!((world.report().adopted, world.restarts), (Some(v(1)), 2));
    assert_eq!(world.report().may_return_to, BTreeSet::new(), "ends with the settle time");
    assert_eq!(world.order(2, seal(0)), Answer::Accepted);
    assert_eq!(world.report().gone, Versions::from_iter([v(0)]));
    assert_eq!(world.files, BTreeSet::from([v(1)]));
}

#[test]
fn every_order_twice_changes_nothing_more() {
    let mut world = World::on_zero();
    for kind in [stage(1), activate(1), OrderKind::Adopt { version: v(1) }, seal(0)] {
        assert_eq!(world.order(2, kind.clone()), Answer::Accepted);
        let (state, restarts, flips) = (world.state.clone(), world.restarts, world.flips.clone());
        assert_eq!(world.order(2, kind), Answer::Accepted);
        assert_eq!((world.state.clone(), world.restarts, world.flips.clone()), (state, restarts, flips));
    }
}

#[test]
fn an_older_generation_and_a_replay_are_refused() {
    let mut world = World::on_zero();
    world.order(3, stage(1));
    assert_eq!(refused(world.order(2, activate(0))), "older_generation");
    assert_eq!(refused(world.order(3, activate(0))), "replay");
    assert_eq!(world.report().refused.map(|refused| refused.code), Some("replay".to_owned()));
    assert_eq!(world.link, Some(v(0)));
}

#[test]
fn the_same_version_with_another_digest_is_refused() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    let order = Order { epoch: ONE, generation: g(3), kind: stage(1), dead: BTreeSet::new() };
    world.give(HostEvent::Order { order, digest: Some(digest(9)), age: Some(Millis(0)) });
    assert_eq!(refused(world.answers.pop().unwrap()), "other_digest");
    assert_eq!(world.report().generation, Some(g(2)));
}

#[test]
fn old_epoch_order_in_flight() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.order(2, arm(1, 1000));
    let two = Epoch { counter: 2, id: 22 };
    world.give(HostEvent::Asked { epoch: two, question: 7 });
    assert_eq!((world.report().answers, world.report().armed), (7, None));
    assert_eq!(refused(world.order(3, activate(1))), "old_epoch");
    let stranger = Epoch { counter: 2, id: 33 };
    assert_eq!(refused(world.order_of(stranger, 1, activate(1), &[])), "stranger_epoch");
    assert_eq!(world.order_of(two, 1, activate(1), &[]), Answer::Accepted);
}

#[test]
fn a_disarmed_intent_never_flips() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.order(2, arm(1, 1000));
    assert_eq!(world.order(2, OrderKind::Disarm { version: v(1) }), Answer::Accepted);
    assert_eq!((world.report().may_flip, world.report().disarmed), (BTreeSet::new(), Some(g(2))));
    world.boot = 5000;
    world.give(HostEvent::Tick);
    assert_eq!(refused(world.order(2, arm(1, 1000))), "disarmed");
    assert_eq!(refused(world.order(2, activate(1))), "disarmed");
    assert_eq!(world.link, Some(v(0)));
}

#[test]
fn activate_without_arm_that_comes_after_its_disarm() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    assert_eq!(world.order(3, OrderKind::Disarm { version: v(1) }), Answer::Accepted);
    assert_eq!(refused(world.order(3, activate(1))), "disarmed");
}

#[test]
fn flips_again_after_own_rollback() {
    let mut world = World::on_zero();
    world.bad.insert(v(1));
    world.order(2, stage(1));
    world.order(2, activate(1));
    world.order(2, OrderKind::Adopt { version: v(1) });
    let report = world.report();
    assert_eq!((report.current, report.adopted), (Some(v(0)), Some(v(0))));
    let rolled_back = report.rolled_back.unwrap();
    assert_eq!((rolled_back.from, rolled_back.to, rolled_back.generation), (v(1), Some(v(0)), g(2)));
    assert_eq!(refused(world.order(2, activate(1))), "rolled_back");
    assert_eq!(refused(world.order(3, arm(1, 1000))), "rolled_back");
    world.bad.clear();
    let resume = OrderKind::Activate { version: v(1), answers: Some(g(2)) };
    assert_eq!(world.order(3, resume), Answer::Accepted);
    assert_eq!((world.link, world.report().rolled_back), (Some(v(1)), None));
}

#[test]
fn rollback_to_a_dead_version() {
    let mut world = World::on_zero();
    world.bad.insert(v(1));
    world.order(2, stage(1));
    world.order(2, activate(1));
    world.order_of(ONE, 2, OrderKind::Adopt { version: v(1) }, &[v(0)]);
    let report = world.report();
    assert_eq!(report.current, Some(v(1)), "none is left to return to");
    assert_eq!(report.rolled_back.unwrap().to, None);
    assert_eq!(report.consumers[&app()].state, ConsumerState::Failed);
    assert_eq!(refused(world.order(3, OrderKind::RollBack { to: v(0) })), "dead");
}

#[test]
fn after_the_settle_time_it_no_longer_rolls_back() {
    let mut world = World::on_zero();
    let turn = world.state.turn().unwrap();
    let state = world.state.clone();
    world.give(HostEvent::Unhealthy { turn, consumer: app(), reason: "late".to_owned() });
    assert_eq!(world.state, state);
}

#[test]
fn a_unit_that_was_unhealthy_before_is_not_the_credential() {
    let mut world = World::on_zero();
    world.bad.extend([v(0), v(1)]);
    world.order(2, stage(1));
    world.order(2, activate(1));
    world.order(2, OrderKind::Adopt { version: v(1) });
    let report = world.report();
    assert_eq!((report.current, report.rolled_back), (Some(v(1)), None));
    assert_eq!(report.consumers[&app()].state, ConsumerState::NotTheCredential);
}

#[test]
fn idle_consumer() {
    let mut world = World::on_zero();
    world.life = None;
    world.bad.insert(v(1));
    world.order(2, stage(1));
    world.order(2, activate(1));
    world.order(2, OrderKind::Adopt { version: v(1) });
    assert_eq!(world.report().consumers[&app()].state, ConsumerState::Idle);
    assert_eq!(world.report().adopted, None);
    assert_eq!(world.state.awaited(), BTreeMap::from([(app(), None)]));
    world.restart();
    let life = world.life().unwrap();
    world.give(HostEvent::Appeared { consumer: app(), life, on_another: false });
    assert_eq!(world.report().current, Some(v(0)), "it cannot use the new one, the old one still lies here");
}

#[test]
fn who_began_before_the_flip_and_shows_itself_after_it_is_not_on_the_new_version() {
    for by in [By::Permit, By::Itself] {
        let mut world = World::on_zero();
        world.give(HostEvent::Policy(Some(Rules { consumers: BTreeMap::from([(app(), by)]) })));
        // It is being started, and nobody can see it yet.
        world.life = None;
        world.order(2, stage(1));
        world.order(2, activate(1));
        world.order(2, OrderKind::Adopt { version: v(1) });
        assert_eq!(world.report().consumers[&app()].state, ConsumerState::Idle);
        world.life = Some(77);
        world.loaded = Some(v(0));
        let life = world.life().unwrap();
        world.give(HostEvent::Appeared { consumer: app(), life: life.clone(), on_another: true });
        if by == By::Itself {
            assert_eq!(world.report().adopted, None);
            assert_eq!(world.state.awaited(), BTreeMap::from([(app(), Some(life))]));
        } else {
            assert_eq!((world.report().adopted, world.loaded), (Some(v(1)), Some(v(1))));
        }
    }
}

/// One that waits for its window may begin a life on the new version before that opens: nobody restarts it then.
#[test]
fn who_shows_itself_on_the_old_version_and_restarts_by_itself_before_its_window_is_not_restarted() {
    let mut world = World::on_zero();
    world.give(HostEvent::Policy(Some(Rules { consumers: BTreeMap::from([(app(), By::Window)]) })));
    world.life = None;
    world.order(2, stage(1));
    world.order(2, activate(1));
    world.order(2, OrderKind::Adopt { version: v(1) });
    assert_eq!(world.report().consumers[&app()].state, ConsumerState::Idle);
    // The look that its appearance calls for waits for the window.
    let input = HostInput { boot: Millis(0) };
    let appeared = HostEvent::Appeared { consumer: app(), life: Life("77".to_owned()), on_another: true };
    let (state, effects) = step(world.state.clone(), input, appeared);
    assert!(matches!(effects.as_slice(), [HostEffect::Look { .. }]), "{effects:?}");
    assert_eq!(state.awaited(), BTreeMap::from([(app(), Some(Life("77".to_owned())))]));
    // Nobody has looked how it was: what it was like on the old version is said by the look, not by its appearance.
    let turn = state.turn().unwrap();
    let looked =
        |healthy| HostEvent::Looked { turn, consumer: app(), life: Some(Life("77".to_owned())), healthy };
    for healthy in [true, false] {
        let (state, effects) = step(state.clone(), input, looked(healthy));
        assert!(matches!(effects.as_slice(), [HostEffect::Adopt { .. }]), "{effects:?}");
        let reason = "it does not start".to_owned();
        let (state, _) = step(state, input, HostEvent::Unhealthy { turn, consumer: app(), reason });
        assert_eq!(state.has_open_flip(), healthy, "rolled back only if it was healthy before");
    }
    let again = HostEvent::Appeared { consumer: app(), life: Life("78".to_owned()), on_another: false };
    let (_, effects) = step(state, input, again);
    assert!(matches!(effects.as_slice(), [HostEffect::Settle { .. }]), "{effects:?}");
}

#[test]
fn an_ordered_rollback_takes_everybody_back() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.order(2, activate(1));
    world.order(2, OrderKind::Adopt { version: v(1) });
    assert_eq!(world.order(3, OrderKind::RollBack { to: v(0) }), Answer::Accepted);
    assert_eq!((world.report().adopted, world.loaded), (Some(v(0)), Some(v(0))));
    assert_eq!(refused(world.order(2, OrderKind::Adopt { version: v(1) })), "older_generation");
}

#[test]
fn who_had_not_adopted_is_not_restarted_by_a_rollback() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.order(2, activate(1));
    let restarts = world.restarts;
    world.order(3, OrderKind::RollBack { to: v(0) });
    assert_eq!((world.report().adopted, world.restarts), (Some(v(0)), restarts));
}

#[test]
fn seal_waits_for_the_flip_and_for_holders() {
    let mut world = World::on_zero();
    world.held.insert(v(0));
    assert_eq!(world.order(1, seal(0)), Answer::Accepted);
    assert_eq!(world.report().not_gone[&v(0)], "it is the current version");
    world.order(2, stage(1));
    world.order(2, activate(1));
    assert_eq!(world.report().not_gone[&v(0)], "held");
    world.held.clear();
    world.give(HostEvent::Recheck);
    assert_eq!(world.report().gone, Versions::from_iter([v(0)]));
    assert_eq!(refused(world.order(3, stage(0))), "dead");
    assert_eq!(refused(world.order_of(Epoch { counter: 2, id: 2 }, 1, stage(0), &[])), "dead", "for ever");
}

#[test]
fn never_had_the_set() {
    let mut world = World { life: Some(0), ..World::default() };
    assert_eq!(world.order(5, seal(3)), Answer::Accepted);
    assert_eq!(world.report().gone, Versions::from_iter([v(3)]));
}

#[test]
fn withdraw_at_last() {
    let mut world = World::on_zero();
    let OrderKind::Seal { version, cleared, cleared_gaps, .. } = seal(0) else { unreachable!() };
    world.order(2, OrderKind::Seal { version, cleared, cleared_gaps, withdraw: true });
    let report = world.report();
    assert_eq!((report.current, world.link, report.gone), (None, None, Versions::from_iter([v(0)])));
}

#[test]
fn set_dropped_from_policy() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.give(HostEvent::Policy(None));
    assert_eq!(refused(world.order(2, activate(1))), "not_in_policy");
    assert_eq!(refused(world.order(3, stage(2))), "not_in_policy");
    assert_eq!(world.link, Some(v(0)), "still served");
    assert_eq!(world.order(2, seal(1)), Answer::Accepted);
    assert_eq!(world.report().gone, Versions::from_iter([v(1)]), "a seal is obeyed whatever policy says");
}

#[test]
fn clocks_that_are_off_and_instants_that_are_not_to_be_met() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    let order = Order { epoch: ONE, generation: g(2), kind: arm(1, 1000), dead: BTreeSet::new() };
    world.give(HostEvent::Order { order, digest: None, age: None });
    assert_eq!(refused(world.answers.pop().unwrap()), "clock_off");
    assert_eq!(refused(world.order(2, arm(1, 5))), "late");
    assert_eq!(refused(world.order(2, arm(1, 60_001))), "horizon");
    assert_eq!(world.order(2, activate(1)), Answer::Accepted, "it flips at once when told");
    assert_eq!(world.report().refused, None);
}

#[test]
fn a_host_frozen_past_the_instant_waits_to_be_told() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.order(2, arm(1, 1000));
    world.boot = 60_000;
    world.give(HostEvent::Tick);
    assert_eq!((world.link, world.report().may_flip), (Some(v(0)), BTreeSet::new()));
    assert_eq!(world.order(2, activate(1)), Answer::Accepted);
    assert_eq!(world.link, Some(v(1)));
}

#[test]
fn discard_drops_only_what_was_never_armed() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    assert_eq!(world.order(2, OrderKind::Discard { version: v(1) }), Answer::Accepted);
    assert!(!world.files.contains(&v(1)));
    assert_eq!(world.order(2, stage(1)), Answer::Accepted);
    world.order(2, arm(1, 1000));
    assert_eq!(refused(world.order(2, OrderKind::Discard { version: v(1) })), "in_use");
    assert_eq!(refused(world.order(2, OrderKind::Discard { version: v(0) })), "in_use");
}

#[test]
fn what_was_dropped_is_unlinked_until_that_worked() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.stuck = true;
    world.order(2, OrderKind::Discard { version: v(1) });
    world.give(HostEvent::Recheck);
    assert!(world.files.contains(&v(1)) && world.state.has_open_unlinks());
    world.crash(false);
    assert!(world.files.contains(&v(1)) && world.state.has_open_unlinks());
    world.stuck = false;
    world.give(HostEvent::Recheck);
    assert!(!world.files.contains(&v(1)) && !world.state.has_open_unlinks());
    assert_eq!(world.unlinks, 4);
    world.give(HostEvent::Recheck);
    world.crash(false);
    assert_eq!(world.unlinks, 4, "once it worked it is over");
}

/// As after a journal was lost: who reads it may have it.
#[test]
fn what_a_start_finds_that_nobody_staged_is_gone_only_after_a_seal() {
    let mut world = World::new();
    world.files.insert(v(1));
    world.link = Some(v(1));
    world.crash(false);
    assert_eq!(world.report().current, Some(v(1)));
    for kind in [stage(2), activate(2), OrderKind::Adopt { version: v(2) }] {
        assert_eq!(world.order(2, kind), Answer::Accepted);
    }
    world.held.insert(v(1));
    world.order(2, seal(1));
    assert!(!world.report().gone.contains(v(1)), "{:#?}", world.report());
    world.held.clear();
    world.give(HostEvent::Recheck);
    assert!(world.report().gone.contains(v(1)) && !world.files.contains(&v(1)));
}

#[test]
fn what_a_start_does_not_find_is_unlinked_to_the_last_of_it() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.files.remove(&v(1));
    world.crash(true);
    assert_eq!(world.unlinks, 1, "its sealed copy may be there, and cannot be read");
    assert_eq!(world.order(2, stage(1)), Answer::Accepted);
    assert!(world.report().present.contains_key(&v(1)));
}

#[test]
fn an_agreement_ends_with_the_boot_and_not_with_our_restart() {
    let mut world = World::on_zero();
    for generation in [2, 3] {
        world.order(generation, stage(1));
        world.order(generation, arm(1, 1000));
        world.crash(false);
        assert_eq!(world.report().armed, Some(v(1)));
        world.crash(true);
        assert_eq!(world.report().armed, None);
    }
}

#[test]
fn a_new_consumer_is_watched_and_not_restarted() {
    let mut world = World::on_zero();
    let other = ConsumerName::new("reports.service").unwrap();
    let consumers = BTreeMap::from([(app(), By::Permit), (other.clone(), By::Permit)]);
    let restarts = world.restarts;
    world.give(HostEvent::Policy(Some(Rules { consumers })));
    assert_eq!(world.restarts, restarts);
    assert_eq!(world.report().consumers[&other].state, ConsumerState::Settled);
}

#[test]
fn who_read_files_of_two_versions_adopts_again() {
    let mut world = World::on_zero();
    world.order(2, stage(1));
    world.order(2, activate(1));
    world.order(2, OrderKind::Adopt { version: v(1) });
    let (turn, restarts) = (world.state.turn().unwrap(), world.restarts);
    world.give(HostEvent::Mixed { turn, consumer: app() });
    assert_eq!((world.report().adopted, world.restarts), (Some(v(1)), restarts + 1));
}

#[test]
fn a_crash_before_any_effect_restarts_nobody_twice_and_ends_the_same() {
    for rebooted in [false, true] {
        for step in 0..60 {
            let mut world = World::on_zero();
            world.restarts = 0;
            world.dies_in = Some(step);
            let mut died = false;
            let orders = [stage(1), arm(1, 1000), OrderKind::Adopt { version: v(1) }, seal(0)];
            for kind in orders {
                world.order(2, kind.clone());
                if matches!(kind, OrderKind::Arm { .. }) && !world.dead_now {
                    world.boot += 1000;
                    world.give(HostEvent::Tick);
                }
                if world.dead_now {
                    died = true;
                    world.crash(rebooted);
                }
                // The control plane goes on from what the report shows, as it would.
                let report = world.report();
                if !report.present.contains_key(&v(1)) {
                    world.order(2, stage(1));
                }
                if matches!(kind, OrderKind::Arm { .. }) {
                    world.boot += 1000;
                    world.give(HostEvent::Tick);
                    world.order(2, activate(1));
                }
                world.order(2, kind);
            }
            let report = world.report();
            assert_eq!(report.adopted, Some(v(1)), "step {step}");
            assert_eq!(report.gone, Versions::from_iter([v(0)]), "step {step}");
            assert_eq!(world.loaded, Some(v(1)));
            let boots = u32::from(rebooted && died);
            assert!(world.restarts <= 1 + boots, "step {step}: {} restarts", world.restarts);
            if !died {
                break;
            }
            assert!(step < 59, "the unkilled run has more steps than are tried");
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Order(u32, OrderKind, bool),
    Pass(u64),
    Crash { rebooted: bool, in_effects: u32 },
    Recheck,
    Restart,
    Stop,
    Break(u32),
    Hold(u32, bool),
}

fn kind() -> impl Strategy<Value = OrderKind> {
    let number = 0..3u32;
    let answers = proptest::option::of((0..6u32).prop_map(g));
    prop_oneof![
        4 => number.clone().prop_map(stage),
        2 => (number.clone(), 20..3000u64).prop_map(|(number, ms)| arm(number, ms)),
        4 => (number.clone(), answers)
            .prop_map(|(number, answers)| OrderKind::Activate { version: v(number), answers }),
        4 => number.clone().prop_map(|number| OrderKind::Adopt { version: v(number) }),
        1 => number.clone().prop_map(|number| OrderKind::Disarm { version: v(number) }),
        1 => number.clone().prop_map(|number| OrderKind::RollBack { to: v(number) }),
        1 => number.clone().prop_map(seal),
        1 => number.prop_map(|number| OrderKind::Discard { version: v(number) }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => (0..6u32, kind(), proptest::bool::weighted(0.05))
            .prop_map(|(generation, kind, dead)| Act::Order(generation, kind, dead)),
        3 => (0..5000u64).prop_map(Act::Pass),
        1 => (any::<bool>(), 0..4u32).prop_map(|(rebooted, in_effects)| Act::Crash { rebooted, in_effects }),
        1 => Just(Act::Recheck),
        1 => Just(Act::Restart),
        1 => Just(Act::Stop),
        1 => (0..3u32).prop_map(Act::Break),
        1 => (0..3u32, any::<bool>()).prop_map(|(number, held)| Act::Hold(number, held)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Late, lost, repeated and reordered orders, crashes and boots at any effect.
    #[test]
    fn nothing_dead_or_refused_becomes_current(acts in proptest::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        for act in acts {
            let before = world.state.clone();
            let flips = world.flips.len();
            let mut answering = None;
            match act {
                Act::Order(generation, kind, dead) => {
                    if let OrderKind::Activate { version, answers: Some(answers) } = &kind {
                        answering = Some((*version, *answers));
                    }
                    let dead = if dead { vec![v(0)] } else { vec![] };
                    world.order_of(ONE, generation, kind, &dead);
                }
                Act::Pass(ms) => {
                    world.boot += ms;
                    world.give(HostEvent::Tick);
                }
                Act::Crash { rebooted, in_effects } => {
                    world.dies_in = Some(in_effects);
                    world.boot += 100;
                    world.give(HostEvent::Tick);
                    world.crash(rebooted);
                }
                Act::Recheck => world.give(HostEvent::Recheck),
                Act::Restart => {
                    world.restart();
                    let life = world.life().unwrap();
                    world.give(HostEvent::Appeared { consumer: app(), life, on_another: false });
                }
                Act::Stop => world.life = None,
                Act::Break(number) => {
                    world.bad = BTreeSet::from([v(number)]);
                }
                Act::Hold(number, held) => {
                    if held { world.held.insert(v(number)); } else { world.held.remove(&v(number)); }
                }
            }
            for version in &world.flips[flips..] {
                prop_assert!(!before.dead.contains(*version), "flipped to a dead version");
                if let Some(left) = before.refuses.get(version) {
                    prop_assert!(answering == Some((*version, *left)), "flipped to a refused version");
                }
            }
            let report = world.report();
            prop_assert_eq!(report.current, world.link, "the report says what readers find");
            prop_assert!(report.current.is_none_or(|current| !report.gone.contains(current)));
            prop_assert!(world.files.iter().chain(&report.may_return_to).all(|v| !report.gone.contains(*v)));
            prop_assert!(report.present.keys().all(|version| world.files.contains(version)));
            prop_assert!(report.may_return_to.iter().all(|version| !world.state.dead.contains(*version)));
            prop_assert!(report.generation >= before.generation(), "an intent went back");
        }
    }

    /// The journal gives back what was put into it.
    #[test]
    fn the_state_survives_the_journal(acts in proptest::collection::vec((0..6u32, kind()), 1..30)) {
        let mut world = World::new();
        for (generation, kind) in acts {
            world.order(generation, kind);
        }
        let text = serde_json::to_string(&world.state).unwrap();
        prop_assert_eq!(serde_json::from_str::<SetState>(&text).unwrap(), world.state);
    }
}
