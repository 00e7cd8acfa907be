//! Nodes that the log cannot feed: they get a snapshot of the primary's tables, and begin anew on it.
//!
//! Every test ends with the snapshot's receiver serving alone, so that what it holds is what counts.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onlyonce_tests::cluster::{BOUND, Environment};
use onlyonce_tests::raw::{ask, executed, get, incr};
use onlyonce_tests::wait::{moment, wait_for};
use onlyonce_tests::{
    Ballast, Cluster, Load, Lone, Node, RawConnection, RawSession, Status, cluster,
};
use onlyonce_wire::client::{Answer, Outcome, Read, Refusal, Request};
use onlyonce_wire::codec;
use rand::Rng;
use rand::rngs::StdRng;

/// The log is pruned all the time, and keeps next to nothing.
const PRUNING: Environment = &[
    ("ONCED_LOG_TAIL_BYTES", "65536"),
    ("ONCED_CHECKPOINT_BYTES", "65536"),
    ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
];

/// How many rows of 20 kB make a transfer of some pieces.
const ROWS: u64 = 200;

/// Bytes of snapshots that were written at a node.
const RECEIVED: &str = "onlyonce_snapshot_received_bytes_total";
/// What a receiver says when it begins to replace its store.
const INSTALLS: &str = "install a snapshot";
/// What it says when the new store is complete.
const BEGINS_ANEW: &str = "begin anew on the store that a snapshot made";

/// Writes the ballast anew, and waits until a checkpoint has ended on the primary after that: its
/// log is then far shorter than what was written.
#[track_caller]
fn outgrow_the_log(cluster: &Cluster, ballast: &mut Ballast) {
    ballast.rewrite(&cluster.addresses());
    let primary = cluster.wait_primary();
    let written = cluster.nodes[primary].status().expect("it runs").committed;
    cluster.nodes[primary].wait_status("to fold what was written", |it| it.applied >= written);
}

/// Kills every node but `survivor`, the primary first, each once the survivor is a replica.
#[track_caller]
fn leave_alone(cluster: &mut Cluster, survivor: usize) {
    loop {
        let primary = wait_for("a primary with the survivor as replica", BOUND, || {
            let primary = cluster.try_primary()?;
            let view = cluster.nodes[primary].status()?;
            let name = cluster.nodes[survivor].name();
            let whole = cluster.nodes.iter().filter(|node| node.runs()).count();
            if view.backups.len() + 1 != whole {
                return Err(format!("{view:?}"));
            }
            let is_replica = primary == survivor || view.backups.iter().any(|it| it == name);
            if is_replica { Ok(primary) } else { Err(format!("{view:?}")) }
        });
        let mut others = (0..cluster.nodes.len()).filter(|&it| it != survivor);
        let victim = if primary == survivor {
            others.find(|&other| cluster.nodes[other].runs())
        } else {
            Some(primary)
        };
        match victim {
            Some(victim) => cluster.nodes[victim].kill(),
            None => return,
        }
    }
}

/// An empty third node joins two under load, whose log does not reach back: it becomes a backup by
/// itself; the two others die in turn, and it serves everything.
#[test]
fn an_empty_third_node_joins_by_a_snapshot() {
    let mut cluster = Cluster::start(2, PRUNING);
    let third = cluster.add();
    let addresses = cluster.addresses();
    let mut load = Load::start("an_empty_third_node_joins_by_a_snapshot", addresses.clone());
    let mut ballast = Ballast::write(&addresses, ROWS);
    outgrow_the_log(&cluster, &mut ballast);
    cluster.nodes[third].start();
    cluster.wait_whole();
    let bytes = cluster.nodes[third].metric(RECEIVED).expect("it runs");
    println!("a snapshot of {bytes} bytes, for {} of ballast", ballast.bytes());
    assert!(bytes >= ballast.bytes() as f64, "{bytes}");
    assert_eq!(cluster.nodes[third].said(BEGINS_ANEW), 1);
    load.random_moment();
    leave_alone(&mut cluster, third);
    load.progress(200);
    load.finish();
    ballast.check(&addresses);
}

/// A backup that was down while the log was pruned comes back by a snapshot, as the same store: what
/// it held of old is replaced, and what was deleted meanwhile is gone.
#[test]
fn a_backup_that_missed_too_much_comes_back_by_a_snapshot() {
    let mut cluster = Cluster::start(2, PRUNING);
    let addresses = cluster.addresses();
    let mut load =
        Load::start("a_backup_that_missed_too_much_comes_back_by_a_snapshot", addresses.clone());
    let mut ballast = Ballast::write(&addresses, ROWS);
    for _ in 0..2 {
        let backup = cluster.other(cluster.wait_whole());
        load.random_moment();
        let before = cluster.nodes[backup].status().expect("it runs");
        let snapshots = cluster.nodes[backup].said(BEGINS_ANEW);
        cluster.nodes[backup].kill();
        outgrow_the_log(&cluster, &mut ballast);
        cluster.nodes[backup].start();
        cluster.wait_whole();
        let after = cluster.nodes[backup].status().expect("it runs");
        assert_eq!((after.store, after.cluster), (before.store, before.cluster));
        assert_eq!(cluster.nodes[backup].said(BEGINS_ANEW), snapshots + 1);
        assert!(!cluster.nodes[backup].data().join("incoming").exists());
    }
    let backup = cluster.other(cluster.wait_whole());
    leave_alone(&mut cluster, backup);
    load.progress(200);
    load.finish();
    ballast.check(&addresses);
}

/// What a node is doing when it, or the one that feeds it, is killed.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Some of the snapshot's rows were written.
    Transfer,
    /// The new store is being put in the old one's place.
    Install,
    /// The new store is being opened.
    Reopening,
}

impl Phase {
    /// Waits until a snapshot on its way to `receiver` is in this phase, at a random place of it.
    /// `said` is how often its log had told of the two later ones.
    #[track_caller]
    fn await_at(self, receiver: &Node, bytes: u64, said: [usize; 2], random: &mut StdRng) {
        let wanted = bytes as f64 * random.random_range(0.0..0.6);
        wait_for(&format!("{self:?} at {}", receiver.name()), BOUND, || {
            let reached = match self {
                Self::Transfer => receiver.metric(RECEIVED)? > wanted,
                Self::Install => receiver.said(INSTALLS) > said[0],
                Self::Reopening => receiver.said(BEGINS_ANEW) > said[1],
            };
            if reached { Ok(()) } else { Err(receiver.log()) }
        });
        if !matches!(self, Self::Transfer) {
            moment(Duration::from_micros(random.random_range(0..30_000)));
        }
    }
}

/// The receiver of a snapshot, or its sender, is killed in the transfer, in the install, or while the
/// new store is opened: each time the cluster becomes whole again, and nothing is lost or doubled.
#[test]
fn sender_and_receiver_are_killed_in_every_phase() {
    let mut cluster = Cluster::start(3, PRUNING);
    let addresses = cluster.addresses();
    let mut load = Load::start("sender_and_receiver_are_killed_in_every_phase", addresses.clone());
    let mut ballast = Ballast::write(&addresses, 2 * ROWS);
    let mut receiver = 0;
    for phase in [Phase::Transfer, Phase::Install, Phase::Reopening] {
        for kills_sender in [false, true] {
            let primary = cluster.wait_whole();
            receiver = (primary + load.random.random_range(1..3)) % 3;
            let said = [INSTALLS, BEGINS_ANEW].map(|text| cluster.nodes[receiver].said(text));
            cluster.nodes[receiver].kill();
            let emptied = load.random.random();
            if emptied {
                cluster.nodes[receiver].empty_disk();
            }
            outgrow_the_log(&cluster, &mut ballast);
            let sender = cluster.wait_primary();
            cluster.nodes[receiver].start();
            phase.await_at(&cluster.nodes[receiver], ballast.bytes(), said, &mut load.random);
            let victim = if kills_sender { sender } else { receiver };
            println!(
                "{phase:?}: {} is killed, {} receives, emptied: {emptied}, it has {:?}",
                cluster.nodes[victim].name(),
                cluster.nodes[receiver].name(),
                parts(cluster.nodes[receiver].data()),
            );
            cluster.nodes[victim].kill();
            if load.random.random() {
                load.random_moment();
            }
            cluster.nodes[victim].start();
        }
    }
    cluster.wait_whole();
    leave_alone(&mut cluster, receiver);
    load.progress(200);
    load.finish();
    ballast.check(&addresses);
}

/// Which of a replacement's parts are in a data folder.
fn parts(folder: &Path) -> Vec<&'static str> {
    ["replace", "incoming", "incoming/log", "incoming/tables", "incoming/head"]
        .into_iter()
        .filter(|part| folder.join(part).exists())
        .collect()
}

/// Copies a file, or a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        fs::copy(from, to).expect("a file");
        return;
    }
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// What a removal that was cut short may leave of a folder: it goes file by file.
fn half_remove(path: &Path) {
    let files = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
    files.sort();
    for file in files.iter().step_by(2) {
        fs::remove_file(file).expect("a file");
    }
}

/// A replacement that was cut short at any of its steps is finished by the next start; what was built
/// but never accepted is removed, and the old store is the store.
#[test]
fn a_replacement_is_finished_or_removed() {
    let folder = cluster::folder();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let mut lone = Lone::start(&[]);
    for (at, copied) in [(1, &old), (2, &new)] {
        let node = [lone.node.client_address()];
        let session = RawSession::open(&node);
        let _ = executed(ask(&node, &session.request(1, 1, &incr("state"))));
        assert!(lone.node.terminate().status.success());
        copy(lone.node.data(), copied);
        lone.node.start();
        lone.node.wait_status(&format!("to serve state {at}"), Status::serves);
    }
    let parts = ["log", "tables", "head"];
    // How many steps were done: each part is removed, half or whole, and then replaced.
    for step in 0..=3 * parts.len() {
        let data = folder.path().join(format!("accepted-{step}"));
        copy(&old, &data);
        fs::create_dir(data.join("incoming")).expect("a folder");
        fs::write(data.join("replace"), "").expect("a file");
        for (place, part) in parts.iter().enumerate() {
            let (built, target) = (data.join("incoming").join(part), data.join(part));
            let done = step.saturating_sub(3 * place);
            match done {
                0 => {}
                1 if target.is_dir() => half_remove(&target),
                _ if target.is_dir() => fs::remove_dir_all(&target).expect("a folder"),
                _ => fs::remove_file(&target).expect("a file"),
            }
            copy(&new.join(part), if done >= 3 { &target } else { &built });
        }
        assert_opens(&data, "2", &format!("accepted, {step} steps"));
    }
    // Built as far as these parts, and never accepted; the last is empty after it was.
    for (count, state) in [(0, "1"), (1, "1"), (2, "1"), (3, "1"), (0, "2")] {
        let data = folder.path().join(format!("built-{count}-{state}"));
        copy(if state == "1" { &old } else { &new }, &data);
        fs::create_dir(data.join("incoming")).expect("a folder");
        for part in &parts[..count] {
            copy(&new.join(part), &data.join("incoming").join(part));
        }
        assert_opens(&data, state, &format!("{count} parts built"));
    }
}

/// A node opens the folder, in which nothing of a replacement is left, and has this state.
#[track_caller]
fn assert_opens(data: &Path, state: &str, what: &str) {
    let mut node = Node::new("n1", data, &[], &[]);
    node.start();
    node.wait_status("to serve", Status::serves);
    let found = get(&[node.client_address()], "state");
    assert_eq!(found.as_deref(), Some(state), "{what}");
    assert!(parts(data).is_empty(), "{what}: {:?}", parts(data));
    node.terminate();
    let mut again = Node::new("n1", data, &[], &[]);
    again.start();
    again.wait_status("to serve again", Status::serves);
}

/// What a prober saw at the learner.
#[derive(Debug, Default)]
struct Seen {
    redirected: u64,
    broken: u64,
    wrong: Vec<String>,
}

/// Sends increments and reads to the learner first, on one connection as long as it lasts, and then
/// the same bytes to whoever takes them, until it is told to stop.
fn probe(learner: SocketAddr, nodes: &[SocketAddr], stop: &AtomicBool) -> Seen {
    let session = RawSession::open(nodes);
    let mut seen = Seen::default();
    let mut connection = None;
    let read = Request::Read(Read::Get { key: "probe".into() });
    for seq in 1.. {
        let request = session.request(seq, seq, &incr("probe"));
        for request in [&request, &read] {
            let mut answer = || {
                if connection.is_none() {
                    connection = Some(RawConnection::open(learner)?);
                }
                connection.as_mut().expect("just opened").call(request)
            };
            match answer() {
                Ok(
                    Answer::NotPrimary { .. }
                    | Answer::AskAgain
                    | Answer::Refused(Refusal::Busy(_)),
                ) => seen.redirected += 1,
                Ok(answer) => seen.wrong.push(format!("{answer:?} to {request:?}")),
                Err(_) => {
                    connection = None;
                    seen.broken += 1;
                }
            }
        }
        let (reply, replayed) = executed(ask(nodes, &request));
        let outcome = codec::decode::<Outcome, 1024>(&reply);
        if replayed || outcome.as_ref().ok() != Some(&Outcome::Integer(seq.cast_signed())) {
            seen.wrong.push(format!("{outcome:?}, replayed: {replayed}, to increment {seq}"));
        }
        if stop.load(Ordering::SeqCst) {
            return seen;
        }
    }
    seen
}

/// Clients that speak to the learner while it learns and begins anew get no wrong answer: they are
/// redirected, or their connection ends and they try again.
#[test]
fn clients_of_a_learner_get_no_wrong_answer() {
    let mut cluster = Cluster::start(2, PRUNING);
    let third = cluster.add();
    let learner = cluster.nodes[third].client_address();
    let mut ballast = Ballast::write(&cluster.addresses(), ROWS);
    outgrow_the_log(&cluster, &mut ballast);
    cluster.nodes[third].start();
    // Clients that know nobody else.
    let load = Load::start("clients_of_a_learner_get_no_wrong_answer", vec![learner.to_string()]);
    let nodes = cluster.sockets();
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let prober = scope.spawn(|| probe(learner, &nodes, &stop));
        cluster.wait_whole();
        stop.store(true, Ordering::SeqCst);
        prober.join().expect("the prober panicked")
    });
    println!("{seen:?}");
    assert!(seen.wrong.is_empty(), "{seen:?}");
    assert!(seen.redirected > 0, "{seen:?}");
    assert_eq!(cluster.nodes[third].said(BEGINS_ANEW), 1);
    load.progress(200);
    load.finish();
    leave_alone(&mut cluster, third);
    ballast.check(&cluster.addresses());
}
