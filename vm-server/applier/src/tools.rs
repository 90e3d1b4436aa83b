//! What every set needs to do its work: journal, copies, disk, tasks, witness.

use std::collections::BTreeMap;

use host_policy::Daemon;
use lifecycle::SetName;
use protocol::report::Notice;
use protocol::{HostId, InstallationId};
use sets::{Disk, Mounted};

use crate::consumers::Tasks;
use crate::copies::Copies;
use crate::journal::{Journal, JournalError};
use crate::record::{RecordRef, SetRecord};
use crate::witness::{View, Witness};

/// What every set needs to do its work.
pub(crate) struct Tools {
    pub(crate) daemon: Daemon,
    pub(crate) installation: InstallationId,
    pub(crate) host: HostId,
    pub(crate) journal: Journal,
    pub(crate) copies: Copies,
    pub(crate) disk: Disk,
    pub(crate) tasks: Tasks,
    pub(crate) witness: Witness,
    /// All processes at the last look.
    pub(crate) view: View,
    /// A seal wants a fresh look at processes.
    pub(crate) recheck: bool,
    /// What each set lies on.
    pub(crate) mounts: BTreeMap<SetName, Mounted>,
    /// What an operator should know, by code and subject.
    notices: BTreeMap<(&'static str, String), String>,
    /// Something changed that a report has to show.
    pub(crate) changed: bool,
}

impl Tools {
    pub(crate) fn new(
        daemon: Daemon,
        (installation, host): (InstallationId, HostId),
        journal: Journal,
        copies: Copies,
        tasks: Tasks,
        witness: Witness,
        disk: Disk,
    ) -> Self {
        Self {
            daemon,
            installation,
            host,
            journal,
            copies,
            disk,
            tasks,
            witness,
            view: View::default(),
            recheck: false,
            mounts: BTreeMap::new(),
            notices: BTreeMap::new(),
            changed: true,
        }
    }

    /// Makes the record of a set durable.
    pub(crate) fn keep(&mut self, name: &SetName, record: &SetRecord) -> Result<(), JournalError> {
        let bytes = RecordRef::Set(name, record).to_bytes();
        self.journal.append_result(bytes)
    }

    /// Tells an operator, until it is over.
    pub(crate) fn notice(
        &mut self,
        code: &'static str,
        about: impl Into<String>,
        message: impl Into<String>,
    ) {
        let (about, message) = (about.into(), message.into());
        if self.notices.get(&(code, about.clone())) != Some(&message) {
            tracing::warn!(code, about, message, "noticed");
            self.notices.insert((code, about), message);
            self.changed = true;
        }
    }

    /// It is over.
    pub(crate) fn unnotice(&mut self, code: &'static str, about: &str) {
        self.changed |= self.notices.remove(&(code, about.to_owned())).is_some();
    }

    /// Everything about this subject is over, but for this.
    pub(crate) fn unnotice_but(&mut self, code: Option<&'static str>, about: &str) {
        let before = self.notices.len();
        self.notices.retain(|(of, subject), _| subject != about || Some(*of) == code);
        self.changed |= self.notices.len() != before;
    }

    pub(crate) fn notices(&self) -> Vec<Notice> {
        let all = self.notices.iter().take(protocol::limit::NOTICES_MAX);
        all.map(|((code, _), message)| Notice {
            code: (*code).to_owned(),
            message: protocol::report::sentence(message),
        })
        .collect()
    }
}
