//! Requests under a key that the caller chose.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onlyonce_wire::IdempotencyKey;
use onlyonce_wire::client::{Operation, Outcome, TxnOutcome, Write};
use onlyonce_wire::ids::IdempotencyKeyError;

use crate::errors::Error;
use crate::progress::Progress;
use crate::{Client, Compared, Txn, writes};

/// A [`Client`] whose writes go under one idempotency key; made by
/// [`Client::with_key`](crate::Client::with_key).
///
/// **One key is one request.** The same write under the same key, from this process or another, now
/// or after a crash, takes effect once, and everybody gets the one reply; copies that run into each
/// other join. Another write under the key is refused (`Mismatch`), and so is one whose key was
/// cancelled, or is a timed one so old that it may have been forgotten.
///
/// How long the cluster remembers a key, at least, comes with each reply: [`Executed::kept_for`].
/// After that a *named* key is like a new one. A *timed* one, which [`fresh_key`] makes, is refused
/// (`Forgotten`) and never run again, however late a copy of it arrives.
///
/// ```no_run
/// # use onlyonce_client::Client;
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// // However often the order is delivered to this program, it is booked once.
/// let balance = client.with_key("order-1234")?.incr("balance", -30).await?;
/// # let _ = balance;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it does nothing until one of its writes is called"]
pub struct Keyed {
    client: Client,
    key: IdempotencyKey,
}

/// A result, and what its request's id adds to it.
///
/// ```no_run
/// # use onlyonce_client::{Client, Executed, Operation, Write};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let pay = Operation::Write(Write::Incr { key: "balance".into(), by: -30 });
/// let Executed { replayed, .. } = client.with_key("order-1234")?.execute_told(pay).await?;
/// if !replayed {
///     println!("this is the first reply: tell the customer");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// What the operation came to, as it was first saved.
    pub outcome: Outcome,
    /// Whether this repeats the reply of an earlier copy of the request.
    pub replayed: bool,
    /// How long the key is remembered at least, counted from when the copy that was answered was
    /// sent: until then the request may be sent again. None in a session.
    pub kept_for: Option<Duration>,
}

impl Client {
    /// Writes under an idempotency key: an [`IdempotencyKey`], or bytes or text of your own, such as
    /// an order's number. A text that is a `UUIDv7` is a timed key. See [`Keyed`].
    ///
    /// ```
    /// # use onlyonce_client::{Client, IdempotencyKeyError, fresh_key};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = Client::builder().nodes(["10.0.0.1:7400"]).build()?;
    /// let named = client.with_key("order-1234")?;
    /// let timed = client.with_key(fresh_key())?;
    /// assert!(named.key().time_ms().is_none() && timed.key().time_ms().is_some());
    /// assert_eq!(client.with_key("").err(), Some(IdempotencyKeyError::Empty));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the key is empty or over 256 bytes.
    pub fn with_key<K>(&self, key: K) -> Result<Keyed, IdempotencyKeyError>
    where
        K: TryInto<IdempotencyKey>,
        IdempotencyKeyError: From<K::Error>,
    {
        Ok(Keyed::new(self.clone(), key.try_into()?))
    }
}

impl Keyed {
    pub(crate) fn new(client: Client, key: IdempotencyKey) -> Self {
        Self { client, key }
    }

    /// The key.
    ///
    /// ```
    /// # use onlyonce_client::{Client, fresh_key};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = Client::builder().nodes(["10.0.0.1:7400"]).build()?;
    /// let keyed = client.with_key(fresh_key())?;
    /// // Kept where the work is, it can be read back.
    /// let text = keyed.key().to_string();
    /// assert_eq!(client.with_key(text)?.key(), keyed.key());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// As [`Client::put`](crate::Client::put).
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Error, Refusal};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let keyed = client.with_key("profile-7-v3")?;
    /// keyed.put("profile/7", "third").await?;
    /// // The same key with another content is a mistake, and is refused.
    /// let refused = keyed.put("profile/7", "fourth").await;
    /// assert!(matches!(refused, Err(Error::Refused(Refusal::Mismatch))));
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

    /// As [`Client::append`](crate::Client::append).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let keyed = client.with_key("event-88")?;
    /// let length = keyed.append("journal", "event 88\n").await?;
    /// // Delivered again, it is not written again, and the reply is the first one.
    /// assert_eq!(keyed.append("journal", "event 88\n").await?, length);
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

    /// As [`Client::incr`](crate::Client::incr).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Two processes that race for one order both get the one balance.
    /// let (one, other) = (client.with_key("order-1234")?, client.with_key("order-1234")?);
    /// let (one, other) = tokio::join!(one.incr("balance", -30), other.incr("balance", -30));
    /// assert_eq!(one?, other?);
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

    /// As [`Client::delete`](crate::Client::delete).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let keyed = client.with_key("expire-7")?;
    /// let existed = keyed.delete("cache/7").await?;
    /// // A copy of it does not look again: it tells what the first one found.
    /// assert_eq!(keyed.delete("cache/7").await?, existed);
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

    /// As [`Client::cas`](crate::Client::cas).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Without the key, a second try after a crash would find "paid", and call that a failure.
    /// let keyed = client.with_key("pay-1234")?;
    /// let compared = keyed.cas("order/1234", Some("open".into()), "paid").await?;
    /// println!("paid by this request: {}", compared.swapped);
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

    /// As [`Client::put_if_absent`](crate::Client::put_if_absent).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Restarted half-way, it still learns that the seat is its own.
    /// let booked = client.with_key("booking-99")?.put_if_absent("seat/7", "alice").await?;
    /// println!("booked: {}", booked.swapped);
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

    /// As [`Client::txn`](crate::Client::txn).
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Txn, TxnOutcome};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let transfer = Txn::new().incr("alice", -3).incr("bob", 3);
    /// // A compare that does not hold would be the key's one reply too: a new try needs a new key.
    /// match client.with_key("transfer-5")?.txn(transfer).await? {
    ///     TxnOutcome::Committed(_) => println!("moved, once"),
    ///     other => println!("nothing was moved: {other:?}"),
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

    /// As [`Client::execute`](crate::Client::execute).
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Operation, Write};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let work: Vec<(&str, Operation)> =
    ///     vec![("message-1", Operation::Write(Write::Incr { key: "n".into(), by: 1 }))];
    /// for (key, operation) in work {
    ///     client.with_key(key)?.execute(operation).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn execute(&self, operation: Operation) -> Result<Outcome, Error> {
        self.execute_told(operation).await.map(|executed| executed.outcome)
    }

    /// Executes any operation, and tells whether this was the first time, and how long the key will
    /// be remembered.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Txn};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let booking = Txn::new().when_absent("seat-7").put("seat-7", "alice");
    /// let told = client.with_key("booking-99")?.execute_told(booking.into_operation()).await?;
    /// println!("again: {}, safe to repeat for {:?}", told.replayed, told.kept_for);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every write](Client#errors-of-every-write).
    pub async fn execute_told(&self, operation: Operation) -> Result<Executed, Error> {
        let progress = Progress::keyed(self.key.clone());
        self.client.inner.execute(&operation, progress).await
    }
}

/// A timed key that nobody else has, made by this machine's clock.
///
/// Keep it (in a file, in a row of your own, in the message that asks for the work) before the
/// request is sent, and any process can send the request again.
///
/// ```
/// let key = onlyonce_client::fresh_key();
/// assert!(key.time_ms().is_some());
/// assert_ne!(key, onlyonce_client::fresh_key());
/// ```
#[must_use]
pub fn fresh_key() -> IdempotencyKey {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    IdempotencyKey::fresh(u64::try_from(since.as_millis()).unwrap_or(0), rand::random())
}
