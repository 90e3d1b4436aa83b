//! The Kubernetes-shaped resources that people write: Credential, generators, sources, targets.
//!
//! [`load`] reads a directory of YAML files, each whole or not at all: a file with a fault stops nothing else and is
//! reported with file, line and, for an unknown key, the nearest known one. What was written and what was validated
//! are separate types; only the validated ones leave this crate.
//!
//! Nothing here asks a backend, resolves a secret or reads a file that is not a resource. The `spec` of a generator,
//! source or store is handed on as it is: the backend knows its own keys.

pub mod credential;
pub mod defaults;
pub mod duration;
pub mod load;
pub mod machine;
pub mod template;

pub use credential::{Backing, Credential, First, Hosts, Reference};
pub use defaults::{Default, defaults};
pub use load::{Fault, Resources, Setting, load};
pub use machine::{Condition, VirtualMachine};
pub use template::{Template, TemplateError};

/// Group and version of our own kinds.
pub const CREDENTIAL_API: &str = "eso.external-secrets.io/v1alpha1";
/// Group and version of generators.
pub const GENERATOR_API: &str = "generators.external-secrets.io/v1alpha1";
/// Group and version of sources.
pub const SOURCE_API: &str = "sources.external-secrets.io/v1alpha1";
/// Group and version of targets that are no hosts of ours, and of `VirtualMachine`.
pub const TARGET_API: &str = "target.external-secrets.io/v1alpha1";
