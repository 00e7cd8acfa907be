//! Duplicates, spoken by hand: a repeated request gets the first reply's very bytes, whatever
//! happened in between, and never runs again.

use std::net::SocketAddr;

use onlyonce_client::{Client, Txn};
use onlyonce_tests::client::runtime;
use onlyonce_tests::cluster::{BOUND, Environment};
use onlyonce_tests::raw::{self, ask, executed, get, incr, put};
use onlyonce_tests::{Cluster, Lone, RawConnection, RawSession};
use onlyonce_wire::client::{Answer, Execute, ExecuteId, Refusal, Request};
use onlyonce_wire::{IdempotencyKey, OpenedAt, Seq, Session, SessionId, codec};

/// Checkpoints all the time.
const EAGER_CHECKPOINTS: Environment =
    &[("ONCED_CHECKPOINT_BYTES", "65536"), ("ONCED_CHECKPOINT_INTERVAL_MS", "50")];

/// Some requests that were executed once, and what they were answered.
struct Executed {
    requests: Vec<(Request, bytes::Bytes)>,
}

impl Executed {
    /// Executes increments of `key`, one compare that fails, and one increment under a key: each
    /// leaves a reply that a second execution could not give.
    fn new(nodes: &[SocketAddr], key: &str) -> Self {
        let session = RawSession::open(nodes);
        let mut requests: Vec<_> = (1..=5).map(|seq| session.request(seq, 1, &incr(key))).collect();
        requests.push(keyed(&session, &format!("key of {key}"), key));
        let requests = requests.into_iter().map(|request| {
            let (reply, replayed) = executed(ask(nodes, &request));
            assert!(!replayed, "the first of its kind: {request:?}");
            (request, reply)
        });
        Self { requests: requests.collect() }
    }

    /// Sends every request again, and finds the first replies and nothing executed.
    #[track_caller]
    fn assert_replayed(&self, nodes: &[SocketAddr], key: &str, after: &str) {
        for (request, first) in &self.requests {
            let (reply, replayed) = executed(ask(nodes, request));
            assert_eq!(&reply, first, "after {after}: another reply to {request:?}");
            assert!(replayed, "after {after}: executed anew: {request:?}");
        }
        let value = get(nodes, key);
        assert_eq!(value.as_deref(), Some("6"), "after {after}: {key} was incremented again");
    }
}

fn keyed(session: &RawSession, name: &str, key: &str) -> Request {
    let id = ExecuteId::Key(IdempotencyKey::new(name.to_owned()).expect("a good key"));
    let operation = codec::encode(&incr(key)).into();
    Request::Execute(Execute { incarnation: session.incarnation, id, operation })
}

/// A lone node killed with -9 and restarted answers duplicates from its disk, byte for byte.
#[test]
fn replies_survive_a_restart() {
    let mut lone = Lone::start(&[]);
    let nodes = [lone.node.client_address()];
    let executed = Executed::new(&nodes, "n");
    executed.assert_replayed(&nodes, "n", "nothing");
    for life in 1..=3 {
        lone.node.kill();
        lone.node.start();
        executed.assert_replayed(&nodes, "n", &format!("kill {life}"));
    }
}

/// The backup answers duplicates of requests that only the dead primary executed.
#[test]
fn replies_survive_a_failover() {
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.sockets();
    let executed = Executed::new(&nodes, "n");
    let primary = cluster.wait_primary();
    cluster.nodes[primary].kill();
    executed.assert_replayed(&nodes, "n", "the failover");
    cluster.nodes[primary].start();
    let second = cluster.wait_whole();
    assert_ne!(second, primary, "the old primary comes back as a backup");
    cluster.nodes[second].kill();
    executed.assert_replayed(&nodes, "n", "the failover back");
}

/// Put 10, Put 20, then a late copy of Put 10 changes nothing: while its reply is kept it is
/// replayed, afterwards it is stale; before and after restart and failover.
#[test]
fn a_late_original_changes_nothing() {
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.sockets();
    let session = RawSession::open(&nodes);
    let ten = session.request(1, 1, &put("x", "10"));
    let twenty = session.request(2, 1, &put("x", "20"));
    let (first, _) = executed(ask(&nodes, &ten));
    executed(ask(&nodes, &twenty));
    let replays = |when: &str| {
        assert_eq!(executed(ask(&nodes, &ten)), (first.clone(), true), "{when}");
        assert_eq!(get(&nodes, "x").as_deref(), Some("20"), "{when}");
    };
    replays("at once");
    let primary = cluster.wait_primary();
    cluster.nodes[primary].kill();
    replays("after the failover");
    cluster.nodes[primary].start();
    cluster.wait_whole();

    // The client has seen both replies, and says so with its next request.
    executed(ask(&nodes, &session.request(3, 3, &put("y", "30"))));
    let stale = |when: &str| {
        for late in [&ten, &twenty] {
            let answer = ask(&nodes, late);
            let refused = matches!(&answer, Answer::Refused(Refusal::Stale { first_unacked })
                if *first_unacked == Seq(3));
            assert!(refused, "{when}: {answer:?}");
        }
        assert_eq!(get(&nodes, "x").as_deref(), Some("20"), "{when}");
    };
    stale("at once");
    let primary = cluster.wait_whole();
    cluster.nodes[primary].kill();
    stale("after the failover");
    cluster.nodes[primary].start();
    cluster.wait_whole();
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    stale("after both were killed");
}

/// Pitfalls 3 and 4: duplicate rows travel with their effects into checkpoints, through restarts and
/// failovers, and onto a node whose disk was emptied.
#[test]
fn duplicates_survive_checkpoint_restart_failover_and_catch_up() {
    let mut cluster = Cluster::start(2, EAGER_CHECKPOINTS);
    let nodes = cluster.sockets();
    let executed = Executed::new(&nodes, "n");
    for node in &cluster.nodes {
        let all = node.status().expect("it runs").prepared;
        node.wait_status("to fold everything into its tables", |status| status.applied >= all);
    }
    executed.assert_replayed(&nodes, "n", "the checkpoint");
    let primary = cluster.wait_whole();
    cluster.nodes[primary].kill();
    executed.assert_replayed(&nodes, "n", "the failover");
    cluster.nodes[primary].start();
    let survivor = cluster.wait_whole();

    let emptied = cluster.other(survivor);
    cluster.nodes[emptied].kill();
    cluster.nodes[emptied].empty_disk();
    cluster.nodes[emptied].start();
    cluster.wait_whole();
    cluster.nodes[survivor].kill();
    executed.assert_replayed(&nodes, "n", "the catch-up of an emptied node that leads now");
    cluster.nodes[emptied].kill();
    cluster.nodes[emptied].start();
    cluster.nodes[survivor].start();
    executed.assert_replayed(&nodes, "n", "the restart of both");
}

/// Pitfall 5: opening the same id again, also elsewhere and later, gives the same session.
#[test]
fn the_same_id_opens_the_same_session() {
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.sockets();
    let session = RawSession::open(&nodes);
    let again = || RawSession::open_id(&nodes, session.session.id).session;
    assert_eq!(again(), session.session);
    let first = executed(ask(&nodes, &session.request(1, 1, &incr("n")))).0;
    assert_eq!(again(), session.session, "with a request executed");
    let primary = cluster.wait_primary();
    cluster.nodes[primary].kill();
    assert_eq!(again(), session.session, "after the failover");
    let replay = executed(ask(&nodes, &session.request(1, 1, &incr("n"))));
    assert_eq!(replay, (first, true));
}

/// Pitfall 12: a request on an old connection races its retries on new ones; it executes once, and
/// everybody gets the one reply.
#[test]
fn copies_on_two_connections_execute_once() {
    let lone = Lone::start(&[]);
    let nodes = [lone.node.client_address()];
    let session = RawSession::open(&nodes);
    let mut connections: Vec<_> =
        (0..4).map(|_| RawConnection::open(nodes[0]).expect("it runs")).collect();
    for seq in 1..=100 {
        let request = session.request(seq, seq, &incr("n"));
        let sent: Vec<_> = connections
            .iter_mut()
            .map(|connection| connection.send(&request).expect("connected"))
            .collect();
        let answers: Vec<_> = connections
            .iter_mut()
            .zip(sent)
            .map(|(connection, call)| executed(connection.receive(call).expect("an answer")))
            .collect();
        let fresh = answers.iter().filter(|(_, replayed)| !replayed).count();
        assert_eq!(fresh, 1, "request {seq}: {answers:?}");
        assert!(answers.iter().all(|(reply, _)| *reply == answers[0].0), "{answers:?}");
    }
    assert_eq!(get(&nodes, "n").as_deref(), Some("100"));
}

/// Pitfall 17: ids that look almost alike are strangers to each other, and no id is refused.
#[test]
fn look_alike_ids_are_strangers() {
    let lone = Lone::start(&[]);
    let nodes = [lone.node.client_address()];
    let id: u128 = rand::random::<u128>() & !1;
    let one = RawSession::open_id(&nodes, SessionId(id));
    let two = RawSession::open_id(&nodes, SessionId(id | 1));
    for (session, key) in [(&one, "one"), (&two, "two")] {
        let (_, replayed) = executed(ask(&nodes, &session.request(1, 1, &incr(key))));
        assert!(!replayed, "{key} got a stranger's reply");
    }
    let opened_at = OpenedAt(one.session.opened_at.0 + 1);
    let other_life = RawSession { session: Session { opened_at, ..one.session }, ..one.clone() };
    let answer = ask(&nodes, &other_life.request(2, 1, &incr("one")));
    assert_eq!(answer, Answer::Refused(Refusal::SessionExpired), "another life of the session");

    for name in ["k", "K", "k ", " k", "k\0", "kk"] {
        let (_, replayed) = executed(ask(&nodes, &keyed(&one, name, "keyed")));
        assert!(!replayed, "{name:?} got a stranger's reply");
    }
    assert_eq!(get(&nodes, "keyed").as_deref(), Some("6"));

    // The constructor refuses an empty key; on the wire it is a key of no bytes.
    let mut empty = codec::encode(&keyed(&one, "k", "keyed"));
    let place = empty.windows(2).position(|pair| pair == [1, b'k']).expect("the key");
    empty.splice(place..place + 2, [0]);
    let empty: Request = codec::decode::<_, 1024>(&empty).expect("a request");
    let answer = ask(&nodes, &empty);
    let refused =
        matches!(&answer, Answer::Refused(Refusal::Invalid(text)) if text.contains("empty"));
    assert!(refused, "{answer:?}");
}

/// The same id with other content is refused, and neither content is executed by it.
#[test]
fn other_content_under_one_id_is_refused() {
    let mut lone = Lone::start(&[]);
    let nodes = [lone.node.client_address()];
    let session = RawSession::open(&nodes);
    executed(ask(&nodes, &session.request(1, 1, &put("x", "10"))));
    let other = session.request(1, 1, &put("x", "11"));
    assert_eq!(ask(&nodes, &other), Answer::Refused(Refusal::Mismatch));
    lone.node.kill();
    lone.node.start();
    assert_eq!(ask(&nodes, &other), Answer::Refused(Refusal::Mismatch), "after a restart");
    assert_eq!(get(&nodes, "x").as_deref(), Some("10"));
}

/// Pitfall 1: an expired session's requests are refused, never run as new ones.
#[test]
fn an_expired_session_is_refused() {
    let mut lone = Lone::start(&[("ONCED_SESSION_IDLE_MS", "300")]);
    let nodes = [lone.node.client_address()];
    let session = RawSession::open(&nodes);
    let request = session.request(1, 1, &incr("n"));
    executed(ask(&nodes, &request));
    // A view's beginning, the opening, the increment; the next entry is the expiry.
    lone.node.wait_status("to expire the session", |status| {
        status.committed >= 4 && status.sessions == 0
    });
    for when in ["at once", "after a restart"] {
        for seq in [1, 2] {
            let answer = ask(&nodes, &session.request(seq, 1, &incr("n")));
            assert_eq!(answer, Answer::Refused(Refusal::SessionExpired), "{when}, request {seq}");
        }
        lone.node.kill();
        lone.node.start();
    }
    assert_eq!(raw::get(&nodes, "n").as_deref(), Some("1"));
}

/// More replies at once than a session may keep: all requests get theirs, without a further one
/// that would tell the server what was seen.
#[test]
fn a_session_full_of_replies_empties_itself() {
    const VALUE_BYTES: usize = 1_000_000;
    const REQUESTS: usize = 24;
    let lone = Lone::start(&[]);
    runtime(1).block_on(async {
        let client = Client::builder().nodes(lone.addresses()).deadline(BOUND).build();
        let client = client.expect("a client");
        client.put("large", vec![7; VALUE_BYTES]).await.expect("a value within the limit");
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..REQUESTS {
            let client = client.clone();
            requests.spawn(async move { client.txn(Txn::new().get("large")).await });
        }
        for outcome in requests.join_all().await {
            outcome.expect("a saved reply that was seen makes room for the next");
        }
    });
}
