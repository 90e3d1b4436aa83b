//! Counts logins by the protected server's own log. Nothing that our side says is believed here.
//!
//! Connections are told apart by the loopback address that they come from.

use std::net::IpAddr;

use tests_services::logins::Login;

/// What one source address did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Logins that the server accepted.
    pub logins: u64,
    /// Logins that the server refused.
    pub failed: u64,
    /// The longest time between two accepted logins, in milliseconds.
    pub gap_ms_max: u64,
}

impl Tally {
    /// What this address did from this time on, in milliseconds since 1970.
    pub fn of(logins: &[Login], source: IpAddr, from_ms: u64) -> Self {
        let mut tally = Self::default();
        let mut last = None;
        for login in logins.iter().filter(|login| login.client == Some(source) && login.at_ms >= from_ms) {
            if !login.accepted {
                tally.failed += 1;
                continue;
            }
            tally.logins += 1;
            if let Some(last) = last.replace(login.at_ms) {
                tally.gap_ms_max = tally.gap_ms_max.max(login.at_ms.saturating_sub(last));
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_failures_and_gaps_are_told_apart_by_address() {
        let login = |at_ms, last: u8, accepted| Login {
            at_ms,
            client: Some([127, 0, 1, last].into()),
            user: "v1".into(),
            accepted,
        };
        let logins = [
            login(1000, 1, true),
            login(2000, 1, true),
            login(2150, 1, true),
            login(2200, 2, false),
            login(2250, 1, true),
        ];
        let one = Tally::of(&logins, [127, 0, 1, 1].into(), 1500);
        assert_eq!(one, Tally { logins: 3, failed: 0, gap_ms_max: 150 });
        let two = Tally::of(&logins, [127, 0, 1, 2].into(), 1500);
        assert_eq!(two, Tally { logins: 0, failed: 1, gap_ms_max: 0 });
    }
}
