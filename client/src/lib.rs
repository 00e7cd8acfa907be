//! The client of Onlyonce: a replicated key/value store in which every request takes effect exactly
//! once, whatever is lost, repeated or restarted on the way.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use onlyonce_client::Client;
//!
//! let client = Client::builder().nodes(["127.0.0.1:7400", "127.0.0.1:7401"]).build()?;
//! client.put("greeting", "hello").await?;
//! let visits = client.incr("visits", 1).await?; // counted once, however often it was sent
//! # let _ = visits;
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! A call gives its request an id and sends **the same operation under the same id** until an answer is
//! there: to the primary, to whichever node takes its place, over as many connections as it takes.
//! Without a [deadline](ClientBuilder::deadline) it goes on until it knows. With one, it never turns
//! "not known" into "failed": see [`Error`], which is sorted by what the caller may conclude.
//!
//! A [`Client`] is cheap to clone; clones share one connection a node and one session. Dropping a
//! call's future half-way is safe: the request may still take effect, once, and later requests go to
//! a new session.
//!
//! A request that was left unresolved has a [`Handle`], by which this or another process asks for its
//! [outcome](Client::outcome), [resumes](Client::resume) or [cancels](Client::cancel) it. A request
//! under a [key of your own](Client::with_key) is named by that key, so it needs no handle.
//!
//! How the parts play together: `execute` gives a request its id (from a `session`, or a fresh key)
//! and judges its end (`keyed`: under a key of the caller's; `outbox`: on disk first; `fate`: what
//! became of one, and once more). `questions` may be asked any number of times: reads, and what `fate`,
//! `open_sessions` and `backup` ask. For both `retry` is the loop, `progress` its account of a request
//! and its copies (`expiry`: until when there may be more of them under a named key), `cluster` knows
//! whom to ask (with the help of `discovery`), `connection` multiplexes calls over one socket.

#![warn(clippy::missing_errors_doc)]

mod backup;
mod builder;
mod cluster;
mod connection;
mod discovery;
mod errors;
mod execute;
mod expiry;
mod fate;
mod handle;
mod keyed;
mod open_sessions;
mod outbox;
mod progress;
mod questions;
mod retry;
mod semantics;
mod session;
mod txn;
mod writes;

#[doc = include_str!("../../docs/cookbook.md")]
pub mod cookbook {}

// So that what the page shows compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/client.md")]
mod page {}

use std::sync::Arc;

use bytes::Bytes;
use onlyonce_wire::client::Read;
use onlyonce_wire::codec;

pub use backup::{Backup, BackupStep};
pub use builder::ClientBuilder;
pub use errors::{
    BuildError, Error, NoAnswer, NodeReport, NodeReports, NotSent, Uncounted, Unresolved,
    UnresolvedReason,
};
pub use fate::{Cancellation, Fate, RequestName};
pub use handle::{Handle, HandleError};
pub use keyed::{Executed, Keyed, fresh_key};
pub use onlyonce_wire::backup::BackupBegin;
pub use onlyonce_wire::client::{
    Compare, Condition, Consequence, ExecuteId, Failure, Fingerprint, Limit, Operation, Outcome,
    Part, Refusal, RequestId, SavedRequest, SessionDetail, SessionStatus, TxnOutcome, Write,
};
pub use onlyonce_wire::ids::{IdempotencyKeyError, ParseIdError};
pub use onlyonce_wire::limits;
pub use onlyonce_wire::status::{NodeStatus, Role};
pub use onlyonce_wire::{
    ClusterId, IdempotencyKey, Incarnation, OpenedAt, Seq, Session, SessionId, StoreId, View,
};
pub use open_sessions::SessionPage;
pub use outbox::OutboxError;
pub use semantics::Semantics;
pub use txn::Txn;

use crate::builder::Options;
use crate::cluster::Cluster;
use crate::execute::Inner;
use crate::outbox::{Outbox, Sent};
use crate::progress::Progress;
use crate::session::Sessions;
use crate::writes::unexpected;

/// A client of one cluster. Clones share their connections and their session.
///
/// Calls need a running tokio runtime, always the same one.
///
/// ```no_run
/// # use onlyonce_client::Client;
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let other = client.clone();
/// let (one, two) = tokio::join!(client.incr("jobs", 1), other.incr("jobs", 1));
/// // Clones are one client, but two calls are two requests: each counts.
/// assert_ne!(one?, two?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors of every write
/// | | when |
/// |---|---|
/// | [`Error::Refused`] | it is over a [limit](limits) or makes no sense; under a [key](Self::with_key) also: that is another request's, was cancelled, or may be forgotten |
/// | [`Error::Failed`] | it was executed, found impossible, and changed nothing |
/// | [`Error::NotSent`] | the [deadline](ClientBuilder::deadline) passed, and no copy of it is under way |
/// | [`Error::Unusable`] | the nodes are of another cluster or release, the [outbox](ClientBuilder::outbox) does not take it, or the clock is far behind; nothing was done |
/// | [`Error::Unresolved`] | it may or may not have taken effect: do not send it again as a new request, its [`Handle`] finds out; [`UnresolvedReason`] says when |
/// | [`Error::Uncounted`] | as that, and nobody can be asked; with [`Semantics::BestEffort`] only |
/// | [`Error::BadReply`] | it took effect, and this release cannot read the reply |
///
/// # Errors of every read
/// And of every question, about a request or a session.
///
/// | | when |
/// |---|---|
/// | [`Error::NoAnswer`] | the [deadline](ClientBuilder::deadline) passed; asking again is harmless |
/// | [`Error::Refused`] | it is over a [limit](limits) or makes no sense |
/// | [`Error::Unusable`] | the nodes are of another cluster or release |
/// | [`Error::BadReply`] | this release cannot read the answer |
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// What a compare-and-set came to.
///
/// ```no_run
/// # use onlyonce_client::{Client, Compared};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// match client.put_if_absent("lock", "me").await? {
///     Compared { swapped: true, .. } => println!("the lock is mine"),
///     Compared { actual, .. } => println!("the lock is held by {actual:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it says whether the value was set"]
pub struct Compared {
    /// Whether the comparison held, and the value was set.
    pub swapped: bool,
    /// What the key held before.
    pub actual: Option<Bytes>,
}

/// What a request that was left in an outbox came to.
///
/// ```no_run
/// # use onlyonce_client::{Client, Error, Recovered};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// for Recovered { key, result, .. } in client.recover().await {
///     match result {
///         Ok(outcome) => println!("{key}: it ran once, and came to {outcome:?}"),
///         Err(Error::Unresolved(open)) => println!("{key}: {open}"),
///         Err(error) => println!("{key}: {error}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Its key.
    pub key: IdempotencyKey,
    /// The request; none if another release wrote it and this one cannot read it.
    pub operation: Option<Operation>,
    /// What it came to, or that it is unresolved. The file lets go of it with every result but
    /// [`Error::Unresolved`], and with that one for the reason [`Refused`](UnresolvedReason::Refused)
    /// alone: after `Refused` the file has it no more, keep the handle.
    pub result: Result<Outcome, Error>,
}

/// Some rows, in key order.
///
/// ```no_run
/// # use onlyonce_client::{Client, Rows};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut start = bytes::Bytes::new();
/// loop {
///     // Each page is of one moment; what is written between two pages may be in the second.
///     let Rows { rows, next } = client.scan(start, None, 1_000).await?;
///     println!("{} rows", rows.len());
///     let Some(next) = next else { break };
///     start = next;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Keys and values.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Where to go on, when a limit ended the scan early.
    pub next: Option<Bytes>,
}

impl Client {
    /// Begins a new client.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use onlyonce_client::Client;
    /// let client = Client::builder()
    ///     .nodes(["127.0.0.1:7400"])
    ///     .deadline(Duration::from_secs(5))
    ///     .build()
    ///     .expect("an address was given");
    /// ```
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    fn new(options: Options, outbox: Option<Arc<Outbox>>) -> Self {
        let cluster = Arc::new(Cluster::new(options));
        Self { inner: Arc::new(Inner { cluster, sessions: Sessions::new(), outbox }) }
    }

    /// The value of `key`; none where it is absent. Linearizable.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.put("greeting", "hello").await?;
    /// // Linearizable: from here on every client reads it, whichever node it asks.
    /// assert_eq!(client.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every read](Client#errors-of-every-read).
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, Error> {
        match self.inner.read(Read::Get { key: key.into() }).await? {
            Outcome::Value(value) => Ok(value),
            other => Err(unexpected("a get", &other)),
        }
    }

    /// The rows from `start` up to `end` (excluded; none: the end of all keys), at most `limit` of
    /// them, never more than 10,000 ([`limits::SCAN_ROWS_MAX`]), and no more than fit a reply of
    /// [`limits::REPLY_BYTES_MAX`]: [`Rows::next`] says where to go on. Linearizable.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // All keys that begin with "user/": '0' is the byte after '/'.
    /// let users = client.scan("user/", Some("user0".into()), 100).await?;
    /// for (key, value) in &users.rows {
    ///     println!("{key:?} holds {} bytes", value.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every read](Client#errors-of-every-read).
    pub async fn scan(
        &self,
        start: impl Into<Bytes>,
        end: Option<Bytes>,
        limit: u32,
    ) -> Result<Rows, Error> {
        match self.inner.read(Read::Scan { start: start.into(), end, limit }).await? {
            Outcome::Rows { rows, next } => Ok(Rows { rows, next }),
            other => Err(unexpected("a scan", &other)),
        }
    }

    /// Sets `key` to `value`.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Error, Refusal};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // A reply means: durable on every replica of the view.
    /// client.put("greeting", "hello").await?;
    /// // Limits are checked before anything is sent.
    /// let refused = client.put("", "no key").await;
    /// assert!(matches!(refused, Err(Error::Refused(Refusal::Invalid(_)))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), Error> {
        let write = Write::Put { key: key.into(), value: value.into() };
        writes::done(self.execute(Operation::Write(write)).await?)
    }

    /// Adds `value` to the end of what `key` holds; returns the new length in bytes.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let line = "one line\n";
    /// let length = client.append("journal", line).await?;
    /// println!("it begins at byte {}", length - line.len() as u64);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn append(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<u64, Error> {
        let write = Write::Append { key: key.into(), value: value.into() };
        writes::length(self.execute(Operation::Write(write)).await?)
    }

    /// Adds `by` to the decimal integer that `key` holds (absent: 0); returns the new value.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Error, Failure};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let number = client.incr("invoices", 1).await?; // nobody else gets this number
    /// client.put(format!("invoice/{number}"), "30").await?;
    /// client.put("greeting", "hello").await?;
    /// let failed = client.incr("greeting", 1).await;
    /// assert!(matches!(failed, Err(Error::Failed(Failure::NotAnInteger))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn incr(&self, key: impl Into<Bytes>, by: i64) -> Result<i64, Error> {
        let write = Write::Incr { key: key.into(), by };
        writes::integer(self.execute(Operation::Write(write)).await?)
    }

    /// Removes `key`; returns whether it existed.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Of all that try, one call learns that it was the one, even if its first reply was lost.
    /// if client.delete("job/7").await? {
    ///     println!("the job is mine");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, Error> {
        let write = Write::Delete { key: key.into() };
        writes::existed(self.execute(Operation::Write(write)).await?)
    }

    /// Sets `key` to `value` if it holds `expected` (none: if it is absent).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut current = client.get("config").await?;
    /// loop {
    ///     let compared = client.cas("config", current, "new").await?;
    ///     if compared.swapped {
    ///         break;
    ///     }
    ///     current = compared.actual; // somebody was faster; no read is needed to try again
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn cas(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Compared, Error> {
        let operation = Operation::Cas { key: key.into(), expected, value: value.into() };
        writes::compared(self.execute(operation).await?)
    }

    /// Sets `key` to `value` if it is absent.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // However often it was sent, it never finds its own value and calls that another's.
    /// let leader = client.put_if_absent("leader", "me").await?;
    /// println!("elected: {}", leader.swapped);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn put_if_absent(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Compared, Error> {
        self.cas(key, None, value).await
    }

    /// Carries out a transaction: its compares, then its writes, all or nothing.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Error, Txn, TxnOutcome};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let transfer = Txn::new().when_equals("alice", "10").put("alice", "7").incr("bob", 3);
    /// match client.txn(transfer).await? {
    ///     TxnOutcome::Committed(outcomes) => println!("done: {outcomes:?}"),
    ///     TxnOutcome::CompareFailed(place) => println!("compare {place} did not hold"),
    ///     TxnOutcome::WriteFailed(place, failure) => println!("write {place}: {failure}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        writes::txn(self.execute(txn.into_operation()).await?)
    }

    /// Executes any operation exactly once. An outcome of [`Outcome::Failed`] is returned as
    /// [`Error::Failed`].
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Operation, Outcome, Write};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Operations are plain data: they can be kept in a queue, or made from a text.
    /// let operation = Operation::Write(Write::Incr { key: "visits".into(), by: 1 });
    /// if let Outcome::Integer(visits) = client.execute(operation).await? {
    ///     println!("visit {visits}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn execute(&self, operation: Operation) -> Result<Outcome, Error> {
        self.inner.execute(&operation, Progress::default()).await.map(|told| told.outcome)
    }

    /// Carries out the requests that are in the [outbox](ClientBuilder::outbox) and that nobody
    /// awaits: those that an earlier client had under way when it died, and those of this one that
    /// were given up. One after the other, in the order in which they were first sent, each the same
    /// bytes under the same key as before; returns what each came to:
    ///
    /// | result | | in the outbox |
    /// |---|---|---|
    /// | `Ok`, [`Error::Failed`], [`Error::BadReply`] | it ran, before or now, once | no more |
    /// | [`Error::Refused`] | it never ran, and never will | no more |
    /// | [`Error::Unresolved`], reason [`Refused`](UnresolvedReason::Refused) | its key is forgotten, or of an earlier incarnation: whether it ran is not known any more | no more: keep the handle |
    /// | [`Error::Unresolved`], any other reason | time was up, the nodes are of another cluster, a reply is not understood, or the disk failed | it stays |
    ///
    /// Without a [deadline](ClientBuilder::deadline) it waits for as long as the cluster is away; a
    /// deadline is for each request. Dropped half-way, it tells nothing of the requests that ended by
    /// then, and leaves the others.
    ///
    /// Nobody has to call it: new requests work without, and may overtake what is left. That stays in
    /// the outbox, takes its room, and runs when it is recovered at last.
    ///
    /// Without an outbox there are none.
    ///
    /// ```
    /// # use onlyonce_client::Client;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let folder = tempfile::tempdir()?;
    /// let options = Client::builder().nodes(["10.0.0.1:7400"]);
    /// let client = options.outbox(folder.path().join("payments.outbox")).build()?;
    /// // An outbox that was just made has nothing to carry out, and no node is asked.
    /// assert!(client.recover().await.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn recover(&self) -> Vec<Recovered> {
        let Some(outbox) = &self.inner.outbox else { return Vec::new() };
        let mut recovered = Vec::new();
        let most = outbox.left();
        while recovered.len() < most
            && let Some(entry) = outbox.take_up()
        {
            let Sent { key, operation, .. } = entry.sent.clone();
            let operation = codec::decode::<_, { limits::OPERATION_BYTES_MAX }>(&operation).ok();
            let result = self.inner.take_up(entry).await;
            recovered.push(Recovered { key, operation, result });
        }
        recovered
    }

    /// Closes this client's session, so that the cluster need not remember it until it expires. With an
    /// outbox: waits until it is on the disk that requests ended, so that the next client need not ask.
    ///
    /// Waits for the answer, but no longer than one attempt may take. While requests are under way
    /// the session stays, and is closed after them. Later requests open a new one. Without this
    /// call, dropping the last clone closes the session in the background.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.incr("visits", 1).await?;
    /// // At the end of a program, where a runtime that stops would cut the background off.
    /// client.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(&self) {
        self.inner.close().await;
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("cluster", &self.inner.cluster.id())
            .field("options", self.inner.cluster.options())
            .finish_non_exhaustive()
    }
}
