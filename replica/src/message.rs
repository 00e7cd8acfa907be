//! The messages between nodes. `docs/replication.md` says when each is sent and what it means.

use bytes::Bytes;
use onlyonce_storage::{Checkpoint, Digests, Index, Mark, View};
use onlyonce_wire::authority::{Member, Register, Revision};
use onlyonce_wire::{ClusterId, Incarnation};
use serde::{Deserialize, Serialize};

/// The first frame on a connection between nodes, in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The incarnation that the sender knows.
    pub incarnation: Incarnation,
    /// The sender.
    pub member: Member,
}

/// A place in the log. Equal positions hold equal records, and equal records before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The view in which the record was made.
    pub view: View,
    /// Its index.
    pub index: Index,
}

/// One attempt to send one snapshot. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotId(pub u128);

/// What a primary sends a follower from its joining on, until it forgets or replaces what the follower
/// holds. Random. An answer to another feed speaks of a store as it was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FeedId(pub u64);

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// An encoded entry: its effects follow those of the piece before.
    Effects(Bytes),
    /// The snapshot is complete; its state is that of this place in the log.
    End(Mark),
}

impl Piece {
    /// The bytes of its effects.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Effects(bytes) => bytes.len(),
            Self::End(_) => 0,
        }
    }
}

/// A message from one node to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// The primary to every replica and learner, several times a lease.
    Heartbeat {
        /// Fresh for each heartbeat and random for each process: an echo can only mean this one.
        nonce: u128,
        /// The view in which the sender is primary.
        register: Register,
        /// The register's revision when it was so.
        revision: Revision,
        /// The highest index that is durable on every replica of the view.
        committed: Index,
    },
    /// Sent on receipt of a heartbeat: "I have not proposed myself, and will not for a grace".
    Echo {
        /// The heartbeat's view.
        view: View,
        /// The heartbeat's nonce.
        nonce: u128,
        /// The newest checkpoint that the sender's process made.
        checkpoint: Option<Checkpoint>,
    },
    /// The sender's tables differ from the receiver's after this record, and the sender's are what was
    /// written: the receiver is damaged.
    Differs {
        /// The sender's view.
        view: View,
        /// The record.
        index: Index,
    },
    /// Records that follow `previous` in the primary's log.
    Append {
        /// The sender's view.
        view: View,
        /// What this is part of.
        feed: FeedId,
        /// The position before the first record.
        previous: Position,
        /// The highest index that is durable on every replica of the view.
        committed: Index,
        /// Encoded records in order; none asks only whether `previous` matches.
        records: Vec<Bytes>,
    },
    /// Everything up to `matched` is durable here and equal to the primary's log of this view.
    AppendOk {
        /// The view of the primary that is answered.
        view: View,
        /// The feed of the newest append.
        feed: FeedId,
        /// The last matched index.
        matched: Index,
    },
    /// `previous` is not in this log: send from after `committed`, which both logs hold.
    AppendMismatch {
        /// The view of the primary that is answered.
        view: View,
        /// The feed of the append.
        feed: FeedId,
        /// The index of the `previous` that is answered.
        previous: Index,
        /// The highest index that this node knows to be committed.
        committed: Index,
    },
    /// The primary would have this node cut a record that is committed: the primary is damaged.
    HoldsCommitted {
        /// The view of the primary that is answered.
        view: View,
        /// The committed index on which they differ.
        index: Index,
    },
    /// A follower that hears nothing, or nothing of where the logs match, asks the view's primary to
    /// feed it.
    Join {
        /// Who asks.
        member: Member,
        /// Random for each process: tells a restarted node from one that hung.
        process: u64,
        /// The highest index that it knows to be committed.
        committed: Index,
    },
    /// A restarted primary asks its backups for records of its view beyond its own last one.
    FetchTail {
        /// The view that it was primary of.
        view: View,
        /// Its own last position.
        after: Position,
    },
    /// Answers `FetchTail`.
    Tail {
        /// As asked.
        view: View,
        /// As asked.
        after: Position,
        /// Encoded records that follow `after`; none when there are no more (or none that match).
        records: Vec<Bytes>,
    },
    /// The primary to a learner that its log cannot feed: the next piece of a snapshot.
    Snapshot {
        /// The sender's view.
        view: View,
        /// The learner's process that asked for it: what another one was sent is of no use.
        process: u64,
        /// Which snapshot.
        id: SnapshotId,
        /// Which piece of it, from 0 on.
        number: u64,
        /// The piece.
        piece: Piece,
    },
    /// The learner has this piece, and everything before it.
    SnapshotOk {
        /// Which snapshot.
        id: SnapshotId,
        /// Which piece.
        number: u64,
        /// What the rows of the pieces up to this one come to.
        digests: Digests,
    },
    /// Tells a node that speaks for an older view what the register was when last seen.
    NewerView {
        /// The newer view.
        register: Register,
        /// The register's revision when it was so.
        revision: Revision,
    },
}
