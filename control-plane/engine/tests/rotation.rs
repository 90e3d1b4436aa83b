//! Whole rotations over the real core, the real machine of hosts, a real database and fakes only for what is outside.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests are named for what they hold, and stop at what they did not expect"
)]

mod fakes;

use std::time::Duration;

use engine::Handle;
use fakes::{CREDENTIAL, Stage, name, settled, until};
use futures_util::StreamExt as _;
use lifecycle::Version;
use protocol::api::view::{Clause, CredentialPhase, HostPhase};
use store::Steps;

async fn rotate(handle: &Handle) {
    handle.rotate("operator:alice", &name(), false, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_ends_with_the_old_version_revoked() {
    let stage = Stage::new(3).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    handle.rotate("operator:alice", &name(), false, None).await.unwrap();
    until(&handle, 30, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    stage.assert_sound();
    assert_eq!(stage.alive(), 1);
    for host in stage.road.hosts.values() {
        assert_eq!(host.lock().unwrap().restarts, 2, "one restart for each version");
    }
    let audit = handle.audit(0, 1000, Some("credential/orders-db".into())).await.unwrap();
    assert!(audit.entries.iter().any(|entry| entry.action == "rotate" && entry.actor == "operator:alice"));
    assert!(handle.metrics().encode().contains("eso_revoke_delay_seconds"));
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_push_that_arrives_twice_changes_nothing_twice() {
    let stage = Stage::with(3, true, false).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    rotate(&handle).await;
    until(&handle, 30, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    stage.assert_sound();
    assert_eq!(stage.server.lock().unwrap().minted, 2);
    for host in stage.road.hosts.values() {
        assert_eq!(host.lock().unwrap().restarts, 2);
    }
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_effect_fails_once_and_pushes_and_answers_are_lost() {
    let stage = Stage::with(3, false, true).await;
    stage.server.lock().unwrap().fail_once = true;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 60, "the first version is active", async |h| settled(h, 1).await).await;
    rotate(&handle).await;
    until(&handle, 60, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    stage.assert_sound();
    assert_eq!((stage.alive(), stage.server.lock().unwrap().minted), (1, 2));
    stage.kill(engine).await;
}

/// A run that dies after step `at` and goes on from the database file. How many steps it took.
async fn interrupted(at: u64) -> u64 {
    let stage = Stage::new(3).await;
    let steps = Steps::ending_at(at);
    let mut asked = false;
    if let Some(engine) = stage.try_start(steps.clone()).await {
        let handle = engine.handle().clone();
        let done = async {
            let mut changes = handle.changes();
            while !settled(&handle, 1).await {
                changes.changed().await.ok()?;
            }
            asked = handle.rotate("operator:alice", &name(), false, None).await.is_ok();
            while !settled(&handle, 2).await {
                changes.changed().await.ok()?;
            }
            Some(())
        };
        let ended = async {
            while !steps.dead() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let done = tokio::time::timeout(Duration::from_mins(1), async {
            tokio::select! { done = done => done.is_some(), () = ended => false }
        });
        let done = done.await.unwrap_or_else(|_| panic!("step {at}: neither done nor dead"));
        assert!(done || steps.dead(), "step {at}: the engine ended alive");
        stage.kill(engine).await;
    }
    let count = steps.count();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    let what = format!("after a death at step {at}, the first version is active");
    let second = Version::new(1, 2);
    until(&handle, 60, &what, async |h| {
        settled(h, 1).await
            || h.credential(&name()).await.is_ok_and(|view| view.versions.iter().any(|v| v.version >= second))
    })
    .await;
    if settled(&handle, 1).await && !(asked && settled(&handle, 2).await) {
        // The wish may have been lost with the process, before it was accepted.
        rotate(&handle).await;
    }
    let what =
        format!("after a death at step {at}, one newer version is active and all older ones are retired");
    until(&handle, 60, &what, async |h| settled(h, 2).await || settled(h, 3).await).await;
    stage.assert_sound();
    assert_eq!(stage.alive(), 1, "step {at}: nothing leaks at the server");
    let minted = stage.server.lock().unwrap().minted;
    for host in stage.road.hosts.values() {
        assert!(host.lock().unwrap().restarts <= minted, "step {at}: a restart of ours restarted theirs");
    }
    stage.kill(engine).await;
    count
}

/// The steps are counted in a run that nobody kills, never listed by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_at_every_persisted_step_it_goes_on_from_the_database_file() {
    let steps = interrupted(0).await;
    assert!(steps > 30, "{steps} steps are too few to be a whole rotation");
    let deaths = futures_util::stream::iter(1..=steps).map(interrupted).buffer_unordered(8);
    deaths.for_each(|_| async {}).await;
    println!("killed at each of {steps} persisted steps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_host_keeps_the_old_version_alive_and_is_named() {
    let stage = Stage::new(3).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let frozen = stage.host(2);
    frozen.lock().unwrap().frozen = true;
    rotate(&handle).await;
    let first = Version::new(1, 1);
    until(&handle, 30, "the others adopted the second, and the frozen host is the reason", async |h| {
        let pending = h.pending().await.unwrap();
        let view = h.credential(&name()).await.unwrap();
        view.summary.adopted == 2
            && pending.iter().any(|pending| {
                pending.why.version == first
                    && pending.why.blockers.iter().any(|blocker| {
                        blocker.clause == Clause::Replaced && blocker.name.as_deref() == Some("h2")
                    })
            })
    })
    .await;
    assert_eq!(handle.host("h2").await.unwrap().summary.phase, HostPhase::Silent);
    assert_eq!(stage.alive(), 2, "what is not known counts as in use");
    frozen.lock().unwrap().frozen = false;
    until(&handle, 60, "it catches up by itself and the first is retired", async |h| settled(h, 2).await)
        .await;
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_whose_resource_vanishes_is_served_and_never_retired() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let refused = handle.delete("operator:alice", &name(), "by mistake").await.unwrap_err();
    assert_eq!(refused.problem().code, "resource_exists");
    let file = stage.resources().join("orders.yaml");
    std::fs::remove_file(&file).unwrap();
    until(&handle, 40, "it is orphaned", async |h| {
        h.credentials().await.unwrap()[0].phase == CredentialPhase::Orphaned
    })
    .await;
    assert_eq!(stage.alive(), 1);
    std::fs::write(&file, CREDENTIAL).unwrap();
    until(&handle, 40, "it is back", async |h| {
        h.credentials().await.unwrap()[0].phase == CredentialPhase::Active
    })
    .await;
    std::fs::remove_file(&file).unwrap();
    until(&handle, 40, "it is orphaned again", async |h| {
        h.credentials().await.unwrap()[0].phase == CredentialPhase::Orphaned
    })
    .await;
    for host in stage.road.hosts.values() {
        host.lock().unwrap().stop_application();
    }
    handle.delete("operator:alice", &name(), "not needed any more").await.unwrap();
    until(&handle, 40, "everything of it is gone", async |h| h.credentials().await.unwrap().is_empty()).await;
    assert_eq!(stage.alive(), 0);
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_rolls_back_by_itself_and_nobody_else_sees_the_bad_version() {
    let stage = Stage::new(3).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    for host in stage.road.hosts.values() {
        host.lock().unwrap().refuses_anything_new = true;
    }
    rotate(&handle).await;
    until(&handle, 30, "the rollout is halted", async |h| {
        h.credential(&name()).await.unwrap().summary.phase == CredentialPhase::Halted
    })
    .await;
    let touched = stage.road.hosts.values().filter(|host| host.lock().unwrap().restarts > 1).count();
    assert_eq!(touched, 1, "only the canary saw it");
    handle.abort("operator:alice", &name(), "the application cannot use it").await.unwrap();
    until(&handle, 40, "the first version is active, the second retired", async |h| {
        let view = h.credential(&name()).await.unwrap();
        view.rollout.is_none() && view.summary.current == Some(Version::new(1, 1)) && stage.alive() == 1
    })
    .await;
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_reverted_behind_our_back_begins_a_new_epoch_and_revokes_nothing_in_use() {
    let stage = Stage::new(3).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let copy = stage.directory.path().join("copy.db");
    stage.backup(&copy);
    rotate(&handle).await;
    until(&handle, 30, "the second is active", async |h| settled(h, 2).await).await;
    drop(handle);
    stage.kill(engine).await;

    stage.revert(&copy).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 30, "a new epoch began and nothing is starting any more", async |h| {
        let status = h.status().await.unwrap();
        status.epoch.counter == 2 && !status.starting
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.assert_sound();
    assert_eq!(stage.alive(), 1, "the live version, which this store never knew, is not revoked");
    for host in stage.road.hosts.values() {
        assert_eq!(host.lock().unwrap().restarts, 2);
    }
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_view_metric_audit_row_or_database_page_shows_a_value() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let mut shown = handle.metrics().encode();
    shown += &serde_json::to_string(&handle.status().await.unwrap()).unwrap();
    shown += &serde_json::to_string(&handle.credential(&name()).await.unwrap()).unwrap();
    shown += &serde_json::to_string(&handle.host("h0").await.unwrap()).unwrap();
    shown += &serde_json::to_string(&handle.holders(None).await.unwrap()).unwrap();
    shown += &serde_json::to_string(&handle.audit(0, 1000, None).await.unwrap()).unwrap();
    let mut bytes = shown.into_bytes();
    for file in std::fs::read_dir(stage.directory.path()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            bytes.extend(std::fs::read(path).unwrap());
        }
    }
    let canary = b"canary-";
    assert!(!bytes.windows(canary.len()).any(|window| window == canary));
    stage.kill(engine).await;
}
