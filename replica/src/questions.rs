//! What the primary tells of requests and sessions, without executing anything; and cancels.

use onlyonce_storage::Index;
use onlyonce_wire::client::{Answer, Fate, Limit, Question, Refusal, RequestId};
use onlyonce_wire::{SessionId, limits};

use crate::duplicates::{Cancelled, Verdict};
use crate::event::ReplyTo;
use crate::marks::Mark;
use crate::mutations::Rule;
use crate::replica::{Replica, Role, Stop};

impl Replica {
    /// Tells what became of a request.
    pub(crate) fn outcome(&mut self, from: ReplyTo, question: &Question) -> Result<(), Stop> {
        let table = self.role.open_table();
        let verdict = table.outcome(&self.state, self.now, question)?;
        if self.lacks_lease(matches!(question.id, RequestId::Key(_)), &verdict) {
            self.reply(from, Answer::AskAgain);
            return Ok(());
        }
        match fate_of(&verdict) {
            Some(Fate::Pending) => self.marks.hit(Mark::OutcomePending),
            Some(Fate::NeverSeen) => self.marks.hit(Mark::OutcomeNeverSeen),
            Some(Fate::Done { .. } | Fate::Cancelled) => self.marks.hit(Mark::OutcomeKnown),
            None => {}
        }
        self.settle(from, verdict, Answer::AskAgain, Vec::new())
    }

    /// Sees to it that a request never runs, unless it did.
    pub(crate) fn cancel(&mut self, from: ReplyTo, question: &Question) -> Result<(), Stop> {
        if self.is_crowded() {
            self.reply(from, Answer::Refused(Refusal::Busy(Limit::Queue)));
            return Ok(());
        }
        let (at, index) = ((self.now, self.wall()), self.open_index());
        let mut effects = Vec::new();
        let table = self.role.open_table();
        match table.cancel(&self.state, at, index, question, &mut effects)? {
            Cancelled::Now { kept_for_ms } => {
                self.marks.hit(Mark::CancelledBeforeItRan);
                let cancelled = Answer::Fate { fate: Fate::Cancelled, kept_for_ms };
                if self.breaks(Rule::CancelNotLogged) {
                    self.reply(from, cancelled);
                    return Ok(());
                }
                self.settle(from, Verdict::New, cancelled, effects)
            }
            Cancelled::Not(verdict) => {
                if self.lacks_lease(matches!(question.id, RequestId::Key(_)), &verdict) {
                    self.reply(from, Answer::AskAgain);
                    return Ok(());
                }
                if matches!(fate_of(&verdict), Some(Fate::Done { .. })) {
                    self.marks.hit(Mark::CancelCameTooLate);
                }
                self.settle(from, verdict, Answer::AskAgain, Vec::new())
            }
        }
    }

    /// Whether a verdict, on a request under a key or not, is true only of the present, and this node
    /// cannot vouch for that: that nobody has seen a request, and whatever is remembered of a key, for
    /// that is forgotten in time. That a key *is* forgotten, and what became of a session's request,
    /// stays true.
    pub(crate) fn lacks_lease(&mut self, is_key: bool, verdict: &Verdict) -> bool {
        let Verdict::Known { answer, .. } = verdict else { return false };
        let is_of_the_present = match answer {
            Answer::Fate { fate: Fate::NeverSeen, .. } => true,
            Answer::Fate { fate: Fate::Pending, .. } | Answer::Refused(Refusal::Forgotten) => false,
            Answer::Fate { fate: Fate::Done { .. } | Fate::Cancelled, .. }
            | Answer::Refused(_)
            | Answer::Executed { .. }
            | Answer::Opened { .. }
            | Answer::Closed
            | Answer::Alive
            | Answer::Read(_)
            | Answer::Sessions { .. }
            | Answer::Session(_)
            | Answer::Status(_)
            | Answer::NotPrimary { .. }
            | Answer::AskAgain
            | Answer::Backup(_) => is_key,
        };
        if !is_of_the_present || self.lease_holds() || self.breaks(Rule::TableWithoutLease) {
            return false;
        }
        self.marks.hit(Mark::RequestWithoutLease);
        true
    }

    /// Tells of the open sessions. They are a thing of the present, so it takes a lease.
    pub(crate) fn list_sessions(&mut self, from: ReplyTo, after: Option<SessionId>, limit: u32) {
        if !self.lease_holds() {
            return self.reply(from, Answer::AskAgain);
        }
        let limit = (limit as usize).min(limits::SESSIONS_LISTED_MAX);
        let table = self.role.open_table();
        let (sessions, more) = table.list(self.now, after, limit);
        // It rests on those that are not open any more as well.
        self.answer_at(self.newest_index(), from, Answer::Sessions { sessions, more });
    }

    /// The index of the newest entry that was executed.
    fn newest_index(&self) -> Index {
        match &self.role {
            Role::Primary(primary) if !primary.open.is_empty() => self.open_index(),
            Role::Primary(_)
            | Role::Starting(_)
            | Role::Recovering(_)
            | Role::Follower(_)
            | Role::Stopped => self.state.last().1,
        }
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

/// What a verdict tells of a request.
fn fate_of(verdict: &Verdict) -> Option<&Fate> {
    match verdict {
        Verdict::Known { answer: Answer::Fate { fate, .. }, .. } => Some(fate),
        Verdict::Known { .. } | Verdict::New | Verdict::NotNow(_) | Verdict::AskAgain => None,
    }
}
