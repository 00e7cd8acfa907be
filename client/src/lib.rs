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
//! [outcome](Client::outcome), [resumes](Client::resume) or [cancels](Client::cancel) it; one under a
//! [key of your own](Client::with_key) has that.
//!
//! How the parts play together: `execute` gives a request its id (from a `session`, or a fresh key)
//! and judges its end (`keyed`: under a key of the caller's; `fate`: what became of one, and once
//! more); `retry` is the loop, `cluster` knows whom to ask (with the help of
//! `discovery`), `connection` multiplexes calls over one socket.

mod backup;
mod builder;
mod cluster;
mod connection;
mod discovery;
mod errors;
mod execute;
mod fate;
mod handle;
mod keyed;
mod outbox;
mod retry;
mod semantics;
mod session;
mod txn;
mod writes;

#[doc = include_str!("../../docs/cookbook.md")]
pub mod cookbook {}

use std::sync::Arc;

use bytes::Bytes;
use onlyonce_wire::client::{Answer, Read, Request};
use onlyonce_wire::codec;

pub use backup::{Backup, BackupStep};
pub use builder::ClientBuilder;
pub use errors::{
    BuildError, Error, NoAnswer, NodeReport, NodeReports, NotSent, Uncounted, Unresolved,
    UnresolvedReason,
};
pub use fate::{Cancellation, Fate, RequestName, SessionPage};
pub use handle::{Handle, HandleError};
pub use keyed::{Executed, Keyed, fresh_key};
pub use onlyonce_wire::backup::BackupBegin;
pub use onlyonce_wire::client::{
    Compare, Condition, ExecuteId, Failure, Fingerprint, Operation, Outcome, Refusal, RequestId,
    SavedRequest, SessionDetail, SessionStatus, TxnOutcome, Write,
};
pub use onlyonce_wire::ids::{IdempotencyKeyError, ParseIdError};
pub use onlyonce_wire::limits;
pub use onlyonce_wire::status::{NodeStatus, Role};
pub use onlyonce_wire::{
    ClusterId, IdempotencyKey, Incarnation, OpenedAt, Seq, Session, SessionId,
};
pub use outbox::OutboxError;
pub use semantics::Semantics;
pub use txn::Txn;

use crate::builder::Options;
use crate::cluster::Cluster;
use crate::connection::{Connection, NoReply};
use crate::errors::answer_name;
use crate::execute::Inner;
use crate::outbox::{Outbox, Sent};
use crate::retry::Progress;
use crate::session::Sessions;
use crate::writes::unexpected;

/// A client of one cluster. Clones share their connections and their session.
///
/// Calls need a running tokio runtime, always the same one.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// What a compare-and-set came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it says whether the value was set"]
pub struct Compared {
    /// Whether the comparison held, and the value was set.
    pub swapped: bool,
    /// What the key held before.
    pub actual: Option<Bytes>,
}

/// What a request that was left in an outbox came to.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Its key.
    pub key: IdempotencyKey,
    /// The request; none if another release wrote it and this one cannot read it.
    pub operation: Option<Operation>,
    /// What it came to, or that it is unresolved.
    pub result: Result<Outcome, Error>,
}

/// Some rows, in key order.
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
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, Error> {
        match self.inner.read(Read::Get { key: key.into() }).await? {
            Outcome::Value(value) => Ok(value),
            other => Err(unexpected("a get", &other)),
        }
    }

    /// The rows from `start` up to `end` (excluded; none: the end of all keys), at most `limit` of
    /// them and at most as many as fit a reply: [`Rows::next`] says where to go on. Linearizable.
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
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), Error> {
        let write = Write::Put { key: key.into(), value: value.into() };
        writes::done(self.execute(Operation::Write(write)).await?)
    }

    /// Adds `value` to the end of what `key` holds; returns the new length in bytes.
    pub async fn append(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<u64, Error> {
        let write = Write::Append { key: key.into(), value: value.into() };
        writes::length(self.execute(Operation::Write(write)).await?)
    }

    /// Adds `by` to the decimal integer that `key` holds (absent: 0); returns the new value.
    pub async fn incr(&self, key: impl Into<Bytes>, by: i64) -> Result<i64, Error> {
        let write = Write::Incr { key: key.into(), by };
        writes::integer(self.execute(Operation::Write(write)).await?)
    }

    /// Removes `key`; returns whether it existed.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, Error> {
        let write = Write::Delete { key: key.into() };
        writes::existed(self.execute(Operation::Write(write)).await?)
    }

    /// Sets `key` to `value` if it holds `expected` (none: if it is absent).
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
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        writes::txn(self.execute(txn.into_operation()).await?)
    }

    /// Executes any operation exactly once. An outcome of [`Outcome::Failed`] is returned as
    /// [`Error::Failed`].
    pub async fn execute(&self, operation: Operation) -> Result<Outcome, Error> {
        self.inner.execute(&operation, Progress::default()).await.map(|told| told.outcome)
    }

    /// Carries out the requests that are in the [outbox](ClientBuilder::outbox) and that nobody
    /// awaits: those that an earlier client had under way when it died, and those of this one that
    /// were given up. One after the other, in the order in which they were first sent, each the same
    /// bytes under the same key as before; returns what each came to. A request that ends as
    /// [`Error::Unresolved`] because time was up stays in the outbox, for the next call.
    ///
    /// Without an outbox there are none.
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

    /// The addresses of the nodes that this client knows: those that it was given, those that the
    /// authority names (it is asked if there is one), and those that other nodes pointed to.
    pub async fn nodes(&self) -> Result<Vec<String>, Error> {
        self.inner.nodes().await
    }

    /// What the node at `address` says of itself: one attempt, over a connection of its own. The
    /// node need not be a primary, nor one that this client knows.
    pub async fn status(&self, address: &str) -> Result<NodeStatus, Error> {
        let options = self.inner.cluster.options();
        let within = options
            .deadline
            .map_or(options.attempt_timeout, |deadline| deadline.min(options.attempt_timeout));
        let unanswered = |reason: String| {
            let mut nodes = NodeReports::default();
            nodes.set(&address.into(), reason);
            Error::NoAnswer(NoAnswer { within, nodes })
        };
        let connection = match Connection::open(address, options.cluster, within).await {
            Ok(connection) => connection,
            Err(error) if error.is_permanent() => {
                return Err(Error::Unusable(format!("node {address}: {error}")));
            }
            Err(error) => return Err(unanswered(error.to_string())),
        };
        let request = codec::encode(&Request::Status);
        match connection.call(&request, within, &mut false).await {
            Ok(Answer::Status(status)) => Ok(*status),
            Ok(Answer::Refused(refusal)) => Err(Error::Refused(refusal)),
            Ok(other) => Err(Error::BadReply(format!(
                "{} to a question for the status",
                answer_name(&other)
            ))),
            Err(NoReply::NotSent(reason) | NoReply::Lost(reason)) => {
                Err(unanswered(reason.to_string()))
            }
            Err(NoReply::TimedOut { .. }) => Err(unanswered("connected, but silent".to_owned())),
        }
    }

    /// Closes this client's session, so that the cluster need not remember it until it expires.
    ///
    /// Waits for the answer, but no longer than one attempt may take. While requests are under way
    /// the session stays, and is closed after them. Later requests open a new one. Without this
    /// call, dropping the last clone closes the session in the background.
    pub async fn close(&self) {
        self.inner.sessions.close(&self.inner.cluster).await;
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
