//! Printing: one value as JSON, YAML or a table.

use protocol::UnixMillis;
use serde::Serialize;

use crate::Streams;
use crate::cli::Format;
use crate::client::ClientError;
use crate::table::Shown;

/// Prints `value` as asked.
pub(crate) fn print<T: Serialize + Shown + ?Sized>(
    streams: &mut Streams<'_>,
    format: Format,
    value: &T,
) -> Result<(), ClientError> {
    let local = |error: &dyn std::fmt::Display| ClientError::Local(format!("failed to print: {error}"));
    let text = match format {
        Format::Table => value.shown(UnixMillis::now()),
        Format::Json => serde_json::to_string_pretty(value).map_err(|error| local(&error))? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(value).map_err(|error| local(&error))?,
    };
    write(streams, text.as_bytes())
}

/// Writes to where the answer belongs. A reader that has seen enough and went away is no failure.
pub(crate) fn write(streams: &mut Streams<'_>, content: &[u8]) -> Result<(), ClientError> {
    match streams.out.write_all(content).and_then(|()| streams.out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| ClientError::Local(format!("failed to print: {error}"))),
    }
}

/// Says something beside what was asked for.
pub(crate) fn say(streams: &mut Streams<'_>, text: &str) {
    // Nowhere left to tell it if this fails.
    let _ = writeln!(streams.err, "{text}");
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    struct Ends(ErrorKind);

    impl std::io::Write for Ends {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(Error::from(self.0))
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure_and_a_full_disk_is_one() {
        let written = |kind| {
            let (mut out, mut err) = (Ends(kind), Vec::new());
            write(&mut Streams { out: &mut out, err: &mut err, terminal: false }, b"much")
        };
        assert!(written(ErrorKind::BrokenPipe).is_ok());
        assert!(written(ErrorKind::StorageFull).is_err());
    }
}
