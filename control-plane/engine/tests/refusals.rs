//! What a host or a backend refuses is told: shown, counted by its reason, and in the audit log once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of the shared fakes")]

mod fakes;

use fakes::{Stage, name, settled, until};
use lifecycle::{Epoch, Generation, SetName, Version};
use protocol::FrameDigest;
use protocol::api::{CredentialPhase, DeliveryPhase, HostPhase};
use protocol::order::OrderIdentity;
use protocol::report::{Notice, Outcome, Receipt};
use store::Steps;

fn refused(generation: u32, code: &str) -> Receipt {
    let order = OrderIdentity::Set {
        epoch: Epoch { counter: 1, id: 7 },
        set: SetName::new("orders-db").unwrap(),
        generation: Generation::new(1, generation),
        kind: "stage".to_owned(),
        version: Version::new(1, 1),
    };
    let outcome = Outcome::Refused { code: code.to_owned(), message: "for\nthis reason".to_owned() };
    Receipt { frame: FrameDigest::of(code.as_bytes()), order: Some(order), outcome }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_order_is_counted_by_its_reason_and_audited_once() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the host has reported", async |h| h.host("h0").await.is_ok()).await;
    let host = stage.host(0);
    let codes = [
        "over_limit",
        "not_in_policy",
        "other_host",
        "older_generation",
        "replay",
        "foreign_key",
        "expired",
        "other_digest",
    ];
    for (number, code) in (1..).zip(codes) {
        for _ in 0..2 {
            let (id, report) = {
                let mut host = host.lock().unwrap();
                (host.id, host.report(vec![refused(number, code)]))
            };
            handle.report(report, id).await.unwrap();
        }
    }
    let made_up = refused(99, "a_word_{of=\"its own\"}");
    let (id, report) = {
        let mut host = host.lock().unwrap();
        (host.id, host.report(vec![Receipt { order: None, ..made_up }]))
    };
    handle.report(report, id).await.unwrap();

    let metrics = handle.metrics().encode();
    for code in codes {
        let line = format!("eso_orders_refused_total{{code=\"{code}\"}} 2");
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
    assert!(metrics.contains("eso_orders_refused_total{code=\"other\"} 1"), "{metrics}");
    assert!(!metrics.contains("its own"), "a host's own word became a label");
    let audit = handle.audit(0, 1000, None).await.unwrap();
    for code in codes {
        let told = audit.entries.iter().filter(|entry| {
            entry.action == "order_refused"
                && entry.actor == format!("host:{id}")
                && entry.subject == "credential/orders-db"
                && entry.detail.contains(&format!("{code}: for this reason"))
        });
        assert_eq!(told.count(), 1, "{code} in {:#?}", audit.entries);
    }
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_is_not_taken_is_counted_and_audited_once() {
    let stage = Stage::new(2).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the host has reported", async |h| h.host("h1").await.is_ok()).await;
    let (one, other) = (stage.host(0), stage.host(1));
    let id = one.lock().unwrap().id;
    for _ in 0..3 {
        let foreign = other.lock().unwrap().signed_report();
        let forged = other.lock().unwrap().report_in_the_name_of(id);
        assert!(handle.report(foreign, id).await.is_err() && handle.report(forged, id).await.is_err());
    }
    let metrics = handle.metrics().encode();
    assert!(metrics.contains("eso_reports_total{code=\"foreign_key\"} 3"), "{metrics}");
    // Its own road sends what it could not get rid of again.
    assert!(metrics.contains("eso_reports_total{code=\"other_host\"}"), "{metrics}");
    let audit = handle.audit(0, 1000, Some(format!("host/{id}"))).await.unwrap();
    let told = audit.entries.iter().filter(|entry| entry.action == "report_refused");
    let told: Vec<_> = told.map(|entry| entry.detail.split(':').next().unwrap()).collect();
    assert_eq!(told, ["other_host", "foreign_key"], "a host could fill the log");
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_contradicts_itself_all_the_time_does_not_fill_the_audit_log() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the host has reported", async |h| h.host("h0").await.is_ok()).await;
    let host = stage.host(0);
    let id = host.lock().unwrap().id;
    for number in 0..150 {
        let report = {
            let mut host = host.lock().unwrap();
            host.notices = vec![Notice { code: "drift".to_owned(), message: number.to_string() }];
            host.report_with_another_boot()
        };
        handle.report(report, id).await.unwrap();
    }
    let id_as_listed = &id.to_string()[..12];
    for name in ["h0", id_as_listed] {
        assert_eq!(handle.host(name).await.unwrap().summary.phase, HostPhase::Incomplete, "{name}");
    }
    assert!(handle.host(&id_as_listed[..4]).await.is_err(), "too short to name anybody");
    let audit = handle.audit(0, 1000, Some(format!("host/{id}"))).await.unwrap();
    let told: Vec<_> = audit.entries.iter().filter(|entry| entry.action == "contradiction").collect();
    assert_eq!(told.len(), 100);
    assert!(told[99].detail.contains("not told here"), "{:?}", told[99]);
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_refuses_in_ever_other_words_does_not_fill_the_audit_log() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the host has reported", async |h| h.host("h0").await.is_ok()).await;
    let host = stage.host(0);
    for number in 0..1_100 {
        let (id, report) = {
            let mut host = host.lock().unwrap();
            let code = if number % 2 == 0 { "replay" } else { "expired" };
            (host.id, host.report(vec![refused(number, code)]))
        };
        handle.report(report, id).await.unwrap();
    }
    let mut told = Vec::new();
    let mut after = Some(0);
    while let Some(from) = after {
        let page = handle.audit(from, 1000, Some("credential/orders-db".into())).await.unwrap();
        told.extend(page.entries.into_iter().filter(|entry| entry.action == "order_refused"));
        after = page.next;
    }
    assert_eq!(told.len(), 1_000);
    assert!(told[999].detail.contains("not told here"), "{:?}", told[999]);
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_wants_an_operator_to_know_is_shown_and_audited_each_time_that_it_appears() {
    let stage = Stage::new(1).await;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the host has reported", async |h| h.host("h0").await.is_ok()).await;
    let host = stage.host(0);
    let drift = |number: u32| Notice {
        code: "drift".to_owned(),
        message: format!("/etc/orders/password{number} was replaced and has been put right"),
    };
    for notices in [vec![drift(1)], vec![drift(1)], vec![drift(1), drift(2)], vec![], vec![drift(1)]] {
        let (id, report) = {
            let mut host = host.lock().unwrap();
            host.notices.clone_from(&notices);
            (host.id, host.report(Vec::new()))
        };
        handle.report(report, id).await.unwrap();
        assert_eq!(handle.host("h0").await.unwrap().notices, notices);
    }
    let id = host.lock().unwrap().id;
    let audit = handle.audit(0, 1000, Some(format!("host/{id}"))).await.unwrap();
    let told = audit.entries.iter().filter(|entry| entry.action == "host_notice");
    let told: Vec<_> = told.map(|entry| entry.detail.split(' ').nth(1).unwrap().to_owned()).collect();
    let expected = ["/etc/orders/password1", "/etc/orders/password2", "/etc/orders/password1"];
    assert_eq!(told, expected);
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_waits_for_its_backend_says_what_the_backend_said() {
    let stage = Stage::new(1).await;
    stage.server.lock().unwrap().unfit = Some("the secret file is not there");
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 20, "the rollout says why nothing moves", async |h| {
        let Ok(Some(rollout)) = h.rollout(&name()).await else { return false };
        rollout.reason.is_some_and(|reason| {
            reason == "preflight failed and is tried again: the secret file is not there"
        })
    })
    .await;
    stage.server.lock().unwrap().unfit = None;
    until(&handle, 30, "the first version is active", async |h| settled(h, 1).await).await;
    drop(handle);
    stage.kill(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_a_version_is_shown_during_the_rollout_and_after_it() {
    let stage = Stage::new(2).await;
    stage.host(1).lock().unwrap().names_no_set = true;
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    until(&handle, 30, "the first version is active", async |h| {
        h.credentials().await.unwrap()[0].phase == CredentialPhase::Active
    })
    .await;
    let refusals = handle.status().await.unwrap().refusals;
    let [refusal] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!((&refusal.credential, refusal.name.as_str()), (&name(), "h1"));
    assert!(refusal.reason.starts_with("not_in_policy: "), "{refusal:?}");
    let detail = handle.credential(&name()).await.unwrap();
    let row = detail.versions[0].deliveries.iter().find(|row| row.name == "h1").unwrap();
    assert_eq!(row.phase, DeliveryPhase::Refused);
    assert!(row.reason.as_ref().unwrap().contains("not_in_policy"), "{row:?}");

    stage.host(0).lock().unwrap().loses_pushes = true;
    handle.rotate("operator:alice", &name(), false, None).await.unwrap();
    until(&handle, 30, "the rollout names who refuses", async |h| {
        let Ok(Some(rollout)) = h.rollout(&name()).await else { return false };
        rollout.reason.is_some_and(|reason| reason.contains("h1 refused: not_in_policy: "))
    })
    .await;
    drop(handle);
    stage.kill(engine).await;
}
