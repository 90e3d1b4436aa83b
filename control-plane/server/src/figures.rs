//! Figures of requests for `/metrics`. Labels are what the table of routes says, never what a caller wrote.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What requests for no route and with a wrong method are counted as.
const NO_ROUTE: Place = Place { method: "any", route: "none" };

/// One line of the table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Place {
    pub(crate) method: &'static str,
    pub(crate) route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: &'static str,
    status: &'static str,
}

/// All figures of requests. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Figures(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Family<Place, Histogram, fn() -> Histogram>,
    under_way: Gauge,
}

impl Figures {
    pub(crate) fn new() -> Self {
        let requests = Family::default();
        let seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        let under_way = Gauge::default();
        let mut registry = Registry::with_prefix("eso_http");
        registry.register("requests", "Requests by route and status", requests.clone());
        registry.register("request_seconds", "From the headers to the answer", seconds.clone());
        registry.register("requests_under_way", "Requests that are not answered yet", under_way.clone());
        Self(Arc::new(Inner { registry, requests, seconds, under_way }))
    }

    /// The text that Prometheus scrapes (OpenMetrics), behind that of others.
    pub(crate) fn behind(&self, others: &str) -> String {
        let mut text = others.trim_end_matches("# EOF\n").to_owned();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }

    /// A request that no route took.
    pub(crate) fn lost(&self, status: StatusCode) {
        self.answered(NO_ROUTE, status, Duration::ZERO);
    }

    fn answered(&self, place: Place, status: StatusCode, after: Duration) {
        let Place { method, route } = place;
        let answered = Answered { method, route, status: class(status) };
        self.0.requests.get_or_create(&answered).inc();
        self.0.seconds.get_or_create(&place).observe(after.as_secs_f64());
    }
}

/// Counts what lies below, also what is refused there.
pub(crate) async fn count(
    State((figures, place)): State<(Figures, Place)>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let under_way = UnderWay::begin(&figures.0.under_way);
    let response = next.run(request).await;
    drop(under_way);
    figures.answered(place, response.status(), began.elapsed());
    response
}

/// Ends also when the caller goes away before it is answered.
struct UnderWay(Gauge);

impl UnderWay {
    fn begin(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// From half a millisecond to beyond the longest waiting for a change.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 4.0, 9))
}

const fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "other",
    }
}
