//! What is shown, one act a module.

pub mod chaos;
pub mod outside;
pub mod rotation;
pub mod unusable;
