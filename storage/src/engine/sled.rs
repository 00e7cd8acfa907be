//! sled 0.34.7 as the [`Engine`], with the help that it needs to be durable.
//!
//! - Its `flush` ends in `sync_file_range`, which is no barrier: after a power failure the
//!   database may not even open. [`barrier`] puts `fdatasync` in its place, and
//!   [`open`] refuses to go on when a flush does not reach it.
//! - A kill while sled opens leaves `snap.*.generating`, which fails every later open: removed.
//! - `blobs/` is never synced. Nodes far below a quarter of a segment never go there; if something
//!   did, the store is not trusted.
//! - It never syncs `conf` nor its folder: done here after creation.
//! - Its background flusher is off: the store says when to flush. `apply_batch` and transactions
//!   take a process-wide lock and cost a second sync: rows are written one by one.
//!
//! Nothing outside this file names sled.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Engine, Row, Rows, Tree};
use crate::error::{Cause, EngineError, OpenError};
use crate::limits::SEGMENT;

/// How long an open waits for an earlier store of this same process to let go of its files: sled's
/// threads hold them a little longer than the store itself.
const LINGER: Duration = Duration::from_secs(5);

/// The true barrier: what sled calls to sync, and what it gets.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "sled can only be given a true barrier by replacing the C function")]
mod barrier {
    use std::fs::File;
    use std::mem::ManuallyDrop;
    use std::os::fd::FromRawFd;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, PoisonError};

    /// How many syncs were completed by this process.
    static SYNCS: AtomicU64 = AtomicU64::new(0);

    /// One lock for each few descriptors. When two threads sync one file, the kernel reports a
    /// failed write to only one of them: the other must not return before the process has ended.
    static LOCKS: [Mutex<()>; 16] = [const { Mutex::new(()) }; 16];

    pub(super) fn syncs() -> u64 {
        SYNCS.load(Ordering::Acquire)
    }

    /// Takes the place of the C library's function of this name, which sled calls after each write
    /// and which promises nothing: syncs the file's data and its length.
    ///
    /// When that fails it ends the process: sled would wait for ever, and a second try would find
    /// nothing left to write and succeed, with the data lost.
    #[unsafe(no_mangle)]
    pub(super) extern "C" fn sync_file_range(
        fd: i32,
        _offset: i64,
        _bytes: i64,
        _flags: u32,
    ) -> i32 {
        let Ok(number) = usize::try_from(fd) else {
            end(fd, &std::io::Error::other("it is no descriptor"))
        };
        let lock = &LOCKS[number % LOCKS.len()];
        let _one_at_a_time = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller owns `fd` and keeps it open for the length of this call, and
        // `ManuallyDrop` leaves it open.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        if let Err(error) = file.sync_data() {
            end(fd, &error);
        }
        SYNCS.fetch_add(1, Ordering::AcqRel);
        0
    }

    fn end(fd: i32, error: &std::io::Error) -> ! {
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        eprintln!(
            "onlyonce: fdatasync of file descriptor {fd} ({}) failed: {error}; what it should have \
             made durable may be lost, so the process ends here",
            path.display()
        );
        std::process::abort()
    }
}

#[cfg(not(target_os = "linux"))]
compile_error!("sled's flush is made a real barrier on Linux only");

impl From<sled::Error> for Cause {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => error.into(),
            sled::Error::Corruption { at, .. } => {
                let place = at.map_or_else(String::new, |at| format!(" at {}", at.lid()));
                Self::Damaged { found: format!("sled cannot read what it wrote{place}") }
            }
            sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_) => Self::Other(error.to_string()),
        }
    }
}

/// What keeps the data folder this process's own for as long as a database is open.
pub(crate) type FolderLock = Arc<File>;

/// Opens the database in `folder`, which it creates if need be, and makes all that was recovered
/// durable.
pub(crate) fn open(
    folder: &Path,
    trees: &[Tree],
    cache_bytes: u64,
    lock: FolderLock,
) -> Result<Arc<dyn Engine>, OpenError> {
    let io = |doing, path: &Path, source| OpenError::Io { path: path.to_owned(), doing, source };
    if folder.is_dir() {
        remove_generating(folder)?;
        refuse_blobs(folder)?;
    } else {
        fs::create_dir(folder).map_err(|source| io("create the folder", folder, source))?;
    }
    let place = folder.display().to_string();
    let error = |doing: &'static str, source: sled::Error| {
        OpenError::from(EngineError::new(place.clone(), doing, source))
    };
    let db = open_db(folder, cache_bytes)?;
    let mut engine = SledEngine { place: place.clone(), trees: Vec::new(), db, _lock: lock };
    for tree in trees {
        let opened = engine.db.open_tree(tree.name());
        engine.trees.push((*tree, opened.map_err(|source| error("open a tree", source))?));
    }
    engine.reach_barrier()?;
    refuse_blobs(folder)?;
    for path in [folder.join("conf"), folder.join("blobs"), folder.to_owned()] {
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|source| io("sync", &path, source))?;
    }
    Ok(Arc::new(engine))
}

fn open_db(folder: &Path, cache_bytes: u64) -> Result<sled::Db, OpenError> {
    let config = sled::Config::new()
        .path(folder)
        .cache_capacity(cache_bytes)
        .segment_size(SEGMENT)
        .flush_every_ms(None);
    let patience = Instant::now() + LINGER;
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            // The data folder is locked, so only this process can hold the database's own lock.
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock")
                    && Instant::now() < patience =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(source) => {
                let place = folder.display().to_string();
                return Err(EngineError::new(place, "open the database", source).into());
            }
        }
    }
}

fn names(folder: &Path) -> Result<Vec<(String, PathBuf)>, OpenError> {
    let io = |source| OpenError::Io { path: folder.to_owned(), doing: "list the folder", source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        names.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(names)
}

/// Removes what a kill during sled's open leaves behind: it would fail every later open.
fn remove_generating(folder: &Path) -> Result<(), OpenError> {
    for (name, path) in names(folder)? {
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %path.display(), "removing an unfinished snapshot of sled");
            fs::remove_file(&path).map_err(|source| OpenError::Io {
                path,
                doing: "remove the unfinished snapshot",
                source,
            })?;
        }
    }
    Ok(())
}

fn refuse_blobs(folder: &Path) -> Result<(), OpenError> {
    let blobs = folder.join("blobs");
    match fs::metadata(&blobs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(OpenError::Io { path: blobs, doing: "read", source }),
        Ok(_) => {}
    }
    match names(&blobs)?.into_iter().next() {
        Some((found, _)) => Err(OpenError::Blobs { folder: blobs, found }),
        None => Ok(()),
    }
}

struct SledEngine {
    place: String,
    trees: Vec<(Tree, sled::Tree)>,
    db: sled::Db,
    /// Released after the database, since fields are dropped in order.
    _lock: FolderLock,
}

impl std::fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SledEngine({})", self.place)
    }
}

impl SledEngine {
    fn tree(&self, tree: Tree) -> &sled::Tree {
        let found = self.trees.iter().find(|(of, _)| *of == tree);
        &found.expect("a tree of this database").1
    }

    fn error(&self, doing: &'static str, source: sled::Error) -> EngineError {
        EngineError::new(self.place.clone(), doing, source)
    }

    /// Proves that a flush ends in [`barrier`].
    ///
    /// It is also what makes recovered rows durable: after a kill they may be in the page cache
    /// only, and sled, which has nothing to write, would not sync them. The sync covers the file.
    fn reach_barrier(&self) -> Result<(), OpenError> {
        let before = barrier::syncs();
        let row = self.get(Tree::Meta, b"barrier")?;
        let count = row.and_then(|row| row.first_chunk().copied()).map_or(0, u64::from_le_bytes);
        self.insert(Tree::Meta, b"barrier", &count.wrapping_add(1).to_le_bytes())?;
        self.flush()?;
        if barrier::syncs() == before {
            return Err(OpenError::BarrierNotReached { place: self.place.clone() });
        }
        Ok(())
    }
}

fn copied(value: &sled::IVec) -> Bytes {
    Bytes::copy_from_slice(value)
}

impl Engine for SledEngine {
    fn place(&self) -> &str {
        &self.place
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let row = self.tree(tree).get(key).map_err(|source| self.error("read a row", source))?;
        Ok(row.as_ref().map(copied))
    }

    fn scan(&self, tree: Tree, start: &[u8], end: Option<&[u8]>) -> Rows<'_> {
        let tree = self.tree(tree);
        let rows = match end {
            Some(end) if end <= start => return Box::new(std::iter::empty()),
            Some(end) => tree.range(start..end),
            None => tree.range(start..),
        };
        Box::new(rows.map(|row| match row {
            Ok((key, value)) => Ok((copied(&key), copied(&value))),
            Err(source) => Err(self.error("scan rows", source)),
        }))
    }

    fn last(&self, tree: Tree) -> Result<Option<Row>, EngineError> {
        let row = self.tree(tree).last();
        let row = row.map_err(|source| self.error("read the last row", source))?;
        Ok(row.map(|(key, value)| (copied(&key), copied(&value))))
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let old = self.tree(tree).insert(key, value);
        let old = old.map_err(|source| self.error("write a row", source))?;
        Ok(old.as_ref().map(copied))
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let old = self.tree(tree).remove(key);
        let old = old.map_err(|source| self.error("remove a row", source))?;
        Ok(old.as_ref().map(copied))
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.db.flush().map(drop).map_err(|source| self.error("flush", source))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "ONCE_TEST_SYNC_FAILS";

    /// A failed sync ends the process, with a message that names the descriptor and the error.
    #[test]
    fn a_failed_sync_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let unsyncable = File::open("/dev/null").expect("it is there");
            barrier::sync_file_range(unsyncable.as_raw_fd(), 0, 0, 0);
            unreachable!("the process has ended");
        }
        let this = std::env::current_exe().expect("this test");
        let output = Command::new(this)
            .args(["--exact", "engine::sled::tests::a_failed_sync_ends_the_process", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("the child runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "it ended with {}", output.status);
        assert!(said.contains("fdatasync of file descriptor"), "it said: {said}");
        assert!(said.contains("/dev/null") && said.contains("Invalid argument"), "it said: {said}");
    }

    /// What sled cannot read is called damage, and what the system refuses is not; each says what
    /// to do about it.
    #[test]
    fn errors_say_what_to_do() {
        let says =
            |error: sled::Error| EngineError::new("data/log", "read a row", error).to_string();
        let damaged = "data/log: cannot read a row: its files are damaged (";
        for error in [
            sled::Error::Corruption { at: None, bt: () },
            sled::Error::Io(io::ErrorKind::UnexpectedEof.into()),
        ] {
            let text = says(error);
            assert!(text.starts_with(damaged) && text.contains("new, empty one"), "{text}");
            assert!(!text.contains("backtrace") && !text.contains("None"), "{text}");
        }
        for (kind, advice) in [
            (io::ErrorKind::StorageFull, "make room"),
            (io::ErrorKind::PermissionDenied, "let the user"),
            (io::ErrorKind::Other, "kernel's log"),
        ] {
            let text = says(sled::Error::Io(kind.into()));
            assert!(text.contains(advice) && !text.contains("damaged"), "{text}");
        }
    }

    /// Every flush of something new is synced once.
    #[test]
    fn a_flush_reaches_the_barrier() {
        let guard = tempfile::tempdir().expect("a temporary folder");
        let lock = Arc::new(File::create(guard.path().join("lock")).expect("a file"));
        let folder = guard.path().join("log");
        let engine = open(&folder, Tree::LOG, 1 << 20, lock).expect("a new database");
        for row in 0..3u8 {
            let before = barrier::syncs();
            engine.insert(Tree::Records, &[row], b"value").expect("the disk works");
            engine.flush().expect("the disk works");
            assert!(barrier::syncs() > before, "flush {row} was synced");
        }
    }
}
