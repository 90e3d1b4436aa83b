//! The checks are checked: each clause of the gate is left out in turn, in a world where it is the one that matters,
//! and then somebody is refused a login, or lies on a revoked version.
//!
//! A second line of defence would hide most of these: before a revocation every target says `gone`, and it does not
//! say so while a version is current or held there. So each world here weakens that line by name.

mod world;

use lifecycle::HolderId;
use lifecycle::Millis;
use lifecycle::credential::{Clause, Event, Policy};
use lifecycle::host::{By, HostEvent, Rules};
use lifecycle::report::Gap;
use lifecycle::{Evidence, GapId};
use std::collections::BTreeSet;
use world::*;

/// The same world with the whole gate, where nobody fails, and without the clause, where somebody does.
#[track_caller]
fn bites(clause: Clause, policy: Policy, act: impl Fn(&mut World)) {
    for weakened in [false, true] {
        let mut world = World::on_one(2, policy.clone());
        world.store.credential = world.store.credential.clone().unsealed();
        world.lost.insert("seal");
        if weakened {
            world.store.credential = world.store.credential.clone().without(clause);
        }
        act(&mut world);
        world.log_in();
        if weakened {
            assert!(!world.refused.is_empty(), "nobody failed without {clause}: {}", world.picture());
        } else {
            world.nobody_failed();
        }
    }
}

const DAY: u64 = 86_400_000;

#[test]
fn without_replaced_a_host_that_was_away_lies_on_a_revoked_version() {
    bites(Clause::Replaced, policy(), |world| {
        // Nobody runs there; the next start would read what lies there.
        world.host(1).give(HostEvent::Policy(Some(Rules::default())));
        world.host(1).stop_app();
        world.hear_all();
        world.go_down(1);
        world.rotate();
        world.pass(600_000);
        world.lost.insert("stage");
        world.come_back(1);
        world.pass(DAY);
    });
}

#[test]
fn without_adopted_a_job_that_cannot_use_the_new_one_returns_to_a_dead_one() {
    bites(Clause::Adopted, policy(), |world| {
        world.host(1).stop_app();
        world.host(1).sick.insert(v(2));
        world.hear_all();
        world.rotate();
        world.pass(DAY);
        world.host(1).start_app();
        world.hear_all();
        world.pass(DAY);
    });
}

#[test]
fn without_no_rollback_a_host_goes_back_to_a_revoked_version() {
    bites(Clause::NoRollback, policy(), |world| {
        // While a consumer settles, both clauses speak.
        world.store.credential = world.store.credential.clone().without(Clause::Adopted);
        world.host(1).slow = true;
        world.host(1).sick.insert(v(2));
        world.rotate();
        while world.host(1).link != Some(v(2)) || world.host(1).loaded.is_none_or(|(on, _)| on != v(2)) {
            world.pass(1_000);
        }
        world.go_down(1);
        world.pass(600_000);
        world.come_back(1);
        world.pass(DAY);
        world.host(1).slow = false;
        world.host(1).start(false);
        world.hear_all();
        world.pass(DAY);
    });
}

#[test]
fn without_disarmed_a_late_order_flips_to_a_revoked_version() {
    bites(Clause::Disarmed, policy(), |world| {
        world.lost.extend(["activate", "disarm"]);
        world.rotate();
        world.pump();
        let (target, order, value) = world.pending_send("activate").expect("the canary is told to activate");
        world.give(Event::Abort { reason: "an operator said so".into() });
        world.pass(DAY);
        world.hosts.get_mut(&target).unwrap().order(&order, value);
    });
}

#[test]
fn without_covered_a_reader_that_nobody_saw_fails() {
    bites(Clause::Covered, policy(), |world| {
        let by = world.effect_of(v(1));
        world.host(1).hidden.push((v(1), by));
        world.host(1).gaps.push(Gap {
            id: GapId::new("gap-1").unwrap(),
            versions: BTreeSet::from([v(1)]),
            description: "the queue overflowed".into(),
        });
        world.rotate();
        world.settle();
        world.pass(DAY);
    });
}

#[test]
fn without_no_holder_a_process_that_kept_the_old_one_fails() {
    bites(Clause::NoHolder, policy(), |world| {
        let by = world.effect_of(v(1));
        world.host(1).others.insert(HolderId::new("proc:7:7").unwrap(), (v(1), by));
        world.rotate();
        world.settle();
        world.pass(DAY);
    });
}

#[test]
fn without_backend_quiet_a_user_on_no_host_of_ours_fails() {
    bites(Clause::BackendQuiet, policy(), |world| {
        let by = world.effect_of(v(1));
        world.backend.strangers.insert(by, 1);
        world.rotate();
        world.settle();
        world.pass(DAY);
    });
}

#[test]
fn without_evidence_a_reader_fails_on_a_host_that_cannot_see_readers() {
    let policy = Policy { evidence: Evidence::Kernel, ..policy() };
    bites(Clause::Evidence, policy, |world| {
        let by = world.effect_of(v(1));
        world.host(1).hidden.push((v(1), by));
        world.rotate();
        world.settle();
        world.pass(DAY);
    });
}

#[test]
fn without_grace_a_token_that_was_obtained_with_the_old_one_fails() {
    let policy = Policy { tail_ms: Millis::seconds(3600), ..policy() };
    bites(Clause::Grace, policy, |world| {
        let by = world.effect_of(v(1));
        world.rotate();
        world.pass(30_000);
        // Somebody works with a token for half an hour after the last holder let go.
        world.host(1).hidden.push((v(1), by));
        world.pass(1_800_000);
        world.log_in();
        world.host(1).hidden.clear();
        world.settle();
        world.pass(DAY);
    });
}

#[test]
fn without_no_hold_a_user_that_only_an_operator_knows_of_fails() {
    bites(Clause::NoHold, policy(), |world| {
        let by = world.effect_of(v(1));
        world.give(Event::Hold { version: v(1), by: "an operator".into() });
        world.host(1).hidden.push((v(1), by));
        world.rotate();
        world.settle();
        world.pass(DAY);
    });
}

#[test]
fn without_fresh_a_reader_that_no_report_has_shown_yet_fails() {
    bites(Clause::Fresh, policy(), |world| {
        let by = world.effect_of(v(1));
        world.rotate();
        world
            .pump_until(|world| world.credential().phase(v(1)) != Some(lifecycle::credential::Phase::Active));
        // It read the old one a moment ago; the host knows, and has not said so.
        world.host(1).others.insert(HolderId::new("proc:7:7").unwrap(), (v(1), by));
        world.pump();
        world.pass(DAY);
    });
}

#[test]
fn a_manual_consumer_fails_no_rollout_and_keeps_the_old_version() {
    let mut world = World::on_one(2, policy());
    world.host(1).give(HostEvent::Policy(Some(rules(By::Itself))));
    world.rotate();
    world.settle();
    world.pass(DAY);
    assert_eq!(world.credential().active(), Some(v(2)), "{}", world.picture());
    assert!(
        world.blocks(v(1), Clause::Adopted) && world.blocks(v(1), Clause::NoHolder),
        "{}",
        world.picture()
    );
    world.host(1).start_app();
    world.hear_all();
    world.settle();
    assert_eq!(world.role(v(1)), Some(Role::Revoked), "{}", world.picture());
    world.nobody_failed();
}

#[test]
fn every_clause_is_left_out_by_a_test() {
    let tests = include_str!("gate.rs");
    for clause in Clause::all() {
        assert!(tests.contains(&format!("bites(Clause::{clause:?},")), "nothing shows that {clause} bites");
    }
}
