//! A client with an outbox: killed at any moment and started again, it leaves no request half-done,
//! and does none twice.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use onlyonce_client::{BuildError, Client, Error, OutboxError, Unresolved};
use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::trace::attach;
use onlyonce_tests::wait::{moment, wait_for};
use onlyonce_tests::{Cluster, Lone, binaries, seed};
use rand::Rng;

const KILLS: usize = 100;

/// The client's process, whose lines go to the end of `said`.
fn command(nodes: &[String], outbox: &Path, said: &Path) -> Command {
    let mut command = Command::new(binaries::once_outbox_client());
    let said = OpenOptions::new().create(true).append(true).open(said).expect("a file");
    command.arg(nodes.join(",")).arg(outbox).stdin(Stdio::null()).stdout(said);
    command
}

/// Every token in the store, with its value, and the counter.
fn found(nodes: &[String]) -> (BTreeMap<String, String>, u64) {
    runtime(1).block_on(async {
        let client = client(nodes);
        let mut tokens = BTreeMap::new();
        let mut start = Some("token/".into());
        while let Some(from) = start {
            let rows = client.scan(from, Some("token0".into()), 10_000).await.expect("rows");
            for (key, value) in rows.rows {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
                tokens.insert(text(&key)["token/".len()..].to_owned(), text(&value));
            }
            start = rows.next;
        }
        let count = client.get("count").await.expect("read");
        let count = count.map_or(0, |it| String::from_utf8_lossy(&it).parse().expect("a number"));
        (tokens, count)
    })
}

/// How many requests the clients saw end.
struct Account {
    acknowledged: usize,
    recovered: usize,
}

impl Account {
    /// Checks that everything that was acknowledged, or found in the outbox, took effect once, and
    /// nothing twice.
    fn audit(nodes: &[String], said: &Path) -> Self {
        let said = fs::read_to_string(said).expect("text");
        let tokens_of = |what: &str| {
            let words = said.lines().filter_map(|line| line.split_once(' '));
            words.filter(|(verb, _)| *verb == what).map(|(_, token)| token).collect::<Vec<_>>()
        };
        let (asked, ok, recovered) = (tokens_of("asks"), tokens_of("ok"), tokens_of("recovered"));
        let (tokens, count) = found(nodes);
        let known = ok.iter().chain(&recovered);
        let lost = known.filter(|token| !tokens.contains_key(**token)).count();
        let doubled = tokens.values().filter(|value| *value != "x").count();
        let (acknowledged, recovered) = (ok.len(), recovered.len());
        println!(
            "asked {}, acknowledged {acknowledged}, recovered {recovered}, applied {}, lost {lost}, doubled {doubled}",
            asked.len(),
            tokens.len()
        );
        assert_eq!((lost, doubled), (0, 0));
        assert_eq!(count, tokens.len() as u64, "each is counted once");
        assert!(tokens.keys().all(|token| asked.contains(&token.as_str())), "of its own making");
        Self { acknowledged, recovered }
    }
}

/// A client is killed 100 times, and the primary of its cluster now and then: everything that was
/// acknowledged, or found in the outbox, took effect once, and nothing twice.
#[test]
fn a_client_is_killed_100_times() {
    let mut random = seed::rng("a_client_is_killed_100_times");
    let folder = tempfile::tempdir().expect("a folder");
    let (outbox, said) = (folder.path().join("outbox"), folder.path().join("said"));
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.addresses();
    for kill in 0..KILLS {
        let mut child = command(&nodes, &outbox, &said);
        let mut child = child.arg(kill.to_string()).spawn().expect("starts");
        let primary = (kill % 12 == 5).then(|| cluster.wait_primary());
        moment(Duration::from_millis(random.random_range(0..150)));
        if let Some(primary) = primary {
            cluster.nodes[primary].kill();
            moment(Duration::from_millis(random.random_range(0..1_000)));
            cluster.nodes[primary].start();
        }
        child.kill().expect("it runs");
        assert_eq!(child.wait().expect("it ended").code(), None, "it ended by itself");
    }
    let rest = command(&nodes, &outbox, &said).status().expect("runs");
    assert!(rest.success(), "{rest}");

    println!("{KILLS} kills of the client:");
    let account = Account::audit(&nodes, &said);
    assert!(
        account.acknowledged > KILLS && account.recovered > KILLS / 4,
        "the kills came too early or too late"
    );
}

/// The disk fails under the outbox: the client sends nothing more. The next one cannot know what of
/// it is on the disk; it writes and syncs that again before it sends anything.
#[test]
fn what_was_not_synced_is_not_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let [outbox, said, trace] = ["outbox", "said", "trace"].map(|name| folder.path().join(name));
    let lone = Lone::start(&[]);
    let nodes = lone.addresses();
    let path = outbox.to_str().expect("temporary folders have readable names");
    let progress = || fs::read_to_string(&said).expect("text").matches("ok ").count();
    for (call, error) in [("write", "ENOSPC"), ("fdatasync", "EIO")] {
        let mut child = command(&nodes, &outbox, &said).arg(call).spawn().expect("starts");
        let before = progress();
        wait_for("some requests", BOUND, || match progress() - before {
            few @ 0..100 => Err(few.to_string()),
            _ => Ok(()),
        });
        let (only, inject) =
            (format!("trace={call}"), format!("inject={call}:error={error}:when=1"));
        let arguments = ["-P", path, "-e", &only, "-e", &inject];
        let mut strace = attach(child.id(), &arguments, &trace);
        let status = child.wait().expect("it ended");
        assert_eq!(status.code(), Some(1), "{status}");
        strace.exit(BOUND);
        let injected = fs::read_to_string(&trace).expect("strace wrote it");
        assert!(injected.contains("(INJECTED)"), "{injected}");
    }

    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-e", "trace=write,fsync,connect", "-o"]).arg(&trace);
    let next = command(&nodes, &outbox, &said);
    let next = strace.arg(next.get_program()).args(next.get_args()).stdin(Stdio::null());
    let file = OpenOptions::new().append(true).open(&said).expect("a file");
    let status = next.stdout(file).status().expect("runs");
    assert!(status.success(), "{status}");
    let calls = fs::read_to_string(&trace).expect("strace wrote it");
    let place = |call: &str, path: &Path| {
        let opened = format!("<{}>", path.display());
        let place = calls.lines().position(|line| {
            line.contains(call) && line.contains(&opened) && !line.contains("= -1")
        });
        place.unwrap_or_else(|| panic!("no {call} of {opened} in {calls}"))
    };
    let sent = calls.lines().position(|line| line.contains("connect(")).expect("it connects");
    let (written, synced) = (place("write(", &outbox), place("fsync(", &outbox));
    assert!(written < synced && synced < sent, "{written}, {synced}, {sent} of {calls}");
    assert!(place("fsync(", folder.path()) < sent, "{calls}");
    let account = Account::audit(&nodes, &said);
    assert!(account.recovered > 0, "the failed frame was found");
}

fn with_outbox(nodes: &[String], outbox: &Path) -> Result<Client, BuildError> {
    let builder = Client::builder().nodes(nodes.iter().cloned()).outbox(outbox);
    builder.deadline(Duration::from_millis(300)).build()
}

/// Increments a counter at a node that is dead, or dies; the request stays in the outbox.
async fn left_behind(client: &Client, lone: &mut Lone) -> Unresolved {
    client.incr("n", 1).await.expect("counted");
    lone.node.daemon().pause();
    let error = client.incr("n", 1).await.expect_err("it is paused");
    lone.node.kill();
    match error {
        Error::Unresolved(unresolved) => unresolved,
        other => panic!("{other}"),
    }
}

/// What was given up at a deadline stays in the outbox, until its end is known.
#[test]
fn an_unresolved_request_is_recovered() {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = folder.path().join("outbox");
    let mut lone = Lone::start(&[]);
    let nodes = lone.addresses();
    runtime(1).block_on(async {
        let client = with_outbox(&nodes, &outbox).expect("opens");
        left_behind(&client, &mut lone).await;
        let [recovered] = &client.recover().await[..] else { panic!("one is left") };
        assert!(matches!(recovered.result, Err(Error::Unresolved(_))), "{recovered:?}");
        lone.node.start();
        let patient = || async {
            loop {
                let [recovered] = &client.recover().await[..] else { panic!("one is left") };
                match &recovered.result {
                    Ok(outcome) => return outcome.clone(),
                    Err(error) => assert!(matches!(error, Error::Unresolved(_)), "{error}"),
                }
            }
        };
        let outcome = patient().await;
        assert_eq!(outcome, onlyonce_client::Outcome::Integer(2));
        assert!(client.recover().await.is_empty());
        assert_eq!(client.get("n").await.expect("read").as_deref(), Some(&b"2"[..]));
    });
}

/// An outbox is for one cluster and one client at a time; what cannot be used is named, and left as
/// it is.
#[test]
fn a_wrong_outbox_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = folder.path().join("outbox");
    let (mut lone, other) = (Lone::start(&[]), Lone::start(&[]));
    let nodes = lone.addresses();
    let refused = |nodes: &[String]| match with_outbox(nodes, &outbox) {
        Err(BuildError::Outbox { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    runtime(1).block_on(async {
        let client = with_outbox(&nodes, &outbox).expect("opens");
        left_behind(&client, &mut lone).await;
        assert_eq!(refused(&nodes), OutboxError::InUse);
    });
    let before = fs::read(&outbox).expect("reads");
    runtime(1).block_on(async {
        let client = with_outbox(&other.addresses(), &outbox).expect("opens");
        let error = client.incr("n", 1).await.expect_err("another cluster");
        assert!(error.to_string().contains("this client to cluster"), "{error}");
        let [recovered] = &client.recover().await[..] else { panic!("one is left") };
        assert!(matches!(recovered.result, Err(Error::Unresolved(_))), "{recovered:?}");
        let none = Client::builder().nodes(other.addresses()).build().expect("an address");
        assert_eq!(none.get("n").await.expect("read"), None, "nothing was sent there");
    });
    assert_eq!(fs::read(&outbox).expect("reads"), before);
    fs::write(&outbox, b"a letter to a friend").expect("writes");
    assert_eq!(refused(&nodes), OutboxError::NotAnOutbox);
    fs::write(&outbox, &before).expect("writes");
    lone.node.start();
    runtime(1).block_on(async {
        let client = Client::builder().nodes(nodes).outbox(&outbox).build().expect("opens");
        let [recovered] = &client.recover().await[..] else { panic!("one is left") };
        assert!(recovered.result.is_ok(), "{recovered:?}");
        assert_eq!(client.get("n").await.expect("read").as_deref(), Some(&b"2"[..]));
    });
}
