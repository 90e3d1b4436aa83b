//! Who reads what: the fanotify group, looks at all processes, and which kind of evidence that makes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holders::{ConsumerLife, Detail, Evidence, File, Look, Proc, ProcessId, Rules, Scene, Table, UnitLife};
use host_policy::{EvidenceMode, SetPolicy};
use lifecycle::{Evidence as Kind, Millis, Version};
use opens::{Capability, Group, Queue};
use units::{Health, LifeId};

/// The name of the group's descriptor in the descriptor store of whoever supervises us.
pub(crate) const KEPT_NAME: &str = "opens";

/// What this host can see of readers.
pub(crate) struct Witness {
    pub(crate) proc: Proc,
    group: Option<Group>,
    kind: Kind,
    why: String,
    /// Whether the group was kept for us over our restart, with its marks and events.
    pub(crate) kept: bool,
    /// Whether somebody keeps the group over our next restart.
    pub(crate) stored: bool,
    pub(crate) boot_id: String,
    ours: BTreeSet<i32>,
}

/// All processes at one moment, and what systemd says of units.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) table: Table,
    pub(crate) units: BTreeMap<String, UnitLife>,
}

impl View {
    pub(crate) const fn scene<'a>(&'a self, rules: &'a Rules) -> Scene<'a> {
        Scene { table: &self.table, rules, units: &self.units }
    }
}

impl Witness {
    /// The strongest evidence that works here. `kept` is the group that somebody kept over our restart.
    pub(crate) fn new(mode: EvidenceMode, kept: Option<OwnedFd>, boot_id: String) -> Self {
        let mut witness = Self {
            proc: Proc::new(),
            group: None,
            kind: Kind::Declared,
            why: String::new(),
            kept: false,
            stored: false,
            boot_id,
            ours: i32::try_from(std::process::id()).into_iter().collect(),
        };
        if mode == EvidenceMode::Declared {
            "the policy says evidence = \"declared\"".clone_into(&mut witness.why);
            return witness;
        }
        match Capability::probe() {
            Capability::Kernel => witness.open_group(kept),
            Capability::Without(why) => witness.why = format!("opens cannot be seen here: {why}"),
        }
        witness
    }

    fn open_group(&mut self, kept: Option<OwnedFd>) {
        if let Some(kept) = kept {
            match Group::take_back(kept) {
                Ok(group) => {
                    self.kept = true;
                    self.group = Some(group);
                }
                Err(error) => tracing::warn!(%error, "what was kept for us is not used"),
            }
        }
        if self.group.is_none() {
            match Group::open(Queue::Unlimited) {
                Ok(group) => self.group = Some(group),
                Err(error) => self.why = error.to_string(),
            }
        }
        if let Some(group) = &self.group {
            self.kind = Kind::Kernel;
            self.stored = store(group);
        }
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// To be waited on until it is readable: somebody has opened or read a version.
    pub(crate) fn descriptor(&self) -> Option<OwnedFd> {
        self.group.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    /// Watches each new file of a version before it is visible, and writes down which it is.
    pub(crate) fn marker<'a>(
        &'a self,
        evidence: &'a mut Evidence,
        version: Version,
        policy: &'a SetPolicy,
    ) -> impl FnMut(&str, BorrowedFd<'_>) -> io::Result<()> + 'a {
        move |name, fd| {
            if let Some(group) = &self.group {
                group.mark(fd).map_err(io::Error::other)?;
            }
            let stat = rustix::fs::fstat(fd)?;
            let place = policy.places.iter().find(|place| place.path.to_str() == Some(name));
            let access = place.map_or_else(|| policy.access_of(name), |place| &place.access);
            evidence.watch(
                version,
                File {
                    name: place.map_or(name, |place| &place.file).to_owned(),
                    place: place.map(|_| name.to_owned()),
                    device: stat.st_dev,
                    inode: stat.st_ino,
                    owner: stat.st_uid,
                    group: stat.st_gid,
                    // The mark comes while nobody may open it yet.
                    mode: access.mode,
                },
            );
            Ok(())
        }
    }

    /// What was seen since the last look, and all processes.
    pub(crate) fn look(&mut self) -> (Look, Table) {
        match &self.group {
            Some(group) => self.proc.look(group, None),
            None => (Look::default(), self.proc.table(Detail::Lives)),
        }
    }

    /// Who is who for a set.
    pub(crate) fn rules(&self, policy: Option<&SetPolicy>, host_wide: &[host_policy::NotAConsumer]) -> Rules {
        let Some(policy) = policy else { return Rules { ours: self.ours.clone(), ..Rules::default() } };
        let mut policy = policy.clone();
        policy.not_a_consumer.extend_from_slice(host_wide);
        Rules::of(&policy, self.ours.clone())
    }
}

/// Gives the group to whoever supervises us, to be handed back after a restart. Works with every supervisor that
/// speaks `sd_notify(3)`.
fn store(group: &Group) -> bool {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return false;
    }
    let state = [sd_notify::NotifyState::FdStore, sd_notify::NotifyState::FdName(KEPT_NAME)];
    match sd_notify::notify_with_fds(&state, &[group.as_fd()]) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "failed to give the group of opens to the descriptor store");
            false
        }
    }
}

/// The life of a consumer as evidence takes it.
pub(crate) fn declared_life(
    look: &Result<units::Look, units::UnitError>,
    unit: Option<&str>,
    table: &Table,
) -> ConsumerLife {
    let look = match look {
        Ok(look) => look,
        // A pid file that names somebody else says nothing of whether the consumer runs.
        Err(error) => return ConsumerLife::Unknown(error.to_string()),
    };
    match (&look.life, unit) {
        (None, _) if look.health == Health::Changing => {
            ConsumerLife::Unknown("it is changing state".to_owned())
        }
        (None, _) => ConsumerLife::NotRunning,
        (Some(LifeId::Process { pid, start }), _) => {
            ConsumerLife::Process(ProcessId { pid: *pid, start: *start })
        }
        (Some(LifeId::Invocation(invocation)), unit) => {
            let main = table.processes.get(&look.main_pid).map(|process| process.id);
            ConsumerLife::Unit {
                name: unit.unwrap_or_default().to_owned(),
                main,
                invocation: invocation.clone(),
                began: look.began_ms.map(Millis).or(main.map(|id| table.began(id))).unwrap_or(Millis(0)),
            }
        }
    }
}
