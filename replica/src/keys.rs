//! Idempotency keys: what ran under them, and when they are forgotten.
//!
//! Their rows are part of the duplicate table ([`rows`](crate::rows)); this is what an open primary
//! knows beside them. Forgetting needs a notion of time, and no clock can be trusted with much:
//!
//! - *Age*: for how long primaries have led the cluster, each by its own monotonic clock, added up in
//!   the log ([`KeyClock`]). What a primary did not log before it died is not counted, so time only
//!   ever goes too slowly. A key is forgotten when the age has grown by the retention, and a reply
//!   says how long that will be. No calendar can make it sooner.
//! - *Floor*: the entry that forgets a **timed** key raises the floor above the key's own time. A timed
//!   key above the floor that has no row never ran; one below it that has no row is refused
//!   (`Forgotten`), by every primary: the floor is logged and never falls. A timed key from before a
//!   new incarnation that has no row is refused as well: it may have run in the history that is lost.
//! - *Calendar*: a timed key that is due, but of the future, is not forgotten: it would take the floor
//!   with it, and shut out all keys until then. What counts as the future is told by the primary's
//!   own calendar and by the logged one, which follows those of primaries, but never back, and at most
//!   a year a day of the age. As long as nothing can be due yet, it just follows: a first calendar that
//!   is wrong is soon forgotten itself.
//!
//! Rows go by entries of bounded size, like everything else, and only once the clock that makes them
//! due is logged.

use std::time::Duration;

use bytes::Bytes;
use onlyonce_storage::{Effect, Index, State, Table};
use onlyonce_wire::client::{Answer, Limit, Refusal};
use onlyonce_wire::{IdempotencyKey, limits};

use crate::Stop;
use crate::duplicates::{Found, Verdict, delete, put};
use crate::event::{Moment, WallTime};
use crate::marks::{Mark, Marks};
use crate::rows::{FIRST_EXPIRY, KEY_CLOCK, KEY_COUNT, KeyClock, KeyRow, ReplyRow, decode_count};

/// The clock is logged so many times in a retention, but neither too often nor too rarely.
const LOGGED_PER_RETENTION: u32 = 64;
const LOGGED_AFTER_MIN: Duration = Duration::from_millis(100);
const LOGGED_AFTER_MAX: Duration = Duration::from_secs(60);
/// The logged calendar goes at most so many times as fast as the age: a year a day. So a cluster that
/// was off for months soon knows, and one year too many takes a day to be believed.
const CALENDAR_PER_AGE: u64 = 365;

/// What an open primary knows of idempotency keys beside their rows.
pub(crate) struct Keys {
    count: u64,
    retention: Duration,
    /// As it was logged last; none before the first time.
    clock: Option<KeyClock>,
    /// The entry that logged it.
    clock_index: Index,
    /// From here on this primary's own clock adds to the age.
    since: Moment,
    /// Where the next look for expiries that are due begins; nothing due is before.
    sweep_from: Bytes,
    /// Whether there may be some.
    sweep_is_due: bool,
}

impl Keys {
    pub(crate) fn load(state: &State, now: Moment, retention: Duration) -> Result<Self, Stop> {
        let count = state.get(Table::Keys, KEY_COUNT)?.value;
        let clock = state.get(Table::Expiry, KEY_CLOCK)?.value;
        Ok(Self {
            count: decode_count(count.as_ref())?,
            retention,
            clock: clock.map(|clock| KeyClock::decode(&clock)).transpose()?,
            clock_index: Index::ZERO,
            since: now,
            sweep_from: Bytes::from_static(FIRST_EXPIRY),
            sweep_is_due: true,
        })
    }

    /// Breaks [`Rule::FloorLowered`](crate::mutations::Rule::FloorLowered).
    pub(crate) fn lower_floor(&mut self) {
        if let Some(clock) = &mut self.clock {
            clock.floor = WallTime(0);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    fn clock(&self) -> KeyClock {
        self.clock.unwrap_or_default()
    }

    /// What is not yet logged of the age, in milliseconds.
    fn unlogged_ms(&self, now: Moment) -> u64 {
        milliseconds(now.since(self.since))
    }

    /// For how long a key is remembered at least, in milliseconds.
    fn kept_for_ms(&self, now: Moment, row: &KeyRow) -> u64 {
        row.forgotten_at_age_ms.saturating_sub(self.clock().age_ms + self.unlogged_ms(now))
    }

    pub(crate) fn find(
        &self,
        state: &State,
        now: Moment,
        key: &IdempotencyKey,
    ) -> Result<Found, Stop> {
        if let Err(error) = key.check() {
            return Ok(Found::Told(Verdict::NotNow(Refusal::Invalid(error.to_string()))));
        }
        let saved = state.get(Table::Keys, &KeyRow::key(key))?;
        if let Some(value) = saved.value {
            let row = KeyRow::decode(value)?;
            let kept_for_ms = Some(self.kept_for_ms(now, &row));
            return Ok(Found::Saved { reply: row.reply, kept_for_ms, index: saved.index });
        }
        let rests_on = saved.index.max(self.clock_index);
        if key.time_ms().is_some_and(|time| WallTime(time) < self.clock().known_from()) {
            let answer = Answer::Refused(Refusal::Forgotten);
            return Ok(Found::Told(Verdict::Known { answer, rests_on }));
        }
        Ok(Found::Absent { rests_on })
    }

    /// Why a key that is not known cannot be remembered now.
    pub(crate) fn refuses(&self, wall: WallTime, key: &IdempotencyKey) -> Option<Refusal> {
        let ahead = key.time_ms().map_or(0, |time| time.saturating_sub(wall.0));
        let most = limits::KEY_AHEAD_MAX;
        if ahead > milliseconds(most) {
            return Some(Refusal::Invalid(format!(
                "the idempotency key's time is {} s ahead of this node's clock, at most {} s are allowed: set the clocks of the client and of the nodes",
                ahead / 1_000,
                most.as_secs()
            )));
        }
        (self.count >= limits::IDEMPOTENCY_KEYS_MAX)
            .then_some(Refusal::Busy(Limit::IdempotencyKeys))
    }

    /// Remembers what became of a request. Returns for how long at least, in milliseconds.
    pub(crate) fn record(
        &mut self,
        now: Moment,
        key: &IdempotencyKey,
        reply: ReplyRow,
        effects: &mut Vec<Effect>,
    ) -> u64 {
        let forgotten_at_age_ms =
            self.clock().age_ms + self.unlogged_ms(now) + milliseconds(self.retention);
        let row = KeyRow { forgotten_at_age_ms, reply };
        let name = KeyRow::key(key);
        put(effects, Table::Expiry, KeyRow::expiry(forgotten_at_age_ms, &name), Bytes::new());
        put(effects, Table::Keys, name, row.encode());
        self.count += 1;
        self.put_count(effects);
        self.kept_for_ms(now, &row)
    }

    fn put_count(&self, effects: &mut Vec<Effect>) {
        let count = Bytes::copy_from_slice(&self.count.to_le_bytes());
        put(effects, Table::Keys, Bytes::from_static(KEY_COUNT), count);
    }

    /// Logs how time went on, in the entry at `index`, if it is time to.
    pub(crate) fn advance(
        &mut self,
        now: Moment,
        wall: WallTime,
        index: Index,
        marks: &mut Marks,
    ) -> Option<Vec<Effect>> {
        let due = (self.retention / LOGGED_PER_RETENTION).clamp(LOGGED_AFTER_MIN, LOGGED_AFTER_MAX);
        let clock = match self.clock {
            None => KeyClock { calendar: wall, ..KeyClock::default() },
            Some(_) if now.since(self.since) < due => return None,
            Some(clock) => {
                let passed = self.unlogged_ms(now);
                let most = WallTime(clock.calendar.0.saturating_add(passed * CALENDAR_PER_AGE));
                let calendar = if clock.age_ms < milliseconds(self.retention) {
                    // No key is due yet.
                    wall
                } else if wall > most {
                    marks.hit(Mark::CalendarHeldByAge);
                    most
                } else if wall < clock.calendar {
                    marks.hit(Mark::CalendarHeldByLog);
                    clock.calendar
                } else {
                    wall
                };
                KeyClock { age_ms: clock.age_ms + passed, calendar, ..clock }
            }
        };
        let passed = clock.age_ms - self.clock().age_ms;
        self.since = self.since.after(Duration::from_millis(passed));
        self.sweep_is_due = true;
        let mut effects = Vec::new();
        self.log(clock, index, &mut effects);
        Some(effects)
    }

    fn log(&mut self, clock: KeyClock, index: Index, effects: &mut Vec<Effect>) {
        self.clock = Some(clock);
        self.clock_index = index;
        put(effects, Table::Expiry, Bytes::from_static(KEY_CLOCK), clock.encode());
    }

    /// Forgets keys that are due, at most `limit`, in the entry at `index`. Never one whose request is
    /// not yet committed: a copy of it would run before the first one is answered. A timed key of the
    /// future is put off: it is kept for another retention.
    pub(crate) fn sweep(
        &mut self,
        state: &State,
        (wall, index): (WallTime, Index),
        limit: usize,
        early: bool,
        marks: &mut Marks,
    ) -> Result<Option<Vec<Effect>>, Stop> {
        if !self.sweep_is_due {
            return Ok(None);
        }
        let mut clock = self.clock();
        let mut age_ms = clock.age_ms;
        if early {
            // Breaks `Rule::KeySweptEarly`.
            age_ms += milliseconds(self.retention / 4);
        }
        let end = KeyRow::expiry(age_ms + 1, &[]);
        let (due, more) = take_expiries(state, &mut self.sweep_from, &end, limit)?;
        self.sweep_is_due = more;
        if due.is_empty() {
            return Ok(None);
        }
        let mut effects = Vec::new();
        let future = wall.min(clock.calendar);
        for expiry in due {
            let (_, row) = KeyRow::read_expiry(expiry.clone())?;
            delete(&mut effects, Table::Expiry, expiry);
            let time = KeyRow::time(&row);
            if time.is_some_and(|time| time >= future) {
                marks.hit(Mark::KeyPutOff);
                let later = KeyRow::expiry(age_ms + milliseconds(self.retention), &row);
                put(&mut effects, Table::Expiry, later, Bytes::new());
                continue;
            }
            marks.hit(Mark::KeysForgotten);
            if let Some(WallTime(time)) = time {
                clock.floor = clock.floor.max(WallTime(time + 1));
            }
            delete(&mut effects, Table::Keys, row);
            self.count -= 1;
        }
        if clock.floor > self.clock().floor {
            self.log(clock, index, &mut effects);
        }
        self.put_count(&mut effects);
        Ok(Some(effects))
    }

    /// Until when timed keys that are not known are refused, if that is in the future: a calendar is
    /// wrong, or was.
    pub(crate) fn refused_until(&self, wall: WallTime) -> Option<WallTime> {
        let until = self.clock().known_from();
        (until > wall).then_some(until)
    }
}

/// The clock of a new incarnation: no timed key of an earlier one is taken for new, and those that are
/// known are kept for as long as was promised. A calendar behind the logged one is not believed.
pub(crate) fn clock_of_new_incarnation(state: &State, wall: WallTime) -> Result<Effect, Stop> {
    let before = match state.get(Table::Expiry, KEY_CLOCK)?.value {
        Some(clock) => KeyClock::decode(&clock)?,
        None => KeyClock::default(),
    };
    let clock = KeyClock { begun: before.begun.max(before.calendar).max(wall), ..before };
    let key = Bytes::from_static(KEY_CLOCK);
    Ok(Effect { table: Table::Expiry, key, value: Some(clock.encode()) })
}

/// The keys of up to `limit` committed rows of expiries from `start` on, which is moved behind them;
/// and whether there are more rows.
fn take_expiries(
    state: &State,
    start: &mut Bytes,
    end: &[u8],
    limit: usize,
) -> Result<(Vec<Bytes>, bool), Stop> {
    let (mut keys, mut more) = (Vec::new(), false);
    if &start[..] >= end {
        return Ok((keys, more));
    }
    for row in state.scan(Table::Expiry, &start.clone(), Some(end)) {
        let row = row?;
        if row.value.is_none() {
            continue;
        }
        if keys.len() == limit || row.index > state.committed() {
            more = true;
            break;
        }
        keys.push(row.key);
    }
    if let Some(last) = keys.last() {
        *start = [last, &[0][..]].concat().into();
    }
    Ok((keys, more))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use onlyonce_storage::engine::memory::MemoryDisk;
    use onlyonce_storage::{Options, open};

    use super::*;

    /// With as many idempotency keys as there may be, a new one is turned away for now.
    #[test]
    fn keys_are_bounded() {
        let state = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens").state;
        let mut keys = Keys::load(&state, Moment(1), Duration::from_secs(1)).expect("loads");
        let key = IdempotencyKey::new("order-1234").expect("a good key");
        let mut refused = |count| {
            keys.count = count;
            keys.refuses(WallTime(1), &key)
        };
        assert_eq!(refused(limits::IDEMPOTENCY_KEYS_MAX - 1), None);
        let busy = Refusal::Busy(Limit::IdempotencyKeys);
        assert_eq!(refused(limits::IDEMPOTENCY_KEYS_MAX), Some(busy));
    }
}
