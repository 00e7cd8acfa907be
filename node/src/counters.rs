//! What the node counts, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that any thread raises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything counted since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that came from clients.
    pub requests: Counter,
    /// Answers to them.
    pub replies: Counter,
    /// Requests refused at the socket because too many wait for the core.
    pub busy: Counter,
    /// Client connections accepted.
    pub connections_accepted: Counter,
    /// Bytes of messages to other nodes.
    pub peer_bytes_sent: Counter,
    /// Bytes of messages from other nodes.
    pub peer_bytes_received: Counter,
    /// Messages to other nodes that were dropped: unreachable, over a limit, or cut off.
    pub peer_messages_dropped: Counter,
    /// Flushes of the log.
    pub flushes: Counter,
    /// The time they took together, in nanoseconds.
    pub flush_nanoseconds: Counter,
    /// Records that were made durable.
    pub records: Counter,
    /// Checkpoints that ended.
    pub checkpoints: Counter,
    /// Times that all rows of the tables were found to be what was written.
    pub scrubs: Counter,
    /// Bytes of rows read for learners' snapshots.
    pub snapshot_bytes_read: Counter,
    /// Bytes of snapshots written here.
    pub snapshot_bytes_received: Counter,
}

impl Counters {
    /// Counts a flush of the log.
    pub fn flushed(&self, took: Duration) {
        self.flushes.add(1);
        self.flush_nanoseconds.add(took.as_nanos() as u64);
    }
}
