//! What the fleet spends at most.

/// Limits and times. The defaults are good for thousands of hosts on two cores.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Handshakes at the same time.
    pub dials_at_once_max: usize,
    /// Pushes at the same time, over all hosts.
    pub pushes_at_once_max: usize,
    /// From the name's resolution to the end of the handshake.
    pub dial_ms_max: u64,
    /// How long a push waits for its turn, and then as long again for its connection and the answer.
    pub push_ms_max: u64,
    /// The pause after the first failed dial; it doubles.
    pub backoff_first_ms: u64,
    /// The longest pause between dials.
    pub backoff_ms_max: u64,
    /// How often an idle connection is asked whether it is still there.
    pub ping_every_ms: u64,
    /// How long it has to answer.
    pub ping_answer_ms_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dials_at_once_max: 64,
            pushes_at_once_max: 256,
            dial_ms_max: 10_000,
            push_ms_max: 30_000,
            backoff_first_ms: 250,
            backoff_ms_max: protocol::limit::RETRY_MS_MAX,
            ping_every_ms: 20_000,
            ping_answer_ms_max: 10_000,
        }
    }
}
