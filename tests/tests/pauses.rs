//! A primary that stands still (SIGSTOP) for longer than the grace, and goes on: what was sent to it
//! meanwhile is refused or not answered, and takes effect once, elsewhere.

use onlyonce_tests::raw::{ask, executed, get, incr};
use onlyonce_tests::{Cluster, RawConnection, RawSession, Recorder, Status};
use onlyonce_wire::client::{Answer, Outcome, Read, Request};

/// How often the primary is stopped.
const PAUSES: u64 = 5;
/// Requests of each kind that are sent to it while it stands still.
const EARLY: u64 = 10;

/// What became of the requests that waited in the sockets of a node that stood still.
#[derive(Debug, Default)]
struct Woken {
    refused: usize,
    unanswered: usize,
    /// Answered with what the other node had answered before.
    up_to_date: usize,
}

fn read(key: &str) -> Request {
    Request::Read(Read::Get { key: key.to_owned().into() })
}

/// Writes and reads are sent to the paused primary; then the same writes, under the same ids, to the
/// other node, which has taken over. The woken node executes none of the writes and answers no read
/// with what was before them. Everything that recorded clients saw meanwhile is judged too.
#[test]
fn a_woken_primary_serves_nothing_of_its_own() {
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.sockets();
    let mut recorder =
        Recorder::start("a_woken_primary_serves_nothing_of_its_own", cluster.addresses(), 6, 1);
    recorder.observe(&nodes);
    let mut woken = Woken::default();
    for pause in 0..PAUSES {
        let primary = cluster.wait_whole();
        let other = cluster.other(primary);
        recorder.progress(100);
        let session = RawSession::open(&nodes);
        let mut early = RawConnection::open(nodes[primary]).expect("it runs");
        cluster.nodes[primary].daemon().pause();
        let keys: Vec<_> = (0..EARLY).map(|number| format!("paused/{pause}/{number}")).collect();
        let writes: Vec<_> =
            (1..).zip(&keys).map(|(seq, key)| session.request(seq, 1, &incr(key))).collect();
        let mut send = |request: &Request| early.send(request).expect("the socket takes it");
        let early_writes: Vec<_> = writes.iter().map(&mut send).collect();
        let early_reads: Vec<_> = keys.iter().map(|key| send(&read(key))).collect();
        cluster.nodes[other].wait_status("to take over", Status::serves);
        let replies: Vec<_> = writes
            .iter()
            .map(|write| {
                let (reply, replayed) = executed(ask(&nodes[other..=other], write));
                assert!(!replayed, "it ran before anybody could have run it");
                reply
            })
            .collect();
        recorder.progress(100);
        cluster.nodes[primary].daemon().resume();
        for (call, reply) in early_writes.into_iter().zip(replies) {
            match early.receive(call) {
                Err(_) => woken.unanswered += 1,
                Ok(Answer::AskAgain | Answer::NotPrimary { .. }) => woken.refused += 1,
                Ok(Answer::Executed { reply: again, replayed: true, .. }) if again == reply => {
                    woken.up_to_date += 1;
                }
                Ok(other) => panic!("a write that ran elsewhere was answered with {other:?}"),
            }
        }
        for call in early_reads {
            match early.receive(call) {
                Err(_) => woken.unanswered += 1,
                Ok(Answer::AskAgain | Answer::NotPrimary { .. }) => woken.refused += 1,
                Ok(Answer::Read(Outcome::Value(Some(value)))) if value == "1" => {
                    woken.up_to_date += 1;
                }
                Ok(other) => panic!("a stale read: {other:?}"),
            }
        }
        cluster.wait_whole();
        for key in &keys {
            assert_eq!(get(&nodes, key).as_deref(), Some("1"), "{key} counts one write");
        }
    }
    println!("of {} early requests: {woken:?}", 2 * PAUSES * EARLY);
    assert!(woken.refused > 0, "the woken node refuses: {woken:?}");
    recorder.finish(&format!("{PAUSES} pauses"));
}
