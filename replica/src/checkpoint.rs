//! When committed entries are folded into the tables, and how much log stays for others.
//!
//! A record without entries is a *mark*. Every replica that commits a mark while it folds nothing, and
//! has something to fold, begins a checkpoint there; so replicas have checkpoints at equal places, whose
//! digests are compared (`agreement`). The primary puts a mark when enough
//! is committed, or enough time passed; the first record of a view is one too. Who let a mark pass while
//! it folded waits for the next one, unless it has too much to fold, or none comes.

use std::collections::VecDeque;

use onlyonce_storage::limits::OVERLAY_BYTES_MAX;
use onlyonce_storage::{Checkpoint, Index, Record};

use crate::config::Config;
use crate::event::{Effect, Moment};
use crate::marks::Mark;
use crate::mutations::Rule;
use crate::replica::{Replica, Role, Stop};

/// How many of its own checkpoints a primary remembers, and how many of each follower.
pub(crate) const REMEMBERED: usize = 16;

/// The state of checkpoints.
pub(crate) struct Checkpointing {
    /// The end of the generation that is being folded.
    folding: Option<Index>,
    last: Moment,
    /// The marks that are not committed yet.
    marks: VecDeque<Index>,
    /// Whether a mark passed since the newest checkpoint began: the next one is waited for.
    missed: bool,
    /// This process's newest checkpoints, oldest first.
    done: VecDeque<Checkpoint>,
    /// The sizes of the newest records, oldest first: about as many as `log_tail_bytes` holds.
    tail: VecDeque<(Index, usize)>,
    tail_bytes: usize,
    pruned: Index,
}

impl Checkpointing {
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            folding: None,
            last: now,
            marks: VecDeque::new(),
            missed: false,
            done: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            pruned: Index::ZERO,
        }
    }

    /// Counts a record that joins the log.
    pub(crate) fn note_record(&mut self, record: &Record) {
        while self.tail.back().is_some_and(|(index, _)| *index >= record.index) {
            let (_, bytes) = self.tail.pop_back().expect("just seen");
            self.tail_bytes -= bytes;
        }
        self.tail.push_back((record.index, record.bytes()));
        self.tail_bytes += record.bytes();
        while self.marks.back().is_some_and(|mark| *mark >= record.index) {
            self.marks.pop_back();
        }
        if record.entries.is_empty() {
            self.marks.push_back(record.index);
        }
    }

    /// Takes the last mark up to `index`, with those before it.
    fn take_mark(&mut self, index: Index) -> Option<Index> {
        let passed = self.marks.partition_point(|mark| *mark <= index);
        self.marks.drain(..passed).next_back()
    }

    /// The newest checkpoint of this process.
    pub(crate) fn newest(&self) -> Option<Checkpoint> {
        self.done.back().copied()
    }

    /// The newest checkpoints of this process, oldest first.
    pub(crate) fn remembered(&self) -> impl Iterator<Item = &Checkpoint> {
        self.done.iter()
    }

    /// The newest index up to `upto` that may leave the log so that `keep` bytes of records stay, or
    /// `pinned` bytes if those from `pin` on are needed.
    fn prunable(&mut self, upto: Index, keep: usize, pin: Option<Index>, pinned: usize) -> Index {
        while let Some((index, bytes)) = self.tail.front().copied() {
            let is_pinned = pin.is_some_and(|pin| index >= pin);
            let keep = if is_pinned { keep.max(pinned) } else { keep };
            // Later ones may be pinned by the time they are folded.
            if index > upto || self.tail_bytes - bytes < keep {
                break;
            }
            self.tail.pop_front();
            self.tail_bytes -= bytes;
            self.pruned = index;
        }
        self.pruned
    }
}

impl Replica {
    /// The records up to `index` are committed. At a mark on the way a checkpoint begins.
    pub(crate) fn commit(&mut self, index: Index) {
        let mark = self.checkpointing.take_mark(index);
        self.checkpointing.missed |= mark.is_some() && self.checkpointing.folding.is_some();
        if let Some(mark) = mark.filter(|mark| *mark <= self.state.persisted()) {
            self.state.commit(mark);
            self.begin_checkpoint();
        }
        self.state.commit(index);
    }

    /// Begins a checkpoint of all that is committed, unless one is under way or it would change nothing.
    fn begin_checkpoint(&mut self) {
        let is_empty = self.state.committed_bytes() == 0 && !self.needs_checkpoint();
        if self.checkpointing.folding.is_some() || is_empty {
            return;
        }
        if let Some(generation) = self.state.freeze() {
            if generation.upto() < self.state.last().1 {
                self.marks.hit(Mark::CheckpointBelowUncommitted);
            }
            self.checkpointing.folding = Some(generation.upto());
            self.checkpointing.last = self.now;
            self.checkpointing.missed = false;
            self.effects.push(Effect::Checkpoint(generation));
        }
    }

    /// Whether a backup waits for one, even if that has nothing to fold.
    fn needs_checkpoint(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.needs_checkpoint())
    }

    /// Whether a checkpoint is under way, or can be begun, so that the overlay will have room again. If
    /// not, what fills it is not committed: only records that follow, or a cut, lead on from there.
    pub(crate) fn makes_room(&mut self) -> bool {
        self.begin_checkpoint();
        self.checkpointing.folding.is_some()
    }

    /// Puts a mark when a checkpoint is due, or does without.
    pub(crate) fn tick_checkpoint(&mut self) -> Result<(), Stop> {
        let bytes = self.state.committed_bytes();
        let is_needed = self.needs_checkpoint();
        if self.checkpointing.folding.is_some() || (bytes == 0 && !is_needed) {
            return Ok(());
        }
        let since = self.now.since(self.checkpointing.last);
        let wanted = self.config.checkpoint_bytes;
        let is_due = is_needed || bytes >= wanted || since > self.config.timing.checkpoint_interval;
        if is_due && self.breaks(Rule::UncommittedFolded) {
            self.commit(self.state.persisted());
            self.begin_checkpoint();
        }
        // Slow as it may be, it is to be at the same place as others every now and then.
        let waits =
            self.checkpointing.missed && since <= self.config.timing.checkpoint_interval * 2;
        let most = OVERLAY_BYTES_MAX / 2;
        let without_mark = if waits { most } else { most.min(2 * wanted) };
        if bytes >= without_mark {
            self.marks.hit(Mark::CheckpointWithoutMark);
            self.begin_checkpoint();
        } else if is_due && self.is_open() && self.checkpointing.marks.is_empty() {
            self.put_mark()?;
        }
        Ok(())
    }

    pub(crate) fn on_checkpointed(&mut self, checkpoint: Checkpoint) {
        let upto = self.checkpointing.folding.take().expect("a checkpoint that ends was begun");
        assert_eq!(checkpoint.mark.index, upto, "the checkpoint that was begun");
        let generation = self.state.note_folded(upto);
        self.effects.push(Effect::Release(generation));
        if self.checkpointing.done.len() == REMEMBERED {
            self.checkpointing.done.pop_front();
        }
        self.checkpointing.done.push_back(checkpoint);
        let pin = self.log_pin();
        let Config { log_tail_bytes, log_pin_bytes, .. } = self.config;
        let prunable = self.checkpointing.prunable(upto, log_tail_bytes, pin, log_pin_bytes);
        if prunable >= self.state.first() {
            self.marks.hit(Mark::LogPruned);
            self.effects.push(Effect::Prune { upto: prunable });
        }
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_storage::View;

    use super::*;

    /// Who has everything up to the pin goes on after it: that record stays too, as the place at
    /// which the two logs are known to match.
    #[test]
    fn the_record_at_the_pin_stays() {
        let mut checkpointing = Checkpointing::new(Moment::default());
        for index in 1..=10 {
            checkpointing.note_record(&Record::new(View(1), Index(index), Index(0), Vec::new()));
        }
        assert_eq!(checkpointing.prunable(Index(10), 0, Some(Index(5)), usize::MAX), Index(4));
        assert_eq!(checkpointing.prunable(Index(10), 0, Some(Index(7)), usize::MAX), Index(6));
        assert_eq!(checkpointing.prunable(Index(10), 0, None, usize::MAX), Index(10));
    }

    /// What was too new to leave the log is not given up in advance: a pin that comes later holds it.
    #[test]
    fn a_pin_holds_what_was_not_folded_when_it_came() {
        let mut checkpointing = Checkpointing::new(Moment::default());
        for index in 1..=10 {
            let record = Record::new(View(1), Index(index), Index::ZERO, Vec::new());
            checkpointing.note_record(&record);
        }
        assert_eq!(checkpointing.prunable(Index(3), 0, None, usize::MAX), Index(3));
        let pin = Some(Index(5));
        assert_eq!(checkpointing.prunable(Index(9), 0, pin, usize::MAX), Index(4));
        assert_eq!(checkpointing.prunable(Index(9), 0, None, usize::MAX), Index(9));
    }
}
