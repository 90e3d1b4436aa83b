//! The KV source and target against a real OpenBao over TLS. "Somebody else" is its own command line.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first surprise"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backends::{
    Destroyed, Failure, Mark, Notice, SecretValue, SecretsDirectory, Snapshot, Source, StoreTarget,
    build_source, build_store_target,
};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use lifecycle::id::{EffectId, Epoch};
use serde_json::{Value, json};
use tests_services::OpenBao;
use tokio::time::{Instant, timeout};

fn start() -> OpenBao {
    OpenBao::start().unwrap()
}

fn spec(bao: &OpenBao, path: &str, token_file: &Path) -> Value {
    json!({
        "server": bao.url(), "path": path, "tls": {"caFile": bao.ca_file()},
        "auth": {"tokenSecretRef": {"file": token_file}}, "timeoutSeconds": 3,
    })
}

fn source(bao: &OpenBao, poll_seconds: u64, retiring: &str) -> Arc<dyn Source> {
    let mut spec = spec(bao, "apps/orders", &bao.token_file());
    spec["pollSeconds"] = json!(poll_seconds);
    spec["retiring"] = json!(retiring);
    build_source("VaultKv", &spec, Arc::new(SecretsDirectory::new("/"))).unwrap()
}

fn target_with(bao: &OpenBao, token_file: &Path) -> Arc<dyn StoreTarget> {
    let spec = spec(bao, "apps/orders", token_file);
    build_store_target("VaultKv", &spec, Arc::new(SecretsDirectory::new("/"))).unwrap()
}

fn put(bao: &OpenBao, password: &str) {
    bao.run(&["kv", "put", "-mount=secret", "apps/orders", "username=a", &format!("password={password}")])
        .unwrap();
}

fn mark(effect: u128) -> Mark {
    Mark { installation: "test".to_owned(), epoch: Epoch { counter: 1, id: 7 }, effect: EffectId(effect) }
}

fn value(password: &str) -> SecretValue {
    SecretValue::new().with("username", b"a").with("password", password.as_bytes())
}

async fn next(changes: &mut BoxStream<'static, Notice>) -> Notice {
    timeout(Duration::from_secs(30), changes.next()).await.expect("a notice in time").unwrap()
}

async fn next_value(changes: &mut BoxStream<'static, Notice>) -> Snapshot {
    match next(changes).await {
        Notice::Value(snapshot) => snapshot,
        Notice::Unavailable(failure) => panic!("unavailable: {failure}"),
        Notice::Available => panic!("available again"),
    }
}

#[tokio::test]
async fn a_new_value_is_noticed_and_a_refresh_waits_for_nothing() {
    let bao = start();
    put(&bao, "1");
    let polled = source(&bao, 1, "none");
    let mut changes = polled.changes();
    let first = next_value(&mut changes).await;
    assert_eq!((first.value.expose_text("password"), first.revision), (Some("1"), Some(1)));
    put(&bao, "2");
    let second = next_value(&mut changes).await;
    assert_eq!((second.value.expose_text("password"), second.revision), (Some("2"), Some(2)));

    let lazy = source(&bao, 3600, "none");
    let mut changes = Arc::clone(&lazy).changes();
    next_value(&mut changes).await;
    // The same value again is no change, another one is.
    put(&bao, "2");
    lazy.refresh();
    put(&bao, "3");
    let started = Instant::now();
    lazy.refresh();
    while next_value(&mut changes).await.value.expose_text("password") != Some("3") {
        lazy.refresh();
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(lazy.current().await.ok().unwrap().revision, Some(4));
}

#[tokio::test]
async fn the_last_good_value_stays_through_an_outage_and_a_deletion() {
    let bao = start();
    put(&bao, "1");
    let source = source(&bao, 1, "none");
    let mut changes = source.changes();
    next_value(&mut changes).await;

    bao.freeze().unwrap();
    assert!(matches!(next(&mut changes).await, Notice::Unavailable(Failure::Retry(_))));
    bao.go_on().unwrap();
    assert!(matches!(next(&mut changes).await, Notice::Available));

    bao.run(&["kv", "delete", "-mount=secret", "apps/orders"]).unwrap();
    assert!(
        matches!(next(&mut changes).await, Notice::Unavailable(failure) if failure.words().contains("deleted"))
    );
    put(&bao, "2");
    assert_eq!(next_value(&mut changes).await.value.expose_text("password"), Some("2"));
}

#[tokio::test]
async fn a_source_destroys_old_versions_and_never_the_current_one() {
    let bao = start();
    put(&bao, "1");
    put(&bao, "2");
    let source = source(&bao, 1, "destroy-version");
    // It is its owner's: that is no failure, which would be tried for ever.
    assert!(matches!(source.destroy(2).await, Ok(Destroyed::Left(words)) if words.contains("revision 2")));
    assert_eq!(source.destroy(1).await, Ok(Destroyed::Gone));
    assert_eq!(source.destroy(1).await, Ok(Destroyed::Gone));
    assert!(
        bao.run(&["kv", "get", "-mount=secret", "-version=1", "-field=password", "apps/orders"]).is_err()
    );
    assert_eq!(source.current().await.ok().unwrap().value.expose_text("password"), Some("2"));
}

#[tokio::test]
async fn a_target_is_written_with_check_and_set_read_back_and_destroyed() {
    let bao = start();
    // What others wrote beside our mark stays.
    bao.run(&[
        "kv",
        "metadata",
        "put",
        "-mount=secret",
        "-max-versions=5",
        "-custom-metadata=team=a",
        "apps/orders",
    ])
    .unwrap();
    let target = target_with(&bao, &bao.token_file());
    assert!(target.read_back().await.unwrap().is_none());
    let first = target.write(&mark(1), &value("1"), 0).await.unwrap();
    assert_eq!(first, 1);
    // Twice is once.
    assert_eq!(target.write(&mark(1), &value("1"), 0).await.unwrap(), 1);
    let stored = target.read_back().await.unwrap().unwrap();
    assert!(stored.value.same_as(&value("1")));
    assert_eq!((stored.revision, stored.mark), (1, Some(mark(1))));

    let second = target.write(&mark(2), &value("2"), first).await.unwrap();
    assert_eq!(target.read_back().await.unwrap().unwrap().mark, Some(mark(2)));
    target.destroy(first).await.unwrap();
    target.destroy(first).await.unwrap();
    assert!(
        bao.run(&["kv", "get", "-mount=secret", "-version=1", "-field=password", "apps/orders"]).is_err()
    );
    assert!(
        matches!(target.destroy(second).await, Err(Failure::Refused(words)) if words.contains("current"))
    );

    let metadata =
        bao.run(&["kv", "metadata", "get", "-mount=secret", "-format=json", "apps/orders"]).unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["data"]["max_versions"], 5);
    assert_eq!(metadata["data"]["custom_metadata"]["team"], "a");

    target.withdraw(second).await.unwrap();
    target.withdraw(second).await.unwrap();
    assert!(target.read_back().await.unwrap().is_none());
}

/// A server that was set up anew, a mount that moved, a token that lost its policy: none of them says that a value is
/// gone, and neither does a path that was deleted with its history, which looks no different.
#[tokio::test]
async fn what_the_server_does_not_know_is_not_proved_to_be_destroyed() {
    let bao = start();
    let target = target_with(&bao, &bao.token_file());
    let first = target.write(&mark(1), &value("1"), 0).await.unwrap();
    let second = target.write(&mark(2), &value("2"), first).await.unwrap();
    let elsewhere = |key: &str, text: &str| {
        let mut spec = spec(&bao, "apps/orders", &bao.token_file());
        spec[key] = json!(text);
        build_store_target("VaultKv", &spec, Arc::new(SecretsDirectory::new("/"))).unwrap()
    };
    let poor = "path \"secret/data/apps/orders\" { capabilities = [\"read\"] }";
    let cases = [
        ("another path", elsewhere("path", "apps/orders-2")),
        ("another mount", elsewhere("mount", "kv")),
        ("no right to look", target_with(&bao, &bao.token_with_policy("poor", poor).unwrap())),
    ];
    for (what, target) in cases {
        for answer in [target.destroy(first).await, target.withdraw(second).await] {
            assert!(matches!(&answer, Err(Failure::Refused(_))), "{what}: {answer:?}");
        }
    }
    let mut spec = spec(&bao, "apps/orders-2", &bao.token_file());
    spec["retiring"] = json!("destroy-version");
    let source = build_source("VaultKv", &spec, Arc::new(SecretsDirectory::new("/"))).unwrap();
    assert!(matches!(source.destroy(first).await, Err(Failure::Refused(words)) if words.contains("`path`")));

    // A revision that was deleted can be taken back, and is destroyed all the same.
    bao.run(&["kv", "delete", "-mount=secret", "-versions=1", "apps/orders"]).unwrap();
    target.destroy(first).await.unwrap();
    bao.run(&["kv", "metadata", "delete", "-mount=secret", "apps/orders"]).unwrap();
    let answer = target.destroy(first).await;
    assert!(matches!(&answer, Err(Failure::Refused(words)) if words.contains("history")), "{answer:?}");
}

#[tokio::test]
async fn somebody_elses_write_is_never_overwritten() {
    let bao = start();
    let target = target_with(&bao, &bao.token_file());
    put(&bao, "theirs");
    let refused = |answer: Result<u64, Failure>| match answer {
        Err(Failure::Refused(words)) => words,
        Err(Failure::Retry(words)) => panic!("to be tried again: {words}"),
        Ok(revision) => panic!("written as {revision}"),
    };
    assert!(refused(target.write(&mark(1), &value("1"), 0).await).contains("somebody else"));
    let ours = target.write(&mark(1), &value("1"), 1).await.unwrap();
    put(&bao, "theirs again");
    assert!(refused(target.write(&mark(2), &value("2"), ours).await).contains("revision 3"));
    let stored = target.read_back().await.unwrap().unwrap();
    assert_eq!((stored.value.expose_text("password"), stored.mark), (Some("theirs again"), None));

    // Many at once: one wins, the others are told.
    let many = (0..8).map(|number| {
        let target = Arc::clone(&target);
        tokio::spawn(async move { target.write(&mark(number + 10), &value(&format!("n{number}")), 3).await })
    });
    let mut won = 0;
    for writing in many.collect::<Vec<_>>() {
        match writing.await.unwrap() {
            Ok(revision) => {
                assert_eq!(revision, 4);
                won += 1;
            }
            Err(failure) => assert!(failure.words().contains("somebody else"), "{failure}"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn what_is_missing_is_named_and_a_new_token_is_taken_up() {
    let bao = start();
    put(&bao, "1");
    let poor =
        bao.token_with_policy("poor", "path \"secret/data/other\" { capabilities = [\"read\"] }").unwrap();
    let spec = spec(&bao, "apps/orders", &poor);
    let source = build_source("VaultKv", &spec, Arc::new(SecretsDirectory::new("/"))).unwrap();
    let Err(Failure::Refused(said)) = source.current().await else { panic!("not refused") };
    assert!(said.contains("policy") && said.contains("apps/orders"), "{said}");
    let token = std::fs::read_to_string(&poor).unwrap();
    assert!(!said.contains(token.trim()));
    // An agent, or a person, puts a better token there.
    std::fs::copy(bao.token_file(), &poor).unwrap();
    assert!(source.current().await.is_ok());

    // A target may live with exactly these rights.
    let policy = "path \"secret/data/apps/orders\" { capabilities = [\"create\", \"read\", \"update\"] }
        path \"secret/metadata/apps/orders\" { capabilities = [\"create\", \"read\", \"update\"] }
        path \"secret/destroy/apps/orders\" { capabilities = [\"update\"] }";
    let target = target_with(&bao, &bao.token_with_policy("enough", policy).unwrap());
    let revision = target.write(&mark(1), &value("2"), 1).await.unwrap();
    target.read_back().await.unwrap().unwrap();
    target.destroy(revision - 1).await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_be_trusted_is_told_nothing() {
    let bao = start();
    put(&bao, "1");
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let mut spec = spec(&bao, "apps/orders", &bao.token_file());
    spec["tls"] = json!({"caBundle": stranger.cert.pem()});
    let source = build_source("VaultKv", &spec, Arc::new(SecretsDirectory::new("/"))).unwrap();
    assert!(matches!(source.current().await, Err(Failure::Retry(words)) if words.contains("certificate")));
    // Neither the path's values nor the token stand in the server's log.
    let log = std::fs::read_to_string(bao.log()).unwrap();
    assert!(!log.contains("apps/orders"));
}

#[tokio::test]
async fn a_value_that_the_store_cannot_hold_is_refused_before_it_is_sent() {
    let bao = start();
    let target = target_with(&bao, &bao.token_file());
    let binary = SecretValue::new().with("key", &[0xff, 0xfe]);
    assert!(
        matches!(target.write(&mark(1), &binary, 0).await, Err(Failure::Refused(words)) if words.contains("text"))
    );
    assert!(target.read_back().await.unwrap().is_none());
}
