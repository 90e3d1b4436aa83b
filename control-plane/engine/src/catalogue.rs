//! What a credential works with: its generator or source and its store targets, made from the resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use backends::{Generator, Secrets, Source, SpecError, StoreTarget};
use lifecycle::TargetId;
use lifecycle::credential::{Authority, Overlap, Policy};
use resources::{Backing, Credential, Reference, Resources, Setting};
use serde::{Deserialize, Serialize};

use crate::stores::StorePlace;

/// Makes backends from the `spec` of their resources.
pub trait Makers: Send + Sync {
    /// A generator of this kind.
    fn generator(&self, kind: &str, spec: &serde_json::Value) -> Result<Arc<dyn Generator>, SpecError>;

    /// A source of this kind.
    fn source(&self, kind: &str, spec: &serde_json::Value) -> Result<Arc<dyn Source>, SpecError>;

    /// A store target of this kind.
    fn store_target(&self, kind: &str, spec: &serde_json::Value) -> Result<Arc<dyn StoreTarget>, SpecError>;
}

/// The real ones.
pub struct Backends {
    secrets: Arc<dyn Secrets>,
}

impl Backends {
    /// Backends that read their own credentials from here.
    pub fn new(secrets: Arc<dyn Secrets>) -> Self {
        Self { secrets }
    }
}

impl Makers for Backends {
    fn generator(&self, kind: &str, spec: &serde_json::Value) -> Result<Arc<dyn Generator>, SpecError> {
        backends::build(kind, spec, self.secrets.clone())
    }

    fn source(&self, kind: &str, spec: &serde_json::Value) -> Result<Arc<dyn Source>, SpecError> {
        backends::build_source(kind, spec, self.secrets.clone())
    }

    fn store_target(&self, kind: &str, spec: &serde_json::Value) -> Result<Arc<dyn StoreTarget>, SpecError> {
        backends::build_store_target(kind, spec, self.secrets.clone())
    }
}

/// A credential's resource with the specs that it names: kept with its state, so that it is served as before when
/// files vanish.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) credential: Credential,
    backing: serde_json::Value,
    stores: BTreeMap<String, serde_json::Value>,
}

/// What a plan becomes.
#[derive(Clone)]
pub(crate) struct Equipment {
    pub(crate) brings: Brings,
}

#[derive(Clone)]
pub(crate) enum Brings {
    Generator(Arc<dyn Generator>),
    Source(Arc<dyn Source>),
}

/// A spec is not one: of which object, and why.
pub(crate) struct Unusable {
    pub(crate) reference: Reference,
    pub(crate) words: String,
}

impl Plan {
    /// The plan of a credential whose references were checked.
    pub(crate) fn of(credential: &Credential, resources: &Resources) -> Option<Self> {
        let spec = |setting: &Setting| setting.spec.clone();
        let backing = match &credential.backing {
            Backing::Generator(reference) => resources.generators.get(reference).map(spec)?,
            Backing::Source(reference) => resources.sources.get(reference).map(spec)?,
        };
        let stores = credential.stores.iter();
        let stores: Option<_> = stores
            .map(|reference| Some((reference.to_string(), resources.stores.get(reference).map(spec)?)))
            .collect();
        Some(Self { credential: credential.clone(), backing, stores: stores? })
    }

    /// The paths that its store targets name.
    pub(crate) fn store_places(&self) -> BTreeMap<TargetId, StorePlace> {
        let place = |reference: &Reference| {
            let spec = self.stores.get(&reference.to_string()).cloned().unwrap_or_default();
            Some((store_target_id(reference).ok()?, StorePlace { kind: reference.kind.clone(), spec }))
        };
        self.credential.stores.iter().filter_map(place).collect()
    }

    /// The spec of its generator or source.
    pub(crate) const fn backing(&self) -> &serde_json::Value {
        &self.backing
    }

    pub(crate) fn equip(&self, makers: &dyn Makers) -> Result<Equipment, Unusable> {
        let reference = self.credential.backing.reference();
        let unusable = |reference: &Reference| {
            let reference = reference.clone();
            move |error: SpecError| Unusable { reference, words: error.words }
        };
        let brings = match &self.credential.backing {
            Backing::Generator(_) => Brings::Generator(
                makers.generator(&reference.kind, &self.backing).map_err(unusable(reference))?,
            ),
            Backing::Source(_) => {
                Brings::Source(makers.source(&reference.kind, &self.backing).map_err(unusable(reference))?)
            }
        };
        // They are made anew for each use; here only what cannot be made is found.
        for reference in &self.credential.stores {
            let spec = self.stores.get(&reference.to_string()).cloned().unwrap_or_default();
            store_target_id(reference).map_err(|words| Unusable { reference: reference.clone(), words })?;
            makers.store_target(&reference.kind, &spec).map_err(unusable(reference))?;
        }
        Ok(Equipment { brings })
    }
}

/// How a store is called among targets.
pub(crate) fn store_target_id(reference: &Reference) -> Result<TargetId, String> {
    TargetId::new(format!("store:{reference}")).map_err(|error| error.to_string())
}

impl Equipment {
    /// What people decided, with what the backend says of itself.
    pub(crate) fn policy(&self, written: &Policy) -> Policy {
        let (overlap, authority) = match &self.brings {
            Brings::Generator(generator) => (generator.overlap(), generator.authority()),
            Brings::Source(_) => (Overlap::Versions, Authority::External),
        };
        Policy { overlap, authority, ..written.clone() }
    }

    pub(crate) fn generator(&self) -> Option<&Arc<dyn Generator>> {
        match &self.brings {
            Brings::Generator(generator) => Some(generator),
            Brings::Source(_) => None,
        }
    }

    pub(crate) fn source(&self) -> Option<&Arc<dyn Source>> {
        match &self.brings {
            Brings::Source(source) => Some(source),
            Brings::Generator(_) => None,
        }
    }
}
