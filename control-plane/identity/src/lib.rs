//! Who is who in an installation: the built-in certificate authority, enrolment of hosts, operators and roles.
//!
//! The authority's key and the order key lie in the store, encrypted under a key that does not. Everything here is
//! bound to keys, not to names: a host may renew only with the very key that its certificate has, an operator's
//! certificate counts only while the store has its key, and a token is consumed in the transaction that makes the
//! host. It never sees a credential's value, and never reads a clock: `now` is a parameter.

mod access;
mod authority;
mod enrolment;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use protocol::{HostId, InstallationId, SigningKey, TrustAnchor, VerifyingKey};
use store::{Store, StoreError, Value};
use transport::{Trust, TrustError};

pub use access::{AccessError, Caller, Operator, OperatorError};
pub use authority::{Authority, AuthorityError, CsrError};
pub use enrolment::{EnrolError, RenewError, check_labels};

/// How long things live, in milliseconds.
#[derive(Debug, Clone)]
pub struct Lives {
    /// A host's certificate.
    pub host_ms: u64,
    /// After this time it asks for the next one, or at half of its life: where it is reached is told with that.
    pub renew_ms: u64,
    /// The control plane's own certificate; made anew at half of it.
    pub own_ms: u64,
    /// An operator's certificate or token, unless asked for another.
    pub operator_ms: u64,
    /// The longest that an operator may ask for.
    pub operator_ms_max: u64,
    /// An enrolment token, unless asked for another.
    pub token_ms: u64,
}

const HOUR_MS: u64 = 60 * 60 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;

impl Default for Lives {
    fn default() -> Self {
        Self {
            host_ms: 30 * DAY_MS,
            renew_ms: 12 * HOUR_MS,
            own_ms: 7 * DAY_MS,
            operator_ms: 90 * DAY_MS,
            operator_ms_max: 366 * DAY_MS,
            token_ms: HOUR_MS,
        }
    }
}

/// Why identities cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentitiesError {
    /// The store said so.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `init` was not run on this data directory, or not to its end.
    #[error("found no {0} in the store; run `eso-control-plane init` on this data directory first")]
    Missing(&'static str),
    /// Stored bytes are not what they should be.
    #[error("failed to read the stored {0}; restore a backup")]
    Damaged(&'static str),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The authority's certificate is no trust anchor.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] protocol::key::RandomFailed),
}

const CA_KEY: &str = "ca_key";
const CA_CERTIFICATE: &str = "ca_certificate";
const ORDER_KEY: &str = "order_key";
const ROOT_KEY: &str = "root_key";
const REKEYS: &str = "rekeys";

/// Everything that tells who is who.
pub struct Identities {
    store: Store,
    installation: InstallationId,
    authority: Authority,
    order_key: Arc<SigningKey>,
    root_key: Option<VerifyingKey>,
    rekeys: u64,
    lives: Lives,
    /// How many moves of each host the audit log has since the start.
    moves: Mutex<BTreeMap<HostId, u32>>,
}

impl Identities {
    /// Makes the authority and the order key, where the store has none yet: running it twice changes nothing.
    /// `root_key` is the public half of an offline key that may change the order key later.
    pub async fn init(
        store: &Store,
        root_key: Option<VerifyingKey>,
        now: protocol::UnixMillis,
    ) -> Result<(), IdentitiesError> {
        if store.own_key(ORDER_KEY).await?.is_none() {
            let seed = SigningKey::generate()?.expose_seed();
            let seed = seed.map_err(|_| IdentitiesError::Damaged("order key"))?;
            store.put_own_key(ORDER_KEY, Value::new(seed.to_vec())).await?;
        }
        if let Some(root_key) = root_key {
            store.set_setting(ROOT_KEY, root_key.to_string()).await?;
        }
        // The certificate is written last and is what `open` asks for; a key without one belongs to an `init`
        // that was interrupted, and gets its certificate now.
        if store.setting(CA_CERTIFICATE).await?.is_none() {
            let key = if let Some(key) = store.own_key(CA_KEY).await? {
                key
            } else {
                let key = Authority::generate_key()?;
                store.put_own_key(CA_KEY, Value::new(key.to_vec())).await?;
                Value::new(key.to_vec())
            };
            let certificate = Authority::certify(store.installation(), key.expose(), now)?;
            store.set_setting(CA_CERTIFICATE, certificate).await?;
        }
        Ok(())
    }

    /// Opens what [`Identities::init`] made.
    pub async fn open(store: Store, lives: Lives) -> Result<Self, IdentitiesError> {
        let missing = IdentitiesError::Missing;
        let certificate = store.setting(CA_CERTIFICATE).await?.ok_or(missing("certificate authority"))?;
        let key = store.own_key(CA_KEY).await?.ok_or(missing("certificate authority's key"))?;
        let authority = Authority::open(store.installation(), key.expose(), certificate)?;
        let seed = store.own_key(ORDER_KEY).await?.ok_or(missing("order key"))?;
        let seed: &[u8; 32] = seed.expose().try_into().map_err(|_| IdentitiesError::Damaged("order key"))?;
        let order_key = SigningKey::from_seed(seed).map_err(|_| IdentitiesError::Damaged("order key"))?;
        let root_key = match store.setting(ROOT_KEY).await? {
            Some(text) => Some(text.parse().map_err(|_| IdentitiesError::Damaged("root key"))?),
            None => None,
        };
        let rekeys = match store.setting(REKEYS).await? {
            Some(text) => text.parse().map_err(|_| IdentitiesError::Damaged("number of rekeys"))?,
            None => 0,
        };
        let installation = InstallationId(store.installation());
        Ok(Self {
            store,
            installation,
            authority,
            order_key: Arc::new(order_key),
            root_key,
            rekeys,
            lives,
            moves: Mutex::default(),
        })
    }

    /// Which installation.
    pub const fn installation(&self) -> InstallationId {
        self.installation
    }

    /// Signs orders and acknowledgements.
    pub fn order_key(&self) -> Arc<SigningKey> {
        self.order_key.clone()
    }

    /// What hosts are to trust.
    pub fn trust_anchor(&self) -> TrustAnchor {
        TrustAnchor {
            installation: self.installation,
            rekeys: self.rekeys,
            order_key: self.order_key.public(),
            root_key: self.root_key,
        }
    }

    /// The authority itself.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// How long things live.
    pub const fn lives(&self) -> &Lives {
        &self.lives
    }

    /// Trusts whoever the authority signed; what they may do is asked at each request.
    pub fn trust(&self) -> Result<Trust, TrustError> {
        Trust::from_pem(self.authority.certificate_pem())
    }
}
