//! Drives real binaries: fleet.
