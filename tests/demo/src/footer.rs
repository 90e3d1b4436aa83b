//! The live lines at the bottom of the terminal: what each application does, by the protected server's own log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lifecycle::Version;
use tests_services::logins::LoginLog;

use crate::host::{CAST, Cast, HOSTS};
use crate::judge::Tally;
use crate::terminal::Terminal;

/// How often the lines change.
const EVERY: Duration = Duration::from_millis(200);

/// Which version each name at the server belongs to: the names end in the effect that minted the version.
pub type Versions = Arc<Mutex<BTreeMap<String, Version>>>;

/// The live lines. They go when it is dropped.
pub struct Footer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Footer {
    /// Begins to show, where somebody looks.
    pub fn show(terminal: &Terminal, log: PathBuf, versions: Versions) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, terminal) = (stop.clone(), terminal.clone());
        let thread = terminal.is_live().then(|| {
            std::thread::spawn(move || {
                let mut log = LoginLog::new(log);
                let rule = terminal.live_line();
                rule.show(format!("\x1b[2m{}\x1b[0m", "─".repeat(92)));
                let lines = CAST.map(|cast| (cast, terminal.live_line()));
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok(logins) = log.read() {
                        for (cast, line) in &lines {
                            let newest =
                                logins.iter().rev().find(|login| login.client == Some(cast.source()));
                            let version = newest.and_then(|login| version_of(&versions, &login.user));
                            line.show(text(cast, Tally::of(logins, cast.source(), 0..u64::MAX), version));
                        }
                    }
                    std::thread::sleep(EVERY);
                }
            })
        });
        Self { stop, thread }
    }
}

impl Drop for Footer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only draws; whatever became of it, the demo goes on.
            let _ = thread.join();
        }
    }
}

fn version_of(versions: &Versions, user: &str) -> Option<Version> {
    let (_, effect) = user.rsplit_once('_')?;
    versions.lock().unwrap_or_else(PoisonError::into_inner).get(effect).copied()
}

fn text(cast: &Cast, tally: Tally, version: Option<Version>) -> String {
    let version = version.map_or_else(|| "?".to_owned(), |version| version.to_string());
    let failed = match tally.failed {
        0 => "\x1b[32m0 failed\x1b[0m".to_owned(),
        failed => format!("\x1b[1;31m{failed} failed\x1b[0m"),
    };
    format!(
        "  {} {:8} {:34} logs in with version \x1b[1m{version}\x1b[0m  {:>6} logins, {failed}",
        HOSTS[cast.host],
        cast.name,
        cast.adoption.in_words(),
        tally.logins,
    )
}
