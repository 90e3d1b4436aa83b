//! JSON Schemas of everything that travels, made from the types.

use schemars::{Schema, schema_for};

/// Each payload by its name.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("order", schema_for!(crate::order::OrderPayload)),
        ("report", schema_for!(crate::report::Report)),
        ("ack", schema_for!(crate::ack::Ack)),
        ("bundle", schema_for!(crate::enrol::Bundle)),
        ("registered-keys", schema_for!(crate::enrol::RegisteredKeys)),
        ("enrol-request", schema_for!(crate::enrol::EnrolRequest)),
        ("renew-request", schema_for!(crate::enrol::RenewRequest)),
        ("enrol-response", schema_for!(crate::enrol::EnrolResponse)),
        ("statement", schema_for!(crate::reported::Statement)),
        ("reply", schema_for!(crate::reported::Reply)),
    ]
}
