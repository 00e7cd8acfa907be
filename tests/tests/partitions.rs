//! Nodes that are cut off or stand still, under load: no reply may be stale, none lost, none doubled.

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Cluster, Workload, WorkloadConfig, audit, seed};

/// A workload of a test, by its name.
fn load(test: &str, cluster: &Cluster) -> (WorkloadConfig, Workload) {
    let config = WorkloadConfig::new(cluster.addresses(), seed::seed(test));
    (config.clone(), Workload::start(config))
}

/// Waits until so many more requests were acknowledged.
#[track_caller]
fn progress(workload: &Workload, requests: u64) {
    let wanted = workload.acknowledged() + requests;
    wait_for("acknowledged requests", BOUND, || match workload.acknowledged() {
        enough if enough >= wanted => Ok(()),
        few => Err(format!("{few} of {wanted}")),
    });
}

#[track_caller]
fn finish(config: &WorkloadConfig, workload: Workload) {
    let ledger = workload.finish(BOUND);
    let report = audit::audit(config, &ledger).expect("everything can be read");
    report.assert_clean();
    assert_eq!(report.unresolved, 0, "clients retry without limit, so all are answered");
}

/// Cuts the traffic between two nodes, both ways, or lets it through again.
fn cut(cluster: &Cluster, on: bool) {
    cluster.nodes[0].cut_off("n2", on);
    cluster.nodes[1].cut_off("n1", on);
}

/// A primary that stands still (SIGSTOP) is replaced; when it goes on it serves nothing of its own.
#[test]
fn a_paused_primary_comes_back_as_a_follower() {
    let mut cluster = Cluster::start(2, &[]);
    let (config, workload) = load("a_paused_primary_comes_back_as_a_follower", &cluster);
    for _ in 0..3 {
        let primary = cluster.wait_whole();
        progress(&workload, 200);
        cluster.nodes[primary].daemon().pause();
        let other = cluster.other(primary);
        cluster.nodes[other].wait_status("to take over", onlyonce_tests::Status::serves);
        progress(&workload, 200);
        cluster.nodes[primary].daemon().resume();
        assert_eq!(cluster.wait_whole(), other, "the new primary stays");
    }
    finish(&config, workload);
}

/// Nodes that cannot reach each other, but the authority: one of them goes on, alone, and the other
/// joins it again afterwards.
#[test]
fn a_partition_between_the_nodes_heals() {
    let cluster = Cluster::start(2, &[]);
    let (config, workload) = load("a_partition_between_the_nodes_heals", &cluster);
    for _ in 0..3 {
        cluster.wait_whole();
        progress(&workload, 200);
        cut(&cluster, true);
        progress(&workload, 500);
        let primary = cluster.wait_primary();
        cluster.nodes[primary].wait_status("to go on alone", |status| status.backups.is_empty());
        cut(&cluster, false);
    }
    cluster.wait_whole();
    finish(&config, workload);
}

/// A primary cut off from everything but its clients is replaced, and answers nothing meanwhile that
/// the new one contradicts.
#[test]
fn an_isolated_primary_is_replaced() {
    let cluster = Cluster::start(2, &[]);
    let (config, workload) = load("an_isolated_primary_is_replaced", &cluster);
    for _ in 0..3 {
        let primary = cluster.wait_whole();
        progress(&workload, 200);
        cluster.nodes[primary].cut_off("authority", true);
        cut(&cluster, true);
        let other = cluster.other(primary);
        cluster.nodes[other].wait_status("to take over", onlyonce_tests::Status::serves);
        progress(&workload, 200);
        cluster.nodes[primary].cut_off("authority", false);
        cut(&cluster, false);
        assert_eq!(cluster.wait_whole(), other, "the new primary stays");
    }
    finish(&config, workload);
}

/// One-way loss: the primary hears nothing from its backup, though the backup hears it.
#[test]
fn a_one_way_partition_heals() {
    let cluster = Cluster::start(2, &[]);
    let (config, workload) = load("a_one_way_partition_heals", &cluster);
    for deaf in [0, 1] {
        cluster.wait_whole();
        progress(&workload, 200);
        cluster.nodes[deaf].cut_off(if deaf == 0 { "n2" } else { "n1" }, true);
        progress(&workload, 500);
        cluster.nodes[deaf].cut_off(if deaf == 0 { "n2" } else { "n1" }, false);
        progress(&workload, 200);
    }
    cluster.wait_whole();
    finish(&config, workload);
}
