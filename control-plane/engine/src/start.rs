//! Starting, and what the resources say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifecycle::credential::{Credential, Event, Selection, TargetKind};
use lifecycle::{CredentialName, TargetId};
use notify::Watcher as _;
use protocol::key::InvalidKey;
use protocol::{InstallationId, SigningKey, TrustAnchor, UnixMillis, VerifyingKey};
use resources::Resources;
use store::{HostStatus, Store, StoreError};
use tokio::sync::{Notify, mpsc, watch};

use crate::audit::{ENGINE, entry};
use crate::catalogue::{Makers, Plan, store_target_id};
use crate::clock::Clock;
use crate::effects::Means;
use crate::handle::{Handle, Message, QUEUE_MAX};
use crate::inside::Inside;
use crate::lane::Post;
use crate::metrics::Metrics;
use crate::origin::{Origin, Origins};
use crate::road::{Reachable, Road};
use crate::run::{Batch, RunError, Turn};
use crate::sources::{Known, Watch};
use crate::world::{Host, Kept, Owned, World};

/// How long the directory must be quiet before it is read again: editors write in several steps.
const QUIET: Duration = Duration::from_millis(200);
/// The directory is read again at the latest after this time, also where it cannot be watched.
const REREAD: Duration = Duration::from_secs(30);

/// What an engine is started with.
pub struct Settings {
    /// Where state is kept.
    pub store: Store,
    /// Signs orders and acknowledgements.
    pub order_key: Arc<SigningKey>,
    /// What hosts trust; its order key is the public half of `order_key`.
    pub anchor: TrustAnchor,
    /// Keys of this installation that signed before the present one.
    pub earlier_keys: Vec<VerifyingKey>,
    /// The directory of resources.
    pub resources: PathBuf,
    /// Makes backends.
    pub makers: Arc<dyn Makers>,
    /// The road to the hosts.
    pub road: Arc<dyn Road>,
    /// Who can be reached.
    pub reachable: Reachable,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored state is not one of this program.
    #[error(
        "failed to read the stored state of {name}: {why}; restore a backup, or start the program that wrote it"
    )]
    State {
        /// Of which credential.
        name: CredentialName,
        /// What is wrong.
        why: String,
    },
    /// The keys do not belong together.
    #[error("the order key is not the one that hosts trust: {0}")]
    Key(#[from] InvalidKey),
    /// The first transaction failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// A running engine.
pub struct Engine {
    handle: Handle,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
    helpers: Vec<tokio::task::JoinHandle<()>>,
}

impl Engine {
    /// Loads what is kept, tells every credential that it starts, and begins to work.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let (messages, inbox) = mpsc::channel(QUEUE_MAX);
        let (tell, changes) = watch::channel(0);
        let handle = Handle {
            messages: messages.clone(),
            changes,
            metrics: metrics.clone(),
            store: settings.store.clone(),
            anchor: settings.anchor.clone(),
        };
        let mut world = World::load(&settings, messages.clone(), metrics).await?;
        world.erase_leftovers().await?;
        let restored = settings.store.restored().await?;
        let directory = settings.resources.clone();
        let resources = read(directory.clone(), Resources::default()).await;
        let batch = world.begin(restored, resources.clone());
        world.finish(batch, &tell).await?;
        if restored {
            settings.store.restore_noted().await?;
        }
        let reread = world.reread.clone();
        let helpers = vec![
            tokio::spawn(pass_on(settings.reachable, messages.clone())),
            tokio::spawn(watch_resources(directory, resources, reread, messages.clone())),
            tokio::spawn(verify_audit(settings.store, messages)),
        ];
        let task = tokio::spawn(crate::run::run(world, inbox, tell, Batch::default()));
        Ok(Self { handle, task, helpers })
    }

    /// What the API speaks to.
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until the engine ends by itself, which it does only when its database fails it.
    pub async fn ended(&mut self) -> Result<(), RunError> {
        match (&mut self.task).await {
            Ok(result) => result,
            Err(_) => Err(RunError::Store(StoreError::Closed)),
        }
    }

    /// Stops at once. Nothing is lost: what was not committed did not happen, and the outboxes say what is left.
    pub async fn stop(self) {
        for helper in &self.helpers {
            helper.abort();
        }
        self.task.abort();
        for helper in self.helpers {
            drop(helper.await);
        }
        drop(self.task.await);
    }
}

async fn read(directory: PathBuf, before: Resources) -> Resources {
    let read = tokio::task::spawn_blocking(move || resources::load(&directory, &before));
    read.await.unwrap_or_default()
}

async fn pass_on(mut reachable: Reachable, messages: mpsc::Sender<Message>) {
    while let Some((host, reachable)) = reachable.recv().await {
        if messages.send(Message::inside(Inside::Reachable { host, reachable })).await.is_err() {
            return;
        }
    }
}

/// Walks the audit log once. A long one takes its time, and nothing waits for it.
async fn verify_audit(store: Store, messages: mpsc::Sender<Message>) {
    match store.audit_verify().await {
        Ok(Ok(rows)) => tracing::info!(rows, "the audit log is whole"),
        // When the engine is gone there is nobody to tell.
        Ok(Err(broken)) => drop(messages.send(Message::inside(Inside::AuditBroken(broken))).await),
        Err(error) => tracing::error!(%error, "failed to verify the audit log"),
    }
}

/// Reads the directory again whenever something in it changed, and now and then.
async fn watch_resources(
    directory: PathBuf,
    mut before: Resources,
    reread: Arc<Notify>,
    messages: mpsc::Sender<Message>,
) {
    let (tell, mut told) = mpsc::channel::<()>(1);
    let watcher = watcher(&directory, tell);
    loop {
        let mut asked = false;
        tokio::select! {
            _ = told.recv(), if watcher.is_some() => {
                while tokio::time::timeout(QUIET, told.recv()).await.is_ok_and(|told| told.is_some()) {}
            }
            () = reread.notified() => asked = true,
            () = tokio::time::sleep(REREAD) => {}
        }
        let now = read(directory.clone(), before.clone()).await;
        if !asked && now.same_as(&before) {
            continue;
        }
        before = now.clone();
        if messages.send(Message::inside(Inside::Resources(Box::new(now)))).await.is_err() {
            return;
        }
    }
}

/// The directory itself is watched, never a file in it: a mounted directory changes by one swap of a link.
fn watcher(directory: &Path, tell: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |_| {
        // One waiting word is as good as many.
        let _ = tell.try_send(());
    })
    .ok()?;
    watcher.watch(directory, notify::RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

impl World {
    async fn load(
        settings: &Settings,
        loop_: mpsc::Sender<Message>,
        metrics: Metrics,
    ) -> Result<Self, StartError> {
        let store = settings.store.clone();
        let installation = InstallationId(store.installation());
        let clock = Clock::from(store.clock().await?);
        let means = Arc::new(Means {
            installation: installation.to_string(),
            store: store.clone(),
            metrics: metrics.clone(),
            loop_: loop_.clone(),
        });
        let post = Arc::new(Post {
            installation,
            order_key: settings.order_key.clone(),
            store: store.clone(),
            road: settings.road.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            loop_,
        });
        let mut own_keys = settings.earlier_keys.clone();
        own_keys.push(settings.order_key.public());
        let mut world = Self {
            installation,
            epoch: store.epoch().await?,
            clock,
            owned: BTreeMap::new(),
            sets: BTreeMap::new(),
            hosts: BTreeMap::new(),
            resources: Resources::default(),
            reread: Arc::new(Notify::new()),
            makers: settings.makers.clone(),
            means,
            post,
            metrics,
            audit_broken: None,
            own_keys,
        };
        for row in store.credentials().await? {
            let kept: Kept = serde_json::from_str(&row.state)
                .map_err(|why| StartError::State { name: row.name.clone(), why: why.to_string() })?;
            world.sets.insert(kept.plan.credential.set.clone(), row.name.clone());
            world.owned.insert(row.name, Owned::new(kept, row.revision));
        }
        for row in store.hosts().await? {
            if let Some((id, mut host)) = Host::new(row) {
                host.open_lane(&world.post);
                world.hosts.insert(id, host);
            } else {
                tracing::error!("a host's row in the store is damaged: enrol that host again");
            }
        }
        Ok(world)
    }

    /// Every credential is told that it starts, then what resources and hosts say.
    fn begin(&mut self, restored: bool, resources: Resources) -> Batch {
        let mut batch = Batch::default();
        let mut turn = Turn::at(self.clock.now());
        let event = Event::Started { epoch: self.epoch, restored };
        let names: Vec<CredentialName> = self.owned.keys().cloned().collect();
        for name in &names {
            self.apply_or_log(&mut turn, &mut batch, name, event.clone());
        }
        self.take_resources(&mut turn, &mut batch, resources);
        let retired: Vec<TargetId> = self
            .hosts
            .values()
            .filter(|host| host.row.status == HostStatus::Retired)
            .map(|host| host.target.clone())
            .collect();
        for name in &names {
            // Told again: a crash may have come between the host's row and the credential's.
            let known = self.owned.get(name).map(|owned| {
                let targets = owned.kept.state.targets();
                targets.filter(|view| !view.retired).map(|view| view.target).collect::<BTreeSet<_>>()
            });
            for target in
                retired.iter().filter(|target| known.as_ref().is_some_and(|known| known.contains(*target)))
            {
                self.apply_or_log(&mut turn, &mut batch, name, Event::HostRetired { target: target.clone() });
            }
            self.select(&mut turn, &mut batch, name);
        }
        let words = if restored { "after a restore" } else { "" };
        batch.audit.push(entry(ENGINE, "started", "installation", words));
        batch
    }

    /// What is selected by a plan now. A store target always answers for itself.
    pub(crate) fn selection(&self, plan: &Plan) -> BTreeMap<TargetId, Selection> {
        let wanted = &plan.credential.hosts;
        let mut selected = BTreeMap::new();
        for host in self.hosts.values().filter(|host| host.is_active()) {
            let row = &host.row.host;
            if wanted.selects(&row.name, &row.labels) {
                let canary = wanted.is_canary(&row.labels);
                selected.insert(host.target.clone(), Selection { canary, kind: TargetKind::Vm });
            }
        }
        for store in &plan.credential.stores {
            if let Ok(target) = store_target_id(store) {
                selected.insert(target, Selection { canary: false, kind: TargetKind::Store });
            }
        }
        selected
    }

    pub(crate) fn take_resources(&mut self, turn: &mut Turn, batch: &mut Batch, mut resources: Resources) {
        let wanted: Vec<CredentialName> = resources.credentials.keys().cloned().collect();
        for name in wanted {
            let plan =
                resources.credentials.get(&name).and_then(|credential| Plan::of(credential, &resources));
            let Some(plan) = plan else { continue };
            let equipment = match plan.equip(self.makers.as_ref()) {
                Ok(equipment) => equipment,
                Err(unusable) => {
                    let fault = resources.fault_of(&unusable.reference, &unusable.words);
                    if !resources.faults.contains(&fault) {
                        resources.faults.push(fault);
                    }
                    self.keep_plan(turn, batch, &name);
                    continue;
                }
            };
            if let Some(words) = self.conflict(&name, &plan) {
                if self.owned.get(&name).is_some_and(|owned| !owned.kept.state.is_deleted()) {
                    resources.fault(&name, &words);
                    self.keep_plan(turn, batch, &name);
                } else {
                    resources.refuse(&name, &words);
                }
                continue;
            }
            self.adopt_plan(turn, batch, &name, plan, equipment);
        }
        for fault in &resources.faults {
            tracing::warn!(%fault, "a resource was not taken");
        }
        let orphans: Vec<CredentialName> =
            self.owned.keys().filter(|name| !resources.credentials.contains_key(*name)).cloned().collect();
        for name in orphans {
            self.orphan(turn, batch, &name);
        }
        self.resources = resources;
    }

    /// What about a known credential can never change, or belongs to another one.
    fn conflict(&self, name: &CredentialName, plan: &Plan) -> Option<String> {
        let set = &plan.credential.set;
        if let Some(owned) = self.owned.get(name) {
            if owned.kept.state.is_deleted() {
                return Some(format!(
                    "{name} was deleted and is being withdrawn; wait until it is gone, or use another name"
                ));
            }
            if owned.set() != set {
                return Some(format!(
                    "the set of {name} is {} and cannot change; make another credential",
                    owned.set()
                ));
            }
        }
        if let Some(target) = self.owned.get(name).and_then(|owned| owned.retired_store(plan)) {
            return Some(format!(
                "{target} was retired for {name} for good: give the store target another name"
            ));
        }
        let other = self.sets.get(set).filter(|other| *other != name)?;
        Some(format!("the set {set} is still that of the credential {other}"))
    }

    fn adopt_plan(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        name: &CredentialName,
        plan: Plan,
        equipment: crate::catalogue::Equipment,
    ) {
        let policy = equipment.policy(&plan.credential.policy);
        let known = self.owned.get(name).map(|owned| owned.kept.plan == plan);
        if known.is_none() {
            let state = Credential::new(policy.clone(), self.epoch);
            let kept = Kept {
                state,
                plan: plan.clone(),
                rotated_at: UnixMillis(0),
                revisions: BTreeMap::new(),
                brought: None,
                stores: BTreeMap::new(),
                measured: BTreeMap::new(),
                origins: Some(Origins::default()),
            };
            self.sets.insert(plan.credential.set.clone(), name.clone());
            self.owned.insert(name.clone(), Owned::new(kept, 0));
            batch.audit.push(entry(ENGINE, "created", &format!("credential/{name}"), ""));
            let event = Event::Started { epoch: self.epoch, restored: false };
            self.apply_or_log(turn, batch, name, event);
        }
        if known == Some(false) {
            let what = "its resource, or the one of its generator or source; versions from before are asked about and \
                        revoked where they were made";
            batch.audit.push(entry(ENGINE, "changed", &format!("credential/{name}"), what));
        }
        let Some(owned) = self.owned.get_mut(name) else { return };
        let same_backend = known == Some(true) && owned.equipment.is_some();
        owned.kept.plan = plan;
        if !same_backend {
            owned.equipment = Some(equipment);
            owned.watch = None;
        }
        let (changed, orphaned) = (owned.kept.state.policy() != &policy, owned.kept.state.is_orphaned());
        if changed {
            self.apply_or_log(turn, batch, name, Event::PolicyChanged(policy));
        }
        if orphaned {
            self.apply_or_log(turn, batch, name, Event::Orphaned(false));
        }
        batch.dirty.insert(name.clone());
        self.select(turn, batch, name);
        self.watch_source(name);
    }

    /// The resource is there and cannot be taken: the last good one stays in force.
    fn keep_plan(&mut self, turn: &mut Turn, batch: &mut Batch, name: &CredentialName) {
        let Some(owned) = self.owned.get_mut(name) else { return };
        if owned.equipment.is_none() {
            owned.equipment = owned.kept.plan.equip(self.makers.as_ref()).ok();
        }
        if owned.kept.state.is_orphaned() {
            self.apply_or_log(turn, batch, name, Event::Orphaned(false));
        }
        self.select(turn, batch, name);
        self.watch_source(name);
    }

    fn orphan(&mut self, turn: &mut Turn, batch: &mut Batch, name: &CredentialName) {
        let Some(owned) = self.owned.get_mut(name) else { return };
        if owned.equipment.is_none() {
            owned.equipment = owned.kept.plan.equip(self.makers.as_ref()).ok();
        }
        if !owned.kept.state.is_orphaned() && !owned.kept.state.is_deleted() {
            tracing::warn!(credential = %name, "its resource vanished: it is still served, and never retired");
            self.apply_or_log(turn, batch, name, Event::Orphaned(true));
        }
        self.select(turn, batch, name);
        // What somebody else rotates is still noticed.
        self.watch_source(name);
    }

    fn watch_source(&mut self, name: &CredentialName) {
        let means = self.means.clone();
        let Some(owned) = self.owned.get_mut(name) else { return };
        let Some(source) = owned.equipment.as_ref().and_then(|equipment| equipment.source()).cloned() else {
            return;
        };
        if owned.watch.is_none() && !owned.kept.state.is_deleted() {
            let files = owned.kept.plan.credential.files.clone();
            let known = match &owned.kept.brought {
                Some(brought) => Known::Digest(brought.clone()),
                None => owned.newest_value().map_or(Known::Nothing, Known::Kept),
            };
            let origin = Origin::of(&owned.kept.plan);
            owned.watch = Some(Watch::start(means, name.clone(), source, origin, files, known));
        }
    }
}
