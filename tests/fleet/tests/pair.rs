//! A backend that holds two versions: minting a third one is revoking the first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use protocol::api::CredentialDetail;
use tests_fleet::scene::{NAME, PATIENCE, Scene, Wish, effect_of_current};
use tests_fleet::server::Overlap;
use tests_fleet::{apart, built, farm};

const HOSTS: usize = 3;
const ROTATIONS: u32 = 3;

const POLICY: &str = "{ barrier: 2s, flipIn: 100ms, startWait: 2s, grace: 100ms, adoptWithin: 30m, wave: 3, \
                      sampleEvery: 1s, retryPauseMax: 500ms, attemptsMax: 1000 }";

/// The current version is everywhere. Of a pair the one before it may live on: nobody but the next mint ends it.
fn is_everywhere(detail: &CredentialDetail) -> bool {
    let summary = &detail.summary;
    detail.rollout.is_none()
        && detail.pending_wish.is_none()
        && summary.targets == summary.adopted
        && usize::try_from(summary.targets).is_ok_and(|targets| targets == HOSTS)
}

fn until_newer(scene: &Scene, than: Option<lifecycle::Version>) -> CredentialDetail {
    let newer = scene.control.until(PATIENCE, "a newer version is everywhere", |control| {
        let detail = control.credential(NAME)?;
        Ok(detail.summary.current > than && is_everywhere(&detail))
    });
    newer.unwrap_or_else(|error| panic!("{error:#}\n{}", scene.told()));
    scene.control.credential(NAME).unwrap()
}

#[test]
fn a_server_that_holds_a_pair_refuses_nobody_and_never_has_a_third_version() {
    if apart("a_server_that_holds_a_pair_refuses_nobody_and_never_has_a_third_version") {
        return;
    }
    let runtime = farm::runtime(HOSTS).unwrap();
    let wish = Wish {
        hosts: HOSTS,
        processes_every: 0,
        restarted_every: 2,
        login_every_ms: 50,
        overlap: Overlap::Pair,
        network: None,
    };
    let mut scene = Scene::set(&built!(), &wish, runtime.handle()).unwrap();
    scene.declare(POLICY).unwrap();
    let mut detail = until_newer(&scene, None);
    let mut effects = vec![effect_of_current(&detail).unwrap()];
    for rotation in 1..=ROTATIONS {
        let before = detail.summary.current;
        scene.control.rotate(NAME).unwrap();
        detail = until_newer(&scene, before);
        scene
            .check_all_well(&detail)
            .unwrap_or_else(|error| panic!("{rotation}: {error:#}\n{}", scene.told()));
        effects.push(effect_of_current(&detail).unwrap());
        // The mint took the place of the one before the last, and only of that one.
        let pair: BTreeSet<String> = effects[effects.len() - 2..].iter().cloned().collect();
        assert_eq!(scene.server.alive(), pair, "rotation {rotation}");
    }
    let told = scene.server.told();
    assert_eq!((told.minted, told.alive_max), (ROTATIONS + 1, 2), "{told:?}");
    assert!(told.accepted > 0 && told.refused.is_empty() && told.wrong.is_empty(), "{told:?}");
}
