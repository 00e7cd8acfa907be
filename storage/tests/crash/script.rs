//! What a run does to a store, and what must be found after each of its steps: both follow from a
//! seed alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use onlyonce_storage::{Effect, Entry, Index, Mark, Record, Table, View};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rows as a reader sees them.
pub type Rows = BTreeMap<(Table, Bytes), Bytes>;

/// How many different keys a table gets.
const KEYS: u32 = 16;

/// A step of a run. It is acknowledged when it has returned.
#[derive(Clone, Debug)]
pub enum Step {
    /// Opens the store, which is made by the first of these steps.
    Open,
    /// Appends records as one group.
    Append(Vec<Arc<Record>>),
    /// Saves the replication's state.
    Save(Bytes),
    /// Cuts the log, and saves a state with it.
    Cut { after: Index, state: Bytes },
    /// Has `head` say what is durable.
    SyncHead,
    /// Commits up to a record and folds up to it, while the next steps go on.
    Checkpoint(Index),
    /// Removes records from the log's begin.
    Prune(Index),
    /// Puts a store in this one's place that was built from a snapshot: it has `records` on top.
    Replace { records: Vec<Arc<Record>>, state: Bytes },
}

impl Step {
    /// What kind of step it is.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Append(_) => "append",
            Self::Save(_) => "save",
            Self::Cut { .. } => "cut",
            Self::SyncHead => "sync head",
            Self::Checkpoint(_) => "checkpoint",
            Self::Prune(_) => "prune",
            Self::Replace { .. } => "replace",
        }
    }
}

/// What a store holds after some steps.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All records, from index 1 on, those that were folded or came with a snapshot too.
    pub records: Vec<Arc<Record>>,
    /// The state last saved.
    pub state: Bytes,
    /// What the steps committed.
    pub committed: Index,
    /// Up to where the steps folded; the last fold may be going on.
    pub folded: Index,
    /// The end of the last snapshot that was installed.
    pub replaced: Index,
    /// Records up to here may be pruned.
    pub prunable: Index,
}

impl History {
    pub fn last(&self) -> Index {
        Index(self.records.len() as u64)
    }

    fn view(&self) -> View {
        self.records.last().map_or(View(1), |record| record.view)
    }

    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Open | Step::SyncHead => {}
            Step::Append(records) => self.records.extend(records.iter().cloned()),
            Step::Save(state) => self.state = state.clone(),
            Step::Cut { after, state } => {
                self.records.truncate(after.0 as usize);
                self.state = state.clone();
            }
            Step::Checkpoint(upto) => {
                self.committed = *upto;
                self.folded = *upto;
            }
            Step::Prune(upto) => self.prunable = self.prunable.max(*upto),
            Step::Replace { records, state } => {
                self.records.extend(records.iter().cloned());
                self.state = state.clone();
                self.committed = self.last();
                self.folded = self.last();
                self.replaced = self.last();
                self.prunable = self.last();
            }
        }
    }

    /// What readers see when `last` is the last record.
    pub fn rows(&self, last: Index) -> Rows {
        let mut rows = Rows::new();
        for record in &self.records[..last.0 as usize] {
            apply(&mut rows, record);
        }
        rows
    }

    /// The end of a snapshot of all of it.
    pub fn end(&self) -> Mark {
        let chain = crc32fast::hash(&self.last().0.to_le_bytes());
        Mark { index: self.last(), view: self.view(), chain }
    }
}

/// Applies a record's effects.
pub fn apply(rows: &mut Rows, record: &Record) {
    for effect in record.entries.iter().flat_map(|entry| &entry.effects) {
        let key = (effect.table, effect.key.clone());
        match &effect.value {
            Some(value) => drop(rows.insert(key, value.clone())),
            None => drop(rows.remove(&key)),
        }
    }
}

/// The steps of a run.
#[derive(Debug)]
pub struct Script {
    pub seed: u64,
    pub steps: Vec<Step>,
}

impl Script {
    pub fn new(seed: u64, steps: usize) -> Self {
        let mut writer = Writer {
            rng: StdRng::seed_from_u64(seed),
            history: History::default(),
            view: View(1),
            states: 0,
        };
        let mut script = Self { seed, steps: vec![Step::Open] };
        while script.steps.len() < steps {
            let Some(step) = writer.step() else { continue };
            writer.history.apply(&step);
            script.steps.push(step);
        }
        script
    }

    /// What the store holds after the first `steps`.
    pub fn history(&self, steps: usize) -> History {
        let mut history = History::default();
        for step in &self.steps[..steps] {
            history.apply(step);
        }
        history
    }
}

struct Writer {
    rng: StdRng,
    history: History,
    /// The view of the next record.
    view: View,
    states: u64,
}

impl Writer {
    /// A step that makes sense now, perhaps.
    fn step(&mut self) -> Option<Step> {
        let (last, committed) = (self.history.last(), self.history.committed);
        match self.rng.random_range(0..100) {
            0..43 => {
                let count = self.rng.random_range(1..=6);
                Some(Step::Append(self.records(count)))
            }
            43..52 => Some(Step::Append(vec![self.long_record()])),
            52..62 => Some(Step::Save(self.state())),
            62..70 if last > committed => {
                let after = Index(self.rng.random_range(committed.0..last.0));
                self.view = self.view.next();
                Some(Step::Cut { after, state: self.state() })
            }
            70..75 => Some(Step::SyncHead),
            75..86 if last > self.history.folded => {
                let from = committed.max(self.history.folded.next());
                Some(Step::Checkpoint(Index(self.rng.random_range(from.0..=last.0))))
            }
            86..92 => Some(Step::Prune(Index(self.rng.random_range(0..=committed.0)))),
            92..97 => Some(Step::Open),
            97..99 => {
                self.view = self.view.next();
                let count = self.rng.random_range(1..=5);
                let records = self.records(count);
                Some(Step::Replace { records, state: self.state() })
            }
            _ => None,
        }
    }

    fn state(&mut self) -> Bytes {
        self.states += 1;
        let padding = self.rng.random_range(0..400);
        Bytes::from(format!("state {} {}", self.states, "s".repeat(padding)))
    }

    fn records(&mut self, count: u64) -> Vec<Arc<Record>> {
        let (first, committed) = (self.history.last().next(), self.history.committed);
        let record = |number| {
            let index = Index(first.0 + number);
            let entries = (0..self.rng.random_range(1..4)).map(|_| self.entry(index)).collect();
            Arc::new(Record::new(self.view, index, committed, entries))
        };
        (0..count).map(record).collect()
    }

    /// A record of a few rows in the log, all of which may be torn from each other.
    fn long_record(&mut self) -> Arc<Record> {
        let index = self.history.last().next();
        let value =
            vec![self.rng.random_range(b'a'..=b'z'); self.rng.random_range(130_000..400_000)];
        let entry = Entry { effects: vec![Effect::put(Table::Kv, "long", value)] };
        Arc::new(Record::new(self.view, index, self.history.committed, vec![entry]))
    }

    fn entry(&mut self, index: Index) -> Entry {
        let effects = (0..self.rng.random_range(1..4)).map(|_| self.effect(index)).collect();
        Entry { effects }
    }

    /// Writes a row with a value that no other effect writes, or deletes it.
    fn effect(&mut self, index: Index) -> Effect {
        let rng = &mut self.rng;
        let table = Table::ALL[rng.random_range(0..Table::ALL.len())];
        let number = rng.random_range(0..KEYS);
        let key = format!("row {number}{}", "-".repeat(if number == 0 { 900 } else { 0 }));
        if rng.random_ratio(1, 5) {
            return Effect::delete(table, key);
        }
        // Most are short; a few need chunks of their own.
        let length = match rng.random_range(0..100) {
            0..90 => rng.random_range(0..200),
            90..97 => rng.random_range(200..9_000),
            _ => rng.random_range(16_000..50_000),
        };
        let mut value =
            format!("{} in {index} of {}: ", rng.random::<u32>(), self.view).into_bytes();
        value.resize(value.len() + length, rng.random_range(b'a'..=b'z'));
        Effect::put(table, key, value)
    }
}
