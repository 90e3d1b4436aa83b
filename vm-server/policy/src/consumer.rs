//! Who reads a set, how its life is told apart from the next one, and how it takes up a new version.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use lifecycle::ConsumerName;

/// A reader of a set that must take up each new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// The unit's name, or the one that policy gives.
    pub name: ConsumerName,
    /// How one life of it is told from the next.
    pub life: Life,
    /// How it takes up a new version, once `window` (if any) is open.
    pub adopt: Adopt,
    /// When it may be disturbed. `None`: whenever it is permitted.
    pub window: Option<Window>,
    /// How long a new start outside any unit may take, in milliseconds; of a unit its own `TimeoutStartSec=` counts.
    pub start_ms: u64,
    /// How long it must stay healthy to count as settled, in milliseconds.
    pub settle_ms: u64,
    /// Asked at the end of the settle time.
    pub probe: Option<Probe>,
    /// Whether its own word "on N+1, N dropped" on the application socket is believed.
    pub trust_reported: bool,
}

impl Consumer {
    /// The unit, where it is one.
    pub fn unit(&self) -> Option<&UnitName> {
        match &self.life {
            Life::Unit(unit) => Some(unit),
            Life::PidFile(_) => None,
        }
    }
}

/// How one life of a consumer is told from the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// A systemd service: by its invocation.
    Unit(UnitName),
    /// A process outside any unit: by process id and start time.
    PidFile(PidFileLife),
}

/// A process that writes its id into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFileLife {
    /// The pid file. Its content is believed only when `exe` and `user` agree.
    pub pidfile: PathBuf,
    /// What `/proc/PID/exe` must be.
    pub exe: PathBuf,
    /// Whose process it must be. The applier's own user when `None`.
    pub user: Option<Principal>,
}

/// The name of a systemd service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(String);

impl UnitName {
    /// Accepts `NAME.service` and `NAME@INSTANCE.service`.
    pub fn new(text: &str) -> Result<Self, String> {
        let Some(stem) = text.strip_suffix(".service") else {
            return Err("must end in .service: only services can be restarted here".into());
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if stem.is_empty() || !stem.chars().all(legal) || text.len() > 255 {
            return Err("is not a unit name: use a-z, A-Z, 0-9 and :-_.\\@".into());
        }
        if stem.ends_with('@') {
            return Err("is a template: name one instance of it, such as app@blue.service".into());
        }
        Ok(Self(text.into()))
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a consumer takes up a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    /// A new life: `TryRestartUnit`, or TERM and whoever supervises it starts it again.
    Restart,
    /// `ReloadOrTryRestartUnit`.
    Reload,
    /// It notices the change by itself and opens the file again.
    Reopen,
    /// It opens the file again when it gets this signal.
    Signal(Signal),
    /// With its next start, whenever that is (a nightly job).
    NextStart,
    /// A person restarts it.
    Manual,
}

impl Adopt {
    /// As written in a policy.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Reopen => "reopen",
            Self::Signal(_) => "signal",
            Self::NextStart => "next_start",
            Self::Manual => "manual",
        }
    }

    /// Whether the process stays the same, so that only its own word or what the kernel saw shows that it let go.
    pub const fn keeps_the_process(self) -> bool {
        matches!(self, Self::Reload | Self::Reopen | Self::Signal(_))
    }
}

/// Signals by which programs are asked to read their files again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `HUP`
    Hup,
    /// `USR1`
    Usr1,
    /// `USR2`
    Usr2,
    /// `WINCH`
    Winch,
}

impl Signal {
    /// All of them, as written in a policy.
    pub const WORDS: &'static [&'static str] = &["HUP", "USR1", "USR2", "WINCH"];

    /// From its name, without or with `SIG`.
    pub fn from_word(word: &str) -> Option<Self> {
        match word.strip_prefix("SIG").unwrap_or(word) {
            "HUP" => Some(Self::Hup),
            "USR1" => Some(Self::Usr1),
            "USR2" => Some(Self::Usr2),
            "WINCH" => Some(Self::Winch),
            _ => None,
        }
    }
}

/// When a consumer may be disturbed, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The days on which it opens.
    pub days: Days,
    /// Minute of the day at which it opens.
    pub from_minute: u16,
    /// Minute of the day at which it closes; not later than `from_minute` means on the next day.
    pub to_minute: u16,
}

impl Window {
    /// Whether it is open at this second since 1970, UTC.
    pub const fn is_open(&self, unix_seconds: u64) -> bool {
        let day = unix_seconds / 86_400;
        let minute = (unix_seconds % 86_400 / 60) as u16;
        if self.from_minute < self.to_minute {
            return self.days.has(day) && self.from_minute <= minute && minute < self.to_minute;
        }
        (self.days.has(day) && minute >= self.from_minute)
            || (day > 0 && self.days.has(day - 1) && minute < self.to_minute)
    }
}

/// Days of the week, Monday the lowest bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(u8);

impl Days {
    /// As written in a policy, Monday first.
    pub const WORDS: &'static [&'static str] = &["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    /// Every day.
    pub const ALL: Self = Self(0b111_1111);
    /// No day yet.
    pub(crate) const NONE: Self = Self(0);

    /// These, and the one with this place in [`Self::WORDS`].
    pub(crate) const fn with(self, place: usize) -> Self {
        Self(self.0 | 1 << place)
    }

    /// Whether this day since 1970-01-01 (a Thursday) is among them.
    const fn has(self, day: u64) -> bool {
        self.0 & 1 << ((day + 3) % 7) != 0
    }
}

/// How health is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// How long one try may take, in milliseconds.
    pub timeout_ms: u64,
    /// How often it is tried before it counts as failed.
    pub tries: u32,
    /// The pause between tries, in milliseconds.
    pub pause_ms: u64,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// A program that must exit 0.
    Command(Command),
    /// An address that must accept a connection.
    Tcp(SocketAddr),
    /// A page that must answer with this status.
    Http(Http),
}

/// A page that must answer. Plain HTTP on this machine only: the probe carries nothing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// A loopback address.
    pub address: SocketAddr,
    /// The path, beginning with `/`.
    pub path: String,
    /// The status that means healthy.
    pub status: u16,
}

/// A program to run, never through a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program's absolute path and its arguments.
    pub argv: Vec<String>,
    /// Whose rights it runs with. The applier's own only where the applier has none to lose.
    pub user: Option<Principal>,
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// By name, resolved when it is used.
    Name(String),
    /// By number.
    Id(u32),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

/// A reader that is no consumer: it reads the bytes, but logs in nowhere with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAConsumer {
    /// Processes of this unit.
    pub unit: Option<UnitName>,
    /// Processes that run this program.
    pub exe: Option<PathBuf>,
    /// Only those of this user. Needs `unit` or `exe` beside it.
    pub user: Option<Principal>,
    /// Why it may, for the audit.
    pub why: String,
}
