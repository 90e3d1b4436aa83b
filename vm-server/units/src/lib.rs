//! Restarts, reloads and probes consumers: through systemd, or by pid file where there is none.
