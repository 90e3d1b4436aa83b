//! What an operator does, by `esoctl` alone, on a real control plane with real hosts; and that nothing of it shows a
//! value: no log, answer, metric, audit row, database page or core dump.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{BufRead as _, BufReader, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use esoctl::{Exit, Streams};
use protocol::api::{
    AuditPage, BackedUp, Blocker, CredentialDetail, CredentialSummary, HolderView, HostDetail, HostSummary,
    OperatorIssued, OperatorView, PendingVersion, RolloutPhase, RolloutView, Status, VersionPhase, Whoami,
    Why,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tests_canary::Canaries;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(90);
const IMPORTED: &str = "it-was/there+before us \"0f3a\\9d\"";

const RESOURCE: &str = "
apiVersion: generators.external-secrets.io/v1alpha1
kind: Password
metadata: { name: orders }
spec: { length: 32 }
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: { name: orders-db }
spec:
  generator: { kind: Password, name: orders }
  first: import
  targets:
    hosts:
      matchLabels: { app: orders }
  policy: { grace: 0s, flipIn: 300ms, startWait: 5s, barrier: 60s, sampleEvery: 1s, retryPauseMax: 2s, wave: 10 }
";

/// Something of ours that runs, and is gone when the test is.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(mut command: Command, log: &Path) -> Self {
        let (out, err) = (File::create(log).unwrap(), File::create(log.with_extension("err")).unwrap());
        command.stdin(Stdio::null()).stdout(out).stderr(err).env_remove("NOTIFY_SOCKET");
        Self { child: command.spawn().unwrap(), log: log.to_owned() }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn output(&self) -> String {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        read(&self.log) + &read(&self.log.with_extension("err"))
    }

    async fn says(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.output().contains(words) {
            assert!(Instant::now() < deadline, "{words:?} is not said:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command says, to be read while it runs.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A command that goes on looking until the test is over.
struct Watching {
    said: Said,
    task: JoinHandle<Exit>,
}

impl Watching {
    fn text(&self) -> String {
        String::from_utf8(self.said.0.lock().unwrap().clone()).unwrap()
    }

    async fn says(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(words) {
            assert!(!self.task.is_finished(), "it ended: {}", self.text());
            assert!(Instant::now() < deadline, "{words:?} is not said:\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One of the programs of this build. All of them are built by `cargo xtask test`, and by `cargo build --workspace`.
fn program(name: &str) -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_eso-control-plane")).with_file_name(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    let mut command = Command::new(path);
    command.env("ESO_LOG", "debug");
    command
}

/// A host with its two daemons and one application that keeps what it read.
struct Host {
    root: PathBuf,
    daemons: Vec<Running>,
    /// It ends with the host.
    application: Running,
}

impl Host {
    async fn enrol(world: &mut World, name: &str, kind: &str) -> Self {
        let root = world.root.join(name);
        for folder in ["config/conf.d", "place", "logs"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let application = Self::application(&root);
        std::fs::write(root.join("place/password"), IMPORTED).unwrap();
        let here = root.display();
        let daemon = format!(
            "[daemon]\nstate_dir = \"{here}/state\"\nrun_dir = \"{here}/run\"\nlisten = \"127.0.0.1:0\"\n\
             supervisor = \"none\"\nmount = \"directory\"\nevidence = \"declared\"\nreport_ms = 1000\n"
        );
        std::fs::write(root.join("config/config.toml"), daemon).unwrap();
        let (sleep, user) = (program_of("sleep"), said_by("id", "-un"));
        let set = format!(
            "[set.orders-db]\nplaces = [{{ path = \"{here}/place/password\", file = \"password\", kind = \"{kind}\" }}]\n\
             [[set.orders-db.consumers]]\nname = \"application\"\npidfile = \"{here}/pid\"\nexe = \"{sleep}\"\n\
             user = \"{user}\"\nadopt = \"reopen\"\nsettle_ms = 100\n"
        );
        std::fs::write(root.join("config/conf.d/orders-db.toml"), set).unwrap();
        let bundle = root.join("bundle.json");
        let bundle = bundle.to_str().unwrap();
        world.does(&["host", "enroll-token", name, "--label", "app=orders", "--out", bundle]).await;
        let text: Value = serde_json::from_slice(&std::fs::read(bundle).unwrap()).unwrap();
        for secret in ["network_secret", "applier_secret"] {
            world.secret(&format!("{secret} of {name}"), text[secret].as_str().unwrap());
        }
        let mut enrol = program("eso-vm-applier");
        enrol.arg("--config").arg(root.join("config")).args(["enroll", "--bundle", bundle]);
        let enrolled = enrol.output().unwrap();
        assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        std::fs::remove_file(bundle).unwrap();
        let daemons = ["eso-vm-server", "eso-vm-applier"].map(|daemon| {
            let mut command = program(daemon);
            command.arg("--config").arg(root.join("config"));
            Running::start(command, &root.join("logs").join(daemon))
        });
        Self { root, daemons: daemons.into(), application }
    }

    fn application(root: &Path) -> Running {
        let mut sleep = Command::new("sleep");
        sleep.arg("3600").process_group(0);
        let application = Running::start(sleep, &root.join("logs/application"));
        std::fs::write(root.join("pid"), application.child.id().to_string()).unwrap();
        application
    }

    fn stop_application(&mut self) {
        self.application.child.kill().unwrap();
        self.application.child.wait().unwrap();
    }

    /// A new life of the application, which has nothing of the one before.
    fn restart_application(&mut self) {
        self.application = Self::application(&self.root);
    }

    fn signal(&self, signal: Signal) {
        self.daemons.iter().for_each(|daemon| daemon.signal(signal));
    }

    fn password(&self) -> String {
        std::fs::read_to_string(self.root.join("place/password")).unwrap()
    }
}

fn program_of(name: &str) -> String {
    let found = std::env::var_os("PATH").unwrap();
    let mut found = std::env::split_paths(&found).map(|folder| folder.join(name));
    found.find_map(|path| path.canonicalize().ok()).unwrap().display().to_string()
}

fn said_by(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn is_ended(phase: VersionPhase) -> bool {
    matches!(phase, VersionPhase::Erased | VersionPhase::Retired)
}

struct World {
    _directory: tempfile::TempDir,
    root: PathBuf,
    control: Running,
    url: String,
    secrets: BTreeMap<String, String>,
    /// Everything that `esoctl` and the API ever said, but for what they are there to hand out.
    transcript: String,
}

impl World {
    async fn start() -> Self {
        transport::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        for folder in ["resources", "secrets", "logs"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("resources/orders.yaml"), RESOURCE).unwrap();
        let mut init = program("eso-control-plane");
        let made = init.arg("init").arg("--data").arg(root.join("data")).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut serve = program("eso-control-plane");
        serve.current_dir(&root).args(["serve", "--listen", "127.0.0.1:0", "--name", "localhost"]);
        serve.arg("--data").arg(root.join("data")).arg("--resources").arg(root.join("resources"));
        serve.arg("--secrets").arg(root.join("secrets"));
        let control = Running::start(serve, &root.join("logs/control-plane"));
        control.says("ready listen=").await;
        let said = control.output();
        let url = said.split("url=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        Self {
            _directory: directory,
            root,
            control,
            url,
            secrets: BTreeMap::new(),
            transcript: String::new(),
        }
    }

    fn secret(&mut self, name: &str, value: &str) {
        self.secrets.insert(name.to_owned(), value.to_owned());
    }

    fn arguments(&self, config: &Path, arguments: &[&str]) -> Vec<OsString> {
        let fixed = ["esoctl", "--config", config.to_str().unwrap(), "--server", &self.url];
        fixed.iter().chain(arguments).map(Into::into).collect()
    }

    fn calls(&self, arguments: &[&str]) -> JoinHandle<(Exit, String, String)> {
        self.calls_as(&self.root.join("data/admin/esoctl.toml"), arguments)
    }

    /// The same with another configuration.
    fn calls_as(&self, config: &Path, arguments: &[&str]) -> JoinHandle<(Exit, String, String)> {
        let arguments = self.arguments(config, arguments);
        tokio::spawn(async move {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut streams = Streams { out: &mut out, err: &mut err, terminal: false };
            let exit = esoctl::run(arguments, &mut streams).await;
            (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        })
    }

    /// A command that ends never by itself.
    fn watches(&self, arguments: &[&str]) -> Watching {
        let arguments = self.arguments(&self.root.join("data/admin/esoctl.toml"), arguments);
        let said = Said::default();
        let (mut out, mut err) = (said.clone(), said.clone());
        let task = tokio::spawn(async move {
            let mut streams = Streams { out: &mut out, err: &mut err, terminal: false };
            esoctl::run(arguments, &mut streams).await
        });
        Watching { said, task }
    }

    async fn ends(&mut self, call: JoinHandle<(Exit, String, String)>) -> (Exit, String) {
        let (exit, out, err) = tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap();
        self.transcript += &out;
        self.transcript += &err;
        (exit, out + &err)
    }

    async fn esoctl(&mut self, arguments: &[&str]) -> (Exit, String) {
        let call = self.calls(arguments);
        self.ends(call).await
    }

    /// A command that has to do what it says; what it said.
    async fn does(&mut self, arguments: &[&str]) -> String {
        let (exit, said) = self.esoctl(arguments).await;
        assert_eq!(exit, Exit::Done, "{arguments:?}: {said}");
        said
    }

    /// A command that has to end so, with these words.
    async fn refuses(&mut self, arguments: &[&str], expected: Exit, words: &str) {
        let (exit, said) = self.esoctl(arguments).await;
        assert_eq!(exit, expected, "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {words:?} is not in {said:?}");
    }

    /// What a listing says, by each of its formats.
    async fn reads<T: DeserializeOwned>(&mut self, arguments: &[&str]) -> T {
        let json = self.does(&[arguments, &["-o", "json"]].concat()).await;
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {json}"))
    }

    async fn until<T: DeserializeOwned>(
        &mut self,
        what: &str,
        arguments: &[&str],
        is: impl Fn(&T) -> bool,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.reads::<T>(arguments).await;
            if is(&found) {
                return found;
            }
            if Instant::now() >= deadline {
                let mut status = self.esoctl(&["credential", "show", "orders-db"]).await.1;
                status += &self.esoctl(&["pending"]).await.1;
                panic!("waited in vain: {what}\n{status}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn until_current(&mut self, version: &str) {
        let what = format!("{version} is everywhere");
        self.until::<CredentialDetail>(&what, &["credential", "show", "orders-db"], |detail| {
            detail.rollout.is_none()
                && detail.summary.current.is_some_and(|current| current.to_string() == version)
        })
        .await;
    }

    async fn until_ended(&mut self, version: &str) {
        let what = format!("{version} has ended");
        self.until::<CredentialDetail>(&what, &["credential", "show", "orders-db"], |detail| {
            let mut versions = detail.versions.iter();
            versions.any(|row| row.version.to_string() == version && is_ended(row.phase))
        })
        .await;
    }

    /// All forms of one listing say the same.
    async fn agree(&mut self, arguments: &[&str]) {
        let table = self.does(arguments).await;
        assert!(!table.trim().is_empty(), "{arguments:?}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before: Value = self.reads(arguments).await;
            let yaml = self.does(&[arguments, &["-o", "yaml"]].concat()).await;
            let after: Value = self.reads(arguments).await;
            // Hosts report meanwhile: only what stood still can be compared.
            if before == after {
                let yaml: Value = serde_yaml_ng::from_str(&yaml).unwrap();
                assert_eq!(yaml, before, "{arguments:?}");
                return;
            }
            assert!(Instant::now() < deadline, "{arguments:?} never stands still");
        }
    }

    fn client(&self) -> reqwest::Client {
        let read = |name| std::fs::read_to_string(self.root.join("data/admin").join(name)).unwrap();
        let identity = transport::TlsIdentity::from_pem(&read("cert.pem"), &read("key.pem")).unwrap();
        self.client_as(Some(&identity))
    }

    fn client_as(&self, identity: Option<&transport::TlsIdentity>) -> reqwest::Client {
        let ca = std::fs::read_to_string(self.root.join("data/admin/ca.pem")).unwrap();
        let trust = transport::Trust::from_pem(&ca).unwrap();
        let config = transport::client_config(identity, &trust, transport::Names::Checked).unwrap();
        transport::http_client(config).timeout(PATIENCE).build().unwrap()
    }

    /// What every route that changes nothing answers, and `/metrics`.
    async fn answers(&mut self, host: &str) -> String {
        let mut all = String::new();
        let client = self.client();
        for route in eso_control_plane::table::table() {
            if route.method != http::Method::GET || route.path.contains("changes") || route.path == "/metrics"
            {
                continue;
            }
            let path =
                route.path.replace("{name}", "orders-db").replace("{version}", "1").replace("{host}", host);
            let response = client.get(format!("{}{path}", self.url)).send().await.unwrap();
            assert!(response.status().is_success(), "{path}: {}", response.status());
            all += &response.text().await.unwrap();
        }
        let issued = self.calls(&["operator", "add", "prometheus", "--role", "scraper", "-o", "json"]);
        // This is where its token is handed out.
        let (_, issued, _) = issued.await.unwrap();
        let issued: OperatorIssued = serde_json::from_str(&issued).unwrap();
        let token = issued.token.unwrap();
        self.secret("the scraper's token", &token);
        let scraper = self.client_as(None).get(format!("{}/metrics", self.url)).bearer_auth(&token);
        let metrics = scraper.send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("eso_http_requests_total{method=\"POST\""), "{metrics}");
        all + &metrics
    }
}

const REASON: [&str; 2] = ["--reason", "we looked at it"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_does_it_all_by_the_command_line_and_nothing_shows_a_value() {
    let mut world = World::start().await;
    world.secret("the imported value", IMPORTED);
    let mut one = Host::enrol(&mut world, "web-1", "link").await;
    let two = Host::enrol(&mut world, "web-2", "link").await;
    world
        .until::<Vec<HostSummary>>("both are there", &["host", "list"], |hosts| {
            hosts.len() == 2 && hosts.iter().all(|host| host.reported_at.is_some())
        })
        .await;
    what_was_there_is_imported_and_replaced(&mut world, &one, &two).await;
    who_is_left_is_answered_for(&mut world, &two).await;
    a_version_is_held_and_then_forced(&mut world, &one).await;
    a_rollout_that_cannot_end_is_stopped(&mut world, &one, &two).await;
    let answers = a_host_and_a_credential_end(&mut world, &mut one).await;
    no_value_is_anywhere(world, &mut [one, two], &answers);
}

async fn what_was_there_is_imported_and_replaced(world: &mut World, one: &Host, two: &Host) {
    let file = world.root.join("old-password");
    std::fs::write(&file, IMPORTED).unwrap();
    let field = format!("password={}", file.display());
    world
        .refuses(&["credential", "import", "orders", "--field", &field], Exit::Missing, "does not exist")
        .await;
    world.does(&["credential", "import", "orders-db", "--field", &field]).await;
    world.refuses(&["credential", "import", "orders-db", "--field", &field], Exit::Refused, "import").await;
    world.until_current("0").await;
    assert_eq!(one.password(), IMPORTED);
    let said = world.does(&["credential", "rotate", "orders-db", "--dry-run"]).await;
    assert!(said.contains("accepted"), "{said}");
    world.does(&["credential", "rotate", "orders-db", "--watch", "--timeout", "80s"]).await;
    world.until_current("1").await;
    assert_ne!(one.password(), IMPORTED);
    assert_eq!(one.password(), two.password());
    world.secret("version 1", &one.password());
}

async fn who_is_left_is_answered_for(world: &mut World, two: &Host) {
    let [first, second] = ["web-1", "web-2"];
    // It is held because it was imported, and then because two applications still have it.
    let why = world.reads::<Why>(&["why", "orders-db@0"]).await;
    for (verb, more) in [("hold", &REASON[..]), ("unhold", &[])] {
        let arguments = [&["credential", verb, "orders-db@1234"], more].concat();
        world.refuses(&arguments, Exit::Missing, "(unknown_version)").await;
    }
    let hold = why.blockers.iter().find(|blocker| blocker.clause == protocol::api::view::Clause::NoHold);
    let remedy = hold.and_then(|blocker| blocker.remedy.as_deref());
    assert_eq!(remedy, Some("esoctl credential unhold orders-db@0"), "{why:?}");
    world.does(&["credential", "unhold", "orders-db@0"]).await;
    let list = ["holders", "list", "--credential", "orders-db"];
    let of_zero = |all: &[HolderView], host: &str| {
        all.iter().find(|row| row.name == host && row.version.to_string() == "0").map(|row| row.id.clone())
    };
    let holders = world
        .until::<Vec<HolderView>>("both applications are named", &list, |all| {
            of_zero(all, first).is_some() && of_zero(all, second).is_some()
        })
        .await;
    let pending = world.reads::<Vec<PendingVersion>>(&["pending"]).await;
    assert!(pending.iter().any(|version| version.holders.len() == 2), "{pending:?}");
    for arguments in
        [&["status"][..], &["pending"], &list, &["host", "list"], &["why", "orders-db@0"], &["audit"]]
    {
        world.agree(arguments).await;
    }
    let id = of_zero(&holders, first).unwrap();
    let wrong = ["holders", "clear", "orders-db", first, "nobody", REASON[0], REASON[1]];
    world.refuses(&wrong, Exit::Missing, "nobody").await;
    world.does(&["holders", "clear", "orders-db", first, &id, REASON[0], REASON[1]]).await;
    // Silent, it keeps it alive until somebody answers for it.
    two.signal(Signal::STOP);
    world
        .refuses(&["host", "excuse", "web-3", "orders-db@0", REASON[0], REASON[1]], Exit::Missing, "web-3")
        .await;
    world
        .until::<HostDetail>("it is silent", &["host", "show", second], |host| {
            host.summary.phase == protocol::api::view::HostPhase::Silent
        })
        .await;
    let said = world.does(&["host", "excuse", second, "orders-db@0", REASON[0], REASON[1]]).await;
    assert!(said.contains("these fail: "), "{said}");
    world.until_ended("0").await;
    two.signal(Signal::CONT);
}

async fn a_version_is_held_and_then_forced(world: &mut World, one: &Host) {
    // Held by a word of ours; forced against the gate once it is not.
    world.does(&["credential", "hold", "orders-db@1", REASON[0], REASON[1]]).await;
    world.does(&["credential", "rotate", "orders-db", "--watch", "--timeout", "80s"]).await;
    world.until_current("2").await;
    world.secret("version 2", &one.password());
    let retire = ["credential", "retire", "orders-db@1", "--force", REASON[0], REASON[1]];
    world.refuses(&retire[..3], Exit::Usage, "--force").await;
    world.refuses(&retire, Exit::Refused, "held").await;
    world.does(&["credential", "unhold", "orders-db@1"]).await;
    world.does(&retire).await;
    world.until_ended("1").await;
}

async fn a_rollout_that_cannot_end_is_stopped(world: &mut World, one: &Host, two: &Host) {
    // A rollout that cannot end: unfinished for who watches not long enough, stopped for who sees it halted.
    one.signal(Signal::STOP);
    two.signal(Signal::STOP);
    let short = ["credential", "rotate", "orders-db", "--watch", "--timeout", "2s"];
    world.refuses(&short, Exit::Unfinished, "3").await;
    let rollout = world.reads::<Option<RolloutView>>(&["rollout", "show", "orders-db"]).await;
    assert!(rollout.is_some());
    let watching = world.calls(&["credential", "rotate", "orders-db", "--watch", "--timeout", "80s"]);
    world
        .until::<CredentialDetail>("the wish is taken", &["credential", "show", "orders-db"], |detail| {
            detail.pending_wish.is_some()
        })
        .await;
    world.does(&["rollout", "halt", "orders-db", REASON[0], REASON[1]]).await;
    let (exit, said) = world.ends(watching).await;
    assert_eq!(exit, Exit::Stopped, "{said}");
    world.does(&["rollout", "abort", "orders-db", REASON[0], REASON[1]]).await;
    one.signal(Signal::CONT);
}

async fn a_host_and_a_credential_end(world: &mut World, one: &mut Host) -> String {
    let [first, second] = ["web-1", "web-2"];
    // Gone for good; and a credential whose resource is gone too.
    world.does(&["host", "retire", second, REASON[0], REASON[1]]).await;
    let retired = world.reads::<HostDetail>(&["host", "show", second]).await;
    assert_eq!(retired.summary.phase, protocol::api::view::HostPhase::Retired);
    // The wish that waited for the aborted rollout goes on without it.
    world.until_current("4").await;
    let delete = ["credential", "delete", "orders-db", REASON[0], REASON[1]];
    world.refuses(&delete, Exit::Refused, "resource").await;
    let answers = world.answers(first).await;

    let audit = world.reads::<AuditPage>(&["audit"]).await;
    let done: Vec<&str> = audit.entries.iter().map(|entry| entry.action.as_str()).collect();
    for action in
        ["import", "unhold", "rotate", "clear", "excuse", "hold", "force", "halt", "abort", "retire_host"]
    {
        assert!(done.iter().any(|did| did.contains(action)), "{action} is not in {done:?}");
    }
    let of_host =
        world.reads::<AuditPage>(&["audit", "--subject", "credential/orders-db", "--limit", "3"]).await;
    assert_eq!(of_host.entries.len(), 3);

    std::fs::remove_file(world.root.join("resources/orders.yaml")).unwrap();
    world
        .until::<Vec<CredentialSummary>>("it is an orphan", &["credential", "list"], |all| {
            all[0].phase == protocol::api::view::CredentialPhase::Orphaned
        })
        .await;
    world.does(&delete).await;
    world.refuses(&["credential", "rotate", "orders-db"], Exit::Refused, "deleted").await;
    // The application lives on and has the last one, which is neither withdrawn nor forgotten before it ends.
    world
        .until::<Why>("only the application is in the way", &["why", "orders-db@4"], |why| {
            use protocol::api::view::Clause::{Fresh, Grace, NoHolder};
            let is_it = |clause| matches!(clause, Fresh | Grace | NoHolder);
            why.blockers.iter().any(|blocker| blocker.clause == NoHolder)
                && why.blockers.iter().all(|blocker| is_it(blocker.clause))
        })
        .await;
    assert!(one.root.join("place/password").exists());
    one.stop_application();
    let list = ["credential", "list"];
    world.until::<Vec<CredentialSummary>>("all of it has ended", &list, Vec::is_empty).await;
    world.refuses(&["credential", "show", "orders-db"], Exit::Missing, "orders-db").await;
    assert!(!one.root.join("place/password").exists(), "it is withdrawn");
    let pending = world.reads::<Vec<PendingVersion>>(&["pending"]).await;
    assert!(pending.is_empty(), "{pending:?}");
    answers
}

const FED: &str = "
apiVersion: sources.external-secrets.io/v1alpha1
kind: Directory
metadata: { name: mail }
spec: { path: DIRECTORY }
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: { name: mail }
spec: { source: { kind: Directory, name: mail } }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_other_command_does_what_it_says() {
    let mut world = World::start().await;
    let mut host = Host::enrol(&mut world, "web-1", "copy").await;
    somebody_is_let_in_and_out(&mut world).await;
    a_source_is_looked_at(&mut world).await;
    a_backup_is_a_store(&mut world).await;
    what_is_watched_is_printed_again(&mut world, &mut host).await;
    a_halted_rollout_goes_on(&mut world, &host).await;
    a_lost_place_is_cleared(&mut world, &host).await;
    a_wish_is_watched_to_its_own_version(&mut world, &host).await;
    a_thief_has_until_the_deadline(&mut world).await;
    let listings: [&[&str]; 12] = [
        &["status"],
        &["pending"],
        &["credential", "list"],
        &["credential", "show", "orders-db"],
        &["rollout", "show", "orders-db"],
        &["holders", "list"],
        &["why", "orders-db@3"],
        &["host", "list"],
        &["host", "show", "web-1"],
        &["audit", "--limit", "5"],
        &["operator", "list"],
        &["whoami"],
    ];
    for listing in listings {
        world.agree(listing).await;
    }
}

async fn somebody_is_let_in_and_out(world: &mut World) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap();
    let (csr, config) = (world.root.join("ann.csr"), world.root.join("ann.toml"));
    std::fs::write(&csr, request.pem().unwrap()).unwrap();
    let csr = csr.to_str().unwrap();
    let missing = ["operator", "add", "ann", "--role", "viewer", "--csr", "/nowhere.csr"];
    world.refuses(&missing, Exit::Failed, "/nowhere.csr").await;
    let add = ["operator", "add", "ann", "--role", "viewer", "--csr", csr];
    let issued = world.reads::<OperatorIssued>(&add).await;
    assert!(issued.token.is_none(), "a certificate is all that they get");
    std::fs::write(world.root.join("ann.pem"), issued.certificate.unwrap()).unwrap();
    std::fs::write(world.root.join("ann.key"), key.serialize_pem()).unwrap();
    let ca = world.root.join("data/admin/ca.pem");
    let ann = format!("ca = \"{}\"\ncertificate = \"ann.pem\"\nkey = \"ann.key\"\n", ca.display());
    std::fs::write(&config, ann).unwrap();

    let as_ann = world.calls_as(&config, &["whoami", "-o", "json"]);
    let (exit, said) = world.ends(as_ann).await;
    assert_eq!(exit, Exit::Done, "{said}");
    let whoami: Whoami = serde_json::from_str(&said).unwrap();
    assert_eq!((whoami.name.as_str(), whoami.role), ("ann", protocol::api::Role::Viewer));
    let may_not = world.calls_as(&config, &["credential", "rotate", "orders-db"]);
    assert_eq!(world.ends(may_not).await.0, Exit::Forbidden);

    let id = issued.operator.id;
    let row = |all: Vec<OperatorView>| all.into_iter().find(|row| row.id == id).unwrap();
    let listed = row(world.reads(&["operator", "list"]).await);
    assert_eq!(
        (listed.name.as_str(), listed.proof.as_str(), listed.revoked_at),
        ("ann", "certificate", None)
    );
    world.refuses(&["operator", "revoke", "nobody"], Exit::Missing, "no such operator").await;
    world.does(&["operator", "revoke", &id]).await;
    let no_more = world.calls_as(&config, &["whoami"]);
    assert_eq!(world.ends(no_more).await.0, Exit::Forbidden);
    assert!(row(world.reads(&["operator", "list"]).await).revoked_at.is_some());
}

async fn a_source_is_looked_at(world: &mut World) {
    let directory = world.root.join("mail");
    std::fs::create_dir(&directory).unwrap();
    let resource = FED.replace("DIRECTORY", directory.to_str().unwrap());
    std::fs::write(world.root.join("resources/mail.yaml"), resource).unwrap();
    let is_there = |all: &Vec<CredentialSummary>| all.iter().any(|row| row.name.to_string() == "mail");
    world.until("the credential is there", &["credential", "list"], is_there).await;
    world
        .until::<Status>("it is said that nothing stands there", &["status"], |status| {
            status.resource_faults.iter().any(|fault| fault.message.contains("mail"))
        })
        .await;
    std::fs::write(directory.join("password"), "of-the-mail").unwrap();
    world.refuses(&["source", "refresh", "orders"], Exit::Missing, "orders").await;
    world.refuses(&["source", "refresh"], Exit::Usage, "--all").await;
    world.refuses(&["source", "refresh", "orders-db"], Exit::Refused, "(no_source)").await;
    world.does(&["source", "refresh", "mail"]).await;
    world
        .until::<CredentialDetail>("the value is taken", &["credential", "show", "mail"], |detail| {
            detail.summary.current.is_some()
        })
        .await;
    world.does(&["source", "refresh", "--all"]).await;
    let audit = ["audit", "--subject", "credential/mail"];
    let refreshed = world.reads::<AuditPage>(&audit).await;
    assert_eq!(refreshed.entries.iter().filter(|row| row.action == "refresh").count(), 2);
}

async fn a_backup_is_a_store(world: &mut World) {
    let file = world.reads::<BackedUp>(&["backup"]).await.file;
    let content = std::fs::read(&file).unwrap();
    assert!(content.starts_with(b"SQLite format 3\0"), "{file}");
    let other = world.reads::<BackedUp>(&["backup"]).await.file;
    assert_ne!(file, other, "no backup replaces another");
}

async fn what_is_watched_is_printed_again(world: &mut World, host: &mut Host) {
    let status = world.watches(&["status", "--watch", "-o", "json"]);
    let pending = world.watches(&["pending", "--watch", "-o", "json"]);
    let rollout = world.watches(&["rollout", "show", "orders-db", "--watch", "-o", "json"]);
    let whole = world.watches(&["pending", "--watch"]);
    status.says("\"credentials\"").await;
    pending.says("[]").await;
    rollout.says("null").await;
    let file = world.root.join("old-password");
    std::fs::write(&file, IMPORTED).unwrap();
    let field = format!("password={}", file.display());
    world.does(&["credential", "import", "orders-db", "--field", &field]).await;
    world.until_current("0").await;
    let begin = ["credential", "rotate", "orders-db", "--watch", "--until", "retired"];
    let rotation = world.watches(&begin);
    rotation.says("orders-db@1: active; orders-db@0 is superseded").await;
    rollout.says("\"adopting\"").await;
    pending.says("\"no_hold\"").await;
    whole.says("orders-db@0").await;
    assert!(!rotation.task.is_finished(), "{}", rotation.text());
    world.does(&["credential", "unhold", "orders-db@0"]).await;
    host.restart_application();
    world.until_ended("0").await;
    rotation.says("orders-db@1: active\n").await;
    assert!(rollout.text().trim_end().ends_with("null"), "{}", rollout.text());
    assert_ne!(host.password(), IMPORTED);
    for watching in [status, pending, rollout, whole] {
        assert!(!watching.task.is_finished(), "it ended: {}", watching.text());
    }
}

async fn a_halted_rollout_goes_on(world: &mut World, host: &Host) {
    world.refuses(&["rollout", "resume", "orders-db"], Exit::Refused, "rollout").await;
    host.signal(Signal::STOP);
    world.does(&["credential", "rotate", "orders-db"]).await;
    let show = ["rollout", "show", "orders-db"];
    let is_staging = |rollout: &Option<RolloutView>| {
        rollout.as_ref().is_some_and(|rollout| rollout.phase == RolloutPhase::Staging)
    };
    world.until("it is staging", &show, is_staging).await;
    world.does(&["rollout", "halt", "orders-db", REASON[0], REASON[1]]).await;
    let rollout = world.reads::<Option<RolloutView>>(&show).await.unwrap();
    assert_eq!(rollout.phase, RolloutPhase::Halted);
    assert!(rollout.reason.is_some_and(|why| why.contains(REASON[1])));
    host.signal(Signal::CONT);
    // Nothing goes on by itself.
    let is_there = |host: &HostDetail| host.summary.phase == protocol::api::view::HostPhase::Connected;
    world.until("the host is there", &["host", "show", "web-1"], is_there).await;
    assert_eq!(world.reads::<Option<RolloutView>>(&show).await.unwrap().phase, RolloutPhase::Halted);
    world.does(&["rollout", "resume", "orders-db"]).await;
    world.until_current("2").await;
}

/// Anybody may write where the copy belongs: whether the old value lies there is not known any more.
async fn a_lost_place_is_cleared(world: &mut World, host: &Host) {
    let folder = host.root.join("place");
    let allow = |mode| std::fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
    allow(0o777);
    std::fs::remove_file(folder.join("password")).unwrap();
    let list = ["holders", "list", "--credential", "orders-db"];
    let lost_place = |all: &Vec<HolderView>| {
        let mut places = all.iter().filter(|row| row.kind == "place" && row.version.to_string() == "1");
        places.next().cloned()
    };
    let all = world.until("the place is named", &list, |all| lost_place(all).is_some()).await;
    let holders = all.iter().filter(|row| row.kind == "holder" && row.version.to_string() == "1");
    for row in holders {
        world.does(&["holders", "clear", "orders-db", "web-1", &row.id, REASON[0], REASON[1]]).await;
    }
    // The holder is cleared; the place alone keeps it alive.
    let is_place =
        |blocker: &Blocker| blocker.detail.as_deref().is_some_and(|detail| detail.contains("place/password"));
    let why = world
        .until::<Why>("the place is in the way", &["why", "orders-db@1"], |why| {
            why.blockers.iter().any(is_place)
        })
        .await;
    let remedy = why.blockers.into_iter().find(is_place).and_then(|blocker| blocker.remedy).unwrap();
    assert!(remedy.contains(&lost_place(&all).unwrap().id), "{remedy}");
    world.does(&remedy.split(' ').skip(1).collect::<Vec<_>>()).await;
    world.until_ended("1").await;
    allow(0o755);
    std::fs::write(folder.join("poked"), "").unwrap();
    world
        .until::<Vec<HolderView>>("the place is put right", &list, |all| {
            all.iter().all(|row| row.kind != "place")
        })
        .await;
    assert!(folder.join("password").exists());
}

/// Another rollout is under way when we wish for a version: not that one is watched.
async fn a_wish_is_watched_to_its_own_version(world: &mut World, host: &Host) {
    host.signal(Signal::STOP);
    world.does(&["credential", "rotate", "orders-db"]).await;
    let is_there = |rollout: &Option<RolloutView>| rollout.is_some();
    world.until("it rolls", &["rollout", "show", "orders-db"], is_there).await;
    let watching = world.calls(&["credential", "rotate", "orders-db", "--watch", "--timeout", "80s"]);
    world
        .until::<CredentialDetail>("the wish is taken", &["credential", "show", "orders-db"], |detail| {
            detail.pending_wish.is_some()
        })
        .await;
    host.signal(Signal::CONT);
    let (exit, said) = world.ends(watching).await;
    assert_eq!(exit, Exit::Done, "{said}");
    assert!(said.contains("waits for the end of the rollout of version 3"), "{said}");
    assert!(said.trim_end().ends_with("orders-db@4: active"), "{said}");
    world.until_current("4").await;
}

async fn a_thief_has_until_the_deadline(world: &mut World) {
    let late = ["credential", "rotate", "orders-db", "--deadline", "1s"];
    world.refuses(&late, Exit::Usage, "--compromised").await;
    let rotate = ["credential", "rotate", "orders-db", "--compromised", "--deadline", "1s"];
    world.does(&[&rotate[..], &["--watch", "--until", "retired", "--timeout", "80s"]].concat()).await;
    let detail = world.reads::<CredentialDetail>(&["credential", "show", "orders-db"]).await;
    assert_eq!(detail.summary.current.unwrap().to_string(), "5");
    // Its application never let go of it, and nobody cleared it by hand.
    let stolen = detail.versions.iter().find(|row| row.version.to_string() == "4").unwrap();
    assert!(stolen.compromised && is_ended(stolen.phase), "{stolen:?}");
    let audit = world.reads::<AuditPage>(&["audit", "--subject", "credential/orders-db"]).await;
    assert!(audit.entries.iter().any(|row| row.detail.contains("compromised")), "{:?}", audit.entries);
}

/// What a panic says of a value that it has in hand: formatted, or as the error of an `unwrap`.
#[test]
fn a_panic_with_a_value_in_hand_says_nothing_of_it() {
    use base64::Engine as _;
    fn refused<T>(value: T) -> Result<(), T> {
        Err(value)
    }
    let canaries = Canaries::new([("the value", IMPORTED)]).unwrap();
    let value = || store::Value::new(IMPORTED.as_bytes().to_vec());
    let staged = || protocol::seal::Value::new(IMPORTED.as_bytes().to_vec());
    let import = || {
        let content = base64::engine::general_purpose::STANDARD.encode(IMPORTED);
        protocol::api::Import { fields: BTreeMap::from([("password".parse().unwrap(), content)]) }
    };
    let panics: [&(dyn Fn() + std::panic::RefUnwindSafe); 6] = [
        &|| panic!("cannot take {:?}", value()),
        &|| refused(value()).unwrap(),
        &|| panic!("cannot take {:#?}", staged()),
        &|| refused(staged()).unwrap(),
        &|| panic!("cannot take {:#?}", import()),
        &|| refused(import()).unwrap(),
    ];
    for panics in panics {
        let said = std::panic::catch_unwind(panics).unwrap_err();
        let said = said.downcast_ref::<String>().expect("a message");
        assert_eq!(canaries.in_bytes("a panic", said), []);
    }
    let planted = std::panic::catch_unwind(|| panic!("cannot take {IMPORTED}")).unwrap_err();
    let planted = planted.downcast_ref::<String>().unwrap();
    assert!(!canaries.in_bytes("a panic", planted).is_empty(), "this one is found");
}

/// Looks through everything that was written and said, and through what a crash leaves.
fn no_value_is_anywhere(mut world: World, hosts: &mut [Host], answers: &str) {
    let canaries = Canaries::new(world.secrets.iter()).unwrap();
    // Values are where they belong: in sets, at the place, in what was imported from.
    let mut except: Vec<PathBuf> = vec![world.root.join("old-password")];
    for host in &*hosts {
        except.extend([host.root.join("run/sets"), host.root.join("place")]);
    }
    let except: Vec<&Path> = except.iter().map(PathBuf::as_path).filter(|path| path.exists()).collect();
    let shown = canaries.in_tree(&world.root, &[]).unwrap();
    assert!(
        shown.iter().any(|leak| except.iter().any(|path| leak.place.starts_with(path))),
        "they are found at all"
    );

    // What a crash would leave: each of them holds values or keys, and none may leave a core file.
    let daemons = hosts.iter_mut().flat_map(|host| &mut host.daemons);
    for running in daemons.chain([&mut world.control]) {
        running.signal(Signal::CONT);
        running.signal(Signal::ABORT);
        let status = running.child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
        assert!(!status.core_dumped(), "a core file was written");
    }
    canaries.none_in([world.root.as_path()], &except).unwrap_or_else(|leaks| panic!("{leaks}"));
    for (place, text) in
        [("what esoctl said", &world.transcript), ("what the API answered", &answers.to_owned())]
    {
        assert_eq!(canaries.in_bytes(place, text), []);
    }
    let mut lines = BufReader::new(File::open(world.control.log.with_extension("err")).unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("DEBUG")), "the logs were not at their most talkative");
}
