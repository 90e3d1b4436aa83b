//! Persisted steps, counted: every commit and every effect that was carried out. A test counts them in a run that
//! nobody kills, then ends another run at each of them, lets each of them fail once, or takes every effect twice.
//!
//! Without the `failpoints` feature nothing is counted, nothing fails and nothing ever ends.

#[cfg(feature = "failpoints")]
use std::collections::BTreeMap;
#[cfg(feature = "failpoints")]
use std::io::Write as _;
#[cfg(feature = "failpoints")]
use std::path::PathBuf;
#[cfg(feature = "failpoints")]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(feature = "failpoints")]
use std::sync::{Arc, Mutex, PoisonError};

/// The environment variable that names the step at which a process built with `failpoints` dies: `revoke:1` is the
/// first `revoke`.
#[cfg(feature = "failpoints")]
pub const VARIABLE: &str = "ESO_FAILPOINT";
/// The environment variable that names the try that fails once, in the same form.
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
    taken: Count,
    at: Option<Which>,
    tries: Count,
    fails_at: Option<Which>,
    /// The next try of this fails, and none after it.
    fails_next: Mutex<Option<&'static str>>,
    twice: bool,
    log: Option<PathBuf>,
    abort: bool,
    dead: AtomicBool,
}

/// One of the steps of a run.
#[cfg(feature = "failpoints")]
enum Which {
    /// This one of all.
    Of(u64),
    /// This one of those with the name.
    Named(String, u64),
}

#[cfg(feature = "failpoints")]
impl Which {
    /// `name:number`. What reads otherwise is an error of the test that set it.
    fn from_environment(variable: &str) -> Option<Self> {
        let text = std::env::var(variable).ok()?;
        let named = text.rsplit_once(':').and_then(|(name, nth)| Some((name, nth.parse().ok()?)));
        let Some((name, nth)) = named else {
            eprintln!("{variable}={text}: name and number, as in revoke:1");
            std::process::abort();
        };
        Some(Self::Named(name.to_owned(), nth))
    }

    fn is(&self, what: &str, (of_all, of_name): (u64, u64)) -> bool {
        match self {
            Self::Of(nth) => *nth == of_all,
            Self::Named(name, nth) => name == what && *nth == of_name,
        }
    }
}

/// How often what was counted, by name.
#[cfg(feature = "failpoints")]
#[derive(Default)]
struct Count(Mutex<BTreeMap<&'static str, u64>>);

#[cfg(feature = "failpoints")]
impl Count {
    /// Counts one more. How many there are now, of all and of this name.
    fn one_more(&self, what: &'static str) -> (u64, u64) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.entry(what).or_default() += 1;
        (counted.values().sum(), counted[what])
    }

    fn all(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl Steps {
    /// What the environment says; nothing without the `failpoints` feature.
    pub fn from_environment() -> Self {
        #[cfg(feature = "failpoints")]
        {
            Self {
                inner: Arc::new(Inner {
                    at: Which::from_environment(VARIABLE),
                    fails_at: Which::from_environment(VARIABLE_FAIL),
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
        Self { inner: Arc::new(Inner { at: Some(Which::Of(at)), ..Inner::default() }) }
    }

    /// The next try of `what` fails, and none after it.
    #[cfg(feature = "failpoints")]
    pub fn fail_next(&self, what: &'static str) {
        *self.inner.fails_next.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// How many steps were taken.
    #[cfg(feature = "failpoints")]
    pub fn count(&self) -> u64 {
        self.inner.taken.all()
    }

    /// Counts one step that is about to be taken. True when it must fail this time.
    #[cfg_attr(
        not(feature = "failpoints"),
        allow(clippy::unused_self, reason = "counts with the feature only")
    )]
    pub fn fails(&self, what: &'static str) -> bool {
        #[cfg(feature = "failpoints")]
        {
            let tried = self.inner.tries.one_more(what);
            self.inner.note("tried", what);
            let mut next = self.inner.fails_next.lock().unwrap_or_else(PoisonError::into_inner);
            self.inner.fails_at.as_ref().is_some_and(|which| which.is(what, tried))
                || next.take_if(|next| *next == what).is_some()
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
            let taken = self.inner.taken.one_more(what);
            self.inner.note("steps", what);
            if self.inner.at.as_ref().is_some_and(|which| which.is(what, taken)) {
                if self.inner.abort {
                    eprintln!("failpoint: ended after step {} ({what})", taken.0);
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
