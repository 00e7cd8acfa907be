//! The core's own bounds, and how those of `wire` and `storage` fit together.

use onlyonce_storage::limits as storage;
use onlyonce_wire::limits as wire;

/// The most closed records that are not yet committed. Work that comes meanwhile gathers in the open
/// record: this wait is the group commit.
pub(crate) const RECORDS_IN_FLIGHT_MAX: u64 = 4;
/// The open record is closed when its entries reach this many bytes, whatever is in flight.
pub(crate) const RECORD_BYTES_TARGET: usize = 1 << 20;
/// The most bytes of records on their way to one follower.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
/// The most appends on their way to one follower.
pub(crate) const APPENDS_IN_FLIGHT_MAX: usize = 1_024;
/// How many records a learner may lack to become the candidate for whom commits wait.
pub(crate) const CANDIDATE_LAG_MAX: u64 = 64;
/// How many dropped stores, and how many that cannot be fed, a primary remembers.
pub(crate) const REMEMBERED_MAX: usize = 64;
/// The most bytes of records in one append or tail, but always at least one record.
pub(crate) const APPEND_BYTES_MAX: usize = 1 << 20;
/// About how many bytes a piece of a snapshot has: what the primary reads at a time.
pub const PIECE_BYTES: usize = 256 << 10;
/// How many bytes of records below the checkpoint stay in the log, unless configured otherwise.
pub const LOG_TAIL_BYTES: usize = 256 << 20;
/// How many stay while a learner needs them, unless configured otherwise.
pub const LOG_PIN_BYTES: usize = 1 << 30;
/// How many committed bytes make a checkpoint due, unless configured otherwise.
pub const CHECKPOINT_BYTES: usize = 32 << 20;
/// The most bytes of a message beside its records.
const MESSAGE_HEADER_BYTES: usize = 4 << 10;
/// The most bytes of a row beside its key, and its value or the reply in it.
const ROW_HEADER_BYTES: usize = 256;
/// The most bytes of an entry's duplicate rows beside the reply: the session's row, and the deletion
/// of every reply that a new watermark frees.
const DUPLICATE_ROWS_BYTES: usize = 256 * wire::WINDOW as usize;

const _: () = {
    assert!(usize::BITS >= 64, "sizes are counted in 64 bits");
    assert!(
        RECORD_BYTES_TARGET + wire::ENTRY_BYTES_MAX + wire::REPLY_BYTES_MAX + DUPLICATE_ROWS_BYTES
            <= storage::RECORD_BYTES_MAX,
        "the last entry of a record fits"
    );
    assert!(
        storage::RECORD_BYTES_MAX + MESSAGE_HEADER_BYTES <= wire::PEER_FRAME_BYTES_MAX,
        "the largest record fits a frame"
    );
    assert!(
        PIECE_BYTES + wire::ENTRY_BYTES_MAX + wire::REPLY_BYTES_MAX <= storage::RECORD_BYTES_MAX,
        "the last row of a piece of a snapshot fits, as a record does"
    );
    assert!(
        PIECE_BYTES + storage::KEY_BYTES_MAX + wire::REPLY_BYTES_MAX + ROW_HEADER_BYTES
            <= wire::BACKUP_PIECE_BYTES_MAX,
        "a piece with its last row fits a frame to a client"
    );
    assert!(wire::REPLY_BYTES_MAX >= wire::VALUE_BYTES_MAX, "a saved reply is the longest row");
    assert!(
        APPEND_BYTES_MAX + MESSAGE_HEADER_BYTES <= wire::PEER_FRAME_BYTES_MAX,
        "an append fits a frame"
    );
    assert!(
        storage::KEY_BYTES_MAX >= wire::KEY_BYTES_MAX
            && storage::KEY_BYTES_MAX >= wire::IDEMPOTENCY_KEY_BYTES_MAX,
        "every key of a client is a row's key"
    );
    assert!(
        IN_FLIGHT_BYTES_MAX + storage::RECORD_BYTES_MAX < storage::OVERLAY_BYTES_MAX,
        "what is in flight and one more record fit the overlay"
    );
    assert!(
        CHECKPOINT_BYTES < storage::OVERLAY_BYTES_MAX / 2,
        "a checkpoint is due before the overlay is full"
    );
};
