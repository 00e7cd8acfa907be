//! Snapshots: what is read while checkpoints go on is exact, and a crash at any write leaves the old
//! store or the new one.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::{options, reopen, try_open};
use onlyonce_storage::engine::Tree;
use onlyonce_storage::engine::memory::{MemoryDisk, Part};
use onlyonce_storage::limits::CHUNK;
use onlyonce_storage::{
    Coverage, Cursor, Effect, Entry, Index, Mark, OpenError, Opened, Record, Table, View,
    build_dir, open, open_dir,
};
use proptest::prelude::*;

type Rows = BTreeMap<(Table, Bytes), Bytes>;

/// Everything that a store shows.
fn rows(store: &Opened) -> Rows {
    let mut rows = Rows::new();
    for table in Table::ALL {
        for row in store.state.scan(table, &[], None) {
            let row = row.expect("the disk works");
            rows.extend(row.value.map(|value| ((table, row.key), value)));
        }
    }
    rows
}

/// Appends, commits and folds one record.
fn write(store: &mut Opened, index: u64, effects: Vec<Effect>) -> Arc<Record> {
    let record = Record::new(View(1), Index(index), Index::ZERO, vec![Entry { effects }]);
    let record = Arc::new(record);
    store.state.stage_record(record.clone());
    store.log.append(std::slice::from_ref(&record)).expect("the disk works");
    store.state.note_persisted(Index(index));
    common::checkpoint(store, index);
    record
}

/// A snapshot of `store`, with `between` run after each piece: its entries and its end.
fn read(
    store: &mut Opened,
    piece_bytes: usize,
    mut between: impl FnMut(&mut Opened) -> Vec<Arc<Record>>,
) -> (Vec<Entry>, Mark) {
    let mut entries = Vec::new();
    let mut later: Vec<Arc<Record>> = Vec::new();
    let mut coverage = Coverage::default();
    let mut cursor = Cursor::start();
    loop {
        let rows = store.checkpointer.read_rows(&cursor, piece_bytes).expect("the disk works");
        coverage.add(&rows);
        entries.push(rows.entry);
        let Some(next) = rows.next else {
            for record in later {
                for entry in &record.entries {
                    let missing = entry.effects.iter();
                    let missing = missing.filter(|effect| !coverage.shows(record.index, effect));
                    entries.push(Entry { effects: missing.cloned().collect() });
                }
            }
            return (entries, rows.applied.mark);
        };
        cursor = next;
        later.extend(between(store));
    }
}

/// Folds a snapshot into a store beside `store` and makes it the one that the next open finds.
fn install(store: &Opened, entries: &[Entry], end: Mark) -> Result<(), OpenError> {
    let mut incoming = store.checkpointer.begin_incoming()?;
    for entry in entries {
        let entry = Entry::decode(&entry.encode()).expect("its own encoding");
        incoming.fold(&entry)?;
    }
    incoming.finish(end, Bytes::from_static(b"promises"))
}

fn effects() -> impl Strategy<Value = Vec<Effect>> {
    let length = prop_oneof![4 => 0..40usize, 1 => CHUNK - 1..3 * CHUNK];
    let value = proptest::option::of((any::<u8>(), length));
    let effect = (0..Table::ALL.len(), 0..12u8, value).prop_map(|(table, key, value)| Effect {
        table: Table::ALL[table],
        key: Bytes::from(vec![key; 1 + usize::from(key)]),
        value: value.map(|(byte, length)| Bytes::from(vec![byte; length])),
    });
    proptest::collection::vec(effect, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// However checkpoints and pieces alternate, the snapshot is the state at its end.
    #[test]
    fn a_snapshot_is_exact(
        before in proptest::collection::vec(effects(), 1..8),
        during in proptest::collection::vec(proptest::collection::vec(effects(), 0..3), 0..12),
        piece_bytes in 1..2_000usize,
    ) {
        let mut source = reopen(&MemoryDisk::new());
        let mut last = 0;
        for effects in before {
            last += 1;
            write(&mut source, last, effects);
        }
        let mut during = during.into_iter();
        let (entries, end) = read(&mut source, piece_bytes, |source| {
            let writes = during.next().unwrap_or_default().into_iter();
            writes.map(|effects| {
                last += 1;
                write(source, last, effects)
            }).collect()
        });
        prop_assert_eq!(end.index, Index(last));

        let disk = MemoryDisk::new();
        let old = reopen(&disk);
        let id = old.store_id;
        install(&old, &entries, end).expect("the disk works");
        drop(old);
        disk.crash(last);
        let mut copy = reopen(&disk);
        prop_assert_eq!(rows(&copy), rows(&source));
        prop_assert_eq!((copy.store_id, &copy.state_bytes[..]), (id, &b"promises"[..]));
        prop_assert_eq!(copy.state.last(), source.state.last());
        prop_assert_eq!(copy.state.floor(), (View(1), end.index));

        // Both go on alike.
        for store in [&mut source, &mut copy] {
            write(store, last + 1, vec![Effect::put(Table::Kv, "next", "1")]);
        }
        prop_assert_eq!(rows(&copy), rows(&source));
    }
}

/// A power failure at every single write of a snapshot leaves the old store, whole, or the new one,
/// whole; and a snapshot can be begun again.
#[test]
fn a_crash_at_any_write_leaves_one_whole_store() {
    let mut source = reopen(&MemoryDisk::new());
    for index in 1..=5 {
        let row = Effect::put(Table::Kv, format!("row {index}"), vec![7; 9_000 * index as usize]);
        write(&mut source, index, vec![row]);
    }
    let (entries, end) = read(&mut source, 10_000, |_| Vec::new());
    let (mut old_ones, mut new_ones) = (0, 0);
    for writes in 0.. {
        let disk = MemoryDisk::new();
        let mut store = reopen(&disk);
        common::append(&mut store, 1..=3);
        common::checkpoint(&mut store, 2);
        let (old_rows, old_last) = (rows(&store), store.state.last());
        disk.fail_after(writes);
        let done = install(&store, &entries, end);
        drop(store);
        disk.crash(writes);
        let store = reopen(&disk);
        if store.state.last() == source.state.last() {
            assert_eq!(rows(&store), rows(&source), "after {writes} writes");
            new_ones += 1;
        } else {
            assert!(done.is_err(), "an installed store is the one that is found");
            assert_eq!((rows(&store), store.state.last()), (old_rows, old_last));
            old_ones += 1;
        }
        install(&store, &entries, end).expect("the disk works again");
        drop(store);
        assert_eq!(rows(&reopen(&disk)), rows(&source));
        if done.is_ok() {
            break;
        }
    }
    assert!(old_ones > 20 && new_ones > 0, "{old_ones} old stores, {new_ones} new ones");
}

/// A real folder is replaced too, also when the swap is cut short at each of its steps.
#[test]
fn a_folder_is_replaced_however_often_the_swap_is_cut_short() {
    let mut source = reopen(&MemoryDisk::new());
    write(&mut source, 1, vec![Effect::put(Table::Replies, "row", vec![1; 50_000])]);
    let (entries, end) = read(&mut source, 1_000, |_| Vec::new());
    for moved in 0..=3 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        let mut store = open_dir(&data, &options()).expect("a new store");
        common::append(&mut store, 1..=3);
        install(&store, &entries, end).expect("the disk works");
        drop(store);
        let incoming = data.join("incoming");
        for name in ["log", "tables", "head"].into_iter().take(moved) {
            let old = data.join(name);
            if old.is_dir() {
                std::fs::remove_dir_all(&old).expect("removes");
            }
            std::fs::rename(incoming.join(name), &old).expect("moves");
        }
        let store = open_dir(&data, &options()).expect("the new store opens");
        assert_eq!(rows(&store), rows(&source), "{moved} parts were moved before");
        assert_eq!(store.store_id, common::STORE);
        assert!(!incoming.exists() && !data.join("replace").exists());
    }
}

/// What was built and never accepted is removed at the next open.
#[test]
fn an_unfinished_replacement_is_removed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut store = open_dir(folder.path(), &options()).expect("a new store");
    common::append(&mut store, 1..=3);
    let old_rows = rows(&store);
    let mut incoming = store.checkpointer.begin_incoming().expect("begins");
    incoming.fold(&common::put("row", "other")).expect("folds");
    drop((incoming, store));
    assert!(folder.path().join("incoming").exists());
    let store = open_dir(folder.path(), &options()).expect("the old store opens");
    assert_eq!(rows(&store), old_rows);
    assert!(!folder.path().join("incoming").exists());
    drop(store);
    // A disk in memory keeps to the same rules.
    let disk = MemoryDisk::new();
    let store = try_open(&disk).expect("a new store");
    drop((store.checkpointer.begin_incoming().expect("begins"), store));
    assert_eq!(open(disk.disk(), &options()).expect("opens").state.last().1, Index::ZERO);
}

/// A part of the new store that cannot be looked at is not taken for one that was moved already: the
/// open fails, and a later one goes on from there.
#[test]
fn an_unreadable_part_of_a_replacement_is_not_left_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open_dir(folder.path(), &options()).expect("a new store");
    let end = Mark { index: Index(7), view: View(1), chain: 9 };
    install(&store, &[common::put("row", "new")], end).expect("the disk works");
    drop(store);
    let (part, aside) = (folder.path().join("incoming/tables"), folder.path().join("aside"));
    std::fs::rename(&part, &aside).expect("a rename");
    std::os::unix::fs::symlink(&part, &part).expect("a link that leads nowhere");
    assert!(open_dir(folder.path(), &options()).is_err());
    std::fs::remove_file(&part).expect("the link goes");
    std::fs::rename(&aside, &part).expect("a rename");
    let store = open_dir(folder.path(), &options()).expect("the new store opens");
    assert_eq!(common::read(&store, "row").as_deref(), Some("new"));
    assert_eq!(store.state.applied(), end.index);
}

/// A fold that a crash cut short leaves rows of two states, of long values also pieces of two. The next
/// open finishes it: a learner never gets anything of that.
#[test]
fn a_snapshot_after_a_fold_that_was_cut_short_is_exact() {
    let put = |byte: u8| Effect::put(Table::Kv, "long", vec![byte; 3 * CHUNK]);
    let short = Effect::put(Table::Kv, "short", "1");
    let mut torn = 0;
    for writes in 0..12 {
        let disk = MemoryDisk::new();
        let mut source = reopen(&disk);
        write(&mut source, 1, vec![put(1), short.clone()]);
        let effects = vec![put(2)];
        let record = Record::new(View(1), Index(2), Index(1), vec![Entry { effects }]);
        let record = Arc::new(record);
        source.state.stage_record(record.clone());
        source.log.append(std::slice::from_ref(&record)).expect("the disk works");
        source.state.note_persisted(Index(2));
        source.state.commit(Index(2));
        let generation = source.state.freeze().expect("something to fold");
        disk.fail_after(writes);
        torn += u32::from(source.checkpointer.fold(&generation, || {}).is_err());
        drop(source);
        disk.kill();

        let mut source = reopen(&disk);
        let (mut entries, end) = read(&mut source, 1, |_| Vec::new());
        if end.index < Index(2) {
            // The fold had not begun.
            entries.extend(record.entries.clone());
        }
        let (copied, wanted) = (MemoryDisk::new(), rows(&source));
        let old = reopen(&copied);
        install(&old, &entries, end).expect("the disk works");
        drop(old);
        assert_eq!(rows(&reopen(&copied)), wanted, "cut short after {writes} writes");
    }
    assert!(torn > 3, "folds are cut short: {torn}");
}

/// A damaged row is never left out of a snapshot.
#[test]
fn a_damaged_row_is_not_left_out() {
    let disk = MemoryDisk::new();
    let mut source = reopen(&disk);
    write(&mut source, 1, vec![Effect::put(Table::Kv, "long", vec![1; 3 * CHUNK])]);
    common::append(&mut source, 2..=3);
    drop(source);
    let pieces = disk.keys(Part::Tables, Tree::Chunks);
    assert!(disk.lose(Part::Tables, Tree::Chunks, &pieces[1]));
    let source = try_open(&disk).expect("no row is read at open");
    let read = source.checkpointer.read_rows(&Cursor::start(), 1 << 20);
    assert!(read.is_err(), "{read:?}");
}

/// A store is built in an empty or missing folder, and in no other; cut short, it is no store and does
/// not become an empty one, but can be begun anew.
#[test]
fn a_store_is_built_where_none_was() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("restored");
    let options = options();
    let rows = |count: u8| {
        let row = |key| Effect::put(Table::Kv, vec![key], vec![key; 3 * CHUNK]);
        Entry { effects: (0..count).map(row).collect() }
    };
    let mut begun = build_dir(&folder, &options).expect("a missing folder");
    begun.fold(&rows(9)).expect("the disk works");
    assert!(matches!(build_dir(&folder, &options), Err(OpenError::InUse { .. })));
    drop(begun);
    assert!(matches!(open_dir(&folder, &options), Err(OpenError::HalfRestored { .. })));

    let mut built = build_dir(&folder, &options).expect("begun anew");
    built.fold(&rows(3)).expect("the disk works");
    let (id, digests) = (built.store_id(), built.digests());
    let end = Mark { index: Index(40), view: View(3), chain: 7 };
    built.finish(end, Bytes::from_static(b"promises")).expect("whole");
    let store = open_dir(&folder, &options).expect("opens");
    assert_eq!((store.store_id, &store.state_bytes[..]), (id, &b"promises"[..]));
    assert_eq!(store.checkpointer.checkpoint().mark, end);
    assert_eq!(store.checkpointer.checkpoint().digests, digests);
    assert_eq!(self::rows(&store).len(), 3, "nothing is left of the first attempt");
    drop(store);
    assert!(matches!(build_dir(&folder, &options), Err(OpenError::HoldsStore { .. })));
    assert!(matches!(build_dir(parent.path(), &options), Err(OpenError::NotAStore { .. })));
}
