//! Orders: what the control plane asks of one host, signed over the exact bytes.
//!
//! [`OrderPayload::sign`] makes a frame, [`verify`] is the only way back to a [`VerifiedOrder`]. The value of a
//! `stage` travels beside the order, sealed to the applier; see [`crate::seal`].

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::{Epoch, Generation, Order, OrderKind, SetName, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::digest::{FrameDigest, KeyedDigest};
use crate::frame::{Domain, Frame};
use crate::id::{FileName, HostId, InstallationId};
use crate::key::{OpeningKey, SigningKey, TrustAnchor, VerifyingKey};
use crate::limit;
use crate::seal::{OpenError, SealContext, Sealed, StagedSet};
use crate::wire::{self, DecodeError, TooLarge};

/// The signed content of an order frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderPayload {
    /// Whose order it is.
    pub installation: InstallationId,
    /// The life of the sender's store.
    pub epoch: Epoch,
    /// For whom it is.
    pub host: HostId,
    /// The sender's clock when it was signed; it is signed anew at each sending.
    pub sent_at: UnixMillis,
    /// Until when it may be accepted. What was accepted does not expire.
    pub expires_at: UnixMillis,
    /// What to do.
    pub body: Body,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Body {
    /// Something with one set.
    Set(SetOrder),
    /// Answer with a report that is younger than these questions.
    Ask(Ask),
    /// Trust another key.
    Rekey(Rekey),
}

/// One order for one set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetOrder {
    /// Which set.
    pub set: SetName,
    /// What `lifecycle` decided. Its epoch is that of the payload.
    pub order: Order,
    /// With `stage` and with nothing else: the files.
    pub stage: Option<Stage>,
}

/// The files of a `stage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The keyed digest of each final file. The same version with other digests is refused.
    pub digests: BTreeMap<FileName, KeyedDigest>,
    /// Names, contents and the digests' key, sealed to the applier.
    pub sealed: Sealed,
}

/// One message a host, about all sets. In a new epoch it also makes the applier refuse the older one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// For each set the number that `answers` of its snapshot must reach. A set that the host never knew is
    /// answered with an empty snapshot that carries the number.
    pub questions: BTreeMap<SetName, u64>,
}

/// Changes what the host trusts. Signed by the present order key or by the offline root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rekey {
    /// Higher than that of every rekey before.
    pub number: u64,
    /// Verifies orders and acknowledgements from now on.
    pub order_key: VerifyingKey,
    /// Replaces the offline root; none keeps the present one.
    pub root_key: Option<VerifyingKey>,
}

/// Which order this is, whatever its bytes: expiry and encryption are fresh at each sending.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OrderIdentity {
    /// An order for a set.
    Set {
        /// The life of the store that ordered it.
        epoch: Epoch,
        /// Which set.
        set: SetName,
        /// Which intent.
        generation: Generation,
        /// The word of [`OrderKind::word`].
        kind: String,
        /// Which version.
        version: Version,
    },
    /// A question.
    Ask {
        /// The life of the store that asked.
        epoch: Epoch,
    },
    /// A change of keys.
    Rekey {
        /// Its number.
        number: u64,
    },
}

impl OrderPayload {
    /// Which order this is.
    pub fn identity(&self) -> OrderIdentity {
        match &self.body {
            Body::Set(SetOrder { set, order, .. }) => OrderIdentity::Set {
                epoch: order.epoch,
                set: set.clone(),
                generation: order.generation,
                kind: order.kind.word().to_owned(),
                version: order.kind.version(),
            },
            Body::Ask(_) => OrderIdentity::Ask { epoch: self.epoch },
            Body::Rekey(rekey) => OrderIdentity::Rekey { number: rekey.number },
        }
    }

    /// Signs it. Only its size is checked here: [`verify`] is where orders are judged.
    pub fn sign(&self, key: &SigningKey) -> Result<Frame, TooLarge> {
        Ok(key.sign(Domain::Order, wire::encode(self, limit::ORDER_BYTES_MAX)?))
    }

    /// What a sealed stage of this order is bound to; none for any other order.
    pub fn seal_context(&self) -> Option<SealContext> {
        match &self.body {
            Body::Set(SetOrder {
                set,
                order: Order { kind: OrderKind::Stage { version, effect }, .. },
                ..
            }) => Some(SealContext {
                installation: self.installation,
                host: self.host,
                set: set.clone(),
                version: *version,
                effect: *effect,
            }),
            _ => None,
        }
    }
}

/// Why a frame is not an order for this host now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Neither the order key nor, for a rekey, the root signed these bytes.
    #[error(
        "the signature is not by a key that this host trusts; if the control plane changed its key, send a rekey signed by the old key or the offline root"
    )]
    ForeignKey,
    /// The offline root signed something that is not a rekey.
    #[error("signed by the offline root, which may only sign a rekey")]
    RootSigned,
    /// The signature is right and the content is not ours.
    #[error("the order is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// For another installation.
    #[error("for installation {0}; this host belongs to another: enrol it there, or stop sending")]
    OtherInstallation(InstallationId),
    /// For another host.
    #[error("for host {0}, which is not this one: check the address that the control plane has for it")]
    OtherHost(HostId),
    /// Too late.
    #[error(
        "expired {late_ms} ms ago by this host's clock; if orders always expire, compare the clocks of both ends"
    )]
    Expired {
        /// How late.
        late_ms: u64,
    },
    /// Sent in our future, or valid for longer than any order may be.
    #[error(
        "sent {ahead_ms} ms ahead of this host's clock, or valid for too long: compare the clocks of both ends"
    )]
    ClockOff {
        /// How far ahead of ours the sender's clock is.
        ahead_ms: u64,
    },
    /// The order's own epoch is not that of the payload.
    #[error("the order names another epoch than its envelope: both ends must run compatible versions")]
    EpochMismatch,
    /// A `stage` without files, or files with another order.
    #[error("files must come with a stage, and with nothing else")]
    FilesMismatch,
    /// More of something than a limit allows.
    #[error("{what}: {count} where at most {count_max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many came.
        count: u64,
        /// How many may come.
        count_max: u64,
    },
    /// A rekey that is not newer than the present keys.
    #[error("rekey {number} is not newer than {present}, which this host already has")]
    OldRekey {
        /// What came.
        number: u64,
        /// What the host has.
        present: u64,
    },
}

impl OrderError {
    /// The stable word for receipts, metrics and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ForeignKey => "foreign_key",
            Self::RootSigned => "root_signed",
            Self::Malformed(_) | Self::EpochMismatch | Self::FilesMismatch => "malformed",
            Self::OtherInstallation(_) => "other_installation",
            Self::OtherHost(_) => "other_host",
            Self::Expired { .. } => "expired",
            Self::ClockOff { .. } => "clock_off",
            Self::TooMany { .. } => "over_limit",
            Self::OldRekey { .. } => "old_rekey",
        }
    }
}

/// An order of our control plane for this host, whole and in time. What needs memory (epoch, generation, replay,
/// dead versions) is decided by `lifecycle::host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedOrder {
    payload: OrderPayload,
    frame: FrameDigest,
}

impl VerifiedOrder {
    /// What it says.
    pub const fn payload(&self) -> &OrderPayload {
        &self.payload
    }

    /// Names the frame that it came in, for the receipt.
    pub const fn frame(&self) -> FrameDigest {
        self.frame
    }

    /// Which order it is.
    pub fn identity(&self) -> OrderIdentity {
        self.payload.identity()
    }

    /// How long ago it was sent by the sender's clock and ours, never below zero.
    pub const fn age_ms(&self, now: UnixMillis) -> u64 {
        now.ms_since(self.payload.sent_at)
    }

    /// The payload, to keep.
    pub fn into_payload(self) -> OrderPayload {
        self.payload
    }

    /// Opens the files of a `stage` and compares them with the signed digests.
    pub fn open_stage(&self, key: &OpeningKey) -> Result<StagedSet, OpenError> {
        let (Some(context), Body::Set(SetOrder { stage: Some(stage), .. })) =
            (self.payload.seal_context(), &self.payload.body)
        else {
            return Err(OpenError::NoFiles);
        };
        let set = stage.sealed.open(&context, key)?;
        if set.digests() == stage.digests { Ok(set) } else { Err(OpenError::DigestMismatch) }
    }
}

/// Makes every check that needs no memory, in one place, cheapest first; the signature before anything is parsed.
pub fn verify(
    frame: &Frame,
    anchor: &TrustAnchor,
    host: HostId,
    now: UnixMillis,
) -> Result<VerifiedOrder, OrderError> {
    if frame.payload().len() > limit::ORDER_BYTES_MAX {
        return Err(DecodeError::TooLarge {
            bytes: frame.payload().len(),
            bytes_max: limit::ORDER_BYTES_MAX,
        }
        .into());
    }
    let by_root = !anchor.order_key.accepts(Domain::Order, frame);
    if by_root && !anchor.root_key.is_some_and(|root| root.accepts(Domain::Order, frame)) {
        return Err(OrderError::ForeignKey);
    }
    let payload: OrderPayload = wire::decode(frame.payload(), limit::ORDER_BYTES_MAX)?;
    if by_root && !matches!(payload.body, Body::Rekey(_)) {
        return Err(OrderError::RootSigned);
    }
    if payload.installation != anchor.installation {
        return Err(OrderError::OtherInstallation(payload.installation));
    }
    if payload.host != host {
        return Err(OrderError::OtherHost(payload.host));
    }
    check_times(&payload, now)?;
    check_body(&payload, anchor)?;
    Ok(VerifiedOrder { payload, frame: frame.digest() })
}

fn check_times(payload: &OrderPayload, now: UnixMillis) -> Result<(), OrderError> {
    if now > payload.expires_at {
        return Err(OrderError::Expired { late_ms: now.ms_since(payload.expires_at) });
    }
    let ahead_ms = payload.sent_at.ms_since(now);
    let valid_ms = payload.expires_at.ms_since(payload.sent_at);
    if ahead_ms > limit::CLOCK_AHEAD_MS_MAX || valid_ms > limit::ORDER_VALIDITY_MS_MAX {
        return Err(OrderError::ClockOff { ahead_ms });
    }
    Ok(())
}

fn check_body(payload: &OrderPayload, anchor: &TrustAnchor) -> Result<(), OrderError> {
    match &payload.body {
        Body::Set(order) if order.order.epoch != payload.epoch => Err(OrderError::EpochMismatch),
        Body::Set(order) => check_set_order(order),
        Body::Ask(ask) => at_most("sets in one question", ask.questions.len(), limit::SETS_PER_HOST_MAX),
        Body::Rekey(rekey) if rekey.number <= anchor.rekeys => {
            Err(OrderError::OldRekey { number: rekey.number, present: anchor.rekeys })
        }
        Body::Rekey(_) => Ok(()),
    }
}

fn check_set_order(SetOrder { order, stage, .. }: &SetOrder) -> Result<(), OrderError> {
    at_most("dead versions", order.dead.len(), limit::DEAD_PER_SET_MAX)?;
    if matches!(order.kind, OrderKind::Stage { .. }) != stage.is_some() {
        return Err(OrderError::FilesMismatch);
    }
    match &order.kind {
        OrderKind::Arm { in_ms, .. } if in_ms.0 > limit::ARM_HORIZON_MS_MAX => Err(OrderError::TooMany {
            what: "milliseconds to the instant",
            count: in_ms.0,
            count_max: limit::ARM_HORIZON_MS_MAX,
        }),
        OrderKind::Seal { cleared, cleared_gaps, .. } => {
            at_most("cleared holders", cleared.len(), limit::CLEARED_MAX)?;
            at_most("cleared gaps", cleared_gaps.len(), limit::CLEARED_MAX)
        }
        OrderKind::Stage { .. } => {
            at_most("files", stage.as_ref().map_or(0, |stage| stage.digests.len()), limit::FILES_PER_SET_MAX)
        }
        _ => Ok(()),
    }
}

fn at_most(what: &'static str, count: usize, count_max: usize) -> Result<(), OrderError> {
    if count > count_max {
        return Err(OrderError::TooMany { what, count: count as u64, count_max: count_max as u64 });
    }
    Ok(())
}

/// The newest dead versions that fit into one order or acknowledgement.
pub fn newest_dead(dead: &BTreeSet<Version>) -> BTreeSet<Version> {
    dead.iter().rev().take(limit::DEAD_PER_SET_MAX).copied().collect()
}
