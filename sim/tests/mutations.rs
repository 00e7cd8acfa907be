//! The proof that the simulator can fail: each safety rule that the code keeps, broken on purpose,
//! is noticed. A rule that is not would be a rule that nothing checks.

use std::time::{Duration, Instant};

use onlyonce_replica::Rule;
use onlyonce_sim::{AT_REST, Failure, Report, Trial, run_many};

/// At least so many seeds are run with no rule broken.
const CONTROLS_MIN: u64 = 500;
/// Within so many seeds every broken rule must be noticed.
const SEEDS_MAX: u64 = 2_000;

/// The first seed that notices the broken rule. A world that does not come to rest proves little:
/// what counts is an invariant.
fn notice(rule: Rule) -> Option<Box<Failure>> {
    let mut noticed: Vec<Box<Failure>> = Vec::new();
    run_many(0..SEEDS_MAX, Trial { broken: Some(rule) }, |result| {
        noticed.extend(result.err().filter(|failure| failure.rule() != AT_REST));
        noticed.is_empty()
    });
    noticed.into_iter().min_by_key(|failure| failure.seed)
}

/// Every broken rule is noticed, and with none broken the same worlds find nothing.
#[test]
fn every_broken_rule_is_noticed() {
    let mut missed = Vec::new();
    let mut newest = CONTROLS_MIN;
    println!("{:<28} {:>5} {:>6}  noticed by", "rule", "seed", "ms");
    for rule in Rule::ALL {
        let began = Instant::now();
        let noticed = notice(*rule);
        let took: Duration = began.elapsed();
        let name = format!("{rule:?}");
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
    run_many(0..newest + 1, Trial { broken: None }, |result| {
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
