//! Setting up, serving, backing up and restoring; and the command line against a real control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test binary uses a part of the shared world")]

mod world;

use std::os::unix::fs::PermissionsExt as _;

use eso_control_plane::settings::{Backup, Init, Restore};
use eso_control_plane::{ServeError, backup, restore, serve};
use esoctl::{Exit, Streams};
use protocol::api::{AuditPage, BackedUp, Changes, OperatorView, Status};
use world::{World, data, init, settings};

async fn esoctl(world: &World, arguments: &[&str]) -> (Exit, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut streams = Streams { out: &mut out, err: &mut err, terminal: false };
    let config = world.admin_file("esoctl.toml");
    let server = format!("https://localhost:{}", world.ready.listen.port());
    let fixed = ["esoctl", "--config", config.to_str().unwrap(), "--server", &server];
    let arguments = fixed.into_iter().chain(arguments.iter().copied()).map(Into::into);
    let exit = esoctl::run(arguments, &mut streams).await;
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn the_openapi_document_is_the_one_checked_in() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let now = serde_json::to_string_pretty(&eso_control_plane::openapi::document()).unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        now == checked_in,
        "docs/openapi.json is old: run the test again with UPDATE_OPENAPI=1 and commit it"
    );
}

#[test]
fn every_reference_in_the_openapi_document_leads_somewhere() {
    let document = eso_control_plane::openapi::document();
    let text = document.to_string();
    let mut references = 0;
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
        references += 1;
    }
    assert!(references > 50);
    let ids: Vec<_> =
        text.split("\"operationId\":\"").skip(1).map(|part| part.split('"').next().unwrap()).collect();
    let unique: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), unique.len());
}

#[tokio::test]
async fn a_directory_is_made_once_and_init_again_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    init(&directory).await;
    let read = || {
        ["key", "admin/cert.pem", "admin/key.pem", "admin/ca.pem", "admin/esoctl.toml"]
            .map(|name| std::fs::read(directory.path().join("data").join(name)).unwrap())
    };
    let before = read();
    init(&directory).await;
    assert_eq!(before, read());
    for name in ["key", "eso.db", "admin/key.pem", "admin/esoctl.toml"] {
        let mode = std::fs::metadata(directory.path().join("data").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}

/// The way that `init` names to a new admin, who ends the old one.
#[tokio::test]
async fn an_admin_who_lost_the_certificate_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    assert!(init(&directory).await.to_string().contains("Keep a copy of the key"));
    let told = init(&directory).await.to_string();
    let admin = directory.path().join("data/admin");
    assert!(
        told.contains("nothing was made") && told.contains(&format!("move {} away", admin.display())),
        "{told}"
    );
    let lost = directory.path().join("lost");
    std::fs::rename(&admin, &lost).unwrap();
    assert!(!init(&directory).await.before);

    let world = World::serve(directory).await;
    let read = |name| std::fs::read_to_string(lost.join(name)).unwrap();
    let identity = transport::TlsIdentity::from_pem(&read("cert.pem"), &read("key.pem")).unwrap();
    let thief = world::Caller { client: world.client(Some(&identity)), ..world.admin() };
    assert_eq!(thief.get("/v1/whoami").await.status(), 200);
    let all: Vec<OperatorView> = world.admin().get("/v1/operators").await.json().await.unwrap();
    let old = all.iter().min_by_key(|row| row.created_at).unwrap();
    let (exit, out, err) = esoctl(&world, &["operator", "revoke", &old.id]).await;
    assert_eq!(exit, Exit::Done, "{out}{err}");
    assert_eq!(thief.get("/v1/whoami").await.status(), 401);
    assert_eq!(world.admin().get("/v1/whoami").await.status(), 200);
    world.stop().await;
}

#[tokio::test]
async fn the_last_admin_is_not_revoked_and_is_told_whom_to_let_in_first() {
    let world = World::start().await;
    let all: Vec<OperatorView> = world.admin().get("/v1/operators").await.json().await.unwrap();
    let revoke = ["operator", "revoke", &all[0].id];
    let (exit, out, err) = esoctl(&world, &revoke).await;
    assert_eq!(exit, Exit::Refused, "{out}{err}");
    assert!(err.contains("(last_admin)") && err.contains("esoctl operator add NAME --role admin"), "{err}");
    assert_eq!(esoctl(&world, &["whoami"]).await.0, Exit::Done);
    let (other, _) = world.operator(protocol::api::Role::Admin).await;
    assert_eq!(esoctl(&world, &revoke).await.0, Exit::Done);
    let (exit, _, err) = esoctl(&world, &["whoami"]).await;
    assert_eq!((exit, err.matches("ask an admin").count()), (Exit::Forbidden, 1), "{err}");
    assert_eq!(other.get("/v1/operators").await.status(), 200);
    world.stop().await;
}

#[tokio::test]
async fn init_again_with_another_address_says_what_to_correct() {
    let directory = tempfile::tempdir().unwrap();
    init(&directory).await;
    let url = "https://cp.example.org:8443".to_owned();
    let other = Init { data: data(&directory), admin: "admin".to_owned(), url, root_key: None };
    let told = eso_control_plane::init(&other).await.unwrap_err().to_string();
    let config = directory.path().join("data/admin/esoctl.toml");
    assert!(told.contains(&config.display().to_string()) && told.contains("`server`"), "{told}");
    let kept = std::fs::read_to_string(config).unwrap();
    assert!(kept.contains("https://localhost:1"), "{kept}");
}

#[test]
fn what_nobody_could_call_is_no_url_of_ours() {
    use clap::Parser as _;
    let parsed = |command: &str, url: &str| {
        eso_control_plane::settings::Cli::try_parse_from(["eso-control-plane", command, "--url", url])
    };
    for command in ["init", "serve"] {
        for url in ["https://localhost:1", "https://[::1]:8443", "https://eso.example.org"] {
            parsed(command, url).unwrap();
        }
        for url in
            ["nonsense", "http://localhost:1", "localhost:8443", "https://", "https://:1", "https:///a", ""]
        {
            let told = parsed(command, url).unwrap_err().to_string();
            assert!(told.contains("write https://NAME:PORT"), "{url}: {told}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = async |directory: &tempfile::TempDir| {
        let error =
            serve(&settings(directory), |_| panic!("served"), std::future::pending()).await.unwrap_err();
        error.to_string()
    };
    assert!(refuse(&directory).await.contains("eso-control-plane init"));

    init(&directory).await;
    let world = World::serve(directory).await;
    let second = refuse(&world.directory).await;
    assert!(second.contains("another process holds it"), "{second}");
    let directory = world.stop().await;

    std::fs::rename(directory.path().join("data/key"), directory.path().join("data/key.old")).unwrap();
    store::KeyEncryptionKey::generate().unwrap().write_file(&directory.path().join("data/key")).unwrap();
    let other_key = refuse(&directory).await;
    assert!(other_key.contains("another key-encryption key"), "{other_key}");
    std::fs::rename(directory.path().join("data/key.old"), directory.path().join("data/key")).unwrap();

    // Of a newer program: SQLite keeps the number at this place of the first page.
    let database = directory.path().join("data/eso.db");
    let good = std::fs::read(&database).unwrap();
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&999_u32.to_be_bytes());
    std::fs::write(&database, &newer).unwrap();
    let said = refuse(&directory).await;
    assert!(said.contains("newer") && said.contains("999"), "{said}");
    assert_eq!(std::fs::read(&database).unwrap(), newer, "it was changed");

    std::fs::write(&database, vec![0xa5; good.len()]).unwrap();
    let said = refuse(&directory).await;
    assert!(said.contains("restore"), "{said}");
    std::fs::write(&database, good).unwrap();
    World::serve(directory).await.stop().await;
}

#[tokio::test]
async fn a_taken_address_is_said() {
    let world = World::start().await;
    let other = tempfile::tempdir().unwrap();
    init(&other).await;
    let settings = eso_control_plane::settings::Serve { listen: world.ready.listen, ..settings(&other) };
    let error = serve(&settings, |_| panic!("served"), std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ServeError::Listen { .. }), "{error}");
    world.stop().await;
}

#[tokio::test]
async fn a_backup_restores_into_a_new_epoch_with_the_same_installation() {
    let world = World::start().await;
    let host = world.host("web-1").await;
    let before: Status = world.admin().get("/v1/status").await.json().await.unwrap();
    let made: BackedUp = world.admin().post("/v1/backup", &()).await.json().await.unwrap();
    let directory = world.stop().await;
    let offline = directory.path().join("offline.db");
    backup(&Backup { data: data(&directory), to: offline.clone() }).await.unwrap();
    for from in [made.file.into(), offline] {
        for name in ["eso.db", "eso.db-wal", "eso.db-shm"] {
            let _ = std::fs::remove_file(directory.path().join("data").join(name));
        }
        let epoch = restore(&Restore { data: data(&directory), from }).await.unwrap();
        assert_eq!(epoch.counter, before.epoch.counter + 1);
    }
    let world = World::serve(directory).await;
    let after: Status = world.admin().get("/v1/status").await.json().await.unwrap();
    assert_eq!(after.installation, before.installation);
    assert_eq!(after.epoch.counter, before.epoch.counter + 1);
    let (exit, out, _) = esoctl(&world, &["host", "list", "-o", "json"]).await;
    assert_eq!(exit, Exit::Done);
    assert!(out.contains(&host.id.to_string()));
    world.stop().await;
}

#[tokio::test]
async fn the_command_line_speaks_to_a_real_control_plane() {
    let world = World::start().await;
    let host = world.host("web-1").await;
    let id = host.id.to_string();
    let bundle = world.directory.path().join("bundle.json");
    let bundle = bundle.to_str().unwrap();
    let cases: [(&[&str], Exit, &str); 18] = [
        (&["status"], Exit::Done, "epoch         1"),
        (&["whoami"], Exit::Done, "admin"),
        (&["credential", "list"], Exit::Done, "no credentials"),
        (&["credential", "show", "orders"], Exit::Missing, "does not exist"),
        (&["credential", "rotate", "orders"], Exit::Missing, "does not exist"),
        (&["credential", "rotate", "orders", "--watch"], Exit::Missing, "does not exist"),
        (&["why", "orders@1"], Exit::Missing, "does not exist"),
        (&["pending"], Exit::Done, "no older version waits"),
        (&["host", "show", "web-1"], Exit::Done, &id),
        (&["host", "label", "web-1", "role=web", "zone=a"], Exit::Done, "labelled"),
        (&["host", "label", "web-1", "zone-"], Exit::Done, "labelled"),
        (&["host", "list"], Exit::Done, "role=web\n"),
        (
            &["host", "enroll-token", "web-2", "--label", "a=b", "--out", bundle],
            Exit::Done,
            "eso-vm-applier enroll",
        ),
        (&["host", "enroll-token", "web-2", "--out", bundle], Exit::Failed, "failed to write the bundle"),
        (&["host", "enroll-token", "a b"], Exit::Usage, "cannot name a host"),
        (&["host", "label", "web-1", "a b=c"], Exit::Usage, "cannot name a host or a label"),
        (&["source", "refresh", "--all"], Exit::Done, "0 sources"),
        (
            &["holders", "clear", "orders", "web-1", "unit:x", "--reason", "gone"],
            Exit::Missing,
            "holders list",
        ),
    ];
    for (arguments, expected, said) in cases {
        let (exit, out, err) = esoctl(&world, arguments).await;
        assert_eq!(exit, expected, "{arguments:?}: {out}{err}");
        assert!(out.contains(said) || err.contains(said), "{arguments:?}: {out}{err}");
    }
    let read = protocol::enrol::Bundle::from_json(&std::fs::read(bundle).unwrap()).unwrap();
    assert_eq!(read.control_plane, world.ready.url);

    let (exit, out, _) = esoctl(&world, &["audit", "-o", "json"]).await;
    assert_eq!(exit, Exit::Done);
    let page: AuditPage = serde_json::from_str(&out).unwrap();
    let actions: Vec<_> = page.entries.iter().map(|entry| entry.action.as_str()).collect();
    for action in ["operator_add", "enroll_token", "enroll", "label_host"] {
        assert!(actions.contains(&action), "{actions:?}");
    }
    let (exit, out, _) = esoctl(&world, &["status", "-o", "yaml"]).await;
    assert_eq!(exit, Exit::Done);
    assert!(out.starts_with("installation: "), "{out}");

    let (exit, token, _) = esoctl(&world, &["operator", "add", "vera", "--role", "viewer"]).await;
    assert_eq!(exit, Exit::Done);
    let directory = world.directory.path().join("viewer");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("token"), token).unwrap();
    let text = format!(
        "server = {:?}\nca = {:?}\ntoken_file = \"token\"\n",
        world.ready.url,
        world.admin_file("ca.pem")
    );
    std::fs::write(directory.join("esoctl.toml"), text).unwrap();
    let config = directory.join("esoctl.toml");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for (arguments, expected) in [
        (vec!["whoami"], Exit::Done),
        (vec!["source", "refresh", "--all"], Exit::Forbidden),
        (vec!["status", "--server", "https://127.0.0.1:1"], Exit::Unreachable),
    ] {
        let mut streams = Streams { out: &mut out, err: &mut err, terminal: false };
        let fixed = ["esoctl", "--config", config.to_str().unwrap()];
        let exit = esoctl::run(fixed.into_iter().chain(arguments).map(Into::into), &mut streams).await;
        assert_eq!(exit, expected, "{}", String::from_utf8_lossy(&err));
    }
    world.stop().await;
}

/// More rows than one page of the API has.
#[tokio::test]
async fn the_audit_log_shows_the_newest_rows_in_the_order_of_time() {
    let directory = tempfile::tempdir().unwrap();
    init(&directory).await;
    let data = data(&directory);
    let store = store::Store::open(data.database(), data.read_key().unwrap()).await.unwrap();
    let long_ago = store::Audit { at_ms: 1, actor: "past".to_owned(), ..store::Audit::default() };
    for _ in 0..1001 {
        store.audit(long_ago.clone()).await.unwrap();
    }
    drop(store);
    let world = World::serve(directory).await;
    let host = world.host("web-1").await;
    let rows = async |arguments: &[&str]| {
        let arguments = [&["audit", "-o", "json"], arguments].concat();
        let (exit, out, err) = esoctl(&world, &arguments).await;
        assert_eq!(exit, Exit::Done, "{err}");
        let page: AuditPage = serde_json::from_str(&out).unwrap();
        page.entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>()
    };
    let all = rows(&[]).await;
    let newest = *all.last().unwrap();
    assert_eq!(all, (1..=newest).collect::<Vec<_>>());
    assert_eq!(rows(&["--limit", "3"]).await, [newest - 2, newest - 1, newest]);
    assert_eq!(rows(&["--limit", "1002"]).await, (newest - 1001..=newest).collect::<Vec<_>>());
    assert_eq!(rows(&["--after", "2", "--limit", "2"]).await, [3, 4]);
    let recent = rows(&["--since", "1h"]).await;
    assert_eq!((recent[0] > 1001, recent.last()), (true, Some(&newest)));
    let subject = format!("host/{}", host.id);
    assert_eq!(rows(&["--subject", &subject, "--limit", "1"]).await.len(), 1);
    let (_, out, _) = esoctl(&world, &["audit", "--limit", "9"]).await;
    assert!(out.contains("host/web-1") && !out.contains(&host.id.to_string()), "{out}");
    world.stop().await;
}

#[tokio::test]
async fn metrics_are_for_scrapers_and_parse() {
    let world = World::start().await;
    let (scraper, _) = world.operator(protocol::api::Role::Scraper).await;
    // Requests of every kind, with names that a caller made up.
    for path in ["/v1/status", "/v1/credentials/made-up", "/made/up", "/v1/made-up?made=up"] {
        world.admin().get(path).await;
        world.anybody().get(path).await;
    }
    assert_eq!(
        world.admin().request(reqwest::Method::PATCH, "/v1/status").send().await.unwrap().status(),
        405
    );
    let response = scraper.get("/metrics").await;
    assert_eq!(response.status(), 200);
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("eso_commits_total")), "{text}");
    assert_eq!(text.matches("# EOF").count(), 1);
    for line in [
        "eso_http_requests_total{method=\"GET\",route=\"/v1/status\",status=\"2xx\"} 1",
        "eso_http_requests_total{method=\"GET\",route=\"/v1/status\",status=\"4xx\"} 1",
        "eso_http_requests_total{method=\"GET\",route=\"/v1/credentials/{name}\",status=\"4xx\"} 2",
        "eso_http_requests_total{method=\"any\",route=\"none\",status=\"4xx\"} 5",
        "eso_http_request_seconds_count{method=\"GET\",route=\"/v1/status\"} 2",
        // This very one.
        "eso_http_requests_under_way 1",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    // Labels are routes of the table and nothing else.
    assert!(!text.contains("made"), "{text}");
    assert_eq!(world.anybody().get("/readyz").await.status(), 200);
    world.stop().await;
}

#[tokio::test]
async fn whoever_waits_for_a_change_is_answered_when_we_stop() {
    let world = World::start().await;
    let admin = world.admin();
    let now: Changes = admin.get("/v1/changes").await.json().await.unwrap();
    let path = format!("/v1/changes?after={}", now.commits);
    let (url, client) = (format!("{}{path}", admin.base), admin.client.clone());
    let waiting =
        tokio::spawn(async move { client.get(url).send().await.unwrap().json::<Changes>().await.unwrap() });
    // A second request on the same connection is answered after the first has reached its handler.
    assert_eq!(admin.get("/v1/whoami").await.status(), 200);
    world.stop().await;
    assert_eq!(waiting.await.unwrap(), now);
}

#[tokio::test]
async fn a_change_ends_the_waiting() {
    let world = World::start().await;
    let admin = world.admin();
    let now: Changes = admin.get("/v1/changes").await.json().await.unwrap();
    let path = format!("/v1/changes?after={}", now.commits);
    let waiting = tokio::spawn(async move { admin.get(&path).await.json::<Changes>().await.unwrap() });
    std::fs::write(world.directory.path().join("resources/orders.yaml"), include_str!("orders.yaml"))
        .unwrap();
    let then = tokio::time::timeout(world::SOON, waiting).await.unwrap().unwrap();
    assert!(then.commits > now.commits);
    let (exit, out, _) = esoctl(&world, &["credential", "show", "orders-db"]).await;
    assert_eq!(exit, Exit::Done);
    assert!(out.contains("orders-db"), "{out}");
    world.stop().await;
}
