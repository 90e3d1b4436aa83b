//! What the person in front of the terminal sees: lines with the time since the start, and below them, on a terminal, one
//! live line for each application. Plain lines elsewhere.

#![allow(clippy::print_stdout, reason = "this is the demo's own output")]

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The most characters of a line, beside the time.
const WIDTH: usize = 100;

/// Where the demo speaks. Cloning it gives the same.
#[derive(Clone)]
pub struct Terminal(Arc<Inner>);

struct Inner {
    started: Instant,
    coloured: bool,
    live: MultiProgress,
    said: Mutex<String>,
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// A new part begins.
    Heading,
    /// What is about to be seen, and why.
    Why,
    /// Something happened.
    Plain,
    /// We broke something on purpose.
    Sabotage,
    /// A person does something.
    Person,
    /// A promise was seen to hold.
    Good,
    /// A promise was seen not to hold.
    Bad,
    /// The product stopped something, as it should.
    Stop,
}

impl Default for Terminal {
    fn default() -> Self {
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let target =
            if coloured { ProgressDrawTarget::stdout_with_hz(10) } else { ProgressDrawTarget::hidden() };
        Self(Arc::new(Inner {
            started: Instant::now(),
            coloured,
            live: MultiProgress::with_draw_target(target),
            said: Mutex::default(),
        }))
    }
}

impl Terminal {
    /// Says one line, or several of one tone.
    pub fn say(&self, tone: Tone, text: impl AsRef<str>) {
        let seconds = self.0.started.elapsed().as_secs_f64();
        let (colour, mark) = match tone {
            Tone::Heading => ("1;36", "=="),
            Tone::Why => ("2", "  "),
            Tone::Plain => ("0", "  "),
            Tone::Sabotage => ("1;33", "!!"),
            Tone::Person => ("35", ">>"),
            Tone::Good => ("32", "ok"),
            Tone::Bad => ("1;31", "NO"),
            Tone::Stop => ("1;33", "##"),
        };
        if tone == Tone::Heading {
            self.line("");
        }
        // What is indented is meant to be copied as it stands, and a log is searched by whole lines.
        let whole = |line: &str| !self.0.coloured || line.starts_with(' ');
        let width = |line: &str| if whole(line) { usize::MAX } else { WIDTH };
        let indent = if tone == Tone::Why { "" } else { "   " };
        let lines = text.as_ref().lines().flat_map(|line| fold(line, width(line), indent));
        for (place, line) in lines.enumerate() {
            let time = if place == 0 && tone != Tone::Why { format!("{seconds:7.2}") } else { " ".repeat(7) };
            let mark = if place == 0 { mark } else { "  " };
            if self.0.coloured {
                self.line(&format!("\x1b[2m{time}\x1b[0m \x1b[{colour}m{mark} {line}\x1b[0m"));
            } else {
                self.line(&format!("{time} {mark} {line}"));
            }
        }
    }

    fn line(&self, line: &str) {
        {
            let mut said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(line);
            said.push('\n');
        }
        if !self.0.coloured || self.0.live.println(line).is_err() {
            println!("{line}");
        }
    }

    /// Everything that was said, to be searched for what must not be there.
    pub fn said(&self) -> String {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether somebody looks.
    pub fn is_live(&self) -> bool {
        self.0.coloured
    }

    /// A line that stays at the bottom and changes. It goes when it is dropped.
    pub fn live_line(&self) -> LiveLine {
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        LiveLine(self.0.live.add(ProgressBar::new_spinner().with_style(style)))
    }
}

/// A line that stays at the bottom of the terminal.
pub struct LiveLine(ProgressBar);

impl LiveLine {
    /// Changes it.
    pub fn show(&self, text: String) {
        self.0.set_message(text);
        self.0.tick();
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A span of time as people read it.
pub fn span(span: Duration) -> String {
    match span.as_millis() {
        ms @ 0..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", span.as_secs_f64()),
    }
}

/// The text in lines of at most so many characters, broken between words, all but the first beginning with `indent`. A
/// text that fits stays as it is.
pub fn fold(text: &str, width: usize, indent: &str) -> Vec<String> {
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let room = width.saturating_sub(lines[last].chars().count());
        if lines[last].is_empty() || word.chars().count() < room {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        } else {
            lines.push(format!("{indent}{word}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_folded_between_words_and_short_ones_left_alone() {
        assert_eq!(fold("a  b", 10, "  "), ["a  b"]);
        assert_eq!(fold("one two three four", 9, "  "), ["one two", "  three", "  four"]);
        assert_eq!(fold("averyveryverylongword b", 9, "  "), ["averyveryverylongword", "  b"]);
    }
}
