//! How the program ends, as scripts see it: exit codes, and which of them says what.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

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
    let keyed = ["--key", "order-1", "--semantics", "best-effort", "put", "k", "v"];
    assert_ended(&once(&[], &keyed), 2, &["--key is an id", "best-effort"]);
}

/// With `--json` what cannot be understood is said as JSON too, wherever it is found.
#[test]
fn usage_as_json() {
    let cases: [(&[&str], &str); 6] = [
        (&["--json", "frob"], "'frob'"),
        (&["get", "--json"], "<KEY>"),
        (&["--json", "session"], "a command is needed"),
        (&["--json", "outcome"], "a HANDLE or --key KEY is needed"),
        (&["--json", "--nodes", "localhost", "get", "k"], "--nodes"),
        (&["--json", "--key", "order-1", "get", "k"], "--key is for writes"),
    ];
    for (arguments, words) in cases {
        let ran = once(&[], arguments);
        assert_ended(&ran, 2, &[]);
        let said: Value = serde_json::from_slice(&ran.stdout).expect("a line of JSON");
        let message = said["message"].as_str().unwrap_or_default();
        assert!(said["error"] == "usage" && message.contains(words), "{arguments:?}: {said}");
        assert!(!message.contains("Usage:"), "{message}");
    }
    // What stands behind "--" is no option.
    let ran = once(&[], &["get", "--", "--json", "k"]);
    assert_ended(&ran, 2, &["unexpected argument 'k'"]);
    assert!(ran.stdout.is_empty());
}

/// A handle without the content cannot be resumed by `once`, and what is said does not send anybody there.
#[test]
fn what_cannot_be_resumed() {
    let long = "once1-00n0207vxqzfrrk00404thg1zv08wtb4akvpsz5vb5crmxs8vxyrw6mw8r";
    let ran = once(&[], &["--nodes", &nobody(), "resume", long]);
    assert_ended(
        &ran,
        3,
        &["has to be given again", "'once resume' cannot", "'once cancel HANDLE'"],
    );
    assert!(!String::from_utf8_lossy(&ran.stderr).contains("goes on"), "{ran:?}");
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

/// All commands, with those below others.
fn commands() -> Vec<Vec<String>> {
    let listed = |above: &[&str]| -> Vec<String> {
        let help = once(&[], &[above, &["--help"]].concat()).stdout;
        let help = String::from_utf8(help).expect("text");
        let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
        let lines = list.unwrap_or_default().lines().filter(|line| !line.starts_with("   "));
        lines.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    };
    let mut commands = vec![vec![]];
    for command in listed(&[]).into_iter().filter(|name| name != "help") {
        let below = listed(&[&command]).into_iter().filter(|name| name != "help");
        commands.extend(below.map(|below| vec![command.clone(), below]));
        commands.push(vec![command]);
    }
    commands
}

/// Help fits into terminals of usual widths, and no line of a paragraph is broken before it is full.
#[test]
fn help_is_wrapped_where_the_line_ends() {
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");
    for (command, columns) in commands.iter().flat_map(|it| [(it, 80), (it, 100)]) {
        let mut arguments: Vec<_> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let ran = once(&[("COLUMNS", &columns.to_string())], &arguments);
        let help = String::from_utf8(ran.stdout).expect("text");
        for (line, next) in help.lines().zip(help.lines().skip(1)) {
            assert!(line.chars().count() <= columns, "{command:?} at {columns}: {line:?}");
            let is_text = |line: &str| line.starts_with(|first: char| !first.is_whitespace());
            let word = next.split(' ').next().unwrap_or_default().chars().count();
            let is_full = line.chars().count() + 1 + word > columns;
            let goes_on = is_text(line) && is_text(next);
            assert!(!goes_on || is_full, "{command:?} at {columns}: {line:?}, then {next:?}");
        }
    }
}

/// `--key` is shown where it means something, and nowhere else.
#[test]
fn help_shows_the_key_where_it_counts() {
    for command in ["put", "append", "incr", "delete", "cas", "put-if-absent", "txn", "cancel"] {
        let help = once(&[], &[command, "--help"]).stdout;
        assert!(String::from_utf8_lossy(&help).contains("--key <KEY>"), "{command}");
    }
    let others: [&[&str]; 5] =
        [&["get"], &["scan"], &["resume"], &["session", "list"], &["backup"]];
    for command in others {
        let help = once(&[], &[command, &["--help"]].concat()).stdout;
        assert!(!String::from_utf8_lossy(&help).contains("--key <KEY>"), "{command:?}");
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
