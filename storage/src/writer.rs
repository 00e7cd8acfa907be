//! The log's only writer. Owned by the log-writer thread; every call blocks until it is durable.
//!
//! - Record i + 1 is inserted only after record i, and a group of records only after the flush of
//!   the one before it.
//! - Rows beyond a cut are gone, durably, before anything is inserted in their place: the slot that
//!   announces the cut is synced first, and the one that ends it before the call returns. With the
//!   announcement in force an open removes the rest of the old tail, and only that.
//! - `head` says that rows are pruned before the first of them goes.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::{Engine, Tree};
use crate::error::{Damage, StorageError};
use crate::failpoints::{Point, failpoint};
use crate::head::Head;
use crate::limits::PRUNE_ROWS_MAX;
use crate::log::{self, damaged, parse_key, row_key};
use crate::record::{Index, Mark, Record};
use crate::state::Shared;

/// See the module. After an error the caller stops the process.
#[derive(Debug)]
pub struct LogWriter {
    log: Arc<dyn Engine>,
    head: Head,
    shared: Arc<Shared>,
    last: Mark,
}

impl LogWriter {
    pub(crate) fn new(log: Arc<dyn Engine>, head: Head, shared: Arc<Shared>, last: Mark) -> Self {
        Self { log, head, shared, last }
    }

    /// The last durable record.
    #[must_use]
    pub fn last(&self) -> Index {
        self.last.index
    }

    /// Appends `records` durably, as one group with one flush.
    ///
    /// # Panics
    /// If the records do not continue the log one by one.
    pub fn append(&mut self, records: &[Arc<Record>]) -> Result<(), StorageError> {
        let Some(first) = records.first() else { return Ok(()) };
        let group = first.index;
        failpoint(Point::LogBegin);
        for record in records {
            let Mark { index: last, view, chain } = self.last;
            let index = record.index;
            assert_eq!(index, last.next(), "record {index} is appended after record {last}");
            assert!(record.view >= view, "record {index} of view {} follows {view}", record.view);
            let (rows, chain) = log::rows(record, group, chain);
            for (key, value) in rows {
                if self.log.insert(Tree::Records, &key, &value)?.is_some() {
                    let reason = "a row was there before it was written";
                    return Err(damaged(&*self.log, Damage::BadRow { index, reason }));
                }
                failpoint(Point::LogRow);
            }
            self.last = Mark { index, view: record.view, chain };
        }
        failpoint(Point::LogRows);
        self.log.flush()?;
        failpoint(Point::LogFlushed);
        self.head.write_unsynced(self.last)?;
        failpoint(Point::LogAppended);
        Ok(())
    }

    /// Cuts the log to `after`, durably, and saves the replication's `state` with it.
    ///
    /// # Panics
    /// If `after` is below the checkpoint or beyond the last record, or `state` is longer than
    /// [`STATE_BYTES_MAX`](crate::limits::STATE_BYTES_MAX).
    pub fn cut(&mut self, after: Index, state: &[u8]) -> Result<(), StorageError> {
        let (applied, last) = (self.shared.applied().mark, self.last.index);
        assert!(after >= applied.index, "{after} is cut though {} is applied", applied.index);
        assert!(after <= last, "{after} is cut though {last} is the last record");
        if after == last {
            return self.save(state);
        }
        let mark = match log::mark_of(&*self.log, after)? {
            Some(mark) => mark,
            None if after == applied.index => applied,
            None => {
                let damage = Damage::MissingRecord { index: after };
                return Err(damaged(&*self.log, damage));
            }
        };
        let state = Bytes::copy_from_slice(state);
        failpoint(Point::CutBegin);
        self.head.write(|slot| {
            slot.last = mark;
            slot.cutting = true;
            slot.state = state;
        })?;
        failpoint(Point::CutAnnounced);
        finish_cut(&*self.log, &mut self.head)?;
        failpoint(Point::CutEnd);
        self.last = mark;
        Ok(())
    }

    /// Saves the replication's `state`, durably.
    ///
    /// # Panics
    /// If `state` is longer than [`STATE_BYTES_MAX`](crate::limits::STATE_BYTES_MAX).
    pub fn save(&mut self, state: &[u8]) -> Result<(), StorageError> {
        let state = Bytes::copy_from_slice(state);
        failpoint(Point::StateSaving);
        self.head.write(|slot| slot.state = state)?;
        Ok(())
    }

    /// Removes records up to `upto`, lowest first, but never the last applied one nor any after
    /// it. A call does a bounded piece of work: true if more is left for another.
    pub fn prune(&mut self, upto: Index) -> Result<bool, StorageError> {
        let upto = upto.min(self.shared.applied().mark.index.previous());
        failpoint(Point::PruneBegin);
        if self.head.slot().first <= upto {
            self.head.write(|slot| slot.first = upto.next())?;
            self.shared.set_first(upto.next());
            failpoint(Point::PruneAnnounced);
        }
        let end = row_key(self.head.slot().first, 0);
        let rows = self.log.scan(Tree::Records, &[], Some(&end)).take(PRUNE_ROWS_MAX);
        let keys = rows.map(|row| row.map(|(key, _)| key)).collect::<Result<Vec<_>, _>>()?;
        for key in &keys {
            self.log.remove(Tree::Records, key)?;
            failpoint(Point::PruneRow);
        }
        failpoint(Point::PruneEnd);
        Ok(keys.len() == PRUNE_ROWS_MAX)
    }

    /// Makes `head` say durably what is durable. The caller does this within 100 ms of a commit;
    /// it costs nothing if there is nothing new.
    pub fn sync_head(&mut self) -> Result<(), StorageError> {
        if self.head.is_ahead() {
            self.head.write(|_| {})?;
        }
        Ok(())
    }
}

/// Removes all rows after the last record that `head` names, from the last one down, and only then
/// lets `head` say that the cut is done.
pub(crate) fn finish_cut(log: &dyn Engine, head: &mut Head) -> Result<(), StorageError> {
    let after = head.slot().last.index;
    while let Some((key, _)) = log.last(Tree::Records)? {
        let (index, _) = parse_key(&key).ok_or_else(|| {
            damaged(log, Damage::BadRow { index: after, reason: "its key is no log key" })
        })?;
        if index <= after {
            break;
        }
        log.remove(Tree::Records, &key)?;
        failpoint(Point::CutRow);
    }
    log.flush()?;
    failpoint(Point::CutFlushed);
    head.write(|slot| slot.cutting = false)?;
    Ok(())
}
