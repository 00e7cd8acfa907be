//! What a snapshot is made of, piece by piece: for a learner (`snapshot`), and for a backup (`backup`).
//!
//! - `s` is the applied point before the first row was read, `e` the one after the last. The log
//!   from `s` on is pinned.
//! - The pieces: the rows, from the first table and key on; then the effects of the records after `s`,
//!   up to `e`, that no row shows; then the end, "this is the state at `e`".
//! - All of it is committed: only what was folded is read. Tables whose fold a crash cut short may
//!   show some effects of records after `e`; they are in the primary's log.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_storage::{Coverage, Cursor, Digests, Effect, Entry, Index, Mark, Rows, State};

use crate::event::Moment;
use crate::message::{Piece, SnapshotId};
use crate::replica::Stop;

/// The longest rest after a piece: one that only waited for a checkpoint has used nothing up.
const REST_MAX: Duration = Duration::from_millis(40);

/// Until when to rest after a piece that was begun at some moment and is done `now`: requests are to
/// have disks and processors for themselves for most of the time.
pub(crate) fn rest_after(begun: Moment, now: Moment) -> Moment {
    now.after((now.since(begun) * 2).min(REST_MAX))
}

/// A snapshot of this node's tables, as far as it was read.
pub(crate) struct Source {
    pub(crate) id: SnapshotId,
    /// The records after this one are part of it.
    pub(crate) after: Index,
    /// What the rows that were read show.
    coverage: Coverage,
    /// What all rows came to when the last ones were read.
    pub(crate) digests: Digests,
    /// Effects that were read and not handed out: encoded entries.
    read: VecDeque<Bytes>,
    remaining: Remaining,
    /// About how many bytes a piece has.
    piece_bytes: usize,
}

/// What is left to be read.
#[derive(Clone, Debug)]
enum Remaining {
    /// Rows.
    Rows(Cursor),
    /// The effects of the records from `next` on, up to `end`.
    Records { next: Index, end: Mark },
    /// Nothing: the end was handed out.
    Nothing,
}

/// What comes next.
pub(crate) enum Next {
    /// A piece.
    Piece(Piece),
    /// Rows have to be read first, from here on.
    Rows(Cursor),
    /// The log does not hold any more what it needs.
    Lost,
    /// Nothing: it is complete.
    Nothing,
}

impl Source {
    /// Of the tables, which hold everything up to `after`.
    pub(crate) fn new(id: SnapshotId, after: Index, piece_bytes: usize) -> Self {
        Self {
            id,
            after,
            coverage: Coverage::default(),
            digests: Digests::default(),
            read: VecDeque::new(),
            remaining: Remaining::Rows(Cursor::start()),
            piece_bytes,
        }
    }

    /// Whether everything but the end was handed out.
    pub(crate) fn only_end_is_left(&self) -> bool {
        let is_read =
            matches!(self.remaining, Remaining::Records { next, end } if next > end.index);
        is_read && self.read.is_empty()
    }

    /// Whether the end was handed out.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.remaining, Remaining::Nothing)
    }

    /// Takes the rows that were asked for. `hasty` leaves out the records, which breaks a rule.
    pub(crate) fn take_rows(&mut self, rows: Rows, hasty: bool) {
        self.coverage.add(&rows);
        self.digests = rows.applied.digests;
        let end = rows.applied.mark;
        self.remaining = match rows.next {
            Some(cursor) => Remaining::Rows(cursor),
            None if hasty => Remaining::Records { next: end.index.next(), end },
            None => Remaining::Records { next: self.after.next(), end },
        };
        self.put(rows.entry.effects);
    }

    /// The next piece, or what has to be done before.
    pub(crate) fn next(&mut self, state: &State) -> Result<Next, Stop> {
        if self.read.is_empty()
            && let Remaining::Records { next, end } = self.remaining
            && next <= end.index
            && !self.read_records(state, next, end)?
        {
            return Ok(Next::Lost);
        }
        if let Some(effects) = self.read.pop_front() {
            return Ok(Next::Piece(Piece::Effects(effects)));
        }
        Ok(match &self.remaining {
            Remaining::Rows(from) => Next::Rows(from.clone()),
            Remaining::Records { end, .. } => {
                let end = *end;
                self.remaining = Remaining::Nothing;
                Next::Piece(Piece::End(end))
            }
            Remaining::Nothing => Next::Nothing,
        })
    }

    /// Reads the effects of some records after the rows. Returns whether the log holds them.
    fn read_records(&mut self, state: &State, next: Index, end: Mark) -> Result<bool, Stop> {
        let records = state.records(next, self.piece_bytes)?;
        let (mut effects, mut after) = (Vec::new(), next);
        for record in records.into_iter().filter(|record| record.index <= end.index) {
            after = record.index.next();
            let all = record.entries.iter().flat_map(|entry| &entry.effects);
            effects.extend(all.filter(|it| !self.coverage.shows(record.index, it)).cloned());
        }
        self.remaining = Remaining::Records { next: after, end };
        self.put(effects);
        Ok(after > next)
    }

    /// Puts effects at the end, in pieces: a record may have more than a client's frame takes.
    fn put(&mut self, effects: Vec<Effect>) {
        let (mut entry, mut bytes) = (Entry::default(), 0);
        for effect in effects {
            if bytes >= self.piece_bytes {
                self.read.push_back(std::mem::take(&mut entry).encode());
                bytes = 0;
            }
            bytes += effect.bytes();
            entry.effects.push(effect);
        }
        self.read.push_back(entry.encode());
    }
}
