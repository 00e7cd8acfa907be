//! What became of a request, or that it may never run; and requests taken up again, in this process or
//! another.

use std::time::Duration;

use bytes::Bytes;
use onlyonce_wire::client::{
    Answer, Consequence, Fate as Told, Fingerprint, Operation, Outcome, Question, Refusal, Request,
    RequestId,
};
use onlyonce_wire::{IdempotencyKey, Incarnation, Seq};

use crate::Client;
use crate::errors::{Error, NodeReports, Unresolved, UnresolvedReason};
use crate::execute::{Inner, decode_reply, encode_operation};
use crate::expiry::Remembered;
use crate::handle::{Handle, Home};
use crate::keyed::{Executed, Keyed};
use crate::progress::Progress;
use crate::questions::misplaced;

/// What became of a request.
///
/// ```
/// # use onlyonce_client::{Fate, Outcome};
/// /// Whether the request may still run.
/// fn is_open(fate: &Fate) -> bool {
///     match fate {
///         Fate::Pending | Fate::NeverSeen => true,
///         Fate::Done(_) | Fate::Cancelled | Fate::Forgotten(_) => false,
///     }
/// }
/// // That nobody has seen it is no promise: a copy may be under way.
/// assert!(is_open(&Fate::NeverSeen));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ran, once, and came to this. [`Outcome::Failed`] says that it was found impossible, and
    /// changed nothing.
    Done(Outcome),
    /// It runs at this moment. That may still come to nothing, if the primary dies.
    Pending,
    /// Nobody has seen it. It may still arrive, and run: only a cancel rules that out.
    NeverSeen,
    /// It never ran and never will; under a *named* key for as long as that is remembered, which
    /// [`Client::outcome_told`] tells: after that the key is like a new one, and a copy of the request runs.
    Cancelled,
    /// It will not run from now on. Whether it ever did is not known any more, for this reason: its
    /// session or key was forgotten, or the cluster is in another incarnation.
    Forgotten(Refusal),
}

/// What a cancel came to.
///
/// ```no_run
/// # use onlyonce_client::{Cancellation, Client};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// // Only a cancel makes it safe to send the same work anew, under another key.
/// if client.cancel(&client.with_key("order-1234")?).await? == Cancellation::Cancelled {
///     client.with_key("order-1234-anew")?.incr("balance", -30).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the request may have run before"]
pub enum Cancellation {
    /// The request never ran and never will; under a *named* key for as long as that is remembered, which
    /// [`Client::cancel_told`] tells: after that the key is like a new one, and a copy of the request runs.
    Cancelled,
    /// Too late: it had run, once, and came to this.
    Done(Outcome),
    /// As [`Fate::Forgotten`].
    Forgotten(Refusal),
}

/// A request that is asked about: by its [`Handle`], its key, or its id.
///
/// A handle says most: which cluster may be asked, in which incarnation, and for which content. A key
/// or an id is looked up in the cluster as it is now, whatever its content.
///
/// ```no_run
/// # use onlyonce_client::{Client, IdempotencyKey, RequestId};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let key = IdempotencyKey::new("order-1234")?;
/// // One request, named in three ways.
/// client.outcome(&client.with_key(key.clone())?).await?;
/// client.outcome(RequestId::Key(key.clone())).await?;
/// client.outcome(key).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RequestName {
    home: Option<Home>,
    incarnation: Option<Incarnation>,
    id: RequestId,
    first_unacked: Seq,
    fingerprint: Option<Fingerprint>,
    remembered: Remembered,
}

impl From<RequestId> for RequestName {
    fn from(id: RequestId) -> Self {
        Self {
            home: None,
            incarnation: None,
            id,
            first_unacked: Seq(1),
            fingerprint: None,
            remembered: Remembered::default(),
        }
    }
}

impl From<&RequestId> for RequestName {
    fn from(id: &RequestId) -> Self {
        id.clone().into()
    }
}

impl From<IdempotencyKey> for RequestName {
    fn from(key: IdempotencyKey) -> Self {
        RequestId::Key(key).into()
    }
}

impl From<&IdempotencyKey> for RequestName {
    fn from(key: &IdempotencyKey) -> Self {
        key.clone().into()
    }
}

impl From<&Keyed> for RequestName {
    fn from(keyed: &Keyed) -> Self {
        keyed.key().into()
    }
}

impl From<&Handle> for RequestName {
    fn from(handle: &Handle) -> Self {
        Self {
            home: Some(handle.home),
            incarnation: Some(handle.incarnation()),
            id: handle.id().clone(),
            first_unacked: handle.first_unacked(),
            fingerprint: Some(handle.fingerprint()),
            remembered: handle.remembered,
        }
    }
}

impl RequestName {
    fn question(&self, incarnation: Incarnation) -> Question {
        Question {
            incarnation,
            id: self.id.clone(),
            first_unacked: self.first_unacked,
            fingerprint: self.fingerprint,
        }
    }
}

impl Client {
    /// What became of a request.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Fate, Handle, Outcome};
    /// # async fn example(client: Client, text: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// let handle: Handle = text.parse()?; // printed by a process that is gone
    /// match client.outcome(&handle).await? {
    ///     Fate::Done(outcome) => println!("it ran, once: {outcome:?}"),
    ///     Fate::Cancelled => println!("it never ran and never will"),
    ///     Fate::Pending | Fate::NeverSeen => println!("it may still run: resume or cancel it"),
    ///     Fate::Forgotten(why) => println!("that is not known any more: {why}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every read](Client#errors-of-every-read). [`Error::Refused`] with `Mismatch`: the id is
    /// that of another request, and the handle's own never ran and never will. [`Error::Unusable`]: the
    /// handle is of another cluster.
    pub async fn outcome(&self, request: impl Into<RequestName>) -> Result<Fate, Error> {
        self.outcome_told(request).await.map(|(fate, _)| fate)
    }

    /// As [`outcome`](Self::outcome), with how long the key is remembered at least; none in a session.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Fate};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let (fate, kept_for) = client.outcome_told(&client.with_key("order-1234")?).await?;
    /// if let Fate::Done(outcome) = fate {
    ///     println!("{outcome:?}; it may be sent again for {kept_for:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`outcome`](Self::outcome).
    pub async fn outcome_told(
        &self,
        request: impl Into<RequestName>,
    ) -> Result<(Fate, Option<Duration>), Error> {
        let name = request.into();
        self.inner.fate(&name, |incarnation| Request::Outcome(name.question(incarnation))).await
    }

    /// Sees to it that a request never runs, unless it did. Durable: every copy of it, however late,
    /// is refused as `Cancelled`; under a *named* key for as long as that is remembered, see [`Keyed`].
    /// The cancel races the request, and one of the two wins; both learn which. By the handle of a call
    /// that ended as [`KeyExpired`](UnresolvedReason::KeyExpired) it is
    /// [`Forgotten`](Cancellation::Forgotten): no copy runs, but one may have run before.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Cancellation, Client, Handle};
    /// # async fn example(client: Client, handle: Handle) -> Result<(), onlyonce_client::Error> {
    /// match client.cancel(&handle).await? {
    ///     Cancellation::Cancelled => println!("it never ran: it may be sent anew"),
    ///     Cancellation::Done(outcome) => println!("too late, it came to {outcome:?}"),
    ///     Cancellation::Forgotten(why) => println!("whether it ran is not known any more: {why}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`outcome`](Self::outcome). After [`Error::NoAnswer`] it may or may not be cancelled: cancel
    /// it again.
    pub async fn cancel(&self, request: impl Into<RequestName>) -> Result<Cancellation, Error> {
        self.cancel_told(request).await.map(|(cancellation, _)| cancellation)
    }

    /// As [`cancel`](Self::cancel), with how long the key is remembered at least; none in a session.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Cancellation, Client};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let (cancellation, kept_for) = client.cancel_told(&client.with_key("order-1234")?).await?;
    /// if cancellation == Cancellation::Cancelled {
    ///     println!("a copy that is under way is refused for {kept_for:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`cancel`](Self::cancel).
    pub async fn cancel_told(
        &self,
        request: impl Into<RequestName>,
    ) -> Result<(Cancellation, Option<Duration>), Error> {
        let name = request.into();
        let cancel = |incarnation| Request::Cancel(name.question(incarnation));
        let (fate, kept_for) = self.inner.fate(&name, cancel).await?;
        let cancellation = match fate {
            Fate::Done(outcome) => Cancellation::Done(outcome),
            // Judged after the answer: what was remembered now was remembered when it was cancelled.
            Fate::Cancelled if name.remembered.may_be_forgotten() => {
                Cancellation::Forgotten(Refusal::Forgotten)
            }
            Fate::Cancelled => Cancellation::Cancelled,
            Fate::Forgotten(refusal) => Cancellation::Forgotten(refusal),
            Fate::Pending | Fate::NeverSeen => {
                return Err(Error::BadReply("that a request is still open to a cancel".to_owned()));
            }
        };
        Ok((cancellation, kept_for))
    }

    /// Takes up a request that another call, or another process, left unresolved: sends **the same
    /// bytes under the same id** until its fate is known. It takes effect once, whoever else is at
    /// it; but one under a *named* key only for as long as that is remembered, see [`Keyed`].
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Handle};
    /// # async fn example(client: Client, text: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// let handle: Handle = text.parse()?; // printed by a process that is gone
    /// let executed = client.resume(&handle).await?;
    /// println!("it came to {:?}", executed.outcome);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] with `Cancelled` or `Mismatch` is definite. Everything else that keeps it
    /// from an answer leaves the request [`Error::Unresolved`], under the same handle: its session or
    /// key is forgotten (reason `Refused`), the handle is of another cluster (`Unusable`), the
    /// deadline passed, or the handle does not carry the content (`NoContent`).
    pub async fn resume(&self, handle: &Handle) -> Result<Executed, Error> {
        let Some(operation) = handle.operation_bytes() else {
            let reason = UnresolvedReason::NoContent;
            let nodes = NodeReports::default();
            return Err(Error::Unresolved(Unresolved::new(handle.clone(), reason, nodes, None)));
        };
        self.inner.resume(handle, operation).await
    }

    /// As [`resume`](Self::resume), with the operation, for handles that do not carry it.
    ///
    /// ```
    /// # use onlyonce_client::{Client, Error, Handle, Operation, Refusal, Write};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = Client::builder().nodes(["10.0.0.1:7400"]).build()?;
    /// // The handle of a put of 1,000 bytes: it has their fingerprint only.
    /// let handle: Handle = "once1-00n0207vxqzfrrk00404thg1zv08wtb4akvpsz5vb5crmxs8vxyrw6mw8r".parse()?;
    /// let other = Operation::Write(Write::Put { key: "essay".into(), value: "x".into() });
    /// let refused = client.resume_with(&handle, &other).await;
    /// assert!(matches!(refused, Err(Error::Refused(Refusal::Mismatch))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] with `Mismatch`, and nothing is sent, when the handle's request has other
    /// content.
    pub async fn resume_with(
        &self,
        handle: &Handle,
        operation: &Operation,
    ) -> Result<Executed, Error> {
        let operation = encode_operation(operation)?;
        if Fingerprint::of(&operation) != handle.fingerprint() {
            return Err(Error::Refused(Refusal::Mismatch));
        }
        self.inner.resume(handle, &operation).await
    }
}

impl Inner {
    async fn resume(&self, handle: &Handle, operation: &Bytes) -> Result<Executed, Error> {
        self.finish(operation, Progress::resumed(handle)).await
    }

    async fn fate(
        &self,
        name: &RequestName,
        question: impl Fn(Incarnation) -> Request,
    ) -> Result<(Fate, Option<Duration>), Error> {
        let (told, kept_for_ms) = match self.ask(name.home, name.incarnation, question).await {
            Ok(Answer::Fate { fate, kept_for_ms }) => (fate, kept_for_ms),
            Ok(other) => return Err(misplaced(&other)),
            Err(Error::Refused(refusal)) => {
                return match refusal.consequence() {
                    Consequence::IdVoid => Ok((Fate::Forgotten(refusal), None)),
                    Consequence::NeverRuns | Consequence::ThisCopy | Consequence::TryLater => {
                        Err(Error::Refused(refusal))
                    }
                };
            }
            Err(error) => return Err(error),
        };
        let fate = match told {
            Told::Done { reply } => Fate::Done(decode_reply(&reply)?),
            Told::Pending => Fate::Pending,
            Told::NeverSeen => Fate::NeverSeen,
            Told::Cancelled => Fate::Cancelled,
        };
        Ok((fate, kept_for_ms.map(Duration::from_millis)))
    }
}
