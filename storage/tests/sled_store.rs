//! The store on sled, in real folders.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{append, checkpoint, options, put, read, record_of};
use onlyonce_storage::{
    Damage, Effect, Entry, Index, OpenError, Opened, Record, Table, View, open_dir,
};

fn open(folder: &Path) -> Opened {
    open_dir(folder, &options()).unwrap_or_else(|error| panic!("the store opens: {error}"))
}

fn refused(folder: &Path) -> OpenError {
    let error = open_dir(folder, &options()).expect_err("the folder is refused");
    let text = error.to_string();
    assert!(text.contains(&folder.display().to_string()), "the folder is named: {text}");
    error
}

/// A data folder in a temporary one, which lasts as long as the guard.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let guard = tempfile::tempdir().expect("a temporary folder");
    let folder = guard.path().join("data");
    (guard, folder)
}

fn long_record(index: u64, bytes: usize) -> Arc<Record> {
    let entries: Vec<Entry> = vec![put("long", vec![b'x'; bytes])];
    Arc::new(Record::new(View(1), Index(index), Index::ZERO, entries))
}

/// Records, checkpoints, cuts and saved states survive being closed and opened again.
#[test]
fn a_store_survives_reopening() {
    let (_guard, folder) = folder();
    let mut store = open(&folder);
    assert!(store.fresh);
    append(&mut store, 1..=3);
    for (index, bytes) in [(4, 300_000), (5, 1 << 20)] {
        let record = long_record(index, bytes);
        store.state.stage_record(record.clone());
        store.log.append(&[record]).expect("the disk works");
        store.state.note_persisted(Index(index));
    }
    checkpoint(&mut store, 4);
    store.log.save(b"view 1").expect("the disk works");
    drop(store);

    let mut store = open(&folder);
    assert_eq!(store.state_bytes, &b"view 1"[..]);
    assert_eq!((store.state.applied(), store.state.last()), (Index(4), (View(1), Index(5))));
    assert_eq!(read(&store, "last").as_deref(), Some("3 of view 1"));
    assert_eq!(read(&store, "long").map(|value| value.len()), Some(1 << 20));
    store.state.unstage_after(Index(4));
    assert_eq!(read(&store, "long").map(|value| value.len()), Some(300_000));
    store.log.cut(Index(4), b"view 2").expect("the disk works");
    let record = record_of(2, 5);
    store.state.stage_record(record.clone());
    store.log.append(&[record]).expect("the disk works");
    while store.log.prune(Index(9)).expect("the disk works") {}
    drop(store);

    let store = open(&folder);
    assert_eq!(store.state_bytes, &b"view 2"[..]);
    assert_eq!((store.state.first(), store.state.last()), (Index(4), (View(2), Index(5))));
    assert_eq!(read(&store, "last").as_deref(), Some("5 of view 2"));
    assert_eq!(read(&store, "long").map(|value| value.len()), Some(300_000));
    let rows = store.state.scan(Table::Kv, b"row 2", Some(b"row 5\x00"));
    let keys: Vec<_> = rows.map(|row| row.expect("the disk works").key).collect();
    assert_eq!(keys, ["row 2", "row 3", "row 5"]);
}

/// A folder that a process has open is refused to another, by name.
#[test]
fn a_folder_in_use_is_refused() {
    let (_guard, folder) = folder();
    let store = open(&folder);
    assert!(matches!(refused(&folder), OpenError::InUse { .. }));
    drop(store);
    open(&folder);
}

/// A folder with something else in it is left alone.
#[test]
fn a_foreign_folder_is_refused() {
    let (_guard, folder) = folder();
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("thesis.tex"), "years of work").expect("a file");
    let error = refused(&folder);
    assert!(matches!(&error, OpenError::NotAStore { found, .. } if found == "thesis.tex"));
    let names: Vec<_> = fs::read_dir(&folder).expect("a folder").collect();
    assert_eq!(names.len(), 1, "nothing was made there");
}

/// Another format is named, with what was found and what was expected.
#[test]
fn another_format_is_refused() {
    let (_guard, folder) = folder();
    drop(open(&folder));
    let format = folder.join("format");
    let text = fs::read_to_string(&format).expect("the format file");
    fs::write(&format, text.replace("format 1", "format 7")).expect("the format file");
    let error = refused(&folder);
    assert!(matches!(error, OpenError::Format { .. }));
    assert!(error.to_string().contains("format 7"), "{error}");
}

/// A format file that no release writes is damage, not another release's.
#[test]
fn a_damaged_format_file_is_damage() {
    let (_guard, folder) = folder();
    drop(open(&folder));
    let format = folder.join("format");
    let whole = fs::read_to_string(&format).expect("the format file");
    let two_lines = whole.rfind("engine").expect("a third line");
    for text in ["", "onlyonce", &whole[..whole.len() - 1], &whole[..two_lines], "\0\0\0\0"] {
        fs::write(&format, text).expect("the format file");
        let error = refused(&folder);
        assert!(matches!(error.damage(), Some(Damage::BadFormat { .. })), "{text:?}: {error}");
    }
    fs::remove_file(&format).expect("the format file");
    fs::create_dir(&format).expect("a folder");
    let error = refused(&folder);
    assert!(matches!(error.damage(), Some(Damage::BadFormat { .. })), "{error}");
}

/// A folder's parents are never made, and the text says so.
#[test]
fn a_parent_is_not_made() {
    let (_guard, folder) = folder();
    let text = refused(&folder.join("below")).to_string();
    assert!(text.contains("make its parent folder first"), "{text}");
    assert!(!folder.exists());
}

/// A creation that was cut short is begun anew; a store that lost its format file is not.
#[test]
fn an_unfinished_creation_is_repeated() {
    let (_guard, folder) = folder();
    drop(open(&folder));
    fs::remove_file(folder.join("format")).expect("the format file");
    assert!(matches!(refused(&folder), OpenError::NotAStore { .. }));
    fs::write(folder.join("creating"), "").expect("a file");
    fs::write(folder.join("head"), "half").expect("a file");
    assert!(open(&folder).fresh);
    assert!(!folder.join("creating").exists());
    drop(open(&folder));
}

/// Snapshots that a kill left unfinished are removed; they would fail every later open.
#[test]
fn unfinished_snapshots_are_removed() {
    let (_guard, folder) = folder();
    let mut store = open(&folder);
    append(&mut store, 1..=2);
    drop(store);
    let left =
        ["log", "tables"].map(|name| folder.join(name).join("snap.00000000000000AB.generating"));
    for left in &left {
        fs::write(left, "half").expect("a file");
    }
    assert_eq!(open(&folder).state.last().1, Index(2));
    assert!(left.iter().all(|left| !left.exists()));
}

/// Anything in `blobs/` was never synced.
#[test]
fn blobs_are_refused() {
    let (_guard, folder) = folder();
    drop(open(&folder));
    fs::write(folder.join("tables/blobs/77"), "a node").expect("a file");
    assert!(matches!(refused(&folder), OpenError::Blobs { found, .. } if found == "77"));
}

/// The largest rows never make sled use its unsynced files.
#[test]
fn the_largest_rows_stay_out_of_blobs() {
    let (_guard, folder) = folder();
    let mut store = open(&folder);
    let mut index = Index::ZERO;
    for round in 0..8u16 {
        index = index.next();
        // First long values, then keys of the longest kind with nothing in common: these make the
        // largest inner nodes.
        let (rows, bytes) = if round < 5 { (0..120u16, 16 << 10) } else { (0..1_200, 10) };
        let effects = rows.map(|row| {
            let mut key = vec![row as u8; onlyonce_storage::limits::KEY_BYTES_MAX];
            key[..2].copy_from_slice(&row.to_be_bytes());
            key[2] = round.saturating_sub(4) as u8;
            key.rotate_left(2);
            Effect::put(Table::Kv, key, vec![round as u8; bytes])
        });
        let mut entries = vec![Entry { effects: effects.collect() }];
        if round < 5 {
            entries.push(put("long", vec![1; 4 << 20]));
        }
        let record = Arc::new(Record::new(View(1), index, Index::ZERO, entries));
        store.state.stage_record(record.clone());
        store.log.append(&[record]).expect("the disk works");
        store.state.note_persisted(index);
        checkpoint(&mut store, index.0);
    }
    drop(store);
    drop(open(&folder));
}

/// A store that lost a database or its head is found out, not made anew, even if it held no record:
/// it may have promised something.
#[test]
fn a_missing_part_is_found() {
    for (lost, records) in
        ["log", "tables", "head"].into_iter().flat_map(|lost| [(lost, 0), (lost, 2)])
    {
        let (_guard, folder) = folder();
        let mut store = open(&folder);
        store.log.save(b"promised").expect("the disk works");
        append(&mut store, 1..=records);
        drop(store);
        let lost = folder.join(lost);
        if lost.is_dir() { fs::remove_dir_all(&lost) } else { fs::remove_file(&lost) }
            .expect("it is there");
        let error = refused(&folder);
        assert!(error.damage().is_some(), "{error}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("a folder's entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copied file");
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.join("head")];
    for entry in fs::read_dir(folder.join("log")).expect("a folder") {
        let path = entry.expect("a folder's entry").path();
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Flips one bit of the file at `at` of 1000 of its bytes that are not zero.
fn flip(path: &Path, at: usize) -> u64 {
    let content = fs::read(path).expect("a file");
    let used: Vec<_> = (0..content.len()).filter(|at| content[*at] != 0).collect();
    let offset = used[at * (used.len() - 1) / 1000];
    let file = File::options().write(true).open(path).expect("a file");
    file.write_all_at(&[content[offset] ^ (1 << (at % 8))], offset as u64).expect("a written byte");
    offset as u64
}

/// A byte that flips in `log/` or `head` of a closed store is found at open, or harmless: never is
/// an acknowledged record missing without an error.
#[test]
fn flipped_bytes_never_lose_records_silently() {
    const RECORDS: u64 = 40;
    let (guard, folder) = folder();
    let mut store = open(&folder);
    store.log.save(b"promised").expect("the disk works");
    append(&mut store, 1..=RECORDS);
    drop(store);
    // sled may panic where it meets damage; that too ends a process, and is no news here.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut found, mut harmless) = (0, 0);
    for file in files(&folder) {
        let positions = if file.ends_with("db") { 40 } else { 8 };
        for position in 0..positions {
            let copied = guard.path().join("copy");
            copy(&folder, &copied);
            let file = copied.join(file.strip_prefix(&folder).expect("a file in the folder"));
            let offset = flip(&file, position * 1000 / positions);
            let opened = catch_unwind(AssertUnwindSafe(|| open_dir(&copied, &options())));
            match opened {
                Ok(Ok(store)) => {
                    harmless += 1;
                    let at = format!("{} at {offset}", file.display());
                    assert_eq!(store.state.last().1, Index(RECORDS), "{at}");
                    assert_eq!(store.state_bytes, &b"promised"[..], "{at}");
                    for index in 1..=RECORDS {
                        let read = store.state.record(Index(index)).expect("it is read");
                        assert_eq!(read, Some(common::record(index)), "{at}");
                        assert!(read.is_some());
                    }
                }
                Ok(Err(error)) => {
                    found += 1;
                    let text = error.to_string();
                    assert!(text.contains("new, empty one"), "it says what to do: {text}");
                    assert!(!text.contains("backtrace"), "{text}");
                }
                Err(_) => found += 1,
            }
            fs::remove_dir_all(&copied).expect("the copy");
        }
    }
    drop(std::panic::take_hook());
    assert!(found > 0 && harmless > 0, "found {found}, harmless {harmless}");
    println!("{found} found, {harmless} harmless");
}
