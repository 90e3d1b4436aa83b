//! Drives real binaries: demo.
