//! Writes sets so that a reader finds a whole version, and only the one it should.
