//! Idempotency keys, outcome, cancel and handles, as a user has them: by `once`, from many processes,
//! with nodes killed in between. And the mistakes that can be made with them.

use std::future::poll_fn;
use std::sync::Barrier;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use onlyonce_client::{
    Cancellation, Client, Error, Fate, Handle, Outcome, Refusal, RequestId, Session, fresh_key,
    limits::WINDOW,
};
use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::{BOUND, Environment};
use onlyonce_tests::process::{Ran, run};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Cluster, Lone, once, raw};
use serde_json::{Value, json};

/// Checkpoints all the time.
const EAGER_CHECKPOINTS: Environment =
    &[("ONCED_CHECKPOINT_BYTES", "65536"), ("ONCED_CHECKPOINT_INTERVAL_MS", "50")];

/// Runs `once`, which must end with this code and print this.
#[track_caller]
fn assert_prints(nodes: &[String], arguments: &[&str], code: i32, stdout: &str) -> Ran {
    let ran = run(once(nodes, arguments), BOUND);
    assert_eq!((ran.code, &*ran.stdout), (Some(code), stdout), "{arguments:?}: {ran:?}");
    ran
}

/// Runs `once`, which must end with this code and say all these words to the user.
#[track_caller]
fn assert_says(nodes: &[String], arguments: &[&str], code: i32, words: &[&str]) {
    let ran = run(once(nodes, arguments), BOUND);
    assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
    for word in words {
        assert!(ran.stderr.contains(word), "{arguments:?} should say {word:?}: {ran:?}");
    }
}

#[track_caller]
fn json_of(nodes: &[String], arguments: &[&str]) -> Value {
    let ran = run(once(nodes, &[&["--json"], arguments].concat()), BOUND);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// An increment in a session that a paused node was sent, and that its client gave up. The client is
/// returned with the handle, so that the session lives.
fn give_up(lone: &mut Lone) -> (Client, Error, Handle) {
    let client = Client::builder().nodes(lone.addresses()).deadline(Duration::from_millis(400));
    let client = client.build().expect("an address");
    runtime(2).block_on(async {
        client.put("greeting", "hello").await.expect("it serves");
        lone.node.daemon().pause();
        let error = client.execute(raw::incr("n")).await.expect_err("it stands still");
        let Error::Unresolved(unresolved) = &error else { panic!("{error:?}") };
        let handle = unresolved.handle().clone();
        (client, error, handle)
    })
}

/// The handles of two requests whose client had seen all replies before, which the node did not get to
/// know: by what it knows, its session's window is full.
fn give_up_late(lone: &mut Lone) -> [Handle; 2] {
    let client = Client::builder().nodes(lone.addresses()).deadline(Duration::from_secs(3));
    let client = client.build().expect("an address");
    runtime(2).block_on(async {
        client.put("greeting", "hello").await.expect("it serves");
        lone.node.daemon().pause();
        let mut window: Vec<_> = (0..WINDOW).map(|_| Box::pin(client.incr("w", 1))).collect();
        poll_fn(|context| {
            assert!(window.iter_mut().all(|call| call.as_mut().poll(context).is_pending()));
            Poll::Ready(())
        })
        .await;
        lone.node.daemon().resume();
        for call in window {
            call.await.expect("it serves");
        }
        lone.node.daemon().pause();
        let ended = tokio::join!(client.incr("n", 1), client.incr("n", 10));
        [ended.0, ended.1].map(|ended| match ended {
            Err(Error::Unresolved(unresolved)) => unresolved.handle().clone(),
            other => panic!("{other:?}"),
        })
    })
}

/// A request that was lost is resumed and cancelled by its handle however late it was in its session.
#[test]
fn late_requests_have_room() {
    let mut lone = Lone::start(&[]);
    let [one, other] = give_up_late(&mut lone).map(|handle| handle.to_string());
    // What waits in its sockets is lost.
    lone.node.kill();
    lone.node.start();
    let nodes = lone.addresses();
    assert_prints(&nodes, &["outcome", &one], 3, "never-seen\n");
    assert_prints(&nodes, &["--deadline", "20s", "cancel", &other], 0, "cancelled\n");
    assert_prints(&nodes, &["--deadline", "20s", "resume", &one], 0, "1\n");
    assert_prints(&nodes, &["get", "n"], 0, "1");
    assert_prints(&nodes, &["get", "w"], 0, &WINDOW.to_string());
}

/// Whoever closes the output before it is written still learns by the exit code how it ended: 0 would
/// say of a cancel that the request never ran.
#[test]
fn a_closed_output_changes_no_exit_code() {
    let lone = Lone::start(&[]);
    let nodes = lone.addresses();
    assert_prints(&nodes, &["--key", "order-1", "incr", "n"], 0, "1\n");
    assert_prints(&nodes, &["cancel", "--key", "order-2"], 0, "cancelled\n");
    let ends: [(&[&str], i32); 6] = [
        (&["cancel", "--key", "order-1"], 1),
        (&["outcome", "--key", "order-2"], 1),
        (&["outcome", "--key", "order-3"], 3),
        (&["cas", "n", "7", "8"], 1),
        (&["cancel", "--key", "order-2"], 0),
        (&["get", "n"], 0),
    ];
    for (arguments, code) in ends {
        for json in [&[][..], &["--json"]] {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            let mut command = once(&nodes, &[&["--deadline", "20s"], json, arguments].concat());
            let ended = command.stdout(writer).status().expect("it starts");
            assert_eq!(ended.code(), Some(code), "{json:?} {arguments:?}");
        }
    }
}

/// Keys that are none, or that another request has, are refused precisely; nothing is lost.
#[test]
fn bad_keys_are_refused() {
    let lone = Lone::start(&[]);
    let nodes = lone.addresses();
    assert_says(&nodes, &["--key", "", "put", "k", "v"], 2, &["--key", "must not be empty"]);
    let too_long = "k".repeat(10 << 10);
    assert_says(&nodes, &["--key", &too_long, "put", "k", "v"], 2, &["10240 bytes", "256"]);
    assert_says(&nodes, &["--key", "order-1", "get", "k"], 2, &["--key is for writes"]);
    assert_says(&nodes, &["outcome"], 2, &["HANDLE", "--key"]);
    assert_eq!(json_of(&nodes, &["get", "k"])["exists"], false, "nothing was written yet");

    assert_prints(&nodes, &["--key", "order-1", "put", "k", "v"], 0, "");
    assert_says(&nodes, &["--key", "order-1", "put", "k", "w"], 1, &["refused (mismatch)"]);
    assert_says(&nodes, &["--key", "order-1", "delete", "k"], 1, &["not executed"]);
    assert_eq!(json_of(&nodes, &["--key", "order-1", "incr", "k"])["error"], "mismatch");
    assert_prints(&nodes, &["get", "k"], 0, "v");
    assert_prints(&nodes, &["--key", "order-1", "put", "k", "v"], 0, "");

    // A timed key of a year that is far off.
    let ahead = "ffffffff-ffff-7000-8000-000000000000";
    assert_says(&nodes, &["--key", ahead, "put", "k", "w"], 1, &["refused (invalid)"]);
    assert_prints(&nodes, &["get", "k"], 0, "v");
}

/// A timed key is answered for as long as it is remembered. Then it is refused, as are all that were
/// made before it, and nothing of them runs; one that was made later does.
#[test]
fn a_timed_key_is_forgotten() {
    let lone = Lone::start(&[("ONCED_KEY_RETENTION_MS", "500")]);
    let nodes = lone.addresses();
    let [older, old, newer] =
        [0, 1, 2].map(|time| format!("00000000-000{time}-7000-8000-000000000000"));
    let write = ["--key", &old, "incr", "n"];
    assert_prints(&nodes, &write, 0, "1\n");
    wait_for("the key to be forgotten", BOUND, || {
        let asked = run(once(&nodes, &["outcome", "--key", &old]), BOUND);
        if asked.stdout == "forgotten\n" { Ok(()) } else { Err(format!("{asked:?}")) }
    });
    assert_says(&nodes, &write, 1, &["refused (forgotten)"]);
    assert_says(&nodes, &["--key", &older, "incr", "n"], 1, &["refused (forgotten)"]);
    assert_says(&nodes, &["outcome", "--key", &old], 3, &["not known any more"]);
    assert_prints(&nodes, &["--key", &newer, "incr", "n"], 0, "2\n");
}

/// A handle that was not copied whole is refused, and says so.
#[test]
fn damaged_handles_are_refused() {
    let mut lone = Lone::start(&[]);
    let (_client, _, handle) = give_up(&mut lone);
    lone.node.daemon().resume();
    let nodes = lone.addresses();
    let text = handle.to_string();
    let half = &text[..text.len() / 2];
    let altered = text.replacen(&text[20..21], if &text[20..21] == "7" { "8" } else { "7" }, 1);
    for command in ["outcome", "cancel", "resume"] {
        assert_says(&nodes, &[command, half], 2, &["damaged", "copy it again"]);
        assert_says(&nodes, &[command, &altered], 2, &["handle"]);
        assert_says(&nodes, &[command, "1234"], 2, &["not a handle", "once1-"]);
    }
    // The whole one is as good as before.
    assert_prints(&nodes, &["resume", &text], 0, "1\n");
}

/// A handle of one lone node is refused by a cluster and by another lone node, with both ids; the
/// request is none the worse for it.
#[test]
fn handles_of_elsewhere_are_refused() {
    let one = Cluster::start(1, &[]);
    let mut lone = Lone::start(&[]);
    let (_client, _, handle_of_lone) = give_up(&mut lone);
    lone.node.daemon().resume();
    let cluster = one.nodes[0].status().expect("it runs").cluster.expect("it has one");
    let (other, lone_addresses) = (one.addresses(), lone.addresses());
    let text = handle_of_lone.to_string();
    let home = handle_of_lone.cluster().expect("a lone node is a cluster too").to_string();
    let words = [&*cluster, &*home, "check the addresses"];
    assert_says(&other, &["outcome", &text], 3, &words);
    assert_says(&other, &["cancel", &text], 3, &words);
    assert_says(&other, &["resume", &text], 3, &words);
    let said = run(once(&other, &["resume", &text]), BOUND).stderr;
    assert_eq!(said.matches("check the addresses").count(), 1, "once is enough: {said}");
    let stranger = Lone::start(&[]);
    assert_says(&stranger.addresses(), &["resume", &text], 3, &[&home, "check the addresses"]);
    for nodes in [&other, &stranger.addresses()] {
        assert_eq!(json_of(nodes, &["get", "n"])["exists"], false, "it ran elsewhere");
    }
    assert_prints(&lone_addresses, &["resume", &text], 0, "1\n");
    assert_prints(&lone_addresses, &["get", "n"], 0, "1");
}

/// The same key gets the same reply after a checkpoint, a kill of the primary and its failover, and a
/// restart of everything; it runs once. One that was cancelled never runs.
#[test]
fn a_key_survives_everything() {
    let mut cluster = Cluster::start(2, EAGER_CHECKPOINTS);
    let nodes = cluster.addresses();
    let write = ["--key", "order-1", "incr", "n", "5"];
    let first = json_of(&nodes, &write);
    assert_eq!((&first["value"], &first["replayed"]), (&json!(5), &json!(false)), "{first}");
    let day = Duration::from_secs(24 * 3600).as_millis() as u64;
    assert!(first["kept_for_ms"].as_u64().is_some_and(|ms| ms > day / 3 && ms <= day), "{first}");
    // What comes after it does not change the reply.
    assert_prints(&nodes, &["incr", "n", "100"], 0, "105\n");
    let cancelled = json_of(&nodes, &["cancel", "--key", "order-2"]);
    assert_eq!(cancelled["fate"], "cancelled");
    let kept_for = cancelled["kept_for_ms"].as_u64();
    assert!(kept_for.is_some_and(|ms| ms > day / 3 && ms <= day), "{cancelled}");
    assert_prints(&nodes, &["cancel", "--key", "order-2"], 0, "cancelled\n");
    let replays = |when: &str| {
        assert_says(&nodes, &["--key", "order-2", "incr", "n"], 1, &["refused (cancelled)"]);
        assert_prints(&nodes, &["outcome", "--key", "order-2"], 1, "cancelled\n");
        let again = json_of(&nodes, &write);
        assert_eq!((&again["value"], &again["replayed"]), (&json!(5), &json!(true)), "{when}");
        assert_prints(&nodes, &["outcome", "--key", "order-1"], 0, "done\n5\n");
        assert_prints(&nodes, &["get", "n"], 0, "105");
    };
    replays("at once");
    for node in &cluster.nodes {
        let all = node.status().expect("it runs").prepared;
        node.wait_status("to fold everything into its tables", |status| status.applied >= all);
    }
    replays("after a checkpoint");
    let primary = cluster.wait_whole();
    cluster.nodes[primary].kill();
    replays("after the failover");
    cluster.nodes[primary].start();
    cluster.wait_whole();
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    replays("after all were killed");
}

/// Processes that use one key at the same time join: it runs once, and all get the one reply.
#[test]
fn concurrent_calls_with_one_key_join() {
    let lone = Lone::start(&[]);
    let nodes = lone.addresses();
    let barrier = Barrier::new(6);
    let answers: Vec<_> = thread::scope(|scope| {
        let call = || {
            barrier.wait();
            json_of(&nodes, &["--key", "order-1", "incr", "n"])
        };
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(call)).collect();
        calls.into_iter().map(|call| call.join().expect("it ends")).collect()
    });
    assert!(answers.iter().all(|answer| answer["value"] == 1), "{answers:?}");
    let fresh = answers.iter().filter(|answer| answer["replayed"] == false).count();
    assert_eq!(fresh, 1, "{answers:?}");

    // In one process too, with less between them.
    runtime(2).block_on(async {
        for round in 2..=100 {
            let keyed: Vec<_> = (0..4)
                .map(|_| client(&nodes).with_key(format!("order-{round}")).expect("a fine key"))
                .collect();
            let calls: Vec<_> = keyed
                .into_iter()
                .map(|keyed| tokio::spawn(async move { keyed.execute_told(raw::incr("n")).await }))
                .collect();
            let mut fresh = 0;
            for call in calls {
                let told = call.await.expect("it ends").expect("counted");
                assert_eq!(told.outcome, Outcome::Integer(round));
                fresh += usize::from(!told.replayed);
            }
            assert_eq!(fresh, 1, "round {round}");
        }
    });
}

/// A cancel races the request, in many rounds, with the primary killed in between: one of them wins,
/// and both sides, and whoever asks later, learn the same.
#[test]
fn a_cancel_races_the_request() {
    const ROUNDS: usize = 200;
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.addresses();
    let (mut ran, mut cancelled) = (0, 0);
    let runtime = runtime(2);
    let (one, two) = (client(&nodes), client(&nodes));
    for round in 0..ROUNDS {
        if round == ROUNDS / 2 {
            let primary = cluster.wait_whole();
            cluster.nodes[primary].kill();
        }
        let key = fresh_key();
        let (asked, keyed) = (key.clone(), one.with_key(key.clone()).expect("a key"));
        let writing = async move { keyed.incr("n", 1).await };
        let other = two.clone();
        let cancelling = async move { other.cancel(&asked).await };
        let (written, cancel) = runtime.block_on(async {
            // Whoever is sent first has the better chance.
            if round % 2 == 0 {
                let writing = tokio::spawn(writing);
                let cancel = cancelling.await;
                (writing.await.expect("it ends"), cancel)
            } else {
                let cancelling = tokio::spawn(cancelling);
                let written = writing.await;
                (written, cancelling.await.expect("it ends"))
            }
        });
        let later = runtime.block_on(two.outcome(&key)).expect("an answer");
        match (written, cancel.expect("an answer")) {
            (Ok(value), Cancellation::Done(Outcome::Integer(told))) if value == told => {
                assert_eq!(later, Fate::Done(Outcome::Integer(value)));
                ran += 1;
            }
            (Err(Error::Refused(Refusal::Cancelled)), Cancellation::Cancelled) => {
                assert_eq!(later, Fate::Cancelled);
                cancelled += 1;
            }
            sides => panic!("round {round}: the two sides differ: {sides:?}"),
        }
    }
    let counted = raw::get(&cluster.sockets(), "n").and_then(|text| text.parse().ok());
    assert_eq!(counted, Some(ran), "each that ran is counted once, and no other");
    assert!(ran > 0 && cancelled > 0, "a race has two winners: {ran} ran, {cancelled} did not");
}

/// A request that a killed node was sent is taken up by another process, and runs once; then it can
/// be asked about, and it is too late to cancel it.
#[test]
fn another_process_goes_on() {
    let mut lone = Lone::start(&[]);
    let nodes = lone.addresses();
    let (_client, error, handle) = give_up(&mut lone);
    lone.node.kill();
    lone.node.start();
    let text = handle.to_string();
    assert!(error.to_string().contains(&text), "{error}");
    assert_prints(&nodes, &["outcome", &text], 3, "never-seen\n");
    assert_prints(&nodes, &["resume", &text], 0, "1\n");
    assert_prints(&nodes, &["incr", "n", "10"], 0, "11\n");
    lone.node.kill();
    lone.node.start();
    assert_prints(&nodes, &["resume", &text], 0, "1\n");
    assert_eq!(json_of(&nodes, &["resume", &text]), json!({ "value": 1, "replayed": true }));
    assert_prints(&nodes, &["outcome", &text], 0, "done\n1\n");
    let late = assert_prints(&nodes, &["cancel", &text], 1, "done\n1\n");
    assert!(late.stderr.contains("too late"), "{late:?}");
    assert_prints(&nodes, &["get", "n"], 0, "11");
}

/// A request that `once` itself left unresolved goes on by the handle that it printed.
#[test]
fn what_once_left_unresolved_goes_on() {
    let mut cluster = Cluster::start(2, &[]);
    // Without its backup the primary cannot commit; without the authority it cannot go on alone.
    let primary = cluster.wait_whole();
    let backup = cluster.other(primary);
    cluster.kill_authority();
    cluster.nodes[backup].daemon().pause();
    let nodes = cluster.addresses();
    let at_primary = [cluster.nodes[primary].client_address().to_string()];
    let long = "v".repeat(300);
    let left = json_of(&at_primary, &["--deadline", "1s", "incr", "n"]);
    let left_long = json_of(&at_primary, &["--deadline", "1s", "put", "k", &long]);
    let keyed = ["--deadline", "1s", "--key", "order-1", "incr", "n", "100"];
    assert_eq!(json_of(&at_primary, &keyed)["error"], "unresolved");
    cluster.nodes[backup].daemon().resume();
    cluster.restart_authority();
    cluster.wait_whole();

    let handle = left["handle"].as_str().expect("a handle");
    let resumed = json_of(&nodes, &["resume", handle]);
    assert!(resumed["kept_for_ms"].is_u64(), "it was sent under a key: {resumed}");
    assert_prints(&nodes, &["resume", handle], 0, &format!("{}\n", resumed["value"]));
    // Its content is too long for the handle: it is given again, under the key that it had.
    let handle = left_long["handle"].as_str().expect("a handle");
    let ran = run(once(&nodes, &["resume", handle]), BOUND);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(!ran.stderr.contains("goes on with it,"), "it cannot: {ran:?}");
    let key = ran.stderr.split("--key '").nth(1).and_then(|rest| rest.split('\'').next());
    let key = key.unwrap_or_else(|| panic!("no key: {ran:?}"));
    assert_prints(&nodes, &["--key", key, "put", "k", &long], 0, "");
    assert_prints(&nodes, &["outcome", handle], 0, "done\n");
    assert_prints(&nodes, &["get", "k"], 0, &long);
    // The same command under the same key simply goes on.
    assert!(json_of(&nodes, &keyed)["value"].is_i64());
    assert_prints(&nodes, &["get", "n"], 0, "101");
}

/// Sessions can be listed, looked at and closed; a request of a closed one stays unresolved, and is
/// never run.
#[test]
fn sessions_are_listed_and_closed() {
    let mut lone = Lone::start(&[]);
    let nodes = lone.addresses();
    assert_eq!(json_of(&nodes, &["session", "list"]), json!({ "sessions": [] }));
    let (_client, _, handle) = give_up(&mut lone);
    lone.node.kill();
    lone.node.start();
    let RequestId::Seq { session, seq } = handle.id().clone() else {
        panic!("{handle:?}");
    };
    let Session { id, opened_at } = session;
    let (id, text) = (id.to_string(), handle.to_string());
    let listed = json_of(&nodes, &["session", "list"]);
    assert_eq!(listed["sessions"][0]["session"], *id, "{listed}");
    assert_eq!(listed["sessions"][0]["opened_at"], opened_at.0, "{listed}");
    assert_eq!(listed["sessions"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_prints(&nodes, &["cancel", &text], 0, "cancelled\n");
    let shown = run(once(&nodes, &["session", "show", &id]), BOUND);
    assert!(shown.stdout.contains(&format!("request {seq}: cancelled")), "{shown:?}");

    assert_prints(&nodes, &["session", "close", &id], 0, "");
    assert_says(&nodes, &["session", "close", &id], 1, &["no such session"]);
    assert_says(&nodes, &["session", "show", &id], 1, &["no such session"]);
    assert_says(&nodes, &["session", "show", "12"], 2, &["32 hexadecimal digits"]);
    let said = ["the session is not known", &text, "do not resume the handle"];
    assert_says(&nodes, &["resume", &text], 3, &said);
    let asked = assert_prints(&nodes, &["outcome", &text], 3, "forgotten\n");
    assert!(asked.stderr.contains("not known any more"), "{asked:?}");
    assert_eq!(json_of(&nodes, &["outcome", &text])["reason"], "session-expired");
    assert_eq!(json_of(&nodes, &["get", "n"])["exists"], false);
}
