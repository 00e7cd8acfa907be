//! Real `onced` processes: what they print, how they end, what they answer, what they survive.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::{Bytes, BytesMut};
use onlyonce_replica::{PeerHello, PeerMessage, Position};
use onlyonce_storage::{Index, View};
use onlyonce_wire::authority::Member;
use onlyonce_wire::client::{
    Answer, ClientFrame, Goodbye, Hello, Operation, Outcome, Read as ReadRequest, Request,
    ServerFrame, Write as WriteRequest,
};
use onlyonce_wire::codec::{decode, encode};
use onlyonce_wire::frame::{PREAMBLE_BYTES, Port, preamble, take_frame};
use onlyonce_wire::limits::{CLIENT_FRAME_BYTES_MAX, PEER_FRAME_BYTES_MAX, VALUE_BYTES_MAX};
use onlyonce_wire::{CallId, ClusterId, Incarnation, StoreId};
use rustix::process::Signal;
use tempfile::TempDir;

use common::{Connection, Process, fails, http, incr, onced, serving};

/// A lone node serves, keeps effects and duplicates over kill -9, and ends with 0 on SIGTERM.
#[test]
fn a_lone_node_lives_and_ends() {
    let folder = TempDir::new().expect("a folder");
    let node = Process::node(folder.path(), "n1", &[]);
    let store = node.at("store").to_owned();
    assert_eq!((node.at("name"), store.len()), ("n1", 32));
    node.wait_for("serving", serving);
    let mut client = Connection::client(node.at("client"));
    assert_eq!(client.execute("k", &incr()), (Outcome::Integer(1), false));
    assert_eq!(client.execute("k", &incr()), (Outcome::Integer(1), true));
    node.signal(Signal::KILL);
    assert_eq!(node.ended().code(), None);

    let node = Process::node(folder.path(), "n1", &[]);
    assert_eq!(node.at("store"), store);
    node.wait_for("serving", serving);
    let mut client = Connection::client(node.at("client"));
    assert_eq!(client.execute("k", &incr()), (Outcome::Integer(1), true));
    assert_eq!(client.execute("l", &incr()), (Outcome::Integer(2), false));
    node.signal(Signal::TERM);
    assert_eq!(client.receive(), Some(ServerFrame::Goodbye(Goodbye::ShuttingDown)));
    assert_eq!(client.receive(), None);
    drop(client);
    assert_eq!(node.ended().code(), Some(0));
}

/// Wrong usage ends with 2, what cannot start with 1, each with one line that names the mistake.
#[test]
fn refusals_to_start_are_precise() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let config = path("onced.toml");
    std::fs::write(&config, "name = 'n1'\nlease = 3\n").expect("written");
    let data = path("n1");
    let usage: &[(&[&str], &str)] = &[
        (&["serve", "--name", "n1"], "--data is needed"),
        (&["serve", "--data", &data, "--config", &config], "unknown field `lease`"),
        (
            &["serve", "--data", &data, "--name", "n1", "--authority", "etcd://h"],
            "etcd://HOST:PORT",
        ),
        (&["serve", "--data", &data, "--name", "n 1"], "no spaces"),
        (&["serve", "--nonsense"], "--nonsense"),
        (
            &["serve", "--data", &data, "--name", "n1", "--duplicates", "memory"],
            "run twice after a restart",
        ),
        (&["serve", "--data", &data, "--name", "n1", "--authority", "a=h:1"], "not HOST:PORT"),
        (&["authority"], "--data"),
        (&["authority", "--data", &data, "--listen", "foo"], "--listen \"foo\" is not HOST:PORT"),
    ];
    for (arguments, expected) in usage {
        let (code, text) = fails(&mut onced(arguments));
        assert!(code == 2 && text.contains(expected), "{arguments:?}: {code}, {text}");
    }
    let (code, text) =
        fails(onced(&["serve", "--data", &data, "--name", "n1"]).env("ONCED_GRACE_MS", "100"));
    assert!(code == 2 && text.contains("grace_ms = 100"), "{code}, {text}");

    let node = Process::node(folder.path(), "n1", &[]);
    let busy = node.at("client").to_owned();
    let (any, missing) = ("127.0.0.1:0", path("no/such"));
    let runtime: &[(&[&str], &str)] = &[
        (&["--data", &data, "--listen", any, "--peer", any], "in use by another process"),
        (&["--data", &path("n2"), "--listen", &busy, "--peer", any], "another process listens"),
        (&["--data", &missing, "--listen", any, "--peer", any], "make its parent folder first"),
        (&["--data", "/dev/null", "--listen", any, "--peer", any], "/dev/null"),
    ];
    for (arguments, expected) in runtime {
        let mut command = onced(&["serve", "--name", "n1", "--http", any]);
        let (code, text) = fails(command.args(*arguments));
        assert!(code == 1 && text.contains(expected), "{arguments:?}: {code}, {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let (code, text) = fails(&mut onced(&["authority", "--data", &data, "--listen", any]));
    assert!(code == 1 && text.contains("holds \"format\""), "{code}, {text}");

    let mut command = onced(&["serve", "--name", "n1", "--data", &data, "--listen", any]);
    let (_, text) = fails(command.args(["--peer", any, "--http", any]).env("ONCED_LEASE", "1"));
    assert!(text.contains("nothing reads ONCED_LEASE"), "{text}");
}

/// Settings are printed as they would be used, and nothing is made.
#[test]
fn print_config_shows_what_would_run() {
    let folder = TempDir::new().expect("a folder");
    let data = folder.path().join("n1");
    let data_text = data.to_str().expect("text");
    let output = onced(&["serve", "--data", data_text, "--name", "n1", "--print-config"])
        .env("ONCED_LEASE_MS", "333")
        .output()
        .expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && text.contains("lease_ms = 333"), "{text}");
    assert!(text.contains("listen = \"127.0.0.1:7400\"") && !data.exists(), "{text}");
}

/// Garbage on any port ends its own connection, with a reason, and nothing else.
#[test]
fn garbage_is_survived() {
    let folder = TempDir::new().expect("a folder");
    let node = Process::node(folder.path(), "n1", &[]);
    node.wait_for("serving", serving);
    let mut long = preamble(Port::Client).to_vec();
    long.extend_from_slice(&[0xff; 64]);
    let mut wrong = preamble(Port::Peer).to_vec();
    wrong.extend_from_slice(&[0; 64]);
    for garbage in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &long, &wrong, &[0xff; 4096], b"x"] {
        for port in ["client", "peer", "http"] {
            let mut stream = TcpStream::connect(node.at(port)).expect("connects");
            stream.write_all(garbage).expect("written");
            stream.shutdown(std::net::Shutdown::Write).expect("half closed");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("closed in order");
            if port == "client" {
                let mut frames = BytesMut::from(&answer[PREAMBLE_BYTES..]);
                let payload = take_frame(&mut frames, CLIENT_FRAME_BYTES_MAX).expect("a frame");
                let frame = decode::<ServerFrame, CLIENT_FRAME_BYTES_MAX>(&payload.expect("one"));
                let frame = frame.expect("a server frame");
                let told = matches!(&frame, ServerFrame::Goodbye(Goodbye::Protocol(_)));
                assert!(told, "{garbage:?}: {frame:?}");
            }
        }
    }
    let mut client = Connection::client(node.at("client"));
    client.send(&[0xee; 9]);
    let goodbye = client.receive();
    let told = matches!(&goodbye, Some(ServerFrame::Goodbye(Goodbye::Protocol(text)))
        if text.contains("ClientFrame"));
    assert!(told, "{goodbye:?}");
    assert!(serving(&node.status()));
}

/// A client of another cluster, or one that begins with a call, is told so.
#[test]
fn strangers_are_told_why() {
    let folder = TempDir::new().expect("a folder");
    let node = Process::node(folder.path(), "n1", &[]);
    node.wait_for("serving", serving);
    let other = encode(&ClientFrame::Hello(Hello { cluster: Some(ClusterId(1)) }));
    let goodbye = Connection::open(node.at("client"), Port::Client, &other).receive();
    let told =
        matches!(goodbye, Some(ServerFrame::Goodbye(Goodbye::OtherCluster { cluster: Some(_) })));
    assert!(told, "{goodbye:?}");
    let call = encode(&ClientFrame::Call { call: CallId(1), request: Request::Status });
    let goodbye = Connection::open(node.at("client"), Port::Client, &call).receive();
    assert!(matches!(goodbye, Some(ServerFrame::Goodbye(Goodbye::Protocol(_)))), "{goodbye:?}");
}

/// A client that reads nothing delays nobody else, and gets no more than fits its outbox.
#[test]
fn a_slow_reader_blocks_nobody() {
    let folder = TempDir::new().expect("a folder");
    let node = Process::node(folder.path(), "n1", &[]);
    node.wait_for("serving", serving);
    let mut client = Connection::client(node.at("client"));
    let (key, value) = (Bytes::from("big"), Bytes::from(vec![7; VALUE_BYTES_MAX]));
    let put = Operation::Write(WriteRequest::Put { key: key.clone(), value });
    assert_eq!(client.execute("big", &put), (Outcome::Done, false));
    let mut slow = Connection::client(node.at("client"));
    let reads = 200;
    for call in 0..reads {
        let request = Request::Read(ReadRequest::Get { key: key.clone() });
        slow.send(&encode(&ClientFrame::Call { call: CallId(call), request }));
    }
    for number in 0..50 {
        let (outcome, _) = client.execute(&format!("n{number}"), &incr());
        assert_eq!(outcome, Outcome::Integer(number + 1));
    }
    // Each of its calls is answered in the end, with the value or with the advice to ask again.
    let mut values = 0;
    for _ in 0..reads {
        match slow.receive() {
            Some(ServerFrame::Reply { answer: Answer::Read(Outcome::Value(Some(_))), .. }) => {
                values += 1;
            }
            Some(ServerFrame::Reply { answer: Answer::AskAgain, .. }) => {}
            other => panic!("not a reply: {other:?}"),
        }
    }
    assert!(values >= 16, "only {values} of {reads} reads were answered");
}

/// HTTP answers what it promises; faults are not there unless asked for.
#[test]
fn http_is_small() {
    let folder = TempDir::new().expect("a folder");
    let node = Process::node(folder.path(), "n1", &[]);
    node.wait_for("serving", serving);
    let address = node.at("http");
    assert_eq!(http(address, "GET", "/healthz"), (200, "ok\n".to_owned()));
    let (code, metrics) = http(address, "GET", "/metrics");
    assert!(code == 200 && metrics.contains("onlyonce_role{role=\"primary\"} 1"), "{metrics}");
    assert!(metrics.contains("# HELP onlyonce_view ") && metrics.contains("# TYPE onlyonce_view"));
    assert_eq!(http(address, "GET", "/").0, 404);
    for path in ["/status", "/metrics", "/healthz"] {
        assert_eq!(http(address, "POST", path).0, 405, "{path}");
        assert_eq!(http(address, "HEAD", path), (200, String::new()), "{path}");
    }
    assert_eq!(http(address, "POST", "/fault/partition?peer=n2&on=true").0, 404);
}

/// With an authority: a backup joins, takes over from a killed primary, and lets it come back.
#[test]
fn a_backup_takes_over() {
    let folder = TempDir::new().expect("a folder");
    let data = folder.path().join("authority");
    let data = data.to_str().expect("text");
    let authority = Process::start(&["authority", "--data", data, "--listen", "127.0.0.1:0"]);
    let address = authority.at("authority");
    let first = Process::node(folder.path(), "n1", &["--authority", address, "--bootstrap"]);
    first.wait_for("serving", serving);
    let second = Process::node(folder.path(), "n2", &["--authority", address]);
    second.wait_for("a backup", |status| status["role"] == "backup");
    first.wait_for("a primary with a backup", |status| status["backups"][0] == "n2");
    let mut client = Connection::client(first.at("client"));
    assert_eq!(client.execute("k", &incr()), (Outcome::Integer(1), false));

    first.signal(Signal::KILL);
    assert_eq!(first.ended().code(), None);
    second.wait_for("serving", serving);
    let mut client = Connection::client(second.at("client"));
    assert_eq!(client.execute("k", &incr()), (Outcome::Integer(1), true));
    assert_eq!(client.execute("l", &incr()), (Outcome::Integer(2), false));

    let first = Process::node(folder.path(), "n1", &["--authority", address]);
    first.wait_for("a backup again", |status| status["role"] == "backup");
    second.signal(Signal::TERM);
    assert_eq!(second.ended().code(), Some(0));
    first.wait_for("serving", serving);
    let mut client = Connection::client(first.at("client"));
    assert_eq!(client.execute("l", &incr()), (Outcome::Integer(2), true));
}

/// A partition on request cuts a backup off and, healed, lets it back; so does one from the
/// authority, which a running view does not need.
#[test]
fn partitions_can_be_asked_for() {
    let folder = TempDir::new().expect("a folder");
    let data = folder.path().join("authority");
    let data = data.to_str().expect("text");
    let authority = Process::start(&["authority", "--data", data, "--listen", "127.0.0.1:0"]);
    let address = authority.at("authority");
    let first = Process::node(folder.path(), "n1", &["--authority", address, "--bootstrap"]);
    first.wait_for("serving", serving);
    let second = Process::node(folder.path(), "n2", &["--authority", address]);
    first.wait_for("a primary with a backup", |status| status["backups"][0] == "n2");
    let cut = |node: &Process, peer: &str, on: bool| {
        let path = format!("/fault/partition?peer={peer}&on={on}");
        assert_eq!(http(node.at("http"), "POST", &path), (200, "ok\n".to_owned()));
    };
    // Without the authority the backup cannot take over while it hears nothing.
    cut(&second, "authority", true);
    cut(&first, "n2", true);
    first.wait_for("alone", |status| status["backups"][0].is_null());
    let mut client = Connection::client(first.at("client"));
    assert_eq!(client.execute("k", &incr()), (Outcome::Integer(1), false));
    cut(&first, "n2", false);
    cut(&second, "authority", false);
    first.wait_for("a primary with a backup", |status| status["backups"][0] == "n2");
    second.wait_for("a backup", |status| status["role"] == "backup");

    cut(&first, "authority", true);
    assert_eq!(client.execute("l", &incr()), (Outcome::Integer(2), false));
    let fault = |query: &str| http(first.at("http"), "POST", &format!("/fault/partition{query}"));
    assert_eq!(fault("?peer=n2").0, 400);
    assert_eq!(fault("?peer=n1&on=true").0, 404, "a node cannot be cut off from itself");
    let (code, text) = fault("?peer=nosuch&on=true");
    assert!(code == 200 && text.contains("no node \"nosuch\" is known"), "{text}");
    assert_eq!(http(first.at("http"), "GET", "/fault/partition").0, 405);
    cut(&first, "authority", false);
}

/// A peer of another cluster or incarnation gets a hello to compare with, and no further.
#[test]
fn strange_peers_are_disconnected() {
    let folder = TempDir::new().expect("a folder");
    let node = Process::node(folder.path(), "n1", &[]);
    node.wait_for("serving", serving);
    let cluster: ClusterId =
        node.status()["cluster"].as_str().expect("a cluster").parse().expect("an id");
    let member = Member {
        store: StoreId(5),
        name: "stranger".to_owned(),
        client_address: "127.0.0.1:1".to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
    };
    let myself = Member { store: node.at("store").parse().expect("an id"), ..member.clone() };
    for (cluster, incarnation, member) in [
        (ClusterId(3), Incarnation(1), member.clone()),
        (cluster, Incarnation(9), member),
        (cluster, Incarnation(1), myself),
    ] {
        let hello = PeerHello { cluster, incarnation, member };
        let mut connection = Connection::open(node.at("peer"), Port::Peer, &encode(&hello));
        let theirs = connection.payload().expect("its hello");
        let theirs = decode::<PeerHello, PEER_FRAME_BYTES_MAX>(&theirs).expect("a hello");
        assert_eq!(theirs.member.name, "n1");
        assert_eq!(connection.payload(), None, "closed after {hello:?}");
    }
    // One that belongs is heard; what it says makes no sense to a node alone, and harms nobody.
    let member = Member {
        store: StoreId(6),
        name: "friend".to_owned(),
        client_address: "127.0.0.1:1".to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
    };
    let hello = PeerHello { cluster, incarnation: Incarnation(1), member };
    let mut connection = Connection::open(node.at("peer"), Port::Peer, &encode(&hello));
    connection.payload().expect("its hello");
    let after = Position { view: View(1), index: Index(1) };
    connection.send(&encode(&PeerMessage::FetchTail { view: View(1), after }));
    let mut client = Connection::client(node.at("client"));
    assert_eq!(client.execute("k", &incr()), (Outcome::Integer(1), false));
}
