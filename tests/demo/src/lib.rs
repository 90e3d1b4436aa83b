//! The main job, live: a control plane, three hosts, four applications that log in all the time, and a judge that
//! reads the protected server's own log.
//!
//! [`scene`] starts everything from the documented [`examples`], [`acts`] play, [`narrator`] tells what the control plane
//! does, [`footer`] what the applications do. [`launcher`] keeps the processes of one host, [`application`] is what logs in,
//! [`judge`] counts, [`search`] looks for values where none may be, [`summary`] has the figures. [`keep`] leaves it running.
//! [`systemd`] is the same on real systemd hosts. [`login_server`] stands in where there is no PostgreSQL. The programs in `src/bin` are thin.

pub mod acts;
pub mod application;
pub mod control;
pub mod examples;
pub mod footer;
pub mod host;
pub mod https;
pub mod interrupt;
pub mod judge;
pub mod keep;
pub mod launcher;
pub mod login;
pub mod login_server;
pub mod naive;
pub mod narrator;
pub mod programs;
pub mod protected;
pub mod scene;
pub mod search;
pub mod summary;
pub mod systemd;
pub mod terminal;
pub mod told;
