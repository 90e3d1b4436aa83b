//! The main job, live: a control plane, three hosts, four applications that log in all the time, and a judge that
//! reads the protected server's own log.
//!
//! [`launcher`] keeps the processes of one host, [`application`] is what logs in, [`judge`] counts. The programs in
//! `src/bin` are thin.

pub mod application;
pub mod judge;
pub mod launcher;
