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
