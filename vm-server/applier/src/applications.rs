//! The socket on which applications say "on N+1, N dropped".

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holders::{Proc, Rules};
use host_policy::SetPolicy;
use lifecycle::{Millis, SetName};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use protocol::limit::REPORTED_BYTES_MAX;
use protocol::reported::{Reply, Statement};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;

use crate::input::Input;

/// Applications that may be connected at once; more are told so.
const CONNECTIONS_MAX: usize = 256;
/// Connections that one user may have at once, so that nobody takes the places of all others.
const CONNECTIONS_OF_ONE_USER_MAX: usize = 32;
/// Connections that those may have together whom policy does not name: they take no place of an application.
const STRANGERS_MAX: usize = 32;
/// How long an answer to one of them takes.
const STRANGER_PAUSE: Duration = Duration::from_millis(100);
/// How often what processes of one user say is judged, which takes a look at all processes.
const PACE: Duration = Duration::from_millis(50);
/// How long an application may take from one line to the end of the next.
const SILENCE: Duration = Duration::from_mins(10);
/// How long it may take to read an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Before Linux 6.5: a process that is younger when its connection is taken may have got its number after that of the
/// one that connected was free. Connections are taken at once, so an older one has had it all the time.
const TOO_YOUNG: Millis = Millis(200);

/// Who is at the other end of a connection: the process that connected, and no other that has its number later.
#[derive(Debug)]
pub(crate) struct Speaker {
    pub(crate) pidfd: OwnedFd,
    /// The user that it had when it connected.
    pub(crate) uid: u32,
}

/// The sets of policy, with their consumers.
pub(crate) type Named = BTreeMap<SetName, SetPolicy>;

impl Speaker {
    /// Whether policy names this process for the set, or for any. Asks of nothing but this process.
    fn is_named(&self, named: &Named, set: Option<&SetName>) -> bool {
        let Some(process) = Proc::new().behind(&self.pidfd) else { return false };
        let is_in = |policy: &SetPolicy| Rules::of(policy, BTreeSet::new()).name_somebody(&process);
        match set {
            Some(set) => named.get(set).is_some_and(is_in),
            None => named.values().any(is_in),
        }
    }

    /// By the kernel's word alone. Else why not.
    fn of(stream: &UnixStream) -> Result<Self, String> {
        let peer = stream.peer_cred().map_err(|error| error.to_string())?;
        let pidfd = match getsockopt(stream, PeerPidfd) {
            Err(Errno::ENOPROTOOPT) => by_number(peer.pid().unwrap_or(0))?,
            pidfd => pidfd.map_err(|_| "the process that connected has ended".to_owned())?,
        };
        Ok(Self { pidfd, uid: peer.uid() })
    }
}

fn by_number(pid: i32) -> Result<OwnedFd, String> {
    let proc = Proc::new();
    let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let found = pidfd.and_then(|pidfd| Some((proc.behind(&pidfd)?, pidfd)));
    let (process, pidfd) = found.ok_or("the process that connected has ended")?;
    if proc.age(&process) < TOO_YOUNG {
        return Err(
            "it has only just begun, and this kernel does not say who connected: connect again".to_owned()
        );
    }
    Ok(pidfd)
}

/// How many connections each user has, and whose turn it is to be judged.
type Users = Arc<Mutex<BTreeMap<u32, (usize, Turn)>>>;

/// When somebody of a user was judged last. Whoever has it is judged.
type Turn = Arc<tokio::sync::Mutex<Option<Instant>>>;

/// One connection of a user, as long as it is there.
struct Place {
    users: Users,
    uid: u32,
    turn: Turn,
}

impl Place {
    /// None when the user has enough of them.
    fn take(users: &Users, uid: u32) -> Option<Self> {
        let mut counted = users.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, turn) = counted.entry(uid).or_default();
        if *count >= CONNECTIONS_OF_ONE_USER_MAX {
            return None;
        }
        *count += 1;
        let turn = Arc::clone(turn);
        drop(counted);
        Some(Self { users: Arc::clone(users), uid, turn })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counted = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = counted.get_mut(&self.uid) {
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
pub(crate) async fn serve(listener: UnixListener, named: watch::Receiver<Arc<Named>>, inbox: Sender<Input>) {
    let places = |count| Arc::new(Semaphore::new(count));
    let (of_consumers, of_strangers) = (places(CONNECTIONS_MAX), places(STRANGERS_MAX));
    let users = Users::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Here, so that they count in the order in which they came, and before a number can be used again.
                let speaker = Speaker::of(&stream).map(Arc::new);
                let known = Arc::clone(&named.borrow());
                let is_named = speaker.as_ref().is_ok_and(|speaker| speaker.is_named(&known, None));
                let places = if is_named { &of_consumers } else { &of_strangers };
                let room = Arc::clone(places).try_acquire_owned();
                let place = stream.peer_cred().map(|peer| Place::take(&users, peer.uid()).ok_or(peer.uid()));
                let (inbox, named) = (inbox.clone(), named.clone());
                tokio::spawn(async move {
                    let ended = match (place, room) {
                        (Ok(Ok(place)), Ok(_room)) => {
                            converse(stream, speaker, &Hearing { named, inbox, place }).await
                        }
                        (Ok(Err(uid)), _) => turn_away(stream, too_many(uid)).await,
                        (Ok(Ok(_)), Err(_)) => turn_away(stream, crowded(is_named)).await,
                        (Err(error), _) => Err(error),
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a conversation with an application has ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept an application");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn too_many(uid: u32) -> Reply {
    refused(
        "too_many",
        format!("user {uid} has {CONNECTIONS_OF_ONE_USER_MAX} connections already: close some"),
    )
}

fn crowded(is_named: bool) -> Reply {
    let (many, who) = if is_named {
        (CONNECTIONS_MAX, "applications")
    } else {
        (STRANGERS_MAX, "processes that the host's policy does not name")
    };
    refused("too_many", format!("{many} {who} are connected already: connect again"))
}

async fn turn_away(mut stream: UnixStream, reply: Reply) -> io::Result<()> {
    let line = reply.to_line().map_err(io::Error::other)?;
    timeout(ANSWER_TIME, stream.write_all(&line)).await?
}

async fn converse(
    stream: UnixStream,
    speaker: Result<Arc<Speaker>, String>,
    hearing: &Hearing,
) -> io::Result<()> {
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
        let reply = match (Statement::from_line(&line), &speaker) {
            (Ok(statement), Ok(speaker)) => hearing.said(speaker, statement).await,
            (Ok(_), Err(why)) => refused("unknown_process", why.clone()),
            (Err(error), _) => refused("malformed", error.to_string()),
        };
        let line = reply.to_line().map_err(io::Error::other)?;
        timeout(ANSWER_TIME, writer.write_all(&line)).await??;
        if !whole {
            return Ok(());
        }
    }
}

/// What it takes to be heard.
struct Hearing {
    named: watch::Receiver<Arc<Named>>,
    inbox: Sender<Input>,
    place: Place,
}

impl Hearing {
    /// Only what somebody says whom policy names reaches the applier, and of each user one statement at a time.
    async fn said(&self, speaker: &Arc<Speaker>, statement: Statement) -> Reply {
        let named = Arc::clone(&self.named.borrow());
        if !named.contains_key(&statement.set) {
            tokio::time::sleep(STRANGER_PAUSE).await;
            return refused("no_such_set", format!("this host's policy has no set {}", statement.set));
        }
        if has_ended(&speaker.pidfd) {
            return refused("unknown_process", "the process that connected has ended".to_owned());
        }
        if !speaker.is_named(&named, Some(&statement.set)) {
            tokio::time::sleep(STRANGER_PAUSE).await;
            return refused(
                "not_a_consumer",
                "the host's policy names no such consumer of this set".to_owned(),
            );
        }
        let mut last = self.place.turn.lock().await;
        if let Some(last) = *last {
            tokio::time::sleep_until((last + PACE).into()).await;
        }
        let (reply, replied) = oneshot::channel();
        let speaker = Arc::clone(speaker);
        let ending = || refused("ending", "the applier is ending".to_owned());
        if self.inbox.send(Input::Said { speaker, statement, reply }).is_err() {
            return ending();
        }
        let reply = replied.await.unwrap_or_else(|_| ending());
        *last = Some(Instant::now());
        reply
    }
}

/// A pidfd can be read from the end of its process on.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = rustix::event::Timespec::default();
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn refused(code: &str, message: String) -> Reply {
    Reply::Refused { code: code.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_kernels_word_only_a_process_that_was_there_before_is_taken() {
        // Of our own age the harness has seen to nothing.
        let own = i32::try_from(std::process::id()).unwrap();
        let deadline = holders::boot_clock().plus(Millis(10_000));
        while by_number(own).is_err() {
            assert!(holders::boot_clock() < deadline);
            std::thread::yield_now();
        }
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(by_number(pid).unwrap_err().contains("connect again"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(by_number(pid).unwrap_err().contains("has ended"));
    }
}
