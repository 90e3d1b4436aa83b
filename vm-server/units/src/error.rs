//! What can fail while a consumer is restarted, looked at or probed.

/// Why a consumer could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// systemd did not answer, or the connection to it ended. What was asked may have happened: look again.
    #[error("lost systemd on D-Bus: {0}; it is tried again")]
    Lost(String),
    /// systemd answered with an error.
    #[error("systemd refused to {doing} {unit}: {message}")]
    Systemd {
        /// What was asked.
        doing: &'static str,
        /// Of which unit.
        unit: String,
        /// What systemd said.
        message: String,
    },
    /// The unit does not exist (any more).
    #[error("{unit} is not a unit of this host ({state}): install it or take it out of the policy")]
    Vanished {
        /// The unit.
        unit: String,
        /// Its load state, as systemd says.
        state: String,
    },
    /// A failure of the unit would take the whole host down, so nothing of ours restarts it.
    #[error("{unit} is not restarted here, since {setting}: change the unit, or adopt by hand (`manual`)")]
    Dangerous {
        /// The unit.
        unit: String,
        /// The setting that says so.
        setting: String,
    },
    /// The consumer is a systemd unit and there is no systemd.
    #[error(
        "{0} is a systemd unit, but this host has no systemd to ask: name a pidfile and exe in the policy"
    )]
    NoSystemd(String),
    /// The pid file or the process that it names cannot be believed.
    #[error("{consumer}: {message}")]
    Process {
        /// The consumer.
        consumer: String,
        /// What is wrong.
        message: String,
    },
    /// It took too long.
    #[error("{doing} {unit} took longer than {limit_ms} ms")]
    TooLong {
        /// What was waited for.
        doing: &'static str,
        /// Of which unit or consumer.
        unit: String,
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// A command of the policy cannot be run.
    #[error("failed to run {program}: {message}")]
    Command {
        /// The program.
        program: String,
        /// Why.
        message: String,
    },
}

impl UnitError {
    /// Whether the same may succeed a moment later, without anybody's help.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// The stable word for it in reports and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Lost(_) => "systemd_lost",
            Self::Systemd { .. } => "systemd_refused",
            Self::Vanished { .. } => "unit_vanished",
            Self::Dangerous { .. } => "unit_dangerous",
            Self::NoSystemd(_) => "no_systemd",
            Self::Process { .. } => "process_unknown",
            Self::TooLong { .. } => "unit_too_slow",
            Self::Command { .. } => "command_failed",
        }
    }
}
