//! The socket on which applications say "on N+1, N dropped".

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use protocol::limit::REPORTED_BYTES_MAX;
use protocol::reported::{Reply, Statement};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use crate::input::Input;

/// Applications that may be connected at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// How long an application may stay silent.
const SILENCE: Duration = Duration::from_mins(10);

/// Binds the socket; any user may connect, and is known by the kernel's word only.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves applications for ever.
pub(crate) async fn serve(listener: UnixListener, inbox: Sender<Input>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let inbox = inbox.clone();
                tokio::spawn(async move {
                    if let Err(error) = tokio::time::timeout(SILENCE, converse(stream, &inbox)).await {
                        tracing::debug!(%error, "an application was silent for too long");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept an application");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, inbox: &Sender<Input>) -> io::Result<()> {
    let pid = stream.peer_cred()?.pid();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(REPORTED_BYTES_MAX).unwrap_or(u64::MAX);
        if (&mut lines).take(limit).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let reply = match (Statement::from_line(&line), pid) {
            (Ok(statement), Some(pid)) => said(inbox, pid, statement).await,
            (Ok(_), None) => refused("unknown_process", "the kernel does not say who speaks".to_owned()),
            (Err(error), _) => refused("malformed", error.to_string()),
        };
        let line = reply.to_line().map_err(io::Error::other)?;
        writer.write_all(&line).await?;
        if !whole {
            return Ok(());
        }
    }
}

async fn said(inbox: &Sender<Input>, pid: i32, statement: Statement) -> Reply {
    let (reply, replied) = oneshot::channel();
    if inbox.send(Input::Said { pid, statement, reply }).is_err() {
        return refused("ending", "the applier is ending".to_owned());
    }
    replied.await.unwrap_or_else(|_| refused("ending", "the applier is ending".to_owned()))
}

fn refused(code: &str, message: String) -> Reply {
    Reply::Refused { code: code.to_owned(), message }
}
