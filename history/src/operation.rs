//! One operation on one key, and what the store is to make of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::lines::{optional_text, text};

/// What was done to the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The value was set.
    Put(#[serde(with = "text")] Bytes),
    /// Bytes were added to its end; the answer is the new length.
    Append(#[serde(with = "text")] Bytes),
    /// It was counted up by one; the answer is the new count.
    Incr,
    /// It was set if it was `expected`.
    Cas {
        /// What it had to be.
        #[serde(with = "optional_text")]
        expected: Option<Bytes>,
        /// What it became.
        #[serde(with = "text")]
        value: Bytes,
    },
    /// It was removed; the answer is whether it existed.
    Delete,
    /// It was read.
    Get,
}

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// Nothing but that it is done.
    Done,
    /// The value.
    Value(#[serde(with = "optional_text")] Option<Bytes>),
    /// A number.
    Number(i64),
    /// Yes or no.
    Bool(bool),
    /// What a compare-and-set came to.
    Compared {
        /// Whether the value was set.
        swapped: bool,
        /// What the key held before.
        #[serde(with = "optional_text")]
        actual: Option<Bytes>,
    },
    /// That it was impossible and changed nothing.
    Impossible,
}

/// One operation as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// When it was sent first, by a clock that all clients share.
    pub invoked: u64,
    /// When it was answered; none while its outcome is unknown.
    pub answered: Option<u64>,
    /// What was asked.
    pub action: Action,
    /// The answer; there is one exactly when it was answered.
    pub told: Option<Told>,
}

/// An operation, with whose it was and what it was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The client.
    pub client: u64,
    /// The key.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub operation: Operation,
}

impl Told {
    /// Whether what was answered with this changed nothing, wherever it took effect.
    #[must_use]
    pub fn changed_nothing(&self) -> bool {
        match self {
            Self::Value(_) | Self::Impossible => true,
            Self::Bool(existed) => !existed,
            Self::Compared { swapped, .. } => !swapped,
            Self::Done | Self::Number(_) => false,
        }
    }
}

impl Action {
    /// The value that it leaves of `value`, and what it is answered.
    #[must_use]
    pub fn apply(&self, value: Option<&Bytes>) -> (Option<Bytes>, Told) {
        match self {
            Self::Put(new) => (Some(new.clone()), Told::Done),
            Self::Append(more) => {
                let new = [value.cloned().unwrap_or_default(), more.clone()].concat();
                let length = i64::try_from(new.len()).expect("a value fits into memory");
                (Some(new.into()), Told::Number(length))
            }
            Self::Incr => {
                let old = match value {
                    None => Some(0),
                    Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
                };
                match old.and_then(|old: i64| old.checked_add(1)) {
                    Some(new) => (Some(new.to_string().into()), Told::Number(new)),
                    None => (value.cloned(), Told::Impossible),
                }
            }
            Self::Cas { expected, value: new } => {
                let swapped = value == expected.as_ref();
                let after = if swapped { Some(new) } else { value };
                (after.cloned(), Told::Compared { swapped, actual: value.cloned() })
            }
            Self::Delete => (None, Told::Bool(value.is_some())),
            Self::Get => (value.cloned(), Told::Value(value.cloned())),
        }
    }
}
