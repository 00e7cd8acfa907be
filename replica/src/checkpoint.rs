//! When committed entries are folded into the tables, and how much log stays for others.

use std::collections::VecDeque;

use onlyonce_storage::{Index, Record};

use crate::config::Config;
use crate::event::{Effect, Moment};
use crate::marks::Mark;
use crate::mutations::Rule;
use crate::replica::Replica;

/// The state of checkpoints.
pub(crate) struct Checkpointing {
    /// The end of the generation that is being folded.
    folding: Option<Index>,
    last: Moment,
    /// The sizes of the newest records, oldest first: about as many as `log_tail_bytes` holds.
    tail: VecDeque<(Index, usize)>,
    tail_bytes: usize,
    pruned: Index,
}

impl Checkpointing {
    pub(crate) fn new(now: Moment) -> Self {
        Self { folding: None, last: now, tail: VecDeque::new(), tail_bytes: 0, pruned: Index::ZERO }
    }

    /// Counts a record that joins the log.
    pub(crate) fn note_record(&mut self, record: &Record) {
        while self.tail.back().is_some_and(|(index, _)| *index >= record.index) {
            let (_, bytes) = self.tail.pop_back().expect("just seen");
            self.tail_bytes -= bytes;
        }
        self.tail.push_back((record.index, record.bytes()));
        self.tail_bytes += record.bytes();
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
    /// Begins a checkpoint when enough is committed, or enough time passed.
    pub(crate) fn tick_checkpoint(&mut self) {
        if self.checkpointing.folding.is_some() {
            return;
        }
        let bytes = self.state.committed_bytes();
        let waited = self.now.since(self.checkpointing.last);
        let due = bytes >= self.config.checkpoint_bytes
            || (bytes > 0 && waited > self.config.timing.checkpoint_interval);
        if !due {
            return;
        }
        if self.breaks(Rule::UncommittedFolded) {
            self.state.commit(self.state.persisted());
        }
        if let Some(generation) = self.state.freeze() {
            if generation.upto() < self.state.last().1 {
                self.marks.hit(Mark::CheckpointBelowUncommitted);
            }
            self.checkpointing.folding = Some(generation.upto());
            self.checkpointing.last = self.now;
            self.effects.push(Effect::Checkpoint(generation));
        }
    }

    pub(crate) fn on_checkpointed(&mut self) {
        let upto = self.checkpointing.folding.take().expect("a checkpoint that ends was begun");
        let generation = self.state.note_folded(upto);
        self.effects.push(Effect::Release(generation));
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
