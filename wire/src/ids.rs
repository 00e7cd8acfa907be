//! Identifiers. Each is its own type, so that no two kinds can be confused.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits;

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:032x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            /// Reads the 32 hexadecimal digits that `Display` writes.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(ParseIdError { kind: stringify!($name), text: text.to_owned() });
                }
                u128::from_str_radix(text, 16)
                    .map($name)
                    .map_err(|_| ParseIdError { kind: stringify!($name), text: text.to_owned() })
            }
        }
    };
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize,
            Deserialize,
        )]
        pub struct $name(pub u64);

        impl $name {
            /// The value after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// A text that is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: 32 hexadecimal digits are needed")]
pub struct ParseIdError {
    /// The type that was asked for.
    pub kind: &'static str,
    /// What was given.
    pub text: String,
}

id128! {
    /// A cluster, drawn at random when its first store is made.
    ClusterId
}
id128! {
    /// A data folder, drawn at random when it is made. Membership of a view is by store id: an
    /// emptied disk is a new store, whatever its name and address.
    StoreId
}
id128! {
    /// A client's registration, drawn at random by the client.
    SessionId
}
id128! {
    /// One attempt to change the view, drawn at random by its proposer.
    ProposalId
}

counter! {
    /// The number of a view. Views only grow.
    View
}
counter! {
    /// A request's place in its session. The first is 1.
    Seq
}
counter! {
    /// A stretch of the cluster's history; a new one begins after a restore or a forced view, and
    /// what clients remember of an earlier one is void.
    Incarnation
}

impl Incarnation {
    /// The number of an incarnation that is made at `now_ms`, in milliseconds since 1970, and that
    /// follows this one, the latest that its maker knows.
    ///
    /// It tells the time, since the maker may not know them all: of two that are made apart, from
    /// stores that know nothing of each other, the later one has the higher number, and never the
    /// same.
    #[must_use]
    pub fn following(self, now_ms: u64) -> Self {
        self.next().max(Self(now_ms))
    }
}
counter! {
    /// The log index of the entry that opened a session: it tells two sessions of one id apart.
    OpenedAt
}
counter! {
    /// Pairs a reply with its call on one connection. It means nothing beyond it.
    CallId
}

/// A client's registration with the cluster: matched exactly, both parts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session {
    /// The random id that the client drew.
    pub id: SessionId,
    /// Where in the log it was opened.
    pub opened_at: OpenedAt,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.opened_at)
    }
}

/// A name for one request that the caller chose, so that any process may retry it.
///
/// Never empty and at most [`limits::IDEMPOTENCY_KEY_BYTES_MAX`] bytes: the constructor refuses
/// anything else, and a server checks again what comes from the network with [`Self::check`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdempotencyKey(Bytes);

impl IdempotencyKey {
    /// Takes `key` as an idempotency key.
    ///
    /// # Errors
    /// When it is empty or longer than [`limits::IDEMPOTENCY_KEY_BYTES_MAX`].
    pub fn new(key: impl Into<Bytes>) -> Result<Self, IdempotencyKeyError> {
        let key = Self(key.into());
        key.check()?;
        Ok(key)
    }

    /// Checks the length of a key that was decoded rather than constructed.
    pub fn check(&self) -> Result<(), IdempotencyKeyError> {
        match self.0.len() {
            0 => Err(IdempotencyKeyError::Empty),
            bytes if bytes > limits::IDEMPOTENCY_KEY_BYTES_MAX => {
                Err(IdempotencyKeyError::TooLong { bytes })
            }
            _ => Ok(()),
        }
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({})", self.0.escape_ascii())
    }
}

/// Why some bytes are no idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdempotencyKeyError {
    /// An empty key would make strangers each other's duplicates.
    #[error("an idempotency key must not be empty")]
    Empty,
    /// Over [`limits::IDEMPOTENCY_KEY_BYTES_MAX`].
    #[error(
        "an idempotency key of {bytes} bytes is too long: at most {} are allowed",
        limits::IDEMPOTENCY_KEY_BYTES_MAX
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids survive being printed and read, and nothing else is taken for one.
    #[test]
    fn ids_parse_what_they_print() {
        let id = SessionId(0x00ab_cdef);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "ab", "+0000000000000000000000000000abc", &"g".repeat(32)] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?} was taken for an id");
        }
    }

    /// Empty and over-long idempotency keys are refused.
    #[test]
    fn idempotency_keys_are_bounded() {
        assert_eq!(IdempotencyKey::new(""), Err(IdempotencyKeyError::Empty));
        let longest = vec![b'k'; limits::IDEMPOTENCY_KEY_BYTES_MAX];
        assert!(IdempotencyKey::new(longest.clone()).is_ok());
        let too_long = [longest, vec![b'k']].concat();
        assert!(matches!(IdempotencyKey::new(too_long), Err(IdempotencyKeyError::TooLong { .. })));
    }
}
