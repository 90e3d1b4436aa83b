//! The whole control plane with real backends: a store path that versions are delivered to, a store that somebody
//! else rotates, and a role that was there before us. Operators speak through `esoctl`, somebody else through OpenBao's
//! own command line.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends at the first surprise"
)]

use std::time::{Duration, Instant};

use eso_control_plane::settings::{Data, Init, Serve};
use eso_control_plane::{Ready, ServeError};
use esoctl::{Exit, Streams};
use protocol::api::{
    AuditPage, Clause, CredentialDetail, CredentialPhase, CredentialSummary, Status, VersionPhase, Why,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_services::{OpenBao, PostgresKind, PostgresServer};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_mins(1);
const PATH: &str = "apps/orders";

/// A control plane in this process, and what it is told about.
struct World {
    directory: TempDir,
    url: String,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl World {
    /// With these resources: group, kind and `spec` of each.
    async fn start(resources: &[(&str, &str, Value)]) -> Self {
        transport::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let data = Data { data: directory.path().join("data"), key: None, key_credential: None };
        let init = Init {
            data: data.clone(),
            admin: "admin".into(),
            url: "https://localhost:1".into(),
            root_key: None,
        };
        eso_control_plane::init(&init).await.unwrap();
        for folder in ["resources", "secrets"] {
            std::fs::create_dir(directory.path().join(folder)).unwrap();
        }
        for (number, (group, kind, spec)) in resources.iter().enumerate() {
            let api = format!("{group}.external-secrets.io/v1alpha1");
            let name = if *group == "target" { "shelf" } else { "orders" };
            // JSON is YAML too.
            let text = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec});
            let file = directory.path().join(format!("resources/{number}.yaml"));
            std::fs::write(file, text.to_string()).unwrap();
        }
        let settings = Serve {
            data,
            resources: directory.path().join("resources"),
            secrets: directory.path().join("secrets"),
            listen: "127.0.0.1:0".parse().unwrap(),
            names: Vec::new(),
            url: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let ready = |ready: &Ready| tell.send(ready.clone()).unwrap();
            eso_control_plane::serve(&settings, ready, async { drop(stopped.await) }).await
        });
        let ready = tokio::time::timeout(PATIENCE, told).await.unwrap().expect("it serves");
        let url = format!("https://localhost:{}", ready.listen.port());
        Self { directory, url, stop: Some(stop), serving }
    }

    async fn esoctl(&self, arguments: &[&str]) -> (Exit, String) {
        let config = self.directory.path().join("data/admin/esoctl.toml");
        let fixed = ["esoctl", "--config", config.to_str().unwrap(), "--server", &self.url];
        let arguments: Vec<_> = fixed.iter().chain(arguments).map(Into::into).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut streams = Streams { out: &mut out, err: &mut err, terminal: false };
        let exit = tokio::time::timeout(PATIENCE, esoctl::run(arguments, &mut streams)).await.unwrap();
        out.extend(err);
        (exit, String::from_utf8(out).unwrap())
    }

    async fn does(&self, arguments: &[&str]) -> String {
        let (exit, said) = self.esoctl(arguments).await;
        assert_eq!(exit, Exit::Done, "{arguments:?}: {said}");
        said
    }

    async fn reads<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        serde_json::from_str(&self.does(&[arguments, &["-o", "json"]].concat()).await).unwrap()
    }

    async fn until<T: DeserializeOwned>(&self, what: &str, arguments: &[&str], is: impl Fn(&T) -> bool) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.reads::<T>(arguments).await;
            if is(&found) {
                return found;
            }
            if Instant::now() > deadline {
                let mut said = self.esoctl(&["status"]).await.1;
                said += &self.esoctl(&["credential", "show", "orders"]).await.1;
                said += &self.esoctl(&["pending"]).await.1;
                said += &self.esoctl(&["audit"]).await.1;
                panic!("waited in vain: {what}\n{said}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn until_current(&self, version: &str) -> CredentialDetail {
        self.until(
            &format!("{version} is current"),
            &["credential", "show", "orders"],
            |detail: &CredentialDetail| {
                detail.rollout.is_none()
                    && detail.summary.current.is_some_and(|current| current.to_string() == version)
            },
        )
        .await
    }

    async fn until_is(&self, version: &str, phase: VersionPhase) {
        self.until(
            &format!("{version} is {phase:?}"),
            &["credential", "show", "orders"],
            |detail: &CredentialDetail| {
                detail.versions.iter().any(|row| row.version.to_string() == version && row.phase == phase)
            },
        )
        .await;
    }

    /// Its resource goes, and then it is deleted.
    async fn delete(&self, file: u32) {
        std::fs::remove_file(self.directory.path().join(format!("resources/{file}.yaml"))).unwrap();
        let is_orphan =
            |all: &Vec<CredentialSummary>| all.iter().all(|row| row.phase == CredentialPhase::Orphaned);
        self.until("it is an orphan", &["credential", "list"], is_orphan).await;
        self.does(&["credential", "delete", "orders", "--reason", "not needed any more"]).await;
        self.until("it is gone", &["credential", "list"], Vec::<CredentialSummary>::is_empty).await;
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, &mut self.serving).await.unwrap().unwrap().unwrap();
    }
}

fn store_spec(bao: &OpenBao) -> Value {
    json!({
        "server": bao.url(), "path": PATH, "tls": {"caFile": bao.ca_file()},
        "auth": {"tokenSecretRef": {"file": bao.token_file()}},
    })
}

fn credential(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "policy": {
            "grace": "0s", "flipIn": "300ms", "startWait": "5s", "sampleEvery": "1s", "retryPauseMax": "1s",
            "attemptsMax": 3,
        },
    });
    change(&mut spec);
    spec
}

/// One revision as somebody else reads it; none where it cannot be read.
fn revision(bao: &OpenBao, number: u32, field: &str) -> Option<String> {
    revision_at(bao, PATH, number, field)
}

fn revision_at(bao: &OpenBao, path: &str, number: u32, field: &str) -> Option<String> {
    let (number, field) = (format!("-version={number}"), format!("-field={field}"));
    let read = bao.run(&["kv", "get", "-mount=secret", &number, &field, path]).ok()?;
    Some(read.trim().to_owned())
}

fn put(bao: &OpenBao, password: &str) {
    let password = format!("password={password}");
    bao.run(&["kv", "put", "-mount=secret", PATH, "username=a", &password]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minted_password_goes_to_a_store_path_and_the_old_one_is_destroyed_there() {
    let bao = OpenBao::start().unwrap();
    let spec = credential(|spec| {
        spec["generator"] = json!({"kind": "Password", "name": "orders"});
        spec["targets"] = json!({"stores": [{"kind": "VaultKv", "name": "shelf"}]});
    });
    let world = World::start(&[
        ("generators", "Password", json!({"length": 32})),
        ("target", "VaultKv", store_spec(&bao)),
        ("eso", "Credential", spec),
    ])
    .await;
    world.until_current("1").await;
    let first = revision(&bao, 1, "password").unwrap();
    assert_eq!(first.chars().count(), 32);

    // While a version is held its revision stays, whatever is current.
    world.does(&["credential", "hold", "orders@1", "--reason", "a look at both"]).await;
    world.does(&["credential", "rotate", "orders", "--watch"]).await;
    let second = revision(&bao, 2, "password").unwrap();
    assert_ne!(first, second);
    world
        .until::<Why>("only the hold is in the way", &["why", "orders@1"], |why| {
            // The last look is taken once all else holds.
            why.blockers.iter().all(|blocker| matches!(blocker.clause, Clause::NoHold | Clause::Fresh))
        })
        .await;
    assert_eq!(revision(&bao, 1, "password"), Some(first));
    world.does(&["credential", "unhold", "orders@1"]).await;
    world.until_is("1", VersionPhase::Erased).await;
    assert_eq!(revision(&bao, 1, "password"), None, "destroyed in the store");
    assert_eq!(revision(&bao, 2, "password"), Some(second));

    // Who writes the store himself is not overwritten; our mark says whose each revision is.
    let metadata = bao.run(&["kv", "metadata", "get", "-mount=secret", "-format=json", PATH]).unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["data"]["custom_metadata"]["eso-revision"], "2");
    assert_eq!(metadata["data"]["versions"]["1"]["destroyed"], true);

    world.delete(2).await;
    assert_eq!(revision(&bao, 2, "password"), None, "withdrawn");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_rotates_is_destroyed_once_it_is_replaced_and_never_while_it_is_current() {
    let bao = OpenBao::start().unwrap();
    put(&bao, "the-first");
    let mut source = store_spec(&bao);
    source["pollSeconds"] = json!(1);
    source["retiring"] = json!("destroy-version");
    let copy = "apps/copy";
    let mut target = store_spec(&bao);
    target["path"] = json!(copy);
    let spec = credential(|spec| {
        spec["source"] = json!({"kind": "VaultKv", "name": "orders"});
        spec["targets"] = json!({"stores": [{"kind": "VaultKv", "name": "shelf"}]});
    });
    let world = World::start(&[
        ("sources", "VaultKv", source),
        ("target", "VaultKv", target),
        ("eso", "Credential", spec),
    ])
    .await;
    world.until_current("1").await;
    assert_eq!(revision_at(&bao, copy, 1, "password").as_deref(), Some("the-first"));
    put(&bao, "the-second");
    world.does(&["source", "refresh", "orders"]).await;
    world.until_current("2").await;
    world.until_is("1", VersionPhase::Erased).await;
    assert_eq!(revision(&bao, 1, "password"), None, "destroyed at the source");
    assert_eq!(revision_at(&bao, copy, 1, "password"), None, "destroyed where it was delivered");
    assert_eq!(revision_at(&bao, copy, 2, "password").as_deref(), Some("the-second"));

    // Deleted here, it is withdrawn where it was delivered, and still its owner's at the source.
    world.delete(2).await;
    assert_eq!(revision_at(&bao, copy, 2, "password"), None, "withdrawn");
    assert_eq!(revision(&bao, 2, "password").as_deref(), Some("the-second"));
    let audit = world.reads::<AuditPage>(&["audit", "--subject", "credential/orders"]).await;
    let left: Vec<_> = audit.entries.iter().filter(|row| row.action == "left").collect();
    assert_eq!(left.len(), 1, "{:?}", audit.entries);
    assert!(left[0].detail.contains("revision 2") && left[0].detail.contains(PATH), "{}", left[0].detail);
    let status = world.reads::<Status>(&["status"]).await;
    assert!(status.stuck.is_empty(), "{:?}", status.stuck);
    world.stop().await;
}

/// A misspelled key of a source is a fault of its resource, with the key that was meant and its line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelled_key_of_a_source_is_named_with_the_nearest_one() {
    let bao = OpenBao::start().unwrap();
    let mut source = store_spec(&bao);
    source["retirng"] = json!("destroy-version");
    let spec = credential(|spec| spec["source"] = json!({"kind": "VaultKv", "name": "orders"}));
    let world = World::start(&[("sources", "VaultKv", source), ("eso", "Credential", spec)]).await;
    world
        .until::<Status>("it is said", &["status"], |status| {
            status.resource_faults.iter().any(|fault| {
                fault.message.contains("`retirng`") && fault.message.contains("did you mean `retiring`?")
            })
        })
        .await;
    world.stop().await;
}

mod a_role_that_was_there_before {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn is_replaced_and_dropped_on_the_installed_server() {
        is_replaced_and_dropped(PostgresKind::Installed).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn is_replaced_and_dropped_on_the_embedded_server() {
        is_replaced_and_dropped(PostgresKind::Embedded).await;
    }

    /// The application's login before we came: made by an administrator, with tables of its own and a session.
    async fn is_replaced_and_dropped(kind: PostgresKind) {
        let (server, bao) = (PostgresServer::start(kind).unwrap(), OpenBao::start().unwrap());
        let minting = server.prepare("minter", "orders_owner").await.unwrap();
        let secrets = tempfile::tempdir().unwrap();
        let (minter, old) = (secrets.path().join("minter"), secrets.path().join("old"));
        std::fs::write(&minter, &minting.password).unwrap();
        let admin = server.administrator(&minting.database).await.unwrap();
        let legacy = "CREATE ROLE legacy LOGIN PASSWORD 'of-old'; GRANT orders_owner TO legacy";
        admin.batch_execute(legacy).await.unwrap();
        let session = server.session("legacy", "of-old", &minting.database).await.unwrap();
        session.batch_execute("CREATE TABLE old_orders (id int)").await.unwrap();

        let spec = credential(|spec| {
            spec["generator"] = json!({"kind": "PostgreSql", "name": "orders"});
            spec["first"] = json!("import");
            spec["targets"] = json!({"stores": [{"kind": "VaultKv", "name": "shelf"}]});
        });
        let world = World::start(&[
            ("generators", "PostgreSql", server.generator_spec(&minting, "orders", &minter)),
            ("target", "VaultKv", store_spec(&bao)),
            ("eso", "Credential", spec),
        ])
        .await;
        std::fs::write(&old, "legacy").unwrap();
        let username = format!("username={}", old.display());
        let password = secrets.path().join("old-password");
        std::fs::write(&password, "of-old").unwrap();
        let password = format!("password={}", password.display());
        world.does(&["credential", "import", "orders", "--field", &username, "--field", &password]).await;
        world.until_current("0").await;
        assert_eq!(revision(&bao, 1, "username").as_deref(), Some("legacy"));

        let rotate = ["credential", "rotate", "orders", "--watch"];
        if server.version() >= 16 {
            // Nothing is minted before it is known that what it replaces can be revoked.
            let (exit, said) = world.esoctl(&rotate).await;
            assert_eq!(exit, Exit::Stopped, "{said}");
            let said = said.lines().find(|line| line.contains("run as an administrator: ")).unwrap();
            let (_, statements) = said.split_once("run as an administrator: ").unwrap();
            let statements = &statements[..=statements.rfind("ADMIN OPTION;").unwrap() + 12];
            admin.batch_execute(statements).await.unwrap();
        }
        world.does(&rotate).await;
        world.until_current("1").await;
        let username = revision(&bao, 2, "username").unwrap();
        assert!(username.starts_with("orders_"), "{username}");

        // Held until somebody says that the list of its targets is complete; then its session keeps it.
        world.does(&["credential", "unhold", "orders@0"]).await;
        world
            .until::<Why>("its session keeps it", &["why", "orders@0"], |why| {
                why.blockers.iter().any(|blocker| blocker.clause == Clause::BackendQuiet)
            })
            .await;
        session.batch_execute("INSERT INTO old_orders VALUES (1)").await.unwrap();
        drop(session);
        world.until_is("0", VersionPhase::Retired).await;
        assert!(server.session("legacy", "of-old", &minting.database).await.is_err());
        let left =
            admin.query_one("SELECT count(*) FROM pg_roles WHERE rolname = 'legacy'", &[]).await.unwrap();
        assert_eq!(left.get::<_, i64>(0), 0, "the role is dropped");
        assert_eq!(revision(&bao, 1, "password"), None, "destroyed in the store");
        // What it had belongs to the owner, and the version that replaced it works with it.
        let password = revision(&bao, 2, "password").unwrap();
        let session = server.session(&username, &password, &minting.database).await.unwrap();
        session.batch_execute("ALTER TABLE old_orders ADD n int").await.unwrap();
        world.stop().await;
    }
}
