//! A request's name, as a short text that outlives the process.
//!
//! ```text
//! "once1-" │ base32 of: the encoded (cluster, incarnation, id, fingerprint) │ checksum (4 bytes)
//! ```
//! The alphabet is Crockford's (no i, l, o, u), in lower case. One handle has one text: anything
//! that does not print as it was read is refused.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use onlyonce_wire::client::{Fingerprint, RequestId};
use onlyonce_wire::{ClusterId, Incarnation, codec};

const PREFIX: &str = "once1-";
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const CHECKSUM_BYTES: usize = 4;
/// Far above the longest handle: one with the longest idempotency key.
const TEXT_BYTES_MAX: usize = 1_024;

/// Names one request for ever: where it was sent, under which id, and with which content.
///
/// Prints as a short text that this or another process can read back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    cluster: Option<ClusterId>,
    incarnation: Incarnation,
    id: RequestId,
    fingerprint: Fingerprint,
}

impl Handle {
    pub(crate) fn new(
        cluster: Option<ClusterId>,
        incarnation: Incarnation,
        id: RequestId,
        operation: &[u8],
    ) -> Self {
        Self { cluster, incarnation, id, fingerprint: Fingerprint::of(operation) }
    }

    /// The cluster that was asked; none when it is a lone node that has none.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The cluster's incarnation at that time. In a later one the id is void.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// The fingerprint of the request's content.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes =
            codec::encode(&(self.cluster, self.incarnation, &self.id, self.fingerprint));
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "{PREFIX}{}", base32(&bytes))
    }
}

/// A text that is no handle, or not any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// It does not begin like one.
    #[error("not a handle: it should begin with {PREFIX:?}")]
    Prefix,
    /// A character that no handle contains.
    #[error("not a handle: it contains {character:?} at position {position}")]
    Character {
        /// The character.
        character: char,
        /// Where, counted in characters from 1.
        position: usize,
    },
    /// Some of it is missing, doubled or altered.
    #[error("the handle is damaged (its checksum does not match): copy it again, whole")]
    Checksum,
    /// The checksum matches, but the content is not that of a handle.
    #[error("the handle cannot be read by this release: {0}")]
    Content(String),
}

impl FromStr for Handle {
    type Err = HandleError;

    fn from_str(text: &str) -> Result<Self, HandleError> {
        let digits = text.strip_prefix(PREFIX).ok_or(HandleError::Prefix)?;
        let bytes = unbase32(digits)?;
        let content = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(HandleError::Checksum)?;
        let (content, sum) = bytes.split_at(content);
        if text.len() > TEXT_BYTES_MAX || checksum(content) != sum || base32(&bytes) != digits {
            return Err(HandleError::Checksum);
        }
        let (cluster, incarnation, id, fingerprint) =
            codec::decode::<_, TEXT_BYTES_MAX>(content)
                .map_err(|error| HandleError::Content(error.to_string()))?;
        if let RequestId::Key(key) = &id {
            key.check().map_err(|error| HandleError::Content(error.to_string()))?;
        }
        Ok(Self { cluster, incarnation, id, fingerprint })
    }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    (Fingerprint::of(content).0 as u32).to_le_bytes()
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut bits, mut count) = (0u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(ALPHABET[(bits >> count) as usize & 31]));
        }
    }
    if count > 0 {
        text.push(char::from(ALPHABET[(bits << (5 - count)) as usize & 31]));
    }
    text
}

fn unbase32(text: &str) -> Result<Bytes, HandleError> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut bits, mut count) = (0u32, 0);
    for (i, character) in text.chars().enumerate() {
        let digit = ALPHABET
            .iter()
            .position(|digit| char::from(*digit) == character)
            .ok_or(HandleError::Character { character, position: PREFIX.len() + i + 1 })?;
        bits = bits << 5 | digit as u32;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use onlyonce_wire::{IdempotencyKey, OpenedAt, Seq, Session, SessionId};

    use super::*;

    fn handles() -> [Handle; 2] {
        let session = Session { id: SessionId(u128::MAX / 7), opened_at: OpenedAt(90_210) };
        let id = RequestId::Seq { session, seq: Seq(77) };
        let key = IdempotencyKey::new("invoice-2024-06").expect("a fine key");
        [
            Handle::new(Some(ClusterId(42)), Incarnation(1), id, b"an operation"),
            Handle::new(None, Incarnation(3), RequestId::Key(key), b"another"),
        ]
    }

    /// Handles read what they print.
    #[test]
    fn handles_survive_text() {
        for handle in handles() {
            let text = handle.to_string();
            assert_eq!(text.parse(), Ok(handle), "{text}");
        }
    }

    /// Every single altered, lost or doubled character is refused.
    #[test]
    fn damage_is_refused() {
        for handle in handles() {
            let text = handle.to_string();
            for at in 0..text.len() {
                let altered = if &text[at..=at] == "7" { "8" } else { "7" };
                for bad in [
                    format!("{}{altered}{}", &text[..at], &text[at + 1..]),
                    format!("{}{}", &text[..at], &text[at + 1..]),
                    text[..at].to_owned(),
                ] {
                    assert!(bad == text || bad.parse::<Handle>().is_err(), "{bad} was accepted");
                }
            }
        }
    }

    /// The refusal says what is wrong.
    #[test]
    fn refusals_are_precise() {
        assert_eq!("hello".parse::<Handle>(), Err(HandleError::Prefix));
        let refused = "once1-0!".parse::<Handle>();
        assert_eq!(refused, Err(HandleError::Character { character: '!', position: 8 }));
        assert_eq!("once1-".parse::<Handle>(), Err(HandleError::Checksum));
    }
}
