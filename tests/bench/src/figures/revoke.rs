//! How soon a version is revoked once its last holder has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post, put};
use lifecycle::Version;
use protocol::api::{Clause, CredentialSummary, EnrolToken, VersionPhase, Why};
use tests_fleet::ControlPlane;
use tokio::runtime::Runtime;

use crate::bare::exchange::BareServer;
use crate::desk::SET;
use crate::figure::{Aim, Figure};
use crate::figures::Scale;
use crate::figures::pair::runtime;
use crate::host::{Host, free_port};
use crate::process::{self, Running};
use crate::samples::{Samples, progress};

/// How long anything may take at most.
const PATIENCE: Duration = Duration::from_mins(1);
/// The exchanges that no one can save: the host's report, the seal, the last question, the revocation.
const EXCHANGES: usize = 4;

/// Measures it.
pub fn measure(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let rounds = scale.of(50, 2);
    let runtime = runtime()?;
    let mut scene = Scene::start(&runtime)?;
    let bare = BareServer::start()?;
    let mut open = runtime.block_on(bare.connect())?;
    let (mut times, mut floor) = (Samples::default(), Samples::default());
    let bar = progress("revoke", rounds);
    for round in 0..=rounds {
        let time = scene.rotate()?;
        let least = runtime.block_on(async {
            let began = Instant::now();
            for _ in 0..EXCHANGES {
                open.exchange(vec![b'x'; 2048].into(), 4096).await?;
            }
            anyhow::Ok(began.elapsed())
        })?;
        // The first rotation warms everything up.
        if round > 0 {
            times.push(time);
            floor.push(least);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let words = format!(
        "from the kill of the last process that started with a version to the request that revokes it, grace and tail zero: control plane, both host programs and a webhook backend, {rounds} rotations; against the {EXCHANGES} bare exchanges that lie between"
    );
    Ok(vec![
        Figure::new("last holder's end to revoke, p99", times.p99_ms(), "ms", Some(floor.p99_ms()))
            .aim(Aim::Value(1000.0))
            .meaning(words),
        Figure::new("  median", times.median_ms(), "ms", Some(floor.median_ms())),
    ])
}

/// A control plane, a backend, one host and its application.
struct Scene {
    control: ControlPlane,
    _daemons: [Running; 2],
    host: Host,
    application: Running,
    revoked: Receiver<Instant>,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn start(runtime: &Runtime) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("eso-bench-").tempdir()?;
        let (backend, revoked) = runtime.block_on(backend())?;
        let program = process::path("eso-control-plane")?;
        let mut control = ControlPlane::init(&program, directory.path(), runtime.handle())?;
        control.start()?;

        let port = free_port()?;
        let daemon = format!(
            "listen = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\nevidence = \"declared\"\n"
        );
        let sleep = std::fs::canonicalize("/bin/sleep").context("the application is `sleep`")?;
        let host = Host::new(&daemon, SET, "")?;
        let policy = format!(
            "[set.{SET}]\n\n[[set.{SET}.consumers]]\nname = \"app\"\npidfile = \"{}\"\nexe = \"{}\"\nadopt = \"manual\"\nsettle_ms = 0\nstart_ms = 60000\n",
            pid_file(&host).display(),
            sleep.display()
        );
        std::fs::write(host.root().join("config/conf.d/set.toml"), policy)?;
        let token = EnrolToken {
            name: "bench".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), SET.to_owned())]),
            life_ms: None,
        };
        let bundle = runtime.block_on(control.api().bundle(&token))?;
        host.enrol(&bundle)?;
        let daemons = [host.start("eso-vm-server")?, host.start("eso-vm-applier")?];
        control.until_connected(1, PATIENCE)?;
        control.write_resource("bench.yaml", &resource(&backend))?;
        let first = Version::new(1, 1);
        control.until(PATIENCE, "the first version is active", |control| {
            let summary = summary(control)?;
            Ok(summary.current == Some(first) && summary.rolling.is_none())
        })?;
        // From now on there is somebody who uses it.
        let application = start_application(&host, &sleep)?;
        let scene = Self { control, _daemons: daemons, host, application, revoked, _directory: directory };
        Ok(scene)
    }

    /// A rotation whose old version is kept alive by one process, which then ends. Gives the time from its end to the
    /// revocation.
    fn rotate(&mut self) -> anyhow::Result<Duration> {
        let before = summary(&self.control)?.current.context("there is a version")?;
        let next = Version::new(before.epoch, before.number + 1);
        self.control.rotate(SET)?;
        self.until_current(next)?;
        self.until_awaited(before)?;
        // The new one runs beside the old one, which drains.
        let sleep = std::fs::canonicalize("/bin/sleep")?;
        let started = start_application(&self.host, &sleep)?;
        let mut old = std::mem::replace(&mut self.application, started);
        self.until_adopted(next)?;
        self.until_only_held(before)?;
        let began = Instant::now();
        old.kill();
        let path = format!("/v1/credentials/{SET}/versions/{before}/why");
        let Ok(revoked) = self.revoked.recv_timeout(PATIENCE) else {
            bail!("{before} is not revoked: {:?}", self.control.get::<Why>(&path)?);
        };
        self.control.until(PATIENCE, "the old version is retired", |control| {
            Ok(control.get::<Why>(&path)?.phase == VersionPhase::Retired)
        })?;
        Ok(revoked.duration_since(began))
    }

    /// Readers on the host find this version.
    fn until_current(&self, wanted: Version) -> anyhow::Result<()> {
        let name = format!("v{}.{}", wanted.epoch, wanted.number);
        let deadline = Instant::now() + PATIENCE;
        while std::fs::read_link(self.host.set_dir().join("..data")).ok() != Some(PathBuf::from(&name)) {
            if Instant::now() > deadline {
                bail!("{wanted} does not become current: {:?}", self.control.credential(SET)?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn until_adopted(&self, wanted: Version) -> anyhow::Result<()> {
        self.control.until(PATIENCE, &format!("{wanted} is adopted"), |control| is_adopted(control, wanted))
    }

    /// The host has seen who runs on the old version, and waits for a new start.
    fn until_awaited(&self, before: Version) -> anyhow::Result<()> {
        let path = format!("/v1/credentials/{SET}/versions/{before}/why");
        self.control.until(PATIENCE, "the host waits for a new start", |control| {
            let why: Why = control.get(&path)?;
            let mut words = why.blockers.iter().filter_map(|blocker| blocker.detail.as_deref());
            if words.any(|detail| detail.contains("its next start")) {
                return Ok(true);
            }
            bail!("instead: {why:?}")
        })
    }

    /// Nothing but its holder keeps a version alive.
    fn until_only_held(&self, version: Version) -> anyhow::Result<()> {
        let path = format!("/v1/credentials/{SET}/versions/{version}/why");
        self.control.until(PATIENCE, "only a holder keeps the old version alive", |control| {
            let why: Why = control.get(&path)?;
            if why.blockers.is_empty() {
                bail!("nothing keeps {version} alive, which is {:?}", why.phase);
            }
            // What waits for the holder's end and for a look after it follows by itself.
            let follows = |clause| matches!(clause, Clause::NoHolder | Clause::Grace | Clause::Fresh);
            if why.blockers.iter().any(|blocker| !follows(blocker.clause)) {
                bail!("instead: {why:?}");
            }
            Ok(why.blockers.iter().any(|blocker| blocker.clause == Clause::NoHolder))
        })
    }
}

fn summary(control: &ControlPlane) -> anyhow::Result<CredentialSummary> {
    let all: Vec<CredentialSummary> = control.get("/v1/credentials")?;
    all.into_iter().find(|one| one.name.as_str() == SET).context("the credential is not there")
}

fn is_adopted(control: &ControlPlane, wanted: Version) -> anyhow::Result<bool> {
    let summary = summary(control)?;
    Ok(summary.current == Some(wanted) && summary.rolling.is_none() && summary.adopted == 1)
}

fn pid_file(host: &Host) -> PathBuf {
    host.root().join("app.pid")
}

fn start_application(host: &Host, program: &FilePath) -> anyhow::Result<Running> {
    let child = Command::new(program).arg("100000").stdin(Stdio::null()).spawn()?;
    let running = Running::of(child);
    let new = host.root().join("app.pid.new");
    std::fs::write(&new, format!("{}\n", running.id()))?;
    std::fs::rename(new, pid_file(host))?;
    Ok(running)
}

/// A backend that accepts everything and says when something was revoked.
async fn backend() -> anyhow::Result<(String, Receiver<Instant>)> {
    let (tell, told) = channel();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let done = || async { axum::Json(serde_json::json!({})) };
    let router = Router::new()
        .route("/preflight", post(done))
        .route("/credentials", get(list))
        .route("/credentials/{effect}", put(mint).delete(revoke))
        .route("/credentials/{effect}/verify", post(verify))
        .route(
            "/credentials/{effect}/sessions",
            get(|| async { axum::Json(serde_json::json!({"sessions": null})) }).delete(done),
        )
        .with_state(Arc::new(Backend { tell, minted: Mutex::default(), revoked: Mutex::default() }));
    tokio::spawn(async move {
        // It ends with the runtime only.
        let _ = axum::serve(listener, router).await;
    });
    Ok((url, told))
}

struct Backend {
    tell: Sender<Instant>,
    /// The mark of each effect.
    minted: Mutex<BTreeMap<String, String>>,
    revoked: Mutex<BTreeSet<String>>,
}

async fn mint(
    State(backend): State<Arc<Backend>>,
    Path(effect): Path<String>,
    axum::Json(body): axum::Json<serde_json::Value>,
) -> axum::Json<serde_json::Value> {
    if let (Some(mark), Ok(mut minted)) = (body["mark"].as_str(), backend.minted.lock()) {
        minted.insert(effect, mark.to_owned());
    }
    axum::Json(serde_json::json!({}))
}

/// What is not revoked, whatever was asked for: the other end looks for its own.
async fn list(State(backend): State<Arc<Backend>>) -> axum::Json<serde_json::Value> {
    let revoked = backend.revoked.lock().map(|revoked| revoked.clone()).unwrap_or_default();
    let minted = backend.minted.lock().map(|minted| minted.clone()).unwrap_or_default();
    let alive = minted.into_iter().filter(|(effect, _)| !revoked.contains(effect));
    let alive = alive.map(|(effect, mark)| serde_json::json!({ "mark": mark, "name": effect }));
    axum::Json(serde_json::json!({ "credentials": alive.collect::<Vec<_>>() }))
}

async fn revoke(
    State(backend): State<Arc<Backend>>,
    Path(effect): Path<String>,
) -> axum::Json<serde_json::Value> {
    let now = Instant::now();
    if backend.revoked.lock().is_ok_and(|mut revoked| revoked.insert(effect)) {
        // Nobody waits for it when the measurement has ended.
        let _ = backend.tell.send(now);
    }
    axum::Json(serde_json::json!({}))
}

async fn verify(
    State(backend): State<Arc<Backend>>,
    Path(effect): Path<String>,
) -> axum::Json<serde_json::Value> {
    let accepted = backend.revoked.lock().is_ok_and(|revoked| !revoked.contains(&effect));
    axum::Json(serde_json::json!({ "accepted": accepted }))
}

fn resource(backend: &str) -> String {
    format!(
        "apiVersion: generators.external-secrets.io/v1alpha1
kind: Webhook
metadata: {{name: bench}}
spec: {{url: \"{backend}\", tls: disable}}
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {{name: {SET}}}
spec:
  generator: {{kind: Webhook, name: bench}}
  targets:
    hosts:
      matchLabels: {{app: {SET}}}
  policy:
    flipIn: 100ms
    grace: 0s
    tail: 0s
    idle: adopt
"
    )
}
