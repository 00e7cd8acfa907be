//! The proof that the simulator can fail: each safety rule that the code keeps, and those that clients
//! and operators keep around it, broken on purpose, is noticed. A rule that is not would be one that
//! nothing checks.

use std::time::{Duration, Instant};

use onlyonce_replica::Rule;
use onlyonce_sim::{AT_REST, Blunder, Failure, Report, Trial, run_many};

/// At least so many seeds are run with no rule broken.
const CONTROLS_MIN: u64 = 500;
/// Within so many seeds every broken rule must be noticed.
const SEEDS_MAX: u64 = 2_000;

/// The first seed that notices what is broken. A world that does not come to rest proves little: what
/// counts is an invariant.
fn notice(trial: Trial) -> Option<Box<Failure>> {
    let mut noticed: Vec<Box<Failure>> = Vec::new();
    run_many(0..SEEDS_MAX, trial, |result| {
        noticed.extend(result.err().filter(|failure| failure.rule() != AT_REST));
        noticed.is_empty()
    });
    noticed.into_iter().min_by_key(|failure| failure.seed)
}

/// Every rule, of nodes and of those around them, broken.
fn trials() -> impl Iterator<Item = (String, Trial)> {
    let rules = Rule::ALL
        .iter()
        .map(|rule| (format!("{rule:?}"), Trial { broken: Some(*rule), ..Trial::default() }));
    let blunders = Blunder::ALL.into_iter().map(|blunder| {
        (format!("{blunder:?}"), Trial { blunder: Some(blunder), ..Trial::default() })
    });
    rules.chain(blunders)
}

/// Every broken rule is noticed, and with none broken the same worlds find nothing.
#[test]
fn every_broken_rule_is_noticed() {
    let mut missed = Vec::new();
    let mut newest = CONTROLS_MIN;
    println!("{:<28} {:>5} {:>6}  noticed by", "rule", "seed", "ms");
    for (name, trial) in trials() {
        let began = Instant::now();
        let noticed = notice(trial);
        let took: Duration = began.elapsed();
        let Some(failure) = noticed else {
            println!("{name:<28} {:>5} {:>6}  nothing", "-", took.as_millis());
            missed.push(name);
            continue;
        };
        newest = newest.max(failure.seed);
        let finding: String = failure.finding.chars().take(160).collect();
        println!("{name:<28} {:>5} {:>6}  {finding}", failure.seed, took.as_millis());
    }
    let mut sum = Report::default();
    let mut found = Vec::new();
    run_many(0..newest + 1, Trial::default(), |result| {
        match result {
            Ok(report) => sum.add(&report),
            Err(failure) => found.push(failure),
        }
        true
    });
    println!("with no rule broken: {} worlds, {} findings", sum.worlds, found.len());
    if let Some(failure) = found.first() {
        panic!("a finding with no rule broken:\n{failure}");
    }
    assert!(missed.is_empty(), "broken, and not noticed in {SEEDS_MAX} worlds: {missed:?}");
}
