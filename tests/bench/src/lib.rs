//! Drives real binaries: bench.
