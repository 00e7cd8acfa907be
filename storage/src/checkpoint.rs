//! Checkpoints: committed rows move from the overlay into the tables. Owned by its own thread.
//!
//! Readers see the generation until [`State::note_folded`](crate::State::note_folded), so a half-done fold is
//! never visible.
//!
//! Rows are folded in the order of tables and keys, slice by slice, with rests in between. Before the
//! first row of a slice changes, all that the slice will replace is read, and one row says durably
//! which record the fold goes up to, how many of its rows are begun with this slice, and what the
//! digests are once those are folded. Open finishes a fold that a crash cut short, with the same rows
//! from the log: those that were begun are folded again (effects are absolute), whatever is there, and
//! their digests are known; the others are as they were before the fold, and it goes on with them.

use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Checkpoint;
use crate::engine::Engine;
use crate::error::{Damage, StorageError};
use crate::failpoints::{Point, failpoint};
use crate::limits::FOLD_ROW_OVERHEAD;
use crate::log::{damaged, mark_of};
use crate::overlay::{Generation, GenerationRow};
use crate::record::Record;
use crate::scrub::Pass;
use crate::snapshot::Site;
use crate::state::Shared;
use crate::tables::{Progress, Tables};

/// See the module. After an error the caller stops the process.
#[derive(Debug)]
pub struct Checkpointer {
    pub(crate) tables: Tables,
    pub(crate) log: Arc<dyn Engine>,
    pub(crate) shared: Arc<Shared>,
    /// What the rows that a scrub has met come to.
    pub(crate) pass: Pass,
    pub(crate) slice_bytes: usize,
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
    /// Between two slices it calls `rest`, which may leave disk and processor to others for a while.
    ///
    /// # Panics
    /// If the generation does not begin where the last one ended.
    pub fn fold(
        &mut self,
        generation: &Generation,
        rest: impl FnMut(),
    ) -> Result<Checkpoint, StorageError> {
        let before = self.shared.applied();
        assert_eq!(generation.after(), before.mark.index, "a fold continues the one before");
        let upto = generation.upto();
        let mark = mark_of(&*self.log, upto)?
            .ok_or_else(|| damaged(&*self.log, Damage::MissingRecord { index: upto }))?;
        failpoint(Point::CheckpointBegin);
        let progress = Progress { goal: Checkpoint { mark, ..before }, ..Progress::none(before) };
        let fold = Fold { tables: &self.tables, progress, slice_bytes: self.slice_bytes };
        let after = fold.finish(generation, &mut self.pass, rest)?;
        self.shared.set_applied(after);
        Ok(after)
    }
}

/// Ends the fold at `progress`, which a crash cut short; `records` are those that it folds.
pub(crate) fn resume(
    tables: &Tables,
    records: &[Arc<Record>],
    progress: Progress,
    slice_bytes: usize,
) -> Result<Checkpoint, StorageError> {
    let generation = Generation::of(progress.done.mark.index, records);
    Fold { tables, progress, slice_bytes }.finish(&generation, &mut Pass::new(), || {})
}

/// A fold that goes on.
struct Fold<'a> {
    tables: &'a Tables,
    progress: Progress,
    slice_bytes: usize,
}

impl Fold<'_> {
    /// Folds what is left of `generation`, and says that the tables hold it. `pass` learns of every
    /// row that was not begun before.
    fn finish(
        mut self,
        generation: &Generation,
        pass: &mut Pass,
        mut rest: impl FnMut(),
    ) -> Result<Checkpoint, StorageError> {
        let mut rows = generation.all_rows().peekable();
        for (table, key, value) in rows.by_ref().take(self.progress.begun as usize) {
            self.tables.fold(table, key, value.map(AsRef::as_ref), true)?;
            failpoint(Point::CheckpointResuming);
        }
        while rows.peek().is_some() {
            let slice = self.take_slice(&mut rows);
            self.begin(&slice, pass)?;
            for (table, key, value) in slice {
                self.tables.fold(table, key, value.map(AsRef::as_ref), false)?;
            }
            if rows.peek().is_some() {
                failpoint(Point::CheckpointSlice);
                rest();
            }
        }
        self.tables.flush()?;
        failpoint(Point::CheckpointFolded);
        self.tables.write_progress(Progress::none(self.progress.goal))?;
        failpoint(Point::CheckpointApplied);
        self.tables.flush()?;
        failpoint(Point::CheckpointEnd);
        Ok(self.progress.goal)
    }

    /// The next rows, of about [`Self::slice_bytes`].
    fn take_slice<'a>(
        &self,
        rows: &mut impl Iterator<Item = GenerationRow<'a>>,
    ) -> Vec<GenerationRow<'a>> {
        let mut bytes = 0;
        let mut slice = Vec::new();
        while bytes < self.slice_bytes
            && let Some((table, key, value)) = rows.next()
        {
            bytes += key.len() + value.map_or(0, Bytes::len) + FOLD_ROW_OVERHEAD;
            slice.push((table, key, value));
        }
        slice
    }

    /// Reads what `slice` replaces and says, durably, that it is begun. That makes the slice before
    /// durable, too: no single large sync holds up the log's.
    fn begin(&mut self, slice: &[GenerationRow<'_>], pass: &mut Pass) -> Result<(), StorageError> {
        for (table, key, value) in slice.iter().copied() {
            let old = self.tables.get(table, key)?;
            let new = value.map(AsRef::as_ref);
            self.progress.goal.digests.replace(table, key, old.as_deref(), new);
            pass.replace(table, key, old.as_deref(), new);
        }
        self.progress.begun += slice.len() as u64;
        self.tables.write_progress(self.progress)?;
        self.tables.flush()?;
        failpoint(Point::CheckpointIntended);
        Ok(())
    }
}
