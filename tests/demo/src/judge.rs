//! Counts logins by the protected server's own log. Nothing that our side says is believed here.
//!
//! Connections are told apart by the loopback address that they come from.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use tests_services::logins::Login;

/// The longest that an application may be without a login: far above what a restart takes on a busy machine, far below
/// "for good".
pub const GAP_MAX: Duration = Duration::from_secs(5);

/// What one source address did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Logins that the server accepted.
    pub logins: u64,
    /// Logins that the server refused.
    pub failed: u64,
    /// The longest time without an accepted login, in milliseconds: also before the first and after the last.
    pub gap_ms_max: u64,
}

impl Tally {
    /// What this address did in this time, in milliseconds since 1970.
    pub fn of(logins: &[Login], source: IpAddr, time: Range<u64>) -> Self {
        let mut tally = Self::default();
        let mut last = time.start;
        for login in logins.iter().filter(|login| login.client == Some(source) && time.contains(&login.at_ms))
        {
            if !login.accepted {
                tally.failed += 1;
                continue;
            }
            tally.logins += 1;
            tally.gap_ms_max = tally.gap_ms_max.max(login.at_ms.saturating_sub(last));
            last = login.at_ms;
        }
        tally.gap_ms_max = tally.gap_ms_max.max(time.end.saturating_sub(last));
        tally
    }

    /// For people.
    pub fn in_words(&self) -> String {
        let gap = crate::terminal::span(Duration::from_millis(self.gap_ms_max));
        format!("{} logins, {} failed, longest gap {gap}", self.logins, self.failed)
    }

    /// Whether none failed, and no gap was longer than [`GAP_MAX`].
    pub fn is_well(&self) -> bool {
        self.failed == 0 && self.logins > 0 && u128::from(self.gap_ms_max) <= GAP_MAX.as_millis()
    }
}

/// A time in which an application may be away, which is said as a price and does not count as a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    /// Who.
    pub source: IpAddr,
    /// When, in milliseconds since 1970.
    pub time: Range<u64>,
}

/// The rest of this time, without those in which this address may be away. They come one after the other.
pub fn without(away: &[Away], source: IpAddr, time: Range<u64>) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut from = time.start;
    for away in away.iter().filter(|away| away.source == source) {
        let end = away.time.start.min(time.end);
        if from < end {
            rest.push(from..end);
        }
        from = from.max(away.time.end);
    }
    if from < time.end {
        rest.push(from..time.end);
    }
    rest
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
        let one = Tally::of(&logins, [127, 0, 1, 1].into(), 1500..2300);
        assert_eq!(one, Tally { logins: 3, failed: 0, gap_ms_max: 500 });
        let two = Tally::of(&logins, [127, 0, 1, 2].into(), 1500..2300);
        assert_eq!(two, Tally { logins: 0, failed: 1, gap_ms_max: 800 });
    }

    #[test]
    fn an_application_that_ends_for_good_after_a_login_is_not_well() {
        let source = [127, 0, 1, 1].into();
        let logins = [1000, 1050].map(|at_ms| Login {
            at_ms,
            client: Some(source),
            user: "v1".into(),
            accepted: true,
        });
        let max = u64::try_from(GAP_MAX.as_millis()).unwrap();

        assert!(Tally::of(&logins, source, 1000..1050 + max).is_well());
        assert!(
            !Tally::of(&logins, source, 1000..1051 + max).is_well(),
            "nothing after the last login is seen"
        );
        assert!(!Tally::of(&logins, source, 2000..2001).is_well(), "nobody who never logs in is well");
    }

    #[test]
    fn who_may_be_away_is_judged_before_and_after() {
        let [one, other] = [1, 2].map(|last: u8| IpAddr::from([127, 0, 1, last]));
        let away = [Away { source: one, time: 200..300 }];
        let rest = |source, time| -> Vec<(u64, u64)> {
            without(&away, source, time).into_iter().map(|part| (part.start, part.end)).collect()
        };
        assert_eq!(rest(one, 100..400), [(100, 200), (300, 400)]);
        assert_eq!(rest(one, 250..400), [(300, 400)]);
        assert_eq!(rest(one, 100..250), [(100, 200)]);
        assert_eq!(rest(one, 210..290), []);
        assert_eq!(rest(other, 100..400), [(100, 400)]);
    }
}
