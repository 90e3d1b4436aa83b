//! Who mints versions, proves that they work, and revokes them.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lifecycle::credential::{Authority, Overlap};
use lifecycle::id::EffectId;

use crate::failure::Failure;
use crate::mark::Mark;
use crate::value::SecretValue;

/// What a backend answers, later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// Something at a backend that carries our mark.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Marked {
    /// Whose it is.
    pub mark: Mark,
    /// What it is called there, for people.
    pub name: String,
}

/// Mints versions, proves that they work, and revokes them.
///
/// Everything may be asked twice, and after a crash in its middle: what was done already is found done. Nothing here
/// keeps state of its own; all deadlines are inside.
pub trait Generator: Send + Sync {
    /// How many versions this backend can hold at once.
    fn overlap(&self) -> Overlap;

    /// What this backend can do about an old version.
    fn authority(&self) -> Authority;

    /// Finds out, by trying it on something thrown away, whether we may mint *and* revoke; otherwise says exactly
    /// what is missing. The mark names what is thrown away, should we die on the way.
    fn preflight<'a>(&'a self, mark: &'a Mark) -> Answer<'a, ()>;

    /// Finds out whether a version can be revoked that was there before us, and changes nothing: what [`Self::preflight`]
    /// throws away says nothing of it. Asked of every version that is alive, before one is minted that is to replace it.
    fn try_revoking<'a>(&'a self, _: EffectId, _: &'a SecretValue) -> Answer<'a, ()> {
        async { Ok(()) }.boxed()
    }

    /// The value that we choose for this effect, to be stored before [`Self::mint`] is asked. Empty where the
    /// backend chooses. Drawn at random: call it once and keep it.
    fn new_value(&self, effect: EffectId) -> Result<SecretValue, Failure>;

    /// Makes the version known to the backend. `None`: `chosen` is the value. `Some`: the backend chose, and this is
    /// the value, the same one each time it is asked for the same effect.
    fn mint<'a>(&'a self, mark: &'a Mark, chosen: &'a SecretValue) -> Answer<'a, Option<SecretValue>>;

    /// Proves by a login that the version works.
    fn verify<'a>(&'a self, effect: EffectId, value: &'a SecretValue) -> Answer<'a, ()>;

    /// How many sessions the backend shows of the version; `None` where it cannot tell.
    fn sessions<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, Option<u32>>;

    /// Ends the backend's sessions of the version.
    fn end_sessions<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, ()>;

    /// Revokes the version and proves that a login is refused afterwards. Without the value (an orphan) the proof is
    /// that the backend does not know it any more.
    fn revoke<'a>(&'a self, effect: EffectId, value: Option<&'a SecretValue>) -> Answer<'a, ()>;

    /// Everything of this generator at the backend that carries a mark of this installation, of whatever epoch.
    fn orphans<'a>(&'a self, installation: &'a str) -> Answer<'a, Vec<Marked>>;
}
