//! How a host becomes one of ours, and stays it.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use protocol::api::EnrolToken;
use protocol::digest::FrameDigest;
use protocol::enrol::{Bundle, EnrolRequest, EnrolResponse, RenewRequest, TokenId};
use protocol::key::EnrolmentSecret;
use protocol::{HostId, UnixMillis, limit};
use serde::{Deserialize, Serialize};
use store::{Audit, HostRow, HostStatus, NewHost, NewToken, StoreError, Value};
use transport::Peer;
use zeroize::Zeroizing;

use crate::authority::{AuthorityError, CsrError, Issued, RequestedKey};
use crate::{AccessError, Identities};

/// The most characters that a host's name or a label may have.
const NAME_CHARS_MAX: usize = 253;
/// How often a host's new address is told in the audit log between two starts of ours. It says it itself, and must not
/// be able to fill the log; the last one that is told says that no more are.
const MOVES_AUDITED_MAX: u32 = 100;
/// The most labels that a host may have.
const LABELS_MAX: usize = 64;

/// Why a host was not enrolled, or no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Unknown, expired, used, or its secret is wrong: one answer, so that nobody learns which.
    #[error(
        "the enrolment token is not good: unknown, expired, or used before; make a new one with `esoctl host enroll-token`"
    )]
    Token,
    /// The applier's keys are not authenticated by the bundle's secret.
    #[error(transparent)]
    Registration(#[from] protocol::enrol::EnrolError),
    /// The certificate request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The applier's key is that of a host that was retired.
    #[error(
        "host {0} was retired; to use the machine again, stop both services there, remove what lies in /var/lib/eso-vm-server/applier and /var/lib/eso-vm-server/server, and enrol it with a new bundle"
    )]
    Retired(HostId),
    /// The address cannot be one.
    #[error("{0:?} is not an address that pushes could reach; write HOST:PORT")]
    Address(String),
    /// The name or a label cannot be one.
    #[error(
        "{0:?} cannot name a host or a label: use 1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, '-', '_', '.' and '/'"
    )]
    Name(String),
    /// Too many labels.
    #[error("a host may have {LABELS_MAX} labels at most, and these are {0}")]
    Labels(usize),
    /// A token must not live longer.
    #[error("a token may live for {} hours at most", limit::TOKEN_LIFE_MS_MAX / 3_600_000)]
    Life,
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The store.
    #[error(transparent)]
    Store(StoreError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] protocol::key::RandomFailed),
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The caller is not an enrolled host.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The certificate request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The request is for another key.
    #[error("a certificate is renewed only for the key that it has")]
    OtherKey,
    /// The address cannot be one.
    #[error("{0:?} is not an address that pushes could reach; write HOST:PORT")]
    Address(String),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the store keeps with a token, encrypted.
#[derive(Serialize, Deserialize)]
struct Kept {
    network: FrameDigest,
    applier: EnrolmentSecret,
    labels: BTreeMap<String, String>,
}

impl Identities {
    /// Issues a token for one host: what root carries there. `control_plane` is the URL that the host will call.
    pub async fn issue_token(
        &self,
        request: &EnrolToken,
        control_plane: &str,
        by: &str,
        now: UnixMillis,
    ) -> Result<Bundle, EnrolError> {
        check_name(&request.name)?;
        check_labels(&request.labels)?;
        let life_ms = request.life_ms.unwrap_or(self.lives.token_ms);
        if life_ms > limit::TOKEN_LIFE_MS_MAX {
            return Err(EnrolError::Life);
        }
        let bundle = Bundle {
            installation: self.installation,
            control_plane: control_plane.to_owned(),
            ca_pem: self.authority.certificate_pem().to_owned(),
            order_key: self.order_key.public(),
            root_key: self.root_key,
            rekeys: self.rekeys,
            token: TokenId::random(),
            expires_at: now.plus_ms(life_ms),
            network_secret: EnrolmentSecret::random()?,
            applier_secret: EnrolmentSecret::random()?,
        };
        let kept = Kept {
            network: bundle.network_secret.fingerprint(),
            applier: bundle.applier_secret.clone(),
            labels: request.labels.clone(),
        };
        let secret = serde_json::to_vec(&kept).map(Zeroizing::new).map_err(|_| EnrolError::Token)?;
        let token = NewToken {
            id: bundle.token.to_string(),
            secret: Value::from(secret),
            host_name: request.name.clone(),
            created_ms: now.0,
            expires_ms: bundle.expires_at.0,
        };
        let subject = format!("token/{}", bundle.token);
        let detail = format!("host {}", request.name);
        self.store
            .issue_token(token, audit(now, by, "enroll_token", subject, detail))
            .await
            .map_err(EnrolError::Store)?;
        Ok(bundle)
    }

    /// Makes a host of whoever has the token, once. Repeated by the same keys, because an answer was lost, it
    /// answers again; anybody else is refused. A host that has lost its certificate comes back with a new token, as the
    /// host that it was: its applier's key signs the registration.
    pub async fn enrol(
        &self,
        request: &EnrolRequest,
        now: UnixMillis,
    ) -> Result<(HostId, EnrolResponse), EnrolError> {
        let token = request.token.to_string();
        let row = self.store.token(&token).await.map_err(EnrolError::Store)?.ok_or(EnrolError::Token)?;
        let kept: Kept = serde_json::from_slice(row.secret.expose()).map_err(|_| EnrolError::Token)?;
        if !request.network_secret.has_fingerprint(&kept.network) || row.expires_ms <= now.0 {
            return Err(EnrolError::Token);
        }
        let keys = request.registration.verify(self.installation, &request.token, &kept.applier)?;
        let csr = RequestedKey::from_pem(&request.csr_pem)?;
        check_address(&request.address).map_err(EnrolError::Address)?;
        let host = keys.host();
        let new = NewHost {
            id: host.to_string(),
            name: row.host_name.clone(),
            labels: kept.labels.clone(),
            address: request.address.clone(),
            verify_key: keys.report_key.0.to_vec(),
            seal_key: keys.sealing_key.0.to_vec(),
            spki: csr.spki().to_string(),
        };
        // Made before the token is consumed, so that a failure here costs nobody a token.
        let issued = self.authority.issue_host(&host, &row.host_name, &csr, now, self.lives.host_ms)?;
        let known = self.store.host(&new.id).await.map_err(EnrolError::Store)?;
        let actor = format!("token:{token}");
        let tell = |action: &str, detail: String| audit(now, &actor, action, format!("host/{host}"), detail);
        let told = match &known {
            None => tell("enroll", format!("{} by token {token}", row.host_name)),
            Some(known) => tell(
                "re_enroll",
                format!("{} by token {token}, with the key {} at {}", known.host.name, new.spki, new.address),
            ),
        };
        match self.store.enrol(&token, new.clone(), now.0, told).await {
            Ok(true) => {}
            Ok(false) => {
                // Read anew: the first try may have been under way until now.
                let now_known = self.store.host(&new.id).await.map_err(EnrolError::Store)?;
                let before = now_known.filter(|row| is_repeated(row, &new)).ok_or(EnrolError::Token)?;
                // The answer was lost, and where it is reached has changed since it asked first.
                if before.host.address != new.address {
                    let told = tell("move", new.address.clone());
                    let moved = self.store.set_host_address(&new.id, new.address, Some(told)).await;
                    moved.map_err(EnrolError::Store)?;
                }
            }
            Err(StoreError::Exists(_)) => return Err(EnrolError::Retired(host)),
            Err(error) => return Err(EnrolError::Store(error)),
        }
        Ok((host, self.answer(issued, now, self.lives.host_ms)))
    }

    /// A new certificate for the host that calls, for the very key with which it calls.
    pub async fn renew(
        &self,
        peer: &Peer,
        request: &RenewRequest,
        now: UnixMillis,
    ) -> Result<(HostId, EnrolResponse), RenewError> {
        let (host, row) = self.host_of(peer).await?;
        let csr = RequestedKey::from_pem(&request.csr_pem)?;
        if csr.spki() != peer.spki {
            return Err(RenewError::OtherKey);
        }
        check_address(&request.address).map_err(RenewError::Address)?;
        if request.address != row.host.address {
            let audit = self.is_told(host).map(|rest| {
                let detail = format!("{}{rest}", request.address);
                audit(now, &format!("host:{host}"), "move", format!("host/{host}"), detail)
            });
            self.store.set_host_address(&row.host.id, request.address.clone(), audit).await?;
        }
        let issued = self.authority.issue_host(&host, &row.host.name, &csr, now, self.lives.host_ms)?;
        Ok((host, self.answer(issued, now, self.lives.host_ms)))
    }

    /// Whether one more move of this host is told, and what is to be said with it.
    fn is_told(&self, host: HostId) -> Option<&'static str> {
        let mut moves = self.moves.lock().unwrap_or_else(PoisonError::into_inner);
        let told = moves.entry(host).or_default();
        if *told == MOVES_AUDITED_MAX {
            return None;
        }
        *told += 1;
        Some(if *told == MOVES_AUDITED_MAX { "; where it moves from now on is not told here" } else { "" })
    }

    fn answer(&self, issued: Issued, now: UnixMillis, life_ms: u64) -> EnrolResponse {
        EnrolResponse {
            chain_pem: issued.chain_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
            renew_at: now.plus_ms((life_ms / 2).min(self.lives.renew_ms)),
            expires_at: issued.expires_at,
        }
    }
}

/// Whether this very host was made with these very keys before.
fn is_repeated(row: &HostRow, new: &NewHost) -> bool {
    row.status == HostStatus::Active
        && row.host.spki == new.spki
        && row.host.verify_key == new.verify_key
        && row.host.seal_key == new.seal_key
}

/// One entry for the audit log.
pub(crate) fn audit(now: UnixMillis, actor: &str, action: &str, subject: String, detail: String) -> Audit {
    Audit { at_ms: now.0, actor: actor.to_owned(), action: action.to_owned(), subject, detail }
}

fn check_name(name: &str) -> Result<(), EnrolError> {
    let characters = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if characters && !name.is_empty() && name.len() <= NAME_CHARS_MAX {
        Ok(())
    } else {
        Err(EnrolError::Name(name.chars().take(80).collect()))
    }
}

/// Checks the labels of a host: how many, and that each key and value is a name. A value may be empty.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), EnrolError> {
    if labels.len() > LABELS_MAX {
        return Err(EnrolError::Labels(labels.len()));
    }
    for (key, value) in labels {
        check_name(key)?;
        if !value.is_empty() {
            check_name(value)?;
        }
    }
    Ok(())
}

/// `HOST:PORT`, where HOST is a name, an IPv4 address or a bracketed IPv6 address that somebody can connect to.
fn check_address(address: &str) -> Result<(), String> {
    let refused = || address.chars().take(80).collect::<String>();
    if let Ok(socket) = address.parse::<std::net::SocketAddr>() {
        return if socket.ip().is_unspecified() || socket.port() == 0 { Err(refused()) } else { Ok(()) };
    }
    let (name, port) = address.rsplit_once(':').ok_or_else(refused)?;
    let good_name = !name.is_empty()
        && name.len() <= NAME_CHARS_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
        && name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    match port.parse::<u16>() {
        Ok(port) if good_name && port > 0 => Ok(()),
        _ => Err(refused()),
    }
}
