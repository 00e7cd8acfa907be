//! What the core is told, and what it asks for in return.
//!
//! The surroundings (a node's threads, or a simulator) hand [`Event`]s to
//! [`Replica::step`](crate::Replica::step) one at a time and carry out the [`Effect`]s in the order
//! given.
//!
//! - `Persist`, `Cut`, `Save` and `Prune` pass through **one** queue. Each of the first three ends
//!   in its event ([`Event::Persisted`], or [`Event::Saved`] for the other two), in the same order,
//!   and only when it is durable. Nothing that rests on one of them is sent before its event.
//! - `Checkpoint`, `ReadRows`, `Receive` and `Install` pass through another queue, one at a time.
//! - `Send` may lose, repeat or reorder messages; the core repeats what matters.
//! - `Propose` and `ReadRegister` may stay without an answer; the core asks again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_storage::{Checkpoint, Cursor, Digests, Entry, Generation, Index, Mark, Record, Rows};
use onlyonce_wire::authority::{Member, Register, Revision, Versioned};
use onlyonce_wire::client::{Answer, Request};
use onlyonce_wire::{CallId, ProposalId, StoreId};

use crate::message::{PeerMessage, SnapshotId};

/// A moment of the local clock that goes on during suspension (`CLOCK_BOOTTIME`), in nanoseconds.
///
/// It is sampled *after* the event that it comes with left its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment and a while. Saturates.
    #[must_use]
    pub fn after(self, while_: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(while_.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it was not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What the machine's calendar says: milliseconds since 1970. It may be wrong, and may jump; what
/// rests on it is said in `keys`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub u64);

/// Where a reply goes: a call on a connection of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyTo {
    /// The connection, numbered by the node.
    pub connection: u64,
    /// The call on it.
    pub call: CallId,
}

/// Numbers the reads of the register that a process asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(pub u64);

impl ReadId {
    /// The next read.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A client asks.
    Request {
        /// Where the answer goes.
        from: ReplyTo,
        /// What it asks.
        request: Request,
    },
    /// Another node says something.
    Peer {
        /// The store that says so in its hello.
        from: StoreId,
        /// What it says.
        message: PeerMessage,
    },
    /// A connection *to* this peer was made anew: what was sent before may be lost.
    PeerConnected(StoreId),
    /// Every record up to `index` that was handed out by `Persist` is durable here.
    Persisted {
        /// The newest of them.
        index: Index,
    },
    /// The oldest `Cut` or `Save` that was not yet reported is durable.
    Saved,
    /// What a linearizable read of the register saw.
    RegisterRead {
        /// The newest `ReadRegister` that was handed out before the read began; none for news of a
        /// watch.
        asked: Option<ReadId>,
        /// What it saw.
        now: Versioned,
    },
    /// How a `Propose` ended.
    Proposed {
        /// The proposal that was sent: an answer may come when another is under way.
        id: ProposalId,
        /// How it ended.
        result: ProposalResult,
    },
    /// The generation of the last `Checkpoint` is folded, durably: this is what the tables hold now.
    Checkpointed(Checkpoint),
    /// The whole of the tables is what was written: ends a `Scrub`.
    Scrubbed,
    /// Rows that `ReadRows` asked for.
    RowsRead {
        /// As asked.
        id: SnapshotId,
        /// The rows.
        rows: Rows,
    },
    /// A piece that `Receive` gave is written.
    Received {
        /// The snapshot.
        id: SnapshotId,
        /// The piece.
        number: u64,
        /// What the rows of the pieces up to this one come to.
        digests: Digests,
    },
    /// Every queued event was handled: the open record may be closed.
    Drained,
    /// Some time passed (at most a few milliseconds).
    Tick(WallTime),
}

/// How a compare-and-swap of the register ended, as far as can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposalResult {
    /// It took place: the register has this revision now.
    Won(Revision),
    /// Anything else. It may have taken place, or may still.
    Unknown,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Answer a client.
    Reply {
        /// The call.
        to: ReplyTo,
        /// The answer.
        answer: Answer,
    },
    /// From now on this node may be sent to: its addresses.
    Know(Member),
    /// Send to a peer, if it can be reached.
    Send {
        /// The peer, made known before.
        to: StoreId,
        /// The message.
        message: PeerMessage,
    },
    /// Make a record durable.
    Persist(Arc<Record>),
    /// Remove all records after an index from the log and save the replication state, durably.
    Cut {
        /// The last index that stays.
        after: Index,
        /// The replication state, for the head.
        state: Bytes,
    },
    /// Save the replication state (view and proposal), durably.
    Save {
        /// The replication state, for the head.
        state: Bytes,
    },
    /// Remove records up to an index from the log; all of it is in the tables. Reports nothing.
    Prune {
        /// The last index that goes.
        upto: Index,
    },
    /// Read the register, linearizably.
    ReadRegister(ReadId),
    /// Compare-and-swap the register.
    Propose {
        /// The revision that it must have.
        expected: Revision,
        /// The new value.
        register: Register,
    },
    /// Fold a frozen generation into the tables.
    Checkpoint(Generation),
    /// Drop a folded generation, best on another thread: that frees all its rows.
    Release(Generation),
    /// Add up all rows of the tables and compare them with their digests, as fast as other work allows;
    /// stop the process if they differ. Ends in [`Event::Scrubbed`].
    Scrub,
    /// Read rows of the tables for a snapshot, while no checkpoint folds; about
    /// [`Config::piece_bytes`](crate::Config::piece_bytes). Ends in [`Event::RowsRead`].
    ReadRows {
        /// The snapshot.
        id: SnapshotId,
        /// Where to begin.
        from: Cursor,
    },
    /// Fold a piece of a snapshot into the store that is being built beside this one; piece 0 begins
    /// a new, empty one. Ends in [`Event::Received`].
    Receive {
        /// The snapshot.
        id: SnapshotId,
        /// The piece.
        number: u64,
        /// Its effects.
        entry: Entry,
    },
    /// The store that is being built is complete. Put it in this one's place and begin anew on it:
    /// this replica does nothing more.
    Install {
        /// The place in the log that its state is of.
        end: Mark,
        /// The replication state, for the new head.
        state: Bytes,
    },
    /// Stop the process with this message and a non-zero exit: going on could break a promise.
    Stop(String),
}
