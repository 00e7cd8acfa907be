//! `once backup`: the file, and its progress.
//!
//! A file is written beside its place, synced, and then put there: what has the name is a whole backup.
//! What is there must be a regular file: no device, pipe or socket is ever replaced.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use onlyonce_client::{Backup, BackupStep, ClientBuilder, Error, NoAnswer};
use serde_json::json;

use crate::output::{End, Printer};
use crate::run::{PATIENCE, tell_waiting};

/// How often its progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);
/// What is written at a time.
const WRITE_BYTES: usize = 1 << 20;

const IS_FOLDER: &str = "a folder: name a file";
const NOT_REGULAR: &str =
    "not a regular file (a device, pipe or socket): name a file, or '-' for standard output";

/// Makes a backup in the file `target`, or on standard output if it is `-`. No step of it may take
/// longer than `deadline`.
pub async fn backup(
    builder: ClientBuilder,
    deadline: Option<Duration>,
    target: &Path,
    printer: &Printer,
) -> Result<(), End> {
    let mut steps = Steps::new(builder, deadline)?;
    let mut progress = Progress::new(printer);
    if target == OsStr::new("-") {
        let index = to_output(&mut steps, &mut progress).await?;
        eprintln!("once: {}", progress.summary(&steps.backup, index));
        return Ok(());
    }
    let partial = Partial::create(target)?;
    let index = partial.fill(&mut steps, &mut progress).await?;
    let begin = steps.backup.begin().expect("a whole backup has a beginning");
    let json = json!({
        "file": target.to_string_lossy(),
        "bytes": progress.bytes,
        "index": index,
        "cluster": begin.cluster.to_string(),
        "incarnation": begin.incarnation.0,
    });
    let summary = progress.summary(&steps.backup, index);
    printer.line(format!("{}: {summary}", target.display()), &json)
}

/// The steps of a backup, waited for with patience.
struct Steps {
    backup: Backup,
    deadline: Option<Duration>,
    /// How often the client gives a step up within the deadline; none: it never ends.
    tries: Option<u32>,
}

impl Steps {
    /// The client has a short deadline, so that it tells what it waits for.
    fn new(builder: ClientBuilder, deadline: Option<Duration>) -> Result<Self, End> {
        let tries = deadline.map(|all| {
            let tries = all.as_millis().div_ceil(PATIENCE.as_millis());
            u32::try_from(tries).unwrap_or(u32::MAX).max(1)
        });
        let patience = deadline.zip(tries).map_or(PATIENCE, |(all, tries)| all / tries);
        let client = builder.deadline(patience).build()?;
        Ok(Self { backup: client.backup(), deadline, tries })
    }

    /// The next step; says what is the matter when it takes long.
    async fn next(&mut self) -> Result<BackupStep, End> {
        let mut tried = 0;
        loop {
            let nodes = match self.backup.next().await {
                Err(Error::NoAnswer(NoAnswer { nodes, .. })) => nodes,
                ended => return Ok(ended?),
            };
            tried += 1;
            if let Some(within) = self.deadline.filter(|_| self.tries == Some(tried)) {
                return Err(Error::NoAnswer(NoAnswer { within, nodes }).into());
            }
            if tried == 1 {
                tell_waiting(nodes.0.iter().map(|node| (&*node.address, node.reason.clone())));
            }
        }
    }
}

/// Returns the record that it is as of.
async fn to_output(steps: &mut Steps, progress: &mut Progress<'_>) -> Result<u64, End> {
    let mut out = io::stdout().lock();
    let failed = |error| End::backup_file(Path::new("standard output"), error);
    loop {
        let (bytes, last) = match steps.next().await? {
            BackupStep::Bytes(bytes) => (bytes, None),
            BackupStep::Last { bytes, index } => (bytes, Some(index)),
            BackupStep::Anew if progress.bytes == 0 => continue,
            BackupStep::Anew => return Err(End::BackupCut),
        };
        out.write_all(&bytes).map_err(failed)?;
        progress.wrote(bytes.len());
        if let Some(index) = last {
            out.flush().map_err(failed)?;
            return Ok(index);
        }
    }
}

/// Where the file `target` is: what a link leads to is replaced, and not the link. What is there and is
/// no regular file is refused.
fn place(target: &Path) -> Result<PathBuf, End> {
    let refuse = |what: &str| End::Usage(format!("{} is {what}", target.display()));
    match fs::metadata(target) {
        Ok(found) if found.is_dir() => return Err(refuse(IS_FOLDER)),
        Ok(found) if !found.is_file() => return Err(refuse(NOT_REGULAR)),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(End::backup_file(target, error)),
    }
    let mut place = target.to_owned();
    // It ends: a link that leads back to itself was found to be one just now.
    while let Ok(leads_to) = fs::read_link(&place) {
        place = place.parent().unwrap_or(Path::new("")).join(leads_to);
    }
    if place.file_name().is_none() { Err(refuse(IS_FOLDER)) } else { Ok(place) }
}

/// A backup that is not yet complete, under another name.
struct Partial {
    target: PathBuf,
    path: PathBuf,
    file: File,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, End> {
        let target = place(target)?;
        let mut path = target.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let failed = |error| End::backup_file(&path, error);
        // It is given the name in the end: a link, say, must not be.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            let text = format!("{} is in the way, and not a regular file", path.display());
            return Err(End::Usage(text));
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
                return Err(End::backup_file(&path, io::Error::other("another process writes it")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        Ok(Self { target, path, file })
    }

    /// Writes it, and gives it its name; returns the record that it is as of.
    async fn fill(self, steps: &mut Steps, progress: &mut Progress<'_>) -> Result<u64, End> {
        let failed = |error| End::backup_file(&self.path, error);
        let mut out = BufWriter::with_capacity(WRITE_BYTES, &self.file);
        let index = loop {
            match steps.next().await? {
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
        named().map_err(|error| End::backup_file(&self.target, error))?;
        Ok(index)
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
