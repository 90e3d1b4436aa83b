//! The privileged half of a host: verifies orders, writes sets, restarts consumers, watches who reads.
