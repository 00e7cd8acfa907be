//! Errors, by what the caller must do about them.
//!
//! - [`OpenError`]: the store was not opened. Its text names the file or folder, what was found
//!   there and what to do.
//! - [`StorageError`]: an open store failed. Whoever gets one stops the process: nothing is
//!   retried, since a failed write leaves unknown what is on the disk.
//! - [`DecodeError`]: bytes from elsewhere are not a record.

use std::io;
use std::path::PathBuf;

use crate::record::Index;

/// What to do about a damaged store, as the end of an error's text.
const REPLACE: &str = "move the data folder away and start the node on a new, empty one: it \
                       catches up from the others (a lone node has no other copy)";

/// A failed operation of a database or of the head file.
#[derive(Debug, thiserror::Error)]
#[error("{place}: cannot {doing}: {cause}")]
pub struct EngineError {
    /// The database's folder or the file.
    pub place: String,
    /// What was being done.
    pub doing: &'static str,
    /// Why it failed.
    pub cause: Cause,
}

impl EngineError {
    /// An error of `place` while `doing` something.
    pub fn new(place: impl Into<String>, doing: &'static str, cause: impl Into<Cause>) -> Self {
        Self { place: place.into(), doing, cause: cause.into() }
    }
}

/// Why a database or a file failed; its text ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// What was read is not what was written.
    #[error("its files are damaged ({found}); {REPLACE}")]
    Damaged {
        /// What was found.
        found: String,
    },
    /// The system refused.
    #[error("{0}; {advice}", advice = io_advice(.0.kind()))]
    Io(io::Error),
    /// The database has no answer.
    #[error("{0}; start again, and if it says the same again, {REPLACE}")]
    Other(String),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                Self::Damaged { found: error.to_string() }
            }
            _ => Self::Io(error),
        }
    }
}

/// What to do about an error of the file system.
fn io_advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on its disk, then start again: nothing that was acknowledged is lost"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "let the user of this process read and write the data folder, then start again"
        }
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "something that is no folder has that name: choose another data folder"
        }
        _ => {
            "look for errors of the disk in the kernel's log; once it works, start again (on a new \
             disk, with an empty data folder)"
        }
    }
}

/// What is wrong with data that was once written whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The log ends before what `head` says was durable.
    #[error(
        "the log has lost its tail: head says record {expected} was durable, but the log ends at {found}"
    )]
    LostTail {
        /// The last record that must be there.
        expected: Index,
        /// The last record that is there.
        found: Index,
    },
    /// The log ends before the checkpoint.
    #[error(
        "the log has lost its tail: the tables hold everything up to record {applied}, but the log ends at {found}"
    )]
    LogEndsBeforeApplied {
        /// The checkpoint's index.
        applied: Index,
        /// The last record that is there.
        found: Index,
    },
    /// The log begins after the checkpoint's next record.
    #[error(
        "the log begins at record {first}, but the tables hold only what came up to record {applied}"
    )]
    AppliedBelowLog {
        /// The checkpoint's index.
        applied: Index,
        /// The log's first record.
        first: Index,
    },
    /// A record that must be there is not.
    #[error("the log does not hold record {index}, which it must")]
    MissingRecord {
        /// The record.
        index: Index,
    },
    /// Rows are missing before rows that a later flush wrote.
    #[error(
        "the log has a gap: record {expected} (part {part}) is missing, yet record {found} is there"
    )]
    Gap {
        /// The record that is missing or incomplete.
        expected: Index,
        /// Its missing part.
        part: u16,
        /// The record of the row that was found instead.
        found: Index,
    },
    /// A log row fails its checksum, or is no log row.
    #[error("a row of the log near record {index} is damaged: {reason}")]
    BadRow {
        /// The record that the row's key names, or the one that was expected.
        index: Index,
        /// What is wrong.
        reason: &'static str,
    },
    /// A record does not continue the one before it.
    #[error("record {index} does not continue the record before it: {reason}")]
    BrokenChain {
        /// The record.
        index: Index,
        /// What is wrong.
        reason: &'static str,
    },
    /// A table row is not what was written.
    #[error("a row of table {table} is damaged (key \"{key}\"): {reason}")]
    BadTableRow {
        /// The table's name.
        table: &'static str,
        /// The key, printable.
        key: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The rows of a table do not come to its running digest.
    #[error(
        "the rows of table {table} are not those that were written (their digest differs): at least one is lost, changed or stale"
    )]
    BadDigest {
        /// The table's name.
        table: &'static str,
    },
    /// A row of the internal `meta` table is missing or damaged.
    #[error("the row {row:?} of table meta is {problem}")]
    BadMeta {
        /// The row's name.
        row: &'static str,
        /// Missing, or what is wrong with it.
        problem: &'static str,
    },
    /// The parts of the folder do not belong together.
    #[error("it belongs to store {found:032x}, but head belongs to store {expected:032x}")]
    OtherStore {
        /// The id in `head`.
        expected: u128,
        /// The id in the database.
        found: u128,
    },
    /// No slot of `head` is valid, in a store that holds data.
    #[error("no slot of head is valid")]
    NoHead,
    /// The file `format` is not what any release writes.
    #[error("it is {found}, which no release writes")]
    BadFormat {
        /// What was found.
        found: String,
    },
}

/// A failure of an open store. The process must stop.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The disk or the database failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Data that was written whole is not so any more.
    #[error("{place} is damaged: {damage}; {REPLACE}")]
    Damaged {
        /// The database's folder or the file.
        place: String,
        /// What is wrong.
        damage: Damage,
    },
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data folder {} is in use by another process: stop that one first, or choose another folder", .folder.display())]
    InUse {
        /// The data folder.
        folder: PathBuf,
    },
    /// The folder holds something else.
    #[error("the folder {} is not a data folder of Onlyonce: it has no file \"format\" but holds {found:?}; choose an empty or a new folder", .folder.display())]
    NotAStore {
        /// The folder.
        folder: PathBuf,
        /// A name that was found in it.
        found: String,
    },
    /// A restore into the folder was cut short.
    #[error("a restore into the data folder {} was cut short, nothing of it can be used: repeat the restore, or choose an empty or a new folder", .folder.display())]
    HalfRestored {
        /// The folder.
        folder: PathBuf,
    },
    /// A store is to be made where one is.
    #[error("the data folder {} holds a store already, which is left as it is: choose an empty or a new folder", .folder.display())]
    HoldsStore {
        /// The folder.
        folder: PathBuf,
    },
    /// Another format or version.
    #[error(
        "{place} has {found}, but this version needs {wanted}: use the release that made it, or choose an empty folder"
    )]
    Format {
        /// The file.
        place: String,
        /// What was found.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// The data folder cannot be made.
    #[error("cannot make the data folder {}: {source}; {}", .folder.display(), folder_advice(.source.kind()))]
    NoFolder {
        /// The data folder.
        folder: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file or folder cannot be read, made or synced.
    #[error("cannot {doing} {}: {source}; {}", .path.display(), io_advice(.source.kind()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// sled put a node into `blobs/`, which it never syncs.
    #[error("{} is not empty (it holds {found:?}): its files are never synced by the database, so nothing in this store can be trusted; {REPLACE}", .folder.display())]
    Blobs {
        /// The `blobs` folder.
        folder: PathBuf,
        /// A file in it.
        found: String,
    },
    /// A flush ended without a true barrier.
    #[error(
        "{place}: barrier not reached: a flush ended without fdatasync, so nothing would survive a power failure; this build of the program must not be used"
    )]
    BarrierNotReached {
        /// The database's folder.
        place: String,
    },
    /// A database failed, or its content is damaged.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What to do when the data folder cannot be made. Its parents are never made: a mistyped path must
/// not become an empty store.
fn folder_advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "make its parent folder first",
        io::ErrorKind::PermissionDenied => "let the user of this process write its parent folder",
        _ => io_advice(kind),
    }
}

impl From<EngineError> for OpenError {
    fn from(error: EngineError) -> Self {
        Self::Storage(StorageError::Engine(error))
    }
}

impl OpenError {
    /// The damage, if that is why the store was not opened.
    #[must_use]
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            Self::Storage(StorageError::Damaged { damage, .. }) => Some(damage),
            Self::Storage(StorageError::Engine(_))
            | Self::InUse { .. }
            | Self::NotAStore { .. }
            | Self::HalfRestored { .. }
            | Self::HoldsStore { .. }
            | Self::Format { .. }
            | Self::NoFolder { .. }
            | Self::Io { .. }
            | Self::Blobs { .. }
            | Self::BarrierNotReached { .. } => None,
        }
    }
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Over [`RECORD_BYTES_MAX`](crate::limits::RECORD_BYTES_MAX).
    #[error("a record of {bytes} bytes is over the limit of {}", crate::limits::RECORD_BYTES_MAX)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The bytes end inside the record.
    #[error("a record ends early: {needed} bytes are needed at offset {at}, {left} are left")]
    Truncated {
        /// Where more bytes are needed.
        at: usize,
        /// How many.
        needed: usize,
        /// How many there are.
        left: usize,
    },
    /// Bytes are left over after the record.
    #[error("{extra} bytes follow a complete record")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A field has a value that no record has.
    #[error("a record's {field} is {value}, which no record has")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}
