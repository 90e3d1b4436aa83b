//! Refusals in the audit log: each caller at each route once in a while, however often it tries. Who may not call a
//! route can still call it all day, and must not be able to fill the log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the same refusal is no news.
const NEWS_AFTER: Duration = Duration::from_hours(1);
/// How many refusals are told apart at most. Beyond them the oldest are news again only when their time is over.
const REMEMBERED_MAX: usize = 10_000;

/// Which refusals are in the log already.
#[derive(Default)]
pub(crate) struct Denials(Mutex<HashMap<Denial, Told>>);

/// Who, where, and the stable word for why.
type Denial = (String, &'static str, String);

struct Told {
    at: Instant,
    /// How many came since.
    more: u64,
}

impl Denials {
    /// Whether this one is news, and how many like it came since the last that was.
    pub(crate) fn news(&self, actor: &str, route: &'static str, code: &str, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let denial = (actor.to_owned(), route, code.to_owned());
        if let Some(known) = told.get_mut(&denial) {
            if now.saturating_duration_since(known.at) < NEWS_AFTER {
                known.more += 1;
                return None;
            }
            known.at = now;
            return Some(std::mem::take(&mut known.more));
        }
        if told.len() >= REMEMBERED_MAX {
            told.retain(|_, known| now.saturating_duration_since(known.at) < NEWS_AFTER);
        }
        if told.len() >= REMEMBERED_MAX {
            // Counted by the figures all the same.
            return None;
        }
        told.insert(denial, Told { at: now, more: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_news_once_an_hour_and_says_how_many_there_were() {
        let denials = Denials::default();
        let now = Instant::now();
        assert_eq!(denials.news("host:a", "/v1/x", "role", now), Some(0));
        assert_eq!(denials.news("host:a", "/v1/x", "role", now), None);
        assert_eq!(denials.news("host:a", "/v1/x", "role", now + NEWS_AFTER / 2), None);
        assert_eq!(denials.news("host:b", "/v1/x", "role", now), Some(0));
        assert_eq!(denials.news("host:a", "/v1/y", "role", now), Some(0));
        assert_eq!(denials.news("host:a", "/v1/x", "role", now + NEWS_AFTER), Some(2));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let denials = Denials::default();
        let now = Instant::now();
        for number in 0..REMEMBERED_MAX {
            assert_eq!(denials.news(&format!("host:{number}"), "/v1/x", "role", now), Some(0));
        }
        assert_eq!(denials.news("host:one-more", "/v1/x", "role", now), None);
        assert_eq!(denials.news("host:one-more", "/v1/x", "role", now + NEWS_AFTER), Some(0));
        assert_eq!(denials.0.lock().unwrap().len(), 1);
    }
}
