//! The key/value service: what an operation does to rows.
//!
//! An operation runs against a [`Draft`]: it sees the newest staged state and its own writes, and
//! leaves behind absolute effects. Nothing here knows of duplicates, records or replicas.

use bytes::Bytes;
use onlyonce_storage::{Effect, Index, State, StorageError, Table};
use onlyonce_wire::client::{
    Compare, Condition, Failure, Operation, Outcome, Read, TxnOutcome, Write,
};
use onlyonce_wire::limits;

/// The writes of one operation on top of the newest staged state.
pub struct Draft<'a> {
    state: &'a State,
    /// The newest effect of a key is its last.
    effects: Vec<Effect>,
}

impl<'a> Draft<'a> {
    /// Nothing written yet.
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self { state, effects: Vec::new() }
    }

    /// What was written, each key once.
    #[must_use]
    pub fn into_effects(self) -> Vec<Effect> {
        self.effects
    }

    fn get(&self, key: &Bytes) -> Result<Option<Bytes>, StorageError> {
        match self.effects.iter().find(|effect| effect.key == *key) {
            Some(effect) => Ok(effect.value.clone()),
            None => Ok(self.state.get(Table::Kv, key)?.value),
        }
    }

    fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        match self.effects.iter_mut().find(|effect| effect.key == key) {
            Some(effect) => effect.value = value,
            None => self.effects.push(Effect { table: Table::Kv, key, value }),
        }
    }

    fn bytes(&self) -> usize {
        self.effects.iter().map(Effect::bytes).sum()
    }
}

/// Runs a checked operation. An outcome that reports a failure has left no effect.
pub fn execute(draft: &mut Draft, operation: Operation) -> Result<Outcome, StorageError> {
    let outcome = match operation {
        Operation::Write(write) => self::write(draft, write)?,
        Operation::Cas { key, expected, value } => {
            let actual = draft.get(&key)?;
            let swapped = actual == expected;
            if swapped {
                draft.set(key, Some(value));
            }
            Ok(Outcome::Compared { swapped, actual })
        }
        Operation::Txn { compares, writes } => transaction(draft, compares, writes)?,
    };
    let outcome = outcome.and_then(|outcome| within_limits(draft, outcome));
    Ok(outcome.unwrap_or_else(|failure| {
        draft.effects.clear();
        Outcome::Failed(failure)
    }))
}

fn write(draft: &mut Draft, write: Write) -> Result<Result<Outcome, Failure>, StorageError> {
    Ok(Ok(match write {
        Write::Put { key, value } => {
            draft.set(key, Some(value));
            Outcome::Done
        }
        Write::Append { key, value } => {
            let old = draft.get(&key)?.unwrap_or_default();
            let bytes = old.len() + value.len();
            if bytes > limits::VALUE_BYTES_MAX {
                let limit = limits::VALUE_BYTES_MAX as u64;
                return Ok(Err(Failure::ValueTooLong { bytes: bytes as u64, limit }));
            }
            draft.set(key, Some([old, value].concat().into()));
            Outcome::Length(bytes as u64)
        }
        Write::Incr { key, by } => {
            let Some(old) = draft.get(&key)?.map_or(Some(0), |value| parse_integer(&value)) else {
                return Ok(Err(Failure::NotAnInteger));
            };
            let Some(new) = old.checked_add(by) else { return Ok(Err(Failure::Overflow)) };
            draft.set(key, Some(new.to_string().into()));
            Outcome::Integer(new)
        }
        Write::Delete { key } => {
            let existed = draft.get(&key)?.is_some();
            if existed {
                draft.set(key, None);
            }
            Outcome::Deleted(existed)
        }
        Write::Get { key } => Outcome::Value(draft.get(&key)?),
    }))
}

fn parse_integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn transaction(
    draft: &mut Draft,
    compares: Vec<Compare>,
    writes: Vec<Write>,
) -> Result<Result<Outcome, Failure>, StorageError> {
    for (at, Compare { key, condition }) in (0..).zip(compares) {
        let actual = draft.get(&key)?;
        let holds = match condition {
            Condition::Equals(value) => actual == Some(value),
            Condition::Present => actual.is_some(),
            Condition::Absent => actual.is_none(),
        };
        if !holds {
            return Ok(Ok(Outcome::Txn(TxnOutcome::CompareFailed(at))));
        }
    }
    let mut outcomes = Vec::with_capacity(writes.len());
    for (at, write) in (0..).zip(writes) {
        let outcome = self::write(draft, write)?;
        match outcome.and_then(|outcome| within_limits(draft, outcome)) {
            Ok(outcome) => outcomes.push(outcome),
            Err(failure) => {
                draft.effects.clear();
                return Ok(Ok(Outcome::Txn(TxnOutcome::WriteFailed(at, failure))));
            }
        }
    }
    Ok(Ok(Outcome::Txn(TxnOutcome::Committed(outcomes))))
}

fn within_limits(draft: &Draft, outcome: Outcome) -> Result<Outcome, Failure> {
    let bytes = draft.bytes();
    if bytes > limits::ENTRY_BYTES_MAX {
        let limit = limits::ENTRY_BYTES_MAX as u64;
        return Err(Failure::EntryTooLong { bytes: bytes as u64, limit });
    }
    let bytes = outcome_bytes(&outcome);
    if bytes > limits::REPLY_BYTES_MAX {
        let limit = limits::REPLY_BYTES_MAX as u64;
        return Err(Failure::ReplyTooLong { bytes: bytes as u64, limit });
    }
    Ok(outcome)
}

/// An upper bound of an outcome's encoded length.
fn outcome_bytes(outcome: &Outcome) -> usize {
    const HEADER: usize = 16;
    match outcome {
        Outcome::Done
        | Outcome::Length(_)
        | Outcome::Integer(_)
        | Outcome::Deleted(_)
        | Outcome::Failed(_)
        | Outcome::Txn(TxnOutcome::CompareFailed(_) | TxnOutcome::WriteFailed(..)) => 2 * HEADER,
        Outcome::Value(value) | Outcome::Compared { actual: value, .. } => {
            HEADER + value.as_ref().map_or(0, Bytes::len)
        }
        Outcome::Rows { rows, next } => {
            let rows = rows.iter().map(|(key, value)| HEADER + key.len() + value.len());
            HEADER + next.as_ref().map_or(0, Bytes::len) + rows.sum::<usize>()
        }
        Outcome::Txn(TxnOutcome::Committed(outcomes)) => {
            HEADER + outcomes.iter().map(outcome_bytes).sum::<usize>()
        }
    }
}

/// Runs a checked read. Returns its outcome and the index of the newest row that it saw, a deleted
/// one too: it is true once that is committed.
pub fn read(state: &State, read: &Read) -> Result<(Outcome, Index), StorageError> {
    match read {
        Read::Get { key } => {
            let seen = state.get(Table::Kv, key)?;
            Ok((Outcome::Value(seen.value), seen.index))
        }
        Read::Scan { start, end, limit } => scan(state, start, end.as_deref(), *limit),
    }
}

fn scan(
    state: &State,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u32,
) -> Result<(Outcome, Index), StorageError> {
    /// Room for one key and value beside the rows that are already there, and their lengths.
    const ROOM: usize = limits::KEY_BYTES_MAX + 1024;
    let limit = (limit as usize).min(limits::SCAN_ROWS_MAX);
    let mut newest = Index::ZERO;
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut next = None;
    for row in state.scan(Table::Kv, start, end) {
        let row = row?;
        newest = newest.max(row.index);
        let Some(value) = row.value else { continue };
        bytes += 16 + row.key.len() + value.len();
        if rows.len() == limit || bytes + ROOM > limits::REPLY_BYTES_MAX {
            next = Some(row.key);
            break;
        }
        rows.push((row.key, value));
    }
    Ok((Outcome::Rows { rows, next }, newest))
}
