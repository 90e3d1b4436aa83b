//! Exit codes. They are documented in `esoctl --help` from here.

use std::process::ExitCode;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Something failed that has no code of its own.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// The control plane cannot be reached, or is not who it should be.
    Unreachable,
    /// No identity, or one that may not do this.
    Forbidden,
    /// What was named does not exist.
    Missing,
    /// The control plane refused it in this state; or `--dry-run` found that it would.
    Refused,
    /// The watched rollout was halted, aborted, or needs an operator.
    Stopped,
    /// The watched thing did not end within `--timeout`.
    Unfinished,
}

/// Every code with its meaning, for the help.
pub(crate) const CODES: [(Exit, &str); 9] = [
    (Exit::Done, "done"),
    (Exit::Failed, "something failed that has no code of its own"),
    (Exit::Usage, "the command line or the configuration is wrong"),
    (Exit::Unreachable, "the control plane cannot be reached, or is not who it should be"),
    (Exit::Forbidden, "no identity, or one that may not do this"),
    (Exit::Missing, "what was named does not exist"),
    (Exit::Refused, "the control plane refused it in this state; or --dry-run found that it would"),
    (Exit::Stopped, "the watched rollout was halted, aborted, or needs an operator"),
    (Exit::Unfinished, "the watched thing did not end within --timeout"),
];

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Forbidden => 4,
            Self::Missing => 5,
            Self::Refused => 6,
            Self::Stopped => 7,
            Self::Unfinished => 8,
        }
    }

    /// The table for the help.
    pub fn help() -> String {
        let rows = CODES.map(|(exit, meaning)| format!("  {}  {meaning}", exit.code()));
        format!("Exit codes:\n{}", rows.join("\n"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}
