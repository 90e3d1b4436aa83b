//! Where versions were made. A resource can be edited to name another server while versions of the server before are
//! alive: each version is asked about, and revoked, where it was made, whatever the resource says now.

use std::collections::{BTreeMap, BTreeSet};

use backends::SpecError;
use lifecycle::EffectId;
use resources::Backing;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Brings, Makers, Plan};

/// What in a spec says how a backend is spoken to, and not which one it is. In this the present resource counts for
/// old versions too: a password that was moved must not make them immortal.
const ACCESS: [&str; 6] = ["auth", "tls", "timeoutSeconds", "pollSeconds", "cleanupPolicy", "retiring"];

/// A backend as a resource described it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    generates: bool,
    kind: String,
    spec: serde_json::Value,
}

/// By the effect that made a version: everywhere that this was tried, the last one last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Origins(BTreeMap<EffectId, Vec<Origin>>);

impl Origin {
    pub(crate) fn of(plan: &Plan) -> Self {
        let credential = &plan.credential;
        Self {
            generates: matches!(credential.backing, Backing::Generator(_)),
            kind: credential.backing.reference().kind.clone(),
            spec: plan.backing().clone(),
        }
    }

    pub(crate) fn equip(&self, makers: &dyn Makers) -> Result<Brings, SpecError> {
        Ok(if self.generates {
            Brings::Generator(makers.generator(&self.kind, &self.spec)?)
        } else {
            Brings::Source(makers.source(&self.kind, &self.spec)?)
        })
    }

    /// Whether both are one backend, however it is spoken to.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        (self.generates, &self.kind) == (other.generates, &other.kind)
            && place(&self.spec) == place(&other.spec)
    }
}

/// What in a spec says which backend it is.
pub(crate) fn place(spec: &serde_json::Value) -> serde_json::Value {
    let mut spec = spec.clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|name, _| !ACCESS.contains(&name.as_str()));
    }
    spec
}

impl Origins {
    /// A version is about to be made there. True when that is news.
    pub(crate) fn note(&mut self, effect: EffectId, origin: &Origin) -> bool {
        let known = self.0.entry(effect).or_default();
        if known.last().is_some_and(|last| last.is_same_place(origin)) {
            return false;
        }
        known.retain(|earlier| !earlier.is_same_place(origin));
        known.push(origin.clone());
        true
    }

    /// Where a version may be, the newest last; nothing where that was never noted.
    pub(crate) fn of(&self, effect: EffectId) -> &[Origin] {
        self.0.get(&effect).map_or(&[], Vec::as_slice)
    }

    /// Every place but this one.
    pub(crate) fn beside(&self, here: &Origin) -> Vec<Origin> {
        let mut places: Vec<Origin> = Vec::new();
        for origin in self.0.values().flatten().filter(|origin| !origin.is_same_place(here)) {
            if !places.iter().any(|known| known.is_same_place(origin)) {
                places.push(origin.clone());
            }
        }
        places
    }

    pub(crate) fn keep_only(&mut self, wanted: &BTreeSet<EffectId>) {
        self.0.retain(|effect, _| wanted.contains(effect));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn origin(spec: serde_json::Value) -> Origin {
        Origin { generates: true, kind: "PostgreSql".to_owned(), spec }
    }

    #[test]
    fn another_password_is_the_same_place_and_another_host_is_not() {
        let one = origin(json!({"host": "db1", "auth": {"username": "minter"}}));
        assert!(one.is_same_place(&origin(json!({"host": "db1", "auth": {"username": "other"}}))));
        assert!(!one.is_same_place(&origin(json!({"host": "db2", "auth": {"username": "minter"}}))));
        assert!(!one.is_same_place(&Origin { generates: false, ..one.clone() }));
    }

    #[test]
    fn a_version_that_was_tried_at_two_places_may_be_at_both() {
        let (one, two) = (origin(json!({"host": "db1"})), origin(json!({"host": "db2"})));
        let mut origins = Origins::default();
        let effect = EffectId(1);
        assert!(origins.note(effect, &one));
        assert!(!origins.note(effect, &one));
        assert!(origins.note(effect, &two));
        assert!(origins.note(effect, &one), "the last try is the one that counts");
        assert_eq!(origins.of(effect), [two.clone(), one.clone()]);
        assert_eq!(origins.beside(&two), [one]);
        origins.keep_only(&BTreeSet::new());
        assert!(origins.of(effect).is_empty());
    }
}
