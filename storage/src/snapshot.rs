//! Snapshots: a store's rows for another one, and the store that is built from them.
//!
//! A snapshot is a sequence of entries. The first ones are the rows of the tables, read in key order
//! while checkpoints go on in between; so they show the state of different moments, the earliest
//! being `s`, the applied point before the first was read. The effects of the records after `s`
//! follow, up to `e`, the applied point after the last row was read, but for those that a row already
//! shows because it was read later ([`Coverage`]). Effects are absolute: whoever folds all of it into
//! empty tables, in order, has exactly the state at `e`.
//!
//! The receiver builds a new store beside the one that it has ([`Incoming`]), complete and durable,
//! and puts it in the old one's place in one step: [`Incoming::finish`]. The next open finds it. At
//! any moment before, the old store is the store. A restore builds one where none was
//! ([`build_dir`](crate::build_dir)).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::checkpoint::Checkpointer;
use crate::digest::{Checkpoint, Digests};
use crate::engine::{Engine, HeadFile};
use crate::error::{OpenError, StorageError};
use crate::failpoints::{Point, failpoint};
use crate::limits::INCOMING_FLUSH_BYTES;
use crate::open::{Disk, create};
use crate::record::{Effect, Entry, Index, Mark, Table};
use crate::tables::Tables;

/// Where a store can be built: beside the one that is open, to replace it, or where none was.
pub trait Site: fmt::Debug + Send + Sync {
    /// An empty disk, beside the store's own if there is one; what an earlier attempt left is removed.
    fn clear(&self) -> Result<Disk, OpenError>;

    /// Makes what was built there the store that the next open finds: atomically, and durably.
    fn accept(&self) -> Result<(), OpenError>;
}

/// Where the reading of rows goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    table: Table,
    start: Bytes,
}

impl Cursor {
    /// Before the first row of the first table.
    #[must_use]
    pub fn start() -> Self {
        Self { table: Table::ALL[0], start: Bytes::new() }
    }

    /// Whether the row `key` is one of those before it.
    pub(crate) fn is_beyond(&self, table: Table, key: &[u8]) -> bool {
        (self.table, &self.start[..]) > (table, key)
    }
}

/// Rows of the tables, in the order of tables and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The rows, as effects that write them.
    pub entry: Entry,
    /// Where to go on; none after the last row.
    pub next: Option<Cursor>,
    /// The state of the tables when they were read.
    pub applied: Checkpoint,
}

/// Which effects the rows of a snapshot show already: those of the records up to the applied point
/// at which the row was read. One entry for each checkpoint that ended between two pieces.
#[derive(Debug, Default)]
pub struct Coverage {
    /// Up to where (none: the last row) rows were read at which applied point; both only grow.
    spans: Vec<(Option<Cursor>, Index)>,
}

impl Coverage {
    /// Takes note of the next rows.
    pub fn add(&mut self, rows: &Rows) {
        let applied = rows.applied.mark.index;
        self.spans.pop_if(|(_, index)| *index == applied);
        self.spans.push((rows.next.clone(), applied));
    }

    /// Whether the rows show this effect of record `index`: it need not be sent.
    #[must_use]
    pub fn shows(&self, index: Index, effect: &Effect) -> bool {
        let spans = &self.spans;
        let span = spans.partition_point(|(end, _)| {
            end.as_ref().is_some_and(|end| !end.is_beyond(effect.table, &effect.key))
        });
        spans.get(span).is_some_and(|(_, applied)| index <= *applied)
    }
}

impl Checkpointer {
    /// Reads rows from `from` on, until `max_bytes` are reached. No checkpoint folds meanwhile: the
    /// rows are those of one applied point.
    pub fn read_rows(&self, from: &Cursor, max_bytes: usize) -> Result<Rows, StorageError> {
        let applied = self.checkpoint();
        let mut rows = Rows { entry: Entry::default(), next: None, applied };
        let mut bytes = 0;
        for table in Table::ALL.into_iter().filter(|table| *table >= from.table) {
            let start = if table == from.table { from.start.clone() } else { Bytes::new() };
            for row in self.tables.scan(table, &start, None) {
                let (key, row) = row?;
                if bytes >= max_bytes {
                    rows.next = Some(Cursor { table, start: key });
                    return Ok(rows);
                }
                let value = self.tables.value(table, &key, &row)?;
                let effect = Effect::put(table, key, value);
                bytes += effect.bytes();
                rows.entry.effects.push(effect);
            }
        }
        Ok(rows)
    }

    /// Begins to build a store that will replace this one, under the same id. An earlier attempt is
    /// removed, and must have been dropped.
    pub fn begin_incoming(&self) -> Result<Incoming, OpenError> {
        Incoming::begin(self.site.clone(), self.store_id)
    }
}

/// A store that is being built, to replace another one or where none was.
#[derive(Debug)]
pub struct Incoming {
    tables: Tables,
    log: Arc<dyn Engine>,
    head: Box<dyn HeadFile>,
    site: Arc<dyn Site>,
    store_id: u128,
    digests: Digests,
    unflushed: usize,
}

impl Incoming {
    /// Begins to build a store on an empty disk.
    pub(crate) fn begin(site: Arc<dyn Site>, store_id: u128) -> Result<Self, OpenError> {
        let Disk { log, tables, head, site: _ } = site.clear()?;
        Ok(Self {
            tables: Tables::new(tables),
            log,
            head,
            site,
            store_id,
            digests: Digests::default(),
            unflushed: 0,
        })
    }

    /// Folds the next entry of the snapshot.
    pub fn fold(&mut self, entry: &Entry) -> Result<(), StorageError> {
        for Effect { table, key, value } in &entry.effects {
            let old = self.tables.get(*table, key)?;
            self.digests.replace(*table, key, old.as_deref(), value.as_deref());
            self.tables.fold(*table, key, value.as_deref(), false)?;
        }
        self.unflushed += entry.bytes();
        if self.unflushed >= INCOMING_FLUSH_BYTES {
            self.unflushed = 0;
            self.tables.flush()?;
        }
        failpoint(Point::SnapshotFolded);
        Ok(())
    }

    /// What the rows come to so far.
    #[must_use]
    pub fn digests(&self) -> Digests {
        self.digests
    }

    /// The store's id.
    #[must_use]
    pub fn store_id(&self) -> u128 {
        self.store_id
    }

    /// The snapshot is complete: its state is that at `end`. Makes the store whole, with `state` as
    /// the replication's, and the one that the next open finds. The caller opens it before it does
    /// anything else with the old one.
    pub fn finish(self, end: Mark, state: Bytes) -> Result<(), OpenError> {
        let Self { tables, log, head, site, store_id, digests, .. } = self;
        let state_at_end = Checkpoint { mark: end, digests };
        let head = create(&*log, &tables, head, store_id, state_at_end, state)?;
        drop((tables, log, head));
        failpoint(Point::SnapshotBuilt);
        site.accept()?;
        failpoint(Point::SnapshotAccepted);
        Ok(())
    }
}
