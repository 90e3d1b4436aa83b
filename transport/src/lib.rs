//! TLS 1.3 between our own processes: configurations, the accept loop, and who the peer is.
//!
//! What it never does: speak without TLS, speak an older TLS, resume a session (a resumed session carries the old
//! client certificate without a new check), or trust a certificate because it is well formed. A key exchange with
//! X25519MLKEM768 is preferred, so that traffic recorded today cannot be read by a quantum computer later.
//!
//! [`ServerTls`] and [`serve`] are the listening side; [`client_config`] and [`http_client`] the calling one.
//! Certificates are short-lived and have no revocation lists: a connection ends when its peer's certificate does,
//! and all of them end when the trust changes.

mod backoff;
mod client;
mod identity;
pub mod names;
mod peer;
mod serve;
mod tls;

pub use backoff::Backoff;
pub use client::{ClientTlsError, Names, client_config, http_client};
pub use identity::{IdentityError, TlsIdentity, Trust, TrustError};
pub use peer::{InvalidSpki, Peer, PeerError, Spki};
pub use serve::{Connection, Limits, ServeError, serve};
pub use tls::{Clients, ServerTls, ServerTlsError, install_provider, provider};
