//! Stops the process when a thread is at work with the disk for longer than it may be: a disk that
//! hangs must not leave a node that looks alive (P6).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::exit;

/// What one thread is doing with the disk, as the watchdog sees it.
#[derive(Debug)]
pub struct Watched {
    thread: &'static str,
    limit: Duration,
    epoch: Instant,
    /// When the operation under way must have ended, in milliseconds since `epoch`; 0 for none.
    deadline_ms: AtomicU64,
}

/// An operation under way; it ends when this is dropped.
#[must_use]
pub struct Underway<'a>(&'a Watched);

impl Watched {
    /// For a thread each of whose operations may take `limit`.
    pub fn new(thread: &'static str, limit: Duration) -> Arc<Self> {
        let deadline_ms = AtomicU64::new(0);
        Arc::new(Self { thread, limit, epoch: Instant::now(), deadline_ms })
    }

    /// Begins an operation.
    pub fn begin(&self) -> Underway<'_> {
        self.set_deadline();
        Underway(self)
    }

    fn set_deadline(&self) {
        let deadline = self.epoch.elapsed() + self.limit;
        self.deadline_ms.store(deadline.as_millis() as u64, Ordering::Release);
    }

    fn clear_deadline(&self) {
        self.deadline_ms.store(0, Ordering::Release);
    }

    /// The deadline of the operation under way, if that is over.
    fn overdue(&self) -> Option<u64> {
        let deadline_ms = self.deadline_ms.load(Ordering::Acquire);
        let is_over = deadline_ms != 0 && self.epoch.elapsed().as_millis() as u64 > deadline_ms;
        is_over.then_some(deadline_ms)
    }
}

impl Underway<'_> {
    /// One operation is done, and the next begins after `pause`.
    pub fn rest(&mut self, pause: Duration) {
        self.0.clear_deadline();
        std::thread::sleep(pause);
        self.0.set_deadline();
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.clear_deadline();
    }
}

/// Watches until the threads have ended.
///
/// A thread is given up only when the very same operation is overdue at two looks: after a pause of
/// the whole process the thread may just not have come to say that it is done.
pub fn run(threads: &[Weak<Watched>]) {
    let mut suspected: Vec<(&str, Duration, u64)> = Vec::new();
    loop {
        let running: Vec<_> = threads.iter().filter_map(Weak::upgrade).collect();
        let Some(shortest) = running.iter().map(|watched| watched.limit).min() else { return };
        let overdue = running.iter().filter_map(|watched| Some((watched, watched.overdue()?)));
        let overdue: Vec<_> =
            overdue.map(|(watched, deadline)| (watched.thread, watched.limit, deadline)).collect();
        if let Some((thread, limit, _)) = overdue.iter().find(|one| suspected.contains(one)) {
            exit::stop(&format!(
                "the {thread} thread has waited over {} ms for the disk (see flush_timeout_ms): \
                 what reached it is unknown; check the disk, then start again",
                limit.as_millis(),
            ));
        }
        suspected = overdue;
        drop(running);
        let pause = (shortest / 10).clamp(Duration::from_millis(10), Duration::from_millis(500));
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operation is overdue after its limit, and not once it has ended.
    #[test]
    fn only_a_long_operation_is_overdue() {
        let watched = Watched::new("test", Duration::ZERO);
        assert_eq!(watched.overdue(), None);
        std::thread::sleep(Duration::from_millis(2));
        let underway = watched.begin();
        while watched.overdue().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(underway);
        assert_eq!(watched.overdue(), None);
    }

    /// After a rest the time counts anew.
    #[test]
    fn a_rest_ends_what_was_overdue() {
        let watched = Watched::new("test", Duration::from_millis(1));
        let mut underway = watched.begin();
        let first = loop {
            if let Some(deadline) = watched.overdue() {
                break deadline;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        underway.rest(Duration::ZERO);
        assert_ne!(watched.overdue(), Some(first));
        while watched.overdue().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(underway);
        assert_eq!(watched.overdue(), None);
    }
}
