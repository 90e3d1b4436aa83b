//! The floors: the same work with nothing around it.

pub mod apply;
pub mod exchange;
