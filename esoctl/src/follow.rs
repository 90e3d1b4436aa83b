//! `--watch`: waits for commits, then looks again.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lifecycle::CredentialName;
use protocol::api::{Changes, CredentialDetail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Streams;
use crate::cli::Format;
use crate::client::{Client, ClientError};
use crate::exit::Exit;
use crate::print::{print, say};
use crate::progress::{Watched, progress};
use crate::table::Shown;

/// How long the control plane may be away before watching ends.
const AWAY_MAX: Duration = Duration::from_mins(1);
/// The pause before it is asked again meanwhile.
const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// Waits for a commit after `after`. A control plane that restarts is waited for: nothing is lost by it.
async fn next_change(client: &Client, after: Option<u64>) -> Result<u64, ClientError> {
    let query: Vec<_> = after.map(|after| ("after", after.to_string())).into_iter().collect();
    let changes: Changes = patiently(|| client.query(&["changes"], &query)).await?;
    Ok(changes.commits)
}

/// Calls again while the control plane cannot be reached, for a while.
async fn patiently<T, F: Future<Output = Result<T, ClientError>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, ClientError> {
    let began = Instant::now();
    loop {
        match call().await {
            Err(error) if error.exit() == Exit::Unreachable && began.elapsed() < AWAY_MAX => {
                tokio::time::sleep(AWAY_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Prints what is at `path` again after every change, until interrupted.
pub(crate) async fn again_and_again<T: DeserializeOwned + Serialize + Shown>(
    client: &Client,
    streams: &mut Streams<'_>,
    format: Format,
    path: &[&str],
) -> Result<Exit, ClientError> {
    let mut seen = None;
    let mut before = None;
    loop {
        seen = Some(next_change(client, seen).await?);
        let value: T = patiently(|| client.get(path)).await?;
        let text = serde_json::to_string(&value).unwrap_or_default();
        if before.as_ref() != Some(&text) {
            if streams.terminal && format == Format::Table {
                // Clears the screen, so that the newest look stands alone.
                let _ = write!(streams.out, "\x1b[2J\x1b[H");
            }
            print(streams, format, &value)?;
            before = Some(text);
        }
    }
}

/// Shows how a rotation goes until it ends: drawn for a person, one line a change otherwise.
pub(crate) async fn rotation(
    client: &Client,
    streams: &mut Streams<'_>,
    name: &CredentialName,
    mut watched: Watched,
    timeout: Option<Duration>,
) -> Result<Exit, ClientError> {
    let path = ["credentials", name.as_str()];
    let bar = bar(streams.terminal);
    let began = Instant::now();
    let mut seen = None;
    let mut last = String::new();
    loop {
        let commits = match timeout.map(|timeout| timeout.saturating_sub(began.elapsed())) {
            None => Some(next_change(client, seen).await?),
            Some(left) => match tokio::time::timeout(left, next_change(client, seen)).await {
                Ok(commits) => Some(commits?),
                Err(_) => None,
            },
        };
        if commits.is_none() {
            bar.finish_and_clear();
            say(streams, &format!("{last}; not watched any longer, the rollout goes on"));
            return Ok(Exit::Unfinished);
        }
        seen = commits;
        let detail: CredentialDetail = patiently(|| client.get(&path)).await?;
        let now = progress(&mut watched, &detail);
        bar.set_length(now.all.max(1));
        bar.set_position(now.done);
        bar.set_message(now.line.clone());
        if now.line != last && !streams.terminal {
            say(streams, &now.line);
        }
        last.clone_from(&now.line);
        if let Some(exit) = now.end {
            bar.finish_and_clear();
            if streams.terminal {
                say(streams, &now.line);
            }
            return Ok(exit);
        }
    }
}

fn bar(terminal: bool) -> ProgressBar {
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(1), target);
    if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:24}] {pos}/{len} {wide_msg} {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    if terminal {
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    bar
}
