//! Where an outbox is, and that nobody else is there.
//!
//! The file may be replaced by a new one, so two locks are held: one on a file beside it, which stays
//! (whoever makes or replaces the outbox holds it), and one on the outbox itself, so that whoever
//! comes by another name, or after the first lock was tidied away, is stopped as well.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::OutboxError;
use super::file::HEADER;

/// How the names of the files beside an outbox end: no outbox has such a name, so none is taken for
/// what another one needs.
const ENDINGS: [&str; 2] = [LOCK, NEW];
const LOCK: &str = ".lock";
const NEW: &str = ".new";

/// The place of one outbox, which is this client's alone.
pub(super) struct Place {
    /// Without links, whatever links led here, and whatever becomes of them.
    path: PathBuf,
    /// Held as long as this lives.
    _lock: Locked,
}

impl Place {
    /// Takes the place that `path` leads to. There need not be a file yet.
    pub(super) fn take(path: &Path) -> Result<Self, OutboxError> {
        let path = resolve(path)?;
        if ENDINGS.iter().any(|ending| path.as_os_str().as_bytes().ends_with(ending.as_bytes())) {
            return Err(OutboxError::Reserved);
        }
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(beside(&path, LOCK))?;
        Ok(Self { path, _lock: Locked::new(lock)? })
    }

    /// Opens the file at this place, if there is one.
    pub(super) fn open(&self) -> Result<Option<Locked>, OutboxError> {
        let file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let file = Locked::new(file)?;
        let found = file.metadata()?;
        if !found.is_file() {
            // A device or a pipe, which reads as empty, is never replaced by a new outbox.
            return Err(OutboxError::NotAnOutbox);
        }
        match found.nlink() {
            0 | 1 => Ok(Some(file)),
            names => Err(OutboxError::Linked { names }),
        }
    }

    /// Checks that `file` is still what a client finds here.
    pub(super) fn check(&self, file: &File) -> Result<(), OutboxError> {
        let identity = |file: &Metadata| (file.dev(), file.ino());
        match std::fs::metadata(&self.path) {
            Ok(found) if identity(&found) == identity(&file.metadata()?) => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            Ok(_) | Err(_) => Err(OutboxError::Moved),
        }
    }

    /// Puts a file with this content here and opens it, or leaves everything as it was.
    pub(super) fn replace(&self, content: &[u8]) -> Result<Locked, OutboxError> {
        let name = beside(&self.path, NEW);
        let mut options = OpenOptions::new();
        let new = options.create(true).truncate(false).read(true).write(true).open(&name)?;
        let new = Locked::new(new)?;
        if !was_left(&new)? {
            return Err(OutboxError::Beside { path: name });
        }
        new.set_len(0)?;
        (&*new).rewind()?;
        (&*new).write_all(content)?;
        new.sync_all()?;
        std::fs::rename(&name, &self.path)?;
        self.sync_folder()?;
        Ok(new)
    }

    /// The file stays findable here.
    pub(super) fn sync_folder(&self) -> io::Result<()> {
        let folder = self.path.parent().expect("a file is in a folder");
        File::open(folder)?.sync_all()
    }
}

/// Whether a file is empty, or one that a crash left behind before it took an outbox's place: what was
/// not synced may be cut, or zeros.
fn was_left(new: &File) -> Result<bool, OutboxError> {
    if !new.metadata()?.is_file() {
        return Ok(false);
    }
    let mut begin = Vec::new();
    new.take(HEADER.len() as u64).read_to_end(&mut begin)?;
    Ok(HEADER.starts_with(&begin) || begin.iter().all(|byte| *byte == 0))
}

/// The path without links. Its last part need not be there.
fn resolve(path: &Path) -> Result<PathBuf, OutboxError> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
        found => return Ok(found?),
    }
    let name = path.file_name().ok_or(OutboxError::NotAnOutbox)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok(folder.unwrap_or(Path::new(".")).canonicalize()?.join(name))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A file with a lock on it.
///
/// The lock is given back rather than left to go with the file: a process that is being started at
/// that moment has the file open for a little longer.
pub(super) struct Locked(File);

impl Locked {
    fn new(file: File) -> Result<Self, OutboxError> {
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(OutboxError::InUse),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // If that fails, the lock goes with the file.
        let _ = self.0.unlock();
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}
