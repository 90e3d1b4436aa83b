//! The half of a host that faces the network: mTLS push API, enrolment, passing on reports.
