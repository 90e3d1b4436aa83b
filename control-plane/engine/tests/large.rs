//! A rollout to many hosts ends, and is not slowed down by its own bookkeeping.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests are named for what they hold, and stop at what they did not expect"
)]

mod fakes;

use std::time::Instant;

use fakes::{CREDENTIAL, Stage, name, settled, until};
use store::Steps;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_to_two_hundred_hosts_ends() {
    let hosts = std::env::var("ESO_TEST_HOSTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let stage = Stage::new(hosts).await;
    let resource = CREDENTIAL.replace("  policy:\n", "  policy:\n    wave: 1000\n");
    std::fs::write(stage.resources().join("orders.yaml"), resource).unwrap();
    let engine = stage.start(Steps::default()).await;
    let handle = engine.handle().clone();
    let began = Instant::now();
    until(&handle, 120, "the first version is active", async |h| settled(h, 1).await).await;
    let first = began.elapsed();
    handle.rotate("operator:alice", &name(), false, None).await.unwrap();
    let began = Instant::now();
    until(&handle, 120, "the second is active and the first retired", async |h| settled(h, 2).await).await;
    println!("{hosts} hosts: first {first:?}, rotation {:?}", began.elapsed());
    stage.assert_sound();
    assert_eq!(stage.alive(), 1);
    stage.kill(engine).await;
}
