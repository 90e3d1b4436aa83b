//! What the person in front of the terminal sees: plain lines with the time since the start, coloured on a terminal.

#![allow(clippy::print_stdout, reason = "this is the demo's own output")]

use std::io::IsTerminal as _;
use std::time::Instant;

/// Where the demo speaks.
#[derive(Debug, Clone)]
pub struct Terminal {
    started: Instant,
    coloured: bool,
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// A new part begins.
    Heading,
    /// Something happened.
    Plain,
    /// We broke something on purpose.
    Sabotage,
    /// A promise was seen to hold.
    Good,
    /// A promise was seen not to hold.
    Bad,
}

impl Default for Terminal {
    fn default() -> Self {
        Self { started: Instant::now(), coloured: std::io::stdout().is_terminal() }
    }
}

impl Terminal {
    /// Says one line.
    pub fn say(&self, tone: Tone, line: impl AsRef<str>) {
        let line = line.as_ref();
        let seconds = self.started.elapsed().as_secs_f64();
        let (colour, mark) = match tone {
            Tone::Heading => ("1", "=="),
            Tone::Plain => ("0", "  "),
            Tone::Sabotage => ("33", "!!"),
            Tone::Good => ("32", "ok"),
            Tone::Bad => ("31", "NO"),
        };
        if tone == Tone::Heading {
            println!();
        }
        if self.coloured {
            println!("\x1b[2m{seconds:7.2}\x1b[0m \x1b[{colour}m{mark} {line}\x1b[0m");
        } else {
            println!("{seconds:7.2} {mark} {line}");
        }
    }
}
