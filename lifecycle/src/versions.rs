//! A set of versions that grows without end and takes little room: what lies beside each other is kept as one range.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::Version;

/// Versions, kept and written as ranges within an epoch: `3-9`, `2.1-4`, or one alone as it is shown elsewhere.
///
/// A range that somebody else wrote may name more versions than anybody has: nothing here walks through them.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Versions {
    /// The last number of each range, by its first version. Ranges neither meet nor touch.
    ranges: BTreeMap<Version, u32>,
}

/// Why a text is no range of versions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of versions: write 7, 3-9 or 2.3-9")]
pub struct InvalidRange(String);

impl Versions {
    /// Whether the version is one of them.
    pub fn contains(&self, version: Version) -> bool {
        self.range_of(version).is_some()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds one; whether it was none of them before.
    pub fn insert(&mut self, version: Version) -> bool {
        let new = !self.contains(version);
        if new {
            self.add(version, version.number);
        }
        new
    }

    /// Adds all of the others.
    pub fn add_all(&mut self, others: &Self) {
        for (first, last) in &others.ranges {
            self.add(*first, *last);
        }
    }

    /// Takes one out; whether it was one of them.
    pub fn remove(&mut self, version: Version) -> bool {
        let Some((first, last)) = self.range_of(version) else { return false };
        self.ranges.remove(&first);
        if first < version {
            self.ranges.insert(first, version.number - 1);
        }
        if version.number < last {
            self.ranges.insert(Version::new(version.epoch, version.number + 1), last);
        }
        true
    }

    /// The first and the last version of each range, in order.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = (Version, Version)> {
        self.ranges.iter().map(|(first, last)| (*first, Version::new(first.epoch, *last)))
    }

    fn range_of(&self, version: Version) -> Option<(Version, u32)> {
        let (first, last) = self.ranges.range(..=version).next_back()?;
        (first.epoch == version.epoch && version.number <= *last).then_some((*first, *last))
    }

    /// Adds a range, and makes one of all that it meets or touches.
    fn add(&mut self, first: Version, last: u32) {
        let (epoch, mut start, mut end) = (first.epoch, first.number, last);
        let before = self.ranges.range(..=first).next_back().map(|(first, last)| (*first, *last));
        if let Some((known, last)) = before
            && known.epoch == epoch
            && last.saturating_add(1) >= start
        {
            start = known.number;
            end = end.max(last);
        }
        let reach = Version::new(epoch, end.saturating_add(1));
        let met: Vec<Version> =
            self.ranges.range(Version::new(epoch, start)..=reach).map(|(first, _)| *first).collect();
        for known in met {
            end = end.max(self.ranges.remove(&known).unwrap_or(end));
        }
        self.ranges.insert(Version::new(epoch, start), end);
    }
}

impl std::fmt::Debug for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(Vec::<String>::from(self.clone())).finish()
    }
}

impl Extend<Version> for Versions {
    fn extend<I: IntoIterator<Item = Version>>(&mut self, versions: I) {
        for version in versions {
            self.insert(version);
        }
    }
}

impl FromIterator<Version> for Versions {
    fn from_iter<I: IntoIterator<Item = Version>>(versions: I) -> Self {
        let mut all = Self::default();
        all.extend(versions);
        all
    }
}

impl From<Versions> for Vec<String> {
    fn from(versions: Versions) -> Self {
        let ranges = versions.ranges();
        let word = |(first, last): (Version, Version)| {
            if first == last { first.to_string() } else { format!("{first}-{}", last.number) }
        };
        ranges.map(word).collect()
    }
}

impl TryFrom<Vec<String>> for Versions {
    type Error = InvalidRange;

    fn try_from(texts: Vec<String>) -> Result<Self, InvalidRange> {
        let mut versions = Self::default();
        for text in texts {
            let (first, last) = text.split_once('-').unwrap_or((&text, ""));
            let invalid = || InvalidRange(text.chars().take(40).collect());
            let first: Version = first.parse().map_err(|_| invalid())?;
            let last = if last.is_empty() { first.number } else { last.parse().map_err(|_| invalid())? };
            if last < first.number {
                return Err(invalid());
            }
            versions.add(first, last);
        }
        Ok(versions)
    }
}

impl JsonSchema for Versions {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Versions".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "array",
            "items": { "type": "string", "pattern": r"^([0-9]+\.)?[0-9]+(-[0-9]+)?$" }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_a_set_of_versions(
            changes in proptest::collection::vec((any::<bool>(), 1_u32..3, 0_u32..12), 0..60)
        ) {
            let (mut versions, mut plain) = (Versions::default(), BTreeSet::new());
            for (adds, epoch, number) in changes {
                let version = Version::new(epoch, number);
                if adds {
                    prop_assert_eq!(versions.insert(version), plain.insert(version));
                } else {
                    prop_assert_eq!(versions.remove(version), plain.remove(&version));
                }
            }
            for version in (1..3).flat_map(|epoch| (0..12).map(move |number| Version::new(epoch, number))) {
                prop_assert_eq!(versions.contains(version), plain.contains(&version));
            }
            prop_assert_eq!(&plain.iter().copied().collect::<Versions>(), &versions, "one form for one set");
            let mut twice = Versions::default();
            twice.add_all(&versions);
            twice.add_all(&versions);
            prop_assert_eq!(&twice, &versions);
            prop_assert_eq!(&Versions::try_from(Vec::<String>::from(versions.clone())).unwrap(), &versions);
        }
    }

    #[test]
    fn a_range_as_long_as_numbers_go_takes_no_time() {
        let all = Versions::try_from(vec![format!("0-{}", u32::MAX), format!("2.1-{}", u32::MAX)]).unwrap();
        assert!(all.contains(Version::new(1, 7)) && !all.contains(Version::new(2, 0)));
        let mut more = all.clone();
        more.add_all(&all);
        assert!(!more.insert(Version::new(2, u32::MAX)) && more.ranges().count() == 2);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "-", "9-3", "a", "1-b", "1.2.3", "1-2-3"] {
            assert!(Versions::try_from(vec![text.to_owned()]).is_err(), "{text}");
        }
    }
}
