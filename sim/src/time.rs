//! The world's time, and the queue of what will happen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use onlyonce_replica::WallTime;

/// A stretch of time in nanoseconds.
pub type Span = u64;

/// One millisecond.
pub const MILLISECOND: Span = 1_000_000;
/// One second.
pub const SECOND: Span = 1_000 * MILLISECOND;

/// When the world begins, in milliseconds since 1970.
const WALL: u64 = 1_700_000_000_000;

/// A machine's calendar, by how many milliseconds it is ahead of the world's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calendar(pub i64);

impl Calendar {
    /// What it shows.
    pub fn show(self, world: u64) -> WallTime {
        WallTime((WALL + world / MILLISECOND).saturating_add_signed(self.0))
    }
}

/// What will happen, in the order of its times, and of its scheduling at equal times.
pub struct Agenda<T> {
    now: u64,
    scheduled: u64,
    heap: BinaryHeap<Reverse<Entry<T>>>,
}

struct Entry<T> {
    at: (u64, u64),
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl<T> Agenda<T> {
    /// An empty agenda at one second.
    pub fn new() -> Self {
        Self { now: SECOND, scheduled: 0, heap: BinaryHeap::new() }
    }

    /// The time now.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Lets `what` happen after a while.
    pub fn schedule(&mut self, after: Span, what: T) {
        self.scheduled += 1;
        self.heap.push(Reverse(Entry { at: (self.now + after, self.scheduled), what }));
    }

    /// Only what is to be kept will happen.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.heap.retain(|Reverse(entry)| keep(&entry.what));
    }

    /// Goes on to what happens next.
    pub fn next(&mut self) -> Option<T> {
        let Reverse(Entry { at, what }) = self.heap.pop()?;
        self.now = at.0;
        Some(what)
    }
}
