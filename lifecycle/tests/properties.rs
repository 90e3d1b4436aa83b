//! Whatever happens, in whatever order: nothing is revoked that is in use, and when the trouble ends, what is to be
//! retired is retired within a bounded number of steps.

#![allow(clippy::unwrap_used, clippy::similar_names, reason = "what does not fit ends the test")]

mod world;

use lifecycle::credential::{Credential, Event, Phase};
use lifecycle::host::{By, HostEvent};
use lifecycle::report::Gap;
use lifecycle::{GapId, HolderId, Millis, TargetId};
use proptest::prelude::*;
use std::collections::BTreeSet;
use world::*;

const HOSTS: usize = 3;

#[derive(Debug, Clone)]
enum Act {
    Rotate,
    Compromise,
    Pass(u64),
    Down(usize),
    Up(usize),
    Crash(usize, bool),
    StopApp(usize),
    StartApp(usize),
    Reader(usize),
    ReaderEnds(usize),
    Overflow(usize),
    Heals(usize),
    Sick(usize),
    Well(usize),
    Lose(&'static str),
    Find,
    Replay(prop::sample::Index),
    RestartUs,
    Halt,
    Resume,
    Abort,
    Hold,
    Unhold,
    ClockOff(usize, bool),
    BackUp,
    Restore,
    Deadline,
    Excuse(usize),
    RetireHost(usize),
    OutOfPolicy(usize),
    InPolicy(usize),
    Slow(usize, bool),
}

fn act() -> impl Strategy<Value = Act> {
    let host = 0..HOSTS;
    let word = prop::sample::select(vec!["stage", "arm", "activate", "adopt", "disarm", "roll_back", "seal"]);
    prop_oneof![
        6 => Just(Act::Rotate),
        1 => Just(Act::Compromise),
        8 => prop::sample::select(vec![0_u64, 1_000, 5_000, 130_000, 400_000]).prop_map(Act::Pass),
        2 => host.clone().prop_map(Act::Down),
        3 => host.clone().prop_map(Act::Up),
        2 => (host.clone(), any::<bool>()).prop_map(|(n, boot)| Act::Crash(n, boot)),
        1 => host.clone().prop_map(Act::StopApp),
        2 => host.clone().prop_map(Act::StartApp),
        2 => host.clone().prop_map(Act::Reader),
        2 => host.clone().prop_map(Act::ReaderEnds),
        1 => host.clone().prop_map(Act::Overflow),
        1 => host.clone().prop_map(Act::Heals),
        1 => host.clone().prop_map(Act::Sick),
        2 => host.clone().prop_map(Act::Well),
        2 => word.prop_map(Act::Lose),
        3 => Just(Act::Find),
        3 => any::<prop::sample::Index>().prop_map(Act::Replay),
        2 => Just(Act::RestartUs),
        1 => Just(Act::Halt),
        2 => Just(Act::Resume),
        1 => Just(Act::Abort),
        1 => Just(Act::Hold),
        1 => Just(Act::Unhold),
        1 => (host.clone(), any::<bool>()).prop_map(|(n, off)| Act::ClockOff(n, off)),
        1 => Just(Act::BackUp),
        1 => Just(Act::Restore),
        1 => Just(Act::Deadline),
        1 => host.clone().prop_map(Act::Excuse),
        1 => host.clone().prop_map(Act::RetireHost),
        1 => host.clone().prop_map(Act::OutOfPolicy),
        2 => host.clone().prop_map(Act::InPolicy),
        1 => (host, any::<bool>()).prop_map(|(n, slow)| Act::Slow(n, slow)),
    ]
}

fn perform(world: &mut World, act: &Act, count: usize) {
    match act {
        Act::Pass(ms) => world.pass(*ms),
        Act::Down(n) => world.go_down(*n),
        Act::Up(n) => world.come_back(*n),
        Act::Crash(n, rebooted) => {
            if *rebooted {
                world.host(*n).others.clear();
                world.host(*n).hidden.clear();
                world.host(*n).gaps.clear();
            }
            world.host(*n).start(*rebooted);
            world.come_back(*n);
        }
        Act::StopApp(n) => world.host(*n).stop_app(),
        Act::StartApp(n) => {
            if world.hosts[&h(*n)].up {
                world.host(*n).start_app();
            }
        }
        Act::Reader(n) => read(world, *n, count, false),
        Act::Overflow(n) => read(world, *n, count, true),
        Act::ReaderEnds(n) => world.host(*n).others.clear(),
        Act::Heals(n) => {
            world.host(*n).hidden.clear();
            world.host(*n).gaps.clear();
        }
        Act::Sick(n) => {
            let next = world.credential().versions().last().map_or(v(1), |view| v(view.version.number + 1));
            world.host(*n).sick.insert(next);
        }
        Act::Well(n) => world.host(*n).sick.clear(),
        Act::Lose(word) => drop(world.lost.insert(word)),
        Act::Find => world.lost.clear(),
        Act::Replay(index) => {
            if !world.sent.is_empty() {
                let (target, order, value) = index.get(&world.sent).clone();
                if world.hosts[&target].up {
                    world.hosts.get_mut(&target).unwrap().order(&order, value);
                }
            }
        }
        Act::ClockOff(n, off) => world.host(*n).clock_off = *off,
        Act::OutOfPolicy(n) => world.host(*n).give(HostEvent::Policy(None)),
        Act::InPolicy(n) => world.host(*n).give(HostEvent::Policy(Some(rules(By::Permit)))),
        Act::Slow(n, slow) => world.host(*n).slow = *slow,
        words => say(world, words),
    }
}

/// What an operator or a restart of ours brings.
#[expect(clippy::collapsible_match, reason = "a guard that changes the world would hide it")]
fn say(world: &mut World, act: &Act) {
    match act {
        Act::Rotate => drop(world.try_give(Event::Rotate(lifecycle::credential::Rotate {
            reason: lifecycle::credential::RotateReason::Demand,
        }))),
        Act::Compromise => drop(world.compromise(None)),
        Act::RestartUs => world.restart(),
        Act::Halt => drop(world.try_give(Event::Halt { reason: "an operator said so".into() })),
        Act::Resume => drop(world.try_give(Event::Resume)),
        Act::Abort => drop(world.try_give(Event::Abort { reason: "an operator said so".into() })),
        Act::Hold => {
            if let Some(version) = world.credential().active() {
                drop(world.try_give(Event::Hold { version, by: "an operator".into() }));
            }
        }
        Act::Unhold => unhold_all(world),
        Act::BackUp => world.backup = Some(world.store.clone()),
        Act::Restore => {
            if let Some(backup) = world.backup.clone() {
                world.restore(&backup);
            }
        }
        Act::Deadline => {
            // What is left at the deadline fails, as told.
            if world.compromise(Some(60_000)).is_ok() {
                world.written_off.extend((0..HOSTS).map(h));
            }
        }
        Act::Excuse(n) => {
            if let Some(version) = world.credential().active()
                && !world.hosts[&h(*n)].up
                && world.try_give(Event::Excuse { target: h(*n), version }).is_ok()
            {
                world.written_off.insert(h(*n));
            }
        }
        Act::RetireHost(n) => {
            // One of them stays, and a host that was retired is gone for good.
            if *n > 0 && world.try_give(Event::HostRetired { target: h(*n) }).is_ok() {
                world.written_off.insert(h(*n));
                world.store.retired.insert(h(*n));
            }
        }
        _ => {}
    }
}

/// Another process reads what lies there; unseen, it leaves a gap.
fn read(world: &mut World, n: usize, count: usize, unseen: bool) {
    let host = world.host(n);
    let Some(found) = host.link.and_then(|version| Some((version, *host.files.get(&version)?))) else {
        return;
    };
    if unseen {
        host.hidden.push(found);
        let id = GapId::new(format!("gap-{count}")).unwrap();
        let versions = BTreeSet::from([found.0]);
        host.gaps.push(Gap { id, versions, description: "the queue overflowed".into() });
    } else {
        host.others.insert(HolderId::new(format!("proc:{count}:1")).unwrap(), found);
    }
}

fn unhold_all(world: &mut World) {
    let versions: Vec<_> = world.credential().versions().map(|view| view.version).collect();
    for version in versions {
        drop(world.try_give(Event::Unhold { version }));
    }
}

/// The trouble ends: everybody is well, everything arrives, and operators have nothing more against it.
fn heal(world: &mut World) {
    world.lost.clear();
    for n in 0..HOSTS {
        let host = world.host(n);
        host.sick.clear();
        host.others.clear();
        host.hidden.clear();
        host.gaps.clear();
        host.clock_off = false;
        host.slow = false;
        host.give(HostEvent::Policy(Some(rules(By::Permit))));
        host.start(false);
        if host.life.is_none() {
            host.start_app();
        }
        world.come_back(n);
        if world.store.retired.contains(&h(n)) {
            world.host(n).stop_app();
        }
    }
    unhold_all(world);
    rest(world);
    // What a restored store found where it lay stays there until something newer comes, and what the backend refuses
    // stays halted until it is given up.
    if world.credential().rollout().is_some_and(|rollout| rollout.halted.is_some()) {
        perform(world, &Act::Abort, 0);
    }
    perform(world, &Act::Rotate, 0);
    rest(world);
}

fn rest(world: &mut World) {
    for _ in 0..6 {
        world.settle();
        unhold_all(world);
        drop(world.try_give(Event::Resume));
        // One that could not use a version has been put right, and starts again.
        for n in 0..HOSTS {
            if world.host(n).life.is_none() && !world.store.retired.contains(&h(n)) {
                world.host(n).start_app();
                world.hear(&h(n));
            }
        }
    }
    world.settle();
}

fn round_trip(world: &mut World) {
    let text = serde_json::to_string(world.credential()).unwrap();
    let back: Credential = serde_json::from_str(&text).unwrap();
    assert_eq!(back, *world.credential());
    world.store.credential = back;
}

fn run(acts: &[Act], twice: bool) -> World {
    let policy = lifecycle::credential::Policy { grace_ms: Millis::seconds(60), ..policy() };
    let mut world = World::on_one(HOSTS, policy);
    world.twice = twice;
    for (count, act) in acts.iter().enumerate() {
        perform(&mut world, act, count);
        world.log_in();
        for n in 0..HOSTS {
            world.hear(&h(n));
        }
        world.pump();
        assert!(world.refused.is_empty(), "after {act:?}: {:?}\n{}", world.refused, world.picture());
        round_trip(&mut world);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_revoked_that_is_in_use(acts in prop::collection::vec(act(), 1..40), twice in any::<bool>()) {
        run(&acts, twice);
    }

    #[test]
    fn what_is_to_be_retired_is_retired_in_the_end(acts in prop::collection::vec(act(), 1..25)) {
        let mut world = run(&acts, false);
        heal(&mut world);
        world.nobody_failed();
        let alive = world.credential().versions().filter(|view| !view.phase.is_ended());
        let alive: Vec<_> = alive.map(|view| (view.version, view.phase)).collect();
        prop_assert_eq!(alive.len(), 1, "{}", world.picture());
        prop_assert_eq!(alive[0].1, Phase::Active, "{}", world.picture());
        let serves = |(id, host): (&TargetId, &Host)| {
            host.link == Some(alive[0].0) || world.store.retired.contains(id)
        };
        prop_assert!(world.hosts.iter().all(serves), "{}", world.picture());
    }
}
