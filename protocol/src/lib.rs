//! What the two ends say to each other: signed orders and reports, sealed values, API types, limits.
