//! A data folder: its layout, its lock, and how one is made.
//!
//! ```text
//! lock        held by the process that has the folder open
//! creating    there while the folder is being made: what else is there holds nothing yet
//! restoring   there while a store is restored into the folder: it must not become an empty store
//! format      what the folder is, as text; written last, so a folder with it is complete
//! head        see `head`
//! log/        the log database
//! tables/     the tables database
//! incoming/   a store that is being built to replace this one: head, log/ and tables/
//! replace     there once `incoming/` is complete: its parts take the place of the old ones
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::sled::FolderLock;
use crate::engine::{HeadFile, Tree, sled};
use crate::error::{Damage, EngineError, OpenError, StorageError};
use crate::failpoints::{Point, failpoint};
use crate::limits::{FORMAT, INCOMING_CACHE_BYTES, SEGMENT, SLOT_BYTES};
use crate::open::{Disk, Opened, Options, open_or_create};
use crate::snapshot::{Incoming, Site};

const LOCK: &str = "lock";
const CREATING: &str = "creating";
const RESTORING: &str = "restoring";
const FORMAT_FILE: &str = "format";
const FORMAT_NEW: &str = "format.new";
const HEAD: &str = "head";
const LOG: &str = "log";
const TABLES: &str = "tables";
const INCOMING: &str = "incoming";
const REPLACE: &str = "replace";
/// What file systems and editors leave in a folder that is empty for their users.
const IGNORED: [&str; 2] = [LOCK, "lost+found"];

/// The first line of the file `format`, in every release.
const TITLE: &str = "onlyonce data folder\n";

/// The text of the file `format`.
fn format_text() -> String {
    format!("{TITLE}format {FORMAT}\nengine sled 0.34.7, segment {SEGMENT}\n")
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.to_owned(), doing, source }
}

/// Opens the store in the data folder `path`, or makes one if the folder is empty or missing (its
/// parent must be there).
pub fn open_dir(path: impl AsRef<Path>, options: &Options) -> Result<Opened, OpenError> {
    let folder = path.as_ref();
    let (content, lock) = enter(folder)?;
    match content {
        Content::Store => {
            check_format(folder)?;
            remove(&folder.join(CREATING))?;
            remove(&folder.join(RESTORING))?;
            settle_incoming(folder)?;
            open_or_create(disk(folder, options, &lock)?, options, false)
        }
        Content::Nothing => create(folder, options, &lock),
        Content::Restoring => Err(OpenError::HalfRestored { folder: folder.to_owned() }),
    }
}

/// Begins to build a store in the data folder `path`, which must be empty or missing (its parent must
/// be there), or hold what an earlier attempt left. Until [`Incoming::finish`] it is not opened.
pub fn build_dir(path: impl AsRef<Path>, options: &Options) -> Result<Incoming, OpenError> {
    let folder = path.as_ref();
    let (content, lock) = enter(folder)?;
    match content {
        Content::Store => Err(OpenError::HoldsStore { folder: folder.to_owned() }),
        Content::Nothing | Content::Restoring => {
            let site = NewSite { folder: folder.to_owned(), options: options.clone(), lock };
            Incoming::begin(Arc::new(site), options.new_store_id)
        }
    }
}

/// Locks a data folder, made if it is missing, and tells what it is.
fn enter(folder: &Path) -> Result<(Content, FolderLock), OpenError> {
    if !folder.exists() {
        fs::create_dir(folder)
            .map_err(|source| OpenError::NoFolder { folder: folder.to_owned(), source })?;
    }
    look_at(folder)?;
    let lock = lock(folder)?;
    // Another process may have made it a store in between.
    Ok((look_at(folder)?, lock))
}

/// Whether `path` is a data folder that was made completely. Tools ask before they open one, since
/// [`open_dir`] makes what is not there.
pub fn holds_store(path: impl AsRef<Path>) -> Result<bool, OpenError> {
    is_there(&path.as_ref().join(FORMAT_FILE))
}

enum Content {
    Store,
    /// Nothing, or a creation that was cut short.
    Nothing,
    /// A restore that was cut short.
    Restoring,
}

fn look_at(folder: &Path) -> Result<Content, OpenError> {
    let listing = || io_error(folder, "list the data folder");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(listing())? {
        names.push(entry.map_err(listing())?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has(FORMAT_FILE) {
        return Ok(Content::Store);
    }
    let is_begun = has(CREATING) || has(RESTORING);
    let known = [CREATING, RESTORING, FORMAT_NEW, HEAD, LOG, TABLES];
    let foreign = names.iter().find(|name| {
        let name = name.as_str();
        let ours = IGNORED.contains(&name) || (is_begun && known.contains(&name));
        !ours
    });
    match foreign {
        Some(found) => {
            Err(OpenError::NotAStore { folder: folder.to_owned(), found: found.clone() })
        }
        None if has(RESTORING) => Ok(Content::Restoring),
        None => Ok(Content::Nothing),
    }
}

fn lock(folder: &Path) -> Result<FolderLock, OpenError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(io_error(&path, "create the lock file"))?;
    match file.try_lock() {
        Ok(()) => Ok(Arc::new(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error(&path, "lock")(source)),
    }
}

fn check_format(folder: &Path) -> Result<(), OpenError> {
    let path = folder.join(FORMAT_FILE);
    let place = path.display().to_string();
    let damaged =
        |found| StorageError::Damaged { place: place.clone(), damage: Damage::BadFormat { found } };
    let mut text = Vec::new();
    match File::open(&path).and_then(|file| file.take(1024).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(damaged("a folder".to_owned()).into());
        }
        Err(error) => return Err(io_error(&path, "read")(error)),
    }
    let wanted = format_text();
    if text == wanted.as_bytes() {
        return Ok(());
    }
    let quoted = |text: &[u8]| format!("\"{}\"", text.escape_ascii());
    if is_other_release(&text) {
        let (found, wanted) = (quoted(&text), quoted(wanted.as_bytes()));
        return Err(OpenError::Format { place, found, wanted });
    }
    let found = if text.is_empty() { "empty".to_owned() } else { quoted(&text) };
    Err(damaged(found).into())
}

/// Whether `text` could be another release's: whole lines that begin as every release's do.
fn is_other_release(text: &[u8]) -> bool {
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    let title = lines.next() == Some(TITLE.as_bytes());
    let version = lines.next().and_then(|line| line.strip_prefix(b"format "));
    let version = version.and_then(|line| line.strip_suffix(b"\n"));
    let numbered =
        version.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
    // A file that was cut short after a whole line is this release's own.
    title && numbered && text.is_ascii() && !format_text().as_bytes().starts_with(text)
}

fn create(folder: &Path, options: &Options, lock: &FolderLock) -> Result<Opened, OpenError> {
    begin_folder(folder, CREATING)?;
    let opened = open_or_create(disk(folder, options, lock)?, options, true)?;
    complete_folder(folder)?;
    Ok(opened)
}

/// From now on the folder is being made, as the file `mark` in it says.
fn begin_folder(folder: &Path, mark: &str) -> Result<(), OpenError> {
    let mark = folder.join(mark);
    if !mark.exists() {
        File::create(&mark).map_err(io_error(&mark, "create"))?;
    }
    sync(folder)?;
    // Whatever an earlier attempt left holds nothing.
    for name in [FORMAT_NEW, HEAD, LOG, TABLES] {
        remove(&folder.join(name))?;
    }
    Ok(())
}

/// The databases and the head are whole: from now on the folder is a store.
fn complete_folder(folder: &Path) -> Result<(), OpenError> {
    sync(folder)?;
    let new = folder.join(FORMAT_NEW);
    File::create(&new)
        .and_then(|mut file| {
            file.write_all(format_text().as_bytes())?;
            file.sync_all()
        })
        .map_err(io_error(&new, "write"))?;
    let format = folder.join(FORMAT_FILE);
    fs::rename(&new, &format).map_err(io_error(&format, "put in its place"))?;
    sync(folder)?;
    for mark in [CREATING, RESTORING] {
        remove(&folder.join(mark))?;
    }
    sync(folder)?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync(parent.unwrap_or(Path::new(".")))
}

fn disk(folder: &Path, options: &Options, lock: &FolderLock) -> Result<Disk, OpenError> {
    let log = folder.join(LOG);
    let tables = folder.join(TABLES);
    let site = FolderSite {
        folder: folder.to_owned(),
        log_cache_bytes: options.log_cache_bytes.min(INCOMING_CACHE_BYTES),
        tables_cache_bytes: options.tables_cache_bytes.min(INCOMING_CACHE_BYTES),
        lock: lock.clone(),
    };
    Ok(Disk {
        log: sled::open(&log, Tree::LOG, options.log_cache_bytes, lock.clone())?,
        tables: sled::open(&tables, Tree::TABLES, options.tables_cache_bytes, lock.clone())?,
        head: Box::new(FileHead::open(&folder.join(HEAD), lock.clone())?),
        site: Arc::new(site),
    })
}

/// Finishes or removes what was built to replace the store. Each step can be repeated: a part that
/// is not in `incoming/` any more is in its place.
fn settle_incoming(folder: &Path) -> Result<(), OpenError> {
    let (incoming, replace) = (folder.join(INCOMING), folder.join(REPLACE));
    if is_there(&replace)? {
        for name in [LOG, TABLES, HEAD] {
            let (new, old) = (incoming.join(name), folder.join(name));
            if !is_there(&new)? {
                continue;
            }
            remove(&old)?;
            failpoint(Point::ReplaceRemoved);
            fs::rename(&new, &old).map_err(io_error(&old, "put in its place"))?;
            failpoint(Point::ReplaceMoved);
        }
        sync(folder)?;
        remove(&replace)?;
        sync(folder)?;
        failpoint(Point::ReplaceEnd);
    }
    remove(&incoming)
}

/// `incoming/` of a data folder.
#[derive(Debug)]
struct FolderSite {
    folder: PathBuf,
    log_cache_bytes: u64,
    tables_cache_bytes: u64,
    lock: FolderLock,
}

impl Site for FolderSite {
    fn clear(&self) -> Result<Disk, OpenError> {
        let incoming = self.folder.join(INCOMING);
        remove(&incoming)?;
        fs::create_dir(&incoming).map_err(io_error(&incoming, "create"))?;
        sync(&self.folder)?;
        let options = Options {
            log_cache_bytes: self.log_cache_bytes,
            tables_cache_bytes: self.tables_cache_bytes,
            ..Options::new(0)
        };
        disk(&incoming, &options, &self.lock)
    }

    fn accept(&self) -> Result<(), OpenError> {
        sync(&self.folder.join(INCOMING))?;
        let replace = self.folder.join(REPLACE);
        File::create(&replace)
            .and_then(|file| file.sync_all())
            .map_err(io_error(&replace, "create"))?;
        sync(&self.folder)
    }
}

/// A data folder that becomes a store by what is built in it.
#[derive(Debug)]
struct NewSite {
    folder: PathBuf,
    options: Options,
    lock: FolderLock,
}

impl Site for NewSite {
    fn clear(&self) -> Result<Disk, OpenError> {
        begin_folder(&self.folder, RESTORING)?;
        disk(&self.folder, &self.options, &self.lock)
    }

    fn accept(&self) -> Result<(), OpenError> {
        complete_folder(&self.folder)
    }
}

/// Whether something has this name. What cannot be looked at is not taken for gone.
fn is_there(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(io_error(path, "look at"))
}

/// Removes a file or a folder with all that is in it.
fn remove(path: &Path) -> Result<(), OpenError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(path, "remove")(error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a folder durable.
fn sync(folder: &Path) -> Result<(), OpenError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(io_error(folder, "sync"))
}

/// `head` as a file.
#[derive(Debug)]
struct FileHead {
    place: String,
    file: File,
    _lock: FolderLock,
}

impl FileHead {
    fn open(path: &Path, lock: FolderLock) -> Result<Self, OpenError> {
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(io_error(path, "open"))?;
        Ok(Self { place: path.display().to_string(), file, _lock: lock })
    }

    fn error(&self, doing: &'static str, source: io::Error) -> EngineError {
        EngineError::new(self.place.clone(), doing, source)
    }
}

impl HeadFile for FileHead {
    fn place(&self) -> &str {
        &self.place
    }

    fn read(&mut self) -> Result<Vec<u8>, EngineError> {
        let mut content = Vec::new();
        (&self.file)
            .take(3 * SLOT_BYTES as u64)
            .read_to_end(&mut content)
            .map_err(|source| self.error("read it", source))?;
        Ok(content)
    }

    fn write(&mut self, slot: usize, block: &[u8; SLOT_BYTES]) -> Result<(), EngineError> {
        let at = (slot * SLOT_BYTES) as u64;
        self.file.write_all_at(block, at).map_err(|source| self.error("write a slot", source))
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.file.sync_data().map_err(|source| self.error("sync", source))
    }
}
