//! Whole clusters of replicas in one thread, under faults, from seeds.
//!
//! A failure names its seed; `ONCE_SEED=n cargo test -p onlyonce-replica` runs that one alone,
//! and `ONCE_SEEDS=n` more of them than usual.

mod testbed;

use std::time::Duration;

use onlyonce_replica::{Moment, Replica};
use testbed::{CALM, Faults, Testbed};

fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    match number("ONCE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("ONCE_SEEDS").unwrap_or(count)).collect(),
    }
}

fn run(nodes: usize, seed: u64, faults: Faults, steps: u64) -> Testbed {
    let mut world = Testbed::new(seed, nodes, 4, faults);
    for _ in 0..steps {
        world.step();
    }
    world.heal_and_audit();
    let acknowledged: i64 = world.clients.iter().map(|client| client.acknowledged).sum();
    eprintln!(
        "seed {seed}: {acknowledged} acknowledged, {} kills, view {}, at {:.1} s",
        world.kills,
        world.view(),
        world.now.0 as f64 / 1e9
    );
    world
}

/// Without faults, two nodes form a cluster and count right.
#[test]
fn a_calm_cluster_counts_right() {
    for seed in seeds(5) {
        let world = run(2, seed, CALM, 20_000);
        let acknowledged: i64 = world.clients.iter().map(|client| client.acknowledged).sum();
        assert!(acknowledged > 100, "only {acknowledged} requests in 20,000 steps");
    }
}

/// A lone node that is killed again and again loses nothing and doubles nothing.
#[test]
fn a_lone_node_survives_kills() {
    let faults = Faults { kills: 200, lost_per_mille: 20, ..CALM };
    let mut kills = 0;
    for seed in seeds(20) {
        kills += run(1, seed, faults, 20_000).kills;
    }
    assert!(kills > 100 || seeds(1).len() == 1, "only {kills} kills");
}

/// Two nodes and the authority: kills, partitions, lost and repeated messages.
#[test]
fn two_nodes_survive_faults() {
    let faults = Faults { lost_per_mille: 30, repeated_per_mille: 30, kills: 40, partitions: 40 };
    for seed in seeds(60) {
        run(2, seed, faults, 40_000);
    }
}

/// Three nodes: several backups, and reconciliation among them.
#[test]
fn three_nodes_survive_faults() {
    let faults = Faults { lost_per_mille: 30, repeated_per_mille: 30, kills: 60, partitions: 60 };
    for seed in seeds(40) {
        run(3, seed, faults, 40_000);
    }
}

/// A lone node with data and sessions becomes the first primary of a cluster, which goes on where
/// it was; a kill at any moment of that is survived.
#[test]
fn a_lone_node_becomes_a_cluster() {
    for seed in seeds(20) {
        let mut world = Testbed::new(seed, 2, 4, CALM);
        world.lone = true;
        world.hold(1, Moment(u64::MAX));
        for _ in 0..5_000 {
            world.step();
        }
        let before: i64 = world.clients.iter().map(|client| client.acknowledged).sum();
        assert!(before > 20, "only {before} requests were served alone");
        world.lone = false;
        world.kill(0, Duration::ZERO);
        world.hold(1, world.now);
        world.faults = Faults { kills: 100, lost_per_mille: 30, ..CALM };
        for _ in 0..20_000 {
            world.step();
        }
        world.heal_and_audit();
    }
}

fn formed(nodes: usize, seed: u64) -> Testbed {
    let mut world = Testbed::new(seed, nodes, 2, CALM);
    world.may_stop = true;
    let complete = |it: &Testbed| {
        let status = it.primary().and_then(|at| it.replica(at)).map(Replica::status);
        status.is_some_and(|status| status.backups.len() + 1 == nodes)
    };
    world.run_until("everybody is a replica", 100_000, complete);
    world
}

/// A running backup that finds the register empty stops, however long it had known it full.
#[test]
fn a_lost_register_is_noticed_by_running_nodes() {
    for seed in seeds(10) {
        let mut world = formed(2, seed);
        world.lose_register();
        let primary = world.primary().expect("formed");
        world.kill(primary, Duration::ZERO);
        world.hold(primary, Moment(u64::MAX));
        world.run_until("the backup stops", 100_000, |it| !it.stopped.is_empty());
        let (at, reason) = &world.stopped[0];
        assert_ne!(*at, primary);
        assert!(reason.contains("register holds nothing"), "{reason}");
    }
}

/// A second process on a copy of a store is found by the first one, which stops and says so.
#[test]
fn a_copied_store_is_found() {
    for seed in seeds(10) {
        let mut world = formed(3, seed);
        let copied = (world.primary().expect("formed") + 1) % 3;
        world.usurp(copied);
        // The news comes with the next question to the authority.
        let primary = world.primary().expect("formed");
        world.kill(primary, Duration::ZERO);
        world.hold(primary, Moment(u64::MAX));
        world.run_until("the first one stops", 100_000, |it| !it.stopped.is_empty());
        let (at, reason) = &world.stopped[0];
        assert_eq!(*at, copied, "{reason}");
        assert!(reason.contains("copy of this data folder"), "{reason}");
    }
}
