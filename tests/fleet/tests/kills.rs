//! The real control plane, killed at every persisted step of a rotation with three hosts that go on; each step failing
//! once; every effect twice; and its database put back to any earlier step while the hosts have moved on.
//!
//! The steps are counted in a run that nobody kills. `ESO_FLEET_STEPS=commit:7,revoke:1` takes these steps only.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lifecycle::Version;
use protocol::api::{CredentialDetail, Done, Reason, RolloutPhase, Unhold, VersionPhase};
use tests_fleet::scene::{NAME, PATIENCE, Scene, Wish};
use tests_fleet::server::{Overlap, Trouble};
use tests_fleet::{apart, built, farm};
use tokio::runtime::Handle;

const HOSTS: usize = 3;
/// Worlds beside each other: most of a rotation is waiting.
const WORLDS: usize = 8;
/// Between two looks at a control plane that may die any moment.
const LOOK: Duration = Duration::from_millis(30);

const POLICY: &str = "{ barrier: 1s, flipIn: 60ms, startWait: 1s, grace: 0s, adoptWithin: 30m, wave: 3, \
                      sampleEvery: 1s, retryPauseMax: 100ms, attemptsMax: 1000 }";

/// What the control plane is told to do at its next start.
const DIE: &str = "ESO_FAILPOINT";
const FAIL: &str = "ESO_FAILPOINT_FAIL";
const TWICE: &str = "ESO_FAILPOINT_TWICE";
const LOG: &str = "ESO_FAILPOINT_LOG";

fn world(runtime: &Handle) -> Scene {
    let wish = Wish {
        hosts: HOSTS,
        processes_every: 0,
        restarted_every: 2,
        login_every_ms: 200,
        overlap: Overlap::Versions,
        network: None,
    };
    let scene = Scene::set(&built!(), &wish, runtime).unwrap();
    scene.declare(POLICY).unwrap();
    scene.until_at_rest(PATIENCE).unwrap();
    scene
}

fn environment(pairs: &[(&str, String)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// Starts the control plane anew with this environment, and takes it through a rotation to its rest. If it ends on the
/// way, it is started again without, after `between`. Whether it ended.
fn rotation(scene: &mut Scene, told: &[(&str, String)], between: impl FnOnce(&Scene)) -> bool {
    let before = version(&scene.control.credential(NAME).unwrap());
    scene.control.environment = environment(told);
    let mut between = Some(between);
    let mut up = scene.control.start().is_ok();
    let mut asked = false;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if !up || scene.control.ended().is_some() {
            let first =
                between.take().unwrap_or_else(|| panic!("{told:?}: it ended twice\n{}", scene.told()));
            first(scene);
            scene.control.environment.clear();
            scene.control.start().unwrap();
            up = true;
        }
        if let Ok(detail) = scene.control.credential(NAME) {
            // A wish may be lost with the process before it was accepted, but never when it was.
            let newer = detail.versions.iter().any(|known| known.version > before);
            if !newer && detail.pending_wish.is_none() && detail.rollout.is_none() {
                assert!(!asked, "{told:?}: an accepted wish was lost\n{}", scene.told());
                asked = scene.control.rotate(NAME).is_ok()
                    && scene.control.ended().is_none()
                    && between.is_none();
            }
            if newer && scene.is_at_rest(&detail) {
                scene.check(&detail).unwrap_or_else(|error| panic!("{told:?}: {error:#}\n{}", scene.told()));
                return between.is_none();
            }
        }
        assert!(Instant::now() < deadline, "{told:?}: not at rest\n{}", scene.told());
        std::thread::sleep(LOOK);
    }
}

fn version(detail: &CredentialDetail) -> Version {
    detail.summary.current.unwrap()
}

/// The names of all steps, and of all tries, of a rotation that nobody disturbs.
fn counted(scene: &mut Scene) -> (Vec<String>, Vec<String>) {
    let log = scene.directory.path().join("counted");
    rotation(scene, &[(LOG, log.display().to_string())], |_| panic!("nobody kills it"));
    let read = |extension: &str| {
        let text = std::fs::read_to_string(log.with_extension(extension)).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    (read("steps"), read("tried"))
}

/// The n-th of those steps of a run that have this name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    what: String,
    nth: usize,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.what, self.nth)
    }
}

/// The steps that the environment names, else all that were counted.
fn chosen(counted: &[String]) -> Vec<Step> {
    if let Ok(text) = std::env::var("ESO_FLEET_STEPS") {
        let step = |(what, nth): (&str, &str)| Step { what: what.to_owned(), nth: nth.parse().unwrap() };
        return text.split(',').map(|named| step(named.rsplit_once(':').unwrap())).collect();
    }
    let mut seen = BTreeMap::<&String, usize>::new();
    let step = |what: &String, nth: usize| Step { what: what.clone(), nth };
    counted
        .iter()
        .map(|what| step(what, *seen.entry(what).and_modify(|nth| *nth += 1).or_insert(1)))
        .collect()
}

/// Does each of these in one of several worlds, which are used again and again. Reports that come together are one
/// commit and not two, so that a run may have fewer steps of a name than the counted one: then it is done at the one
/// before. What came of each, and how many were done at an earlier one.
fn each<T: Send>(
    runtime: &Handle,
    steps: Vec<Step>,
    one: impl Fn(&mut Scene, &Step) -> Option<T> + Sync,
) -> (BTreeMap<Step, T>, usize) {
    let worlds = WORLDS.min(steps.len());
    let (queue, done) = (Mutex::new(VecDeque::from(steps)), Mutex::new((BTreeMap::new(), 0)));
    std::thread::scope(|scope| {
        for _ in 0..worlds {
            scope.spawn(|| {
                let mut scene = world(runtime);
                loop {
                    let Some(step) = queue.lock().unwrap().pop_front() else { break };
                    let mut earlier = (1..=step.nth).rev().map(|nth| Step { nth, ..step.clone() });
                    let reached = earlier.find_map(|at| Some((at.nth < step.nth, one(&mut scene, &at)?)));
                    let (fewer, outcome) = reached.unwrap_or_else(|| panic!("{step} was never reached"));
                    let mut done = done.lock().unwrap();
                    done.0.insert(step, outcome);
                    done.1 += usize::from(fewer);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

fn told<T>(what: &str, (reached, earlier): &(BTreeMap<Step, T>, usize), began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{what} {} steps in {seconds:.0} s, {earlier} of them at an earlier one of the name",
        reached.len()
    );
}

#[test]
fn killed_at_every_persisted_step_with_three_hosts() {
    if apart("killed_at_every_persisted_step_with_three_hosts") {
        return;
    }
    let began = Instant::now();
    let runtime = farm::runtime(HOSTS * WORLDS).unwrap();
    let (steps, _) = counted(&mut world(runtime.handle()));
    println!("steps: {steps:?}");
    assert!(steps.len() > 20, "{} steps are too few to be a whole rotation", steps.len());
    let one = |scene: &mut Scene, step: &Step| {
        let minted = scene.server.told().minted;
        let ended = rotation(scene, &[(DIE, step.to_string())], |_| {});
        assert!(scene.server.told().minted - minted <= 2, "step {step}: minted more than was wished for");
        ended.then_some(())
    };
    told("killed at", &each(runtime.handle(), chosen(&steps), one), began);
}

#[test]
fn every_step_fails_once_and_every_effect_comes_twice_with_three_hosts() {
    if apart("every_step_fails_once_and_every_effect_comes_twice_with_three_hosts") {
        return;
    }
    let began = Instant::now();
    let runtime = farm::runtime(HOSTS * WORLDS).unwrap();
    let mut scene = world(runtime.handle());
    let (_, tries) = counted(&mut scene);
    for trouble in [Trouble::RefusedOnce, Trouble::UnansweredOnce] {
        scene.server.trouble(trouble);
        rotation(&mut scene, &[], |_| panic!("a server that fails ends nobody"));
        scene.server.trouble(Trouble::None);
    }
    let minted = scene.server.told().minted;
    rotation(&mut scene, &[(TWICE, "1".to_owned())], |_| panic!("twice ends nobody"));
    assert_eq!(scene.server.told().minted, minted + 1, "an effect that comes twice mints once");
    drop(scene);
    told("failed once at", &each(runtime.handle(), chosen(&tries), failed_at), began);
}

/// What the store calls a commit of a credential's state.
const COMMIT: &str = "commit";

/// Lets this try fail; nothing when the run had no such try. An effect that fails is tried again by the same process; a
/// commit that fails ends it.
fn failed_at(scene: &mut Scene, step: &Step) -> Option<()> {
    let log = scene.directory.path().join("failing");
    let tried = log.with_extension("tried");
    let _ = std::fs::remove_file(&tried);
    let told = [(FAIL, step.to_string()), (LOG, log.display().to_string())];
    let mut ended = rotation(scene, &told, |_| {});
    let names = std::fs::read_to_string(&tried).unwrap();
    if names.lines().filter(|what| *what == step.what).count() < step.nth {
        return None;
    }
    if step.what == COMMIT && !ended {
        // The very last one: everything was at rest already.
        ended = scene.control.until_ended(PATIENCE).is_ok();
    }
    assert!(step.what != COMMIT || ended, "{step}: a commit failed and the process went on");
    Some(())
}

/// What an operator does after a restore: gives up what halted, and releases what was found.
fn follow_the_advice(scene: &Scene, detail: &CredentialDetail) {
    if detail.rollout.as_ref().is_some_and(|rollout| rollout.phase == RolloutPhase::Halted) {
        let reason = Reason { reason: "as advised".to_owned() };
        // It may have ended meanwhile.
        let _ = scene.control.post::<Done>(&format!("/v1/credentials/{NAME}/rollout/abort"), &reason);
    }
    for held in detail.versions.iter().filter(|known| !known.holds.is_empty()) {
        // One that ended meanwhile needs no word any more.
        let unhold = Unhold { version: held.version };
        let _ = scene.control.post::<Done>(&format!("/v1/credentials/{NAME}/unhold"), &unhold);
    }
}

/// Copies the database as it lies there, with what is in its log.
fn copy(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let of = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            std::path::PathBuf::from(name)
        };
        let _ = std::fs::remove_file(of(to));
        if of(from).exists() {
            std::fs::copy(of(from), of(to)).unwrap();
        }
    }
}

/// Dies at the step; the hosts go on through one rotation more; then the database of that step is put back.
fn reverted(scene: &mut Scene, step: &Step) -> Option<()> {
    let kept = scene.directory.path().join("kept.db");
    let ended = rotation(scene, &[(DIE, step.to_string())], |scene| copy(&scene.control.database(), &kept));
    if !ended {
        return None;
    }
    rotation(scene, &[], |_| panic!("nobody kills it"));
    let alive = scene.server.alive();
    let epoch = scene.control.status().unwrap().epoch.counter;
    scene.control.kill();
    copy(&kept, &scene.control.database());
    scene.control.start().unwrap();
    let begun = scene.control.until(PATIENCE, "a new epoch has begun", |control| {
        let status = control.status()?;
        Ok(status.epoch.counter > epoch && !status.starting)
    });
    begun.unwrap_or_else(|error| panic!("step {step}: {error:#}\n{}", scene.told()));
    assert!(scene.server.alive().is_superset(&alive), "step {step}: what is in use was revoked");
    let before = scene.control.credential(NAME).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut asked = false;
    loop {
        let detail = scene.control.credential(NAME).unwrap();
        let newer = detail.versions.iter().any(|known| {
            known.version.epoch > epoch && !before.versions.iter().any(|old| old.version == known.version)
        });
        if !asked && !newer {
            asked = scene.control.rotate(NAME).is_ok();
        }
        follow_the_advice(scene, &detail);
        let current = detail.versions.iter().find(|known| known.phase == VersionPhase::Active);
        let only = current.and_then(|known| known.effect).map(|effect| effect.to_string());
        if scene.is_at_rest(&detail) && scene.server.alive().into_iter().eq(only) {
            scene
                .check(&detail)
                .unwrap_or_else(|error| panic!("reverted to step {step}: {error:#}\n{}", scene.told()));
            return Some(());
        }
        assert!(Instant::now() < deadline, "reverted to step {step}: not at rest\n{}", scene.told());
        std::thread::sleep(LOOK);
    }
}

#[test]
fn a_store_reverted_to_a_step_delivers_nothing_dead_revokes_nothing_in_use_and_loses_nothing() {
    if apart("a_store_reverted_to_a_step_delivers_nothing_dead_revokes_nothing_in_use_and_loses_nothing") {
        return;
    }
    let began = Instant::now();
    let runtime = farm::runtime(HOSTS * WORLDS).unwrap();
    let (steps, _) = counted(&mut world(runtime.handle()));
    told("reverted to", &each(runtime.handle(), chosen(&steps), reverted), began);
}
