//! An application of a host, or of many: reads its credential, logs in with it all the time, and writes down which
//! version it took up when.
//!
//! `one` reads at its start and keeps what it read until somebody restarts it. `many` are as many applications in one
//! process; each follows its set by itself and says on its host's socket which version it is on.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use lifecycle::{SetName, Version};
use protocol::reported::{Reply, Statement};
use tests_fleet::applications::{CREDENTIAL, Reader, Readers};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};

/// Between two looks at the set.
const LOOK: Duration = Duration::from_millis(50);
/// How long one login or one word may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(serde::Deserialize)]
struct Credential {
    username: String,
    password: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let readers: Readers = serde_json::from_str(&text)?;
    let restarted = std::env::args().nth(1).as_deref() == Some("one");
    let mut tasks = tokio::task::JoinSet::new();
    for reader in readers.readers {
        let (server, set, every) =
            (readers.server, readers.set.clone(), Duration::from_millis(readers.every_ms));
        tasks.spawn(async move {
            if restarted {
                one(&reader, server, every).await
            } else {
                follow(&reader, server, &set, every).await
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Reads once, then logs in until it is ended.
async fn one(reader: &Reader, server: SocketAddr, every: Duration) -> anyhow::Result<()> {
    let (version, credential) = read(reader)?;
    write_down(reader, version)?;
    name_ourselves(reader)?;
    loop {
        log_in(server, &credential).await;
        tokio::time::sleep(every).await;
    }
}

/// Follows the set for ever.
async fn follow(reader: &Reader, server: SocketAddr, set: &SetName, every: Duration) -> anyhow::Result<()> {
    let mut has: Option<(Version, Credential)> = None;
    let mut to_say = None;
    let mut next_login = tokio::time::Instant::now();
    name_ourselves(reader)?;
    loop {
        let before = has.as_ref().map(|(version, _)| *version);
        if current(reader).is_some_and(|(_, current)| Some(current) != before) {
            // Between the look and the reading the set may have moved on; then the next look finds it.
            if let Ok((version, credential)) = read(reader) {
                write_down(reader, version)?;
                has = Some((version, credential));
                to_say = Some(Statement {
                    set: set.clone(),
                    on: version,
                    dropped: before.into_iter().filter(|before| *before != version).collect(),
                });
                next_login = tokio::time::Instant::now();
            }
        }
        if let Some((_, credential)) = &has
            && next_login <= tokio::time::Instant::now()
        {
            log_in(server, credential).await;
            next_login = tokio::time::Instant::now() + every;
        }
        // The applier may be away, or may not have flipped in its own eyes yet: it is told again.
        if let Some(statement) = &to_say
            && matches!(tokio::time::timeout(PATIENCE, say(reader, statement)).await, Ok(Ok(())))
        {
            to_say = None;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The directory and the version that readers find now.
fn current(reader: &Reader) -> Option<(PathBuf, Version)> {
    let link = fs::read_link(reader.set.join("..data")).ok()?;
    let version = link.to_str()?.strip_prefix('v')?.parse().ok()?;
    Some((link, version))
}

fn read(reader: &Reader) -> anyhow::Result<(Version, Credential)> {
    let (directory, version) = current(reader).context("the set has no version yet")?;
    let bytes = fs::read(reader.set.join(directory).join(CREDENTIAL))?;
    Ok((version, serde_json::from_slice(&bytes)?))
}

fn write_down(reader: &Reader, version: Version) -> anyhow::Result<()> {
    let mut ledger = fs::File::options().create(true).append(true).open(&reader.ledger)?;
    ledger.write_all(format!("{version}\n").as_bytes())?;
    Ok(())
}

/// Only once the credential is in hand: whoever finds the process by its pid file finds one that works.
fn name_ourselves(reader: &Reader) -> anyhow::Result<()> {
    let unfinished: PathBuf = reader.pidfile.with_extension("new");
    fs::write(&unfinished, format!("{}\n", std::process::id()))?;
    fs::rename(&unfinished, &reader.pidfile)?;
    Ok(())
}

/// A refusal is in the server's own log; here nothing follows from it.
async fn log_in(server: SocketAddr, credential: &Credential) {
    let attempt = async {
        let mut stream = BufReader::new(TcpStream::connect(server).await?);
        let line = format!("{} {}\n", credential.username, credential.password);
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await
    };
    let _ = tokio::time::timeout(PATIENCE, attempt).await;
}

async fn say(reader: &Reader, statement: &Statement) -> anyhow::Result<()> {
    let mut stream = BufReader::new(connect(&reader.socket).await?);
    stream.write_all(&statement.to_line()?).await?;
    let mut answer = Vec::new();
    stream.read_until(b'\n', &mut answer).await?;
    match Reply::from_line(&answer)? {
        Reply::Noted {} => Ok(()),
        Reply::Refused { code, message } => bail!("{code}: {message}"),
    }
}

async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(socket).await
}
