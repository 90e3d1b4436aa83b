//! Passes the newest report on to the control plane, and the acknowledgement back to the applier.
//!
//! A report is a whole snapshot, so the queue has room for one: a newer replaces an older that could not be sent.

use std::sync::Arc;

use protocol::{Frame, limit};
use tokio::sync::{Notify, watch};
use transport::Backoff;

use crate::applier::Applier;
use crate::control_plane::ControlPlane;

/// Runs for ever. `heard` says that the control plane was heard of: then nothing waits for its backoff. Calls go by
/// the newest `control_plane`, which changes when the certificate is renewed.
pub async fn pass_reports(
    applier: Applier,
    mut control_plane: watch::Receiver<ControlPlane>,
    heard: Arc<Notify>,
) {
    let mut reports = applier.reports();
    let mut backoff = Backoff::new(250, limit::RETRY_MS_MAX);
    let mut away = false;
    loop {
        let Some(report) = newest(&mut reports).await else { return };
        let to = control_plane.borrow_and_update().clone();
        match to.report(&report).await {
            Ok(ack) => {
                if std::mem::take(&mut away) {
                    tracing::info!("the control plane takes reports again");
                }
                backoff.reset();
                applier.acknowledge(ack).await;
            }
            Err(error) => {
                if std::mem::replace(&mut away, true) {
                    tracing::debug!(%error, "failed to pass a report on");
                } else {
                    tracing::warn!(%error, "failed to pass a report on; the newest is kept and sent later");
                }
                // The same report, or a newer one if there is one by then.
                reports.mark_changed();
                tokio::select! {
                    () = tokio::time::sleep(backoff.pause()) => {}
                    () = heard.notified() => backoff.reset(),
                    Ok(()) = control_plane.changed() => backoff.reset(),
                }
            }
        }
    }
}

async fn newest(reports: &mut watch::Receiver<Option<Frame>>) -> Option<Frame> {
    loop {
        reports.changed().await.ok()?;
        if let Some(report) = reports.borrow_and_update().clone() {
            return Some(report);
        }
    }
}
