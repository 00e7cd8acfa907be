//! Nodes killed with -9 at random moments under load; every time, everything that was acknowledged
//! must be there exactly once.

use std::time::Duration;

use onlyonce_tests::cluster::Environment;
use onlyonce_tests::wait::moment;
use onlyonce_tests::{Cluster, Load, Lone, Node};
use rand::Rng;
use rand::rngs::StdRng;

/// Checkpoints all the time.
const EAGER_CHECKPOINTS: Environment =
    &[("ONCED_CHECKPOINT_BYTES", "65536"), ("ONCED_CHECKPOINT_INTERVAL_MS", "20")];

/// A lone node, killed 20 times under load.
#[test]
fn a_lone_node_is_killed_20_times() {
    let mut lone = Lone::start(&[]);
    let mut load = Load::start("a_lone_node_is_killed_20_times", lone.addresses());
    for _ in 0..20 {
        load.random_moment();
        lone.node.kill();
        lone.node.start();
    }
    load.random_moment();
    load.finish();
}

/// Two nodes: primary, backup or both at once are killed under load, 30 kills in all. The next kill
/// does not wait until the cluster is whole.
#[test]
fn two_nodes_are_killed_30_times() {
    let mut cluster = Cluster::start(2, &[]);
    let mut load = Load::start("two_nodes_are_killed_30_times", cluster.addresses());
    let mut kills = 0;
    while kills < 30 {
        load.random_moment();
        let primary = cluster.wait_primary();
        let backup = cluster.other(primary);
        let victims = match load.random.random_range(0..5) {
            0 | 1 => vec![primary],
            2 | 3 => vec![backup],
            _ => vec![backup, primary],
        };
        kills += victims.len();
        for &victim in &victims {
            cluster.nodes[victim].kill();
        }
        // Back at once, or after the other one has gone on alone for a while (if it can: it may
        // have been a learner).
        if load.random.random() {
            let down = load.random.random_range(0..1500);
            moment(Duration::from_millis(down));
        }
        for victim in victims {
            cluster.nodes[victim].start();
        }
    }
    cluster.wait_whole();
    load.progress(200);
    load.finish();
}

/// Both nodes of a whole cluster are killed at the same moment; they come back in either order.
#[test]
fn both_nodes_are_killed_together() {
    let mut cluster = Cluster::start(2, &[]);
    let mut load = Load::start("both_nodes_are_killed_together", cluster.addresses());
    for round in 0..6 {
        cluster.wait_whole();
        load.random_moment();
        for node in &mut cluster.nodes {
            node.kill();
        }
        let first = load.random.random_range(0..2);
        cluster.nodes[first].start();
        // In every other round the first one is alone for long enough to believe that it is.
        if round % 2 == 0 {
            moment(Duration::from_millis(load.random.random_range(0..1500)));
        }
        cluster.nodes[1 - first].start();
    }
    load.random_moment();
    load.finish();
}

/// Starts a process and kills it after a random time, which may be in the middle of its opening.
fn kill_while_opening(node: &mut Node, random: &mut StdRng) {
    node.spawn();
    let life = random.random_range(0..120);
    moment(Duration::from_millis(life));
    node.kill();
}

/// A lone node is killed again and again while it opens its store.
#[test]
fn a_node_is_killed_while_it_opens() {
    let mut lone = Lone::start(EAGER_CHECKPOINTS);
    let mut load = Load::start("a_node_is_killed_while_it_opens", lone.addresses());
    for _ in 0..6 {
        load.random_moment();
        lone.node.kill();
        for _ in 0..5 {
            kill_while_opening(&mut lone.node, &mut load.random);
        }
        lone.node.start();
    }
    load.random_moment();
    load.finish();
}

/// One of two nodes is killed while it opens, while the other one serves under load.
#[test]
fn a_replica_is_killed_while_it_opens() {
    let mut cluster = Cluster::start(2, EAGER_CHECKPOINTS);
    let mut load = Load::start("a_replica_is_killed_while_it_opens", cluster.addresses());
    for round in 0..6 {
        let primary = cluster.wait_whole();
        load.random_moment();
        let victim = if round % 2 == 0 { primary } else { cluster.other(primary) };
        cluster.nodes[victim].kill();
        for _ in 0..3 {
            kill_while_opening(&mut cluster.nodes[victim], &mut load.random);
        }
        cluster.nodes[victim].start();
    }
    load.random_moment();
    load.finish();
}

/// A node that checkpoints all the time is killed 15 times under load: some of these kills hit a
/// checkpoint in every one of its steps.
#[test]
fn a_node_is_killed_while_it_checkpoints() {
    let mut lone = Lone::start(EAGER_CHECKPOINTS);
    let mut load = Load::start("a_node_is_killed_while_it_checkpoints", lone.addresses());
    let mut applied = 0;
    for _ in 0..15 {
        lone.node.wait_status("to checkpoint", |status| status.applied > applied);
        load.random_moment();
        applied = lone.node.status().expect("it runs").applied;
        lone.node.kill();
        lone.node.start();
        let found = lone.node.status().expect("it runs").applied;
        assert!(found >= applied, "a checkpoint was lost: {found} after {applied}");
    }
    load.random_moment();
    load.finish();
}

/// An authority that is down, or killed and restarted, stops no requests while the view stands; a
/// primary that is killed meanwhile is replaced once the authority is back.
#[test]
fn the_authority_is_killed() {
    let mut cluster = Cluster::start(2, &[]);
    let load = Load::start("the_authority_is_killed", cluster.addresses());
    cluster.kill_authority();
    load.progress(500);
    let primary = cluster.wait_primary();
    cluster.nodes[primary].kill();
    cluster.restart_authority();
    load.progress(200);
    assert_ne!(cluster.wait_primary(), primary);
    cluster.nodes[primary].start();
    cluster.wait_whole();
    load.finish();
}
