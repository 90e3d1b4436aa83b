//! The built-in certificate authority, enrolment and roles.
