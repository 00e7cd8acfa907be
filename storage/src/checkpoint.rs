//! Checkpoints: committed rows move from the overlay into the tables. Owned by its own thread.
//!
//! Readers see the generation until [`State::note_folded`](crate::State::note_folded), so a half-done fold is
//! never visible. A crash in between is harmless: effects are absolute, and the records that were
//! being folded are still in the log and are folded again.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::error::{Damage, StorageError};
use crate::limits::FOLD_SLICE_BYTES;
use crate::log::{damaged, mark_of};
use crate::overlay::Generation;
use crate::record::{Index, Table};
use crate::snapshot::Site;
use crate::state::Shared;
use crate::tables::Tables;

/// See the module. After an error the caller stops the process.
#[derive(Debug)]
pub struct Checkpointer {
    pub(crate) tables: Tables,
    pub(crate) log: Arc<dyn Engine>,
    pub(crate) shared: Arc<Shared>,
    /// The log's end when the store was opened: a fold that a crash cut short lies below it.
    pub(crate) recovered: Index,
    pub(crate) pause: Duration,
    pub(crate) site: Arc<dyn Site>,
    pub(crate) store_id: u128,
}

impl Checkpointer {
    /// Folds `generation` into the tables, durably. Whoever gets the result tells the core, which
    /// calls [`State::note_folded`](crate::State::note_folded).
    ///
    /// # Panics
    /// If the generation does not begin where the last one ended.
    pub fn fold(&self, generation: &Generation) -> Result<(), StorageError> {
        let (after, upto) = (generation.after(), generation.upto());
        assert_eq!(after, self.shared.applied().index, "a fold continues the one before");
        let mark = mark_of(&*self.log, upto)?
            .ok_or_else(|| damaged(&*self.log, Damage::MissingRecord { index: upto }))?;
        let thorough = after < self.recovered;
        let mut slice = 0;
        for table in Table::ALL {
            for (key, value) in generation.rows(table) {
                self.tables.fold(table, key, value.map(AsRef::as_ref), thorough)?;
                slice += key.len() + value.map_or(0, bytes::Bytes::len) + 64;
                if slice >= FOLD_SLICE_BYTES {
                    slice = 0;
                    self.end_slice()?;
                }
            }
        }
        self.tables.flush()?;
        self.tables.write_applied(mark)?;
        self.tables.flush()?;
        self.shared.set_applied(mark);
        Ok(())
    }

    /// Writes out what is pending, so that no single large sync holds up the log's, and leaves the
    /// disk to others for a moment.
    fn end_slice(&self) -> Result<(), StorageError> {
        self.tables.flush()?;
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        Ok(())
    }
}
