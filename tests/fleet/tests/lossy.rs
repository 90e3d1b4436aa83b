//! Two hundred hosts on a network that loses, delays and swallows, while everything of ours is killed again and again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use tests_fleet::scene::{NAME, PATIENCE_OF_MANY as PATIENCE, Scene, Wish};
use tests_fleet::server::Overlap;
use tests_fleet::{Half, Luck, Network, apart, built, farm, luck};

const HOSTS: usize = 200;
/// Rotations that are asked for while everything fails.
const ROTATIONS: u32 = 3;
/// How long everything fails after each of them.
const TROUBLE: Duration = Duration::from_secs(12);

const POLICY: &str = "{ barrier: 4s, flipIn: 1s, startWait: 3s, grace: 500ms, adoptWithin: 30m, wave: 200, \
                      sampleEvery: 1s, retryPauseMax: 2s, attemptsMax: 1000 }";

/// A number from the environment, for a person who looks for something.
fn told(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Halves that were killed, and when they are started again.
#[derive(Default)]
struct Fallen(Vec<(Instant, usize, Half)>);

impl Fallen {
    fn raise(&mut self, scene: &mut Scene, now: Instant) {
        self.0.retain(|(at, host, half)| {
            if *at <= now {
                scene.farm.hosts_mut()[*host].start(*half).unwrap();
            }
            *at > now
        });
    }
}

/// Kills what chance says for a while.
fn trouble(scene: &mut Scene, luck: &mut Luck, fallen: &mut Fallen) -> (u32, u32) {
    let (mut halves, mut control_planes) = (0, 0);
    let end = Instant::now() + TROUBLE;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(luck.below(200)));
        let now = Instant::now();
        fallen.raise(scene, now);
        if luck.below(40) == 0 {
            scene.control.kill();
            std::thread::sleep(Duration::from_millis(luck.below(500)));
            scene.control.start().unwrap();
            control_planes += 1;
        } else {
            let host = usize::try_from(luck.below(scene.readers.len() as u64)).unwrap();
            let half = if luck.below(2) == 0 { Half::Network } else { Half::Applier };
            if scene.farm.hosts()[host].runs(half) {
                scene.farm.hosts_mut()[host].kill(half);
                fallen.0.push((now + Duration::from_millis(luck.below(3000)), host, half));
                halves += 1;
            }
        }
    }
    (halves, control_planes)
}

#[test]
fn a_lossy_network_and_random_kills_leak_nothing_revoke_nothing_early_and_restart_nobody_twice() {
    if apart("a_lossy_network_and_random_kills_leak_nothing_revoke_nothing_early_and_restart_nobody_twice") {
        return;
    }
    let seed = luck::seed();
    let hosts = told("ESO_FLEET_HOSTS", HOSTS);
    let began = Instant::now();
    let at = |what: &str| println!("{:>6.1} s  {what}", began.elapsed().as_secs_f64());
    let runtime = farm::runtime(hosts).unwrap();
    let network = Network::new(seed, runtime.handle());
    let wish = Wish {
        hosts,
        processes_every: 20,
        restarted_every: 10,
        login_every_ms: 1000,
        overlap: Overlap::Versions,
        network: Some(network.clone()),
    };
    let mut scene = Scene::set(&built!(), &wish, runtime.handle()).unwrap();
    at(&format!("{hosts} hosts are connected"));
    scene.declare(POLICY).unwrap();
    scene.until_at_rest(PATIENCE).unwrap();
    at("the first version is everywhere");

    let (mut luck, mut fallen) = (Luck::of(seed, u64::MAX), Fallen::default());
    for rotation in 1..=ROTATIONS {
        network.spoil();
        // It may be lost: the trouble goes on all the same.
        let asked = scene.control.rotate(NAME);
        at(&format!(
            "rotation {rotation}: {}",
            asked.map_or_else(|error| format!("{error:#}"), |asked| asked.message)
        ));
        let (halves, control_planes) = trouble(&mut scene, &mut luck, &mut fallen);
        at(&format!("killed {halves} halves of hosts and {control_planes} control planes"));
        network.heal();
        fallen.raise(&mut scene, Instant::now() + TROUBLE);
        let detail = scene.until_at_rest(PATIENCE).unwrap();
        scene.check(&detail).unwrap();
        at("the network is well again, and everything at rest");
    }
    at(&network.told());

    let before = scene.control.credential(NAME).unwrap().summary.current;
    scene.control.rotate(NAME).unwrap();
    scene
        .control
        .until(PATIENCE, "a newer version is everywhere", |control| {
            Ok(control.credential(NAME)?.summary.current > before)
        })
        .unwrap();
    let detail = scene.until_at_rest(PATIENCE).unwrap();
    scene.check(&detail).unwrap();
    let told = scene.server.told();
    assert!(told.minted > ROTATIONS, "the trouble let too few rotations begin: {told:?}");
    at(&format!(
        "and one more rotation in good weather; {} versions, {} logins, none refused",
        told.minted, told.accepted
    ));
}
