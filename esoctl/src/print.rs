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
    streams.out.write_all(text.as_bytes()).and_then(|()| streams.out.flush()).map_err(|error| local(&error))
}

/// Says something beside what was asked for.
pub(crate) fn say(streams: &mut Streams<'_>, text: &str) {
    // Nowhere left to tell it if this fails.
    let _ = writeln!(streams.err, "{text}");
}
