//! Rows of the log database: how a record becomes rows and is read back.
//!
//! ```text
//! key      index u64 big-endian │ part u16 big-endian
//! value    view u64 │ index u64 │ committed u64 │ group u64 │ part u16 │ parts u16 │
//!          previous u32 │ chain u32 │ check u32 │ a piece of the record's body
//! ```
//! Numbers in values are little-endian.
//!
//! - `chain` is the CRC-32 of `previous`, of view, index, committed, part and parts, and of the
//!   piece; `previous` is the chain value of the row before. So a record's chain value (that of its
//!   last row) vouches for the whole log up to it, and is the same on every replica that began from
//!   the same point.
//! - `check` is the CRC-32 of the header before it, which covers the rest.
//! - `group` is the first index of the group of records that was flushed together. Only the last
//!   group of a log can be torn, since a group is written after the flush of the one before: rows
//!   of a later group after a hole mean that durable rows were lost.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::engine::{Engine, Tree};
use crate::error::{Damage, StorageError};
use crate::limits::{LOG_ROW_BYTES_MAX, RECORD_BYTES_MAX};
use crate::record::{Index, Mark, RECORD_HEADER_BYTES, Record, View};

const HEADER_BYTES: usize = 48;
const CHECK_AT: usize = HEADER_BYTES - 4;
const PIECE_BYTES_MAX: usize = LOG_ROW_BYTES_MAX - HEADER_BYTES;

/// The key of a row.
pub(crate) fn row_key(index: Index, part: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.0.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The place that a row's key names.
pub(crate) fn parse_key(key: &[u8]) -> Option<(Index, u16)> {
    let (index, part) = key.split_first_chunk::<8>()?;
    let part = <[u8; 2]>::try_from(part).ok()?;
    Some((Index(u64::from_be_bytes(*index)), u16::from_be_bytes(part)))
}

/// The rows of `record`, and the chain value of the last of them.
pub(crate) fn rows(record: &Record, group: Index, previous: u32) -> (Vec<([u8; 10], Bytes)>, u32) {
    let pieces = record.body().chunks(PIECE_BYTES_MAX);
    let parts = u16::try_from(pieces.len()).expect("a record's limit allows far fewer parts");
    let mut rows = Vec::with_capacity(pieces.len());
    let mut chain = previous;
    for (part, piece) in (0..parts).zip(pieces) {
        let mut row = Header {
            view: record.view,
            index: record.index,
            committed: record.committed,
            group,
            part,
            parts,
            previous: chain,
            chain: 0,
        };
        row.chain = row.chain_of(piece);
        chain = row.chain;
        rows.push((row_key(record.index, part), row.encode(piece)));
    }
    (rows, chain)
}

/// The header of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) view: View,
    pub(crate) index: Index,
    pub(crate) committed: Index,
    pub(crate) group: Index,
    pub(crate) part: u16,
    pub(crate) parts: u16,
    pub(crate) previous: u32,
    pub(crate) chain: u32,
}

impl Header {
    fn chain_of(&self, piece: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.previous.to_le_bytes());
        hasher.update(&self.view.0.to_le_bytes());
        hasher.update(&self.index.0.to_le_bytes());
        hasher.update(&self.committed.0.to_le_bytes());
        hasher.update(&self.part.to_le_bytes());
        hasher.update(&self.parts.to_le_bytes());
        hasher.update(piece);
        hasher.finalize()
    }

    fn encode(&self, piece: &[u8]) -> Bytes {
        let mut row = BytesMut::with_capacity(HEADER_BYTES + piece.len());
        row.put_u64_le(self.view.0);
        row.put_u64_le(self.index.0);
        row.put_u64_le(self.committed.0);
        row.put_u64_le(self.group.0);
        row.put_u16_le(self.part);
        row.put_u16_le(self.parts);
        row.put_u32_le(self.previous);
        row.put_u32_le(self.chain);
        row.put_u32_le(crc32fast::hash(&row));
        row.put_slice(piece);
        row.freeze()
    }
}

/// A row that passed all checks that it allows on its own.
#[derive(Debug)]
pub(crate) struct LogRow {
    pub(crate) header: Header,
    pub(crate) piece: Bytes,
}

impl LogRow {
    /// Reads a row; `near` is where the reader is, for the error if not even the key makes sense.
    pub(crate) fn parse(key: &[u8], value: &Bytes, near: Index) -> Result<Self, Damage> {
        let (index, part) = parse_key(key)
            .ok_or(Damage::BadRow { index: near, reason: "its key is no log key" })?;
        let bad = |reason| Damage::BadRow { index, reason };
        let header: &[u8; HEADER_BYTES] =
            value.first_chunk().ok_or(bad("it is shorter than a header"))?;
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if crc32fast::hash(&header[..CHECK_AT]) != u32_at(CHECK_AT) {
            return Err(bad("its header fails its checksum"));
        }
        let header = Header {
            view: View(u64_at(0)),
            index: Index(u64_at(8)),
            committed: Index(u64_at(16)),
            group: Index(u64_at(24)),
            part: u16_at(32),
            parts: u16_at(34),
            previous: u32_at(36),
            chain: u32_at(40),
        };
        let piece = value.slice(HEADER_BYTES..);
        if header.chain_of(&piece) != header.chain {
            return Err(bad("its content fails its checksum"));
        }
        if (header.index, header.part) != (index, part) {
            return Err(bad("it is stored under another row's key"));
        }
        if header.part >= header.parts || header.group > header.index {
            return Err(bad("its part or group makes no sense"));
        }
        Ok(Self { header, piece })
    }

    /// The place in the log after this row.
    pub(crate) fn next(&self) -> (Index, u16) {
        if self.is_last() {
            (self.header.index.next(), 0)
        } else {
            (self.header.index, self.header.part + 1)
        }
    }

    /// Whether this is its record's last row.
    pub(crate) fn is_last(&self) -> bool {
        self.header.part + 1 == self.header.parts
    }

    /// What a record's last row vouches for.
    pub(crate) fn mark(&self) -> Mark {
        let Header { index, view, chain, .. } = self.header;
        Mark { index, view, chain }
    }
}

/// Puts the rows of a log together again, one after the other.
#[derive(Debug)]
pub(crate) struct Assembler {
    expected: (Index, u16),
    /// The chain value of the row before, if it is known.
    previous: Option<u32>,
    view: View,
    body: BytesMut,
}

impl Assembler {
    /// Expects record `first` next, after a row with the chain value `previous`.
    pub(crate) fn new(first: Index, previous: Option<u32>) -> Self {
        Self { expected: (first, 0), previous, view: View::ZERO, body: BytesMut::new() }
    }

    /// The place of the row that must come next.
    pub(crate) fn expected(&self) -> (Index, u16) {
        self.expected
    }

    /// Takes the next row, which must be the expected one. Returns the encoded record when it is
    /// complete.
    pub(crate) fn push(&mut self, row: &LogRow) -> Result<Option<Bytes>, Damage> {
        let header = &row.header;
        let index = header.index;
        debug_assert_eq!((index, header.part), self.expected, "the caller checks for holes");
        if self.previous.is_some_and(|previous| previous != header.previous) {
            return Err(Damage::BrokenChain { index, reason: "its chain value differs" });
        }
        if header.view < self.view {
            return Err(Damage::BrokenChain { index, reason: "its view is lower" });
        }
        if header.part == 0 {
            let bytes = RECORD_HEADER_BYTES + usize::from(header.parts) * row.piece.len();
            self.body.reserve(bytes.min(RECORD_BYTES_MAX));
            self.body.put_u64_le(header.view.0);
            self.body.put_u64_le(index.0);
            self.body.put_u64_le(header.committed.0);
        }
        self.body.put_slice(&row.piece);
        self.previous = Some(header.chain);
        self.view = header.view;
        self.expected = row.next();
        Ok(row.is_last().then(|| self.body.split().freeze()))
    }
}

/// Decodes a record that came out of the log.
pub(crate) fn decode(index: Index, encoded: Bytes) -> Result<Arc<Record>, Damage> {
    let record = Record::decode(encoded)
        .map_err(|_| Damage::BadRow { index, reason: "its content is no record" })?;
    Ok(Arc::new(record))
}

/// Wraps what was found wrong in `engine`.
pub(crate) fn damaged(engine: &dyn Engine, damage: Damage) -> StorageError {
    StorageError::Damaged { place: engine.place().to_owned(), damage }
}

/// Reads consecutive records from `from` on, up to but without `end`, until `max_bytes` are
/// reached; at least one if it is there. Stops without an error at a hole, which its caller
/// explains.
pub(crate) fn read_records(
    engine: &dyn Engine,
    from: Index,
    end: Index,
    max_bytes: usize,
) -> Result<Vec<Arc<Record>>, StorageError> {
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut assembler = Assembler::new(from, None);
    for row in engine.scan(Tree::Records, &row_key(from, 0), Some(&row_key(end, 0))) {
        let (key, value) = row?;
        let (expected, _) = assembler.expected();
        let row =
            LogRow::parse(&key, &value, expected).map_err(|damage| damaged(engine, damage))?;
        if (row.header.index, row.header.part) != assembler.expected() {
            break;
        }
        let encoded = assembler.push(&row).map_err(|damage| damaged(engine, damage))?;
        let Some(encoded) = encoded else { continue };
        bytes += encoded.len();
        if bytes > max_bytes && !records.is_empty() {
            break;
        }
        let record = decode(row.header.index, encoded).map_err(|damage| damaged(engine, damage))?;
        records.push(record);
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(records)
}

/// What the last row of record `index` vouches for; `None` if the record is not there.
pub(crate) fn mark_of(engine: &dyn Engine, index: Index) -> Result<Option<Mark>, StorageError> {
    let parse = |key: &[u8], value: &Bytes| {
        LogRow::parse(key, value, index).map_err(|damage| damaged(engine, damage))
    };
    let key = row_key(index, 0);
    let Some(value) = engine.get(Tree::Records, &key)? else { return Ok(None) };
    let row = parse(&key, &value)?;
    if row.is_last() {
        return Ok(Some(row.mark()));
    }
    let key = row_key(index, row.header.parts - 1);
    let Some(value) = engine.get(Tree::Records, &key)? else { return Ok(None) };
    Ok(Some(parse(&key, &value)?.mark()))
}
