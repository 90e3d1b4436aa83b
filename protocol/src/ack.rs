//! Acknowledgements: the control plane's signed word that it has a report, and which versions are dead.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::{Epoch, SetName, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::digest::FrameDigest;
use crate::frame::{Domain, Frame};
use crate::id::{HostId, InstallationId};
use crate::key::{SigningKey, TrustAnchor, VerifyingKey};
use crate::limit;
use crate::wire::{self, DecodeError, TooLarge};

/// The signed content of an acknowledgement frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Whose word it is.
    pub installation: InstallationId,
    /// The life of the store that has the report.
    pub epoch: Epoch,
    /// To whom.
    pub host: HostId,
    /// The report's number.
    pub sequence: u64,
    /// The report's frame.
    pub report: FrameDigest,
    /// When, by the control plane's clock.
    pub acknowledged_at: UnixMillis,
    /// Versions of the host's sets that are dead: it never returns to one of them.
    pub dead: BTreeMap<SetName, BTreeSet<Version>>,
}

impl Ack {
    /// Signs it.
    pub fn sign(&self, key: &SigningKey) -> Result<Frame, TooLarge> {
        Ok(key.sign(Domain::Acknowledgement, wire::encode(self, limit::ACK_BYTES_MAX)?))
    }
}

/// Why a frame is not an acknowledgement for this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// No key that is trusted signed these bytes.
    #[error("the signature is not by a trusted key of the control plane")]
    ForeignKey,
    /// The signature is right and the content is not ours.
    #[error("the acknowledgement is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// Of another installation.
    #[error("of installation {0}, which is not this one")]
    OtherInstallation(InstallationId),
    /// For another host.
    #[error("for host {0}, which is not this one")]
    OtherHost(HostId),
}

/// For the applier: an acknowledgement by the control plane that it trusts.
pub fn verify(frame: &Frame, anchor: &TrustAnchor, host: HostId) -> Result<Ack, AckError> {
    verify_own(frame, anchor.installation, host, &[anchor.order_key])
}

/// For the control plane: an acknowledgement that one of its own keys once signed for this host.
pub fn verify_own(
    frame: &Frame,
    installation: InstallationId,
    host: HostId,
    own_keys: &[VerifyingKey],
) -> Result<Ack, AckError> {
    if !own_keys.iter().any(|key| key.accepts(Domain::Acknowledgement, frame)) {
        return Err(AckError::ForeignKey);
    }
    let ack: Ack = wire::decode(frame.payload(), limit::ACK_BYTES_MAX)?;
    if ack.installation != installation {
        return Err(AckError::OtherInstallation(ack.installation));
    }
    if ack.host != host {
        return Err(AckError::OtherHost(ack.host));
    }
    Ok(ack)
}
