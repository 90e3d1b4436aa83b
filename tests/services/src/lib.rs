//! Drives real binaries: services.
