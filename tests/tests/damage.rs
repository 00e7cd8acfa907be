//! Disks that are damaged or full: a node stops and says why, and nothing that it acknowledged is
//! ever silently missing.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_client::{Client, Error};
use onlyonce_tests::client::runtime;
use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::files::{self, Flipped, Position, flip_each};
use onlyonce_tests::process::run;
use onlyonce_tests::raw::{append, ask, executed, put};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Exit, Lone, Node, RawSession, Status, seed};
use onlyonce_wire::client::{Answer, Outcome, Read, Request};
use rand::Rng;
use rand::rngs::StdRng;

/// How many positions are flipped, one store each.
const POSITIONS: usize = 200;
/// How many of them in `head`; the others in the files of `log/`.
const HEAD_POSITIONS: usize = 40;

/// Keys and values.
type Rows = BTreeMap<Bytes, Bytes>;

/// Reads everything.
fn all_rows(node: SocketAddr) -> Rows {
    let request = Request::Read(Read::Scan { start: Bytes::new(), end: None, limit: 10_000 });
    match ask(&[node], &request) {
        Answer::Read(Outcome::Rows { rows, next: None }) => rows.into_iter().collect(),
        other => panic!("{other:?} to a scan of everything"),
    }
}

/// Writes rows of many sizes into a lone store that checkpoints nothing, and kills its node: all of
/// them are in the log only.
fn write_and_kill(lone: &mut Lone) -> Rows {
    let nodes = [lone.node.client_address()];
    let session = RawSession::open(&nodes);
    for number in 1..=200 {
        let key = format!("key {:03}", number % 150);
        let value = "v".repeat(1 + (number as usize * 37) % 700);
        let value = format!("{number}:{value}");
        let operation = if number % 3 == 0 { append(&key, &value) } else { put(&key, &value) };
        executed(ask(&nodes, &session.request(number, number, &operation)));
    }
    let rows = all_rows(nodes[0]);
    let status = lone.node.status().expect("it runs");
    assert_eq!(status.applied, 0, "everything is in the log only");
    lone.node.kill();
    rows
}

/// Places to flip a byte at: spread over `head` and over every file of `log/`.
fn positions(data: &Path, random: &mut StdRng) -> Vec<Position> {
    let head = data.join("head");
    let span = fs::read(&head).expect("head").len() / HEAD_POSITIONS;
    let in_head = (0..HEAD_POSITIONS).map(|number| number * span);
    let mut positions: Vec<_> = in_head
        .map(|start| Position { file: head.clone(), offset: start + random.random_range(0..span) })
        .collect();
    positions.extend(files::positions(&data.join("log"), POSITIONS - HEAD_POSITIONS, random));
    positions
}

/// A refusal must end with a line that names the file or folder, and must not be an accident.
fn judge_refusal(data: &Path, exit: &Exit) -> (Flipped, String) {
    let last = exit.stderr.lines().last().unwrap_or_default();
    let data = data.display();
    let named = ["head", "log"].iter().any(|part| last.contains(&format!("{data}/{part}")));
    let clean = exit.status.code() == Some(1) && !exit.stderr.contains("panic");
    let flipped = if named && clean { Flipped::Named } else { Flipped::Wrong };
    (flipped, format!("{}: {last}", exit.status))
}

/// Starts a node on a damaged copy.
fn judge(data: &Path, rows: &Rows) -> (Flipped, String) {
    let mut node = Node::new("n1", data, &[], &[]);
    if let Err(exit) = node.try_start() {
        return judge_refusal(data, &exit);
    }
    let served = wait_for("the node to serve or to end", BOUND, || {
        if let Some(exit) = node.try_exit() {
            return Ok(Err(exit));
        }
        let status = node.status()?;
        if status.serves() { Ok(Ok(())) } else { Err(format!("{status:?}")) }
    });
    if let Err(exit) = served {
        return judge_refusal(data, &exit);
    }
    let found = all_rows(node.client_address());
    let missing = rows.iter().filter(|(key, value)| found.get(*key) != Some(value)).count();
    if found == *rows {
        (Flipped::Harmless, String::new())
    } else {
        let said = node.log();
        (
            Flipped::Wrong,
            format!("{missing} of {} rows are not as acknowledged\n{said}", rows.len()),
        )
    }
}

/// A byte flipped at each of 200 positions of a closed store's log or `head` is either harmless or
/// named at open; no acknowledged write is ever silently missing.
#[test]
fn a_flipped_byte_is_named_or_harmless() {
    let never =
        [("ONCED_CHECKPOINT_BYTES", "100000000"), ("ONCED_CHECKPOINT_INTERVAL_MS", "86400000")];
    let mut lone = Lone::start(&never);
    let rows = write_and_kill(&mut lone);
    let data = lone.node.data().to_owned();
    let positions = positions(&data, &mut seed::rng("a_flipped_byte_is_named_or_harmless"));
    assert!(positions.len() >= POSITIONS, "{}", positions.len());
    flip_each(&data, &positions, |copy| judge(copy, &rows));
}

/// A file system of its own, as large as it is told; unmounted at the end.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn mount(megabytes: usize) -> Self {
        let disk = Self { folder: tempfile::tempdir().expect("a folder") };
        disk.command("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]);
        disk
    }

    fn resize(&self, megabytes: usize) {
        self.command("mount", &["-o", &format!("remount,size={megabytes}m")]);
    }

    fn command(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(program);
        command.args(arguments).arg(self.folder.path());
        let ran = run(command, Duration::from_secs(20));
        assert_eq!(ran.code, Some(0), "{program} must work for this test (root?): {}", ran.stderr);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

/// Fills a node's disk with values until the node stops; returns what was acknowledged.
async fn fill(node: &mut Node, address: String) -> (Vec<String>, Exit) {
    let client = Client::builder()
        .nodes([address])
        .deadline(Duration::from_secs(3))
        .attempt_timeout(Duration::from_secs(1))
        .build()
        .expect("an address");
    let mut acknowledged = Vec::new();
    for number in 0..100_000 {
        let key = format!("key {number:06}");
        match client.put(key.clone(), value_of(&key)).await {
            Ok(()) => acknowledged.push(key),
            Err(Error::Unresolved(_) | Error::NotSent(_)) => {}
            Err(other) => panic!("an error that a full disk does not explain: {other}"),
        }
        if let Some(exit) = node.try_exit() {
            return (acknowledged, exit);
        }
    }
    panic!("the disk never filled up");
}

/// A long value that only its key has.
fn value_of(key: &str) -> String {
    format!("{key};").repeat(5_000)
}

/// A full disk: the node stops with a clear error, and when there is space again it serves with
/// everything that was acknowledged.
#[test]
fn a_full_disk_stops_the_node_and_loses_nothing() {
    let disk = Disk::mount(96);
    let mut node = Node::new("n1", &disk.folder.path().join("n1"), &[], &[]);
    node.start();
    let runtime = runtime(2);
    let address = node.client_address().to_string();
    let (acknowledged, exit) = runtime.block_on(fill(&mut node, address.clone()));
    println!("{} values were acknowledged", acknowledged.len());
    assert!(!exit.status.success(), "it must not end as if all were well: {}", exit.status);
    let last = exit.stderr.lines().last().unwrap_or_default().to_owned();
    println!("{}: {last}", exit.status);
    assert!(
        exit.stderr.to_lowercase().contains("no space left"),
        "it must say what is wrong:\n{}",
        exit.stderr
    );
    assert!(acknowledged.len() > 50, "only {}", acknowledged.len());

    // Still full: refuses again, or holds everything; never starts with less.
    match node.try_start() {
        Ok(()) => node.kill(),
        Err(exit) => assert!(!exit.stderr.is_empty() && !exit.status.success(), "{exit:?}"),
    }
    disk.resize(512);
    node.start();
    node.wait_status("to serve", Status::serves);
    runtime.block_on(async {
        let client = Client::builder().nodes([address]).deadline(BOUND).build().expect("address");
        for key in &acknowledged {
            let value = client.get(key.clone()).await.expect("it serves");
            assert!(value.as_deref() == Some(value_of(key).as_bytes()), "{key} is lost");
        }
        client.put("after", "all").await.expect("it serves again");
    });
}
