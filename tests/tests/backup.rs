//! Backups of real clusters under load, with nodes that die, and the stores that are made of them: all
//! that was acknowledged before is there, exactly once; nothing of before is executed anew.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use onlyonce_client::{Client, Error, fresh_key};
use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::{BOUND, Environment, folder};
use onlyonce_tests::process::{Ran, run};
use onlyonce_tests::raw::{ask, executed, get, incarnation, incr};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{
    Ballast, Cluster, Daemon, Load, Lone, Node, RawSession, Report, Status, Workload,
    WorkloadConfig, audit, binaries, once, seed,
};
use onlyonce_wire::client::{Answer, Execute, ExecuteId, Question, Refusal, Request, RequestId};
use onlyonce_wire::{IdempotencyKey, Incarnation, Seq, codec};
use rand::Rng;

/// Checkpoints all the time, and keeps next to nothing of the log for those that do not ask for it.
const PRUNING: Environment = &[
    ("ONCED_LOG_TAIL_BYTES", "65536"),
    ("ONCED_CHECKPOINT_BYTES", "65536"),
    ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
];
/// How many rows of 20 kB a backup has at least.
const ROWS: u64 = 600;
/// How often a backup is begun until a primary dies in the middle of one.
const TRIES: usize = 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have readable names")
}

/// Makes a backup.
#[track_caller]
fn back_up(nodes: &[String], file: &Path) -> Ran {
    let ran = run(once(nodes, &["--json", "backup", text(file)]), BOUND);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

fn restore(data: &Path, file: &Path) -> Ran {
    let mut command = Command::new(binaries::onced());
    command.args(["restore", "--data", text(data), text(file)]);
    run(command, BOUND)
}

#[track_caller]
fn restored(data: &Path, file: &Path) {
    let ran = restore(data, file);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[track_caller]
fn refused(ran: &Ran, words: &[&str]) {
    let last = ran.stderr.lines().last().unwrap_or_default();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for word in words {
        assert!(last.contains(word), "{word:?} is not in {last:?}");
    }
}

fn keyed(incarnation: Incarnation, key: &IdempotencyKey) -> Request {
    let operation = codec::encode(&incr("raw")).into();
    Request::Execute(Execute { incarnation, id: ExecuteId::Key(key.clone()), operation })
}

/// Some requests by hand, executed before the backup.
struct Before {
    session: RawSession,
    named: IdempotencyKey,
    timed: IdempotencyKey,
    first: Vec<bytes::Bytes>,
}

impl Before {
    fn new(nodes: &[SocketAddr]) -> Self {
        let session = RawSession::open(nodes);
        let named = IdempotencyKey::new("order-1234".to_owned()).expect("a key");
        let timed = fresh_key();
        let of = session.incarnation;
        let requests = [session.request(1, 1, &incr("raw")), keyed(of, &named), keyed(of, &timed)];
        let first = requests.map(|request| executed(ask(nodes, &request)).0).to_vec();
        Self { session, named, timed, first }
    }

    /// The restored nodes know the keys, and nothing of the session; `late` was not in the backup.
    #[track_caller]
    fn check(&self, nodes: &[SocketAddr], late: &IdempotencyKey) {
        let current = incarnation(nodes);
        let of = self.session.incarnation;
        assert!(current > of, "{current} after {of}");
        let other = Answer::Refused(Refusal::OtherIncarnation { current });
        let outcome = |key: &IdempotencyKey| {
            let id = RequestId::Key(key.clone());
            let first_unacked = Seq(1);
            Request::Outcome(Question { incarnation: of, id, first_unacked, fingerprint: None })
        };
        for request in [
            self.session.request(1, 1, &incr("raw")),
            self.session.request(2, 1, &incr("raw")),
            keyed(of, &self.named),
            keyed(of, late),
            outcome(late),
            outcome(&self.timed),
        ] {
            assert_eq!(ask(nodes, &request), other, "{request:?}");
        }
        let disguised = RawSession { incarnation: current, ..self.session.clone() };
        for seq in [1, 2] {
            let answer = ask(nodes, &disguised.request(seq, 1, &incr("raw")));
            assert_eq!(answer, Answer::Refused(Refusal::SessionExpired));
        }
        for (key, first) in [(&self.named, &self.first[1]), (&self.timed, &self.first[2])] {
            assert_eq!(executed(ask(nodes, &keyed(current, key))), (first.clone(), true));
        }
        assert_eq!(ask(nodes, &keyed(current, late)), Answer::Refused(Refusal::Forgotten));
        assert_eq!(get(nodes, "raw").as_deref(), Some("3"), "nothing of it ran again");
        let session = RawSession::open(nodes);
        executed(ask(nodes, &session.request(1, 1, &incr("raw"))));
        assert_eq!(get(nodes, "raw").as_deref(), Some("4"), "new requests go on");
    }
}

/// Makes backups in `file` until the primary died in the middle of one; it comes back each time.
fn back_up_while_nodes_die(cluster: &mut Cluster, file: &Path) {
    let partial = file.with_extension("once.partial");
    for _ in 0..TRIES {
        let _ = fs::remove_file(&partial);
        let primary = cluster.wait_whole();
        let mut backup = Daemon::spawn("once", once(&cluster.addresses(), &["backup", text(file)]));
        wait_for("some of a backup", BOUND, || {
            let length = fs::metadata(&partial).map_or(0, |partial| partial.len());
            let is_some = length > 0 || backup.try_exit().is_some();
            is_some.then_some(()).ok_or_else(|| format!("{length} bytes"))
        });
        cluster.nodes[primary].kill();
        let exit = backup.exit(BOUND);
        assert!(exit.status.success(), "{exit:?}");
        cluster.nodes[primary].start();
        if exit.stderr.contains("begins anew") {
            assert!(!partial.exists(), "it has its own name");
            return;
        }
    }
    panic!("no primary died in the middle of a backup in {TRIES} tries");
}

/// The audit of a workload, by what other nodes hold.
fn audit_at(nodes: &[String], config: &WorkloadConfig, ledger: &onlyonce_tests::Ledger) -> Report {
    let config = WorkloadConfig { nodes: nodes.to_vec(), ..config.clone() };
    audit::audit(&config, ledger).expect("everything can be read")
}

/// A cluster under load gives a backup although its primary dies meanwhile. The store that is made of
/// it holds all that was acknowledged before, exactly once, and nothing twice of what came meanwhile; it
/// is a new incarnation. As a lone node it serves; so it does as the first primary of a cluster, which
/// the stores of the history before have no part in.
#[test]
fn a_backup_under_load_while_nodes_die() {
    let mut cluster = Cluster::start(2, PRUNING);
    let (addresses, nodes) = (cluster.addresses(), cluster.sockets());
    let folder = folder();
    let file = folder.path().join("monday.once");
    let mut random = seed::rng("a_backup_under_load_while_nodes_die");

    let ballast = Ballast::write(&addresses, ROWS);
    let before = Before::new(&nodes);
    let config = WorkloadConfig {
        prefix: "before/".to_owned(),
        ..WorkloadConfig::new(addresses.clone(), random.random())
    };
    let workload = Workload::start(config.clone());
    wait_for("acknowledged requests", BOUND, || match workload.acknowledged() {
        enough @ 1_000.. => Ok(enough),
        few => Err(few.to_string()),
    });
    let ledger = workload.finish(BOUND);
    audit::audit(&config, &ledger).expect("it can be read").assert_clean();

    let load = Load::with(random, addresses);
    load.progress(200);
    let acknowledged = load.acknowledged();
    back_up_while_nodes_die(&mut cluster, &file);
    load.progress(200);
    let late = fresh_key();
    executed(ask(&nodes, &keyed(before.session.incarnation, &late)));
    let during = load.finish();

    let data = folder.path().join("alone");
    restored(&data, &file);
    let mut alone = Node::new("n1", &data, &[], &[]);
    alone.start();
    alone.wait_status("to serve", Status::serves);
    let (address, socket) = ([alone.client_address().to_string()], [alone.client_address()]);
    audit_at(&address, &config, &ledger).assert_clean();
    let report = during.report_at(&address);
    let Report { applied, lost, doubled, foreign, .. } = report;
    println!("{acknowledged} acknowledged before, {applied} applied, {lost} later than the backup");
    assert_eq!((doubled, foreign), (0, 0), "{report}");
    assert!(applied >= acknowledged, "what was acknowledged before is in it\n{report}");
    assert!(lost > 0, "it is of a moment meanwhile\n{report}");
    ballast.check(&address);
    before.check(&socket, &late);
    alone.kill();

    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.lose_authority();
    cluster.restart_authority();
    cluster.nodes[0].empty_disk();
    restored(cluster.nodes[0].data(), &file);
    cluster.nodes[0].start();
    cluster.nodes[0].wait_status("to serve", Status::serves);
    cluster.nodes[1].spawn();
    let exit = cluster.nodes[1].exit();
    assert_eq!(exit.status.code(), Some(1), "{exit:?}");
    assert!(exit.stderr.contains("without this store"), "{}", exit.stderr);
    cluster.nodes[1].empty_disk();
    cluster.nodes[1].start();
    cluster.wait_whole();
    cluster.nodes[0].kill();
    assert_eq!(cluster.wait_primary(), 1, "the one that joined holds everything");
    let addresses = cluster.addresses();
    audit_at(&addresses, &config, &ledger).assert_clean();
    ballast.check(&addresses);
    before.check(&nodes, &late);
}

/// A lone node with some rows, and a backup of it.
fn small() -> (Lone, tempfile::TempDir, std::path::PathBuf) {
    let lone = Lone::start(&[]);
    let folder = folder();
    let file = folder.path().join("small.once");
    drop(Ballast::write(&lone.addresses(), 60));
    Before::new(&[lone.node.client_address()]);
    back_up(&lone.addresses(), &file);
    (lone, folder, file)
}

/// A byte that changed, anywhere, is named, and so is a cut; nothing is written then.
#[test]
fn every_damage_of_the_file_is_named() {
    let (_lone, folder, file) = small();
    let whole = fs::read(&file).expect("a file");
    let mut random = seed::rng("every_damage_of_the_file_is_named");
    let (bad, data) = (folder.path().join("bad.once"), folder.path().join("restored"));
    let mut named = 0;
    for place in 0..200 {
        // The first bytes and the last ones, and any between.
        let at = match place {
            0..30 => place,
            30..60 => whole.len() - 1 - (place - 30),
            _ => random.random_range(0..whole.len()),
        };
        let mut content = whole.clone();
        content[at] ^= 1 << random.random_range(0..8);
        fs::write(&bad, content).expect("written");
        let ran = restore(&data, &bad);
        refused(&ran, &["bad.once"]);
        let words =
            ["no backup of Onlyonce", "header is damaged", "is damaged: ", "is cut off", "follows"];
        assert!(words.iter().any(|it| ran.stderr.contains(it)), "byte {at}: {}", ran.stderr);
        named += 1;
    }
    for _ in 0..20 {
        let end = random.random_range(0..whole.len());
        fs::write(&bad, &whole[..end]).expect("written");
        refused(
            &restore(&data, &bad),
            &["bad.once", if end == 0 { "no backup" } else { "cut off" }],
        );
    }
    fs::write(&bad, [&whole[..], b"x"].concat()).expect("written");
    refused(&restore(&data, &bad), &["something follows"]);
    assert!(!data.exists(), "nothing was written");
    println!("{named} flips named");
    restored(&data, &file);
}

/// A restore is made into an empty or missing folder only, and says what to do otherwise.
#[test]
fn a_restore_overwrites_nothing() {
    let (lone, folder, file) = small();
    refused(&restore(lone.node.data(), &file), &["in use by another process"]);
    let data = folder.path().join("restored");
    restored(&data, &file);
    let mut scrub = Command::new(binaries::onced());
    scrub.args(["scrub", "--data", text(&data)]);
    let ran = run(scrub, BOUND);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("no records, and"), "its log is empty: {ran:?}");
    refused(&restore(&data, &file), &["holds a store already", "choose an empty or a new folder"]);
    refused(
        &restore(folder.path(), &file),
        &["is not a data folder", "choose an empty or a new folder"],
    );
    refused(&restore(&folder.path().join("no/such"), &file), &["make its parent folder first"]);
    let missing = folder.path().join("missing.once");
    refused(&restore(&folder.path().join("other"), &missing), &["missing.once", "cannot be read"]);
    assert_eq!(get(&[lone.node.client_address()], "raw").as_deref(), Some("3"));
}

/// A backup whose maker is killed, by the kernel, when its file has become too long for it: after the
/// header, and long before the end.
fn killed_in_the_middle(nodes: &[String], target: &Path) -> Command {
    let backup = once(nodes, &["backup", text(target)]);
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -c 0; ulimit -f 256; exec "$@""#, "sh"]);
    command.arg(backup.get_program()).args(backup.get_args());
    command
}

/// A backup whose maker is killed is not taken for one, and neither is the file of another that is being
/// written; on standard output comes the same as in a file.
#[test]
fn a_cut_off_backup_is_none() {
    let (lone, folder, file) = small();
    let output = once(&lone.addresses(), &["backup", "-"]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copy = folder.path().join("output.once");
    fs::write(&copy, &output.stdout).expect("written");
    restored(&folder.path().join("output"), &copy);

    let target = folder.path().join("killed.once");
    let ran = run(killed_in_the_middle(&lone.addresses(), &target), BOUND);
    assert_eq!(ran.code, None, "a signal ends it: {ran:?}");
    assert!(!target.exists(), "it is not complete");
    let partial = target.with_extension("once.partial");
    let length = |file: &Path| fs::metadata(file).expect("a file").len();
    assert!((1..length(&file)).contains(&length(&partial)), "{} bytes", length(&partial));
    refused(&restore(&folder.path().join("killed"), &partial), &["cut off"]);

    let before = fs::read(&file).expect("a file");
    let locked = fs::File::create(file.with_extension("once.partial")).expect("a file");
    locked.try_lock().expect("nobody else writes it");
    let ran = run(once(&lone.addresses(), &["backup", text(&file)]), BOUND);
    refused(&ran, &["another process writes it"]);
    assert_eq!(fs::read(&file).expect("a file"), before, "the backup of before stays");
}

/// A device, a pipe or a folder is never replaced: it is refused before any node is asked.
#[test]
fn only_regular_files_are_replaced() {
    let folder = folder();
    let nobody = ["127.0.0.1:1".to_owned()];
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success(), "{made}");
    let (device, to_pipe) = (folder.path().join("device"), folder.path().join("to-pipe"));
    symlink("/dev/null", &device).expect("a link");
    symlink("pipe", &to_pipe).expect("a link");
    for target in [&pipe, &to_pipe, &device] {
        let ran = run(once(&nobody, &["backup", text(target)]), BOUND);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let words = format!("{} is not a regular file (a device, pipe or socket)", text(target));
        assert!(ran.stderr.contains(&words), "{ran:?}");
    }
    let ran = run(once(&nobody, &["backup", text(folder.path())]), BOUND);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("is a folder: name a file"), "{ran:?}");
    fs::rename(&pipe, folder.path().join("new.once.partial")).expect("renamed");
    let target = folder.path().join("new.once");
    let ran = run(once(&nobody, &["backup", text(&target)]), BOUND);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("new.once.partial is in the way"), "{ran:?}");
    let left = fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 3, "nothing was made, and nothing removed");
    assert!(fs::symlink_metadata(&device).expect("it is there").is_symlink());

    // What is read twice cannot be a pipe either.
    let partial = folder.path().join("new.once.partial");
    refused(&restore(&folder.path().join("restored"), &partial), &["not a regular file"]);
}

/// A link stays one: what it leads to is replaced, or made.
#[test]
fn a_link_to_a_file_is_followed() {
    let (lone, folder, file) = small();
    let whole = |path: &Path| {
        let data = path.with_extension("restored");
        restored(&data, path);
        fs::remove_dir_all(data).expect("removed");
    };
    fs::create_dir(folder.path().join("shelf")).expect("a folder");
    let (link, chain) = (folder.path().join("link"), folder.path().join("chain"));
    let shelved = folder.path().join("shelf/first.once");
    symlink("shelf/first.once", &link).expect("a link");
    symlink("../link", folder.path().join("shelf/back")).expect("a link");
    symlink("shelf/back", &chain).expect("a link");
    for target in [&chain, &link, &chain] {
        back_up(&lone.addresses(), target);
        assert!(fs::symlink_metadata(target).expect("it is there").is_symlink());
        assert!(fs::symlink_metadata(&shelved).expect("it is made").is_file());
        whole(&shelved);
        fs::write(&shelved, "of before").expect("written");
    }
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    whole(&file);
}

/// Who waits for another backup to end is told so.
#[test]
fn a_second_backup_says_what_it_waits_for() {
    let (lone, folder, _) = small();
    let client = client(&lone.addresses());
    let mut first = client.backup();
    runtime(1).block_on(first.next()).expect("it begins");
    let second = folder.path().join("second.once");
    let ran = run(once(&lone.addresses(), &["--deadline", "4s", "backup", text(&second)]), BOUND);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let told = ran.stderr.split("once: ").nth(1).unwrap_or_default();
    assert!(told.contains("no answer yet") && told.contains("another backup"), "{ran:?}");
    assert!(ran.stderr.contains("no answer within 4s"), "{ran:?}");
    assert!(!second.exists());
}

/// A handle of before means nothing in the restored history, but its key may be known there: whoever has
/// the handle is told how to ask for it.
#[test]
fn a_handle_of_before_leads_to_its_key() {
    let mut lone = Lone::start(&[]);
    let asks = Client::builder().nodes(lone.addresses()).deadline(Duration::from_millis(400));
    let asks = asks.build().expect("an address");
    let keyed = asks.with_key("it's order 1").expect("a key");
    let (keyed, in_session) = runtime(2).block_on(async {
        asks.put("greeting", "hello").await.expect("it serves");
        lone.node.daemon().pause();
        let unresolved = |ended| match ended {
            Err(Error::Unresolved(unresolved)) => unresolved.handle().to_string(),
            other => panic!("{other:?}"),
        };
        (unresolved(keyed.incr("n", 1).await), unresolved(asks.incr("n", 10).await))
    });
    lone.node.daemon().resume();
    let ran = run(once(&lone.addresses(), &["resume", &keyed]), BOUND);
    assert_eq!((ran.code, &*ran.stdout), (Some(0), "1\n"), "{ran:?}");
    let folder = folder();
    let (file, data) = (folder.path().join("tuesday.once"), folder.path().join("restored"));
    back_up(&lone.addresses(), &file);
    restored(&data, &file);
    let mut node = Node::new("n1", &data, &[], &[]);
    node.start();
    node.wait_status("to serve", Status::serves);
    let nodes = [node.client_address().to_string()];

    let hint = r"'once outcome --key 'it'\''s order 1''";
    for command in ["outcome", "cancel", "resume"] {
        let ran = run(once(&nodes, &[command, &keyed]), BOUND);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.stderr.contains(hint), "{ran:?}");
        assert!(!ran.stderr.contains("'once resume"), "it would be no use: {ran:?}");
        let ran = run(once(&nodes, &[command, &in_session]), BOUND);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(!ran.stderr.contains("--key"), "it has none: {ran:?}");
    }
    let ran = run(once(&nodes, &["outcome", "--key", "it's order 1"]), BOUND);
    assert_eq!((ran.code, &*ran.stdout), (Some(0), "done\n1\n"), "{ran:?}");
}
