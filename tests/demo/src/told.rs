//! Saying on the application socket which version is in use.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use lifecycle::Version;
use protocol::reported::{Reply, Statement};

/// Says "on `on`, `dropped` dropped" and waits for the answer.
pub fn say(socket: &Path, set: &str, on: Version, dropped: Option<Version>) -> anyhow::Result<()> {
    let statement = Statement { set: set.parse()?, on, dropped: dropped.into_iter().collect() };
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("failed to connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&statement.to_line()?)?;
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut answer)?;
    match Reply::from_line(&answer)? {
        Reply::Noted {} => Ok(()),
        Reply::Refused { code, message } => bail!("not believed: {code}: {message}"),
    }
}
