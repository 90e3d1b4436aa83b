//! Reports: whole snapshots of a host, signed by its applier's own key.
//!
//! [`Report::sign`] makes a frame, [`verify`] is the only way back to a [`VerifiedReport`]. A report carries the
//! acknowledgement of an earlier one, so a reverted or cloned host contradicts what it once acknowledged.

use std::collections::BTreeMap;

use lifecycle::{Epoch, SetName, SetReport, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ack::{Ack, AckError};
use crate::clock::UnixMillis;
use crate::digest::{FrameDigest, KeyedDigest};
use crate::frame::{Domain, Frame};
use crate::id::{FileName, HostId, InstallationId};
use crate::key::{SigningKey, VerifyingKey};
use crate::limit;
use crate::order::OrderIdentity;
use crate::wire::{self, DecodeError, TooLarge};

/// The signed content of a report frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The installation that the host belongs to.
    pub installation: InstallationId,
    /// Who says it.
    pub host: HostId,
    /// The newest epoch that the host obeys; none before the first order.
    pub epoch: Option<Epoch>,
    /// Counts the host's reports, through restarts and reboots. The newest wins.
    pub sequence: u64,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// The host's wall clock; for people and for offsets, never for grace.
    pub taken_at: UnixMillis,
    /// Milliseconds since this boot, sleep included.
    pub up_ms: u64,
    /// The newest acknowledgement that the host has, as we signed it.
    pub acknowledged: Option<Frame>,
    /// Every set that the host's journal knows or that a question named.
    pub sets: BTreeMap<SetName, SetReport>,
    /// The keyed digests of what lies there.
    pub digests: BTreeMap<SetName, BTreeMap<Version, BTreeMap<FileName, KeyedDigest>>>,
    /// What became of the orders of the push that this report answers.
    pub receipts: Vec<Receipt>,
    /// By which means the host works, and what each means when it is missing.
    pub means: Vec<Means>,
    /// What an operator should know: a refused policy file, a full disk.
    pub notices: Vec<Notice>,
}

/// What became of one order frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The frame, so that a forged one can be told from ours.
    pub frame: FrameDigest,
    /// The order, where the frame was one.
    pub order: Option<OrderIdentity>,
    /// Taken or not.
    pub outcome: Outcome,
}

/// Taken or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// Taken, now or before; how far it has come stands in the snapshot.
    Accepted {
        /// It had been taken before, and nothing changed.
        again: bool,
    },
    /// Not taken, and nothing changed on disk.
    Refused {
        /// A stable word such as `expired`.
        code: String,
        /// What to do about it.
        message: String,
    },
}

/// One means that a host may have or lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Means {
    /// A stable word: `fanotify`, `tmpfs`, `systemd`, `sealed_copies`, `landlock`.
    pub name: String,
    /// Whether it is in use.
    pub in_use: bool,
    /// In use how, or why not and what is done instead.
    pub detail: String,
}

/// A sentence for an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notice {
    /// A stable word such as `policy_refused`.
    pub code: String,
    /// What happened and what to do, without values.
    pub message: String,
}

impl Report {
    /// Signs it with the applier's key. Fails when the snapshot is too large to send.
    pub fn sign(&self, key: &SigningKey) -> Result<Frame, TooLarge> {
        Ok(key.sign(Domain::Report, wire::encode(self, limit::REPORT_BYTES_MAX)?))
    }
}

/// A report of this host, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReport {
    report: Report,
    acknowledged: Option<Ack>,
    frame: FrameDigest,
}

impl VerifiedReport {
    /// What it says.
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Our own acknowledgement that the host carries, verified.
    pub const fn acknowledged(&self) -> Option<&Ack> {
        self.acknowledged.as_ref()
    }

    /// Names the frame that it came in: what [`Ack::report`] repeats.
    pub const fn frame(&self) -> FrameDigest {
        self.frame
    }

    /// The report, to keep.
    pub fn into_report(self) -> Report {
        self.report
    }
}

/// Why a frame is not a report of this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The host's key did not sign these bytes.
    #[error("the signature is not by the key of this host; if the host was reimaged, enrol it again")]
    ForeignKey,
    /// The signature is right and the content is not ours.
    #[error("the report is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// Of another installation.
    #[error("of installation {0}, which is not this one: the host reports to the wrong control plane")]
    OtherInstallation(InstallationId),
    /// Names another host than the key does.
    #[error("signed by one host in the name of {0}")]
    OtherHost(HostId),
    /// More of something than a limit allows.
    #[error("{what}: {count} where at most {count_max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many came.
        count: usize,
        /// How many may come.
        count_max: usize,
    },
    /// Carries an acknowledgement that we did not give to this host.
    #[error("carries an acknowledgement that is not ours for this host: {0}")]
    ForeignAcknowledgement(AckError),
}

impl ReportError {
    /// The stable word for metrics and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ForeignKey => "foreign_key",
            Self::Malformed(_) => "malformed",
            Self::OtherInstallation(_) => "other_installation",
            Self::OtherHost(_) => "other_host",
            Self::TooMany { .. } => "over_limit",
            Self::ForeignAcknowledgement(_) => "foreign_acknowledgement",
        }
    }
}

/// Makes every check that needs no memory. `own_keys` are all keys with which this installation ever signed
/// acknowledgements: the host may carry one from before a rekey.
pub fn verify(
    frame: &Frame,
    installation: InstallationId,
    report_key: &VerifyingKey,
    own_keys: &[VerifyingKey],
) -> Result<VerifiedReport, ReportError> {
    if !report_key.accepts(Domain::Report, frame) {
        return Err(ReportError::ForeignKey);
    }
    let report: Report = wire::decode(frame.payload(), limit::REPORT_BYTES_MAX)?;
    if report.installation != installation {
        return Err(ReportError::OtherInstallation(report.installation));
    }
    if report.host != HostId::of(report_key) {
        return Err(ReportError::OtherHost(report.host));
    }
    for (what, count, count_max) in [
        ("sets", report.sets.len(), limit::SETS_PER_HOST_MAX),
        ("receipts", report.receipts.len(), limit::RECEIPTS_MAX),
        ("means", report.means.len(), limit::NOTICES_MAX),
        ("notices", report.notices.len(), limit::NOTICES_MAX),
    ] {
        if count > count_max {
            return Err(ReportError::TooMany { what, count, count_max });
        }
    }
    let acknowledged = report
        .acknowledged
        .as_ref()
        .map(|ack| crate::ack::verify_own(ack, installation, report.host, own_keys))
        .transpose()
        .map_err(ReportError::ForeignAcknowledgement)?;
    Ok(VerifiedReport { report, acknowledged, frame: frame.digest() })
}

/// The host in whose name a frame speaks, unverified: only good for finding the key that [`verify`] needs.
pub fn claimed_host(frame: &Frame) -> Result<HostId, DecodeError> {
    #[derive(Deserialize)]
    struct Claim {
        host: HostId,
    }
    wire::decode::<Claim>(frame.payload(), limit::REPORT_BYTES_MAX).map(|claim| claim.host)
}

/// A sentence of at most [`limit::SENTENCE_CHARS_MAX`] characters without control characters, as reports carry it.
pub fn sentence(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit::SENTENCE_CHARS_MAX).collect()
}
