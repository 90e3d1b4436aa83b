//! However long a life somebody asks for, and whenever: it is short, and it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use identity::{Identities, Lives};
use protocol::api::{EnrolToken, NewOperator, OperatorProof, Role};
use protocol::{UnixMillis, limit};
use store::{KeyEncryptionKey, Store};

const NOW: u64 = 1_800_000_000_000;

async fn knows(identities: &Identities, token: &str, at: UnixMillis) -> bool {
    identities.authenticate(None, Some(token), at).await.is_ok()
}

#[tokio::test]
async fn no_life_that_anybody_asks_for_is_eternal_or_longer_than_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let store =
        Store::open(directory.path().join("eso.db"), KeyEncryptionKey::generate().unwrap()).await.unwrap();
    Identities::init(&store, None, UnixMillis(NOW)).await.unwrap();
    let identities = Identities::open(store, Lives::default()).await.unwrap();
    let lives = identities.lives();
    let (token_max, operator_max) = (limit::TOKEN_LIFE_MS_MAX, lives.operator_ms_max);
    let mut issued = 0;
    for now in [0, NOW, u64::MAX - operator_max, u64::MAX - 1, u64::MAX].map(UnixMillis) {
        for life_ms in
            [0, 1, 1000, token_max, token_max + 1, operator_max, operator_max + 1, u64::MAX / 2, u64::MAX]
        {
            let what = format!("a life of {life_ms} ms from {}", now.0);
            let name = format!("n{issued}-{life_ms}");
            let token = EnrolToken { name: name.clone(), labels: BTreeMap::new(), life_ms: Some(life_ms) };
            let bundle = identities.issue_token(&token, "https://eso.test:8443", "operator:ann", now).await;
            assert!(bundle.is_err() || life_ms <= token_max, "{what} was given to a token");
            if let Ok(bundle) = bundle {
                assert!(bundle.expires_at.ms_since(now) <= life_ms, "{what} became longer");
            }
            let new =
                NewOperator { name, role: Role::Viewer, proof: OperatorProof::Token, life_ms: Some(life_ms) };
            let operator = identities.add_operator(&new, "operator:ann", now).await;
            assert!(operator.is_err() || life_ms <= operator_max, "{what} was given to an operator");
            let Ok(operator) = operator else { continue };
            issued += 1;
            let token = operator.token.unwrap();
            let end = now.plus_ms(life_ms);
            assert!(!knows(&identities, &token, end).await, "{what} goes on at its end");
            assert!(!knows(&identities, &token, UnixMillis(u64::MAX)).await, "{what} is eternal");
            // Beyond what the store counts to, it may end early and never late.
            if end.0 > now.0 && i64::try_from(end.0).is_ok() {
                assert!(knows(&identities, &token, UnixMillis(end.0 - 1)).await, "{what} ended early");
            }
        }
    }
    assert!(issued > 10, "only {issued} were given");
}
