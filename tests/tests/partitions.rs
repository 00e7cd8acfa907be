//! Nodes that are cut off or stand still, under load: no reply may be stale, none lost, none doubled.

use std::time::Duration;

use onlyonce_tests::wait::moment;
use onlyonce_tests::{Cluster, Load, Register, Status, seed};
use rand::Rng;

/// Cuts the traffic between two nodes, both ways, or lets it through again.
fn cut(cluster: &Cluster, on: bool) {
    cluster.nodes[0].cut_off("n2", on);
    cluster.nodes[1].cut_off("n1", on);
}

/// A primary that stands still (SIGSTOP) is replaced; when it goes on it serves nothing of its own.
#[test]
fn a_paused_primary_is_replaced() {
    let mut cluster = Cluster::start(2, &[]);
    let load = Load::start("a_paused_primary_is_replaced", cluster.addresses());
    for _ in 0..3 {
        let primary = cluster.wait_whole();
        load.progress(200);
        cluster.nodes[primary].daemon().pause();
        let other = cluster.other(primary);
        cluster.nodes[other].wait_status("to take over", Status::serves);
        load.progress(200);
        cluster.nodes[primary].daemon().resume();
        cluster.wait_whole();
    }
    load.finish();
}

/// A primary that stands still for a random time, shorter or longer than a lease, answers no read with
/// what another one has since overwritten: not when it wakes, with the reads that wait in its sockets,
/// and not later.
#[test]
fn a_paused_primary_answers_no_stale_read() {
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.sockets();
    let mut random = seed::rng("a_paused_primary_answers_no_stale_read");
    let register = Register::start(nodes.clone(), "register");
    for round in 0..10 {
        let primary = cluster.wait_whole();
        let other = cluster.other(primary);
        register.progress(20);
        let mut reader = register.early_reader(nodes[primary]);
        cluster.nodes[primary].daemon().pause();
        if round % 2 == 0 {
            // The other one takes over, and acknowledges more.
            cluster.nodes[other].wait_status("to take over", Status::serves);
            register.progress(20);
        } else {
            // About as long as the lease, or the grace.
            moment(Duration::from_millis(random.random_range(200..1_000)));
        }
        for _ in 0..20 {
            reader.send();
        }
        cluster.nodes[primary].daemon().resume();
        println!("round {round}: {} of 20 reads got an answer", reader.receive());
    }
    cluster.wait_whole();
    register.progress(20);
    register.finish();
}

/// Nodes that cannot reach each other, but the authority: one of them goes on, alone, and the other
/// joins it again afterwards.
#[test]
fn a_partition_between_the_nodes_heals() {
    let cluster = Cluster::start(2, &[]);
    let load = Load::start("a_partition_between_the_nodes_heals", cluster.addresses());
    for _ in 0..3 {
        cluster.wait_whole();
        load.progress(200);
        cut(&cluster, true);
        load.progress(500);
        let primary = cluster.wait_primary();
        cluster.nodes[primary].wait_status("to go on alone", |status| status.backups.is_empty());
        cut(&cluster, false);
    }
    cluster.wait_whole();
    load.finish();
}

/// A primary cut off from everything but its clients is replaced, and answers nothing meanwhile that
/// the new one contradicts: reads at either node are checked against what was acknowledged before.
#[test]
fn an_isolated_primary_is_replaced() {
    let cluster = Cluster::start(2, &[]);
    let load = Load::start("an_isolated_primary_is_replaced", cluster.addresses());
    let register = Register::start(cluster.sockets(), "register");
    for _ in 0..3 {
        let primary = cluster.wait_whole();
        load.progress(200);
        register.progress(20);
        cluster.nodes[primary].cut_off("authority", true);
        cut(&cluster, true);
        let other = cluster.other(primary);
        cluster.nodes[other].wait_status("to take over", Status::serves);
        load.progress(200);
        cluster.nodes[primary].cut_off("authority", false);
        cut(&cluster, false);
        cluster.wait_whole();
    }
    register.finish();
    load.finish();
}

/// One-way loss: the primary hears nothing from its backup, though the backup hears it.
#[test]
fn a_one_way_partition_heals() {
    let cluster = Cluster::start(2, &[]);
    let load = Load::start("a_one_way_partition_heals", cluster.addresses());
    for deaf in [0, 1] {
        cluster.wait_whole();
        load.progress(200);
        cluster.nodes[deaf].cut_off(if deaf == 0 { "n2" } else { "n1" }, true);
        load.progress(500);
        cluster.nodes[deaf].cut_off(if deaf == 0 { "n2" } else { "n1" }, false);
        load.progress(200);
    }
    cluster.wait_whole();
    load.finish();
}
