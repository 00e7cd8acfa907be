//! The rows of the duplicate table, as they lie in the store.
//!
//! | table | key | value |
//! |---|---|---|
//! | `sessions` | session id | [`SessionRow`] |
//! | `sessions` | (empty) | the incarnation in which the sessions were opened, a little-endian `u64`; 1 if there is no such row |
//! | `replies` | session id, seq | [`ReplyRow`] |
//! | `keys` | idempotency key | [`ReplyRow`] |
//! | `keys` | (empty) | the number of the other rows, a little-endian `u64` |
//!
//! Numbers in keys are big-endian, so that rows lie in the order of sessions and seqs.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_wire::client::Fingerprint;
use onlyonce_wire::{Incarnation, OpenedAt, Seq, SessionId};

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

/// A saved reply and the fingerprint of the request that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyRow {
    /// Of the request's operation.
    pub fingerprint: Fingerprint,
    /// The encoded outcome.
    pub reply: Bytes,
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

    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(16 + self.reply.len());
        value.put_u128_le(self.fingerprint.0);
        value.put_slice(&self.reply);
        value.freeze()
    }

    /// Reads a row's value.
    pub fn decode(mut value: Bytes) -> Result<Self, BadRow> {
        if value.len() < 16 {
            return Err(BadRow { table: "replies", bytes: value.len() });
        }
        Ok(Self { fingerprint: Fingerprint(value.get_u128_le()), reply: value })
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

/// The key of the row that counts the idempotency keys. No idempotency key is empty.
pub const KEY_COUNT: &[u8] = b"";

/// Reads the count of idempotency keys.
pub fn decode_key_count(value: Option<&Bytes>) -> Result<u64, BadRow> {
    let Some(value) = value else { return Ok(0) };
    let bytes =
        value.as_ref().try_into().map_err(|_| BadRow { table: "keys", bytes: value.len() })?;
    Ok(u64::from_le_bytes(bytes))
}
