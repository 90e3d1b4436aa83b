//! An application as people write them: reads its credential from a file and logs in to PostgreSQL all the time, each
//! time on a new connection, so that the server's log shows every moment at which its credential does not work.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use lifecycle::Version;
use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How an application takes up a new credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Adoption {
    /// Reads at its start; SIGTERM ends it, and whoever supervises starts it again.
    Restart,
    /// Reads again on SIGHUP and says so.
    Reload,
    /// Watches the file's directory, reads again by itself and says so.
    Reopen,
    /// Reads at its start and keeps the value, and one open session, until a person restarts it.
    Manual,
}

/// What the application is told.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Names it in the server's log.
    #[arg(long)]
    pub name: String,
    /// The credential: JSON with `username` and `password`. Of an application that says what it uses, the file's name
    /// within the set.
    #[arg(long)]
    pub credential: PathBuf,
    /// The set's directory, for an application that says what it uses: it reads version and content in one go.
    #[arg(long, requires = "tell")]
    pub set_directory: Option<PathBuf>,
    /// The loopback address that it connects from, so that the judge can tell it apart.
    #[arg(long)]
    pub source: IpAddr,
    /// The protected server.
    #[arg(long)]
    pub server: SocketAddr,
    /// The database.
    #[arg(long)]
    pub database: String,
    /// How it takes up a new credential.
    #[arg(long)]
    pub adoption: Adoption,
    /// Where it writes its process id.
    #[arg(long)]
    pub pidfile: PathBuf,
    /// The socket on which it says what it uses.
    #[arg(long)]
    pub tell: Option<PathBuf>,
    /// Where it shows the demo what it logs in with.
    #[arg(long)]
    pub shown: PathBuf,
    /// The set's name, for that socket.
    #[arg(long, default_value = "orders-db")]
    pub set: String,
    /// Creates this table if it is not there, and adds a column at every start: needs what an earlier version made.
    #[arg(long)]
    pub table: Option<String>,
    /// Puts the credential into a URL without escaping it, as many programs do, and ends when that does not parse.
    #[arg(long)]
    pub naive_url: bool,
    /// Between two logins, in milliseconds.
    #[arg(long, default_value_t = 50)]
    pub every_ms: u64,
}

#[derive(Deserialize, Serialize)]
struct Credential {
    username: String,
    password: String,
    /// Known to an application that reads through the set's directory.
    #[serde(skip)]
    version: Option<Version>,
}

/// Runs until SIGTERM.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut credential = read(&settings)?;
    show(&settings, &credential)?;
    // Before the pid file: who finds the process there must not find one that still dies of its credential.
    write_pidfile(&settings.pidfile)?;
    let (flipped, mut changes) = mpsc::unbounded_channel();
    let _watcher = match settings.adoption {
        Adoption::Reopen => Some(watch(&settings, flipped)?),
        _ => None,
    };
    // An old word may still stand there; the present one replaces it.
    say(&settings, &credential, None);
    if let Some(table) = &settings.table {
        alter(&settings, &credential, table).await?;
    }
    let _session = match settings.adoption {
        Adoption::Manual => Some(connect(&settings, &credential).await?),
        _ => None,
    };
    let mut tick = tokio::time::interval(Duration::from_millis(settings.every_ms));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv(), if settings.adoption == Adoption::Reload => take_up(&settings, &mut credential)?,
            Some(()) = changes.recv() => {
                while changes.try_recv().is_ok() {}
                take_up(&settings, &mut credential)?;
            }
            _ = tick.tick() => log_in(&settings, &credential).await,
        }
    }
}

/// One login; a failure is seen in the server's log, and the next tick tries again.
async fn log_in(settings: &Settings, credential: &Credential) {
    if let Err(error) = connect(settings, credential).await {
        eprintln!("{}: login failed: {error:#}", settings.name);
    }
}

async fn connect(settings: &Settings, credential: &Credential) -> anyhow::Result<tokio_postgres::Client> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(settings.source, 0))?;
    let stream = socket.connect(settings.server).await.context("failed to connect")?;
    let (client, connection) = tokio_postgres::Config::new()
        .user(&credential.username)
        .password(&credential.password)
        .dbname(&settings.database)
        .application_name(&settings.name)
        .connect_raw(stream, tokio_postgres::NoTls)
        .await?;
    tokio::spawn(connection);
    client.simple_query("SELECT 1").await?;
    Ok(client)
}

/// Alters a table that an earlier version of the credential may have made: works only when both act as one owner.
async fn alter(settings: &Settings, credential: &Credential, table: &str) -> anyhow::Result<()> {
    let client = connect(settings, credential).await?;
    let column = format!("seen_{}", std::process::id());
    client
        .batch_execute(&format!(
            "CREATE TABLE IF NOT EXISTS {table} (id bigint); ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} text"
        ))
        .await
        .context("failed to alter the table of an earlier version")
}

/// Reads again, forgets what it had, and says so. Every login is on a connection of its own, so nothing of the old
/// credential is left once the value is replaced.
fn take_up(settings: &Settings, credential: &mut Credential) -> anyhow::Result<()> {
    let newer = read(settings)?;
    show(settings, &newer)?;
    let before = std::mem::replace(credential, newer).version;
    say(settings, credential, before);
    Ok(())
}

/// The daemon may be away for a moment: then the old version lives a little longer, and nothing else happens.
fn say(settings: &Settings, credential: &Credential, before: Option<Version>) {
    if let (Some(socket), Some(on)) = (&settings.tell, credential.version)
        && let Err(error) = crate::told::say(socket, &settings.set, on, before.filter(|before| *before != on))
    {
        eprintln!("{}: {error:#}", settings.name);
    }
}

fn read(settings: &Settings) -> anyhow::Result<Credential> {
    let (path, version) = match &settings.set_directory {
        None => (settings.credential.clone(), None),
        Some(set) => {
            let directory =
                std::fs::read_link(set.join("..data")).context("the set has no current version")?;
            let name = directory.to_str().and_then(|name| name.strip_prefix('v'));
            let version = name.context("a version's directory is v and its number")?.parse()?;
            (set.join(directory).join(&settings.credential), Some(version))
        }
    };
    let text = std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let credential: Credential = serde_json::from_slice(&text).context("the credential is not JSON")?;
    let escapes = |text: &str| text.contains(['@', '/', '%', '?', '#', ':']);
    if settings.naive_url && (escapes(&credential.username) || escapes(&credential.password)) {
        bail!("the database URL does not parse");
    }
    Ok(Credential { version, ..credential })
}

fn write_pidfile(path: &Path) -> anyhow::Result<()> {
    replace(path, &format!("{}\n", std::process::id()))
}

fn show(settings: &Settings, credential: &Credential) -> anyhow::Result<()> {
    replace(&settings.shown, &serde_json::to_string(credential)?)
}

fn replace(path: &Path, content: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, content)?;
    std::fs::rename(&unfinished, path)?;
    Ok(())
}

/// Watches the set's directory, where `..data` is renamed: a watch on the file would stay with the old inode.
fn watch(
    settings: &Settings,
    changed: mpsc::UnboundedSender<()>,
) -> anyhow::Result<notify::RecommendedWatcher> {
    use notify::Watcher as _;
    let directory = settings.set_directory.as_ref().context("--set-directory is needed to watch a set")?;
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let flipped = event.is_ok_and(|event| {
            !event.kind.is_access() && event.paths.iter().any(|path| path.ends_with("..data"))
        });
        if flipped {
            let _ = changed.send(());
        }
    })?;
    watcher.watch(directory, notify::RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
