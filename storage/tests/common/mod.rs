//! What the tests of a store share.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::sync::Arc;

use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{
    Effect, Entry, Index, OpenError, Opened, Options, Record, Scrubbed, StorageError, Table, View,
    open,
};

/// The id that new stores of tests get.
pub const STORE: u128 = 0x5707;

/// Options of a test: small caches, and slices of two rows or so.
pub fn options() -> Options {
    Options {
        log_cache_bytes: 16 << 20,
        tables_cache_bytes: 16 << 20,
        fold_slice_bytes: 150,
        ..Options::new(STORE)
    }
}

/// Opens a store on a disk in memory.
pub fn try_open(disk: &MemoryDisk) -> Result<Opened, OpenError> {
    open(disk.disk(), &options())
}

/// Opens a store that must open, and whose tables must be what was written.
pub fn reopen(disk: &MemoryDisk) -> Opened {
    let mut store = try_open(disk).expect("the store opens");
    scrub(&mut store).expect("every row is what was written");
    store
}

/// Adds up all rows; returns how many there are.
pub fn scrub(store: &mut Opened) -> Result<u64, StorageError> {
    store.checkpointer.restart_scrub();
    loop {
        if let Scrubbed::Whole { rows } = store.checkpointer.scrub(1 << 10)? {
            return Ok(rows);
        }
    }
}

/// An entry that writes one row.
pub fn put(key: &str, value: impl Into<Vec<u8>>) -> Entry {
    Entry { effects: vec![Effect::put(Table::Kv, key.as_bytes().to_vec(), value.into())] }
}

/// Record `index` of view 1, which writes its index to a row of its own and to the row "last".
pub fn record(index: u64) -> Arc<Record> {
    record_of(1, index)
}

/// Record `index` of `view`, as [`record`].
pub fn record_of(view: u64, index: u64) -> Arc<Record> {
    let value = format!("{index} of view {view}");
    let entries = vec![put(&format!("row {index}"), value.clone()), put("last", value)];
    Arc::new(Record::new(View(view), Index(index), Index::ZERO, entries))
}

/// Stages and appends records `indexes` of view 1, each flushed on its own.
pub fn append(store: &mut Opened, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        let record = record(index);
        store.state.stage_record(record.clone());
        store.log.append(&[record]).expect("the disk works");
        store.state.note_persisted(Index(index));
    }
}

/// Commits up to `index` and folds it into the tables.
pub fn checkpoint(store: &mut Opened, index: u64) {
    store.state.commit(Index(index));
    let generation = store.state.freeze().expect("something is committed");
    store.checkpointer.fold(&generation, || {}).expect("the disk works");
    drop(store.state.note_folded(generation.upto()));
}

/// What the row `key` holds, as text.
pub fn read(store: &Opened, key: &str) -> Option<String> {
    let seen = store.state.get(Table::Kv, key.as_bytes()).expect("the disk works");
    seen.value.map(|value| String::from_utf8_lossy(&value).into_owned())
}
