//! Rows of the audit log.

use protocol::UnixMillis;
use store::Audit;

/// Who does what happens by itself.
pub(crate) const ENGINE: &str = "engine";

/// A row as of now.
pub(crate) fn entry(actor: &str, action: &str, subject: &str, detail: &str) -> Audit {
    Audit {
        at_ms: UnixMillis::now().0,
        actor: actor.to_owned(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        detail: protocol::report::sentence(detail),
    }
}

/// How often the audit log was told something of one host since our start. A host says it itself, and must not be able
/// to fill the log.
#[derive(Debug, Default)]
pub(crate) struct Told(usize);

impl Told {
    /// Whether one more is told, and what is to be said with it: the last one says that no more are.
    pub(crate) const fn one_more(&mut self, max: usize) -> Option<&'static str> {
        if self.0 >= max {
            return None;
        }
        self.0 += 1;
        Some(if self.0 == max { "; more of them are counted, and not told here" } else { "" })
    }
}
