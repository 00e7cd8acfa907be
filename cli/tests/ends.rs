//! How the program ends, as scripts see it: exit codes, and which of them says what.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// Runs `once` without any variables of its own but `variables`.
fn once(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    command(variables, arguments).stdin(Stdio::null()).output().expect("once starts")
}

fn command(variables: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_once"));
    command.env_remove("ONCE_NODES").env_remove("ONCE_AUTHORITY");
    command.envs(variables.iter().copied()).args(arguments);
    command
}

/// Asserts how a run ended, and that standard error has all `words`.
fn assert_ended(ran: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
}

/// A port where nobody listens: bound and let go of again.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

/// What cannot be understood ends with 2, before anything is connected.
#[test]
fn usage() {
    assert_ended(&once(&[], &["frob"]), 2, &["frob"]);
    assert_ended(&once(&[], &["get"]), 2, &["<KEY>"]);
    assert_ended(&once(&[], &["--nodes", "localhost", "get", "k"]), 2, &["--nodes", "localhost"]);
    assert_ended(&once(&[], &["--deadline", "5", "get", "k"]), 2, &["--deadline"]);
    assert_ended(&once(&[], &["txn", "put"]), 2, &["a key is missing here"]);
}

/// A value that is refused is shown, but not at any length: what is wrong with it stands out.
#[test]
fn a_long_value_is_shortened() {
    let key = "\u{e9}".repeat(5 << 10);
    let ran = once(&[], &["--key", &key, "put", "k", "v"]);
    let shown = format!("'{}... (10240 bytes)'", "\u{e9}".repeat(40));
    assert_ended(&ran, 2, &["--key", &shown, "at most 256"]);
    assert!(ran.stderr.len() < 500, "{} bytes are said", ran.stderr.len());
    let ran = once(&[], &["outcome", &"once1-0".repeat(1 << 10)]);
    assert_ended(&ran, 2, &["[HANDLE]", "(7168 bytes)", "handle"]);
    // What fits is shown whole.
    assert_ended(&once(&[], &["outcome", "once2-1234"]), 2, &["'once2-1234'"]);
}

/// Without a deadline a write waits for a node, on every step of the ladder, and says who is missing.
#[test]
fn waiting_is_told() {
    let node = nobody();
    let levels = ["best-effort", "at-most-once", "exactly-once"];
    let waiting = levels.map(|level| {
        command(&[], &["--nodes", &node, "--semantics", level, "incr", "n"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("once starts")
    });
    for (level, mut child) in levels.into_iter().zip(waiting) {
        let mut said = Vec::new();
        for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
            said.push(line.expect("it is text"));
            if said.len() == 2 {
                break;
            }
        }
        let running = child.try_wait().expect("a child can be asked for").is_none();
        child.kill().expect("it is a child");
        child.wait().expect("it ends");
        assert!(running, "{level}: {said:?}");
        assert!(said[0].contains("--deadline") && said[1].contains(&node), "{level}: {said:?}");
    }
}

/// The options that every command takes stand apart from a command's own.
#[test]
fn help_tells_options_apart() {
    let ran = once(&[("ONCE_NODES", "127.0.0.1:1")], &["scan", "--help"]);
    assert_ended(&ran, 0, &[]);
    let help = String::from_utf8_lossy(&ran.stdout);
    let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("no {text:?}: {help}"));
    assert!(at("Usage: once scan [OPTIONS] [START] [END]") < at("--prefix"), "{help}");
    assert!(at("--prefix") < at("Global options:"), "{help}");
    assert!(at("Global options:") < at("--nodes"), "{help}");
}

/// A node that cannot be reached, or never answers, leaves no doubt: nothing was sent.
#[test]
fn not_sent() {
    let mute = TcpListener::bind("127.0.0.1:0").expect("a port");
    for node in [nobody(), mute.local_addr().expect("bound").to_string()] {
        let ran = once(&[], &["--nodes", &node, "--deadline", "300ms", "incr", "n"]);
        assert_ended(&ran, 1, &["not sent", &node, "nothing was sent"]);
    }
}

/// A question without an answer is none that says no: 1 would mean "never ran" after `outcome`, and
/// "too late" after `cancel`.
#[test]
fn not_known() {
    let node = nobody();
    let questions: [&[&str]; 4] = [
        &["get", "k"],
        &["scan"],
        &["outcome", "--key", "order-1234"],
        &["cancel", "--key", "order-1234"],
    ];
    for question in questions {
        let arguments = [&["--nodes", &node, "--deadline", "100ms"], question].concat();
        assert_ended(&once(&[], &arguments), 3, &["no answer", &node]);
    }
}

/// An empty variable is one that is not set; a bad one is named.
#[test]
fn variables() {
    let (node, empty) = (nobody(), [("ONCE_NODES", ""), ("ONCE_AUTHORITY", "")]);
    let ran = once(&empty, &["--nodes", &node, "--deadline", "100ms", "get", "k"]);
    assert_ended(&ran, 3, &[&node]);
    // Whoever listens at the default address is not asked: another cluster is refused, if need be.
    let elsewhere = "0f".repeat(16);
    let ran = once(&empty, &["--cluster", &elsewhere, "--deadline", "100ms", "put", "k", "v"]);
    assert_ended(&ran, 1, &["127.0.0.1:7400"]);

    let ran = once(&[("ONCE_NODES", &node)], &["--deadline", "100ms", "get", "k"]);
    assert_ended(&ran, 3, &[&node]);
    let ran = once(&[("ONCE_NODES", "localhost")], &["get", "k"]);
    assert_ended(&ran, 2, &["ONCE_NODES: ", "localhost"]);
    let ran = once(&[("ONCE_AUTHORITY", "etcd://n:1")], &["get", "k"]);
    assert_ended(&ran, 2, &["ONCE_AUTHORITY: ", "etcd://n:1"]);
    let ran = once(&[("ONCE_NODES", "localhost")], &["--nodes", "n1", "get", "k"]);
    assert_ended(&ran, 2, &["--nodes: ", "n1"]);
}

/// A value that is too large is refused as soon as it is, whatever else would follow.
#[test]
fn a_value_over_the_limit() {
    let node = nobody();
    let mut running = command(&[], &["--nodes", &node, "put", "k", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("once starts");
    let mut input = running.stdin.take().expect("piped");
    // It may end before it has read all: then there is nobody to write to.
    let _ = input.write_all(&vec![b'v'; 3 << 20]);
    drop(input);
    let ran = running.wait_with_output().expect("once ends");
    assert_ended(&ran, 1, &["too-large", "over 1048576 bytes"]);
}
