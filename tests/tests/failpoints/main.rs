//! Nodes die, as by kill -9, at every failpoint that the server has, in every role that reaches it.
//! Each death comes under a load of its own, after which nothing is lost and nothing doubled.
//!
//! `roles` says who dies where, and who never gets there and why; `stage` brings them there.

mod roles;
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use onlyonce_tests::cluster::Environment;
use onlyonce_tests::{Ballast, Deaths, Lone, binaries};

use roles::{
    BACKUP_OF_THREE, Cause, GROUPS, LEARNER, LONE, OUT_OF_REACH, PRIMARY_OF_THREE, Role, SNAPSHOTS,
    VIEWS, WHOLE, out_of_reach,
};
use stage::{Death, LARGE_BYTES, Stage, Write};

/// Checkpoints all the time, and a log that keeps next to nothing. A primary soon does without a
/// backup that is down.
const PRUNING: Environment = &[
    ("ONCED_LOG_TAIL_BYTES", "65536"),
    ("ONCED_CHECKPOINT_BYTES", "65536"),
    ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
    ("ONCED_APPEND_TIMEOUT_MS", "600"),
];
/// As `PRUNING`, with a log that reaches back to the beginning.
const KEEPING: Environment = &[
    ("ONCED_CHECKPOINT_BYTES", "65536"),
    ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
    ("ONCED_APPEND_TIMEOUT_MS", "600"),
];

/// A lone node dies at every point that it reaches.
#[test]
fn a_lone_node() {
    let mut lone = lone(PRUNING);
    let mut deaths = Deaths::new("lone");
    for death in Death::each(LONE, &mut deaths) {
        let nodes = lone.addresses();
        let label = death.label(None);
        deaths.add([death.point, &label], death.passes, nodes.clone(), |_, _| {
            let node = &mut lone.node;
            match death.cause {
                Cause::Restart => node.kill(),
                Cause::Resume => {
                    let first = death.in_a_checkpoint();
                    first.arm(node);
                    first.wait(node);
                }
                _ => {}
            }
            death.arm(node);
            let large =
                (death.cause == Cause::LargeValue).then(|| Write::begin(&nodes, LARGE_BYTES));
            death.wait(node);
            node.start();
            large.into_iter().for_each(Write::join);
        });
    }
    deaths.conclude();
}

fn lone(environment: Environment) -> Lone {
    let mut lone = Lone::start(environment);
    lone.node.kill();
    lone.node.run_program(&binaries::onced_failpoints());
    lone.node.start();
    lone
}

/// Primary and backup die at every point that they reach under load.
#[test]
fn a_whole_cluster() {
    let mut deaths = Deaths::new("whole");
    let mut stage = Stage::start(2, PRUNING);
    stage.die_at_each(&mut deaths, WHOLE);
    deaths.conclude();
}

/// Nodes die at every point of a view change: who proposes, who follows, who starts anew, and who has
/// a tail to cut off.
#[test]
fn view_changes() {
    let mut deaths = Deaths::new("views");
    let mut stage = Stage::start(2, KEEPING);
    stage.die_at_each(&mut deaths, VIEWS);
    deaths.conclude();
}

/// The primary of three dies at every point that it reaches while there are backups.
#[test]
fn the_primary_of_three() {
    let mut deaths = Deaths::new("three");
    let mut stage = Stage::start(3, PRUNING);
    stage.die_at_each(&mut deaths, PRIMARY_OF_THREE);
    deaths.conclude();
}

/// Each of two backups dies at every point that it reaches, and the other one goes on.
#[test]
fn each_backup_of_three() {
    let mut deaths = Deaths::new("three");
    let mut stage = Stage::start(3, PRUNING);
    for turn in 0..2 {
        stage.turn = turn;
        stage.die_at_each(&mut deaths, BACKUP_OF_THREE);
    }
    deaths.conclude();
}

/// A third node dies at every point that it reaches while it catches up by the log, which only its own
/// keeps short.
#[test]
fn a_learner() {
    let mut deaths = Deaths::new("learner");
    let mut stage = Stage::start(3, KEEPING);
    stage.turn = 1;
    let third = &mut stage.cluster.nodes[2];
    third.kill();
    third.set("ONCED_LOG_TAIL_BYTES", "65536");
    // It finds that it was dropped before it would take over.
    third.set("ONCED_GRACE_MS", "5000");
    third.start();
    stage.die_at_each(&mut deaths, LEARNER);
    deaths.conclude();
}

/// The sender and the receiver of a snapshot die at every point of it. In the end the receiver serves
/// alone, from what it received.
#[test]
fn snapshots() {
    let mut deaths = Deaths::new("snapshots");
    let mut stage = Stage::start(3, PRUNING);
    stage.turn = 1;
    let addresses = stage.cluster.addresses();
    stage.ballast = Some(Ballast::write(&addresses, 100));
    stage.die_at_each(&mut deaths, SNAPSHOTS);
    let primary = stage.cluster.wait_whole();
    let receiver = stage.backup_of(primary);
    for other in [3 - primary - receiver, primary] {
        stage.leave(other);
    }
    deaths.conclude();
    stage.ballast.expect("just written").check(&addresses);
}

/// In every role a node dies at every failpoint of the server, or it is said why it never gets there:
/// one of the two, for each that there is, and for none that there is not.
#[test]
fn every_role_at_every_failpoint() {
    let there: BTreeSet<String> = lone(&[]).node.failpoints().into_iter().collect();
    for role in Role::ALL {
        let groups = GROUPS.into_iter().flatten().filter(|group| group.role == role);
        let points = groups.flat_map(|group| group.points);
        let dies: BTreeSet<&str> = points.map(|(point, _)| *point).collect();
        let never: BTreeSet<&str> = out_of_reach(role).collect();
        let (name, both) = (role.name(), dies.intersection(&never).collect::<Vec<_>>());
        assert!(both.is_empty(), "the {name} dies at {both:?}, and is said never to get there");
        let told: BTreeSet<String> = dies.union(&never).map(|&point| point.to_owned()).collect();
        let untold: Vec<_> = there.difference(&told).collect();
        assert!(untold.is_empty(), "nothing is said of the {name} at {untold:?}");
        let unknown: Vec<_> = told.difference(&there).collect();
        assert!(unknown.is_empty(), "there are no failpoints {unknown:?} ({name})");
        println!("{name:<8} dies at {} of {} failpoints", dies.len(), there.len());
        for row in OUT_OF_REACH.iter().filter(|row| row.role == role) {
            println!("{name:<8} never gets to {}: {}", row.points.join(", "), row.why);
        }
    }
}

/// The server that is shipped has no failpoints: not even their names are in it.
#[test]
fn the_shipped_server_has_none() {
    let holds = |program: &Path, name: &str| {
        let bytes = fs::read(program).expect("a program");
        bytes.windows(name.len()).any(|window| window == name.as_bytes())
    };
    for name in ["request.received", "checkpoint.folded", "/fault/failpoint", "FAILPOINTS"] {
        assert!(holds(&binaries::onced_failpoints(), name), "{name}: the check finds nothing");
        assert!(!holds(&binaries::onced(), name), "onced holds {name}");
    }
}
