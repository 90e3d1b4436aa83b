//! After a failure or a crash at any operation the set is whole: N or N+1. Operations are counted in a run where
//! nothing fails, never listed by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod world;

use std::process::Command;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use sets::Disk;
use world::{Injector, Trouble, World};

fn operations() -> usize {
    let world = World::new();
    world.rotate(&Disk::default(), 1).unwrap();
    let (injector, disk) = Injector::disk(usize::MAX, Trouble::Ends);
    world.rotate(&disk, 2).unwrap();
    let operations = injector.seen.load(Ordering::SeqCst);
    assert!(operations > 40, "only {operations} operations: do they all pass the gate?");
    operations
}

/// Readers find version 1 or 2 whole on every way, and nobody else reads anything.
fn check_whole(world: &World, at: usize) {
    for (way, found) in world.readers_find() {
        assert!(matches!(found, Some(1 | 2)), "operation {at}: {way} shows {found:?}");
    }
    assert_eq!(world.world_readable(), Vec::<std::path::PathBuf>::new(), "operation {at}");
}

/// The next run finishes what was begun, and nothing is left over.
fn check_finishes(world: &World, at: usize) {
    world.rotate(&Disk::default(), 2).unwrap();
    for (way, found) in world.readers_find() {
        assert_eq!(found, Some(2), "operation {at}: {way} after the next run");
    }
    assert_eq!(world.rubbish(), Vec::<std::path::PathBuf>::new(), "operation {at}");
    let set = world.open(&Disk::default()).unwrap();
    assert_eq!(set.present().unwrap().into_iter().collect::<Vec<_>>(), [world::version(2)], "operation {at}");
}

#[test]
fn every_operation_fails_once() {
    for errno in [Errno::IO, Errno::NOSPC, Errno::ROFS] {
        for at in 0..operations() {
            let world = World::new();
            world.rotate(&Disk::default(), 1).unwrap();
            let (_, disk) = Injector::disk(at, Trouble::Fails(errno));
            world.rotate(&disk, 2).expect_err("a failed operation was ignored");
            check_whole(&world, at);
            check_finishes(&world, at);
        }
    }
}

#[test]
fn nothing_works_after_any_operation() {
    for at in 0..operations() {
        let world = World::new();
        world.rotate(&Disk::default(), 1).unwrap();
        let (_, disk) = Injector::disk(at, Trouble::Ends);
        world.rotate(&disk, 2).unwrap_err();
        check_whole(&world, at);
        check_finishes(&world, at);
    }
}

#[test]
fn every_step_runs_twice() {
    let world = World::new();
    for number in [1, 1, 2, 2] {
        world.rotate(&Disk::default(), number).unwrap();
        assert!(world.readers_find().iter().all(|(_, found)| *found == Some(number)));
    }
}

const CHILD_WORLD: &str = "ESO_TEST_CHILD_WORLD";
const CHILD_AT: &str = "ESO_TEST_CHILD_AT";

/// A real process ends at each operation.
#[test]
fn a_process_is_killed_at_any_operation() {
    for at in 0..operations() {
        let world = World::new();
        world.rotate(&Disk::default(), 1).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_process_that_is_killed", "--nocapture"])
            .env(CHILD_WORLD, &world.root)
            .env(CHILD_AT, at.to_string())
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "operation {at}: the process was not killed");
        check_whole(&world, at);
        check_finishes(&world, at);
    }
}

/// Does nothing by itself: the body of the process above.
#[test]
fn the_process_that_is_killed() {
    let (Some(root), Some(at)) = (std::env::var_os(CHILD_WORLD), std::env::var(CHILD_AT).ok()) else {
        return;
    };
    let world = World::at(std::path::Path::new(&root));
    let (_, disk) = Injector::disk(at.parse().unwrap(), Trouble::Aborts);
    world.rotate(&disk, 2).unwrap();
}
