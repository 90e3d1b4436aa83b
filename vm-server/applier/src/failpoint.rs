//! Dies at a chosen step, so that tests can kill the process at every one of them.
//!
//! Only with the cargo feature `failpoints`, which no package contains. `ESO_FAILPOINT=k` aborts the process at the
//! step with that number, counted from 1; with `ESO_FAILPOINT_FROM=FILE` from when that file is there.
//! `ESO_FAILPOINT_FAIL=k` lets the k-th of those that can fail do so, once.
//! `ESO_FAILPOINT_LOG=FILE` appends the name of each step, so that an unkilled run says how many there are.

/// One persisted step is about to be taken.
#[cfg(feature = "failpoints")]
pub(crate) fn step(name: &'static str) {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU64, Ordering};

    static TAKEN: AtomicU64 = AtomicU64::new(0);
    if std::env::var_os("ESO_FAILPOINT_FROM").is_some_and(|path| !std::path::Path::new(&path).exists()) {
        return;
    }
    let number = TAKEN.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(path) = std::env::var_os("ESO_FAILPOINT_LOG") {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = log.and_then(|mut log| writeln!(log, "{name}"));
    }
    let chosen = std::env::var("ESO_FAILPOINT").ok().and_then(|text| text.parse::<u64>().ok());
    if chosen == Some(number) {
        std::process::abort();
    }
}

/// One persisted step that can fail is about to be taken.
#[cfg(feature = "failpoints")]
pub(crate) fn check(name: &'static str) -> std::io::Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering};

    static CHECKED: AtomicU64 = AtomicU64::new(0);
    step(name);
    let number = CHECKED.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(path) = std::env::var_os("ESO_FAILPOINT_LOG") {
        let mut path = std::path::PathBuf::from(path);
        path.set_extension("checked");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = log.and_then(|mut log| std::io::Write::write_all(&mut log, format!("{name}\n").as_bytes()));
    }
    let chosen = std::env::var("ESO_FAILPOINT_FAIL").ok().and_then(|text| text.parse::<u64>().ok());
    if chosen == Some(number) { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
}

/// One persisted step that can fail is about to be taken.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "it fails with the feature")]
pub(crate) const fn check(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// One persisted step is about to be taken.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) const fn step(_name: &'static str) {}
