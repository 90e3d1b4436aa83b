//! Who calls: a host by its certificate, an operator or scraper by certificate or token.

use protocol::api::{NewOperator, OperatorIssued, OperatorProof, OperatorView, Role};
use protocol::{HostId, UnixMillis};
use store::{HostRow, HostStatus, StoreError};
use transport::{Peer, names};
use zeroize::Zeroizing;

use crate::Identities;
use crate::authority::{AuthorityError, CsrError, RequestedKey};
use crate::enrolment::audit;

/// What a token begins with, so that a scanner finds one that leaked.
const TOKEN_PREFIX: &str = "eso_op_";
/// The most characters that an operator's name may have.
const NAME_CHARS_MAX: usize = 64;

/// Why nobody, or not this one, is let in.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Nothing was shown.
    #[error("this needs an identity")]
    Nobody,
    /// What was shown is not known, or not any more: one answer, so that nobody learns which.
    #[error("this identity is not known here, has expired, or was revoked")]
    Unknown,
    /// The host was retired.
    #[error("host {0} was retired")]
    Retired(HostId),
    /// The certificate is a host's, but not for the key that the host renews with.
    #[error("host {0} calls with another key than the one it enrolled with")]
    OtherKey(HostId),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an operator was not made.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The name cannot be one.
    #[error(
        "{0:?} cannot name an operator: use 1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, '-', '_', '.' and '@'"
    )]
    Name(String),
    /// It would live too long.
    #[error("an identity may live for {0} days at most")]
    Life(u64),
    /// The certificate request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system gave no random bytes.
    #[error("failed to get random bytes from the operating system")]
    Random,
}

/// An operator or scraper who proved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Random.
    pub id: String,
    /// What people call them.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Until when.
    pub expires_at: UnixMillis,
}

/// Somebody who proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An enrolled host.
    Host(HostId),
    /// An operator or scraper.
    Operator(Operator),
}

impl Caller {
    /// For the audit log.
    pub fn actor(&self) -> String {
        match self {
            Self::Host(host) => format!("host:{host}"),
            Self::Operator(operator) => format!("operator:{}", operator.name),
        }
    }
}

impl Identities {
    /// Who calls, by the certificate of the connection or by a bearer token. With both, both must be the caller's
    /// own, and the token counts: a token must not be usable over a stranger's connection.
    pub async fn authenticate(
        &self,
        peer: Option<&Peer>,
        bearer: Option<&str>,
        now: UnixMillis,
    ) -> Result<Caller, AccessError> {
        let by_certificate = match peer {
            None => None,
            Some(peer) => Some(self.by_certificate(peer, now).await?),
        };
        match (by_certificate, bearer) {
            (None, None) => Err(AccessError::Nobody),
            (Some(caller), None) => Ok(caller),
            (Some(Caller::Host(_)), Some(_)) => Err(AccessError::Unknown),
            (_, Some(token)) => Ok(Caller::Operator(self.by_token(token, now).await?)),
        }
    }

    async fn by_certificate(&self, peer: &Peer, now: UnixMillis) -> Result<Caller, AccessError> {
        let host_prefix = names::host_uri(self.installation, "");
        if peer.uris.iter().any(|uri| uri.starts_with(&host_prefix)) {
            return Ok(Caller::Host(self.host_of(peer).await?.0));
        }
        let proof = store::OperatorProof::CertificateKey(peer.spki.to_string());
        let row = self.store.operator(proof, now.0).await?.ok_or(AccessError::Unknown)?;
        if !peer.uris.contains(&names::operator_uri(self.installation, &row.id)) {
            return Err(AccessError::Unknown);
        }
        Ok(Caller::Operator(known(row)?))
    }

    async fn by_token(&self, token: &str, now: UnixMillis) -> Result<Operator, AccessError> {
        let digest = digest(token);
        let proof = store::OperatorProof::TokenDigest(digest.clone());
        let row = self.store.operator(proof, now.0).await?.ok_or(AccessError::Unknown)?;
        // The lookup compared digests, whose bytes nobody can choose; this compares them in constant time too.
        let stored = match &row.proof {
            store::OperatorProof::TokenDigest(stored) => stored.as_bytes(),
            store::OperatorProof::CertificateKey(_) => return Err(AccessError::Unknown),
        };
        if aws_lc_rs::constant_time::verify_slices_are_equal(stored, digest.as_bytes()).is_err() {
            return Err(AccessError::Unknown);
        }
        known(row)
    }

    /// The host that calls with this certificate: enrolled, not retired, and with the key that it enrolled with.
    pub(crate) async fn host_of(&self, peer: &Peer) -> Result<(HostId, HostRow), AccessError> {
        let prefix = names::host_uri(self.installation, "");
        let host: HostId = peer
            .uris
            .iter()
            .find_map(|uri| uri.strip_prefix(&prefix))
            .and_then(|id| id.parse().ok())
            .ok_or(AccessError::Unknown)?;
        let row = self.store.host(&host.to_string()).await?.ok_or(AccessError::Unknown)?;
        if row.status == HostStatus::Retired {
            return Err(AccessError::Retired(host));
        }
        if row.host.spki != peer.spki.to_string() {
            return Err(AccessError::OtherKey(host));
        }
        Ok((host, row))
    }

    /// Somebody new. A token is shown once and kept as a digest; of a certificate only the key's digest is kept.
    pub async fn add_operator(
        &self,
        request: &NewOperator,
        by: &str,
        now: UnixMillis,
    ) -> Result<OperatorIssued, OperatorError> {
        check_name(&request.name)?;
        let life_ms = request.life_ms.unwrap_or(self.lives.operator_ms);
        if life_ms > self.lives.operator_ms_max {
            return Err(OperatorError::Life(self.lives.operator_ms_max / 86_400_000));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let (proof, certificate, token) = match &request.proof {
            OperatorProof::Certificate { csr } => {
                let key = RequestedKey::from_pem(csr)?;
                let issued = self.authority.issue_operator(&id, &request.name, &key, now, life_ms)?;
                let proof = store::OperatorProof::CertificateKey(key.spki().to_string());
                (proof, Some(issued.chain_pem), None)
            }
            OperatorProof::Token => {
                let mut random = Zeroizing::new([0; 32]);
                aws_lc_rs::rand::fill(&mut *random).map_err(|_| OperatorError::Random)?;
                let token = format!("{TOKEN_PREFIX}{}", *Zeroizing::new(hex::encode(*random)));
                (store::OperatorProof::TokenDigest(digest(&token)), None, Some(token))
            }
        };
        let row = store::Operator {
            id,
            name: request.name.clone(),
            role: role_word(request.role).to_owned(),
            proof,
            created_ms: now.0,
            expires_ms: now.plus_ms(life_ms).0,
            revoked_ms: None,
        };
        let operator = view(&row).ok_or(OperatorError::Random)?;
        let detail = format!("{} as {}", operator.name, row.role);
        let audit = audit(now, by, "operator_add", format!("operator/{}", row.id), detail);
        self.store.add_operator(row, audit).await?;
        Ok(OperatorIssued { operator, certificate, token })
    }

    /// Everybody who was ever let in.
    pub async fn operators(&self) -> Result<Vec<OperatorView>, StoreError> {
        Ok(self.store.operators().await?.iter().filter_map(view).collect())
    }

    /// Ends an identity at once, unless it is the last good admin: nobody could let anybody in any more. False when
    /// there is none of that id, or it ended before.
    pub async fn revoke_operator(&self, id: &str, by: &str, now: UnixMillis) -> Result<bool, StoreError> {
        let audit = audit(now, by, "operator_revoke", format!("operator/{id}"), String::new());
        self.store.revoke_operator(id, role_word(Role::Admin), now.0, audit).await
    }
}

fn known(row: store::Operator) -> Result<Operator, AccessError> {
    let role = role_of(&row.role).ok_or(AccessError::Unknown)?;
    Ok(Operator { id: row.id, name: row.name, role, expires_at: UnixMillis(row.expires_ms) })
}

fn view(row: &store::Operator) -> Option<OperatorView> {
    Some(OperatorView {
        id: row.id.clone(),
        name: row.name.clone(),
        role: role_of(&row.role)?,
        proof: match row.proof {
            store::OperatorProof::CertificateKey(_) => "certificate".to_owned(),
            store::OperatorProof::TokenDigest(_) => "token".to_owned(),
        },
        created_at: UnixMillis(row.created_ms),
        expires_at: UnixMillis(row.expires_ms),
        revoked_at: row.revoked_ms.map(UnixMillis),
    })
}

const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Scraper => "scraper",
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

fn role_of(word: &str) -> Option<Role> {
    [Role::Scraper, Role::Viewer, Role::Operator, Role::Admin]
        .into_iter()
        .find(|role| role_word(*role) == word)
}

fn digest(token: &str) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes()))
}

fn check_name(name: &str) -> Result<(), OperatorError> {
    let characters = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c));
    if characters && !name.is_empty() && name.len() <= NAME_CHARS_MAX {
        Ok(())
    } else {
        Err(OperatorError::Name(name.chars().take(80).collect()))
    }
}
