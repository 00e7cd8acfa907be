//! Clusters of three: the view has two backups, so a failure leaves two that must agree on who leads,
//! and on what they keep.

use std::time::{Duration, Instant};

use onlyonce_client::{Client, Error};
use onlyonce_tests::client::runtime;
use onlyonce_tests::cluster::{BOUND, Environment};
use onlyonce_tests::raw::{append, ask, executed, get};
use onlyonce_tests::wait::{moment, wait_for};
use onlyonce_tests::{Cluster, Load, RawConnection, RawSession, Status};
use rand::Rng;
use rand::seq::SliceRandom;

/// What a follower says when it cuts records that its primary does not have.
const CUTS: &str = "cut the log's tail";

/// Any node, or any two at once, are killed under load; the next kill often comes before the cluster
/// is whole again.
#[test]
fn any_two_of_three_are_killed() {
    let mut cluster = Cluster::start(3, &[]);
    let mut load = Load::start("any_two_of_three_are_killed", cluster.addresses());
    for _ in 0..10 {
        load.random_moment();
        let mut places = [0, 1, 2];
        places.shuffle(&mut load.random);
        let victims = &places[..load.random.random_range(1..=2)];
        for &victim in victims {
            cluster.nodes[victim].kill();
        }
        if load.random.random() {
            moment(Duration::from_millis(load.random.random_range(0..1500)));
        }
        for &victim in victims {
            cluster.nodes[victim].start();
        }
        if load.random.random() {
            cluster.wait_whole();
        }
    }
    // Each must hold everything: two die, and the third one serves.
    let primary = cluster.wait_whole();
    load.progress(100);
    cluster.nodes[primary].kill();
    let next = cluster.wait_primary();
    let last = 3 - primary - next;
    cluster.nodes[next].wait_status("to have a backup", |status| status.backups.len() == 1);
    load.progress(100);
    cluster.nodes[next].kill();
    assert_eq!(cluster.wait_primary(), last);
    load.progress(100);
    load.finish();
}

/// A long grace: a backup that hears nothing stays in the view for a while.
const PATIENT: Environment = &[("ONCED_GRACE_MS", "2500"), ("ONCED_APPEND_TIMEOUT_MS", "4000")];

/// The bytes of a request two of which make a record.
const LARGE: usize = 700_000;

/// The primary dies after one of its backups got records that the other did not: the other takes
/// over, and what nobody acknowledged is cut from the longer log. Its requests take effect once.
#[test]
fn a_divergent_tail_is_cut() {
    let mut cluster = Cluster::start(3, PATIENT);
    let mut load = Load::start("a_divergent_tail_is_cut", cluster.addresses());
    let nodes = cluster.sockets();
    let session = RawSession::open(&nodes);
    for round in 0..2 {
        let primary = cluster.wait_whole();
        load.random_moment();
        let behind = (primary + load.random.random_range(1..3)) % 3;
        let ahead = 3 - primary - behind;
        let cuts = cluster.nodes[ahead].said(CUTS);
        let view = cluster.nodes[behind].status().expect("it runs").view;
        let primary_name = cluster.nodes[primary].name().to_owned();
        cluster.nodes[behind].cut_off(&primary_name, true);
        // Large ones make records, however many are on their way.
        let mut leader = RawConnection::open(nodes[primary]).expect("it runs");
        let keys = [0, 1].map(|number| format!("divergent/{round}/{number}"));
        let first = 2 * round + 1;
        let requests: Vec<_> = (first..)
            .zip(&keys)
            .map(|(seq, key)| session.request(seq, first, &append(key, &"x".repeat(LARGE))))
            .collect();
        for request in &requests {
            leader.send(request).expect("it is taken");
        }
        // At rest for longer than a status may be old.
        let mut last = (Instant::now(), None);
        wait_for("records that only one backup has", BOUND, || {
            let [behind, ahead] =
                [behind, ahead].map(|it| cluster.nodes[it].status().expect("it runs"));
            assert!((behind.view, ahead.view) == (view, view), "it took too long to see");
            let seen = Some((behind.prepared, ahead.prepared));
            if last.1 != seen {
                last = (Instant::now(), seen);
            }
            let at_rest = last.0.elapsed() > Duration::from_millis(250);
            let longer = ahead.prepared > behind.prepared;
            if at_rest && longer { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        cluster.nodes[primary].kill();
        // Silent, so that the one behind leads.
        cluster.nodes[ahead].daemon().pause();
        cluster.nodes[behind].wait_status("to lead", Status::serves);
        cluster.nodes[ahead].daemon().resume();
        wait_for("the longer tail to be cut", BOUND, || {
            let log = cluster.nodes[ahead].log();
            if cluster.nodes[ahead].said(CUTS) > cuts { Ok(()) } else { Err(log) }
        });
        cluster.nodes[behind].cut_off(&primary_name, false);
        cluster.nodes[primary].start();
        assert_eq!(cluster.wait_whole(), behind, "the new primary stays");
        for (request, key) in requests.iter().zip(&keys) {
            let _ = executed(ask(&nodes, request));
            assert_eq!(get(&nodes, key).map(|value| value.len()), Some(LARGE), "once");
        }
    }
    load.finish();
}

/// Any pair of three nodes that cannot hear each other: requests go on, and the cluster becomes whole
/// again by itself.
#[test]
fn a_partition_between_any_pair_heals() {
    let cluster = Cluster::start(3, &[]);
    let mut load = Load::start("a_partition_between_any_pair_heals", cluster.addresses());
    let names: Vec<_> = cluster.nodes.iter().map(|node| node.name().to_owned()).collect();
    let mut pairs = [(0, 1), (0, 2), (1, 2)];
    pairs.shuffle(&mut load.random);
    for (one, other) in pairs {
        let primary = cluster.wait_whole();
        load.random_moment();
        let cut = |on| {
            cluster.nodes[one].cut_off(&names[other], on);
            cluster.nodes[other].cut_off(&names[one], on);
        };
        cut(true);
        if [one, other].contains(&primary) {
            // The view must lose one of the two before anything commits.
            let before = cluster.nodes[3 - one - other].status().expect("it runs").view;
            cluster.nodes[3 - one - other].wait_status("a new view", |it| it.view > before);
        }
        load.progress(500);
        cut(false);
    }
    cluster.wait_whole();
    load.finish();
}

/// Whether a request with a deadline waited in vain. After an unresolved one the client wants a new
/// session, which cannot be opened either.
fn waited(answer: &Result<i64, Error>) -> bool {
    matches!(answer, Err(Error::Unresolved(_) | Error::NotSent(_)))
}

/// Two copies are needed.
const TWO_COPIES: Environment = &[("ONCED_MIN_COPIES", "2")];

/// With `min_copies` 2 and both backups down, writes wait; they go on when one is back. Then the disk
/// of the primary is lost: nothing was acknowledged that only it held.
#[test]
fn nothing_is_acknowledged_on_one_copy() {
    let mut cluster = Cluster::start(3, TWO_COPIES);
    let mut load = Load::start("nothing_is_acknowledged_on_one_copy", cluster.addresses());
    load.random_moment();
    let runtime = runtime(2);
    let client = runtime.block_on(async {
        let nodes = Client::builder().nodes(cluster.addresses());
        let client = nodes.deadline(Duration::from_secs(2)).build().expect("addresses of nodes");
        client.incr("waits", 1).await.expect("the cluster is whole");
        client
    });
    let waits = || runtime.block_on(client.incr("waits", 1));
    let primary = cluster.wait_whole();
    let backups = [(primary + 1) % 3, (primary + 2) % 3];
    for backup in backups {
        cluster.nodes[backup].kill();
    }
    // Longer than a grace and an append's timeout: the primary knows by then that they are gone.
    for _ in 0..2 {
        let answer = waits();
        assert!(waited(&answer), "{answer:?}");
    }
    let status = cluster.nodes[primary].status().expect("it runs");
    assert!(!status.backups.is_empty(), "a view of one copy: {status:?}");
    let stuck = load.acknowledged();
    let answer = waits();
    assert!(waited(&answer), "{answer:?}");
    assert_eq!(load.acknowledged(), stuck, "the load was acknowledged on one copy");
    let back = backups[load.random.random_range(0..2)];
    cluster.nodes[back].start();
    load.progress(200);
    let both = cluster.nodes[primary].status().expect("it runs");
    assert_eq!(both.backups.len(), 1, "{both:?}");
    // Again one copy, and that disk is lost.
    cluster.nodes[back].kill();
    cluster.nodes[primary].kill();
    cluster.nodes[primary].empty_disk();
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_whole();
    load.progress(200);
    load.finish();
}
