//! The store as the core thread sees it: the newest rows, and the records of the log.
//!
//! - applied ≤ settled ≤ committed ≤ last, where settled is committed and durable here.
//! - The overlay holds exactly the effects of the records after `applied` and of the open record.
//! - `tail` holds consecutive records up to the last one, and all that are not durable yet.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::digest::Checkpoint;
use crate::engine::{Engine, Rows};
use crate::error::{Damage, StorageError};
use crate::limits::TAIL_BYTES_MAX;
use crate::log::{self, damaged};
use crate::overlay::{Generation, Overlay, Range};
use crate::record::{Entry, Index, Record, Table, View};
use crate::tables::Tables;

/// What the threads of a store tell each other.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The first record that the log still has. Written by the log writer before it removes rows.
    first: AtomicU64,
    /// The checkpoint. Written by the checkpoint thread once it is durable.
    applied: Mutex<Checkpoint>,
}

impl Shared {
    pub(crate) fn new(first: Index, applied: Checkpoint) -> Self {
        Self { first: AtomicU64::new(first.0), applied: Mutex::new(applied) }
    }

    pub(crate) fn first(&self) -> Index {
        Index(self.first.load(Ordering::Acquire))
    }

    pub(crate) fn set_first(&self, first: Index) {
        self.first.store(first.0, Ordering::Release);
    }

    pub(crate) fn applied(&self) -> Checkpoint {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_applied(&self, checkpoint: Checkpoint) {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = checkpoint;
    }
}

/// What a read of one row found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The row's value; `None` if there is no such row.
    pub value: Option<Bytes>,
    /// The record that last wrote or deleted the row, if its effects are not in the tables yet;
    /// else [`Index::ZERO`]. Whoever answers from the row waits until that record is committed.
    pub index: Index,
}

/// A row met by a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRow {
    /// Its key.
    pub key: Bytes,
    /// Its value; `None` for a row whose deletion is not in the tables yet. It is no part of the
    /// result, but what the scan saw rests on it.
    pub value: Option<Bytes>,
    /// As [`Seen::index`].
    pub index: Index,
}

/// The newest state and the records of the log. Owned by the core thread.
///
/// Its methods assert what the log's invariants demand: a failed assertion is a broken caller, and
/// nothing may go on after it.
#[derive(Debug)]
pub struct State {
    tables: Tables,
    log: Arc<dyn Engine>,
    shared: Arc<Shared>,
    overlay: Overlay,
    tail: VecDeque<Arc<Record>>,
    tail_bytes: usize,
    /// Where views begin, ascending: the first record of each that the log holds.
    views: VecDeque<(Index, View)>,
    /// Effects staged for the open record.
    open_effects: usize,
    applied: (View, Index),
    committed: Index,
    persisted: Index,
    last: (View, Index),
}

impl State {
    /// A state above `applied`, with the durable records of views `views` before it.
    pub(crate) fn new(
        tables: Tables,
        log: Arc<dyn Engine>,
        shared: Arc<Shared>,
        views: VecDeque<(Index, View)>,
    ) -> Self {
        let applied = shared.applied().mark;
        Self {
            tables,
            log,
            overlay: Overlay::new(applied.index),
            shared,
            tail: VecDeque::new(),
            tail_bytes: 0,
            views,
            open_effects: 0,
            applied: (applied.view, applied.index),
            committed: applied.index,
            persisted: applied.index,
            last: (applied.view, applied.index),
        }
    }

    /// Reads the newest version of a row, committed or not.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Seen, StorageError> {
        match self.overlay.get(table, key) {
            Some(version) => Ok(Seen { value: version.value.clone(), index: version.index }),
            None => Ok(Seen { value: self.tables.get(table, key)?, index: Index::ZERO }),
        }
    }

    /// Reads the newest versions of the rows from `start` on, up to but without `end`, in the byte
    /// order of their keys and as they are asked for. Rows whose deletion is not in the tables yet
    /// are met too, without a value.
    #[must_use]
    pub fn scan(&self, table: Table, start: &[u8], end: Option<&[u8]>) -> Scan<'_> {
        Scan {
            table,
            overlay: self.overlay.range(table, start, end).peekable(),
            stored: self.tables.scan(table, start, end).peekable(),
            tables: &self.tables,
        }
    }

    /// Applies one entry of the open record on top: later reads see it.
    ///
    /// # Panics
    /// If `index` is not the one after the last record.
    pub fn stage(&mut self, index: Index, entry: &Entry) {
        let last = self.last.1;
        assert_eq!(index, last.next(), "an entry is staged at {index} after record {last}");
        self.open_effects += entry.effects.len();
        for effect in &entry.effects {
            self.overlay.stage(index, effect);
        }
    }

    /// Closes the open record, whose entries were staged: it is the last one from now on.
    ///
    /// # Panics
    /// If it does not follow the last record, or other effects were staged than it has.
    pub fn push(&mut self, record: Arc<Record>) {
        let (view, last) = self.last;
        let index = record.index;
        assert_eq!(index, last.next(), "record {index} is pushed after record {last}");
        assert!(record.view >= view, "record {index} of view {} follows view {view}", record.view);
        let effects: usize = record.entries.iter().map(|entry| entry.effects.len()).sum();
        let staged = std::mem::take(&mut self.open_effects);
        assert_eq!(effects, staged, "effects of record {index}, and those that were staged");
        if self.views.back().is_none_or(|(_, view)| *view != record.view) {
            self.views.push_back((index, record.view));
        }
        self.last = (record.view, index);
        self.tail_bytes += record.bytes();
        self.tail.push_back(record);
    }

    /// Stages the entries of a record of another origin and pushes it.
    pub fn stage_record(&mut self, record: Arc<Record>) {
        assert_eq!(self.open_effects, 0, "record {} meets an open record", record.index);
        for entry in &record.entries {
            self.stage(record.index, entry);
        }
        self.push(record);
    }

    /// Drops the records after `after` and all that was staged after them, entries of the open
    /// record too: readers see again exactly what was below.
    ///
    /// # Panics
    /// If `after` is below the committed index or beyond the last record.
    pub fn unstage_after(&mut self, after: Index) {
        let (committed, last) = (self.committed, self.last.1);
        assert!(after >= committed, "{after} is cut though {committed} is committed");
        assert!(after <= last, "{after} is cut though {last} is the last record");
        self.overlay.take_back(after);
        self.open_effects = 0;
        while self.tail.back().is_some_and(|record| record.index > after) {
            let record = self.tail.pop_back().expect("just seen");
            self.tail_bytes -= record.bytes();
        }
        while self.views.back().is_some_and(|(first, _)| *first > after) {
            self.views.pop_back();
        }
        let view = self.views.back().map_or(self.applied.0, |(_, view)| *view);
        self.last = (view, after);
        self.persisted = self.persisted.min(after);
    }

    /// The records up to `index` are committed: they will never be cut. Never falls.
    ///
    /// # Panics
    /// If `index` is beyond the last record.
    pub fn commit(&mut self, index: Index) {
        let last = self.last.1;
        assert!(index <= last, "{index} commits, but {last} is the last record");
        self.committed = self.committed.max(index);
        self.settle();
    }

    /// The records up to `index` are durable in the log: they may leave memory. Never falls, but
    /// with a cut; the caller forgets the writer's reports from before a cut.
    ///
    /// # Panics
    /// If `index` is beyond the last record.
    pub fn note_persisted(&mut self, index: Index) {
        let last = self.last.1;
        assert!(index <= last, "{index} is durable, but {last} is the last record");
        self.persisted = self.persisted.max(index);
        self.settle();
        while self.tail_bytes > TAIL_BYTES_MAX
            && self.tail.front().is_some_and(|record| record.index <= self.persisted)
        {
            let record = self.tail.pop_front().expect("just seen");
            self.tail_bytes -= record.bytes();
        }
    }

    fn settle(&mut self) {
        self.overlay.settle(self.committed.min(self.persisted));
    }

    /// The last record that is known to be durable in the log.
    #[must_use]
    pub fn persisted(&self) -> Index {
        self.persisted
    }

    /// The last record that is known to be committed.
    #[must_use]
    pub fn committed(&self) -> Index {
        self.committed
    }

    /// The last record whose effects are in the tables.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied.1
    }

    /// The newest record that was pushed, or the applied point if there is none after it.
    #[must_use]
    pub fn last(&self) -> (View, Index) {
        self.last
    }

    /// The lowest place that records can be sent after: the beginning if the log holds everything,
    /// the applied point if the log begins after it, else the log's first record.
    #[must_use]
    pub fn floor(&self) -> (View, Index) {
        let first = self.first();
        if first == Index::ZERO.next() {
            return (View::ZERO, Index::ZERO);
        }
        if first > self.applied.1 {
            return self.applied;
        }
        (self.logged_view(first).unwrap_or(self.applied.0), first)
    }

    /// The first record that the log still has; [`Self::last`]'s next if it has none.
    #[must_use]
    pub fn first(&self) -> Index {
        self.shared.first()
    }

    /// Reads a record; `None` if the log does not have it, any more or yet.
    pub fn record(&self, index: Index) -> Result<Option<Arc<Record>>, StorageError> {
        Ok(self.records(index, 0)?.pop())
    }

    /// Reads consecutive records from `from` on, until `max_bytes` are reached, but at least one.
    /// Empty if the log does not have record `from`, any more or yet.
    pub fn records(&self, from: Index, max_bytes: usize) -> Result<Vec<Arc<Record>>, StorageError> {
        if from == Index::ZERO || from < self.first() || from > self.last.1 {
            return Ok(Vec::new());
        }
        let tail_first = self.tail.front().map_or(self.last.1.next(), |record| record.index);
        if from >= tail_first {
            let skipped = (from.0 - tail_first.0) as usize;
            return Ok(self.tail_records(skipped, max_bytes));
        }
        let records = log::read_records(&*self.log, from, tail_first, max_bytes)?;
        if records.is_empty() && from >= self.first() {
            let damage = Damage::MissingRecord { index: from };
            return Err(damaged(&*self.log, damage));
        }
        Ok(records)
    }

    fn tail_records(&self, skipped: usize, max_bytes: usize) -> Vec<Arc<Record>> {
        let mut bytes = 0;
        let mut records = Vec::new();
        for record in self.tail.iter().skip(skipped) {
            bytes += record.bytes();
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.push(record.clone());
        }
        records
    }

    /// The view of the record at `index`, as long as the log has it; also at the applied point,
    /// and at [`Index::ZERO`], which all logs share.
    pub fn view_at(&self, index: Index) -> Result<Option<View>, StorageError> {
        if index == Index::ZERO {
            return Ok(Some(View::ZERO));
        }
        if index == self.applied.1 {
            return Ok(Some(self.applied.0));
        }
        if index < self.first() || index > self.last.1 {
            return Ok(None);
        }
        Ok(self.logged_view(index))
    }

    /// The view of the record at `index`, which the log has.
    fn logged_view(&self, index: Index) -> Option<View> {
        let before = self.views.partition_point(|(first, _)| *first <= index);
        before.checked_sub(1).map(|run| self.views[run].1)
    }

    /// How many bytes the overlay holds: every effect after the applied point, with an allowance
    /// for what a row costs. Beyond [`OVERLAY_BYTES_MAX`](crate::limits::OVERLAY_BYTES_MAX) the
    /// caller stops taking requests until a checkpoint is done.
    #[must_use]
    pub fn overlay_bytes(&self) -> usize {
        self.overlay.bytes()
    }

    /// How many of these bytes the next checkpoint would fold.
    #[must_use]
    pub fn committed_bytes(&self) -> usize {
        self.overlay.settled_bytes()
    }

    /// Freezes what is committed and durable, for a checkpoint; `None` if that is nothing new, or
    /// if a checkpoint is under way.
    pub fn freeze(&mut self) -> Option<Generation> {
        let after = self.applied.1;
        let upto = self.committed.min(self.persisted);
        if self.overlay.folding().is_some() || upto <= after {
            return None;
        }
        let view = self.logged_view(upto).unwrap_or(self.applied.0);
        Some(self.overlay.freeze(after, view))
    }

    /// The checkpoint up to `upto` is durable: readers find its rows in the tables from now on.
    /// Returns the generation, which is best dropped by another thread: that frees all its rows.
    ///
    /// # Panics
    /// If no generation up to `upto` was frozen.
    pub fn note_folded(&mut self, upto: Index) -> Generation {
        let generation = self.overlay.unfreeze().expect("a generation is being folded");
        assert_eq!(generation.upto(), upto, "the generation that was folded");
        self.applied = (generation.view(), upto);
        let first = self.first();
        while self.views.get(1).is_some_and(|(next, _)| *next <= first) {
            self.views.pop_front();
        }
        generation
    }

    /// A handle by which other threads can have rows read into the database's cache.
    #[must_use]
    pub fn toucher(&self) -> Toucher {
        Toucher { tables: self.tables.clone() }
    }
}

/// Reads rows ahead, so that the core thread does not wait for a disk.
#[derive(Clone, Debug)]
pub struct Toucher {
    tables: Tables,
}

impl Toucher {
    /// Reads a row into the database's cache. Whatever comes of it, an error too, is ignored.
    pub fn touch(&self, table: Table, key: &[u8]) {
        self.tables.touch(table, key);
    }
}

/// A scan of a table's newest rows, in key order.
pub struct Scan<'a> {
    table: Table,
    overlay: Peekable<Range<'a>>,
    stored: Peekable<Rows<'a>>,
    tables: &'a Tables,
}

impl Scan<'_> {
    /// The next row that only the tables have.
    fn next_stored(&mut self) -> Option<Result<ScanRow, StorageError>> {
        let row = self.stored.next()?.map_err(StorageError::from);
        Some(row.and_then(|(key, row)| {
            let value = Some(self.tables.value(self.table, &key, &row)?);
            Ok(ScanRow { key, value, index: Index::ZERO })
        }))
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<ScanRow, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some((overlay, _)) = self.overlay.peek() else { return self.next_stored() };
        match self.stored.peek() {
            Some(Err(_)) => return self.next_stored(),
            Some(Ok((stored, _))) if stored < *overlay => return self.next_stored(),
            // What the overlay has of the row hides what is stored, which may be in flux.
            Some(Ok((stored, _))) if stored == *overlay => drop(self.stored.next()),
            Some(Ok(_)) | None => {}
        }
        let (key, version) = self.overlay.next()?;
        let (key, value) = (key.clone(), version.value.clone());
        Some(Ok(ScanRow { key, value, index: version.index }))
    }
}
