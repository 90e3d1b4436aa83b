//! Executions that must not happen. Each was found by searching a model of an earlier wording of the rules.
//!
//! Version 1 is current everywhere at the start unless a test says otherwise, and h0 is the canary.

#![allow(clippy::unwrap_used, clippy::similar_names, reason = "what does not fit ends the test")]

mod world;

use std::collections::BTreeSet;

use lifecycle::credential::{Clause, EffectKind, Event, IllegalEvent, Outcome, Phase, Policy};
use lifecycle::host::{HostEvent, RefusalCode, Rules};
use lifecycle::report::{Gap, PlaceFault};
use lifecycle::{EffectId, Epoch, GapId, Generation, HolderId, Millis, OrderKind, SetReport, Version};
use world::*;

const DAY: u64 = 86_400_000;

fn slow_policy() -> Policy {
    Policy { grace_ms: Millis::seconds(3600), ..policy() }
}

fn gap(id: &str, version: Version) -> Gap {
    Gap {
        id: GapId::new(id).unwrap(),
        versions: BTreeSet::from([version]),
        description: "the queue overflowed".into(),
    }
}

fn process(id: &str) -> HolderId {
    HolderId::new(id).unwrap()
}

/// The host is dead, and an operator says that it does not count.
fn excuse(world: &mut World, n: usize, version: Version) {
    world.host(n).stop_app();
    world.written_off.insert(h(n));
    world.give(Event::Excuse { target: h(n), version });
}

fn abort(world: &mut World) {
    world.give(Event::Abort { reason: "an operator said so".into() });
}

/// The roles that the backend still accepts.
fn alive(world: &World) -> Vec<EffectId> {
    world.backend.roles.iter().filter(|(_, role)| **role == Role::Alive).map(|(id, _)| *id).collect()
}

fn sent_to(world: &World, n: usize, word: &str, version: Version) -> usize {
    let is = |(target, order, _): &&(lifecycle::TargetId, lifecycle::Order, Option<EffectId>)| {
        *target == h(n) && order.kind.word() == word && order.kind.version() == version
    };
    world.sent.iter().filter(is).count()
}

#[test]
fn restored_store_delivers_dead_version() {
    let mut world = World::on_one(2, policy());
    let backup = world.store.clone();
    world = world.rotated(v(2));
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked));
    world.hosts.insert(h(2), Host::new());
    let before = world.sent.len();

    world.restore(&backup);
    world.select();
    world.connect();
    world.settle();

    assert!(
        world.sent[before..].iter().all(|(_, order, _)| order.kind.version() != v(1)),
        "{}",
        world.picture()
    );
    for n in 0..2 {
        assert_eq!(world.hosts[&h(n)].link, Some(v(2)));
    }
    assert_eq!(world.hosts[&h(2)].link, None);
    assert!(world.credential().stuck().is_none() || world.credential().active().is_some());

    // A rotation helps, and then everything goes on.
    world.rotate();
    world.settle();
    assert_eq!(world.hosts[&h(2)].link, world.credential().active());
    world.unhold_all();
    assert_eq!(alive(&world).len(), 1, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn restored_store_forgets_recipients() {
    let mut world = World::on_one(2, policy());
    world.lost.insert("stage");
    world.rotate();
    world.pump();
    let backup = world.store.clone();
    world.lost.clear();
    world.settle();
    let second = world.effect_of(v(2));
    // One more host enrolled after the backup and got it too.
    world.hosts.insert(h(2), Host::new());
    world.select();
    world.connect();
    world.settle();
    assert_eq!(world.hosts[&h(2)].link, Some(v(2)), "{}", world.picture());

    world.host(1).up = false;
    world.restore(&backup);
    world.settle();
    world.unhold_all();
    world.rotate();
    world.settle();
    world.unhold_all();
    assert_eq!(world.hosts[&h(0)].link, world.credential().active());
    assert_eq!(world.hosts[&h(1)].link, Some(v(2)));
    assert_eq!(world.backend.roles[&second], Role::Alive, "{}", world.picture());
    assert_ne!(world.hosts[&h(2)].link, Some(v(1)));

    // Nor may it die while the one that enrolled after the backup is the silent one.
    world.go_down(2);
    world.come_back(1);
    world.settle();
    world.unhold_all();
    world.pass(DAY);
    assert_eq!(world.backend.roles[&second], Role::Alive, "{}", world.picture());
    world.come_back(2);
    world.settle();
    world.unhold_all();
    assert_eq!(world.backend.roles[&second], Role::Revoked, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn old_epoch_order_in_flight() {
    let mut world = World::on_one(2, policy());
    let backup = world.store.clone();
    world.lost.insert("activate");
    world.rotate();
    world.settle();
    let late = world.credential().outbox().find_map(|effect| match &effect.kind {
        EffectKind::Send { target, order, value, .. } if matches!(order.kind, OrderKind::Activate { .. }) => {
            Some((target.clone(), order.clone(), *value))
        }
        _ => None,
    });
    let (target, order, value) = late.expect("an activation is on its way");
    world.lost.clear();
    world.restore(&backup);
    world.settle();

    let host = world.hosts.get_mut(&target).unwrap();
    host.order(&order, value);
    assert_eq!(host.refusals.last(), Some(&RefusalCode::OldEpoch));
    assert_eq!(host.link, Some(v(1)));
}

#[test]
fn excuse_outlives_its_reason() {
    let mut world = World::on_one(2, slow_policy());
    world.go_down(1);
    world.rotate();
    world.pass(600_000);
    assert_eq!(world.phase(v(1)), Some(Phase::Superseded), "{}", world.picture());
    excuse(&mut world, 1, v(1));
    world.pass(60_000);

    // It boots, its application with it.
    world.lost.extend(["stage", "activate"]);
    world.written_off.clear();
    world.host(1).start_app();
    world.come_back(1);
    world.pass(DAY);
    assert_eq!(world.hosts[&h(1)].loaded.map(|(version, _)| version), Some(v(1)));
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());

    world.lost.clear();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn stale_excuse() {
    let mut world = World::on_one(2, slow_policy());
    world.go_down(1);
    world.rotate();
    world.pass(600_000);
    world.give(Event::Excuse { target: h(1), version: v(1) });
    abort(&mut world);
    world.come_back(1);
    world.settle();
    assert_eq!(world.credential().active(), Some(v(1)), "{}", world.picture());
    assert_eq!(world.role(v(2)), Some(Role::Revoked));
    world.pass(30 * DAY);

    world.go_down(1);
    world.rotate();
    world.settle();
    assert_eq!(world.hosts[&h(0)].link, Some(v(3)));
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    world.come_back(1);
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked));
    world.nobody_failed();
}

#[test]
fn clear_covers_later_gap() {
    let mut world = World::on_one(2, slow_policy());
    world.host(1).gaps.push(gap("gap-1", v(1)));
    world = world.rotated(v(2));
    world.pass(60_000);
    assert!(world.blocks(v(1), Clause::Covered));
    world.give(Event::ClearGap { target: h(1), gap: GapId::new("gap-1").unwrap() });
    assert!(!world.blocks(v(1), Clause::Covered));

    let hidden = world.effect_of(v(1));
    world.host(1).hidden.push((v(1), hidden));
    world.host(1).gaps.push(gap("gap-2", v(1)));
    world.hear_all();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive));

    world.host(1).hidden.clear();
    world.host(1).gaps.pop();
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn clear_that_cannot_take_effect() {
    let mut world = World::on_one(2, policy());
    world.host(1).gaps.push(gap("gap-1", v(1)));
    world = world.rotated(v(2));
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.give(Event::ClearGap { target: h(1), gap: GapId::new("gap-1").unwrap() });
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    let seal = world.sent.iter().find_map(|(target, order, _)| match &order.kind {
        OrderKind::Seal { cleared_gaps, .. } if *target == h(1) => Some(cleared_gaps.clone()),
        _ => None,
    });
    assert_eq!(seal, Some(BTreeSet::from([GapId::new("gap-1").unwrap()])));
}

#[test]
fn compromised_and_silent() {
    let mut world = World::on_one(3, policy());
    world.go_down(1);
    world.compromise(Some(600_000)).unwrap();
    world.pass(500_000);
    assert_eq!(world.hosts[&h(0)].link, Some(v(2)), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.written_off.insert(h(1));
    world.pass(300_000);
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();

    // Not while no other verified version is current on the targets that answer.
    let mut world = World::on_one(3, policy());
    world.lost.extend(["stage"]);
    world.compromise(Some(600_000)).unwrap();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());

    // Nor while the rollout is halted.
    let mut world = World::on_one(3, policy());
    world.host(0).sick.insert(v(2));
    world.compromise(Some(600_000)).unwrap();
    world.pass(DAY);
    assert!(world.credential().rollout().unwrap().halted.is_some());
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.nobody_failed();

    // Also where the next rollout halts once another version is current everywhere, and a process keeps the old one.
    let mut world = World::on_one(3, policy());
    let by = world.effect_of(v(1));
    world.host(1).others.insert(process("proc:7:7"), (v(1), by));
    world.compromise(Some(3_600_000)).unwrap();
    world.pass(600_000);
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
    world.host(0).sick.insert(v(3));
    world.rotate();
    world.pass(DAY);
    assert!(world.credential().rollout().unwrap().halted.is_some(), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    world.nobody_failed();
    abort(&mut world);
    world.written_off.insert(h(1));
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
}

#[test]
fn aborted_then_superseded() {
    let mut world = World::on_one(2, policy());
    world.host(1).sick.insert(v(2));
    world.rotate();
    world.settle();
    assert!(world.credential().rollout().unwrap().halted.is_some(), "{}", world.picture());
    world.give(Event::Hold { version: v(2), by: "an operator".into() });
    abort(&mut world);
    world.settle();
    assert_eq!(world.hosts[&h(0)].link, Some(v(1)));
    world.rotate();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(3)), "{}", world.picture());
    world.give(Event::Unhold { version: v(2) });
    world.settle();
    assert_eq!(world.role(v(2)), Some(Role::Revoked), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn first_version_aborted() {
    let mut world = World::empty(2, policy());
    world.host(0).bad.insert(v(1));
    world.rotate();
    world.settle();
    assert!(world.credential().rollout().unwrap().halted.is_some(), "{}", world.picture());
    abort(&mut world);
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    for n in 0..2 {
        assert_eq!(world.hosts[&h(n)].link, None, "{}", world.picture());
    }
    world.nobody_failed();
    world.rotate();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
}

#[test]
fn idle_consumer() {
    let mut world = World::on_one(2, policy());
    world.host(1).stop_app();
    world.host(1).sick.insert(v(2));
    world = world.rotated(v(2));
    world.pass(DAY);
    assert!(world.blocks(v(1), Clause::Adopted), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Alive));

    world.host(1).start_app();
    world.hear_all();
    world.settle();
    assert_eq!(world.hosts[&h(1)].link, Some(v(1)), "{}", world.picture());
    assert_eq!(world.hosts[&h(1)].loaded.map(|(version, _)| version), Some(v(1)));
    world.pass(DAY);
    world.nobody_failed();

    // What was wrong with it is put right, and the operator says so.
    world.host(1).sick.clear();
    world.give(Event::Resume);
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

fn unreadable_place(version: Version) -> PlaceFault {
    PlaceFault {
        id: GapId::new("place-1").unwrap(),
        versions: BTreeSet::from([version]),
        description: "cannot be read".into(),
    }
}

#[test]
fn copy_place_left_behind() {
    // The gate sees the place; without that clause the seal still does.
    for weakened in [false, true] {
        let mut world = World::on_one(2, policy());
        if weakened {
            world.store.credential = world.store.credential.clone().without(Clause::Covered);
        }
        world.host(1).places.push(unreadable_place(v(1)));
        world = world.rotated(v(2));
        world.pass(DAY);
        assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
        assert_eq!(world.phase(v(1)), Some(if weakened { Phase::Sealing } else { Phase::Superseded }));
        world.host(1).places.clear();
        world.hear_all();
        world.pass(60_000);
        world.settle();
        assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    }
}

#[test]
fn policy_drops_a_place() {
    let mut world = World::on_one(2, policy());
    let by = world.effect_of(v(1));
    world.host(1).places.push(unreadable_place(v(1)));
    world.host(1).others.insert(process("proc:7:7"), (v(1), by));
    world = world.rotated(v(2));
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    // The reader ends, the place still holds the old version.
    world.host(1).others.clear();
    world.hear_all();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn flips_again_after_own_rollback() {
    let mut world = World::on_one(2, policy());
    world.host(1).sick.insert(v(2));
    world.rotate();
    world.settle();
    assert_eq!(world.hosts[&h(1)].link, Some(v(1)), "{}", world.picture());
    let late: Vec<_> = world.sent.iter().filter(|(target, ..)| *target == h(1)).cloned().collect();
    for (_, order, value) in late {
        if matches!(order.kind, OrderKind::Arm { .. } | OrderKind::Activate { .. }) {
            world.host(1).order(&order, value);
            world.pass(60_000);
        }
    }
    assert_eq!(world.hosts[&h(1)].link, Some(v(1)));
    world.host(1).sick.clear();
    world.give(Event::Resume);
    world.settle();
    assert_eq!(world.hosts[&h(1)].link, Some(v(2)), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Revoked));
    world.nobody_failed();
}

#[test]
fn rollback_to_a_dead_version() {
    let mut world = World::on_one(2, policy());
    world.go_down(1);
    world.rotate();
    world.pass(600_000);
    excuse(&mut world, 1, v(1));
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());

    world.host(1).sick.insert(v(2));
    world.host(1).start_app();
    let shown = world.host(1).shown.len();
    world.come_back(1);
    world.settle();
    assert!(world.host(1).shown[shown..].iter().all(|version| *version != v(1)), "{}", world.picture());
    let stuck = world.credential().stuck().expect("it has nothing to go back to");
    assert!(stuck.advice.contains("rotate"), "{stuck:?}");

    // A halt orders nobody back to it either.
    world.host(0).sick.insert(v(3));
    world.rotate();
    world.settle();
    assert!(world.credential().rollout().unwrap().halted.is_some(), "{}", world.picture());
    world.settle();
    assert_eq!(sent_to(&world, 0, "roll_back", v(1)) + sent_to(&world, 1, "roll_back", v(1)), 0);
    assert!(world.host(1).shown[shown..].iter().all(|version| *version != v(1)));
    assert_eq!(world.hosts[&h(0)].link, Some(v(2)));
}

#[test]
fn reverted_store_mints_the_same_name() {
    let mut world = World::on_one(2, policy());
    let snapshot = world.store.clone();
    world = world.rotated(v(2));
    let second = world.effect_of(v(2));
    let minted = world.backend.roles.len();

    world.revert(&snapshot);
    world.restart();
    world.rotate();
    let mints = |kind: &EffectKind| matches!(kind, EffectKind::Mint { .. });
    assert!(!world.holds_open(mints), "nothing is minted before the hosts answered");
    world.pump_until(|world| world.holds_open(mints));
    assert!(world.credential().targets().all(|t| t.current == Some(v(2))), "the hosts answered first");
    world.settle();
    assert_eq!(world.backend.roles.len(), minted + 1);
    assert_eq!(world.backend.roles[&second], Role::Alive, "{}", world.picture());
    assert!(world.credential().version(v(3)).is_some(), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn reverted_store_aborts_a_live_intent() {
    let mut world = World::on_one(2, policy());
    world.rotate();
    world.pump_until(|world| world.holds_open(|kind| matches!(kind, EffectKind::Mint { .. })));
    let snapshot = world.store.clone();
    world.settle();
    let second = world.effect_of(v(2));
    assert_eq!(world.hosts[&h(0)].link, Some(v(2)), "{}", world.picture());

    world.revert(&snapshot);
    world.restart();
    assert_eq!(world.try_give(Event::Abort { reason: "early".into() }), Err(IllegalEvent::Starting));
    world.pump_until(|world| !world.credential().is_starting());
    abort(&mut world);
    world.pass(DAY);
    assert_eq!(world.backend.roles[&second], Role::Alive, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn late_create() {
    let mut world = World::on_one(2, policy());
    world.backend.late_create = true;
    world.rotate();
    world.settle();
    assert!(world.credential().version(v(2)).unwrap().stuck.is_some(), "{}", world.picture());
    abort(&mut world);
    world.pass(60_000);
    assert_eq!(world.phase(v(2)), Some(Phase::Retired), "{}", world.picture());

    let late = world.backend.late[0];
    world.backend.roles.insert(late, Role::Alive);
    world.pass(2 * 3_600_000);
    assert_eq!(world.backend.roles[&late], Role::Revoked, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn minted_and_forgotten() {
    let mut world = World::on_one(2, policy());
    let backup = world.store.clone();
    world.lost.insert("stage");
    world.rotate();
    world.pump();
    let forgotten = world.effect_of(v(2));
    world.lost.clear();
    world.restore(&backup);
    world.settle();
    assert_eq!(world.backend.roles[&forgotten], Role::Alive, "held until an operator unholds it");
    world.unhold_all();
    assert_eq!(world.backend.roles[&forgotten], Role::Revoked, "{}", world.picture());
    assert_eq!(world.hosts[&h(0)].link, Some(v(1)));
    world.nobody_failed();
}

#[test]
fn rollback_clause_is_no_circle() {
    let mut world = World::on_one(2, policy());
    world.host(1).slow = true;
    world.rotate();
    world.pass(200_000);
    assert!(world.blocks(v(1), Clause::NoRollback), "{}", world.picture());
    assert!(!world.done.iter().any(|word| word.starts_with("seal")));
    world.host(1).slow = false;
    world.host(1).start(false);
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn activate_without_arm() {
    for word in ["wait", "excuse", "force"] {
        let mut world = World::on_one(2, policy());
        world.lost.insert("activate");
        world.rotate();
        world.pump();
        let late = world.credential().outbox().find_map(|effect| match &effect.kind {
            EffectKind::Send { target, order, value, .. } => Some((target.clone(), order.clone(), *value)),
            _ => None,
        });
        let (target, order, value) = late.expect("the canary is told to activate");
        assert_eq!((&target, order.kind.word()), (&h(0), "activate"));
        world.go_down(0);
        abort(&mut world);
        match word {
            "excuse" => world.give(Event::Excuse { target: h(0), version: v(2) }),
            "force" => world.give(Event::Forced { version: v(2), reason: "no time".into() }),
            _ => {}
        }
        world.pass(DAY);
        assert_eq!(world.role(v(2)), Some(Role::Alive), "{word}: {}", world.picture());

        // The order arrives after all, and works.
        world.host(0).order(&order, value);
        assert_eq!(world.hosts[&h(0)].link, Some(v(2)));
        world.log_in();
        world.nobody_failed();

        world.lost.clear();
        world.come_back(0);
        world.settle();
        assert_eq!(world.hosts[&h(0)].link, Some(v(1)), "{word}: {}", world.picture());
        assert_eq!(world.role(v(2)), Some(Role::Revoked), "{word}: {}", world.picture());
        world.nobody_failed();
    }
}

#[test]
fn one_dead_host_stops_nothing_else() {
    let mut world = World::on_one(3, policy());
    let backup = world.store.clone();
    world.host(1).up = false;
    world.restore(&backup);
    world.rotate();
    world.pass(1_000);
    assert!(world.credential().is_starting());
    world.settle();
    let next = Version::new(2, 1);
    assert_eq!(world.credential().active(), Some(next), "{}", world.picture());
    world.unhold_all();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.host(1).stop_app();
    world.written_off.insert(h(1));
    world.store.retired.insert(h(1));
    world.give(Event::HostRetired { target: h(1) });
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn imported_and_blind() {
    let mut world = World::empty(2, policy());
    let value = EffectId(7);
    world.backend.roles.insert(value, Role::Alive);
    world.store.values.insert(value);
    world.give(Event::Imported { value });
    world.settle();
    let blind = Host { hidden: vec![(v(0), value)], ..Host::default() };
    world.hosts.insert(h(9), blind);
    world.rotate();
    world.pass(DAY);
    assert_eq!(world.hosts[&h(0)].link, Some(v(1)), "{}", world.picture());
    assert_eq!(world.backend.roles[&value], Role::Alive);
    world.nobody_failed();

    world.hosts.remove(&h(9));
    world.give(Event::Unhold { version: v(0) });
    world.settle();
    assert_eq!(world.backend.roles[&value], Role::Revoked, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn store_reverted_while_running() {
    let mut world = World::on_one(2, policy());
    world.lost.insert("stage");
    world.rotate();
    world.pump();
    let snapshot = world.store.clone();
    world.lost.clear();
    world.lost.insert("arm");
    world.pump_until(|world| world.hosts[&h(0)].loaded.is_some_and(|(version, _)| version == v(2)));
    let second = world.effect_of(v(2));
    world.revert(&snapshot);
    world.lost.insert("roll_back");
    abort(&mut world);
    world.pass(DAY);
    assert_eq!(world.backend.roles[&second], Role::Alive, "{}", world.picture());
    world.lost.clear();
    world.settle();
    assert_eq!(world.hosts[&h(0)].link, Some(v(1)), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn start_delivers_before_asking() {
    let mut world = World::on_one(2, policy());
    world.go_down(1);
    world.rotate();
    world.settle();
    let snapshot = world.store.clone();
    world.come_back(1);
    world.settle();
    world = world.rotated(v(3));
    world.settle();
    assert_eq!(world.role(v(2)), Some(Role::Revoked));
    // A fresh machine in the place of h1, which needs everything.
    world.hosts.insert(h(1), Host::new());
    let before = world.sent.len();

    world.revert(&snapshot);
    world.restart();
    assert!(!world.holds_open(|kind| matches!(kind, EffectKind::Send { .. })), "nothing goes out at once");
    world.settle();
    assert!(
        world.sent[before..].iter().all(|(_, order, _)| order.kind.version() != v(2)),
        "{}",
        world.picture()
    );
    assert_eq!(world.hosts[&h(0)].link, Some(v(3)));
    world.nobody_failed();

    // Whatever was verified before: after a start the backend is asked again, first.
    let mut world = World::on_one(2, policy());
    world.rotate();
    world.pump_until(|world| world.holds_open(|kind| matches!(kind, EffectKind::Send { .. })));
    world.restart();
    let verifies = |world: &World| {
        world.holds_open(|kind| matches!(kind, EffectKind::Verify { version, .. } if *version == v(2)))
    };
    let carries = |world: &World| {
        world
            .holds_open(|kind| matches!(kind, EffectKind::Send { order, .. } if order.kind.version() == v(2)))
    };
    world.pump_until(|world| verifies(world) && !world.credential().is_starting());
    assert!(!carries(&world), "{}", world.picture());
    world.settle();
    assert_eq!(world.credential().active(), Some(v(2)));
}

#[test]
fn sweep_finds_a_live_role() {
    let mut world = World::on_one(2, policy());
    let backup = world.store.clone();
    world = world.rotated(v(2));
    let second = world.effect_of(v(2));
    world.restore(&backup);
    world.settle();
    let view = world.credential().version(v(2)).expect("named by the hosts' reports");
    assert_eq!(view.minted_by, second);
    assert!(!view.holds.is_empty());
    world.pass(DAY);
    assert_eq!(world.backend.roles[&second], Role::Alive, "{}", world.picture());
    // Also once it is unheld it is in use.
    world.unhold_all();
    world.pass(DAY);
    assert_eq!(world.backend.roles[&second], Role::Alive, "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn deadline_with_a_reporting_host() {
    let mut world = World::on_one(2, policy());
    let by = world.effect_of(v(1));
    world.host(1).others.insert(process("proc:7:7"), (v(1), by));
    world.compromise(Some(600_000)).unwrap();
    for _ in 0..9 {
        world.pass(60_000);
        world.hear_all();
    }
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    assert!(world.blocks(v(1), Clause::NoHolder), "{}", world.picture());
    world.written_off.insert(h(1));
    for _ in 0..5 {
        world.pass(60_000);
        world.hear_all();
    }
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn thief_keeps_it_alive() {
    let mut world = World::on_one(2, slow_policy());
    let by = world.effect_of(v(1));
    world.backend.thief.insert(by, 3);
    world.compromise(None).unwrap();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    assert_eq!(world.backend.thief.get(&by), Some(&3), "he is there to the end");
    assert!(world.done.contains(&format!("end sessions of {by}")));
    assert!(world.audit.iter().any(|entry| entry.contains("sessions")), "{:?}", world.audit);
    world.nobody_failed();
}

#[test]
fn withdraw_at_last() {
    let mut world = World::on_one(2, policy());
    world.give(Event::Deleted);
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "served as long as somebody uses it");
    world.host(0).stop_app();
    world.hear_all();
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.host(1).stop_app();
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    assert!(world.hosts.values().all(|host| host.link.is_none()));
    assert!(world.is_finished());
    world.nobody_failed();
}

#[test]
fn never_had_the_set() {
    let mut world = World::on_one(2, policy());
    let backup = world.store.clone();
    world.hosts.insert(h(2), Host::new());
    world.lost.insert("activate");
    world.restore(&backup);
    world.select();
    world.connect();
    world.settle();
    world.lost.clear();
    world.rotate();
    world.settle();
    world.unhold_all();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn set_dropped_from_policy() {
    let mut world = World::on_one(2, policy());
    world.host(1).give(HostEvent::Policy(None));
    world.rotate();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
    assert_eq!(world.hosts[&h(1)].link, Some(v(1)), "still served");
    world.pass(DAY);
    assert_eq!(world.role(v(1)), Some(Role::Alive));
    world.nobody_failed();

    world.host(1).stop_app();
    world.hear_all();
    world.settle();
    assert_eq!(world.hosts[&h(1)].link, None, "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn excused_and_dead_after_restart() {
    let mut world = World::on_one(2, slow_policy());
    world.go_down(1);
    world.rotate();
    world.pass(600_000);
    excuse(&mut world, 1, v(1));
    world.pass(60_000);
    world.restart();
    world.pump();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn forged_new_epoch() {
    let mut world = World::on_one(2, policy());
    let report = world.credential().report(&h(1)).unwrap().clone();
    let forged = SetReport {
        epoch: Some(Epoch { counter: 9, id: 9 }),
        generation: Some(Generation::new(9, 1_000_000)),
        sequence: report.sequence + 1,
        answers: u64::MAX,
        ..report
    };
    world.give(Event::Reported { target: h(1), report: forged });
    assert_eq!(world.credential().epoch(), FIRST);
    assert!(!world.credential().is_starting());
    world.rotate();
    world.pump();
    assert!(world.sent.iter().all(|(_, order, _)| order.epoch == FIRST));
    // Nor does its answer count for questions that nobody asked yet.
    assert_eq!(world.role(v(1)), Some(Role::Alive));
}

#[test]
fn restored_twice() {
    let mut world = World::on_one(2, policy());
    let backup = world.store.clone();
    world.restore(&backup);
    world.settle();
    world.lost.insert("activate");
    world.rotate();
    world.settle();
    let first_life = world.credential().outbox().find_map(|effect| match &effect.kind {
        EffectKind::Send { target, order, value, .. } => Some((target.clone(), order.clone(), *value)),
        _ => None,
    });
    let (target, order, value) = first_life.expect("an activation is on its way");
    world.lost.clear();
    world.restore(&backup);
    world.settle();
    assert_ne!(order.epoch, world.credential().epoch());
    let host = world.hosts.get_mut(&target).unwrap();
    host.order(&order, value);
    assert_eq!(host.refusals.last(), Some(&RefusalCode::OldEpoch));

    // The same counter under another id is another life too.
    let stranger = Epoch { id: 4711, ..world.credential().epoch() };
    let host = world.hosts.get_mut(&target).unwrap();
    host.order(&lifecycle::Order { epoch: stranger, ..order }, value);
    assert_eq!(host.refusals.last(), Some(&RefusalCode::StrangerEpoch));
    assert_eq!(host.link, Some(v(1)));
}

#[test]
fn compromised_behind_a_halt() {
    let mut world = World::on_one(2, policy());
    world.host(0).sick.insert(v(2));
    world.rotate();
    world.settle();
    assert!(world.credential().rollout().unwrap().halted.is_some());
    world.compromise(None).unwrap();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(3)), "{}", world.picture());
    assert!(world.credential().version(v(2)).unwrap().aborted.is_some());
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn oneshot_and_never_again() {
    let mut world = World::on_one(2, policy());
    world.host(0).oneshot = true;
    world.host(1).stop_app();
    world.rotate();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(2)), "exit 0 counts: {}", world.picture());
    let late: Vec<_> = world.why_not(v(1)).into_iter().filter(|b| b.clause == Clause::Adopted).collect();
    assert!(late.iter().all(|b| b.target == Some(h(1))), "{late:?}");
    assert_eq!(world.role(v(1)), Some(Role::Alive));

    // The job that never runs again is taken out of its host's policy.
    world.host(1).give(HostEvent::Policy(Some(Rules::default())));
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn resent_report() {
    let mut world = World::on_one(2, policy());
    let report = world.credential().report(&h(1)).unwrap().clone();
    let before = world.credential().clone();
    world.give(Event::Reported { target: h(1), report: report.clone() });
    assert_eq!(*world.credential(), before);
    // Nor does it end a doubt's opposite: only a report that is really new changes anything.
    world.give(Event::Excuse { target: h(1), version: v(1) });
    world.give(Event::Reported { target: h(1), report });
    let excused = world.credential().targets().any(|t| t.excused.contains(&v(1)));
    assert!(excused, "an old report does not end an excuse");
    assert!(world.credential().targets().all(|t| !t.incomplete));
}

#[test]
fn a_refused_mint_stops_the_rotation_and_leaves_nothing() {
    let mut world = World::on_one(2, policy());
    world.backend.mint = Some(Outcome::Refused("permission denied".into()));
    world.rotate();
    world.settle();
    assert!(world.credential().rollout().is_none());
    assert!(world.credential().stuck().is_some());
    assert_eq!(world.phase(v(2)), Some(Phase::Retired), "{}", world.picture());
    world.backend.mint = None;
    world = world.rotated(v(3));
    world.nobody_failed();
}
