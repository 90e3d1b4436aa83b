//! What the process gives up before it listens. Must be called before any other thread exists.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use protocol::report::{Means, sentence};

/// What names, time and certificates of the system need to be read for.
const READABLE: &[&str] = &["/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/dev/urandom"];

/// Gives up new privileges, and every file but those beneath `writable` and what resolving names needs. Says what
/// worked; nothing here is fatal, since an older kernel is no reason to deliver no credentials.
pub fn confine(readable: &[PathBuf], writable: &[PathBuf]) -> Vec<Means> {
    vec![no_new_privileges(), landlock(readable, writable)]
}

fn no_new_privileges() -> Means {
    let result = nix::sys::prctl::set_no_new_privs();
    Means {
        name: "no_new_privs".to_owned(),
        in_use: result.is_ok(),
        detail: match result {
            Ok(()) => "the network half can gain no privilege".to_owned(),
            Err(error) => sentence(&format!("failed to give up new privileges: {error}")),
        },
    }
}

fn landlock(readable: &[PathBuf], writable: &[PathBuf]) -> Means {
    let (in_use, detail) = match restrict(readable, writable) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::FullyEnforced, .. }) => {
            (true, "the network half reaches its own files only".to_owned())
        }
        Ok(RestrictionStatus { ruleset: RulesetStatus::PartiallyEnforced, .. }) => {
            (true, "the network half reaches its own files only, as far as this kernel can tell".to_owned())
        }
        Ok(_) => {
            (false, "this kernel has no landlock (Linux 5.13); only the unit's sandbox confines".to_owned())
        }
        Err(error) => (false, sentence(&format!("failed to confine with landlock: {error}"))),
    };
    Means { name: "landlock".to_owned(), in_use, detail }
}

fn restrict(readable: &[PathBuf], writable: &[PathBuf]) -> Result<RestrictionStatus, RulesetError> {
    let abi = ABI::V5;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    for path in READABLE.iter().map(Path::new).chain(readable.iter().map(PathBuf::as_path)) {
        ruleset = allow(ruleset, path, AccessFs::from_read(abi))?;
    }
    for path in writable {
        ruleset = allow(ruleset, path, AccessFs::from_all(abi) & !AccessFs::Execute)?;
    }
    ruleset.restrict_self()
}

/// What does not exist needs no permission.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(descriptor) = PathFd::new(path) else { return Ok(ruleset) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V5) };
    ruleset.add_rule(PathBeneath::new(descriptor, access))
}
