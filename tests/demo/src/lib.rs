//! The main job, live: a control plane, three hosts, four applications that log in all the time, and a judge that
//! reads the protected server's own log.
//!
//! [`scene`] starts everything, [`acts`] play, [`narrator`] tells what the control plane does. [`launcher`] keeps the
//! processes of one host, [`application`] is what logs in, [`judge`] counts. The programs in `src/bin` are thin.

pub mod acts;
pub mod application;
pub mod control;
pub mod host;
pub mod interrupt;
pub mod judge;
pub mod launcher;
pub mod naive;
pub mod narrator;
pub mod programs;
pub mod protected;
pub mod scene;
pub mod terminal;
pub mod told;
