//! Whether the engine answers, for everybody who asks: strangers may, so however many do and however soon they go, one
//! question at a time is put to the engine, and its answer serves all of them for a while.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// How long an answer serves.
const READY_FOR: Duration = Duration::from_secs(1);
/// An engine that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// When the engine was asked last, and whether it answered.
#[derive(Default)]
pub(crate) struct Readiness(Arc<Mutex<Option<(Instant, bool)>>>);

impl Readiness {
    /// Whether it answers; `question` is put to it where nobody did of late.
    pub(crate) async fn ask(&self, question: impl Future<Output = bool> + Send + 'static) -> bool {
        self.ask_within(PATIENCE, question).await
    }

    async fn ask_within(
        &self,
        patience: Duration,
        question: impl Future<Output = bool> + Send + 'static,
    ) -> bool {
        let mut known = self.0.clone().lock_owned().await;
        if let Some((_, ready)) = known.filter(|(asked, _)| asked.elapsed() < READY_FOR) {
            return ready;
        }
        // By itself: who asked may go, and the next one must not ask anew for that.
        let asked = tokio::spawn(async move {
            let ready = tokio::time::timeout(patience, question).await.unwrap_or(false);
            *known = Some((Instant::now(), ready));
            ready
        });
        asked.await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn one_question_serves_all_who_ask_and_also_those_who_go() {
        let (readiness, asked, answer) =
            (Readiness::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let question = || {
            let (asked, answer) = (asked.clone(), answer.clone());
            async move {
                asked.fetch_add(1, Ordering::Relaxed);
                answer.notified().await;
                true
            }
        };
        for _ in 0..100 {
            // They go before there is an answer.
            assert_eq!(readiness.ask(question()).now_or_never(), None);
            tokio::task::yield_now().await;
        }
        let mut waiting =
            Box::pin(futures_util::future::join_all((0..100).map(|_| readiness.ask(question()))));
        assert!(waiting.as_mut().now_or_never().is_none());
        answer.notify_one();
        assert!(waiting.await.into_iter().all(|ready| ready));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_engine_that_says_nothing_is_not_ready_and_keeps_nobody_waiting() {
        let readiness = Readiness::default();
        assert!(!readiness.ask_within(Duration::from_millis(1), std::future::pending()).await);
        assert!(!readiness.ask(async { true }).await, "that was a moment ago");
    }
}
