//! Waiting for a condition, with a bound. The only place that sleeps.

use std::time::{Duration, Instant};

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// Looks at `condition` until it gives a value, for at most `bound`.
///
/// # Errors
/// Its last reason, when time is up.
pub fn poll<T>(
    bound: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + bound;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= end => return Err(reason),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// As [`poll`], for tests: panics with what was waited for and what was seen last.
#[track_caller]
pub fn wait_for<T>(what: &str, bound: Duration, condition: impl FnMut() -> Result<T, String>) -> T {
    match poll(bound, condition) {
        Ok(value) => value,
        Err(reason) => panic!("waited {bound:?} for {what}: {reason}"),
    }
}

/// Lets a random or a display interval pass. Not for waiting on something: that is [`wait_for`].
pub fn moment(duration: Duration) {
    std::thread::sleep(duration);
}

/// Waits until a count that only grows has grown by `more`.
///
/// # Panics
/// When that takes longer than `bound`.
#[track_caller]
pub fn wait_more(what: &str, bound: Duration, more: u64, count: impl Fn() -> u64) {
    let wanted = count() + more;
    wait_for(what, bound, || match count() {
        enough if enough >= wanted => Ok(()),
        few => Err(format!("{few} of {wanted}")),
    });
}

/// As [`moment`], of a task.
pub async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}
