//! Figures for `/metrics`. Labels are closed sets of words: no credential, host or person is one.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Effect {
    effect: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

/// Why a host refuses an order, as far as labels go.
const REFUSALS: [&str; 38] = [
    // The order itself.
    "foreign_key",
    "root_signed",
    "malformed",
    "other_installation",
    "other_host",
    "expired",
    "clock_off",
    "over_limit",
    "old_rekey",
    "not_sealed_to_us",
    "set_too_large",
    "digest_mismatch",
    // What the host remembers and allows.
    "old_epoch",
    "stranger_epoch",
    "older_generation",
    "replay",
    "other_digest",
    "not_in_policy",
    "dead",
    "rolled_back",
    "disarmed",
    "not_staged",
    "not_current",
    "late",
    "horizon",
    "in_use",
    // What could not be carried out.
    "not_kept",
    "copy_failed",
    "flip_failed",
    "write_failed",
    "disk_full",
    "read_only",
    "not_permitted",
    "no_such_directory",
    "no_such_owner",
    "no_such_file",
    "untrusted_directory",
    "foreign_file",
];

/// All figures of the engine. Cloning shares them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    commits: Counter,
    events: Counter,
    reports: Family<Code, Counter>,
    orders_refused: Family<Code, Counter>,
    pushes: Family<Code, Counter>,
    effects: Family<Effect, Counter>,
    credentials: Family<Phase, Gauge>,
    hosts: Family<Phase, Gauge>,
    pending_versions: Gauge,
    stuck: Gauge,
    resource_faults: Gauge,
    sources_silent: Gauge,
    audit_broken: Gauge,
    safe_to_delete: Counter,
    flip_reported: Histogram,
    flip_skew: Histogram,
    revoke_delay: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("eso");
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 22));
        let inner = Inner {
            commits: Counter::default(),
            events: Counter::default(),
            reports: Family::default(),
            orders_refused: Family::default(),
            pushes: Family::default(),
            effects: Family::default(),
            credentials: Family::default(),
            hosts: Family::default(),
            pending_versions: Gauge::default(),
            stuck: Gauge::default(),
            resource_faults: Gauge::default(),
            sources_silent: Gauge::default(),
            audit_broken: Gauge::default(),
            safe_to_delete: Counter::default(),
            flip_reported: seconds(),
            flip_skew: seconds(),
            revoke_delay: seconds(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("commits", "Transactions of the engine", inner.commits.clone());
        r.register("events", "Events that the core was given", inner.events.clone());
        r.register("reports", "Reports of hosts by what became of them", inner.reports.clone());
        r.register("orders_refused", "Orders that hosts refused, by why", inner.orders_refused.clone());
        r.register("pushes", "Pushes to hosts by how they ended", inner.pushes.clone());
        r.register("effects", "Effects carried out at backends by how they ended", inner.effects.clone());
        r.register("credentials", "Credentials by phase", inner.credentials.clone());
        r.register("hosts", "Hosts by phase", inner.hosts.clone());
        r.register("pending_versions", "Superseded versions not retired yet", inner.pending_versions.clone());
        r.register("stuck", "What cannot go on without an operator", inner.stuck.clone());
        r.register("resource_faults", "Resources that were not taken", inner.resource_faults.clone());
        r.register("sources_silent", "Sources that do not answer", inner.sources_silent.clone());
        r.register(
            "audit_broken",
            "1 when the audit log was found altered at the start",
            inner.audit_broken.clone(),
        );
        r.register(
            "safe_to_delete",
            "Versions of sources that nobody holds any more and that may be deleted there",
            inner.safe_to_delete.clone(),
        );
        r.register(
            "flip_reported_seconds",
            "From the agreed instant to the report that shows the flip, by target",
            inner.flip_reported.clone(),
        );
        r.register(
            "flip_skew_seconds",
            "Between the first and the last flip of the targets that flipped at one agreed instant",
            inner.flip_skew.clone(),
        );
        r.register(
            "revoke_delay_seconds",
            "From the end of a version's last holder to the call that revokes it",
            inner.revoke_delay.clone(),
        );
        Self(Arc::new(Inner { registry, ..inner }))
    }

    /// The text that Prometheus scrapes (OpenMetrics).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }

    pub(crate) fn committed(&self, events: u64) {
        self.0.commits.inc();
        self.0.events.inc_by(events);
    }

    pub(crate) fn report(&self, code: &'static str) {
        self.0.reports.get_or_create(&Code { code }).inc();
    }

    /// What a host calls it is a label only where we know the word.
    pub(crate) fn order_refused(&self, code: &str) {
        let code = REFUSALS.iter().copied().find(|known| *known == code).unwrap_or("other");
        self.0.orders_refused.get_or_create(&Code { code }).inc();
    }

    pub(crate) fn push(&self, code: &'static str) {
        self.0.pushes.get_or_create(&Code { code }).inc();
    }

    pub(crate) fn effect(&self, effect: &'static str, outcome: &'static str) {
        self.0.effects.get_or_create(&Effect { effect, outcome }).inc();
    }

    pub(crate) fn credentials(&self, phase: &'static str, count: i64) {
        self.0.credentials.get_or_create(&Phase { phase }).set(count);
    }

    pub(crate) fn hosts(&self, phase: &'static str, count: i64) {
        self.0.hosts.get_or_create(&Phase { phase }).set(count);
    }

    pub(crate) fn totals(
        &self,
        pending_versions: i64,
        stuck: i64,
        resource_faults: i64,
        sources_silent: i64,
    ) {
        self.0.pending_versions.set(pending_versions);
        self.0.stuck.set(stuck);
        self.0.resource_faults.set(resource_faults);
        self.0.sources_silent.set(sources_silent);
    }

    pub(crate) fn audit_broken(&self) {
        self.0.audit_broken.set(1);
    }

    pub(crate) fn safe_to_delete(&self) {
        self.0.safe_to_delete.inc();
    }

    pub(crate) fn flip_reported(&self, after: Duration) {
        self.0.flip_reported.observe(after.as_secs_f64());
    }

    pub(crate) fn flip_skew(&self, skew: Duration) {
        self.0.flip_skew.observe(skew.as_secs_f64());
    }

    pub(crate) fn revoke_delay(&self, delay: Duration) {
        self.0.revoke_delay.observe(delay.as_secs_f64());
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
