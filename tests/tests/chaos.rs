//! Anything at any time: nodes and the authority killed, paused, cut off, and disks emptied, under
//! load, in a random order. `ONCE_CHAOS_SECONDS` makes it longer, `ONCE_SEED` repeats its choices.

use std::time::{Duration, Instant};

use onlyonce_tests::cluster::Environment;
use onlyonce_tests::wait::moment;
use onlyonce_tests::{Cluster, Load};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    Kill,
    KillAll,
    Pause,
    CutOff,
    CutOffOneWay,
    CutOffFromAuthority,
    KillAuthority,
    EmptyDisk,
}

const MISHAPS: [Mishap; 12] = [
    Mishap::Kill,
    Mishap::Kill,
    Mishap::Kill,
    Mishap::Kill,
    Mishap::KillAll,
    Mishap::Pause,
    Mishap::Pause,
    Mishap::CutOff,
    Mishap::CutOffOneWay,
    Mishap::CutOffFromAuthority,
    Mishap::KillAuthority,
    Mishap::EmptyDisk,
];

/// A time in which some things are over before anybody notices, and others are not.
fn while_it_lasts(random: &mut StdRng) {
    let milliseconds = if random.random() { 300 } else { 2_500 };
    moment(Duration::from_millis(random.random_range(0..milliseconds)));
}

fn happen(mishap: Mishap, cluster: &mut Cluster, random: &mut StdRng) {
    let count = cluster.nodes.len();
    let victim = random.random_range(0..count);
    let other = (victim + random.random_range(1..count)) % count;
    let names: Vec<String> = cluster.nodes.iter().map(|node| node.name().to_owned()).collect();
    match mishap {
        Mishap::Kill => {
            cluster.nodes[victim].kill();
            while_it_lasts(random);
            cluster.nodes[victim].start();
        }
        Mishap::KillAll => {
            for node in &mut cluster.nodes {
                node.kill();
            }
            for number in 0..count {
                let place = (victim + number) % count;
                cluster.nodes[place].start();
                while_it_lasts(random);
            }
        }
        Mishap::Pause => {
            cluster.nodes[victim].daemon().pause();
            while_it_lasts(random);
            cluster.nodes[victim].daemon().resume();
        }
        Mishap::CutOff | Mishap::CutOffOneWay => {
            let both = mishap == Mishap::CutOff;
            for on in [true, false] {
                cluster.nodes[victim].cut_off(&names[other], on);
                if both {
                    cluster.nodes[other].cut_off(&names[victim], on);
                }
                if on {
                    while_it_lasts(random);
                }
            }
        }
        Mishap::CutOffFromAuthority => {
            cluster.nodes[victim].cut_off("authority", true);
            while_it_lasts(random);
            // Often something else happens while views cannot change.
            if random.random() && count > 1 {
                cluster.nodes[other].kill();
                while_it_lasts(random);
                cluster.nodes[other].start();
            }
            cluster.nodes[victim].cut_off("authority", false);
        }
        Mishap::KillAuthority => {
            cluster.kill_authority();
            while_it_lasts(random);
            if random.random() {
                cluster.nodes[victim].kill();
                while_it_lasts(random);
                cluster.nodes[victim].start();
            }
            cluster.restart_authority();
        }
        Mishap::EmptyDisk => {
            // Only while another copy is known to be whole, as nobody survives the loss of all.
            let primary = cluster.wait_whole();
            let victim = if random.random() { primary } else { cluster.other(primary) };
            cluster.nodes[victim].kill();
            cluster.nodes[victim].empty_disk();
            cluster.nodes[victim].start();
            cluster.wait_whole();
        }
    }
}

#[track_caller]
fn run(test: &str, nodes: usize, environment: Environment, share: u64) {
    let mut cluster = Cluster::start(nodes, environment);
    let mut load = Load::start(test, cluster.addresses());
    let seconds = std::env::var("ONCE_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(share));
    let mut mishaps = 0;
    while Instant::now() < end {
        let mishap = *MISHAPS.choose(&mut load.random).expect("some");
        println!("{test}: {mishap:?} after {} requests", load.acknowledged());
        happen(mishap, &mut cluster, &mut load.random);
        mishaps += 1;
        // Half of them hit a cluster that still recovers from the one before.
        if load.random.random() {
            cluster.wait_whole();
            load.progress(50);
        }
    }
    cluster.wait_whole();
    println!("{mishaps} mishaps");
    let finished = load.finish();
    let primary = cluster.wait_whole();
    println!("the audit again, without {}", cluster.nodes[primary].name());
    cluster.nodes[primary].kill();
    // What the audit read from one replica is on the others too.
    cluster.wait_primary();
    finished.audit();
}

/// Two nodes, whose log keeps everything: an emptied one is fed from the first record on.
#[test]
fn anything_happens_to_two_nodes() {
    run("anything_happens_to_two_nodes", 2, &[("ONCED_LOG_TAIL_BYTES", "68719476736")], 20);
}

/// Three nodes that checkpoint and prune their logs all the time: who missed a little gets a snapshot.
#[test]
fn anything_happens_to_three_nodes() {
    let eager = [
        ("ONCED_CHECKPOINT_BYTES", "65536"),
        ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
        ("ONCED_LOG_TAIL_BYTES", "65536"),
    ];
    run("anything_happens_to_three_nodes", 3, &eager, 20);
}
