//! Digests of the tables: what all their rows come to, in a form that a change of a few rows changes
//! cheaply and that does not depend on the order of the changes.
//!
//! The digest of a table is the sum, modulo 2^128, of the hashes (XXH3, 128 bits) of its rows. Each
//! checkpoint keeps the running digests beside the applied point; whoever adds up the rows again
//! finds any row that was lost, changed or came back since. Replicas that applied the same records
//! have the same digests.

use std::fmt;

use twox_hash::XxHash3_128;

use crate::record::{Mark, Table};

/// The digests of all tables.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Digests([u128; Table::ALL.len()]);

impl Digests {
    /// The bytes that they take on disk.
    pub(crate) const BYTES: usize = 16 * Table::ALL.len();

    /// Adds a row.
    pub(crate) fn add(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let sum = &mut self.0[table.slot()];
        *sum = sum.wrapping_add(hash(table, key, value));
    }

    /// Takes out a row.
    pub(crate) fn take(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let sum = &mut self.0[table.slot()];
        *sum = sum.wrapping_sub(hash(table, key, value));
    }

    /// A row is `new` now instead of `old`.
    pub(crate) fn replace(
        &mut self,
        table: Table,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) {
        if let Some(old) = old {
            self.take(table, key, old);
        }
        if let Some(new) = new {
            self.add(table, key, new);
        }
    }

    /// The first table whose digests differ.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Option<Table> {
        Table::ALL.into_iter().find(|table| self.0[table.slot()] != other.0[table.slot()])
    }

    /// The digests, in the order of [`Table::ALL`].
    #[must_use]
    pub fn sums(self) -> [u128; Table::ALL.len()] {
        self.0
    }

    /// As [`sums`](Self::sums) gave them.
    #[must_use]
    pub fn from_sums(sums: [u128; Table::ALL.len()]) -> Self {
        Self(sums)
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (bytes, sum) in bytes.chunks_exact_mut(16).zip(self.0) {
            bytes.copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let mut digests = Self::default();
        for (bytes, sum) in bytes.chunks_exact(16).zip(&mut digests.0) {
            *sum = u128::from_le_bytes(bytes.try_into().expect("16 bytes"));
        }
        digests
    }
}

/// One number for all tables, for people to compare.
impl fmt::Display for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", XxHash3_128::oneshot(&self.to_bytes()))
    }
}

fn hash(table: Table, key: &[u8], value: &[u8]) -> u128 {
    let length = u16::try_from(key.len()).expect("a key within its limit").to_le_bytes();
    XxHash3_128::oneshot(&[&[table as u8], &length[..], key, value].concat())
}

/// A state of the tables: that after the record at `mark`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Checkpoint {
    /// The last record whose effects they hold.
    pub mark: Mark,
    /// What their rows come to.
    pub digests: Digests,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_depend_on_the_rows_alone() {
        let rows = [(Table::Kv, "a", "1"), (Table::Kv, "b", "2"), (Table::Replies, "a", "1")];
        let mut forwards = Digests::default();
        let mut backwards = Digests::default();
        for (table, key, value) in rows {
            forwards.add(table, key.as_bytes(), value.as_bytes());
        }
        for (table, key, value) in rows.into_iter().rev() {
            backwards.replace(table, key.as_bytes(), None, Some(b"old"));
            backwards.replace(table, key.as_bytes(), Some(b"old"), Some(value.as_bytes()));
        }
        assert_eq!(forwards, backwards);
        assert_eq!(forwards.differs(&backwards), None);
        assert_eq!(Digests::from_bytes(forwards.to_bytes()), forwards);
        backwards.take(Table::Replies, b"a", b"1");
        assert_eq!(forwards.differs(&backwards), Some(Table::Replies));
        backwards.add(Table::Replies, b"", b"a1");
        assert_ne!(forwards, backwards, "where the key ends is part of the row");
    }
}
