//! Persisted steps, counted: every commit and every effect that was carried out. A test counts them in a run that
//! nobody kills, then ends another run at each of them.
//!
//! Without the `failpoints` feature nothing is counted and nothing ever ends.

#[cfg(feature = "failpoints")]
use std::sync::Arc;
#[cfg(feature = "failpoints")]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The environment variable that names the step at which a process built with `failpoints` dies.
#[cfg(feature = "failpoints")]
pub const VARIABLE: &str = "ESO_FAILPOINT";

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
    abort: bool,
    dead: AtomicBool,
}

impl Steps {
    /// Kills the process at the step that the environment names; never without the `failpoints` feature.
    pub fn from_environment() -> Self {
        #[cfg(feature = "failpoints")]
        if let Some(at) = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()) {
            return Self {
                inner: Arc::new(Inner { at: AtomicU64::new(at), abort: true, ..Inner::default() }),
            };
        }
        Self::default()
    }

    /// Ends only the store at step `at` (0 is never): from then on it answers `Closed`, as after a power cut.
    #[cfg(feature = "failpoints")]
    pub fn ending_at(at: u64) -> Self {
        Self { inner: Arc::new(Inner { at: AtomicU64::new(at), ..Inner::default() }) }
    }

    /// How many steps were taken.
    #[cfg(feature = "failpoints")]
    pub fn count(&self) -> u64 {
        self.inner.count.load(Ordering::SeqCst)
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
