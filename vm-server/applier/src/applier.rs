//! The one thread that owns everything: it takes one input after another, and time.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use host_policy::HostPolicy;
use lifecycle::SetName;
use lifecycle::host::{Answer, HostEvent};
use protocol::order::OrderIdentity;
use protocol::report::Means;
use protocol::{Frame, TrustAnchor};

use crate::applications::Named;
use crate::clock::{self, SenderClock};
use crate::input::Input;
use crate::journal::JournalError;
use crate::keep::{Identity, Keeper};
use crate::record::{HostRecord, Record, RecordRef, SetRecord};
use crate::reporting::Sent;
use crate::set::{ASK_MAX, Set};
use crate::tools::Tools;
use crate::watch::Watch;

/// How often consumers and holders are looked at while a version could be held that is not the current one.
const LOOK_BUSY: Duration = Duration::from_millis(200);
/// How many times as long as a look took nothing is looked at: on a machine with many processes a look is not cheap.
const LOOK_REST: u32 = 10;
/// The longest such pause.
const LOOK_REST_MAX: Duration = Duration::from_secs(5);
/// Before an agreed instant nothing is begun that could wait: all hosts are to flip together.
const HUSH: Duration = Duration::from_millis(100);
/// How long directories are left alone after a change, so that a change of many files is taken as one.
const QUIET: Duration = Duration::from_millis(60);
/// For how long inputs are taken before it is the turn of what is due.
const ROUND: Duration = Duration::from_millis(200);

/// Everything of one host.
pub(crate) struct Applier {
    pub(crate) tools: Tools,
    pub(crate) identity: Identity,
    pub(crate) keeper: Keeper,
    pub(crate) anchor: TrustAnchor,
    pub(crate) host: HostRecord,
    pub(crate) policy: HostPolicy,
    pub(crate) sets: BTreeMap<SetName, Set>,
    /// Orders that were accepted lately.
    pub(crate) accepted: VecDeque<OrderIdentity>,
    pub(crate) sender_clock: SenderClock,
    pub(crate) next_sequence: u64,
    pub(crate) sent: Option<Sent>,
    /// No report that nobody asked for is made before.
    pub(crate) next_report: Instant,
    /// Where reports go while the network half is connected: the newest counts.
    pub(crate) reports: Option<tokio::sync::watch::Sender<Option<Frame>>>,
    pub(crate) network_means: Vec<Means>,
    config: PathBuf,
    watch: Watch,
    /// Whom policy names, for those who hear what applications say.
    named: tokio::sync::watch::Sender<Arc<Named>>,
    pub(crate) looked: Instant,
    pub(crate) look_took: Duration,
    pub(crate) tried: Instant,
    refreshed: BTreeMap<SetName, Instant>,
    policy_due: Option<Instant>,
    places_due: Option<Instant>,
}

/// What came in and waits. What applications say comes last: nobody's orders wait for what it costs to judge that.
#[derive(Default)]
struct Waiting {
    said: VecDeque<Input>,
    others: VecDeque<Input>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.said.is_empty() && self.others.is_empty()
    }

    fn put(&mut self, input: Input) {
        let to = if matches!(input, Input::Said { .. }) { &mut self.said } else { &mut self.others };
        to.push_back(input);
    }

    /// All that is there by now.
    fn fill(&mut self, inbox: &Receiver<Input>) -> Result<(), TryRecvError> {
        loop {
            match inbox.try_recv() {
                Ok(input) => self.put(input),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(ended) => return Err(ended),
            }
        }
    }

    fn next(&mut self) -> Option<Input> {
        self.others.pop_front().or_else(|| self.said.pop_front())
    }
}

/// What the applier begins with.
pub(crate) struct Beginning {
    pub(crate) tools: Tools,
    pub(crate) identity: Identity,
    pub(crate) keeper: Keeper,
    pub(crate) anchor: TrustAnchor,
    pub(crate) policy: HostPolicy,
    pub(crate) config: PathBuf,
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) watch: Watch,
    pub(crate) named: tokio::sync::watch::Sender<Arc<Named>>,
}

impl Applier {
    /// Reads the journal's records, makes again what a boot has taken, and tells every machine. Where nothing can be written
    /// down, applications still find their files, and no report is made until it can.
    pub(crate) fn begin(beginning: Beginning) -> Result<Self, JournalError> {
        let Beginning { tools, identity, keeper, anchor, policy, config, records, watch, named } = beginning;
        let (host, sets) = replay(&records).map_err(|error| tools.journal.not_understood(error))?;
        let mut applier = Self {
            next_sequence: host.reports_below.max(1),
            tools,
            identity,
            keeper,
            anchor,
            host,
            policy,
            sets,
            accepted: VecDeque::new(),
            sender_clock: SenderClock::default(),
            sent: None,
            next_report: Instant::now(),
            reports: None,
            network_means: Vec::new(),
            config,
            watch,
            named,
            looked: Instant::now(),
            look_took: Duration::ZERO,
            tried: Instant::now(),
            refreshed: BTreeMap::new(),
            policy_due: None,
            places_due: None,
        };
        // With it all that an earlier life left is written anew: nothing follows from it before.
        applier.reserve_numbers();
        applier.start_sets();
        Ok(applier)
    }

    fn start_sets(&mut self) {
        self.sets.retain(|_, set| !set.is_empty());
        for (name, set) in &mut self.sets {
            set.policy = self.policy.set(name).cloned();
        }
        // What an earlier life took from the kernel is of the files that lay here then.
        self.observe();
        self.tell_policy();
        self.observe();
        self.look_again();
    }

    /// Makes the host's own record durable; now and then the whole journal is written anew.
    pub(crate) fn keep_host(&mut self) -> Result<(), JournalError> {
        if self.tools.journal.wants_compaction() {
            return self.compact();
        }
        self.tools.journal.append_result(RecordRef::Host(&self.host).to_bytes())?;
        self.tools.unnotice("journal", "host");
        Ok(())
    }

    fn compact(&mut self) -> Result<(), JournalError> {
        let sets = self.sets.iter().map(|(name, set)| RecordRef::Set(name, &set.record));
        let records: Result<Vec<Vec<u8>>, std::io::Error> =
            std::iter::once(RecordRef::Host(&self.host)).chain(sets).map(RecordRef::to_bytes).collect();
        self.tools.journal.compact_result(records)?;
        self.tools.unnotice("journal", "host");
        Ok(())
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self, inbox: &Receiver<Input>) {
        self.serve(inbox);
        // What the kernel has told us is told to nobody again: it goes into the journal before we end.
        self.tools.witness.stop_taking();
        self.observe();
    }

    fn serve(&mut self, inbox: &Receiver<Input>) {
        let mut waiting = Waiting::default();
        loop {
            self.tick();
            if waiting.is_empty() {
                match inbox.recv_timeout(self.wait()) {
                    Ok(input) => waiting.put(input),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            // What is due gets its turn although inputs never end.
            let round = Instant::now();
            while round.elapsed() < ROUND {
                if waiting.fill(inbox).is_err() {
                    return;
                }
                let Some(input) = waiting.next() else { break };
                // An agreed instant is met between two inputs too.
                self.tick();
                if matches!(input, Input::Stop) {
                    return;
                }
                self.take(input);
            }
            if !self.is_hushed() {
                self.do_due();
                self.send_reports();
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Push { frames, answer, room } => {
                let receipts = self.take_orders(&frames);
                if let Some(frame) = self.report(receipts) {
                    // Whoever asked may be gone; the same is sent as a report then.
                    let _ = answer.send((frame, room));
                }
            }
            Input::Acknowledged { frame, room: _room } => self.acknowledged(&frame),
            Input::Connected { pid, reports, means } => {
                self.tools.witness.network_is(pid);
                self.connected(reports, means);
            }
            Input::Disconnected => self.tools.witness.network_is(None),
            Input::Outcome { set, event } => {
                // After a flip it is written down who runs, before anybody is made to end by what came of looking.
                self.look_again();
                let of = self.sets.get(&set);
                if of.is_some_and(|set| set.is_too_early(&mut self.tools, &event)) {
                    return;
                }
                match &event {
                    HostEvent::Unhealthy { consumer, reason, .. } => {
                        let trouble = ("unhealthy", format!("{consumer}: {reason}"));
                        self.tools.trouble(&set, consumer, Some(trouble));
                    }
                    HostEvent::Healthy { consumer, .. } => self.tools.trouble(&set, consumer, None),
                    _ => {}
                }
                if let Err(error) = self.give(&set, event) {
                    tracing::error!(%set, %error, "an outcome is not in the journal yet");
                }
                self.look_again();
            }
            Input::Appeared { set, consumer, life } => {
                self.observe();
                let given = self.with_set(&set, |set, tools| set.appeared(tools, consumer, &life));
                if let Some(Err(error)) = given {
                    tracing::error!(%set, %error, "an outcome is not in the journal yet");
                }
                self.look_again();
            }
            Input::Said { speaker, statement, reply } => {
                // Whoever spoke may be gone.
                let _ = reply.send(self.said(&speaker, &statement));
            }
            Input::Trouble { set, consumer, trouble } => self.tools.trouble(&set, &consumer, trouble),
            Input::PolicyTouched => self.policy_due = Some(Instant::now() + QUIET),
            Input::PlacesTouched => {
                self.places_due.get_or_insert(Instant::now() + QUIET);
            }
            Input::Stirred => self.observe_and_recheck(),
            Input::Stop => {}
        }
    }

    /// Gives one event to one set.
    pub(crate) fn give(&mut self, name: &SetName, event: HostEvent) -> Result<Option<Answer>, JournalError> {
        self.with_set(name, |set, tools| set.give(tools, event)).unwrap_or(Ok(None))
    }

    /// Has one set at work, while the others' agreed instants are met.
    pub(crate) fn with_set<T>(
        &mut self,
        name: &SetName,
        work: impl FnOnce(&mut Set, &mut Tools) -> T,
    ) -> Option<T> {
        let mut set = self.sets.remove(name)?;
        self.tools.others = std::mem::take(&mut self.sets);
        let done = work(&mut set, &mut self.tools);
        self.sets = std::mem::take(&mut self.tools.others);
        self.sets.insert(name.clone(), set);
        Some(done)
    }

    /// Waits for an answer, while the agreed instants of all sets are met. None when it did not come in time.
    pub(crate) fn await_answer<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.tools.others = std::mem::take(&mut self.sets);
        let answer = self.tools.wait(ASK_MAX, work);
        self.sets = std::mem::take(&mut self.tools.others);
        answer
    }

    /// Flips what is due, and only then shows it in other places. Then nothing else is done for a moment.
    fn tick(&mut self) {
        loop {
            for set in self.sets.values_mut() {
                set.flip_if_due(&mut self.tools);
            }
            for set in self.sets.values_mut() {
                set.show_in_places(&mut self.tools);
            }
            let rest = self.tools.resting.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            std::thread::sleep(self.until_next_instant().map_or(rest, |next| next.min(rest)));
        }
        if !self.is_hushed() {
            self.keep_flips();
            self.look_again();
        }
    }

    fn until_next_instant(&self) -> Option<Duration> {
        let boot = clock::boot();
        let flips = self.sets.values().filter_map(Set::next_due);
        flips.map(|due| Duration::from_millis(due.since(boot).0)).min()
    }

    /// Makes durable what came of an agreed instant, before anybody looks around for what is behind.
    fn keep_flips(&mut self) {
        for set in self.sets.values_mut().filter(|set| set.unkept) {
            // What cannot be kept now is kept with the next event.
            let _ = set.keep(&mut self.tools);
        }
    }

    /// How long nothing has to be done unless something comes in.
    fn wait(&self) -> Duration {
        let flip = self.until_next_instant();
        if self.is_hushed() {
            return flip.unwrap_or_default();
        }
        let now = Instant::now();
        // In time to be quiet before it.
        let flip = flip.map(|until| until.saturating_sub(HUSH));
        let exact_due = self.tools.witness.exact_due();
        let others = [self.policy_due, self.places_due, self.report_due(), self.look_due(), exact_due];
        let rest = self.look_rest();
        let starts = self.sets.values().filter_map(Set::start_due).map(|due| due.max(self.looked + rest));
        let others = others.into_iter().flatten().chain(self.refresh_due()).chain(starts);
        let others = others.map(|due| due.saturating_duration_since(now));
        others.chain(flip).min().unwrap_or(Duration::from_mins(1))
    }

    /// Whether an agreed instant is near.
    fn is_hushed(&self) -> bool {
        self.until_next_instant().is_some_and(|until| until <= HUSH)
    }

    fn look_due(&self) -> Option<Instant> {
        let busy = self.sets.values().any(|set| {
            set.has_to_look()
                || set.is_behind()
                || set.machine().has_open_flip()
                || set.machine().has_open_unlinks()
        });
        busy.then(|| self.looked + self.look_rest())
    }

    /// How long nothing is looked at after a look.
    fn look_rest(&self) -> Duration {
        LOOK_BUSY.max((self.look_took * LOOK_REST).min(LOOK_REST_MAX))
    }

    fn refresh_due(&self) -> Option<Instant> {
        let due = self.sets.iter().filter(|(_, set)| set.is_looked_at).filter_map(|(name, set)| {
            let every = Duration::from_millis(set.policy.as_ref()?.refresh_ms);
            Some(self.refreshed.get(name).map_or_else(Instant::now, |at| *at + every))
        });
        due.min()
    }

    fn do_due(&mut self) {
        let now = Instant::now();
        if self.policy_due.is_some_and(|due| due <= now) {
            self.policy_due = None;
            self.reload_policy();
        }
        let touched = self.places_due.is_some_and(|due| due <= now);
        if touched {
            self.places_due = None;
        }
        let names: Vec<SetName> = self.sets.keys().cloned().collect();
        for name in names {
            let Some(set) = self.sets.get_mut(&name).filter(|set| set.is_looked_at) else { continue };
            let Some(every) = set.policy.as_ref().map(|policy| Duration::from_millis(policy.refresh_ms))
            else {
                continue;
            };
            let due = self.refreshed.get(&name).is_none_or(|at| now.duration_since(*at) >= every);
            if touched || due {
                set.put_places_right(&mut self.tools);
                self.refreshed.insert(name, now);
            }
        }
        if self.look_due().is_some_and(|due| due <= now) {
            self.observe_and_recheck();
        }
        if self.tools.witness.exact_due().is_some_and(|due| due <= now) {
            self.start_exact_again();
        }
        if self.tools.journal.wants_compaction()
            && let Err(error) = self.compact()
        {
            self.tools.notice("journal", "host", error.to_string());
        }
    }

    /// The policy is taken whole or not at all.
    fn reload_policy(&mut self) {
        match HostPolicy::load(&self.config) {
            Ok(policy) => {
                self.tools.unnotice("policy_refused", "policy");
                if policy == self.policy {
                    return;
                }
                if policy.daemon != self.policy.daemon {
                    let message = "[daemon] changed: restart eso-vm-applier for that part";
                    self.tools.notice("daemon_changed", "policy", message);
                }
                tracing::info!("the policy changed");
                self.policy = policy;
                self.tell_policy();
            }
            Err(error) => {
                let message = format!("{error}; the policy before stays in force");
                self.tools.notice("policy_refused", "policy", message);
            }
        }
    }

    fn tell_policy(&mut self) {
        self.named.send_replace(Arc::new(self.policy.sets.clone()));
        for name in self.policy.sets.keys() {
            if !self.sets.contains_key(name) {
                self.sets.insert(name.clone(), Set::fresh(name.clone(), &self.tools));
            }
        }
        let names: Vec<SetName> = self.sets.keys().cloned().collect();
        for name in names {
            let policy = self.policy.set(&name).cloned();
            if let Some(Err(error)) = self.with_set(&name, |set, tools| set.policy(tools, policy)) {
                self.tools.notice("journal", name.as_str(), error.to_string());
            }
        }
        let places = self.policy.sets.values().flat_map(|set| &set.places);
        let mut directories: Vec<&Path> = places.map(host_policy::Place::directory).collect();
        let sets: Vec<PathBuf> =
            self.policy.sets.keys().map(|name| self.tools.daemon.sets_dir().join(name.as_str())).collect();
        directories.extend(sets.iter().map(PathBuf::as_path));
        self.watch.follow(&self.config, directories);
    }
}

/// The newest record of each name.
fn replay(records: &[Vec<u8>]) -> serde_json::Result<(HostRecord, BTreeMap<SetName, Set>)> {
    let mut host = HostRecord::default();
    let mut sets: BTreeMap<SetName, SetRecord> = BTreeMap::new();
    for bytes in records {
        match Record::from_bytes(bytes)? {
            Record::Host(record) => host = record,
            Record::Set(name, record) => {
                sets.insert(name, *record);
            }
        }
    }
    let sets = sets.into_iter().map(|(name, record)| (name.clone(), Set::new(name, record)));
    Ok((host, sets.collect()))
}
