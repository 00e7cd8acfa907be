//! The lowest rung: a preamble that names the protocol, then length-prefixed, checksummed frames.
//!
//! ```text
//! preamble   "onlyonce" (8) │ version u16 │ port kind u8 │ 0 (5)          16 bytes, both ways
//! frame      length u32 │ crc32 of the payload u32 │ payload              length of the payload
//! ```
//! Numbers are little-endian. A length is checked against the limit of its port before a byte is
//! allocated for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::PROTOCOL_VERSION;

/// Length of the preamble, in bytes.
pub const PREAMBLE_BYTES: usize = 16;
/// Length of a frame's header, in bytes.
pub const FRAME_HEADER_BYTES: usize = 8;

const MAGIC: [u8; 8] = *b"onlyonce";

/// Which kind of listener a connection is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Port {
    /// Clients to a node (`--listen`).
    Client = 1,
    /// Nodes among each other (`--peer`).
    Peer = 2,
    /// Nodes and clients to the authority.
    Authority = 3,
}

impl Port {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Client),
            2 => Some(Self::Peer),
            3 => Some(Self::Authority),
            _ => None,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Client => "the client port of a node (--listen)",
            Self::Peer => "the peer port of a node (--peer)",
            Self::Authority => "an authority",
        }
    }
}

/// Why a connection cannot go on. The text names what was met and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not those of an Onlyonce connection.
    #[error("not an Onlyonce connection (it began with \"{}\"): check the address and port", .0.escape_ascii())]
    NotOnlyonce([u8; 8]),
    /// The other side speaks another protocol version.
    #[error(
        "the other side speaks protocol version {theirs}, this one {PROTOCOL_VERSION}: run the same release of Onlyonce on both"
    )]
    Version {
        /// The version it offered.
        theirs: u16,
    },
    /// A connection to the wrong port.
    #[error("expected to talk to {}, but this is {}: check the port", .wanted.describe(), .found.map_or("unknown to this version", Port::describe))]
    WrongPort {
        /// The port that was wanted.
        wanted: Port,
        /// What the other side says it is, where this version knows it.
        found: Option<Port>,
    },
    /// A frame longer than its port allows.
    #[error(
        "a frame of {bytes} bytes is over this port's limit of {limit}: nothing of it was executed"
    )]
    TooLong {
        /// The length that its header claims.
        bytes: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// The payload does not match its checksum.
    #[error(
        "a frame of {bytes} bytes arrived damaged (checksum mismatch): nothing of it was executed"
    )]
    Damaged {
        /// The payload's length.
        bytes: usize,
    },
}

/// The bytes that open a connection meant for `port`.
#[must_use]
pub fn preamble(port: Port) -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    bytes[10] = port as u8;
    bytes
}

/// Checks the other side's preamble on a connection meant for `wanted`.
pub fn check_preamble(bytes: &[u8; PREAMBLE_BYTES], wanted: Port) -> Result<(), FrameError> {
    let mut magic = [0; 8];
    magic.copy_from_slice(&bytes[..8]);
    if magic != MAGIC {
        return Err(FrameError::NotOnlyonce(magic));
    }
    let theirs = u16::from_le_bytes([bytes[8], bytes[9]]);
    if theirs != PROTOCOL_VERSION {
        return Err(FrameError::Version { theirs });
    }
    match Port::from_byte(bytes[10]) {
        Some(found) if found == wanted => Ok(()),
        found => Err(FrameError::WrongPort { wanted, found }),
    }
}

/// Appends one frame with `payload` to `buffer`.
///
/// # Panics
/// If the payload is longer than `u32::MAX`; senders keep far smaller limits.
pub fn put_frame(buffer: &mut BytesMut, payload: &[u8]) {
    put_frame_parts(buffer, &[payload]);
}

/// Appends one frame whose payload is `parts`, one after the other.
///
/// # Panics
/// If the payload is longer than `u32::MAX`; senders keep far smaller limits.
pub fn put_frame_parts(buffer: &mut BytesMut, parts: &[&[u8]]) {
    let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
    let length = u32::try_from(bytes).expect("senders keep their port's limit");
    let mut checksum = crc32fast::Hasher::new();
    for part in parts {
        checksum.update(part);
    }
    buffer.reserve(FRAME_HEADER_BYTES + bytes);
    buffer.put_u32_le(length);
    buffer.put_u32_le(checksum.finalize());
    for part in parts {
        buffer.put_slice(part);
    }
}

/// Takes the next whole frame's payload off the front of `buffer`.
///
/// `Ok(None)` means that more bytes are needed.
///
/// # Errors
/// [`FrameError::TooLong`] as soon as the header is there, [`FrameError::Damaged`] for a wrong
/// checksum. Either ends the connection: what follows cannot be trusted.
pub fn take_frame(buffer: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(header) = buffer.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let bytes = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let checksum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if bytes > limit {
        return Err(FrameError::TooLong { bytes, limit });
    }
    if buffer.len() < FRAME_HEADER_BYTES + bytes {
        buffer.reserve(FRAME_HEADER_BYTES + bytes - buffer.len());
        return Ok(None);
    }
    buffer.advance(FRAME_HEADER_BYTES);
    let payload = buffer.split_to(bytes).freeze();
    if crc32fast::hash(&payload) != checksum {
        return Err(FrameError::Damaged { bytes });
    }
    Ok(Some(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames come out as they went in, however the stream is cut.
    #[test]
    fn frames_survive_any_cut() {
        let mut stream = BytesMut::new();
        put_frame(&mut stream, b"one");
        put_frame(&mut stream, b"");
        put_frame(&mut stream, b"three");
        for cut in 0..=stream.len() {
            let mut buffer = BytesMut::from(&stream[..cut]);
            let mut seen = Vec::new();
            for rest in [&stream[cut..], &[]] {
                while let Some(payload) = take_frame(&mut buffer, 16).expect("whole frames") {
                    seen.push(payload);
                }
                buffer.extend_from_slice(rest);
            }
            assert_eq!(seen, [&b"one"[..], b"", b"three"], "cut at {cut}");
        }
    }

    /// An over-long length is refused from its header alone; a flipped byte from the checksum.
    #[test]
    fn bad_frames_are_named() {
        let mut long = BytesMut::from(&u64::from(17u32).to_le_bytes()[..]);
        let refused = take_frame(&mut long, 16);
        assert_eq!(refused, Err(FrameError::TooLong { bytes: 17, limit: 16 }));

        let mut damaged = BytesMut::new();
        put_frame(&mut damaged, b"payload");
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert_eq!(take_frame(&mut damaged, 16), Err(FrameError::Damaged { bytes: 7 }));
    }

    /// A preamble of another program, version or port is told apart.
    #[test]
    fn preambles_are_checked() {
        let good = preamble(Port::Client);
        assert_eq!(check_preamble(&good, Port::Client), Ok(()));
        let found = Some(Port::Client);
        let wrong_port = FrameError::WrongPort { wanted: Port::Peer, found };
        assert_eq!(check_preamble(&good, Port::Peer), Err(wrong_port));
        let mut newer = good;
        newer[8] = 99;
        assert_eq!(check_preamble(&newer, Port::Client), Err(FrameError::Version { theirs: 99 }));
        let http = *b"GET / HTTP/1.1\r\n";
        assert_eq!(check_preamble(&http, Port::Client), Err(FrameError::NotOnlyonce(*b"GET / HT")));
    }
}
