//! How an application should read credentials. Each module is one sample of `docs/for-developers.md`, small enough to
//! be written again in another language.

pub mod backoff;
pub mod cache;
pub mod circuit;
pub mod lifetime;
pub mod watch;
