//! Power failures, on the real store with its real database.
//!
//! - *Permuted writes*: a process runs a random script of appends, cuts, saved states, checkpoints,
//!   prunings, reopenings and replacements (`script`, `workload`). All that it does to its files is
//!   recorded, with the barriers (`record.c`, `recording`). Then many states are made that a disk may
//!   be in when the power fails at some moment (`disk`, which says what is assumed), and each is
//!   opened and compared with what the process had acknowledged by then (`judge`).
//! - *Images*: the same process runs on an ext4 file system of its own, whose disk is copied at random
//!   moments and mounted again (`images`).
//!
//! How many, and which:
//!
//! ```text
//! ONCE_CRASH_STATES    permuted states (2,000)
//! ONCE_CRASH_SEED      the first state's seed; scripts depend on it too (0)
//! ONCE_CRASH_IMAGES    images (24)
//! ONCE_CRASH_RECORD    a record that a failure has left, in place of new ones
//! ```

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod images;
mod judge;
mod recording;
mod script;
mod search;
mod workload;

use std::time::Instant;

use images::Disk;
use judge::{Fault, Said, judge};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use recording::recorder;
use script::Script;
use search::{Records, Search, first_seed, number};

const STEPS: usize = 45;

/// What a run leaves when nothing happens to it: all of it.
#[test]
fn a_run_without_a_crash_has_no_fault() {
    if workload::run_if_asked() {
        return;
    }
    let folder = search::memory_folder();
    for seed in 0..4 {
        let script = Script::new(seed, STEPS);
        let data = folder.path().join(format!("data {seed}"));
        workload::run(&script, &data, &folder.path().join("lines"));
        let said = Said { begun: STEPS, done: STEPS, folded: script.history(STEPS).folded };
        let found = judge(&script, said, &data).unwrap_or_else(|fault| panic!("{seed}: {fault:?}"));
        assert!(!found.repaired && !found.went_further, "{found:?}");
    }
}

/// Whenever the power fails, and whatever of the writes after the last barrier reached the disk: the
/// store opens, has all that was acknowledged, and nothing else.
#[test]
fn a_power_failure_loses_nothing() {
    let records = Records::new(8, STEPS);
    let search = Search { states: number("ONCE_CRASH_STATES", 2_000), ignores: |_| false };
    let tally = search.run(&records);
    println!("{tally}");
    tally.assert_no_fault(&records);
    // What was tried was worth it.
    assert!(tally.incomplete * 3 > tally.states, "too few states lost a write: {tally}");
    assert!(tally.went_further > 0, "no step was cut in two: {tally}");
}

/// Each barrier is needed, and the search notices when it is missing.
#[test]
fn a_missing_barrier_is_noticed() {
    let records = Records::new(4, STEPS);
    for (name, ignores) in [
        ("of log/", (|path| path.ends_with("log/db")) as disk::Ignores),
        ("of tables/", |path| path.ends_with("tables/db")),
        ("of head", |path| path.ends_with("head")),
        ("of all others: folders, format, sled's own", |path| {
            !["log/db", "tables/db", "head"].iter().any(|name| path.ends_with(name))
        }),
    ] {
        let tally = Search { states: 100, ignores }.run(&records);
        println!("without the barriers {name}: {tally}");
        let lost = tally.count(Fault::Refused) + tally.count(Fault::Lost);
        assert!(lost > 0, "without the barriers {name}: {tally}");
    }
}

/// An ext4 file system that is copied while the store writes to it, and mounted again, has all that
/// was acknowledged.
#[test]
fn a_copied_disk_loses_nothing() {
    const IMAGES_OF_A_RUN: u64 = 6;
    let images = number("ONCE_CRASH_IMAGES", 24);
    let started = Instant::now();
    let (mut within, mut further) = (0, 0);
    for run in 0..images.div_ceil(IMAGES_OF_A_RUN) {
        let seed = first_seed() + run;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disk = Disk::start(Script::new(seed, 2_000), |_, _| {});
        for image in run * IMAGES_OF_A_RUN..images.min((run + 1) * IMAGES_OF_A_RUN) {
            let (said, verdict) = disk.crash_after(rng.random_range(1..60));
            let found = verdict.unwrap_or_else(|finding| {
                panic!("run {seed}, image {image}, {said:?}: {finding:?}");
            });
            within += u64::from(said.begun > said.done);
            further += u64::from(found.went_further);
        }
    }
    println!(
        "{images} images: 0 refused, 0 lost, 0 doubled, 0 torn ({within} were made within a step, \
         {further} went further than was acknowledged), {:.1} s",
        started.elapsed().as_secs_f64()
    );
    assert!(images < 20 || within > 0, "no image was made within a step");
}

/// The images show what a barrier is for: without it they lack what was acknowledged.
#[test]
fn a_copied_disk_without_barriers_loses() {
    let mut disk = Disk::start(Script::new(first_seed(), 2_000), |process, folder| {
        process.env("LD_PRELOAD", recorder(folder)).env("CRASH_LOSE", "1");
    });
    let (said, verdict) = disk.crash_after(30);
    let finding = verdict.expect_err("nothing was synced");
    println!("without barriers, {said:?}: {finding:?}");
}
