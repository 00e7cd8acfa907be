//! What the primary does with a client's request.

use std::cmp::Ordering;

use bytes::Bytes;
use onlyonce_storage::{Entry, Index};
use onlyonce_wire::check::check_size;
use onlyonce_wire::client::{
    Answer, Execute, ExecuteId, Fingerprint, Limit, Operation, Part, Read, Refusal, Request,
};
use onlyonce_wire::{Incarnation, Seq, SessionId, codec, limits};

use crate::duplicates::{Recorded, Verdict};
use crate::event::{Effect, ReplyTo};
use crate::kv::{self, Draft};
use crate::marks::Mark;
use crate::mutations::Rule;
use crate::replica::{Replica, Role, Stop};
use crate::rows::ReplyRow;

impl Replica {
    pub(crate) fn on_request(&mut self, from: ReplyTo, request: Request) -> Result<(), Stop> {
        if let Some(answer) = self.cannot_serve(&request) {
            if matches!(answer, Answer::AskAgain) {
                self.marks.hit(Mark::AskedWhileOpening);
            }
            self.reply(from, answer);
            return Ok(());
        }
        match request {
            Request::Open { session, .. } => self.open_session(from, session),
            Request::Close { session, .. } => {
                let mut effects = Vec::new();
                let table = self.role.open_table();
                let verdict = table.close(&self.state, session, self.now, &mut effects)?;
                if matches!(verdict, Verdict::New) {
                    self.marks.hit(Mark::SessionClosed);
                }
                self.settle(from, verdict, Answer::Closed, effects)
            }
            Request::KeepAlive { session, .. } => {
                if !self.lease_holds() && !self.breaks(Rule::TableWithoutLease) {
                    self.marks.hit(Mark::SessionWithoutLease);
                    self.reply(from, Answer::AskAgain);
                    return Ok(());
                }
                let table = self.role.open_table();
                let verdict = table.keep_alive(&self.state, session, self.now)?;
                self.settle(from, verdict, Answer::Alive, Vec::new())
            }
            Request::Execute(execute) => self.execute(from, execute),
            Request::Read(read) => self.read(from, &read),
            Request::Outcome(question) => self.outcome(from, &question),
            Request::Cancel(question) => self.cancel(from, &question),
            Request::Sessions { after, limit } => {
                self.list_sessions(from, after, limit);
                Ok(())
            }
            Request::Session(session) => self.show_session(from, session),
            Request::Backup { id, number } => self.back_up(from, id, number),
            Request::Status => {
                let answer = Answer::Status(Box::new(self.status()));
                self.reply(from, answer);
                Ok(())
            }
        }
    }

    /// Why this node cannot even look at a request.
    fn cannot_serve(&self, request: &Request) -> Option<Answer> {
        if matches!(request, Request::Status) {
            return None;
        }
        let Role::Primary(primary) = &self.role else { return Some(self.not_primary()) };
        let current: Incarnation = self.saved.incarnation;
        match request.incarnation().unwrap_or(current).cmp(&current) {
            // That is true whatever this primary finds in its log.
            Ordering::Less => Some(Answer::Refused(Refusal::OtherIncarnation { current })),
            Ordering::Greater => Some(Answer::AskAgain),
            Ordering::Equal => primary.table.is_none().then_some(Answer::AskAgain),
        }
    }

    fn not_primary(&self) -> Answer {
        let me = self.config.me.store;
        let register = self.known.as_ref().map(|known| &known.register);
        let primary = register
            .filter(|register| register.primary.store != me)
            .map(|register| register.primary.client_address.clone());
        Answer::NotPrimary { view: onlyonce_wire::View(self.view().0), primary }
    }

    fn open_session(&mut self, from: ReplyTo, session: SessionId) -> Result<(), Stop> {
        if self.is_crowded() {
            self.reply(from, Answer::Refused(Refusal::Busy(Limit::Queue)));
            return Ok(());
        }
        let index = self.open_index();
        let lease = self.lease_holds() || self.breaks(Rule::TableWithoutLease);
        let mut effects = Vec::new();
        let table = self.role.open_table();
        let verdict = table.open(session, index, self.now, &mut effects);
        let verdict = match verdict {
            // That a session is open is true only of the present.
            Verdict::Known { .. } if !lease => {
                self.marks.hit(Mark::SessionWithoutLease);
                Verdict::AskAgain
            }
            Verdict::Known { .. } => {
                self.marks.hit(Mark::SessionOpenedAgain);
                verdict
            }
            Verdict::New | Verdict::NotNow(_) | Verdict::AskAgain => verdict,
        };
        let opened = Answer::Opened { opened_at: onlyonce_wire::OpenedAt(index.0) };
        self.settle(from, verdict, opened, effects)
    }

    /// Answers by the verdict; what is new gets its entry and, when that is committed, `answer`.
    pub(crate) fn settle(
        &mut self,
        from: ReplyTo,
        verdict: Verdict,
        answer: Answer,
        effects: Vec<onlyonce_storage::Effect>,
    ) -> Result<(), Stop> {
        self.mark_verdict(&verdict);
        match verdict {
            Verdict::New => {
                self.answer_with_entry(self.open_index(), from, answer);
                self.add_entry(Entry { effects })
            }
            Verdict::Known { answer, rests_on } => {
                let at_once = self.breaks(Rule::TableBeforeCommit);
                let rests_on = if at_once { Index::ZERO } else { rests_on };
                self.answer_at(rests_on, from, answer);
                Ok(())
            }
            Verdict::NotNow(refusal) => {
                self.reply(from, Answer::Refused(refusal));
                Ok(())
            }
            Verdict::AskAgain => {
                self.reply(from, Answer::AskAgain);
                Ok(())
            }
        }
    }

    fn execute(&mut self, from: ReplyTo, execute: Execute) -> Result<(), Stop> {
        let Execute { id, operation, .. } = execute;
        let fingerprint = Fingerprint::of(&operation);
        let at = (self.now, self.wall());
        let table = self.role.open_table();
        let mut verdict = table.look_up(&self.state, at, &id, fingerprint)?;
        let reopens = self.is_forgetful() || self.breaks(Rule::SessionReopened);
        if reopens && is_expired(&verdict) {
            self.role.open_table().reopen(&id, self.now);
            verdict = Verdict::New;
        }
        if self.lacks_lease(matches!(id, ExecuteId::Key(_)), &verdict) {
            self.reply(from, Answer::AskAgain);
            return Ok(());
        }
        if !matches!(verdict, Verdict::New) {
            return self.settle(from, verdict, Answer::AskAgain, Vec::new());
        }
        let operation = match decode_operation(&operation) {
            Ok(operation) => operation,
            Err(refusal) => {
                self.reply(from, Answer::Refused(refusal));
                return Ok(());
            }
        };
        if self.is_crowded() {
            self.reply(from, Answer::Refused(Refusal::Busy(Limit::Queue)));
            return Ok(());
        }
        let mut draft = Draft::new(&self.state);
        let outcome = kv::execute(&mut draft, operation)?;
        let mut effects = draft.into_effects();
        let written = effects.len();
        let reply: Bytes = codec::encode(&outcome).into();
        let row = ReplyRow::Executed { fingerprint, reply: reply.clone() };
        let kept_for_ms = match self.record(&id, row, &mut effects)? {
            Recorded::Row { kept_for_ms } => kept_for_ms,
            Recorded::Refused(refusal) => {
                self.reply(from, Answer::Refused(refusal));
                return Ok(());
            }
        };
        if self.breaks(Rule::DuplicateRowApart) {
            let rows = effects.split_off(written);
            self.add_entry(Entry { effects })?;
            self.close_record()?;
            effects = rows;
        }
        let answer = Answer::Executed { reply, replayed: false, kept_for_ms };
        self.settle(from, Verdict::New, answer, effects)
    }

    /// The duplicate row of what is executed under this id now, if it has one.
    fn record(
        &mut self,
        id: &ExecuteId,
        row: ReplyRow,
        effects: &mut Vec<onlyonce_storage::Effect>,
    ) -> Result<Recorded, Stop> {
        let Some(request) = id.request() else { return Ok(Recorded::Row { kept_for_ms: None }) };
        let seen = match id {
            ExecuteId::Session { first_unacked, .. } => *first_unacked,
            ExecuteId::Key(_) | ExecuteId::Anonymous => Seq(0),
        };
        let at = (self.now, self.open_index());
        self.role.open_table().record(&self.state, at, (&request, seen), row, effects)
    }

    /// A read sees the newest staged state; it is answered when the newest row it saw is committed.
    fn read(&mut self, from: ReplyTo, read: &Read) -> Result<(), Stop> {
        if let Err(refusal) = read.check() {
            self.reply(from, Answer::Refused(refusal));
            return Ok(());
        }
        if !self.lease_holds() {
            self.marks.hit(Mark::ReadWithoutLease);
            self.reply(from, Answer::AskAgain);
            return Ok(());
        }
        let (outcome, newest) = kv::read(&self.state, read)?;
        if newest > self.state.committed() {
            self.marks.hit(Mark::ReadWaited);
        }
        self.answer_at(newest, from, Answer::Read(outcome));
        Ok(())
    }

    /// Counts the rare verdicts.
    fn mark_verdict(&mut self, verdict: &Verdict) {
        let mark = match verdict {
            Verdict::Known { answer: Answer::Executed { .. }, rests_on } => {
                if *rests_on > self.state.committed() {
                    Mark::DuplicateJoined
                } else {
                    self.marks.hit(Mark::DuplicateAnswered);
                    if !self.may_have_made(*rests_on) {
                        self.marks.hit(Mark::DuplicateAnsweredByLaterPrimary);
                    }
                    return;
                }
            }
            Verdict::Known { answer: Answer::Refused(refusal), .. } | Verdict::NotNow(refusal) => {
                match refusal {
                    Refusal::Stale { .. } => Mark::StaleRefused,
                    Refusal::Mismatch => Mark::MismatchRefused,
                    Refusal::SessionExpired => Mark::ExpiredRefused,
                    Refusal::WindowFull { .. } => Mark::WindowFull,
                    Refusal::Busy(Limit::SavedReplies) => Mark::SavedRepliesFull,
                    Refusal::Cancelled => Mark::CancelledRefused,
                    Refusal::Forgotten => Mark::ForgottenRefused,
                    Refusal::Invalid(_) => Mark::InvalidIdRefused,
                    Refusal::OtherIncarnation { .. }
                    | Refusal::Busy(_)
                    | Refusal::TooLarge { .. } => return,
                }
            }
            Verdict::AskAgain => Mark::SessionFromTheFuture,
            Verdict::New | Verdict::Known { .. } => return,
        };
        self.marks.hit(mark);
    }

    pub(crate) fn reply(&mut self, to: ReplyTo, answer: Answer) {
        self.effects.push(Effect::Reply { to, answer });
    }
}

fn is_expired(verdict: &Verdict) -> bool {
    let Verdict::Known { answer, .. } = verdict else { return false };
    matches!(answer, Answer::Refused(Refusal::SessionExpired))
}

fn decode_operation(bytes: &[u8]) -> Result<Operation, Refusal> {
    check_size(Part::Operation, bytes.len(), limits::OPERATION_BYTES_MAX)?;
    let operation = codec::decode::<Operation, { limits::OPERATION_BYTES_MAX }>(bytes)
        .map_err(|error| Refusal::Invalid(error.to_string()))?;
    operation.check()?;
    Ok(operation)
}
