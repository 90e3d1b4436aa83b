//! The main road: a rotation from the wish to the revocation, and what may go wrong on it.

#![allow(clippy::unwrap_used, clippy::similar_names, reason = "what does not fit ends the test")]

mod world;

use std::collections::VecDeque;

use lifecycle::credential::{
    Authority, Clause, Credential, Effect, EffectKind, Event, IllegalEvent, Input, Outcome, Overlap, Phase,
    Policy, Rotate, RotateReason, Selection, TargetKind,
};
use lifecycle::{EffectId, Evidence, Flipped, Millis, OrderKind, SetReport};
use world::*;

#[test]
fn a_rotation_replaces_everywhere_and_retires_the_old_one() {
    let mut world = World::on_one(3, policy()).rotated(v(2));
    world.settle();
    world.nobody_failed();
    assert_eq!(world.phase(v(1)), Some(Phase::Retired), "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Revoked));
    assert!(world.done.contains(&"arm 2 to h1".to_owned()), "{:?}", world.done);
    assert!(!world.done.contains(&"arm 2 to h0".to_owned()), "the canary is told to activate");
}

#[test]
fn what_a_host_says_of_its_clock_decides_nothing() {
    let road = |says: Option<u64>| {
        let mut world = World::on_one(3, Policy { grace_ms: Millis::seconds(60), ..policy() });
        for host in world.hosts.values_mut() {
            host.says = says.map(|unix_ms| Flipped { version: v(2), unix_ms, ahead_ms_max: Some(-7) });
        }
        let mut world = world.rotated(v(2));
        world.settle();
        assert_eq!(world.phase(v(1)), Some(Phase::Retired), "{}", world.picture());
        (world.done, world.audit, world.now)
    };
    let silent = road(None);
    assert_eq!(road(Some(0)), silent);
    assert_eq!(road(Some(u64::MAX)), silent);
}

#[test]
fn a_slow_holder_is_named_and_keeps_the_old_version_alive() {
    let mut world = World::on_one(3, policy());
    let holder = lifecycle::HolderId::new("proc:1:1").unwrap();
    let by = world.credential().minted_by(v(1)).unwrap();
    world.host(1).others.insert(holder.clone(), (v(1), by));
    world = world.rotated(v(2));
    world.settle();
    assert_eq!(world.phase(v(1)), Some(Phase::Superseded));
    assert!(world.blocks(v(1), Clause::NoHolder));
    world.host(1).others.clear();
    world.hear_all();
    world.settle();
    assert_eq!(world.phase(v(1)), Some(Phase::Retired), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_host_that_has_stopped_answering_is_shown_with_what_it_was_told() {
    let mut world = World::on_one(2, policy());
    let note = |world: &World| {
        let target = world.credential().targets().find(|view| view.target == h(1));
        target.and_then(|view| view.note)
    };
    assert_eq!(note(&world), None);
    // Nobody knows yet that it is away.
    world.host(1).up = false;
    world.rotate();
    world.pump();
    assert_eq!(note(&world).as_deref(), Some("was told to stage 2, and has not said yet that it did"));
    world.host(1).up = true;
    world.hear_all();
    world.settle();
    assert_eq!(note(&world), None, "{}", world.picture());
}

#[test]
fn of_a_host_that_was_retired_nothing_is_kept() {
    let mut world = World::on_one(3, policy()).rotated(v(2));
    world.settle();
    world.host(2).up = false;
    world.host(2).stop_app();
    world.written_off.insert(h(2));
    world.store.retired.insert(h(2));
    world.give(Event::HostRetired { target: h(2) });
    world.rotate();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(3)), "{}", world.picture());
    assert_eq!(world.phase(v(2)), Some(Phase::Retired), "{}", world.picture());
    let kept = serde_json::to_string(world.credential()).unwrap();
    assert!(kept.contains("h1") && !kept.contains("h2"), "{kept}");
    world.nobody_failed();
}

/// Nobody can have it there: what comes next is the way out.
#[test]
fn a_target_that_refuses_the_active_version_gets_the_next_one() {
    let mut world = World::empty(2, policy());
    let imported = EffectId(7);
    world.backend.roles.insert(imported, Role::Alive);
    world.store.values.insert(imported);
    for number in 0..2 {
        world.host(number).unfit.insert(v(0));
    }
    world.give(Event::Imported { value: imported });
    world.settle();
    assert_eq!(world.hosts[&h(0)].link, None, "{}", world.picture());
    world.rotate();
    world.settle();
    for number in 0..2 {
        assert_eq!(world.hosts[&h(number)].link, Some(v(1)), "{}", world.picture());
    }
    assert_eq!(world.phase(v(1)), Some(Phase::Active));
}

#[test]
fn a_pair_mints_the_next_only_once_the_older_one_passed_its_gate() {
    let mut world = World::on_one(2, Policy { overlap: Overlap::Pair, ..policy() }).rotated(v(2));
    assert_eq!(world.role(v(1)), Some(Role::Alive), "its revocation is the next mint: {}", world.picture());
    let holder = lifecycle::HolderId::new("proc:1:1").unwrap();
    let by = world.credential().minted_by(v(1)).unwrap();
    world.host(1).others.insert(holder, (v(1), by));
    world.hear_all();
    world.rotate();
    world.settle();
    assert_eq!(world.phase(v(3)), None, "{}", world.picture());
    assert_eq!(world.role(v(1)), Some(Role::Alive));

    world.host(1).others.clear();
    world.hear_all();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(3)), "{}", world.picture());
    assert_eq!(world.phase(v(1)), Some(Phase::Retired));
    assert_eq!(world.role(v(2)), Some(Role::Alive));
    world.nobody_failed();
}

#[test]
fn at_the_limit_of_live_versions_a_demand_is_refused_and_a_compromise_is_not() {
    let mut world = World::on_one(2, policy());
    for (number, version) in (1..=3).map(|n| (n, v(n))) {
        let by = world.credential().minted_by(version).unwrap();
        let holder = lifecycle::HolderId::new(format!("proc:{number}:1")).unwrap();
        world.host(1).others.insert(holder, (version, by));
        world.hear_all();
        world = world.rotated(v(number + 1));
    }
    let demand = Event::Rotate(Rotate { reason: RotateReason::Demand });
    assert_eq!(world.try_give(demand), Err(IllegalEvent::TooManyLive { live: 4, max: 4 }));
    world.give(Event::Rotate(Rotate { reason: RotateReason::Schedule }));
    world.settle();
    assert_eq!(world.credential().active(), Some(v(4)), "a schedule waits");
    world.compromise(None).unwrap();
    world.settle();
    assert_eq!(world.credential().active(), Some(v(5)), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn a_backend_of_one_version_is_refused_unless_interruption_is_allowed() {
    let mut world = World::empty(1, Policy { overlap: Overlap::None, ..policy() });
    let demand = Event::Rotate(Rotate { reason: RotateReason::Demand });
    assert_eq!(world.try_give(demand), Err(IllegalEvent::Interrupts));
}

#[test]
fn what_we_cannot_revoke_ends_as_erased() {
    let mut world = World::on_one(2, Policy { authority: Authority::External, ..policy() });
    let value = lifecycle::EffectId(77);
    world.store.values.insert(value);
    world.backend.roles.insert(value, Role::Alive);
    world.give(Event::Noticed { value });
    world.give(Event::Noticed { value });
    world.settle();
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
    assert_eq!(world.phase(v(1)), Some(Phase::Erased));
    assert!(!world.credential().has_wish(), "the same value is one wish");
}

#[test]
fn an_orphan_is_served_and_never_retired_until_it_is_deleted() {
    let mut world = World::on_one(2, policy());
    world.give(Event::Hold { version: v(1), by: "an operator".into() });
    world = world.rotated(v(2));
    world.give(Event::Orphaned(true));
    world.give(Event::Unhold { version: v(1) });
    world.pass(86_400_000);
    assert_eq!(world.role(v(1)), Some(Role::Alive), "{}", world.picture());
    world.give(Event::Deleted);
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    assert_eq!(world.role(v(2)), Some(Role::Alive), "its applications still run");
    world.nobody_failed();
}

#[test]
fn waves_never_permit_more_than_so_many_at_once() {
    let mut world = World::on_one(6, Policy { wave: 2, ..policy() });
    for n in 1..6 {
        world.host(n).slow = true;
    }
    world.rotate();
    world.pass(60_000);
    let settling = |world: &World| world.hosts.values().filter(|host| host.restarts > 1).count();
    assert_eq!(settling(&world), 1 + 2, "the canary and one wave: {}", world.picture());
    for _ in 0..4 {
        for n in 1..6 {
            if world.hosts[&h(n)].restarts > 1 {
                world.host(n).slow = false;
                world.host(n).start(false);
            }
        }
        world.hear_all();
    }
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn an_adoption_that_takes_too_long_halts_and_flips_back() {
    let mut world = World::on_one(3, policy());
    world.host(0).slow = true;
    world.rotate();
    world.pass(600_000);
    assert!(world.credential().rollout().unwrap().halted.is_some(), "{}", world.picture());
    assert_eq!(world.hosts[&h(0)].link, Some(v(1)));
    assert!(world.hosts[&h(1)].shown.iter().all(|shown| *shown == v(1)), "nobody else ever saw it");
}

/// A store path as a target: what it is told is what its reports show.
#[test]
fn a_store_is_written_at_the_flip_and_read_back() {
    let mut credential = Credential::new(policy(), FIRST);
    let target = lifecycle::TargetId::new("kv:secret/orders").unwrap();
    let selection = Selection { canary: false, kind: TargetKind::Store };
    let mut report = SetReport { epoch: Some(FIRST), evidence: Evidence::Declared, ..SetReport::default() };
    let mut queue = VecDeque::from([
        Event::Selected([(target.clone(), selection)].into()),
        Event::Connected { target: target.clone() },
        Event::Rotate(Rotate { reason: RotateReason::Schedule }),
    ]);
    let (mut now, mut fresh, mut words) = (0, 1 << 64, Vec::new());
    for turn in 0..200 {
        let event = queue.pop_front().unwrap_or(Event::Tick);
        if event == Event::Tick {
            now = credential.next_due(Millis(now)).map_or(now, |due| due.0);
        }
        if turn == 60 {
            queue.push_back(Event::Rotate(Rotate { reason: RotateReason::Schedule }));
        }
        fresh += 1 << 32;
        let effects = credential.apply(Input { now: Millis(now), fresh: EffectId(fresh) }, event).unwrap();
        for Effect { id: effect, kind } in effects {
            let outcome = Outcome::Done;
            queue.extend(match kind {
                EffectKind::Preflight => Some(Event::Preflighted { effect, outcome }),
                EffectKind::Mint { .. } => Some(Event::Minted { effect, outcome }),
                EffectKind::Verify { .. } => Some(Event::Verified { effect, outcome }),
                EffectKind::Sample { .. } => Some(Event::Sampled { effect, sessions: None }),
                EffectKind::Revoke { .. } => Some(Event::Revoked { effect, outcome }),
                EffectKind::Sweep => Some(Event::Swept { effect, found: None }),
                EffectKind::Send { order, value, .. } => {
                    words.push(format!("{} {}", order.kind.word(), order.kind.version()));
                    match order.kind {
                        OrderKind::Activate { version, .. } => {
                            report.present.insert(version, value.expect("a store is given the value"));
                            (report.current, report.adopted) = (Some(version), Some(version));
                            report.generation = Some(order.generation);
                        }
                        OrderKind::Seal { version, .. } => {
                            report.present.remove(&version);
                            report.gone.insert(version);
                        }
                        other => panic!("a store is not told to {}", other.word()),
                    }
                    report.sequence += 1;
                    Some(Event::Reported { target: target.clone(), report: report.clone() })
                }
                EffectKind::Ask { question, .. } => {
                    report.answers = question;
                    report.sequence += 1;
                    Some(Event::Reported { target: target.clone(), report: report.clone() })
                }
                EffectKind::EndSessions { .. } | EffectKind::Audit { .. } => None,
            });
        }
    }
    assert_eq!(words, ["activate 1", "activate 2", "seal 1"]);
    assert_eq!(credential.phase(v(1)), Some(Phase::Retired));
}
