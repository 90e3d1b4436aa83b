//! What every test of this crate sets up: a control plane, a login server, a farm with an application on each host, and
//! what must be true when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use lifecycle::SetName;
use protocol::api::{CredentialDetail, DeliveryPhase, HostDetail, PendingVersion, VersionPhase};
use tests_canary::Canaries;
use tokio::runtime::Handle;

use crate::applications::{CREDENTIAL, Crowd, Reader, Readers, Supervised};
use crate::control::ControlPlane;
use crate::farm::{Farm, Road, Spec};
use crate::host::{Kind, Site};
use crate::network::Network;
use crate::server::{LoginServer, Overlap};

/// The credential, its set, and its generator.
pub const NAME: &str = "orders-db";
/// How long anything may take that does not wait for a timer of minutes.
pub const PATIENCE: Duration = Duration::from_mins(2);
/// The same for hundreds of hosts, which take their time on two busy cores.
pub const PATIENCE_OF_MANY: Duration = Duration::from_mins(10);

/// The programs of this crate, as the test's own build knows them.
#[derive(Debug, Clone)]
pub struct Built {
    /// The control plane.
    pub control_plane: PathBuf,
    /// A half of a host.
    pub host: PathBuf,
    /// The application.
    pub application: PathBuf,
}

/// The programs that cargo built for the calling test.
#[macro_export]
macro_rules! built {
    () => {
        $crate::scene::Built {
            control_plane: env!("CARGO_BIN_EXE_fleet-control-plane").into(),
            host: env!("CARGO_BIN_EXE_fleet-host").into(),
            application: env!("CARGO_BIN_EXE_fleet-application").into(),
        }
    };
}

/// What is wanted of a scene.
pub struct Wish {
    /// How many hosts.
    pub hosts: usize,
    /// Of which every how many is made of processes; 0 for none.
    pub processes_every: usize,
    /// Of which every how many has an application that is restarted, in a process of its own.
    pub restarted_every: usize,
    /// Between two logins of an application.
    pub login_every_ms: u64,
    /// How many versions the server holds.
    pub overlap: Overlap,
    /// The network between hosts and control plane; none is the plain one.
    pub network: Option<Network>,
}

/// All of it, running. Fields end in this order: applications first, so that nobody is left who could be refused.
pub struct Scene {
    /// The applications that follow by themselves.
    pub crowd: Crowd,
    /// The applications that are restarted.
    pub supervised: Vec<Supervised>,
    /// The hosts.
    pub farm: Farm,
    /// The control plane.
    pub control: ControlPlane,
    /// The protected server.
    pub server: LoginServer,
    /// One for each host.
    pub readers: Vec<Reader>,
    /// Where everything lies.
    pub directory: tempfile::TempDir,
    /// How many values the searches have seen.
    searched: usize,
}

impl Scene {
    /// Starts everything but the credential, and waits until all hosts are connected.
    pub fn set(built: &Built, wish: &Wish, runtime: &Handle) -> anyhow::Result<Self> {
        let set: SetName = NAME.parse()?;
        // `ESO_LOG=debug` shows what the hosts in this process say.
        if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("ESO_LOG") {
            // Several scenes may be set in one process.
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).try_init();
        }
        let directory = crate::farm::directory()?;
        let server = LoginServer::start(wish.overlap, runtime)?;
        let mut control =
            ControlPlane::init(&built.control_plane, &directory.path().join("control"), runtime)?;
        control.start()?;
        let spec = spec(built, wish, &set, &control, directory.path().into());
        let farm = Farm::start(&spec, &control, runtime)?;
        let readers: Vec<Reader> = farm.hosts().iter().map(|host| Reader::of(host.site(), &set)).collect();
        let is_restarted =
            |number: usize| wish.restarted_every != 0 && number.is_multiple_of(wish.restarted_every);
        let (restarted, following): (Vec<_>, Vec<_>) =
            readers.iter().cloned().enumerate().partition(|(number, _)| is_restarted(*number));
        let all = Readers {
            server: server.logins(),
            set: set.clone(),
            every_ms: wish.login_every_ms,
            readers: following.into_iter().map(|(_, reader)| reader).collect(),
        };
        let supervised = restarted.into_iter().map(|(_, reader)| {
            Supervised::start(&built.application, server.logins(), &set, reader, wish.login_every_ms)
        });
        let supervised = supervised.collect();
        let crowd = Crowd::start(&built.application, &all)?;
        let scene = Self { crowd, supervised, farm, control, server, readers, directory, searched: 0 };
        scene.control.until_connected(wish.hosts, PATIENCE_OF_MANY)?;
        Ok(scene)
    }

    /// Writes generator and credential: the first version is minted.
    pub fn declare(&self, policy: &str) -> anyhow::Result<()> {
        self.control.write_resource("credential.yaml", &resource(&self.server, policy))
    }

    /// Whether nothing is under way any more: one version is current everywhere, and every other one has ended.
    pub fn is_at_rest(&self, detail: &CredentialDetail) -> bool {
        let current = detail.summary.current;
        let over = |phase| matches!(phase, VersionPhase::Retired | VersionPhase::Erased);
        current.is_some()
            && detail.rollout.is_none()
            && detail.pending_wish.is_none()
            && detail.summary.targets == detail.summary.adopted
            && usize::try_from(detail.summary.targets).is_ok_and(|targets| targets == self.readers.len())
            && detail.versions.iter().all(|known| Some(known.version) == current || over(known.phase))
    }

    /// Waits until everything has come to rest.
    pub fn until_at_rest(&self, time: Duration) -> anyhow::Result<CredentialDetail> {
        let rested = self
            .control
            .until(time, "everything is at rest", |control| Ok(self.is_at_rest(&control.credential(NAME)?)));
        if let Err(error) = rested {
            return Err(error.context(self.told()));
        }
        self.control.credential(NAME)
    }

    /// What must be true at rest: [`Scene::check_all_well`], and the server has exactly what is recorded.
    pub fn check(&mut self, detail: &CredentialDetail) -> anyhow::Result<()> {
        self.check_all_well(detail)?;
        let recorded: BTreeSet<String> = effect_of_current(detail).into_iter().collect();
        ensure!(
            self.server.alive() == recorded,
            "the server has {:?}, recorded is {recorded:?}",
            self.server.alive()
        );
        Ok(())
    }

    /// Nobody was refused, nothing of ours has ended, no application took up a version twice, all of them are on the
    /// current one, and no value lies where it does not belong.
    pub fn check_all_well(&mut self, detail: &CredentialDetail) -> anyhow::Result<()> {
        let told = self.server.told();
        ensure!(told.wrong.is_empty(), "the server was asked for what nobody may ask: {:?}", told.wrong);
        ensure!(told.refused.is_empty(), "applications were refused: {:?}", told.refused);
        for host in self.farm.hosts_mut() {
            let ended = host.ended();
            ensure!(ended.is_empty(), "of {} these have ended by themselves: {ended:?}", host.site().name);
        }
        ensure!(self.crowd.runs(), "the applications that nobody may restart have ended");
        for reader in &self.readers {
            let mut ledger = reader.ledger()?;
            // It starts by itself when its set gets a first version: between the flip and the look that follows it, it
            // is taken for one that ran before, and restarted.
            if ledger.len() > 1 && ledger[0] == ledger[1] {
                ledger.remove(0);
            }
            let distinct: BTreeSet<_> = ledger.iter().collect();
            ensure!(
                distinct.len() == ledger.len(),
                "{} took a version up twice: {ledger:?}",
                reader.ledger.display()
            );
            ensure!(
                ledger.last().copied() == detail.summary.current,
                "{} is on {ledger:?}",
                reader.ledger.display()
            );
        }
        self.search()
    }

    /// Looks for the values that were minted since the last search, and for the one before them, in everything that lies
    /// here: log and database of the control plane, logs, journals and state of the hosts. They belong into the sets.
    fn search(&mut self) -> anyhow::Result<()> {
        let mut values = self.server.values();
        let count = values.len();
        values.drain(..self.searched.saturating_sub(1).min(count));
        let canaries = Canaries::new(values)?;
        let sets: Vec<PathBuf> = self.farm.hosts().iter().map(|host| host.site().set(NAME)).collect();
        let sets: Vec<&Path> = sets.iter().map(PathBuf::as_path).collect();
        let leaks = canaries.in_tree(self.directory.path(), &sets)?;
        let leaks: Vec<String> = leaks.iter().map(ToString::to_string).collect();
        ensure!(leaks.is_empty(), "values lie where they do not belong:\n{}", leaks.join("\n"));
        self.searched = count;
        Ok(())
    }

    /// What there is to see, for a failure.
    pub fn told(&self) -> String {
        match self.behind() {
            Ok(told) => told,
            Err(error) => format!("the control plane does not say: {error:#}"),
        }
    }

    fn behind(&self) -> anyhow::Result<String> {
        let mut detail = self.control.credential(NAME)?;
        detail.versions.retain(|known| !matches!(known.phase, VersionPhase::Retired | VersionPhase::Erased));
        let rolling = detail.summary.rolling.or(detail.summary.current);
        let lists =
            detail.versions.iter_mut().map(|known| (Some(known.version) == rolling, &mut known.deliveries));
        let mut lagging = BTreeSet::new();
        for (newest, deliveries) in lists {
            deliveries.retain(|delivery| newest && delivery.phase != DeliveryPhase::Adopted);
            lagging.extend(deliveries.iter().map(|delivery| delivery.name.clone()));
            deliveries.truncate(3);
        }
        if let Some(rollout) = &mut detail.rollout {
            rollout.deliveries.clear();
        }
        let hosts: Vec<HostDetail> = lagging
            .iter()
            .take(3)
            .map(|name| self.control.get(&format!("/v1/hosts/{name}")))
            .collect::<anyhow::Result<_>>()?;
        let mut pending = self.control.get::<Vec<PendingVersion>>("/v1/pending")?;
        for version in &mut pending {
            version.holders.truncate(5);
            version.why.blockers.truncate(5);
        }
        let log = std::fs::read_to_string(self.control.log())?;
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Ok(format!(
            "credential: {}\npending: {}\nlagging: {lagging:?} {}\nserver: {:?}\nlog:\n{}",
            serde_json::to_string_pretty(&detail)?,
            serde_json::to_string_pretty(&pending)?,
            serde_json::to_string_pretty(&hosts)?,
            self.server.told(),
            tail.join("\n")
        ))
    }
}

/// The effect that minted the current version.
pub fn effect_of_current(detail: &CredentialDetail) -> Option<String> {
    let current = detail.versions.iter().find(|known| Some(known.version) == detail.summary.current)?;
    current.effect.map(|effect| effect.to_string())
}

fn spec(built: &Built, wish: &Wish, set: &SetName, control: &ControlPlane, directory: PathBuf) -> Spec {
    let (program, application, set) = (built.host.clone(), built.application.clone(), set.clone());
    let (processes_every, restarted_every) = (wish.processes_every, wish.restarted_every);
    let is_nth = |number: usize, every: usize| every != 0 && number.is_multiple_of(every);
    let mut spec = Spec::plain(wish.hosts, directory, set.as_str());
    spec.sets = Arc::new(move |site: &Site| {
        let reader = Reader::of(site, &set);
        let consumer = reader.policy(&set, &application, is_nth(site.number, restarted_every));
        format!("[set.{set}]\nrefresh_ms = 5000\n{consumer}")
    });
    spec.labels = Arc::new(|site: &Site| {
        let canary = if site.number == 0 { "yes" } else { "no" };
        BTreeMap::from([("app".to_owned(), "orders".to_owned()), ("canary".to_owned(), canary.to_owned())])
    });
    spec.kind = Arc::new(move |site: &Site| {
        // Not the canary: while it is down, nobody else gets anything.
        if is_nth(site.number + 1, processes_every) { Kind::Processes(program.clone()) } else { Kind::Tasks }
    });
    if let Some(network) = wish.network.clone() {
        let up = control.listen();
        spec.road = Arc::new(move |_: &Site, listen| {
            // A way that cannot be had leaves the host where it listens.
            let host = network.way(listen).unwrap_or(listen);
            let control_plane = network.way(up).ok().map(|way| format!("https://{way}"));
            Road { host, control_plane }
        });
    }
    spec
}

fn resource(server: &LoginServer, policy: &str) -> String {
    format!(
        r#"{generator}---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {{ name: {NAME} }}
spec:
  generator: {{ kind: Webhook, name: logins }}
  targets:
    hosts:
      matchLabels: {{ app: orders }}
      canary: {{ matchLabels: {{ canary: "yes" }} }}
  files:
    {CREDENTIAL}: '{{"username":"{{{{ .username }}}}","password":"{{{{ .password }}}}"}}'
  policy: {policy}
"#,
        generator = server.generator("logins"),
    )
}
