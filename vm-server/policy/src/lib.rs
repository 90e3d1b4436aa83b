//! What a host allows: sets, places, consumers, probes; read whole or not at all.
