//! Stores that somebody else rotates.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::generator::Answer;
use crate::value::SecretValue;

/// A value as it stands in a store.
#[derive(Clone)]
pub struct Snapshot {
    /// The value.
    pub value: SecretValue,
    /// The store's own number of it, where it counts.
    pub revision: Option<u64>,
}

/// What a source tells.
pub enum Notice {
    /// A value that differs from the one told before; the first one tells what stands there now.
    Value(Snapshot),
    /// The store does not answer, or what it holds cannot be used: the last good value stays.
    Unavailable(Failure),
    /// The store answers again, with the value told before.
    Available,
}

/// What retiring an old version means at a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retiring {
    /// Whoever rotates is told that the old one is safe to delete.
    #[default]
    Notify,
    /// We destroy that version in the store.
    DestroyVersion,
    /// Nothing.
    None,
}

/// What became of a version that was to be destroyed in its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destroyed {
    /// It is not there any more.
    Gone,
    /// It is what stands there now, and whoever owns the source decides when that ends. In words: what is left, where.
    Left(String),
}

/// A store that somebody else rotates: watched, and asked again whenever somebody says so.
pub trait Source: Send + Sync {
    /// What retiring an old version means here.
    fn retiring(&self) -> Retiring;

    /// The value that stands there now.
    fn current(&self) -> Answer<'_, Snapshot>;

    /// The value that stands there now, then every other one as it comes. Ends never; dropping it ends the watching.
    /// While the store is silent it is asked again after at most a minute, and at once on [`Self::refresh`].
    fn changes(self: Arc<Self>) -> BoxStream<'static, Notice>;

    /// Look now, whatever the waiting.
    fn refresh(&self);

    /// Destroys one version in the store, where it keeps versions; never the current one. Done twice does no harm.
    fn destroy(&self, revision: u64) -> Answer<'_, Destroyed>;
}
