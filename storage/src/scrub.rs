//! Scrubbing: adds up the rows of the tables and compares what they come to with the running digests.
//!
//! It goes on in small pieces while checkpoints fold in between. Rows that were added up already and
//! change later are replaced in the sum as they are in the running digests, so that at the end of a
//! pass the two are equal, unless a row is not what was written.

use crate::checkpoint::Checkpointer;
use crate::digest::Digests;
use crate::error::{Damage, StorageError};
use crate::log::damaged;
use crate::record::Table;
use crate::snapshot::Cursor;

/// A pass over all tables.
#[derive(Debug)]
pub(crate) struct Pass {
    /// The rows before it were added up.
    next: Cursor,
    sum: Digests,
    rows: u64,
}

impl Pass {
    pub(crate) fn new() -> Self {
        Self { next: Cursor::start(), sum: Digests::default(), rows: 0 }
    }

    /// A checkpoint makes `old` `new`.
    pub(crate) fn replace(
        &mut self,
        table: Table,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) {
        if self.next.is_beyond(table, key) {
            self.sum.replace(table, key, old, new);
        }
    }
}

/// How far a scrub got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrubbed {
    /// Rows are left for another call.
    Part,
    /// Every row is what was written; the next call begins anew.
    Whole {
        /// How many rows there were when they were met.
        rows: u64,
    },
}

impl Checkpointer {
    /// Adds up the next rows, of about `max_bytes`. After the last ones, an error tells if they are not
    /// what was written.
    pub fn scrub(&mut self, max_bytes: usize) -> Result<Scrubbed, StorageError> {
        let rows = self.read_rows(&self.pass.next, max_bytes)?;
        for effect in &rows.entry.effects {
            let value = effect.value.as_ref().expect("a row that is there");
            self.pass.sum.add(effect.table, &effect.key, value);
            self.pass.rows += 1;
        }
        if let Some(next) = rows.next {
            self.pass.next = next;
            return Ok(Scrubbed::Part);
        }
        let pass = std::mem::replace(&mut self.pass, Pass::new());
        match pass.sum.differs(&self.checkpoint().digests) {
            None => Ok(Scrubbed::Whole { rows: pass.rows }),
            Some(table) => {
                let damage = Damage::BadDigest { table: table.name() };
                Err(damaged(self.tables.engine(), damage))
            }
        }
    }

    /// Gives up the pass that is under way: the next call begins anew.
    pub fn restart_scrub(&mut self) {
        self.pass = Pass::new();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;
    use crate::engine::{Tree, sled};
    use crate::record::{Effect, Entry, Index, Record, View};
    use crate::{Options, open_dir};

    /// A row that the database loses without a word is missed.
    #[test]
    fn what_the_database_lost_is_found() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        let mut store = open_dir(&data, &Options::new(1)).expect("a new store");
        let effects = (0..100).map(|row| Effect::put(Table::Kv, format!("row {row}"), "value"));
        let entries = vec![Entry { effects: effects.collect() }];
        let record = Arc::new(Record::new(View(1), Index(1), Index::ZERO, entries));
        store.state.stage_record(record.clone());
        store.log.append(&[record]).expect("the disk works");
        store.state.note_persisted(Index(1));
        store.state.commit(Index(1));
        let generation = store.state.freeze().expect("record 1");
        store.checkpointer.fold(&generation, || {}).expect("the disk works");
        let whole = store.checkpointer.scrub(usize::MAX).expect("all is well");
        assert_eq!(whole, Scrubbed::Whole { rows: 100 });
        drop((store, generation));

        let lock = Arc::new(File::create(folder.path().join("lock")).expect("a file"));
        let tables = sled::open(&data.join("tables"), Tree::TABLES, 1 << 20, lock).expect("opens");
        assert!(tables.remove(Tree::Table(Table::Kv), b"row 50").expect("removed").is_some());
        tables.flush().expect("the disk works");
        drop(tables);

        let mut store = open_dir(&data, &Options::new(1)).expect("open reads no row of kv");
        let error = store.checkpointer.scrub(usize::MAX).expect_err("a row is lost").to_string();
        assert!(error.contains("data/tables is damaged: the rows of table kv"), "{error}");
    }
}
