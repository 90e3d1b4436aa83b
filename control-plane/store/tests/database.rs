//! What the store refuses, keeps and never does.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "tests are named for what they hold, and stop at what they did not expect"
)]

use std::path::Path;

use lifecycle::{CredentialName, EffectId};
use store::{
    Audit, AuditBroken, Commit, CredentialRow, HostProgress, KeyEncryptionKey, NewHost, NewToken, OpenError,
    Operator, OperatorProof, Store, StoreError, Value,
};

fn key(directory: &Path) -> KeyEncryptionKey {
    let path = directory.join("key");
    if !path.exists() {
        KeyEncryptionKey::generate().unwrap().write_file(&path).unwrap();
    }
    KeyEncryptionKey::from_file(&path).unwrap()
}

async fn opened(directory: &Path) -> Store {
    Store::open(directory.join("state.db"), key(directory)).await.unwrap()
}

/// The writer thread closes the file a moment after the last handle is gone.
async fn reopened(directory: &Path) -> Result<Store, OpenError> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match Store::open(directory.join("state.db"), key(directory)).await {
            Err(OpenError::Locked { .. }) if std::time::Instant::now() < end => {
                tokio::task::yield_now().await;
            }
            other => return other,
        }
    }
}

fn name() -> CredentialName {
    CredentialName::new("orders-db").unwrap()
}

fn entry(action: &str) -> Audit {
    Audit { at_ms: 1, actor: "operator:alice".into(), action: action.into(), ..Audit::default() }
}

fn host(id: &str) -> NewHost {
    NewHost {
        id: id.into(),
        name: "app-1".into(),
        labels: [("tier".to_owned(), "app".to_owned())].into(),
        address: "127.0.0.1:1323".into(),
        verify_key: vec![1; 32],
        seal_key: vec![2; 32],
        spki: "aa".into(),
    }
}

fn row(revision: u64, state: &str) -> CredentialRow {
    CredentialRow { name: name(), revision, state: state.into() }
}

#[tokio::test]
async fn everything_committed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let (installation, epoch) = (store.installation(), store.epoch().await.unwrap());
    store.put_value(name(), EffectId(7), Value::new(b"canary-value-0123".to_vec())).await.unwrap();
    let commit = Commit {
        credentials: vec![row(0, "{}")],
        audit: vec![entry("minted")],
        clock: Some(lifecycle::Millis(42)),
        ..Commit::default()
    };
    store.commit(commit).await.unwrap();
    drop(store);

    let store = reopened(directory.path()).await.unwrap();
    assert_eq!((store.installation(), store.epoch().await.unwrap()), (installation, epoch));
    assert_eq!(store.credentials().await.unwrap(), [row(1, "{}")]);
    assert_eq!(store.clock().await.unwrap().0, 42);
    let value = store.value(&name(), EffectId(7)).await.unwrap().unwrap();
    assert_eq!(value.expose(), b"canary-value-0123");
    assert!(store.value(&CredentialName::new("other").unwrap(), EffectId(7)).await.unwrap().is_none());
    assert_eq!(store.audit_verify().await.unwrap(), Ok(1));
}

#[tokio::test]
async fn a_database_of_another_key_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(opened(directory.path()).await);
    let other = KeyEncryptionKey::generate().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut other = Some(other);
    loop {
        let key = other.take().unwrap_or_else(|| KeyEncryptionKey::generate().unwrap());
        match Store::open(directory.path().join("state.db"), key).await {
            Err(OpenError::Locked { .. }) if std::time::Instant::now() < end => {}
            result => {
                assert!(matches!(result, Err(OpenError::WrongKey { .. })), "{result:?}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_database_in_use_is_refused_as_locked() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let second = Store::open(directory.path().join("state.db"), key(directory.path())).await;
    assert!(matches!(second, Err(OpenError::Locked { .. })), "{second:?}");
    drop(store);
    drop(reopened(directory.path()).await.unwrap());

    let shell = rusqlite::Connection::open(directory.path().join("state.db")).unwrap();
    shell.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let second = Store::open(directory.path().join("state.db"), key(directory.path())).await;
    assert!(matches!(second, Err(OpenError::Locked { .. })), "{second:?}");
}

#[tokio::test]
async fn corrupt_newer_and_foreign_databases_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    std::fs::write(&path, vec![0xa5; 8192]).unwrap();
    let refused = Store::open(&path, key(directory.path())).await.unwrap_err();
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused}");
    assert!(refused.to_string().contains("restore"), "says what to do: {refused}");

    std::fs::remove_file(&path).unwrap();
    drop(reopened(directory.path()).await.unwrap());
    let shell = rusqlite::Connection::open(&path).unwrap();
    shell.execute_batch("PRAGMA user_version = 999").unwrap();
    drop(shell);
    let refused = reopened(directory.path()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 999, .. }), "{refused}");

    std::fs::remove_file(&path).unwrap();
    let shell = rusqlite::Connection::open(&path).unwrap();
    shell.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(shell);
    let refused = reopened(directory.path()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
}

#[tokio::test]
async fn a_damaged_page_is_found_at_open() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    for number in 0..200_u32 {
        let long = "x".repeat(400);
        store.audit(Audit { detail: format!("{number}{long}"), ..entry("noise") }).await.unwrap();
    }
    drop(store);
    drop(reopened(directory.path()).await.unwrap());
    let path = directory.path().join("state.db");
    drop(std::fs::remove_file(directory.path().join("state.db-wal")));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let refused = reopened(directory.path()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused}");
}

#[tokio::test]
async fn no_value_is_written_in_the_clear_or_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let secret = b"canary-value-0123456789";
    store.put_value(name(), EffectId(1), Value::new(secret.to_vec())).await.unwrap();
    let again = store.put_value(name(), EffectId(1), Value::new(b"other".to_vec())).await;
    assert!(matches!(again, Err(StoreError::AlreadyStored(_))));
    store.put_own_key("order", Value::new(secret.to_vec())).await.unwrap();
    store
        .issue_token(
            NewToken {
                id: "t".into(),
                secret: Value::new(secret.to_vec()),
                host_name: "h".into(),
                created_ms: 0,
                expires_ms: 9,
            },
            entry("token"),
        )
        .await
        .unwrap();
    for file in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
    assert_eq!(store.values().await.unwrap(), [(name(), EffectId(1))]);
    store.erase_value(&name(), EffectId(1)).await.unwrap();
    store.erase_value(&name(), EffectId(1)).await.unwrap();
    assert!(store.values().await.unwrap().is_empty());
    assert!(store.value(&name(), EffectId(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_digest_tells_values_apart_also_after_a_restart_and_says_nothing_of_another_credential() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let value = |text: &str| Value::new(text.as_bytes().to_vec());
    let one = store.value_digest(&name(), value("one")).await.unwrap();
    assert_ne!(store.value_digest(&name(), value("two")).await.unwrap(), one);
    let other = CredentialName::new("other").unwrap();
    assert_ne!(store.value_digest(&other, value("one")).await.unwrap(), one);
    drop(store);
    let store = reopened(directory.path()).await.unwrap();
    assert_eq!(store.value_digest(&name(), value("one")).await.unwrap(), one);
}

#[tokio::test]
async fn a_value_moved_to_another_row_does_not_decrypt() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    store.put_value(name(), EffectId(1), Value::new(b"one".to_vec())).await.unwrap();
    drop(store);
    drop(reopened(directory.path()).await.unwrap());
    let shell = rusqlite::Connection::open(directory.path().join("state.db")).unwrap();
    shell.execute("UPDATE secret_values SET effect = ?1", [EffectId(2).to_string()]).unwrap();
    drop(shell);
    let store = reopened(directory.path()).await.unwrap();
    assert!(matches!(store.value(&name(), EffectId(2)).await, Err(StoreError::Altered(_))));
}

#[tokio::test]
async fn a_commit_is_whole_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    store.commit(Commit { credentials: vec![row(0, "a")], ..Commit::default() }).await.unwrap();
    let stale = Commit {
        credentials: vec![
            CredentialRow { name: CredentialName::new("second").unwrap(), revision: 0, state: "b".into() },
            row(0, "late"),
        ],
        audit: vec![entry("never")],
        ..Commit::default()
    };
    let refused = store.commit(stale).await;
    assert!(matches!(refused, Err(StoreError::Reverted { found: 1, expected: 0, .. })), "{refused:?}");
    assert_eq!(store.credentials().await.unwrap(), [row(1, "a")]);
    assert_eq!(store.audit_rows(0, 10, None).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_enrolments_with_one_token_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let token = |id: &str, expires_ms| NewToken {
        id: id.into(),
        secret: Value::new(vec![9]),
        host_name: "app-1".into(),
        created_ms: 0,
        expires_ms,
    };
    store.issue_token(token("once", 100), entry("token")).await.unwrap();
    store.issue_token(token("old", 10), entry("token")).await.unwrap();
    let tries = (0..100).map(|number| {
        let store = store.clone();
        tokio::spawn(
            async move { store.enrol("once", host(&format!("{number:064}")), 50, entry("enrol")).await },
        )
    });
    let mut won = 0;
    for attempt in tries.collect::<Vec<_>>() {
        won += usize::from(attempt.await.unwrap().unwrap());
    }
    assert_eq!((won, store.hosts().await.unwrap().len()), (1, 1));
    assert!(!store.enrol("old", host("f"), 50, entry("enrol")).await.unwrap());
    assert!(!store.enrol("unknown", host("f"), 50, entry("enrol")).await.unwrap());
}

#[tokio::test]
async fn what_a_host_said_is_committed_with_the_state_that_it_changed() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let token = NewToken {
        id: "t".into(),
        secret: Value::new(vec![]),
        host_name: "app-1".into(),
        created_ms: 0,
        expires_ms: 9,
    };
    store.issue_token(token, entry("token")).await.unwrap();
    assert!(store.enrol("t", host("aa"), 1, entry("enrol")).await.unwrap());
    let progress = HostProgress { sequence: 3, reported_ms: 77, ..HostProgress::default() };
    let commit = Commit {
        credentials: vec![row(0, "{}")],
        hosts: vec![("aa".into(), progress.clone())],
        ..Commit::default()
    };
    store.commit(commit).await.unwrap();
    let kept = store.host("aa").await.unwrap().unwrap();
    assert_eq!((kept.progress, kept.host), (progress, host("aa")));
}

#[tokio::test]
async fn an_altered_or_cut_audit_log_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let cases = [
        ("UPDATE audit SET detail = 'nothing' WHERE sequence = 2", AuditBroken::Row(2)),
        ("DELETE FROM audit WHERE sequence = 2", AuditBroken::Row(3)),
        ("DELETE FROM audit WHERE sequence > 2", AuditBroken::Length { found: 2, expected: 4 }),
        // What says where the log ends was made to fit.
        (
            "DELETE FROM audit WHERE sequence > 2;
             UPDATE settings SET text = '2' WHERE name LIKE 'audit%'",
            AuditBroken::End,
        ),
        (
            "DELETE FROM audit WHERE sequence > 2;
             UPDATE settings SET text = '2' || substr(text, instr(text, ' ')) WHERE name LIKE 'audit%'",
            AuditBroken::End,
        ),
        ("DELETE FROM audit; UPDATE settings SET text = '0' WHERE name LIKE 'audit%'", AuditBroken::End),
        // It was made to look like one that no program has signed yet.
        (
            "DELETE FROM audit WHERE sequence > 2; DELETE FROM settings WHERE name LIKE 'audit%';
             INSERT INTO settings VALUES ('audit_length', '2')",
            AuditBroken::End,
        ),
    ];
    for (number, (statement, broken)) in cases.into_iter().enumerate() {
        let directory = directory.path().join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        let store = opened(&directory).await;
        for action in ["rotate", "minted", "revoked", "excuse"] {
            store.audit(entry(action)).await.unwrap();
        }
        assert_eq!(store.audit_verify().await.unwrap(), Ok(4));
        drop(store);
        drop(reopened(&directory).await.unwrap());
        let shell = rusqlite::Connection::open(directory.join("state.db")).unwrap();
        shell.execute_batch(statement).unwrap();
        drop(shell);
        let store = reopened(&directory).await.unwrap();
        assert_eq!(store.audit_verify().await.unwrap(), Err(broken), "{statement}");
        // The next start writes on, and what was cut is not forgotten by that.
        for action in ["rotate", "minted", "revoked", "excuse"] {
            store.audit(entry(action)).await.unwrap();
        }
        assert!(store.audit_verify().await.unwrap().is_err(), "{statement}");
    }
}

/// Changes the file as somebody who can write it and has no key.
async fn altered(directory: &Path, statement: &str) -> Store {
    drop(reopened(directory).await.unwrap());
    let shell = rusqlite::Connection::open(directory.join("state.db")).unwrap();
    assert_eq!(shell.execute(statement, []).unwrap(), 1, "{statement}");
    drop(shell);
    reopened(directory).await.unwrap()
}

fn operator(id: &str, role: &str) -> Operator {
    Operator {
        id: id.into(),
        name: id.into(),
        role: role.into(),
        proof: OperatorProof::TokenDigest(id.into()),
        created_ms: 1,
        expires_ms: 100,
        revoked_ms: None,
    }
}

#[tokio::test]
async fn who_can_write_the_file_makes_nobody_an_operator() {
    let proof = |id: &str| OperatorProof::TokenDigest(id.into());
    for statement in [
        "UPDATE operators SET role = 'admin' WHERE id = 'viewer'",
        "UPDATE operators SET proof = 'mine' WHERE id = 'viewer'",
        "UPDATE operators SET expires_ms = 9999 WHERE id = 'viewer'",
        "UPDATE operators SET revoked_ms = NULL WHERE id = 'ended'",
        "INSERT INTO operators (id, name, role, proof_kind, proof, created_ms, expires_ms)
         VALUES ('new', 'new', 'admin', 'token', 'mine', 1, 9999)",
        "INSERT INTO operators SELECT 'new', name, role, proof_kind, 'mine', 1, 9999, NULL, signature
         FROM operators WHERE id = 'viewer'",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let store = opened(directory.path()).await;
        store.add_operator(operator("viewer", "viewer"), entry("operator_add")).await.unwrap();
        store.add_operator(operator("ended", "admin"), entry("operator_add")).await.unwrap();
        assert!(store.revoke_operator("ended", "none", 7, entry("operator_revoke")).await.unwrap());
        assert_eq!(store.operators().await.unwrap().len(), 2);
        assert!(store.operator(proof("viewer"), 50).await.unwrap().is_some());
        drop(store);
        let store = altered(directory.path(), statement).await;
        for proof in [proof("viewer"), proof("ended"), proof("mine")] {
            let found = store.operator(proof, 50).await;
            let as_before = matches!(&found, Ok(Some(found)) if *found == operator("viewer", "viewer"));
            assert!(as_before || matches!(found, Ok(None) | Err(StoreError::Altered(_))), "{statement}");
        }
        assert!(matches!(store.operators().await, Err(StoreError::Altered(_))), "{statement}");
    }
}

#[tokio::test]
async fn who_can_write_the_file_gets_no_value_sent() {
    for statement in [
        "UPDATE hosts SET seal_key = x'aabb'",
        "UPDATE hosts SET verify_key = x'aabb'",
        "UPDATE hosts SET labels = '{\"tier\":\"payment\"}'",
        "UPDATE hosts SET spki = 'bb'",
        "UPDATE hosts SET address = '192.0.2.7:1323'",
        "UPDATE hosts SET status = 'active'",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let store = opened(directory.path()).await;
        let secret = Value::new(vec![9]);
        let host_name = "app-1".into();
        let token = NewToken { id: "t".into(), secret, host_name, created_ms: 0, expires_ms: 9 };
        store.issue_token(token, entry("token")).await.unwrap();
        assert!(store.enrol("t", host("aa"), 1, entry("enrol")).await.unwrap());
        store.set_host_address("aa", "127.0.0.1:9".into(), Some(entry("move"))).await.unwrap();
        store.retire_host("aa", entry("retire")).await.unwrap();
        let progress = HostProgress { sequence: 3, ..HostProgress::default() };
        let commit = Commit { hosts: vec![("aa".into(), progress)], ..Commit::default() };
        store.commit(commit).await.unwrap();
        assert_eq!(store.hosts().await.unwrap().len(), 1);
        drop(store);
        let store = altered(directory.path(), statement).await;
        assert!(matches!(store.hosts().await, Err(StoreError::Altered(_))), "{statement}");
        assert!(matches!(store.host("aa").await, Err(StoreError::Altered(_))), "{statement}");
        // Nor is it signed in passing.
        let labelled = store.set_host_labels("aa", [].into(), entry("label")).await;
        assert!(matches!(labelled, Err(StoreError::Altered(_))), "{statement}");
    }
}

#[tokio::test]
async fn a_restored_backup_begins_a_new_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let (installation, first) = (store.installation(), store.epoch().await.unwrap());
    store.put_value(name(), EffectId(1), Value::new(b"kept".to_vec())).await.unwrap();
    let copy = directory.path().join("backup.db");
    store.backup(copy.clone()).await.unwrap();
    assert!(store.backup(copy.clone()).await.is_err(), "a backup is never overwritten");
    drop(store);

    let mut epochs = vec![first];
    for life in ["one", "two"] {
        let to = directory.path().join(format!("{life}.db"));
        // The log of an old database would be played into the new one.
        let log = directory.path().join(format!("{}-wal", to.file_name().unwrap().display()));
        std::fs::write(&log, "").unwrap();
        let refused = store::restore(&copy, &to, key(directory.path())).await.unwrap_err();
        assert!(refused.to_string().contains("-wal exists"), "{refused}");
        std::fs::remove_file(&log).unwrap();
        let epoch = store::restore(&copy, &to, key(directory.path())).await.unwrap();
        assert_eq!(epoch.counter, first.counter + 1);
        let store = Store::open(&to, key(directory.path())).await.unwrap();
        assert!(store.restored().await.unwrap());
        store.restore_noted().await.unwrap();
        assert!(!store.restored().await.unwrap());
        assert_eq!((store.installation(), store.epoch().await.unwrap()), (installation, epoch));
        assert_eq!(store.value(&name(), EffectId(1)).await.unwrap().unwrap().expose(), b"kept");
        assert_eq!(store.begin_epoch(9).await.unwrap().counter, 10);
        epochs.push(epoch);
    }
    assert_ne!(epochs[1].id, epochs[2].id, "two restores of one backup are strangers");
}

/// It says who is who and who has what, and its values are encrypted for as long as nobody has the key.
#[tokio::test]
async fn a_backup_is_for_its_owner_alone_and_follows_no_link() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    let (copy, link) = (directory.path().join("backup.db"), directory.path().join("link.db"));
    let elsewhere = directory.path().join("elsewhere.db");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    store.backup(copy.clone()).await.unwrap();
    assert_eq!(mode(&copy), 0o600);
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    assert!(matches!(store.backup(link).await, Err(StoreError::Exists(_))));
    assert!(!elsewhere.exists(), "it was written where a link led");
    // A copy that somebody made readable on its way does not make a readable database.
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).unwrap();
    let restored = directory.path().join("restored.db");
    store::restore(&copy, &restored, key(directory.path())).await.unwrap();
    assert_eq!(mode(&restored), 0o600);
    let nowhere = directory.path().join("nowhere/backup.db");
    assert!(matches!(store.backup(nowhere).await, Err(StoreError::Database { .. })));
}

#[test]
fn a_key_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    drop(key(directory.path()));
    let path = directory.path().join("key");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(KeyEncryptionKey::from_file(&path), Err(store::KeyError::Readable { mode: 0o640, .. })));
}

/// Usage and values have separate write paths: a statement that touches one never touches the other.
#[test]
fn no_statement_writes_both_usage_and_values() {
    let usage = ["credentials", "hosts", "audit"];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut writing = 0;
    for file in std::fs::read_dir(source).unwrap() {
        let path = file.unwrap().path();
        if path.ends_with("schema.rs") {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        for statement in text.split('"').skip(1).step_by(2) {
            let writes =
                ["INSERT INTO", "UPDATE ", "DELETE FROM"].iter().any(|word| statement.contains(word));
            if writes && statement.contains("secret_values") {
                writing += 1;
                assert!(!usage.iter().any(|table| statement.contains(&format!("{table} "))), "{statement}");
            }
        }
    }
    assert_eq!(writing, 2, "one statement keeps a value and one forgets it");
}

/// Expired, revoked and altered rows let nobody in, so none of them is another admin.
#[tokio::test]
async fn the_last_one_of_a_role_that_is_let_in_is_not_ended() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(directory.path()).await;
    for (id, role, expires_ms) in
        [("ann", "admin", 100), ("old", "admin", 50), ("ended", "admin", 100), ("vera", "viewer", 100)]
    {
        let one = Operator { expires_ms, ..operator(id, role) };
        store.add_operator(one, entry("operator_add")).await.unwrap();
    }
    store.add_operator(operator("forged", "viewer"), entry("operator_add")).await.unwrap();
    assert!(store.revoke_operator("ended", "admin", 60, entry("operator_revoke")).await.unwrap());
    drop(store);
    let statement = "UPDATE operators SET role = 'admin' WHERE id = 'forged'";
    let store = altered(directory.path(), statement).await;
    let rows = store.audit_rows(0, 100, None).await.unwrap().len();
    let refused = store.revoke_operator("ann", "admin", 60, entry("operator_revoke")).await;
    assert!(
        matches!(refused, Err(StoreError::LastOf { ref name, role: "admin" }) if name == "ann"),
        "{refused:?}"
    );
    assert_eq!(store.audit_rows(0, 100, None).await.unwrap().len(), rows);
    let ann = OperatorProof::TokenDigest("ann".into());
    assert!(store.operator(ann.clone(), 60).await.unwrap().is_some());
    for id in ["old", "vera", "forged"] {
        assert!(store.revoke_operator(id, "admin", 60, entry("operator_revoke")).await.unwrap(), "{id}");
    }
    store.add_operator(operator("bob", "admin"), entry("operator_add")).await.unwrap();
    assert!(store.revoke_operator("ann", "admin", 60, entry("operator_revoke")).await.unwrap());
    assert!(store.operator(ann, 60).await.unwrap().is_none());
}
