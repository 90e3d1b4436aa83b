//! The names in certificates: who somebody is within one installation.

use std::fmt::Display;

/// A host: `spiffe://INSTALLATION/host/HOSTID`.
pub fn host_uri(installation: impl Display, host: impl Display) -> String {
    format!("spiffe://{installation}/host/{host}")
}

/// The control plane, to hosts and to callers: `spiffe://INSTALLATION/control-plane`.
pub fn control_plane_uri(installation: impl Display) -> String {
    format!("spiffe://{installation}/control-plane")
}

/// An operator: `spiffe://INSTALLATION/operator/ID`.
pub fn operator_uri(installation: impl Display, operator: impl Display) -> String {
    format!("spiffe://{installation}/operator/{operator}")
}

/// A name to put into the URL of a push, so that one client with checked names serves a whole fleet: the resolver
/// maps it to the host's address, and the host's certificate carries it. A DNS label has at most 63 characters,
/// so the 64 hex digits of a host are two.
pub fn host_dns(host: impl Display) -> String {
    let host = host.to_string();
    let (first, second) = host.split_at_checked(host.len() / 2).unwrap_or((&host, ""));
    format!("{first}.{second}.host.eso.internal")
}
