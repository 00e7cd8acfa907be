//! Mistakes of users, and bytes of strangers: each gets an error that names what is wrong and what to
//! do, and the server stays up.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use onlyonce_client::{Client, Error, Refusal};
use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::{self, BOUND};
use onlyonce_tests::process::{Ran, run};
use onlyonce_tests::raw::{self, ask, executed, put};
use onlyonce_tests::{
    Cluster, Exit, Lone, Node, RawConnection, RawSession, Status, binaries, seed,
};
use onlyonce_wire::client::{Answer, ClientFrame, Goodbye, Hello, Part, Request};
use onlyonce_wire::frame::{Port, preamble, put_frame};
use onlyonce_wire::limits::{
    CLIENT_FRAME_BYTES_MAX, KEY_BYTES_MAX, PEER_FRAME_BYTES_MAX, VALUE_BYTES_MAX,
};
use onlyonce_wire::{ClusterId, codec};
use rand::{Rng, RngCore};

/// Runs a program with arguments to its end.
fn program(path: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(path);
    command.args(arguments);
    run(command, BOUND)
}

fn block_on<F: Future>(future: F) -> F::Output {
    runtime(2).block_on(future)
}

/// Checks that a node still does its work.
#[track_caller]
fn assert_works(addresses: &[String]) {
    let client = Client::builder()
        .nodes(addresses.iter().cloned())
        .deadline(BOUND)
        .build()
        .expect("addresses");
    block_on(async {
        client.put("still", "there").await.expect("it serves");
        assert_eq!(client.get("still").await.expect("it serves").as_deref(), Some(&b"there"[..]));
    });
}

/// Unknown flags, commands and values end both programs with 2 and are named.
#[test]
fn wrong_usage_is_named() {
    let (once, onced) = (binaries::once(), binaries::onced());
    let cases: [(&Path, &[&str], &[&str]); 12] = [
        (&onced, &["serve", "--bogus"], &["--bogus", "Usage"]),
        (&onced, &["authority", "--bogus"], &["--bogus", "Usage"]),
        (&onced, &["frobnicate"], &["frobnicate", "Usage"]),
        (&onced, &["serve"], &["--data", "ONCED_DATA"]),
        (
            &onced,
            &["serve", "--data", "/d", "--name", "n", "--listen", "80"],
            &["--listen", "HOST:PORT"],
        ),
        (
            &onced,
            &["serve", "--data", "/d", "--name", "n", "--bootstrap"],
            &["--bootstrap", "--authority"],
        ),
        (
            &onced,
            &["serve", "--data", "/d", "--name", "n", "--authority", "etcd://127.0.0.1"],
            &["--authority", "etcd://HOST:PORT"],
        ),
        (&once, &["--bogus", "get", "k"], &["--bogus", "Usage"]),
        (&once, &["frobnicate"], &["frobnicate", "Usage"]),
        (&once, &["get"], &["<KEY>", "Usage"]),
        (&once, &["--nodes", "nowhere", "get", "k"], &["nowhere", "HOST:PORT"]),
        (&once, &["incr", "k", "many"], &["many"]),
    ];
    for (program_path, arguments, wanted) in cases {
        let ran = program(program_path, arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
        assert_eq!(ran.stdout, "", "{arguments:?}: errors belong on standard error");
        for word in wanted {
            assert!(ran.stderr.contains(word), "{arguments:?} should name {word:?}: {ran:?}");
        }
    }
}

/// With a deadline, unreachable nodes are an error that names them and says that nothing was sent.
#[test]
fn unreachable_nodes_are_named() {
    let mut lone = Lone::start(&[]);
    let address = lone.addresses()[0].clone();
    lone.node.kill();
    let ran =
        program(&binaries::once(), &["--nodes", &address, "--deadline", "500ms", "put", "k", "v"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for word in [&address[..], "500ms", "refused", "nothing was sent"] {
        assert!(ran.stderr.contains(word), "it should name {word:?}: {ran:?}");
    }
    let ran = program(&binaries::once(), &["--nodes", &address, "--deadline", "500ms", "get", "k"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stderr.contains(&address), "{ran:?}");

    // A node that takes the request and stands still: whether it ran is not known.
    lone.node.start();
    lone.node.wait_status("to serve", Status::serves);
    lone.node.daemon().pause();
    let ran = program(&binaries::once(), &["--nodes", &address, "--deadline", "500ms", "get", "k"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stderr.contains(&address), "{ran:?}");
    lone.node.daemon().resume();
    assert_works(&lone.addresses());
}

/// An answer that cannot be printed is no "it did not take effect": it did.
#[test]
fn a_full_output_is_told() {
    let lone = Lone::start(&[]);
    let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = Command::new(binaries::once());
    command.args(["--nodes", &lone.addresses()[0], "incr", "n"]).stdout(full);
    let ran = command.stderr(Stdio::piped()).output().expect("once starts");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(3), "{said}");
    assert!(said.contains("the answer came, but standard output"), "{said}");
    let count = program(&binaries::once(), &["--nodes", &lone.addresses()[0], "get", "n"]);
    assert_eq!(count.stdout, "1", "{count:?}");
}

/// A request that a node took before it stood still is unresolved: exit code 3, and a handle.
#[test]
fn an_unresolved_request_is_not_called_failed() {
    let mut cluster = Cluster::start(2, &[]);
    // Without its backup the primary cannot commit; without the authority it cannot go on alone.
    let primary = cluster.wait_whole();
    let backup = cluster.other(primary);
    cluster.kill_authority();
    cluster.nodes[backup].daemon().pause();
    let address = cluster.nodes[primary].client_address().to_string();
    let ran = program(&binaries::once(), &["--nodes", &address, "--deadline", "1s", "incr", "n"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stderr.contains("may or may not"), "{ran:?}");
    assert!((ran.stdout + &ran.stderr).contains("once1-"), "its handle should be printed");
    cluster.nodes[backup].daemon().resume();
    cluster.restart_authority();
    cluster.wait_whole();
    assert_works(&cluster.addresses());
}

/// Keys and values beyond their limits are refused with their size and the limit, by the client
/// library and by the node; a frame beyond its limit ends the connection with a reason.
#[test]
fn too_large_is_refused_with_the_limit() {
    let lone = Lone::start(&[]);
    let nodes = [lone.node.client_address()];
    let (long_key, long_value) = ("k".repeat(KEY_BYTES_MAX + 1), "v".repeat(VALUE_BYTES_MAX + 1));
    let client = client(&lone.addresses());
    let session = RawSession::open(&nodes);
    let cases = [
        (&*long_key, "v", Part::Key, KEY_BYTES_MAX),
        ("k", &*long_value, Part::Value, VALUE_BYTES_MAX),
    ];
    for (seq, (key, value, part, most)) in (1..).zip(cases) {
        let wanted = Refusal::TooLarge { what: part, size: most as u64 + 1, limit: most as u64 };
        let error = block_on(client.put(key.to_owned(), value.to_owned())).expect_err("too large");
        let refused = matches!(&error, Error::Refused(refusal) if *refusal == wanted);
        assert!(refused, "{error:?}");
        let answer = ask(&nodes, &session.request(seq, 1, &put(key, value)));
        assert_eq!(answer, Answer::Refused(wanted));
    }
    // The longest that is allowed goes through.
    let key = "k".repeat(KEY_BYTES_MAX);
    let value = "v".repeat(VALUE_BYTES_MAX);
    executed(ask(&nodes, &session.request(3, 1, &put(&key, &value))));
    assert!(raw::get(&nodes, &key).is_some_and(|found| found == value), "it comes back whole");

    let mut bytes = hello();
    bytes.extend_from_slice(&((CLIENT_FRAME_BYTES_MAX as u32) + 1).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let text = protocol_goodbye(nodes[0], &bytes);
    for word in [(CLIENT_FRAME_BYTES_MAX + 1).to_string(), CLIENT_FRAME_BYTES_MAX.to_string()] {
        assert!(text.contains(&word), "it should name {word}: {text}");
    }
    assert_works(&lone.addresses());
}

/// A preamble and a hello.
fn hello() -> Vec<u8> {
    let mut bytes = BytesMut::from(&preamble(Port::Client)[..]);
    put_frame(&mut bytes, &codec::encode(&ClientFrame::Hello(Hello { cluster: None })));
    bytes.to_vec()
}

/// Sends bytes to a client port, and returns the text of the protocol error that it says goodbye with.
#[track_caller]
fn protocol_goodbye(address: SocketAddr, bytes: &[u8]) -> String {
    let answer = raw::send_bytes(address, bytes).expect("an answer");
    match raw::goodbye(&answer) {
        Some(Goodbye::Protocol(text)) => text,
        other => panic!("no protocol error, but {other:?} in {answer:?}"),
    }
}

/// A node says why it does not understand: another version, another protocol, the wrong port,
/// damaged or meaningless frames.
#[test]
fn misunderstandings_on_the_client_port_are_named() {
    let lone = Lone::start(&[]);
    let address = lone.node.client_address();
    let mut newer = preamble(Port::Client);
    newer[8] = 99;
    let text = protocol_goodbye(address, &newer);
    assert!(text.contains("99") && text.contains("same release"), "{text}");

    let text = protocol_goodbye(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(text.contains("GET / HT") && text.contains("port"), "{text}");

    let text = protocol_goodbye(address, &preamble(Port::Peer));
    assert!(text.contains("--listen") && text.contains("--peer"), "{text}");

    let mut damaged = hello();
    damaged.extend_from_slice(&[3, 0, 0, 0, 9, 9, 9, 9, 1, 2, 3]);
    let text = protocol_goodbye(address, &damaged);
    assert!(text.contains("damaged"), "{text}");

    let mut meaningless = BytesMut::from(&hello()[..]);
    put_frame(&mut meaningless, &[0xff; 30]);
    let text = protocol_goodbye(address, &meaningless);
    assert!(text.contains("ClientFrame"), "{text}");

    let mut rude = BytesMut::from(&preamble(Port::Client)[..]);
    let call = ClientFrame::Call { call: onlyonce_wire::CallId(1), request: Request::Status };
    put_frame(&mut rude, &codec::encode(&call));
    let text = protocol_goodbye(address, &rude);
    assert!(text.contains("hello"), "{text}");
    assert_works(&lone.addresses());
}

/// A stream of bytes that looks more and more like the real thing.
fn garbage(random: &mut impl RngCore, port: Port, limit: usize, round: usize) -> Vec<u8> {
    let mut noise = vec![0; random.random_range(0..3_000)];
    random.fill_bytes(&mut noise);
    let mut bytes = BytesMut::new();
    if !round.is_multiple_of(4) {
        bytes.extend_from_slice(&preamble(port));
    }
    match round % 4 {
        2 => put_frame(&mut bytes, &noise),
        3 => {
            bytes.extend_from_slice(&(limit as u32 + 1).to_le_bytes());
            bytes.extend_from_slice(&noise);
        }
        _ => bytes.extend_from_slice(&noise),
    }
    bytes.to_vec()
}

/// Garbage on every port of a cluster under it: connections end, processes do not.
#[test]
fn garbage_on_every_port_is_survived() {
    let mut cluster = Cluster::start(2, &[]);
    let mut random = seed::rng("garbage_on_every_port_is_survived");
    let mut ports = vec![(cluster.authority_address(), Port::Authority, 16 << 10)];
    for node in &cluster.nodes {
        ports.push((node.client_address(), Port::Client, CLIENT_FRAME_BYTES_MAX));
        ports.push((node.peer_address(), Port::Peer, PEER_FRAME_BYTES_MAX));
        ports.push((node.http_address(), Port::Client, CLIENT_FRAME_BYTES_MAX));
    }
    for round in 0..24 {
        for &(address, port, limit) in &ports {
            let bytes = garbage(&mut random, port, limit, round);
            // Some answer, some only close; a reset is as good.
            let _ = raw::send_bytes(address, &bytes);
        }
    }
    let primary = cluster.wait_whole();
    assert_eq!(cluster.nodes[primary].status().expect("it runs").view, 2, "nobody was replaced");
    assert_works(&cluster.addresses());
    for node in &mut cluster.nodes {
        assert!(node.try_exit().is_none(), "{} ended", node.name());
    }
    let authority = cluster.authority.as_mut().expect("it was started");
    assert!(authority.try_exit().is_none(), "the authority ended");
    // And its register can still be changed.
    cluster.nodes[primary].kill();
    assert_works(&cluster.addresses());
}

/// A client of one cluster is turned away by another, with both ids; so is a node.
#[test]
fn the_wrong_cluster_is_named() {
    let mut one = Cluster::start(1, &[]);
    let two = Cluster::start(1, &[]);
    let address = one.nodes[0].client_address();
    let mine = one.nodes[0].status().expect("it runs").cluster.expect("it has one");
    let theirs = two.nodes[0].status().expect("it runs").cluster.expect("it has one");
    let wanted: ClusterId = theirs.parse().expect("an id");

    let refused = RawConnection::open_for(address, Some(wanted)).err().expect("another cluster");
    assert!(refused.contains("OtherCluster") && refused.contains(&mine), "{refused}");
    let client =
        Client::builder().nodes([address.to_string()]).cluster(wanted).build().expect("address");
    let error = block_on(client.put("k", "v")).expect_err("another cluster");
    let text = error.to_string();
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");
    assert!(text.contains(&mine) && text.contains(&theirs), "{text}");
    assert_works(&one.addresses());

    one.nodes[0].kill();
    let authority = two.authority_address().to_string();
    let data = one.nodes[0].data().to_owned();
    let mut stray = Node::new("n1", &data, &["--authority", &authority], &[]);
    let exit = stops(&mut stray);
    assert_eq!(exit.status.code(), Some(1), "{exit:?}");
    for id in [&mine, &theirs] {
        assert!(exit.stderr.contains(id.as_str()), "it should name {id}: {}", exit.stderr);
    }
    one.nodes[0].start();
    assert_works(&one.addresses());
    assert_works(&two.addresses());
}

/// Starts a node that must stop by itself.
#[track_caller]
fn stops(node: &mut Node) -> Exit {
    node.try_start().err().unwrap_or_else(|| node.exit())
}

/// A store of a lone node is not taken into a cluster by accident, nor one of a cluster out of it.
#[test]
fn the_wrong_mode_is_named() {
    let cluster = Cluster::start(1, &[]);
    let authority = cluster.authority_address().to_string();
    let mut lone = Lone::start(&[]);
    assert_works(&lone.addresses());
    lone.node.kill();
    let mut stray = Node::new("n1", lone.node.data(), &["--authority", &authority], &[]);
    let exit = stops(&mut stray);
    assert!(exit.status.code() == Some(1) && exit.stderr.contains("authority"), "{exit:?}");
    lone.node.start();
    assert_works(&lone.addresses());

    let mut cluster = cluster;
    cluster.nodes[0].kill();
    let mut stray = Node::new("n1", cluster.nodes[0].data(), &[], &[]);
    let exit = stops(&mut stray);
    assert!(exit.status.code() == Some(1) && exit.stderr.contains("--authority"), "{exit:?}");
    cluster.nodes[0].start();
    assert_works(&cluster.addresses());
}

/// A data folder that another process has open is refused and named; the first process goes on.
#[test]
fn a_folder_in_use_is_named() {
    let lone = Lone::start(&[]);
    let data = lone.node.data().to_owned();
    let exit = stops(&mut Node::new("n2", &data, &[], &[]));
    assert_eq!(exit.status.code(), Some(1), "{exit:?}");
    for word in [data.to_str().expect("readable"), "in use by another process"] {
        assert!(exit.stderr.contains(word), "it should name {word}: {}", exit.stderr);
    }
    assert_works(&lone.addresses());
}

/// A folder of something else, of another version, or without a parent is refused, named, and left
/// as it was.
#[test]
fn a_folder_of_another_format_is_named() {
    let folder = cluster::folder();
    let foreign = folder.path().join("photos");
    fs::create_dir(&foreign).expect("made");
    fs::write(foreign.join("holiday.jpg"), "a picture").expect("written");
    let exit = stops(&mut Node::new("n1", &foreign, &[], &[]));
    assert_eq!(exit.status.code(), Some(1), "{exit:?}");
    for word in ["photos", "holiday.jpg", "choose an empty or a new folder"] {
        assert!(exit.stderr.contains(word), "it should name {word}: {}", exit.stderr);
    }
    let names: Vec<_> = fs::read_dir(&foreign).expect("there").flatten().collect();
    assert_eq!(names.len(), 1, "nothing was added: {names:?}");

    let mut lone = Lone::start(&[]);
    lone.node.kill();
    let format = lone.node.data().join("format");
    let text = fs::read_to_string(&format).expect("a format");
    let newer = text.replacen('1', "999", 1);
    assert_ne!(newer, text, "the format names its version");
    fs::write(&format, newer).expect("written");
    let exit = stops(&mut Node::new("n1", lone.node.data(), &[], &[]));
    assert_eq!(exit.status.code(), Some(1), "{exit:?}");
    for word in ["format", "999", "release"] {
        assert!(exit.stderr.contains(word), "it should name {word}: {}", exit.stderr);
    }
    fs::write(&format, text).expect("written");
    lone.node.start();
    assert_works(&lone.addresses());

    let nowhere = folder.path().join("no/such/parent");
    let exit = stops(&mut Node::new("n1", &nowhere, &[], &[]));
    assert_eq!(exit.status.code(), Some(1), "{exit:?}");
    assert!(exit.stderr.contains("no/such"), "{}", exit.stderr);
}

/// An address that is taken is named, and the store is left closed.
#[test]
fn a_taken_address_is_named() {
    let lone = Lone::start(&[]);
    let taken = lone.node.client_address().to_string();
    let folder = cluster::folder();
    let data = folder.path().join("n2").display().to_string();
    let arguments = ["serve", "--data", &data, "--name", "n2", "--peer", "127.0.0.1:0"];
    let ran = program(
        &binaries::onced(),
        &[&arguments[..], &["--http", "127.0.0.1:0", "--listen", &taken]].concat(),
    );
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains(&taken) && ran.stderr.contains("--listen"), "{ran:?}");
    assert_works(&lone.addresses());
}

/// SIGTERM ends a node with 0, and everything is there afterwards.
#[test]
fn sigterm_is_an_orderly_end() {
    let mut lone = Lone::start(&[]);
    assert_works(&lone.addresses());
    let exit = lone.node.terminate();
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
    lone.node.start();
    let nodes = [lone.node.client_address()];
    assert_eq!(raw::get(&nodes, "still").as_deref(), Some("there"));
    let exit = lone.node.daemon().terminate(Duration::from_secs(20));
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
}
