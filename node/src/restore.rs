//! `onced restore`: a new store from a backup, in a new incarnation of its cluster's history.
//!
//! The file is read twice: once to check every piece of it before anything is written, and once to
//! build the store, whose rows must then come to the digests that the backup ends with. A restore that
//! is cut short leaves a folder that no node is started on.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use onlyonce_replica::Saved;
use onlyonce_storage::{Digests, Entry, Incoming, Index, Mark, Options, View, build_dir};
use onlyonce_wire::StoreId;
use onlyonce_wire::backup::{BackupBegin, BackupDecoder, BackupEnd, BackupError, BackupRecord};

use crate::exit::ExitError;
use crate::serve::say;

/// What is read of the file at a time.
const READ_BYTES: usize = 1 << 20;
/// What becomes of the folder when a restore fails after it was begun.
const REPEAT: &str = "The data folder cannot be used yet: repeat the restore, or remove it";

/// Restores `file` into `data`.
pub fn run(data: &Path, file: &Path) -> Result<(), ExitError> {
    if fs::metadata(file).is_ok_and(|found| !found.is_file()) {
        let text =
            format!("the backup {}: not a regular file, and it is read twice", file.display());
        return Err(ExitError::Runtime(text));
    }
    let (begin, end) = check(file)?;
    let mut store = build_dir(data, &Options::new(rand::random()))?;
    let rows = fold(file, &mut store)?;
    let BackupBegin { cluster, incarnation } = begin;
    if let Some(table) = store.digests().differs(&Digests::from_sums(end.digests)) {
        return Err(ExitError::Runtime(format!(
            "{}: the rows of table {} are not those that the cluster had: the node that it was made \
             from was damaged, use another backup. {REPEAT}",
            file.display(),
            table.name()
        )));
    }
    let mark = Mark { index: Index(end.index), view: View(end.view.0), chain: end.chain };
    let incarnation = incarnation.following(now_ms());
    let state = Saved::restored(cluster, incarnation, mark.view).encode();
    let (store_id, digests) = (StoreId(store.store_id()), store.digests());
    store.finish(mark, state)?;
    say(&format!(
        "store {store_id}: restored cluster {cluster} as of record {}: {rows} rows (digest {digests}), \
         in incarnation {incarnation} (the time, in ms)",
        mark.index
    ));
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn bad(file: &Path, error: &BackupError) -> ExitError {
    let advice = match error {
        BackupError::Io(_) | BackupError::Foreign | BackupError::Format(_) => "",
        BackupError::Header
        | BackupError::Piece { .. }
        | BackupError::Cut { .. }
        | BackupError::Trailing { .. } => "; use another copy of it, or another backup",
    };
    ExitError::Runtime(format!("the backup {}: {error}{advice}", file.display()))
}

type Decoder = BackupDecoder<BufReader<File>>;

fn open(file: &Path) -> Result<(Decoder, BackupBegin), BackupError> {
    BackupDecoder::new(BufReader::with_capacity(READ_BYTES, File::open(file)?))
}

/// What comes next in the file.
enum Next {
    Rows(Entry),
    End(BackupEnd),
}

fn next(decoder: &mut Decoder) -> Result<Next, BackupError> {
    match decoder.next_piece()? {
        BackupRecord::Rows(rows) => match Entry::decode(&rows) {
            Ok(entry) => Ok(Next::Rows(entry)),
            Err(_) => Err(decoder.refuse("its rows do not decode")),
        },
        BackupRecord::End(end) => Ok(Next::End(end)),
        BackupRecord::Begin(_) => Err(decoder.refuse("it begins another backup")),
    }
}

/// Reads all of the file.
fn check(file: &Path) -> Result<(BackupBegin, BackupEnd), ExitError> {
    let check = || {
        let (mut decoder, begin) = open(file)?;
        loop {
            if let Next::End(end) = next(&mut decoder)? {
                return Ok((begin, end));
            }
        }
    };
    check().map_err(|error| bad(file, &error))
}

/// Folds all of the file; returns how many rows it writes.
fn fold(file: &Path, store: &mut Incoming) -> Result<u64, ExitError> {
    let changed = |error| ExitError::Runtime(format!("{}. {REPEAT}", bad(file, &error)));
    let (mut decoder, _) = open(file).map_err(changed)?;
    let mut rows = 0;
    while let Next::Rows(entry) = next(&mut decoder).map_err(changed)? {
        rows += entry.effects.len() as u64;
        store.fold(&entry).map_err(|error| {
            ExitError::Runtime(format!("the store cannot be written: {error}. {REPEAT}"))
        })?;
    }
    Ok(rows)
}
