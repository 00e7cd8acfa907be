//! Digests: whatever happens to a row of the tables behind the store's back, a scrub finds it.

mod common;

use std::sync::Arc;

use common::{checkpoint, reopen, scrub, try_open};
use onlyonce_storage::engine::Tree;
use onlyonce_storage::engine::memory::{MemoryDisk, Part};
use onlyonce_storage::limits::CHUNK;
use onlyonce_storage::{
    Damage, Effect, Entry, Index, Opened, Options, Record, Scrubbed, StorageError, Table, View,
    open,
};

/// Appends a record with these effects and folds it.
fn fold(store: &mut Opened, effects: Vec<Effect>) {
    let index = store.state.last().1.next();
    let entries = vec![Entry { effects }];
    let record = Arc::new(Record::new(View(1), index, Index::ZERO, entries));
    store.state.stage_record(record.clone());
    store.log.append(&[record]).expect("the disk works");
    store.state.note_persisted(index);
    checkpoint(store, index.0);
}

/// A store with 20 rows in two tables, one of them with a long value.
fn filled(disk: &MemoryDisk) -> Opened {
    let mut store = reopen(disk);
    for row in 0..10 {
        let (key, value) = (format!("row {row}"), vec![row; 10]);
        let reply = Effect::put(Table::Replies, key.clone(), "reply");
        fold(&mut store, vec![Effect::put(Table::Kv, key, value), reply]);
    }
    fold(&mut store, vec![Effect::put(Table::Kv, "row 5", vec![5; 2 * CHUNK])]);
    store
}

fn damaged_table(result: Result<u64, StorageError>) -> &'static str {
    match result {
        Err(StorageError::Damaged { damage: Damage::BadDigest { table }, .. }) => table,
        other => panic!("{other:?}"),
    }
}

/// Each row that is lost without a trace is missed, now and after every later checkpoint.
#[test]
fn a_lost_row_is_found() {
    for table in [Table::Kv, Table::Replies] {
        for at in 0..10 {
            let disk = MemoryDisk::new();
            drop(filled(&disk));
            let key = disk.keys(Part::Tables, Tree::Table(table))[at].clone();
            assert!(disk.lose(Part::Tables, Tree::Table(table), &key));
            let mut store = try_open(&disk).expect("nothing that is read at open is missing");
            assert_eq!(damaged_table(scrub(&mut store)), table.name());
            fold(&mut store, vec![Effect::put(table, key, "written again")]);
            assert_eq!(damaged_table(scrub(&mut store)), table.name(), "it is not forgotten");
        }
    }
}

/// A row of which any bit is another than was written is found.
#[test]
fn a_changed_row_is_found() {
    let disk = MemoryDisk::new();
    let mut store = filled(&disk);
    assert_eq!(scrub(&mut store).expect("all is well"), 20);
    drop(store);
    let mut changed = 0;
    for seed in 0..200 {
        assert!(disk.flip_bit(Part::Tables, Tree::Table(Table::Kv), seed));
        let mut store = try_open(&disk).expect("no row of kv is read at open");
        changed += u64::from(scrub(&mut store).is_err());
        drop(store);
        assert!(disk.flip_bit(Part::Tables, Tree::Table(Table::Kv), seed), "back again");
    }
    assert_eq!(changed, 200);
    scrub(&mut reopen(&disk)).expect("all is well again");
}

/// Checkpoints between two pieces of a scrub change rows before and behind it: both are counted right.
#[test]
fn a_scrub_goes_on_while_checkpoints_fold() {
    let disk = MemoryDisk::new();
    let mut store = filled(&disk);
    let mut passes = 0;
    for round in 0..200u64 {
        let key = format!("row {}", round * 7 % 12);
        let effect = match round % 3 {
            0 => Effect::delete(Table::Kv, key),
            1 => Effect::put(Table::Kv, key, vec![1; if round % 5 == 0 { 3 * CHUNK } else { 9 }]),
            _ => Effect::put(Table::Replies, key, round.to_string()),
        };
        fold(&mut store, vec![effect]);
        let scrubbed = store.checkpointer.scrub(1 + round as usize % 60).expect("all is well");
        passes += u32::from(matches!(scrubbed, Scrubbed::Whole { .. }));
    }
    assert!(passes > 3, "{passes}");
}

/// Stores that applied the same records have the same digests, however they were folded.
#[test]
fn equal_histories_have_equal_digests() {
    let mut all_at_once = reopen(&MemoryDisk::new());
    let mut one_by_one = reopen(&MemoryDisk::new());
    common::append(&mut all_at_once, 1..=20);
    checkpoint(&mut all_at_once, 20);
    for index in 1..=20 {
        common::append(&mut one_by_one, index..=index);
        checkpoint(&mut one_by_one, index);
    }
    assert_eq!(all_at_once.checkpointer.checkpoint(), one_by_one.checkpointer.checkpoint());
}

/// A checkpoint rests after each slice but the last, and comes to the same however large they are.
#[test]
fn a_checkpoint_rests_between_its_slices() {
    let fold_in = |fold_slice_bytes| {
        let options = Options { fold_slice_bytes, ..common::options() };
        let mut store = open(MemoryDisk::new().disk(), &options).expect("a new store");
        common::append(&mut store, 1..=20);
        store.state.commit(Index(20));
        let generation = store.state.freeze().expect("something is committed");
        let mut rests = 0;
        let after = store.checkpointer.fold(&generation, || rests += 1).expect("the disk works");
        (rests, after)
    };
    let (rests, after) = fold_in(1);
    assert_eq!(rests, 20, "20 rows of their own and the row \"last\", each a slice");
    assert_eq!(fold_in(usize::MAX), (0, after));
}
