//! The register on disk: two copies, so that neither a torn write nor one damaged block loses it.
//!
//! ```text
//! DIR/lock       held while the server runs
//! DIR/register   copy 0 │ copy 1, each 4096 bytes: one wire frame (length, crc32, payload), then 0
//!                payload: format u16 │ encoded Versioned
//! DIR/created    written last when the folder is made: with it, a missing register is a lost one
//! ```
//! - A change writes copy 0, then copy 1, each followed by a barrier, and is answered and shown to
//!   readers only then. So outside of a change both copies are the newest acknowledged register.
//! - A torn write leaves the other copy, which is the old register or the new one: nobody was told
//!   either way. A copy that rots later leaves the other one, which is the newest. Opening takes
//!   the copy of the higher revision and repairs the other before anything is answered.
//! - Two damaged copies, or a missing file, are refused: rolling the register back could let a
//!   second primary rise.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{BufMut, BytesMut};
use onlyonce_wire::authority::{Register, Revision, Versioned};
use onlyonce_wire::codec;
use onlyonce_wire::frame::{put_frame, take_frame};
use onlyonce_wire::limits::REGISTER_BYTES_MAX;

const FORMAT: u16 = 1;
const SLOT_BYTES: usize = 4096;
const SLOTS: usize = 2;
const PAYLOAD_BYTES_MAX: usize = REGISTER_BYTES_MAX + 64;

/// What may be in a folder before its register is: an attempt that was cut short, and what file
/// systems put there.
const UNFINISHED: [&str; 3] = ["lock", "register.new", "lost+found"];

const _: () = assert!(PAYLOAD_BYTES_MAX + 8 <= SLOT_BYTES, "a register fits into its slot");

/// Why the register cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// The folder cannot be used.
    #[error("the authority's data folder {folder}: cannot {action}: {source}; {advice}")]
    Folder {
        /// The folder.
        folder: String,
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Another process has it.
    #[error(
        "the authority's data folder {0} is in use by another process: stop that one, \
         or use another --data"
    )]
    InUse(String),
    /// The folder holds something else.
    #[error(
        "{folder} is not a data folder of an authority: it has no file 'register' but holds \
         {found:?}; choose an empty or a new folder"
    )]
    NotARegister {
        /// The folder.
        folder: String,
        /// A name that was found in it.
        found: String,
    },
    /// The register was there and is gone.
    #[error(
        "the authority's data folder {0} has lost its file 'register'; going on with an empty one \
         could make a second primary: put the file back as it was last (an older copy is as \
         dangerous as none). If it is gone for good: `onced admin force-view` on a new, empty folder"
    )]
    Lost(String),
    /// Neither copy can be trusted.
    #[error(
        "both copies of the register in {folder} are damaged (first: {first}; second: {second}); \
         guessing could make a second primary: put the file 'register' back as it was last (an \
         older copy is as dangerous as none). If it is gone for good: `onced admin force-view` on a \
         new, empty folder"
    )]
    Damaged {
        /// The folder.
        folder: String,
        /// What is wrong with the first.
        first: String,
        /// And with the second.
        second: String,
    },
}

/// The register, open and locked.
#[derive(Debug)]
pub struct Slots {
    file: File,
    now: Versioned,
    _lock: File,
}

/// How a compare-and-swap on the slots ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SlotSwap {
    /// It is durable, at this revision.
    Swapped(Versioned),
    /// The revision was another; nothing was changed.
    Conflict(Versioned),
    /// The value is longer than a register may be; nothing was changed.
    TooLong(usize),
}

impl Slots {
    /// Opens the register in `folder`, which is made if it is not there (but its parent is).
    pub fn open(folder: &Path) -> Result<Self, SlotsError> {
        let place = Place { folder: folder.to_owned() };
        if !folder.exists() {
            let made = std::fs::create_dir(folder).and_then(|()| sync_parent(folder));
            made.map_err(place.failed("make it", "make its parent folder, or allow writing it"))?;
        }
        place.refuse_foreign()?;
        let lock = place.lock()?;
        let created = folder.join("created");
        let path = folder.join("register");
        if !path.exists() {
            if created.exists() {
                return Err(SlotsError::Lost(folder.display().to_string()));
            }
            place.create(&path)?;
        }
        if !created.exists() {
            let marked = File::create(&created).and_then(|file| file.sync_all());
            let marked = marked.and_then(|()| File::open(folder)?.sync_all());
            marked
                .map_err(place.failed("write 'created'", "see its permissions and free space"))?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(place.failed("open 'register'", "see its permissions"))?;
        let copies = [read_slot(&file, 0), read_slot(&file, 1)];
        let now = newest(&copies, folder)?;
        let slots = Self { file, now, _lock: lock };
        for (slot, copy) in copies.iter().enumerate() {
            if copy.as_ref() != Ok(&slots.now) {
                let found = copy.as_ref().map_or_else(Clone::clone, |copy| {
                    format!("revision {}, an unfinished change", copy.revision.0)
                });
                tracing::warn!("register copy {slot} is repaired from the other; it was: {found}");
                let repaired = slots.write_slot(slot, &slots.now);
                repaired.map_err(place.failed("repair 'register'", "replace the disk"))?;
            }
        }
        Ok(slots)
    }

    /// The register.
    pub fn now(&self) -> &Versioned {
        &self.now
    }

    /// Sets the register if it is at `expected`. When this returns, the change is durable.
    ///
    /// # Errors
    /// What is on disk is then not known: the process must stop.
    pub fn compare_and_swap(
        &mut self,
        expected: Revision,
        value: Register,
    ) -> io::Result<SlotSwap> {
        if expected != self.now.revision {
            return Ok(SlotSwap::Conflict(self.now.clone()));
        }
        let bytes = codec::encode(&value).len();
        if bytes > REGISTER_BYTES_MAX {
            return Ok(SlotSwap::TooLong(bytes));
        }
        let next = Versioned { revision: Revision(expected.0 + 1), register: Some(value) };
        for slot in 0..SLOTS {
            self.write_slot(slot, &next)?;
        }
        self.now = next;
        Ok(SlotSwap::Swapped(self.now.clone()))
    }

    fn write_slot(&self, slot: usize, value: &Versioned) -> io::Result<()> {
        self.file.write_all_at(&slot_bytes(value), (slot * SLOT_BYTES) as u64)?;
        self.file.sync_data()
    }
}

fn slot_bytes(value: &Versioned) -> BytesMut {
    let mut payload = BytesMut::new();
    payload.put_u16_le(FORMAT);
    payload.put_slice(&codec::encode(value));
    let mut bytes = BytesMut::with_capacity(SLOT_BYTES);
    put_frame(&mut bytes, &payload);
    assert!(bytes.len() <= SLOT_BYTES, "a register of {} bytes is over its slot", bytes.len());
    bytes.resize(SLOT_BYTES, 0);
    bytes
}

/// A slot's content, or what is wrong with it.
fn read_slot(file: &File, slot: usize) -> Result<Versioned, String> {
    let mut bytes = BytesMut::zeroed(SLOT_BYTES);
    file.read_exact_at(&mut bytes, (slot * SLOT_BYTES) as u64)
        .map_err(|error| error.to_string())?;
    let payload = take_frame(&mut bytes, PAYLOAD_BYTES_MAX)
        .map_err(|error| error.to_string())?
        .expect("a slot is longer than any payload");
    let Some((format, value)) = payload.split_first_chunk() else {
        return Err("it is empty".to_owned());
    };
    let format = u16::from_le_bytes(*format);
    if format != FORMAT {
        return Err(format!("it has format {format}; this release knows {FORMAT}"));
    }
    codec::decode::<_, PAYLOAD_BYTES_MAX>(value).map_err(|error| error.to_string())
}

fn newest(
    copies: &[Result<Versioned, String>; SLOTS],
    folder: &Path,
) -> Result<Versioned, SlotsError> {
    match copies {
        [Ok(first), Ok(second)] if first.revision >= second.revision => Ok(first.clone()),
        [_, Ok(one)] | [Ok(one), _] => Ok(one.clone()),
        [Err(first), Err(second)] => Err(SlotsError::Damaged {
            folder: folder.display().to_string(),
            first: first.clone(),
            second: second.clone(),
        }),
    }
}

/// The data folder, as its errors name it.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn failed(&self, action: &str, advice: &'static str) -> impl FnOnce(io::Error) -> SlotsError {
        let (folder, action) = (self.folder.display().to_string(), action.to_owned());
        move |source| SlotsError::Folder { folder, action, source, advice }
    }

    /// Refuses a folder that holds something and no register, before anything is made in it.
    fn refuse_foreign(&self) -> Result<(), SlotsError> {
        let failed = || self.failed("list it", "choose a folder that this user can read");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed())? {
            names.push(entry.map_err(failed())?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        // `created` without `register`: a lost one, not another's folder.
        if has("register") || has("created") {
            return Ok(());
        }
        match names.into_iter().find(|name| !UNFINISHED.contains(&name.as_str())) {
            None => Ok(()),
            Some(found) => {
                let folder = self.folder.display().to_string();
                Err(SlotsError::NotARegister { folder, found })
            }
        }
    }

    fn lock(&self) -> Result<File, SlotsError> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(self.failed("write into it", "see its permissions"))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                Err(SlotsError::InUse(self.folder.display().to_string()))
            }
            Err(TryLockError::Error(error)) => {
                Err(self.failed("lock it", "use a local file system")(error))
            }
        }
    }

    /// Makes a register that was never written, all of it or nothing.
    fn create(&self, path: &Path) -> Result<(), SlotsError> {
        let temporary = self.folder.join("register.new");
        let empty = Versioned { revision: Revision(0), register: None };
        let write = || {
            let file = File::create(&temporary)?;
            for slot in 0..SLOTS {
                file.write_all_at(&slot_bytes(&empty), (slot * SLOT_BYTES) as u64)?;
            }
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(self.failed("make 'register'", "see its permissions and free space"))
    }
}

fn sync_parent(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
pub mod tests {
    use onlyonce_wire::authority::Member;
    use onlyonce_wire::{ClusterId, Incarnation, ProposalId, StoreId, View};
    use tempfile::TempDir;

    use super::*;

    /// A register of view `view`.
    pub fn register(view: u64) -> Register {
        let primary = Member {
            store: StoreId(1),
            name: "n1".to_owned(),
            client_address: "127.0.0.1:1".to_owned(),
            peer_address: "127.0.0.1:2".to_owned(),
        };
        Register {
            cluster: ClusterId(7),
            incarnation: Incarnation(1),
            view: View(view),
            proposal: ProposalId(u128::from(view)),
            bumps: 0,
            primary,
            backups: vec![],
        }
    }

    /// A folder whose register was changed `changes` times, closed again.
    fn written(changes: u64) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let mut slots = Slots::open(folder.path()).expect("opens");
        assert_eq!(slots.now(), &Versioned { revision: Revision(0), register: None });
        for change in 0..changes {
            let swap = slots.compare_and_swap(Revision(change), register(change + 1));
            assert!(matches!(swap, Ok(SlotSwap::Swapped(_))), "{swap:?}");
        }
        folder
    }

    fn revision(folder: &TempDir) -> u64 {
        Slots::open(folder.path()).expect("opens").now().revision.0
    }

    fn overwrite(folder: &TempDir, at: usize, bytes: &[u8]) {
        let path = folder.path().join("register");
        let file = OpenOptions::new().write(true).open(path).expect("opens");
        file.write_all_at(bytes, at as u64).expect("written");
    }

    fn slot_of(folder: &TempDir, slot: usize) -> Vec<u8> {
        let bytes = std::fs::read(folder.path().join("register")).expect("read");
        bytes[slot * SLOT_BYTES..][..SLOT_BYTES].to_vec()
    }

    /// The register survives a restart; a swap at another revision changes nothing.
    #[test]
    fn a_restart_keeps_the_register() {
        let folder = written(3);
        let mut slots = Slots::open(folder.path()).expect("opens");
        assert_eq!(slots.now().register, Some(register(3)));
        let swap = slots.compare_and_swap(Revision(2), register(9)).expect("no error");
        assert_eq!(swap, SlotSwap::Conflict(slots.now().clone()));
        drop(slots);
        assert_eq!(revision(&folder), 3);
    }

    /// The bytes of a copy that mean something.
    fn used(folder: &TempDir) -> usize {
        let slot = slot_of(folder, 0);
        slot.iter().rposition(|byte| *byte != 0).expect("a register") + 1
    }

    /// One damaged byte, any of either copy, never loses an acknowledged change, and is repaired.
    #[test]
    fn one_damaged_copy_loses_nothing() {
        let folder = written(3);
        let good = slot_of(&folder, 0);
        for slot in 0..SLOTS {
            for at in 0..used(&folder) {
                overwrite(&folder, slot * SLOT_BYTES + at, &[good[at] ^ (1 << (at % 8))]);
                let slots = Slots::open(folder.path()).expect("opens");
                assert_eq!(slots.now().register, Some(register(3)), "copy {slot}, byte {at}");
                assert_eq!(slot_of(&folder, slot), good, "copy {slot}, byte {at} is repaired");
            }
        }
    }

    /// The same byte damaged in both copies, whichever it is, is refused and left as it is.
    #[test]
    fn two_damaged_copies_are_refused() {
        let folder = written(3);
        let good = slot_of(&folder, 0);
        for (at, byte) in good.iter().enumerate().take(used(&folder)) {
            for damage in [1 << (at % 8), 0] {
                for slot in 0..SLOTS {
                    overwrite(&folder, slot * SLOT_BYTES + at, &[byte ^ damage]);
                }
                let opened = Slots::open(folder.path());
                assert_eq!(opened.is_err(), damage != 0, "byte {at}: {opened:?}");
            }
        }
    }

    /// A file that lost its end keeps the register while one whole copy is left.
    #[test]
    fn a_shortened_file_is_repaired_or_refused() {
        for length in [0, 1, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 9, 2 * SLOT_BYTES - 1] {
            let folder = written(3);
            let file = OpenOptions::new().write(true).open(folder.path().join("register"));
            file.and_then(|file| file.set_len(length as u64)).expect("shortened");
            match Slots::open(folder.path()) {
                Ok(slots) => {
                    assert!(length >= SLOT_BYTES, "{length} bytes were taken for a register");
                    assert_eq!(slots.now().register, Some(register(3)));
                    assert_eq!(slot_of(&folder, 0), slot_of(&folder, 1), "repaired");
                }
                Err(error) => {
                    assert!(length < SLOT_BYTES, "{length} bytes: {error}");
                    assert!(matches!(error, SlotsError::Damaged { .. }), "{error}");
                }
            }
        }
    }

    /// A change cut off at any of its writes leaves the old register or the new one.
    #[test]
    fn a_torn_change_leaves_old_or_new() {
        let next = Versioned { revision: Revision(4), register: Some(register(4)) };
        let next = slot_bytes(&next);
        let used = next.iter().rposition(|byte| *byte != 0).expect("a register") + 1;
        for torn in (1..used).step_by(5).chain([SLOT_BYTES]) {
            let folder = written(3);
            overwrite(&folder, 0, &next[..torn]);
            // The bytes that differ come first: what is torn behind them is whole.
            let expected = if slot_of(&folder, 0) == next { 4 } else { 3 };
            assert_eq!(revision(&folder), expected, "copy 0 torn after {torn} bytes");
            assert_eq!(slot_of(&folder, 0), slot_of(&folder, 1), "repaired");

            let folder = written(3);
            overwrite(&folder, 0, &next);
            overwrite(&folder, SLOT_BYTES, &next[..torn]);
            assert_eq!(revision(&folder), 4, "copy 1 torn after {torn} bytes");
        }
    }

    /// Two damaged copies, a lost file and a second process are refused with their reason.
    #[test]
    fn it_never_guesses() {
        let folder = written(2);
        overwrite(&folder, 20, &[0xff; 8]);
        overwrite(&folder, SLOT_BYTES + 20, &[0xff; 8]);
        let error = Slots::open(folder.path()).expect_err("both are damaged");
        assert!(matches!(error, SlotsError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("checksum"), "{error}");

        let folder = written(2);
        let zeroes = vec![0; SLOTS * SLOT_BYTES];
        overwrite(&folder, 0, &zeroes);
        assert!(Slots::open(folder.path()).is_err(), "zeroes are no register");

        let folder = written(2);
        std::fs::remove_file(folder.path().join("register")).expect("removed");
        assert!(matches!(Slots::open(folder.path()), Err(SlotsError::Lost(_))));

        let folder = written(0);
        let _open = Slots::open(folder.path()).expect("opens");
        assert!(matches!(Slots::open(folder.path()), Err(SlotsError::InUse(_))));
    }

    /// A folder with something else in it is left alone; one whose making was cut short is not.
    #[test]
    fn a_foreign_folder_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["lock", "register.new", "format", "head"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let error = Slots::open(folder.path()).expect_err("it is a node's");
        assert!(error.to_string().contains("holds \"format\""), "{error}");
        assert!(!folder.path().join("register").exists(), "nothing was made");
        for name in ["format", "head"] {
            std::fs::remove_file(folder.path().join(name)).expect("removed");
        }
        Slots::open(folder.path()).expect("begun anew");
    }

    /// A register over its limit is refused, and the longest that views need fits.
    #[test]
    fn the_length_is_limited() {
        let folder = written(0);
        let mut slots = Slots::open(folder.path()).expect("opens");
        let label = "x".repeat(onlyonce_wire::limits::NAME_BYTES_MAX);
        let mut longest = register(1);
        longest.primary.name.clone_from(&label);
        longest.primary.client_address.clone_from(&label);
        longest.primary.peer_address = label;
        let member = longest.primary.clone();
        longest.backups = vec![member; onlyonce_wire::limits::REPLICAS_MAX - 1];
        let mut long = longest.clone();
        long.backups.push(long.primary.clone());
        let swap = slots.compare_and_swap(Revision(0), long).expect("no error");
        assert!(matches!(swap, SlotSwap::TooLong(_)), "one replica too many was taken");
        let swap = slots.compare_and_swap(Revision(0), longest).expect("no error");
        assert!(matches!(swap, SlotSwap::Swapped(_)), "the longest register was refused");
    }
}
