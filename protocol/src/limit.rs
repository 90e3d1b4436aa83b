//! Every limit of the wire, with its unit in its name. What is over a limit is refused before it is parsed.

/// The content of one file of a set.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// All files of one set together.
pub const SET_BYTES_MAX: usize = 1024 * 1024;
/// Files in one set.
pub const FILES_PER_SET_MAX: usize = 64;
/// Characters of a file's name.
pub const FILE_NAME_CHARS_MAX: usize = 128;
/// Characters of the hint that names a version's user at the backend.
pub const USER_NAME_CHARS_MAX: usize = 256;
/// The payload of one order. A full set grows by a third for base64 twice, once inside and once outside the seal.
pub const ORDER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Orders in one push.
pub const ORDERS_PER_PUSH_MAX: usize = 64;
/// The body of one push: one full set and many small orders.
pub const PUSH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The payload of one report.
pub const REPORT_BYTES_MAX: usize = 1024 * 1024;
/// The payload of one acknowledgement.
pub const ACK_BYTES_MAX: usize = 256 * 1024;
/// Body of an enrolment or renewal, and of its answer.
pub const ENROL_BYTES_MAX: usize = 64 * 1024;
/// An enrolment bundle on disk.
pub const BUNDLE_BYTES_MAX: usize = 64 * 1024;
/// One message on the private socket between the two processes of a host: a push in base64, with a margin.
pub const LOCAL_BYTES_MAX: usize = PUSH_BYTES_MAX / 3 * 4 + 64 * 1024;
/// One line of an application on the application socket.
pub const REPORTED_BYTES_MAX: usize = 4 * 1024;
/// Nesting of arrays and objects in any payload.
pub const JSON_DEPTH_MAX: usize = 16;
/// Sets on one host.
pub const SETS_PER_HOST_MAX: usize = 1024;
/// Dead versions that one order or acknowledgement names for one set. More are named in turns, newest first.
pub const DEAD_PER_SET_MAX: usize = 256;
/// Holders or gaps that one `seal` names as cleared.
pub const CLEARED_MAX: usize = 4096;
/// Receipts in one report: a full push, twice.
pub const RECEIPTS_MAX: usize = 2 * ORDERS_PER_PUSH_MAX;
/// Facts and notices in one report, each.
pub const NOTICES_MAX: usize = 256;
/// Characters of a sentence for people in a report; longer ones are cut by the sender.
pub const SENTENCE_CHARS_MAX: usize = 1024;
/// How long an order may be valid for acceptance.
pub const ORDER_VALIDITY_MS_MAX: u64 = 10 * 60 * 1000;
/// How long an order is valid for acceptance unless told otherwise.
pub const ORDER_VALIDITY_MS: u64 = 2 * 60 * 1000;
/// How far ahead of ours a sender's clock may be.
pub const CLOCK_AHEAD_MS_MAX: u64 = 60 * 1000;
/// How far a host's clock may be off the sender's, either way, for an agreed instant. Beyond it `arm` is refused as
/// `clock_off`, and the host flips when it is told. How long messages travel does not count.
pub const ARM_CLOCK_OFF_MS_MAX: u64 = 1000;
/// How far ahead the instant of an `arm` may lie.
pub const ARM_HORIZON_MS_MAX: u64 = 60 * 1000;
/// Pushes that the network half of a host serves at once; more are told to come back.
pub const PUSHES_AT_ONCE_MAX: usize = 8;
/// Connections that the network half of a host keeps at once.
pub const HOST_CONNECTIONS_MAX: usize = 64;
/// The whole time of one push on the host, from its first byte to its answer.
pub const PUSH_MS_MAX: u64 = 30 * 1000;
/// The time in which a peer must have completed its TLS handshake.
pub const HANDSHAKE_MS_MAX: u64 = 10 * 1000;
/// How long a host keeps an idle connection of the control plane.
pub const IDLE_CONNECTION_MS_MAX: u64 = 10 * 60 * 1000;
/// How long an enrolment token may live.
pub const TOKEN_LIFE_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;
/// The longest pause between two attempts to reach the other end.
pub const RETRY_MS_MAX: u64 = 60 * 1000;
/// How long the applier may take over the orders of one push before the push is answered without it.
pub const APPLIER_MS_MAX: u64 = 20 * 1000;
