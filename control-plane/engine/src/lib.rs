//! Drives lifecycle: turns the world into events, commits, and carries effects out.
