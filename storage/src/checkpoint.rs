//! Checkpoints: committed rows move from the overlay into the tables. Owned by its own thread.
//!
//! Readers see the generation until [`State::note_folded`](crate::State::note_folded), so a half-done fold is
//! never visible.
//!
//! Before the first row changes, all that it will replace is read, and one row says durably which
//! record the fold goes up to and what the digests are there. Open finishes a fold that a crash cut
//! short: it folds exactly those records again, from the log (effects are absolute), and takes these
//! digests.

use std::sync::Arc;
use std::time::Duration;

use crate::digest::Checkpoint;
use crate::engine::Engine;
use crate::error::{Damage, StorageError};
use crate::failpoints::{Point, failpoint};
use crate::limits::FOLD_SLICE_BYTES;
use crate::log::{damaged, mark_of};
use crate::overlay::Generation;
use crate::record::Record;
use crate::scrub::Pass;
use crate::snapshot::Site;
use crate::state::Shared;
use crate::tables::Tables;

/// See the module. After an error the caller stops the process.
#[derive(Debug)]
pub struct Checkpointer {
    pub(crate) tables: Tables,
    pub(crate) log: Arc<dyn Engine>,
    pub(crate) shared: Arc<Shared>,
    /// What the rows that a scrub has met come to.
    pub(crate) pass: Pass,
    pub(crate) pause: Duration,
    pub(crate) site: Arc<dyn Site>,
    pub(crate) store_id: u128,
}

impl Checkpointer {
    /// The state that the tables hold.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        self.shared.applied()
    }

    /// Folds `generation` into the tables, durably. Whoever gets the result tells the core, which
    /// calls [`State::note_folded`](crate::State::note_folded).
    ///
    /// # Panics
    /// If the generation does not begin where the last one ended.
    pub fn fold(&mut self, generation: &Generation) -> Result<Checkpoint, StorageError> {
        let before = self.shared.applied();
        assert_eq!(generation.after(), before.mark.index, "a fold continues the one before");
        let upto = generation.upto();
        let mark = mark_of(&*self.log, upto)?
            .ok_or_else(|| damaged(&*self.log, Damage::MissingRecord { index: upto }))?;
        let mut digests = before.digests;
        for (table, key, value) in generation.all_rows() {
            let old = self.tables.get(table, key)?;
            let new = value.map(AsRef::as_ref);
            digests.replace(table, key, old.as_deref(), new);
            self.pass.replace(table, key, old.as_deref(), new);
        }
        let after = Checkpoint { mark, digests };
        failpoint(Point::CheckpointBegin);
        self.tables.write_applied(before, after)?;
        self.tables.flush()?;
        failpoint(Point::CheckpointIntended);
        let mut slice = 0;
        for (table, key, value) in generation.all_rows() {
            self.tables.fold(table, key, value.map(AsRef::as_ref), false)?;
            slice += key.len() + value.map_or(0, bytes::Bytes::len) + 64;
            if slice >= FOLD_SLICE_BYTES {
                slice = 0;
                self.end_slice()?;
            }
        }
        finish(&self.tables, after)?;
        self.shared.set_applied(after);
        Ok(after)
    }

    /// Writes out what is pending, so that no single large sync holds up the log's, and leaves the
    /// disk to others for a moment.
    fn end_slice(&self) -> Result<(), StorageError> {
        self.tables.flush()?;
        failpoint(Point::CheckpointSlice);
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        Ok(())
    }
}

/// All rows of `goal` are written: makes them durable, and then says so.
fn finish(tables: &Tables, goal: Checkpoint) -> Result<(), StorageError> {
    tables.flush()?;
    failpoint(Point::CheckpointFolded);
    tables.write_applied(goal, goal)?;
    failpoint(Point::CheckpointApplied);
    tables.flush()?;
    failpoint(Point::CheckpointEnd);
    Ok(())
}

/// Ends a fold up to `goal` that a crash cut short; `records` are those that it folded.
pub(crate) fn resume<'a>(
    tables: &Tables,
    records: impl Iterator<Item = &'a Record>,
    goal: Checkpoint,
) -> Result<(), StorageError> {
    for effect in records.flat_map(|record| &record.entries).flat_map(|entry| &entry.effects) {
        tables.fold(effect.table, &effect.key, effect.value.as_deref(), true)?;
        failpoint(Point::CheckpointResuming);
    }
    finish(tables, goal)
}
