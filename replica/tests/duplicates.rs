//! Every row of the duplicate table's verdicts, and the key/value service, on one node.

mod solo;

use std::time::Duration;

use bytes::Bytes;
use onlyonce_replica::Timing;
use onlyonce_wire::client::{
    Answer, Compare, Condition, Execute, ExecuteId, Failure, Operation, Outcome, Read, Refusal,
    Request, TxnOutcome, Write,
};
use onlyonce_wire::{Incarnation, OpenedAt, Seq, Session, SessionId, codec, limits};

use solo::{Solo, incr, keyed, outcome, put, refusal, request, text};

/// A repeated request gets the byte-identical reply, marked `replayed`, also after a crash; the
/// effect is there once.
#[test]
fn a_saved_reply_is_replayed() {
    let mut node = Solo::new();
    let session = node.session(1);
    let first = node.call(request(session, 1, 1, &incr("n", 5)));
    assert_eq!(outcome(&first), (Outcome::Integer(5), false));
    let again = node.call(request(session, 1, 1, &incr("n", 5)));
    assert_eq!(outcome(&again), (Outcome::Integer(5), true));

    let mut node = node.reopen();
    let after = node.call(request(session, 1, 1, &incr("n", 5)));
    assert_eq!(again, after, "the same bytes before and after a crash");
    assert_eq!(node.get("n").as_deref(), Some("5"));
}

/// A duplicate of a request that is still being written waits for it; both get the one reply.
#[test]
fn a_duplicate_of_a_pending_request_joins_it() {
    let mut node = Solo::new();
    let session = node.session(1);
    let original = node.ask(request(session, 1, 1, &incr("n", 1)));
    let duplicate = node.ask(request(session, 1, 1, &incr("n", 1)));
    let other = node.ask(request(session, 1, 1, &incr("n", 2)));
    assert!(node.replies.is_empty(), "nothing is answered before it is durable");
    node.flush();
    let original = node.answer_to(original).expect("answered");
    let duplicate = node.answer_to(duplicate).expect("answered");
    assert_eq!(outcome(&original), (Outcome::Integer(1), false));
    assert_eq!(outcome(&duplicate), (Outcome::Integer(1), true));
    let other = node.answer_to(other).expect("answered");
    assert_eq!(refusal(other), Refusal::Mismatch);
}

/// An id that was used with other content is refused and does not execute.
#[test]
fn other_content_under_an_id_is_a_mismatch() {
    let mut node = Solo::new();
    let session = node.session(1);
    node.call(request(session, 1, 1, &incr("n", 1)));
    assert_eq!(refusal(node.call(request(session, 1, 1, &incr("n", 2)))), Refusal::Mismatch);
    node.call(keyed("order-1", &incr("n", 1)));
    assert_eq!(refusal(node.call(keyed("order-1", &incr("n", 2)))), Refusal::Mismatch);
    assert_eq!(node.get("n").as_deref(), Some("2"));
}

/// Below the watermark a request is stale: its reply was acknowledged, and it never runs again.
#[test]
fn acknowledged_requests_are_stale() {
    let mut node = Solo::new();
    let session = node.session(1);
    node.call(request(session, 1, 1, &incr("n", 1)));
    node.call(request(session, 2, 2, &incr("n", 1)));
    for _ in 0..2 {
        let late = refusal(node.call(request(session, 1, 1, &incr("n", 1))));
        assert_eq!(late, Refusal::Stale { first_unacked: Seq(2) });
        node = node.reopen();
    }
    assert_eq!(node.get("n").as_deref(), Some("2"));
}

/// The watermark never falls: a late request with an older one does not bring replies back.
#[test]
fn the_watermark_never_falls() {
    let mut node = Solo::new();
    let session = node.session(1);
    node.call(request(session, 1, 1, &incr("n", 1)));
    node.call(request(session, 3, 3, &incr("n", 1)));
    node.call(request(session, 4, 1, &incr("n", 1)));
    let late = refusal(node.call(request(session, 2, 1, &incr("n", 1))));
    assert_eq!(late, Refusal::Stale { first_unacked: Seq(3) });
}

/// Requests run in any order within the window, and not beyond it.
#[test]
fn the_window_is_bounded() {
    let mut node = Solo::new();
    let session = node.session(1);
    let last = limits::WINDOW;
    assert_eq!(
        outcome(&node.call(request(session, last, 1, &incr("n", 1)))).0,
        Outcome::Integer(1)
    );
    let beyond = refusal(node.call(request(session, last + 1, 1, &incr("n", 1))));
    assert!(matches!(beyond, Refusal::WindowFull { first_unacked: Seq(1), .. }), "{beyond}");
    assert_eq!(outcome(&node.call(request(session, 1, 1, &incr("n", 1)))).0, Outcome::Integer(2));
    let moved = node.call(request(session, last + 1, 2, &incr("n", 1)));
    assert_eq!(outcome(&moved).0, Outcome::Integer(3));
}

/// Impossible seqs are refused, not guessed at.
#[test]
fn impossible_seqs_are_invalid() {
    let mut node = Solo::new();
    let session = node.session(1);
    for (seq, first_unacked) in [(0, 0), (1, 0), (1, 2), (0, 1), (u64::MAX, 1)] {
        let refused = refusal(node.call(request(session, seq, first_unacked, &incr("n", 1))));
        assert!(matches!(refused, Refusal::Invalid(_)), "{seq}, {first_unacked}: {refused}");
    }
    let last = u64::MAX - 1;
    let far = request(session, last, last, &incr("n", 1));
    assert_eq!(outcome(&node.call(far)).0, Outcome::Integer(1), "the last seq works too");
}

/// A session is matched exactly: an unknown id, or a known one opened elsewhere, never executes.
#[test]
fn unknown_sessions_never_execute() {
    let mut node = Solo::new();
    let session = node.session(1);
    let strangers = [
        Session { id: SessionId(2), ..session },
        Session { opened_at: OpenedAt(session.opened_at.0 - 1), ..session },
    ];
    for stranger in strangers {
        let refused = refusal(node.call(request(stranger, 1, 1, &incr("n", 1))));
        assert_eq!(refused, Refusal::SessionExpired, "{stranger}");
    }
    let future = Session { opened_at: OpenedAt(1_000), ..session };
    let answer = node.call(request(future, 1, 1, &incr("n", 1)));
    assert_eq!(answer, Answer::AskAgain, "opened beyond what this node knows");
    assert_eq!(node.get("n"), None);
}

/// Opening a session again returns the same one, also after a crash.
#[test]
fn opening_again_returns_the_same_session() {
    let mut node = Solo::new();
    let session = node.session(1);
    assert_eq!(node.session(1), session);
    let mut node = node.reopen();
    assert_eq!(node.session(1), session);
    assert_ne!(node.session(2).opened_at, session.opened_at);
}

/// A closed session is gone; the same id opened again is another session.
#[test]
fn a_closed_session_is_gone() {
    let mut node = Solo::new();
    let session = node.session(1);
    node.call(request(session, 1, 1, &incr("n", 1)));
    let close = Request::Close { incarnation: Incarnation(1), session };
    assert_eq!(node.call(close.clone()), Answer::Closed);
    assert_eq!(refusal(node.call(close)), Refusal::SessionExpired);
    let late = refusal(node.call(request(session, 1, 1, &incr("n", 1))));
    assert_eq!(late, Refusal::SessionExpired);
    let second = node.session(1);
    assert_ne!(second, session);
    let late = refusal(node.call(request(session, 2, 1, &incr("n", 1))));
    assert_eq!(late, Refusal::SessionExpired, "the old one stays gone");
    assert_eq!(node.get("n").as_deref(), Some("1"));
}

/// An idle session expires by a logged entry; one that is used, or has a request pending, does not.
#[test]
fn idle_sessions_expire_by_a_logged_entry() {
    let mut node = Solo::new();
    let (idle, used) = (node.session(1), node.session(2));
    node.call(request(idle, 1, 1, &incr("n", 1)));
    node.now = node.now.after(Timing::default().session_idle.mul_f64(0.999));
    node.tick();
    node.call(request(used, 1, 1, &incr("n", 1)));
    node.now = node.now.after(Duration::from_secs(2));
    node.tick();
    node.flush();
    assert_eq!(node.replica.status().sessions, 1);
    let late = refusal(node.call(request(idle, 1, 1, &incr("n", 1))));
    assert_eq!(late, Refusal::SessionExpired);

    let mut node = node.reopen();
    assert_eq!(node.replica.status().sessions, 1, "expiry is in the log");
    let replayed = node.call(request(used, 1, 1, &incr("n", 1)));
    assert_eq!(outcome(&replayed), (Outcome::Integer(2), true));
}

/// A request that is not yet durable keeps its session from expiring.
#[test]
fn a_pending_request_keeps_its_session() {
    let mut node = Solo::new();
    let session = node.session(1);
    let call = node.ask(request(session, 1, 1, &incr("n", 1)));
    node.now = node.now.after(Timing::default().session_idle * 2);
    node.tick();
    node.flush();
    let answer = node.answer_to(call).expect("answered");
    assert_eq!(outcome(&answer).0, Outcome::Integer(1));
    assert_eq!(node.replica.status().sessions, 1);
}

/// Saved replies are never evicted: past their limit new work is refused until some are
/// acknowledged, and old replies are still there.
#[test]
fn saved_replies_are_bounded_and_never_evicted() {
    let mut node = Solo::new();
    let session = node.session(1);
    let value = "v".repeat(limits::VALUE_BYTES_MAX);
    node.run(&Operation::Write(put("big", &value)));
    let read =
        Operation::Txn { compares: Vec::new(), writes: vec![Write::Get { key: text("big") }] };
    let mut seq = 0;
    let refused = loop {
        seq += 1;
        match node.call(request(session, seq, 1, &read)) {
            Answer::Refused(refused) => break refused,
            answer => assert!(!outcome(&answer).1),
        }
        assert!(seq < 20, "no limit was met");
    };
    assert!(matches!(refused, Refusal::Busy(_)), "{refused}");
    assert!(outcome(&node.call(request(session, 1, 1, &read))).1, "the first is still there");
    let acknowledged = node.call(request(session, seq, 3, &read));
    assert!(!outcome(&acknowledged).1, "acknowledging makes room");
}

/// Ids of another incarnation are void, and those of a later one are not spoken of.
#[test]
fn incarnations_are_matched() {
    let mut node = Solo::new();
    let session = node.session(1);
    for (incarnation, expected) in [
        (Incarnation(0), Answer::Refused(Refusal::OtherIncarnation { current: Incarnation(1) })),
        (Incarnation(2), Answer::AskAgain),
    ] {
        let request = Request::Execute(Execute {
            incarnation,
            id: ExecuteId::Session { session, seq: Seq(1), first_unacked: Seq(1) },
            operation: codec::encode(&incr("n", 1)).into(),
        });
        assert_eq!(node.call(request), expected);
    }
}

/// Keys outlive sessions: whoever repeats one gets the first reply, also after a crash.
#[test]
fn idempotency_keys_are_remembered() {
    let mut node = Solo::new();
    let first = outcome(&node.call(keyed("order-1234", &incr("n", 1))));
    assert_eq!(first, (Outcome::Integer(1), false));
    let mut node = node.reopen();
    let again = outcome(&node.call(keyed("order-1234", &incr("n", 1))));
    assert_eq!(again, (Outcome::Integer(1), true));
    let alike = outcome(&node.call(keyed("order-12345", &incr("n", 1))));
    assert_eq!(alike, (Outcome::Integer(2), false), "a look-alike is another key");
    assert_eq!(node.replica.status().idempotency_keys, 2);
}

/// What the operations do.
#[test]
fn operations_do_what_they_say() {
    let mut node = Solo::new();
    let append =
        |value: &str| Operation::Write(Write::Append { key: text("a"), value: text(value) });
    assert_eq!(node.run(&Operation::Write(put("k", "v"))), Outcome::Done);
    assert_eq!(node.run(&append("one")), Outcome::Length(3));
    assert_eq!(node.run(&append("two")), Outcome::Length(6));
    assert_eq!(node.get("a").as_deref(), Some("onetwo"));
    assert_eq!(node.run(&incr("a", 1)), Outcome::Failed(Failure::NotAnInteger));
    assert_eq!(node.run(&incr("i", i64::MAX)), Outcome::Integer(i64::MAX));
    assert_eq!(node.run(&incr("i", 1)), Outcome::Failed(Failure::Overflow));
    let delete = |key: &str| Operation::Write(Write::Delete { key: text(key) });
    assert_eq!(node.run(&delete("k")), Outcome::Deleted(true));
    assert_eq!(node.run(&delete("k")), Outcome::Deleted(false));
    let cas = |expected: Option<&str>| Operation::Cas {
        key: text("c"),
        expected: expected.map(text),
        value: text("new"),
    };
    assert_eq!(node.run(&cas(None)), Outcome::Compared { swapped: true, actual: None });
    let actual = Some(text("new"));
    assert_eq!(node.run(&cas(None)), Outcome::Compared { swapped: false, actual });
}

/// An append beyond the longest value changes nothing, and that is a saved result.
#[test]
fn an_append_beyond_the_limit_fails_as_a_result() {
    let mut node = Solo::new();
    node.run(&Operation::Write(put("k", &"v".repeat(limits::VALUE_BYTES_MAX))));
    let append = Operation::Write(Write::Append { key: text("k"), value: text("x") });
    let failed = outcome(&node.call(keyed("a", &append)));
    assert!(matches!(failed, (Outcome::Failed(Failure::ValueTooLong { .. }), false)));
    assert!(outcome(&node.call(keyed("a", &append))).1, "it is replayed like any result");
}

/// A transaction writes all or nothing, and its writes see those before them.
#[test]
fn transactions_are_all_or_nothing() {
    let mut node = Solo::new();
    let compare = |condition| vec![Compare { key: text("a"), condition }];
    let transfer = |condition, by| Operation::Txn {
        compares: compare(condition),
        writes: vec![put("a", "10"), Write::Incr { key: text("a"), by }],
    };
    let committed = node.run(&transfer(Condition::Absent, -3));
    let outcomes = vec![Outcome::Done, Outcome::Integer(7)];
    assert_eq!(committed, Outcome::Txn(TxnOutcome::Committed(outcomes)));
    let failed = node.run(&transfer(Condition::Absent, -3));
    assert_eq!(failed, Outcome::Txn(TxnOutcome::CompareFailed(0)));
    let failed = node.run(&transfer(Condition::Equals(text("7")), i64::MAX));
    assert_eq!(failed, Outcome::Txn(TxnOutcome::WriteFailed(1, Failure::Overflow)));
    assert_eq!(node.get("a").as_deref(), Some("7"), "nothing of a failed one is left");
}

/// A transaction whose appends would write too much changes nothing.
#[test]
fn a_transaction_cannot_write_without_bound() {
    let mut node = Solo::new();
    let keys: Vec<String> = (0..6).map(|key| format!("big-{key}")).collect();
    for key in &keys {
        node.run(&Operation::Write(put(key, &"v".repeat(limits::VALUE_BYTES_MAX - 1))));
    }
    let writes = keys.iter().map(|key| Write::Append { key: text(key), value: text("x") });
    let outcome = node.run(&Operation::Txn { compares: Vec::new(), writes: writes.collect() });
    let too_long =
        matches!(outcome, Outcome::Txn(TxnOutcome::WriteFailed(_, Failure::EntryTooLong { .. })));
    assert!(too_long, "{outcome:?}");
    assert_eq!(node.get("big-0").map(|value| value.len()), Some(limits::VALUE_BYTES_MAX - 1));
}

/// A scan returns rows in order, stops at its limits, and can be gone on with.
#[test]
fn scans_are_ordered_and_bounded() {
    let mut node = Solo::new();
    for key in ["b", "a", "c", "d"] {
        node.run(&Operation::Write(put(key, key)));
    }
    node.run(&Operation::Write(Write::Delete { key: text("c") }));
    let mut scan = |start: &str, limit| {
        let read = Read::Scan { start: text(start), end: Some(text("z")), limit };
        match node.call(Request::Read(read)) {
            Answer::Read(Outcome::Rows { rows, next }) => {
                let keys: Vec<Bytes> = rows.into_iter().map(|(key, _)| key).collect();
                (keys, next)
            }
            other => panic!("a scan: {other:?}"),
        }
    };
    assert_eq!(scan("", 10), (vec![text("a"), text("b"), text("d")], None));
    assert_eq!(scan("", 2), (vec![text("a"), text("b")], Some(text("d"))));
    assert_eq!(scan("d", 2), (vec![text("d")], None));
}

/// A scan over the longest values always makes progress.
#[test]
fn a_scan_of_the_longest_values_makes_progress() {
    let mut node = Solo::new();
    let key = "k".repeat(limits::KEY_BYTES_MAX);
    node.run(&Operation::Write(put(&key, &"v".repeat(limits::VALUE_BYTES_MAX))));
    node.run(&Operation::Write(put("z", &"v".repeat(16 << 10))));
    let read = Read::Scan { start: Bytes::new(), end: None, limit: 10 };
    let Answer::Read(Outcome::Rows { rows, next }) = node.call(Request::Read(read)) else {
        panic!("no rows");
    };
    assert_eq!(rows.len(), 1);
    assert_eq!(next, Some(text("z")));
}

/// What does not decode, and what is too large, is refused and named; nothing is executed.
#[test]
fn bad_operations_are_refused() {
    let mut node = Solo::new();
    let session = node.session(1);
    let garbage = Request::Execute(Execute {
        incarnation: Incarnation(1),
        id: ExecuteId::Session { session, seq: Seq(1), first_unacked: Seq(1) },
        operation: text("garbage"),
    });
    assert!(matches!(refusal(node.call(garbage)), Refusal::Invalid(_)));
    let long = "k".repeat(limits::KEY_BYTES_MAX + 1);
    let refused = refusal(node.call(request(session, 1, 1, &incr(&long, 1))));
    assert!(matches!(refused, Refusal::TooLarge { size: 4097, limit: 4096, .. }), "{refused}");
    let fine = node.call(request(session, 1, 1, &incr("n", 1)));
    assert_eq!(outcome(&fine), (Outcome::Integer(1), false), "a refusal is not saved");
}

/// A read sees what is staged, and is answered only when that is durable.
#[test]
fn reads_wait_for_what_they_saw() {
    let mut node = Solo::new();
    node.run(&incr("old", 1));
    let write = node.ask(keyed("k", &incr("new", 1)));
    let fresh = node.ask(Request::Read(Read::Get { key: text("new") }));
    let settled = node.ask(Request::Read(Read::Get { key: text("old") }));
    assert!(node.answer_to(settled).is_some(), "what is committed is told at once");
    assert!(node.answer_to(fresh).is_none(), "what is not durable is not told");
    node.flush();
    assert!(node.answer_to(write).is_some());
    let Some(Answer::Read(Outcome::Value(Some(value)))) = node.answer_to(fresh) else {
        panic!("no value");
    };
    assert_eq!(value, text("1"));
}
