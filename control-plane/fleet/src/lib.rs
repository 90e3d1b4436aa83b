//! The push client: orders out, receipts and reports back, with bounded parallelism and backoff.
