//! The authority's data is lost: no node with data takes that for a new beginning, and
//! `onced admin force-view` lets one of them go on, in a new incarnation.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::process::{Ran, run};
use onlyonce_tests::raw::{append, ask, executed, get, incarnation};
use onlyonce_tests::wait::{wait_for, wait_more};
use onlyonce_tests::{
    Cluster, Exit, Lone, Node, RawSession, Status, Workload, WorkloadConfig, audit, binaries, seed,
};
use onlyonce_wire::client::{Answer, Refusal};

/// The tool, with the folders of these nodes.
fn command(authority: SocketAddr, folders: &[&Path], more: &[&str]) -> Command {
    let mut command = Command::new(binaries::onced());
    command.args(["admin", "force-view", "--authority", &authority.to_string()]);
    for folder in folders {
        command.arg("--data").arg(folder);
    }
    command.args(more);
    command
}

fn force_view(cluster: &Cluster, more: &[&str]) -> Ran {
    run(command(cluster.authority_address(), &folders(cluster), more), BOUND)
}

fn folders(cluster: &Cluster) -> Vec<&Path> {
    cluster.nodes.iter().map(Node::data).collect()
}

/// The last line on standard error of a process that had to end with `code`.
#[track_caller]
fn ended(code: Option<i32>, wanted: i32, stderr: &str, words: &[&str]) {
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(code, Some(wanted), "{stderr}");
    for word in words {
        assert!(last.contains(word), "{word:?} is not in {last:?}");
    }
}

#[track_caller]
fn refused(exit: &Exit, words: &[&str]) {
    ended(exit.status.code(), 1, &exit.stderr, words);
}

/// The place of the node that the tool chose.
#[track_caller]
fn chosen(cluster: &Cluster, ran: &Ran) -> usize {
    let line = ran.stdout.lines().find_map(|line| line.strip_prefix("chosen     "));
    let name = line.and_then(|line| line.split(' ').next()).expect("it chose a store");
    cluster.nodes.iter().position(|node| node.name() == name).expect("one of the nodes")
}

/// A cluster of two, one executed request of a raw session, and the request.
fn written() -> (Cluster, RawSession, onlyonce_wire::client::Request) {
    let cluster = Cluster::start(2, &[]);
    let session = RawSession::open(&cluster.sockets());
    let request = session.request(1, 1, &append("raw", "once;"));
    executed(ask(&cluster.sockets(), &request));
    (cluster, session, request)
}

fn stop_all(cluster: &mut Cluster) {
    cluster.nodes.iter_mut().for_each(Node::kill);
}

/// Under load the authority loses everything. The nodes stop, and refuse to begin anew; the tool
/// shows what there is, and forces a view; then nothing acknowledged is missing, what was outstanding
/// is unresolved, what was executed is not executed again, and new requests go on by themselves. The
/// store that was not chosen never serves again; emptied, its node joins.
#[test]
fn a_lost_authority_costs_no_data() {
    let (mut cluster, session, request) = written();
    let nodes = cluster.sockets();
    let seed = seed::seed("a_lost_authority_costs_no_data");
    let config =
        WorkloadConfig { new_incarnation: true, ..WorkloadConfig::new(cluster.addresses(), seed) };
    let workload = Workload::start(config.clone());
    let progress = |requests| {
        wait_more("acknowledged requests", BOUND, requests, || workload.acknowledged());
    };
    progress(1_000);

    // While it is away a view may stall that has to change: nothing is waited for.
    cluster.lose_authority();
    cluster.restart_authority();
    for node in &mut cluster.nodes {
        refused(&node.exit(), &["holds nothing", "lost data", "onced admin force-view"]);
        node.spawn();
        refused(&node.exit(), &["holds nothing", "--bootstrap", "onced admin force-view"]);
    }

    let shown = force_view(&cluster, &[]);
    ended(shown.code, 2, &shown.stderr, &["nothing was written", "--fenced"]);
    for word in [": empty", "n1", "n2", "prepared", "nothing that was acknowledged"] {
        assert!(shown.stdout.contains(word), "no {word:?} in\n{}", shown.stdout);
    }
    let first = chosen(&cluster, &shown);
    let forced = force_view(&cluster, &["--fenced"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert_eq!(chosen(&cluster, &forced), first, "as it was shown");
    let again = force_view(&cluster, &["--fenced"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stdout.contains("done already"), "{}", again.stdout);

    cluster.nodes[first].start();
    cluster.nodes[first].wait_status("to serve", Status::serves);
    progress(1_000);
    let current = incarnation(&nodes);
    assert!(current > session.incarnation);
    for request in [request, session.request(2, 1, &append("raw", "never;"))] {
        let refusal = Answer::Refused(Refusal::OtherIncarnation { current });
        assert_eq!(ask(&nodes, &request), refusal);
    }
    let disguised = RawSession { incarnation: current, ..session };
    let disguised = disguised.request(1, 1, &append("raw", "once;"));
    assert_eq!(ask(&nodes, &disguised), Answer::Refused(Refusal::SessionExpired));
    assert_eq!(get(&nodes, "raw").as_deref(), Some("once;"), "and nothing of it ran again");

    let other = cluster.other(first);
    cluster.nodes[other].spawn();
    refused(&cluster.nodes[other].exit(), &["without this store", "must never serve again"]);
    cluster.nodes[other].empty_disk();
    cluster.nodes[other].start();
    cluster.wait_whole();
    cluster.nodes[first].kill();
    assert_eq!(cluster.wait_primary(), other, "the one that joined holds everything");

    let ledger = workload.finish(BOUND);
    assert!(ledger.unresolved() > 0, "something was outstanding when the nodes stopped");
    assert_eq!(ledger.refused, [], "nothing that may have run was called refused");
    let report = audit::audit(&config, &ledger).expect("everything can be read");
    println!("{report}");
    report.assert_clean();
}

/// What a [`Cutter`] does with the call that changes the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It never arrives.
    Before,
    /// Its answer never arrives.
    After,
}

/// Stands between the tool and the authority. The first call, which reads, passes; of the second one
/// only a part does, and there is no third.
struct Cutter {
    address: SocketAddr,
    /// Told when the second call was cut.
    cut: mpsc::Receiver<()>,
}

impl Cutter {
    fn start(authority: SocketAddr, cut: Cut) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let accept = || listener.accept().expect("a call").0;
            pass(accept(), authority);
            let mut second = accept();
            if cut == Cut::After {
                let mut upstream = TcpStream::connect(authority).expect("the authority");
                copy_request(&mut second, &mut upstream);
                // Its preamble comes at once; the answer follows, and goes no further.
                let mut answer = [0; 17];
                upstream.read_exact(&mut answer).expect("it answers");
            }
            tell.send(()).expect("the test waits");
            let mut rest = Vec::new();
            let _ = second.read_to_end(&mut rest);
        });
        Self { address, cut: told }
    }
}

/// Passes one call and its answer on.
fn pass(mut client: TcpStream, authority: SocketAddr) {
    let mut upstream = TcpStream::connect(authority).expect("the authority");
    copy_request(&mut client, &mut upstream);
    upstream.shutdown(Shutdown::Write).expect("half closed");
    std::io::copy(&mut upstream, &mut client).expect("an answer");
}

/// Passes a preamble and one frame on.
fn copy_request(from: &mut TcpStream, to: &mut TcpStream) {
    let mut head = [0; onlyonce_wire::frame::PREAMBLE_BYTES + 8];
    from.read_exact(&mut head).expect("a preamble, and the head of a frame");
    let length = &head[onlyonce_wire::frame::PREAMBLE_BYTES..][..4];
    let length = u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).expect("a frame");
    to.write_all(&head).and_then(|()| to.write_all(&payload)).expect("the authority takes it");
}

/// Runs the tool, and kills it when it is cut off from the register.
fn cut_short(cluster: &Cluster, cut: Cut) {
    let cutter = Cutter::start(cluster.authority_address(), cut);
    let mut tool = command(cutter.address, &folders(cluster), &["--fenced"]);
    let mut tool = tool.stdout(std::process::Stdio::null()).spawn().expect("it runs");
    let told = cutter.cut.recv_timeout(BOUND);
    tool.kill().expect("it can be killed");
    tool.wait().expect("a killed process ends");
    told.expect("it came to change the register");
}

/// Killed before or after the register is changed, the tool leaves stores on which no node starts,
/// and says itself how to go on; repeated, it ends in the same place.
#[test]
fn a_tool_that_is_killed_can_be_repeated() {
    let (mut cluster, _, _) = written();
    stop_all(&mut cluster);
    cluster.lose_authority();
    cluster.restart_authority();

    cut_short(&cluster, Cut::Before);
    for node in &mut cluster.nodes {
        node.spawn();
        refused(&node.exit(), &["holds nothing", "onced admin force-view"]);
    }
    cut_short(&cluster, Cut::After);
    let shown = force_view(&cluster, &[]);
    ended(shown.code, 2, &shown.stderr, &["nothing was written"]);
    assert!(shown.stdout.contains("an earlier run was cut short"), "{}", shown.stdout);
    let first = chosen(&cluster, &shown);
    let other = cluster.other(first);
    cluster.nodes[first].spawn();
    refused(&cluster.nodes[first].exit(), &["names this store", "cut short", "repeat it"]);
    cluster.nodes[other].spawn();
    refused(&cluster.nodes[other].exit(), &["without this store"]);
    let name = cluster.nodes[other].name().to_owned();
    let changed = force_view(&cluster, &["--fenced", "--primary", &name]);
    ended(changed.code, 1, &changed.stderr, &["refused", "an earlier run", "Nothing was written"]);

    let forced = force_view(&cluster, &["--fenced"]);
    assert_eq!((forced.code, chosen(&cluster, &forced)), (Some(0), first), "{forced:?}");
    cluster.nodes[first].start();
    cluster.nodes[first].wait_status("to serve", Status::serves);
    assert_eq!(get(&cluster.sockets(), "raw").as_deref(), Some("once;"));
    let late = run(
        command(cluster.authority_address(), &[cluster.nodes[other].data()], &["--fenced"]),
        BOUND,
    );
    ended(late.code, 1, &late.stderr, &["refused", "the register is not lost"]);
}

/// A tool that gets no answer says that it does not know, and touches no store.
#[test]
fn an_unknown_outcome_is_called_unknown() {
    let (mut cluster, _, _) = written();
    stop_all(&mut cluster);
    cluster.lose_authority();
    cluster.restart_authority();
    let cutter = Cutter::start(cluster.authority_address(), Cut::After);
    let ran = run(command(cutter.address, &folders(&cluster), &["--fenced"]), BOUND);
    ended(
        ran.code,
        1,
        &ran.stderr,
        &["is not known", "No store was touched", "repeat the command"],
    );
    let forced = force_view(&cluster, &["--fenced"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert!(forced.stdout.contains("an earlier run was cut short"), "{}", forced.stdout);
    let first = chosen(&cluster, &forced);
    cluster.nodes[first].start();
    cluster.nodes[first].wait_status("to serve", Status::serves);

    cluster.kill_authority();
    let away = force_view(&cluster, &["--fenced"]);
    ended(away.code, 1, &away.stderr, &["cannot connect", "nothing was written"]);
}

/// An authority that was put back to an older copy is refused like an empty one, by running nodes
/// too, and a forced view mends it.
#[test]
fn an_older_copy_of_the_register_is_no_way_out() {
    let (mut cluster, _, _) = written();
    let primary = cluster.wait_whole();
    cluster.kill_authority();
    let file = cluster.authority_data().join("register");
    let older = std::fs::read(&file).expect("the register");
    cluster.restart_authority();
    let other = cluster.other(primary);
    let before = cluster.nodes[primary].status().expect("it runs").view;
    cluster.nodes[other].kill();
    cluster.nodes[primary].wait_status("to go on alone", |it| it.view > before && it.serves());

    cluster.kill_authority();
    std::fs::write(&file, older).expect("written");
    cluster.restart_authority();
    let words = ["holds view", "took part in view", "onced admin force-view"];
    refused(&cluster.nodes[primary].exit(), &words);
    cluster.nodes[primary].spawn();
    refused(&cluster.nodes[primary].exit(), &words);

    let forced = force_view(&cluster, &["--fenced"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert_eq!(chosen(&cluster, &forced), primary, "{}", forced.stdout);
    assert!(forced.stdout.contains("nothing that was acknowledged"), "{}", forced.stdout);
    cluster.nodes[primary].start();
    cluster.nodes[primary].wait_status("to serve", Status::serves);
    assert_eq!(get(&cluster.sockets(), "raw").as_deref(), Some("once;"));
}

/// An empty node that makes a new cluster at the emptied authority takes nothing from the old one: its
/// stores are refused there, and go on once the mistake is mended.
#[test]
fn a_cluster_made_by_mistake_takes_nothing() {
    let (mut cluster, _, _) = written();
    stop_all(&mut cluster);
    cluster.lose_authority();
    cluster.restart_authority();
    let authority = cluster.authority_address().to_string();
    let folder = onlyonce_tests::cluster::folder();
    let arguments = ["--authority", &authority, "--bootstrap"];
    let mut mistake = Node::new("n3", &folder.path().join("n3"), &arguments, &[]);
    mistake.start();
    mistake.wait_status("to serve", Status::serves);
    for node in &mut cluster.nodes {
        node.spawn();
        refused(&node.exit(), &["holds the view of cluster", "onced admin force-view"]);
    }
    let ran = force_view(&cluster, &["--fenced"]);
    ended(ran.code, 1, &ran.stderr, &["refused", "stop its nodes", "Nothing was written"]);
    mistake.kill();
    cluster.lose_authority();
    cluster.restart_authority();
    let forced = force_view(&cluster, &["--fenced"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    let first = chosen(&cluster, &forced);
    cluster.nodes[first].start();
    cluster.nodes[first].wait_status("to serve", Status::serves);
    assert_eq!(get(&cluster.sockets(), "raw").as_deref(), Some("once;"));
    mistake.spawn();
    refused(&mistake.exit(), &["holds the view of cluster"]);
}

/// What is no lost register, no stopped node, no store of this cluster or no whole store is refused,
/// with the reason, and nothing is written.
#[test]
fn what_needs_no_force_is_refused() {
    let (mut cluster, _, _) = written();
    let running = force_view(&cluster, &["--fenced"]);
    ended(running.code, 1, &running.stderr, &["refused", "a node runs on", "Nothing was written"]);
    stop_all(&mut cluster);
    let intact = force_view(&cluster, &["--fenced"]);
    ended(intact.code, 1, &intact.stderr, &["refused", "not lost", "Start the nodes of that view"]);

    let authority = cluster.authority_address();
    let tool = |folders: &[&Path]| run(command(authority, folders, &["--fenced"]), BOUND);
    let mut lone = Lone::start(&[]);
    lone.node.terminate();
    let ran = tool(&[lone.node.data()]);
    ended(ran.code, 1, &ran.stderr, &["refused", "belongs to a lone node"]);
    let empty = tempfile::tempdir().expect("a folder");
    let ran = tool(&[cluster.nodes[0].data(), empty.path()]);
    ended(ran.code, 1, &ran.stderr, &["refused", "is no data folder of a node"]);
    assert_eq!(std::fs::read_dir(empty.path()).expect("a folder").count(), 0, "left alone");
    let mut stranger = Cluster::start(1, &[]);
    stop_all(&mut stranger);
    let ran = tool(&[cluster.nodes[0].data(), stranger.nodes[0].data()]);
    ended(ran.code, 1, &ran.stderr, &["refused", "belongs to cluster", "of one cluster only"]);
    let ran = tool(&[stranger.nodes[0].data()]);
    ended(ran.code, 1, &ran.stderr, &["refused", "the register holds the view of cluster"]);
    std::fs::write(cluster.nodes[1].data().join("head"), vec![7; 12_288]).expect("written");
    let ran = force_view(&cluster, &["--fenced"]);
    ended(ran.code, 1, &ran.stderr, &["refused", "damaged", "leave this folder out"]);
    let none = tool(&[]);
    ended(none.code, 2, &none.stderr, &[]);
    // The register still holds the view: the node whose store is whole goes on in it.
    cluster.nodes[0].start();
    wait_for("n1 to know its view", BOUND, || match cluster.nodes[0].status() {
        Ok(status) if status.cluster.is_some() && status.role != "starting" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
