//! The limits of operations and reads, checked on both sides: by a client before it sends, by the
//! primary before it executes.

use bytes::Bytes;

use crate::client::{Compare, Condition, Operation, Part, Read, Refusal, Write};
use crate::limits;

impl Operation {
    /// Refuses an operation whose parts are over their limits.
    ///
    /// The encoded operation as a whole is bounded by [`limits::OPERATION_BYTES_MAX`] beside that.
    ///
    /// ```
    /// # use onlyonce_wire::client::{Operation, Refusal, Write};
    /// let nameless = Operation::Write(Write::Delete { key: "".into() });
    /// assert_eq!(nameless.check(), Err(Refusal::Invalid("the key is empty".to_owned())));
    /// ```
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::Invalid`], naming the part.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::Write(write) => check_write(write),
            Self::Cas { key, expected, value } => {
                check_key(key)?;
                expected.as_ref().map_or(Ok(()), check_value)?;
                check_value(value)
            }
            Self::Txn { compares, writes } => {
                for count in [compares.len(), writes.len()] {
                    check_size(Part::Transaction, count, limits::TXN_OPERATIONS_MAX)?;
                }
                compares.iter().try_for_each(check_compare)?;
                writes.iter().try_for_each(check_write)
            }
        }
    }
}

impl Read {
    /// Refuses a read whose parts are over their limits.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::Invalid`], naming the part.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::Get { key } => check_key(key),
            Self::Scan { start, end, limit: _ } => {
                let end = end.as_ref().map_or(0, Bytes::len);
                check_size(Part::Key, start.len().max(end), limits::KEY_BYTES_MAX)
            }
        }
    }
}

fn check_compare(compare: &Compare) -> Result<(), Refusal> {
    check_key(&compare.key)?;
    match &compare.condition {
        Condition::Equals(value) => check_value(value),
        Condition::Present | Condition::Absent => Ok(()),
    }
}

fn check_write(write: &Write) -> Result<(), Refusal> {
    match write {
        Write::Put { key, value } | Write::Append { key, value } => {
            check_key(key)?;
            check_value(value)
        }
        Write::Incr { key, by: _ } | Write::Delete { key } | Write::Get { key } => check_key(key),
    }
}

fn check_key(key: &Bytes) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::Invalid("the key is empty".to_owned()));
    }
    check_size(Part::Key, key.len(), limits::KEY_BYTES_MAX)
}

fn check_value(value: &Bytes) -> Result<(), Refusal> {
    check_size(Part::Value, value.len(), limits::VALUE_BYTES_MAX)
}

/// Refuses what is larger than `limit`.
///
/// # Errors
/// [`Refusal::TooLarge`], naming `what`.
pub fn check_size(what: Part, size: usize, limit: usize) -> Result<(), Refusal> {
    if size > limit {
        return Err(Refusal::TooLarge { what, size: size as u64, limit: limit as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: usize, value: usize) -> Operation {
        let (key, value) = (vec![b'k'; key].into(), vec![b'v'; value].into());
        Operation::Write(Write::Put { key, value })
    }

    /// Each part may be as long as its limit and no longer, and is named when it is.
    #[test]
    fn limits_are_exact_and_named() {
        assert_eq!(put(limits::KEY_BYTES_MAX, limits::VALUE_BYTES_MAX).check(), Ok(()));
        let refused = [
            (put(limits::KEY_BYTES_MAX + 1, 0), Part::Key),
            (put(1, limits::VALUE_BYTES_MAX + 1), Part::Value),
            (
                Operation::Txn {
                    compares: Vec::new(),
                    writes: vec![Write::Get { key: "k".into() }; limits::TXN_OPERATIONS_MAX + 1],
                },
                Part::Transaction,
            ),
        ];
        for (operation, part) in refused {
            let found = operation.check();
            let named = matches!(found, Err(Refusal::TooLarge { what, .. }) if what == part);
            assert!(named, "{part:?}: {found:?}");
        }
        assert!(matches!(put(0, 1).check(), Err(Refusal::Invalid(_))));
        assert!(matches!(Read::Get { key: Bytes::new() }.check(), Err(Refusal::Invalid(_))));
    }
}
