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
