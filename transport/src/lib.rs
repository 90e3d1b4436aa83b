//! TLS 1.3 with mutual authentication: configurations, accept loop, identities of peers.
