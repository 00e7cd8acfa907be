//! The rows of the duplicate table, as they lie in the store.
//!
//! | table | key | value |
//! |---|---|---|
//! | `sessions` | session id | [`SessionRow`] |
//! | `sessions` | (empty) | the incarnation in which the sessions were opened, a little-endian `u64`; 1 if there is no such row |
//! | `replies` | session id, seq | [`ReplyRow`] |
//! | `keys` | `n` and the name, or `t` and the UUID, of an idempotency key | [`KeyRow`] |
//! | `keys` | (empty) | the number of the other rows, a little-endian `u64` |
//! | `expiry` | the age at which a key is due to be forgotten, and its row's key in `keys` | nothing |
//! | `expiry` | (empty) | [`KeyClock`] |
//!
//! Numbers in keys are big-endian, so that rows lie in the order of sessions and seqs.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_wire::client::Fingerprint;
use onlyonce_wire::{IdempotencyKey, Incarnation, OpenedAt, Seq, SessionId};

use crate::event::WallTime;

/// A row that does not decode: the store is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {table} row of {bytes} bytes does not decode")]
pub struct BadRow {
    /// The table it lies in.
    pub table: &'static str,
    /// Its length.
    pub bytes: usize,
}

/// A session, as every replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRow {
    /// The index of the entry that opened it.
    pub opened_at: OpenedAt,
    /// The client has seen every reply below this seq.
    pub first_unacked: Seq,
    /// The bytes of all saved replies at or above it.
    pub saved_bytes: u64,
}

impl SessionRow {
    /// The row's key.
    #[must_use]
    pub fn key(id: SessionId) -> Bytes {
        Bytes::copy_from_slice(&id.0.to_be_bytes())
    }

    /// The session whose row has this key.
    pub fn id(key: &[u8]) -> Result<SessionId, BadRow> {
        let bytes = key.try_into().map_err(|_| BadRow { table: "sessions", bytes: key.len() })?;
        Ok(SessionId(u128::from_be_bytes(bytes)))
    }

    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(24);
        value.put_u64_le(self.opened_at.0);
        value.put_u64_le(self.first_unacked.0);
        value.put_u64_le(self.saved_bytes);
        value.freeze()
    }

    /// Reads a row's value.
    pub fn decode(mut value: &[u8]) -> Result<Self, BadRow> {
        if value.len() != 24 {
            return Err(BadRow { table: "sessions", bytes: value.len() });
        }
        Ok(Self {
            opened_at: OpenedAt(value.get_u64_le()),
            first_unacked: Seq(value.get_u64_le()),
            saved_bytes: value.get_u64_le(),
        })
    }
}

/// What is remembered of a request: what every copy of it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyRow {
    /// It ran.
    Executed {
        /// Of its operation.
        fingerprint: Fingerprint,
        /// The encoded outcome.
        reply: Bytes,
    },
    /// It never ran and never will, whatever its content.
    Cancelled,
}

impl ReplyRow {
    /// The key of a session's reply.
    #[must_use]
    pub fn key(id: SessionId, seq: Seq) -> Bytes {
        let mut key = BytesMut::with_capacity(24);
        key.put_u128(id.0);
        key.put_u64(seq.0);
        key.freeze()
    }

    /// The seq whose row has this key.
    pub fn seq(key: &[u8]) -> Result<Seq, BadRow> {
        let seq = key.get(16..).and_then(|seq| seq.try_into().ok());
        let seq = seq.ok_or(BadRow { table: "replies", bytes: key.len() })?;
        Ok(Seq(u64::from_be_bytes(seq)))
    }

    /// The row's value: the fingerprint and the reply, or nothing.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut value = BytesMut::new();
        self.encode_into(&mut value);
        value.freeze()
    }

    fn encode_into(&self, value: &mut BytesMut) {
        if let Self::Executed { fingerprint, reply } = self {
            value.reserve(16 + reply.len());
            value.put_u128_le(fingerprint.0);
            value.put_slice(reply);
        }
    }

    /// Reads a row's value.
    pub fn decode(mut value: Bytes) -> Result<Self, BadRow> {
        match value.len() {
            0 => Ok(Self::Cancelled),
            16.. => {
                Ok(Self::Executed { fingerprint: Fingerprint(value.get_u128_le()), reply: value })
            }
            bytes => Err(BadRow { table: "replies", bytes }),
        }
    }
}

/// What is remembered of an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Until when it is remembered at least: an age, as the key clock counts it.
    pub forgotten_at_age_ms: u64,
    /// What became of its request.
    pub reply: ReplyRow,
}

impl KeyRow {
    /// The row's key.
    #[must_use]
    pub fn key(key: &IdempotencyKey) -> Bytes {
        let mut row = BytesMut::with_capacity(17);
        match key {
            IdempotencyKey::Named(name) => {
                row.put_u8(b'n');
                row.put_slice(name);
            }
            IdempotencyKey::Timed(uuid) => {
                row.put_u8(b't');
                row.put_u128(uuid.as_u128());
            }
        }
        row.freeze()
    }

    /// When the timed key in the row with this key was made; none for a named one.
    pub(crate) fn time(row: &[u8]) -> Option<WallTime> {
        let uuid = row.strip_prefix(b"t")?.try_into().ok()?;
        // The first 48 bits (RFC 9562, section 5.7).
        Some(WallTime(u64::try_from(u128::from_be_bytes(uuid) >> 80).expect("48 bits")))
    }

    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(8);
        value.put_u64_le(self.forgotten_at_age_ms);
        self.reply.encode_into(&mut value);
        value.freeze()
    }

    /// Reads a row's value.
    pub fn decode(mut value: Bytes) -> Result<Self, BadRow> {
        if value.len() < 8 {
            return Err(BadRow { table: "keys", bytes: value.len() });
        }
        Ok(Self { forgotten_at_age_ms: value.get_u64_le(), reply: ReplyRow::decode(value)? })
    }

    /// The key of the row, in the table of expiries, that says when the key in this row is due to be
    /// forgotten: these lie in the order of time, and have no value.
    #[must_use]
    pub fn expiry(forgotten_at_age_ms: u64, row: &[u8]) -> Bytes {
        let mut key = BytesMut::with_capacity(8 + row.len());
        key.put_u64(forgotten_at_age_ms);
        key.put_slice(row);
        key.freeze()
    }

    /// Reads the key of such a row: when, and which.
    pub fn read_expiry(mut key: Bytes) -> Result<(u64, Bytes), BadRow> {
        if key.len() < 9 {
            return Err(BadRow { table: "expiry", bytes: key.len() });
        }
        Ok((key.get_u64(), key))
    }
}

/// The key of the row, in the table of expiries, that holds the [`KeyClock`].
pub const KEY_CLOCK: &[u8] = b"";

/// Where the rows of expiries begin.
pub const FIRST_EXPIRY: &[u8] = &[0];

/// By what idempotency keys age, as every replica knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyClock {
    /// How long primaries have led this cluster, by their own clocks, in milliseconds. Never falls.
    pub age_ms: u64,
    /// No timed key of this time or a later one was forgotten. Never falls.
    pub floor: WallTime,
    /// When the incarnation began; 0 for the first. Keys from before it may have been used in a history
    /// that is lost. Never falls.
    pub begun: WallTime,
    /// What time it is, as far as the calendars of primaries are believed. No safety rests on it.
    pub calendar: WallTime,
}

impl KeyClock {
    /// A timed key of an earlier time that has no row may have run, and so is refused.
    #[must_use]
    pub fn known_from(&self) -> WallTime {
        self.floor.max(self.begun)
    }

    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(32);
        value.put_u64_le(self.age_ms);
        value.put_u64_le(self.floor.0);
        value.put_u64_le(self.begun.0);
        value.put_u64_le(self.calendar.0);
        value.freeze()
    }

    /// Reads the row's value.
    pub fn decode(mut value: &[u8]) -> Result<Self, BadRow> {
        if value.len() != 32 {
            return Err(BadRow { table: "expiry", bytes: value.len() });
        }
        Ok(Self {
            age_ms: value.get_u64_le(),
            floor: WallTime(value.get_u64_le()),
            begun: WallTime(value.get_u64_le()),
            calendar: WallTime(value.get_u64_le()),
        })
    }
}

/// The key of the row that says of which incarnation the sessions are. No session id is empty.
pub const SESSIONS_INCARNATION: &[u8] = b"";

/// Where the rows of sessions begin.
pub const FIRST_SESSION: &[u8] = &[0];

/// Reads the incarnation of the sessions.
pub fn decode_incarnation(value: Option<&Bytes>) -> Result<Incarnation, BadRow> {
    let Some(value) = value else { return Ok(Incarnation(1)) };
    let bytes =
        value.as_ref().try_into().map_err(|_| BadRow { table: "sessions", bytes: value.len() })?;
    Ok(Incarnation(u64::from_le_bytes(bytes)))
}

/// The key of the row that counts the idempotency keys: no other row's key is empty.
pub const KEY_COUNT: &[u8] = b"";

/// Reads the count of idempotency keys.
pub fn decode_count(value: Option<&Bytes>) -> Result<u64, BadRow> {
    let Some(value) = value else { return Ok(0) };
    let bytes =
        value.as_ref().try_into().map_err(|_| BadRow { table: "keys", bytes: value.len() })?;
    Ok(u64::from_le_bytes(bytes))
}
