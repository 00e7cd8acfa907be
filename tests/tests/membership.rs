//! Who may lead: membership is by store, so a node whose disk was emptied is a stranger.

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Cluster, Workload, WorkloadConfig, audit, seed};

/// Runs a workload until so many requests were acknowledged.
fn load(cluster: &Cluster, requests: u64, test: &str) -> (WorkloadConfig, onlyonce_tests::Ledger) {
    let config = WorkloadConfig::new(cluster.addresses(), seed::seed(test));
    let workload = Workload::start(config.clone());
    wait_for("requests to be acknowledged", BOUND, || match workload.acknowledged() {
        enough if enough >= requests => Ok(()),
        few => Err(format!("{few} of {requests}")),
    });
    (config, workload.finish(BOUND))
}

/// A backup whose disk was emptied comes back as a new store: a learner, then a backup that holds
/// everything, and can lead.
#[test]
fn an_emptied_backup_learns() {
    let mut cluster = Cluster::start(2, &[]);
    let (config, ledger) = load(&cluster, 500, "an_emptied_backup_learns");
    let primary = cluster.wait_whole();
    let backup = cluster.other(primary);
    let before = cluster.nodes[backup].status().expect("it runs");
    cluster.nodes[backup].kill();
    cluster.nodes[backup].empty_disk();
    cluster.nodes[backup].start();
    let status = cluster.nodes[backup].status().expect("it runs");
    assert!(status.role == "starting" || status.role == "learner", "{status:?}");
    assert_ne!(status.store, before.store, "an emptied disk is a new store");
    cluster.wait_whole();
    let whole = cluster.nodes[backup].status().expect("it runs");
    assert_eq!(whole.cluster, before.cluster);
    cluster.nodes[primary].kill();
    assert_eq!(cluster.wait_primary(), backup);
    audit::audit(&config, &ledger).expect("everything can be read").assert_clean();
}

/// A primary whose disk was emptied never leads again before it has learned: its backup takes over,
/// and --bootstrap on it makes no second cluster.
#[test]
fn an_emptied_primary_is_a_stranger() {
    let mut cluster = Cluster::start(2, &[]);
    let (config, ledger) = load(&cluster, 500, "an_emptied_primary_is_a_stranger");
    // n1 has --bootstrap: it shall be the one that is emptied.
    if cluster.wait_whole() != 0 {
        cluster.nodes[1].kill();
        assert_eq!(cluster.wait_primary(), 0);
        cluster.nodes[1].start();
        assert_eq!(cluster.wait_whole(), 0);
    }
    let before = cluster.nodes[0].status().expect("it runs");
    cluster.nodes[0].kill();
    cluster.nodes[0].empty_disk();
    cluster.nodes[0].start();
    wait_for("n1 to be a backup, never having led", BOUND, || {
        let status = cluster.nodes[0].status()?;
        assert_ne!(status.role, "primary", "an emptied node leads: {status:?}");
        if status.role == "backup" { Ok(()) } else { Err(format!("{status:?}")) }
    });
    assert_eq!(cluster.wait_whole(), 1, "n2 leads");
    for node in &cluster.nodes {
        let status = node.status().expect("it runs");
        assert_eq!(status.cluster, before.cluster, "the register belongs to the old cluster");
        assert!(status.view > before.view, "{status:?}");
    }
    cluster.nodes[1].kill();
    assert_eq!(cluster.wait_primary(), 0, "with everything learned it may lead");
    audit::audit(&config, &ledger).expect("everything can be read").assert_clean();
}

/// With the other disk gone too, an emptied node waits rather than begin anew: an emptied cluster
/// never acknowledges anything that a client could take for the old one.
#[test]
fn an_emptied_node_alone_never_serves() {
    let mut cluster = Cluster::start(2, &[]);
    let _ = load(&cluster, 50, "an_emptied_node_alone_never_serves");
    cluster.wait_whole();
    for node in &mut cluster.nodes {
        node.kill();
    }
    cluster.nodes[0].empty_disk();
    cluster.nodes[0].start();
    // As long as a healthy backup would take to give up on the dead primary, several times over.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(4);
    wait_for("time to pass", BOUND, || {
        let status = cluster.nodes[0].status()?;
        assert!(status.role != "primary" && !status.serving, "{status:?}");
        if std::time::Instant::now() > end { Ok(()) } else { Err("not yet".to_owned()) }
    });
    cluster.nodes[1].start();
    cluster.wait_whole();
}

/// A node whose disk was emptied when the log no longer holds the beginning: it can be a stranger for
/// as long as it likes, but the others go on, and it never leads without what they have.
#[test]
fn a_stranger_that_needs_pruned_records_harms_nobody() {
    let pruning = [
        ("ONCED_LOG_TAIL_BYTES", "65536"),
        ("ONCED_CHECKPOINT_BYTES", "65536"),
        ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
    ];
    let mut cluster = Cluster::start(2, &pruning);
    let (config, ledger) =
        load(&cluster, 2_000, "a_stranger_that_needs_pruned_records_harms_nobody");
    let primary = cluster.wait_whole();
    let backup = cluster.other(primary);
    cluster.nodes[primary].wait_status("to checkpoint", |status| status.applied > 100);
    cluster.nodes[backup].kill();
    cluster.nodes[backup].empty_disk();
    cluster.nodes[backup].start();
    cluster.nodes[backup].wait_status("to follow", |status| {
        assert_ne!(status.role, "primary", "an emptied node leads: {status:?}");
        status.view > 2
    });
    let (more, more_ledger) = load(&cluster, 500, "more");
    assert_eq!(cluster.wait_primary(), primary);
    audit::audit(&config, &ledger).expect("everything can be read").assert_clean();
    audit::audit(&more, &more_ledger).expect("everything can be read").assert_clean();
}
