//! Keeps a log line that could come thousands of times a second to one in a while.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one through an interval.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    last: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// One in `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: Mutex::new(None) }
    }

    /// Whether this one may pass.
    pub fn pass(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let passes = last.is_none_or(|last| now.duration_since(last) >= self.interval);
        if passes {
            *last = Some(now);
        }
        passes
    }
}
