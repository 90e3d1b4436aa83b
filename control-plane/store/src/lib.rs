//! Where the control plane keeps its state: SQLite, values encrypted under a key that is elsewhere.
