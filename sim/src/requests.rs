//! What became of each request in the committed history: whether it ran or was cancelled, how long
//! its key was to be remembered, and when it was forgotten.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use onlyonce_replica::{DRIFT_PER_MILLE, KeyRow};
use onlyonce_storage::{Effect, Entry, Index, Table};
use onlyonce_wire::client::{Fingerprint, RequestId};

use crate::ledger::Finding;
use crate::time::{MILLISECOND, Span};

/// Whole milliseconds are logged and told: a promise may be short by as much.
const ROUNDING: Span = 2 * MILLISECOND;

/// What a request came to under its id, from the entry that says so until that is forgotten. Only a
/// named key can have more than one: forgotten, it is like a new one.
#[derive(Clone, Debug)]
pub struct Fate {
    /// In this record.
    pub index: Index,
    /// When that was committed.
    pub at: u64,
    /// What it came to.
    pub became: Became,
    /// The age until which a key is remembered at least.
    forgotten_at_age_ms: u64,
    /// Until when somebody was told that the key would be remembered.
    kept_until: u64,
    /// The record that forgot the key, and when that was committed.
    pub forgotten: Option<(Index, u64)>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Became {
    /// It ran.
    Executed {
        /// Of its operation.
        fingerprint: Fingerprint,
        /// The reply that was saved with it.
        reply: Bytes,
    },
    /// It was cancelled.
    Cancelled,
}

/// What a world's calendars and configuration allow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The world's time.
    pub now: u64,
    /// The latest that any node's calendar ever showed, in milliseconds since 1970.
    pub latest_wall_ms: u64,
    /// How long keys are remembered, in milliseconds.
    pub retention_ms: u64,
}

/// All requests.
#[derive(Default)]
pub struct Requests {
    /// As things stand around the nodes.
    pub times: Times,
    /// By table and key of the duplicate row.
    fates: HashMap<(Table, Bytes), Vec<Fate>>,
    /// The rows of keys that are remembered.
    remembered: HashSet<Bytes>,
    /// When keys are due to be forgotten, by their rows: each once, but within an entry.
    expiries: HashMap<Bytes, BTreeSet<u64>>,
    /// The clock, once logged.
    clock: Option<Clock>,
    /// The rows of what ran in a history that a restore has ended, and is no part of this one.
    lost: HashSet<(Table, Bytes)>,
    /// How many named keys of these ran anew.
    pub lost_ran_anew: u64,
}

/// By what keys are forgotten, as it was logged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// How long there were primaries, in milliseconds.
    age: u64,
    /// Below this, timed keys without a row are refused, in milliseconds since 1970.
    floor: u64,
    /// When the incarnation began: the same for these; 0 for the first.
    begun: u64,
}

impl Clock {
    /// Below this, timed keys without a row are refused.
    pub fn known_from(self) -> u64 {
        self.floor.max(self.begun)
    }
}

/// The table and key of a request's duplicate row.
pub fn row_of(id: &RequestId) -> (Table, Bytes) {
    match id {
        RequestId::Key(key) => (Table::Keys, KeyRow::key(key)),
        RequestId::Seq { session, seq } => {
            let key = [session.id.0.to_be_bytes().as_slice(), &seq.0.to_be_bytes()].concat();
            (Table::Replies, key.into())
        }
    }
}

/// The clock that a row tells of.
pub fn clock_of(row: &[u8]) -> Result<Clock, String> {
    match row.chunks(8).map(number).collect::<Result<Vec<_>, _>>()?[..] {
        [age, floor, begun, _calendar] => Ok(Clock { age, floor, begun }),
        _ => Err(format!("I6: {row:?} is no row of the key clock")),
    }
}

/// A little-endian number.
pub fn number(bytes: &[u8]) -> Result<u64, String> {
    let bytes = bytes.try_into().map_err(|_| "a number has another length".to_owned())?;
    Ok(u64::from_le_bytes(bytes))
}

/// The age and the row of an expiry.
fn expiry_of(key: &[u8]) -> Result<(u64, Bytes), String> {
    let (age, row) = key.split_at_checked(8).ok_or("an expiry is short")?;
    let age = u64::from_be_bytes(age.try_into().expect("8 bytes"));
    Ok((age, Bytes::copy_from_slice(row)))
}

/// The time that the key in a row tells, if it is a timed one.
fn time_of(row: &[u8]) -> Option<u64> {
    let (kind, uuid) = row.split_at_checked(1)?;
    let time: [u8; 6] = uuid.get(..6)?.try_into().ok()?;
    let bytes = [&[0; 2][..], &time].concat().try_into().ok()?;
    (kind == b"t").then_some(u64::from_be_bytes(bytes))
}

impl Requests {
    /// What became of a request, in order.
    pub fn fates(&self, id: &RequestId) -> &[Fate] {
        self.fates.get(&row_of(id)).map_or(&[], Vec::as_slice)
    }

    /// How many requests ran anew under a named key that was forgotten.
    pub fn ran_anew(&self) -> u64 {
        let ran = |fate: &&Fate| matches!(fate.became, Became::Executed { .. });
        let runs = self.fates.values().map(|fates| fates.iter().filter(ran).count() as u64);
        runs.map(|runs| runs.saturating_sub(1)).sum()
    }

    /// Below this, timed keys without a row are refused.
    pub fn known_from_ms(&self) -> u64 {
        self.clock.map_or(0, Clock::known_from)
    }

    /// Whether it is logged when the incarnation began.
    pub fn knows_beginning(&self) -> bool {
        self.clock.is_some_and(|clock| clock.begun > 0)
    }

    /// The history goes on from `end` on, in a new incarnation, with these rows of keys and expiries.
    /// What was promised of keys that are remembered there still holds.
    pub fn restore(&mut self, end: Index, [keys, expiries]: [Vec<(Bytes, Bytes)>; 2]) -> Finding {
        for (row, fates) in &mut self.fates {
            let is_lost =
                |fate: &Fate| fate.index > end && matches!(fate.became, Became::Executed { .. });
            if fates.iter().any(is_lost) {
                self.lost.insert(row.clone());
            }
            fates.retain(|fate| fate.index <= end);
            for fate in fates {
                fate.forgotten.take_if(|(at, _)| *at > end);
            }
        }
        let keys = keys.into_iter().map(|(key, _)| key);
        self.remembered = keys.filter(|key| !key.is_empty()).collect();
        self.expiries.clear();
        self.clock = None;
        for (key, value) in expiries {
            if key.is_empty() {
                self.clock = Some(clock_of(&value)?);
                continue;
            }
            let (age, row) = expiry_of(&key)?;
            self.expiries.entry(row).or_default().insert(age);
        }
        Ok(())
    }

    /// A duplicate row is put: the request runs, or is cancelled, for the first time (I5, P5).
    pub fn end(&mut self, index: Index, (table, key): (Table, &Bytes), value: &Bytes) -> Finding {
        let (forgotten_at_age_ms, saved) = match table {
            Table::Keys => {
                let (age, saved) = value.split_at_checked(8).ok_or("a key's row is short")?;
                (number(age)?, saved)
            }
            _ => (0, &value[..]),
        };
        let became = match saved.split_at_checked(16) {
            Some((fingerprint, reply)) => {
                let fingerprint = fingerprint.try_into().expect("16 bytes");
                let fingerprint = Fingerprint(u128::from_le_bytes(fingerprint));
                Became::Executed { fingerprint, reply: Bytes::copy_from_slice(reply) }
            }
            None if saved.is_empty() => Became::Cancelled,
            None => return Err("a duplicate row is short".to_owned()),
        };
        let name = key.escape_ascii();
        if table == Table::Keys {
            self.is_kept_long_enough(key, forgotten_at_age_ms)
                .map_err(|error| format!("{index} remembers {name}: {error}"))?;
            self.remembered.insert(key.clone());
        }
        let fates = self.fates.entry((table, key.clone())).or_default();
        if let Some(fate) = fates.last() {
            let before = match (&fate.became, fate.forgotten) {
                (Became::Executed { .. }, None) => "executed",
                (Became::Cancelled, None) => "cancelled",
                (_, Some(_)) if time_of(key).is_some() => "forgotten",
                (_, Some(_)) => "",
            };
            if !before.is_empty() {
                return Err(format!("I5: {name} was {before}, and is {became:?} at {index}"));
            }
        }
        if self.lost.contains(&(table, key.clone())) && became != Became::Cancelled {
            // That of a timed key is checked by when the incarnation began.
            match table {
                Table::Replies => {
                    return Err(format!("P5: {name} ran before a restore, and again"));
                }
                _ if time_of(key).is_none() => self.lost_ran_anew += 1,
                _ => {}
            }
        }
        let at = self.times.now;
        let fate = Fate { index, at, became, forgotten_at_age_ms, kept_until: 0, forgotten: None };
        fates.push(fate);
        Ok(())
    }

    /// P5: a key is kept for the retention, and a timed one is news only above the floor, and since the
    /// incarnation began.
    fn is_kept_long_enough(&self, key: &Bytes, forgotten_at_age_ms: u64) -> Finding {
        let clock = self.clock.ok_or("I6: no clock was logged before")?;
        if let Some(time) = time_of(key).filter(|time| *time < clock.known_from()) {
            return Err(format!("P5: its time {time} is before that of {clock:?}"));
        }
        if forgotten_at_age_ms < clock.age + self.times.retention_ms {
            return Err(format!(
                "P5: it is to be forgotten at the age {forgotten_at_age_ms} by {clock:?}"
            ));
        }
        Ok(())
    }

    /// What an entry does to keys and their expiries, its duplicate row left aside.
    pub fn take_entry(&mut self, index: Index, entry: &Entry) -> Finding {
        let mut touched: BTreeSet<&[u8]> = BTreeSet::new();
        let mut count = None;
        let is_clock = |it: &&Effect| it.table == Table::Expiry && it.key.is_empty();
        let clock = entry.effects.iter().find(is_clock).and_then(|it| it.value.as_ref());
        clock.map_or(Ok(()), |clock| self.tell_time(index, clock, entry))?;
        for Effect { table, key, value } in &entry.effects {
            match (table, value) {
                (Table::Keys, Some(value)) if key.is_empty() => count = Some(number(value)?),
                (Table::Keys, Some(_)) => {
                    touched.insert(key);
                }
                (Table::Keys, None) => {
                    touched.insert(key);
                    self.forget(index, key)?;
                }
                (Table::Expiry, _) if key.is_empty() => {}
                (Table::Expiry, value) => {
                    let (age, row) = expiry_of(key)?;
                    let expiries = self.expiries.entry(row).or_default();
                    let fits = match value {
                        Some(_) => expiries.insert(age),
                        None => expiries.remove(&age),
                    };
                    if !fits {
                        return Err(format!("I6: the expiry {} at {index}", key.escape_ascii()));
                    }
                    touched.insert(&key[8..]);
                }
                (Table::Kv | Table::Sessions | Table::Replies, _) => {}
            }
        }
        touched.iter().try_for_each(|row| self.has_its_expiry(index, row))?;
        if touched.is_empty() || count == Some(self.remembered.len() as u64) {
            return Ok(());
        }
        let keys = self.remembered.len();
        Err(format!("I6: {index} counts {count:?} keys, but there are {keys}"))
    }

    /// I6: a key that is remembered has one expiry, and no other key has any. A timed one may have been
    /// put off.
    fn has_its_expiry(&self, index: Index, row: &[u8]) -> Finding {
        let row = Bytes::copy_from_slice(row);
        let fate = self.fates.get(&(Table::Keys, row.clone())).and_then(|fates| fates.last());
        let Some(fate) = fate else {
            return Err(format!("I6: {index} touches the unknown key {}", row.escape_ascii()));
        };
        let expiries: Vec<u64> = self.expiries.get(&row).into_iter().flatten().copied().collect();
        let fits = match (fate.forgotten, &expiries[..]) {
            (Some(_), []) => true,
            (None, [due]) if time_of(&row).is_some() => *due >= fate.forgotten_at_age_ms,
            (None, [due]) => *due == fate.forgotten_at_age_ms,
            _ => false,
        };
        let name = row.escape_ascii();
        if fits {
            return Ok(());
        }
        Err(format!("I6: after {index} the expiries {expiries:?} of {name} do not fit {fate:?}"))
    }

    /// A key is forgotten: only one that is due by the logged clock, and none that somebody was told
    /// would be remembered.
    fn forget(&mut self, index: Index, row: &Bytes) -> Finding {
        let name = row.escape_ascii();
        let Clock { age, floor, .. } = self.clock.unwrap_or_default();
        if !self.remembered.remove(row) {
            return Err(format!("I6: {index} forgets {name}, which is not remembered"));
        }
        let fates = self.fates.get_mut(&(Table::Keys, row.clone()));
        let fate = fates.and_then(|fates| fates.last_mut()).expect("it is remembered");
        if fate.forgotten_at_age_ms > age || time_of(row).is_some_and(|time| time >= floor) {
            return Err(format!(
                "P5: {index} forgets {name} before its time: age {age}, floor {floor}, {fate:?}"
            ));
        }
        if fate.index >= index {
            return Err(format!("P5: {index} forgets {name}, which is not yet committed"));
        }
        let now = self.times.now;
        if fate.kept_until > now + ROUNDING {
            return Err(format!(
                "P5: {index} forgets {name} {} ms before what was told",
                (fate.kept_until - now) / MILLISECOND
            ));
        }
        fate.forgotten = Some((index, now));
        Ok(())
    }

    /// The clock is logged: the age never sinks, and is no faster than time; the floor rises just above
    /// the timed keys that the same entry forgets, none of which is of the future; an incarnation began
    /// when some calendar said so.
    fn tell_time(&mut self, index: Index, row: &Bytes, entry: &Entry) -> Finding {
        let clock = clock_of(row)?;
        let Clock { age, floor, begun } = clock;
        let Times { now, latest_wall_ms: latest, .. } = self.times;
        let fastest = now / MILLISECOND * u64::from(1_000 + DRIFT_PER_MILLE) / 1_000;
        let is_forgotten = |it: &&Effect| it.table == Table::Keys && it.value.is_none();
        let forgotten = entry.effects.iter().filter(is_forgotten);
        let above = forgotten.filter_map(|it| time_of(&it.key)).max().map_or(0, |time| time + 1);
        let old = self.clock.unwrap_or_default();
        let is_first = self.clock.is_none();
        let fits = age >= old.age
            && floor == old.floor.max(above)
            && begun >= old.begun
            && (age == 0 || !is_first);
        if !fits || age > fastest || floor.max(begun) > latest {
            return Err(format!(
                "P5: {index} logs {clock:?} after {:?}; at most {fastest} and {latest}, and forgotten is all below {above}",
                self.clock
            ));
        }
        self.clock = Some(clock);
        Ok(())
    }

    /// Somebody who asked at `since` was told for how long a key will be remembered.
    pub fn promise(
        &mut self,
        id: &RequestId,
        (index, since): (Index, u64),
        kept_for_ms: u64,
    ) -> Finding {
        let fates = self.fates.entry(row_of(id)).or_default();
        let fate = fates.iter_mut().find(|fate| fate.index == index).expect("it was found there");
        // The clock that it was counted by, and those that will go on, may be that fast.
        let span = u128::from(kept_for_ms) * u128::from(MILLISECOND) * 1_000
            / u128::from(1_000 + DRIFT_PER_MILLE);
        let until = since.saturating_add(u64::try_from(span).unwrap_or(u64::MAX));
        fate.kept_until = fate.kept_until.max(until);
        match fate.forgotten {
            Some((_, at)) if at + ROUNDING < until => {
                Err(format!("P5: kept for {kept_for_ms} ms, but forgotten before that"))
            }
            _ => Ok(()),
        }
    }
}
