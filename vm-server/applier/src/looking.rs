//! Looks: at readers, processes and consumers, and at what applications say of themselves. What is seen goes into each
//! set's evidence and, before anything follows from it, into the journal.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holders::Look;
use lifecycle::host::HostEvent;
use lifecycle::{ConsumerName, Evidence, SetName};
use protocol::UnixMillis;
use protocol::reported::{Reply, Statement};

use crate::applications::Speaker;
use crate::applier::Applier;
use crate::clock;
use crate::consumers::Who;
use crate::witness::{View, Witness, declared_life};

/// How often a seal that was refused for now is tried again although nothing was noticed: a place may be free again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often a seal may ask for another look in a row.
const LOOKS_MAX: usize = 4;

impl Applier {
    /// Openers are held again from now on. Whoever opened meanwhile was seen all the same; of whom nothing is known but
    /// that, is a gap.
    pub(crate) fn start_exact_again(&mut self) {
        let started = self.await_answer(async {
            let started = tokio::task::spawn_blocking(crate::witness::start_exact).await;
            started.unwrap_or_else(|error| Err(error.to_string()))
        });
        let ended = self.tools.witness.exact_ended();
        self.tools.witness.exact_started(started.unwrap_or_else(|| Err("no answer in time".to_owned())));
        self.tools.changed = true;
        if !self.tools.witness.is_exact() {
            return;
        }
        for set in self.sets.values_mut() {
            set.watch_again(&self.tools);
        }
        if let Some(ended) = ended {
            let now = UnixMillis::now();
            let message = format!(
                "openers were not held from {} to {} (milliseconds since 1970): whoever read and was gone before it was looked at is a gap",
                ended.0, now.0
            );
            self.tools.notice("exact_ended", "exact", message);
            self.tools.unnotice("exact_ended", "exact");
        }
    }

    pub(crate) fn observe_and_recheck(&mut self) {
        self.looked = Instant::now();
        let changed = self.tools.changed;
        self.tools.changed = false;
        self.observe();
        let news = std::mem::replace(&mut self.tools.changed, changed) || self.tools.recheck;
        self.tools.changed |= news;
        self.recheck(news || self.tried.elapsed() >= TRY_AGAIN);
        self.look_again();
        self.look_took = self.looked.elapsed();
    }

    /// Tries again what was not possible before.
    fn recheck(&mut self, news: bool) {
        if news {
            self.tried = Instant::now();
        }
        let open = self.sets.iter().filter(|(_, set)| {
            let waits = set.machine().has_open_seals() || set.machine().has_open_unlinks();
            set.machine().has_open_flip() || (news && waits) || set.is_behind()
        });
        let open: Vec<SetName> = open.map(|(name, _)| name.clone()).collect();
        for name in open {
            for set in self.sets.values_mut() {
                set.flip_if_due(&mut self.tools);
            }
            if let Err(error) = self.give(&name, HostEvent::Recheck) {
                tracing::error!(set = %name, %error, "not in the journal yet");
            }
        }
    }

    /// Looks again as long as somebody asks for it.
    pub(crate) fn look_again(&mut self) {
        for _ in 0..LOOKS_MAX {
            if !std::mem::take(&mut self.tools.recheck) {
                return;
            }
            self.observe();
            self.recheck(true);
        }
    }

    /// Looks at readers, processes and consumers, and brings every set's evidence up to date.
    pub(crate) fn observe(&mut self) {
        // Else whoever starts a moment after a flip would count as begun before it, for as long as it lives.
        if let Some(turned) = self.sets.values().map(|set| set.record.evidence.turned()).max() {
            clock::pass(turned);
        }
        let (look, table) = self.tools.witness.look();
        if let Some(ended) = self.tools.witness.exact_has_ended() {
            let message = format!("openers have not been held since {} (milliseconds since 1970)", ended.0);
            self.tools.notice("exact_ended", "exact", message);
        }
        self.tools.view = View { table, ..View::default() };
        if look.has_pid_1() {
            self.tools.view.read_by_pid_1 = self.read_by_pid_1();
        }
        let looks = self.look_at_consumers();
        let mut mixed = Vec::new();
        for set in self.sets.values_mut() {
            let mut rules = self.tools.witness.rules(set.policy.as_ref(), &self.tools.daemon.not_a_consumer);
            if let (Some(policy), Some(dir)) = (&set.policy, &set.dir) {
                let read = &self.tools.view.read_by_pid_1;
                rules.pid_1_reads_for = Witness::read_for(read, policy, dir.path());
            }
            rules.main_pids = self.tools.view.main_pids(&set.name);
            let scene = self.tools.view.scene(&rules);
            let evidence = &mut set.record.evidence;
            let mut changed = if set.is_unstarted {
                // What lies there may not be watched yet: whoever reads it is not seen.
                evidence.observe(&Look { drained: false, ..look.clone() }, &scene)
            } else {
                evidence.observe(&look, &scene)
            };
            for consumer in set.policy.iter().flat_map(|policy| &policy.consumers) {
                let Some(seen) = looks.get(&(set.name.clone(), consumer.name.clone())) else { continue };
                let unit = consumer.unit().map(host_policy::UnitName::as_str);
                changed |= evidence.declare(&consumer.name, &declared_life(seen, unit, scene.table), &scene);
            }
            changed |= evidence.refresh(&scene);
            if let (Evidence::Kernel, Some(turn)) = (evidence.kind(), set.record.machine.turn()) {
                let current = turn.version;
                // Whoever keeps its process keeps the old version too until it has read all of the new one.
                let begins_anew = |name: &ConsumerName| {
                    let consumer = set.policy.as_ref().and_then(|policy| policy.consumer(name));
                    consumer.is_some_and(|consumer| !consumer.adopt.keeps_the_process())
                };
                let halves = evidence.mixed(current, &scene).into_iter().filter(begins_anew);
                mixed.extend(halves.map(|consumer| (set.name.clone(), HostEvent::Mixed { turn, consumer })));
                for consumer in set.policy.iter().flat_map(|policy| &policy.consumers) {
                    if evidence.was_read_by(&consumer.name, current, &scene) {
                        self.tools.tasks.saw((set.name.clone(), consumer.name.clone()), current);
                    }
                }
            }
            // A word that was said before our start is not said again.
            for consumer in set.policy.iter().flat_map(|policy| &policy.consumers) {
                let turn = set.record.machine.turn();
                if let Some(turn) =
                    turn.filter(|turn| evidence.is_said_by(&consumer.name, turn.version, &scene))
                {
                    self.tools.tasks.saw((set.name.clone(), consumer.name.clone()), turn.version);
                }
            }
            self.tools.changed |= changed;
            if changed || set.unkept {
                // What cannot be kept now is kept with the next event.
                let _ = set.keep(&mut self.tools);
            }
        }
        let interrupted = self.tools.witness.interrupted;
        if self.sets.values().all(|set| !set.unkept && (set.is_looked_at || !interrupted)) {
            self.tools.witness.journaled();
        }
        for (name, event) in mixed {
            if let Err(error) = self.give(&name, event) {
                tracing::error!(set = %name, %error, "not in the journal yet");
            }
        }
    }

    /// The files that systemd reads itself, and for which units. Without an answer such a reading is a gap.
    fn read_by_pid_1(&mut self) -> Vec<(String, PathBuf)> {
        let supervisor = Arc::clone(self.tools.tasks.supervisor());
        let files = self.await_answer(async move {
            match supervisor.systemd() {
                Some(systemd) => systemd.files_read_for_services().await,
                None => Ok(Vec::new()),
            }
        });
        let files = files.unwrap_or_else(|| Err(units::UnitError::Lost("no answer in time".to_owned())));
        files
            .inspect_err(|error| tracing::warn!(%error, "it is not known for which unit PID 1 reads"))
            .unwrap_or_default()
    }

    /// How each consumer of a set looks. Units are known to the evidence by what systemd says of them; of whom it says
    /// nothing in time it is not known whether they run.
    fn look_at_consumers(&mut self) -> BTreeMap<Who, Result<units::Look, units::UnitError>> {
        let supervisor = Arc::clone(self.tools.tasks.supervisor());
        let mut asked = Vec::new();
        for set in self.sets.values().filter(|set| set.machine().has_anything()) {
            for consumer in set.policy.iter().flat_map(|policy| &policy.consumers) {
                asked.push(((set.name.clone(), consumer.name.clone()), consumer.clone()));
            }
        }
        if asked.is_empty() {
            return BTreeMap::new();
        }
        let (tells, told) = std::sync::mpsc::channel();
        let questions = asked.clone();
        // In one task: each takes the same way over one connection.
        self.await_answer(async move {
            for (who, consumer) in questions {
                // Nobody listens any more when it took too long.
                let _ = tells.send((who, supervisor.look(&consumer).await));
            }
        });
        let mut looks: BTreeMap<Who, Result<units::Look, units::UnitError>> = told.try_iter().collect();
        for (who, consumer) in asked {
            let lost = || Err(units::UnitError::Lost("no answer in time".to_owned()));
            let look = looks.entry(who.clone()).or_insert_with(lost);
            if let (Some(unit), Ok(look)) = (consumer.unit(), &look) {
                let invocation = look.life.as_ref().map(ToString::to_string);
                let life = holders::UnitLife {
                    invocation,
                    earlier_ended: Some(
                        look.earlier_ended_ms.map_or(lifecycle::Millis(0), clock::boot_of_monotonic),
                    ),
                    changing: look.health == units::Health::Changing,
                };
                self.tools.view.units.insert(unit.as_str().to_owned(), life);
            }
            if let Ok(units::Look { life: Some(units::LifeId::Process { pid, .. }), .. }) = &look {
                self.tools.view.main_pids.insert(who, *pid);
            }
        }
        looks
    }

    /// An application speaks for itself. It is known by the kernel's word on who is at the other end.
    pub(crate) fn said(&mut self, speaker: &Speaker, statement: &Statement) -> Reply {
        let refused = |code: &str, message: String| Reply::Refused { code: code.to_owned(), message };
        self.observe();
        let Some(peer) = self.tools.witness.proc.behind(&speaker.pidfd) else {
            return refused("unknown_process", "the process that connected has ended".to_owned());
        };
        let Some(set) = self.sets.get_mut(&statement.set) else {
            return refused("no_such_set", format!("this host has no set {}", statement.set));
        };
        let mut rules = self.tools.witness.rules(set.policy.as_ref(), &self.tools.daemon.not_a_consumer);
        rules.main_pids = self.tools.view.main_pids(&statement.set);
        let scene = self.tools.view.scene(&rules);
        let mut why =
            refused("not_a_consumer", "the host's policy names no such consumer of this set".to_owned());
        let (mut believed, on) = (None, statement.on);
        for consumer in set.policy.iter().flat_map(|policy| &policy.consumers) {
            let word = set.record.evidence.word(
                &consumer.name,
                (&peer, speaker.uid),
                on,
                &statement.dropped,
                &scene,
            );
            match word {
                Ok(()) => believed = Some(consumer.name.clone()),
                Err(error @ holders::Disbelieved::NotTrusted(_)) => {
                    why = refused("not_trusted", error.to_string());
                }
                Err(_) => {}
            }
        }
        let Some(consumer) = believed else { return why };
        if let Err(error) = set.keep(&mut self.tools) {
            return refused("not_kept", error.to_string());
        }
        self.tools.changed = true;
        self.tools.tasks.saw((statement.set.clone(), consumer), statement.on);
        self.recheck(true);
        self.look_again();
        Reply::Noted {}
    }
}
