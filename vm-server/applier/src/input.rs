//! What reaches the applier's one thread.

use std::sync::Arc;

use lifecycle::host::HostEvent;
use lifecycle::{ConsumerName, SetName};
use protocol::Frame;
use protocol::report::Means;
use protocol::reported::{Reply, Statement};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use units::LifeId;

use crate::applications::Speaker;

/// One thing to deal with.
pub(crate) enum Input {
    /// The orders of one push, and where the signed answer goes. No more than there is room for are taken in.
    Push {
        frames: Vec<Frame>,
        answer: oneshot::Sender<(Frame, OwnedSemaphorePermit)>,
        room: OwnedSemaphorePermit,
    },
    /// The control plane's answer to a report.
    Acknowledged { frame: Frame, room: OwnedSemaphorePermit },
    /// The network half, this process, is connected and takes reports here.
    Connected { pid: Option<i32>, reports: watch::Sender<Option<Frame>>, means: Vec<Means> },
    /// The network half is gone.
    Disconnected,
    /// What came of an effect that took its time.
    Outcome { set: SetName, event: HostEvent },
    /// A consumer that was waited for lives another life, or lives at all.
    Appeared { set: SetName, consumer: ConsumerName, life: LifeId },
    /// A consumer cannot be asked for now, or can again.
    Trouble { set: SetName, consumer: ConsumerName, trouble: Option<(&'static str, String)> },
    /// An application spoke on its socket.
    Said { speaker: Arc<Speaker>, statement: Statement, reply: oneshot::Sender<Reply> },
    /// The policy's directory changed.
    PolicyTouched,
    /// Something changed in a directory that holds places or sets.
    PlacesTouched,
    /// A process that was waited for has ended, or readers were seen.
    Stirred,
    /// End, leaving everything as it is.
    Stop,
}
