//! Figures of each version's road: how close together its targets flipped, and how soon it died after its last holder.
//!
//! They are for people. Clocks of hosts are put right as far as they are known to differ from ours, and nothing is
//! ever decided by what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lifecycle::credential::view::RolloutView;
use lifecycle::credential::{EffectKind, Stage};
use lifecycle::{CredentialName, EffectId, Flipped, Millis, SetReport, TargetId, Version};
use protocol::api::view::{Figures, FlipView};
use protocol::{HostId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::world::{Owned, World};

/// Flips that are further than this from the instant were not made for it.
const NEAR_MS: u64 = 5_000;
/// How long what is known of a host's clock is good for.
const CLOCK_KNOWN_MS: u64 = 600_000;

/// What is kept of one version.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) figures: Figures,
    /// The common instant, on our clock and on the wall clock.
    instant: Option<(Millis, UnixMillis)>,
}

/// One flip of many targets, while it is looked at.
pub(crate) struct Flip {
    version: Version,
    at: Millis,
    /// Targets whose flip was counted.
    seen: BTreeSet<TargetId>,
}

/// What a report told of a host's clock: it is at least this far ahead of ours, since the report cannot have come before
/// it was written.
#[derive(Clone, Copy)]
pub(crate) struct ClockBound {
    ahead_ms_min: i64,
    learned: UnixMillis,
}

impl ClockBound {
    /// The better of what was known and what a report says that came now.
    pub(crate) fn learn(known: Option<Self>, taken_at: UnixMillis, now: UnixMillis) -> Self {
        let new = Self { ahead_ms_min: taken_at.ms_ahead_of(now), learned: now };
        let good = known.filter(|known| now.ms_since(known.learned) < CLOCK_KNOWN_MS);
        good.filter(|known| known.ahead_ms_min > new.ahead_ms_min).unwrap_or(new)
    }
}

/// By how much a host's clock is certainly ahead of ours: as little as both bounds allow.
fn clock_ahead_ms(min: Option<i64>, max: Option<i64>) -> i64 {
    match (min, max) {
        (Some(min), Some(max)) if min > max => i64::midpoint(min, max),
        (min, max) => 0.max(min.unwrap_or(0)).min(max.unwrap_or(i64::MAX)),
    }
}

fn flip_view(flipped: &Flipped, bound: Option<ClockBound>) -> FlipView {
    let ahead_ms = clock_ahead_ms(bound.map(|bound| bound.ahead_ms_min), flipped.ahead_ms_max);
    FlipView {
        at: UnixMillis(flipped.unix_ms.saturating_add_signed(ahead_ms.saturating_neg())),
        clock_ahead_ms: ahead_ms,
        at_instant: flipped.ahead_ms_max.is_some(),
    }
}

impl Measured {
    /// Compares the flips that were made for the instant. Those of the most targets stand.
    fn compare(&mut self, flips: impl Iterator<Item = FlipView>) {
        let Some((_, instant)) = self.instant else { return };
        let near = |at: UnixMillis| at.ms_since(instant).max(instant.ms_since(at)) <= NEAR_MS;
        let together = flips.filter(|flip| flip.at_instant && near(flip.at)).map(|flip| flip.at);
        let (mut count, mut first, mut last) = (0_u32, UnixMillis(u64::MAX), UnixMillis(0));
        for at in together {
            (count, first, last) = (count + 1, first.min(at), last.max(at));
        }
        if count >= self.figures.flipped_together {
            self.figures.flipped_together = count;
            self.figures.flip_skew_ms = (count > 1).then(|| last.ms_since(first));
        }
    }
}

impl World {
    fn clock_bound(&self, target: &TargetId) -> Option<ClockBound> {
        self.hosts.get(&HostId::try_from(target).ok()?)?.clock
    }

    /// When the version became current on a target, while it is.
    pub(crate) fn flip_on(&self, owned: &Owned, target: &TargetId, version: Version) -> Option<FlipView> {
        let flipped = owned.kept.state.report(target)?.flipped.filter(|flip| flip.version == version)?;
        Some(flip_view(&flipped, self.clock_bound(target)))
    }

    /// From the agreed instant to the report that shows the flip.
    pub(crate) fn note_flip(&mut self, name: &CredentialName, target: &TargetId, report: &SetReport) {
        let now = self.clock.now();
        let Some(flip) = self.owned.get_mut(name).and_then(|owned| owned.flip.as_mut()) else { return };
        if report.current == Some(flip.version) && now >= flip.at && flip.seen.insert(target.clone()) {
            self.metrics.flip_reported(Duration::from_millis(now.since(flip.at).0));
        }
    }

    /// Measures what the newest reports show, before they are committed.
    pub(crate) fn measure(&mut self, name: &CredentialName) {
        self.follow_flip(name);
        let Some(owned) = self.owned.get(name) else { return };
        let Some(version) = owned.flip.as_ref().map(|flip| flip.version) else { return };
        let reports = owned.kept.state.reports();
        let flips = reports.filter_map(|(target, report)| {
            let flipped = report.flipped.filter(|flipped| flipped.version == version)?;
            Some(flip_view(&flipped, self.clock_bound(target)))
        });
        let mut measured = owned.kept.measured.get(&version).copied().unwrap_or_default();
        measured.compare(flips);
        let Some(owned) = self.owned.get_mut(name) else { return };
        owned.kept.measured.insert(version, measured);
        if owned.kept.state.rollout().is_none() {
            owned.flip = None;
            if let Some(skew_ms) = measured.figures.flip_skew_ms {
                self.metrics.flip_skew(Duration::from_millis(skew_ms));
            }
        }
    }

    /// Begins to look at a flip once its instant is agreed, and again when another instant is.
    fn follow_flip(&mut self, name: &CredentialName) {
        let clock = self.clock.clone();
        let Some(owned) = self.owned.get_mut(name) else { return };
        let state = &owned.kept.state;
        let kept: BTreeSet<Version> = state.versions().map(|view| view.version).collect();
        owned.kept.measured.retain(|version, _| kept.contains(version));
        let Some(RolloutView { version: Some(version), stage: Stage::Flip { at }, canaries, .. }) =
            state.rollout()
        else {
            return;
        };
        if owned.flip.as_ref().is_some_and(|flip| flip.at == at && flip.version == version) {
            return;
        }
        let shown = state.reports().filter(|(_, report)| report.current == Some(version));
        let seen = shown.map(|(target, _)| target.clone()).chain(canaries).collect();
        owned.flip = Some(Flip { version, at, seen });
        let measured = owned.kept.measured.entry(version).or_default();
        if measured.instant.is_none_or(|(known, _)| known != at) {
            // Another instant: what was measured before was another flip.
            measured.figures = Figures::default();
            measured.instant = Some((at, clock.wall(at)));
        }
    }

    /// An effect that ends a version is handed to its backend.
    pub(crate) fn note_revoking(&mut self, name: &CredentialName, kind: &EffectKind) {
        let now = self.clock.now();
        let Some(owned) = self.owned.get_mut(name) else { return };
        let Some((version, since)) = owned.dying_of(kind) else { return };
        let figures = &mut owned.kept.measured.entry(version).or_default().figures;
        if figures.last_holder_to_revoke_ms.is_none() {
            let delay = now.since(since);
            figures.last_holder_to_revoke_ms = Some(delay.0);
            self.metrics.revoke_delay(Duration::from_millis(delay.0));
        }
    }

    /// The version that this effect, if it is done now, has ended, and since when nobody was seen to hold it.
    pub(crate) fn dying(&self, name: &CredentialName, effect: EffectId) -> Option<(Version, Millis)> {
        let owned = self.owned.get(name)?;
        let kind = &owned.kept.state.outbox().find(|known| known.id == effect)?.kind;
        owned.dying_of(kind)
    }

    /// The backend proved that the version is revoked.
    pub(crate) fn note_revoked(&mut self, name: &CredentialName, (version, since): (Version, Millis)) {
        let now = self.clock.now();
        let Some(owned) = self.owned.get_mut(name) else { return };
        if owned.kept.state.phase(version).is_some_and(lifecycle::credential::Phase::is_ended) {
            let figures = &mut owned.kept.measured.entry(version).or_default().figures;
            figures.last_holder_to_revoked_ms = Some(now.since(since).0);
        }
    }
}

impl Owned {
    fn dying_of(&self, kind: &EffectKind) -> Option<(Version, Millis)> {
        let minted_by = match kind {
            EffectKind::Revoke { minted_by, .. } => *minted_by,
            EffectKind::Mint { replaces, .. } => (*replaces)?,
            _ => return None,
        };
        let view = self.kept.state.versions().find(|view| view.minted_by == minted_by)?;
        Some((view.version, view.free_since?))
    }

    pub(crate) fn figures(&self, version: Version) -> Figures {
        self.kept.measured.get(&version).map(|measured| measured.figures).unwrap_or_default()
    }
}

/// What is kept of every version that is remembered.
pub(crate) type MeasuredVersions = BTreeMap<Version, Measured>;

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANT: u64 = 1_000_000;

    fn flip(unix_ms: u64, ahead_ms_max: Option<i64>, ahead_ms_min: i64) -> FlipView {
        let bound = ClockBound { ahead_ms_min, learned: UnixMillis(0) };
        flip_view(&Flipped { version: Version::new(1, 2), unix_ms, ahead_ms_max }, Some(bound))
    }

    fn measured(flips: Vec<FlipView>) -> Figures {
        let mut measured =
            Measured { instant: Some((Millis(5), UnixMillis(INSTANT))), figures: Figures::default() };
        measured.compare(flips.into_iter());
        measured.figures
    }

    #[test]
    fn a_slow_way_is_not_taken_for_another_clock() {
        // Neither 40 ms on the way there nor 300 ms on the way back say that the clocks differ.
        assert_eq!(clock_ahead_ms(Some(-300), Some(40)), 0);
        assert_eq!(flip(INSTANT + 3, Some(40), -300).at, UnixMillis(INSTANT + 3));
    }

    #[test]
    fn clocks_that_certainly_differ_are_put_right() {
        // Ahead: its report says a time that is still to come here. Behind: the order came before it was sent.
        assert_eq!(clock_ahead_ms(Some(480), Some(530)), 480);
        assert_eq!(clock_ahead_ms(Some(-700), Some(-450)), -450);
        let flips = vec![flip(INSTANT + 482, Some(530), 480), flip(INSTANT - 449, Some(-450), -700)];
        let figures = measured(flips);
        assert_eq!((figures.flip_skew_ms, figures.flipped_together), (Some(1), 2));
    }

    #[test]
    fn canaries_and_latecomers_are_left_out_of_the_skew() {
        let flips = vec![
            flip(INSTANT - 2_000, None, 0),
            flip(INSTANT, Some(0), 0),
            flip(INSTANT + 7, Some(0), 0),
            flip(INSTANT + 900, None, 0),
        ];
        let figures = measured(flips);
        assert_eq!((figures.flip_skew_ms, figures.flipped_together), (Some(7), 2));
        assert_eq!(measured(vec![flip(INSTANT, Some(0), 0)]).flip_skew_ms, None, "one alone has no skew");
    }

    #[test]
    fn what_is_known_of_a_clock_is_the_best_of_the_last_minutes() {
        let at = |ms| UnixMillis(INSTANT + ms);
        let known = ClockBound::learn(None, at(0), at(20));
        assert_eq!(known.ahead_ms_min, -20);
        let known = ClockBound::learn(Some(known), at(1_000), at(1_400));
        assert_eq!(known.ahead_ms_min, -20, "a slower way says less");
        let late = CLOCK_KNOWN_MS + 2_000;
        let known = ClockBound::learn(Some(known), at(late), at(late + 400));
        assert_eq!(known.ahead_ms_min, -400, "clocks are set now and then");
    }
}
