//! Many states of recorded runs, on all processors.

use std::collections::BTreeMap;
use std::fmt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use crate::disk::{self, Ignores};
use crate::judge::{Fault, Finding, Found, Verdict, judge};
use crate::recording::{DATA, Recording, recorder};

/// The number in an environment variable.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
        Err(_) => default,
    }
}

/// A temporary folder, in memory if there is such a file system: what is durable in these tests is
/// what the model of the disk says, and the thousands of syncs of the stores mean nothing.
pub fn memory_folder() -> TempDir {
    static IN_MEMORY: LazyLock<bool> =
        LazyLock::new(|| free_bytes(MEMORY) > Some(MEMORY_BYTES_MIN));
    let folder = if *IN_MEMORY { tempfile::tempdir_in(MEMORY) } else { tempfile::tempdir() };
    folder.expect("a temporary folder")
}

const MEMORY: &str = "/dev/shm";
/// What the tests need of it at most, in bytes.
const MEMORY_BYTES_MIN: u64 = 2 << 30;

fn free_bytes(folder: &str) -> Option<u64> {
    let output = Command::new("df").args(["--block-size=1", "--output=avail", folder]).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    text.lines().nth(1)?.trim().parse().ok()
}

/// The seed of the first state.
pub fn first_seed() -> u64 {
    number("ONCE_CRASH_SEED", 0)
}

/// Recorded runs.
pub struct Records {
    _folder: TempDir,
    recordings: Vec<(PathBuf, Recording)>,
}

impl Records {
    /// `runs` new runs of `steps` steps, or the one that the environment names.
    pub fn new(runs: u64, steps: usize) -> Self {
        let folder = memory_folder();
        if let Some(record) = std::env::var_os("ONCE_CRASH_RECORD") {
            let recording = Recording::read(Path::new(&record));
            return Self { _folder: folder, recordings: vec![(record.into(), recording)] };
        }
        let recorder = recorder(folder.path());
        let run = |run| {
            let record = folder.path().join(format!("run-{run}.record"));
            let seed = first_seed() + run;
            let recording = Recording::of(seed, steps, &recorder, folder.path(), &record);
            (record, recording)
        };
        let recordings = (0..runs).map(run).collect();
        Self { _folder: folder, recordings }
    }

    fn of(&self, seed: u64) -> &(PathBuf, Recording) {
        &self.recordings[(seed % self.recordings.len() as u64) as usize]
    }
}

/// A number of states to try.
pub struct Search {
    pub states: u64,
    /// The barriers that do not count.
    pub ignores: Ignores,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    pub states: u64,
    /// States in which something that no barrier covers was missing or torn.
    pub incomplete: u64,
    /// How many such writes there were, and how many of them were missing or torn.
    pending: usize,
    missing: usize,
    /// Stores in which the open removed rows of a torn group or an unfinished cut.
    pub repaired: u64,
    /// Stores that have of a step what was not acknowledged.
    pub went_further: u64,
    /// Which steps were going on, and how often.
    pub within: BTreeMap<&'static str, u64>,
    faults: BTreeMap<Fault, Vec<(u64, String)>>,
}

/// A state that was tried.
struct State {
    pending: usize,
    missing: usize,
    within: Option<&'static str>,
    verdict: Verdict<Found>,
}

impl Tally {
    pub fn count(&self, fault: Fault) -> usize {
        self.faults.get(&fault).map_or(0, Vec::len)
    }

    fn add(&mut self, seed: u64, state: State) {
        self.states += 1;
        self.incomplete += u64::from(state.missing > 0);
        self.pending += state.pending;
        self.missing += state.missing;
        if let Some(step) = state.within {
            *self.within.entry(step).or_default() += 1;
        }
        match state.verdict {
            Ok(found) => {
                self.repaired += u64::from(found.repaired);
                self.went_further += u64::from(found.went_further);
            }
            Err(Finding { fault, what }) => {
                self.faults.entry(fault).or_default().push((seed, what));
            }
        }
    }

    /// Fails with the first fault, and leaves its record and how to see it again.
    pub fn assert_no_fault(&self, records: &Records) {
        let Some((fault, (seed, what))) =
            self.faults.iter().find_map(|(fault, found)| Some((fault, found.first()?)))
        else {
            return;
        };
        let (record, _) = records.of(*seed);
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{seed}.record"));
        for file in ["record", "root"] {
            std::fs::copy(record.with_extension(file), kept.with_extension(file)).expect("a copy");
        }
        panic!(
            "{self}\nstate {seed}: {fault:?}: {what}\nto see it again: ONCE_CRASH_RECORD={} \
             ONCE_CRASH_SEED={seed} ONCE_CRASH_STATES=1",
            kept.display()
        );
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [refused, lost, doubled, torn] =
            [Fault::Refused, Fault::Lost, Fault::Doubled, Fault::Torn].map(|it| self.count(it));
        let Self { states, incomplete, pending, missing, repaired, went_further, within, .. } =
            self;
        write!(
            f,
            "{states} states: {refused} refused, {lost} lost, {doubled} doubled, {torn} torn \
             ({incomplete} lacked {missing} of {pending} writes without a barrier; {repaired} were \
             repaired, {went_further} went further than was acknowledged; within {within:?})"
        )
    }
}

impl Search {
    pub fn run(&self, records: &Records) -> Tally {
        hush_judges();
        let seeds = AtomicU64::new(first_seed());
        let end = first_seed() + self.states;
        let tally = Mutex::new(Tally::default());
        let work = || {
            let folder = memory_folder();
            loop {
                let seed = seeds.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                let (_, recording) = records.of(seed);
                let root = folder.path().join(seed.to_string());
                std::fs::create_dir(&root).expect("a new folder");
                let state = self.state(recording, seed, &root);
                std::fs::remove_dir_all(&root).expect("the folder");
                tally.lock().expect("no thread has panicked").add(seed, state);
            }
        };
        thread::scope(|scope| {
            let workers = thread::available_parallelism().map_or(2, usize::from);
            for _ in 0..workers {
                let judge = thread::Builder::new().name(JUDGE.to_owned());
                judge.spawn_scoped(scope, work).expect("a thread");
            }
        });
        tally.into_inner().expect("no thread has panicked")
    }

    fn state(&self, recording: &Recording, seed: u64, root: &Path) -> State {
        let mut rng = StdRng::seed_from_u64(seed);
        let cut = disk::cut(recording, &mut rng);
        let image = recording.crash(cut, self.ignores, &mut rng);
        image.write(root);
        let said = recording.said(cut);
        let verdict = judge(&recording.script, said, &root.join(DATA)).map_err(|finding| {
            let events = recording.events;
            let what = format!("{} (cut at event {cut} of {events}, {said:?})", finding.what);
            Finding { what, ..finding }
        });
        let within = (said.begun > said.done).then(|| recording.script.steps[said.done].name());
        State { pending: image.pending, missing: image.missing, within, verdict }
    }
}

const JUDGE: &str = "judge";

/// A panic of a judge is a verdict, and no news on the terminal.
fn hush_judges() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some(JUDGE) {
                usual(info);
            }
        }));
    });
}
