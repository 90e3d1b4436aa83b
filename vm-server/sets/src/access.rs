//! Turns the policy's owner and group into numbers.

use host_policy::{Access, Principal};
use nix::unistd::{Group, User};

use crate::error::SetError;

/// Owner, group and mode of a file, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

/// Looks the names up. Whatever the policy leaves open is our own.
pub(crate) fn resolve(access: &Access) -> Result<Ids, SetError> {
    let none = |kind, name: &str| SetError::NoSuchPrincipal { kind, name: name.to_owned() };
    let uid = match &access.owner {
        None => rustix::process::geteuid().as_raw(),
        Some(Principal::Id(id)) => *id,
        Some(Principal::Name(name)) => {
            User::from_name(name).ok().flatten().ok_or_else(|| none("user", name))?.uid.as_raw()
        }
    };
    let gid = match &access.group {
        None => rustix::process::getegid().as_raw(),
        Some(Principal::Id(id)) => *id,
        Some(Principal::Name(name)) => {
            Group::from_name(name).ok().flatten().ok_or_else(|| none("group", name))?.gid.as_raw()
        }
    };
    Ok(Ids { uid, gid, mode: access.mode })
}
