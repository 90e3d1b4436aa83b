//! One set on one host: what it does with orders, with time, with its consumers and after a crash.
//!
//! [`step`] is a value in, a value out, like [`crate::credential`]: the caller journals the returned state, then
//! carries out the effects, then gives their outcomes back as events. Two rules bind the caller:
//!
//! - [`HostEffect::Write`], [`HostEffect::Flip`], [`HostEffect::Unlink`] and [`HostEffect::Seal`] are carried out,
//!   and their outcome given, before the next event. After a crash none of them is under way any more: the next
//!   event is [`HostEvent::Started`], which says what lies on the host and brings the effects again.
//! - [`HostEffect::Look`], [`HostEffect::Adopt`] and [`HostEffect::Settle`] may take their time. Their outcomes name
//!   the [`Turn`] that they were for, and one of an earlier turn changes nothing.
//!
//! The journalled state holds the durable pointer ([`SetState::current`]); while the machine runs the link is the
//! truth, so a flip may be carried out before its state is journalled, but is never reported before.

mod adoption;
mod orders;
mod seal;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{BootId, ConsumerName, Epoch, GapId, Generation, HolderId, Millis, Version};
use crate::order::Order;

pub use state::SetState;

/// The latest that an armed flip is still carried out after its instant; a host that is later waits to be told.
pub const ARMED_LATE_MS_MAX: Millis = Millis(2_000);

/// The farthest instant that `arm` may name.
pub const ARM_HORIZON_MS_MAX: Millis = Millis(60_000);

/// What comes with every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostInput {
    /// The host's boot-time clock; starts anew with every boot.
    pub boot: Millis,
}

/// The digest of a version's files, opaque here: it is only ever compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub String);

/// One life of a consumer (unit invocation, or process and start time), opaque here: it is only ever compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Life(pub String);

/// The flip that made a version current: adoption is counted from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// The intent under which it was made current.
    pub generation: Generation,
    /// The version.
    pub version: Version,
    /// Whether it was a return to an older version; the host never returns by itself from a return.
    pub back: bool,
}

/// What the host's policy says about the set, as far as this machine needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Who reads the set, and who makes it take up a new version.
    pub consumers: BTreeMap<ConsumerName, By>,
}

/// Who makes a consumer take up a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// We do, once `adopt` permits it: restart, reload, signal, reopen.
    Permit,
    /// We do, once `adopt` permits it and its window is open; until then it is said to be postponed.
    Window,
    /// A person or its own next start.
    Itself,
}

/// Something that happened on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostEvent {
    /// The applier started; always the first event of its life.
    Started {
        /// The host's present boot.
        boot: BootId,
        /// Where the current link points. After a boot the caller has made it anew from [`SetState::current`].
        link: Option<Version>,
        /// The versions whose files lie whole on the host.
        files: BTreeSet<Version>,
    },
    /// Time passed. Sent at the latest at [`SetState::next_due`].
    Tick,
    /// Holders, gaps, places or consumers changed, or a while has passed: seals that were refused for now, flips and
    /// unlinks that failed are tried again.
    Recheck,
    /// The host's policy for this set; none when it has none (any more).
    Policy(Option<Rules>),
    /// A verified order.
    Order {
        /// The order.
        order: Order,
        /// Of `stage`: the digest of the files that came with it.
        digest: Option<Digest>,
        /// How long ago it was sent by the sender's clock; none when the clocks are too far apart to tell.
        age: Option<Millis>,
    },
    /// A verified question about all sets.
    Asked {
        /// The epoch of the asker.
        epoch: Epoch,
        /// The number of the question.
        question: u64,
    },
    /// A verified acknowledgement of a report names dead versions.
    Acknowledged {
        /// The epoch of the acknowledgement.
        epoch: Epoch,
        /// Versions that are sealing, sealed or retired.
        dead: BTreeSet<Version>,
    },
    /// The files and their sealed copy lie whole and durable on the host.
    Written {
        /// Of which version.
        version: Version,
    },
    /// They could not be written. What there is of them is unlinked next.
    WriteFailed {
        /// Of which version.
        version: Version,
        /// A stable word.
        code: String,
        /// What to do about it, in words.
        message: String,
    },
    /// Readers find this version now.
    Flipped {
        /// Which version.
        version: Version,
    },
    /// The link could not be changed.
    FlipFailed {
        /// To which version.
        version: Version,
        /// Why, in words.
        message: String,
    },
    /// What a consumer's present life is. Without a life also the outcome of `Adopt` and `Settle` for a consumer that
    /// somebody stopped meanwhile.
    Looked {
        /// For which turn it was asked.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
        /// Its present life; none when it does not run.
        life: Option<Life>,
        /// Whether it is healthy.
        healthy: bool,
    },
    /// A consumer has been made to take up the current version.
    TookUp {
        /// For which turn.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
        /// Its life now.
        life: Life,
    },
    /// A consumer stayed healthy through its settle time.
    Healthy {
        /// For which turn.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
    },
    /// A consumer did not come up, or did not stay healthy through its settle time.
    Unhealthy {
        /// For which turn.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
        /// Why, in words and without values.
        reason: String,
    },
    /// A consumer that is restarted to take a version up has read files of two versions: it started while they changed.
    Mixed {
        /// For which turn.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
    },
    /// A consumer began a new life by itself.
    Appeared {
        /// Which consumer.
        consumer: ConsumerName,
        /// The new life.
        life: Life,
        /// Whether it has another version than the current one: it was on its way already when that became current.
        on_another: bool,
    },
    /// The files and the sealed copy of a version are unlinked.
    Unlinked {
        /// Of which version.
        version: Version,
    },
    /// The last sweep found nothing: the version is gone for ever.
    Gone {
        /// Which version.
        version: Version,
    },
    /// A seal cannot be finished for now.
    NotGone {
        /// Of which version.
        version: Version,
        /// Why, in words.
        reason: String,
    },
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostEffect {
    /// The answer to the order or question that was the event.
    Answer(Answer),
    /// Write the files that came with the order, invisible, and their sealed copy. Outcome: `Written` or
    /// `WriteFailed`.
    Write {
        /// Which version.
        version: Version,
    },
    /// Make it current: one rename, then the copies at their places. Outcome: `Flipped` or `FlipFailed`.
    Flip {
        /// Which version.
        version: Version,
    },
    /// Unlink files and sealed copy. Outcome: `Unlinked`, or none when it failed.
    Unlink {
        /// Which version.
        version: Version,
    },
    /// See that nobody holds it but who is cleared, withdraw the link if told, unlink, sweep. Outcome: `Unlinked`
    /// as soon as that is done, then `Gone` or `NotGone`.
    Seal {
        /// Which version.
        version: Version,
        /// Holders that do not count.
        cleared: BTreeSet<HolderId>,
        /// Gaps and places that do not count.
        cleared_gaps: BTreeSet<GapId>,
        /// Whether the current link is withdrawn if it points to the version.
        withdraw: bool,
    },
    /// Find the present life of a consumer; of one that awaits its window ([`SetState::awaits_window`]) only once that
    /// is open. Outcome: `Looked`.
    Look {
        /// For which turn.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
    },
    /// Make a consumer take up the current version. When its present life is not `was` any more and its way of
    /// adopting begins a new life, it has been done already. Outcome: `TookUp` or `Unhealthy`.
    Adopt {
        /// For which turn.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
        /// The life that it had before.
        was: Option<Life>,
        /// Whether it is to be started even if it does not run: it broke on the version that we leave.
        revive: bool,
    },
    /// Watch a consumer through its settle time. Outcome: `Healthy` or `Unhealthy`.
    Settle {
        /// For which turn.
        turn: Turn,
        /// Which consumer.
        consumer: ConsumerName,
        /// The life to watch.
        life: Life,
    },
}

/// What an order or question is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Taken, now or before.
    Accepted,
    /// Not taken; nothing changed but that dead versions are known.
    Refused {
        /// The stable word.
        code: RefusalCode,
        /// What to do about it, in words.
        message: String,
    },
}

/// Why an order is refused: a stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// Of an earlier life of the store.
    OldEpoch,
    /// Of another life of the store with the same counter.
    StrangerEpoch,
    /// A newer intent was accepted.
    OlderGeneration,
    /// The same intent, but it names another version.
    Replay,
    /// The same version with another content.
    OtherDigest,
    /// The host's policy has no such set.
    NotInPolicy,
    /// The version is sealing, sealed or retired.
    Dead,
    /// The host went back from this version by itself, and the order does not name that rollback.
    RolledBack,
    /// The intent was disarmed.
    Disarmed,
    /// The version does not lie here.
    NotStaged,
    /// The version is not the current one.
    NotCurrent,
    /// The clocks are too far apart to agree on an instant.
    ClockOff,
    /// The instant has passed.
    Late,
    /// The instant is too far away.
    Horizon,
    /// It was armed or current, so it needs `seal`.
    InUse,
}

impl RefusalCode {
    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::OldEpoch => "old_epoch",
            Self::StrangerEpoch => "stranger_epoch",
            Self::OlderGeneration => "older_generation",
            Self::Replay => "replay",
            Self::OtherDigest => "other_digest",
            Self::NotInPolicy => "not_in_policy",
            Self::Dead => "dead",
            Self::RolledBack => "rolled_back",
            Self::Disarmed => "disarmed",
            Self::NotStaged => "not_staged",
            Self::NotCurrent => "not_current",
            Self::ClockOff => "clock_off",
            Self::Late => "late",
            Self::Horizon => "horizon",
            Self::InUse => "in_use",
        }
    }
}

/// Takes one event in. Never fails: what does not fit changes nothing.
pub fn step(state: SetState, input: HostInput, event: HostEvent) -> (SetState, Vec<HostEffect>) {
    let mut machine = Machine { state, now: input.boot, effects: Vec::new() };
    machine.take(event);
    (machine.state, machine.effects)
}

/// The state under one step, and what came of it.
struct Machine {
    state: SetState,
    now: Millis,
    effects: Vec<HostEffect>,
}

impl Machine {
    fn take(&mut self, event: HostEvent) {
        match event {
            HostEvent::Started { boot, link, files } => self.started(boot, link, &files),
            HostEvent::Tick => self.tick(),
            HostEvent::Recheck => self.recheck(),
            HostEvent::Policy(rules) => self.policy(rules),
            HostEvent::Order { order, digest, age } => self.order(&order, digest, age),
            HostEvent::Asked { epoch, question } => self.asked(epoch, question),
            HostEvent::Acknowledged { epoch, dead } => {
                if self.epoch(epoch).is_ok() {
                    self.bury(&dead);
                }
            }
            HostEvent::Written { version } => self.written(version),
            HostEvent::WriteFailed { version, code, message } => self.write_failed(version, code, message),
            HostEvent::Flipped { version } => self.flipped(version),
            HostEvent::FlipFailed { version, message } => self.flip_failed(version, message),
            HostEvent::Looked { turn, consumer, life, healthy } => {
                self.looked(turn, &consumer, life, healthy);
            }
            HostEvent::TookUp { turn, consumer, life } => self.took_up(turn, &consumer, life),
            HostEvent::Healthy { turn, consumer } => self.healthy(turn, &consumer),
            HostEvent::Unhealthy { turn, consumer, reason } => self.unhealthy(turn, consumer, reason),
            HostEvent::Mixed { turn, consumer } => self.mixed(turn, &consumer),
            HostEvent::Appeared { consumer, life, on_another } => self.appeared(&consumer, life, on_another),
            HostEvent::Unlinked { version } => self.unlinked(version),
            HostEvent::Gone { version } => self.gone(version),
            HostEvent::NotGone { version, reason } => self.not_gone(version, reason),
        }
    }
}
