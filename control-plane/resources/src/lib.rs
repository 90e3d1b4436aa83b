//! The Kubernetes-shaped resources that people write: Credential, generators, sources, targets.
