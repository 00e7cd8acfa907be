//! Whole frames from a socket: the bounded reading half of every connection.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use onlyonce_wire::frame::{FrameError, PREAMBLE_BYTES, Port, check_preamble, take_frame};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Room for one read; most requests are far smaller.
const READ_BYTES: usize = 16 << 10;
/// How long, and how much, is read from a side that was told goodbye. Closing a socket with unread
/// bytes would reset the connection and could take the goodbye with it.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 4 << 20;

/// Why no more frames come.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The other side closed within a preamble or a frame.
    #[error("the connection was closed in the middle of a message")]
    Torn,
    /// The other side closed before it said anything.
    #[error("the connection was closed before it began")]
    Silent,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no frames: worth a goodbye.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads frames of at most `limit` bytes.
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R, limit: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), limit }
    }

    /// Reads and checks the other side's preamble.
    pub async fn preamble(&mut self, port: Port) -> Result<(), ReadError> {
        while self.buffer.len() < PREAMBLE_BYTES {
            if self.fill().await? > 0 {
                continue;
            }
            if self.buffer.is_empty() {
                return Err(ReadError::Silent);
            }
            // Short of a preamble; what is there may still tell what it is not.
            let mut bytes = [0; PREAMBLE_BYTES];
            bytes[..self.buffer.len()].copy_from_slice(&self.buffer);
            check_preamble(&bytes, port)?;
            return Err(ReadError::Torn);
        }
        let bytes = self.buffer.split_to(PREAMBLE_BYTES);
        let bytes: &[u8; PREAMBLE_BYTES] = bytes.first_chunk().expect("a preamble's length");
        Ok(check_preamble(bytes, port)?)
    }

    /// The next frame's payload, if all of it was read before.
    pub fn buffered(&mut self) -> Result<Option<Bytes>, FrameError> {
        take_frame(&mut self.buffer, self.limit)
    }

    /// The next frame's payload; none when the other side closed after a whole frame.
    ///
    /// Cancel safe: bytes that were read stay in the buffer.
    pub async fn frame(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(payload) = take_frame(&mut self.buffer, self.limit)? {
                return Ok(Some(payload));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Torn) };
            }
        }
    }

    /// Reads and drops what the other side still sends, for a moment.
    pub async fn linger(&mut self) {
        let discard = async {
            let mut left = LINGER_BYTES;
            loop {
                self.buffer.clear();
                match self.fill().await {
                    Ok(bytes) if 0 < bytes && bytes < left => left -= bytes,
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, discard).await;
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.buffer).await
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_wire::frame::{preamble, put_frame};
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A preamble and frames come out whole, then the end; a cut frame is torn.
    #[tokio::test]
    async fn frames_come_out_whole() {
        let (mut near, far) = tokio::io::duplex(8);
        let mut bytes = BytesMut::from(&preamble(Port::Peer)[..]);
        put_frame(&mut bytes, b"one");
        put_frame(&mut bytes, b"");
        bytes.extend_from_slice(&[9, 0]);
        tokio::spawn(async move { near.write_all(&bytes).await });
        let mut reader = FrameReader::new(far, 16);
        reader.preamble(Port::Peer).await.expect("a preamble");
        assert_eq!(reader.frame().await.expect("one").as_deref(), Some(&b"one"[..]));
        assert_eq!(reader.frame().await.expect("empty").as_deref(), Some(&b""[..]));
        assert!(matches!(reader.frame().await, Err(ReadError::Torn)));
    }

    /// Even the start of another protocol is told apart from a cut connection.
    #[tokio::test]
    async fn short_garbage_is_named() {
        let mut reader = FrameReader::new(&b"GET /\r\n"[..], 16);
        let error = reader.preamble(Port::Client).await.expect_err("no preamble");
        assert!(matches!(error, ReadError::Frame(FrameError::NotOnlyonce(_))), "{error}");
        let mut reader = FrameReader::new(&b""[..], 16);
        assert!(matches!(reader.preamble(Port::Client).await, Err(ReadError::Silent)));
    }
}
