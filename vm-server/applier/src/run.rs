//! Starts the applier and ends it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;

use host_policy::{HostPolicy, PolicyError};
use units::Supervisor;

use crate::applier::{Applier, Beginning};
use crate::consumers::Tasks;
use crate::copies::Copies;
use crate::input::Input;
use crate::journal::{Journal, JournalError};
use crate::keep::{self, Identity, KeepError};
use crate::link::Whoami;
use crate::tools::Tools;
use crate::watch::Watch;
use crate::witness::{KEPT_NAME, Witness};
use crate::{applications, clock, link};

/// Why the applier cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The policy is not valid.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Keys or trust anchor.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A directory or socket.
    #[error("failed to {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// When changes of the policy and of places are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticing {
    /// As soon as they happen, where the kernel has an inotify instance left for us.
    AtOnce,
    /// At the refresh interval. For many appliers in one process, whose user has few inotify instances.
    AtIntervals,
}

/// Runs until `stop` is ready. `ready` is called once every set is as it should be and applications may rely on it.
pub async fn run(
    config: &Path,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    run_noticing(config, Noticing::AtOnce, ready, stop).await
}

/// As [`run`].
pub async fn run_noticing(
    config: &Path,
    noticing: Noticing,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    allow_descriptors();
    // What changes is told by its whole path.
    let config = std::path::absolute(config).map_err(|source| RunError::Io {
        doing: "find",
        path: config.to_owned(),
        source,
    })?;
    let policy = HostPolicy::load(&config)?;
    let daemon = policy.daemon.clone();
    let state = daemon.applier_state();
    let (identity, keeper) = Identity::load(&state)?;
    let anchor = keep::load_anchor(&state)?;
    let (journal, records) = Journal::open(&state.join("journal"))?;
    let copies = Copies::open(&state, &identity.copies)?;
    shared_dir(&daemon.run_dir)?;
    shared_dir(&daemon.sets_dir())?;
    let program = std::env::current_exe().map_err(|source| RunError::Io {
        doing: "find",
        path: "our own program".into(),
        source,
    })?;
    let supervisor = Arc::new(Supervisor::new(daemon.supervisor, program));
    let (inbox, outbox) = channel();
    let tasks = Tasks::new(tokio::runtime::Handle::current(), supervisor, inbox.clone());
    let mark = daemon.run_dir.join("taking");
    let mut witness = Witness::new(daemon.evidence, kept(KEPT_NAME), clock::boot_id(), &mark);
    witness.watch(inbox.clone()).map_err(|source| RunError::Io {
        doing: "start",
        path: "the thread that watches readers".into(),
        source,
    })?;
    let whoami = Whoami { host: identity.host(), installation: anchor.installation };
    let ids = (whoami.installation, whoami.host);
    let tools = Tools::new(daemon.clone(), ids, journal, copies, tasks, witness, disk());
    let watch = Watch::new(noticing, inbox.clone());
    let named = tokio::sync::watch::Sender::default();
    let heard_of = named.subscribe();
    let beginning = Beginning { tools, identity, keeper, anchor, policy, config, records, watch, named };
    // It blocks, so it has a thread of its own; what it waits for runs on this one.
    let (began, has_begun) = tokio::sync::oneshot::channel();
    let thread = tokio::task::spawn_blocking(move || match Applier::begin(beginning) {
        Ok(applier) => {
            let _ = began.send(());
            applier.run(&outbox);
            Ok(())
        }
        Err(error) => Err(error),
    });
    if has_begun.await.is_err() {
        return ended(thread.await);
    }
    let socket = daemon.app_socket();
    let listener = applications::listen(&socket).map_err(|source| RunError::Io {
        doing: "listen on",
        path: socket.clone(),
        source,
    })?;
    let applications = tokio::spawn(applications::serve(listener, heard_of, inbox.clone()));
    let link = tokio::spawn(link::serve(daemon.applier_socket(), whoami, inbox.clone()));
    ready();
    stop.await;
    for task in [applications, link] {
        task.abort();
    }
    // It may have ended by itself.
    let _ = inbox.send(Input::Stop);
    ended(thread.await)
}

fn ended(thread: Result<Result<(), JournalError>, tokio::task::JoinError>) -> Result<(), RunError> {
    match thread {
        Ok(result) => Ok(result?),
        Err(error) => Err(RunError::Io {
            doing: "run",
            path: "the applier's thread".into(),
            source: io::Error::other(error.to_string()),
        }),
    }
}

/// As many descriptors as we may have: some inodes are held by one each.
fn allow_descriptors() {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limits.maximum, ..limits };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of descriptors stays as it is");
    }
}

/// A directory that applications may enter and only we may write.
fn shared_dir(path: &Path) -> Result<(), RunError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|source| RunError::Io {
        doing: "make",
        path: path.to_owned(),
        source,
    })
}

/// A descriptor that whoever supervises us kept over our restart.
fn kept(name: &str) -> Option<OwnedFd> {
    let fds = sd_notify::listen_fds_with_names().ok()?;
    let (number, _) = fds.into_iter().find(|(_, known)| known == name)?;
    // Of our own process: a copy, which is ours to close.
    let own =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).ok()?;
    let copy = rustix::process::pidfd_getfd(&own, number, rustix::process::PidfdGetfdFlags::empty());
    copy.inspect_err(|error| tracing::warn!(%error, "failed to take back the group of opens")).ok()
}

#[cfg(not(feature = "failpoints"))]
fn disk() -> sets::Disk {
    sets::Disk::default()
}

#[cfg(feature = "failpoints")]
fn disk() -> sets::Disk {
    struct Counted;
    impl sets::Gate for Counted {
        fn before(&self, operation: &'static str) -> Result<(), io::Error> {
            crate::failpoint::check(operation)
        }
    }
    sets::Disk::gated(Arc::new(Counted))
}
