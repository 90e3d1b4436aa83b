//! Ctrl-C, SIGTERM and a terminal that closes: the act at hand ends, and everything that was started is ended in order.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Begins to listen.
pub fn listen() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            ASKED.store(true, Ordering::Relaxed);
        });
    })?;
    Ok(())
}

/// Whether somebody wants the demo to end.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// An error once somebody wants the demo to end; stands in every loop that waits.
pub fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!asked(), "interrupted");
    Ok(())
}
