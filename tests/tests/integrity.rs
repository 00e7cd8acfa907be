//! Damage that no read stumbles over: it is found all the same, by a scrub or by comparison, and a
//! damaged replica is replaced while the others serve.

use std::fs;
use std::path::Path;
use std::process::Command;

use onlyonce_tests::cluster::{BOUND, Environment};
use onlyonce_tests::files::{Flipped, copy_folder, flip_each, positions, replace_folder};
use onlyonce_tests::process::{Ran, run};
use onlyonce_tests::raw::{append, ask, executed, put};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Ballast, Cluster, Load, Lone, RawSession, Status, binaries, seed};

/// How many positions of the tables are flipped, one store each.
const POSITIONS: usize = 200;
/// Everything is folded at once, and the log keeps nothing that was.
const ALL_IN_TABLES: Environment = &[
    ("ONCED_CHECKPOINT_BYTES", "65536"),
    ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
    ("ONCED_LOG_TAIL_BYTES", "0"),
];

fn scrub(data: &Path) -> Ran {
    let mut command = Command::new(binaries::onced());
    command.arg("scrub").arg("--data").arg(data);
    run(command, BOUND)
}

/// Fills a lone store with short and long rows, all of them in its tables, and kills its node.
fn fill_and_kill(lone: &mut Lone) {
    let nodes = [lone.node.client_address()];
    let session = RawSession::open(&nodes);
    for number in 1..=300 {
        let key = format!("key {:03}", number % 250);
        let length = if number % 50 == 0 { 40_000 } else { 1 + (number as usize * 37) % 700 };
        let value = format!("{number}:{}", "v".repeat(length));
        let operation = if number % 3 == 0 { append(&key, &value) } else { put(&key, &value) };
        executed(ask(&nodes, &session.request(number, number, &operation)));
    }
    lone.node.wait_status("to fold all", |status| status.applied == status.prepared);
    lone.node.kill();
}

/// What a scrub makes of a copy: nothing changed, or the last line names the database's folder; never
/// an accident.
fn judge(data: &Path, whole: &Ran) -> (Flipped, String) {
    let ran = scrub(data);
    let last = ran.stderr.lines().last().unwrap_or_default();
    let named = last.contains(&format!("{}/tables", data.display()));
    let clean = ran.code == Some(1) && !ran.stderr.contains("panic");
    let flipped = if ran.code == Some(0) && ran.stdout == whole.stdout {
        Flipped::Harmless
    } else if named && clean {
        Flipped::Named
    } else {
        Flipped::Wrong
    };
    (flipped, ran.stdout + &ran.stderr)
}

/// A byte flipped at each of 200 positions of a closed store's tables is harmless (every row is still
/// there, as its digest says) or named, by open or by the scrub.
#[test]
fn a_flipped_byte_in_the_tables_is_named_or_harmless() {
    let mut lone = Lone::start(ALL_IN_TABLES);
    fill_and_kill(&mut lone);
    let data = lone.node.data().to_owned();
    let whole = scrub(&data);
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);
    println!("{}", whole.stdout.trim());
    let mut random = seed::rng("a_flipped_byte_in_the_tables_is_named_or_harmless");
    let positions = positions(&data.join("tables"), POSITIONS, &mut random);
    flip_each(&data, &positions, |copy| judge(copy, &whole));
}

/// The disk of a running backup rots where nobody reads. Its scrub does, and the node stops and names
/// the damage; it refuses to start on it; the cluster serves on, and an empty disk takes its place.
#[test]
fn a_damaged_backup_is_replaced_while_the_cluster_serves() {
    let mut environment = ALL_IN_TABLES.to_vec();
    environment.extend([("ONCED_CACHE_BYTES", "1048576"), ("ONCED_SCRUB_PAUSE_MS", "1")]);
    let mut cluster = Cluster::start(2, &environment);
    let load =
        Load::start("a_damaged_backup_is_replaced_while_the_cluster_serves", cluster.addresses());
    let ballast = Ballast::write(&cluster.addresses(), 1_500);
    println!("{} bytes", ballast.bytes());
    let primary = cluster.wait_whole();
    let backup = cluster.other(primary);
    let node = &mut cluster.nodes[backup];
    node.wait_status("to have folded most of it", |status| status.applied * 2 > status.prepared);
    let tables = node.data().join("tables");
    let mut random = seed::rng("a_damaged_backup_is_replaced_while_the_cluster_serves");
    for position in positions(&tables, 2_000, &mut random) {
        if position.file.ends_with("db") {
            position.flip_in_place();
        }
    }
    let exit = node.exit();
    let last = exit.stderr.lines().last().unwrap_or_default();
    println!("{last}");
    assert_eq!(exit.status.code(), Some(1), "{}", exit.stderr);
    let names = |text: &str| text.contains(&format!("{}", tables.display()));
    assert!(names(last) && last.contains("new, empty one"), "{}", exit.stderr);
    load.progress(500);
    // The database may even panic over it.
    let refused = node.try_start().expect_err("its store is damaged");
    let last = refused.stderr.lines().last().unwrap_or_default();
    println!("{last}");
    assert!(last.contains(&format!("{}", node.data().display())), "{}", refused.stderr);
    assert!(last.contains("new, empty one"), "{}", refused.stderr);

    node.empty_disk();
    node.start();
    assert_eq!(cluster.wait_whole(), primary, "the primary served all the while");
    wait_for("the new store to be scrubbed", BOUND, || {
        match cluster.nodes[backup].metric("onlyonce_scrubs_total")? {
            passes if passes >= 1.0 => Ok(()),
            passes => Err(format!("{passes} passes")),
        }
    });
    load.progress(500);
    load.finish();
}

/// Stops both nodes and puts the primary's disk back to what it was some requests before: it has lost
/// its tail, its `head` with it. Returns the primary and the load that goes on.
fn lose_the_tail(test: &str) -> (Cluster, usize, Load) {
    let mut cluster = Cluster::start(2, &[("ONCED_GRACE_MS", "5000")]);
    let load = Load::start(test, cluster.addresses());
    load.progress(500);
    let primary = cluster.wait_whole();
    let backup = cluster.other(primary);
    // A copy of a folder that is being written to would be torn: the node stands still meanwhile, for
    // less than a grace.
    let old = cluster.nodes[primary].data().with_extension("old");
    cluster.nodes[primary].daemon().pause();
    copy_folder(cluster.nodes[primary].data(), &old);
    cluster.nodes[primary].daemon().resume();
    load.progress(500);
    assert_eq!(cluster.wait_whole(), primary, "it was back within the grace");
    cluster.nodes[primary].kill();
    cluster.nodes[backup].kill();
    replace_folder(&old, cluster.nodes[primary].data());
    (cluster, primary, load)
}

/// A primary whose disk lost its tail without a trace asks its backups first, and gets it back.
#[test]
fn a_primary_that_lost_its_tail_gets_it_back() {
    let (mut cluster, primary, load) = lose_the_tail("a_primary_that_lost_its_tail_gets_it_back");
    let backup = cluster.other(primary);
    cluster.nodes[backup].start();
    cluster.nodes[primary].start();
    cluster.wait_whole();
    load.progress(300);
    load.finish();
}

/// If the backup does not answer in time, the primary goes on without what it lost. The backup holds
/// that as committed and says so: the primary stops, and the backup takes over with everything.
#[test]
fn a_primary_that_lost_committed_records_is_told() {
    let (mut cluster, primary, load) =
        lose_the_tail("a_primary_that_lost_committed_records_is_told");
    let backup = cluster.other(primary);
    cluster.nodes[backup].start();
    cluster.nodes[backup].daemon().pause();
    cluster.nodes[primary].start();
    wait_for("the primary to win a view with its backup", BOUND, || {
        let node = &cluster.nodes[primary];
        let status = node.status()?;
        let won = status.role == "primary" && status.backups.len() == 1 && !status.serving;
        if won { Ok(()) } else { Err(format!("{status:?}\n{}", node.log())) }
    });
    cluster.nodes[backup].daemon().resume();
    let exit = cluster.nodes[primary].exit();
    let last = exit.stderr.lines().last().unwrap_or_default();
    println!("{last}");
    assert_eq!(exit.status.code(), Some(1), "{}", exit.stderr);
    assert!(last.contains("this store has lost committed records"), "{last}");

    cluster.nodes[backup].wait_status("to take over", Status::serves);
    cluster.nodes[primary].empty_disk();
    cluster.nodes[primary].start();
    assert_eq!(cluster.wait_whole(), backup);
    load.progress(300);
    load.finish();
}

/// A folder that holds no store is named, not made one.
#[test]
fn a_scrub_of_nothing_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = scrub(folder.path());
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("no data folder of a node is there"), "{}", ran.stderr);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);

    let lone = Lone::start(&[]);
    let ran = scrub(lone.node.data());
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("in use by another process"), "{}", ran.stderr);
}
