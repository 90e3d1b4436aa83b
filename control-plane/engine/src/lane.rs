//! The way of orders to one host: the newest wish for it, sent until a report shows what came of it.
//!
//! An order is signed anew at each sending, so that its expiry and the instant of an `arm` are right, and sealed anew.
//! What was sent is sent again after a pause that grows, and at once when the host returns.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleet::HostAddress;
use lifecycle::{CredentialName, EffectId, Epoch, Millis, Order, OrderKind, SetName};
use protocol::order::{Ask, Body, OrderPayload, SetOrder};
use protocol::{Frame, HostId, InstallationId, SealingKey, SigningKey, UnixMillis, limit};
use store::Store;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::Clock;
use crate::handle::Message;
use crate::metrics::Metrics;
use crate::road::Road;
use crate::value::{Content, ContentError};

/// The pause before something that was sent is sent again; it doubles.
const RESEND_FIRST: Duration = Duration::from_secs(2);
/// The longest such pause.
const RESEND_MAX: Duration = Duration::from_mins(1);
/// The pause after a push that failed; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest such pause; a notice that the host is back cuts it short.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What is wanted of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    Order { set: SetName, order: Order, value: Option<EffectId>, at: Option<Millis> },
    Ask { set: SetName, epoch: Epoch, question: u64 },
}

struct Item {
    credential: CredentialName,
    wanted: Wanted,
    /// When it goes out next; none is now.
    again: Option<Instant>,
    pause: Duration,
}

/// What every lane needs.
pub(crate) struct Post {
    pub(crate) installation: InstallationId,
    pub(crate) order_key: Arc<SigningKey>,
    pub(crate) store: Store,
    pub(crate) road: Arc<dyn Road>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) loop_: mpsc::Sender<Message>,
}

/// The lane of one host. Ends with its last handle.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    address: HostAddress,
    seal_key: SealingKey,
    items: Mutex<BTreeMap<EffectId, Item>>,
    wake: Notify,
    /// Set when the host returned: whatever pause is left is cut short.
    hurry: std::sync::atomic::AtomicBool,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lane {
    pub(crate) fn start(address: HostAddress, seal_key: SealingKey, post: Arc<Post>) -> Self {
        let shared = Arc::new(Shared {
            address,
            seal_key,
            items: Mutex::default(),
            wake: Notify::new(),
            hurry: false.into(),
        });
        let task = tokio::spawn(run(shared.clone(), post));
        Self { shared, task }
    }

    pub(crate) fn address(&self) -> &HostAddress {
        &self.shared.address
    }

    /// This is all that is wanted for this credential now. What was sent before keeps its pause.
    pub(crate) fn want(&self, credential: &CredentialName, wanted: BTreeMap<EffectId, Wanted>) {
        let mut items = self.shared.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.retain(|id, item| &item.credential != credential || wanted.contains_key(id));
        let mut new = false;
        for (id, wanted) in wanted {
            if items.get(&id).is_none_or(|known| known.wanted != wanted) {
                let credential = credential.clone();
                items.insert(id, Item { credential, wanted, again: None, pause: RESEND_FIRST });
                new = true;
            }
        }
        drop(items);
        if new {
            self.shared.wake.notify_one();
        }
    }

    /// The host is back: everything goes out again at once.
    pub(crate) fn returned(&self) {
        for item in self.shared.items.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            item.again = None;
            item.pause = RESEND_FIRST;
        }
        self.shared.hurry.store(true, std::sync::atomic::Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

async fn run(shared: Arc<Shared>, post: Arc<Post>) {
    let mut retry = RETRY_FIRST;
    loop {
        let due = shared.due();
        let Some((batch, asks)) = due else {
            shared.wait().await;
            continue;
        };
        let frames = shared.frames(&post, &batch, &asks).await;
        let mut failed = false;
        for frames in fleet::batches(frames) {
            match post.road.push(&shared.address, frames).await {
                Ok(report) => {
                    post.metrics.push("done");
                    retry = RETRY_FIRST;
                    let (reply, answer) = oneshot::channel();
                    let peer = Some(shared.address.host);
                    if post.loop_.send(Message::Report { frame: report, peer, reply }).await.is_err() {
                        return;
                    }
                    // Wait until it is committed: what it shows is then no longer wanted.
                    drop(answer.await);
                }
                Err(failure) => {
                    post.metrics.push(failure.code);
                    tracing::debug!(host = %shared.address.host, %failure, "failed to push");
                    failed = true;
                    break;
                }
            }
        }
        let ids: Vec<EffectId> =
            batch.iter().map(|(id, ..)| *id).chain(asks.iter().map(|(id, ..)| *id)).collect();
        if failed {
            shared.postpone(&ids, Some(retry));
            retry = (retry * 2).min(RETRY_MAX);
        } else {
            shared.postpone(&ids, None);
        }
    }
}

type Batch = Vec<(EffectId, CredentialName, Wanted)>;

impl Shared {
    /// What goes out now: orders first in the order of their effects, then questions. None when nothing is due.
    fn due(&self) -> Option<(Batch, Batch)> {
        self.hurry.store(false, std::sync::atomic::Ordering::SeqCst);
        let now = Instant::now();
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let due = items
            .iter()
            .filter(|(_, item)| item.again.is_none_or(|at| at <= now))
            .map(|(id, item)| (*id, item.credential.clone(), item.wanted.clone()));
        let (mut orders, asks): (Batch, Batch) =
            due.partition(|(.., wanted)| matches!(wanted, Wanted::Order { .. }));
        orders.sort_by_key(|(.., wanted)| match wanted {
            Wanted::Order { order, .. } => (order.generation, rank(&order.kind)),
            Wanted::Ask { .. } => (lifecycle::Generation::new(0, 0), 0),
        });
        if orders.is_empty() && asks.is_empty() { None } else { Some((orders, asks)) }
    }

    async fn wait(&self) {
        let next = {
            let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
            items.values().filter_map(|item| item.again).min()
        };
        match next {
            Some(at) => {
                let _ = tokio::time::timeout_at(at.into(), self.wake.notified()).await;
            }
            None => self.wake.notified().await,
        }
    }

    fn postpone(&self, ids: &[EffectId], retry: Option<Duration>) {
        if self.hurry.load(std::sync::atomic::Ordering::SeqCst) {
            return;
        }
        let now = Instant::now();
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            let Some(item) = items.get_mut(id) else { continue };
            item.again = Some(now + retry.unwrap_or(item.pause));
            if retry.is_none() {
                item.pause = (item.pause * 2).min(RESEND_MAX);
            }
        }
    }

    async fn frames(&self, post: &Post, orders: &Batch, asks: &Batch) -> Vec<Frame> {
        let mut frames = Vec::new();
        // A question first: an order of a new epoch finds its host in that epoch.
        let mut questions: BTreeMap<Epoch, BTreeMap<SetName, u64>> = BTreeMap::new();
        for (.., wanted) in asks {
            if let Wanted::Ask { set, epoch, question } = wanted {
                let newest = questions.entry(*epoch).or_default().entry(set.clone()).or_default();
                *newest = (*newest).max(*question);
            }
        }
        for (epoch, questions) in questions {
            frames.extend(self.sign(post, epoch, Body::Ask(Ask { questions })));
        }
        for (id, credential, wanted) in orders {
            match self.order(post, credential, wanted).await {
                Ok(frame) => frames.extend(frame),
                Err(error) => {
                    tracing::warn!(%credential, effect = %id, host = %self.address.host, %error, "failed to make an order");
                }
            }
        }
        frames
    }

    async fn order(
        &self,
        post: &Post,
        credential: &CredentialName,
        wanted: &Wanted,
    ) -> Result<Option<Frame>, ContentError> {
        let Wanted::Order { set, order, value, at } = wanted else { return Ok(None) };
        let mut order = order.clone();
        order.dead = protocol::order::newest_dead(&order.dead);
        if let (OrderKind::Arm { in_ms, .. }, Some(at)) = (&mut order.kind, at) {
            let now = post.clock.now();
            if *at <= now {
                return Ok(None);
            }
            *in_ms = at.since(now);
        }
        let stage = match (&order.kind, value) {
            (OrderKind::Stage { version, effect }, Some(value)) => {
                let content = Content::load(&post.store, credential, *value).await?.render()?;
                let bound_to = protocol::seal::SealContext {
                    installation: post.installation,
                    host: self.address.host,
                    set: set.clone(),
                    version: *version,
                    effect: *effect,
                };
                Some(
                    content
                        .seal(&bound_to, &self.seal_key)
                        .map_err(|error| ContentError::Store(error.to_string()))?,
                )
            }
            _ => None,
        };
        let epoch = order.epoch;
        Ok(self.sign(post, epoch, Body::Set(SetOrder { set: set.clone(), order, stage })))
    }

    fn sign(&self, post: &Post, epoch: Epoch, body: Body) -> Option<Frame> {
        let sent_at = UnixMillis::now();
        let payload = OrderPayload {
            installation: post.installation,
            epoch,
            host: self.address.host,
            sent_at,
            expires_at: sent_at.plus_ms(limit::ORDER_VALIDITY_MS),
            body,
        };
        match payload.sign(&post.order_key) {
            Ok(frame) => Some(frame),
            Err(error) => {
                tracing::error!(host = %self.address.host, %error, "failed to sign an order");
                None
            }
        }
    }
}

/// The order in which the kinds of one intent follow each other.
const fn rank(kind: &OrderKind) -> u8 {
    match kind {
        OrderKind::Stage { .. } => 0,
        OrderKind::Arm { .. } => 1,
        OrderKind::Activate { .. } | OrderKind::RollBack { .. } => 2,
        OrderKind::Adopt { .. } => 3,
        OrderKind::Disarm { .. } => 4,
        OrderKind::Discard { .. } => 5,
        OrderKind::Seal { .. } => 6,
    }
}

/// The host that a row of the store describes, as the road needs it.
pub(crate) fn address_of(row: &store::HostRow) -> Option<(HostId, HostAddress, SealingKey)> {
    let host: HostId = row.host.id.parse().ok()?;
    let seal_key = SealingKey(row.host.seal_key.as_slice().try_into().ok()?);
    let spki = row.host.spki.parse().ok()?;
    Some((host, HostAddress { host, address: row.host.address.clone(), spki }, seal_key))
}
