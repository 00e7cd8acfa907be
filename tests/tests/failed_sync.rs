//! A disk that fails: an `fdatasync` of a running node ends with EIO, which strace injects. The node
//! stops with a clear message and acknowledges nothing more, the other one goes on, and the folder is
//! as good as after a kill.

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::raw::{ask, executed, get, incr};
use onlyonce_tests::trace::attach;
use onlyonce_tests::{Cluster, Daemon, Exit, Node, RawConnection, RawSession, Recorder};
use tempfile::TempDir;

/// From now on the next `fdatasync` of `file`, in the data folder of `node`, fails.
fn fail_next_sync(node: &mut Node, file: &str, folder: &TempDir) -> Daemon {
    let path = node.data().join(file);
    let path = path.to_str().expect("temporary folders have readable names").to_owned();
    let inject = "inject=fdatasync:error=EIO:when=1";
    let arguments = ["-P", &path, "-e", "trace=fdatasync", "-e", inject];
    attach(node.daemon().pid(), &arguments, &folder.path().join("trace"))
}

/// Waits until the node has stopped for that reason.
#[track_caller]
fn expect_stop(node: &mut Node, file: &str, mut strace: Daemon, folder: &TempDir) {
    let Exit { status, stderr } = node.exit();
    strace.exit(BOUND);
    let trace = std::fs::read_to_string(folder.path().join("trace")).expect("strace wrote it");
    assert!(trace.contains("(INJECTED)"), "{trace}");
    assert!(!status.success(), "it ended with {status}");
    let reason = stderr.lines().find(|line| line.contains("Input/output error"));
    let reason = reason.unwrap_or_else(|| panic!("no reason in {stderr}"));
    assert!(reason.contains(file) && reason.contains("sync"), "{reason}");
    println!("{} ended with {status}: {reason}", node.name());
}

/// Each file that is synced, on the primary and on the backup, under recorded load: the log, the
/// tables (by the checkpoint thread), the head.
#[test]
fn a_failed_sync_stops_one_node() {
    let mut cluster = Cluster::start(2, &[("ONCED_CHECKPOINT_INTERVAL_MS", "100")]);
    let recorder = Recorder::start("a_failed_sync_stops_one_node", cluster.addresses(), 6, 1);
    let folder = tempfile::tempdir().expect("a folder");
    let mut failures = 0;
    for file in ["log/db", "tables/db", "head"] {
        for on_primary in [true, false] {
            let primary = cluster.wait_whole();
            recorder.progress(100);
            let other = cluster.other(primary);
            let (victim, survivor) = if on_primary { (primary, other) } else { (other, primary) };
            let strace = fail_next_sync(&mut cluster.nodes[victim], file, &folder);
            expect_stop(&mut cluster.nodes[victim], file, strace, &folder);
            failures += 1;
            assert_eq!(cluster.wait_primary(), survivor);
            recorder.progress(100);
            // What was not synced is still in the page cache: nothing is damaged.
            cluster.nodes[victim].start();
        }
    }
    cluster.wait_whole();
    recorder.progress(100);
    recorder.finish(&format!("{failures} failed syncs"));
}

/// The write that could not be synced is answered by nobody; asked again it takes effect once.
#[test]
fn what_was_not_synced_is_not_acknowledged() {
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.sockets();
    let session = RawSession::open(&nodes);
    let folder = tempfile::tempdir().expect("a folder");
    for on_primary in [true, false] {
        let primary = cluster.wait_whole();
        let victim = if on_primary { primary } else { cluster.other(primary) };
        let (seq, key) = if on_primary { (1, "primary") } else { (2, "backup") };
        let request = session.request(seq, 1, &incr(key));
        let mut client = RawConnection::open(nodes[primary]).expect("it runs");
        let strace = fail_next_sync(&mut cluster.nodes[victim], "log/db", &folder);
        let call = client.send(&request).expect("the socket takes it");
        if on_primary {
            let answer = client.receive(call);
            assert!(answer.is_err(), "it was not synced, and answered with {answer:?}");
        } else {
            // The primary answers once it goes on alone: its own copy is all that is asked for then.
            executed(client.receive(call).expect("the primary goes on"));
            cluster.nodes[primary].wait_status("to be alone", |status| status.backups.is_empty());
        }
        expect_stop(&mut cluster.nodes[victim], "log/db", strace, &folder);
        executed(ask(&nodes, &request));
        cluster.nodes[victim].start();
        cluster.wait_whole();
        assert_eq!(get(&nodes, key).as_deref(), Some("1"), "it took effect once");
    }
}
