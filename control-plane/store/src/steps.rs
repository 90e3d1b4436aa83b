//! Persisted steps, counted: every commit and every effect that was carried out. A test counts them in a run that
//! nobody kills, then ends another run at each of them, lets each of them fail once, or takes every effect twice.
//!
//! Without the `failpoints` feature nothing is counted, nothing fails and nothing ever ends.

#[cfg(feature = "failpoints")]
use std::io::Write as _;
#[cfg(feature = "failpoints")]
use std::path::PathBuf;
#[cfg(feature = "failpoints")]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(feature = "failpoints")]
use std::sync::{Arc, Mutex, PoisonError};

/// The environment variable that names the step at which a process built with `failpoints` dies.
#[cfg(feature = "failpoints")]
pub const VARIABLE: &str = "ESO_FAILPOINT";
/// The environment variable that names the try that fails once.
#[cfg(feature = "failpoints")]
pub const VARIABLE_FAIL: &str = "ESO_FAILPOINT_FAIL";
/// The environment variable that has every effect carried out twice, whatever it says.
#[cfg(feature = "failpoints")]
pub const VARIABLE_TWICE: &str = "ESO_FAILPOINT_TWICE";
/// The environment variable that names a file: each step is appended to the one with its name and the extension
/// `steps`, each try to the one with the extension `tried`.
#[cfg(feature = "failpoints")]
pub const VARIABLE_LOG: &str = "ESO_FAILPOINT_LOG";

/// Counts persisted steps.
#[derive(Clone, Default)]
pub struct Steps {
    #[cfg(feature = "failpoints")]
    inner: Arc<Inner>,
}

#[cfg(feature = "failpoints")]
#[derive(Default)]
struct Inner {
    count: AtomicU64,
    /// 0 is never.
    at: AtomicU64,
    tries: AtomicU64,
    /// 0 is never.
    fails_at: u64,
    /// The next try of this fails, and none after it.
    fails_next: Mutex<Option<&'static str>>,
    twice: bool,
    log: Option<PathBuf>,
    abort: bool,
    dead: AtomicBool,
}

impl Steps {
    /// What the environment says; nothing without the `failpoints` feature.
    pub fn from_environment() -> Self {
        #[cfg(feature = "failpoints")]
        {
            let number =
                |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            Self {
                inner: Arc::new(Inner {
                    at: AtomicU64::new(number(VARIABLE)),
                    fails_at: number(VARIABLE_FAIL),
                    twice: std::env::var_os(VARIABLE_TWICE).is_some(),
                    log: std::env::var_os(VARIABLE_LOG).map(PathBuf::from),
                    abort: true,
                    ..Inner::default()
                }),
            }
        }
        #[cfg(not(feature = "failpoints"))]
        Self::default()
    }

    /// Ends only the store at step `at` (0 is never): from then on it answers `Closed`, as after a power cut.
    #[cfg(feature = "failpoints")]
    pub fn ending_at(at: u64) -> Self {
        Self { inner: Arc::new(Inner { at: AtomicU64::new(at), ..Inner::default() }) }
    }

    /// The next try of `what` fails, and none after it.
    #[cfg(feature = "failpoints")]
    pub fn fail_next(&self, what: &'static str) {
        *self.inner.fails_next.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// How many steps were taken.
    #[cfg(feature = "failpoints")]
    pub fn count(&self) -> u64 {
        self.inner.count.load(Ordering::SeqCst)
    }

    /// Counts one step that is about to be taken. True when it must fail this time.
    #[cfg_attr(
        not(feature = "failpoints"),
        allow(clippy::unused_self, reason = "counts with the feature only")
    )]
    pub fn fails(&self, what: &'static str) -> bool {
        #[cfg(feature = "failpoints")]
        {
            let tried = self.inner.tries.fetch_add(1, Ordering::SeqCst) + 1;
            self.inner.note("tried", what);
            let mut next = self.inner.fails_next.lock().unwrap_or_else(PoisonError::into_inner);
            tried == self.inner.fails_at || next.take_if(|next| *next == what).is_some()
        }
        #[cfg(not(feature = "failpoints"))]
        {
            let _ = what;
            false
        }
    }

    /// Whether every effect is carried out twice.
    #[cfg_attr(
        not(feature = "failpoints"),
        allow(clippy::unused_self, reason = "says so with the feature only")
    )]
    pub fn twice(&self) -> bool {
        #[cfg(feature = "failpoints")]
        return self.inner.twice;
        #[cfg(not(feature = "failpoints"))]
        false
    }

    /// Counts one step that is now persisted or done. False when this was the last one.
    #[cfg_attr(
        not(feature = "failpoints"),
        allow(clippy::unused_self, reason = "counts with the feature only")
    )]
    pub fn reached(&self, what: &'static str) -> bool {
        #[cfg(feature = "failpoints")]
        {
            let count = self.inner.count.fetch_add(1, Ordering::SeqCst) + 1;
            self.inner.note("steps", what);
            if count == self.inner.at.load(Ordering::SeqCst) {
                if self.inner.abort {
                    eprintln!("failpoint: ended after step {count} ({what})");
                    std::process::abort();
                }
                self.inner.dead.store(true, Ordering::SeqCst);
            }
        }
        let _ = what;
        !self.dead()
    }

    /// Whether the last step was taken.
    #[cfg_attr(
        not(feature = "failpoints"),
        allow(clippy::unused_self, reason = "counts with the feature only")
    )]
    pub fn dead(&self) -> bool {
        #[cfg(feature = "failpoints")]
        return self.inner.dead.load(Ordering::SeqCst);
        #[cfg(not(feature = "failpoints"))]
        false
    }
}

#[cfg(feature = "failpoints")]
impl Inner {
    /// A test that asked for a log and has none sees it by its count.
    fn note(&self, extension: &str, what: &str) {
        let Some(path) = &self.log else { return };
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path.with_extension(extension));
        let _ = log.and_then(|mut log| log.write_all(format!("{what}\n").as_bytes()));
    }
}
