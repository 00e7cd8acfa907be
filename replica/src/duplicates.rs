//! The duplicate table: which requests ran, and what they were answered.
//!
//! The table *is* its rows ([`rows`](crate::rows)): they travel in the same entry as the effects
//! they speak of, so a node that has an effect has its duplicate row. What [`DuplicateTable`]
//! holds in memory lives only while a node is an open primary, and is loaded from the rows when it
//! becomes one: the sessions (to know when each was last used) and the number of keys.
//!
//! | the table says | verdict |
//! |---|---|
//! | session not exactly known | `SessionExpired`: never executed |
//! | `seq` below the watermark | `Stale`: its reply was acknowledged; never executed |
//! | reply saved or pending, fingerprint equal | that reply, `replayed` |
//! | reply saved or pending, fingerprint differs | `Mismatch`; never executed |
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

use bytes::Bytes;
use onlyonce_storage::{Effect, Index, State, Table};
use onlyonce_wire::client::{Answer, ExecuteId, Fingerprint, Limit, Refusal};
use onlyonce_wire::{IdempotencyKey, OpenedAt, Seq, Session, SessionId, limits};

use crate::Stop;
use crate::config::Limits;
use crate::event::Moment;
use crate::rows::{FIRST_SESSION, KEY_COUNT, ReplyRow, SessionRow, decode_key_count};

/// The part of the duplicate table that an open primary holds in memory.
pub(crate) struct DuplicateTable {
    sessions: HashMap<SessionId, Live>,
    idempotency_keys: u64,
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

impl DuplicateTable {
    /// Loads the sessions from their rows, all of which are committed.
    pub(crate) fn load(state: &State, now: Moment, limits: Limits) -> Result<Self, Stop> {
        let mut sessions = HashMap::new();
        for row in state.scan(Table::Sessions, FIRST_SESSION, None) {
            let row = row?;
            let Some(value) = row.value else { continue };
            let live =
                Live { row: SessionRow::decode(&value)?, index: Index::ZERO, last_used: now };
            sessions.insert(SessionRow::id(&row.key)?, live);
        }
        let count = state.get(Table::Keys, KEY_COUNT)?.value;
        Ok(Self { sessions, idempotency_keys: decode_key_count(count.as_ref())?, limits })
    }

    /// Breaks [`Rule::WatermarkForgotten`](crate::mutations::Rule::WatermarkForgotten).
    pub(crate) fn forget_watermarks(&mut self) {
        self.sessions.values_mut().for_each(|live| live.row.first_unacked = Seq(1));
    }

    /// Breaks [`Rule::SessionReopened`](crate::mutations::Rule::SessionReopened).
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

    pub(crate) fn idempotency_keys(&self) -> u64 {
        self.idempotency_keys
    }

    /// Looks a request up.
    pub(crate) fn look_up(
        &mut self,
        state: &State,
        now: Moment,
        id: &ExecuteId,
        fingerprint: Fingerprint,
    ) -> Result<Verdict, Stop> {
        match id {
            ExecuteId::Session { session, seq, first_unacked } => {
                self.look_up_seq(state, now, *session, *seq, *first_unacked, fingerprint)
            }
            ExecuteId::Key(key) => self.look_up_key(state, key, fingerprint),
        }
    }

    fn look_up_seq(
        &mut self,
        state: &State,
        now: Moment,
        session: Session,
        seq: Seq,
        first_unacked: Seq,
        fingerprint: Fingerprint,
    ) -> Result<Verdict, Stop> {
        if first_unacked == Seq(0) || first_unacked > seq || seq == Seq(u64::MAX) {
            let text = format!(
                "seq {seq} with first_unacked {first_unacked}: 1 ≤ first_unacked ≤ seq < {} is needed",
                u64::MAX
            );
            return Ok(Verdict::NotNow(Refusal::Invalid(text)));
        }
        let Some(live) = self.use_session(session, now) else {
            return unknown_session(state, session);
        };
        if seq < live.row.first_unacked {
            let first_unacked = live.row.first_unacked;
            return Ok(Verdict::refused(Refusal::Stale { first_unacked }, live.index));
        }
        let saved = state.get(Table::Replies, &ReplyRow::key(session.id, seq))?;
        if let Some(value) = saved.value {
            return known_reply(value, fingerprint, saved.index);
        }
        let watermark = live.row.first_unacked.max(first_unacked);
        let window = self.limits.window;
        if seq.0 - watermark.0 >= window {
            let refusal = Refusal::WindowFull { first_unacked: watermark, window };
            return Ok(Verdict::NotNow(refusal));
        }
        Ok(Verdict::New)
    }

    fn look_up_key(
        &self,
        state: &State,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Verdict, Stop> {
        if let Err(error) = key.check() {
            return Ok(Verdict::NotNow(Refusal::Invalid(error.to_string())));
        }
        let saved = state.get(Table::Keys, key.as_bytes())?;
        if let Some(value) = saved.value {
            return known_reply(value, fingerprint, saved.index);
        }
        if self.idempotency_keys >= limits::IDEMPOTENCY_KEYS_MAX {
            return Ok(Verdict::NotNow(Refusal::Busy(Limit::IdempotencyKeys)));
        }
        Ok(Verdict::New)
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

    /// The duplicate row of a request that is executed now, in the entry at `index`; with it the
    /// new watermark, and the end of the replies below that.
    ///
    /// `Err` when its session has too many bytes of saved replies, and an older request is yet to be
    /// acknowledged: nothing was changed.
    pub(crate) fn record(
        &mut self,
        state: &State,
        index: Index,
        id: &ExecuteId,
        reply: &ReplyRow,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), Refusal>, Stop> {
        match id {
            ExecuteId::Key(key) => {
                self.idempotency_keys += 1;
                let count = self.idempotency_keys.to_le_bytes();
                put(effects, Table::Keys, Bytes::from_static(KEY_COUNT), count.to_vec().into());
                put(effects, Table::Keys, key.as_bytes().clone(), reply.encode());
                Ok(Ok(()))
            }
            ExecuteId::Session { session, seq, first_unacked } => {
                self.record_seq(state, index, *session, (*seq, *first_unacked), reply, effects)
            }
        }
    }

    fn record_seq(
        &mut self,
        state: &State,
        index: Index,
        session: Session,
        (seq, first_unacked): (Seq, Seq),
        reply: &ReplyRow,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), Refusal>, Stop> {
        let live = self.sessions.get_mut(&session.id).expect("looked up before it is recorded");
        let mut row = live.row;
        let mut deletes = Vec::new();
        // However far the watermark moves, no reply was saved at or beyond the old window's end.
        let end = first_unacked.0.min(row.first_unacked.0.saturating_add(limits::WINDOW));
        for acked in row.first_unacked.0..end {
            let key = ReplyRow::key(session.id, Seq(acked));
            if let Some(value) = state.get(Table::Replies, &key)?.value {
                row.saved_bytes -= value.len() as u64;
                deletes.push(Effect { table: Table::Replies, key, value: None });
            }
        }
        row.first_unacked = row.first_unacked.max(first_unacked);
        let value = reply.encode();
        row.saved_bytes += value.len() as u64;
        // Only the oldest request's reply lets the watermark move on, and so makes room: replies to
        // later ones must not keep it out.
        let is_oldest = seq == row.first_unacked;
        if row.saved_bytes > self.limits.saved_reply_bytes && !is_oldest {
            return Ok(Err(Refusal::Busy(Limit::SavedReplies)));
        }
        effects.append(&mut deletes);
        put(effects, Table::Replies, ReplyRow::key(session.id, seq), value);
        put(effects, Table::Sessions, SessionRow::key(session.id), row.encode());
        live.row = row;
        live.index = index;
        Ok(Ok(()))
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
        idle: std::time::Duration,
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
            effects.push(Effect { table: Table::Replies, key: row.key, value: None });
        }
    }
    let key = SessionRow::key(id);
    effects.push(Effect { table: Table::Sessions, key, value: None });
    Ok(())
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

fn known_reply(value: Bytes, fingerprint: Fingerprint, rests_on: Index) -> Result<Verdict, Stop> {
    let saved = ReplyRow::decode(value)?;
    if saved.fingerprint != fingerprint {
        return Ok(Verdict::refused(Refusal::Mismatch, rests_on));
    }
    let answer = Answer::Executed { reply: saved.reply, replayed: true };
    Ok(Verdict::Known { answer, rests_on })
}

fn put(effects: &mut Vec<Effect>, table: Table, key: Bytes, value: Bytes) {
    effects.push(Effect { table, key, value: Some(value) });
}

#[cfg(test)]
mod tests {
    use onlyonce_storage::engine::memory::MemoryDisk;
    use onlyonce_storage::{Options, open};

    use super::*;

    /// The table of a new store, and that store.
    fn empty(limits: Limits) -> (DuplicateTable, State) {
        let state = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens").state;
        (DuplicateTable::load(&state, Moment(1), limits).expect("loads"), state)
    }

    /// One session more than there may be is turned away for now; those that are open stay so, and
    /// one that is closed makes room.
    #[test]
    fn sessions_are_bounded() {
        let (mut table, state) = empty(Limits::default());
        let open = |table: &mut DuplicateTable, id| {
            table.open(SessionId(id), Index(1), Moment(1), &mut Vec::new())
        };
        let most = limits::SESSIONS_MAX as u128;
        for id in 1..=most {
            assert!(matches!(open(&mut table, id), Verdict::New), "{id}");
        }
        let verdict = open(&mut table, most + 1);
        assert!(matches!(verdict, Verdict::NotNow(Refusal::Busy(Limit::Sessions))), "{verdict:?}");
        assert!(matches!(open(&mut table, 1), Verdict::Known { .. }), "it is open");
        let first = Session { id: SessionId(1), opened_at: OpenedAt(1) };
        let closed = table.close(&state, first, Moment(1), &mut Vec::new()).expect("reads");
        assert!(matches!(closed, Verdict::New), "{closed:?}");
        assert!(matches!(open(&mut table, most + 1), Verdict::New), "there is room");
    }

    /// With as many idempotency keys as there may be, a new one is turned away for now.
    #[test]
    fn idempotency_keys_are_bounded() {
        let (mut table, state) = empty(Limits::default());
        let id = ExecuteId::Key(IdempotencyKey::new("order-1234").expect("a good key"));
        let mut look_up = |keys| {
            table.idempotency_keys = keys;
            table.look_up(&state, Moment(1), &id, Fingerprint(1)).expect("reads")
        };
        let last = look_up(limits::IDEMPOTENCY_KEYS_MAX - 1);
        assert!(matches!(last, Verdict::New), "{last:?}");
        let refused = look_up(limits::IDEMPOTENCY_KEYS_MAX);
        let busy = Refusal::Busy(Limit::IdempotencyKeys);
        assert!(matches!(&refused, Verdict::NotNow(refusal) if *refusal == busy), "{refused:?}");
    }

    /// Replies to later requests never keep out the oldest one, whose reply alone lets them go.
    #[test]
    fn the_oldest_request_is_never_busy_for_later_replies() {
        let (mut table, state) = empty(Limits { saved_reply_bytes: 50, ..Limits::default() });
        let session = Session { id: SessionId(1), opened_at: OpenedAt(1) };
        let _ = table.open(session.id, Index(1), Moment(1), &mut Vec::new());
        let mut record = |seq| {
            let id = ExecuteId::Session { session, seq: Seq(seq), first_unacked: Seq(1) };
            let reply = Bytes::from_static(b"8 bytes.");
            let row = ReplyRow { fingerprint: Fingerprint(1), reply };
            table.record(&state, Index(2), &id, &row, &mut Vec::new()).expect("reads")
        };
        assert_eq!((record(2), record(3)), (Ok(()), Ok(())));
        assert_eq!(record(4), Err(Refusal::Busy(Limit::SavedReplies)));
        assert_eq!(record(1), Ok(()));
    }
}
