//! What the primary tells of requests and sessions, without executing anything; and cancels.

use onlyonce_storage::limits::OVERLAY_BYTES_MAX;
use onlyonce_wire::client::{Answer, Fate, Limit, Question, Refusal};
use onlyonce_wire::{SessionId, limits};

use crate::duplicates::Verdict;
use crate::event::ReplyTo;
use crate::replica::{Replica, Stop};

impl Replica {
    /// Tells what became of a request.
    pub(crate) fn outcome(&mut self, from: ReplyTo, question: &Question) -> Result<(), Stop> {
        let table = self.role.open_table();
        let verdict = table.outcome(&self.state, self.now, question)?;
        // That nobody has seen it is true only of the present.
        let is_absent = matches!(
            verdict,
            Verdict::Known { answer: Answer::Fate { fate: Fate::NeverSeen, .. }, .. }
        );
        let verdict = if is_absent && !self.lease_holds() { Verdict::AskAgain } else { verdict };
        self.settle(from, verdict, Answer::AskAgain, Vec::new())
    }

    /// Sees to it that a request never runs, unless it did.
    pub(crate) fn cancel(&mut self, from: ReplyTo, question: &Question) -> Result<(), Stop> {
        if self.state.overlay_bytes() > OVERLAY_BYTES_MAX {
            self.reply(from, Answer::Refused(Refusal::Busy(Limit::Queue)));
            return Ok(());
        }
        let (at, index) = ((self.now, self.wall()), self.open_index());
        let mut effects = Vec::new();
        let table = self.role.open_table();
        let (verdict, kept_for_ms) =
            table.cancel(&self.state, at, index, question, &mut effects)?;
        let cancelled = Answer::Fate { fate: Fate::Cancelled, kept_for_ms };
        self.settle(from, verdict, cancelled, effects)
    }

    /// Tells of the open sessions. They are a thing of the present, so it takes a lease.
    pub(crate) fn list_sessions(&mut self, from: ReplyTo, after: Option<SessionId>, limit: u32) {
        if !self.lease_holds() {
            return self.reply(from, Answer::AskAgain);
        }
        let limit = (limit as usize).min(limits::SESSIONS_LISTED_MAX);
        let table = self.role.open_table();
        let (sessions, more, newest) = table.list(self.now, after, limit);
        self.answer_at(newest, from, Answer::Sessions { sessions, more });
    }

    /// Tells of one session.
    pub(crate) fn show_session(&mut self, from: ReplyTo, id: SessionId) -> Result<(), Stop> {
        if !self.lease_holds() {
            self.reply(from, Answer::AskAgain);
            return Ok(());
        }
        let table = self.role.open_table();
        let (session, newest) = table.show(&self.state, self.now, id)?;
        self.answer_at(newest, from, Answer::Session(session));
        Ok(())
    }
}
