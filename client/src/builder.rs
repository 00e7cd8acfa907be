//! What a client can be told before it begins.

use std::path::PathBuf;
use std::time::Duration;

use onlyonce_wire::ClusterId;
use onlyonce_wire::limits::NAME_BYTES_MAX;

use crate::errors::BuildError;
use crate::outbox::Outbox;
use crate::{Client, Semantics};

/// How long one attempt may take before the request is sent again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of a [`Client`]; made by [`Client::builder`].
///
/// ```
/// # use onlyonce_client::Client;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = Client::builder().nodes(["10.0.0.1:7400", "10.0.0.2:7400"]);
/// // Each client has a session of its own, with up to 1,024 requests under way.
/// let clients = [options.clone().build()?, options.build()?];
/// # let _ = clients;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    options: Options,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) nodes: Vec<String>,
    pub(crate) authority: Option<String>,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) attempt_timeout: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) one_shot: bool,
    pub(crate) outbox: Option<PathBuf>,
    pub(crate) semantics: Semantics,
    pub(crate) one_outstanding: bool,
}

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        Self {
            options: Options {
                nodes: Vec::new(),
                authority: None,
                cluster: None,
                attempt_timeout: ATTEMPT_TIMEOUT,
                deadline: None,
                one_shot: false,
                outbox: None,
                semantics: Semantics::default(),
                one_outstanding: false,
            },
        }
    }

    /// Addresses of nodes (`HOST:PORT`) to begin with. Any of them leads to the primary.
    ///
    /// ```
    /// # use onlyonce_client::{BuildError, Client};
    /// let nodes = vec!["n1:7400".to_owned(), "n2:7400".to_owned()];
    /// assert!(Client::builder().nodes(nodes).nodes(["[::1]:7400"]).build().is_ok());
    /// // A port is needed: there is none by default.
    /// let bad = Client::builder().nodes(["localhost"]).build();
    /// assert_eq!(bad.err(), Some(BuildError::Address { address: "localhost".to_owned() }));
    /// ```
    pub fn nodes<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.options.nodes.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// The address of the cluster's authority, which knows the nodes. May be given beside
    /// [`nodes`](Self::nodes), and is asked again whenever no node serves.
    ///
    /// ```
    /// # use onlyonce_client::{BuildError, Client};
    /// assert!(Client::builder().authority("10.0.0.9:7300").build().is_ok());
    /// // A cluster whose authority is etcd is reached by its nodes.
    /// let etcd = Client::builder().authority("etcd://10.0.0.9:2379").build();
    /// assert!(matches!(etcd, Err(BuildError::Authority { .. })));
    /// ```
    pub fn authority(mut self, address: impl Into<String>) -> Self {
        self.options.authority = Some(address.into());
        self
    }

    /// The cluster that is meant. Nodes of another one are refused; without this, the first node
    /// that answers settles which cluster it is.
    ///
    /// ```
    /// # use onlyonce_client::Client;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // As `once status --json` shows it. A test cluster at a reused address is then never written to.
    /// let cluster = "00c0ffee00c0ffee00c0ffee00c0ffee".parse()?;
    /// let client = Client::builder().nodes(["10.0.0.1:7400"]).cluster(cluster).build()?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cluster(mut self, cluster: ClusterId) -> Self {
        self.options.cluster = Some(cluster);
        self
    }

    /// How long to wait for an answer before the request is sent again (default: 2 s). This
    /// bounds an attempt, not the call.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use onlyonce_client::Client;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Asked again after 200 ms without a reply: more copies, and still one effect.
    /// let client = Client::builder()
    ///     .nodes(["10.0.0.1:7400"])
    ///     .attempt_timeout(Duration::from_millis(200))
    ///     .build()?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.options.attempt_timeout = limit.max(Duration::from_millis(1));
        self
    }

    /// How long a call may take (default: none, it goes on until it knows). When time is up, a
    /// request that may have been sent becomes [`Error::Unresolved`](crate::Error::Unresolved).
    ///
    /// With an [outbox](Self::outbox) the end of a call may wait for the disk beyond it: that a request
    /// was never sent is told once the file durably has it no more.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use onlyonce_client::Client;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let patient = Client::builder().nodes(["10.0.0.1:7400"]).deadline(None);
    /// let hasty = patient.clone().deadline(Duration::from_secs(5));
    /// # let _ = (patient.build()?, hasty.build()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn deadline(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.options.deadline = limit.into();
        self
    }

    /// For a program that sends one request and ends: each request goes under a fresh random key
    /// rather than in a session, which saves opening and closing one. Many requests are cheaper in a
    /// session: the cluster remembers a key for long, but a session's replies only until the next
    /// request.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let once = Client::builder().nodes(["10.0.0.1:7400"]).one_shot().build()?;
    /// once.incr("starts", 1).await?; // a single commit; there is no session to close
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    pub fn one_shot(mut self) -> Self {
        self.options.one_shot = true;
        self
    }

    /// Keeps requests in the file at `path` while they are under way, durably before they are first
    /// sent, so that they survive the death of this process: a client that is started again with the
    /// same outbox carries them out ([`Client::recover`]), each exactly once.
    ///
    /// Each request goes under a key of its own, as with [`one_shot`](Self::one_shot), so a client
    /// may be away for as long as the cluster remembers keys (24 hours unless configured otherwise).
    /// Requests that are given up stay in it until they are recovered. Of those that end as
    /// [`Error::Unresolved`](crate::Error::Unresolved) all stay but for one reason: after
    /// [`Refused`](crate::UnresolvedReason::Refused) the file has it no more: keep the handle. It has room for 100,000 requests
    /// whose end is not known, with 64 MiB of operations, and refuses to take, and to send, any more.
    /// A key of the caller's must be a [timed](crate::fresh_key) one: a named key that is forgotten
    /// is like a new one, and its request would run again.
    /// One client at a time may use an outbox.
    ///
    /// ```
    /// # use onlyonce_client::{BuildError, Client, OutboxError};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let folder = tempfile::tempdir()?;
    /// let options =
    ///     Client::builder().nodes(["10.0.0.1:7400"]).outbox(folder.path().join("payments.outbox"));
    /// let client = options.clone().build()?;
    /// client.recover().await; // before anything else: what an earlier run left
    /// // It is this client's until its last clone is dropped.
    /// assert!(matches!(options.build(), Err(BuildError::Outbox { error: OutboxError::InUse, .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn outbox(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.outbox = Some(path.into());
        self
    }

    /// What to do about a reply that does not come (default: [`Semantics::ExactlyOnce`]).
    ///
    /// ```
    /// # use onlyonce_client::{BuildError, Client, Semantics};
    /// let weak = Client::builder().nodes(["10.0.0.1:7400"]).semantics(Semantics::BestEffort);
    /// assert!(weak.clone().build().is_ok());
    /// // An outbox would repeat what such a client must not.
    /// assert_eq!(weak.outbox("never-made").build().err(), Some(BuildError::OutboxSemantics));
    /// ```
    pub fn semantics(mut self, semantics: Semantics) -> Self {
        self.options.semantics = semantics;
        self
    }

    /// One request at a time in a session: the others wait for it. This is the simplest rule by which
    /// a server can forget: each request tells that the replies to all before it were seen. Without
    /// this, many are outstanding, and each tells below which all replies were seen.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::builder().nodes(["10.0.0.1:7400"]).one_outstanding().build()?;
    /// // The second leaves when the first is answered: two round trips, one after the other.
    /// let (one, two) = tokio::join!(client.incr("n", 1), client.incr("n", 1));
    /// # let _ = (one?, two?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn one_outstanding(mut self) -> Self {
        self.options.one_outstanding = true;
        self
    }

    /// The client. Nothing is connected before the first call.
    ///
    /// ```
    /// # use onlyonce_client::{BuildError, Client};
    /// assert_eq!(Client::builder().build().err(), Some(BuildError::NoNodes));
    /// // Whether somebody is there shows at the first call.
    /// assert!(Client::builder().nodes(["nobody.invalid:7400"]).build().is_ok());
    /// ```
    ///
    /// # Errors
    /// When it has nobody to ask, when an address is none, or when the outbox cannot be used: [`BuildError`]
    /// says what to do.
    pub fn build(mut self) -> Result<Client, BuildError> {
        let Options { nodes, authority, .. } = &mut self.options;
        if nodes.is_empty() && authority.is_none() {
            return Err(BuildError::NoNodes);
        }
        let mut seen = Vec::new();
        for address in nodes.drain(..) {
            check(&address)?;
            if !seen.contains(&address) {
                seen.push(address);
            }
        }
        *nodes = seen;
        if let Some(address) = authority {
            if address.contains("://") {
                return Err(BuildError::Authority { address: address.clone() });
            }
            check(address)?;
        }
        let mut outbox = None;
        if let Some(path) = &self.options.outbox {
            if self.options.semantics != Semantics::ExactlyOnce {
                return Err(BuildError::OutboxSemantics);
            }
            let opened = Outbox::open(path, self.options.cluster)
                .map_err(|error| BuildError::Outbox { path: path.clone(), error })?;
            self.options.cluster = self.options.cluster.or(opened.cluster());
            outbox = Some(opened);
        }
        Ok(Client::new(self.options, outbox))
    }
}

fn check(address: &str) -> Result<(), BuildError> {
    let is_address = address.len() <= NAME_BYTES_MAX
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    if is_address { Ok(()) } else { Err(BuildError::Address { address: address.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is no address is refused before anything is connected.
    #[test]
    fn addresses_are_checked() {
        for bad in ["", ":7400", "localhost:", "localhost:http"] {
            let built = ClientBuilder::new().nodes([bad]).build();
            assert_eq!(built.err(), Some(BuildError::Address { address: bad.to_owned() }));
        }
    }

    /// Whoever sends a request once must not find it in an outbox.
    #[test]
    fn an_outbox_is_for_exactly_once() {
        let outbox = ClientBuilder::new().nodes(["n1:7400"]).outbox("never-made.outbox");
        let weak = outbox.semantics(Semantics::AtMostOnce).build();
        assert_eq!(weak.err(), Some(BuildError::OutboxSemantics));
    }
}
