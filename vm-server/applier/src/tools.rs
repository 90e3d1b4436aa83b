//! What every set needs to do its work: journal, copies, disk, tasks, witness.

use std::collections::BTreeMap;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use host_policy::Daemon;
use lifecycle::{ConsumerName, SetName};
use protocol::report::Notice;
use protocol::{HostId, InstallationId};
use sets::{Disk, Mounted};

use crate::clock;
use crate::consumers::Tasks;
use crate::copies::Copies;
use crate::journal::{Journal, JournalError};
use crate::record::{RecordRef, SetRecord};
use crate::set::Set;
use crate::witness::{View, Witness};

/// What happened and was put right by itself: it is told until somebody has heard of it.
const TOLD_FOR_SURE: [&str; 3] = ["copy", "drift", "exact_ended"];

/// After an agreed instant nothing is begun that could wait: many hosts share the instant, and often a machine.
const REST: Duration = Duration::from_millis(20);

/// What an operator is told.
struct Told {
    message: String,
    /// The first report that has it.
    shown_in: Option<u64>,
    /// It is over, and stays for as long as no report that has it was acknowledged.
    over: bool,
}

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
    /// A seal, or what was done before it, wants a fresh look at processes.
    pub(crate) recheck: bool,
    /// Until when nothing is begun after an agreed instant.
    pub(crate) resting: Instant,
    /// What each set lies on.
    pub(crate) mounts: BTreeMap<SetName, Mounted>,
    /// What an operator should know, by code and subject.
    notices: BTreeMap<(&'static str, String), Told>,
    /// Something changed that a report has to show.
    pub(crate) changed: bool,
    /// All sets but the one that is at work: their agreed instants are met while it waits for somebody.
    pub(crate) others: BTreeMap<SetName, Set>,
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
            resting: Instant::now(),
            mounts: BTreeMap::new(),
            notices: BTreeMap::new(),
            changed: true,
            others: BTreeMap::new(),
        }
    }

    /// Waits for the end of this work, which runs elsewhere, and meets the agreed instants of other sets meanwhile.
    /// None when it was not done in time.
    pub(crate) fn wait<T: Send + 'static>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, is_done) = std::sync::mpsc::channel();
        let task = self.tasks.runtime().spawn(async move {
            // Nobody waits any more when it took too long.
            let _ = done.send(work.await);
        });
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let next = self.others.values().filter_map(Set::next_due).min();
            let pause = next.map_or(left, |due| Duration::from_millis(due.since(clock::boot()).0).min(left));
            match is_done.recv_timeout(pause) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    task.abort();
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => self.flip_others(),
            }
        }
    }

    fn flip_others(&mut self) {
        let mut others = std::mem::take(&mut self.others);
        for set in others.values_mut() {
            set.flip_if_due(self);
        }
        for set in others.values_mut() {
            set.show_in_places(self);
        }
        self.others = others;
    }

    /// An agreed instant has been met.
    pub(crate) fn rest(&mut self) {
        self.resting = Instant::now() + REST;
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
        let told = self.notices.get(&(code, about.clone()));
        if !told.is_some_and(|told| told.message == message && !told.over) {
            tracing::warn!(code, about, message, "noticed");
            self.notices.insert((code, about), Told { message, shown_in: None, over: false });
            self.changed = true;
        }
    }

    /// It is over.
    pub(crate) fn unnotice(&mut self, code: &'static str, about: &str) {
        let key = (code, about.to_owned());
        if TOLD_FOR_SURE.contains(&code) {
            if let Some(told) = self.notices.get_mut(&key) {
                told.over = true;
            }
            return;
        }
        self.changed |= self.notices.remove(&key).is_some();
    }

    /// This report was acknowledged: what it told and is over was heard.
    pub(crate) fn heard(&mut self, sequence: u64) {
        let before = self.notices.len();
        self.notices.retain(|_, told| !told.over || told.shown_in.is_none_or(|shown| shown > sequence));
        self.changed |= self.notices.len() != before;
    }

    /// One trouble a consumer: another takes its place.
    pub(crate) fn trouble(
        &mut self,
        set: &SetName,
        consumer: &ConsumerName,
        trouble: Option<(&'static str, String)>,
    ) {
        let about = format!("consumer {set}/{consumer}");
        let code = trouble.as_ref().map(|(code, _)| *code);
        let before = self.notices.len();
        self.notices.retain(|(of, subject), _| *subject != about || Some(*of) == code);
        self.changed |= self.notices.len() != before;
        if let Some((code, message)) = trouble {
            self.notice(code, about, format!("{set}: {message}"));
        }
    }

    /// For the report with this number.
    pub(crate) fn notices(&mut self, sequence: u64) -> Vec<Notice> {
        let all = self.notices.iter_mut().take(protocol::limit::NOTICES_MAX);
        all.map(|((code, _), told)| {
            told.shown_in.get_or_insert(sequence);
            Notice { code: (*code).to_owned(), message: protocol::report::sentence(&told.message) }
        })
        .collect()
    }
}
