//! The one gate before every revocation: a list of named clauses, all of which must hold for a version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Credential;
use super::state::{Kept, Phase, Target};
use crate::id::{Millis, TargetId, Version};
use crate::report::ConsumerState;

/// The clauses, in the order in which people read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clause {
    /// Another verified version is current on every target that counts.
    Replaced,
    /// That version is adopted and settled by every consumer that policy names.
    Adopted,
    /// No target is rolling back to it, or could still do so by itself.
    NoRollback,
    /// No target that was ever asked to flip to it may still do so.
    Disarmed,
    /// Evidence covers the time from before it became visible, or each gap healed or was cleared.
    Covered,
    /// Nobody is left that may have it.
    NoHolder,
    /// The backend shows no session of it, where it can.
    BackendQuiet,
    /// Evidence is of the kind that the credential demands.
    Evidence,
    /// Grace and tail have passed since the last holder let go.
    Grace,
    /// Nobody holds it.
    NoHold,
    /// Every target has reported since all of the above first held.
    Fresh,
}

/// What keeps a version alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Blocker {
    /// Which clause.
    pub clause: Clause,
    /// On which target, where it is one target's.
    pub target: Option<TargetId>,
    /// Who or what, for people.
    pub who: String,
    /// Since when the clause has failed without a break.
    pub since: Millis,
    /// What an operator can say to end it.
    pub word: Option<Word>,
}

/// A word of an operator that ends what keeps a version alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The holder, gap or place of this name is gone.
    Clear(String),
    /// Nobody holds the version any more.
    Unhold,
    /// The target does not count.
    Excuse,
}

type Check = fn(&Look<'_>, &mut Tell<'_>);

/// The gate. One function a clause.
const CLAUSES: [(Clause, Check); 11] = [
    (Clause::Replaced, replaced),
    (Clause::Adopted, adopted),
    (Clause::NoRollback, no_rollback),
    (Clause::Disarmed, disarmed),
    (Clause::Covered, covered),
    (Clause::NoHolder, no_holder),
    (Clause::BackendQuiet, backend_quiet),
    (Clause::Evidence, evidence),
    (Clause::Grace, grace),
    (Clause::NoHold, no_hold),
    (Clause::Fresh, fresh),
];

/// Clauses whose failing says that somebody may still have the version, so that the grace time starts anew.
pub(crate) const QUIET: [Clause; 7] = [
    Clause::Replaced,
    Clause::Adopted,
    Clause::NoRollback,
    Clause::Disarmed,
    Clause::Covered,
    Clause::NoHolder,
    Clause::BackendQuiet,
];

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => "replaced",
            Self::Adopted => "adopted",
            Self::NoRollback => "no rollback",
            Self::Disarmed => "disarmed",
            Self::Covered => "covered",
            Self::NoHolder => "no holder",
            Self::BackendQuiet => "backend quiet",
            Self::Evidence => "evidence",
            Self::Grace => "grace",
            Self::NoHold => "no hold",
            Self::Fresh => "fresh",
        })
    }
}

impl Clause {
    /// Every clause.
    pub fn all() -> impl Iterator<Item = Self> {
        CLAUSES.into_iter().map(|(clause, _)| clause)
    }
}

/// What keeps the version alive, for people: also of one whose turn has not come.
pub(crate) fn blockers(credential: &Credential, version: Version, now: Millis) -> Vec<Blocker> {
    let Some(kept) = credential.versions.get(&version).filter(|kept| !kept.phase.is_ended()) else {
        return Vec::new();
    };
    let look = Look { credential, version, kept, now };
    let mut blockers = Vec::new();
    for (clause, check) in CLAUSES {
        if look.asks(clause) {
            let since = kept.watch.failing.get(&clause).copied().unwrap_or(now);
            let mut tell = Tell { clause, since, found: false, blockers: Some(&mut blockers) };
            check(&look, &mut tell);
        }
    }
    blockers
}

/// The clauses that fail.
pub(crate) fn failing(credential: &Credential, version: Version, now: Millis) -> BTreeSet<Clause> {
    let Some(kept) = credential.versions.get(&version) else { return BTreeSet::new() };
    let look = Look { credential, version, kept, now };
    let fails = |(clause, check): &(Clause, Check)| look.asks(*clause) && look.fails(*clause, *check);
    CLAUSES.iter().filter(|clause| fails(clause)).map(|(clause, _)| *clause).collect()
}

/// One version, looked at by all clauses.
pub(crate) struct Look<'a> {
    credential: &'a Credential,
    version: Version,
    kept: &'a Kept,
    now: Millis,
}

/// Collects who is in the way, or only that somebody is.
struct Tell<'a> {
    clause: Clause,
    since: Millis,
    found: bool,
    blockers: Option<&'a mut Vec<Blocker>>,
}

impl Tell<'_> {
    fn say(&mut self, target: Option<&TargetId>, who: impl FnOnce() -> String) {
        self.say_with(target, || (who(), None));
    }

    /// The same of something that an operator can end.
    fn say_with(&mut self, target: Option<&TargetId>, say: impl FnOnce() -> (String, Option<Word>)) {
        self.found = true;
        if let Some(blockers) = &mut self.blockers {
            let (who, word) = say();
            blockers.push(Blocker {
                clause: self.clause,
                target: target.cloned(),
                who,
                since: self.since,
                word,
            });
        }
    }

    /// Whether one is enough and was found.
    fn is_over(&self) -> bool {
        self.found && self.blockers.is_none()
    }
}

impl<'a> Look<'a> {
    pub(crate) fn new(credential: &'a Credential, version: Version, kept: &'a Kept, now: Millis) -> Self {
        Self { credential, version, kept, now }
    }

    fn fails(&self, clause: Clause, check: Check) -> bool {
        let mut tell = Tell { clause, since: self.now, found: false, blockers: None };
        check(self, &mut tell);
        tell.found
    }

    /// Whether the clause is asked of this version.
    fn asks(&self, clause: Clause) -> bool {
        if self.credential.without.contains(&clause) {
            return false;
        }
        if self.kept.forced.is_some() {
            return matches!(clause, Clause::Disarmed | Clause::NoHold);
        }
        let withdrawn = self.credential.is_withdrawn(self.version);
        match clause {
            Clause::Replaced => !withdrawn,
            Clause::Adopted => !withdrawn && !self.is_expired(),
            Clause::NoRollback | Clause::Covered | Clause::NoHolder | Clause::Evidence => !self.is_expired(),
            Clause::BackendQuiet | Clause::Grace => !self.is_waived(),
            Clause::Disarmed | Clause::NoHold | Clause::Fresh => true,
        }
    }

    fn is_expired(&self) -> bool {
        self.kept.compromise.as_ref().is_some_and(|c| c.expired.is_some())
    }

    /// Of a version in foreign hands what a thief can prolong stops counting.
    pub(crate) fn is_waived(&self) -> bool {
        let Some(compromise) = &self.kept.compromise else { return false };
        match (compromise.deadline, &compromise.expired) {
            (_, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => !self.fails(Clause::Replaced, replaced) && !self.fails(Clause::Adopted, adopted),
        }
    }

    /// After a deadline, a target that does not answer counts as excused.
    fn is_silent(&self, id: &TargetId, target: &Target) -> bool {
        let Some(expired) = self.kept.compromise.as_ref().and_then(|c| c.expired.as_ref()) else {
            return false;
        };
        let patience = self.credential.policy.barrier_ms;
        let late =
            self.kept.watch.round.as_ref().is_some_and(|round| {
                target.answered < round.question && self.now.since(round.since) >= patience
            });
        expired.contains(id) || !target.connected || late
    }

    fn is_excused(&self, id: &TargetId, target: &Target) -> bool {
        target.retired || target.excused.contains(&self.version) || self.is_silent(id, target)
    }

    /// Whether the target was ever sent anything of the version, or shows anything of it.
    fn concerns(&self, target: &Target) -> bool {
        self.kept.everywhere
            || target.sent.contains(&self.version)
            || target.shows(self.version, self.kept.minted_by)
    }

    /// Targets that may have the version and are neither excused nor retired.
    fn counted(&self) -> impl Iterator<Item = (&'a TargetId, &'a Target)> {
        self.credential
            .targets
            .iter()
            .filter(|(id, target)| !self.is_excused(id, target) && self.concerns(target))
    }

    /// Those of them where it is not gone.
    pub(crate) fn left(&self) -> impl Iterator<Item = (&'a TargetId, &'a Target)> {
        self.counted().filter(|(_, target)| !target.gone.contains(self.version))
    }

    /// Whether another version may stand in for this one.
    fn qualifies(&self, other: Version) -> bool {
        let versions = &self.credential.versions;
        let lasts = |kept: &Kept| {
            let sealed = kept.phase.is_dead() || kept.sealed_before;
            kept.verified && !kept.refused && kept.aborted.is_none() && !sealed
        };
        let later = other > self.version || self.kept.aborted.is_some();
        versions.get(&other).is_some_and(|kept| {
            // One that is still rolling may be aborted, so there must be yet another to return to.
            let stays = kept.phase != Phase::Rolling
                || versions.iter().any(|(version, kept)| {
                    kept.phase == Phase::Active && *version != self.version && lasts(kept)
                });
            other != self.version && later && lasts(kept) && stays
        })
    }

    /// Whether the target's own policy dropped the set, so that it is withdrawn there and nothing replaces it.
    fn is_withdrawn_on(target: &Target) -> bool {
        target.barred
    }
}

impl Credential {
    /// Whether nothing is to replace the version: its sets are taken away.
    pub(crate) fn is_withdrawn(&self, version: Version) -> bool {
        let Some(kept) = self.versions.get(&version) else { return false };
        self.deleted || (kept.aborted.is_some() && kept.first && self.active.is_none())
    }
}

fn replaced(look: &Look<'_>, tell: &mut Tell<'_>) {
    let mut cache: BTreeMap<Option<Version>, bool> = BTreeMap::new();
    for (id, target) in look.left().filter(|(_, t)| !Look::is_withdrawn_on(t)) {
        let current = target.current();
        let is_it = target
            .report
            .as_ref()
            .and_then(|r| r.present.get(&current?))
            .is_some_and(|effect| *effect == look.kept.minted_by);
        let ok =
            !is_it && *cache.entry(current).or_insert_with(|| current.is_some_and(|v| look.qualifies(v)));
        if !ok {
            tell.say(Some(id), || match current {
                Some(current) => format!("version {current} is current there"),
                None => "no version is current there".into(),
            });
        }
        if tell.is_over() {
            return;
        }
    }
}

fn adopted(look: &Look<'_>, tell: &mut Tell<'_>) {
    let idle_adopts = look.credential.policy.idle_adopts;
    for (id, target) in look.left().filter(|(_, t)| !Look::is_withdrawn_on(t)) {
        let Some(report) = &target.report else {
            tell.say(Some(id), || "it has never reported".into());
            continue;
        };
        let through = |state: ConsumerState| {
            state == ConsumerState::Settled || (state == ConsumerState::Idle && idle_adopts)
        };
        let late: Vec<_> = report.consumers.iter().filter(|(_, c)| !through(c.state)).collect();
        let adopted = report.current.is_some() && report.adopted == report.current;
        let idle = idle_adopts && !report.consumers.is_empty() && report.permitted == report.current;
        if late.is_empty() && !adopted && !idle {
            tell.say(Some(id), || "the current version is not adopted there".into());
        }
        for (name, consumer) in late {
            tell.say(Some(id), || format!("{name} is {}", consumer.state.words()));
        }
        if tell.is_over() {
            return;
        }
    }
}

fn no_rollback(look: &Look<'_>, tell: &mut Tell<'_>) {
    for (id, target) in look.counted() {
        if target.report.as_ref().is_some_and(|r| r.may_return_to.contains(&look.version)) {
            tell.say(Some(id), || "could still return to it by itself".into());
        }
    }
}

/// Asked also of targets that are excused: a late flip is not made good by a word about holders.
fn disarmed(look: &Look<'_>, tell: &mut Tell<'_>) {
    let version = look.version;
    for (id, target) in &look.credential.targets {
        if target.retired || target.gone.contains(version) || look.is_silent(id, target) {
            continue;
        }
        let armed =
            target.report.as_ref().is_some_and(|r| r.armed == Some(version) || r.may_flip.contains(&version));
        if armed || target.flips.contains_key(&version) {
            tell.say(Some(id), || "may still flip to it: the disarm is not confirmed".into());
        }
        // Force asks for nothing else, and a target that has just flipped is on its way back.
        if look.kept.forced.is_some() && target.connected && target.current() == Some(version) {
            tell.say(Some(id), || "is still on it".into());
        }
    }
}

fn covered(look: &Look<'_>, tell: &mut Tell<'_>) {
    let version = look.version;
    for (id, target) in look.counted() {
        let Some(report) = target.report.as_ref().filter(|_| !target.incomplete) else {
            tell.say(Some(id), || "its reports are incomplete".into());
            continue;
        };
        let open = |gap: &crate::id::GapId| !target.cleared_gaps.contains(&(version, gap.clone()));
        for gap in report.gaps.iter().filter(|g| g.versions.contains(&version) && open(&g.id)) {
            tell.say_with(Some(id), || named(&gap.id, &gap.description));
        }
        for place in report.places.iter().filter(|p| p.versions.contains(&version) && open(&p.id)) {
            tell.say_with(Some(id), || named(&place.id, &place.description));
        }
        if tell.is_over() {
            return;
        }
    }
}

/// What an operator can clear, in words and by its name, which begins with what it is.
fn named(id: &impl ToString, description: &str) -> (String, Option<Word>) {
    let id = id.to_string();
    (format!("{id}: {description}"), Some(Word::Clear(id)))
}

fn no_holder(look: &Look<'_>, tell: &mut Tell<'_>) {
    let version = look.version;
    for (id, target) in look.counted() {
        let holders = target.report.iter().flat_map(|r| &r.holders).filter(|h| h.version == version);
        for holder in holders.filter(|h| !target.cleared.contains(&(version, h.id.clone()))) {
            tell.say_with(Some(id), || named(&holder.id, &holder.description));
        }
        if tell.is_over() {
            return;
        }
    }
}

fn backend_quiet(look: &Look<'_>, tell: &mut Tell<'_>) {
    match look.kept.watch.sample {
        None => tell.say(None, || "the backend's sessions have not been counted yet".into()),
        Some(sample) => {
            if let Some(sessions) = sample.sessions.filter(|sessions| *sessions > 0) {
                let what = if sessions == 1 { "session" } else { "sessions" };
                tell.say(None, || format!("{sessions} {what} at the backend"));
            }
        }
    }
}

fn evidence(look: &Look<'_>, tell: &mut Tell<'_>) {
    let demanded = look.credential.policy.evidence;
    for (id, target) in look.left() {
        let has = target.report.as_ref().map(|r| r.evidence).unwrap_or_default();
        if has < demanded {
            tell.say(Some(id), || format!("evidence is {has}, and {demanded} is demanded"));
        }
    }
}

fn grace(look: &Look<'_>, tell: &mut Tell<'_>) {
    let needed = look.credential.grace();
    let accrued = look.kept.watch.quiet.map(|quiet| quiet.accrued);
    if accrued.is_none_or(|accrued| accrued < needed) {
        let left = needed.since(accrued.unwrap_or_default());
        tell.say(None, || format!("{} s to go", left.0.div_ceil(1000)));
    }
}

fn no_hold(look: &Look<'_>, tell: &mut Tell<'_>) {
    for by in look.kept.holds.iter().chain(&look.kept.epoch_hold) {
        tell.say_with(None, || (format!("held by {by}"), Some(Word::Unhold)));
    }
    // What this life of the store minted and forgot, or another life that has its number, may be in use by it.
    if let Some(epoch) = look.kept.swept_of.filter(|epoch| epoch.counter >= look.credential.epoch.counter) {
        tell.say(None, || format!("its mark is of epoch {}, which has not ended", epoch.counter));
    }
    if look.credential.orphaned && !look.credential.deleted {
        tell.say(None, || "the resource vanished; nothing is retired until it is back or deleted".into());
    }
}

fn fresh(look: &Look<'_>, tell: &mut Tell<'_>) {
    let Some(round) = &look.kept.watch.round else {
        return tell.say(None, || "the last look has not begun".into());
    };
    if !round.sampled && !look.is_waived() {
        tell.say(None, || "a fresh count of the backend's sessions is awaited".into());
    }
    for (id, target) in &look.credential.targets {
        if !look.is_excused(id, target) && target.answered < round.question {
            let excuse = (!target.connected).then_some(Word::Excuse);
            tell.say_with(Some(id), || ("has not reported since".into(), excuse));
        }
        if tell.is_over() {
            return;
        }
    }
}
