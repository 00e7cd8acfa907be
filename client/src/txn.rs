//! Transactions: compares, then writes, all or nothing, on any keys.

use bytes::Bytes;
use onlyonce_wire::client::{Compare, Condition, Operation, Write};

/// A transaction to be built and given to [`Client::txn`](crate::Client::txn).
///
/// ```
/// # use onlyonce_client::Txn;
/// let transfer = Txn::new().when_equals("alice", "10").put("alice", "7").incr("bob", 3);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Txn {
    compares: Vec<Compare>,
    writes: Vec<Write>,
}

impl Txn {
    /// A transaction that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` holds exactly `value`.
    pub fn when_equals(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.when(key, Condition::Equals(value.into()))
    }

    /// Only if `key` exists.
    pub fn when_present(self, key: impl Into<Bytes>) -> Self {
        self.when(key, Condition::Present)
    }

    /// Only if `key` does not exist.
    pub fn when_absent(self, key: impl Into<Bytes>) -> Self {
        self.when(key, Condition::Absent)
    }

    /// Only if `condition` is true of `key`.
    pub fn when(mut self, key: impl Into<Bytes>, condition: Condition) -> Self {
        self.compares.push(Compare { key: key.into(), condition });
        self
    }

    /// Set `key` to `value`.
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.write(Write::Put { key: key.into(), value: value.into() })
    }

    /// Add `value` to the end of what `key` holds.
    pub fn append(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.write(Write::Append { key: key.into(), value: value.into() })
    }

    /// Add `by` to the decimal integer that `key` holds.
    pub fn incr(self, key: impl Into<Bytes>, by: i64) -> Self {
        self.write(Write::Incr { key: key.into(), by })
    }

    /// Remove `key`.
    pub fn delete(self, key: impl Into<Bytes>) -> Self {
        self.write(Write::Delete { key: key.into() })
    }

    /// Read `key`, as the writes before it left it.
    pub fn get(self, key: impl Into<Bytes>) -> Self {
        self.write(Write::Get { key: key.into() })
    }

    /// Carry out `write` after those before it.
    pub fn write(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }

    /// The transaction as an operation.
    #[must_use]
    pub fn into_operation(self) -> Operation {
        Operation::Txn { compares: self.compares, writes: self.writes }
    }
}
