//! `Credential`: what is rotated, by whom, where it goes and how careful to be.

use std::collections::BTreeMap;

use lifecycle::credential::Policy;
use lifecycle::{CredentialName, Evidence, Millis, SetName};
use protocol::FileName;
use serde::{Deserialize, Serialize};

use crate::duration::Span;
use crate::template::Template;

/// The shortest span between two scheduled rotations.
pub const EVERY_MIN: Millis = Millis::seconds(10);

/// A validated credential. Kept with its state, so that it is served as before when its file vanishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its name.
    pub name: CredentialName,
    /// Who brings its values.
    pub backing: Backing,
    /// The set that hosts know it by.
    pub set: SetName,
    /// The hosts that get it.
    pub hosts: Hosts,
    /// The store paths that get it.
    pub stores: Vec<Reference>,
    /// The files of the set; empty: each field is a file of its name.
    pub files: BTreeMap<FileName, Template>,
    /// How often a new version is minted by itself.
    pub every: Option<Millis>,
    /// What brings its first version.
    pub first: First,
    /// How careful to be. Overlap and authority are the backend's to say and are filled in from there.
    pub policy: Policy,
}

/// Names an object of the other kinds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Its kind, for example `PostgreSql`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// Who brings the values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// We mint them.
    Generator(Reference),
    /// Somebody else rotates, and we notice.
    Source(Reference),
}

impl Backing {
    /// What it names.
    pub const fn reference(&self) -> &Reference {
        match self {
            Self::Generator(reference) | Self::Source(reference) => reference,
        }
    }
}

/// Which hosts get it. One that matches the labels *or* is named does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// All of these; an empty map matches no host.
    pub labels: BTreeMap<String, String>,
    /// By name.
    pub names: Vec<String>,
    /// Of those, the ones that go first have all of these labels.
    pub canary_labels: BTreeMap<String, String>,
}

impl Hosts {
    /// Whether the host of this name and these labels gets it.
    pub fn selects(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        has_all(labels, &self.labels) || self.names.iter().any(|wanted| wanted == name)
    }

    /// Whether a selected host goes first.
    pub fn is_canary(&self, labels: &BTreeMap<String, String>) -> bool {
        has_all(labels, &self.canary_labels)
    }
}

fn has_all(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What brings the first version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum First {
    /// It is minted as soon as the credential is there.
    #[default]
    Mint,
    /// Nothing is minted before `esoctl credential import` brought the value that is used now.
    Import,
}

/// The `spec` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Written {
    generator: Option<Reference>,
    source: Option<Reference>,
    set: Option<SetName>,
    #[serde(default)]
    targets: WrittenTargets,
    #[serde(default)]
    files: BTreeMap<FileName, Template>,
    schedule: Option<WrittenSchedule>,
    #[serde(default)]
    first: First,
    #[serde(default)]
    policy: WrittenPolicy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenTargets {
    #[serde(default)]
    hosts: WrittenHosts,
    #[serde(default)]
    stores: Vec<Reference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenHosts {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    canary: WrittenCanary,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenCanary {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenSchedule {
    every: Span,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Idle {
    Wait,
    Adopt,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Interruption {
    Refuse,
    Allow,
}

macro_rules! written_policy {
    ($($(#[$doc:meta])* $key:ident: $type:ty => $field:ident, $into:expr, $show:expr;)*) => {
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        pub(crate) struct WrittenPolicy {
            $($key: Option<$type>,)*
        }

        impl WrittenPolicy {
            fn over_defaults(self) -> Policy {
                let mut policy = Policy::default();
                $(policy.$field = self.$key.map_or(policy.$field, $into);)*
                policy
            }
        }

        /// Key as written (snake case), field of the core's policy, default as written, meaning.
        pub(crate) fn policy_defaults() -> Vec<(&'static str, &'static str, String, String)> {
            let policy = Policy::default();
            vec![$({
                let doc = [$(doc_text(stringify!($doc))),*].join(" ");
                (stringify!($key), stringify!($field), ($show)(policy.$field), doc)
            },)*]
        }
    };
}

/// The text of a `doc = "..."` attribute.
fn doc_text(attribute: &str) -> String {
    attribute.split_once('"').map_or("", |(_, text)| text.trim_end_matches('"')).trim().to_owned()
}

fn show_span(span: Millis) -> String {
    crate::duration::show(span)
}

fn show_word(word: impl Serialize) -> String {
    serde_json::to_value(word).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

written_policy! {
    /// Whether a backend that holds one version only may be used all the same.
    interruption: Interruption => interruption_allowed, |word| matches!(word, Interruption::Allow),
        |allowed| if allowed { "allow".to_owned() } else { "refuse".to_owned() };
    /// How many targets go first, where none is marked as a canary.
    canaries: u32 => canaries, |n| n, |n: u32| n.to_string();
    /// How many targets may take a version up at the same time, after the flip.
    wave: u32 => wave, |n| n, |n: u32| n.to_string();
    /// How long staging waits for targets that were reachable.
    barrier: Span => barrier_ms, |span| span.0, show_span;
    /// From the agreement to the instant at which all flip; at most 60s.
    flip_in: Span => arm_ms, |span| span.0, show_span;
    /// How long a start waits for targets to connect before it goes on without them.
    start_wait: Span => start_wait_ms, |span| span.0, show_span;
    /// How long a target may take from its permit to adopted before the rollout halts.
    adopt_within: Span => adopt_ms_max, |span| span.0, show_span;
    /// From the last holder's end to the first seal.
    grace: Span => grace_ms, |span| span.0, show_span;
    /// How long tokens live that applications obtained with a version.
    tail: Span => tail_ms, |span| span.0, show_span;
    /// The weakest evidence that is enough to retire a version.
    evidence: Evidence => evidence, |word| word, show_word;
    /// Whether a consumer that has not run since the flip counts as having adopted.
    idle: Idle => idle_adopts, |word| matches!(word, Idle::Adopt),
        |adopts| if adopts { "adopt".to_owned() } else { "wait".to_owned() };
    /// How many versions may be alive before a schedule pauses and `rotate` is refused.
    live_versions_max: u32 => live_versions_max, |n| n, |n: u32| n.to_string();
    /// How often the backend's sessions of a superseded version are counted.
    sample_every: Span => sample_ms, |span| span.0, show_span;
    /// The longest pause before something that failed is tried again; the first is a second, and it doubles.
    retry_pause_max: Span => retry_ms_max, |span| span.0, show_span;
    /// How often the backend is searched for what carries our mark, while an aborted mint could still arrive.
    sweep_every: Span => sweep_ms, |span| span.0, show_span;
    /// How long the request of an aborted mint could still arrive at the backend.
    intent_life: Span => intent_ms, |span| span.0, show_span;
    /// How often a failed mint, verification or revocation is tried before it is stuck.
    attempts_max: u32 => attempts_max, |n| n, |n: u32| n.to_string();
}

impl Written {
    pub(crate) fn validate(self, name: &str) -> Result<Credential, String> {
        let name = CredentialName::new(name).map_err(|error| error.to_string())?;
        let backing = match (self.generator, self.source) {
            (Some(generator), None) => Backing::Generator(generator),
            (None, Some(source)) => Backing::Source(source),
            _ => return Err("name either `generator` or `source`, and one of them".to_owned()),
        };
        let set = match self.set {
            Some(set) => set,
            None => SetName::new(name.as_str()).map_err(|error| error.to_string())?,
        };
        let every = self.schedule.map(|schedule| schedule.every.0);
        check_schedule(every, &backing, self.first)?;
        let policy = self.policy.over_defaults();
        check_policy(&policy)?;
        if policy.evidence > Evidence::Declared && !self.targets.stores.is_empty() {
            return Err(format!(
                "`policy.evidence: {}` can never be met at `targets.stores`: nobody sees who reads there; leave out one of them",
                show_word(policy.evidence)
            ));
        }
        let WrittenHosts { match_labels, names, canary } = self.targets.hosts;
        Ok(Credential {
            name,
            backing,
            set,
            hosts: Hosts { labels: match_labels, names, canary_labels: canary.match_labels },
            stores: self.targets.stores,
            files: self.files,
            every,
            first: self.first,
            policy,
        })
    }
}

fn check_schedule(every: Option<Millis>, backing: &Backing, first: First) -> Result<(), String> {
    match (every, backing) {
        (Some(every), Backing::Generator(_)) if every < EVERY_MIN => {
            Err(format!("`schedule.every` must be at least {}", crate::duration::show(EVERY_MIN)))
        }
        (Some(_), Backing::Source(_)) => {
            Err("`schedule` is for a generator: whoever owns the source decides when it changes".to_owned())
        }
        (_, Backing::Source(_)) if first == First::Import => {
            Err("`first: import` is for a generator: a source brings its first value by itself".to_owned())
        }
        _ => Ok(()),
    }
}

fn check_policy(policy: &Policy) -> Result<(), String> {
    let flip_ms_max = protocol::limit::ARM_HORIZON_MS_MAX;
    if policy.arm_ms.0 > flip_ms_max {
        return Err(format!(
            "`policy.flipIn` must be at most {}",
            crate::duration::show(Millis(flip_ms_max))
        ));
    }
    for (key, value) in [
        ("wave", policy.wave),
        ("liveVersionsMax", policy.live_versions_max),
        ("attemptsMax", policy.attempts_max),
    ] {
        if value == 0 {
            return Err(format!("`policy.{key}` must be at least 1"));
        }
    }
    Ok(())
}
