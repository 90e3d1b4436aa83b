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

use std::collections::BTreeMap;
use std::time::Duration;

use backends::SecretValue;

use engine::Handle;
use fakes::{CREDENTIAL, Stage, name, settled, until};
use futures_util::StreamExt as _;
use lifecycle::{CredentialName, Version};
use protocol::api::view::{Clause, CredentialPhase, HostPhase};
use store::Steps;

async fn rotate(handle: &Handle) {
    handle.rotate("operator:alice", &name(), false, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_ends_with_the_old_version_revoked() {
    let stage = Stage::new(3).await;
    // Time enough for each host to hear of the instant before it comes.
    let patient = CREDENTIAL.replace("flipIn: 60ms", "flipIn: 1s");
    std::fs::write(stage.resources().join("orders.yaml"), patient).unwrap();
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
    for (word, version) in [("adopted", 1), ("adopted", 2), ("gone", 1)] {
        let told = |host: &str| {
            let detail = format!("version {version} on {host}");
            audit.entries.iter().filter(|row| row.action == word && row.detail == detail).count()
        };
        assert_eq!([told("h0"), told("h1"), told("h2")], [1, 1, 1], "{word} {version}: {audit:#?}");
    }
    let metrics = handle.metrics().encode();
    for figure in ["eso_revoke_delay_seconds_count 1", "eso_flip_skew_seconds_count 2"] {
        assert!(metrics.contains(figure), "{figure}: {metrics}");
    }
    let before = handle.credential(&name()).await.unwrap().versions;
    drop(handle);
    stage.kill(engine).await;
    stage.close().await;

    // What was measured is kept, and where it came from can be seen.
    let engine = stage.start(Steps::default()).await;
    let versions = engine.handle().credential(&name()).await.unwrap().versions;
    let (new, old) = (&versions[0], &versions[1]);
    assert_eq!((new.figures, old.figures), (before[0].figures, before[1].figures));
    assert_eq!(new.figures.flipped_together, 2, "the canary flipped before: {new:?}");
    assert!(new.figures.flip_skew_ms.is_some_and(|ms| ms < 5_000), "{new:?}");
    let (revoke, revoked) = (old.figures.last_holder_to_revoke_ms, old.figures.last_holder_to_revoked_ms);
    assert!(revoke.is_some() && revoked >= revoke, "{old:?}");
    let flips: Vec<_> = new.deliveries.iter().filter_map(|delivery| delivery.flipped).collect();
    assert_eq!((flips.len(), flips.iter().filter(|flip| flip.at_instant).count()), (3, 2), "{flips:?}");
    assert!(flips.iter().all(|flip| flip.clock_ahead_ms == 0), "one clock for all: {flips:?}");
    assert!(old.deliveries.iter().all(|delivery| delivery.flipped.is_none()));
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
async fn a_host_that_reports_and_cannot_be_reached_stops_nobody_else() {
    let stage = Stage::new(3).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let deaf = stage.host(2);
    let id = deaf.lock().unwrap().id;
    deaf.lock().unwrap().deaf = true;
    until(&handle, 20, "the road says that it is away", async |h| {
        h.host("h2").await.unwrap().summary.phase == HostPhase::Silent
    })
    .await;
    rotate(&handle).await;
    until(&handle, 10, "the rollout ends without it, whatever it says meanwhile", async |h| {
        let frame = deaf.lock().unwrap().signed_report();
        h.report(frame, id).await.unwrap();
        let view = h.credential(&name()).await.unwrap();
        view.summary.adopted == 2 && view.rollout.is_none()
    })
    .await;
    assert_eq!(stage.alive(), 2, "it keeps the old version alive all the same");
    deaf.lock().unwrap().deaf = false;
    until(&handle, 60, "it catches up and the first is retired", async |h| settled(h, 2).await).await;
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
    for compromised in [false, true] {
        let dry = handle.rotate_dry_run(&name(), compromised).await.unwrap();
        assert!(!dry.accepted && dry.reasons.iter().any(|why| why.contains("resource")), "{dry:?}");
        let refused = handle.rotate("operator:alice", &name(), compromised, None).await.unwrap_err();
        assert_eq!(refused.problem().code, "orphaned");
    }
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

const SOURCED: &str = "apiVersion: sources.external-secrets.io/v1alpha1
kind: Directory
metadata: {name: d}
spec: {path: PATH}
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {name: orders-db}
spec:
  source: {kind: Directory, name: d}
  targets:
    hosts: {names: [h0, h1]}
  policy: {barrier: 500ms, flipIn: 60ms, startWait: 500ms, grace: 0s, retryPauseMax: 40ms}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_changes_outside_is_noticed_and_distributed_once() {
    let stage = Stage::new(2).await;
    let outside = stage.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("password"), "first").unwrap();
    let resource = SOURCED.replace("PATH", outside.to_str().unwrap());
    std::fs::write(stage.resources().join("orders.yaml"), resource).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    let on = async |h: &Handle, number: u32, password: &str| {
        let view = h.credential(&name()).await.unwrap();
        let has = |host: &std::sync::Arc<std::sync::Mutex<fakes::FakeHost>>| {
            host.lock().unwrap().password().as_deref() == Some(password)
        };
        view.summary.current == Some(Version::new(1, number))
            && view.rollout.is_none()
            && stage.road.hosts.values().all(has)
            && view
                .versions
                .iter()
                .all(|v| v.version.number == number || v.phase == protocol::api::view::VersionPhase::Erased)
    };
    until(&handle, 30, "the first value is everywhere", async |h| on(h, 1, "first").await).await;
    std::fs::write(outside.join("password"), "second").unwrap();
    until(&handle, 30, "the second value is everywhere, the first erased", async |h| {
        on(h, 2, "second").await
    })
    .await;
    let rows = handle.audit(0, 1000, Some("credential/orders-db".into())).await.unwrap().entries;
    let told: Vec<_> = rows.iter().filter(|row| row.action == "safe_to_delete").collect();
    assert!(matches!(told[..], [row] if row.detail.starts_with("version 1:")), "{told:?}");
    assert!(handle.metrics().encode().contains("eso_safe_to_delete_total 1"));
    for compromised in [false, true] {
        let dry = handle.rotate_dry_run(&name(), compromised).await.unwrap();
        assert!(!dry.accepted && dry.reasons.iter().any(|why| why.contains("source refresh")), "{dry:?}");
        let refused = handle.rotate("operator:alice", &name(), compromised, None).await.unwrap_err();
        assert_eq!(refused.problem().code, "rotated_at_source");
        assert!(refused.problem().action.contains("esoctl source refresh orders-db"));
    }
    assert!(handle.status().await.unwrap().stuck.is_empty());
    drop(handle);
    stage.kill(engine).await;

    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    assert_eq!(handle.refresh("operator:alice", None).await.unwrap(), 1);
    until(&handle, 30, "nothing is starting", async |h| !h.status().await.unwrap().starting).await;
    assert!(on(&handle, 2, "second").await, "a restart brings no new version of the same value");
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_was_given_up_is_rolled_out_again_by_no_restart_and_no_edit() {
    use protocol::api::view::VersionPhase::Erased;
    let stage = Stage::new(2).await;
    let outside = stage.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("password"), "first").unwrap();
    let resource = SOURCED.replace("PATH", outside.to_str().unwrap());
    std::fs::write(stage.resources().join("orders.yaml"), &resource).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first value is active", async |h| settled(h, 1).await).await;
    let refuse = |refuses: bool| {
        for host in stage.road.hosts.values() {
            host.lock().unwrap().refuses_anything_new = refuses;
        }
    };
    refuse(true);
    std::fs::write(outside.join("password"), "second").unwrap();
    until(&handle, 20, "the second value is halted", async |h| {
        h.credential(&name()).await.unwrap().summary.phase == CredentialPhase::Halted
    })
    .await;
    handle.abort("operator:alice", &name(), "the application cannot use it").await.unwrap();
    until(&handle, 20, "the second value is erased", async |h| {
        let versions = h.credential(&name()).await.unwrap().versions;
        versions.iter().any(|v| v.version == Version::new(1, 2) && v.phase == Erased)
    })
    .await;
    drop(handle);
    stage.kill(engine).await;

    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "nothing is starting", async |h| !h.status().await.unwrap().starting).await;
    std::fs::write(stage.resources().join("orders.yaml"), resource.replace("grace: 0s", "grace: 1ms"))
        .unwrap();
    until(&handle, 40, "the edit was taken", async |h| {
        let rows = h.audit(0, 1000, None).await.unwrap().entries;
        rows.iter().any(|row| row.action == "changed")
    })
    .await;
    refuse(false);
    std::fs::write(outside.join("password"), "third").unwrap();
    until(&handle, 30, "the third value is everywhere", async |h| {
        let view = h.credential(&name()).await.unwrap();
        view.rollout.is_none()
            && stage.road.hosts.values().all(|h| h.lock().unwrap().password().as_deref() == Some("third"))
    })
    .await;
    let view = handle.credential(&name()).await.unwrap();
    assert_eq!(view.summary.current, Some(Version::new(1, 3)), "the second came once: {view:#?}");
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_a_death_left_behind_is_erased_at_the_next_start() {
    let stage = Stage::new(1).await;
    let steps = Steps::default();
    let engine = stage.start(steps.clone()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    steps.fail_next("erase a value");
    rotate(&handle).await;
    until(&handle, 20, "it ends where it cannot erase", async |h| h.status().await.is_err()).await;
    drop(handle);
    stage.kill(engine).await;
    assert_eq!(stage.kept_values().len(), 2);

    let engine = stage.start(Steps::default()).await;
    assert_eq!(stage.kept_values().len(), 1);
    let handle = engine.handle().clone();
    until(&handle, 20, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_erased_also_where_the_mint_of_the_next_one_ended_it() {
    let stage = Stage::new(1).await;
    stage.server.lock().unwrap().holds_one = true;
    let resource = CREDENTIAL.replace("  policy:\n", "  policy:\n    interruption: allow\n");
    std::fs::write(stage.resources().join("orders.yaml"), resource).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    rotate(&handle).await;
    until(&handle, 20, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    until(&handle, 10, "one value is kept", async |_| stage.kept_values().len() == 1).await;
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_a_newer_one_overtook_before_its_turn_is_erased() {
    let stage = Stage::new(1).await;
    let outside = stage.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let bring = |value: &str| std::fs::write(outside.join("password"), value).unwrap();
    bring("first");
    let resource = SOURCED.replace("PATH", outside.to_str().unwrap()).replace("[h0, h1]", "[h0]");
    std::fs::write(stage.resources().join("orders.yaml"), resource).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first value is active", async |h| settled(h, 1).await).await;
    stage.host(0).lock().unwrap().refuses_anything_new = true;
    bring("second");
    until(&handle, 20, "the second value is halted", async |h| {
        h.credential(&name()).await.unwrap().summary.phase == CredentialPhase::Halted
    })
    .await;
    bring("third");
    until(&handle, 20, "the third value waits", async |h| {
        h.credential(&name()).await.unwrap().pending_wish.is_some()
    })
    .await;
    let waiting = stage.kept_values();
    assert_eq!(waiting.len(), 3);
    bring("fourth");
    until(&handle, 20, "the fourth value waits in its stead", async |_| {
        let kept = stage.kept_values();
        kept != waiting && kept.len() == 3
    })
    .await;
    stage.host(0).lock().unwrap().refuses_anything_new = false;
    handle.abort("operator:alice", &name(), "not that one").await.unwrap();
    until(&handle, 20, "the fourth value is active", async |h| {
        let password = stage.host(0).lock().unwrap().password();
        password.as_deref() == Some("fourth") && h.credential(&name()).await.unwrap().rollout.is_none()
    })
    .await;
    until(&handle, 10, "one value is kept", async |_| stage.kept_values().len() == 1).await;
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_could_not_be_kept_at_once_is_told_again() {
    let stage = Stage::new(2).await;
    let outside = stage.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("password"), "first").unwrap();
    let resource = SOURCED.replace("PATH", outside.to_str().unwrap());
    std::fs::write(stage.resources().join("orders.yaml"), resource).unwrap();
    let steps = Steps::default();
    steps.fail_next("keep a value");
    let engine = stage.start(steps.clone()).await;
    let handle = engine.handle().clone();
    until(&handle, 10, "the first value is active", async |h| settled(h, 1).await).await;
    steps.fail_next("keep a value");
    std::fs::write(outside.join("password"), "second").unwrap();
    until(&handle, 10, "the second value is active", async |h| {
        h.credential(&name()).await.unwrap().summary.current == Some(Version::new(1, 2))
    })
    .await;
    assert!(handle.status().await.unwrap().resource_faults.is_empty());
    stage.kill(engine).await;
}

/// A host's policy names files: those of all versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_value_has_all_fields_that_later_ones_will_have() {
    let stage = Stage::new(1).await;
    let (files, policy) = (CREDENTIAL.find("  files:").unwrap(), CREDENTIAL.find("  policy:").unwrap());
    let resource = format!("{}  first: import\n{}", &CREDENTIAL[..files], &CREDENTIAL[policy..]);
    std::fs::write(stage.resources().join("orders.yaml"), resource).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 10, "it runs", async |h| !h.status().await.unwrap().starting).await;
    let mistyped = SecretValue::new().with("username", b"u").with("pass", b"old");
    let refused = handle.import("operator:alice", &name(), mistyped).await.unwrap_err();
    assert!(refused.to_string().contains("--field password=FILE"), "{refused}");
    handle.import("operator:alice", &name(), stage.existing_role("imported", "old")).await.unwrap();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_value_is_version_zero_and_held_until_an_operator_says_otherwise() {
    let stage = Stage::new(2).await;
    let resource = CREDENTIAL.replace("  targets:", "  first: import\n  schedule: {every: 24h}\n  targets:");
    std::fs::write(stage.resources().join("orders.yaml"), resource).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 10, "it runs", async |h| !h.status().await.unwrap().starting).await;
    let zero = Version::new(1, 0);
    let early = handle.rotate("operator:alice", &name(), false, None).await.unwrap_err();
    assert!(early.to_string().contains("nothing was imported yet"), "{early}");
    assert!(!handle.rotate_dry_run(&name(), false).await.unwrap().accepted);
    let lacking = SecretValue::new().with("password", b"p");
    let refused = handle.import("operator:alice", &name(), lacking).await.unwrap_err();
    assert!(refused.to_string().contains("username"), "the templates must fit: {refused}");
    let value = stage.existing_role("imported", "old-password");
    let imported = handle.import("operator:alice", &name(), value).await.unwrap();
    assert_eq!(imported.version, zero);
    let next = handle.credentials().await.unwrap()[0].next_rotation_at;
    assert!(next > Some(protocol::UnixMillis::now()), "its schedule begins with the import: {next:?}");
    rotate(&handle).await;
    until(&handle, 30, "a new version is everywhere, and version 0 is held", async |h| {
        let why = h.why(&name(), zero).await.unwrap();
        let view = h.credential(&name()).await.unwrap();
        view.summary.current == Some(Version::new(1, 1))
            && view.rollout.is_none()
            && why.blockers.iter().any(|blocker| blocker.clause == Clause::NoHold)
    })
    .await;
    handle.unhold("operator:alice", &name(), zero).await.unwrap();
    until(&handle, 30, "version 0 is retired", async |h| settled(h, 1).await).await;
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_rotates_by_the_wall_clock_and_not_by_restarts() {
    let stage = Stage::new(2).await;
    let every =
        |span: &str| CREDENTIAL.replace("  targets:", &format!("  schedule: {{every: {span}}}\n  targets:"));
    std::fs::write(stage.resources().join("orders.yaml"), every("10s")).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 9, "the first version is active", async |h| settled(h, 1).await).await;
    drop(handle);
    stage.kill(engine).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    assert!(handle.credentials().await.unwrap()[0].next_rotation_at.is_some());
    until(&handle, 30, "the second comes by itself", async |h| settled(h, 2).await).await;
    std::fs::write(stage.resources().join("orders.yaml"), every("24h")).unwrap();
    assert_eq!(stage.server.lock().unwrap().minted, 2);
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_version_dies_at_its_deadline_although_a_host_is_silent() {
    let stage = Stage::new(3).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let silent = stage.host(1);
    silent.lock().unwrap().frozen = true;
    // Its application goes on in the world, but the deadline says that it does not count.
    silent.lock().unwrap().stop_application();
    let deadline = Some(lifecycle::Millis::seconds(2));
    handle.rotate("operator:alice", &name(), true, deadline).await.unwrap();
    until(&handle, 40, "the first is revoked", async |_| stage.alive() == 1).await;
    let audit = handle.audit(0, 1000, None).await.unwrap();
    assert!(audit.entries.iter().any(|entry| entry.action == "rotate" && entry.detail.contains("2s")));
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_holds_everything_older_until_an_operator_says_otherwise() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let copy = stage.directory.path().join("copy.db");
    stage.backup(&copy);
    drop(handle);
    stage.kill(engine).await;

    stage.restore(&copy).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "it runs in the new epoch", async |h| {
        let status = h.status().await.unwrap();
        status.epoch.counter == 2 && !status.starting
    })
    .await;
    let first = Version::new(1, 1);
    let view = handle.credential(&name()).await.unwrap();
    let held = view.versions.iter().find(|v| v.version == first).unwrap();
    assert!(held.holds.iter().any(|hold| hold.by.contains("epoch 2")), "{held:?}");
    rotate(&handle).await;
    let second = Version::new(2, 1);
    until(&handle, 30, "the new one is everywhere", async |h| {
        let view = h.credential(&name()).await.unwrap();
        view.summary.current == Some(second) && view.rollout.is_none()
    })
    .await;
    assert_eq!(stage.alive(), 2, "the older one is held");
    handle.unhold("operator:alice", &name(), first).await.unwrap();
    until(&handle, 30, "the older one is revoked", async |_| stage.alive() == 1).await;
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_gets_the_label_later_catches_up_and_a_retired_one_counts_no_more() {
    let stage = Stage::new(3).await;
    let late = stage.host(2);
    let id = late.lock().unwrap().id;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    handle.label_host("operator:alice", id, BTreeMap::new()).await.unwrap();
    until(&handle, 20, "the first version is on two hosts", async |h| settled(h, 1).await).await;
    assert!(late.lock().unwrap().password().is_none());
    let labels = BTreeMap::from([("app".to_owned(), "orders".to_owned())]);
    handle.label_host("operator:alice", id, labels).await.unwrap();
    until(&handle, 20, "the third catches up", async |h| {
        let view = h.credential(&name()).await.unwrap();
        view.summary.adopted == 3 && late.lock().unwrap().password().is_some()
    })
    .await;
    late.lock().unwrap().frozen = true;
    late.lock().unwrap().stop_application();
    rotate(&handle).await;
    until(&handle, 30, "the silent one keeps the first alive", async |h| {
        let view = h.credential(&name()).await.unwrap();
        view.summary.adopted == 2 && view.summary.current == Some(Version::new(1, 2))
    })
    .await;
    assert_eq!(stage.alive(), 2);
    handle.retire_host("operator:alice", id, "burnt down").await.unwrap();
    until(&handle, 30, "nothing waits for it", async |h| settled(h, 2).await).await;
    assert_eq!(handle.host("h2").await.unwrap().summary.phase, HostPhase::Retired);
    let frame = late.lock().unwrap().signed_report();
    let refused = handle.report(frame, id).await.unwrap_err();
    assert_eq!(refused.problem().code, "unknown_host");
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_is_taken_only_from_the_host_that_signed_it() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let (one, two) = (stage.host(0), stage.host(1));
    let frame = one.lock().unwrap().signed_report();
    let other = two.lock().unwrap().id;
    assert_eq!(handle.report(frame, other).await.unwrap_err().problem().code, "other_host");
    let own = one.lock().unwrap().id;
    let forged = two.lock().unwrap().report_in_the_name_of(own);
    assert_eq!(handle.report(forged, own).await.unwrap_err().problem().code, "foreign_key");
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloned_machine_is_named_as_incomplete() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let host = stage.host(0);
    let (id, clone) = {
        let mut host = host.lock().unwrap();
        host.frozen = true;
        (host.id, host.report_with_another_boot())
    };
    handle.report(clone, id).await.unwrap();
    let summary = handle.host("h0").await.unwrap().summary;
    assert_eq!(summary.phase, HostPhase::Incomplete);
    assert!(summary.reason.unwrap().contains("two different reports"));
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_begins_no_epoch_by_contradicting_its_original() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let host = stage.host(0);
    let id = host.lock().unwrap().id;
    // From here on nobody speaks for it but the test.
    host.lock().unwrap().frozen = true;
    for _ in 0..3 {
        let frame = host.lock().unwrap().signed_report();
        let ack = handle.report(frame, id).await.unwrap();
        host.lock().unwrap().take_acknowledgement(ack);
        let clone = host.lock().unwrap().report_of_a_snapshot(2);
        handle.report(clone, id).await.unwrap();
        assert_eq!(handle.host("h0").await.unwrap().summary.phase, HostPhase::Incomplete);
        let frame = host.lock().unwrap().signed_report();
        let ack = handle.report(frame, id).await.unwrap();
        host.lock().unwrap().take_acknowledgement(ack);
        assert_eq!(handle.status().await.unwrap().epoch.counter, 1, "our own acknowledgement is known to us");
    }
    let view = handle.credential(&name()).await.unwrap();
    assert!(view.versions.iter().all(|version| version.holds.is_empty()), "{view:?}");
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_reverted_far_is_named_as_incomplete() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let host = stage.host(0);
    let id = host.lock().unwrap().id;
    host.lock().unwrap().frozen = true;
    for _ in 0..80 {
        let frame = host.lock().unwrap().signed_report();
        let ack = handle.report(frame, id).await.unwrap();
        host.lock().unwrap().take_acknowledgement(ack);
    }
    let old = host.lock().unwrap().report_of_a_snapshot(70);
    handle.report(old, id).await.unwrap();
    assert_eq!(handle.host("h0").await.unwrap().summary.phase, HostPhase::Incomplete);
    assert_eq!(handle.status().await.unwrap().epoch.counter, 1);
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_path_is_a_target_whose_old_version_is_destroyed() {
    let stage = Stage::new(1).await;
    let target = "apiVersion: target.external-secrets.io/v1alpha1\nkind: VaultKv\nmetadata: {name: k}\nspec: {}\n---\n";
    let credential =
        CREDENTIAL.replace("    hosts:\n", "    stores: [{kind: VaultKv, name: k}]\n    hosts:\n");
    std::fs::write(stage.resources().join("orders.yaml"), format!("{target}{credential}")).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 30, "the first version is active", async |h| settled(h, 1).await).await;
    let first = stage.shelf.current_password().unwrap();
    rotate(&handle).await;
    until(&handle, 30, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    let second = stage.shelf.current_password().unwrap();
    assert_ne!(first, second);
    assert_eq!(stage.shelf.readable(), [second], "the old one is destroyed in the store");
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_asked_about_and_revoked_where_it_was_minted_whatever_the_resource_says_now() {
    let stage = Stage::new(2).await;
    let on = |server: &str| {
        std::fs::write(
            stage.resources().join("orders.yaml"),
            CREDENTIAL.replace("spec: {}", &format!("spec: {{host: {server}}}")),
        )
        .unwrap();
    };
    on("db1");
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let first = handle.credential(&name()).await.unwrap().versions[0].effect.unwrap();
    on("db2");
    until(&handle, 40, "the edit was taken", async |h| {
        let rows = h.audit(0, 1000, None).await.unwrap().entries;
        rows.iter().any(|row| row.action == "changed")
    })
    .await;
    drop(handle);
    stage.kill(engine).await;

    // Where it was minted is kept, not only remembered.
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    rotate(&handle).await;
    until(&handle, 30, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    stage.assert_sound();
    {
        let server = stage.server.lock().unwrap();
        assert!(!server.roles[&first].alive, "it was revoked where it lives");
        assert_eq!(server.roles[&first].at, "db1");
        assert!(server.asked.contains(&("db1".to_owned(), first)), "{:?}", server.asked);
        assert!(!server.asked.contains(&("db2".to_owned(), first)), "{:?}", server.asked);
        let alive: Vec<_> = server.roles.values().filter(|role| role.alive).map(|role| &*role.at).collect();
        assert_eq!(alive, ["db2"]);
    }
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_to_a_shared_backend_is_revoked_by_the_credential_whose_it_is() {
    let stage = Stage::new(2).await;
    // The first by name takes care of what nobody accounts for.
    let (_, credential) = CREDENTIAL.split_once("---\n").unwrap();
    let another = credential.replace("name: orders-db", "name: another").replace("app: orders", "app: none");
    std::fs::write(stage.resources().join("another.yaml"), another).unwrap();
    let another = CredentialName::new("another").unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "both have a version", async |h| {
        settled(h, 1).await && h.credential(&another).await.unwrap().summary.current.is_some()
    })
    .await;
    let first = handle.credential(&name()).await.unwrap().versions[0].effect.unwrap();
    rotate(&handle).await;
    until(&handle, 30, "the first is retired and its value forgotten", async |h| settled(h, 2).await).await;
    drop(handle);
    stage.kill(engine).await;

    stage.server.lock().unwrap().roles.get_mut(&first).unwrap().alive = true;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 30, "it is revoked again", async |_| !stage.server.lock().unwrap().roles[&first].alive)
        .await;
    until(&handle, 30, "and has ended again", async |h| settled(h, 2).await).await;
    assert_eq!(handle.credential(&another).await.unwrap().versions.len(), 1, "nothing was found for it");
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_was_edited_is_refused_and_everything_else_goes_on() {
    let stage = Stage::new(2).await;
    let mut engine = stage.start(Steps::default()).await;
    let mut handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let edited = CREDENTIAL.replace("  generator: {kind", "  set: another\n  generator: {kind");
    std::fs::write(stage.resources().join("orders.yaml"), edited).unwrap();
    for number in 2..4 {
        until(&handle, 40, "the edit is refused", async |h| {
            let faults = h.status().await.unwrap().resource_faults;
            faults.iter().any(|fault| fault.message.contains("cannot change"))
        })
        .await;
        until(&handle, 20, "it is served as before", async |h| settled(h, number - 1).await).await;
        assert_eq!(handle.credentials().await.unwrap()[0].phase, CredentialPhase::Active);
        let refused = handle.delete("operator:alice", &name(), "by mistake").await.unwrap_err();
        assert_eq!(refused.problem().code, "resource_exists");
        rotate(&handle).await;
        until(&handle, 30, "it is rotated", async |h| settled(h, number).await).await;
        drop(handle);
        stage.kill(engine).await;
        engine = stage.start(Steps::default()).await;
        handle = engine.handle().clone();
    }
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_path_that_was_edited_is_emptied_where_it_was() {
    let stage = Stage::new(1).await;
    let at = |spec: &str| {
        let target = format!(
            "apiVersion: target.external-secrets.io/v1alpha1\nkind: VaultKv\nmetadata: {{name: k}}\nspec: {spec}\n---\n"
        );
        let stores = "    stores: [{kind: VaultKv, name: k}]\n    hosts:\n";
        let credential = CREDENTIAL.replace("    hosts:\n", stores);
        std::fs::write(stage.resources().join("orders.yaml"), format!("{target}{credential}")).unwrap();
    };
    at("{}");
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 30, "the first version is active", async |h| settled(h, 1).await).await;
    let first = stage.shelf.current_password();
    assert!(first.is_some());
    at("{path: other}");
    until(&handle, 40, "the first stands at the other path too", async |h| {
        stage.other_shelf.current_password() == first && settled(h, 1).await
    })
    .await;
    rotate(&handle).await;
    until(&handle, 30, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    assert_eq!(stage.shelf.readable(), Vec::<String>::new(), "nothing is left at the path before");
    assert_eq!(stage.other_shelf.readable().len(), 1);
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_altered_audit_log_is_told_of_at_the_start_and_stops_nothing() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    assert!(handle.metrics().encode().contains("eso_audit_broken 0"));
    drop(handle);
    stage.kill(engine).await;
    stage.close().await;
    {
        let database = rusqlite::Connection::open(stage.directory.path().join("state.db")).unwrap();
        let altered = database.execute("UPDATE audit SET actor = 'nobody' WHERE sequence = 2", []);
        assert_eq!(altered.unwrap(), 1);
    }

    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 10, "it is told of", async |h| {
        let faults = h.status().await.unwrap().resource_faults;
        faults.iter().any(|fault| fault.file == "the audit log" && fault.message.contains("row 2"))
    })
    .await;
    assert!(handle.metrics().encode().contains("eso_audit_broken 1"));
    rotate(&handle).await;
    until(&handle, 30, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_target_that_was_taken_away_is_excused_or_retired_by_its_name() {
    let stage = Stage::new(1).await;
    let target = "apiVersion: target.external-secrets.io/v1alpha1\nkind: VaultKv\nmetadata: {name: k}\nspec: {}\n---\n";
    let credential =
        CREDENTIAL.replace("    hosts:\n", "    stores: [{kind: VaultKv, name: k}]\n    hosts:\n");
    let file = stage.resources().join("orders.yaml");
    std::fs::write(&file, format!("{target}{credential}")).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 30, "the first version is active", async |h| settled(h, 1).await).await;
    let store = handle.store_target("VaultKv/k").await.unwrap();
    assert_eq!(handle.store_target("store:VaultKv/k").await.unwrap(), store);
    assert_eq!(handle.store_target("h0").await.unwrap_err().problem().code, "not_found");
    let early = handle.retire_store("operator:alice", store.clone(), "gone").await.unwrap_err();
    assert_eq!(early.problem().code, "resource_exists");
    stage.shelf.take_away();
    std::fs::write(&file, CREDENTIAL).unwrap();
    until(&handle, 40, "it is not delivered to any more", async |h| {
        h.credential(&name()).await.unwrap().summary.targets == 1
    })
    .await;
    rotate(&handle).await;
    let first = Version::new(1, 1);
    until(&handle, 30, "it keeps the first version alive", async |h| {
        let view = h.credential(&name()).await.unwrap();
        let why = h.why(&name(), first).await.unwrap();
        view.summary.current == Some(Version::new(1, 2))
            && view.rollout.is_none()
            && why.blockers.iter().any(|blocker| blocker.name.as_deref() == Some("store:VaultKv/k"))
    })
    .await;
    handle.excuse("operator:alice", &name(), store.clone(), first, "switched off").await.unwrap();
    handle.retire_store("operator:alice", store, "switched off").await.unwrap();
    until(&handle, 30, "nothing waits for it", async |h| settled(h, 2).await).await;
    std::fs::write(&file, format!("{target}{credential}")).unwrap();
    until(&handle, 40, "its name is not used again", async |h| {
        let faults = h.status().await.unwrap().resource_faults;
        faults.iter().any(|fault| fault.message.contains("was retired"))
    })
    .await;
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_holds_up_no_new_epoch() {
    let stage = Stage::new(1).await;
    let target = "apiVersion: target.external-secrets.io/v1alpha1\nkind: VaultKv\nmetadata: {name: k}\nspec: {}\n---\n";
    let credential =
        CREDENTIAL.replace("    hosts:\n", "    stores: [{kind: VaultKv, name: k}]\n    hosts:\n");
    std::fs::write(stage.resources().join("orders.yaml"), format!("{target}{credential}")).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 30, "the first version is active", async |h| settled(h, 1).await).await;
    let copy = stage.directory.path().join("copy.db");
    stage.backup(&copy);
    rotate(&handle).await;
    until(&handle, 30, "the second is active", async |h| settled(h, 2).await).await;
    drop(handle);
    stage.kill(engine).await;

    stage.revert(&copy).await;
    stage.shelf.take_away();
    let host = stage.host(0);
    host.lock().unwrap().frozen = true;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the store was asked in vain", async |_| stage.shelf.asked_in_vain() >= 2).await;
    host.lock().unwrap().frozen = false;
    let frame = host.lock().unwrap().signed_report();
    let id = host.lock().unwrap().id;
    handle.report(frame, id).await.unwrap();
    until(&handle, 20, "the new epoch runs without it", async |h| {
        let status = h.status().await.unwrap();
        status.epoch.counter == 2 && !status.starting
    })
    .await;
    stage.assert_sound();
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_moved_gets_what_was_on_its_way_to_the_old_address() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let host = stage.host(0);
    let id = host.lock().unwrap().id;
    host.lock().unwrap().loses_pushes = true;
    rotate(&handle).await;
    until(&handle, 20, "the second is on its way", async |h| {
        use protocol::api::view::RolloutPhase::Staging;
        h.rollout(&name()).await.unwrap().is_some_and(|rollout| rollout.phase == Staging)
    })
    .await;
    stage.move_host(&handle, id, "127.0.0.1:2").await;
    host.lock().unwrap().loses_pushes = false;
    until(&handle, 20, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_that_came_back_during_the_deletion_is_taken_once_that_has_ended() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    let file = stage.resources().join("orders.yaml");
    std::fs::remove_file(&file).unwrap();
    until(&handle, 40, "it is orphaned", async |h| {
        h.credentials().await.unwrap()[0].phase == CredentialPhase::Orphaned
    })
    .await;
    handle.delete("operator:alice", &name(), "by mistake").await.unwrap();
    std::fs::write(&file, CREDENTIAL).unwrap();
    until(&handle, 40, "it has to wait", async |h| {
        let faults = h.status().await.unwrap().resource_faults;
        faults.iter().any(|fault| fault.message.contains("is being withdrawn"))
    })
    .await;
    stage.host(0).lock().unwrap().stop_application();
    until(&handle, 40, "it is back", async |h| {
        let all = h.credentials().await.unwrap();
        matches!(&all[..], [one] if one.phase == CredentialPhase::Active)
            && h.status().await.unwrap().resource_faults.is_empty()
    })
    .await;
    stage.assert_sound();
    stage.kill(engine).await;
}

/// Takes a copy of the database at step `at`, goes on to the end of a rotation, puts the copy back, and goes on
/// again. How many steps there were.
async fn reverted_to(at: u64) -> u64 {
    let stage = Stage::new(3).await;
    let steps = Steps::ending_at(at);
    if let Some(engine) = stage.try_start(steps.clone()).await {
        let handle = engine.handle().clone();
        let whole = async {
            let mut changes = handle.changes();
            let mut asked = false;
            while !settled(&handle, 2).await {
                if !asked && settled(&handle, 1).await {
                    asked = handle.rotate("operator:alice", &name(), false, None).await.is_ok();
                }
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        let ended = async {
            while !steps.dead() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let over = async {
            tokio::select! { () = whole => (), () = ended => () }
        };
        tokio::time::timeout(Duration::from_mins(1), over).await.unwrap();
        stage.kill(engine).await;
    }
    let count = steps.count();
    stage.close().await;
    let copy = stage.directory.path().join("copy.db");
    stage.backup(&copy);

    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 60, &format!("after step {at}, a version is active"), one_is_left).await;
    rotate(&handle).await;
    until(&handle, 60, &format!("after step {at}, the rotation ends"), one_is_left).await;
    drop(handle);
    stage.kill(engine).await;
    stage.assert_sound();

    stage.revert(&copy).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 60, &format!("reverted to step {at}, its targets have answered"), async |h| {
        let status = h.status().await.unwrap();
        // A store from before the first mint has no version of its own: what the hosts have is found, and held.
        !status.starting && h.credential(&name()).await.is_ok_and(|view| !view.versions.is_empty())
    })
    .await;
    stage.assert_sound();
    rotate(&handle).await;
    until(&handle, 90, &format!("reverted to step {at}, one version is left"), async |h| {
        follow_the_advice(h).await;
        one_is_left(h).await && stage.alive() == 1
    })
    .await;
    stage.assert_sound();
    assert_eq!(stage.alive(), 1, "step {at}: nothing minted is lost from the sweep");
    stage.kill(engine).await;
    count
}

/// One version is active, and all others have ended.
async fn one_is_left(handle: &Handle) -> bool {
    use protocol::api::view::VersionPhase::{Active, Erased, Retired};
    let Ok(view) = handle.credential(&name()).await else { return false };
    let ended = view.versions.iter().filter(|v| matches!(v.phase, Retired | Erased)).count();
    let active = view.versions.iter().filter(|v| v.phase == Active).count();
    view.rollout.is_none() && view.pending_wish.is_none() && active == 1 && ended + 1 == view.versions.len()
}

/// What an operator does after a restore: aborts what is stuck as it advises, and unholds what is found.
async fn follow_the_advice(handle: &Handle) {
    let Ok(view) = handle.credential(&name()).await else { return };
    if view.rollout.is_some_and(|rollout| rollout.phase == protocol::api::view::RolloutPhase::Halted) {
        // It may have ended meanwhile.
        let _ = handle.abort("operator:alice", &name(), "as advised").await;
    }
    for held in view.versions.iter().filter(|v| !v.holds.is_empty()) {
        // One that ended meanwhile needs no word any more.
        let _ = handle.unhold("operator:alice", &name(), held.version).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_reverted_to_any_step_delivers_nothing_dead_and_loses_nothing() {
    let steps = reverted_to(0).await;
    let reverts = futures_util::stream::iter(1..=steps).map(reverted_to).buffer_unordered(6);
    reverts.for_each(|_| async {}).await;
    println!("reverted to each of {steps} persisted steps");
}

/// Each of them is a version from then on, with rows of its own and asked about again and again: a backend must not be
/// able to fill the store and the audit log with what it lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_lists_without_end_is_taken_up_bit_by_bit() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the first version is active", async |h| settled(h, 1).await).await;
    drop(handle);
    stage.kill(engine).await;
    for number in 1..=150 {
        let effect = lifecycle::EffectId(number);
        let epoch = lifecycle::Epoch { counter: 1, id: 7 };
        let mark = backends::Mark { installation: stage.anchor.installation.to_string(), epoch, effect };
        let role = fakes::Role { password: "x".into(), at: String::new(), alive: true, mark };
        stage.server.lock().unwrap().roles.insert(effect, role);
    }
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    let found = async |h: &Handle| {
        let page = h.audit(0, 1000, Some("credential/orders-db".into())).await.unwrap();
        let with = |words: &str| page.entries.iter().filter(|row| row.detail.contains(words)).count();
        (with("that no record names"), with("the backend lists 15"))
    };
    until(&handle, 40, "they are found", async |h| found(h).await.0 > 0).await;
    assert_eq!(found(&handle).await, (100, 1));
    assert!(handle.credential(&name()).await.unwrap().versions.len() < 110);
    stage.kill(engine).await;
}
