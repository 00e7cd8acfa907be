//! Where the cluster is: what the client knows of that, and the authority, whose register names the
//! view's members.

use std::time::Duration;

use bytes::BytesMut;
use onlyonce_wire::authority::{
    AuthorityAnswer, AuthorityCall, AuthorityReply, AuthorityRequest, Register,
};
use onlyonce_wire::frame::{self, PREAMBLE_BYTES, Port};
use onlyonce_wire::limits::AUTHORITY_FRAME_BYTES_MAX;
use onlyonce_wire::{CallId, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::errors::{ConnectError, Error, NoAnswer};
use crate::execute::Inner;
use crate::progress::Progress;
use crate::retry::Stop;

impl Inner {
    /// The nodes' addresses; an authority that does not answer matters only if no node is known.
    pub(crate) async fn nodes(&self) -> Result<Vec<String>, Error> {
        let mut progress = Progress::default();
        self.cluster.discover(&mut progress).await.map_err(|stop| match stop {
            Stop::Refused(refusal) => Error::Refused(refusal),
            Stop::Unusable(why) | Stop::BadReply(why) => Error::Unusable(why),
            Stop::Unanswered | Stop::KeyExpired(_) => {
                unreachable!("only requests under way are given up")
            }
        })?;
        let addresses = self.cluster.addresses();
        if addresses.is_empty() {
            let within = self.cluster.options().attempt_timeout;
            let nodes = std::mem::take(&mut progress.reports);
            return Err(Error::NoAnswer(NoAnswer { within, nodes }));
        }
        Ok(addresses)
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
