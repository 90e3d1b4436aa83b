//! Which values are kept: those that a state names, and no other.
//!
//! A value is kept before the state that names it is committed, and erased after the state that no longer does. What a
//! death leaves in between is erased at the next start.

use std::collections::BTreeSet;

use lifecycle::{CredentialName, EffectId};
use store::StoreError;

use crate::run::Batch;
use crate::world::World;

impl World {
    /// At a start, before anything new is kept.
    pub(crate) async fn erase_leftovers(&self) -> Result<(), StoreError> {
        for (name, effect) in self.means.store.values().await? {
            let named = self.owned.get(&name).is_some_and(|owned| owned.named.contains(&effect));
            if !named {
                tracing::info!(credential = %name, %effect, "erases a value that no version has any more");
                self.means.store.erase_value(&name, effect).await?;
            }
        }
        Ok(())
    }

    /// What the states of a batch no longer name is to be erased once they are committed.
    pub(crate) async fn note_unnamed(&mut self, batch: &mut Batch) -> Result<(), StoreError> {
        for name in &batch.dirty {
            let Some(owned) = self.owned.get_mut(name) else { continue };
            let before = std::mem::replace(&mut owned.named, owned.kept.state.values());
            let unnamed = before.difference(&owned.named);
            batch.forget.extend(unnamed.map(|effect| (name.clone(), *effect)));
        }
        for name in &batch.removed {
            let left = self.means.store.values_of(name).await?;
            batch.forget.extend(left.into_iter().map(|effect| (name.clone(), effect)));
        }
        Ok(())
    }

    /// Whether a value that was just minted has come too late for its version.
    pub(crate) fn is_unnamed(&self, name: &CredentialName, effect: EffectId) -> bool {
        let named: Option<BTreeSet<EffectId>> = self.owned.get(name).map(|owned| owned.kept.state.values());
        named.is_none_or(|named| !named.contains(&effect))
    }
}
