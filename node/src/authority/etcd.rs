//! The register as one key of an etcd cluster.
//!
//! - The key is `/onlyonce/<name>/view`; its value is a format number (u16) and the encoded
//!   [`Register`]. The revision is the key's own `mod_revision`, 0 while there is no key: the
//!   revision of a response's header counts the changes of every key.
//! - A compare-and-swap is one transaction: if the key has that `mod_revision`, put; in both cases
//!   get, so that the answer tells of this key at this moment. Reads go through a quorum.
//! - It is sent once. Nothing below repeats a call: `etcd-client` does only when it holds credentials
//!   that it may refresh, and none are given; tonic connects again, but fails the call that met the
//!   broken connection; hyper's own HTTP/2 connection has no retries. Whatever is not an answer to
//!   the transaction is *unknown*, also an error that etcd itself reports.
//! - Each call has connections of its own, as with the embedded authority. `etcd-client` would spread
//!   calls over several endpoints and not see which of them are dead, so each of its clients
//!   gets one endpoint here: `ask` finds one that answers a read, and the swap follows
//!   there, on the same connection.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BufMut;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetResponse, Txn, TxnOp, TxnOpResponse,
    WatchOptions,
};
use onlyonce_wire::authority::{Register, Revision, Versioned};
use onlyonce_wire::codec;
use onlyonce_wire::limits::{NAME_BYTES_MAX, REGISTER_BYTES_MAX};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::CALL_TIMEOUT;
use super::server::WATCH_TIMEOUT;
use super::{Authority, AuthorityError, Swap};
use crate::config::check_address;

/// What an address of etcd begins with.
pub const SCHEME: &str = "etcd://";
/// The name of the register where none is given.
const DEFAULT_NAME: &str = "default";
/// The format of the value.
const FORMAT: u16 = 1;
/// How long an endpoint may be silent before another one is asked too.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a watch whose stream broke rests.
const BROKEN_WATCH_REST: Duration = Duration::from_millis(500);

/// Where a register is: `etcd://HOST:PORT,HOST:PORT/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAddress {
    endpoints: Vec<String>,
    name: String,
}

impl EtcdAddress {
    /// The key that holds the register.
    fn key(&self) -> String {
        format!("/onlyonce/{}/view", self.name)
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.endpoints.join(","), self.name)
    }
}

impl FromStr for EtcdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).ok_or("it does not begin with etcd://")?;
        let (endpoints, name) = rest.split_once('/').unwrap_or((rest, DEFAULT_NAME));
        let endpoints: Vec<_> = endpoints.split(',').map(str::to_owned).collect();
        for endpoint in &endpoints {
            check_address("the endpoint", endpoint).map_err(|error| error.to_string())?;
        }
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name_byte) {
            return Err(format!(
                "the name {name:?} after the endpoints has other bytes than letters, digits, \
                 '-', '.' and '_', or not 1 to {NAME_BYTES_MAX} of them"
            ));
        }
        Ok(Self { endpoints, name: name.to_owned() })
    }
}

/// The register in an etcd cluster.
#[derive(Debug)]
pub struct EtcdClient {
    address: EtcdAddress,
    /// The endpoint that answered last: the first to be asked.
    preferred: AtomicUsize,
}

/// A linearizable read, and the connection to the endpoint that answered it.
struct Asked {
    endpoint: Arc<str>,
    client: Client,
    read: GetResponse,
}

impl EtcdClient {
    /// Of the register at `address`.
    #[must_use]
    pub fn new(address: EtcdAddress) -> Self {
        Self { address, preferred: AtomicUsize::new(0) }
    }

    /// Reads at the first endpoint that answers: a dead one only delays that, by [`PATIENCE`].
    async fn ask(&self) -> Result<Asked, AuthorityError> {
        let mut failed = Vec::new();
        let answer = timeout(CALL_TIMEOUT, self.first_answer(&mut failed)).await;
        if let Ok(Some(asked)) = answer {
            return Ok(asked);
        }
        if answer.is_err() {
            failed.push(format!("no answer within {} ms", CALL_TIMEOUT.as_millis()));
        }
        Err(AuthorityError(format!("authority {}: {}", self.address, failed.join("; "))))
    }

    /// Asks one endpoint after the other, without giving the earlier ones up, until one answers or
    /// all have failed.
    async fn first_answer(&self, failed: &mut Vec<String>) -> Option<Asked> {
        let endpoints = &self.address.endpoints;
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut places = (0..endpoints.len()).map(|at| (preferred + at) % endpoints.len());
        let mut asked = JoinSet::new();
        loop {
            let next = places.next();
            if let Some(place) = next {
                let (endpoint, key) = (Arc::from(&*endpoints[place]), self.address.key());
                asked.spawn(async move { (place, read_at(endpoint, key).await) });
            }
            let patience = if next.is_some() { PATIENCE } else { CALL_TIMEOUT };
            match timeout(patience, asked.join_next()).await {
                Ok(Some(Ok((place, Ok(answer))))) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return Some(answer);
                }
                Ok(Some(Ok((place, Err(error))))) => {
                    failed.push(format!("{}: {error}", endpoints[place]));
                }
                Ok(Some(Err(error))) => failed.push(error.to_string()),
                Ok(None) => return None,
                // Silent so far: another one is asked beside it.
                Err(_) => {}
            }
        }
    }

    /// The register that a response holds.
    fn versioned(&self, endpoint: &str, read: &GetResponse) -> Result<Versioned, AuthorityError> {
        let Some(row) = read.kvs().first() else {
            return Ok(Versioned { revision: Revision(0), register: None });
        };
        let wrong = |error: String| {
            let key = self.address.key();
            AuthorityError(format!("authority {SCHEME}{endpoint}: the value of {key}: {error}"))
        };
        let revision = u64::try_from(row.mod_revision())
            .map_err(|_| wrong(format!("it has revision {}", row.mod_revision())))?;
        let register = decode(row.value()).map_err(wrong)?;
        Ok(Versioned { revision: Revision(revision), register: Some(register) })
    }

    /// Sends the swap, once, and waits for its answer.
    async fn swap(
        &self,
        expected: Revision,
        value: Vec<u8>,
        asked: Asked,
    ) -> Result<Swap, AuthorityError> {
        let Asked { endpoint, mut client, .. } = asked;
        let wrong = |error: &str| AuthorityError(format!("authority {SCHEME}{endpoint}: {error}"));
        let key = self.address.key();
        let expected = i64::try_from(expected.0).map_err(|_| wrong("no such revision"))?;
        let get = || TxnOp::get(key.clone(), None);
        let swap = Txn::new()
            .when([Compare::mod_revision(key.clone(), CompareOp::Equal, expected)])
            .and_then([TxnOp::put(key.clone(), value, None), get()])
            .or_else([get()]);
        let answer = timeout(CALL_TIMEOUT, client.txn(swap)).await;
        let answer = answer
            .map_err(|_| wrong(&format!("no answer within {} ms", CALL_TIMEOUT.as_millis())))?
            .map_err(|error| wrong(&reason(error)))?;
        let Some(TxnOpResponse::Get(read)) = answer.op_responses().pop() else {
            return Err(wrong("the transaction was answered without its get"));
        };
        let now = self.versioned(&endpoint, &read)?;
        Ok(if answer.succeeded() { Swap::Swapped(now.revision) } else { Swap::Conflict(now) })
    }
}

impl Authority for EtcdClient {
    async fn read(&self) -> Result<Versioned, AuthorityError> {
        let Asked { endpoint, read, .. } = self.ask().await?;
        self.versioned(&endpoint, &read)
    }

    async fn compare_and_swap(&self, expected: Revision, value: Register) -> Swap {
        let value = encode(&value);
        if value.len() > VALUE_BYTES_MAX {
            return Swap::Unknown(AuthorityError(format!(
                "the register would be {} bytes long; at most {VALUE_BYTES_MAX} are allowed",
                value.len()
            )));
        }
        // What this reads does not matter: that it is answered does.
        let asked = match self.ask().await {
            Ok(asked) => asked,
            Err(error) => return Swap::Unknown(error),
        };
        self.swap(expected, value, asked).await.unwrap_or_else(Swap::Unknown)
    }

    /// Another revision than `after` is told at once, a lower one too: there the key was deleted.
    async fn watch(&self, after: Revision) -> Result<Versioned, AuthorityError> {
        let Asked { endpoint, client, read } = self.ask().await?;
        let now = self.versioned(&endpoint, &read)?;
        if now.revision != after {
            return Ok(now);
        }
        // From the first change of anything that the read did not see.
        let from = read.header().map_or(0, |header| header.revision() + 1);
        match timeout(WATCH_TIMEOUT, event(client, self.address.key(), from)).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::debug!("authority {SCHEME}{endpoint}: the watch ended: {error}");
                tokio::time::sleep(BROKEN_WATCH_REST).await;
            }
        }
        self.read().await
    }
}

/// Connects to `endpoint` and reads `key` through a quorum.
async fn read_at(endpoint: Arc<str>, key: String) -> Result<Asked, String> {
    // A member that knows no leader says so at once.
    let options =
        ConnectOptions::new().with_require_leader(true).with_connect_timeout(CALL_TIMEOUT);
    let client = Client::connect([&*endpoint], Some(options)).await;
    let mut client = client.map_err(reason)?;
    let read = client.get(key, None).await.map_err(reason)?;
    Ok(Asked { endpoint, client, read })
}

/// Waits for a change of `key` at revision `from` or later.
async fn event(mut client: Client, key: String, from: i64) -> Result<(), String> {
    let options = WatchOptions::new().with_start_revision(from);
    let watch = client.watch(key, Some(options)).await;
    let mut watch = watch.map_err(reason)?;
    loop {
        match watch.message().await {
            Ok(Some(message)) if message.canceled() => {
                return Err(format!("canceled: {:?}", message.cancel_reason()));
            }
            Ok(Some(message)) if message.events().is_empty() => {}
            Ok(Some(_)) => return Ok(()),
            Ok(None) => return Err("closed".to_owned()),
            Err(error) => return Err(reason(error)),
        }
    }
}

/// What a client's error says, down to its cause.
fn reason(error: etcd_client::Error) -> String {
    let etcd_client::Error::GRpcStatus(status) = error else { return error.to_string() };
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(&status);
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            let _ = write!(text, ": {told}");
        }
        cause = error.source();
    }
    text
}

/// The longest value: a register and its format.
const VALUE_BYTES_MAX: usize = REGISTER_BYTES_MAX + size_of::<u16>();

fn encode(register: &Register) -> Vec<u8> {
    let mut value = Vec::new();
    value.put_u16_le(FORMAT);
    value.extend(codec::encode(register));
    value
}

fn decode(value: &[u8]) -> Result<Register, String> {
    let Some((format, register)) = value.split_first_chunk() else {
        return Err(format!("{} bytes are no register", value.len()));
    };
    match u16::from_le_bytes(*format) {
        FORMAT => codec::decode::<_, VALUE_BYTES_MAX>(register).map_err(|error| error.to_string()),
        other => Err(format!("it has format {other}; this release knows {FORMAT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::tests::register;
    use super::*;

    /// An address names endpoints and a register; what is neither is refused with its reason.
    #[test]
    fn addresses_are_checked() {
        let parsed: EtcdAddress = "etcd://a:1,[::1]:2379,10.0.0.1:3".parse().expect("an address");
        assert_eq!(parsed.endpoints, ["a:1", "[::1]:2379", "10.0.0.1:3"]);
        assert_eq!(parsed.key(), "/onlyonce/default/view");
        let parsed: EtcdAddress = "etcd://a:1/my-cluster_2.x".parse().expect("an address");
        assert_eq!(parsed.key(), "/onlyonce/my-cluster_2.x/view");
        for (bad, reason) in [
            ("a:1", "etcd://"),
            ("etcd://", "HOST:PORT"),
            ("etcd://a:1,", "HOST:PORT"),
            ("etcd://a", "HOST:PORT"),
            ("etcd://a:1/", "the name \"\""),
            ("etcd://a:1/x/y", "the name \"x/y\""),
            ("etcd://a:1/ä", "the name \"ä\""),
        ] {
            let error = bad.parse::<EtcdAddress>().expect_err(bad);
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    /// A value that no release wrote, or another one did, is refused with what is wrong.
    #[test]
    fn a_foreign_value_is_refused() {
        let good = encode(&register(3));
        assert_eq!(decode(&good), Ok(register(3)));
        let mut other = good.clone();
        other[0] = 9;
        assert!(decode(&other).expect_err("another format").contains("format 9"));
        assert!(decode(b"x").expect_err("too short").contains("1 bytes are no register"));
        assert!(decode(&good[..good.len() - 1]).expect_err("cut").contains("Register"));
        assert!(
            decode(&[&good[..], b"x"].concat()).expect_err("longer").contains("1 bytes follow")
        );
    }
}
