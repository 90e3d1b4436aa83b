//! The way to the network half: the applier calls, checks who answers, and calls again for ever.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use protocol::limit::PUSHES_AT_ONCE_MAX;
use protocol::local::{self, FromApplier, LOCAL_VERSION, ToApplier};
use protocol::report::Means;
use protocol::{Frame, HostId, InstallationId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::input::Input;

/// How long the other end has for its first word.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// The first pause between two calls; it doubles.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Messages of the network half that are in our hands at once, until they are answered and the answer is written: as
/// many pushes as it has under way. More stay in the socket.
const TAKEN_IN_MAX: usize = PUSHES_AT_ONCE_MAX;
/// The user of the network half, where it has one of its own.
const SERVER_USER: &str = "eso-vm-server";

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Decode(#[from] protocol::DecodeError),
    #[error(transparent)]
    Encode(#[from] protocol::TooLarge),
    #[error("user {0} is neither root, nor ours, nor {SERVER_USER}")]
    Stranger(u32),
    #[error("it did not say hello in time")]
    Silent,
    #[error(
        "it speaks version {0} of the private socket, and this is {LOCAL_VERSION}: install both from one package"
    )]
    Version(u32),
    #[error("it said something else than hello, or hello twice")]
    Unexpected,
    #[error("the applier has ended")]
    Ended,
}

/// Who this host is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whoami {
    pub(crate) host: HostId,
    pub(crate) installation: InstallationId,
}

/// Calls the network half for ever.
pub(crate) async fn serve(socket: PathBuf, whoami: Whoami, inbox: Sender<Input>) {
    let mut pause = PAUSE;
    loop {
        match connection(&socket, whoami, &inbox, &mut pause).await {
            Ok(()) | Err(LinkError::Ended) => return,
            Err(error) => tracing::debug!(%error, "the network half is away"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn connection(
    socket: &Path,
    whoami: Whoami,
    inbox: &Sender<Input>,
    pause: &mut Duration,
) -> Result<(), LinkError> {
    let stream = UnixStream::connect(socket).await?;
    check_peer(&stream)?;
    let pid = stream.peer_cred()?.pid();
    let (mut reader, mut writer) = stream.into_split();
    let Whoami { host, installation } = whoami;
    let hello =
        FromApplier::Hello { version: LOCAL_VERSION, host: Some(host), installation: Some(installation) };
    writer.write_all(&hello.to_bytes()?).await?;
    let means = match timeout(HELLO_TIME, read(&mut reader)).await.map_err(|_| LinkError::Silent)?? {
        ToApplier::Hello { version: LOCAL_VERSION, means } => means,
        ToApplier::Hello { version, .. } => return Err(LinkError::Version(version)),
        _ => return Err(LinkError::Unexpected),
    };
    tracing::info!("connected with the network half");
    *pause = PAUSE;
    converse(reader, writer, inbox, (pid, means)).await
}

async fn converse(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    inbox: &Sender<Input>,
    (pid, means): (Option<i32>, Vec<Means>),
) -> Result<(), LinkError> {
    // A report is a whole snapshot: a newer one replaces one that could not be written yet.
    let (reports, mut outgoing_reports) = watch::channel::<Option<Frame>>(None);
    let (answers, mut outgoing_answers) = mpsc::unbounded_channel();
    let rooms = Arc::new(Semaphore::new(TAKEN_IN_MAX));
    hand(inbox, Input::Connected { pid, reports, means })?;
    let reading = async {
        loop {
            let room = Arc::clone(&rooms).acquire_owned().await.map_err(|_| LinkError::Ended)?;
            match read(&mut reader).await? {
                ToApplier::Hello { .. } => return Err::<(), LinkError>(LinkError::Unexpected),
                ToApplier::Acknowledged { ack } => hand(inbox, Input::Acknowledged { frame: ack, room })?,
                ToApplier::Orders { push, frames } => {
                    let (answer, answered) = oneshot::channel();
                    hand(inbox, Input::Push { frames, answer, room })?;
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        if let Ok(report) = answered.await {
                            // The connection may be gone; the same is sent as a report then.
                            let _ = answers.send((push, report));
                        }
                    });
                }
            }
        }
    };
    let writing = async {
        loop {
            let message = tokio::select! {
                Some((push, (report, room))) = outgoing_answers.recv() => {
                    (FromApplier::Answer { push, report }, Some(room))
                }
                changed = outgoing_reports.changed() => match changed {
                    Ok(()) => match outgoing_reports.borrow_and_update().clone() {
                        Some(report) => (FromApplier::Report { report }, None),
                        None => continue,
                    },
                    Err(_) => return Err::<(), LinkError>(LinkError::Ended),
                },
            };
            let (message, _room) = message;
            writer.write_all(&message.to_bytes()?).await?;
        }
    };
    let ended = tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    };
    hand(inbox, Input::Disconnected)?;
    ended
}

fn hand(inbox: &Sender<Input>, input: Input) -> Result<(), LinkError> {
    inbox.send(input).map_err(|_| LinkError::Ended)
}

async fn read(reader: &mut OwnedReadHalf) -> Result<ToApplier, LinkError> {
    let mut header = [0; 4];
    reader.read_exact(&mut header).await?;
    let mut json = vec![0; local::length(header)?];
    reader.read_exact(&mut json).await?;
    Ok(ToApplier::from_json(&json)?)
}

/// What comes from there is believed by its signature alone; a stranger is not even listened to.
fn check_peer(stream: &UnixStream) -> Result<(), LinkError> {
    let uid = stream.peer_cred()?.uid();
    let ours = rustix::process::geteuid().as_raw();
    let server = nix::unistd::User::from_name(SERVER_USER).ok().flatten().map(|user| user.uid.as_raw());
    if uid == 0 || uid == ours || Some(uid) == server { Ok(()) } else { Err(LinkError::Stranger(uid)) }
}
