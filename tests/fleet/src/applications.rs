//! The applications of a farm's hosts: what policy says of them, who starts them again, and what they took up.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use lifecycle::{SetName, Version};
use serde::{Deserialize, Serialize};

use crate::host::Site;

/// The one file of the set: JSON with `username` and `password`.
pub const CREDENTIAL: &str = "credentials.json";

/// What the program reads from its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Readers {
    /// Where they log in.
    pub server: SocketAddr,
    /// Which set they read.
    pub set: SetName,
    /// Between two logins.
    pub every_ms: u64,
    /// Who.
    pub readers: Vec<Reader>,
}

/// The application of one host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reader {
    /// The set's directory.
    pub set: PathBuf,
    /// Where it says what it uses.
    pub socket: PathBuf,
    /// Where it names its process.
    pub pidfile: PathBuf,
    /// Where it writes down each version that it took up.
    pub ledger: PathBuf,
}

impl Reader {
    /// The application of a host.
    pub fn of(site: &Site, set: &SetName) -> Self {
        Self {
            set: site.set(set.as_str()),
            socket: site.app_socket(),
            pidfile: site.places().join("application.pid"),
            ledger: site.places().join("ledger"),
        }
    }

    /// The versions that it took up, in order, one for each start or reading.
    pub fn ledger(&self) -> anyhow::Result<Vec<Version>> {
        let text = match std::fs::read_to_string(&self.ledger) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        text.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// What policy says of it, for a set's section.
    pub fn policy(&self, set: &SetName, program: &Path, restarted: bool) -> String {
        let adopt =
            if restarted { "adopt = \"restart\"\n" } else { "adopt = \"reopen\"\nevidence = \"reported\"\n" };
        format!(
            "[[set.{set}.consumers]]\nname = \"application\"\npidfile = \"{}\"\nexe = \"{}\"\nstart_ms = 60000\nsettle_ms = 50\n{adopt}",
            self.pidfile.display(),
            program.display(),
        )
    }
}

/// The applications of many hosts in one process. Dropping it ends them.
pub struct Crowd(Child);

impl Crowd {
    /// Starts them.
    pub fn start(program: &Path, readers: &Readers) -> anyhow::Result<Self> {
        Ok(Self(spawn(program, "many", readers)?))
    }

    /// Whether it still runs: nobody may end it.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An application of one host that is started again whenever it ends, as a supervisor does. Dropping it ends it.
pub struct Supervised {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Supervised {
    /// Starts it as soon as its set has a version.
    pub fn start(program: &Path, server: SocketAddr, set: &SetName, reader: Reader, every_ms: u64) -> Self {
        let readers = Readers { server, set: set.clone(), every_ms, readers: vec![reader] };
        let ending = Arc::new(AtomicBool::new(false));
        let (program, over) = (program.to_owned(), ending.clone());
        let thread = std::thread::spawn(move || {
            let pause = Duration::from_millis(10);
            while !over.load(Ordering::SeqCst) {
                let ready = readers.readers.iter().all(|reader| reader.set.join("..data").exists());
                if !ready {
                    std::thread::sleep(pause);
                    continue;
                }
                match spawn(&program, "one", &readers) {
                    Ok(mut child) => {
                        while matches!(child.try_wait(), Ok(None)) {
                            if over.load(Ordering::SeqCst) {
                                let _ = child.kill();
                            }
                            std::thread::sleep(pause);
                        }
                    }
                    Err(error) => eprintln!("{error:#}"),
                }
                std::thread::sleep(pause);
            }
        });
        Self { ending, thread: Some(thread) }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

fn spawn(program: &Path, mode: &str, readers: &Readers) -> anyhow::Result<Child> {
    // A session of its own: that is what tells processes outside any unit apart.
    let mut child = Command::new("setsid")
        .arg(program)
        .arg(mode)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start {}", program.display()))?;
    let mut stdin = child.stdin.take().context("its standard input is ours")?;
    stdin.write_all(&serde_json::to_vec(readers)?)?;
    Ok(child)
}
