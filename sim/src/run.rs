//! Runs seeds, and shows how those end that find something.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::plan::{Blunder, Plan};
use crate::tally::Report;
use crate::timeline::Timeline;
use crate::world::World;

/// What is broken when a healed world does not come to rest.
pub const AT_REST: &str = "at rest";

/// What is tried beside the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trial {
    /// What is done wrong around the nodes.
    pub blunder: Option<Blunder>,
    /// The rule that every node breaks.
    #[cfg(feature = "mutations")]
    pub broken: Option<onlyonce_replica::Rule>,
}

/// A seed that found something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was found: the rule, and how it was broken.
    pub finding: String,
    /// The last lines of its timeline.
    pub lines: Vec<String>,
}

impl Failure {
    /// The invariant or promise that was broken, as the finding names it.
    #[must_use]
    pub fn rule(&self) -> &str {
        let text = self.finding.split_once(" s: ").map_or(&*self.finding, |(_, text)| text);
        text.split_once(':').map_or(AT_REST, |(rule, _)| rule)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        write!(
            f,
            "seed {}: {}\n`cargo run --release -p onlyonce-sim -- --seed {} --trace` tells more",
            self.seed, self.finding, self.seed
        )
    }
}

/// Runs a seed to its end. If it finds something, it is run again to show its end.
fn run(seed: u64, trial: Trial) -> Result<Report, Box<Failure>> {
    let finding = match attempt(seed, trial, Timeline::Off) {
        (Ok(report), _) => return Ok(report),
        (Err(finding), _) => finding,
    };
    let lines = match attempt(seed, trial, Timeline::Keep(VecDeque::new())) {
        (Err(again), Timeline::Keep(lines)) if again == finding => lines.into(),
        _ => vec!["(a second run went otherwise: the simulation is not deterministic)".to_owned()],
    };
    Err(Box::new(Failure { seed, finding, lines }))
}

/// Runs a seed and prints its timeline.
pub fn trace(seed: u64, trial: Trial) -> Result<Report, Box<Failure>> {
    let work = || attempt(seed, trial, Timeline::Print).0;
    let result = std::thread::scope(|scope| {
        let thread = deep_thread().spawn_scoped(scope, work).expect("a thread");
        thread.join().expect("panics are findings")
    });
    result.map_err(|finding| Box::new(Failure { seed, finding, lines: Vec::new() }))
}

/// Runs seeds on all cores, and calls `each` for each that ends, in the order in which they end;
/// begins no more once it returns false.
pub fn run_many(
    seeds: Range<u64>,
    trial: Trial,
    each: impl FnMut(Result<Report, Box<Failure>>) -> bool + Send,
) {
    let next = AtomicU64::new(seeds.start);
    let ended = AtomicBool::new(false);
    let each = Mutex::new(each);
    let work = || {
        while !ended.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let result = run(seed, trial);
            let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
            if !each(result) {
                ended.store(true, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            deep_thread().spawn_scoped(scope, work).expect("a thread");
        }
    });
}

/// The search for a legal order goes as deep as a history is long.
fn deep_thread() -> std::thread::Builder {
    std::thread::Builder::new().stack_size(256 << 20)
}

fn attempt(seed: u64, trial: Trial, timeline: Timeline) -> (Result<Report, String>, Timeline) {
    let mut rng = StdRng::seed_from_u64(seed);
    let plan = Plan::draw(&mut rng, trial);
    let mut world = World::new(rng, plan, timeline);
    let result = catch(seed, || world.run());
    let result = result.unwrap_or_else(|panicked| Err(format!("panic: {panicked}")));
    let report = std::mem::take(&mut world.report);
    (result.map(|()| report), std::mem::take(&mut world.timeline))
}

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    static PANICKED: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Catches a panic, with its message and place. Where panics abort, it is told before the end.
fn catch<T>(seed: u64, action: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| match SEED.get() {
            Some(_) if cfg!(panic = "unwind") => PANICKED.set(info.to_string()),
            Some(seed) => eprintln!("seed {seed}: {info}"),
            None => usual(info),
        }));
    });
    SEED.set(Some(seed));
    let result = panic::catch_unwind(AssertUnwindSafe(action));
    SEED.set(None);
    result.map_err(|_| PANICKED.take())
}
