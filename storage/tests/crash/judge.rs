//! What must be true of a store that a crash left, and whether it is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use onlyonce_storage::{
    Cursor, Effect, Entry, Index, OpenError, Opened, Record, StorageError, Table, open_dir,
};

use crate::common::{STORE, checkpoint, options, scrub};
use crate::script::{History, Rows, Script, Step, apply};

/// How long a closed store may still be in use.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a run had said when it was cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// How many steps were begun.
    pub begun: usize,
    /// How many of them were acknowledged: all of them or all but the last.
    pub done: usize,
    /// The last checkpoint that was acknowledged.
    pub folded: Index,
}

impl Said {
    /// Takes the next line of a run.
    pub fn hear(&mut self, line: &str) {
        let (word, number) = line.split_once(' ').unwrap_or((line, ""));
        let number = || number.parse::<usize>().expect("a number");
        match word {
            "begin" => self.begun = number() + 1,
            "done" => self.done = number() + 1,
            "folded" => self.folded = Index(number() as u64),
            "run" => {}
            _ => panic!("the run says {line:?}"),
        }
    }
}

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It does not open, or cannot be worked with.
    Refused,
    /// Something acknowledged is missing.
    Lost,
    /// Something is there that was cut, deleted, or never written, or is there once too often.
    Doubled,
    /// Something is neither as before a step nor as after it.
    Torn,
}

/// A fault, and what was seen of it.
#[derive(Clone, Debug)]
pub struct Finding {
    pub fault: Fault,
    pub what: String,
}

pub type Verdict<T> = Result<T, Finding>;

fn fault<T>(fault: Fault, what: impl Into<String>) -> Verdict<T> {
    Err(Finding { fault, what: what.into() })
}

impl From<StorageError> for Finding {
    fn from(error: StorageError) -> Self {
        Self { fault: Fault::Refused, what: error.to_string() }
    }
}

/// A store that may be found.
#[derive(Debug)]
struct Expected {
    history: History,
    /// The lowest end of the log; the highest is the history's.
    last_min: Index,
    applied_min: Index,
}

/// The stores that may be found: as before or as after the step that was going on, or with a part
/// of the records that it appends.
fn expected(script: &Script, said: Said) -> Vec<Expected> {
    let before = script.history(said.done);
    let after = script.history(said.begun);
    let plain = |history: History| Expected {
        last_min: history.last(),
        applied_min: said.folded.max(history.replaced),
        history,
    };
    if said.begun == said.done {
        return vec![plain(before)];
    }
    match script.steps[said.done] {
        Step::Append(_) => vec![Expected { last_min: before.last(), ..plain(after) }],
        Step::Save(_) | Step::Cut { .. } | Step::Replace { .. } => {
            vec![plain(before), plain(after)]
        }
        Step::Open | Step::SyncHead | Step::Checkpoint(_) | Step::Prune(_) => vec![plain(after)],
    }
}

/// What was found in a store without a fault.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Whether rows of a torn group, or of an unfinished cut, were removed.
    pub repaired: bool,
    /// Whether a step that was not acknowledged has taken effect, in part or whole.
    pub went_further: bool,
}

/// Opens the store in `data`, compares it with what the run had said, goes on with it, and opens it
/// once more.
pub fn judge(script: &Script, said: Said, data: &Path) -> Verdict<Found> {
    let judged = catch_unwind(AssertUnwindSafe(|| judge_store(script, said, data)));
    judged.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        fault(Fault::Refused, format!("a panic: {}", text.unwrap_or_default()))
    })
}

fn judge_store(script: &Script, said: Said, data: &Path) -> Verdict<Found> {
    let mut store = open(data)?;
    let expected = choose(expected(script, said), &store)?;
    check(&expected, &mut store)?;
    let last = store.state.last().1;
    let before = script.history(said.done);
    let found = Found {
        repaired: store.recovered.removed_rows > 0,
        went_further: (&before.state, before.last()) != (&store.state_bytes, last),
    };
    // Go on: one more record, and all of it folded, over what a cut-off checkpoint may have left.
    let mut history = expected.history;
    history.records.truncate(last.0 as usize);
    let entry = Entry { effects: vec![Effect::put(Table::Kv, "after the crash", "row")] };
    let view = store.state.last().0;
    let record = Arc::new(Record::new(view, last.next(), store.state.committed(), vec![entry]));
    store.state.stage_record(record.clone());
    store.log.append(std::slice::from_ref(&record))?;
    store.state.note_persisted(last.next());
    checkpoint(&mut store, last.next().0);
    drop(store);
    history.apply(&Step::Append(vec![record]));
    history.apply(&Step::Checkpoint(last.next()));
    let (last_min, applied_min) = (last.next(), last.next());
    check(&Expected { history, last_min, applied_min }, &mut open(data)?)?;
    Ok(found)
}

fn open(data: &Path) -> Verdict<Opened> {
    let patience = Instant::now() + PATIENCE;
    loop {
        match open_dir(data, &options()) {
            Ok(store) => return Ok(store),
            // A process that another test of this program has just forked holds all files for a
            // moment, those of the store too that was just closed.
            Err(OpenError::InUse { .. }) if Instant::now() < patience => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return fault(Fault::Refused, error.to_string()),
        }
    }
}

/// Which of the stores this one is.
fn choose(mut expected: Vec<Expected>, store: &Opened) -> Verdict<Expected> {
    let (state, last) = (&store.state_bytes, store.state.last().1);
    let is_it = |expected: &Expected| {
        let ends = expected.last_min..=expected.history.last();
        *state == expected.history.state && ends.contains(&last)
    };
    if let Some(found) = expected.iter().position(is_it) {
        return Ok(expected.swap_remove(found));
    }
    let what = |expected: &Expected| {
        let Expected { history, last_min, .. } = expected;
        format!("{} with an end in {last_min}..={}", name(&history.state), history.last())
    };
    let wanted = expected.iter().map(what).collect::<Vec<_>>().join(", or ");
    let known_state = expected.iter().any(|expected| *state == expected.history.state);
    let kind = if expected.iter().all(|expected| last > expected.history.last()) {
        Fault::Doubled
    } else if known_state && expected.iter().any(|expected| last >= expected.last_min) {
        Fault::Torn
    } else {
        Fault::Lost
    };
    fault(kind, format!("found {} with the end {last}; expected {wanted}", name(state)))
}

/// The begin of a saved state.
fn name(state: &Bytes) -> String {
    let text = String::from_utf8_lossy(state);
    let words: Vec<_> = text.split_whitespace().take(2).collect();
    format!("\"{}\"", words.join(" "))
}

fn check(expected: &Expected, store: &mut Opened) -> Verdict<()> {
    let Expected { history, applied_min, .. } = expected;
    let (first, applied) = (store.state.first(), store.state.applied());
    if store.store_id != STORE {
        return fault(Fault::Torn, format!("it is store {:x}", store.store_id));
    }
    if applied < *applied_min {
        return fault(Fault::Lost, format!("applied is {applied}, but {applied_min} was folded"));
    }
    if applied > history.folded {
        let upto = history.folded;
        return fault(Fault::Doubled, format!("applied is {applied}, but {upto} is all"));
    }
    if first > history.prunable.next() {
        return fault(Fault::Lost, format!("the log begins at {first}"));
    }
    check_records(history, store)?;
    let last = store.state.last().1;
    let wanted = history.rows(last);
    compare(&wanted, &visible(store)?, "readers see")?;
    compare(&wanted, &snapshot(store)?, "a snapshot has")?;
    scrub(store).map(drop).or_else(|error| fault(Fault::Torn, error.to_string()))
}

/// The log has all records from its first to its last one, as they were written.
fn check_records(history: &History, store: &Opened) -> Verdict<()> {
    let (first, last) = (store.state.first(), store.state.last().1);
    for index in (first.0..=last.0).map(Index) {
        let wanted = &history.records[index.previous().0 as usize];
        match store.state.record(index)? {
            Some(found) if found == *wanted => {}
            Some(found) => return fault(Fault::Torn, format!("{found:?} instead of {wanted:?}")),
            None => return fault(Fault::Lost, format!("record {index} of {first}..={last}")),
        }
    }
    Ok(())
}

/// What readers see: by a scan, and row by row.
fn visible(store: &Opened) -> Result<Rows, StorageError> {
    let mut rows = Rows::new();
    for table in Table::ALL {
        let mut before = None;
        for row in store.state.scan(table, &[], None) {
            let row = row?;
            assert!(before < Some(row.key.clone()), "a row is met twice: {:?}", row.key);
            let read = store.state.get(table, &row.key)?.value;
            assert_eq!(read, row.value, "a scan and a read of one row");
            rows.extend(row.value.map(|value| ((table, row.key.clone()), value)));
            before = Some(row.key);
        }
    }
    Ok(rows)
}

/// What a store has that is built from this one's snapshot and the records after it.
fn snapshot(store: &Opened) -> Result<Rows, StorageError> {
    let mut built = Rows::new();
    let mut cursor = Some(Cursor::start());
    while let Some(from) = cursor {
        let rows = store.checkpointer.read_rows(&from, 64 << 10)?;
        cursor = rows.next;
        let effects = rows.entry.effects.into_iter();
        built.extend(effects.map(|effect| {
            let value = effect.value.expect("a snapshot's rows are no deletions");
            ((effect.table, effect.key), value)
        }));
    }
    let after = store.state.applied().next();
    for index in (after.0..=store.state.last().1.0).map(Index) {
        let record = store.state.record(index)?.expect("the records were checked");
        apply(&mut built, &record);
    }
    Ok(built)
}

fn compare(wanted: &Rows, found: &Rows, who: &str) -> Verdict<()> {
    for ((table, key), value) in wanted {
        let row = || format!("{who} {} {:?}", table.name(), key.escape_ascii().to_string());
        match found.get(&(*table, key.clone())) {
            Some(read) if read == value => {}
            Some(read) => {
                let begin = |value: &Bytes| value[..value.len().min(40)].escape_ascii().to_string();
                let (read, value) = (begin(read), begin(value));
                return fault(Fault::Torn, format!("{}: {read} instead of {value}", row()));
            }
            None => return fault(Fault::Lost, format!("{}: nothing", row())),
        }
    }
    match found.keys().find(|row| !wanted.contains_key(*row)) {
        Some((table, key)) => {
            let key = key.escape_ascii();
            fault(Fault::Doubled, format!("{who} {} \"{key}\", which was deleted", table.name()))
        }
        None => Ok(()),
    }
}
