//! Opening a store: what is checked, in which order, and what is repaired.
//!
//! 1. All that was recovered is made durable, before anything rests on it.
//! 2. `head`: the newest valid slot. No slot in a store that holds anything: fatal. Nothing
//!    anywhere: a new store.
//! 3. A cut that `head` announces is finished.
//! 4. Both databases must belong to `head`'s store; `meta` names the applied point.
//! 5. The log is read from its first record, every row checked. A hole that a torn last group
//!    explains ends it, and the rows beyond are removed, durably; any other is fatal.
//! 6. The log's end must be at or beyond `head`'s last record, the applied point and the end of a
//!    checkpoint that was cut short, with the same chain values there.
//! 7. That checkpoint is finished: its records are folded again.
//! 8. Records after the applied point are staged. Those up to the highest committed index that any
//!    record carries are committed.
//! 9. A synced slot says what was found.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::checkpoint::{self, Checkpointer};
use crate::digest::Checkpoint;
use crate::engine::{Engine, HeadFile, Tree};
use crate::error::{Damage, EngineError, OpenError, StorageError};
use crate::failpoints::{Point, failpoint};
use crate::head::{Found, Head};
use crate::limits::FOLD_SLICE_BYTES;
use crate::log::{self, Assembler, LogRow, damaged, row_key};
use crate::record::{Index, Mark, Record, View};
use crate::scrub::Pass;
use crate::snapshot::Site;
use crate::state::{Shared, State};
use crate::tables::{self, Progress, Tables};
use crate::writer::{LogWriter, finish_cut};

/// The parts of a store on an engine.
#[derive(Debug)]
pub struct Disk {
    /// The log database, with the trees of [`Tree::LOG`].
    pub log: Arc<dyn Engine>,
    /// The tables database, with the trees of [`Tree::TABLES`].
    pub tables: Arc<dyn Engine>,
    /// The head file.
    pub head: Box<dyn HeadFile>,
    /// Where another store can be built that replaces this one.
    pub site: Arc<dyn Site>,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The id that a new store gets, drawn at random by the caller.
    pub new_store_id: u128,
    /// Cache of the log database, in bytes.
    pub log_cache_bytes: u64,
    /// Cache of the tables database, in bytes.
    pub tables_cache_bytes: u64,
    /// How many bytes of rows a checkpoint folds between two rests.
    pub fold_slice_bytes: usize,
}

impl Options {
    /// The usual options; a new store gets `new_store_id`.
    #[must_use]
    pub fn new(new_store_id: u128) -> Self {
        Self {
            new_store_id,
            log_cache_bytes: 32 << 20,
            tables_cache_bytes: 256 << 20,
            fold_slice_bytes: FOLD_SLICE_BYTES,
        }
    }
}

/// An open store, in the parts that its threads own.
#[derive(Debug)]
pub struct Opened {
    /// The store's id.
    pub store_id: u128,
    /// The replication's state as last saved; empty if none was.
    pub state_bytes: Bytes,
    /// Whether nothing was ever saved or logged here.
    pub fresh: bool,
    /// For the core thread.
    pub state: State,
    /// For the log-writer thread.
    pub log: LogWriter,
    /// For the checkpoint thread.
    pub checkpointer: Checkpointer,
    /// What was found.
    pub recovered: Recovered,
}

/// What an open found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The first record that the log has.
    pub first: Index,
    /// The last one.
    pub last: Index,
    /// Its view.
    pub last_view: View,
    /// The last record whose effects are in the tables.
    pub applied: Index,
    /// The highest committed index that the store itself can vouch for.
    pub committed: Index,
    /// How many rows of a torn last group, or of an unfinished cut, were removed.
    pub removed_rows: usize,
}

/// Opens the store on `disk`, or makes one if there is nothing at all.
pub fn open(disk: Disk, options: &Options) -> Result<Opened, OpenError> {
    open_or_create(disk, options, true)
}

/// Opens the store on `disk`; makes one only if `create` says that none can have been there.
pub(crate) fn open_or_create(
    disk: Disk,
    options: &Options,
    create: bool,
) -> Result<Opened, OpenError> {
    let Disk { log, tables, head, site } = disk;
    let tables = Tables::new(tables);
    log.flush()?;
    tables.flush()?;
    failpoint(Point::OpenBarrier);
    let mut head = read_head(head, &*log, &tables, create.then_some(options.new_store_id))?;
    let store_id = head.slot().store_id;
    tables::check_store(&*log, store_id)?;
    tables::check_store(tables.engine(), store_id)?;
    if head.slot().cutting {
        tracing::info!(after = head.slot().last.index.0, "finishing a cut of the log");
        finish_cut(&*log, &mut head)?;
    }
    let progress = tables.read_progress()?;
    let Progress { done: mut applied, goal, .. } = progress;
    let mut replay = replay(&*log, &head, applied.mark, goal.mark)?;
    if replay.removed_rows > 0 {
        tracing::info!(
            rows = replay.removed_rows,
            last = replay.last.index.0,
            "removed a torn last group of the log"
        );
    }

    if goal != applied {
        tracing::info!(upto = goal.mark.index.0, "finishing a checkpoint");
        let folded = replay.split_off_folded(goal.mark.index);
        applied = checkpoint::resume(&tables, &folded, progress, options.fold_slice_bytes)?;
    }

    let first = head.slot().first;
    let shared = Arc::new(Shared::new(first, applied));
    let mut state = State::new(tables.clone(), log.clone(), shared.clone(), replay.views);
    for record in replay.records {
        state.stage_record(record);
    }
    let last = replay.last;
    state.note_persisted(last.index);
    state.commit(replay.committed.clamp(applied.mark.index, last.index));
    failpoint(Point::OpenReplayed);
    head.write(|slot| slot.last = last)?;
    failpoint(Point::OpenEnd);

    let recovered = Recovered {
        first,
        last: last.index,
        last_view: last.view,
        applied: applied.mark.index,
        committed: state.committed(),
        removed_rows: replay.removed_rows,
    };
    let state_bytes = head.slot().state.clone();
    let fresh = state_bytes.is_empty() && last.index == Index::ZERO;
    let checkpointer = Checkpointer {
        tables,
        log: log.clone(),
        shared: shared.clone(),
        pass: Pass::new(),
        slice_bytes: options.fold_slice_bytes,
        site,
        store_id,
    };
    let log = LogWriter::new(log, head, shared, last);
    Ok(Opened { store_id, state_bytes, fresh, state, log, checkpointer, recovered })
}

/// Reads `head`, or makes the new store `new` if there is nothing at all.
fn read_head(
    file: Box<dyn HeadFile>,
    log: &dyn Engine,
    tables: &Tables,
    new: Option<u128>,
) -> Result<Head, OpenError> {
    let (file, new) = match Head::read(file)? {
        Found::Head(head) => return Ok(head),
        Found::Nothing(file) => {
            let empty = log.last(Tree::Records)?.is_none() && tables.are_empty()?;
            (file, new.filter(|_| empty))
        }
        Found::NoValidSlot(file) => (file, None),
    };
    let Some(store_id) = new else {
        let place = file.place().to_owned();
        return Err(StorageError::Damaged { place, damage: Damage::NoHead }.into());
    };
    Ok(create(log, tables, file, store_id, Checkpoint::default(), Bytes::new())?)
}

/// Makes a store of what `tables` holds, which is the state at `applied`. It counts once the head
/// is written.
pub(crate) fn create(
    log: &dyn Engine,
    tables: &Tables,
    head: Box<dyn HeadFile>,
    store_id: u128,
    applied: Checkpoint,
    state: Bytes,
) -> Result<Head, EngineError> {
    tables::write_store(log, store_id)?;
    tables::write_store(tables.engine(), store_id)?;
    tables.write_progress(Progress::none(applied))?;
    log.flush()?;
    tables.flush()?;
    Head::create(head, store_id, applied.mark, state)
}

/// What the log holds.
struct Replay {
    /// The records after the applied point.
    records: Vec<Arc<Record>>,
    /// Where views begin, up to the applied point.
    views: VecDeque<(Index, View)>,
    last: Mark,
    committed: Index,
    removed_rows: usize,
}

/// Reads and checks the log, and removes a torn last group. The tables vouch for `applied` and for
/// `goal`, up to where they may have been folded.
fn replay(log: &dyn Engine, head: &Head, applied: Mark, goal: Mark) -> Result<Replay, OpenError> {
    let wrap = |damage| damaged(log, damage);
    let slot = head.slot();
    if slot.first > applied.index.next() {
        let damage = Damage::AppliedBelowLog { applied: applied.index, first: slot.first };
        return Err(wrap(damage).into());
    }
    let continues_applied = slot.first == applied.index.next();
    let mut assembler = Assembler::new(slot.first, continues_applied.then_some(applied.chain));
    let mut replay = Replay {
        records: Vec::new(),
        views: VecDeque::new(),
        last: Mark { index: slot.first.previous(), ..applied },
        committed: Index::ZERO,
        removed_rows: 0,
    };
    let mut torn = None;
    for row in log.scan(Tree::Records, &row_key(slot.first, 0), None) {
        let (key, value) = row?;
        let (expected, _) = assembler.expected();
        let row = LogRow::parse(&key, &value, expected).map_err(wrap)?;
        let (index, part) = (row.header.index, row.header.part);
        if torn.is_some() || (index, part) != assembler.expected() {
            torn.get_or_insert_with(Vec::new).push(row.header);
            continue;
        }
        if let Some(encoded) = assembler.push(&row).map_err(wrap)? {
            replay.take(&row, encoded, [slot.last, applied, goal], applied).map_err(wrap)?;
            failpoint(Point::OpenReplaying);
        }
    }
    replay.check_end(&assembler, torn.as_deref(), slot.last, goal).map_err(wrap)?;
    if torn.is_some() || assembler.expected().1 > 0 {
        replay.removed_rows = remove_after(log, replay.last.index)?;
    }
    Ok(replay)
}

impl Replay {
    /// Takes the next whole record, whose last row is `row`.
    fn take(
        &mut self,
        row: &LogRow,
        encoded: Bytes,
        vouched: [Mark; 3],
        applied: Mark,
    ) -> Result<(), Damage> {
        let mark = row.mark();
        for known in vouched {
            if mark.index == known.index && mark != known {
                let reason = "another one was known to be durable here";
                return Err(Damage::BrokenChain { index: mark.index, reason });
            }
        }
        if mark.index <= applied.index {
            self.note_view(mark.index, mark.view);
        } else {
            self.records.push(log::decode(mark.index, encoded)?);
        }
        self.committed = self.committed.max(row.header.committed);
        self.last = mark;
        Ok(())
    }

    fn note_view(&mut self, index: Index, view: View) {
        if self.views.back().is_none_or(|(_, last)| *last != view) {
            self.views.push_back((index, view));
        }
    }

    /// Takes out the records up to `upto`, which the tables will hold.
    fn split_off_folded(&mut self, upto: Index) -> Vec<Arc<Record>> {
        let later = self.records.partition_point(|record| record.index <= upto);
        let later = self.records.split_off(later);
        let folded = std::mem::replace(&mut self.records, later);
        for record in &folded {
            self.note_view(record.index, record.view);
        }
        folded
    }

    /// Checks that the log ends where it may: not before what was durable, and not at a hole that a
    /// torn last group does not explain.
    fn check_end(
        &self,
        assembler: &Assembler,
        torn: Option<&[log::Header]>,
        durable: Mark,
        applied: Mark,
    ) -> Result<(), Damage> {
        let found = self.last.index;
        let (expected, part) = assembler.expected();
        if let Some(beyond) = torn {
            // The last group was being written when the process died; those before it were whole.
            let later = beyond.iter().find(|header| header.group > found.next());
            let lost = (found < durable.index).then(|| &beyond[0]);
            if let Some(header) = later.or(lost) {
                return Err(Damage::Gap { expected, part, found: header.index });
            }
        }
        if found < durable.index {
            return Err(Damage::LostTail { expected: durable.index, found });
        }
        if found < applied.index {
            return Err(Damage::LogEndsBeforeApplied { applied: applied.index, found });
        }
        Ok(())
    }
}

/// Removes all rows of records after `after`, durably; returns how many there were.
fn remove_after(log: &dyn Engine, after: Index) -> Result<usize, StorageError> {
    let mut removed = 0;
    let start = row_key(after.next(), 0);
    let keys: Result<Vec<_>, _> =
        log.scan(Tree::Records, &start, None).map(|row| row.map(|(key, _)| key)).collect();
    for key in keys?.into_iter().rev() {
        log.remove(Tree::Records, &key)?;
        removed += 1;
    }
    log.flush()?;
    Ok(removed)
}
