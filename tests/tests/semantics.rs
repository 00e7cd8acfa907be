//! The ladder of semantics, step by step, over a network that really fails: see `docs/semantics.md`,
//! which names the test of each of its questions. Run one with `--nocapture` to read what happens.

use std::net::SocketAddr;

use onlyonce_client::{Client, ClientBuilder, Error, Semantics, Unresolved};
use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::process::run;
use onlyonce_tests::raw::{ask, executed, get, incr, put};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{
    Cluster, Lone, Network, Node, Place, RawConnection, RawSession, Traffic, once,
};
use onlyonce_wire::client::{
    Answer, Fate, Question, Refusal, Request, SessionDetail, SessionStatus,
};
use onlyonce_wire::{Seq, SessionId};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// The two ways by which clients reach the one node. The first is the one that fails first.
const WAYS: [Place; 2] = [Place::Node(0), Place::Node(1)];

/// A node alone, two ways to it, and a client that knows both.
struct Scene {
    lone: Lone,
    network: Network,
    client: Client,
    /// Where the client is now.
    way: usize,
    runtime: Runtime,
}

impl Scene {
    fn new(semantics: Semantics) -> Self {
        Self::with(&[], |node| node.semantics(semantics))
    }

    fn with(arguments: &[&str], shape: impl Fn(ClientBuilder) -> ClientBuilder) -> Self {
        let lone = Lone::start_with(arguments, &[]);
        let network = Network::new();
        let node = lone.node.client_address();
        let ways = WAYS.map(|way| network.proxy(Place::Clients, way, node));
        let builder = Client::builder().nodes(ways.map(|way| way.to_string()));
        let client = shape(builder).build().expect("two addresses");
        let scene = Self { lone, network, client, way: 0, runtime: runtime(2) };
        scene.warm_up();
        scene
    }

    /// What is sent next is the request itself: the client is connected and has a session.
    fn warm_up(&self) {
        self.runtime.block_on(self.client.put("warm", "up")).expect("the network is whole");
    }

    fn nodes(&self) -> [SocketAddr; 1] {
        [self.lone.node.client_address()]
    }

    fn get(&self, key: &str) -> Option<String> {
        get(&self.nodes(), key)
    }

    fn put(&self, key: &'static str, value: &'static str) -> Result<(), Error> {
        self.runtime.block_on(self.client.put(key, value))
    }

    fn begin_incr(&self, key: &'static str) -> JoinHandle<Result<i64, Error>> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.incr(key, 1).await })
    }

    fn end<T>(&self, call: JoinHandle<T>) -> T {
        self.runtime.block_on(call).expect("no panic")
    }

    /// How many requests the node has answered.
    fn answered(&self) -> f64 {
        count(&self.lone.node, "onlyonce_replies_total")
    }

    /// Waits until the node has answered something since.
    #[track_caller]
    fn wait_answered(&self, since: f64) {
        wait_for("the node to answer", BOUND, || match self.answered() {
            now if now > since => Ok(()),
            now => Err(format!("{now} answers")),
        });
    }

    /// Mends the network: what waited on the way arrives now. Waits until the node has answered it.
    fn late_ones_arrive(&self) {
        let before = self.answered();
        self.network.mend();
        self.wait_answered(before);
    }

    /// The client's only session, as the node knows it.
    fn session(&self) -> SessionDetail {
        let list = Request::Sessions { after: None, limit: 10 };
        let sessions = match ask(&self.nodes(), &list) {
            Answer::Sessions { sessions, more: false } => sessions,
            other => panic!("{other:?}"),
        };
        let [SessionStatus { session, .. }] = sessions[..] else { panic!("{sessions:?}") };
        session_of(&self.nodes(), session.id)
    }

    /// Increments `n` while the way that the client is on fails so, and what the client is told.
    fn incr_over(&mut self, fault: Fault) -> Result<i64, Error> {
        self.warm_up();
        let way = WAYS[self.way];
        let call = match fault {
            Fault::RequestLost => {
                self.network.set(Place::Clients, way, Traffic::Vanishes);
                self.begin_incr("n")
            }
            Fault::ReplyLost => {
                self.network.set(way, Place::Clients, Traffic::Vanishes);
                self.begin_incr("n")
            }
            Fault::CutBeforeReply => {
                self.network.set(way, Place::Clients, Traffic::Waits);
                let before = self.answered();
                let call = self.begin_incr("n");
                self.wait_answered(before);
                self.network.reset(Place::Clients, way);
                call
            }
        };
        let told = self.end(call);
        self.network.mend();
        self.way = 1 - self.way;
        told
    }
}

fn count(node: &Node, name: &str) -> f64 {
    node.metric(name).expect("it counts")
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    RequestLost,
    ReplyLost,
    CutBeforeReply,
}

const FAULTS: [Fault; 3] = [Fault::RequestLost, Fault::ReplyLost, Fault::CutBeforeReply];

fn session_of(nodes: &[SocketAddr], id: SessionId) -> SessionDetail {
    match ask(nodes, &Request::Session(id)) {
        Answer::Session(Some(detail)) => detail,
        other => panic!("{other:?}"),
    }
}

fn seqs(detail: &SessionDetail) -> Vec<u64> {
    detail.saved.iter().map(|saved| saved.seq.0).collect()
}

#[track_caller]
fn unresolved<T: std::fmt::Debug>(told: Result<T, Error>) -> Unresolved {
    match told {
        Err(Error::Unresolved(unresolved)) => unresolved,
        other => panic!("{other:?}"),
    }
}

/// Put("k", 10) is delayed past its retry, and arrives after Put("k", 20). Best effort runs it again.
#[test]
fn a_late_original_under_best_effort() {
    let scene = Scene::new(Semantics::BestEffort);
    scene.network.set(Place::Clients, WAYS[0], Traffic::Waits);
    scene.put("k", "10").expect("the retry went the other way");
    scene.put("k", "20").expect("a reply");
    assert_eq!(scene.get("k").as_deref(), Some("20"));
    scene.late_ones_arrive();
    assert_eq!(scene.get("k").as_deref(), Some("10"), "the anomaly did not show");
    println!("best effort: Put 10, Put 20, then the late original: k = 10");
}

/// The same under exactly once: the late original is known, and changes nothing.
#[test]
fn a_late_original_under_exactly_once() {
    let scene = Scene::new(Semantics::ExactlyOnce);
    scene.network.set(Place::Clients, WAYS[0], Traffic::Waits);
    scene.put("k", "10").expect("the retry went the other way");
    scene.put("k", "20").expect("a reply");
    scene.late_ones_arrive();
    assert_eq!(scene.get("k").as_deref(), Some("20"));
    println!("exactly once: Put 10, Put 20, then the late original: k = 20");
}

/// At most once does not retry: Put("k", 10) is unresolved. The client that wants to go on sees to it
/// first that it never runs; the late original then does not.
#[test]
fn a_late_original_under_at_most_once() {
    let scene = Scene::new(Semantics::AtMostOnce);
    scene.network.set(Place::Clients, WAYS[0], Traffic::Waits);
    let unresolved = unresolved(scene.put("k", "10"));
    let handle = unresolved.handle();
    let cancel = Request::Cancel(Question {
        incarnation: handle.incarnation(),
        id: handle.id().clone(),
        first_unacked: Seq(1),
        fingerprint: Some(handle.fingerprint()),
    });
    let answer = ask(&scene.nodes(), &cancel);
    assert!(matches!(answer, Answer::Fate { fate: Fate::Cancelled, .. }), "{answer:?}");
    scene.put("k", "20").expect("a reply");
    scene.late_ones_arrive();
    assert_eq!(scene.get("k").as_deref(), Some("20"));
    println!(
        "at most once: Put 10 unresolved and cancelled, Put 20, then the late original: k = 20"
    );
}

/// At most once says nothing about when. Whoever goes on without asking what became of an unresolved
/// request may meet it later.
#[test]
fn an_unresolved_request_may_run_later() {
    let scene = Scene::new(Semantics::AtMostOnce);
    scene.network.set(Place::Clients, WAYS[0], Traffic::Waits);
    unresolved(scene.put("k", "10"));
    scene.put("k", "20").expect("a reply");
    scene.late_ones_arrive();
    assert_eq!(scene.get("k").as_deref(), Some("10"));
}

/// Three increments, over a lost request, a lost reply and a cut connection: best effort counts those
/// twice that had run, and says that all is well.
#[test]
fn best_effort_counts_twice() {
    let mut scene = Scene::new(Semantics::BestEffort);
    let told: Vec<_> = FAULTS.map(|fault| scene.incr_over(fault).expect("a reply")).to_vec();
    assert_eq!(told, [1, 3, 5]);
    assert_eq!(scene.get("n").as_deref(), Some("5"));
    println!("best effort: 3 increments, n = 5");
}

/// The same under at most once: none is counted twice, one is lost, and all three are not known.
#[test]
fn at_most_once_loses() {
    let mut scene = Scene::new(Semantics::AtMostOnce);
    for fault in FAULTS {
        unresolved(scene.incr_over(fault));
    }
    assert_eq!(scene.get("n").as_deref(), Some("2"));
    println!("at most once: 3 increments, all unresolved, n = 2");
}

/// The same under exactly once: it counts right, and the client knows.
#[test]
fn exactly_once_counts_right() {
    let mut scene = Scene::new(Semantics::ExactlyOnce);
    let told: Vec<_> = FAULTS.map(|fault| scene.incr_over(fault).expect("a reply")).to_vec();
    assert_eq!(told, [1, 2, 3]);
    assert_eq!(scene.get("n").as_deref(), Some("3"));
    println!("exactly once: 3 increments, n = 3");
}

/// Two clients that pick the same id take each other's replies. With other content they are told; with
/// the same content nobody can tell. The library draws 128 random bits: its clients never meet.
#[test]
fn two_clients_pick_the_same_id() {
    let lone = Lone::start(&[]);
    let nodes = [lone.node.client_address()];
    let [one, other] = [1, 1].map(|picked| RawSession::open_id(&nodes, SessionId(picked)));
    let (first, replayed) = executed(ask(&nodes, &one.request(1, 1, &incr("n"))));
    assert!(!replayed);
    assert_eq!(executed(ask(&nodes, &other.request(1, 1, &incr("n")))), (first, true));
    assert_eq!(get(&nodes, "n").as_deref(), Some("1"), "the second client's increment is lost");
    let answer = ask(&nodes, &other.request(1, 1, &put("n", "7")));
    assert_eq!(answer, Answer::Refused(Refusal::Mismatch));
    assert_eq!(get(&nodes, "n").as_deref(), Some("1"));

    runtime(1).block_on(async {
        for _ in 0..2 {
            let client = client(&lone.addresses());
            client.incr("n", 1).await.expect("counted");
            client.close().await;
        }
    });
    assert_eq!(get(&nodes, "n").as_deref(), Some("3"));
}

/// One outstanding request at a time: the arrival of seq + 1 lets the server discard all up to seq. A
/// late original is older than that, and refused.
#[test]
fn one_outstanding_discards_all_before() {
    let scene = Scene::with(&[], ClientBuilder::one_outstanding);
    scene.network.set(Place::Clients, WAYS[0], Traffic::Waits);
    let first = scene.begin_incr("n");
    let others: Vec<_> = (0..9).map(|_| scene.begin_incr("n")).collect();
    scene.end(first).expect("counted");
    for other in others {
        scene.end(other).expect("counted");
    }
    let session = scene.session();
    // The first put opened it; then came ten increments, one after the other.
    assert_eq!((session.status.first_unacked, seqs(&session)), (Seq(11), vec![11]));
    scene.late_ones_arrive();
    assert_eq!(scene.get("n").as_deref(), Some("10"));
    assert_eq!(seqs(&scene.session()), [11], "the late original left something");
}

/// Many outstanding requests: the server keeps every reply from the oldest open request on, and may
/// forget those below the watermark that the client sends along.
#[test]
fn the_watermark_waits_for_the_oldest() {
    let lone = Lone::start(&[]);
    let nodes = [lone.node.client_address()];
    let network = Network::new();
    let way = network.proxy(Place::Clients, WAYS[0], nodes[0]);
    let session = RawSession::open(&nodes);
    let mut slow = RawConnection::open(way).expect("it runs");
    network.set(Place::Clients, WAYS[0], Traffic::Waits);
    let oldest = slow.send(&session.request(1, 1, &incr("n"))).expect("connected");
    for seq in 2..=20 {
        executed(ask(&nodes, &session.request(seq, 1, &incr("n"))));
    }
    let id = session.session.id;
    assert_eq!(seqs(&session_of(&nodes, id)), (2..=20).collect::<Vec<_>>());
    for seq in 2..=20 {
        let (_, replayed) = executed(ask(&nodes, &session.request(seq, 1, &incr("n"))));
        assert!(replayed, "request {seq} ran twice");
    }
    network.mend();
    let (_, replayed) = executed(slow.receive(oldest).expect("an answer"));
    assert!(!replayed, "it had never come before");
    executed(ask(&nodes, &session.request(21, 21, &incr("n"))));
    assert_eq!(seqs(&session_of(&nodes, id)), [21]);
    let stale = ask(&nodes, &session.request(1, 1, &incr("n")));
    assert!(matches!(stale, Answer::Refused(Refusal::Stale { .. })), "{stale:?}");
    assert_eq!(get(&nodes, "n").as_deref(), Some("21"));
}

/// Until the network is mended nothing that the primary executes is committed: its backup is heard no
/// more, and the authority that could let it go on without cannot be asked.
fn keep_pending(cluster: &Cluster, primary: usize) {
    let (primary, backup) = (Place::Node(primary), Place::Node(1 - primary));
    cluster.network().set_both(primary, Place::Authority, Traffic::Waits);
    cluster.network().set(backup, primary, Traffic::Waits);
}

/// A duplicate that comes while the original still runs waits for it, and gets the same reply.
#[test]
fn a_duplicate_waits_for_its_pending_original() {
    let cluster = Cluster::start_networked(&[]);
    let primary = cluster.wait_whole();
    let node = &cluster.nodes[primary];
    let nodes = [node.client_address()];
    let session = RawSession::open(&nodes);
    let request = session.request(1, 1, &incr("n"));
    keep_pending(&cluster, primary);
    let mut original = RawConnection::open(nodes[0]).expect("it runs");
    let mut duplicate = RawConnection::open(nodes[0]).expect("it runs");
    let came = || count(node, "onlyonce_requests_total");
    let went = || count(node, "onlyonce_replies_total");
    let before = (came(), went());
    let first = original.send(&request).expect("connected");
    node.wait_status("to have it pending", |status| status.prepared > status.committed);
    let second = duplicate.send(&request).expect("connected");
    wait_for("both to come", BOUND, || match came() - before.0 {
        both if both >= 2.0 => Ok(()),
        fewer => Err(format!("{fewer} came")),
    });
    assert!(went() <= before.1, "answered before it was committed");
    cluster.network().mend();
    let (reply, replayed) = executed(original.receive(first).expect("an answer"));
    assert!(!replayed);
    let joined = executed(duplicate.receive(second).expect("an answer"));
    assert_eq!(joined, (reply, true));
    assert_eq!(get(&cluster.sockets(), "n").as_deref(), Some("1"));
}

/// Increments once; the answer never gets through, and the node dies and is started again.
fn incr_over_a_restart(arguments: &[&str]) -> (i64, Option<String>) {
    let mut scene = Scene::with(arguments, |builder| builder);
    scene.network.set(WAYS[0], Place::Clients, Traffic::Vanishes);
    let call = scene.begin_incr("n");
    wait_for("the reply to vanish", BOUND, || match scene.network.vanished() {
        0 => Err("nothing did".to_owned()),
        _ => Ok(()),
    });
    scene.lone.node.kill();
    scene.network.mend();
    scene.lone.node.start();
    (scene.end(call).expect("a reply"), scene.get("n"))
}

/// The server dies between the execution and the reply. If it had its duplicate table in memory only,
/// it runs the repeated request a second time.
#[test]
fn a_restart_forgets_what_was_in_memory() {
    let twice = incr_over_a_restart(&["--duplicates", "memory", "--unsafe-demo"]);
    assert_eq!(twice, (2, Some("2".to_owned())), "the anomaly did not show");
    println!("duplicates in memory: one increment, a restart, n = 2");
}

/// The same with the duplicate table where the data is: the repeated request gets the first reply.
#[test]
fn a_restart_forgets_nothing() {
    assert_eq!(incr_over_a_restart(&[]), (1, Some("1".to_owned())));
    println!("duplicates on disk: one increment, a restart, n = 1");
}

/// Runs `once`; returns its exit code and what it printed on standard output.
fn told(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    let ran = run(once(&cluster.addresses(), arguments), BOUND);
    (ran.code, ran.stdout.trim().to_owned())
}

/// `once --semantics` climbs the same ladder: no reply comes, and each level says what that means.
#[test]
fn the_command_line_has_the_ladder() {
    let cluster = Cluster::start_networked(&[]);
    for level in ["best-effort", "at-most-once", "exactly-once"] {
        let done = told(&cluster, &["--semantics", level, "incr", level]);
        assert_eq!(done, (Some(0), "1".to_owned()), "{level}");
    }
    let primary = cluster.wait_whole();
    keep_pending(&cluster, primary);
    let incr = |level| told(&cluster, &["--semantics", level, "--json", "incr", level]);
    std::thread::scope(|scope| {
        let exactly_once = scope.spawn(|| incr("exactly-once"));
        let at_most_once = scope.spawn(|| incr("at-most-once"));
        let (code, told) = incr("best-effort");
        assert!(code == Some(3) && told.contains("uncounted: 4 copies"), "{code:?}: {told}");
        let (code, told) = at_most_once.join().expect("no panic");
        assert!(code == Some(3) && told.contains("\"handle\":\"once1-"), "{code:?}: {told}");
        cluster.network().mend();
        let (code, told) = exactly_once.join().expect("no panic");
        assert!(code == Some(0) && told.contains("\"value\":2"), "{code:?}: {told}");
    });
    let nodes = cluster.sockets();
    for (level, value) in [("best-effort", "5"), ("at-most-once", "2"), ("exactly-once", "2")] {
        assert_eq!(get(&nodes, level).as_deref(), Some(value), "{level}");
    }
}

/// `once bench --compare` measures what ids, fingerprints and saved replies cost, in time and bytes.
#[test]
fn the_cost_is_measured() {
    let cluster = Cluster::start(2, &[]);
    let arguments = ["bench", "--compare", "--rounds", "2", "--seconds", "0.3", "--json"];
    let (code, printed) = told(&cluster, &arguments);
    assert_eq!(code, Some(0), "{printed}");
    let measured: Value = serde_json::from_str(&printed).expect("JSON");
    let figure = |level: &str, name: &str| {
        let figure = measured[level][name].as_f64();
        figure.unwrap_or_else(|| panic!("no {name} of {level} in {printed}"))
    };
    for level in ["best_effort", "exactly_once", "exactly_once_keys"] {
        assert!(figure(level, "ops_per_s") > 0.0, "nothing was done: {printed}");
        assert!(figure(level, "ratio") > 0.0, "{printed}");
    }
    let bytes = |level| figure(level, "logged_bytes_per_request");
    // A key of 16 bytes and a value of 100 are logged in any case; the fingerprint alone has 16.
    assert!(bytes("best_effort") > 116.0, "{printed}");
    assert!(bytes("exactly_once") > bytes("best_effort") + 16.0, "{printed}");
    assert!(bytes("exactly_once_keys") > bytes("best_effort") + 16.0, "{printed}");
}
