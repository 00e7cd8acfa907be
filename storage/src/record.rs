//! Records: what is replicated, logged and folded. Plain bytes, no I/O.
//!
//! ```text
//! record  view u64 │ index u64 │ committed u64 │ body
//! body    entries u32 │ entry…
//! entry   effects u32 │ effect…
//! effect  table u8 │ 0 │ key length u32 │ key                              (delete)
//!         table u8 │ 1 │ key length u32 │ key │ value length u32 │ value   (put)
//! ```
//! Numbers are little-endian and of fixed width, so that a record has exactly one encoding: what
//! was decoded is sent on and logged as the very bytes that came in.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::DecodeError;
use crate::limits;

/// Length of a record's header, in bytes.
pub const RECORD_HEADER_BYTES: usize = 24;

const EFFECT_BYTES_MIN: usize = 6;
const ENTRY_BYTES_MIN: usize = 4;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize,
            serde::Deserialize,
        )]
        pub struct $name(pub u64);

        impl $name {
            /// The lowest value.
            pub const ZERO: Self = Self(0);

            /// The value after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The number of a view. Views only grow along a log.
    View
}
number! {
    /// A record's place in the log. The first record has index 1; [`Index::ZERO`] is before it.
    Index
}

impl Index {
    /// The value before this one; that of [`Index::ZERO`] is itself.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// The tables that effects write to. The numbers are part of the disk format and of the records
/// that replicas exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// The rows of the services.
    Kv = 1,
    /// Sessions.
    Sessions = 2,
    /// Saved replies.
    Replies = 3,
    /// Idempotency keys.
    Keys = 4,
    /// What expires when.
    Expiry = 5,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Kv, Self::Sessions, Self::Replies, Self::Keys, Self::Expiry];

    /// The table with that number.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Kv),
            2 => Some(Self::Sessions),
            3 => Some(Self::Replies),
            4 => Some(Self::Keys),
            5 => Some(Self::Expiry),
            _ => None,
        }
    }

    /// The table's name, as on disk.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Sessions => "sessions",
            Self::Replies => "replies",
            Self::Keys => "keys",
            Self::Expiry => "expiry",
        }
    }

    /// Its place in arrays with one element a table.
    pub(crate) const fn slot(self) -> usize {
        self as usize - 1
    }
}

/// One row's new content. Effects are absolute, so that replaying them is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The row's table.
    pub table: Table,
    /// The row's key, at most [`limits::KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// The row's value; `None` deletes the row.
    pub value: Option<Bytes>,
}

impl Effect {
    /// Writes `value` to the row `key` of `table`.
    pub fn put(table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { table, key: key.into(), value: Some(value.into()) }
    }

    /// Deletes the row `key` of `table`.
    pub fn delete(table: Table, key: impl Into<Bytes>) -> Self {
        Self { table, key: key.into(), value: None }
    }

    /// Its encoded length, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        EFFECT_BYTES_MIN + self.key.len() + self.value.as_ref().map_or(0, |value| 4 + value.len())
    }
}

/// All effects of one request, its row in the duplicate table included: they take effect together
/// or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The effects, in the order in which they apply.
    pub effects: Vec<Effect>,
}

impl Entry {
    /// Its encoded length, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        ENTRY_BYTES_MIN + self.effects.iter().map(Effect::bytes).sum::<usize>()
    }

    /// Its encoding, as in a record.
    ///
    /// # Panics
    /// If a key is longer than [`limits::KEY_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::with_capacity(self.bytes());
        put_entry(&mut buffer, self);
        buffer.freeze()
    }

    /// Reads an entry that fills `bytes` exactly. Keys and values are slices of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader { bytes, at: 0 };
        let entry = reader.entry()?;
        match reader.left() {
            0 => Ok(entry),
            extra => Err(DecodeError::Trailing { extra }),
        }
    }
}

/// A place in the log that vouches for all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// The record.
    pub index: Index,
    /// Its view.
    pub view: View,
    /// The chain value of its last row: the checksum of the log up to it.
    pub chain: u32,
}

/// Entries that are committed together, at one index of the log.
///
/// The fields are for reading: the encoding is made once, with the record, and peers, log and
/// chain rely on it.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// The view in which it was made.
    pub view: View,
    /// Its place in the log.
    pub index: Index,
    /// The committed index of its primary when it was made: a floor below which no log that holds
    /// this record is ever cut. Always below `index`.
    pub committed: Index,
    /// The entries, in the order in which they apply.
    pub entries: Vec<Entry>,
    encoded: Bytes,
}

impl Record {
    /// Makes a record and its encoding.
    ///
    /// # Panics
    /// If `index` is zero, `committed` is not below it, a key is longer than
    /// [`limits::KEY_BYTES_MAX`] or the whole longer than [`limits::RECORD_BYTES_MAX`]: whoever
    /// fills a record keeps these limits.
    #[must_use]
    pub fn new(view: View, index: Index, committed: Index, entries: Vec<Entry>) -> Self {
        let bytes = Self::bytes_of(&entries);
        assert!(
            committed < index,
            "record {index} claims that {committed} was committed before it"
        );
        assert!(bytes <= limits::RECORD_BYTES_MAX, "a record of {bytes} bytes is over the limit");
        let mut buffer = BytesMut::with_capacity(bytes);
        buffer.put_u64_le(view.0);
        buffer.put_u64_le(index.0);
        buffer.put_u64_le(committed.0);
        buffer.put_u32_le(count(entries.len()));
        for entry in &entries {
            put_entry(&mut buffer, entry);
        }
        debug_assert_eq!(buffer.len(), bytes, "the length is computed as the bytes are written");
        Self { view, index, committed, entries, encoded: buffer.freeze() }
    }

    /// The length that a record with these entries would have, in bytes.
    #[must_use]
    pub fn bytes_of(entries: &[Entry]) -> usize {
        RECORD_HEADER_BYTES + 4 + entries.iter().map(Entry::bytes).sum::<usize>()
    }

    /// The record's one encoding, header and body. It costs a reference count.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.encoded.clone()
    }

    /// Its encoded length, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.encoded.len()
    }

    /// The encoding without its header.
    pub(crate) fn body(&self) -> &[u8] {
        &self.encoded[RECORD_HEADER_BYTES..]
    }

    /// Reads a record that fills `bytes` exactly. Keys and values are slices of `bytes`, so they
    /// keep all of it alive.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > limits::RECORD_BYTES_MAX {
            return Err(DecodeError::TooLong { bytes: bytes.len() });
        }
        let mut reader = Reader { bytes: &bytes, at: 0 };
        let view = View(reader.u64()?);
        let index = Index(reader.u64()?);
        let committed = Index(reader.u64()?);
        if index == Index::ZERO {
            return Err(DecodeError::Field { field: "index", value: 0 });
        }
        if committed >= index {
            return Err(DecodeError::Field { field: "committed index", value: committed.0 });
        }
        let count = reader.count("number of entries", ENTRY_BYTES_MIN)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(reader.entry()?);
        }
        match reader.left() {
            0 => Ok(Self { view, index, committed, entries, encoded: bytes }),
            extra => Err(DecodeError::Trailing { extra }),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Record(view {}, index {}, committed {}, {} entries, {} bytes)",
            self.view,
            self.index,
            self.committed,
            self.entries.len(),
            self.bytes()
        )
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).expect("a record within its limit counts far less")
}

fn put_entry(buffer: &mut BytesMut, entry: &Entry) {
    buffer.put_u32_le(count(entry.effects.len()));
    for effect in &entry.effects {
        put_effect(buffer, effect);
    }
}

fn put_effect(buffer: &mut BytesMut, effect: &Effect) {
    let key = &effect.key;
    assert!(key.len() <= limits::KEY_BYTES_MAX, "a key of {} bytes is over the limit", key.len());
    buffer.put_u8(effect.table as u8);
    buffer.put_u8(u8::from(effect.value.is_some()));
    buffer.put_u32_le(count(key.len()));
    buffer.put_slice(key);
    if let Some(value) = &effect.value {
        buffer.put_u32_le(count(value.len()));
        buffer.put_slice(value);
    }
}

/// Takes fields off the front of a record's bytes, checking every length before it is used.
struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Moves past `needed` bytes and returns where they begin.
    fn skip(&mut self, needed: usize) -> Result<usize, DecodeError> {
        let (at, left) = (self.at, self.left());
        if needed > left {
            return Err(DecodeError::Truncated { at, needed, left });
        }
        self.at += needed;
        Ok(at)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let at = self.skip(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of items of at least `bytes_min` bytes each: never more than could follow.
    fn count(&mut self, field: &'static str, bytes_min: usize) -> Result<usize, DecodeError> {
        let value = self.u32()?;
        if value as usize > self.left() / bytes_min {
            return Err(DecodeError::Field { field, value: u64::from(value) });
        }
        Ok(value as usize)
    }

    fn slice(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.u32()? as usize;
        let at = self.skip(length)?;
        Ok(self.bytes.slice(at..at + length))
    }

    fn entry(&mut self) -> Result<Entry, DecodeError> {
        let count = self.count("number of effects", EFFECT_BYTES_MIN)?;
        let mut effects = Vec::with_capacity(count);
        for _ in 0..count {
            effects.push(self.effect()?);
        }
        Ok(Entry { effects })
    }

    fn effect(&mut self) -> Result<Effect, DecodeError> {
        let table = self.u8()?;
        let table = Table::from_byte(table)
            .ok_or(DecodeError::Field { field: "table", value: u64::from(table) })?;
        let kind = self.u8()?;
        let key = self.slice()?;
        if key.len() > limits::KEY_BYTES_MAX {
            return Err(DecodeError::Field { field: "key length", value: key.len() as u64 });
        }
        let value = match kind {
            0 => None,
            1 => Some(self.slice()?),
            _ => return Err(DecodeError::Field { field: "kind", value: u64::from(kind) }),
        };
        Ok(Effect { table, key, value })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn effects() -> impl Strategy<Value = Vec<Effect>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let effect = (0..5usize, bytes(), proptest::option::of(bytes()))
            .prop_map(|(table, key, value)| Effect { table: Table::ALL[table], key, value });
        proptest::collection::vec(effect, 0..4)
    }

    fn records() -> impl Strategy<Value = Record> {
        let entries = proptest::collection::vec(effects(), 0..5);
        (any::<u64>(), 1..u64::MAX, entries).prop_map(|(view, index, entries)| {
            let entries = entries.into_iter().map(|effects| Entry { effects }).collect();
            Record::new(View(view), Index(index), Index(index / 2), entries)
        })
    }

    proptest! {
        /// A record comes out as it went in, and its bytes are its only encoding.
        #[test]
        fn records_survive_encoding(record in records()) {
            let bytes = record.encode();
            prop_assert_eq!(bytes.len(), record.bytes());
            let read = Record::decode(bytes.clone()).expect("its own encoding");
            prop_assert_eq!(&read, &record);
            let again = Record::new(read.view, read.index, read.committed, read.entries);
            prop_assert_eq!(again.encode(), bytes);
        }

        /// Garbage, and records that were cut or changed, never panic the decoder; what it accepts
        /// is exactly what it was given.
        #[test]
        fn garbage_never_panics(
            record in records(),
            cut in any::<prop::sample::Index>(),
            flip in any::<(prop::sample::Index, u8)>(),
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Record::decode(Bytes::from(garbage));
            let bytes = record.encode();
            let cut = cut.index(bytes.len());
            prop_assert!(Record::decode(bytes.slice(..cut)).is_err());
            let mut flipped = bytes.to_vec();
            let at = flip.0.index(flipped.len());
            flipped[at] ^= flip.1;
            if let Ok(read) = Record::decode(Bytes::from(flipped.clone())) {
                let again = Record::new(read.view, read.index, read.committed, read.entries);
                prop_assert_eq!(again.encode(), flipped);
            }
        }
    }

    /// Counts that promise more than the bytes that follow are refused before anything is allocated.
    #[test]
    fn lying_counts_are_refused() {
        let mut bytes = Record::new(View(1), Index(1), Index::ZERO, Vec::new()).encode().to_vec();
        bytes[RECORD_HEADER_BYTES..].copy_from_slice(&u32::MAX.to_le_bytes());
        let refused = Record::decode(Bytes::from(bytes));
        let value = u64::from(u32::MAX);
        assert_eq!(refused, Err(DecodeError::Field { field: "number of entries", value }));
    }
}
