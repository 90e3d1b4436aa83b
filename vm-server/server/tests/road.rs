//! The road of an order and of a report through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod world;

use protocol::local::{FromApplier, LOCAL_VERSION, ToApplier};
use protocol::report::Outcome;
use world::{Applier, World, exists, push, soon};

#[tokio::test]
async fn a_host_enrols_and_an_order_goes_to_the_applier_and_its_report_back() {
    let mut world = World::start().await;
    {
        let enrolments = world.control_plane.desk.enrolments.lock().unwrap();
        assert_eq!(enrolments.len(), 1);
        assert_eq!(format!("https://{}", enrolments[0].address), world.url);
    }
    assert!(!exists(&world.dirs.server_state().join("enrolment.json")), "the token is of no more use");
    let ToApplier::Hello { version, means } = &world.applier.hello else {
        panic!("expected hello, got {:?}", world.applier.hello)
    };
    assert_eq!(*version, LOCAL_VERSION);
    assert!(means.iter().any(|means| means.name == "no_new_privs" && means.in_use), "{means:?}");
    world.whole_road(1).await;
    world.whole_road(2).await;
}

#[tokio::test]
async fn the_network_half_passes_on_what_it_cannot_judge_and_the_applier_refuses_it() {
    let mut world = World::start().await;
    let mut forged = world.control_plane.ask(world.keys.host()).to_bytes();
    *forged.last_mut().unwrap() ^= 1;
    let (pusher, url) = (world.pusher.clone(), world.url.clone());
    let pushing = tokio::spawn(async move { push(&pusher, &url, forged).await });
    let (push, frames) = world.applier.receive_orders().await;
    let report = world.keys.answer(1, &frames);
    world.applier.send(&FromApplier::Answer { push, report }).await;
    let answer = pushing.await.unwrap().bytes().await.unwrap();
    let frame = protocol::Frame::parse(&answer, answer.len()).unwrap();
    let installation = world.control_plane.desk.installation;
    let report =
        protocol::report::verify(&frame, installation, &world.keys.report_key.public(), &[]).unwrap();
    let Outcome::Refused { code, .. } = &report.report().receipts[0].outcome else { panic!("{report:?}") };
    assert_eq!(code, "foreign_key");
}

#[tokio::test]
async fn a_report_is_passed_on_and_its_acknowledgement_comes_back() {
    let mut world = World::start().await;
    let report = world.keys.report(1, Vec::new());
    world.applier.send(&FromApplier::Report { report: report.clone() }).await;
    assert_eq!(soon("the report", world.control_plane.reports.recv()).await, Some(report.clone()));
    let ack = world.applier.receive_ack().await;
    let ack = protocol::ack::verify(&ack, &world.keys.anchor, world.keys.host()).unwrap();
    assert_eq!(ack.report, report.digest());
}

#[tokio::test]
async fn while_the_control_plane_is_away_the_newest_report_waits_and_goes_when_it_returns() {
    let mut world = World::start().await;
    world.control_plane.stop().await;
    let reports: Vec<_> = (1..=3).map(|sequence| world.keys.report(sequence, Vec::new())).collect();
    for report in &reports {
        world.applier.send(&FromApplier::Report { report: report.clone() }).await;
        world.server.line_with("failed to pass a report on").await;
    }
    world.control_plane.restart().await;
    assert_eq!(soon("the report", world.control_plane.reports.recv()).await.as_ref(), reports.last());
    world.applier.receive_ack().await;
    assert!(world.control_plane.reports.try_recv().is_err(), "older reports are not sent after a newer one");
}

#[tokio::test]
async fn a_push_shows_that_the_control_plane_is_back_and_nothing_waits_any_longer() {
    let mut world = World::start().await;
    world.control_plane.desk.refuses_reports.store(true, std::sync::atomic::Ordering::SeqCst);
    let report = world.keys.report(1, Vec::new());
    world.applier.send(&FromApplier::Report { report: report.clone() }).await;
    // By the eighth failure the pause is between 16 and 32 seconds.
    for _ in 0..5 {
        world.server.line_with("failed to pass a report on").await;
    }
    world.control_plane.desk.refuses_reports.store(false, std::sync::atomic::Ordering::SeqCst);
    world.whole_road(2).await;
    let begun = std::time::Instant::now();
    assert_eq!(soon("the report", world.control_plane.reports.recv()).await, Some(report));
    assert!(begun.elapsed().as_secs() < 2, "it waited for its backoff");
}

#[tokio::test]
async fn without_an_applier_a_push_is_told_to_come_back_and_a_new_applier_takes_over() {
    let mut world = World::start().await;
    let order = world.control_plane.ask(world.keys.host());
    // Gone while a push waits for it.
    let (pusher, url, body) = (world.pusher.clone(), world.url.clone(), order.to_bytes());
    let pushing = tokio::spawn(async move { push(&pusher, &url, body).await });
    world.applier.receive_orders().await;
    let first = std::mem::replace(&mut world.applier, Applier::connect(&world.dirs, None).await);
    assert_eq!(pushing.await.unwrap().status(), 503, "the newer connection ended the older one");
    drop(first);
    world.whole_road(1).await;
    // Gone for good.
    let Applier { .. } = std::mem::replace(&mut world.applier, Applier::connect(&world.dirs, None).await);
    let host = world.keys.host();
    drop(world.applier);
    world.server.line_with("the applier's connection ended").await;
    let body = world.control_plane.ask(host).to_bytes();
    let answer = push(&world.pusher, &world.url, body).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.unwrap().contains("applier"));
}

#[tokio::test]
async fn an_applier_that_speaks_otherwise_is_not_spoken_to() {
    let world = World::start().await;
    let mut other = Applier::connect(&world.dirs, None).await;
    other.send(&FromApplier::Hello { version: LOCAL_VERSION, host: None, installation: None }).await;
    assert!(soon("the end", other.try_receive()).await.is_none(), "hello twice");

    let mut other = Applier::connect(&world.dirs, None).await;
    other.send_raw(&u32::MAX.to_be_bytes()).await;
    assert!(soon("the end", other.try_receive()).await.is_none(), "a length beyond every limit");

    let mut other = Applier::connect(&world.dirs, None).await;
    other.send_raw(&[0, 0, 0, 2, b'{', b'}']).await;
    assert!(soon("the end", other.try_receive()).await.is_none(), "not a message");
}
