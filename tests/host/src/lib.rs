//! Drives real binaries: host.
