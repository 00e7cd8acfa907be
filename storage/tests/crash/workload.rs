//! A run of a script on a store. It says what it begins and what is done, a line each:
//!
//! ```text
//! run SEED STEPS
//! begin STEP
//! done STEP
//! folded INDEX       a checkpoint is done; steps went on meanwhile
//! ```

use std::env;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use onlyonce_storage::{Checkpointer, Effect, Entry, Index, LogWriter, Opened, State, open_dir};

use crate::common::options;
use crate::script::{History, Script, Step};

/// Where the lines go.
#[derive(Clone, Debug)]
struct Lines(Arc<Mutex<File>>);

impl Lines {
    fn say(&self, line: &str) {
        let mut file = self.0.lock().expect("no thread has panicked");
        file.write_all(format!("{line}\n").as_bytes()).expect("a written line");
    }
}

/// Runs the script in the folder `data` and writes the lines to the file `lines`.
pub fn run(script: &Script, data: &Path, lines: &Path) {
    let lines = Lines(Arc::new(Mutex::new(File::create(lines).expect("a file"))));
    lines.say(&format!("run {} {}", script.seed, script.steps.len()));
    let mut history = History::default();
    let mut store: Option<Store> = None;
    for (number, step) in script.steps.iter().enumerate() {
        lines.say(&format!("begin {number}"));
        history.apply(step);
        match (step, &mut store) {
            (Step::Open, _) => {
                drop(store.take().map(Store::close));
                store = Some(Store::open(data, &lines));
            }
            (Step::Replace { .. }, Some(_)) => {
                let old = store.take().expect("it is open").close();
                replace(&old, &history);
                drop(old);
                store = Some(Store::open(data, &lines));
            }
            (step, Some(store)) => store.take_step(step),
            (step, None) => panic!("{step:?} comes before the store is opened"),
        }
        lines.say(&format!("done {number}"));
    }
    drop(store.map(Store::close));
}

/// Builds the store that has all of `history` and lets it replace the one of `old`.
fn replace(old: &Checkpointer, history: &History) {
    let mut incoming = old.begin_incoming().expect("the disk works");
    for ((table, key), value) in history.rows(history.last()) {
        let entry = Entry { effects: vec![Effect::put(table, key, value)] };
        incoming.fold(&entry).expect("the disk works");
    }
    incoming.finish(history.end(), history.state.clone()).expect("the disk works");
}

struct Store {
    state: State,
    log: LogWriter,
    checkpointer: Folder,
    lines: Lines,
}

/// Who has the checkpointer.
enum Folder {
    Idle(Checkpointer),
    Folding(Index, JoinHandle<Checkpointer>),
    /// Between the two.
    Nobody,
}

impl Store {
    fn open(data: &Path, lines: &Lines) -> Self {
        let opened = open_dir(data, &options()).expect("the store opens");
        let Opened { state, log, checkpointer, .. } = opened;
        Self { state, log, checkpointer: Folder::Idle(checkpointer), lines: lines.clone() }
    }

    /// Ends a checkpoint that goes on. The files are closed with the checkpointer that is returned.
    fn close(mut self) -> Checkpointer {
        self.idle()
    }

    fn idle(&mut self) -> Checkpointer {
        match std::mem::replace(&mut self.checkpointer, Folder::Nobody) {
            Folder::Idle(checkpointer) => checkpointer,
            Folder::Folding(upto, thread) => {
                let checkpointer = thread.join().expect("the checkpoint works");
                drop(self.state.note_folded(upto));
                checkpointer
            }
            Folder::Nobody => unreachable!("somebody has it"),
        }
    }

    fn take_step(&mut self, step: &Step) {
        match step {
            Step::Append(records) => {
                for record in records {
                    self.state.stage_record(record.clone());
                }
                self.log.append(records).expect("the disk works");
                self.state.note_persisted(self.state.last().1);
            }
            Step::Save(state) => self.log.save(state).expect("the disk works"),
            Step::Cut { after, state } => {
                self.state.unstage_after(*after);
                self.log.cut(*after, state).expect("the disk works");
            }
            Step::SyncHead => self.log.sync_head().expect("the disk works"),
            Step::Checkpoint(upto) => self.checkpoint(*upto),
            Step::Prune(upto) => while self.log.prune(*upto).expect("the disk works") {},
            Step::Open | Step::Replace { .. } => unreachable!("these make a new store"),
        }
    }

    fn checkpoint(&mut self, upto: Index) {
        let mut checkpointer = self.idle();
        self.state.commit(upto);
        let generation = self.state.freeze().expect("something was committed");
        assert_eq!(generation.upto(), upto, "what is folded");
        let lines = self.lines.clone();
        let fold = move || {
            checkpointer.fold(&generation, || {}).expect("the disk works");
            lines.say(&format!("folded {upto}"));
            checkpointer
        };
        self.checkpointer = Folder::Folding(upto, thread::spawn(fold));
    }
}

/// What tells a copy of this test that it is the process that runs a script.
const RUN: &str = "ONCE_CRASH_RUN";

/// A process that runs a script, and nothing else: this test's own program.
pub fn process(seed: u64, steps: usize, data: &Path, lines: &Path) -> Command {
    let mut process = Command::new(env::current_exe().expect("this program"));
    let job = format!("{seed} {steps}\n{}\n{}", data.display(), lines.display());
    process.args(["--exact", PROCESS_TEST, "--nocapture"]).env(RUN, job);
    process
}

/// The test that [`process`] runs.
const PROCESS_TEST: &str = "a_run_without_a_crash_has_no_fault";

/// Does what [`process`] asked for, if it did.
pub fn run_if_asked() -> bool {
    let Ok(job) = env::var(RUN) else { return false };
    let words: Vec<_> = job.split(['\n', ' ']).collect();
    let [seed, steps, data, lines] = words[..] else { panic!("a job of four words: {job:?}") };
    let script = Script::new(seed.parse().expect("a seed"), steps.parse().expect("a number"));
    run(&script, Path::new(data), Path::new(lines));
    true
}
