//! Every bound of the storage, in one place, related by const assertions.

/// Version of the format of a data folder: of `head`, of log rows and of table rows.
pub const FORMAT: u32 = 1;

/// Size of sled's segments, in bytes. It is fixed when a folder is made and part of its format.
pub const SEGMENT: usize = 8 << 20;
/// The most rows in a leaf of sled before it is split.
pub const LEAF_ROWS: usize = 16;
/// The most children of an inner node of sled before it is split.
const NODE_CHILDREN: usize = 256;

/// The longest encoded record, header included, in bytes. It fits a peer frame of 8 MiB with room
/// for what is around it.
pub const RECORD_BYTES_MAX: usize = (8 << 20) - (128 << 10);
/// The longest value of a row in the log database, its header included, in bytes.
pub const LOG_ROW_BYTES_MAX: usize = 64 << 10;
/// The longest key of a table row, in bytes.
pub const KEY_BYTES_MAX: usize = (4 << 10) + 512;
/// Values up to this many bytes are kept in their row, longer ones in chunk rows of this size.
pub const CHUNK: usize = 16 << 10;
/// The longest opaque replication state in a slot of `head`, in bytes.
pub const STATE_BYTES_MAX: usize = 3_584;
/// Size of a slot of `head`, in bytes.
pub const SLOT_BYTES: usize = 4 << 10;

/// How many bytes the overlay may hold before commits must wait for a checkpoint. The storage
/// reports [`State::overlay_bytes`](crate::State::overlay_bytes); its user keeps the limit, since
/// recovered records are admitted whatever their size.
pub const OVERLAY_BYTES_MAX: usize = 256 << 20;
/// What a row in the overlay costs beyond the bytes of its effect: map node, key, versions.
pub const OVERLAY_ROW_OVERHEAD: usize = 128;
/// How many bytes of durable records stay in memory for backups and learners.
pub const TAIL_BYTES_MAX: usize = 32 << 20;
/// How many rows one call of [`LogWriter::prune`](crate::LogWriter::prune) removes at most.
pub const PRUNE_ROWS_MAX: usize = 1_024;
/// How many bytes of rows a checkpoint folds between two rests.
pub const FOLD_SLICE_BYTES: usize = 1 << 20;
/// What a row counts in a slice beyond its bytes.
pub const FOLD_ROW_OVERHEAD: usize = 64;

/// How many bytes of a snapshot are folded before they are made durable.
pub const INCOMING_FLUSH_BYTES: usize = 4 << 20;
/// The most cache of the tables database of a store that is being built, in bytes.
pub const INCOMING_CACHE_BYTES: u64 = 64 << 20;

const _: () = {
    // A node of sled over a quarter of a segment would go to `blobs/`, which sled never syncs.
    // Twice the rows: a split comes after the insert that makes it necessary.
    assert!(2 * LEAF_ROWS * LOG_ROW_BYTES_MAX <= SEGMENT / 4, "a leaf of log rows");
    assert!(2 * LEAF_ROWS * (CHUNK + KEY_BYTES_MAX + 64) <= SEGMENT / 4, "a leaf of table rows");
    assert!(NODE_CHILDREN * (KEY_BYTES_MAX + 64) <= SEGMENT / 4, "an inner node");
    assert!(RECORD_BYTES_MAX / (LOG_ROW_BYTES_MAX / 2) < u16::MAX as usize, "parts of a record");
    assert!(KEY_BYTES_MAX <= u16::MAX as usize, "a key's length in a chunk row");
    assert!(STATE_BYTES_MAX + 128 <= SLOT_BYTES, "a slot's state and header");
    assert!(TAIL_BYTES_MAX >= 2 * RECORD_BYTES_MAX, "the tail holds a record or two");
    assert!(OVERLAY_BYTES_MAX >= 4 * TAIL_BYTES_MAX, "the overlay is the larger of the two");
};
