//! Tells systemd that consumers start after us: at boot their sets are there before they read them.
//!
//! systemd asks before it starts anything, and whenever it reads its units again (`systemd.generator(7)`). Only an
//! order is added: who starts at all, and whether we do, stays as it is.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use host_policy::{Consumer, HostPolicy, UnitName};

/// Our own unit, which comes before those of consumers.
const OURS: &str = "eso-vm-applier.service";

/// Writes a drop-in for our unit into `directory`, which systemd forgets before it asks again.
pub(crate) fn write(policy: &HostPolicy, directory: &Path) -> io::Result<()> {
    let consumers = policy.sets.values().flat_map(|set| &set.consumers);
    let units: BTreeSet<&str> = consumers.filter_map(Consumer::unit).map(UnitName::as_str).collect();
    if units.is_empty() {
        return Ok(());
    }
    let mut text = String::from("[Unit]\n");
    for unit in units {
        text.push_str("Before=");
        text.push_str(unit);
        text.push('\n');
    }
    let drop_ins = directory.join(format!("{OURS}.d"));
    fs::create_dir_all(&drop_ins)?;
    fs::write(drop_ins.join("consumers.conf"), text)
}
