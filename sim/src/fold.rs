//! What the committed history comes to: every version of every row, every session's life, and what
//! became of every request. Read off the entries themselves, not with the code under test.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use onlyonce_storage::{Entry, Index, Record, State, Table};
use onlyonce_wire::client::RequestId;
use onlyonce_wire::{Incarnation, OpenedAt, Session, SessionId};

use crate::client::FIRST_INCARNATION;
use crate::ledger::Finding;
use crate::requests::{Requests, clock_of, number, row_of};

/// The committed history, folded.
pub struct Fold {
    /// The incarnation that it is in.
    pub incarnation: Incarnation,
    /// The values of each row, with the records and the moments that made them, in order.
    rows: BTreeMap<(Table, Bytes), Vec<Version>>,
    /// How many entries there are: each makes a state of its own.
    moment: u64,
    /// The lives of each session id, in order.
    sessions: HashMap<SessionId, Vec<Life>>,
    /// What became of every request (I5).
    pub requests: Requests,
}

impl Default for Fold {
    fn default() -> Self {
        Self {
            incarnation: FIRST_INCARNATION,
            rows: BTreeMap::new(),
            moment: 0,
            sessions: HashMap::new(),
            requests: Requests::default(),
        }
    }
}

/// A value of a row.
struct Version {
    index: Index,
    moment: u64,
    value: Option<Bytes>,
}

/// A session, from its opening to its end.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Completes its identity: the index of its opening.
    pub opened_at: OpenedAt,
    /// The record that ended it.
    pub ended: Option<Index>,
    /// Replies below this were acknowledged.
    pub first_unacked: u64,
    /// It was opened in an earlier incarnation.
    is_old: bool,
}

impl Fold {
    /// Takes the next record of the history.
    pub fn take(&mut self, record: &Record) -> Finding {
        let index = record.index;
        record.entries.iter().try_for_each(|entry| self.take_entry(index, entry))
    }

    fn take_entry(&mut self, index: Index, entry: &Entry) -> Finding {
        self.moment += 1;
        let is_duplicate_row = |table: Table, key: &Bytes| {
            table == Table::Replies || (table == Table::Keys && !key.is_empty())
        };
        let (mut requests, mut executed) = (0, 0);
        for effect in &entry.effects {
            let Some(value) = &effect.value else { continue };
            if is_duplicate_row(effect.table, &effect.key) {
                requests += 1;
                // That of a cancelled request has no fingerprint.
                executed += u32::from(value.len() >= 16);
                self.end(index, effect.table, &effect.key, value)?;
            }
        }
        let writes = entry.effects.iter().any(|effect| effect.table == Table::Kv);
        if requests > 1 || (writes && executed != 1) {
            return Err(format!(
                "I6: an entry of {index} has effects and {requests} duplicate rows, {executed} with replies"
            ));
        }
        self.requests.take_entry(index, entry)?;
        for effect in &entry.effects {
            if effect.table == Table::Sessions {
                self.take_session(index, &effect.key, effect.value.as_ref(), requests == 1)?;
            }
            let versions = self.rows.entry((effect.table, effect.key.clone())).or_default();
            versions.push(Version { index, moment: self.moment, value: effect.value.clone() });
        }
        Ok(())
    }

    /// I5, P5: a request ends once, and never in a session that is not open or below its watermark.
    fn end(&mut self, index: Index, table: Table, key: &Bytes, value: &Bytes) -> Finding {
        self.requests.end(index, (table, key), value)?;
        if table == Table::Replies {
            let (id, seq) = session_and_seq(key)?;
            let Some(life) = self.life(id).filter(|life| life.ended.is_none()) else {
                return Err(format!("P5: {index} ends request {seq} of session {id}, not open"));
            };
            if life.is_old {
                return Err(format!(
                    "P5: {index} ends request {seq} of session {id}, opened before a restore"
                ));
            }
            if seq < life.first_unacked {
                return Err(format!(
                    "P5: {index} ends request {seq} of session {id}, below its watermark {}",
                    life.first_unacked
                ));
            }
        }
        Ok(())
    }

    fn take_session(
        &mut self,
        index: Index,
        key: &Bytes,
        value: Option<&Bytes>,
        executes: bool,
    ) -> Finding {
        if key.is_empty() {
            return self.begin_incarnation(index, value);
        }
        let id = key[..].try_into().map_err(|_| "a session's key is no id".to_owned())?;
        let id = SessionId(u128::from_be_bytes(id));
        let lives = self.sessions.entry(id).or_default();
        let open = lives.last_mut().filter(|life| life.ended.is_none());
        let Some(value) = value else {
            let Some(life) = open else {
                return Err(format!("I6: {index} ends session {id}, which is not open"));
            };
            life.ended = Some(index);
            return Ok(());
        };
        let (opened_at, first_unacked) = session_row(value)?;
        match open {
            Some(life) if life.opened_at == opened_at && life.first_unacked <= first_unacked => {
                life.first_unacked = first_unacked;
            }
            None if opened_at.0 == index.0 && !executes => {
                lives.push(Life { opened_at, ended: None, first_unacked, is_old: false });
            }
            life => {
                return Err(format!(
                    "P5: {index} makes session {id} one of {opened_at} with watermark {first_unacked}, but it was {life:?}"
                ));
            }
        }
        Ok(())
    }

    /// P5: what is executed from now on is of this incarnation: no session of an earlier one is open,
    /// and it is known when it began.
    fn begin_incarnation(&self, index: Index, value: Option<&Bytes>) -> Finding {
        let told = value.map_or(Ok(FIRST_INCARNATION.0), |value| number(value))?;
        if told != self.incarnation.0 {
            return Err(format!("P5: {index} opens incarnation {told}, not {}", self.incarnation));
        }
        if let Some(life) = self.sessions.values().flatten().find(|life| life.ended.is_none()) {
            return Err(format!("P5: {index} opens incarnation {told}, but not ended is {life:?}"));
        }
        if !self.requests.knows_beginning() {
            return Err(format!("P5: {index} opens incarnation {told}, but not when it began"));
        }
        Ok(())
    }

    /// The history goes on from `end` on, in a new incarnation: what came after it never was.
    pub fn restore(&mut self, end: Index, incarnation: Incarnation) -> Finding {
        self.incarnation = incarnation;
        self.rows.retain(|_, versions| {
            versions.retain(|version| version.index <= end);
            !versions.is_empty()
        });
        let rows = &self.rows;
        for (id, lives) in &mut self.sessions {
            lives.retain(|life| life.opened_at.0 <= end.0);
            for life in lives {
                life.is_old = true;
                life.ended.take_if(|ended| *ended > end);
                let row = (Table::Sessions, Bytes::copy_from_slice(&id.0.to_be_bytes()));
                let row = rows.get(&row).and_then(|versions| last_of(versions, |_| true));
                if let (None, Some(Ok((_, first_unacked)))) =
                    (life.ended, row.map(|row| session_row(&row)))
                {
                    life.first_unacked = first_unacked;
                }
            }
        }
        let rows = |table| self.rows_at(table, u64::MAX);
        let rows = [rows(Table::Keys), rows(Table::Expiry)];
        self.requests.restore(end, rows)
    }

    /// The newest life of a session id.
    pub fn life(&self, id: SessionId) -> Option<&Life> {
        self.sessions.get(&id)?.last()
    }

    /// The life of exactly this session.
    pub fn life_of(&self, session: Session) -> Option<&Life> {
        let lives = self.sessions.get(&session.id)?;
        lives.iter().find(|life| life.opened_at == session.opened_at)
    }

    /// Whether a request was new at a moment: nothing became of it, and it could have run.
    pub fn was_new(&self, id: &RequestId, moment: u64) -> Result<bool, String> {
        let (table, key) = row_of(id);
        if self.value_at(table, &key, moment).is_some() {
            return Ok(false);
        }
        Ok(match id {
            RequestId::Key(key) => {
                let clock = self.value_at(Table::Expiry, &Bytes::new(), moment);
                let clock = clock.map(|row| clock_of(&row)).transpose()?;
                let is_news = |time| clock.is_some_and(|clock| time >= clock.known_from());
                key.time_ms().is_none_or(is_news)
            }
            RequestId::Seq { session, seq } => {
                let row = Bytes::copy_from_slice(&session.id.0.to_be_bytes());
                let row = self.value_at(Table::Sessions, &row, moment);
                let row = row.map(|row| session_row(&row)).transpose()?;
                row.is_some_and(|(opened_at, first_unacked)| {
                    opened_at == session.opened_at && seq.0 >= first_unacked
                })
            }
        })
    }

    /// The newest moment.
    pub fn moment(&self) -> u64 {
        self.moment
    }

    /// A row's value after a record.
    pub fn value_after(&self, table: Table, key: &Bytes, index: Index) -> Option<Bytes> {
        last_of(self.rows.get(&(table, key.clone()))?, |version| version.index <= index)
    }

    /// All rows after a record.
    pub fn rows_after(&self, index: Index) -> BTreeMap<(Table, Bytes), Bytes> {
        let value = |versions: &Vec<Version>| last_of(versions, |it| it.index <= index);
        let rows = self.rows.iter();
        rows.filter_map(|(key, versions)| Some((key.clone(), value(versions)?))).collect()
    }

    /// A row's value at a moment.
    pub fn value_at(&self, table: Table, key: &Bytes, moment: u64) -> Option<Bytes> {
        last_of(self.rows.get(&(table, key.clone()))?, |version| version.moment <= moment)
    }

    /// A table's rows at a moment.
    pub fn rows_at(&self, table: Table, moment: u64) -> Vec<(Bytes, Bytes)> {
        let range = self.rows.range((table, Bytes::new())..);
        range
            .take_while(|((of, _), _)| *of == table)
            .filter_map(|((_, key), versions)| {
                let value = last_of(versions, |version| version.moment <= moment)?;
                Some((key.clone(), value))
            })
            .collect()
    }

    /// I9: a store's rows are those of the history up to its checkpoint, and then of its log.
    pub fn compare(&self, state: &State) -> Finding {
        let applied = state.applied();
        let mut expected = self.rows_after(applied);
        let mut next = applied.next();
        while next <= state.last().1 {
            let record = state.record(next).map_err(|error| error.to_string())?;
            let record = record.ok_or_else(|| format!("record {next} is not in the log"))?;
            for effect in record.entries.iter().flat_map(|entry| &entry.effects) {
                let key = (effect.table, effect.key.clone());
                match &effect.value {
                    Some(value) => expected.insert(key, value.clone()),
                    None => expected.remove(&key),
                };
            }
            next = next.next();
        }
        let mut found: BTreeMap<(Table, Bytes), Bytes> = BTreeMap::new();
        for table in Table::ALL {
            for row in state.scan(table, &[], None) {
                let row = row.map_err(|error| error.to_string())?;
                found.extend(row.value.map(|value| ((table, row.key), value)));
            }
        }
        for key in expected.keys().chain(found.keys()) {
            let (wanted, held) = (expected.get(key), found.get(key));
            if wanted != held {
                return Err(format!("{key:?} is {held:?}, but {wanted:?} in the history"));
            }
        }
        Ok(())
    }
}

/// The last of the versions that are `early`, as those at the beginning are.
fn last_of(versions: &[Version], early: impl Fn(&Version) -> bool) -> Option<Bytes> {
    let end = versions.partition_point(early);
    versions[..end].last()?.value.clone()
}

/// When a session was opened, and its watermark.
fn session_row(value: &Bytes) -> Result<(OpenedAt, u64), String> {
    let number = |at: usize| {
        let bytes = value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or("a session's row is short")
    };
    Ok((OpenedAt(number(0)?), number(8)?))
}

fn session_and_seq(key: &Bytes) -> Result<(SessionId, u64), String> {
    let (id, seq) = key.split_at_checked(16).ok_or("a reply's key is short")?;
    let seq = seq.try_into().map_err(|_| "a reply's key has another length")?;
    let id = id.try_into().expect("16 bytes");
    Ok((SessionId(u128::from_be_bytes(id)), u64::from_be_bytes(seq)))
}
