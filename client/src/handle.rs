//! A request's name, as a short text that outlives the process.
//!
//! ```text
//! "once1-" │ base32 of: the encoded (home, incarnation, id, content) │ checksum (4 bytes)
//! ```
//! The id is what a copy goes out under, in a session with the watermark of when the request was given
//! up: without it, a late request would find its session's window full for ever.
//! The content is the operation's bytes where they are few, so that whoever has the text can send
//! the request again; else their fingerprint. The alphabet is Crockford's (no i, l, o, u), in lower
//! case. One handle has one text: anything that does not print as it was read is refused.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use onlyonce_wire::client::{ExecuteId, Fingerprint, Operation, RequestId, Welcome};
use onlyonce_wire::limits::OPERATION_BYTES_MAX;
use onlyonce_wire::{ClusterId, Incarnation, Seq, StoreId, codec};
use serde::{Deserialize, Serialize};

use crate::expiry::Remembered;

const PREFIX: &str = "once1-";
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const CHECKSUM_BYTES: usize = 4;
/// The longest operation that a handle carries.
const CONTENT_BYTES_MAX: usize = 256;
/// Above the longest handle: one with the longest idempotency key and operation.
const TEXT_BYTES_MAX: usize = 1_024;

/// Names one request for ever: where it was sent, under which id, and with which content.
///
/// Prints as a text that this or another process can read back, to ask for the request's
/// [outcome](crate::Client::outcome), [cancel](crate::Client::cancel) it or
/// [resume](crate::Client::resume) it. An operation of up to 256 bytes is in it, as bytes that anybody
/// can read.
///
/// ```
/// # use onlyonce_client::{Handle, HandleError};
/// assert_eq!("hello".parse::<Handle>(), Err(HandleError::Prefix));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub(crate) home: Home,
    incarnation: Incarnation,
    id: RequestId,
    /// In a session: its client had seen all replies below this one.
    first_unacked: Seq,
    content: Content,
    pub(crate) remembered: Remembered,
}

/// Who can know a request: nobody else may be asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Home {
    Cluster(ClusterId),
    /// The node had joined no cluster when its client connected to it, as far as that knows.
    Store(StoreId),
    /// It is not known where the request was sent.
    Unknown,
}

impl Home {
    /// The home of requests that a node executes.
    pub(crate) fn of(node: &Welcome) -> Self {
        node.cluster.map_or(Self::Store(node.store), Self::Cluster)
    }

    /// Whether a node is of this home, for certain.
    pub(crate) fn is_of(self, node: &Welcome) -> bool {
        match self {
            Self::Cluster(cluster) => node.cluster == Some(cluster),
            Self::Store(store) => node.store == store,
            Self::Unknown => true,
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(cluster) => write!(f, "cluster {cluster}"),
            Self::Store(store) => write!(f, "store {store}, which had joined no cluster"),
            Self::Unknown => f.write_str("a node that is not known"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Content {
    Operation(Bytes),
    Fingerprint(Fingerprint),
}

impl Handle {
    /// Names a request that goes out under `id`; none if nothing names it.
    pub(crate) fn new(
        home: Home,
        incarnation: Incarnation,
        id: &ExecuteId,
        operation: &Bytes,
    ) -> Option<Self> {
        let (id, first_unacked) = request_and_watermark(id)?;
        let content = if operation.len() <= CONTENT_BYTES_MAX {
            Content::Operation(operation.clone())
        } else {
            Content::Fingerprint(Fingerprint::of(operation))
        };
        let remembered = Remembered::default();
        Some(Self { home, incarnation, id, first_unacked, content, remembered })
    }

    /// The cluster that was asked; none when that was not known.
    ///
    /// ```
    /// # use onlyonce_client::{ClusterId, Handle};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle: Handle = "once1-00n0207vxqzfrrk00404thg0180041kpd5spjx3k08yvs94c".parse()?;
    /// // Who finds such a text in a log knows where to ask.
    /// assert_eq!(handle.cluster(), Some(ClusterId(42)));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        match self.home {
            Home::Cluster(cluster) => Some(cluster),
            Home::Store(_) | Home::Unknown => None,
        }
    }

    /// The cluster's incarnation at that time. In a later one the id is void.
    ///
    /// ```
    /// # use onlyonce_client::{Handle, Incarnation};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle: Handle = "once1-00n0207vxqzfrrk00404thg0180041kpd5spjx3k08yvs94c".parse()?;
    /// // After a restore the cluster is in another one, and tells that the request is forgotten.
    /// assert_eq!(handle.incarnation(), Incarnation(1));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The request's id.
    ///
    /// ```
    /// # use onlyonce_client::{Handle, IdempotencyKey, RequestId};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handle: Handle = "once1-00n0208019qq4s35e8pk2chk6g00p0020xh62v31dshpaewtk0gs6".parse()?;
    /// assert_eq!(handle.id(), &RequestId::Key(IdempotencyKey::new("order-1234")?));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// The fingerprint of the request's content.
    ///
    /// ```
    /// # use onlyonce_client::Handle;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let in_session: Handle = "once1-00n0207vxqzfrrk00404thg0180041kpd5spjx3k08yvs94c".parse()?;
    /// let keyed: Handle = "once1-00n0208019qq4s35e8pk2chk6g00p0020xh62v31dshpaewtk0gs6".parse()?;
    /// // Of the content alone: the same write under two ids has one fingerprint; these are two writes.
    /// assert_ne!(in_session.fingerprint(), keyed.fingerprint());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        match &self.content {
            Content::Operation(operation) => Fingerprint::of(operation),
            Content::Fingerprint(fingerprint) => *fingerprint,
        }
    }

    /// The request's content; none if it was too long for the handle.
    ///
    /// ```
    /// # use onlyonce_client::{Handle, Operation, Write};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let short: Handle = "once1-00n0207vxqzfrrk00404thg0180041kpd5spjx3k08yvs94c".parse()?;
    /// let incr = Write::Incr { key: "visits".into(), by: 1 };
    /// assert_eq!(short.operation(), Some(Operation::Write(incr)));
    /// let long: Handle = "once1-00n0207vxqzfrrk00404thg1zv08wtb4akvpsz5vb5crmxs8vxyrw6mw8r".parse()?;
    /// assert_eq!(long.operation(), None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn operation(&self) -> Option<Operation> {
        let bytes = self.operation_bytes()?;
        codec::decode::<_, OPERATION_BYTES_MAX>(bytes).ok()
    }

    /// The very bytes that were sent.
    pub(crate) fn operation_bytes(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Operation(operation) => Some(operation),
            Content::Fingerprint(_) => None,
        }
    }

    /// The id to send it again under. What its client has seen since is not known here, and need
    /// not be: the server keeps the highest watermark that it was told.
    pub(crate) fn execute_id(&self) -> ExecuteId {
        match &self.id {
            RequestId::Key(key) => ExecuteId::Key(key.clone()),
            RequestId::Seq { session, seq } => ExecuteId::Session {
                session: *session,
                seq: *seq,
                first_unacked: self.first_unacked,
            },
        }
    }

    /// Its client had seen all replies below this one; `Seq(1)` outside of sessions.
    pub(crate) fn first_unacked(&self) -> Seq {
        self.first_unacked
    }

    /// Checks what was read rather than made here.
    fn check(&self) -> Result<(), String> {
        match &self.id {
            RequestId::Key(key) => key.check().map_err(|error| error.to_string())?,
            RequestId::Seq { seq: Seq(0), .. } => return Err("a request is numbered 0".to_owned()),
            RequestId::Seq { seq, .. } if !(Seq(1)..=*seq).contains(&self.first_unacked) => {
                return Err("its watermark is not one of its session".to_owned());
            }
            RequestId::Seq { .. } => {}
        }
        if let Content::Operation(bytes) = &self.content {
            let operation = codec::decode::<Operation, OPERATION_BYTES_MAX>(bytes);
            let operation = operation.map_err(|error| error.to_string())?;
            operation.check().map_err(|refusal| refusal.to_string())?;
        }
        Ok(())
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { home, incarnation, content, .. } = self;
        let mut bytes = codec::encode(&(home, incarnation, self.execute_id(), content));
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "{PREFIX}{}", base32(&bytes))
    }
}

/// A text that is no handle, or not any more.
///
/// ```
/// # use onlyonce_client::{Handle, HandleError};
/// let text = "once1-00n0207vxqzfrrk00404thg0180041kpd5spjx3k08yvs94c";
/// assert!(text.parse::<Handle>().is_ok());
/// // What was not copied whole names no other request by accident.
/// assert_eq!(text[..40].parse::<Handle>(), Err(HandleError::Checksum));
/// ```
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
        let (home, incarnation, id, content) =
            codec::decode::<(_, _, ExecuteId, _), TEXT_BYTES_MAX>(content)
                .map_err(|error| HandleError::Content(error.to_string()))?;
        let nameless = || HandleError::Content("it names no request".to_owned());
        let (id, first_unacked) = request_and_watermark(&id).ok_or_else(nameless)?;
        let remembered = Remembered::default();
        let handle = Self { home, incarnation, id, first_unacked, content, remembered };
        handle.check().map_err(HandleError::Content)?;
        Ok(handle)
    }
}

/// What names a request, and what its client had seen; none if nothing names it.
fn request_and_watermark(id: &ExecuteId) -> Option<(RequestId, Seq)> {
    let first_unacked = match id {
        ExecuteId::Session { first_unacked, .. } => *first_unacked,
        ExecuteId::Key(_) | ExecuteId::Anonymous => Seq(1),
    };
    Some((id.request()?, first_unacked))
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
    use onlyonce_wire::client::Write;
    use onlyonce_wire::limits::IDEMPOTENCY_KEY_BYTES_MAX;
    use onlyonce_wire::{IdempotencyKey, OpenedAt, Seq, Session, SessionId};

    use super::*;

    /// A put whose encoding has so many bytes: four, and those of its key and value.
    fn put_of(bytes: usize) -> Bytes {
        let value = (bytes - 4) / 2;
        let key = vec![b'k'; bytes - 4 - value].into();
        let put = Operation::Write(Write::Put { key, value: vec![7; value].into() });
        let encoded = Bytes::from(codec::encode(&put));
        assert_eq!(encoded.len(), bytes);
        encoded
    }

    fn in_session([opened_at, seq, first_unacked]: [u64; 3]) -> ExecuteId {
        let session = Session { id: SessionId(u128::MAX / 7), opened_at: OpenedAt(opened_at) };
        ExecuteId::Session { session, seq: Seq(seq), first_unacked: Seq(first_unacked) }
    }

    fn handle(home: Home, incarnation: u64, id: &ExecuteId, operation: &Bytes) -> Handle {
        Handle::new(home, Incarnation(incarnation), id, operation).expect("it is named")
    }

    fn handles() -> [Handle; 2] {
        let key = IdempotencyKey::new("invoice-2024-06").expect("a fine key");
        let cluster = Home::Cluster(ClusterId(42));
        [
            handle(cluster, 1, &in_session([90_210, 77, 70]), &put_of(12)),
            handle(Home::Store(StoreId(7)), 3, &ExecuteId::Key(key), &put_of(300)),
        ]
    }

    /// Short operations travel with the handle, long ones do not; the documented lengths, of the
    /// largest numbers.
    #[test]
    fn short_operations_travel_along() {
        let home = Home::Cluster(ClusterId(u128::MAX));
        let id = in_session([u64::MAX; 3]);
        for (bytes, carried, most) in
            [(12, true, 160), (CONTENT_BYTES_MAX, true, 550), (CONTENT_BYTES_MAX + 1, false, 160)]
        {
            let operation = put_of(bytes);
            let handle = handle(home, u64::MAX, &id, &operation);
            assert_eq!(handle.operation_bytes(), carried.then_some(&operation));
            assert_eq!(handle.operation().is_some(), carried);
            assert_eq!(handle.fingerprint(), Fingerprint::of(&operation));
            let length = handle.to_string().len();
            assert!(length <= most, "{bytes} bytes make a handle of {length} characters");
        }
        let key = IdempotencyKey::new(vec![b'k'; IDEMPOTENCY_KEY_BYTES_MAX]).expect("a fine key");
        let operation = put_of(CONTENT_BYTES_MAX);
        let longest = handle(home, u64::MAX, &ExecuteId::Key(key), &operation).to_string();
        assert!(longest.len() <= 890, "{}", longest.len());
        assert!(longest.parse::<Handle>().is_ok());
    }

    /// A handle whose checksum is right and whose content is not is refused too.
    #[test]
    fn meaningless_content_is_refused() {
        let [good, _] = handles();
        let content = Content::Operation(Bytes::from_static(&[0xff; 9]));
        for bad in [
            Handle { content, ..good.clone() },
            Handle { first_unacked: Seq(0), ..good.clone() },
            Handle { first_unacked: Seq(78), ..good },
        ] {
            let refused = bad.to_string().parse::<Handle>();
            assert!(matches!(refused, Err(HandleError::Content(_))), "{refused:?}");
        }
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
