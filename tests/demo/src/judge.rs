//! Counts logins by the protected server's own log. Nothing that our side says is believed here.
//!
//! A line is `TIMESTAMP [PID] ADDRESS ...`, as `tests_services` sets `log_line_prefix`; connections are told apart by
//! the loopback address that they come from.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// What one source address did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Logins that the server accepted.
    pub logins: u64,
    /// Logins that the server refused.
    pub failed: u64,
    /// The longest time between two accepted logins, in milliseconds.
    pub gap_ms_max: u64,
    last_ms: Option<u64>,
}

/// The tallies of all source addresses.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    tallies: BTreeMap<IpAddr, Tally>,
    unfinished: String,
}

impl Judge {
    /// Takes the next bytes of the log.
    pub fn read(&mut self, text: &str) {
        self.unfinished.push_str(text);
        let whole = self.unfinished.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.unfinished.drain(..whole).collect();
        for line in lines.lines() {
            self.line(line);
        }
    }

    fn line(&mut self, line: &str) {
        let Some(Seen { at_ms, source, accepted }) = parse(line) else { return };
        let tally = self.tallies.entry(source).or_default();
        if accepted {
            tally.logins += 1;
            if let Some(last) = tally.last_ms {
                tally.gap_ms_max = tally.gap_ms_max.max(at_ms.saturating_sub(last));
            }
            tally.last_ms = Some(at_ms);
        } else {
            tally.failed += 1;
        }
    }

    /// What this address did so far.
    pub fn tally(&self, source: IpAddr) -> Tally {
        self.tallies.get(&source).cloned().unwrap_or_default()
    }

    /// Forgets the gaps so far, so that each act has its own.
    pub fn start_act(&mut self) {
        for tally in self.tallies.values_mut() {
            tally.gap_ms_max = 0;
        }
    }
}

struct Seen {
    at_ms: u64,
    source: IpAddr,
    accepted: bool,
}

/// Accepted: `connection authorized`. Refused: a `FATAL` of the authentication, of whatever kind (wrong password, role
/// gone, role not permitted to log in).
fn parse(line: &str) -> Option<Seen> {
    let mut words = line.split_whitespace();
    let (_date, time) = (words.next()?, words.next()?);
    let source = words.find_map(|word| word.parse().ok())?;
    let accepted = line.contains("connection authorized:");
    let refused = line.contains("FATAL:")
        && (line.contains("authentication failed")
            || line.contains("is not permitted to log in")
            || line.contains("does not exist"));
    (accepted || refused).then_some(())?;
    Some(Seen { at_ms: milliseconds(time)?, source, accepted })
}

/// `23:59:58.123` as milliseconds of the day.
fn milliseconds(time: &str) -> Option<u64> {
    let mut parts = time.split([':', '.']).map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds, thousandths) =
        (parts.next()??, parts.next()??, parts.next()??, parts.next()??);
    Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-01 23:59:58.000 UTC [7] 127.0.1.1 LOG:  connection authorized: user=v1 database=orders application_name=a
2026-01-01 23:59:58.150 UTC [8] 127.0.1.1 LOG:  connection authorized: user=v1 database=orders application_name=a
2026-01-01 23:59:58.200 UTC [9] 127.0.2.1 FATAL:  password authentication failed for user \"v1\"
2026-01-01 23:59:58.210 UTC [9] 127.0.2.1 DETAIL:  Role \"v1\" does not exist.
";

    #[test]
    fn logins_failures_and_gaps_are_told_apart_by_address() {
        let mut judge = Judge::default();
        let (first, second) = LOG.split_at(40);
        judge.read(first);
        judge.read(second);
        let application = judge.tally([127, 0, 1, 1].into());
        assert_eq!((application.logins, application.failed, application.gap_ms_max), (2, 0, 150));
        let probe = judge.tally([127, 0, 2, 1].into());
        assert_eq!((probe.logins, probe.failed), (0, 1));
    }
}
