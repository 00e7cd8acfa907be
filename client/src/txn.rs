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
    ///
    /// ```
    /// # use onlyonce_client::{Operation, Txn};
    /// // Nothing to compare and nothing to write: it would commit, and change nothing.
    /// let nothing = Operation::Txn { compares: vec![], writes: vec![] };
    /// assert_eq!(Txn::new().into_operation(), nothing);
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` holds exactly `value`.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // Values are compared byte by byte: "10" is not "010", though both are ten to an increment.
    /// let pay = Txn::new().when_equals("balance", "10").incr("balance", -10);
    /// # let _ = pay;
    /// ```
    pub fn when_equals(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.when(key, Condition::Equals(value.into()))
    }

    /// Only if `key` exists.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // An increment takes an absent key for 0; this one counts only what exists.
    /// let visit = Txn::new().when_present("page/7").incr("page/7", 1);
    /// # let _ = visit;
    /// ```
    pub fn when_present(self, key: impl Into<Bytes>) -> Self {
        self.when(key, Condition::Present)
    }

    /// Only if `key` does not exist.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // Two seats or none: whoever comes second changes nothing.
    /// let book = Txn::new()
    ///     .when_absent("seat/7")
    ///     .when_absent("seat/8")
    ///     .put("seat/7", "alice")
    ///     .put("seat/8", "alice");
    /// # let _ = book;
    /// ```
    pub fn when_absent(self, key: impl Into<Bytes>) -> Self {
        self.when(key, Condition::Absent)
    }

    /// Only if `condition` is true of `key`.
    ///
    /// ```
    /// # use onlyonce_client::{Condition, Txn};
    /// // For a condition that is known only when the program runs.
    /// let found: Option<&'static str> = Some("old");
    /// let condition = found.map_or(Condition::Absent, |value| Condition::Equals(value.into()));
    /// let update = Txn::new().when("config", condition).put("config", "new");
    /// assert_eq!(update, Txn::new().when_equals("config", "old").put("config", "new"));
    /// ```
    pub fn when(mut self, key: impl Into<Bytes>, condition: Condition) -> Self {
        self.compares.push(Compare { key: key.into(), condition });
        self
    }

    /// Set `key` to `value`.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // Keys and values are bytes: texts, vectors, `Bytes`.
    /// let user = format!("user/{}", 7);
    /// let save = Txn::new().put(user, vec![0x01, 0xff]).put("users/last", "7");
    /// # let _ = save;
    /// ```
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.write(Write::Put { key: key.into(), value: value.into() })
    }

    /// Add `value` to the end of what `key` holds.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // The balance and the line that tells why, together or not at all.
    /// let pay = Txn::new().incr("balance", -30).append("statement", "rent -30\n");
    /// # let _ = pay;
    /// ```
    pub fn append(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.write(Write::Append { key: key.into(), value: value.into() })
    }

    /// Add `by` to the decimal integer that `key` holds.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // One that cannot be done (a text, or over 64 bits) undoes the whole transaction.
    /// let transfer = Txn::new().incr("alice", -3).incr("bob", 3);
    /// # let _ = transfer;
    /// ```
    pub fn incr(self, key: impl Into<Bytes>, by: i64) -> Self {
        self.write(Write::Incr { key: key.into(), by })
    }

    /// Remove `key`.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // A rename: nobody sees both keys, or neither.
    /// let rename = Txn::new().when_equals("old", "7").delete("old").put("new", "7");
    /// # let _ = rename;
    /// ```
    pub fn delete(self, key: impl Into<Bytes>) -> Self {
        self.write(Write::Delete { key: key.into() })
    }

    /// Read `key`, as the writes before it left it.
    ///
    /// ```
    /// # use onlyonce_client::Txn;
    /// // Both are read at one moment: the sum is right, whoever transfers meanwhile.
    /// let both = Txn::new().get("alice").get("bob");
    /// # let _ = both;
    /// ```
    pub fn get(self, key: impl Into<Bytes>) -> Self {
        self.write(Write::Get { key: key.into() })
    }

    /// Carry out `write` after those before it.
    ///
    /// ```
    /// # use onlyonce_client::{Txn, Write};
    /// let queued = [Write::Delete { key: "job/1".into() }, Write::Delete { key: "job/2".into() }];
    /// let txn = queued.into_iter().fold(Txn::new(), Txn::write);
    /// assert_eq!(txn, Txn::new().delete("job/1").delete("job/2"));
    /// ```
    pub fn write(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }

    /// The transaction as an operation.
    ///
    /// ```
    /// # use onlyonce_client::{Operation, Txn};
    /// // Compares stand before the writes, however they were called.
    /// let txn = Txn::new().incr("n", 1).when_present("n").into_operation();
    /// let Operation::Txn { compares, writes } = txn else { unreachable!() };
    /// assert_eq!((compares.len(), writes.len()), (1, 1));
    /// ```
    #[must_use]
    pub fn into_operation(self) -> Operation {
        Operation::Txn { compares: self.compares, writes: self.writes }
    }
}
