//! Notices changes of the policy and of the directories that hold sets and places.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use crate::input::Input;
use crate::run::Noticing;

/// Watches directories, never files: what is renamed over a file is noticed too.
pub(crate) struct Watch {
    watcher: Option<RecommendedWatcher>,
    followed: BTreeSet<PathBuf>,
    config: Arc<Mutex<PathBuf>>,
}

impl Watch {
    /// Without inotify everything is still looked at, at the refresh interval.
    pub(crate) fn new(noticing: Noticing, inbox: Sender<Input>) -> Self {
        let config = Arc::new(Mutex::new(PathBuf::new()));
        if noticing == Noticing::AtIntervals {
            return Self { watcher: None, followed: BTreeSet::new(), config };
        }
        let of_policy = Arc::clone(&config);
        let notice = move |event: notify::Result<Event>| {
            let Ok(event) = event else { return };
            // Reading changes nothing.
            if matches!(event.kind, EventKind::Access(_)) {
                return;
            }
            let config = of_policy.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let policy = event.paths.iter().any(|path| path.starts_with(&config));
            // The other end is gone only when the applier ends.
            let _ = inbox.send(if policy { Input::PolicyTouched } else { Input::PlacesTouched });
        };
        let watcher = notify::recommended_watcher(notice);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "changes are noticed at the refresh interval only");
        }
        Self { watcher: watcher.ok(), followed: BTreeSet::new(), config }
    }

    /// Watches the policy's directory, and these.
    pub(crate) fn follow<'p>(&mut self, config: &Path, directories: impl IntoIterator<Item = &'p Path>) {
        config.clone_into(&mut self.config.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(watcher) = &mut self.watcher else { return };
        let conf_d = config.join("conf.d");
        let wanted: BTreeSet<PathBuf> =
            directories.into_iter().map(Path::to_owned).chain([config.to_owned(), conf_d]).collect();
        for left in self.followed.difference(&wanted) {
            // Not watched (any more): nothing to end.
            let _ = watcher.unwatch(left);
        }
        for new in &wanted {
            // Again also for known ones: a directory may have been made anew.
            if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::debug!(path = %new.display(), %error, "not watched");
            }
        }
        self.followed = wanted;
    }
}
