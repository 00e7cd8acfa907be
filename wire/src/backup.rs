//! A backup: what a primary tells of its tables, and the file that holds it.
//!
//! ```text
//! file     "oncesave" │ format u32 │ crc u32 of both │ piece…
//! piece    length u32 │ crc u32 │ kind u8 │ payload
//! 0 begin  cluster u128 │ incarnation u64
//! 1 rows   an entry, as in a record of the log
//! 2 end    index u64 │ view u64 │ chain u32 │ digests: kv, sessions, replies, keys, expiry, u128 each
//! ```
//! Numbers are little-endian. A length is that of its payload; a crc (CRC-32, IEEE) is of the piece's
//! number (u64, from 0 on), its length, its kind and its payload, so that no piece can be missing, come
//! twice or change its place unseen. The first piece begins the backup, the last one ends it, and nothing
//! follows; all between them are rows, folded in this order.

use std::io::{self, Read};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Incarnation, View};
use crate::limits::BACKUP_PIECE_BYTES_MAX;

/// The version of the file's format.
pub const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"oncesave";
const PIECE_HEADER_BYTES: usize = 9;

/// Whose state a backup holds.
///
/// ```
/// # use onlyonce_wire::{ClusterId, Incarnation, backup::BackupBegin};
/// let begin = BackupBegin { cluster: ClusterId(5), incarnation: Incarnation(1) };
/// let restored = begin.incarnation.following(1_700_000_000_000); // what a restore makes of it
/// assert!(restored > begin.incarnation);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupBegin {
    /// The cluster.
    pub cluster: ClusterId,
    /// The incarnation of its history.
    pub incarnation: Incarnation,
}

/// Which state a backup holds: that after one record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEnd {
    /// The record's index.
    pub index: u64,
    /// Its view.
    pub view: View,
    /// The chain value of the log up to it.
    pub chain: u32,
    /// What the rows of each table come to.
    pub digests: [u128; 5],
}

/// A piece of a backup, as it is asked for and as it is in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupRecord {
    /// The first.
    Begin(BackupBegin),
    /// Rows: an encoded entry.
    Rows(Bytes),
    /// The last.
    End(BackupEnd),
}

impl BackupRecord {
    fn kind(&self) -> u8 {
        match self {
            Self::Begin(_) => 0,
            Self::Rows(_) => 1,
            Self::End(_) => 2,
        }
    }

    fn payload(&self) -> Bytes {
        match self {
            Self::Begin(BackupBegin { cluster, incarnation }) => {
                let mut payload = BytesMut::new();
                payload.put_u128_le(cluster.0);
                payload.put_u64_le(incarnation.0);
                payload.freeze()
            }
            Self::Rows(entry) => entry.clone(),
            Self::End(BackupEnd { index, view, chain, digests }) => {
                let mut payload = BytesMut::new();
                payload.put_u64_le(*index);
                payload.put_u64_le(view.0);
                payload.put_u32_le(*chain);
                for digest in digests {
                    payload.put_u128_le(*digest);
                }
                payload.freeze()
            }
        }
    }

    /// The piece with this kind and payload; none if there is none.
    fn decode(kind: u8, mut payload: Bytes) -> Option<Self> {
        match (kind, payload.len()) {
            (0, 24) => Some(Self::Begin(BackupBegin {
                cluster: ClusterId(payload.get_u128_le()),
                incarnation: Incarnation(payload.get_u64_le()),
            })),
            (1, _) => Some(Self::Rows(payload)),
            (2, 100) => Some(Self::End(BackupEnd {
                index: payload.get_u64_le(),
                view: View(payload.get_u64_le()),
                chain: payload.get_u32_le(),
                digests: std::array::from_fn(|_| payload.get_u128_le()),
            })),
            _ => None,
        }
    }
}

fn checksum(number: u64, kind: u8, payload: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&number.to_le_bytes());
    checksum.update(&(payload.len() as u64).to_le_bytes());
    checksum.update(&[kind]);
    checksum.update(payload);
    checksum.finalize()
}

/// Turns pieces into the bytes of a file.
#[derive(Debug, Default)]
pub struct BackupEncoder {
    number: u64,
}

impl BackupEncoder {
    /// The bytes of the next piece; the first one's come after the file's header.
    pub fn encode(&mut self, piece: &BackupRecord) -> Bytes {
        let mut bytes = BytesMut::new();
        if self.number == 0 {
            bytes.put_slice(&MAGIC);
            bytes.put_u32_le(FORMAT);
            bytes.put_u32_le(crc32fast::hash(&bytes));
        }
        let (kind, payload) = (piece.kind(), piece.payload());
        bytes.put_u32_le(u32::try_from(payload.len()).expect("within the limit of a frame"));
        bytes.put_u32_le(checksum(self.number, kind, &payload));
        bytes.put_u8(kind);
        bytes.put_slice(&payload);
        self.number += 1;
        bytes.freeze()
    }
}

/// What is wrong with a file that is to be a backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no backup of Onlyonce: it does not begin with \"oncesave\"")]
    Foreign,
    /// Its header is damaged.
    #[error("its header is damaged: the checksum of bytes 0 to 12 does not match")]
    Header,
    /// Another release made it.
    #[error("it has format {0}, this release reads {FORMAT}: use the release that made it")]
    Format(u32),
    /// A piece is damaged, or out of place.
    #[error("piece {number}, at byte {at}, is damaged: {problem}")]
    Piece {
        /// Which piece, from 0 on.
        number: u64,
        /// Where it begins in the file.
        at: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It ends early.
    #[error("it is cut off: it ends at byte {at}, inside or before piece {number}")]
    Cut {
        /// Which piece is missing, or incomplete.
        number: u64,
        /// The file's length.
        at: u64,
    },
    /// It does not end where it should.
    #[error("something follows its last piece, from byte {at} on")]
    Trailing {
        /// Where.
        at: u64,
    },
}

/// Reads the pieces of a file, each one checked.
#[derive(Debug)]
pub struct BackupDecoder<R> {
    file: R,
    at: u64,
    number: u64,
    /// Where the newest piece begins.
    piece_at: u64,
}

impl<R: Read> BackupDecoder<R> {
    /// Begins to read a file.
    pub fn new(file: R) -> Result<(Self, BackupBegin), BackupError> {
        let mut decoder = Self { file, at: 0, number: 0, piece_at: 0 };
        let mut header = [0; 16];
        let length = decoder.fill(&mut header)?;
        if header[..length.min(8)] != MAGIC[..length.min(8)] || length == 0 {
            return Err(BackupError::Foreign);
        }
        if length < header.len() {
            return Err(decoder.cut());
        }
        let number_at = |at: usize| u32::from_le_bytes(*header[at..].first_chunk().expect("four"));
        if number_at(12) != crc32fast::hash(&header[..12]) {
            return Err(BackupError::Header);
        }
        if number_at(8) != FORMAT {
            return Err(BackupError::Format(number_at(8)));
        }
        match decoder.piece()? {
            BackupRecord::Begin(begin) => Ok((decoder, begin)),
            BackupRecord::Rows(_) | BackupRecord::End(_) => {
                Err(BackupError::Piece { number: 0, at: 16, problem: "it does not begin a backup" })
            }
        }
    }

    /// The next piece: rows, or the end, with nothing after it.
    pub fn next_piece(&mut self) -> Result<BackupRecord, BackupError> {
        let (number, at) = (self.number, self.at);
        let piece = self.piece()?;
        match piece {
            BackupRecord::Begin(_) => {
                let problem = "it begins another backup";
                return Err(BackupError::Piece { number, at, problem });
            }
            BackupRecord::Rows(_) => {}
            BackupRecord::End(_) => {
                let at = self.at;
                if self.fill(&mut [0])? > 0 {
                    return Err(BackupError::Trailing { at });
                }
            }
        }
        Ok(piece)
    }

    /// How many bytes were read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// What is wrong with the piece that was read last.
    #[must_use]
    pub fn refuse(&self, problem: &'static str) -> BackupError {
        BackupError::Piece { number: self.number - 1, at: self.piece_at, problem }
    }

    fn piece(&mut self) -> Result<BackupRecord, BackupError> {
        let (number, at) = (self.number, self.at);
        self.piece_at = at;
        let damaged = |problem| BackupError::Piece { number, at, problem };
        let mut header = [0; PIECE_HEADER_BYTES];
        if self.fill(&mut header)? < header.len() {
            return Err(self.cut());
        }
        let mut fields = &header[..];
        let (length, crc, kind) =
            (fields.get_u32_le() as usize, fields.get_u32_le(), fields.get_u8());
        if length > BACKUP_PIECE_BYTES_MAX {
            return Err(damaged("its length is over the limit"));
        }
        let mut payload = vec![0; length];
        if self.fill(&mut payload)? < length {
            return Err(self.cut());
        }
        if checksum(number, kind, &payload) != crc {
            return Err(damaged("its checksum does not match"));
        }
        self.number += 1;
        BackupRecord::decode(kind, payload.into()).ok_or_else(|| damaged("its kind is not known"))
    }

    fn cut(&self) -> BackupError {
        BackupError::Cut { number: self.number, at: self.at }
    }

    /// Reads until `buffer` is full or the file ends; returns how much there was.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Vec<BackupRecord> {
        let (cluster, incarnation) = (ClusterId(7 << 100), Incarnation(3));
        let end = BackupEnd { index: 9, view: View(2), chain: 5, digests: [1, 2, 3, 4, u128::MAX] };
        vec![
            BackupRecord::Begin(BackupBegin { cluster, incarnation }),
            BackupRecord::Rows(Bytes::from_static(b"some rows")),
            BackupRecord::Rows(Bytes::new()),
            BackupRecord::Rows(Bytes::from_static(b"more rows")),
            BackupRecord::End(end),
        ]
    }

    fn encoded() -> Vec<Bytes> {
        let mut encoder = BackupEncoder::default();
        pieces().iter().map(|piece| encoder.encode(piece)).collect()
    }

    fn read(file: &[u8]) -> Result<Vec<BackupRecord>, BackupError> {
        let (mut decoder, begin) = BackupDecoder::new(file)?;
        let mut pieces = vec![BackupRecord::Begin(begin)];
        loop {
            pieces.push(decoder.next_piece()?);
            if matches!(pieces.last(), Some(BackupRecord::End(_))) {
                return Ok(pieces);
            }
        }
    }

    /// What was written is read.
    #[test]
    fn pieces_come_back() {
        assert_eq!(read(&encoded().concat()).expect("a whole file"), pieces());
    }

    /// No byte can change, and no place be the end, unseen.
    #[test]
    fn every_flip_and_every_cut_is_seen() {
        let file = encoded().concat();
        for at in 0..file.len() {
            let mut flipped = file.clone();
            for bit in 0..8 {
                flipped[at] = file[at] ^ (1 << bit);
                assert!(read(&flipped).is_err(), "bit {bit} of byte {at}");
            }
            assert!(read(&file[..at]).is_err(), "cut at {at}");
        }
        let longer = [&file[..], b"x"].concat();
        let at = file.len() as u64;
        assert!(matches!(read(&longer), Err(BackupError::Trailing { at: it }) if it == at));
    }

    /// No piece can be left out, come twice or change its place.
    #[test]
    fn pieces_have_their_places() {
        let pieces = encoded();
        for left_out in 1..pieces.len() {
            let others = (0..pieces.len()).filter(|it| *it != left_out);
            let file: Vec<u8> = others.flat_map(|it| pieces[it].to_vec()).collect();
            assert!(read(&file).is_err(), "without piece {left_out}");
        }
        let order = |order: [usize; 6]| order.map(|it| pieces[it].clone()).concat();
        for file in [order([0, 1, 1, 2, 3, 4]), order([0, 1, 3, 2, 3, 4])] {
            let refused = read(&file).expect_err("out of place");
            assert!(matches!(refused, BackupError::Piece { number: 2, .. }), "{refused}");
        }
    }

    /// What is no backup, or of another release, is called so.
    #[test]
    fn strangers_are_named() {
        for (file, words) in [
            (&b""[..], "no backup of Onlyonce"),
            (b"hello", "no backup of Onlyonce"),
            (b"onces", "cut off"),
        ] {
            let refused = read(file).expect_err("no backup").to_string();
            assert!(refused.contains(words), "{refused}");
        }
        let mut newer = BytesMut::from(&b"oncesave"[..]);
        newer.put_u32_le(2);
        newer.put_u32_le(crc32fast::hash(&newer));
        assert!(matches!(read(&newer), Err(BackupError::Format(2))));
    }
}
