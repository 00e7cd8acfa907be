//! Answers that wait for a commit are bounded, however long it takes.

mod solo;

use onlyonce_wire::client::{Answer, Limit, Operation, Outcome, Read, Refusal, Request};
use onlyonce_wire::limits::{VALUE_BYTES_MAX, WAITING_BYTES_MAX};

use solo::{Solo, anonymous, incr, outcome, put, refusal, request, text};

fn get(key: &str) -> Request {
    Request::Read(Read::Get { key: text(key) })
}

/// While the disk hangs, answers wait up to the bound. Then what would have to wait is refused, each
/// copy of it having done nothing, and what rests on committed rows is answered. Nothing is refused
/// any more once the disk is back, and no answer that waited is lost.
#[test]
fn waiting_answers_are_bounded() {
    let mut node = Solo::new();
    let session = node.session(1);
    let value = "v".repeat(VALUE_BYTES_MAX);
    let first = node.call(request(session, 1, 1, &incr("n", 1)));
    let big = Operation::Write(put("big", &value));
    let written = node.ask(request(session, 2, 1, &big));
    let most = WAITING_BYTES_MAX / VALUE_BYTES_MAX;
    let mut reads: Vec<u64> = (0..2 * most).map(|_| node.ask(get("big"))).collect();
    let busy = Refusal::Busy(Limit::Queue);
    reads.retain(|read| node.answer_to(*read).map(refusal) != Some(busy.clone()));
    assert!(reads.len().abs_diff(most) <= 1, "{} wait", reads.len());

    let new = request(session, 3, 1, &incr("n", 1));
    for late in [new.clone(), request(session, 2, 1, &big), anonymous(&incr("n", 1))] {
        let late = node.ask(late);
        assert_eq!(node.answer_to(late).map(refusal), Some(busy.clone()));
    }
    let again = node.ask(request(session, 1, 1, &incr("n", 1)));
    let again = node.answer_to(again).expect("a committed reply is answered at once");
    assert_eq!((outcome(&again).0, outcome(&first).0), (Outcome::Integer(1), Outcome::Integer(1)));
    let read = node.ask(get("n"));
    let committed = Answer::Read(Outcome::Value(Some(text("1"))));
    assert_eq!(node.answer_to(read), Some(committed));

    node.flush();
    assert_eq!(outcome(&node.answer_to(written).expect("committed")).0, Outcome::Done);
    for read in reads {
        let whole = Answer::Read(Outcome::Value(Some(text(&value))));
        assert!(node.answer_to(read) == Some(whole), "a read that waited");
    }
    assert_eq!(outcome(&node.call(new)), (Outcome::Integer(2), false), "it ran once, now");
    assert_eq!(node.get("big").map(|value| value.len()), Some(VALUE_BYTES_MAX));
}

/// Small answers count as well: an endless stream of reads that wait ends at the bound.
#[test]
fn small_waiting_answers_count() {
    let mut node = Solo::new();
    node.ask(anonymous(&incr("n", 1)));
    let most = WAITING_BYTES_MAX / Answer::BYTES_MIN;
    let waiting = (0..2 * most).take_while(|_| {
        let read = node.ask(get("n"));
        node.answer_to(read).is_none()
    });
    let waiting = waiting.count();
    assert!(waiting > most / 2 && waiting < most, "{waiting} of {most}");
    node.flush();
    assert_eq!(node.replies.len(), waiting + 1, "all that waited are answered");
}
