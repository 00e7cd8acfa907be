//! Every kind of damage to a store is named when it is opened; every crash that is none is repaired.

mod common;

use common::{append, checkpoint, put, read, record, record_of, reopen, try_open};
use onlyonce_storage::engine::Tree;
use onlyonce_storage::engine::memory::{MemoryDisk, Part};
use onlyonce_storage::{Damage, Effect, Entry, Index, Opened, Record, Table, View};
use std::sync::Arc;

fn row_key(index: u64, part: u16) -> Vec<u8> {
    [&index.to_be_bytes()[..], &part.to_be_bytes()].concat()
}

/// A store with records 1 to `last`, those up to `applied` folded; killed.
fn written(last: u64, applied: u64) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let mut store = reopen(&disk);
    append(&mut store, 1..=last);
    if applied > 0 {
        checkpoint(&mut store, applied);
    }
    store.log.sync_head().expect("the disk works");
    disk.kill();
    disk
}

fn damage(disk: &MemoryDisk) -> Damage {
    let error = try_open(disk).expect_err("a damaged store is not opened");
    let text = error.to_string();
    assert!(text.contains("memory"), "the place is named: {text}");
    assert!(text.contains("empty one"), "what to do is said: {text}");
    error.damage().unwrap_or_else(|| panic!("no damage: {text}")).clone()
}

/// A new store is fresh until something is saved or logged, and keeps its id.
#[test]
fn a_new_store_is_fresh() {
    let disk = MemoryDisk::new();
    for _ in 0..2 {
        let store = reopen(&disk);
        assert!(store.fresh);
        assert_eq!((store.store_id, store.state.first()), (common::STORE, Index(1)));
        assert_eq!(store.state.last(), (View::ZERO, Index::ZERO));
        disk.kill();
    }
    let mut store = reopen(&disk);
    store.log.save(b"view 1").expect("the disk works");
    disk.crash(0);
    let store = reopen(&disk);
    assert!(!store.fresh);
    assert_eq!(store.state_bytes, &b"view 1"[..]);
}

/// A crash at any moment of a store's creation leaves a store that can be made.
#[test]
fn creation_can_crash_anywhere() {
    for writes in 0.. {
        for seed in 0..8 {
            let disk = MemoryDisk::new();
            disk.fail_after(writes);
            if try_open(&disk).is_ok() {
                return;
            }
            disk.crash(seed);
            assert!(reopen(&disk).fresh, "after {writes} writes, seed {seed}");
        }
    }
}

/// A log that ends before what `head` knows to be durable has lost its tail.
#[test]
fn a_lost_tail_is_fatal() {
    let disk = written(5, 0);
    assert!(disk.lose(Part::Log, Tree::Records, &row_key(5, 0)));
    assert_eq!(damage(&disk), Damage::LostTail { expected: Index(5), found: Index(4) });
    // Also when nothing is left of the log.
    for index in 1..5 {
        assert!(disk.lose(Part::Log, Tree::Records, &row_key(index, 0)));
    }
    assert_eq!(damage(&disk), Damage::LostTail { expected: Index(5), found: Index(0) });
}

/// A log that ends before the applied point has lost its tail, whatever the tables hold.
#[test]
fn a_log_that_ends_before_applied_is_fatal() {
    let disk = written(3, 3);
    assert!(disk.lose(Part::Log, Tree::Records, &row_key(3, 0)));
    assert_eq!(damage(&disk), Damage::LostTail { expected: Index(3), found: Index(2) });
}

/// A row that is missing before others is a gap, wherever it is.
#[test]
fn a_gap_is_fatal() {
    for lost in 1..5 {
        for applied in [0, 2, 4] {
            let disk = written(5, applied);
            assert!(disk.lose(Part::Log, Tree::Records, &row_key(lost, 0)));
            let found = Index(lost + 1);
            assert_eq!(damage(&disk), Damage::Gap { expected: Index(lost), part: 0, found });
        }
    }
}

/// A gap is also known as one beyond what `head` says, when later groups were flushed after it.
#[test]
fn a_gap_beyond_head_is_fatal() {
    let disk = MemoryDisk::new();
    let mut store = reopen(&disk);
    append(&mut store, 1..=5);
    disk.kill();
    // The unsynced slot is lost: the synced ones say that nothing is durable.
    assert!(disk.flip_head_bit(2, 100));
    assert!(disk.lose(Part::Log, Tree::Records, &row_key(3, 0)));
    let found = Index(4);
    assert_eq!(damage(&disk), Damage::Gap { expected: Index(3), part: 0, found });
}

/// A flipped bit in any row of the log is found.
#[test]
fn a_flipped_bit_in_the_log_is_fatal() {
    for seed in 0..200 {
        let disk = written(4, 2);
        assert!(disk.flip_bit(Part::Log, Tree::Records, seed));
        assert!(matches!(damage(&disk), Damage::BadRow { .. }), "seed {seed}");
    }
}

/// The row of record `index` in a store whose records up to `common` are those of [`written`], and
/// whose later ones are others of the same view.
fn row_of_another_log(index: u64, common: u64) -> bytes::Bytes {
    let disk = MemoryDisk::new();
    let mut store = reopen(&disk);
    append(&mut store, 1..=common);
    for index in common + 1..=index {
        let entries = vec![put("another", "log")];
        let record = Arc::new(Record::new(View(1), Index(index), Index::ZERO, entries));
        store.log.append(&[record]).expect("the disk works");
    }
    let row = disk.disk().log.get(Tree::Records, &row_key(index, 0));
    row.expect("the disk works").expect("it is there")
}

/// A record that is whole but not the one of this log is found, by the record after it or, if it is
/// the last one, by `head`.
#[test]
fn a_broken_chain_is_fatal() {
    for (index, common) in [(2, 0), (2, 1), (3, 1), (3, 2), (4, 1), (4, 3)] {
        let disk = written(4, 0);
        let row = row_of_another_log(index, common);
        disk.disk().log.insert(Tree::Records, &row_key(index, 0), &row).expect("it works");
        assert!(matches!(damage(&disk), Damage::BrokenChain { .. }), "record {index} for {common}");
    }
}

/// The log must continue what was folded, also where only its first record can tell.
#[test]
fn a_log_that_does_not_continue_the_tables_is_fatal() {
    let disk = written(4, 2);
    let mut store = reopen(&disk);
    while store.log.prune(Index(9)).expect("the disk works") {}
    disk.kill();
    let row = row_of_another_log(2, 1);
    disk.disk().log.insert(Tree::Records, &row_key(2, 0), &row).expect("it works");
    assert!(matches!(damage(&disk), Damage::BrokenChain { index: Index(2), .. }));
}

/// A log that begins after the applied point has lost what lies between.
#[test]
fn applied_below_the_log_is_fatal() {
    // The tables of a store at record 1, the log and head of the same store when pruned to 3.
    let disk = MemoryDisk::new();
    let mut store = reopen(&disk);
    append(&mut store, 1..=5);
    checkpoint(&mut store, 1);
    let tables = disk.disk().tables;
    let old = tables.get(Tree::Meta, b"applied").expect("it works").expect("it is there");
    checkpoint(&mut store, 5);
    while store.log.prune(Index(3)).expect("it works") {}
    tables.insert(Tree::Meta, b"applied", &old).expect("it works");
    disk.kill();
    assert_eq!(damage(&disk), Damage::AppliedBelowLog { applied: Index(1), first: Index(4) });
}

/// A damaged applied point is found.
#[test]
fn damaged_meta_is_fatal() {
    let disk = written(2, 1);
    let tables = disk.disk().tables;
    tables.insert(Tree::Meta, b"applied", &[0; 24]).expect("the disk works");
    assert!(matches!(damage(&disk), Damage::BadMeta { row: "applied", .. }));
    assert!(disk.lose(Part::Tables, Tree::Meta, b"applied"));
    assert!(matches!(damage(&disk), Damage::BadMeta { row: "applied", problem: "missing" }));
}

/// A database of another store is found.
#[test]
fn a_database_of_another_store_is_fatal() {
    let (disk, other) = (written(2, 1), MemoryDisk::new());
    let options = onlyonce_storage::Options::new(7);
    onlyonce_storage::open(other.disk(), &options).expect("a new store");
    let row = other.disk().log.get(Tree::Meta, b"store").expect("it works").expect("it is there");
    disk.disk().tables.insert(Tree::Meta, b"store", &row).expect("it works");
    assert_eq!(damage(&disk), Damage::OtherStore { expected: common::STORE, found: 7 });
}

/// With no valid slot of `head` a store is not opened, even if it holds no record; one valid slot
/// is enough.
#[test]
fn a_head_without_a_valid_slot_is_fatal() {
    for records in [0, 3] {
        let disk = MemoryDisk::new();
        let mut store = reopen(&disk);
        store.log.save(b"promised").expect("the disk works");
        append(&mut store, 1..=records);
        disk.kill();
        for slot in 0..3 {
            let store = reopen(&disk);
            assert_eq!(store.state_bytes, &b"promised"[..], "before slot {slot} went bad");
            assert_eq!(store.state.last().1, Index(records));
            disk.kill();
            // One at a time: each open above has written the slots anew.
            for seed in 0..3 {
                assert!(disk.flip_head_bit(slot, seed));
                assert_eq!(reopen(&disk).state_bytes, &b"promised"[..], "slot {slot}");
                disk.kill();
            }
        }
        for slot in 0..3 {
            assert!(disk.flip_head_bit(slot, 1));
        }
        assert_eq!(damage(&disk), Damage::NoHead);
    }
}

/// One slot that goes bad loses nothing, whichever it is.
#[test]
fn one_bad_slot_of_head_is_harmless() {
    for slot in 0..3 {
        let disk = MemoryDisk::new();
        let mut store = reopen(&disk);
        for state in ["forgotten", "old", "promised"] {
            store.log.save(state.as_bytes()).expect("the disk works");
        }
        disk.kill();
        assert!(disk.flip_head_bit(slot, 5));
        assert_eq!(reopen(&disk).state_bytes, &b"promised"[..], "slot {slot}");
    }
}

/// A save, or an open, that crashes at any moment leaves the newest state or the one before, even
/// if the unsynced slot is lost.
#[test]
fn saves_and_opens_can_crash_anywhere() {
    for (writes, seed) in (0..12).flat_map(|writes| (0..80).map(move |seed| (writes, seed))) {
        let disk = MemoryDisk::new();
        let mut store = reopen(&disk);
        for state in ["1", "2", "3"] {
            store.log.save(state.as_bytes()).expect("the disk works");
        }
        disk.fail_after(writes);
        let saved = store.log.save(b"4").is_ok();
        disk.crash(seed);
        let _ = disk.flip_head_bit(2, seed);
        disk.fail_after(writes);
        let _ = try_open(&disk);
        disk.crash(seed + 1);
        let _ = disk.flip_head_bit(2, seed);
        let state = reopen(&disk).state_bytes;
        assert!(
            state == "4" || (state == "3" && !saved),
            "{state:?}: {writes} writes, seed {seed}"
        );
    }
}

/// A checkpoint that crashes at any moment changes nothing that readers see, and the next one
/// leaves no piece of an earlier value behind.
#[test]
fn a_checkpoint_can_crash_anywhere() {
    let long = |byte, length| put("long", vec![byte; length]);
    let short = || put("long", "short");
    let gone = || Entry { effects: vec![Effect::delete(Table::Kv, "long")] };
    for (first, second) in [
        (long(1, 90_000), long(2, 50_000)),
        (long(1, 50_000), short()),
        (long(1, 50_000), gone()),
        (short(), long(2, 90_000)),
        (gone(), long(2, 20_000)),
    ] {
        for (writes, seed) in (0..32).flat_map(|writes| (0..12).map(move |seed| (writes, seed))) {
            let disk = MemoryDisk::new();
            let mut store = reopen(&disk);
            for (index, entry) in [(1, &first), (2, &second)] {
                let entries = vec![entry.clone(), put(&format!("row {index}"), "there")];
                let record = Record::new(View(1), Index(index), Index(index - 1), entries);
                let record = Arc::new(record);
                store.state.stage_record(record.clone());
                store.log.append(&[record]).expect("the disk works");
                store.state.note_persisted(Index(index));
                if index == 1 {
                    checkpoint(&mut store, 1);
                }
            }
            store.state.commit(Index(2));
            let generation = store.state.freeze().expect("record 2");
            disk.fail_after(writes);
            let done = store.checkpointer.fold(&generation, || {}).is_ok();
            disk.crash(seed);
            // The open that finishes it can crash as well.
            disk.fail_after(2 * seed);
            drop(try_open(&disk));
            disk.crash(seed);
            let mut store = reopen(&disk);
            let applied = store.state.applied().0;
            assert!(applied == 2 || (applied == 1 && !done));
            let check = |store: &Opened| {
                let expected = second.effects[0].value.as_ref();
                let seen = store.state.get(Table::Kv, b"long").expect("it works").value;
                assert!(seen.as_ref() == expected, "{writes} writes, seed {seed}");
                assert_eq!(read(store, "row 1").as_deref(), Some("there"));
                assert_eq!(read(store, "row 2").as_deref(), Some("there"));
                expected.map_or(0, bytes::Bytes::len)
            };
            let mut length = check(&store);
            if applied == 1 {
                checkpoint(&mut store, 2);
                length = check(&store);
            }
            let chunk = onlyonce_storage::limits::CHUNK;
            let chunks = if length > chunk { length.div_ceil(chunk) } else { 0 };
            assert_eq!(disk.keys(Part::Tables, Tree::Chunks).len(), chunks);
        }
    }
}

/// A record of several rows, so that it can be torn inside.
fn long_record(index: u64) -> Arc<Record> {
    let entries: Vec<Entry> =
        (0..3).map(|row| put(&format!("long {row}"), vec![b'x'; 60_000])).collect();
    Arc::new(Record::new(View(1), Index(index), Index::ZERO, entries))
}

/// A last group that a crash tore is cut durably, whatever of it survived, and what is appended
/// then is what counts.
#[test]
fn a_torn_last_group_is_cut() {
    let mut torn = 0;
    for seed in 0..100 {
        let disk = MemoryDisk::new();
        let mut store = reopen(&disk);
        append(&mut store, 1..=3);
        let group = [record(4), long_record(5), record(6)];
        // The rows are written, their flush fails.
        disk.fail_after(5);
        store.log.append(&group).expect_err("the flush fails");
        disk.crash(seed);
        let mut store = reopen(&disk);
        let last = store.state.last().1.0;
        assert!((3..=6).contains(&last), "the log ends at {last}");
        torn += store.recovered.removed_rows;
        disk.crash(seed);
        assert_eq!(reopen(&disk).recovered.removed_rows, 0, "what was cut stays cut");
        store = reopen(&disk);
        append(&mut store, last + 1..=8);
        disk.crash(seed);
        assert_eq!(reopen(&disk).state.last().1, Index(8));
    }
    assert!(torn > 0, "no seed tore the group");
}

fn cut_store(disk: &MemoryDisk) -> Opened {
    let mut store = reopen(disk);
    store.log.save(b"old").expect("the disk works");
    append(&mut store, 1..=2);
    let group = [record(3), long_record(4), record(5), record(6)];
    for record in &group {
        store.state.stage_record(record.clone());
    }
    store.log.append(&group).expect("the disk works");
    store
}

/// A cut that crashes at any moment is either not begun, with its saved state, or done.
#[test]
fn a_cut_can_crash_anywhere() {
    let mut outcomes = [0, 0];
    for writes in 0.. {
        for seed in 0..16 {
            let disk = MemoryDisk::new();
            let mut store = cut_store(&disk);
            disk.fail_after(writes);
            let done = store.log.cut(Index(2), b"new").is_ok();
            disk.crash(seed);
            let store = reopen(&disk);
            let cut = store.state_bytes == "new";
            assert!(cut || (store.state_bytes == "old" && !done), "{:?}", store.state_bytes);
            let last = if cut { 2 } else { 6 };
            assert_eq!(store.state.last(), (View(1), Index(last)), "{writes} writes, seed {seed}");
            outcomes[usize::from(cut)] += 1;
            if done && seed == 15 {
                assert!(outcomes[0] > 0 && outcomes[1] > 0, "both outcomes occur: {outcomes:?}");
                return;
            }
        }
    }
}

/// What is appended after a cut survives it: the end of the cut is durable before the first row.
#[test]
fn records_after_a_cut_survive() {
    for seed in 0..50 {
        let disk = MemoryDisk::new();
        let mut store = cut_store(&disk);
        store.log.cut(Index(2), b"new").expect("the disk works");
        store.state.unstage_after(Index(2));
        let new = record_of(2, 3);
        store.state.stage_record(new.clone());
        store.log.append(std::slice::from_ref(&new)).expect("the disk works");
        disk.crash(seed);
        let store = reopen(&disk);
        assert_eq!(store.state.last(), (View(2), Index(3)), "seed {seed}");
        assert_eq!(store.state.record(Index(3)).expect("it works").expect("it is there"), new);
        assert_eq!(read(&store, "last").as_deref(), Some("3 of view 2"));
        assert_eq!(store.state.view_at(Index(2)).expect("it works"), Some(View(1)));
    }
}

/// The unsynced slot may be lost or torn: the synced ones are enough.
#[test]
fn the_unsynced_slot_may_be_lost() {
    for seed in 0..50 {
        let disk = MemoryDisk::new();
        let mut store = reopen(&disk);
        store.log.save(b"kept").expect("the disk works");
        append(&mut store, 1..=4);
        assert!(disk.flip_head_bit(2, seed));
        disk.crash(seed);
        let store = reopen(&disk);
        assert_eq!(store.state.last().1, Index(4));
        assert_eq!(store.state_bytes, &b"kept"[..]);
    }
}

/// Pruning that crashes at any moment loses nothing that was to be kept, nor the last applied
/// record.
#[test]
fn pruning_can_crash_anywhere() {
    for writes in 0.. {
        let mut done = false;
        for seed in 0..8 {
            let disk = MemoryDisk::new();
            let mut store = reopen(&disk);
            append(&mut store, 1..=8);
            checkpoint(&mut store, 6);
            disk.fail_after(writes);
            done = store.log.prune(Index(99)).is_ok();
            disk.crash(seed);
            let mut store = reopen(&disk);
            assert!([1, 6].contains(&store.state.first().0), "begins at {}", store.state.first());
            assert_eq!(store.state.view_at(Index(6)).expect("it works"), Some(View(1)));
            assert!(store.state.record(Index(6)).expect("it works").is_some());
            assert_eq!(read(&store, "last").as_deref(), Some("8 of view 1"));
            while store.log.prune(Index(99)).expect("it works") {}
            let left = disk.keys(Part::Log, Tree::Records);
            assert_eq!(left, [row_key(6, 0), row_key(7, 0), row_key(8, 0)]);
        }
        if done {
            return;
        }
    }
}

/// The committed index of a store is what its records vouch for, and never beyond its log.
#[test]
fn committed_starts_at_what_records_carry() {
    let disk = MemoryDisk::new();
    let mut store = reopen(&disk);
    append(&mut store, 1..=4);
    let carrier = Arc::new(Record::new(View(1), Index(5), Index(3), vec![put("five", "5")]));
    store.state.stage_record(carrier.clone());
    store.log.append(&[carrier]).expect("the disk works");
    disk.kill();
    let store = reopen(&disk);
    assert_eq!((store.state.committed(), store.recovered.committed), (Index(3), Index(3)));
    assert_eq!(store.state.last().1, Index(5));
}

/// A long value that lost a piece, or changed, is found when it is read.
#[test]
fn a_damaged_long_value_is_found() {
    for (seed, lost) in [(0, true), (1, false), (2, false)] {
        let disk = MemoryDisk::new();
        let mut store = reopen(&disk);
        let record = long_record(1);
        store.state.stage_record(record.clone());
        store.log.append(&[record]).expect("the disk works");
        store.state.note_persisted(Index(1));
        checkpoint(&mut store, 1);
        assert_eq!(read(&store, "long 0").map(|value| value.len()), Some(60_000));
        if lost {
            let chunks = disk.keys(Part::Tables, Tree::Chunks);
            assert!(disk.lose(Part::Tables, Tree::Chunks, &chunks[1]));
        } else {
            assert!(disk.flip_bit(Part::Tables, Tree::Chunks, seed));
        }
        let table = Table::Kv;
        let bad =
            (0..3).filter(|row| store.state.get(table, format!("long {row}").as_bytes()).is_err());
        assert_eq!(bad.count(), 1);
        let scanned = store.state.scan(table, b"", None).filter(Result::is_err).count();
        assert_eq!(scanned, 1, "a scan finds it too");
    }
}
