//! The documented examples, which the demo runs: these very files, with what must be different on this machine. A change
//! that finds nothing to change is an error, so documents and demo cannot drift apart.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::host::{CAST, Cast};
use crate::programs::Programs;
use crate::protected::{Protected, Server};

/// Where the documented credential stands.
pub const CREDENTIAL: &str = "control-plane/resources/examples/orders-db.yaml";
/// Where the documented policy of a host stands.
pub const POLICY: &str = "vm-server/policy/examples/conf.d/orders-db.toml";

const CREDENTIAL_TEXT: &str = include_str!("../../../control-plane/resources/examples/orders-db.yaml");
const POLICY_TEXT: &str = include_str!("../../../vm-server/policy/examples/conf.d/orders-db.toml");

/// The demo waits seconds where an installation waits minutes.
const CREDENTIAL_TIMES: [(&str, &str); 5] = [
    ("barrier: 2m", "barrier: 5s"),
    ("startWait: 30s", "startWait: 5s"),
    ("adoptWithin: 5m", "adoptWithin: 2m"),
    ("grace: 5m", "grace: 1s"),
    ("sampleEvery: 30s", "sampleEvery: 1s"),
];
const START: &str = "start_ms = 5_000";
const SETTLE: &str = "settle_ms = 1_000";
const REFRESH: &str = "refresh_ms = 1_000";

/// What an act has otherwise than the other acts.
#[derive(Debug, Clone, Copy)]
pub struct Changes<'a> {
    /// How passwords look; as documented unless said.
    pub password: Option<&'a str>,
    /// How far ahead the instant is on which hosts agree.
    pub flip_in: &'a str,
}

impl Default for Changes<'_> {
    fn default() -> Self {
        Self { password: None, flip_in: "2s" }
    }
}

/// An example as it is used here.
pub struct Loaded {
    /// The whole text.
    pub text: String,
    /// What differs from the document, each in a few words.
    pub differs: Vec<String>,
}

impl Loaded {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), differs: Vec::new() }
    }

    /// Writes `to` in the place of `from`, which must stand there so many times. `what` names the change for people.
    fn change(&mut self, what: &str, from: &str, to: &str, times: usize) -> anyhow::Result<()> {
        let found = self.text.matches(from).count();
        ensure!(found == times, "the example says {from:?} {found} times, not {times} times");
        self.text = self.text.replace(from, to);
        if !self.differs.iter().any(|known| known == what) {
            self.differs.push(what.to_owned());
        }
        Ok(())
    }
}

/// The credential.
pub fn credential(protected: &Protected, changes: Changes<'_>) -> anyhow::Result<Loaded> {
    let Changes { password, flip_in } = changes;
    let mut loaded = Loaded::new(CREDENTIAL_TEXT);
    let address = protected.address();
    match protected.server() {
        Server::Postgres(server) => {
            loaded.change("host and port", "host: db.example.org", &format!("host: {}", address.ip()), 1)?;
            loaded.change("host and port", "port: \"5432\"", &format!("port: \"{}\"", address.port()), 1)?;
            let tls = "tls:\n    caFile: /etc/eso-control-plane/orders-db-ca.pem";
            if let Some(pem) = server.ca_pem() {
                let file = server.directory().join("authority.pem");
                std::fs::write(&file, pem)?;
                loaded.change("caFile", tls, &format!("tls:\n    caFile: {}", file.display()), 1)?;
            } else {
                loaded.change("tls: disable", tls, "tls: disable", 1)?;
            }
            if let Some(password) = password {
                loaded.change(
                    "passwords",
                    "    owner: orders_owner",
                    &format!("    owner: orders_owner\n    password: {password}"),
                    1,
                )?;
            }
        }
        Server::Logins(server) => {
            let (generator, _) = loaded.text.split_once("---\n").context("the example has one document")?;
            let generator = generator.to_owned();
            let password = password.map(|password| format!("  password: {password}\n")).unwrap_or_default();
            let webhook = format!(
                "apiVersion: generators.external-secrets.io/v1alpha1\nkind: Webhook\nmetadata:\n  name: orders\nspec:\n  url: https://{address}/eso\n  tls:\n    caFile: {}\n  auth:\n    bearerSecretRef:\n      name: orders-minter\n      key: bearer\n  username: orders\n{password}",
                server.authority().display()
            );
            loaded.change("a Webhook generator", &generator, &webhook, 1)?;
            loaded.change("a Webhook generator", "kind: PostgreSql", "kind: Webhook", 1)?;
            loaded.change("the address in the URL", "url: \"postgresql://", "url: \"https://", 1)?;
        }
    }
    loaded.change("the address in the URL", "db.example.org:5432/orders", &format!("{address}/orders"), 1)?;
    for (from, to) in CREDENTIAL_TIMES {
        loaded.change(to, from, to, 1)?;
    }
    let flip_in = format!("flipIn: {flip_in}");
    loaded.change(&flip_in, "flipIn: 5s", &flip_in, 1)?;
    Ok(loaded)
}

/// What a host of the demo has instead of the paths of a real one.
pub struct Around<'a> {
    /// Stands before each path.
    pub root: &'a Path,
    /// The applications' program.
    pub programs: &'a Programs,
    /// Where the probed application answers.
    pub health: std::net::SocketAddr,
    /// Which applications run here.
    pub runs: &'a dyn Fn(&Cast) -> bool,
}

/// The policy of a host without systemd, on which some of the four applications run.
pub fn policy(around: &Around<'_>) -> anyhow::Result<Loaded> {
    let mut loaded = Loaded::new(POLICY_TEXT);
    let root = around.root.display();
    let exe = format!("exe = \"{}\"", around.programs.text("demo-application"));
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    loaded.change("users", "owner = \"root\"", &format!("owner = {user}"), 1)?;
    loaded.change("users", "group = \"orders\"", &format!("group = {group}"), 1)?;
    let report = "owner = \"report\", group = \"report\"";
    loaded.change("users", report, &format!("owner = {user}, group = {group}"), 1)?;
    for path in ["/etc/orders/db-url", "/etc/orders-report/db-password"] {
        loaded.change("paths", &format!("path = \"{path}\""), &format!("path = \"{root}{path}\""), 1)?;
    }
    loaded.change(
        "the port of the health page",
        "http://127.0.0.1:8080",
        &format!("http://{}", around.health),
        1,
    )?;
    for name in ["orders", "search", "ledger"] {
        let pidfile = format!("pidfile = \"{}\"", pidfile(around.root, name).display());
        let process = format!("name = \"{name}\"\n{pidfile}\n{exe}\n{START}");
        loaded.change("pid files instead of units", &format!("unit = \"{name}.service\""), &process, 1)?;
    }
    loaded.change("paths", "/run/billing/pid", &pidfile(around.root, "billing").display().to_string(), 1)?;
    loaded.change("users", "exe = \"/opt/billing/bin/server\"\nuser = \"orders\"", &exe, 1)?;
    loaded.change(START, "start_ms = 90_000", START, 1)?;
    loaded.change(SETTLE, "settle_ms = 30_000", SETTLE, CAST.len())?;
    loaded.change(REFRESH, "refresh_ms = 60_000", REFRESH, 1)?;
    leave_out(&mut loaded, around.runs)?;
    Ok(loaded)
}

/// Where an application writes its process id.
pub fn pidfile(root: &Path, application: &str) -> std::path::PathBuf {
    root.join("run").join(application).join("pid")
}

/// Leaves out the consumers that do not run on this host: one that never starts would keep every version alive.
fn leave_out(loaded: &mut Loaded, runs: &dyn Fn(&Cast) -> bool) -> anyhow::Result<()> {
    const CONSUMER: &str = "[[set.orders-db.consumers]]\n";
    let mut known: BTreeMap<&str, bool> = CAST.iter().map(|cast| (cast.name, false)).collect();
    let mut kept = String::new();
    let mut out = Vec::new();
    for (place, part) in loaded.text.split("\n[[").enumerate() {
        let part = if place == 0 { part.to_owned() } else { format!("\n[[{part}") };
        let consumer = part.trim_start().starts_with(CONSUMER);
        let cast = CAST.iter().find(|cast| part.contains(&format!("\nname = \"{}\"", cast.name)));
        match cast {
            Some(cast) if consumer => {
                known.insert(cast.name, true);
                if !runs(cast) {
                    out.push(cast.name);
                    continue;
                }
            }
            _ => ensure!(!consumer, "the example names a consumer that the demo does not have"),
        }
        kept.push_str(&part);
    }
    ensure!(known.values().all(|found| *found), "the example does not name all of the demo's applications");
    loaded.text = kept;
    loaded.differs.push(format!("without {}, not on this host", out.join(", ")));
    Ok(())
}
