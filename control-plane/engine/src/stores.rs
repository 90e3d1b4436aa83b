//! A path of a secret store as a target: there is no host that could be asked, so what a host would report is worked
//! out here from what was written, read back and destroyed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backends::{Failure, Mark, StoreTarget, Stored};
use lifecycle::report::Refused;
use lifecycle::{
    CredentialName, EffectId, Epoch, Evidence, Generation, Order, OrderKind, SetReport, Version,
};
use serde::{Deserialize, Serialize};
use store::Store;

use crate::value::Content;

/// How far a store target has come. Kept with the credential's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StoreProgress {
    epoch: Option<Epoch>,
    sequence: u64,
    answers: u64,
    generation: Option<Generation>,
    /// Everything that was written and not destroyed yet.
    written: BTreeMap<Version, Written>,
    current: Option<Version>,
    disarmed: Option<Generation>,
    gone: lifecycle::Versions,
    not_gone: BTreeMap<Version, String>,
    refused: Option<Refused>,
    /// Every path that anything was ever written to. A resource can be edited to name another one.
    places: BTreeMap<PlaceNumber, StorePlace>,
    /// The one that the resource names.
    here: PlaceNumber,
    /// Nobody has looked there yet.
    unseen: bool,
    /// The highest number that each path is known to have given out.
    newest: BTreeMap<PlaceNumber, u64>,
}

/// Counts the paths that a store target has had.
type PlaceNumber = u32;

/// A path as its resource describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StorePlace {
    pub(crate) kind: String,
    pub(crate) spec: serde_json::Value,
}

/// Where one version lies. It may have been written more than once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenForm")]
struct Written {
    /// What minted it.
    effect: EffectId,
    /// Each path with the store's number there.
    revisions: BTreeSet<(PlaceNumber, u64)>,
}

/// How it is kept, and was before paths could change and revisions were all kept.
#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenForm {
    Now { effect: EffectId, revisions: BTreeSet<(PlaceNumber, u64)> },
    Before(EffectId, u64),
}

impl From<WrittenForm> for Written {
    fn from(form: WrittenForm) -> Self {
        match form {
            WrittenForm::Now { effect, revisions } => Self { effect, revisions },
            WrittenForm::Before(effect, revision) => Self { effect, revisions: [(0, revision)].into() },
        }
    }
}

impl StorePlace {
    fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind && crate::origin::place(&self.spec) == crate::origin::place(&other.spec)
    }
}

/// What is wanted of a store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    Order {
        order: Order,
        value: Option<EffectId>,
    },
    Ask {
        epoch: Epoch,
        question: u64,
    },
    /// The resource names another path: what stands there?
    Look,
}

/// What carrying out needs.
pub(crate) struct Desk {
    pub(crate) installation: String,
    pub(crate) store: Store,
    pub(crate) name: CredentialName,
    /// Every path of the target, the present one included.
    pub(crate) places: BTreeMap<PlaceNumber, Arc<dyn StoreTarget>>,
    /// What every known effect minted: a mark in the store names the effect.
    pub(crate) versions: BTreeMap<EffectId, Version>,
}

impl Desk {
    fn place(&self, place: PlaceNumber) -> Result<&dyn StoreTarget, Failure> {
        let found = self.places.get(&place).map(AsRef::as_ref);
        found.ok_or_else(|| Failure::retry("a path that was written to cannot be reached any more"))
    }
}

impl StoreProgress {
    /// The resource names this path now.
    pub(crate) fn settle_at(&mut self, place: &StorePlace) {
        if let Some((number, known)) = self.places.iter_mut().find(|(_, known)| known.is_same(place)) {
            // How it is spoken to may be new.
            known.clone_from(place);
            self.unseen |= self.here != *number;
            self.here = *number;
            return;
        }
        let next = self.places.last_key_value().map_or(0, |(number, _)| number + 1);
        self.unseen |= !self.is_nowhere();
        self.places.insert(next, place.clone());
        self.here = next;
    }

    /// Whether the resource named another path when somebody looked last.
    pub(crate) fn is_news(&self, place: &StorePlace) -> bool {
        self.unseen || self.places.get(&self.here).is_some_and(|here| !here.is_same(place))
    }

    /// Whether nothing says yet which path this is about.
    pub(crate) fn is_nowhere(&self) -> bool {
        self.places.is_empty()
    }

    /// The path that was named last.
    pub(crate) fn place(&self) -> Option<&StorePlace> {
        self.places.get(&self.here)
    }

    /// Every path that is still concerned.
    pub(crate) fn places(&self) -> impl Iterator<Item = (PlaceNumber, &StorePlace)> {
        let written = self.written.values().flat_map(|written| &written.revisions);
        let concerned: BTreeSet<PlaceNumber> = written.map(|(place, _)| *place).chain([self.here]).collect();
        self.places
            .iter()
            .filter(move |(number, _)| concerned.contains(number))
            .map(|(number, place)| (*number, place))
    }

    /// The snapshot that a host would send.
    pub(crate) fn report(&self) -> SetReport {
        SetReport {
            epoch: self.epoch,
            sequence: self.sequence,
            answers: self.answers,
            generation: self.generation,
            present: self.written.iter().map(|(version, written)| (*version, written.effect)).collect(),
            disarmed: self.disarmed,
            current: self.current,
            permitted: self.current,
            adopted: self.current,
            gone: self.gone.clone(),
            not_gone: self.not_gone.clone(),
            refused: self.refused.clone(),
            evidence: Evidence::Declared,
            ..SetReport::default()
        }
    }

    /// Does one thing and reads back what stands there. An error is worth another try; a refusal is progress. What was
    /// found on the way is kept in either case.
    pub(crate) async fn carry_out(mut self, desk: &Desk, task: &Task) -> (Self, Result<(), String>) {
        self.sequence += 1;
        let done = match task {
            Task::Ask { epoch, .. } => {
                self.epoch = Some(*epoch);
                self.look_here(desk).await.map(drop)
            }
            Task::Look => self.look_here(desk).await.map(drop),
            Task::Order { order, value } => {
                self.epoch = Some(order.epoch);
                self.obey(desk, order, *value).await
            }
        };
        match (done, task) {
            (Ok(()), Task::Ask { question, .. }) => self.answers = self.answers.max(*question),
            (Ok(()), _) => {}
            (Err(Failure::Refused(words)), Task::Order { order, .. }) => self.refuse(order, words),
            (Err(failure), _) => return (self, Err(failure.to_string())),
        }
        (self, Ok(()))
    }

    async fn obey(&mut self, desk: &Desk, order: &Order, value: Option<EffectId>) -> Result<(), Failure> {
        match &order.kind {
            OrderKind::Activate { version, .. } | OrderKind::RollBack { to: version } => {
                let effect = value.or_else(|| self.written.get(version).map(|written| written.effect));
                let effect = effect.ok_or_else(|| Failure::refused("the order names no value"))?;
                if self.write(desk, order, *version, effect).await? {
                    self.generation = Some(order.generation);
                    self.refused = None;
                }
            }
            OrderKind::Seal { version, withdraw, .. } => self.seal(desk, *version, *withdraw).await?,
            OrderKind::Disarm { .. } => {
                self.generation = Some(order.generation);
                self.disarmed = Some(order.generation);
            }
            OrderKind::Stage { .. } | OrderKind::Arm { .. } | OrderKind::Adopt { .. } => {
                self.generation = Some(order.generation);
            }
            OrderKind::Discard { .. } => {}
        }
        Ok(())
    }

    /// False when something was found first that must be kept before it is written over.
    async fn write(
        &mut self,
        desk: &Desk,
        order: &Order,
        version: Version,
        effect: EffectId,
    ) -> Result<bool, Failure> {
        let content = Content::load(&desk.store, &desk.name, effect).await;
        let content = content.map_err(|error| Failure::refused(error.to_string()))?;
        let known = self.written.clone();
        let stored = self.look_here(desk).await?;
        if self.written != known {
            return Ok(false);
        }
        let (ours, after) = match &stored {
            None => (true, self.newest.get(&self.here).copied().unwrap_or(0)),
            Some(stored) => {
                let ours = self.is_ours(desk, stored) || stored.value.same_as(&content.value);
                (ours, stored.revision)
            }
        };
        if !ours {
            return Err(Failure::refused(
                "somebody else's value stands there and is not overwritten: import it, or remove it",
            ));
        }
        let here = desk.place(self.here)?;
        let mark = Mark { installation: desk.installation.clone(), epoch: order.epoch, effect };
        let revision = here.write(&mark, &content.value, after).await?;
        self.note(version, effect, self.here, revision);
        let stored = here.read_back().await?;
        if !stored.as_ref().is_some_and(|stored| stored.value.same_as(&content.value)) {
            return Err(Failure::retry("what was read back is not what was written"));
        }
        self.current = Some(version);
        Ok(true)
    }

    fn is_ours(&self, desk: &Desk, stored: &Stored) -> bool {
        let spot = (self.here, stored.revision);
        stored.mark.as_ref().is_some_and(|mark| mark.installation == desk.installation)
            || self.written.values().any(|written| written.revisions.contains(&spot))
    }

    fn note(&mut self, version: Version, effect: EffectId, place: PlaceNumber, revision: u64) {
        let new = Written { effect, revisions: BTreeSet::new() };
        let written = self.written.entry(version).or_insert(new);
        written.effect = effect;
        written.revisions.insert((place, revision));
        let newest = self.newest.entry(place).or_default();
        *newest = revision.max(*newest);
    }

    /// Destroys everything of a version that was ever written, wherever that was, and looks whether it is gone.
    async fn seal(&mut self, desk: &Desk, version: Version, withdraw: bool) -> Result<(), Failure> {
        self.look_here(desk).await?;
        if self.current == Some(version) && !withdraw {
            self.not_gone.insert(version, "it is the store's current version".to_owned());
            return Ok(());
        }
        let concerned: BTreeSet<PlaceNumber> = self.revisions(version).map(|(place, _)| place).collect();
        for place in concerned {
            let target = desk.place(place)?;
            let stored = target.read_back().await?;
            let standing = self.look(desk, place, stored.as_ref()).await?;
            if place == self.here && standing == Some(version) && !withdraw {
                return Err(Failure::retry("it became the store's current version again"));
            }
            let revisions: Vec<u64> = self
                .revisions(version)
                .filter(|(at, _)| *at == place)
                .map(|(_, revision)| revision)
                .collect();
            for revision in revisions {
                let stands = stored.as_ref().is_some_and(|stored| stored.revision == revision);
                if stands && standing == Some(version) {
                    // Here it is to be withdrawn. A path that the resource no longer names has no successor to wait for.
                    target.withdraw(revision).await?;
                } else {
                    target.destroy(revision).await?;
                }
            }
            let left = target.read_back().await?;
            if self.look(desk, place, left.as_ref()).await? == Some(version) {
                return Err(Failure::retry("what was destroyed still stands there"));
            }
        }
        if self.current == Some(version) {
            self.current = None;
        }
        self.written.remove(&version);
        self.not_gone.remove(&version);
        self.gone.insert(version);
        Ok(())
    }

    fn revisions(&self, version: Version) -> impl Iterator<Item = (PlaceNumber, u64)> {
        self.written.get(&version).into_iter().flat_map(|written| &written.revisions).copied()
    }

    async fn look_here(&mut self, desk: &Desk) -> Result<Option<Stored>, Failure> {
        let stored = desk.place(self.here)?.read_back().await?;
        self.current = self.look(desk, self.here, stored.as_ref()).await?;
        self.unseen = false;
        Ok(stored)
    }

    /// What stands at a path is told by its mark, by its number, or by the value itself: a process that died after it
    /// wrote may have left it with neither. From then on it is accounted for.
    async fn look(
        &mut self,
        desk: &Desk,
        place: PlaceNumber,
        stored: Option<&Stored>,
    ) -> Result<Option<Version>, Failure> {
        let Some(stored) = stored else { return Ok(None) };
        let ours = stored.mark.as_ref().filter(|mark| mark.installation == desk.installation);
        let found = match ours {
            Some(mark) => self.minted_by(desk, mark.effect),
            None => match self.at(place, stored.revision) {
                Some(found) => Some(found),
                None => same_value(desk, stored).await?,
            },
        };
        if let Some((version, effect)) = found {
            self.note(version, effect, place, stored.revision);
        }
        Ok(found.map(|(version, _)| version))
    }

    fn minted_by(&self, desk: &Desk, effect: EffectId) -> Option<(Version, EffectId)> {
        let known = desk.versions.get(&effect).copied();
        let written = || self.written.iter().find(|(_, written)| written.effect == effect);
        known.or_else(|| written().map(|(version, _)| *version)).map(|version| (version, effect))
    }

    fn at(&self, place: PlaceNumber, revision: u64) -> Option<(Version, EffectId)> {
        let is = |written: &Written| written.revisions.contains(&(place, revision));
        let found = self.written.iter().find(|(_, written)| is(written))?;
        Some((*found.0, found.1.effect))
    }

    fn refuse(&mut self, order: &Order, message: String) {
        self.refused = Some(Refused {
            generation: order.generation,
            version: order.kind.version(),
            code: "store_refused".to_owned(),
            message,
        });
    }
}

/// The version that has this very value.
async fn same_value(desk: &Desk, stored: &Stored) -> Result<Option<(Version, EffectId)>, Failure> {
    for (effect, version) in &desk.versions {
        let content = Content::find(&desk.store, &desk.name, *effect).await;
        let content = content.map_err(|error| Failure::retry(error.to_string()))?;
        if content.is_some_and(|content| content.value.same_as(&stored.value)) {
            return Ok(Some((*version, *effect)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use backends::{Answer, SecretValue};
    use store::{KeyEncryptionKey, Steps};

    use super::*;

    /// A path that keeps versions and forgets our marks.
    #[derive(Default)]
    struct Shelf(Mutex<Vec<Option<SecretValue>>>);

    impl Shelf {
        fn readable(&self) -> Vec<String> {
            let kept = self.0.lock().unwrap();
            kept.iter().flatten().map(|value| value.expose_text("password").unwrap().to_owned()).collect()
        }

        fn remove(&self, revision: u64) {
            self.0.lock().unwrap()[usize::try_from(revision).unwrap() - 1] = None;
        }
    }

    impl StoreTarget for Shelf {
        fn write<'a>(&'a self, _: &'a Mark, value: &'a SecretValue, after: u64) -> Answer<'a, u64> {
            Box::pin(async move {
                let mut kept = self.0.lock().unwrap();
                let stands = kept.last().and_then(Option::as_ref).is_some_and(|known| known.same_as(value));
                if !stands {
                    assert_eq!(kept.len() as u64, after, "nothing is overwritten that was not seen");
                    kept.push(Some(value.clone()));
                }
                Ok(kept.len() as u64)
            })
        }

        fn read_back(&self) -> Answer<'_, Option<Stored>> {
            Box::pin(async move {
                let kept = self.0.lock().unwrap();
                let revision = kept.len() as u64;
                Ok(kept.last().cloned().flatten().map(|value| Stored { value, revision, mark: None }))
            })
        }

        fn destroy(&self, revision: u64) -> Answer<'_, ()> {
            Box::pin(async move {
                assert_ne!(revision, self.0.lock().unwrap().len() as u64, "the current one is not destroyed");
                self.remove(revision);
                Ok(())
            })
        }

        fn withdraw(&self, revision: u64) -> Answer<'_, ()> {
            Box::pin(async move {
                self.remove(revision);
                Ok(())
            })
        }
    }

    fn version(number: u32) -> Version {
        Version::new(1, number)
    }

    fn effect(number: u32) -> EffectId {
        EffectId(u128::from(number))
    }

    async fn desk(directory: &tempfile::TempDir, shelf: &Arc<Shelf>) -> Desk {
        let key = KeyEncryptionKey::generate().unwrap();
        let store = Store::open_with(directory.path().join("db"), key, Steps::default()).await.unwrap();
        let name = CredentialName::new("orders-db").unwrap();
        for number in 1..=3 {
            let value = SecretValue::new().with("password", format!("p{number}").as_bytes());
            let content = Content::new(value, &BTreeMap::new()).unwrap();
            content.keep(&store, &name, effect(number)).await.unwrap();
        }
        Desk {
            installation: "ours".to_owned(),
            store,
            name,
            places: [(0, shelf.clone() as Arc<dyn StoreTarget>)].into(),
            versions: (1..=3).map(|number| (effect(number), version(number))).collect(),
        }
    }

    fn order(kind: OrderKind) -> Order {
        let epoch = Epoch { counter: 1, id: 7 };
        Order { epoch, generation: Generation::new(1, 1), kind, dead: BTreeSet::new() }
    }

    fn activate(number: u32) -> Task {
        let kind = OrderKind::Activate { version: version(number), answers: None };
        Task::Order { order: order(kind), value: Some(effect(number)) }
    }

    fn seal(number: u32) -> Task {
        let kind = OrderKind::Seal {
            version: version(number),
            cleared: BTreeSet::new(),
            cleared_gaps: BTreeSet::new(),
            withdraw: false,
        };
        Task::Order { order: order(kind), value: None }
    }

    async fn done(progress: StoreProgress, desk: &Desk, task: Task) -> StoreProgress {
        let (progress, outcome) = progress.carry_out(desk, &task).await;
        outcome.unwrap();
        progress
    }

    #[tokio::test]
    async fn a_version_that_was_written_twice_is_destroyed_twice() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::default());
        let desk = desk(&directory, &shelf).await;
        let mut progress = StoreProgress::default();
        for number in [1, 2, 1, 3] {
            progress = done(progress, &desk, activate(number)).await;
        }
        assert_eq!(shelf.readable(), ["p1", "p2", "p1", "p3"]);
        progress = done(progress, &desk, seal(1)).await;
        assert_eq!(shelf.readable(), ["p2", "p3"]);
        assert!(progress.report().gone.contains(version(1)));
        progress = done(progress, &desk, seal(3)).await;
        assert!(!progress.report().gone.contains(version(3)), "it is the current one");
    }

    #[tokio::test]
    async fn what_was_written_before_a_death_is_found_and_destroyed() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::default());
        let desk = desk(&directory, &shelf).await;
        let kept = done(StoreProgress::default(), &desk, activate(1)).await;
        // Its end is never committed.
        drop(done(kept.clone(), &desk, activate(2)).await);
        let found = done(kept, &desk, activate(1)).await;
        assert_eq!(shelf.readable(), ["p1", "p2"], "what was found is kept before it is written over");
        let progress = done(found, &desk, activate(1)).await;
        assert_eq!(shelf.readable(), ["p1", "p2", "p1"]);
        let progress = done(progress, &desk, seal(2)).await;
        assert_eq!(shelf.readable(), ["p1", "p1"]);
        assert!(progress.report().gone.contains(version(2)));
    }

    #[test]
    fn what_an_earlier_program_kept_is_read() {
        let kept = r#"{"written": {"1.2": ["0000000000000000000000000000000a", 5]}}"#;
        let number = serde_json::to_string(&Version::new(1, 2)).unwrap();
        let kept = kept.replace("\"1.2\"", &number);
        let progress: StoreProgress = serde_json::from_str(&kept).unwrap();
        let written = &progress.written[&Version::new(1, 2)];
        assert_eq!(*written, Written { effect: EffectId(10), revisions: [(0, 5)].into() });
        let again: StoreProgress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
        assert_eq!(again, progress);
    }
}
