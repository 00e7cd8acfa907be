//! The authority away, under load: a running view goes on, view changes wait for it and then go on.
//! The same with the embedded authority and with etcd of three members.

use std::time::Duration;

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::wait::{moment, wait_for};
use onlyonce_tests::{Cluster, Etcd, Load, Status};
use rand::Rng;

/// Kills the primary, waits until another node serves, and starts the killed one again.
#[track_caller]
fn replace_primary(cluster: &mut Cluster) {
    let primary = cluster.wait_whole();
    cluster.nodes[primary].kill();
    let other = cluster.other(primary);
    cluster.nodes[other].wait_status("to take over", Status::serves);
    cluster.nodes[primary].start();
    cluster.wait_whole();
}

/// What a node logs of a proposal that got no answer.
const UNKNOWN: &str = "has an unknown outcome";
/// What it logs while it asks in vain, every five seconds.
const WAITS: &str = "view changes wait";

#[track_caller]
fn wait_said(cluster: &Cluster, node: usize, what: &str, text: &str, wanted: usize) {
    wait_for(what, BOUND, || match cluster.nodes[node].said(text) {
        enough if enough >= wanted => Ok(()),
        few => Err(format!("{text:?} was said {few} times, not {wanted}")),
    });
}

/// While the authority is away: writes go on; a killed primary is not replaced. With it back, it is.
#[track_caller]
fn outage(test: &str, cluster: &mut Cluster, mut set_away: impl FnMut(&mut Cluster, bool)) {
    let load = Load::start(test, cluster.addresses());
    load.progress(200);
    let primary = cluster.wait_whole();
    let view = cluster.nodes[primary].status().expect("it serves").view;
    set_away(cluster, true);
    load.progress(1_000);
    let now = cluster.nodes[primary].status().expect("it serves");
    assert!(now.serves() && now.view == view, "the view did not stand: {now:?}");

    let other = cluster.other(primary);
    let tried = cluster.nodes[other].said(UNKNOWN);
    cluster.nodes[primary].kill();
    wait_said(cluster, other, "to propose itself in vain", UNKNOWN, tried + 1);
    let waits = cluster.nodes[other].said(WAITS);
    wait_said(cluster, other, "to wait for the authority", WAITS, waits + 2);
    let alone = cluster.nodes[other].status().expect("it runs");
    assert!(!alone.serves(), "it took over without the authority: {alone:?}");

    set_away(cluster, false);
    let took_over = cluster.nodes[other].wait_status("to take over", Status::serves);
    assert!(took_over.view > view, "{took_over:?}");
    load.progress(200);
    cluster.nodes[primary].start();
    cluster.wait_whole();
    // And view changes go on.
    replace_primary(cluster);
    load.progress(200);
    load.finish();
}

/// The embedded authority is killed, and comes back.
#[test]
fn an_outage_of_the_embedded_authority() {
    let mut cluster = Cluster::start(2, &[]);
    outage("an_outage_of_the_embedded_authority", &mut cluster, |cluster, away| {
        if away { cluster.kill_authority() } else { cluster.restart_authority() }
    });
}

/// Two of three members of etcd are killed, the leader among them, and come back.
#[test]
fn an_outage_of_a_majority_of_etcd() {
    let mut etcd = Etcd::start(3);
    let mut cluster = Cluster::start_on(&etcd.address(), 2, &[]);
    let leader = etcd.wait_leader();
    outage("an_outage_of_a_majority_of_etcd", &mut cluster, |_, away| {
        for place in [leader, (leader + 1) % 3] {
            if away { etcd.kill(place) } else { etcd.restart(place) }
        }
    });
}

/// The leader of etcd is killed, then the next one stands still: writes go on, and with the two that
/// are left a killed primary is replaced.
#[test]
fn one_member_of_etcd_is_not_needed() {
    let mut etcd = Etcd::start(3);
    let mut cluster = Cluster::start_on(&etcd.address(), 2, &[]);
    let load = Load::start("one_member_of_etcd_is_not_needed", cluster.addresses());
    for paused in [false, true] {
        cluster.wait_whole();
        let leader = etcd.wait_leader();
        if paused {
            etcd.daemon(leader).pause();
        } else {
            etcd.kill(leader);
        }
        load.progress(500);
        replace_primary(&mut cluster);
        load.progress(200);
        assert_ne!(etcd.wait_leader(), leader);
        if paused {
            etcd.daemon(leader).resume();
        } else {
            etcd.restart(leader);
        }
    }
    replace_primary(&mut cluster);
    load.finish();
}

/// Nodes and members of etcd are killed and restarted at random moments, one of each at a time.
#[test]
fn members_and_nodes_are_killed_at_random() {
    let mut etcd = Etcd::start(3);
    let mut cluster = Cluster::start_on(&etcd.address(), 2, &[]);
    let mut load = Load::start("members_and_nodes_are_killed_at_random", cluster.addresses());
    for _ in 0..6 {
        let (member, node) = (load.random.random_range(0..3), load.random.random_range(0..2));
        load.random_moment();
        etcd.kill(member);
        let apart = load.random.random_range(0..1_000);
        moment(Duration::from_millis(apart));
        cluster.nodes[node].kill();
        moment(Duration::from_millis(load.random.random_range(0..1_500)));
        etcd.restart(member);
        cluster.nodes[node].start();
        // Two of three can only go on if the third has caught up before the next is killed.
        etcd.wait_leader();
        cluster.wait_whole();
    }
    load.random_moment();
    load.finish();
}
