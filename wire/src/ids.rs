//! Identifiers. Each is its own type, so that no two kinds can be confused.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
///
/// ```
/// # use onlyonce_wire::{ClusterId, ids::ParseIdError};
/// let ParseIdError { kind, text } = "42".parse::<ClusterId>().expect_err("it is too short");
/// assert_eq!((kind, text.as_str()), ("ClusterId", "42"));
/// ```
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
    ///
    /// ```
    /// # use onlyonce_wire::ClusterId;
    /// // It reads what it prints, and nothing shorter.
    /// assert_eq!(ClusterId(42).to_string(), "0000000000000000000000000000002a");
    /// assert_eq!("0000000000000000000000000000002a".parse(), Ok(ClusterId(42)));
    /// ```
    ClusterId
}
id128! {
    /// A data folder, drawn at random when it is made. Membership of a view is by store id: an
    /// emptied disk is a new store, whatever its name and address.
    ///
    /// ```
    /// # use onlyonce_wire::StoreId;
    /// // Each kind of id is a type of its own; what it is shows when it is printed for debugging.
    /// assert_eq!(format!("{:?}", StoreId(7)), "StoreId(00000000000000000000000000000007)");
    /// ```
    StoreId
}
id128! {
    /// A client's registration, drawn at random by the client.
    ///
    /// ```
    /// # use onlyonce_wire::SessionId;
    /// assert_eq!("0000000000000000000000000000feed".parse(), Ok(SessionId(0xfeed)));
    /// ```
    SessionId
}
id128! {
    /// One attempt to change the view, drawn at random by its proposer.
    ProposalId
}

counter! {
    /// The number of a view. Views only grow.
    ///
    /// ```
    /// # use onlyonce_wire::View;
    /// // What is from an older view gives way to a newer one.
    /// assert!(View(7) < View(7).next());
    /// ```
    View
}
counter! {
    /// A request's place in its session. The first is 1.
    ///
    /// ```
    /// # use onlyonce_wire::Seq;
    /// assert_eq!(Seq(1).next(), Seq(2));
    /// ```
    Seq
}
counter! {
    /// A stretch of the cluster's history; a new one begins after a restore or a forced view, and
    /// what clients remember of an earlier one is void.
    ///
    /// ```
    /// # use onlyonce_wire::Incarnation;
    /// // A later one is higher, so of two that meet it is clear which one is over.
    /// assert!(Incarnation(1).following(1_700_000_000_000) > Incarnation(1));
    /// ```
    Incarnation
}

impl Incarnation {
    /// The number of an incarnation that is made at `now_ms`, in milliseconds since 1970, and that
    /// follows this one, the latest that its maker knows.
    ///
    /// It tells the time, since the maker may not know them all: of two that are made apart, from
    /// stores that know nothing of each other, the later one has the higher number, and never the
    /// same.
    ///
    /// ```
    /// # use onlyonce_wire::Incarnation;
    /// assert_eq!(Incarnation(5).following(1_000), Incarnation(1_000));
    /// // A clock that went back never leads back.
    /// assert_eq!(Incarnation(2_000).following(1_000), Incarnation(2_001));
    /// ```
    #[must_use]
    pub fn following(self, now_ms: u64) -> Self {
        self.next().max(Self(now_ms))
    }
}
counter! {
    /// The log index of the entry that opened a session: it tells two sessions of one id apart.
    ///
    /// ```
    /// # use onlyonce_wire::{OpenedAt, Session, SessionId};
    /// let id = SessionId(0xfeed);
    /// let (first, second) = (OpenedAt(7), OpenedAt(900));
    /// assert_ne!(Session { id, opened_at: first }, Session { id, opened_at: second });
    /// ```
    OpenedAt
}
counter! {
    /// Pairs a reply with its call on one connection. It means nothing beyond it.
    CallId
}

/// A client's registration with the cluster: matched exactly, both parts of it.
///
/// ```
/// # use onlyonce_wire::{OpenedAt, Session, SessionId};
/// let session = Session { id: SessionId(0xfeed), opened_at: OpenedAt(7) };
/// assert_eq!(session.to_string(), "0000000000000000000000000000feed@7");
/// ```
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
/// All clients of a cluster share their keys: two requests with one key are one request, or, with
/// different content, a mistake that is refused.
///
/// ```
/// # use onlyonce_wire::IdempotencyKey;
/// let named = IdempotencyKey::new("order-1234").expect("it is short");
/// let timed = IdempotencyKey::new("01890a5d-ac96-774b-bcce-b302099a8057").expect("a UUIDv7");
/// // The shape of the text decides: a UUIDv7 of your own is a timed key too.
/// assert!(matches!(named, IdempotencyKey::Named(_)));
/// assert!(matches!(timed, IdempotencyKey::Timed(_)));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IdempotencyKey {
    /// Any text or bytes: 1 to [`limits::IDEMPOTENCY_KEY_BYTES_MAX`] of them. Once the cluster has
    /// forgotten it, which a reply says how long it will not, it is like a new one.
    Named(Bytes),
    /// A UUID of version 7 (RFC 9562), which begins with the time when it was made. Once the cluster
    /// has forgotten it, it is refused, and never taken for a new one.
    Timed(Uuid),
}

impl IdempotencyKey {
    /// Takes `key` as an idempotency key: a timed one if it is the usual text of a `UUIDv7`, such as
    /// `01890a5d-ac96-774b-bcce-b302099a8057`.
    ///
    /// ```
    /// # use onlyonce_wire::IdempotencyKey;
    /// # use onlyonce_wire::ids::IdempotencyKeyError;
    /// // Any bytes will do, such as a hash.
    /// assert!(IdempotencyKey::new(vec![0xff; 32]).is_ok());
    /// assert_eq!(IdempotencyKey::new(vec![0xff; 257]), Err(IdempotencyKeyError::TooLong { bytes: 257 }));
    /// ```
    ///
    /// # Errors
    /// When it is empty or longer than [`limits::IDEMPOTENCY_KEY_BYTES_MAX`].
    pub fn new(key: impl Into<Bytes>) -> Result<Self, IdempotencyKeyError> {
        let key = key.into();
        let uuid = (key.len() == uuid::fmt::Hyphenated::LENGTH)
            .then(|| Uuid::try_parse_ascii(&key).ok())
            .flatten()
            .filter(is_timed);
        let key = uuid.map_or(Self::Named(key), Self::Timed);
        key.check()?;
        Ok(key)
    }

    /// A timed key that nobody else has, if `random` is: made at `now_ms`, in milliseconds since
    /// 1970.
    ///
    /// ```
    /// # use onlyonce_wire::IdempotencyKey;
    /// // The time leads: keys sort by when they were made.
    /// assert!(IdempotencyKey::fresh(1_000, [0xff; 10]) < IdempotencyKey::fresh(1_001, [0; 10]));
    /// ```
    #[must_use]
    pub fn fresh(now_ms: u64, random: [u8; 10]) -> Self {
        Self::Timed(uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid())
    }

    /// Checks a key that was decoded rather than constructed.
    ///
    /// ```
    /// # use onlyonce_wire::IdempotencyKey;
    /// # use onlyonce_wire::ids::IdempotencyKeyError;
    /// // The variants are open, so what came over a network may be no key.
    /// assert_eq!(IdempotencyKey::Named("".into()).check(), Err(IdempotencyKeyError::Empty));
    /// ```
    pub fn check(&self) -> Result<(), IdempotencyKeyError> {
        match self {
            Self::Named(name) if name.is_empty() => Err(IdempotencyKeyError::Empty),
            Self::Named(name) if name.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX => {
                Err(IdempotencyKeyError::TooLong { bytes: name.len() })
            }
            Self::Timed(uuid) if !is_timed(uuid) => Err(IdempotencyKeyError::NoTime),
            Self::Named(_) | Self::Timed(_) => Ok(()),
        }
    }

    /// When a timed key was made, in milliseconds since 1970; none for a named one.
    ///
    /// ```
    /// # use onlyonce_wire::IdempotencyKey;
    /// assert_eq!(IdempotencyKey::fresh(1_700_000_000_000, [7; 10]).time_ms(), Some(1_700_000_000_000));
    /// ```
    #[must_use]
    pub fn time_ms(&self) -> Option<u64> {
        match self {
            Self::Named(_) => None,
            Self::Timed(uuid) => Some((uuid.as_u128() >> 80) as u64),
        }
    }
}

macro_rules! key_from {
    ($($text:ty),*) => {$(
        impl TryFrom<$text> for IdempotencyKey {
            type Error = IdempotencyKeyError;

            fn try_from(key: $text) -> Result<Self, IdempotencyKeyError> {
                Self::new(Bytes::from(key.to_owned()))
            }
        }
    )*};
}
key_from!(&str, String, &String, Vec<u8>, Bytes);

/// Whether a UUID begins with a time.
fn is_timed(uuid: &Uuid) -> bool {
    uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.escape_ascii().fmt(f),
            Self::Timed(uuid) => uuid.fmt(f),
        }
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({self})")
    }
}

/// Why some bytes are no idempotency key.
///
/// ```
/// # use onlyonce_wire::IdempotencyKey;
/// let error = IdempotencyKey::try_from("").expect_err("it is empty");
/// assert_eq!(error.to_string(), "an idempotency key must not be empty");
/// ```
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
    /// Sent as a timed key, which it is not.
    #[error("a timed idempotency key must be a UUID of version 7")]
    NoTime,
}

/// A key that is one already cannot be a bad one.
impl From<Infallible> for IdempotencyKeyError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
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

    /// A `UUIDv7` in its usual text, in either case, is a timed key; nothing else is.
    #[test]
    fn timed_keys_are_told_by_their_shape() {
        let text = "01890a5d-ac96-774b-bcce-b302099a8057";
        let key = IdempotencyKey::new(text).expect("a fine key");
        assert_eq!(key.time_ms(), Some(0x0189_0a5d_ac96));
        assert_eq!(key.to_string(), text);
        assert_eq!(IdempotencyKey::new(text.to_uppercase()), Ok(key));
        for named in [
            "01890a5dac96774bbcceb302099a8057",
            "01890a5d-ac96-474b-bcce-b302099a8057",
            "01890a5d-ac96-774b-7cce-b302099a8057",
            "01890a5d-ac96-774b-bcce-b302099a805g",
        ] {
            let key = IdempotencyKey::new(named).expect("a fine key");
            assert_eq!(key.time_ms(), None, "{named}");
            assert_eq!(key.to_string(), named);
        }
        assert_eq!(IdempotencyKey::try_from(text), IdempotencyKey::new(text));
        assert_eq!(IdempotencyKey::fresh(77, [0xff; 10]).time_ms(), Some(77));
        assert_eq!(IdempotencyKey::fresh(77, [0xff; 10]).check(), Ok(()));
        let foreign = IdempotencyKey::Timed(Uuid::from_u128(7));
        assert_eq!(foreign.check(), Err(IdempotencyKeyError::NoTime));
    }
}
