//! The command line. Every flag stands here once.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lifecycle::{CredentialName, Version};

use crate::exit::Exit;

/// Looks at credentials and hosts, rotates, halts, clears: the operator's command line.
#[derive(Debug, Parser)]
#[command(name = "esoctl", version, about, after_help = Exit::help())]
pub struct Cli {
    /// Whom to ask, and as whom.
    #[command(flatten)]
    pub connection: Connection,
    /// How to print.
    #[arg(short, long, global = true, help_heading = "Printing", value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Whom to ask, and as whom. Flags stand above the environment, and that above the file.
#[derive(Debug, Clone, Default, Args)]
pub struct Connection {
    /// A file with the keys server, ca, certificate, key, token_file; ~/.config/esoctl/esoctl.toml unless told
    /// otherwise. Paths in it are relative to it.
    #[arg(long, global = true, help_heading = "Connection", env = "ESOCTL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The control plane, for example https://eso.example.org:8443
    #[arg(long, global = true, help_heading = "Connection", env = "ESOCTL_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// The certificate authority of the control plane, PEM
    #[arg(long, global = true, help_heading = "Connection", env = "ESOCTL_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Our certificate, PEM
    #[arg(long, global = true, help_heading = "Connection", env = "ESOCTL_CERTIFICATE", value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, global = true, help_heading = "Connection", env = "ESOCTL_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// A file that holds a token instead (or set ESOCTL_TOKEN)
    #[arg(long, global = true, help_heading = "Connection", env = "ESOCTL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole installation at one look
    Status(Watch),
    /// Credentials: list, show, import, rotate, hold, delete, retire
    #[command(subcommand)]
    Credential(Credential),
    /// The version that is on its way: show, halt, resume, abort
    #[command(subcommand)]
    Rollout(Rollout),
    /// Superseded versions that are not retired yet, with who holds them and which clause waits, since when
    Pending(Watch),
    /// Who may have what: list, clear
    #[command(subcommand)]
    Holders(Holders),
    /// What keeps a version alive
    Why {
        /// For example orders-db@7
        version: NameAtVersion,
    },
    /// Hosts: list, show, enroll-token, label, excuse, retire
    #[command(subcommand)]
    Host(Host),
    /// Sources: refresh
    #[command(subcommand)]
    Source(Source),
    /// The audit log
    Audit(Audit),
    /// Who may use the API: list, add, revoke
    #[command(subcommand)]
    Operator(Operator),
    /// Write a copy of the store on the control plane's machine
    Backup,
    /// Who we are to the control plane
    Whoami,
    /// A script that completes this command line
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// Whether to go on looking.
#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// Print again after every change, until interrupted
    #[arg(short, long)]
    pub watch: bool,
}

/// `credential`
#[derive(Debug, Subcommand)]
pub enum Credential {
    /// All credentials
    List,
    /// One credential: its versions and where they are
    Show {
        /// Which
        name: CredentialName,
    },
    /// Take an existing value as version 0; it starts held
    Import {
        /// Which
        name: CredentialName,
        /// A field of the value and the file that holds it, for example password=./password; `-` reads stdin
        #[arg(long = "field", value_name = "FIELD=FILE", required = true)]
        fields: Vec<FieldFile>,
    },
    /// Mint a new version and roll it out
    Rotate(Rotate),
    /// A version must stay alive
    Hold {
        /// For example orders-db@7
        version: NameAtVersion,
        /// Why; stands in the audit log
        #[arg(long)]
        reason: String,
    },
    /// The end of a hold, also of one that an import or a restore made
    Unhold {
        /// For example orders-db@7
        version: NameAtVersion,
    },
    /// Withdraw a credential everywhere and retire its versions; its resource must be gone
    Delete {
        /// Which
        name: CredentialName,
        /// Why; stands in the audit log
        #[arg(long)]
        reason: String,
    },
    /// Retire a version without waiting for the gate: whoever still has it may fail
    Retire {
        /// For example orders-db@7
        version: NameAtVersion,
        /// Needed: nothing checks whether somebody still has it
        #[arg(long, required = true)]
        force: bool,
        /// Why; stands in the audit log
        #[arg(long)]
        reason: String,
    },
}

/// `credential rotate`
#[derive(Debug, Args)]
pub struct Rotate {
    /// Which
    pub name: CredentialName,
    /// Show the progress until the version is active
    #[arg(short, long, conflicts_with = "dry_run")]
    pub watch: bool,
    /// Watch until then
    #[arg(long, value_enum, default_value_t = Until::Active, requires = "watch")]
    pub until: Until,
    /// Give up watching after this time, for example 10m; the rollout goes on
    #[arg(long, value_name = "SPAN", requires = "watch")]
    pub timeout: Option<Span>,
    /// Only say whether it would be accepted, and where it would go
    #[arg(long)]
    pub dry_run: bool,
    /// The current version is in foreign hands: wait for no barrier
    #[arg(long)]
    pub compromised: bool,
    /// After this time clear the holders that are left and excuse silent targets, for example 30m
    #[arg(long, value_name = "SPAN", requires = "compromised")]
    pub deadline: Option<Span>,
}

/// Until when `--watch` watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// The new version is active everywhere
    Active,
    /// The version before it is retired too
    Retired,
}

/// `rollout`
#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// Where it is on each target
    Show {
        /// Of which credential
        name: CredentialName,
        /// Whether to go on looking
        #[command(flatten)]
        watch: Watch,
    },
    /// Stop it: whoever has not adopted goes back
    Halt {
        /// Of which credential
        name: CredentialName,
        /// Why; stands in the audit log
        #[arg(long)]
        reason: String,
    },
    /// Go on; answers the targets' own rollbacks
    Resume {
        /// Of which credential
        name: CredentialName,
    },
    /// Give the new version up: everybody goes back
    Abort {
        /// Of which credential
        name: CredentialName,
        /// Why; stands in the audit log
        #[arg(long)]
        reason: String,
    },
}

/// `holders`
#[derive(Debug, Subcommand)]
pub enum Holders {
    /// Who may have what
    List {
        /// Only of this credential
        #[arg(long)]
        credential: Option<CredentialName>,
    },
    /// One holder, gap or place is gone, on our word; it covers no later one
    Clear {
        /// Of which credential
        credential: CredentialName,
        /// On which host (name or id) or target
        target: String,
        /// What `holders list` shows as ID
        id: String,
        /// Why we know; stands in the audit log
        #[arg(long)]
        reason: String,
    },
}

/// `host`
#[derive(Debug, Subcommand)]
pub enum Host {
    /// All hosts
    List,
    /// One host and what it reports
    Show {
        /// Name or id
        host: String,
    },
    /// A token for one host to enrol with; prints the bundle that root carries there
    EnrollToken {
        /// What people will call the host
        name: String,
        /// What selectors match
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<Label>,
        /// How long the token is good for, for example 30m
        #[arg(long, value_name = "SPAN")]
        life: Option<Span>,
        /// Write the bundle into this new file (mode 0600) instead of stdout
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Set or (with `KEY-`) remove labels
    Label {
        /// Name or id
        host: String,
        /// KEY=VALUE sets, KEY- removes
        #[arg(required = true)]
        changes: Vec<LabelChange>,
    },
    /// A host does not count for one version, until it reports again
    Excuse {
        /// Name or id
        host: String,
        /// For example orders-db@7
        version: NameAtVersion,
        /// Why; stands in the audit log
        #[arg(long)]
        reason: String,
    },
    /// A host is gone for good
    Retire {
        /// Name or id
        host: String,
        /// Why; stands in the audit log
        #[arg(long)]
        reason: String,
    },
}

/// `source`
#[derive(Debug, Subcommand)]
pub enum Source {
    /// Look at a source now, whatever the waiting
    Refresh(Refresh),
}

/// `source refresh`
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Refresh {
    /// The credential that it feeds
    pub name: Option<CredentialName>,
    /// All of them
    #[arg(long)]
    pub all: bool,
}

/// `audit`
#[derive(Debug, Args)]
pub struct Audit {
    /// Only of this subject, for example credential/orders-db
    #[arg(long)]
    pub subject: Option<String>,
    /// Rows after this one, from there on, instead of the newest
    #[arg(long, value_name = "ROW")]
    pub after: Option<u64>,
    /// Only of the time since then, for example 2h
    #[arg(long, value_name = "SPAN", conflicts_with = "after")]
    pub since: Option<Span>,
    /// At most so many: the newest, or the first after `--after`
    #[arg(long, default_value_t = 10_000)]
    pub limit: u32,
}

/// `operator`
#[derive(Debug, Subcommand)]
pub enum Operator {
    /// Everybody who was ever let in
    List,
    /// Let somebody in
    Add {
        /// What people call them
        name: String,
        /// What they may do
        #[arg(long, value_enum)]
        role: Role,
        /// A certificate request (PEM) of theirs; without one they get a token
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
        /// How long, for example 30d
        #[arg(long, value_name = "SPAN")]
        life: Option<Span>,
    },
    /// Let somebody in no more
    Revoke {
        /// What `operator list` shows as ID
        id: String,
    },
}

/// A role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Reads /metrics and nothing else
    Scraper,
    /// Reads everything but values
    Viewer,
    /// Rotates, halts, holds, clears and excuses
    Operator,
    /// Everything, above all who gets values: enrolment tokens, labels, imports
    Admin,
}

/// `NAME@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameAtVersion {
    /// Of which credential.
    pub name: CredentialName,
    /// Which version.
    pub version: Version,
}

impl FromStr for NameAtVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names may have an @ of their own.
        let (name, version) =
            text.rsplit_once('@').ok_or("write NAME@VERSION, for example orders-db@7".to_owned())?;
        Ok(Self {
            name: name.parse().map_err(|error| format!("{error}"))?,
            version: version.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

/// A span of time such as `90s`, `5m`, `2h` or `30d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// In milliseconds.
    pub ms: u64,
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write a number with s, m, h or d, for example 30m".to_owned();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit_ms: u64 = match &text[digits.len()..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        Ok(Self { ms: number.checked_mul(unit_ms).ok_or_else(wrong)? })
    }
}

/// `FIELD=FILE`.
#[derive(Debug, Clone)]
pub struct FieldFile {
    /// The field's name.
    pub field: protocol::FileName,
    /// Where its content is.
    pub file: PathBuf,
}

impl FromStr for FieldFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (field, file) = text.split_once('=').ok_or("write FIELD=FILE".to_owned())?;
        let field = field.parse().map_err(|error: protocol::id::InvalidFileName| error.to_string())?;
        Ok(Self { field, file: file.into() })
    }
}

/// `KEY=VALUE`.
#[derive(Debug, Clone)]
pub struct Label {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write KEY=VALUE".to_owned())?;
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// `KEY=VALUE` or `KEY-`.
#[derive(Debug, Clone)]
pub enum LabelChange {
    /// Set it.
    Set(Label),
    /// Remove it.
    Remove(String),
}

impl FromStr for LabelChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(label) => Ok(Self::Set(label)),
            Err(_) => match text.strip_suffix('-') {
                Some(key) if !key.is_empty() => Ok(Self::Remove(key.to_owned())),
                _ => Err("write KEY=VALUE to set, KEY- to remove".to_owned()),
            },
        }
    }
}
