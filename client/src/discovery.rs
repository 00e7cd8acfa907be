//! Where the nodes are, and what each says of itself. The authority is asked too: its register names the
//! view's members.

use std::time::Duration;

use bytes::BytesMut;
use onlyonce_wire::authority::{
    AuthorityAnswer, AuthorityCall, AuthorityReply, AuthorityRequest, Register,
};
use onlyonce_wire::client::{Answer, Request};
use onlyonce_wire::frame::{self, PREAMBLE_BYTES, Port};
use onlyonce_wire::limits::AUTHORITY_FRAME_BYTES_MAX;
use onlyonce_wire::status::NodeStatus;
use onlyonce_wire::{CallId, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Client;
use crate::connection::{Connection, NoReply};
use crate::errors::{ConnectError, Error, NoAnswer, NodeReports, answer_name};
use crate::progress::Progress;
use crate::retry::Stop;

impl Client {
    /// The addresses of the nodes that this client knows: those that it was given, those that the
    /// authority names (it is asked if there is one), and those that other nodes pointed to. An
    /// authority that does not answer matters only if no node is known.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::builder().authority("10.0.0.9:7300").build()?;
    /// println!("ONCE_NODES={}", client.nodes().await?.join(","));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoAnswer`]: no node is known, and the authority does not answer, or knows of no cluster
    /// yet. [`Error::Unusable`]: the authority is of another cluster, or no node is known and it is of
    /// another release.
    pub async fn nodes(&self) -> Result<Vec<String>, Error> {
        let mut progress = Progress::default();
        self.inner.cluster.discover(&mut progress).await.map_err(|stop| match stop {
            Stop::Refused(refusal) => Error::Refused(refusal),
            Stop::Unusable(why) | Stop::BadReply(why) => Error::Unusable(why),
            Stop::Unanswered | Stop::KeyExpired(_) => {
                unreachable!("only requests under way are given up")
            }
        })?;
        let addresses = self.inner.cluster.addresses();
        if addresses.is_empty() {
            let within = self.inner.cluster.options().attempt_timeout;
            let nodes = std::mem::take(&mut progress.reports);
            return Err(Error::NoAnswer(NoAnswer { within, nodes }));
        }
        Ok(addresses)
    }

    /// What the node at `address` says of itself: one attempt, over a connection of its own. The
    /// node need not be a primary, nor one that this client knows.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// for address in client.nodes().await? {
    ///     match client.status(&address).await {
    ///         Ok(node) => println!("{address}: {}, {} committed", node.role.as_str(), node.committed),
    ///         Err(error) => println!("{address}: {error}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoAnswer`]: it was not reached, or was silent, within an
    /// [attempt](crate::ClientBuilder::attempt_timeout). [`Error::Unusable`]: it is of another cluster
    /// than the one that was named, of another release, or no node. [`Error::BadReply`]: it answered
    /// something else.
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
}

/// Reads the register of the authority at `address`, within `limit`.
pub(crate) async fn read_register(
    address: &str,
    limit: Duration,
) -> Result<Register, ConnectError> {
    match tokio::time::timeout(limit, ask(address)).await {
        Ok(answer) => answer,
        Err(_) => Err(ConnectError::TimedOut(limit)),
    }
}

async fn ask(address: &str) -> Result<Register, ConnectError> {
    let call = AuthorityCall { call: CallId(1), request: AuthorityRequest::Read };
    let mut stream = TcpStream::connect(address).await?;
    let mut question = BytesMut::from(&frame::preamble(Port::Authority)[..]);
    frame::put_frame(&mut question, &codec::encode(&call));
    stream.write_all(&question).await?;

    let mut theirs = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut theirs).await?;
    frame::check_preamble(&theirs, Port::Authority).map_err(ConnectError::Foreign)?;
    let mut buffer = BytesMut::with_capacity(AUTHORITY_FRAME_BYTES_MAX);
    let payload = loop {
        let taken = frame::take_frame(&mut buffer, AUTHORITY_FRAME_BYTES_MAX);
        if let Some(payload) = taken.map_err(|error| broken(&error))? {
            break payload;
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(ConnectError::Mute);
        }
    };
    let reply: AuthorityReply =
        codec::decode::<_, AUTHORITY_FRAME_BYTES_MAX>(&payload).map_err(|error| broken(&error))?;
    match reply.answer {
        AuthorityAnswer::Now(now) => now
            .register
            .ok_or_else(|| ConnectError::Unreachable("knows of no cluster yet".to_owned())),
        AuthorityAnswer::Refused(text) => Err(ConnectError::Unreachable(text)),
        AuthorityAnswer::Swapped(_) | AuthorityAnswer::Conflict(_) => {
            Err(ConnectError::Broken("answers a read with the outcome of a change".to_owned()))
        }
    }
}

fn broken(error: &dyn std::error::Error) -> ConnectError {
    ConnectError::Broken(error.to_string())
}
