//! The duplicate table: which requests ran, and what they were answered.
//!
//! The table *is* its rows ([`rows`](crate::rows)): they travel in the same entry as the effects
//! they speak of, so a node that has an effect has its duplicate row. What [`DuplicateTable`]
//! holds in memory lives only while a node is an open primary, and is loaded from the rows when it
//! becomes one: the sessions (to know when each was last used) and what `keys` tells of.
//!
//! | the table says | verdict |
//! |---|---|
//! | session not exactly known | `SessionExpired`: never executed |
//! | `seq` below the watermark | `Stale`: its reply was acknowledged; never executed |
//! | reply saved or pending, fingerprint equal | that reply, `replayed` |
//! | reply saved or pending, fingerprint differs | `Mismatch`; never executed |
//! | cancelled, whatever the fingerprint | `Cancelled`: never ran, never will |
//! | a timed key below the floor | `Forgotten`: never executed |
//! | `seq` ≥ watermark + window | `WindowFull` |
//! | too many bytes of saved replies, and not the oldest unacknowledged request | `Busy` |
//! | none of these | new: execute |
//!
//! A pending request is one whose row is staged but not yet committed. A late-comer finds that row
//! and waits for it like everybody else: there is no second notion of "pending", so none can be
//! left over when primacy is lost.
//!
//! Each verdict names the newest index that it rests on: it is true once that is committed.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_storage::{Effect, Index, State, Table};
use onlyonce_wire::client::{
    Answer, ExecuteId, Fate, Fingerprint, Limit, Question, Refusal, RequestId, SavedRequest,
    SessionDetail, SessionStatus,
};
use onlyonce_wire::{OpenedAt, Seq, Session, SessionId, limits};

use crate::Stop;
use crate::config::Limits;
use crate::event::{Moment, WallTime};
use crate::keys::Keys;
use crate::rows::{FIRST_SESSION, ReplyRow, SessionRow};

/// The part of the duplicate table that an open primary holds in memory.
pub(crate) struct DuplicateTable {
    sessions: HashMap<SessionId, Live>,
    keys: Keys,
    limits: Limits,
}

/// A session and what only the primary knows of it.
#[derive(Clone, Copy, Debug)]
struct Live {
    /// The newest staged row.
    row: SessionRow,
    /// The index of the entry that wrote it.
    index: Index,
    /// When it last sent anything, or when this primary opened.
    last_used: Moment,
}

/// What the table says of a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It was never executed under this id: execute it now, with its duplicate row in the same entry.
    New,
    /// Not to be executed. The answer is a fact once `rests_on` is committed.
    Known {
        /// What to answer.
        answer: Answer,
        /// The newest entry that the answer rests on.
        rests_on: Index,
    },
    /// Not to be executed now; true of this copy only, and answered at once.
    NotNow(Refusal),
    /// This node knows too little.
    AskAgain,
}

impl Verdict {
    fn refused(refusal: Refusal, rests_on: Index) -> Self {
        Self::Known { answer: Answer::Refused(refusal), rests_on }
    }
}

/// Whether a duplicate row was made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It was.
    Row {
        /// For how long a key is remembered at least.
        kept_for_ms: Option<u64>,
    },
    /// Nothing was changed: its session has too many bytes of saved replies, and an older request is
    /// yet to be acknowledged.
    Refused(Refusal),
}

/// What a cancel came to.
#[derive(Debug)]
pub(crate) enum Cancelled {
    /// The request never runs, by a row that is made now, in an entry of its own.
    Now {
        /// For how long a key is remembered at least.
        kept_for_ms: Option<u64>,
    },
    /// Nothing is changed; what the table says of the request, which is never [`Verdict::New`].
    Not(Verdict),
}

/// What the table holds of a request.
pub(crate) enum Found {
    /// It ran, or was cancelled.
    Saved {
        /// What became of it.
        reply: ReplyRow,
        /// For how long a key is remembered at least.
        kept_for_ms: Option<u64>,
        /// The entry that says so.
        index: Index,
    },
    /// Nothing: it never ran.
    Absent {
        /// The newest entry that this rests on.
        rests_on: Index,
    },
    /// All that can be said of it, whatever is asked.
    Told(Verdict),
}

impl DuplicateTable {
    /// Loads the sessions from their rows, all of which are committed.
    pub(crate) fn load(
        state: &State,
        now: Moment,
        limits: Limits,
        key_retention: Duration,
    ) -> Result<Self, Stop> {
        let mut sessions = HashMap::new();
        for row in state.scan(Table::Sessions, FIRST_SESSION, None) {
            let row = row?;
            let Some(value) = row.value else { continue };
            let live =
                Live { row: SessionRow::decode(&value)?, index: Index::ZERO, last_used: now };
            sessions.insert(SessionRow::id(&row.key)?, live);
        }
        Ok(Self { sessions, keys: Keys::load(state, now, key_retention)?, limits })
    }

    /// Breaks [`Rule::WatermarkForgotten`](crate::mutations::Rule::WatermarkForgotten).
    pub(crate) fn forget_watermarks(&mut self) {
        self.sessions.values_mut().for_each(|live| live.row.first_unacked = Seq(1));
    }

    /// Takes a session that is not known as open: for a [forgetful](crate::forgetful) node, and to
    /// break [`Rule::SessionReopened`](crate::mutations::Rule::SessionReopened).
    pub(crate) fn reopen(&mut self, id: &ExecuteId, now: Moment) {
        if let ExecuteId::Session { session, .. } = id {
            let row =
                SessionRow { opened_at: session.opened_at, first_unacked: Seq(1), saved_bytes: 0 };
            self.sessions.insert(session.id, Live { row, index: Index::ZERO, last_used: now });
        }
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn keys_mut(&mut self) -> &mut Keys {
        &mut self.keys
    }

    /// Looks up a request that is to be executed.
    pub(crate) fn look_up(
        &mut self,
        state: &State,
        (now, wall): (Moment, WallTime),
        id: &ExecuteId,
        fingerprint: Fingerprint,
    ) -> Result<Verdict, Stop> {
        if let ExecuteId::Session { seq, first_unacked, .. } = id
            && let Err(refusal) = check_watermark(*seq, *first_unacked)
        {
            return Ok(Verdict::NotNow(refusal));
        }
        let Some(request) = id.request() else { return Ok(Verdict::New) };
        match self.find(state, now, &request)? {
            Found::Told(verdict) => Ok(verdict),
            Found::Saved { reply, kept_for_ms, index } => {
                Ok(duplicate(reply, fingerprint, kept_for_ms, index))
            }
            Found::Absent { .. } => {
                let seen = match id {
                    ExecuteId::Session { first_unacked, .. } => *first_unacked,
                    ExecuteId::Key(_) | ExecuteId::Anonymous => Seq(0),
                };
                Ok(self.refuses(wall, &request, seen).map_or(Verdict::New, Verdict::NotNow))
            }
        }
    }

    /// What the table holds of a request; notes that its session is in use.
    fn find(&mut self, state: &State, now: Moment, id: &RequestId) -> Result<Found, Stop> {
        let (session, seq) = match id {
            RequestId::Key(key) => return self.keys.find(state, now, key),
            RequestId::Seq { session, seq } => (*session, *seq),
        };
        if seq == Seq(0) || seq == Seq(u64::MAX) {
            let text = format!("seq {seq}: 1 ≤ seq < {} is needed", u64::MAX);
            return Ok(Found::Told(Verdict::NotNow(Refusal::Invalid(text))));
        }
        let Some(live) = self.use_session(session, now) else {
            return unknown_session(state, session).map(Found::Told);
        };
        let first_unacked = live.row.first_unacked;
        if seq < first_unacked {
            let refusal = Refusal::Stale { first_unacked };
            return Ok(Found::Told(Verdict::refused(refusal, live.index)));
        }
        let saved = state.get(Table::Replies, &ReplyRow::key(session.id, seq))?;
        match saved.value {
            Some(value) => {
                let reply = ReplyRow::decode(value)?;
                Ok(Found::Saved { reply, kept_for_ms: None, index: saved.index })
            }
            None => Ok(Found::Absent { rests_on: live.index.max(saved.index) }),
        }
    }

    /// Why a request that is not known cannot be remembered now, its client having seen all replies
    /// below `seen`.
    fn refuses(&self, wall: WallTime, id: &RequestId, seen: Seq) -> Option<Refusal> {
        match id {
            RequestId::Key(key) => self.keys.refuses(wall, key),
            RequestId::Seq { session, seq } => {
                let watermark = self.sessions[&session.id].row.first_unacked.max(seen);
                let window = self.limits.window;
                (seq.0 - watermark.0 >= window)
                    .then_some(Refusal::WindowFull { first_unacked: watermark, window })
            }
        }
    }

    /// What became of a request. That nobody has seen it is true only of the present.
    pub(crate) fn outcome(
        &mut self,
        state: &State,
        now: Moment,
        question: &Question,
    ) -> Result<Verdict, Stop> {
        Ok(match self.find(state, now, &question.id)? {
            Found::Told(verdict) => verdict,
            Found::Absent { rests_on } => told(Fate::NeverSeen, None, rests_on),
            Found::Saved { index, kept_for_ms, .. } if index > state.committed() => {
                told(Fate::Pending, kept_for_ms, Index::ZERO)
            }
            Found::Saved { reply, kept_for_ms, index } => {
                fate(reply, question.fingerprint, kept_for_ms, index)
            }
        })
    }

    /// Sees to it that a request never runs, in the entry at `index`, unless it ran.
    pub(crate) fn cancel(
        &mut self,
        state: &State,
        (now, wall): (Moment, WallTime),
        index: Index,
        question: &Question,
        effects: &mut Vec<Effect>,
    ) -> Result<Cancelled, Stop> {
        let seen = question.first_unacked;
        if let RequestId::Seq { seq, .. } = question.id
            && let Err(refusal) = check_watermark(seq, seen)
        {
            return Ok(Cancelled::Not(Verdict::NotNow(refusal)));
        }
        match self.find(state, now, &question.id)? {
            Found::Told(verdict) => Ok(Cancelled::Not(verdict)),
            Found::Saved { reply, kept_for_ms, index } => {
                Ok(Cancelled::Not(fate(reply, question.fingerprint, kept_for_ms, index)))
            }
            Found::Absent { .. } => {
                if let Some(refusal) = self.refuses(wall, &question.id, seen) {
                    return Ok(Cancelled::Not(Verdict::NotNow(refusal)));
                }
                let (at, id) = ((now, index), (&question.id, seen));
                Ok(match self.record(state, at, id, ReplyRow::Cancelled, effects)? {
                    Recorded::Row { kept_for_ms } => Cancelled::Now { kept_for_ms },
                    Recorded::Refused(refusal) => Cancelled::Not(Verdict::NotNow(refusal)),
                })
            }
        }
    }

    /// Finds a session, matched exactly, and notes that it is in use.
    fn use_session(&mut self, session: Session, now: Moment) -> Option<Live> {
        let live = self.sessions.get_mut(&session.id)?;
        if live.row.opened_at != session.opened_at {
            return None;
        }
        live.last_used = now;
        Some(*live)
    }

    /// The duplicate row of a request that is executed, or cancelled, in the entry at `index`; with
    /// it the session's new watermark, and the end of the replies below that.
    pub(crate) fn record(
        &mut self,
        state: &State,
        (now, index): (Moment, Index),
        (id, seen): (&RequestId, Seq),
        reply: ReplyRow,
        effects: &mut Vec<Effect>,
    ) -> Result<Recorded, Stop> {
        match id {
            RequestId::Key(key) => {
                let kept_for_ms = Some(self.keys.record(now, key, reply, effects));
                Ok(Recorded::Row { kept_for_ms })
            }
            RequestId::Seq { session, seq } => {
                self.record_seq(state, index, *session, (*seq, seen), &reply, effects)
            }
        }
    }

    fn record_seq(
        &mut self,
        state: &State,
        index: Index,
        session: Session,
        (seq, seen): (Seq, Seq),
        reply: &ReplyRow,
        effects: &mut Vec<Effect>,
    ) -> Result<Recorded, Stop> {
        let live = self.sessions.get_mut(&session.id).expect("looked up before it is recorded");
        let mut row = live.row;
        let mut deletes = Vec::new();
        // However far the watermark moves, no reply was saved at or beyond the old window's end.
        let end = seen.0.min(row.first_unacked.0.saturating_add(limits::WINDOW));
        for acked in row.first_unacked.0..end {
            let key = ReplyRow::key(session.id, Seq(acked));
            if let Some(value) = state.get(Table::Replies, &key)?.value {
                row.saved_bytes -= value.len() as u64;
                delete(&mut deletes, Table::Replies, key);
            }
        }
        row.first_unacked = row.first_unacked.max(seen);
        let value = reply.encode();
        row.saved_bytes += value.len() as u64;
        // Only the oldest request's reply lets the watermark move on, and so makes room: replies to
        // later ones must not keep it out.
        let is_oldest = seq == row.first_unacked;
        if row.saved_bytes > self.limits.saved_reply_bytes && !is_oldest {
            return Ok(Recorded::Refused(Refusal::Busy(Limit::SavedReplies)));
        }
        effects.append(&mut deletes);
        put(effects, Table::Replies, ReplyRow::key(session.id, seq), value);
        put(effects, Table::Sessions, SessionRow::key(session.id), row.encode());
        live.row = row;
        live.index = index;
        Ok(Recorded::Row { kept_for_ms: None })
    }

    /// Opens a session in the entry at `index`, unless it is open.
    pub(crate) fn open(
        &mut self,
        id: SessionId,
        index: Index,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Verdict {
        if let Some(live) = self.sessions.get_mut(&id) {
            live.last_used = now;
            let answer = Answer::Opened { opened_at: live.row.opened_at };
            return Verdict::Known { answer, rests_on: live.index };
        }
        if self.sessions.len() >= limits::SESSIONS_MAX {
            return Verdict::NotNow(Refusal::Busy(Limit::Sessions));
        }
        let row =
            SessionRow { opened_at: OpenedAt(index.0), first_unacked: Seq(1), saved_bytes: 0 };
        self.sessions.insert(id, Live { row, index, last_used: now });
        put(effects, Table::Sessions, SessionRow::key(id), row.encode());
        Verdict::New
    }

    /// Notes that a session is in use.
    pub(crate) fn keep_alive(
        &mut self,
        state: &State,
        session: Session,
        now: Moment,
    ) -> Result<Verdict, Stop> {
        match self.use_session(session, now) {
            Some(live) => Ok(Verdict::Known { answer: Answer::Alive, rests_on: live.index }),
            None => unknown_session(state, session),
        }
    }

    /// Ends a session and forgets its replies.
    pub(crate) fn close(
        &mut self,
        state: &State,
        session: Session,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Result<Verdict, Stop> {
        if self.use_session(session, now).is_none() {
            return unknown_session(state, session);
        }
        self.remove(state, session.id, effects)?;
        Ok(Verdict::New)
    }

    /// Ends sessions that were idle for `idle`, at most `limit` of them. Never one with a request
    /// that is not yet committed.
    pub(crate) fn expire(
        &mut self,
        state: &State,
        now: Moment,
        idle: Duration,
        limit: usize,
    ) -> Result<Vec<Vec<Effect>>, Stop> {
        let committed = state.committed();
        let mut due: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, live)| now.since(live.last_used) >= idle && live.index <= committed)
            .map(|(id, _)| *id)
            .collect();
        due.sort_unstable();
        due.truncate(limit);
        let mut entries = Vec::with_capacity(due.len());
        for id in due {
            let mut effects = Vec::new();
            self.remove(state, id, &mut effects)?;
            entries.push(effects);
        }
        Ok(entries)
    }

    /// Some sessions in the order of their ids, and whether there are more.
    pub(crate) fn list(
        &self,
        now: Moment,
        after: Option<SessionId>,
        limit: usize,
    ) -> (Vec<SessionStatus>, bool) {
        let mut ids: Vec<SessionId> =
            self.sessions.keys().copied().filter(|id| after.is_none_or(|it| *id > it)).collect();
        ids.sort_unstable();
        let more = ids.len() > limit;
        ids.truncate(limit);
        (ids.iter().filter_map(|id| self.status(*id, now)).collect(), more)
    }

    fn status(&self, id: SessionId, now: Moment) -> Option<SessionStatus> {
        let Live { row, last_used, .. } = self.sessions.get(&id)?;
        Some(SessionStatus {
            session: Session { id, opened_at: row.opened_at },
            first_unacked: row.first_unacked,
            saved_bytes: row.saved_bytes,
            idle_ms: u64::try_from(now.since(*last_used).as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// A session and its saved replies, and the newest entry that this rests on.
    pub(crate) fn show(
        &self,
        state: &State,
        now: Moment,
        id: SessionId,
    ) -> Result<(Option<SessionDetail>, Index), Stop> {
        let mut newest = state.get(Table::Sessions, &SessionRow::key(id))?.index;
        let Some(status) = self.status(id, now) else { return Ok((None, newest)) };
        let mut saved = Vec::new();
        let end = ReplyRow::key(id, Seq(u64::MAX));
        for row in state.scan(Table::Replies, &ReplyRow::key(id, Seq(0)), Some(&end)) {
            let row = row?;
            newest = newest.max(row.index);
            let Some(value) = row.value else { continue };
            let reply_bytes = match ReplyRow::decode(value)? {
                ReplyRow::Executed { reply, .. } => Some(reply.len() as u64),
                ReplyRow::Cancelled => None,
            };
            saved.push(SavedRequest { seq: ReplyRow::seq(&row.key)?, reply_bytes });
        }
        Ok((Some(SessionDetail { status, saved }), newest))
    }

    fn remove(
        &mut self,
        state: &State,
        id: SessionId,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Stop> {
        remove_session_rows(state, id, effects)?;
        self.sessions.remove(&id);
        Ok(())
    }
}

/// Deletes the rows of a session: its own, and its replies.
pub(crate) fn remove_session_rows(
    state: &State,
    id: SessionId,
    effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    let end = ReplyRow::key(id, Seq(u64::MAX));
    for row in state.scan(Table::Replies, &ReplyRow::key(id, Seq(0)), Some(&end)) {
        let row = row?;
        if row.value.is_some() {
            delete(effects, Table::Replies, row.key);
        }
    }
    delete(effects, Table::Sessions, SessionRow::key(id));
    Ok(())
}

/// Refuses what no client can have seen.
fn check_watermark(seq: Seq, first_unacked: Seq) -> Result<(), Refusal> {
    if (Seq(1)..=seq).contains(&first_unacked) {
        return Ok(());
    }
    Err(Refusal::Invalid(format!(
        "seq {seq} with first_unacked {first_unacked}: 1 ≤ first_unacked ≤ seq is needed"
    )))
}

/// A session that is not live is gone for good if it was opened in the committed history; one
/// opened beyond it is news to this node, which then must not speak of it.
fn unknown_session(state: &State, session: Session) -> Result<Verdict, Stop> {
    if session.opened_at.0 > state.committed().0 {
        return Ok(Verdict::AskAgain);
    }
    let rests_on = state.get(Table::Sessions, &SessionRow::key(session.id))?.index;
    Ok(Verdict::refused(Refusal::SessionExpired, rests_on))
}

/// What a copy of a request that ran, or was cancelled, is answered.
fn duplicate(
    reply: ReplyRow,
    sent: Fingerprint,
    kept_for_ms: Option<u64>,
    index: Index,
) -> Verdict {
    match reply {
        ReplyRow::Cancelled => Verdict::refused(Refusal::Cancelled, index),
        ReplyRow::Executed { fingerprint, .. } if fingerprint != sent => {
            Verdict::refused(Refusal::Mismatch, index)
        }
        ReplyRow::Executed { reply, .. } => Verdict::Known {
            answer: Answer::Executed { reply, replayed: true, kept_for_ms },
            rests_on: index,
        },
    }
}

/// What somebody who asks about a request that ran, or was cancelled, is told.
fn fate(
    reply: ReplyRow,
    asked: Option<Fingerprint>,
    kept_for_ms: Option<u64>,
    index: Index,
) -> Verdict {
    match reply {
        ReplyRow::Cancelled => told(Fate::Cancelled, kept_for_ms, index),
        ReplyRow::Executed { fingerprint, .. } if asked.is_some_and(|it| it != fingerprint) => {
            Verdict::refused(Refusal::Mismatch, index)
        }
        ReplyRow::Executed { reply, .. } => told(Fate::Done { reply }, kept_for_ms, index),
    }
}

fn told(fate: Fate, kept_for_ms: Option<u64>, rests_on: Index) -> Verdict {
    Verdict::Known { answer: Answer::Fate { fate, kept_for_ms }, rests_on }
}

pub(crate) fn put(effects: &mut Vec<Effect>, table: Table, key: Bytes, value: Bytes) {
    effects.push(Effect { table, key, value: Some(value) });
}

pub(crate) fn delete(effects: &mut Vec<Effect>, table: Table, key: Bytes) {
    effects.push(Effect { table, key, value: None });
}

#[cfg(test)]
mod tests;
