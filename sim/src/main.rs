//! `onlyonce-sim`: worlds from seeds.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use onlyonce_sim::{Report, run};

/// Simulates whole clusters, each world drawn from a seed.
#[derive(Parser)]
struct Args {
    /// Worlds to run, as in 0..1000.
    #[arg(long, value_parser = parse_range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// One world only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Tell everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text.split_once("..").ok_or("a range as in 0..1000 is needed")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a number"));
    Ok(number(start)?..number(end)?)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seeds = args.seed.map_or(args.seeds, |seed| seed..seed + 1);
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new((Report::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            // The search for a legal order goes as deep as a history is long.
            let builder = std::thread::Builder::new().stack_size(256 << 20);
            let work = || work(&next, seeds.end, args.trace, &total);
            builder.spawn_scoped(scope, work).expect("a thread");
        }
    });
    let (report, failures) = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} worlds, {} steps ({:.0}/s), {} answered, {} unknown, {} views, {} crashes, {} disks emptied, {} snapshots, {seconds:.1} s",
        seeds.end - seeds.start,
        report.steps,
        report.steps as f64 / seconds,
        report.answered,
        report.unknown,
        report.views,
        report.crashes,
        report.emptied,
        report.installed,
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(next: &AtomicU64, end: u64, trace: bool, total: &Mutex<(Report, Vec<u64>)>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        let outcome = std::panic::catch_unwind(|| run(seed, trace));
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(Ok(report)) => {
                let sum = &mut total.0;
                sum.steps += report.steps;
                sum.answered += report.answered;
                sum.unknown += report.unknown;
                sum.views += report.views;
                sum.crashes += report.crashes;
                sum.emptied += report.emptied;
                sum.installed += report.installed;
            }
            Ok(Err(finding)) => {
                println!("seed {seed}: {finding}");
                total.1.push(seed);
            }
            Err(_) => {
                println!("seed {seed}: panicked");
                total.1.push(seed);
            }
        }
    }
}
