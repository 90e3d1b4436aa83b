//! The command line, and the one of the daemon of the same name that came before.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

/// The half of a host that faces the network.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "eso-vm-server", version, about)]
pub struct Arguments {
    /// The directory with config.toml and conf.d
    #[arg(long, value_name = "DIR", env = "ESO_VM_CONFIG", default_value = "/etc/eso-vm-server")]
    pub config: PathBuf,
    /// Listen on this port instead of the configured one
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Write the configuration's faults and end
    #[arg(long)]
    pub check: bool,
}

/// Why a command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentsError {
    /// A flag of the daemon that came before, which has no counterpart.
    #[error("{flag} is a flag of the older eso-vm-server and means nothing here: {instead}")]
    Retired {
        /// Which.
        flag: String,
        /// What to do.
        instead: &'static str,
    },
    /// Anything else, and the requests for help and version.
    #[error(transparent)]
    Clap(#[from] clap::Error),
}

const OWN_KEYS: &str = "keys and certificates are made at enrolment; run `eso-vm-applier enroll --bundle FILE` and remove the flag";
const OWN_WATCH: &str = "who uses a file is found by the applier for every set of the policy; remove the flag and name the set there";

/// Reads the command line. Flags with a single dash are taken as the older daemon took them.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, ArgumentsError> {
    let mut modern = Vec::new();
    for argument in arguments {
        let text = argument.to_str().unwrap_or_default();
        let flag = text.trim_start_matches('-').split('=').next().unwrap_or_default();
        let dashed = text.starts_with('-');
        match flag {
            "ca-file" | "cert-file" | "key-file" if dashed => {
                return Err(ArgumentsError::Retired { flag: format!("-{flag}"), instead: OWN_KEYS });
            }
            "watch-enable" | "watch-mount" | "watch-verbose" if dashed => {
                return Err(ArgumentsError::Retired { flag: format!("-{flag}"), instead: OWN_WATCH });
            }
            "port" if text.starts_with("-p") => modern.push(format!("-{text}").into()),
            _ => modern.push(argument),
        }
    }
    Ok(Arguments::try_parse_from(modern)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Arguments, ArgumentsError> {
        parse(std::iter::once("eso-vm-server").chain(words.iter().copied()).map(OsString::from))
    }

    #[test]
    fn the_older_port_flag_still_works() {
        for words in [&["-port", "1400"][..], &["-port=1400"], &["--port", "1400"], &["--port=1400"]] {
            assert_eq!(of(words).unwrap().port, Some(1400), "{words:?}");
        }
        assert_eq!(of(&["--config", "/x"]).unwrap().config, PathBuf::from("/x"));
    }

    #[test]
    fn older_flags_without_a_counterpart_say_what_to_do() {
        for flag in
            ["-ca-file", "-cert-file", "-key-file", "-watch-enable", "-watch-mount", "--watch-verbose=true"]
        {
            let error = of(&[flag, "/x"]).unwrap_err().to_string();
            assert!(error.contains("remove the flag"), "{flag}: {error}");
        }
        assert!(matches!(of(&["--nonsense"]), Err(ArgumentsError::Clap(_))));
    }
}
