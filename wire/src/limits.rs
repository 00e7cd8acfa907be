//! Every bound that a client, a node or an authority can meet, in one place.
//!
//! Beyond a limit the caller gets a precise refusal; nothing that was promised is dropped.

use std::time::Duration;

/// The wire protocol's version. Both sides of a connection must have the same.
pub const PROTOCOL_VERSION: u16 = 1;

/// The longest key of the key/value service, in bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The longest encoded reply, in bytes; a scan stops before it.
pub const REPLY_BYTES_MAX: usize = (1 << 20) + (16 << 10);
/// The longest encoded operation (a transaction's writes together), in bytes.
pub const OPERATION_BYTES_MAX: usize = 2 << 20;
/// The most bytes of rows that one request may write: an append of one byte writes the whole value
/// anew, so a transaction of appends can write far more than it carries.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;
/// The most compares, and the most writes, in a transaction.
pub const TXN_OPERATIONS_MAX: usize = 128;
/// The most rows that one scan returns.
pub const SCAN_ROWS_MAX: usize = 10_000;

/// The longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// The most idempotency keys that a cluster remembers.
pub const IDEMPOTENCY_KEYS_MAX: u64 = 10_000_000;
/// How far a timed idempotency key may be ahead of the primary's clock: it is remembered for longer
/// by as much.
pub const KEY_AHEAD_MAX: Duration = Duration::from_secs(3_600);
/// The most sessions that one answer tells of.
pub const SESSIONS_LISTED_MAX: usize = 1_000;

/// How far a session's newest request may be ahead of its oldest unacknowledged one.
pub const WINDOW: u64 = 1_024;
/// The most sessions open at once.
pub const SESSIONS_MAX: usize = 65_536;
/// The most bytes of saved replies a session.
pub const SAVED_REPLY_BYTES_MAX: u64 = 16 << 20;

/// The longest frame between a client and a node, in bytes.
pub const CLIENT_FRAME_BYTES_MAX: usize = OPERATION_BYTES_MAX + (64 << 10);
/// The most bytes of rows in one piece of a backup.
pub const BACKUP_PIECE_BYTES_MAX: usize = CLIENT_FRAME_BYTES_MAX - (1 << 10);
/// The longest frame between two nodes, in bytes.
pub const PEER_FRAME_BYTES_MAX: usize = 8 << 20;
/// The longest frame between a node (or a client) and the authority, in bytes.
pub const AUTHORITY_FRAME_BYTES_MAX: usize = 16 << 10;
/// The longest value of the view register, in bytes.
pub const REGISTER_BYTES_MAX: usize = 3 << 10;
/// The most replicas of a view; its primary feeds as many followers, learners among them.
pub const REPLICAS_MAX: usize = 7;
/// The longest node name or address, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// The most client connections to one node.
pub const CONNECTIONS_MAX: usize = 4_096;
/// The most bytes of requests that wait for the core of one node.
pub const QUEUED_BYTES_MAX: usize = 64 << 20;
/// The most bytes of answers of one node that wait for a commit.
pub const WAITING_BYTES_MAX: usize = 128 << 20;
/// How long a connection may stay silent before its first frame.
pub const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection without an outstanding request may stay silent.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

const _: () = {
    assert!(OPERATION_BYTES_MAX > KEY_BYTES_MAX + VALUE_BYTES_MAX, "a put of the longest value");
    assert!(CLIENT_FRAME_BYTES_MAX > OPERATION_BYTES_MAX, "an operation and its header");
    assert!(CLIENT_FRAME_BYTES_MAX > REPLY_BYTES_MAX, "a reply and its header");
    assert!(REPLY_BYTES_MAX > 2 * KEY_BYTES_MAX + VALUE_BYTES_MAX + 2048, "a scan makes progress");
    assert!(ENTRY_BYTES_MAX >= 2 * OPERATION_BYTES_MAX, "puts of a whole operation, with room");
    assert!(PEER_FRAME_BYTES_MAX >= ENTRY_BYTES_MAX + REPLY_BYTES_MAX + (64 << 10), "a record");
    assert!(AUTHORITY_FRAME_BYTES_MAX > 2 * REGISTER_BYTES_MAX, "a register and its header");
    assert!(SAVED_REPLY_BYTES_MAX > 2 * REPLY_BYTES_MAX as u64, "a session makes progress");
};
