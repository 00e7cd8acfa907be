//! Random histories of a store with crashes, against plain maps.
//!
//! After every step all rows and records that the store shows are those of the model; after every
//! crash nothing that was flushed is missing and nothing that was cut is back.
//!
//! `PROPTEST_CASES` asks for more histories, `PROPTEST_RNG_SEED` for the same ones again.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::try_open;
use onlyonce_storage::engine::Tree;
use onlyonce_storage::engine::memory::{MemoryDisk, Part};
use onlyonce_storage::limits::CHUNK;
use onlyonce_storage::{
    Effect, Entry, Generation, Index, Opened, Record, StorageError, Table, View,
};
use proptest::prelude::*;

const TABLES: [Table; 3] = [Table::Kv, Table::Replies, Table::Sessions];
/// Around the limit of a row, over a log row, and over two.
const LENGTHS: [usize; 8] = [0, 1, 30, 100, 16 << 10, (16 << 10) + 1, 40_000, 140_000];

#[derive(Clone, Debug)]
enum Step {
    /// One more entry of the open record.
    Stage(Entry),
    /// Close the open record, if it has an entry.
    Push,
    /// Append this many of the records that are not in the log yet.
    Append(usize),
    /// Commit this share of what may be committed.
    Commit(prop::sample::Index),
    /// Cut to a place between committed and last, and begin a view.
    Cut(prop::sample::Index),
    Freeze,
    /// Fold what is frozen.
    Fold,
    Prune(prop::sample::Index),
    Save,
    SyncHead,
    /// Let the disk fail after so many writes.
    Fail(u64),
    /// Crash, and let the first open fail after so many writes.
    Crash(u64, Option<u64>),
    Kill,
}

fn effect() -> impl Strategy<Value = Effect> {
    let value = prop_oneof![
        3 => Just(None),
        6 => (any::<u8>(), 0..4usize).prop_map(Some),
        2 => (any::<u8>(), 4..LENGTHS.len()).prop_map(Some),
    ];
    (0..TABLES.len(), 0..9u8, value).prop_map(|(table, key, value)| Effect {
        table: TABLES[table],
        key: Bytes::from(
            vec![b'k'; usize::from(key / 3)].into_iter().chain([key % 3]).collect::<Vec<_>>(),
        ),
        value: value.map(|(byte, length)| Bytes::from(vec![byte; LENGTHS[length]])),
    })
}

fn step() -> impl Strategy<Value = Step> {
    let entry = proptest::collection::vec(effect(), 0..4).prop_map(|effects| Entry { effects });
    let share = any::<prop::sample::Index>;
    prop_oneof![
        30 => entry.prop_map(Step::Stage),
        30 => Just(Step::Push),
        20 => (1..4usize).prop_map(Step::Append),
        15 => share().prop_map(Step::Commit),
        3 => share().prop_map(Step::Cut),
        6 => Just(Step::Freeze),
        6 => Just(Step::Fold),
        3 => share().prop_map(Step::Prune),
        2 => Just(Step::Save),
        2 => Just(Step::SyncHead),
        2 => (0..40u64).prop_map(Step::Fail),
        1 => (any::<u64>(), proptest::option::of(0..12u64))
            .prop_map(|(seed, fail)| Step::Crash(seed, fail)),
        1 => Just(Step::Kill),
    ]
}

type Rows = BTreeMap<(Table, Bytes), (Bytes, Index)>;

/// What must be true, kept plainly.
struct Model {
    /// All records, in the log or not.
    records: Vec<Arc<Record>>,
    open: Vec<Entry>,
    /// The log's end, as acknowledged.
    durable: u64,
    committed: u64,
    applied: u64,
    /// How far any checkpoint went, finished or not.
    tried: u64,
    view: u64,
    saved: Vec<u8>,
    /// What a failed call may have left instead: the saved state, and the log's end with it.
    unsure: Option<(Vec<u8>, u64)>,
}

impl Model {
    fn last(&self) -> u64 {
        self.records.len() as u64
    }

    fn rows(&self) -> (Rows, BTreeMap<(Table, Bytes), Index>) {
        let (mut rows, mut writers) = (Rows::new(), BTreeMap::new());
        let open = self.open.iter().map(|entry| (Index(self.last() + 1), entry));
        let closed = self
            .records
            .iter()
            .flat_map(|record| record.entries.iter().map(|entry| (record.index, entry)));
        for (index, entry) in closed.chain(open) {
            for effect in &entry.effects {
                let key = (effect.table, effect.key.clone());
                writers.insert(key.clone(), index);
                match &effect.value {
                    Some(value) => rows.insert(key, (value.clone(), index)),
                    None => rows.remove(&key),
                };
            }
        }
        (rows, writers)
    }
}

struct Run {
    disk: MemoryDisk,
    store: Opened,
    model: Model,
    frozen: Option<Generation>,
    failing: bool,
}

impl Run {
    fn new() -> Self {
        let disk = MemoryDisk::new();
        let store = common::reopen(&disk);
        let model = Model {
            records: Vec::new(),
            open: Vec::new(),
            durable: 0,
            committed: 0,
            applied: 0,
            tried: 0,
            view: 1,
            saved: Vec::new(),
            unsure: None,
        };
        Self { disk, store, model, frozen: None, failing: false }
    }

    fn step(&mut self, step: Step) {
        let result = match step {
            Step::Stage(entry) => {
                self.store.state.stage(Index(self.model.last() + 1), &entry);
                self.model.open.push(entry);
                Ok(())
            }
            Step::Push => {
                self.push();
                Ok(())
            }
            Step::Append(count) => self.append(count),
            Step::Commit(share) => {
                // Never beyond what is durable here: only then could it be a commit of a view
                // in which this store is a replica. A learner's commit may run ahead by one.
                let limit = (self.model.durable + 1).min(self.model.last());
                let span = limit.saturating_sub(self.model.committed) as usize + 1;
                self.model.committed += share.index(span) as u64;
                self.store.state.commit(Index(self.model.committed));
                Ok(())
            }
            Step::Cut(share) => self.cut(share),
            Step::Freeze => {
                if let Some(generation) = self.store.state.freeze() {
                    let upto = self.model.committed.min(self.model.durable);
                    assert_eq!(generation.upto(), Index(upto));
                    self.frozen = Some(generation);
                }
                Ok(())
            }
            Step::Fold => self.fold(),
            Step::Prune(share) => {
                let upto = share.index(self.model.last() as usize + 1) as u64;
                self.store.log.prune(Index(upto)).map(drop)
            }
            Step::Save => {
                let state = format!("saved at {}", self.disk.writes()).into_bytes();
                self.model.unsure = Some((state.clone(), self.model.durable));
                self.store.log.save(&state).map(|()| {
                    self.model.saved = state;
                    self.model.unsure = None;
                })
            }
            Step::SyncHead => self.store.log.sync_head(),
            Step::Fail(writes) => {
                self.disk.fail_after(writes);
                self.failing = true;
                Ok(())
            }
            Step::Crash(seed, fail) => {
                self.crash(seed, fail);
                Ok(())
            }
            Step::Kill => {
                self.disk.kill();
                self.recover();
                Ok(())
            }
        };
        if let Err(error) = result {
            assert!(self.failing, "the disk was not told to fail: {error}");
            // The process ends; it may take the machine with it.
            let seed = self.disk.writes();
            if seed.is_multiple_of(2) {
                self.disk.kill();
                self.recover();
            } else {
                self.crash(seed, None);
            }
        }
    }

    fn push(&mut self) {
        let model = &mut self.model;
        if model.open.is_empty() {
            return;
        }
        let entries = std::mem::take(&mut model.open);
        let index = Index(model.last() + 1);
        let record = Record::new(View(model.view), index, Index(model.committed), entries);
        let record = Arc::new(record);
        model.records.push(record.clone());
        self.store.state.push(record);
    }

    fn append(&mut self, count: usize) -> Result<(), StorageError> {
        let from = self.model.durable as usize;
        let upto = (from + count).min(self.model.records.len());
        self.store.log.append(&self.model.records[from..upto])?;
        self.model.durable = upto as u64;
        self.store.state.note_persisted(Index(self.model.durable));
        Ok(())
    }

    fn cut(&mut self, share: prop::sample::Index) -> Result<(), StorageError> {
        let model = &mut self.model;
        // The log must hold what is committed before it is cut there.
        let least = model.committed.min(model.durable);
        if least < model.committed {
            return Ok(());
        }
        let after =
            model.committed + share.index((model.last() - model.committed) as usize + 1) as u64;
        self.store.state.unstage_after(Index(after));
        model.open.clear();
        model.view += 1;
        let state = format!("view {}", model.view).into_bytes();
        let end = after.min(model.durable);
        model.unsure = Some((state.clone(), end));
        let cut = self.store.log.cut(Index(end), &state);
        if cut.is_ok() {
            model.records.truncate(after as usize);
            model.durable = end;
            model.saved = state;
            model.unsure = None;
        }
        cut
    }

    fn fold(&mut self) -> Result<(), StorageError> {
        let Some(generation) = self.frozen.take() else { return Ok(()) };
        self.model.tried = self.model.tried.max(generation.upto().0);
        self.store.checkpointer.fold(&generation, || {})?;
        // Readers do not mind that the tables are ahead of the overlay for a while.
        self.check();
        self.model.applied = generation.upto().0;
        drop(self.store.state.note_folded(generation.upto()));
        self.check_chunks();
        Ok(())
    }

    fn crash(&mut self, seed: u64, fail: Option<u64>) {
        self.disk.crash(seed);
        if let Some(writes) = fail {
            self.disk.fail_after(writes);
            if try_open(&self.disk).is_err() {
                self.disk.crash(seed + 1);
            } else {
                self.disk.kill();
            }
        }
        self.recover();
    }

    /// Opens the store after a crash, and makes the model what survived.
    fn recover(&mut self) {
        self.failing = false;
        self.frozen = None;
        self.store = common::reopen(&self.disk);
        let (state, model) = (&self.store.state, &mut self.model);
        let last = state.last().1.0;
        match model.unsure.take() {
            Some((saved, end)) if self.store.state_bytes == saved => {
                assert!(last == end || end == model.durable, "the log ends at {last}, not {end}");
                assert!(last >= end, "the log ends at {last}, before {end}");
                model.saved = saved;
            }
            _ => {
                assert_eq!(self.store.state_bytes, model.saved);
                assert!(last >= model.durable, "{last} is left of {} records", model.durable);
            }
        }
        assert!(last <= model.last(), "{last} records came of {}", model.last());
        assert!(state.applied().0 >= model.applied);
        assert!(state.committed().0 <= model.committed, "only what was committed is");
        model.records.truncate(last as usize);
        model.open.clear();
        model.durable = last;
        model.applied = state.applied().0;
        // What is committed stays so elsewhere; this store learns it again.
        model.committed = model.committed.min(last);
        self.store.state.commit(Index(model.committed));
        model.view += 1;
    }

    /// After a checkpoint there are exactly the pieces of the long values that are in the tables,
    /// unless an unfinished one went further.
    fn check_chunks(&self) {
        let applied = self.model.applied;
        if applied < self.model.tried {
            return;
        }
        let mut lengths = BTreeMap::new();
        for record in &self.model.records[..applied as usize] {
            for effect in record.entries.iter().flat_map(|entry| &entry.effects) {
                let length = effect.value.as_ref().map_or(0, Bytes::len);
                lengths.insert((effect.table, effect.key.clone()), length);
            }
        }
        let long = lengths.into_values().filter(|length| *length > CHUNK);
        let expected: usize = long.map(|length| length.div_ceil(CHUNK)).sum();
        assert_eq!(self.disk.keys(Part::Tables, Tree::Chunks).len(), expected);
    }

    fn check(&self) {
        let (state, model) = (&self.store.state, &self.model);
        assert!(state.applied() <= state.committed() && state.committed() <= state.last().1);
        assert_eq!(state.last().1, Index(model.last()));
        let (rows, writers) = model.rows();
        for table in TABLES {
            check_scan(state, table, &rows, &writers);
        }
        for (key, writer) in &writers {
            let seen = state.get(key.0, &key.1).expect("the disk works for reads");
            assert_eq!(seen.value.as_ref(), rows.get(key).map(|(value, _)| value), "{key:?}");
            let applied = *writer <= state.applied();
            assert!(seen.index == *writer || (applied && seen.index == Index::ZERO), "{key:?}");
        }
        let records = state.records(state.first(), usize::MAX).expect("the disk works for reads");
        let expected = &model.records[state.first().previous().0 as usize..];
        // What left the tail comes first, the rest with the next call.
        assert!(expected.starts_with(&records) && records.is_empty() == expected.is_empty());
        for record in expected {
            assert_eq!(state.view_at(record.index).expect("it works"), Some(record.view));
            let read = state.record(record.index).expect("it works").expect("it is there");
            assert_eq!(&read, record);
        }
    }
}

fn check_scan(
    state: &onlyonce_storage::State,
    table: Table,
    rows: &Rows,
    writers: &BTreeMap<(Table, Bytes), Index>,
) {
    for (start, end) in
        [(&b""[..], None), (b"k", Some(&b"kk\x01"[..])), (b"kk", None), (b"k", Some(b"k"))]
    {
        let within = |key: &Bytes| key >= start && end.is_none_or(|end| key < end);
        let mut previous: Option<Bytes> = None;
        let mut found = Vec::new();
        for row in state.scan(table, start, end) {
            let row = row.expect("the disk works for reads");
            assert!(within(&row.key), "{row:?} is outside");
            assert!(previous.as_ref().is_none_or(|previous| *previous < row.key), "in key order");
            previous = Some(row.key.clone());
            let writer = writers[&(table, row.key.clone())];
            assert!(row.index == writer || (row.index == Index::ZERO && writer <= state.applied()));
            if row.value.is_none() {
                assert!(!rows.contains_key(&(table, row.key)), "a deleted row is deleted");
                continue;
            }
            found.push((row.key, row.value.expect("just seen")));
        }
        let expected = rows.iter().filter(|((of, key), _)| *of == table && within(key));
        let expected: Vec<_> =
            expected.map(|((_, key), (value, _))| (key.clone(), value.clone())).collect();
        assert!(found == expected, "scan of {table:?} from {start:?}: {} rows", found.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to a store, it shows exactly what the model holds.
    #[test]
    fn a_store_is_its_model(steps in proptest::collection::vec(step(), 1..500)) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
            run.check();
        }
    }
}
