//! Stores that a version is delivered to.

use crate::generator::Answer;
use crate::mark::Mark;
use crate::value::SecretValue;

/// What stands in a store.
pub struct Stored {
    /// The value.
    pub value: SecretValue,
    /// The store's number of it.
    pub revision: u64,
    /// Whose it is, where we wrote it and had the time to say so.
    pub mark: Option<Mark>,
}

/// A path of a secret store that versions are delivered to.
pub trait StoreTarget: Send + Sync {
    /// Writes the value, unless it already stands there, provided nobody else wrote since revision `after` (0: nothing
    /// was there). The answer is its revision. Somebody else's value is never overwritten: that is `Refused`.
    fn write<'a>(&'a self, mark: &'a Mark, value: &'a SecretValue, after: u64) -> Answer<'a, u64>;

    /// What stands there now; `None` when nothing does.
    fn read_back(&self) -> Answer<'_, Option<Stored>>;

    /// Destroys one revision and proves it; refused while it is the current one.
    fn destroy(&self, revision: u64) -> Answer<'_, ()>;

    /// Destroys one revision although it is the current one: the credential was deleted, or its first version aborted.
    fn withdraw(&self, revision: u64) -> Answer<'_, ()>;
}
