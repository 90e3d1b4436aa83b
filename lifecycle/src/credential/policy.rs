//! What people decide about one credential. Every default stands here and nowhere else.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::Millis;
use crate::report::Evidence;

/// How many versions a backend can hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// As many as we like.
    #[default]
    Versions,
    /// Two: minting N+2 *is* revoking N, and so passes the gate of N.
    Pair,
    /// One: refused unless the resource allows interruption.
    None,
}

/// What can be done about an old version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    /// The generator revokes it and proves it.
    #[default]
    Revokes,
    /// We hold only the value: an old version ends as `Erased`.
    ValueOnly,
    /// Somebody else rotates it and is told that the old one is safe to delete: ends as `Erased`.
    External,
}

/// What people decide about one credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// How many versions the backend can hold at once.
    pub overlap: Overlap,
    /// What can be done about an old version.
    pub authority: Authority,
    /// Whether a backend that holds one version only may be used all the same.
    pub interruption_allowed: bool,
    /// How many targets activate and adopt first, where no target is marked as a canary.
    pub canaries: u32,
    /// How many targets may hold a permit to adopt at the same time, after the flip.
    pub wave: u32,
    /// How long staging waits for targets that were reachable.
    pub barrier_ms: Millis,
    /// From `arm` to the instant at which all flip; at most 60 s.
    pub arm_ms: Millis,
    /// How long starting waits for targets to connect before it goes on without them.
    pub start_wait_ms: Millis,
    /// How long a target may take from its permit to `adopted` before the rollout halts.
    pub adopt_ms_max: Millis,
    /// From the last holder's end to the first `seal`.
    pub grace_ms: Millis,
    /// How long tokens live that applications obtained *with* a version.
    pub tail_ms: Millis,
    /// The weakest evidence that is enough to retire a version.
    pub evidence: Evidence,
    /// A consumer that has not run since the flip counts as having adopted.
    pub idle_adopts: bool,
    /// How many versions may be alive before a schedule pauses and `rotate` is refused.
    pub live_versions_max: u32,
    /// How often the backend's sessions of a superseded version are counted.
    pub sample_ms: Millis,
    /// The longest pause before a failed effect is tried again; the first is a second, and it doubles.
    pub retry_ms_max: Millis,
    /// How often the backend is searched for what carries our mark, while an aborted mint could still arrive.
    pub sweep_ms: Millis,
    /// How long the request of an aborted mint could still arrive at the backend.
    pub intent_ms: Millis,
    /// How often a failed mint, verification or revocation is tried before it is `Stuck`.
    pub attempts_max: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            overlap: Overlap::Versions,
            authority: Authority::Revokes,
            interruption_allowed: false,
            canaries: 1,
            wave: 10,
            barrier_ms: Millis::seconds(120),
            arm_ms: Millis::seconds(5),
            start_wait_ms: Millis::seconds(30),
            adopt_ms_max: Millis::seconds(300),
            grace_ms: Millis::seconds(300),
            tail_ms: Millis(0),
            evidence: Evidence::Declared,
            idle_adopts: false,
            live_versions_max: 4,
            sample_ms: Millis::seconds(30),
            retry_ms_max: Millis::seconds(60),
            sweep_ms: Millis::seconds(3600),
            intent_ms: Millis::seconds(86_400),
            attempts_max: 10,
        }
    }
}
