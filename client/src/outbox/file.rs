//! The file of an outbox: append-only, each frame durable before the next one is written.
//!
//! ```text
//! file    "onlyonce outbox 1\n" │ frame ...
//! frame   "FRME" │ length u32 │ crc u32 of the body │ body: the encoded records
//! ```
//! Only the last frame can be torn by a crash, and nothing that it holds was sent: it is cut off. A
//! bad frame that a good one follows is damage, and the file is not used.
//!
//! Of an earlier client nothing is known but what can be read, and that may be in memory only: a sync
//! that failed is not made up for by another one, and a folder may not have been synced yet. The
//! frames before the last one are durable; the last one is written again, and both are synced, before
//! the outbox is used.
//!
//! When most of the file is about requests that are done, what is left is written to a new file,
//! which takes the old one's place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use onlyonce_wire::limits::{IDEMPOTENCY_KEY_BYTES_MAX, OPERATION_BYTES_MAX};
use onlyonce_wire::{ClusterId, IdempotencyKey, Incarnation, codec};
use serde::{Deserialize, Serialize};

use super::error::OutboxError;
use super::place::{Locked, Place};

pub(super) const HEADER: &[u8] = b"onlyonce outbox 1\n";
/// With what the files of every release begin; the number of the format follows.
const TITLE: &[u8] = b"onlyonce outbox ";
const MAGIC: &[u8; 4] = b"FRME";
const FRAME_HEADER_BYTES: usize = 12;
/// A frame is closed when its records reach this many bytes.
pub(super) const FRAME_BYTES_TARGET: usize = 1 << 20;
const FRAME_BYTES_MAX: usize = FRAME_BYTES_TARGET + OPERATION_BYTES_MAX + (64 << 10);
/// The most bytes of a request in a frame beside its operation: its key, its numbers, and the frame's
/// header.
const SENT_OVERHEAD_BYTES: usize = 512;
const _: () = assert!(SENT_OVERHEAD_BYTES >= IDEMPOTENCY_KEY_BYTES_MAX + 64 + FRAME_HEADER_BYTES);
/// A file that is shorter is not worth being written anew.
const COMPACTED_BYTES_MIN: u64 = 1 << 20;
/// It is written anew when it is so many times as long as what is left in it.
const COMPACTED_RATIO: u64 = 4;

/// A request that may be under way, as the outbox keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// Of the cluster when the request got its key.
    pub(crate) incarnation: Incarnation,
    /// The id under which it goes out.
    pub(crate) key: IdempotencyKey,
    /// The encoded operation.
    pub(crate) operation: Bytes,
}

impl Sent {
    pub(super) fn bytes(&self) -> usize {
        self.operation.len() + SENT_OVERHEAD_BYTES
    }
}

/// What happened to the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// All its requests are for this cluster.
    Cluster(ClusterId),
    /// The request with this number may go out from now on.
    Sent(u64, Sent),
    /// Its end is known.
    Done(u64),
}

/// What an outbox holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) cluster: Option<ClusterId>,
    /// The requests whose end is not known, in the order in which they went out.
    pub(super) open: BTreeMap<u64, Sent>,
    /// Numbers from here on were never used.
    pub(super) next: u64,
}

impl Contents {
    fn take(&mut self, record: Record) {
        match record {
            Record::Cluster(cluster) => self.cluster = Some(cluster),
            Record::Sent(number, sent) => {
                self.next = self.next.max(number + 1);
                self.open.insert(number, sent);
            }
            Record::Done(number) => {
                self.open.remove(&number);
            }
        }
    }
}

/// An open outbox. Nobody else has it open.
pub(super) struct OutboxFile {
    place: Place,
    file: Locked,
    bytes: u64,
    pub(super) contents: Contents,
}

impl OutboxFile {
    /// Opens the outbox at `path`, or makes one.
    pub(super) fn open(path: &Path) -> Result<Self, OutboxError> {
        look(path)?;
        let place = Place::take(path)?;
        let mut found = Vec::new();
        let file = place.open()?;
        if let Some(file) = &file {
            (&**file).read_to_end(&mut found)?;
        }
        let mut contents = Contents::default();
        let file = match file {
            Some(file) if !found.is_empty() => file,
            Some(_) | None => {
                found = HEADER.to_vec();
                place.replace(HEADER)?
            }
        };
        let Frames { last, end } = read(&found, &mut contents)?;
        file.set_len(end as u64)?;
        (&*file).seek(SeekFrom::Start(last as u64))?;
        (&*file).write_all(&found[last..end])?;
        file.sync_all()?;
        place.sync_folder()?;
        Ok(Self { place, file, bytes: end as u64, contents })
    }

    /// Adds records, durably, and where the next client looks for them.
    pub(super) fn write(&mut self, records: Vec<Record>) -> Result<(), OutboxError> {
        let frame = frame(&records);
        (&*self.file).write_all(&frame)?;
        self.file.sync_data()?;
        self.place.check(&self.file)?;
        self.bytes += frame.len() as u64;
        for record in records {
            self.contents.take(record);
        }
        self.compact()
    }

    fn compact(&mut self) -> Result<(), OutboxError> {
        let left: usize = self.contents.open.values().map(Sent::bytes).sum();
        if self.bytes < COMPACTED_BYTES_MIN || self.bytes < COMPACTED_RATIO * left as u64 {
            return Ok(());
        }
        if self.file.metadata()?.nlink() > 1 {
            // The other name would keep the old file, which nobody stops anybody from using then.
            return Ok(());
        }
        let mut content = HEADER.to_vec();
        let cluster = self.contents.cluster.map(Record::Cluster);
        let open = self.contents.open.iter();
        let sent = open.map(|(number, sent)| Record::Sent(*number, sent.clone()));
        for record in cluster.into_iter().chain(sent) {
            content.extend(frame(&[record]));
        }
        self.file = self.place.replace(&content)?;
        self.bytes = content.len() as u64;
        Ok(())
    }
}

/// Checks that what is at a path may be an outbox, before anything is made beside it.
fn look(path: &Path) -> Result<(), OutboxError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if !found.is_file() => return Err(OutboxError::NotAnOutbox),
        Err(error) => return Err(error.into()),
        Ok(_) => {}
    }
    let mut beginning = Vec::new();
    File::open(path)?.take(HEADER.len() as u64).read_to_end(&mut beginning)?;
    if beginning.is_empty() { Ok(()) } else { check_header(&beginning) }
}

/// Checks the beginning of a file, which is not empty.
fn check_header(bytes: &[u8]) -> Result<(), OutboxError> {
    match bytes.strip_prefix(TITLE) {
        Some(_) if bytes.starts_with(HEADER) => Ok(()),
        Some([b'1'..=b'9', b'0'..=b'9' | b'\n', ..]) => Err(OutboxError::OtherRelease),
        Some(_) | None => Err(OutboxError::NotAnOutbox),
    }
}

fn frame(records: &[Record]) -> Vec<u8> {
    frame_of(&codec::encode(&records))
}

fn frame_of(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Where the whole frames of a file are.
struct Frames {
    /// Where the last one begins; of the header, if there is none.
    last: usize,
    /// Where the file ends: before a torn frame, if there is one.
    end: usize,
}

/// Takes in all frames.
fn read(bytes: &[u8], contents: &mut Contents) -> Result<Frames, OutboxError> {
    check_header(bytes)?;
    let (mut last, mut at) = (0, HEADER.len());
    while at < bytes.len() {
        let Some(body) = body_at(bytes, at) else {
            if (at + 1..bytes.len()).any(|later| body_at(bytes, later).is_some()) {
                return Err(OutboxError::Damaged { at: at as u64 });
            }
            break;
        };
        let records = codec::decode::<Vec<Record>, { 2 * FRAME_BYTES_MAX }>(body)
            .map_err(|_| OutboxError::OtherRelease)?;
        for record in records {
            contents.take(record);
        }
        (last, at) = (at, at + FRAME_HEADER_BYTES + body.len());
    }
    Ok(Frames { last, end: at })
}

/// The body of the whole and undamaged frame at a place, if one is there.
fn body_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let frame = bytes[at..].strip_prefix(MAGIC)?;
    let number = |at: usize| Some(u32::from_le_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    let length = number(0)? as usize;
    let body = frame.get(8..)?.get(..length).filter(|_| length <= FRAME_BYTES_MAX)?;
    (crc32fast::hash(body) == number(4)?).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(text: &str) -> Sent {
        let key = IdempotencyKey::fresh(77, [7; 10]);
        Sent { incarnation: Incarnation(1), key, operation: text.to_owned().into() }
    }

    fn filled(path: &Path) -> Contents {
        let mut file = OutboxFile::open(path).expect("opens");
        file.write(vec![Record::Cluster(ClusterId(5)), Record::Sent(0, sent("one"))])
            .expect("writes");
        file.write(vec![Record::Sent(1, sent("two")), Record::Done(0)]).expect("writes");
        file.write(vec![Record::Sent(2, sent("three"))]).expect("writes");
        file.contents.clone()
    }

    /// What was written is there again; nobody else can open it meanwhile.
    #[test]
    fn an_outbox_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let contents = filled(&path);
        assert_eq!(contents.open.keys().collect::<Vec<_>>(), [&1, &2]);
        let open = OutboxFile::open(&path).expect("opens");
        assert_eq!(open.contents, contents);
        assert_eq!(OutboxFile::open(&path).err(), Some(OutboxError::InUse));
    }

    /// Whoever comes by a link finds the same outbox, and the same lock; and what is written by it
    /// is found at the file's own name.
    #[test]
    fn a_link_leads_to_the_same_outbox() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("outbox"), folder.path().join("link"));
        let mut contents = filled(&path);
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        let open = OutboxFile::open(&path).expect("opens");
        assert_eq!(OutboxFile::open(&link).err(), Some(OutboxError::InUse));
        drop(open);
        let mut by_link = OutboxFile::open(&link).expect("opens");
        assert_eq!(by_link.contents, contents);
        by_link.write(vec![Record::Done(1)]).expect("writes");
        drop(by_link);
        contents.open.remove(&1);
        assert_eq!(OutboxFile::open(&path).expect("opens").contents, contents);
    }

    /// A file with two names is nobody's: when it is replaced, the other name would keep the old one.
    #[test]
    fn a_second_name_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, second) = (folder.path().join("outbox"), folder.path().join("second"));
        let contents = filled(&path);
        std::fs::hard_link(&path, &second).expect("linked");
        for name in [&path, &second] {
            assert_eq!(OutboxFile::open(name).err(), Some(OutboxError::Linked { names: 2 }));
        }
        std::fs::remove_file(&second).expect("removed");
        let mut open = OutboxFile::open(&path).expect("opens");
        assert_eq!(open.contents, contents);
        // It comes while the file is in use: the file stays one, and a second client is stopped.
        std::fs::hard_link(&path, &second).expect("linked");
        let long = "x".repeat(2 * COMPACTED_BYTES_MIN as usize);
        open.write(vec![Record::Sent(3, sent(&long)), Record::Done(3)]).expect("writes");
        assert_eq!(OutboxFile::open(&second).err(), Some(OutboxError::InUse));
        let read = |name| std::fs::read(name).expect("reads");
        assert!(read(&path) == read(&second), "there are two files now");
        std::fs::remove_file(&second).expect("removed");
        open.write(vec![Record::Done(1)]).expect("writes");
        assert!(std::fs::metadata(&path).expect("is there").len() < COMPACTED_BYTES_MIN);
    }

    /// A wrong path costs nothing: what is there stays as it is, and nothing comes beside it.
    #[test]
    fn what_is_no_outbox_is_left_alone() {
        let parent = tempfile::tempdir().expect("a folder");
        let [text, short, folder] =
            ["text", "short", "folder"].map(|name| parent.path().join(name));
        std::fs::write(&text, "a letter to somebody, not an outbox").expect("written");
        std::fs::write(&short, &HEADER[..9]).expect("written");
        std::fs::create_dir(&folder).expect("made");
        let nowhere = parent.path().join("missing/outbox");
        for path in [&text, &short, &folder] {
            assert_eq!(OutboxFile::open(path).err(), Some(OutboxError::NotAnOutbox), "{path:?}");
        }
        assert!(matches!(OutboxFile::open(&nowhere).err(), Some(OutboxError::Io(_))));
        let left = std::fs::read_dir(parent.path()).expect("reads");
        let mut left: Vec<_> = left.map(|entry| entry.expect("reads").path()).collect();
        left.sort();
        assert_eq!(left, [folder, short, text]);
    }

    /// Another release's file, told by its header or by a whole frame that does not decode, is
    /// called that, and left as it is: it may keep requests.
    #[test]
    fn another_release_has_to_recover_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        filled(&path);
        let ours = std::fs::read(&path).expect("reads");
        let unknown = frame_of(&[1, 0xff]);
        for theirs in [
            [&ours[..], &unknown].concat(),
            [&ours[..], &unknown, &frame(&[Record::Done(2)])].concat(),
            b"onlyonce outbox 2\n".to_vec(),
            b"onlyonce outbox 10\nsomething else".to_vec(),
        ] {
            std::fs::write(&path, &theirs).expect("written");
            assert_eq!(OutboxFile::open(&path).err(), Some(OutboxError::OtherRelease));
            assert_eq!(std::fs::read(&path).expect("reads"), theirs);
        }
    }

    /// The file beside it that has the lock is nobody's but the outbox's own; still, without it a
    /// second client is stopped as well.
    #[test]
    fn a_lock_that_was_tidied_away_still_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        filled(&path);
        for compacted in [false, true] {
            let mut open = OutboxFile::open(&path).expect("opens");
            if compacted {
                let long = "x".repeat(2 * COMPACTED_BYTES_MIN as usize);
                open.write(vec![Record::Sent(3, sent(&long)), Record::Done(3)]).expect("writes");
            }
            std::fs::remove_file(folder.path().join("outbox.lock")).expect("it was there");
            assert_eq!(OutboxFile::open(&path).err(), Some(OutboxError::InUse));
        }
    }

    /// A process that is started has the files of its parent open for a moment: an outbox that is closed
    /// meanwhile can be opened all the same.
    #[test]
    fn a_closed_outbox_is_free_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let open = OutboxFile::open(&path).expect("opens");
        let of_child = open.file.try_clone().expect("cloned");
        drop(open);
        assert_eq!(OutboxFile::open(&path).err(), None);
        drop(of_child);
    }

    /// What is written to a file that the next client does not find counts as not written.
    #[test]
    fn a_file_that_was_moved_takes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, elsewhere) = (folder.path().join("outbox"), folder.path().join("elsewhere"));
        let write = |file: &mut OutboxFile| file.write(vec![Record::Sent(3, sent("four"))]);
        filled(&path);
        let mut moved = OutboxFile::open(&path).expect("opens");
        std::fs::rename(&path, &elsewhere).expect("moved");
        assert_eq!(write(&mut moved), Err(OutboxError::Moved));
        std::fs::copy(&elsewhere, &path).expect("copied");
        assert_eq!(write(&mut moved), Err(OutboxError::Moved));
        assert_eq!(OutboxFile::open(&elsewhere).err(), Some(OutboxError::InUse));
        drop(moved);
        assert!(OutboxFile::open(&path).is_ok_and(|mut file| write(&mut file).is_ok()));
    }

    /// A file is replaced where it is, wherever the links lead by then that led there at first. A link
    /// that leads nowhere is no outbox.
    #[test]
    fn a_new_outbox_stays_where_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let [here, there, link] = ["here", "there", "link"].map(|name| folder.path().join(name));
        for made in [&here, &there] {
            std::fs::create_dir(made).expect("made");
        }
        let lead_to = |target: &Path| {
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(target, &link).expect("linked");
        };
        lead_to(&here);
        let mut file = OutboxFile::open(&link.join("outbox")).expect("opens");
        lead_to(&there);
        let long = "x".repeat(2 * COMPACTED_BYTES_MIN as usize);
        let records = vec![Record::Sent(0, sent("stays")), Record::Sent(1, sent(&long))];
        file.write(records).expect("writes");
        file.write(vec![Record::Done(1)]).expect("writes");
        drop(file);
        let names = std::fs::read_dir(&there).expect("reads").count();
        assert_eq!(names, 0, "it was replaced elsewhere");
        let open = OutboxFile::open(&here.join("outbox")).expect("opens").contents.open;
        assert_eq!(open.into_iter().collect::<Vec<_>>(), [(0, sent("stays"))]);
        let nowhere = folder.path().join("nowhere");
        std::os::unix::fs::symlink(folder.path().join("gone"), &nowhere).expect("linked");
        assert!(matches!(OutboxFile::open(&nowhere).err(), Some(OutboxError::Io(_))));
    }

    /// A file is replaced by way of another beside it. What has that name already is not lost for it: an
    /// outbox has no such name, whatever links lead to it, and what is none is left as it is.
    #[test]
    fn what_is_beside_an_outbox_is_not_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, new, lock, link] =
            ["outbox", "outbox.new", "outbox.lock", "link"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&new, &link).expect("linked");
        for reserved in [&new, &lock] {
            assert_eq!(OutboxFile::open(reserved).err(), Some(OutboxError::Reserved));
        }
        let long = "x".repeat(2 * COMPACTED_BYTES_MIN as usize);
        let replace = || {
            let mut file = OutboxFile::open(&path)?;
            file.write(vec![Record::Sent(3, sent(&long)), Record::Done(3)])
        };
        for left in [&b""[..], &HEADER[..7], HEADER, &[0; 4_096], &[HEADER, &[7; 99]].concat()] {
            std::fs::write(&new, left).expect("writes");
            assert_eq!(replace(), Ok(()), "a crash left {left:?}");
            assert!(!new.exists());
        }
        std::fs::write(&new, HEADER).expect("writes");
        assert_eq!(OutboxFile::open(&link).err(), Some(OutboxError::Reserved));
        let theirs = "no outbox at all";
        std::fs::write(&new, theirs).expect("writes");
        let beside = Some(OutboxError::Beside { path: new.canonicalize().expect("is there") });
        assert_eq!(replace().err(), beside);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(OutboxFile::open(&path).err(), beside);
        assert_eq!(std::fs::read_to_string(&new).expect("reads"), theirs);
    }

    /// What is no file is left as it is: a device that reads as empty would be replaced otherwise.
    #[test]
    fn a_pipe_is_no_outbox() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("runs");
        assert!(made.success(), "{made}");
        assert_eq!(OutboxFile::open(&path).err(), Some(OutboxError::NotAnOutbox));
    }

    /// Wherever a crash cuts the last frame, the ones before are whole, and the file goes on.
    #[test]
    fn a_torn_frame_is_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let mut before = filled(&path);
        before.open.remove(&2);
        before.next = 2;
        let whole = std::fs::read(&path).expect("reads");
        let last = frame(&[Record::Sent(2, sent("three"))]).len();
        for cut in whole.len() - last..whole.len() {
            for torn in [&whole[..cut], &[&whole[..cut], &[0; 5]].concat()] {
                std::fs::write(&path, torn).expect("writes");
                let mut file = OutboxFile::open(&path).expect("opens");
                assert_eq!(file.contents, before, "cut at {cut}");
                file.write(vec![Record::Done(1)]).expect("writes");
                drop(file);
                assert!(OutboxFile::open(&path).expect("opens").contents.open.is_empty());
            }
        }
    }

    /// A byte that is altered before the last frame is named, and never a request that is missing.
    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        filled(&path);
        let whole = std::fs::read(&path).expect("reads");
        let last = frame(&[Record::Sent(2, sent("three"))]).len();
        for at in 0..whole.len() - last {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes).expect("writes");
            let error = OutboxFile::open(&path).err();
            let expected = if at < HEADER.len() {
                matches!(error, Some(OutboxError::NotAnOutbox))
            } else {
                matches!(error, Some(OutboxError::Damaged { .. }))
            };
            assert!(expected, "byte {at}: {error:?}");
        }
    }

    /// A long file is written anew when most of it is done; what is open stays.
    #[test]
    fn a_long_outbox_is_compacted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let mut file = OutboxFile::open(&path).expect("opens");
        file.write(vec![Record::Cluster(ClusterId(5)), Record::Sent(0, sent("stays"))])
            .expect("writes");
        let long = "x".repeat(100_000);
        for number in 1..100 {
            file.write(vec![Record::Sent(number, sent(&long)), Record::Done(number)])
                .expect("writes");
        }
        drop(file);
        let bytes = std::fs::metadata(&path).expect("is there").len();
        assert!(bytes < 2 * COMPACTED_BYTES_MIN, "{bytes}");
        let contents = OutboxFile::open(&path).expect("opens").contents;
        assert_eq!(contents.open.into_iter().collect::<Vec<_>>(), [(0, sent("stays"))]);
        assert_eq!(contents.cluster, Some(ClusterId(5)));
    }
}
