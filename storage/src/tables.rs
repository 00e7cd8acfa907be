//! Rows of the tables database.
//!
//! ```text
//! row of a table       0 │ value                                  a value up to 16 KiB
//!                      1 │ length u32 │ crc32 of the value u32    a longer one; the rest is in
//! row of `chunks`      a piece of up to 16 KiB, under the key
//!                      table u8 │ key length u16 big-endian │ key │ number u32 big-endian
//! row `applied` of     checkpoint │ checkpoint │ rows begun u64 │ crc32 of that u32
//! `meta`               checkpoint = index u64 │ view u64 │ chain u32 │ five digests u128
//! row `store` of       format u32 │ store id u128 │ crc32 of that u32
//! `meta` (also in the log database)
//! ```
//! Rows stay small because sled keeps nodes over a quarter of a segment in files that it never
//! syncs. While a checkpoint folds, the rows of its keys are in flux: readers look into its
//! generation first and never see them.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::digest::{Checkpoint, Digests};
use crate::engine::{Engine, Rows, Tree};
use crate::error::{Damage, EngineError, StorageError};
use crate::limits::{CHUNK, FORMAT};
use crate::log::damaged;
use crate::record::{Index, Mark, Table, View};

/// An encoded [`Checkpoint`].
const CHECKPOINT_BYTES: usize = 20 + Digests::BYTES;
const INLINE: u8 = 0;
const CHUNKED: u8 = 1;
const CHUNKED_BYTES: usize = 9;

/// An encoded [`Progress`], with its checksum.
const PROGRESS_BYTES: usize = 2 * CHECKPOINT_BYTES + 8 + 4;

/// Which state the tables hold, and how far the fold is that makes another one of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The state that they hold, but for the rows that the fold has begun.
    pub(crate) done: Checkpoint,
    /// Up to where the fold goes, and the digests once all rows that were begun are folded; the same
    /// as `done` while nothing is folded.
    pub(crate) goal: Checkpoint,
    /// How many of the rows that the fold changes, in the order of tables and keys, it has begun: they
    /// may be as before, or changed, or in between. All others are as before.
    pub(crate) begun: u64,
}

impl Progress {
    /// Nothing is folded: the tables hold `state`.
    pub(crate) fn none(state: Checkpoint) -> Self {
        Self { done: state, goal: state, begun: 0 }
    }
}

/// The tables. Cloning it is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    engine: Arc<dyn Engine>,
}

impl Tables {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine }
    }

    /// Reads a row.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        match self.engine.get(Tree::Table(table), key)? {
            Some(row) => self.value(table, key, &row).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the rows from `start` on, up to but without `end`, as they are stored:
    /// [`Self::value`] makes the value of those that are wanted.
    pub(crate) fn scan(&self, table: Table, start: &[u8], end: Option<&[u8]>) -> Rows<'_> {
        self.engine.scan(Tree::Table(table), start, end)
    }

    /// The value of the stored `row`.
    pub(crate) fn value(
        &self,
        table: Table,
        key: &[u8],
        row: &Bytes,
    ) -> Result<Bytes, StorageError> {
        match row.first() {
            Some(&INLINE) => Ok(row.slice(1..)),
            Some(&CHUNKED) if row.len() == CHUNKED_BYTES => {
                let number =
                    |at| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
                self.assemble(table, key, number(1) as usize, number(5))
            }
            _ => Err(self.bad(table, key, "it has an unknown form")),
        }
    }

    fn assemble(
        &self,
        table: Table,
        key: &[u8],
        length: usize,
        crc: u32,
    ) -> Result<Bytes, StorageError> {
        let start = chunk_key(table, key, 0);
        let end = chunk_key(table, key, u32::MAX);
        let mut value = BytesMut::new();
        for chunk in self.engine.scan(Tree::Chunks, &start, Some(&end)) {
            if value.len() >= length {
                break;
            }
            value.put_slice(&chunk?.1);
        }
        if value.len() != length {
            return Err(self.bad(table, key, "pieces of its value are missing"));
        }
        if crc32fast::hash(&value) != crc {
            return Err(self.bad(table, key, "its value fails its checksum"));
        }
        Ok(value.freeze())
    }

    fn bad(&self, table: Table, key: &[u8], reason: &'static str) -> StorageError {
        let key = key.escape_ascii().to_string();
        damaged(&*self.engine, Damage::BadTableRow { table: table.name(), key, reason })
    }

    /// Writes or deletes a row. `thorough` looks for chunks of an earlier value even if the row
    /// has none: a fold that a crash cut short may have left some.
    pub(crate) fn fold(
        &self,
        table: Table,
        key: &[u8],
        value: Option<&[u8]>,
        thorough: bool,
    ) -> Result<(), EngineError> {
        let tree = Tree::Table(table);
        let (old, chunks) = match value {
            None => (self.engine.remove(tree, key)?, 0),
            Some(value) if value.len() <= CHUNK => {
                let row = [&[INLINE], value].concat();
                (self.engine.insert(tree, key, &row)?, 0)
            }
            Some(value) => {
                let length = u32::try_from(value.len()).expect("a value fits a record");
                let mut row = [CHUNKED; CHUNKED_BYTES];
                row[1..5].copy_from_slice(&length.to_le_bytes());
                row[5..].copy_from_slice(&crc32fast::hash(value).to_le_bytes());
                let mut number = 0;
                for chunk in value.chunks(CHUNK) {
                    self.engine.insert(Tree::Chunks, &chunk_key(table, key, number), chunk)?;
                    number += 1;
                }
                (self.engine.insert(tree, key, &row)?, number)
            }
        };
        if thorough || old.is_some_and(|row| row.first() == Some(&CHUNKED)) {
            self.remove_chunks(table, key, chunks)?;
        }
        Ok(())
    }

    /// Removes the chunks of a row from number `from` on.
    fn remove_chunks(&self, table: Table, key: &[u8], from: u32) -> Result<(), EngineError> {
        let start = chunk_key(table, key, from);
        let end = chunk_key(table, key, u32::MAX);
        let old: Result<Vec<Bytes>, EngineError> = self
            .engine
            .scan(Tree::Chunks, &start, Some(&end))
            .map(|row| row.map(|(key, _)| key))
            .collect();
        for key in old? {
            self.engine.remove(Tree::Chunks, &key)?;
        }
        Ok(())
    }

    /// Makes all that was folded durable.
    pub(crate) fn flush(&self) -> Result<(), EngineError> {
        self.engine.flush()
    }

    /// Writes which state the tables hold, and how far a fold is. It counts once flushed.
    pub(crate) fn write_progress(&self, progress: Progress) -> Result<(), EngineError> {
        let mut row = BytesMut::with_capacity(PROGRESS_BYTES);
        for Checkpoint { mark, digests } in [progress.done, progress.goal] {
            row.put_u64_le(mark.index.0);
            row.put_u64_le(mark.view.0);
            row.put_u32_le(mark.chain);
            row.put_slice(&digests.to_bytes());
        }
        row.put_u64_le(progress.begun);
        row.put_u32_le(crc32fast::hash(&row));
        self.engine.insert(Tree::Meta, b"applied", &row).map(drop)
    }

    /// Reads which state the tables hold, and how far a fold is.
    pub(crate) fn read_progress(&self) -> Result<Progress, StorageError> {
        let row = meta_row::<PROGRESS_BYTES>(&*self.engine, "applied")?;
        let row = row.ok_or_else(|| bad_meta(&*self.engine, "applied", "missing"))?;
        let (done, row) = row.split_at(CHECKPOINT_BYTES);
        let (goal, row) = row.split_at(CHECKPOINT_BYTES);
        let begun = u64::from_le_bytes(row[..8].try_into().expect("eight bytes"));
        Ok(Progress { done: checkpoint(done), goal: checkpoint(goal), begun })
    }

    /// Whether no table has a row.
    pub(crate) fn are_empty(&self) -> Result<bool, EngineError> {
        for tree in Tree::TABLES.iter().filter(|tree| **tree != Tree::Meta) {
            if self.engine.last(*tree)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The database.
    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Reads a row and its chunks for the sake of the database's cache.
    pub(crate) fn touch(&self, table: Table, key: &[u8]) {
        // A fold may be changing the row: nothing about it is an error here.
        let _ = self.get(table, key);
    }
}

/// Reads a checkpoint.
fn checkpoint(bytes: &[u8]) -> Checkpoint {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let mark = Mark { index: Index(u64_at(0)), view: View(u64_at(8)), chain: u32_at(16) };
    let digests = bytes[20..CHECKPOINT_BYTES].try_into().expect("so many bytes");
    Checkpoint { mark, digests: Digests::from_bytes(digests) }
}

fn chunk_key(table: Table, key: &[u8], number: u32) -> Vec<u8> {
    let length = u16::try_from(key.len()).expect("a key within its limit");
    [&[table as u8][..], &length.to_be_bytes(), key, &number.to_be_bytes()].concat()
}

fn bad_meta(engine: &dyn Engine, row: &'static str, problem: &'static str) -> StorageError {
    damaged(engine, Damage::BadMeta { row, problem })
}

/// Reads the row `name` of `meta`, which ends with its checksum.
fn meta_row<const N: usize>(
    engine: &dyn Engine,
    name: &'static str,
) -> Result<Option<[u8; N]>, StorageError> {
    let Some(row) = engine.get(Tree::Meta, name.as_bytes())? else { return Ok(None) };
    let row: [u8; N] =
        row.as_ref().try_into().map_err(|_| bad_meta(engine, name, "of a wrong length"))?;
    let (content, crc) = row.split_at(N - 4);
    if crc32fast::hash(content).to_le_bytes() != crc {
        return Err(bad_meta(engine, name, "damaged (its checksum fails)"));
    }
    Ok(Some(row))
}

/// Writes to which store a database belongs.
pub(crate) fn write_store(engine: &dyn Engine, store_id: u128) -> Result<(), EngineError> {
    let mut row = BytesMut::new();
    row.put_u32_le(FORMAT);
    row.put_u128_le(store_id);
    row.put_u32_le(crc32fast::hash(&row));
    engine.insert(Tree::Meta, b"store", &row).map(drop)
}

/// Checks that a database belongs to the store `expected`.
pub(crate) fn check_store(engine: &dyn Engine, expected: u128) -> Result<(), StorageError> {
    let row = meta_row::<24>(engine, "store")?;
    let row = row.ok_or_else(|| bad_meta(engine, "store", "missing"))?;
    let mut found = [0; 16];
    found.copy_from_slice(&row[4..20]);
    match u128::from_le_bytes(found) {
        found if found == expected => Ok(()),
        found => Err(damaged(engine, Damage::OtherStore { expected, found })),
    }
}
