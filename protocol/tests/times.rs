//! Whatever times an order claims, it is taken within its life, and that is short.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses its part of the samples")]

mod samples;

use lifecycle::OrderKind;
use proptest::prelude::*;
use protocol::{UnixMillis, limit, order};
use samples::{NOW, Samples, version};

/// Moments near ours, and at both ends of time.
fn moments() -> impl Strategy<Value = u64> {
    let day = 24 * 60 * 60 * 1000;
    prop_oneof![
        4 => NOW - limit::ORDER_VALIDITY_MS_MAX..NOW + limit::ORDER_VALIDITY_MS_MAX,
        2 => NOW - day..NOW + day,
        1 => 0..1000_u64,
        1 => u64::MAX - 1000..=u64::MAX,
        1 => any::<u64>(),
    ]
}

proptest! {
    #[test]
    fn an_order_is_taken_within_its_life_and_at_no_other_time(
        sent_at in moments(),
        expires_at in moments(),
        now in moments(),
    ) {
        let samples = Samples::new();
        let mut payload = samples.set_order(OrderKind::Adopt { version: version(8) }, None);
        (payload.sent_at, payload.expires_at) = (UnixMillis(sent_at), UnixMillis(expires_at));
        let frame = payload.sign(&samples.order_key).unwrap();
        let taken = order::verify(&frame, &samples.anchor(), samples.host(), UnixMillis(now)).is_ok();
        // In numbers that cannot overflow.
        let [sent_at, expires_at, now] = [sent_at, expires_at, now].map(i128::from);
        let (ahead, life) = (i128::from(limit::CLOCK_AHEAD_MS_MAX), i128::from(limit::ORDER_VALIDITY_MS_MAX));
        prop_assert_eq!(taken, now <= expires_at && sent_at - now <= ahead && expires_at - sent_at <= life);
        // Taken now, it is worth nothing soon, whatever it says.
        prop_assert!(!taken || expires_at <= now + ahead + life);
    }

    #[test]
    fn no_arithmetic_on_times_wraps(one in moments(), other in moments()) {
        let (a, b) = (UnixMillis(one), UnixMillis(other));
        prop_assert!(a.plus_ms(other) >= a);
        prop_assert_eq!(i128::from(a.ms_since(b)), (i128::from(one) - i128::from(other)).max(0));
        prop_assert_eq!(a.ms_ahead_of(b).signum(), i64::from(one > other) - i64::from(one < other));
    }
}
