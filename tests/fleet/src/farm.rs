//! Many hosts, enrolled with one control plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use protocol::api::EnrolToken;
use tokio::runtime::Handle;

use crate::control::{Api, ControlPlane};
use crate::host::{Half, Host, Kind, Site};
use crate::port;

/// Hosts that enrol at the same time.
const ENROL_AT_ONCE: usize = 16;

/// Which hosts a farm has.
#[derive(Clone)]
pub struct Spec {
    /// How many.
    pub hosts: usize,
    /// Where their directories are made: short, since sockets lie in it, and best in memory, since every host syncs
    /// its journal to it.
    pub directory: PathBuf,
    /// The sets of a host's policy, as TOML.
    pub sets: Arc<dyn Fn(&Site) -> String + Send + Sync>,
    /// The labels of a host.
    pub labels: Arc<LabelsOf>,
    /// How a host runs.
    pub kind: Arc<dyn Fn(&Site) -> Kind + Send + Sync>,
    /// Where pushes reach a host that listens at the given address, and where it reaches the control plane.
    pub road: Arc<RoadOf>,
}

/// The labels of a host.
pub type LabelsOf = dyn Fn(&Site) -> BTreeMap<String, String> + Send + Sync;
/// The road of a host that listens at the given address.
pub type RoadOf = dyn Fn(&Site, SocketAddr) -> Road + Send + Sync;

/// How a host and its control plane reach each other.
#[derive(Debug, Clone)]
pub struct Road {
    /// Where pushes reach the host.
    pub host: SocketAddr,
    /// The URL that it calls; none is the one that it enrolled with.
    pub control_plane: Option<String>,
}

/// Many hosts. Dropping it ends them.
pub struct Farm {
    hosts: Vec<Host>,
}

/// A runtime for so many hosts: each applier has a thread of its own.
pub fn runtime(hosts: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let built =
        tokio::runtime::Builder::new_multi_thread().max_blocking_threads(2 * hosts + 64).enable_all().build();
    Ok(built?)
}

/// A directory that is gone with its value, in memory where the machine has one for that.
pub fn directory() -> anyhow::Result<tempfile::TempDir> {
    let memory = PathBuf::from("/dev/shm");
    let mut builder = tempfile::Builder::new();
    let made = builder.prefix("eso-fleet-").tempdir_in(&memory);
    Ok(made.or_else(|_| tempfile::Builder::new().prefix("eso-fleet-").tempdir())?)
}

impl Spec {
    /// So many hosts that take one set, which nobody consumes.
    pub fn plain(hosts: usize, directory: PathBuf, set: &str) -> Self {
        let text = format!("[set.{set}]\nrefresh_ms = 60000\n");
        Self {
            hosts,
            directory,
            sets: Arc::new(move |_| text.clone()),
            labels: Arc::new(|_| BTreeMap::new()),
            kind: Arc::new(|_| Kind::Tasks),
            road: Arc::new(|_, listen| Road { host: listen, control_plane: None }),
        }
    }
}

impl Farm {
    /// Enrols all hosts with a control plane that serves, and starts both halves of each. `runtime` must be made for
    /// so many, see [`runtime`]. They connect in their own time: [`ControlPlane::until_connected`].
    pub fn start(spec: &Spec, control: &ControlPlane, runtime: &Handle) -> anyhow::Result<Self> {
        let mut farm = Self::enrol(spec, control, runtime)?;
        for host in &mut farm.hosts {
            host.start(Half::Network)?;
            host.start(Half::Applier)?;
        }
        Ok(farm)
    }

    /// Enrols them and starts none.
    pub fn enrol(spec: &Spec, control: &ControlPlane, runtime: &Handle) -> anyhow::Result<Self> {
        let enrolling = futures_util::stream::iter(0..spec.hosts)
            .map(|number| enrol(spec.clone(), number, control.api().clone(), runtime.clone()))
            .buffered(ENROL_AT_ONCE)
            .try_collect::<Vec<Host>>();
        Ok(Self { hosts: runtime.block_on(enrolling)? })
    }

    /// All of them.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Their configurations, for a [`Crowd`](crate::Crowd).
    pub fn configs(&self) -> Vec<PathBuf> {
        self.hosts.iter().map(|host| host.site().config()).collect()
    }

    /// All of them, to start and kill.
    pub fn hosts_mut(&mut self) -> &mut [Host] {
        &mut self.hosts
    }
}

async fn enrol(spec: Spec, number: usize, api: Api, runtime: Handle) -> anyhow::Result<Host> {
    let name = format!("vm-{number}");
    let site = Site { number, directory: spec.directory.join(&name), name };
    let labels = (spec.labels)(&site);
    let token = EnrolToken { name: site.name.clone(), labels, life_ms: None };
    let bundle = api.bundle(&token).await?;
    let handle = runtime.clone();
    let enrolled = runtime.spawn_blocking(move || {
        let listen = port::free();
        let road = (spec.road)(&site, listen);
        let config = daemon(&site, listen, &road) + &(spec.sets)(&site);
        let kind = (spec.kind)(&site);
        let what = format!("failed to enrol {}", site.name);
        Host::enrol(site, kind, road.host, &config, &bundle, &handle).context(what)
    });
    enrolled.await?
}

fn daemon(site: &Site, listen: SocketAddr, road: &Road) -> String {
    let directory = site.directory.display();
    let control_plane = road.control_plane.as_ref();
    let control_plane = control_plane.map(|url| format!("control_plane = \"{url}\"\n")).unwrap_or_default();
    format!(
        r#"[daemon]
state_dir = "{directory}/state"
run_dir = "{directory}/run"
listen = "{listen}"
advertise = "{host}"
{control_plane}supervisor = "none"
mount = "directory"
evidence = "declared"

"#,
        host = road.host,
    )
}
