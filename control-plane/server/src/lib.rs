//! The control plane as a process: HTTP API, resources from a directory, metrics.
