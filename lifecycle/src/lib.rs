//! Decides, without I/O, clock or randomness, what happens to a credential.
