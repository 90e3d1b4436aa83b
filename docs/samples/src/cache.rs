//! A credential in memory that is refreshed in the background, with the one before it to fall back on.

use std::sync::{Arc, RwLock};

/// The current credential and the one before it. Readers never wait for a refresh.
pub struct Cached<C> {
    pair: RwLock<(Arc<C>, Option<Arc<C>>)>,
}

impl<C> Cached<C> {
    /// With the first credential.
    pub fn new(first: C) -> Self {
        Self { pair: RwLock::new((Arc::new(first), None)) }
    }

    /// The current one.
    pub fn current(&self) -> Arc<C> {
        self.read().0.clone()
    }

    /// Takes a new one that the background thread read; the current one becomes the fallback.
    pub fn refresh(&self, newer: C) {
        let mut pair = self.pair.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let current = std::mem::replace(&mut pair.0, Arc::new(newer));
        pair.1 = Some(current);
    }

    /// Forgets the fallback. Say "on N+1, N dropped" only after this, and after the connections that were opened with it
    /// are closed.
    pub fn drop_fallback(&self) {
        self.pair.write().unwrap_or_else(std::sync::PoisonError::into_inner).1 = None;
    }

    /// Tries with the current credential; when that is refused, once more with the one before it. Any other failure
    /// is not the credential's and is returned as it is.
    pub fn attempt<T, E>(
        &self,
        mut connect: impl FnMut(&C) -> Result<T, E>,
        refused: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let (current, fallback) = self.read().clone();
        match (connect(&current), fallback) {
            (Err(error), Some(fallback)) if refused(&error) => connect(&fallback),
            (result, _) => result,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, (Arc<C>, Option<Arc<C>>)> {
        self.pair.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_new_credential_falls_back_and_a_dropped_one_does_not_come_back() {
        let cached = Cached::new("old");
        cached.refresh("new");
        let accept_old = |credential: &&str| if *credential == "old" { Ok("in") } else { Err("refused") };
        assert_eq!(cached.attempt(accept_old, |error| *error == "refused"), Ok("in"));
        assert_eq!(
            cached.attempt(|_| Err::<(), _>("no route"), |error| *error == "refused"),
            Err("no route")
        );
        cached.drop_fallback();
        assert_eq!(cached.attempt(accept_old, |error| *error == "refused"), Err("refused"));
    }
}
