//! What machines need, and what is missing here.

use std::path::Path;

/// Debian packages, each with a path that it brings.
pub const PACKAGES: [(&str, &str); 2] =
    [("systemd-container", "/usr/bin/systemd-nspawn"), ("mmdebstrap", "/usr/bin/mmdebstrap")];

/// What is missing here, in words for a person. Nothing is: machines can be booted.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("booting a machine needs root".to_owned());
    }
    let missing: Vec<_> =
        PACKAGES.iter().filter(|(_, brings)| !Path::new(brings).exists()).map(|(name, _)| *name).collect();
    (!missing.is_empty()).then(|| format!("apt-get install {}", missing.join(" ")))
}
