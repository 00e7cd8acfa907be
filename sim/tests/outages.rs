//! One failure in an otherwise healthy cluster holds its clients up for a bounded time.

use std::time::Duration;

use onlyonce_sim::{Mishap, longest_outage};

const SEEDS: u64 = 40;

/// How long nothing may commit, by what fails: some more than the times that `docs/replication.md`
/// tells of.
fn bound(mishap: Mishap) -> Duration {
    let milliseconds = match mishap {
        Mishap::PrimaryDies | Mishap::PrimaryPauses | Mishap::PrimaryCutOff => 1_100,
        Mishap::BackupDies => 900,
        Mishap::PrimaryDiskHangs => 3_200,
        Mishap::BackupDiskHangs => 2_400,
    };
    Duration::from_millis(milliseconds)
}

/// Whatever fails, commits go on within its bound, from every seed.
#[test]
fn every_outage_is_bounded() {
    println!(
        "{:<18} {:>8} {:>8} {:>8}   ms without a commit",
        "what fails", "median", "longest", "bound"
    );
    let mut late = Vec::new();
    for mishap in Mishap::ALL {
        let mut outages: Vec<_> = (0..SEEDS)
            .map(|seed| {
                let outage = longest_outage(seed, mishap);
                let outage = outage.unwrap_or_else(|finding| panic!("seed {seed}: {finding}"));
                (Duration::from_nanos(outage), seed)
            })
            .collect();
        outages.sort_unstable();
        let (median, _) = outages[outages.len() / 2];
        let (longest, seed) = outages[outages.len() - 1];
        let name = format!("{mishap:?}");
        println!(
            "{name:<18} {:>8} {:>8} {:>8}",
            median.as_millis(),
            longest.as_millis(),
            bound(mishap).as_millis()
        );
        if longest > bound(mishap) {
            late.push(format!("{name}, seed {seed}: {longest:?}"));
        }
    }
    assert!(late.is_empty(), "longer than their bounds: {late:?}");
}
