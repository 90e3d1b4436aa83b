//! An application as people write them: reads the URL of its database from a file and logs in all the time, each time on
//! a new connection, so that the server's log shows every moment at which its credential does not work.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use lifecycle::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::login::{Login, Session, Verdict, Visitor};

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

impl Adoption {
    /// Whether it takes up a new version by a restart only, be it a person who restarts it.
    pub const fn is_by_restart(self) -> bool {
        matches!(self, Self::Restart | Self::Manual)
    }

    /// For people.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Restart => "restarted for a new version",
            Self::Reload => "reads again when told by a signal",
            Self::Reopen => "notices a new version by itself",
            Self::Manual => "waits for a person to restart it",
        }
    }
}

/// What the application is told.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Names it in the server's log.
    #[arg(long)]
    pub name: String,
    /// The file with the URL. Of an application that says what it uses, its name within the set.
    #[arg(long)]
    pub credential: PathBuf,
    /// The set's directory, for an application that says what it uses: it reads version and content in one go.
    #[arg(long, requires = "tell")]
    pub set_directory: Option<PathBuf>,
    /// The loopback address that it connects from, so that the judge can tell it apart.
    #[arg(long)]
    pub source: IpAddr,
    /// The authority to trust, where the URL begins with https.
    #[arg(long)]
    pub authority: Option<PathBuf>,
    /// Answers there whether its last login worked.
    #[arg(long)]
    pub health: Option<SocketAddr>,
    /// How it takes up a new credential.
    #[arg(long)]
    pub adoption: Adoption,
    /// Where it writes its process id.
    #[arg(long)]
    pub pidfile: PathBuf,
    /// The socket on which it says what it uses.
    #[arg(long)]
    pub tell: Option<PathBuf>,
    /// Where it shows the demo what it logs in with, one URL a line.
    #[arg(long)]
    pub shown: PathBuf,
    /// The set's name, for that socket.
    #[arg(long, default_value = "orders-db")]
    pub set: String,
    /// Creates this table if it is not there, and adds a column at every start: needs what an earlier version made.
    #[arg(long)]
    pub table: Option<String>,
    /// Decodes the URL, as many programs do, and ends when that does not work.
    #[arg(long)]
    pub strict_url: bool,
    /// Between two logins, in milliseconds.
    #[arg(long, default_value_t = 50)]
    pub every_ms: u64,
}

struct Credential {
    login: Login,
    /// Known to an application that reads through the set's directory.
    version: Option<Version>,
}

/// Runs until SIGTERM.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut credential = read(&settings)?;
    let healthy = Arc::new(AtomicBool::new(false));
    if let Some(address) = settings.health {
        let listener = TcpListener::bind(address).await.context("failed to listen for health checks")?;
        tokio::spawn(answer_health(listener, healthy.clone()));
    }
    // Before the pid file: who finds the process there must not find one that still dies of its credential.
    write_pidfile(&settings.pidfile)?;
    let (flipped, mut changes) = mpsc::unbounded_channel();
    let _watcher = match settings.adoption {
        Adoption::Reopen => Some(watch(&settings, flipped)?),
        _ => None,
    };
    // An old word may still stand there; the present one replaces it.
    say(&settings, &credential, None);
    if let Some(table) = settings.table.as_ref().filter(|_| credential.login.is_database()) {
        alter(&settings, &credential, table).await?;
    }
    let _session = match settings.adoption {
        Adoption::Manual => Some(log_in(&settings, &credential).await?),
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
            _ = tick.tick() => {
                let done = log_in(&settings, &credential).await;
                healthy.store(done.is_ok(), Ordering::Relaxed);
                // A failure is seen in the server's log, and the next tick tries again.
                if let Err(error) = done {
                    eprintln!("{}: login failed: {error:#}", settings.name);
                }
            }
        }
    }
}

/// Whoever connects is told in a line of HTTP whether the last login worked.
async fn answer_health(listener: TcpListener, healthy: Arc<AtomicBool>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let status = if healthy.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        tokio::spawn(async move {
            // Whoever went away meanwhile asks again.
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

fn visitor(settings: &Settings) -> Visitor<'_> {
    Visitor { from: settings.source, name: &settings.name, authority: settings.authority.as_deref() }
}

async fn log_in(settings: &Settings, credential: &Credential) -> anyhow::Result<Session> {
    match credential.login.log_in(visitor(settings)).await? {
        Verdict::Accepted(session) => Ok(session),
        Verdict::Refused(words) => bail!("{words}"),
    }
}

/// Alters a table that an earlier version of the credential may have made: works only when both act as one owner.
async fn alter(settings: &Settings, credential: &Credential, table: &str) -> anyhow::Result<()> {
    let connected = credential.login.connect(visitor(settings)).await?;
    let client = connected.map_err(|words| anyhow::anyhow!("{words}"))?;
    let column = format!("seen_{}", credential.login.username());
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
    let url = std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    show(settings, url.trim_end())?;
    let login = if settings.strict_url { Login::parse_strictly(&url)? } else { Login::parse(&url)? };
    Ok(Credential { login, version })
}

fn write_pidfile(path: &Path) -> anyhow::Result<()> {
    replace(path, &format!("{}\n", std::process::id()))
}

/// For the demo alone, which tries it again once it must not work any more, and searches for it where it must not be.
fn show(settings: &Settings, url: &str) -> anyhow::Result<()> {
    let mut shown = std::fs::File::options().append(true).create(true).mode(0o600).open(&settings.shown)?;
    Ok(shown.write_all(format!("{url}\n").as_bytes())?)
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
