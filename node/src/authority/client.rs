//! Asks the embedded authority. Every call has a connection of its own, so that no late answer can
//! be taken for another's and nothing below repeats a call.

use std::time::Duration;

use bytes::BytesMut;
use onlyonce_wire::CallId;
use onlyonce_wire::authority::{
    AuthorityAnswer, AuthorityCall, AuthorityReply, AuthorityRequest, Register, Revision, Versioned,
};
use onlyonce_wire::codec;
use onlyonce_wire::frame::{Port, preamble, put_frame};
use onlyonce_wire::limits::AUTHORITY_FRAME_BYTES_MAX;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::server::WATCH_TIMEOUT;
use super::{Authority, AuthorityError, Swap};
use crate::frames::FrameReader;

/// How long a call may take, from connecting to its answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The embedded authority at an address.
#[derive(Debug)]
pub struct EmbeddedClient {
    address: String,
}

impl EmbeddedClient {
    /// Of the authority at `address` (host:port).
    #[must_use]
    pub fn new(address: String) -> Self {
        Self { address }
    }

    /// Sends `request` once and waits for its answer.
    async fn call(
        &self,
        request: AuthorityRequest,
        limit: Duration,
    ) -> Result<AuthorityAnswer, AuthorityError> {
        let answer = match timeout(limit, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        };
        answer.map_err(|error| AuthorityError(format!("authority {}: {error}", self.address)))
    }

    async fn exchange(&self, request: AuthorityRequest) -> Result<AuthorityAnswer, String> {
        let stream = TcpStream::connect(&self.address).await;
        let mut stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let call = CallId(1);
        let mut bytes = BytesMut::from(&preamble(Port::Authority)[..]);
        put_frame(&mut bytes, &codec::encode(&AuthorityCall { call, request }));
        let (read, mut write) = stream.split();
        write.write_all(&bytes).await.map_err(|error| error.to_string())?;
        let mut reader = FrameReader::new(read, AUTHORITY_FRAME_BYTES_MAX);
        reader.preamble(Port::Authority).await.map_err(|error| error.to_string())?;
        let payload = reader.frame().await.map_err(|error| error.to_string())?;
        let payload = payload.ok_or("it closed the connection without an answer")?;
        let reply = codec::decode::<AuthorityReply, AUTHORITY_FRAME_BYTES_MAX>(&payload);
        match reply.map_err(|error| error.to_string())? {
            reply if reply.call == call => Ok(reply.answer),
            AuthorityReply { answer: AuthorityAnswer::Refused(text), .. } => Err(text),
            other => Err(format!("it answered call {} instead of {}", other.call.0, call.0)),
        }
    }

    fn now(answer: AuthorityAnswer) -> Result<Versioned, AuthorityError> {
        match answer {
            AuthorityAnswer::Now(now) => Ok(now),
            AuthorityAnswer::Refused(text) => Err(AuthorityError(text)),
            AuthorityAnswer::Swapped(_) | AuthorityAnswer::Conflict(_) => {
                Err(AuthorityError("the authority answered a read as a swap".to_owned()))
            }
        }
    }
}

impl Authority for EmbeddedClient {
    async fn read(&self) -> Result<Versioned, AuthorityError> {
        Self::now(self.call(AuthorityRequest::Read, CALL_TIMEOUT).await?)
    }

    async fn compare_and_swap(&self, expected: Revision, value: Register) -> Swap {
        let request = AuthorityRequest::CompareAndSwap { expected, value };
        match self.call(request, CALL_TIMEOUT).await {
            Ok(AuthorityAnswer::Swapped(revision)) => Swap::Swapped(revision),
            Ok(AuthorityAnswer::Conflict(now)) => Swap::Conflict(now),
            Ok(AuthorityAnswer::Refused(text)) => Swap::Unknown(AuthorityError(text)),
            Ok(AuthorityAnswer::Now(_)) => {
                Swap::Unknown(AuthorityError("the authority answered a swap as a read".to_owned()))
            }
            Err(error) => Swap::Unknown(error),
        }
    }

    async fn watch(&self, after: Revision) -> Result<Versioned, AuthorityError> {
        let request = AuthorityRequest::Watch { after };
        Self::now(self.call(request, WATCH_TIMEOUT + CALL_TIMEOUT).await?)
    }
}
