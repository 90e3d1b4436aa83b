//! What operators ask for.

use std::collections::BTreeMap;
use std::fmt;

use lifecycle::{CredentialName, GapId, HolderId, TargetId, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::view::Role;
use crate::id::FileName;

/// Why something is done; it stands in the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// In words.
    pub reason: String,
}

/// A wish for a new version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rotate {
    /// The current version is in foreign hands: wait for no barrier.
    pub compromised: bool,
    /// With `compromised`: after this time holders that are left are cleared and silent targets excused. Less than
    /// a minute needs the role admin.
    pub deadline_ms: Option<u64>,
}

/// Stop the rollout and flip back who has not adopted.
pub type Halt = Reason;

/// A version must stay alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Which version.
    pub version: Version,
    /// Why, in words.
    pub reason: String,
}

/// The end of a hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unhold {
    /// Which version.
    pub version: Version,
}

/// Take an existing value as version 0. It starts held.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The fields of the value by name, each in standard base64.
    pub fields: BTreeMap<FileName, String>,
}

/// The names may be shown; the contents may not.
impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.fields.keys()).finish()
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        for content in self.fields.values_mut() {
            zeroize::Zeroize::zeroize(content);
        }
    }
}

/// Withdraw a credential everywhere and retire its versions.
pub type Delete = Reason;

/// Retire a version without waiting for the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Force {
    /// Must be true: the operator knows that the gate is passed over.
    pub force: bool,
    /// Why, in words.
    pub reason: String,
}

/// One holder, gap or lost place is gone, on an operator's word. It covers no later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Clear {
    /// Of which credential.
    pub credential: CredentialName,
    /// On which target.
    pub target: TargetId,
    /// What is gone.
    pub what: ClearWhat,
    /// Why the operator knows.
    pub reason: String,
}

/// What an operator says is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClearWhat {
    /// A holder.
    Holder(HolderId),
    /// A gap or a lost place.
    Gap(GapId),
}

/// One target does not count for one version, until it reports again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Excuse {
    /// Of which credential.
    pub credential: CredentialName,
    /// Which version.
    pub version: Version,
    /// Why, in words.
    pub reason: String,
}

/// A token for one host to enrol with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolToken {
    /// What people will call the host.
    pub name: String,
    /// What selectors match.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How long the token is good for; an hour unless told otherwise.
    pub life_ms: Option<u64>,
}

/// The labels that a host has from now on, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// What selectors match.
    pub labels: BTreeMap<String, String>,
}

/// Somebody who may use the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOperator {
    /// What people call them; it stands in the audit log.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// How they prove themselves.
    pub proof: OperatorProof,
    /// How long; 90 days unless told otherwise.
    pub life_ms: Option<u64>,
}

/// How an operator proves who they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OperatorProof {
    /// By a certificate for the key of this signing request (PEM).
    Certificate {
        /// The request.
        csr: String,
    },
    /// By a bearer token that is shown once.
    Token,
}
