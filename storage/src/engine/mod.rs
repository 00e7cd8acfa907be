//! What the store needs of a disk: two ordered databases and a small file of slots.
//!
//! - `sled`: the real one, behind [`open_dir`](crate::open_dir).
//! - [`memory`]: for tests and simulation. It loses and tears what was not flushed, flips bits and
//!   fails on command.

pub mod memory;
pub(crate) mod sled;

use std::fmt;

use bytes::Bytes;

use crate::error::EngineError;
use crate::limits::SLOT_BYTES;
use crate::record::Table;

/// A tree of rows in one of the two databases. The numbers order the memory engine's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tree {
    /// Facts about the database itself, by name. Both databases have it.
    Meta,
    /// Log database: the log's rows.
    Records,
    /// Tables database: one table's rows.
    Table(Table),
    /// Tables database: the pieces of long values.
    Chunks,
}

impl Tree {
    /// The trees of the log database.
    pub const LOG: &[Self] = &[Self::Meta, Self::Records];
    /// The trees of the tables database.
    pub const TABLES: &[Self] = &[
        Self::Meta,
        Self::Table(Table::Kv),
        Self::Table(Table::Sessions),
        Self::Table(Table::Replies),
        Self::Table(Table::Keys),
        Self::Table(Table::Expiry),
        Self::Chunks,
    ];

    /// The tree's name on disk.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Records => "records",
            Self::Table(table) => table.name(),
            Self::Chunks => "chunks",
        }
    }
}

/// One row: key and value.
pub type Row = (Bytes, Bytes);
/// Rows in key order, read as they are asked for.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row, EngineError>> + 'a>;

/// An ordered database. Each has at most one writing thread at a time; any number may read.
///
/// What was inserted or removed is visible at once and durable after the next successful
/// [`flush`](Self::flush) that began later; before it, a crash may keep any part of it. There are
/// no transactions. After an error nothing is known about what is on the disk.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> &str;

    /// Reads one row.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Reads the rows from `start` on, up to but without `end`.
    fn scan(&self, tree: Tree, start: &[u8], end: Option<&[u8]>) -> Rows<'_>;

    /// Reads the row with the highest key.
    fn last(&self, tree: Tree) -> Result<Option<Row>, EngineError>;

    /// Writes one row; returns what it replaced.
    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Removes one row; returns what it was.
    fn remove(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Makes everything that was written durable, behind a true barrier.
    fn flush(&self) -> Result<(), EngineError>;
}

/// The `head` file: slots of [`SLOT_BYTES`], each in its own block.
pub trait HeadFile: fmt::Debug + Send {
    /// Where it is, for messages.
    fn place(&self) -> &str;

    /// Reads the whole file; slots that were never written are zero or missing.
    fn read(&mut self) -> Result<Vec<u8>, EngineError>;

    /// Writes one slot. It is durable after the next successful [`sync`](Self::sync).
    fn write(&mut self, slot: usize, block: &[u8; SLOT_BYTES]) -> Result<(), EngineError>;

    /// Makes everything that was written durable, behind a true barrier.
    fn sync(&mut self) -> Result<(), EngineError>;
}
