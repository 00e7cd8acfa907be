//! The thread that works on the tables: it folds frozen generations, reads rows for a learner's
//! snapshot, builds the store of a snapshot that comes in, and scrubs. One thing at a time, so that
//! rows are never read while they are folded. It also drops folded generations: freeing all their
//! rows takes longer than the core may be held up.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use onlyonce_replica::{Event, PIECE_BYTES, SnapshotId};
use onlyonce_storage::failpoints::{Point, failpoint};
use onlyonce_storage::{Checkpointer, Cursor, Entry, Generation, Incoming, Mark, Scrubbed};
use tokio::sync::Notify;

use crate::core_thread::CoreQueue;
use crate::counters::Counters;
use crate::exit;
use crate::watchdog::{Underway, Watched};

/// What the core asks of this thread.
pub enum Work {
    /// Fold; ends in `Event::Checkpointed`.
    Fold(Generation),
    /// Scrub all of the tables, at once; ends in `Event::Scrubbed`.
    Scrub,
    /// Drop: nobody reads it any more.
    Release(Generation),
    /// Read rows; ends in `Event::RowsRead`.
    ReadRows { id: SnapshotId, from: Cursor },
    /// Fold a piece into the store that is being built; ends in `Event::Received`.
    Receive { id: SnapshotId, number: u64, entry: Entry },
    /// Put that store in the place of this one; ends in a new start of the node.
    Install { end: Mark, state: Bytes },
}

/// When a scrub goes on, and whether the core waits for its end.
struct Scrub {
    at: Instant,
    wanted: bool,
}

/// The bytes of rows that a scrub adds up at a time.
const SCRUB_BYTES: usize = PIECE_BYTES;

/// How long a checkpoint leaves disk and processor to others after each slice.
const FOLD_PAUSE: Duration = Duration::from_millis(1);

/// The tables and those who are told about them.
pub struct CheckpointThread {
    pub checkpointer: Checkpointer,
    pub work: Receiver<Work>,
    pub core: Arc<CoreQueue>,
    pub counters: Arc<Counters>,
    pub watched: Arc<Watched>,
    /// How long the scrub rests after each piece.
    pub scrub_pause: Duration,
    /// Told when the node is to begin anew on another store.
    pub replaced: Arc<Notify>,
}

impl CheckpointThread {
    /// Works until no more work comes; scrubs meanwhile, all the time but slowly.
    pub fn run(mut self) {
        let mut incoming = None;
        let mut scrub = Scrub { at: Instant::now() + self.scrub_pause, wanted: false };
        loop {
            let wait = scrub.at.saturating_duration_since(Instant::now());
            match self.work.recv_timeout(wait) {
                Ok(work) => self.carry_out(work, &mut incoming, &mut scrub),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= scrub.at {
                self.scrub(&mut scrub);
            }
        }
    }

    fn carry_out(&mut self, work: Work, incoming: &mut Option<Incoming>, scrub: &mut Scrub) {
        let watched = Arc::clone(&self.watched);
        let mut underway = watched.begin();
        match work {
            Work::Fold(generation) => self.fold(&generation, &mut underway),
            Work::Release(generation) => drop(generation),
            Work::ReadRows { id, from } => self.read_rows(id, &from),
            Work::Scrub => {
                self.checkpointer.restart_scrub();
                *scrub = Scrub { at: Instant::now(), wanted: true };
            }
            Work::Receive { id, number, entry } => {
                if number == 0 {
                    // The files of an earlier attempt are removed: nobody may have them open.
                    drop(incoming.take());
                    *incoming = Some(self.begin_incoming());
                }
                let incoming = incoming.as_mut().expect("piece 0 came first");
                self.receive(incoming, &entry);
                let digests = incoming.digests();
                self.core.send(Event::Received { id, number, digests });
            }
            Work::Install { end, state } => {
                let incoming = incoming.take().expect("piece 0 came first");
                self.install(incoming, end, state);
            }
        }
        drop(underway);
    }

    /// Scrubs the next piece. One that was asked for goes on as fast as other work allows.
    fn scrub(&mut self, scrub: &mut Scrub) {
        let watched = Arc::clone(&self.watched);
        let underway = watched.begin();
        let scrubbed = self.checkpointer.scrub(SCRUB_BYTES);
        if let Scrubbed::Whole { rows } = done(scrubbed, "the tables cannot be trusted") {
            self.counters.scrubs.add(1);
            tracing::debug!(rows, "scrubbed: all is what was written");
            if std::mem::take(&mut scrub.wanted) {
                self.core.send(Event::Scrubbed);
            }
        }
        drop(underway);
        let pause = if scrub.wanted { Duration::ZERO } else { self.scrub_pause };
        scrub.at = Instant::now() + pause;
    }

    fn fold(&mut self, generation: &Generation, underway: &mut Underway<'_>) {
        let began = Instant::now();
        let folded = self.checkpointer.fold(generation, || underway.rest(FOLD_PAUSE));
        let checkpoint = done(folded, "a checkpoint failed");
        self.counters.checkpoints.add(1);
        tracing::debug!("a checkpoint took {} ms", began.elapsed().as_millis());
        self.core.send(Event::Checkpointed(checkpoint));
    }

    fn read_rows(&self, id: SnapshotId, from: &Cursor) {
        let rows = self.checkpointer.read_rows(from, PIECE_BYTES);
        let rows = done(rows, "the rows of a snapshot cannot be read");
        self.counters.snapshot_bytes_read.add(rows.entry.bytes() as u64);
        failpoint(Point::SnapshotRead);
        self.core.send(Event::RowsRead { id, rows });
    }

    fn begin_incoming(&self) -> Incoming {
        done(self.checkpointer.begin_incoming(), "the store of a snapshot cannot be made")
    }

    fn receive(&self, incoming: &mut Incoming, entry: &Entry) {
        done(incoming.fold(entry), "a piece of a snapshot cannot be written");
        self.counters.snapshot_bytes_received.add(entry.bytes() as u64);
    }

    fn install(&self, incoming: Incoming, end: Mark, state: Bytes) {
        done(incoming.finish(end, state), "a snapshot cannot be installed");
        self.replaced.notify_one();
    }
}

/// What the disk gave; if it failed, the process stops.
fn done<T>(result: Result<T, impl Display>, failure: &str) -> T {
    result.unwrap_or_else(|error| exit::stop(&format!("{failure}: {error}")))
}
