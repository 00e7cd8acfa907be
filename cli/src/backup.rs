//! `once backup`: the file, and its progress.
//!
//! A file is written beside its place, synced, and then put there: what has the name is a whole backup.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use onlyonce_client::{Backup, BackupStep, Client};
use serde_json::json;

use crate::output::{End, Printer};
use crate::run::patiently;

/// How often its progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);
/// What is written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// Makes a backup in the file `target`, or on standard output if it is `-`.
pub async fn backup(client: &Client, target: &Path, printer: &Printer) -> Result<(), End> {
    let mut progress = Progress::new(printer);
    if target == OsStr::new("-") {
        let (backup, index) = to_output(client, &mut progress).await?;
        eprintln!("once: {}", progress.summary(&backup, index));
        return Ok(());
    }
    let partial = Partial::create(target)?;
    let (backup, index) = partial.fill(client, &mut progress).await?;
    let begin = backup.begin().expect("a whole backup has a beginning");
    let json = json!({
        "file": target.to_string_lossy(),
        "bytes": progress.bytes,
        "index": index,
        "cluster": begin.cluster.to_string(),
        "incarnation": begin.incarnation.0,
    });
    printer.line(format!("{}: {}", target.display(), progress.summary(&backup, index)), &json)
}

/// The next step; says what is the matter when it takes long.
async fn next(client: &Client, backup: &mut Backup) -> Result<BackupStep, End> {
    patiently(client, async { backup.next().await.map_err(End::from) }).await
}

async fn to_output(client: &Client, progress: &mut Progress<'_>) -> Result<(Backup, u64), End> {
    let mut out = io::stdout().lock();
    let failed = |error| End::file(Path::new("standard output"), error);
    let mut backup = client.backup();
    loop {
        let (bytes, last) = match next(client, &mut backup).await? {
            BackupStep::Bytes(bytes) => (bytes, None),
            BackupStep::Last { bytes, index } => (bytes, Some(index)),
            BackupStep::Anew if progress.bytes == 0 => continue,
            BackupStep::Anew => return Err(End::BackupCut),
        };
        out.write_all(&bytes).map_err(failed)?;
        progress.wrote(bytes.len());
        if let Some(index) = last {
            out.flush().map_err(failed)?;
            return Ok((backup, index));
        }
    }
}

/// A backup that is not yet complete, under another name.
struct Partial {
    target: PathBuf,
    path: PathBuf,
    file: File,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, End> {
        let mut path = target.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let failed = |error| End::file(&path, error);
        if target.file_name().is_none() || target.is_dir() {
            return Err(End::Usage(format!("{} is a folder: name a file", target.display())));
        }
        // Not emptied before it is known that nobody else writes it.
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(failed)?;
        let is_named = |file: &File| -> io::Result<bool> {
            let (mine, named) = (file.metadata()?, fs::metadata(&path)?);
            Ok((mine.dev(), mine.ino()) == (named.dev(), named.ino()))
        };
        match file.try_lock() {
            // Another process may have made it a whole backup just now.
            Ok(()) if is_named(&file).unwrap_or(false) => {}
            Ok(()) | Err(TryLockError::WouldBlock) => {
                return Err(End::file(&path, io::Error::other("another process writes it")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        Ok(Self { target: target.to_owned(), path, file })
    }

    /// Writes it, and gives it its name.
    async fn fill(
        self,
        client: &Client,
        progress: &mut Progress<'_>,
    ) -> Result<(Backup, u64), End> {
        let failed = |error| End::file(&self.path, error);
        let mut backup = client.backup();
        let mut out = BufWriter::with_capacity(WRITE_BYTES, &self.file);
        let index = loop {
            match next(client, &mut backup).await? {
                BackupStep::Bytes(bytes) => {
                    out.write_all(&bytes).map_err(failed)?;
                    progress.wrote(bytes.len());
                }
                BackupStep::Last { bytes, index } => {
                    out.write_all(&bytes).map_err(failed)?;
                    progress.wrote(bytes.len());
                    break index;
                }
                BackupStep::Anew => {
                    // What is buffered goes to the file, and away with it.
                    out.flush().map_err(failed)?;
                    io::Seek::rewind(&mut out).map_err(failed)?;
                    self.file.set_len(0).map_err(failed)?;
                    progress.anew();
                }
            }
        };
        out.flush().map_err(failed)?;
        drop(out);
        self.file.sync_all().map_err(failed)?;
        let named = || {
            fs::rename(&self.path, &self.target)?;
            let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        named().map_err(|error| End::file(&self.target, error))?;
        Ok((backup, index))
    }
}

/// Tells on standard error how far it is.
struct Progress<'a> {
    printer: &'a Printer,
    bytes: u64,
    begun: Instant,
    told: Instant,
}

impl<'a> Progress<'a> {
    fn new(printer: &'a Printer) -> Self {
        let now = Instant::now();
        Self { printer, bytes: 0, begun: now, told: now }
    }

    fn wrote(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            let seconds = self.begun.elapsed().as_secs_f64();
            if self.printer.json {
                eprintln!("{}", json!({ "progress": { "bytes": self.bytes, "seconds": seconds } }));
            } else {
                eprintln!("once: {} after {seconds:.0} s", megabytes(self.bytes));
            }
        }
    }

    fn anew(&mut self) {
        let why = "the node that made the backup does not go on with it";
        if self.printer.json {
            eprintln!("{}", json!({ "progress": { "bytes": 0, "anew": why } }));
        } else {
            eprintln!("once: {why}: it begins anew ({} are of no use)", megabytes(self.bytes));
        }
        self.bytes = 0;
    }

    fn summary(&self, backup: &Backup, index: u64) -> String {
        let cluster = backup.begin().map(|begin| begin.cluster.to_string()).unwrap_or_default();
        let seconds = self.begun.elapsed().as_secs_f64();
        format!(
            "cluster {cluster} as of record {index}, {} in {seconds:.1} s",
            megabytes(self.bytes)
        )
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
