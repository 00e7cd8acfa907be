//! Errors, sorted by what the caller may conclude about its request.
//!
//! | variant | did the request take effect? | may it be sent again as a new one? |
//! |---|---|---|
//! | [`Error::Refused`] | no, and it never will | yes |
//! | [`Error::Failed`] | it was executed, found impossible, and changed nothing | yes |
//! | [`Error::NotSent`] | no: no copy of it is under way | yes |
//! | [`Error::Unusable`] | no: the nodes, the outbox or the clock of this client are not fit for it | after that is put right |
//! | [`Error::NoAnswer`] | it was a read, which changes nothing, or a question | yes |
//! | [`Error::Unresolved`] | **not known** | no: it could take effect twice |
//! | [`Error::Uncounted`] | **not known**, nor how often (best effort only) | if it does not matter how often, and in which order, it does |
//! | [`Error::BadReply`] | yes, but its result cannot be shown; a read or a question changed nothing | no |
//!
//! "It" is this call. Under a [key of the caller's](crate::Client::with_key) other calls may have run
//! before it: where this one is refused as `Forgotten`, that is not known, and to send it again under
//! another key could make it take effect twice.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use onlyonce_wire::client::{Answer, Failure, Outcome, Refusal};
use onlyonce_wire::limits::PROTOCOL_VERSION;
use onlyonce_wire::{ClusterId, frame::FrameError};

use crate::handle::Handle;
use crate::outbox::OutboxError;
use crate::session::Registration;

/// Why a call did not return a result.
///
/// ```
/// # use onlyonce_client::{Error, Failure};
/// /// Whether the request may be sent again as a new one.
/// fn is_over(error: &Error) -> bool {
///     match error {
///         Error::Refused(_) | Error::Failed(_) | Error::NotSent(_) | Error::Unusable(_) => true,
///         Error::NoAnswer(_) => true,   // it was a read, or a question
///         Error::BadReply(_) => false,  // it took effect
///         Error::Unresolved(_) => false, // resume it by its handle
///         Error::Uncounted(_) => false, // it may run once for each copy
///     }
/// }
/// assert!(is_over(&Error::Failed(Failure::Overflow)));
/// ```
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request never took effect and never will.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The request was executed, found impossible, and changed nothing.
    #[error("impossible: {0}; nothing was changed")]
    Failed(Failure),
    /// Whether the request took effect is not known (yet).
    #[error("{0}")]
    Unresolved(Unresolved),
    /// The request has no id, and some copies of it got no reply: it may have taken effect once for
    /// each of them, or may yet. Only with [`Semantics::BestEffort`](crate::Semantics::BestEffort).
    #[error("{0}")]
    Uncounted(Uncounted),
    /// The deadline passed and no copy of the request is under way: it never took effect.
    #[error("{0}")]
    NotSent(NotSent),
    /// The deadline of a read, or of a question about a request, passed. Asking again is harmless.
    #[error("{0}")]
    NoAnswer(NoAnswer),
    /// This client cannot be served as it is: its nodes are of another cluster or release, its outbox
    /// is full or cannot be written, or its clock is far behind. Nothing was done. Waiting will not
    /// help.
    #[error("{0}; nothing was done")]
    Unusable(String),
    /// The request was answered, but with something that this release does not understand.
    #[error("the request was answered, but its reply is not understood: {0}")]
    BadReply(String),
}

/// What one node was found to be, or said, when it was last asked.
///
/// ```
/// # use onlyonce_client::NodeReport;
/// # fn example(report: &NodeReport) {
/// // For people: the reasons are sentences, not for a program to compare.
/// eprintln!("node {}: {}", report.address, report.reason);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// The node's address, as it was given.
    pub address: Arc<str>,
    /// Why it did not serve.
    pub reason: String,
}

/// What each node that was asked had to say.
///
/// ```
/// # use onlyonce_client::{NodeReport, NodeReports};
/// let report = |address: &str, reason: &str| NodeReport {
///     address: address.into(),
///     reason: reason.to_owned(),
/// };
/// let reports = NodeReports(vec![report("n1:7400", "connection refused"), report("n2:7400", "silent")]);
/// assert_eq!(reports.to_string(), "n1:7400: connection refused; n2:7400: silent");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReports(pub Vec<NodeReport>);

impl NodeReports {
    /// Keeps the newest reason of each node.
    pub(crate) fn set(&mut self, address: &Arc<str>, reason: String) {
        match self.0.iter_mut().find(|report| report.address == *address) {
            Some(report) => report.reason = reason,
            None => self.0.push(NodeReport { address: Arc::clone(address), reason }),
        }
    }

    /// A reason that gives way to any other: an earlier finding says more.
    pub(crate) fn begin(&mut self, address: &Arc<str>, reason: &str) {
        if !self.0.iter().any(|report| report.address == *address) {
            self.set(address, reason.to_owned());
        }
    }

    /// Takes back a reason that [began](Self::begin), if nothing took its place.
    pub(crate) fn end(&mut self, address: &Arc<str>, reason: &str) {
        self.0.retain(|report| report.address != *address || report.reason != reason);
    }

    pub(crate) fn clear(&mut self, address: &Arc<str>) {
        self.0.retain(|report| report.address != *address);
    }

    /// The reports as sentences about nodes.
    pub(crate) fn sentences(&self) -> String {
        let sentence = |NodeReport { address, reason }: &NodeReport| match address.split_once(' ') {
            Some(("authority", _)) => format!("{address}: {reason}"),
            Some(_) | None => format!("node {address}: {reason}"),
        };
        self.0.iter().map(sentence).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for NodeReports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, NodeReport { address, reason }) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {reason}")?;
        }
        Ok(())
    }
}

/// A request of which no copy is under way: it never took effect.
///
/// ```
/// # use std::time::Duration;
/// # use onlyonce_client::{Error, NodeReports, NotSent};
/// let (within, nodes) = (Duration::from_secs(5), NodeReports::default());
/// let error = Error::NotSent(NotSent { within, delivered: false, waiting_for: None, nodes });
/// assert_eq!(error.to_string(), "no node could be reached within 5s; nothing was sent");
/// ```
#[derive(Clone, Debug)]
pub struct NotSent {
    /// How long it was tried.
    pub within: Duration,
    /// Whether a copy reached a node at all. Each that did was answered with "not done".
    pub delivered: bool,
    /// What was waited for before the request itself could be sent, if it was not just any node.
    pub waiting_for: Option<&'static str>,
    /// What each node said.
    pub nodes: NodeReports,
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { within, delivered, waiting_for, nodes } = self;
        match (waiting_for, delivered) {
            (Some(what), _) if nodes.0.is_empty() => {
                write!(f, "waited {within:?} for {what}; nothing was sent")
            }
            (Some(what), _) => {
                write!(f, "waited {within:?} for {what}: {nodes}; nothing was sent")
            }
            (None, true) => {
                write!(
                    f,
                    "no node took the request within {within:?}: {nodes}; it was not executed"
                )
            }
            (None, false) if nodes.0.is_empty() => {
                write!(f, "no node could be reached within {within:?}; nothing was sent")
            }
            (None, false) => {
                write!(f, "no node could be reached within {within:?}: {nodes}; nothing was sent")
            }
        }
    }
}

/// A read, or a question about a request, that got no answer in time.
///
/// ```no_run
/// # use onlyonce_client::{Client, Error};
/// # use onlyonce_client::NoAnswer;
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// // There is no handle to keep: a read has no effect that could happen twice.
/// let greeting = match client.get("greeting").await {
///     Err(Error::NoAnswer(NoAnswer { within, .. })) => return Err(format!("not in {within:?}").into()),
///     read => read?,
/// };
/// # let _ = greeting;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct NoAnswer {
    /// How long it was tried.
    pub within: Duration,
    /// What each node said.
    pub nodes: NodeReports,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { within, nodes } = self;
        write!(f, "no answer within {within:?}")?;
        if !nodes.0.is_empty() {
            write!(f, ": {nodes}")?;
        }
        f.write_str("; asking again is harmless")
    }
}

/// A request that may or may not have taken effect.
///
/// Its [`Handle`] names it for ever. As long as this value (or a clone of it) lives, the client
/// keeps the request's session alive, so that its fate stays answerable.
///
/// ```no_run
/// # use onlyonce_client::{Client, Error};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// match client.incr("balance", -30).await {
///     Ok(balance) => println!("{balance} left"),
///     // Another process can find out, even if this one dies.
///     Err(Error::Unresolved(open)) => std::fs::write("open-payment", open.handle().to_string())?,
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Unresolved(Arc<UnresolvedParts>);

struct UnresolvedParts {
    handle: Handle,
    reason: UnresolvedReason,
    nodes: NodeReports,
    /// Held so that the session is kept alive.
    _registration: Option<Arc<Registration>>,
}

/// Why a request is unresolved.
///
/// ```
/// # use onlyonce_client::{Refusal, UnresolvedReason};
/// /// Whether resuming it later, by the same handle, can bring its result.
/// fn is_worth_resuming(reason: &UnresolvedReason) -> bool {
///     match reason {
///         UnresolvedReason::Deadline(_) => true,
///         UnresolvedReason::BadReply(_) => true, // by a client of the nodes' release
///         UnresolvedReason::Unusable(_) => true, // with the right nodes
///         UnresolvedReason::NoContent => true,   // with `resume_with`
///         UnresolvedReason::Unanswered => true,  // one more copy has the same id
///         UnresolvedReason::Refused(_) => false, // its id is void
///         UnresolvedReason::KeyExpired(_) => false, // it could run a second time
///     }
/// }
/// assert!(!is_worth_resuming(&UnresolvedReason::Refused(Refusal::SessionExpired)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnresolvedReason {
    /// The deadline passed.
    Deadline(Duration),
    /// A node refused a repetition, which says nothing about an earlier copy.
    Refused(Refusal),
    /// A node gave an answer that does not fit the question.
    BadReply(String),
    /// This client cannot go on with it: none of its nodes can serve it, or its outbox failed; the
    /// text says which.
    Unusable(String),
    /// The handle does not carry the request's content, which was too long for it: nothing was
    /// sent. [`Client::resume_with`](crate::Client::resume_with) takes it.
    NoContent,
    /// It was sent as often as the client's [`Semantics`](crate::Semantics) allow.
    Unanswered,
    /// Its *named* key is remembered for this long, and a copy without a reply is about as old: the
    /// cluster may have forgotten that it ran, and take another copy for a new request. So none is
    /// sent. A [resume](crate::Client::resume) by this handle sends none either; but one by its text
    /// would, as that does not tell how old the request is.
    KeyExpired(Duration),
}

impl fmt::Display for UnresolvedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline(within) => write!(f, "no answer within {within:?}"),
            Self::Refused(refusal) => write!(f, "asked again: {refusal}"),
            Self::BadReply(text) => write!(f, "a node answered {text}"),
            Self::Unusable(why) => write!(f, "this client cannot go on with it: {why}"),
            Self::NoContent => f.write_str(
                "its content was too long for the handle and has to be given again; nothing was sent",
            ),
            Self::Unanswered => f.write_str("no reply, and it is not sent again"),
            Self::KeyExpired(retention) => write!(
                f,
                "no reply for about as long as its named key is remembered ({retention:?}): sent again, \
                 it could run a second time"
            ),
        }
    }
}

impl Unresolved {
    pub(crate) fn new(
        handle: Handle,
        reason: UnresolvedReason,
        nodes: NodeReports,
        registration: Option<Arc<Registration>>,
    ) -> Self {
        Self(Arc::new(UnresolvedParts { handle, reason, nodes, _registration: registration }))
    }

    /// The request's name.
    ///
    /// ```
    /// # use onlyonce_client::{Client, Error, Handle};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = Client::builder().nodes(["10.0.0.1:7400"]).build()?;
    /// // This handle is without the content, so a resume is unresolved before anything is sent.
    /// let handle: Handle = "once1-00n0207vxqzfrrk00404thg1zv08wtb4akvpsz5vb5crmxs8vxyrw6mw8r".parse()?;
    /// let Err(Error::Unresolved(open)) = client.resume(&handle).await else { unreachable!() };
    /// assert_eq!(open.handle(), &handle);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// Why the client stopped asking.
    ///
    /// ```
    /// # use onlyonce_client::{Client, Error, Handle, UnresolvedReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = Client::builder().nodes(["10.0.0.1:7400"]).build()?;
    /// let handle: Handle = "once1-00n0207vxqzfrrk00404thg1zv08wtb4akvpsz5vb5crmxs8vxyrw6mw8r".parse()?;
    /// let Err(Error::Unresolved(open)) = client.resume(&handle).await else { unreachable!() };
    /// assert_eq!(open.reason(), &UnresolvedReason::NoContent);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn reason(&self) -> &UnresolvedReason {
        &self.0.reason
    }

    /// What each node said last.
    ///
    /// ```no_run
    /// # use onlyonce_client::{Client, Error};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// if let Err(Error::Unresolved(open)) = client.put("greeting", "hello").await {
    ///     for node in &open.nodes().0 {
    ///         eprintln!("{}: {}", node.address, node.reason);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn nodes(&self) -> &NodeReports {
        &self.0.nodes
    }
}

impl fmt::Debug for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unresolved")
            .field("handle", &self.0.handle)
            .field("reason", &self.0.reason)
            .field("nodes", &self.0.nodes)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnresolvedParts { handle, reason, nodes, .. } = &*self.0;
        write!(
            f,
            "unresolved: the request may or may not have taken effect, do not send it again as a new \
             one; {reason}"
        )?;
        if !nodes.0.is_empty() {
            write!(f, " ({nodes})")?;
        }
        write!(f, "; handle {handle}")
    }
}

/// A request without an id, of which some copies got no reply.
///
/// ```
/// # use onlyonce_client::{NodeReports, Uncounted, UnresolvedReason};
/// # let nodes = NodeReports::default();
/// let four = Uncounted { copies: 4, reason: UnresolvedReason::Unanswered, nodes };
/// // There is no handle, and nobody to ask: only the data can tell, if anything can.
/// assert!(four.to_string().starts_with("uncounted: 4 copies of a request without an id"));
/// ```
#[derive(Clone, Debug)]
pub struct Uncounted {
    /// The most often that it can have taken effect, now or later.
    pub copies: u32,
    /// Why the client stopped asking.
    pub reason: UnresolvedReason,
    /// What each node said last.
    pub nodes: NodeReports,
}

impl fmt::Display for Uncounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copies, reason, nodes } = self;
        let plural = if *copies == 1 { "y" } else { "ies" };
        write!(
            f,
            "uncounted: {copies} cop{plural} of a request without an id got no reply; each may have \
             taken effect, or may yet; {reason}"
        )?;
        if nodes.0.is_empty() { Ok(()) } else { write!(f, " ({nodes})") }
    }
}

/// A client that cannot be built.
///
/// ```
/// # use onlyonce_client::Client;
/// let error = Client::builder().nodes(["localhost:0"]).build().expect_err("no port");
/// assert_eq!(
///     error.to_string(),
///     "\"localhost:0\" is not an address: HOST:PORT is needed, as in 127.0.0.1:7400"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Neither nodes nor an authority.
    #[error("no nodes and no authority were given: name at least one, as HOST:PORT")]
    NoNodes,
    /// Not an address.
    #[error("{address:?} is not an address: HOST:PORT is needed, as in 127.0.0.1:7400")]
    Address {
        /// What was given.
        address: String,
    },
    /// An authority that this client cannot ask.
    #[error("{address:?}: this client asks embedded authorities only; name the nodes instead")]
    Authority {
        /// What was given.
        address: String,
    },
    /// An outbox that cannot be used.
    #[error("outbox {}: {error}", path.display())]
    Outbox {
        /// Its path.
        path: std::path::PathBuf,
        /// What is the matter with it.
        error: OutboxError,
    },
    /// An outbox, with semantics that never take a request up again.
    #[error("an outbox is for exactly once: it sends again what another client had sent")]
    OutboxSemantics,
}

/// Why a connection did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Unreachable(String),
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    #[error("closed the connection before it said anything")]
    Mute,
    #[error(
        "speaks protocol version {theirs}, this client {PROTOCOL_VERSION}: run the same release of Onlyonce on both{}",
        said.as_ref().map_or(String::new(), |text| format!(" (it says: {text})"))
    )]
    Version { theirs: u16, said: Option<String> },
    #[error("{0}")]
    Foreign(FrameError),
    #[error("broke the protocol: {0}")]
    Broken(String),
    #[error(
        "belongs to {}, this client to cluster {wanted}: check the addresses",
        theirs.map_or("no cluster yet".to_owned(), |id| format!("cluster {id}"))
    )]
    OtherCluster { theirs: Option<ClusterId>, wanted: ClusterId },
    #[error("has joined no cluster yet, and the outbox's requests are for a cluster")]
    NoCluster,
    #[error("is shutting down")]
    ShuttingDown,
    #[error("has {limit} connections already, as many as it takes")]
    TooManyConnections { limit: usize },
}

impl ConnectError {
    /// Whether waiting cannot help: somebody has to change an address or a release first.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Version { .. }
            | Self::Foreign(_)
            | Self::OtherCluster { theirs: Some(_), .. } => true,
            Self::Unreachable(_)
            | Self::TimedOut(_)
            | Self::Mute
            | Self::Broken(_)
            | Self::OtherCluster { theirs: None, .. }
            | Self::NoCluster
            | Self::ShuttingDown
            | Self::TooManyConnections { .. } => false,
        }
    }
}

impl From<std::io::Error> for ConnectError {
    fn from(error: std::io::Error) -> Self {
        Self::Unreachable(describe(&error))
    }
}

/// An answer that nobody asked for, in the words that a user knows.
pub(crate) fn answer_name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Opened { .. } => "that a session is open",
        Answer::Closed => "that a session is closed",
        Answer::Alive => "that a session is alive",
        Answer::Executed { .. } => "that an operation was executed",
        Answer::Read(outcome) => outcome_name(outcome),
        Answer::Fate { .. } => "what became of a request",
        Answer::Sessions { .. } | Answer::Session(_) => "which sessions are open",
        Answer::Status(_) => "its status",
        Answer::Backup(_) => "a piece of a backup",
        Answer::Refused(_) => "a refusal",
        Answer::NotPrimary { .. } => "that it is not the primary",
        Answer::AskAgain => "that it cannot say",
    }
}

/// A result that does not fit the operation, in the words that a user knows.
pub(crate) fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "just done",
        Outcome::Value(_) => "a value",
        Outcome::Length(_) => "a length",
        Outcome::Integer(_) => "an integer",
        Outcome::Deleted(_) => "whether a key was deleted",
        Outcome::Compared { .. } => "what a comparison came to",
        Outcome::Rows { .. } => "rows",
        Outcome::Txn(_) => "what a transaction came to",
        Outcome::Failed(_) => "that it was impossible",
    }
}

/// An I/O error in the words that a user knows.
pub(crate) fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        std::io::ErrorKind::UnexpectedEof => "connection closed".to_owned(),
        _ => error.to_string(),
    }
}
