//! Answers that wait until what they rest on is committed.
//!
//! While commits stall there is no end to what may be asked meanwhile, and an answer that reads may
//! hold a megabyte: so their bytes are counted. Beyond the bound nothing more is taken on that would
//! have to wait, and who asks for it is told so (`Busy`): that copy did nothing, and may come again.
//! What rests on committed rows is answered as ever.

use std::collections::BTreeMap;

use onlyonce_storage::Index;
use onlyonce_storage::limits::OVERLAY_BYTES_MAX;
use onlyonce_wire::client::{Answer, Limit, Refusal};

use crate::event::{Effect, ReplyTo};
use crate::marks::Mark;
use crate::replica::{Replica, Role};

/// The answers that wait, by the index that must be committed.
///
/// # Invariant
/// `bytes` is what they come to.
#[derive(Default)]
pub(crate) struct Waiters {
    by_index: BTreeMap<Index, Vec<(ReplyTo, Answer)>>,
    bytes: usize,
}

impl Waiters {
    fn push(&mut self, index: Index, to: ReplyTo, answer: Answer) {
        self.bytes += answer.bytes();
        self.by_index.entry(index).or_default().push((to, answer));
    }

    /// Takes out those that wait for an index up to this one.
    pub(crate) fn take_upto(&mut self, index: Index) -> Vec<(ReplyTo, Answer)> {
        let rest = self.by_index.split_off(&index.next());
        let done = std::mem::replace(&mut self.by_index, rest);
        let done: Vec<_> = done.into_values().flatten().collect();
        self.bytes -= done.iter().map(|(_, answer)| answer.bytes()).sum::<usize>();
        done
    }
}

impl Replica {
    /// Sends an answer once `index` is committed; if too much waits already, refuses this copy of
    /// its request. Nothing may have been done for it.
    pub(crate) fn answer_at(&mut self, index: Index, to: ReplyTo, answer: Answer) {
        if index <= self.state.committed() {
            self.reply(to, answer);
        } else if self.has_many_waiters() {
            self.marks.hit(Mark::WaiterTurnedAway);
            self.reply(to, Answer::Refused(Refusal::Busy(Limit::Queue)));
        } else {
            self.answer_with_entry(index, to, answer);
        }
    }

    /// Sends the answer to what the entry at `index` does, once that is committed.
    pub(crate) fn answer_with_entry(&mut self, index: Index, to: ReplyTo, answer: Answer) {
        let Role::Primary(primary) = &mut self.role else { return };
        primary.waiters.push(index, to, answer);
    }

    /// Whether so much is not yet committed or applied, or waits for that, that nothing more may be
    /// executed.
    pub(crate) fn is_crowded(&self) -> bool {
        self.state.overlay_bytes() > OVERLAY_BYTES_MAX || self.has_many_waiters()
    }

    fn has_many_waiters(&self) -> bool {
        let Role::Primary(primary) = &self.role else { return false };
        primary.waiters.bytes >= self.config.limits.waiting_bytes
    }

    /// Hands out what waited for an index up to this one, which is committed.
    pub(crate) fn answer_waiters(&mut self, index: Index) {
        let Role::Primary(primary) = &mut self.role else { return };
        let done = primary.waiters.take_upto(index);
        self.effects.extend(done.into_iter().map(|(to, answer)| Effect::Reply { to, answer }));
    }
}
