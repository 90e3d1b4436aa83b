//! Executions that the rules once allowed and a promise forbids. Each was found by reading the rules beside the design,
//! clause by clause; each is a test of the world, named for what must not happen.
//!
//! Version 1 is current everywhere at the start unless a test says otherwise, and h0 is the canary.

#![allow(clippy::unwrap_used, clippy::similar_names, reason = "what does not fit ends the test")]

mod world;

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::credential::{
    Clause, EffectKind, Event, IllegalEvent, Outcome, Overlap, Phase, Policy, Rotate, RotateReason, Selection,
};
use lifecycle::host::{By, HostEvent};
use lifecycle::report::PlaceFault;
use lifecycle::{EffectId, GapId, HolderId, Millis, Version};
use world::*;

const DAY: u64 = 86_400_000;

/// The version that the record has for this effect.
fn named(world: &World, effect: EffectId) -> Version {
    world.credential().versions().find(|view| view.minted_by == effect).map(|view| view.version).unwrap()
}

/// h0 has a version that the store forgot, and h1 another one of the same number.
fn clash() -> (World, EffectId, EffectId) {
    let mut world = World::on_one(2, policy());
    world.backend.blind = true;
    let snapshot = world.store.clone();
    world.go_down(1);
    world.rotate();
    world.settle();
    assert_eq!(world.hosts[&h(0)].link, Some(v(2)), "{}", world.picture());
    let forgotten = world.effect_of(v(2));

    world.host(0).up = false;
    world.host(1).up = true;
    world.revert(&snapshot);
    world.restart();
    world.settle();
    world.rotate();
    world.settle();
    assert_eq!(world.hosts[&h(1)].link, Some(v(2)), "{}", world.picture());
    let ours = world.effect_of(v(2));
    assert_ne!(ours, forgotten);
    (world, forgotten, ours)
}

#[test]
fn two_versions_of_one_number_are_told_apart() {
    for restored in [false, true] {
        let (mut world, forgotten, ours) = clash();
        if restored {
            // Its report carries an acknowledgement that this store never gave: a new epoch.
            let store = world.store.clone();
            world.host(0).up = true;
            world.restore(&store);
            world.settle();
        } else {
            world.come_back(0);
            world.settle();
        }
        assert_eq!(world.hosts[&h(0)].link, Some(v(2)), "{}", world.picture());
        let found = named(&world, forgotten);
        assert_ne!(found, v(2));
        assert!(!world.credential().version(found).unwrap().holds.is_empty(), "it starts held");
        let shown = world.credential().report(&h(0)).unwrap().current;
        assert_eq!(shown, Some(found), "what the host says is read in our numbers");

        // A process keeps what the store forgot. It is found under its own number, not under that of ours.
        world.host(0).others.insert(HolderId::new("proc:7:7").unwrap(), (v(2), forgotten));
        world.hear_all();
        world.rotate();
        world.settle();
        world.unhold_all();
        world.pass(DAY);
        let newest = world.credential().active().unwrap();
        assert!(newest > found && world.hosts.values().all(|host| host.link == Some(newest)));
        assert_eq!(world.backend.roles[&forgotten], Role::Alive, "{restored}: {}", world.picture());
        assert!(world.blocks(found, Clause::NoHolder), "{}", world.picture());
        assert_eq!(world.backend.roles[&ours], Role::Revoked, "{restored}: {}", world.picture());
        world.nobody_failed();

        world.host(0).others.clear();
        world.hear_all();
        world.settle();
        assert_eq!(world.backend.roles[&forgotten], Role::Revoked, "{restored}: {}", world.picture());
        world.nobody_failed();
    }
}

#[test]
fn a_place_of_a_forgotten_version_keeps_that_one_alive() {
    let (mut world, forgotten, _) = clash();
    world.host(0).places.push(PlaceFault {
        id: GapId::new("place-1").unwrap(),
        versions: BTreeSet::from([v(2)]),
        description: "cannot be read".into(),
    });
    world.come_back(0);
    world.settle();
    let found = named(&world, forgotten);
    world.rotate();
    world.settle();
    world.unhold_all();
    world.pass(DAY);
    assert!(world.blocks(found, Clause::Covered), "{}", world.picture());
    assert_eq!(world.backend.roles[&forgotten], Role::Alive);
    world.nobody_failed();
}

#[test]
fn a_late_order_for_one_number_flips_to_what_it_means_there() {
    // The store falls back while h0 has the earlier version of a number staged and not current.
    let mut world = World::on_one(2, policy());
    world.backend.blind = true;
    let snapshot = world.store.clone();
    world.go_down(1);
    world.lost.insert("activate");
    world.rotate();
    world.settle();
    let forgotten = world.effect_of(v(2));
    assert!(world.hosts[&h(0)].files.contains_key(&v(2)), "{}", world.picture());
    world.host(0).up = false;
    world.host(1).up = true;
    world.lost.clear();
    world.revert(&snapshot);
    world.restart();
    world.settle();
    world.rotate();
    world.settle();
    let ours = world.effect_of(v(2));
    assert_ne!(ours, forgotten);
    world.come_back(0);
    world.settle();
    world.rotate();
    world.settle();
    world.unhold_all();
    world.pass(DAY);
    let newest = world.credential().active().unwrap();
    assert!(world.hosts.values().all(|host| host.link == Some(newest)), "{}", world.picture());
    assert!(!world.host(0).shown.contains(&v(2)), "nobody ordered what the store forgot to become current");
    assert_eq!(world.backend.roles[&forgotten], Role::Revoked, "{}", world.picture());
    assert_eq!(world.backend.roles[&ours], Role::Revoked, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_host_that_names_huge_numbers_takes_none_away() {
    let mut world = World::on_one(2, policy());
    let mut forged = world.credential().report(&h(1)).unwrap().clone();
    forged.sequence += 1;
    world.host(1).sequence = forged.sequence;
    for number in [u32::MAX, u32::MAX - 1] {
        forged.present.insert(v(number), EffectId(u128::from(number)));
    }
    world.give(Event::Reported { target: h(1), report: forged });
    for _ in 0..2 {
        world.rotate();
        world.settle();
    }
    let numbers: Vec<u32> = world.credential().versions().map(|view| view.version.number).collect();
    assert!(numbers.iter().all(|number| *number < 10), "{numbers:?}");
    let active = world.credential().active().unwrap();
    assert!(world.hosts.values().all(|host| host.link == Some(active)), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_role_of_this_epoch_that_no_record_names_is_not_revoked() {
    let mut world = World::on_one(2, policy());
    let snapshot = world.store.clone();
    world.lost.insert("stage");
    world.rotate();
    world.pump();
    let forgotten = world.effect_of(v(2));
    world.lost.clear();
    world.revert(&snapshot);
    world.restart();
    world.settle();
    assert_eq!(named(&world, forgotten), v(2), "listed");
    world.unhold_all();
    world.pass(DAY);
    assert_eq!(world.backend.roles[&forgotten], Role::Alive, "{}", world.picture());
    assert!(world.blocks(v(2), Clause::NoHold));

    // Once that epoch has ended it is held anew, and dies after an operator's word.
    let store = world.store.clone();
    world.restore(&store);
    world.settle();
    assert_eq!(world.backend.roles[&forgotten], Role::Alive, "{}", world.picture());
    world.unhold_all();
    assert_eq!(world.backend.roles[&forgotten], Role::Revoked, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_restored_store_without_any_version_still_looks_for_roles() {
    let mut world = World::empty(2, policy());
    let backup = world.store.clone();
    world.lost.insert("stage");
    world.rotate();
    world.pump();
    let forgotten = world.effect_of(v(1));
    world.lost.clear();
    world.restore(&backup);
    world.settle();
    assert!(!world.credential().version(named(&world, forgotten)).unwrap().holds.is_empty());
    world.unhold_all();
    assert_eq!(world.backend.roles[&forgotten], Role::Revoked, "{}", world.picture());
}

#[test]
fn a_compromise_is_not_forgotten_over_a_value_that_waits() {
    for value_first in [true, false] {
        let mut world = World::on_one(2, policy());
        world.host(0).sick.insert(v(2));
        world.rotate();
        world.settle();
        assert!(world.credential().rollout().unwrap().halted.is_some(), "{}", world.picture());
        let value = EffectId(77);
        world.backend.roles.insert(value, Role::Alive);
        world.store.values.insert(value);
        if value_first {
            world.give(Event::Noticed { value });
        }
        world.compromise(None).unwrap();
        if !value_first {
            world.give(Event::Noticed { value });
        }
        world.settle();
        assert_eq!(world.role(v(1)), Some(Role::Revoked), "{value_first}: {}", world.picture());
        world.nobody_failed();
    }
}

#[test]
fn a_compromise_waits_for_nobody_who_has_just_fallen_silent() {
    let mut world = World::on_one(2, policy());
    world.go_down(1);
    world.compromise(Some(30_000)).unwrap();
    world.written_off.insert(h(1));
    world.pass(60_000);
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_version_that_the_backend_refuses_replaces_nothing() {
    let mut world = World::on_one(2, Policy { grace_ms: Millis::seconds(3600), ..policy() });
    world.rotate();
    world.pump_until(|world| world.phase(v(1)) == Some(Phase::Superseded));
    let second = world.effect_of(v(2));
    // Somebody drops the role by hand; a new host needs it, so it is tried again.
    world.backend.roles.insert(second, Role::Revoked);
    world.restart();
    world.hosts.insert(h(2), Host::new());
    world.select();
    world.connect();
    world.pass(DAY);
    assert!(world.credential().version(v(2)).unwrap().stuck.is_some(), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
}

#[test]
fn a_version_that_was_sealed_in_an_earlier_life_replaces_nothing() {
    let mut world = World::on_one(2, policy()).rotated(v(2));
    world.settle();
    let backup = world.store.clone();
    world.host(1).up = false;
    world.rotate();
    world.settle();
    world.pass(DAY);
    assert_eq!(world.hosts[&h(0)].link, Some(v(3)), "{}", world.picture());
    world.host(1).stop_app();
    world.written_off.insert(h(1));
    world.give(Event::Disconnected { target: h(1) });
    world.give(Event::Excuse { target: h(1), version: v(2) });
    world.settle();
    assert_eq!(world.role(v(2)), Some(Role::Revoked), "{}", world.picture());
    world.written_off.clear();

    // The backup says that version 2 is active and verified. h0 knows better.
    world.host(1).up = true;
    world.restore(&backup);
    world.settle();
    let stands_in = world.credential().versions().find(|view| view.minted_by == world.effect_of(v(3)));
    assert!(stands_in.is_some(), "{}", world.picture());
    world.unhold_all();
    let third = world.effect_of(v(3));
    assert_eq!(world.backend.roles[&third], Role::Alive, "{}", world.picture());
}

#[test]
fn time_in_which_the_backend_says_nothing_is_no_grace() {
    let mut world = World::on_one(2, Policy { grace_ms: Millis::seconds(3600), ..policy() });
    world.rotate();
    world.pump_until(|world| world.phase(v(1)) == Some(Phase::Superseded));
    world.backend.mute = true;
    world.pass(7_200_000);
    world.backend.mute = false;
    world.pass(600_000);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    assert!(world.blocks(v(1), Clause::Grace), "{}", world.picture());
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_pair_passes_the_gate_again_after_a_start() {
    let mut world = World::on_one(2, Policy { overlap: Overlap::Pair, ..policy() }).rotated(v(2));
    world.rotate();
    let ends_one = |kind: &EffectKind| matches!(kind, EffectKind::Mint { replaces: Some(_), .. });
    world.pump_until(|world| world.holds_open(ends_one));
    world.restart();
    world.give(Event::Hold { version: v(1), by: "an operator".into() });
    world.settle();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    world.give(Event::Unhold { version: v(1) });
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    assert_eq!(world.credential().active(), Some(v(3)), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_pair_at_rest_asks_nobody() {
    let mut world = World::on_one(2, Policy { overlap: Overlap::Pair, ..policy() }).rotated(v(2));
    world.settle();
    assert_eq!(world.phase(v(1)), Some(Phase::Sealing), "{}", world.picture());
    let asks = |world: &World| world.holds_open(|kind| matches!(kind, EffectKind::Ask { .. }));
    for _ in 0..10 {
        world.give(Event::Tick);
        assert!(!asks(&world), "{}", world.picture());
        world.pass(60_000);
    }
}

#[test]
fn a_mint_that_ends_after_it_was_given_up_leaves_no_role() {
    let mut world = World::on_one(2, policy());
    world.rotate();
    world.pump_until(|world| world.holds_open(|kind| matches!(kind, EffectKind::Mint { .. })));
    let effect = world.effect_of(v(2));
    world.give(Event::Abort { reason: "an operator said so".into() });
    world.pass(60_000);
    assert_eq!(world.phase(v(2)), Some(Phase::Retired), "{}", world.picture());

    // The mint was under way all the time.
    world.backend.roles.insert(effect, Role::Alive);
    world.give(Event::Minted { effect, outcome: Outcome::Done });
    world.pass(2 * 3_600_000);
    assert_eq!(world.backend.roles[&effect], Role::Revoked, "{}", world.picture());
}

#[test]
fn what_comes_to_the_backend_late_passes_the_gate_as_well() {
    let mut world = World::on_one(2, policy());
    world.backend.late_create = true;
    world.rotate();
    world.settle();
    world.give(Event::Abort { reason: "an operator said so".into() });
    world.pass(60_000);
    let late = world.backend.late[0];
    world.backend.roles.insert(late, Role::Alive);
    // A host that does not answer could have it: nobody knows.
    world.go_down(1);
    world.pass(2 * 3_600_000);
    assert_eq!(world.backend.roles[&late], Role::Alive, "{}", world.picture());
    assert!(world.blocks(v(2), Clause::Fresh), "{}", world.picture());
    world.come_back(1);
    world.settle();
    assert_eq!(world.backend.roles[&late], Role::Revoked, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_canary_that_died_is_not_waited_for() {
    let mut world = World::on_one(3, policy());
    world.lost.insert("activate");
    world.rotate();
    world.pump();
    world.lost.clear();
    world.go_down(0);
    world.pass(600_000);
    world.settle();
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
    assert_eq!(world.hosts[&h(1)].link, Some(v(2)));
    assert!(world.done.contains(&"arm 2 to h2".to_owned()), "one of them tried it first: {:?}", world.done);
    world.nobody_failed();
}

#[test]
fn a_set_that_is_in_policy_again_is_served_again() {
    let mut world = World::on_one(2, Policy { grace_ms: Millis::seconds(3600), ..policy() });
    world.host(1).give(HostEvent::Policy(None));
    world.rotate();
    world.pass(600_000);
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());

    // Back in policy before anything was withdrawn; the nightly job that reads it does not run now.
    world.host(1).give(HostEvent::Policy(Some(rules(By::Permit))));
    world.host(1).stop_app();
    world.hear_all();
    world.pass(DAY);
    world.settle();
    assert_eq!(world.hosts[&h(1)].link, Some(v(2)), "{}", world.picture());
    world.host(1).start_app();
    world.hear_all();
    world.settle();
    assert_eq!(world.hosts[&h(1)].loaded.map(|(on, _)| on), Some(v(2)));
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn whoever_falls_silent_while_it_restarts_keeps_its_place_in_the_wave() {
    let mut world = World::on_one(4, Policy { wave: 1, ..policy() });
    for n in 1..4 {
        world.host(n).slow = true;
    }
    world.rotate();
    let restarting = |world: &World| -> Vec<usize> {
        (1..4).filter(|n| world.hosts[&h(*n)].loaded.is_some_and(|(on, _)| on == v(2))).collect()
    };
    while restarting(&world).is_empty() {
        world.pass(1_000);
    }
    let first = restarting(&world)[0];
    world.go_down(first);
    world.pass(60_000);
    assert_eq!(restarting(&world), vec![first], "{}", world.picture());
    world.pass(120_000);
    assert_eq!(restarting(&world).len(), 2, "it is waited for no longer: {}", world.picture());
}

#[test]
fn a_consumer_that_leaves_policy_is_audited() {
    let mut world = World::on_one(2, policy());
    world.host(1).stop_app();
    let mut world = world.rotated(v(2));
    assert!(world.blocks(v(1), Clause::Adopted), "{}", world.picture());
    world.host(1).give(HostEvent::Policy(Some(lifecycle::host::Rules::default())));
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    let said = world.audit.iter().any(|entry| entry.contains("orders.service") && entry.contains("policy"));
    assert!(said, "{:?}", world.audit);
}

#[test]
fn what_can_arrive_no_more_is_forgotten_like_any_other() {
    let mut world = World::on_one(1, policy());
    world.backend.mint = Some(Outcome::Refused("permission denied".into()));
    for _ in 0..30 {
        world.rotate();
        world.settle();
        world.pass(DAY + 1);
    }
    let kept = world.credential().versions().count();
    assert!(kept <= 10, "{kept} versions are remembered");
}

#[test]
fn a_start_lets_nothing_be_given_up_before_the_targets_answered() {
    let mut world = World::on_one(2, policy());
    world.host(1).up = false;
    world.restart();
    for event in [
        Event::Abort { reason: "early".into() },
        Event::Halt { reason: "early".into() },
        Event::Resume,
        Event::Deleted,
    ] {
        assert_eq!(world.try_give(event), Err(IllegalEvent::Starting));
    }
}

#[test]
fn a_label_that_changes_frees_nobody_who_may_have_an_imported_version() {
    let mut world = World::empty(1, policy());
    // Enrolled, and never heard of since.
    world.hosts.insert(h(1), Host::new());
    world.host(1).up = false;
    world.select();
    let imported = EffectId(7);
    world.backend.roles.insert(imported, Role::Alive);
    world.store.values.insert(imported);
    world.give(Event::Imported { value: imported });
    world.host(1).hidden.push((v(0), imported));
    world.give(Event::Unhold { version: v(0) });
    world.rotate();
    world.pass(600_000);
    let canary = Selection { canary: true, ..Selection::default() };
    world.give(Event::Selected(BTreeMap::from([(h(0), canary)])));
    world.pass(DAY);
    assert_eq!(world.credential().active(), Some(v(1)), "{}", world.picture());
    assert_eq!(world.role(v(0)), Some(Role::Alive), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_create_that_was_tried_twice_is_swept_though_one_of_them_succeeded() {
    let mut world = World::on_one(2, policy());
    world.backend.late_create = true;
    world.rotate();
    world.pump_until(|world| !world.backend.late.is_empty());
    let first = world.backend.late[0];
    world.backend.late_create = false;
    world.pass(1_000);
    assert!(world.backend.roles.contains_key(&first), "{}", world.picture());
    world.give(Event::Abort { reason: "an operator said so".into() });
    world.pass(60_000);
    assert_eq!(world.phase(v(2)), Some(Phase::Retired), "{}", world.picture());

    // The first request arrives after all.
    world.backend.roles.insert(first, Role::Alive);
    world.pass(2 * 3_600_000);
    assert_eq!(world.backend.roles[&first], Role::Revoked, "{}", world.picture());
}

#[test]
fn whoever_restarts_by_itself_before_its_turn_and_cannot_use_the_version_stops_the_rollout() {
    let mut world = World::on_one(4, Policy { wave: 1, ..policy() });
    world.host(1).slow = true;
    world.host(3).sick.insert(v(2));
    world.rotate();
    while world.hosts[&h(3)].link != Some(v(2)) {
        world.pass(1_000);
    }
    world.host(3).start_app();
    world.hear_all();
    world.host(1).slow = false;
    let turn = world.hosts[&h(1)].state.turn().unwrap();
    world.host(1).give(HostEvent::Healthy { turn, consumer: app() });
    world.hear_all();
    world.pass(60_000);
    assert!(world.credential().rollout().is_some_and(|r| r.halted.is_some()), "{}", world.picture());
    assert_eq!(world.hosts[&h(3)].link, Some(v(1)), "{}", world.picture());
}

#[test]
fn a_pair_goes_on_after_a_mint_that_was_given_up() {
    for refused in [true, false] {
        let mut world = World::on_one(2, Policy { overlap: Overlap::Pair, ..policy() }).rotated(v(2));
        world.settle();
        world.backend.mint = refused.then(|| Outcome::Refused("permission denied".into()));
        world.rotate();
        if refused {
            world.settle();
        } else {
            let ends_one = |kind: &EffectKind| matches!(kind, EffectKind::Mint { replaces: Some(_), .. });
            world.pump_until(|world| world.holds_open(ends_one));
            world.give(Event::Abort { reason: "an operator said so".into() });
        }
        world.backend.mint = None;
        world.pass(DAY);
        assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
        world.rotate();
        world.settle();
        assert!(world.credential().active() > Some(v(2)), "{refused}: {}", world.picture());
        assert_eq!(world.role(v(1)), Some(Role::Revoked), "{refused}: {}", world.picture());
        world.nobody_failed();
    }
}

#[test]
fn a_canary_on_which_nothing_runs_proves_nothing() {
    let mut world = World::on_one(6, policy());
    world.host(0).stop_app();
    world.hear_all();
    for n in 1..6 {
        world.host(n).sick.insert(v(2));
    }
    world.rotate();
    world.settle();
    assert!(world.credential().rollout().unwrap().halted.is_some(), "{}", world.picture());
    let saw = world.hosts.values().filter(|host| host.shown.contains(&v(2))).count();
    assert!(saw <= 2, "{saw} hosts saw a version that nobody had come up on: {}", world.picture());
}

#[test]
fn silence_of_the_backend_is_no_grace_whenever_it_ends() {
    let mut world = World::on_one(2, Policy { grace_ms: Millis::seconds(3600), ..policy() });
    world.rotate();
    world.pump_until(|world| world.phase(v(1)) == Some(Phase::Superseded));
    world.pass(60_000);
    world.backend.mute = true;
    world.pump_until(|world| world.holds_open(|kind| matches!(kind, EffectKind::Sample { .. })));
    let sample =
        world.credential().outbox().find(|e| matches!(e.kind, EffectKind::Sample { .. })).unwrap().id;
    // Nothing at all happens here for most of the grace time, then the count comes in.
    world.now += 3_000_000;
    world.give(Event::Sampled { effect: sample, sessions: Some(0) });
    let left =
        world.why_not(v(1)).into_iter().find(|b| b.clause == Clause::Grace).expect("grace is left").who;
    let seconds: u64 = left.split(' ').next().unwrap().parse().unwrap();
    assert!(seconds > 3_400, "{left}");
}

#[test]
fn a_host_with_no_version_left_to_return_to_is_told_of_as_stuck() {
    let mut world = World::on_one(2, policy());
    world.go_down(1);
    world.rotate();
    world.pass(600_000);
    world.give(Event::Excuse { target: h(1), version: v(1) });
    world.host(1).stop_app();
    world.written_off.insert(h(1));
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.host(1).start_app();
    world.host(1).sick.insert(v(2));
    world.come_back(1);
    world.settle();
    assert!(
        world.hosts[&h(1)].state.report().rolled_back.is_some_and(|r| r.to.is_none()),
        "{}",
        world.picture()
    );
    let stuck = world.credential().stuck().expect("an operator is told").clone();
    assert!(stuck.reason.contains("h1") && stuck.advice.contains("rotate"), "{stuck:?}");
}

#[test]
fn an_outage_ends_by_itself() {
    let mut world = World::on_one(2, policy());
    world.rotate();
    world.pump_until(|world| world.holds_open(|kind| matches!(kind, EffectKind::Mint { .. })));
    let mint = world.effect_of(v(2));
    fails_forty_times(&mut world, mint, |outcome| Event::Minted { effect: mint, outcome });
    let stuck = world.credential().version(v(2)).unwrap().stuck.clone();
    assert!(stuck.is_some_and(|stuck| stuck.reason.contains("connection refused")), "{}", world.picture());
    world.settle();
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
    assert!(world.credential().version(v(2)).unwrap().stuck.is_none());
}

#[test]
fn a_host_that_names_the_highest_number_it_may_takes_no_record_away() {
    let mut world = World::on_one(2, policy());
    for _ in 0..3 {
        let mut forged = world.credential().report(&h(1)).unwrap().clone();
        forged.sequence += 1;
        forged.gone.insert(v(u32::MAX / 2));
        world.host(1).sequence = forged.sequence;
        world.give(Event::Reported { target: h(1), report: forged });
        world.rotate();
        world.settle();
        let active = world.credential().active().unwrap();
        assert!(world.hosts.values().all(|host| host.link == Some(active)), "{}", world.picture());
    }
    let recorded: BTreeSet<EffectId> = world.credential().versions().map(|view| view.minted_by).collect();
    let lost: Vec<_> = world.backend.roles.keys().filter(|role| !recorded.contains(*role)).collect();
    assert!(lost.is_empty(), "{lost:?}: {}", world.picture());
    world.nobody_failed();
}

/// The backend does not answer this effect forty times, and says of each only that it failed.
fn fails_forty_times(world: &mut World, effect: EffectId, event: impl Fn(Outcome) -> Event) {
    for _ in 0..40 {
        let tries = world.handed_out[&effect];
        world.give(event(Outcome::Failed("connection refused".into())));
        while world.handed_out[&effect] == tries {
            let due = world.credential().next_due(Millis(world.now)).unwrap();
            world.now = due.0.max(world.now + 1);
            world.give(Event::Tick);
        }
    }
}

fn open_effect(world: &World, is: impl Fn(&EffectKind) -> bool) -> EffectId {
    world.credential().outbox().find(|effect| is(&effect.kind)).unwrap().id
}

#[test]
fn an_outage_before_the_mint_ends_by_itself() {
    for compromised in [false, true] {
        let mut world = World::on_one(2, policy());
        if compromised {
            world.compromise(None).unwrap();
        } else {
            world.rotate();
        }
        let preflight = open_effect(&world, |kind| *kind == EffectKind::Preflight);
        fails_forty_times(&mut world, preflight, |outcome| Event::Preflighted { effect: preflight, outcome });
        let stuck = world.credential().stuck().cloned();
        assert!(stuck.is_some_and(|s| s.reason.contains("connection refused")), "{}", world.picture());
        world.settle();
        assert_eq!(world.credential().active(), Some(v(2)), "{compromised}: {}", world.picture());
        assert_eq!(world.credential().stuck(), None);
    }
}

#[test]
fn an_outage_before_the_mint_can_be_resumed_and_given_up() {
    for resumed in [false, true] {
        let mut world = World::on_one(2, policy());
        world.rotate();
        let preflight = open_effect(&world, |kind| *kind == EffectKind::Preflight);
        fails_forty_times(&mut world, preflight, |outcome| Event::Preflighted { effect: preflight, outcome });
        world.give(if resumed { Event::Resume } else { Event::Abort { reason: "said".into() } });
        assert_eq!(world.credential().stuck(), None);
        assert_eq!(world.credential().rollout().is_some(), resumed, "{}", world.picture());
        world.settle();
        let active = if resumed { v(2) } else { v(1) };
        assert_eq!(world.credential().active(), Some(active), "{}", world.picture());
    }
}

#[test]
fn a_backend_that_is_down_at_our_start_is_swept_when_it_is_back() {
    let mut world = World::on_one(2, policy());
    let backup = world.store.clone();
    world.lost.insert("stage");
    world.rotate();
    world.pump();
    let forgotten = world.effect_of(v(2));
    world.lost.clear();
    world.backend.blind = true;
    world.restore(&backup);
    world.pass(600_000);
    assert!(world.credential().versions().all(|view| view.minted_by != forgotten), "{}", world.picture());
    world.backend.blind = false;
    world.pass(600_000);
    world.unhold_all();
    assert_eq!(world.backend.roles[&forgotten], Role::Revoked, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn what_went_wrong_earlier_does_not_stop_the_revocation() {
    let mut world = World::on_one(2, policy());
    let first = world.effect_of(v(1));
    // A login with the active version is refused; a new host needs it, so it is tried.
    world.restart();
    world.hosts.insert(h(2), Host::new());
    world.host(2).up = false;
    world.select();
    world.settle();
    world.backend.roles.insert(first, Role::Revoked);
    world.restart();
    world.come_back(2);
    assert!(world.credential().version(v(1)).unwrap().stuck.is_some(), "{}", world.picture());
    world.backend.roles.insert(first, Role::Alive);
    world.refused.clear();
    world.rotate();
    world.settle();
    assert_eq!(world.phase(v(1)), Some(Phase::Retired), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn sessions_that_could_be_ended_at_last_are_nobodys_matter() {
    let mut world = World::on_one(2, policy());
    let holder = HolderId::new("proc:7:7").unwrap();
    let by = world.effect_of(v(1));
    world.host(1).others.insert(holder.clone(), (v(1), by));
    world.hear_all();
    world.compromise(None).unwrap();
    let ends = |kind: &EffectKind| matches!(kind, EffectKind::EndSessions { .. });
    world.pump_until(|world| world.holds_open(ends));
    let effect = open_effect(&world, ends);
    fails_forty_times(&mut world, effect, |outcome| Event::SessionsEnded { effect, outcome });
    assert!(world.credential().version(v(1)).unwrap().stuck.is_some(), "{}", world.picture());
    world.give(Event::SessionsEnded { effect, outcome: Outcome::Done });
    assert_eq!(world.credential().version(v(1)).unwrap().stuck, None);
    world.host(1).others.remove(&holder);
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
}

#[test]
fn nobody_is_left_to_believe_that_an_orphan_is_rotated() {
    let mut world = World::on_one(2, policy());
    world.give(Event::Orphaned(true));
    assert_eq!(world.compromise(None), Err(IllegalEvent::Orphaned));
    let demand = Event::Rotate(Rotate { reason: RotateReason::Demand });
    assert_eq!(world.try_give(demand), Err(IllegalEvent::Orphaned));
    assert!(!world.credential().version(v(1)).unwrap().compromised, "nothing was begun");
    world.give(Event::Orphaned(false));
    world.compromise(None).unwrap();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
}

#[test]
fn a_deleted_credential_stays_until_its_mint_can_no_longer_arrive() {
    let mut world = World::on_one(2, policy());
    world.backend.late_create = true;
    world.rotate();
    world.pump_until(|world| !world.backend.late.is_empty());
    world.give(Event::Deleted);
    for n in 0..2 {
        world.written_off.insert(h(n));
        world.host(n).stop_app();
    }
    world.hear_all();
    world.pass(60_000);
    assert!(world.credential().versions().all(|view| view.phase.is_ended()), "{}", world.picture());
    assert!(!world.is_finished(), "{}", world.picture());

    let late = world.backend.late[0];
    world.backend.roles.insert(late, Role::Alive);
    // Nobody can be asked in the last hours.
    world.pass(DAY - 120_000 - 3_600_000);
    assert_eq!(world.backend.roles[&late], Role::Revoked, "{}", world.picture());
    world.backend.roles.insert(late, Role::Alive);
    world.backend.blind = true;
    world.pass(2 * 3_600_000);
    assert!(!world.is_finished(), "{}", world.picture());
    world.backend.blind = false;
    world.pass(2 * 3_600_000);
    assert_eq!(world.backend.roles[&late], Role::Revoked, "{}", world.picture());
    assert!(world.is_finished(), "{}", world.picture());
}

#[test]
fn a_host_that_dropped_the_set_does_not_stop_a_deadline() {
    let mut world = World::on_one(3, policy());
    world.host(2).give(HostEvent::Policy(None));
    world.hear_all();
    // A process of its own that nobody restarts.
    let first = world.effect_of(v(1));
    world.host(1).others.insert(HolderId::new("proc:7:7").unwrap(), (v(1), first));
    world.hear_all();
    world.compromise(Some(600_000)).unwrap();
    world.written_off.extend([h(1), h(2)]);
    world.pass(3_600_000);
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
}

#[test]
fn what_is_gone_takes_no_more_room_the_longer_a_host_lives() {
    let mut world = World::on_one(1, policy());
    let size = |world: &World| serde_json::to_vec(&world.hosts[&h(0)].state).unwrap().len();
    for _ in 0..4 {
        world.rotate();
        world.settle();
    }
    let early = size(&world);
    for _ in 0..40 {
        world.rotate();
        world.settle();
    }
    let late = size(&world);
    assert!(late < early + 64, "{early} bytes, then {late}");
}

/// A process on h1 keeps version 1, and version 2 is active.
fn kept_by_a_process() -> (World, HolderId) {
    let mut world = World::on_one(2, policy());
    let (holder, by) = (HolderId::new("proc:7:7").unwrap(), world.effect_of(v(1)));
    world.host(1).others.insert(holder.clone(), (v(1), by));
    world.rotate();
    world.settle();
    assert!(world.blocks(v(1), Clause::NoHolder), "{}", world.picture());
    (world, holder)
}

#[test]
fn a_holder_that_was_cleared_counts_no_more_and_the_next_one_does() {
    let (mut world, holder) = kept_by_a_process();
    let unknown = HolderId::new("proc:8:8").unwrap();
    let refused = world.try_give(Event::ClearHolder { target: h(1), holder: unknown.clone() });
    assert!(matches!(refused, Err(IllegalEvent::UnknownHolder { .. })), "{refused:?}");
    world.give(Event::ClearHolder { target: h(1), holder });
    let by = world.effect_of(v(1));
    world.host(1).others.insert(unknown.clone(), (v(1), by));
    world.hear_all();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    world.host(1).others.remove(&unknown);
    world.written_off.insert(h(1));
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    assert!(world.audit.iter().any(|entry| entry.contains("proc:7:7") && entry.contains("cleared")));
}

#[test]
fn a_compromise_lifts_what_a_restore_holds_and_not_what_an_operator_holds() {
    let mut world = World::on_one(2, policy());
    world.give(Event::Hold { version: v(1), by: "anna".into() });
    let refused = world.compromise(None);
    assert_eq!(refused, Err(IllegalEvent::Held { version: v(1), by: "anna".into() }));
    world.settle();
    assert_eq!(world.credential().active(), Some(v(1)), "nothing was begun");
    world.give(Event::Unhold { version: v(1) });

    let store = world.store.clone();
    world.restore(&store);
    world.settle();
    assert!(world.blocks(v(1), Clause::NoHold), "{}", world.picture());
    world.compromise(None).unwrap();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn an_idle_consumer_adopts_where_the_credential_says_so() {
    for idle_adopts in [false, true] {
        let mut world = World::on_one(2, Policy { idle_adopts, ..policy() });
        world.host(1).stop_app();
        world.hear_all();
        world.rotate();
        world.settle();
        world.pass(DAY);
        let role = if idle_adopts { Role::Revoked } else { Role::Alive };
        assert_eq!(world.role(v(1)), Some(role), "{}", world.picture());
        world.nobody_failed();
    }
}

#[test]
fn a_host_whose_word_is_doubted_holds_the_gate_until_it_reports_whole() {
    let (mut world, holder) = kept_by_a_process();
    world.give(Event::Incomplete { target: h(1) });
    world.host(1).up = false;
    world.host(1).others.remove(&holder);
    world.pass(DAY);
    assert!(world.blocks(v(1), Clause::Covered), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.come_back(1);
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_host_that_is_selected_no_more_counts_as_long_as_it_may_have_the_version() {
    let (mut world, holder) = kept_by_a_process();
    let canary = Selection { canary: true, ..Selection::default() };
    world.give(Event::Selected(BTreeMap::from([(h(0), canary)])));
    world.pass(DAY);
    assert!(world.blocks(v(1), Clause::NoHolder), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.host(1).others.remove(&holder);
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    assert_eq!(world.hosts[&h(1)].link, Some(v(2)), "what it has is still served");
    world.nobody_failed();
}

#[test]
fn wishes_that_come_during_a_rollout_become_one_and_the_newest_value_wins() {
    let mut world = World::on_one(2, policy());
    world.rotate();
    world.pump_until(|world| world.credential().rollout().is_some_and(|rollout| rollout.version.is_some()));
    for value in [EffectId(70), EffectId(71)] {
        world.backend.roles.insert(value, Role::Alive);
        world.store.values.insert(value);
        world.rotate();
        world.give(Event::Noticed { value });
    }
    world.settle();
    world.settle();
    let minted: Vec<_> = world.credential().versions().map(|view| view.minted_by).collect();
    assert_eq!(minted.len(), 3, "{}", world.picture());
    assert!(minted.contains(&EffectId(71)) && !minted.contains(&EffectId(70)), "{minted:?}");
    assert_eq!(world.credential().active(), Some(v(3)), "{}", world.picture());
}

#[test]
fn a_hold_is_honoured_while_a_version_is_sealed_and_refused_once_it_is_retired() {
    let mut world = World::on_one(2, policy());
    world.lost.insert("seal");
    world.rotate();
    world.settle();
    assert_eq!(world.phase(v(1)), Some(Phase::Sealing), "{}", world.picture());
    world.give(Event::Hold { version: v(1), by: "anna".into() });
    world.lost.clear();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    world.give(Event::Unhold { version: v(1) });
    world.pump_until(|world| world.phase(v(1)) == Some(Phase::Retiring));
    let late = world.try_give(Event::Hold { version: v(1), by: "anna".into() });
    assert_eq!(late, Err(IllegalEvent::Ended(v(1))));
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked));
}

#[test]
fn a_holder_of_two_versions_is_cleared_for_the_older_one_alone() {
    let (mut world, holder) = kept_by_a_process();
    let mut report = world.credential().report(&h(1)).unwrap().clone();
    report.sequence += 1;
    let older = report.holders.iter().find(|shown| shown.id == holder).unwrap().clone();
    report.holders.push(lifecycle::report::Holder { version: v(2), ..older });
    world.host(1).sequence = report.sequence;
    world.give(Event::Reported { target: h(1), report: report.clone() });
    world.give(Event::ClearHolder { target: h(1), holder: holder.clone() });
    let left: Vec<_> = world.why_not(v(2)).into_iter().filter(|b| b.clause == Clause::NoHolder).collect();
    assert!(left.iter().any(|blocker| blocker.who.contains("proc:7:7")), "{left:?}");
    assert!(!world.blocks(v(1), Clause::NoHolder), "{}", world.picture());

    report.sequence += 1;
    report.holders.retain(|shown| shown.version != v(1));
    world.give(Event::Reported { target: h(1), report });
    let refused = world.try_give(Event::ClearHolder { target: h(1), holder: holder.clone() });
    let current = IllegalEvent::HoldsCurrent { target: h(1), holder, version: v(2) };
    assert_eq!(refused, Err(current));
}
