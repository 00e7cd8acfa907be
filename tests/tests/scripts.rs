//! `scripts/cluster` and `scripts/demo`, as their users type them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::process::{Ran, run};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{binaries, once};
use serde_json::Value;
use tempfile::TempDir;

/// A cluster of the script's, in a folder of its own; stopped at the end.
struct Script {
    folder: TempDir,
}

impl Script {
    fn new() -> Self {
        Self { folder: onlyonce_tests::cluster::folder() }
    }

    fn run(&self, arguments: &str) -> Ran {
        let path: PathBuf = binaries::workspace().join("scripts/cluster");
        let mut command = Command::new(path);
        command.args(arguments.split_whitespace());
        command.env("ONCE_DIR", self.folder.path().join("cluster"));
        command.env("ONCE_BIN_DIR", binaries::folder());
        run(command, Duration::from_secs(150))
    }

    /// Runs a command that must work; returns what it printed.
    #[track_caller]
    fn ok(&self, arguments: &str) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "cluster {arguments}: {ran:?}");
        ran.stdout.trim().to_owned()
    }

    /// Runs a command that must be refused as misuse, and name `words`.
    #[track_caller]
    fn misuse(&self, arguments: &str, words: &[&str]) {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(2), "cluster {arguments}: {ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{arguments}: it should name {word:?}: {ran:?}");
        }
    }

    fn status(&self) -> Value {
        let text = self.ok("status --json");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The roles of n1 and n2.
    fn roles(&self) -> Vec<String> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().map(|node| node["role"].as_str().expect("a role").to_owned()).collect()
    }

    #[track_caller]
    fn wait_roles(&self, what: &str, wanted: impl Fn(&[String]) -> bool) {
        wait_for(what, BOUND, || {
            let roles = self.roles();
            if wanted(&roles) { Ok(()) } else { Err(format!("{roles:?}")) }
        });
    }

    #[track_caller]
    fn wait_whole(&self) {
        self.wait_roles("a primary and a backup", |roles| {
            roles.contains(&"primary".to_owned()) && roles.contains(&"backup".to_owned())
        });
    }

    /// The node that serves, once one does.
    #[track_caller]
    fn primary(&self) -> String {
        wait_for("a node to serve", BOUND, || {
            let ran = self.run("primary");
            if ran.code == Some(0) { Ok(ran.stdout.trim().to_owned()) } else { Err(ran.stderr) }
        })
    }

    /// Runs `once` against the cluster.
    #[track_caller]
    fn once(&self, arguments: &[&str]) -> String {
        let ran = run(once(&[self.ok("nodes")], arguments), BOUND);
        assert_eq!(ran.code, Some(0), "once {arguments:?}: {ran:?}");
        ran.stdout.trim().to_owned()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["n1", "n2", "authority"] {
                let ran = self.run(&format!("logs {name}"));
                println!("--- log of {name}:\n{}{}", ran.stdout, ran.stderr);
            }
        }
        // Not `ok`: a panic here would hide the first one.
        let _ = self.run("down");
    }
}

fn other(name: &str) -> &str {
    if name == "n1" { "n2" } else { "n1" }
}

/// The life of a cluster, command by command.
#[test]
fn a_cluster_lives_and_dies_by_script() {
    let script = Script::new();
    script.ok("up --nodes 2 --authority embedded");
    assert_eq!(script.ok("nodes").split(',').count(), 2);
    assert_eq!(script.once(&["incr", "n"]), "1");
    let status = script.status();
    for (place, node) in status["nodes"].as_array().expect("nodes").iter().enumerate() {
        assert_eq!(node["name"], format!("n{}", place + 1), "{status}");
        assert!(node["pid"].as_u64().is_some_and(|pid| pid > 1), "{status}");
        for kind in ["client", "peer", "http"] {
            let address = node[kind].as_str().unwrap_or_default();
            assert!(address.parse::<std::net::SocketAddr>().is_ok(), "{kind} in {status}");
        }
    }
    let text = script.ok("status");
    assert!(text.contains("primary") && text.contains("backup"), "{text}");

    let first = script.primary();
    script.ok(&format!("kill {first}"));
    script.misuse(&format!("kill {first}"), &["not running", "start"]);
    assert_eq!(script.once(&["incr", "n"]), "2", "the backup took over");
    assert_eq!(script.primary(), other(&first));
    assert!(script.roles().contains(&"down".to_owned()));
    let before = script.ok("nodes");
    script.ok(&format!("start {first}"));
    script.misuse(&format!("start {first}"), &["running already"]);
    assert_eq!(script.ok("nodes"), before, "the same addresses again");
    script.wait_whole();

    let second = script.primary();
    script.ok(&format!("pause {second}"));
    script.misuse(&format!("pause {second}"), &["paused already"]);
    assert!(script.roles().contains(&"paused".to_owned()));
    assert_eq!(script.once(&["incr", "n"]), "3", "the other one took over");
    script.ok(&format!("resume {second}"));
    script.misuse(&format!("resume {second}"), &["not paused"]);
    script.wait_whole();

    script.ok("partition n1 n2");
    assert_eq!(script.once(&["incr", "n"]), "4", "one of them goes on alone");
    script
        .wait_roles("the other one to be a learner", |roles| roles.contains(&"learner".to_owned()));
    script.ok("heal");
    script.wait_whole();
    script.ok("partition 1 authority");
    script.ok("heal");
    assert!(script.ok("logs n1").contains("view"), "the log is shown");

    script.ok("down");
    script.ok("down");
    assert_eq!(script.roles(), ["down", "down"]);
    script.ok("up");
    assert_eq!(script.once(&["get", "n"]), "4", "a stopped cluster keeps its data");
}

/// A cluster whose authority is etcd: it serves without it, and changes its view with it.
#[test]
fn a_cluster_on_etcd_lives_and_dies_by_script() {
    let script = Script::new();
    script.ok("up --nodes 2 --authority etcd");
    let status = script.status();
    assert_eq!(status["authority"]["kind"], "etcd", "{status}");
    assert!(status["authority"]["pid"].as_u64().is_some_and(|pid| pid > 1), "{status}");
    assert_eq!(script.once(&["incr", "n"]), "1");

    script.ok("kill authority");
    assert_eq!(script.status()["authority"]["state"], "down");
    assert_eq!(script.once(&["incr", "n"]), "2", "the view stands");
    let first = script.primary();
    script.ok(&format!("kill {first}"));
    script.ok("start authority");
    assert_eq!(script.once(&["incr", "n"]), "3", "the backup took over");
    assert_eq!(script.primary(), other(&first));
    script.ok(&format!("start {first}"));
    script.wait_whole();

    script.ok("down");
    assert_eq!(script.status()["authority"]["state"], "down");
    script.ok("up --authority etcd");
    assert_eq!(script.once(&["get", "n"]), "3", "a stopped cluster keeps its data");
}

/// Every misuse is refused with 2 and a text that says what to do.
#[test]
fn misuse_is_named() {
    let script = Script::new();
    let none = script.run("");
    assert!(none.code == Some(2) && none.stderr.contains("usage"), "{none:?}");
    script.misuse("frobnicate", &["frobnicate", "usage"]);
    for command in ["status", "primary", "nodes", "kill n1", "start n1", "pause n1", "heal"] {
        script.misuse(command, &["no cluster", "scripts/cluster up"]);
    }
    script.misuse("up --authority foo", &["foo", "embedded", "etcd"]);
    script.misuse("up --authority etcd://127.0.0.1:2379", &["127.0.0.1", "embedded", "etcd"]);
    script.misuse("up --nodes", &["--nodes", "value"]);
    script.misuse("up --nodes none", &["none", "1 to 7"]);
    script.misuse("up --bogus", &["--bogus"]);
    assert_eq!(script.ok("down"), script.ok("down"), "nothing to stop is no error");

    script.ok("up --nodes 1");
    script.misuse("up", &["running", "down"]);
    script.ok("down");
    script.misuse("up --authority etcd", &["stopped", "embedded"]);
    script.ok("up");
    script.misuse("kill", &["N", "nothing"]);
    script.misuse("kill n9", &["n9", "n1"]);
    script.misuse("kill ../../etc", &["../../etc"]);
    script.misuse("partition n1", &["A B"]);
    script.misuse("partition n1 n1", &["two different"]);
    script.misuse("status --xml", &["--xml"]);
    assert_eq!(script.primary(), "n1");
}

/// A number in the table that a demo ends with.
#[track_caller]
fn in_table(ran: &Ran, name: &str) -> u64 {
    let line = ran.stdout.lines().find_map(|line| line.trim_start().strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {ran:?}"));
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// The demo's load on a cluster of three: nodes are killed, paused and cut off, the audit is clean, and
/// the table at the end tells all of it. (`scripts/demo` builds with optimisation, and is not run here.)
#[test]
fn the_demo_kills_pauses_cuts_off_and_audits() {
    let script = Script::new();
    script.ok("up --nodes 3");
    let mut command = Command::new(binaries::once_demo());
    command.arg("--cluster").arg(binaries::workspace().join("scripts/cluster"));
    // The sixth kill begins the second turn: by then everything was done once.
    command.args(["--seconds", "1", "--kills", "6"]);
    command.env("ONCE_DIR", script.folder.path().join("cluster"));
    command.env("ONCE_BIN_DIR", binaries::folder());
    let ran = run(command, Duration::from_secs(150));
    println!("{}", ran.stdout);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(in_table(&ran, "acknowledged") > 0, "{ran:?}");
    assert_eq!(in_table(&ran, "acknowledged"), in_table(&ran, "applied"), "{ran:?}");
    assert_eq!([in_table(&ran, "lost"), in_table(&ran, "doubled")], [0, 0], "{ran:?}");
    assert!(in_table(&ran, "kills (kill -9)") >= 6, "{ran:?}");
    assert!(in_table(&ran, "pauses (SIGSTOP)") >= 1, "{ran:?}");
    assert!(in_table(&ran, "partitions") >= 1, "{ran:?}");
    for told in ["kill -9 n", "SIGSTOP n", "SIGCONT n", "partition n", "heal", "passed: "] {
        assert!(ran.stdout.contains(told), "{told}: {ran:?}");
    }
}

/// Every misuse of the demo is refused before anything is built, with 2 and a text that says what would
/// be right; a demo that cannot work ends with a failure.
#[test]
fn misuse_of_the_demo_is_named() {
    for (arguments, words) in [
        ("--seconds 0", "--seconds 0: a number from 1 to 3600 is needed"),
        ("--seconds", "--seconds: a number from 1 to 3600 is needed"),
        ("--seconds ten", "--seconds ten: a number"),
        ("--nodes 1", "--nodes 1: a number from 2 to 7 is needed"),
        ("--kills 0", "--kills 0: a number"),
        ("--clients 1001", "--clients 1001: a number from 1 to 1000"),
        ("--authority", "--authority: a value"),
        ("--bogus", "usage: scripts/demo"),
    ] {
        let mut command = Command::new(binaries::workspace().join("scripts/demo"));
        command.args(arguments.split_whitespace());
        let ran = run(command, BOUND);
        assert_eq!(ran.code, Some(2), "{arguments}: {ran:?}");
        assert!(ran.stderr.contains(words) && ran.stdout.is_empty(), "{arguments}: {ran:?}");
    }
    let mut command = Command::new(binaries::once_demo());
    command.args(["--cluster", "false"]);
    let ran = run(command, BOUND);
    assert_eq!(ran.code, Some(1), "there is no cluster: {ran:?}");
}
