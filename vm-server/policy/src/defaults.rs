//! Every default and limit of the host's policy, in one place. The documents are compared with [`table`].

/// `daemon.state_dir`
pub const STATE_DIR: &str = "/var/lib/eso-vm-server";
/// `daemon.run_dir`
pub const RUN_DIR: &str = "/run/eso-vm-server";
/// `daemon.listen`
pub const LISTEN: &str = "0.0.0.0:1323";
/// `daemon.report_ms`
pub const REPORT_MS: u64 = 60_000;
/// `set.NAME.mode` and `places.mode`
pub const MODE: u32 = 0o400;
/// `set.NAME.refresh_ms`
pub const REFRESH_MS: u64 = 60_000;
/// `consumers.start_ms`
pub const START_MS: u64 = 90_000;
/// `consumers.settle_ms`
pub const SETTLE_MS: u64 = 30_000;
/// `probe.timeout_ms`
pub const PROBE_TIMEOUT_MS: u64 = 3_000;
/// `probe.tries`
pub const PROBE_TRIES: u32 = 3;
/// `probe.pause_ms`
pub const PROBE_PAUSE_MS: u64 = 1_000;
/// `probe.status`
pub const PROBE_HTTP_STATUS: u16 = 200;
/// `validate.timeout_ms`
pub const VALIDATE_TIMEOUT_MS: u64 = 10_000;

/// The most bytes of one policy file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most files in `conf.d`.
pub const FILES_MAX: usize = 256;
/// The most sets of a host.
pub const SETS_MAX: usize = 256;
/// The most places of a set.
pub const PLACES_MAX: usize = 64;
/// The most consumers of a set.
pub const CONSUMERS_MAX: usize = 64;
/// The shortest `refresh_ms` and `report_ms`.
pub const INTERVAL_MS_MIN: u64 = 100;
/// The longest interval, settle time or timeout: a day.
pub const SPAN_MS_MAX: u64 = 86_400_000;
/// The most tries of a probe.
pub const PROBE_TRIES_MAX: u32 = 100;

/// One row of the table of defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The key as written in a policy.
    pub key: &'static str,
    /// Its default.
    pub value: String,
    /// Why this one.
    pub why: &'static str,
}

/// The table of defaults, in the order of the documents.
pub fn table() -> Vec<Row> {
    let row = |key, value: &dyn ToString, why| Row { key, value: value.to_string(), why };
    vec![
        row("daemon.state_dir", &STATE_DIR, "survives a reboot"),
        row("daemon.run_dir", &RUN_DIR, "gone after a reboot, like what lies in it"),
        row("daemon.listen", &LISTEN, "the control plane pushes to this port"),
        row("daemon.supervisor", &"auto", "systemd where PID 1 is it"),
        row("daemon.mount", &"auto", "the best that works, reported by name"),
        row("daemon.evidence", &"auto", "the best that works, reported by name"),
        row("daemon.report_ms", &REPORT_MS, "a silent host is noticed within minutes"),
        row("set.mode", &format!("{MODE:04o}"), "only the owner reads"),
        row("set.refresh_ms", &REFRESH_MS, "a changed place is repaired within a minute at the latest"),
        row("consumers.start_ms", &START_MS, "what systemd grants a service"),
        row("consumers.settle_ms", &SETTLE_MS, "long enough to see a program fail on its first login"),
        row("probe.timeout_ms", &PROBE_TIMEOUT_MS, "a healthy program on the same machine answers at once"),
        row("probe.tries", &PROBE_TRIES, "one lost answer is no failure"),
        row("probe.pause_ms", &PROBE_PAUSE_MS, "time to recover between tries"),
        row("probe.status", &PROBE_HTTP_STATUS, "what health pages say"),
        row("validate.timeout_ms", &VALIDATE_TIMEOUT_MS, "a configuration check is not a start"),
    ]
}
