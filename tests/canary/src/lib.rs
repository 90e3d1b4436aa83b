//! Looks for known secret values in whatever a program left behind: logs, answers, databases, core dumps. It names the
//! value it found, where, and in which form, and never shows the value itself.
//!
//! Values have to be of high entropy and of [`SHORTEST`] bytes at least, else chance would find them too. A value that a
//! database page or a line break cuts once in two is found by its longer half.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;

mod encoding;

pub use encoding::Encoding;

/// What is shorter is no canary, in bytes.
pub const SHORTEST: usize = 12;

/// In one place no more than this is reported.
const LEAKS_MAX: usize = 1024;

/// The values to look for, in all the forms that they may have taken.
pub struct Canaries {
    names: Vec<String>,
    /// What each pattern of the automaton stands for: a value and its form.
    meanings: Vec<(usize, Encoding)>,
    automaton: AhoCorasick,
}

/// A value where it must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// What the value was called when it was given.
    pub canary: String,
    /// The file, or what the bytes were said to be.
    pub place: PathBuf,
    /// From the beginning of the place, in bytes, to the end of what was found.
    pub offset: u64,
    /// In which form.
    pub encoding: Encoding,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { canary, place, offset, encoding } = self;
        write!(f, "{canary} as {encoding} in {}, before byte {offset}", place.display())
    }
}

/// The values cannot be looked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsuitable {
    /// Chance would find this one too.
    TooShort {
        /// Which one.
        canary: String,
    },
    /// There is nothing to look for.
    Nothing,
    /// Too many patterns for one automaton.
    TooMany,
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { canary } => write!(f, "{canary} is shorter than {SHORTEST} bytes"),
            Self::Nothing => f.write_str("no value to look for was given"),
            Self::TooMany => f.write_str("too many values to look for at once"),
        }
    }
}

impl std::error::Error for Unsuitable {}

impl Canaries {
    /// Values to look for, each with a name that may be shown.
    pub fn new<N, V>(values: impl IntoIterator<Item = (N, V)>) -> Result<Self, Unsuitable>
    where
        N: Into<String>,
        V: AsRef<[u8]>,
    {
        let (mut names, mut meanings, mut patterns) = (Vec::new(), Vec::new(), Vec::new());
        let mut known = BTreeSet::new();
        for (name, value) in values {
            let name = name.into();
            if value.as_ref().len() < SHORTEST {
                return Err(Unsuitable::TooShort { canary: name });
            }
            for (encoding, form) in encoding::forms(value.as_ref()) {
                for part in encoding::parts(&form) {
                    // The first form that looks like this gives it its name: a plain word is "raw" also in a URL.
                    if known.insert(part.to_vec()) {
                        meanings.push((names.len(), encoding));
                        patterns.push(part.to_vec());
                    }
                }
            }
            names.push(name);
        }
        if names.is_empty() {
            return Err(Unsuitable::Nothing);
        }
        let automaton = AhoCorasick::new(patterns).map_err(|_| Unsuitable::TooMany)?;
        Ok(Self { names, meanings, automaton })
    }

    /// Looks through bytes that are at hand.
    pub fn in_bytes(&self, place: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Vec<Leak> {
        let found = self.automaton.find_iter(bytes.as_ref()).take(LEAKS_MAX);
        found.map(|found| self.leak(place.as_ref(), &found)).collect()
    }

    /// Looks through a stream of any length, of which only a window is in memory.
    pub fn in_stream(&self, place: impl AsRef<Path>, stream: impl Read) -> io::Result<Vec<Leak>> {
        let found = self.automaton.stream_find_iter(stream).take(LEAKS_MAX);
        found.map(|found| found.map(|found| self.leak(place.as_ref(), &found))).collect()
    }

    /// Looks through a file, or through everything below a directory, names included; links are not followed, and
    /// their targets are read as text. What lies below a path of `except` is left out, each of which has to be there:
    /// an exception that nothing needs any more would hide the next leak.
    pub fn in_tree(&self, root: impl AsRef<Path>, except: &[&Path]) -> io::Result<Vec<Leak>> {
        for path in except {
            path.symlink_metadata().map_err(|error| at(path, "the exception is of no use", &error))?;
        }
        let mut leaks = Vec::new();
        let mut pending = vec![root.as_ref().to_owned()];
        while let Some(path) = pending.pop() {
            if except.contains(&path.as_path()) {
                continue;
            }
            if let Some(name) = path.file_name() {
                leaks.extend(self.in_bytes(&path, name.as_bytes()));
            }
            let kind = match path.symlink_metadata() {
                Ok(metadata) => metadata.file_type(),
                Err(error) if error.kind() == io::ErrorKind::NotFound && path != root.as_ref() => continue,
                Err(error) => return Err(at(&path, "failed to look at", &error)),
            };
            // What goes away meanwhile is no find, unless it is all that there was to look through.
            let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound && path != root.as_ref();
            if kind.is_dir() {
                let entries = match std::fs::read_dir(&path) {
                    Err(error) if gone(&error) => continue,
                    listed => listed.map_err(|error| at(&path, "failed to list", &error))?,
                };
                for entry in entries {
                    pending.push(entry.map_err(|error| at(&path, "failed to list", &error))?.path());
                }
            } else if kind.is_symlink() {
                let target = match std::fs::read_link(&path) {
                    Err(error) if gone(&error) => continue,
                    target => target.map_err(|error| at(&path, "failed to read", &error))?,
                };
                leaks.extend(self.in_bytes(&path, target.as_os_str().as_bytes()));
            } else if kind.is_file() {
                let file = match File::open(&path) {
                    Err(error) if gone(&error) => continue,
                    file => file.map_err(|error| at(&path, "failed to open", &error))?,
                };
                leaks.extend(
                    self.in_stream(&path, file).map_err(|error| at(&path, "failed to read", &error))?,
                );
            }
        }
        Ok(leaks)
    }

    /// [`Canaries::in_tree`] over several roots; the error says all that was found, a line each.
    pub fn none_in<'a>(
        &self,
        roots: impl IntoIterator<Item = &'a Path>,
        except: &[&Path],
    ) -> Result<(), Cow<'static, str>> {
        let mut lines = Vec::new();
        for root in roots {
            let except: Vec<_> = except.iter().copied().filter(|path| path.starts_with(root)).collect();
            match self.in_tree(root, &except) {
                Ok(leaks) => lines.extend(leaks.iter().map(ToString::to_string)),
                Err(error) => lines.push(error.to_string()),
            }
        }
        if lines.is_empty() { Ok(()) } else { Err(lines.join("\n").into()) }
    }

    fn leak(&self, place: &Path, found: &aho_corasick::Match) -> Leak {
        let (canary, encoding) = self.meanings[found.pattern().as_usize()];
        Leak {
            canary: self.names[canary].clone(),
            place: place.to_owned(),
            offset: found.end() as u64,
            encoding,
        }
    }
}

fn at(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
