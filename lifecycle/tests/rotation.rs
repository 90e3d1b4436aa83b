//! The main road: a rotation from the wish to the revocation, and what may go wrong on it.

#![allow(clippy::unwrap_used, clippy::similar_names, reason = "what does not fit ends the test")]

mod world;

use lifecycle::credential::{Clause, Phase};
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
