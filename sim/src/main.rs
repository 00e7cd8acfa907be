//! `onlyonce-sim`: worlds from seeds.

use std::io::{IsTerminal as _, Write as _};
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use onlyonce_sim::{Failure, Report, Trial, run_many, trace};

/// So many worlds must meet every mark.
const WORLDS_OF_ALL_MARKS: u64 = 2_000;
/// How many findings are shown in full.
const SHOWN_MAX: usize = 5;

/// Simulates whole clusters, each world drawn from a seed. Ends with 1 when a world finds something,
/// or when two thousand worlds or more never met one of the marks.
#[derive(Parser)]
struct Args {
    /// Worlds to run, as in 0..1000.
    #[arg(long, value_parser = parse_range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// One world only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Tell what happens, line by line.
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text.split_once("..").ok_or("a range as in 0..1000 is needed")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a number"));
    let range = number(start)?..number(end)?;
    if range.is_empty() { Err(format!("{text} is empty")) } else { Ok(range) }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let (Some(seed), true) = (args.seed, args.trace) {
        return match trace(seed, Trial::default()) {
            Ok(_) => ExitCode::SUCCESS,
            Err(failure) => {
                println!("{failure}");
                ExitCode::FAILURE
            }
        };
    }
    let seeds = args.seed.map_or(args.seeds, |seed| seed..seed + 1);
    let began = Instant::now();
    let mut sum = Report::default();
    let mut failures: Vec<Box<Failure>> = Vec::new();
    let mut ended = 0;
    let all = seeds.end - seeds.start;
    run_many(seeds, Trial::default(), |result| {
        ended += 1;
        match result {
            Ok(report) => sum.add(&report),
            Err(failure) => {
                println!("seed {}: {}", failure.seed, failure.finding);
                failures.push(failure);
            }
        }
        if std::io::stderr().is_terminal() || ended % 1_000 == 0 {
            let end = if std::io::stderr().is_terminal() { '\r' } else { '\n' };
            eprint!("{ended} of {all} worlds, {} findings{end}", failures.len());
            let _ = std::io::stderr().flush();
        }
        true
    });
    let seconds = began.elapsed().as_secs_f64();
    println!("{}", sum.table());
    println!(
        "{ended} worlds, {} steps ({:.0}/s), {} answered, {} unknown, {} views, {} findings, {seconds:.1} s",
        sum.steps,
        sum.steps as f64 / seconds,
        sum.answered,
        sum.unknown,
        sum.views,
        failures.len(),
    );
    failures.sort_by_key(|failure| failure.seed);
    for failure in failures.iter().take(SHOWN_MAX) {
        println!("\n{failure}");
    }
    let never_met = sum.never_met();
    let poor = ended >= WORLDS_OF_ALL_MARKS && !never_met.is_empty();
    if poor {
        println!("never met: {}", never_met.join(", "));
    }
    if failures.is_empty() && !poor { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
