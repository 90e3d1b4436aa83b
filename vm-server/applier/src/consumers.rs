//! Looks at consumers, makes them take up versions and watches them settle: tasks that may take their time.
//!
//! One task at most counts for a consumer of a set. Each ends with an event for the host machine, named after the turn
//! it was for, so one that comes too late changes nothing. A task that only waits (for a window, for the consumer to
//! show itself, for systemd to come back) is given up as soon as another takes its slot; one that asks the supervisor
//! to change something is never cut short, and whoever comes after waits for its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use host_policy::{Adopt, Consumer, SetPolicy};
use lifecycle::host::{HostEffect, HostEvent, Life, Turn};
use lifecycle::{ConsumerName, SetName, Version};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use units::{Adopted, Direction, Health, LifeId, Look, Settled, Supervisor, UnitError};

use crate::input::Input;

/// How often a consumer is looked at while its next life is awaited.
const AWAIT_LOOK_MS: u64 = 250;
/// How long a failed question to the supervisor waits before it is asked again. The wait doubles.
const RETRY_MS: u64 = 1_000;
/// The longest such wait.
const RETRY_MS_MAX: u64 = 5_000;
/// How often a closed window is looked at.
const WINDOW_LOOK_MS: u64 = 1_000;
/// How long a consumer that is between two states is waited for before it counts as it looks.
const CHANGING_LOOKS: u32 = 50;

/// Names a consumer of one set.
pub(crate) type Who = (SetName, ConsumerName);

/// For each consumer the newest version that it was seen, or has said, to be on.
pub(crate) type SeenOn = BTreeMap<Who, Version>;

/// The tasks of all consumers.
pub(crate) struct Tasks {
    runtime: tokio::runtime::Handle,
    supervisor: Arc<Supervisor>,
    inbox: Sender<Input>,
    slots: BTreeMap<Who, Slot>,
    awaits: BTreeMap<Who, (Option<Life>, AbortHandle)>,
    seen_on: watch::Sender<SeenOn>,
}

struct Slot {
    errand: Wanted,
    abort: AbortHandle,
    /// Its outcome is on its way: the same look is then another one.
    told: Arc<AtomicBool>,
    /// Held while the supervisor is asked to change something, so that a later task waits for its end.
    turnstile: Turnstile,
    /// Dropped with the slot: its task gives up waiting.
    _kept: watch::Sender<()>,
}

type Turnstile = Arc<tokio::sync::Mutex<()>>;

/// What is wanted of a consumer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    /// Of whom, as policy says now.
    pub(crate) consumer: Consumer,
    /// Whether it will be seen, or will say, that it is on a version: then `reload` alone proves nothing.
    pub(crate) shows_itself: bool,
    /// Whether it may be disturbed in its window only, and so is not even looked at before.
    pub(crate) in_its_window: bool,
    pub(crate) effect: HostEffect,
}

/// What a task needs to know of its consumer.
struct Errand {
    supervisor: Arc<Supervisor>,
    consumer: Consumer,
    shows_itself: bool,
    in_its_window: bool,
    seen_on: watch::Receiver<SeenOn>,
    who: Who,
    inbox: Sender<Input>,
    turnstile: Turnstile,
    /// Closed once another task counts.
    slot: Slotted,
}

/// Tells a task whether it still counts.
#[derive(Clone)]
struct Slotted(watch::Receiver<()>);

impl Slotted {
    fn is_taken(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// What is waited for, or nothing once another task counts.
    async fn unless_taken<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut kept = self.0.clone();
        let taken = async { while kept.changed().await.is_ok() {} };
        tokio::select! {
            () = taken => None,
            value = wait => Some(value).filter(|_| !self.is_taken()),
        }
    }
}

impl Tasks {
    pub(crate) fn new(
        runtime: tokio::runtime::Handle,
        supervisor: Arc<Supervisor>,
        inbox: Sender<Input>,
    ) -> Self {
        let seen_on = watch::Sender::new(SeenOn::new());
        Self { runtime, supervisor, inbox, slots: BTreeMap::new(), awaits: BTreeMap::new(), seen_on }
    }

    pub(crate) const fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    pub(crate) const fn supervisor(&self) -> &Arc<Supervisor> {
        &self.supervisor
    }

    /// A consumer was seen, or has said, to be on this version.
    pub(crate) fn saw(&self, who: Who, version: Version) {
        self.seen_on.send_if_modified(|seen| seen.insert(who, version) != Some(version));
    }

    /// Begins what the effect asks for, unless it is under way.
    pub(crate) fn begin(&mut self, set: &SetName, wanted: Wanted) {
        let who = (set.clone(), wanted.consumer.name.clone());
        let mut turnstile = Turnstile::default();
        if let Some(slot) = self.slots.get(&who) {
            let looked = matches!(wanted.effect, HostEffect::Look { .. }) && slot.told.load(Ordering::SeqCst);
            if slot.errand == wanted && !slot.abort.is_finished() && !looked {
                return;
            }
            turnstile = Arc::clone(&slot.turnstile);
        }
        self.give_up(&who);
        let (kept, slot) = watch::channel(());
        let errand = Errand {
            supervisor: Arc::clone(&self.supervisor),
            consumer: wanted.consumer.clone(),
            shows_itself: wanted.shows_itself,
            in_its_window: wanted.in_its_window,
            seen_on: self.seen_on.subscribe(),
            who: who.clone(),
            inbox: self.inbox.clone(),
            turnstile: Arc::clone(&turnstile),
            slot: Slotted(slot),
        };
        let (inbox, set, asked) = (self.inbox.clone(), set.clone(), wanted.effect.clone());
        let told = Arc::new(AtomicBool::new(false));
        let tells = Arc::clone(&told);
        let task = self.runtime.spawn(async move {
            let outcome = errand.run(asked).await;
            tells.store(true, Ordering::SeqCst);
            if let Some(event) = outcome {
                // The other end is gone only when the applier ends.
                let _ = inbox.send(Input::Outcome { set, event });
            }
        });
        let slot = Slot { errand: wanted, abort: task.abort_handle(), told, turnstile, _kept: kept };
        self.slots.insert(who, slot);
    }

    /// Another task counts from now on, or none.
    fn give_up(&mut self, who: &Who) {
        let Some(slot) = self.slots.remove(who) else { return };
        // Looking and settling change nothing and may be cut short anywhere.
        if !matches!(slot.errand.effect, HostEffect::Adopt { .. }) {
            slot.abort.abort();
        }
    }

    /// The policy of a set changed: what is under way goes on as it says now, and ends for whom it names no more.
    pub(crate) fn follow(&mut self, set: &SetName, policy: Option<&SetPolicy>) {
        let of_set = self.slots.iter().filter(|((of, _), slot)| of == set && !slot.abort.is_finished());
        let under_way: Vec<(Who, Wanted)> =
            of_set.map(|(who, slot)| (who.clone(), slot.errand.clone())).collect();
        for (who, wanted) in under_way {
            match policy.and_then(|policy| policy.consumer(&who.1)) {
                Some(consumer) if *consumer == wanted.consumer => {}
                Some(consumer) => self.begin(set, Wanted { consumer: consumer.clone(), ..wanted }),
                None => self.give_up(&who),
            }
        }
    }

    /// Waits for the next life of these consumers of a set, and for no others.
    pub(crate) fn await_lives(&mut self, set: &SetName, awaited: Vec<(Consumer, Option<Life>)>) {
        let wanted: BTreeMap<ConsumerName, Option<Life>> =
            awaited.iter().map(|(consumer, was)| (consumer.name.clone(), was.clone())).collect();
        self.awaits.retain(|(of, name), (was, abort)| {
            let keep = of != set || (wanted.get(name) == Some(was) && !abort.is_finished());
            if !keep {
                abort.abort();
            }
            keep
        });
        for (consumer, was) in awaited {
            let who = (set.clone(), consumer.name.clone());
            if self.awaits.contains_key(&who) {
                continue;
            }
            let (supervisor, inbox, set) = (Arc::clone(&self.supervisor), self.inbox.clone(), set.clone());
            let before = was.clone();
            let task = self.runtime.spawn(async move {
                let life = next_life(&supervisor, &consumer, before.as_ref()).await;
                let _ = inbox.send(Input::Appeared { set, consumer: consumer.name, life });
            });
            self.awaits.insert(who, (was, task.abort_handle()));
        }
    }
}

/// The next life of a consumer: one that is not `was`, or any if it did not run.
async fn next_life(supervisor: &Supervisor, consumer: &Consumer, was: Option<&Life>) -> LifeId {
    // Of a oneshot that begins and ends between two looks only the last life tells.
    let ended_before = supervisor.look(consumer).await.ok().and_then(|look| look.last_life);
    loop {
        if let Ok(look) = supervisor.look(consumer).await {
            let ended = look.last_life.filter(|last| Some(last) != ended_before.as_ref());
            if let Some(life) = look.life.or(ended).filter(|life| Some(&life_of(life)) != was) {
                return life;
            }
        }
        sleep(Duration::from_millis(AWAIT_LOOK_MS)).await;
    }
}

impl Errand {
    async fn run(self, effect: HostEffect) -> Option<HostEvent> {
        match effect {
            HostEffect::Look { turn, .. } => self.look(turn).await,
            HostEffect::Adopt { turn, was, revive, .. } => self.adopt(turn, was, revive).await,
            HostEffect::Settle { turn, life, .. } => {
                self.turn_comes().await?;
                Some(self.settle(turn, life).await)
            }
            _ => None,
        }
    }

    /// Waits for the end of what the supervisor was asked before.
    async fn turn_comes(&self) -> Option<OwnedMutexGuard<()>> {
        self.slot.unless_taken(Arc::clone(&self.turnstile).lock_owned()).await
    }

    async fn look(self, turn: Turn) -> Option<HostEvent> {
        if self.in_its_window {
            self.window_opens().await?;
        }
        drop(self.turn_comes().await?);
        let mut look = self.patiently(|| self.supervisor.look(&self.consumer)).await;
        for _ in 0..CHANGING_LOOKS {
            if !matches!(look, Ok(Look { health: Health::Changing, .. })) {
                break;
            }
            sleep(Duration::from_millis(100)).await;
            look = self.patiently(|| self.supervisor.look(&self.consumer)).await;
        }
        let (life, running) = match look {
            Ok(look) => {
                self.tell(None);
                (look.life, matches!(look.health, Health::Running | Health::Finished))
            }
            // Gone from the host, or a pid file that names somebody else: it does not run.
            Err(error) => {
                self.tell(Some(&error));
                (None, false)
            }
        };
        let healthy = running && self.passes_probe().await;
        Some(self.looked(turn, life.as_ref(), healthy))
    }

    /// Tells an operator that the consumer cannot be asked, or can again.
    fn tell(&self, trouble: Option<&UnitError>) {
        let (set, consumer) = self.who.clone();
        let trouble = trouble.map(|error| (error.code(), error.to_string()));
        // The other end is gone only when the applier ends.
        let _ = self.inbox.send(Input::Trouble { set, consumer, trouble });
    }

    async fn passes_probe(&self) -> bool {
        match &self.consumer.probe {
            Some(probe) => matches!(self.supervisor.probe(probe).await, Ok(Ok(()))),
            None => true,
        }
    }

    fn looked(&self, turn: Turn, life: Option<&LifeId>, healthy: bool) -> HostEvent {
        let consumer = self.consumer.name.clone();
        HostEvent::Looked { turn, consumer, life: life.map(life_of), healthy }
    }

    async fn adopt(mut self, turn: Turn, was: Option<Life>, revive: bool) -> Option<HostEvent> {
        let before = was.as_ref().and_then(id_of);
        // Whoever broke on the version that is left is not left broken until a window opens.
        if !revive || self.is_running().await {
            self.window_opens().await?;
        }
        let direction = if revive { Direction::Back } else { Direction::Forward };
        let adopted = self.ask(before.as_ref(), direction).await?;
        Some(match adopted {
            Adopted::Asked(mut life) | Adopted::AlreadyNew(mut life) => {
                if self.consumer.adopt.keeps_the_process() && before.as_ref() == Some(&life) {
                    life = self.until_seen_on(turn.version, life).await?;
                }
                self.took_up(turn, &life)
            }
            Adopted::Waiting => match before {
                Some(life) if self.consumer.adopt == Adopt::Reopen => {
                    let life = self.until_seen_on(turn.version, life).await?;
                    self.took_up(turn, &life)
                }
                _ => self.looked(turn, None, false),
            },
            Adopted::Idle => self.looked(turn, None, false),
            Adopted::Failed(reason) => {
                HostEvent::Unhealthy { turn, consumer: self.consumer.name.clone(), reason }
            }
        })
    }

    async fn is_running(&self) -> bool {
        self.supervisor.look(&self.consumer).await.is_ok_and(|look| look.life.is_some())
    }

    /// Asks the supervisor, and is not given up while it does. Between two tries others may come.
    async fn ask(&self, before: Option<&LifeId>, direction: Direction) -> Option<Adopted> {
        let mut pause = RETRY_MS;
        loop {
            let held = self.turn_comes().await?;
            let asked = self.supervisor.adopt(&self.consumer, before, direction).await;
            drop(held);
            match asked {
                Ok(adopted) => {
                    self.tell(None);
                    return Some(adopted);
                }
                Err(error @ UnitError::TooLong { .. }) => {
                    self.tell(None);
                    return Some(Adopted::Failed(error.to_string()));
                }
                // A unit that is gone does not run, and is awaited like any other.
                Err(error @ UnitError::Vanished { .. }) => {
                    self.tell(Some(&error));
                    return Some(Adopted::Idle);
                }
                // Not the credential's fault: nothing is flipped back for it, it stays to be adopted.
                Err(error) => {
                    self.tell(Some(&error));
                    self.slot.unless_taken(sleep(Duration::from_millis(pause))).await?;
                    pause = (pause * 2).min(RETRY_MS_MAX);
                }
            }
        }
    }

    fn took_up(&self, turn: Turn, life: &LifeId) -> HostEvent {
        HostEvent::TookUp { turn, consumer: self.consumer.name.clone(), life: life_of(life) }
    }

    async fn window_opens(&self) -> Option<()> {
        let Some(window) = self.consumer.window else { return Some(()) };
        while !window.is_open(protocol::UnixMillis::now().0 / 1000) {
            self.slot.unless_taken(sleep(Duration::from_millis(WINDOW_LOOK_MS))).await?;
        }
        Some(())
    }

    /// A reload that does nothing is not adopted: where it can be seen, it has to be seen. The life that was seen:
    /// another one than `life` when somebody has restarted it meanwhile.
    async fn until_seen_on(&mut self, version: Version, life: LifeId) -> Option<LifeId> {
        if !self.shows_itself {
            return Some(life);
        }
        let (slot, who) = (self.slot.clone(), self.who.clone());
        // Ends when the applier does.
        let seen = self.seen_on.wait_for(|seen| seen.get(&who) == Some(&version));
        let _ = slot.unless_taken(seen).await?;
        let look = slot.unless_taken(self.patiently(|| self.supervisor.look(&self.consumer))).await?;
        Some(look.ok().and_then(|look| look.life).unwrap_or(life))
    }

    async fn settle(self, turn: Turn, life: Life) -> HostEvent {
        let consumer = self.consumer.name.clone();
        let Some(id) = id_of(&life) else {
            return HostEvent::Unhealthy { turn, consumer, reason: "its life cannot be told".to_owned() };
        };
        match self.patiently(|| self.supervisor.settle(&self.consumer, &id)).await {
            Ok(Settled::Healthy) => HostEvent::Healthy { turn, consumer },
            Ok(Settled::Failed(reason)) => HostEvent::Unhealthy { turn, consumer, reason },
            Ok(Settled::Idle) => self.looked(turn, None, false),
            Err(error) => HostEvent::Unhealthy { turn, consumer, reason: error.to_string() },
        }
    }

    /// Asks until the supervisor answers; only what will not pass by itself is an error.
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, UnitError>
    where
        F: Future<Output = Result<T, UnitError>>,
    {
        loop {
            match ask().await {
                Err(error) if error.is_passing() => {
                    self.tell(Some(&error));
                    sleep(Duration::from_millis(RETRY_MS)).await;
                }
                other => return other,
            }
        }
    }
}

/// A life as the host machine compares it.
pub(crate) fn life_of(id: &LifeId) -> Life {
    Life(id.to_string())
}

/// Back from [`life_of`].
pub(crate) fn id_of(life: &Life) -> Option<LifeId> {
    match life.0.split_once(':') {
        Some((pid, start)) => Some(LifeId::Process { pid: pid.parse().ok()?, start: start.parse().ok()? }),
        None => Some(LifeId::Invocation(life.0.clone())),
    }
}
