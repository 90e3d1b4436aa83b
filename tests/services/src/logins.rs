//! Who logged in and who was refused, from the server's own log.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;

/// What the server is told to begin each line of its log with: time, process and client for people, then the same and
/// user and SQLSTATE for [`LoginLog`].
pub(crate) const LINE_PREFIX: &str = "%m [%p] %h |%n|%p|%h|%u|%e| ";

/// One attempt to log in, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// When the server decided, in milliseconds since 1970.
    pub at_ms: u64,
    /// From where; `None` over the Unix socket.
    pub client: Option<IpAddr>,
    /// As whom.
    pub user: String,
    /// Whether it was let in.
    pub accepted: bool,
}

impl Login {
    /// The line that a server of our own writes for it, in the form that [`LoginLog`] reads from PostgreSQL's log.
    pub fn line(&self, connection: u64) -> String {
        let Self { at_ms, client, user, accepted } = self;
        let (seconds, milliseconds) = (at_ms / 1000, at_ms % 1000);
        let client = client.map_or_else(|| "[local]".to_owned(), |client| client.to_string());
        // Nobody outside writes lines of his own into the log.
        let user: String = user.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect();
        let (state, message) = match accepted {
            true => ("00000", "LOG:  connection authorized"),
            false => ("28P01", "FATAL:  password authentication failed"),
        };
        format!(
            "{seconds}.{milliseconds:03} [{connection}] {client} |{seconds}.{milliseconds:03}|{connection}|{client}|{user}|{state}| {message}: user={user}\n"
        )
    }
}

/// The logins in a server's log, read as it grows.
pub struct LoginLog {
    path: PathBuf,
    offset: u64,
    records: Vec<Login>,
    /// The last accepted login of each server process, which a refusal right after takes back: the server says
    /// "authorized" once the password is right, and only then looks whether the role may log in.
    latest: HashMap<u32, usize>,
}

impl LoginLog {
    /// The logins in this file, from its beginning.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), offset: 0, records: Vec::new(), latest: HashMap::new() }
    }

    /// Reads what was added, and gives all logins so far.
    pub fn read(&mut self) -> Result<&[Login]> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        // A line without its end is still being written.
        while lines.read_until(b'\n', &mut line)? > 0 && line.last() == Some(&b'\n') {
            self.offset += line.len() as u64;
            self.take(&String::from_utf8_lossy(&line));
            line.clear();
        }
        Ok(&self.records)
    }

    fn take(&mut self, line: &str) {
        let Some(Line { at_ms, process, client, user, state, message }) = Line::parse(line) else { return };
        if message.starts_with("LOG:  connection received:") {
            self.latest.remove(&process);
        } else if message.starts_with("LOG:  connection authorized:") {
            self.latest.insert(process, self.records.len());
            self.records.push(Login { at_ms, client, user, accepted: true });
        } else if message.starts_with("FATAL:") && is_refusal(state) {
            match self.latest.remove(&process) {
                Some(at) => self.records[at].accepted = false,
                None => self.records.push(Login { at_ms, client, user, accepted: false }),
            }
        }
    }
}

/// Whether the server ended a session before it began: wrong name or password, no right to the database, no such
/// database, too many connections, starting or stopping.
fn is_refusal(state: &str) -> bool {
    state.starts_with("28") || matches!(state, "42501" | "3D000" | "53300" | "57P03")
}

struct Line<'a> {
    at_ms: u64,
    process: u32,
    client: Option<IpAddr>,
    user: String,
    state: &'a str,
    message: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.trim_end().splitn(7, '|');
        parts.next()?;
        let (seconds, milliseconds) = parts.next()?.split_once('.')?;
        let at_ms = seconds.parse::<u64>().ok()? * 1000 + milliseconds.parse::<u64>().ok()?;
        let process = parts.next()?.parse().ok()?;
        let client = parts.next()?.parse().ok();
        let user = parts.next()?.to_owned();
        Some(Self { at_ms, process, client, user, state: parts.next()?, message: parts.next()?.trim_start() })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn logins_are_counted_as_the_server_decides_them() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = LoginLog::new(file.path());
        writeln!(
            file,
            "time|1700000000.123|7|127.0.1.1|[unknown]|00000|LOG:  connection received: host=127.0.1.1"
        )
        .unwrap();
        writeln!(
            file,
            "time|1700000000.130|7|127.0.1.1|a|00000|LOG:  connection authorized: user=a database=app"
        )
        .unwrap();
        writeln!(
            file,
            "time|1700000001.000|8|127.0.1.2|b|28P01|FATAL:  password authentication failed for user \"b\""
        )
        .unwrap();
        writeln!(
            file,
            "time|1700000001.001|8|127.0.1.2|b|28P01|DETAIL:  Connection matched pg_hba.conf line 1"
        )
        .unwrap();
        writeln!(file, "time|1700000002.000|9|[local]|c|00000|LOG:  connection authorized: user=c").unwrap();
        write!(file, "time|1700000002.001|9|[local]|c|28000|FATAL:  role \"c\" is not perm").unwrap();
        let accepted =
            |log: &mut LoginLog| log.read().unwrap().iter().map(|login| login.accepted).collect::<Vec<_>>();
        assert_eq!(accepted(&mut log), [true, false, true]);
        writeln!(file, "itted to log in").unwrap();
        writeln!(
            file,
            "time|1700000003.000|7|127.0.1.1|a|57P01|FATAL:  terminating connection due to administrator command"
        )
        .unwrap();
        assert_eq!(accepted(&mut log), [true, false, false]);
        let of_our_own = Login { at_ms: 1_700_000_004_005, client: None, user: "d".into(), accepted: true };
        write!(file, "{}", of_our_own.line(11)).unwrap();
        assert_eq!(log.read().unwrap().last(), Some(&of_our_own));
        let first = log.read().unwrap()[0].clone();
        assert_eq!((first.at_ms, first.client), (1_700_000_000_130, Some([127, 0, 1, 1].into())));
    }
}
