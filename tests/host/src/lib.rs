//! Drives real binaries on a real systemd host of its own, installed from the package.
