//! The socket on which applications say "on N+1, N dropped".

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::limit::REPORTED_BYTES_MAX;
use protocol::reported::{Reply, Statement};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::input::Input;

/// Applications that may be connected at once; more wait.
const CONNECTIONS_MAX: usize = 256;
/// Connections that one user may have at once, so that nobody takes the places of all others.
const CONNECTIONS_OF_ONE_USER_MAX: usize = 32;
/// How long an application may take from one line to the end of the next.
const SILENCE: Duration = Duration::from_mins(10);
/// How long it may take to read an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How many connections each user has.
type Users = Arc<Mutex<BTreeMap<u32, usize>>>;

/// One connection of a user, as long as it is there.
struct Place {
    users: Users,
    uid: u32,
}

impl Place {
    /// None when the user has enough of them.
    fn take(users: &Users, uid: u32) -> Option<Self> {
        let mut counted = users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counted.entry(uid).or_default();
        if *count >= CONNECTIONS_OF_ONE_USER_MAX {
            return None;
        }
        *count += 1;
        drop(counted);
        Some(Self { users: Arc::clone(users), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counted = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counted.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counted.remove(&self.uid);
            }
        }
    }
}

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
    let (places, users) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Users::default());
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let inbox = inbox.clone();
                // Here, so that they count in the order in which they came.
                let own = stream.peer_cred().map(|peer| (peer.uid(), Place::take(&users, peer.uid())));
                tokio::spawn(async move {
                    if let Err(error) = receive(stream, &inbox, own).await {
                        tracing::debug!(%error, "a conversation with an application has ended");
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

async fn receive(
    mut stream: UnixStream,
    inbox: &Sender<Input>,
    own: io::Result<(u32, Option<Place>)>,
) -> io::Result<()> {
    let (uid, place) = own?;
    let Some(_place) = place else {
        let message = format!("user {uid} has {CONNECTIONS_OF_ONE_USER_MAX} connections already: close some");
        let line = refused("too_many", message).to_line().map_err(io::Error::other)?;
        return timeout(ANSWER_TIME, stream.write_all(&line)).await?;
    };
    converse(stream, inbox).await
}

async fn converse(stream: UnixStream, inbox: &Sender<Input>) -> io::Result<()> {
    let pid = stream.peer_cred()?.pid();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(REPORTED_BYTES_MAX).unwrap_or(u64::MAX);
        let mut one = (&mut lines).take(limit);
        if timeout(SILENCE, one.read_until(b'\n', &mut line)).await?? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let reply = match (Statement::from_line(&line), pid) {
            (Ok(statement), Some(pid)) => said(inbox, pid, statement).await,
            (Ok(_), None) => refused("unknown_process", "the kernel does not say who speaks".to_owned()),
            (Err(error), _) => refused("malformed", error.to_string()),
        };
        let line = reply.to_line().map_err(io::Error::other)?;
        timeout(ANSWER_TIME, writer.write_all(&line)).await??;
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
