//! What became of a request, and requests that are cancelled.

mod solo;

use onlyonce_wire::client::{
    Answer, Fate, Fingerprint, Outcome, Question, Refusal, Request, RequestId,
};
use onlyonce_wire::{IdempotencyKey, Incarnation, Seq, Session, SessionId, codec};

use solo::{Solo, incr, keyed, outcome, refusal, request};

fn question(id: RequestId) -> Question {
    Question { incarnation: Incarnation(1), id, first_unacked: Seq(1), fingerprint: None }
}

fn of_key(key: &str) -> Question {
    question(RequestId::Key(IdempotencyKey::new(key.to_owned()).expect("a key")))
}

fn of_seq(session: Session, seq: u64) -> Question {
    question(RequestId::Seq { session, seq: Seq(seq) })
}

fn fate(answer: Answer) -> Fate {
    match answer {
        Answer::Fate { fate, .. } => fate,
        other => panic!("no fate: {other:?}"),
    }
}

fn done(by: i64) -> Fate {
    Fate::Done { reply: codec::encode(&Outcome::Integer(by)).into() }
}

/// An outcome says what became of a request, and changes nothing.
#[test]
fn an_outcome_changes_nothing() {
    let mut node = Solo::new();
    let session = node.session(1);
    for asked in [of_seq(session, 1), of_key("order-1")] {
        assert_eq!(fate(node.call(Request::Outcome(asked))), Fate::NeverSeen);
    }
    let call = node.ask(request(session, 1, 1, &incr("n", 1)));
    let pending = node.ask(Request::Outcome(of_seq(session, 1)));
    assert_eq!(node.answer_to(pending).map(fate), Some(Fate::Pending), "told at once");
    node.flush();
    assert!(node.answer_to(call).is_some());
    node.call(keyed("order-1", &incr("n", 1)));
    let mut node = node.reopen();
    assert_eq!(fate(node.call(Request::Outcome(of_seq(session, 1)))), done(1));
    assert_eq!(fate(node.call(Request::Outcome(of_key("order-1")))), done(2));
    assert_eq!(node.get("n").as_deref(), Some("2"));
}

/// Whoever is first wins, and both learn the same: a request that is cancelled never runs, one that
/// ran cannot be cancelled. Also after a crash.
#[test]
fn a_cancel_and_its_request_agree() {
    let mut node = Solo::new();
    let session = node.session(1);
    assert_eq!(fate(node.call(Request::Cancel(of_seq(session, 1)))), Fate::Cancelled);
    assert_eq!(fate(node.call(Request::Cancel(of_key("order-1")))), Fate::Cancelled);
    node.call(request(session, 2, 1, &incr("n", 1)));
    assert_eq!(fate(node.call(Request::Cancel(of_seq(session, 2)))), done(1));
    let mut node = node.reopen();
    for late in [request(session, 1, 1, &incr("n", 1)), keyed("order-1", &incr("n", 1))] {
        assert_eq!(refusal(node.call(late)), Refusal::Cancelled);
    }
    for asked in [of_seq(session, 1), of_key("order-1")] {
        assert_eq!(fate(node.call(Request::Outcome(asked.clone()))), Fate::Cancelled);
        assert_eq!(fate(node.call(Request::Cancel(asked))), Fate::Cancelled);
    }
    assert_eq!(node.get("n").as_deref(), Some("1"));
}

/// A cancel waits for what it rests on: the request that is under way, or its own entry.
#[test]
fn a_cancel_is_durable_before_it_is_told() {
    let mut node = Solo::new();
    let session = node.session(1);
    let running = node.ask(request(session, 1, 1, &incr("n", 1)));
    let late = node.ask(Request::Cancel(of_seq(session, 1)));
    let cancel = node.ask(Request::Cancel(of_seq(session, 2)));
    let cancelled = node.ask(request(session, 2, 1, &incr("n", 1)));
    for call in [running, late, cancel, cancelled] {
        assert_eq!(node.answer_to(call), None, "nothing is durable yet");
    }
    node.flush();
    assert_eq!(node.answer_to(late).map(fate), Some(done(1)));
    assert_eq!(node.answer_to(cancel).map(fate), Some(Fate::Cancelled));
    assert_eq!(node.answer_to(cancelled).map(refusal), Some(Refusal::Cancelled));
}

/// A handle knows the content of its request: another one under the same id is told apart.
#[test]
fn another_request_under_the_id_is_told_apart() {
    let mut node = Solo::new();
    let operation = incr("n", 1);
    node.call(keyed("order-1", &operation));
    let fingerprint = Some(Fingerprint::of(&codec::encode(&operation)));
    let same = Question { fingerprint, ..of_key("order-1") };
    let other = Question { fingerprint: Some(Fingerprint(1)), ..of_key("order-1") };
    assert_eq!(fate(node.call(Request::Outcome(same.clone()))), done(1));
    assert_eq!(fate(node.call(Request::Cancel(same))), done(1));
    assert_eq!(refusal(node.call(Request::Outcome(other.clone()))), Refusal::Mismatch);
    assert_eq!(refusal(node.call(Request::Cancel(other))), Refusal::Mismatch);
}

/// Of what is forgotten nothing is made up: an acknowledged request is stale, one of a session that
/// is over has gone with it, one too far ahead is not remembered.
#[test]
fn what_is_forgotten_is_refused() {
    let mut node = Solo::new();
    let session = node.session(1);
    node.call(request(session, 1, 1, &incr("n", 1)));
    node.call(request(session, 2, 2, &incr("n", 1)));
    let unknown = Session { id: SessionId(9), ..session };
    for ask in [Request::Outcome, Request::Cancel] {
        let stale = Refusal::Stale { first_unacked: Seq(2) };
        assert_eq!(refusal(node.call(ask(of_seq(session, 1)))), stale);
        assert_eq!(refusal(node.call(ask(of_seq(unknown, 1)))), Refusal::SessionExpired);
        for bad in [0, u64::MAX] {
            let refused = refusal(node.call(ask(of_seq(session, bad))));
            assert!(matches!(refused, Refusal::Invalid(_)), "{refused:?}");
        }
    }
    let ahead = refusal(node.call(Request::Cancel(of_seq(session, 2_000))));
    assert!(matches!(ahead, Refusal::WindowFull { .. }), "{ahead:?}");
}

/// Whoever knows what a request's client has seen makes room for its cancel, as a copy of it would.
#[test]
fn a_cancel_tells_the_watermark() {
    let mut node = Solo::new();
    let session = node.session(1);
    node.call(request(session, 1, 1, &incr("n", 1)));
    let seen = |first_unacked| Question { first_unacked, ..of_seq(session, 2_000) };
    for bad in [Seq(0), Seq(2_001)] {
        let refused = refusal(node.call(Request::Cancel(seen(bad))));
        assert!(matches!(refused, Refusal::Invalid(_)), "{refused:?}");
    }
    let full = refusal(node.call(Request::Cancel(seen(Seq(1_000 - 24)))));
    assert!(matches!(full, Refusal::WindowFull { .. }), "{full:?}");
    assert_eq!(fate(node.call(Request::Cancel(seen(Seq(1_000))))), Fate::Cancelled);
    let acknowledged = Refusal::Stale { first_unacked: Seq(1_000) };
    let mut node = node.reopen();
    assert_eq!(refusal(node.call(Request::Outcome(of_seq(session, 1)))), acknowledged);
    assert_eq!(fate(node.call(Request::Outcome(of_seq(session, 2_000)))), Fate::Cancelled);
}

/// A request without an id runs as often as it arrives, and nothing is remembered of it.
#[test]
fn an_anonymous_request_is_repeated() {
    let mut node = Solo::new();
    for count in 1..=2 {
        let answer = node.call(solo::anonymous(&incr("n", 1)));
        assert_eq!(outcome(&answer), (Outcome::Integer(count), false));
    }
    assert_eq!(node.replica.status().idempotency_keys, 0);
}

/// That a session is not listed rests on the entry that ended it.
#[test]
fn a_session_is_gone_once_that_is_committed() {
    let mut node = Solo::new();
    let session = node.session(5);
    node.ask(Request::Close { incarnation: Incarnation(1), session });
    let list = node.ask(Request::Sessions { after: None, limit: 10 });
    assert_eq!(node.answer_to(list), None, "the end is not committed");
    node.flush();
    assert_eq!(node.answer_to(list), Some(Answer::Sessions { sessions: vec![], more: false }));
}

/// Sessions are listed in the order of their ids, page by page, and shown with what is remembered of
/// their requests.
#[test]
fn sessions_are_listed_and_shown() {
    let mut node = Solo::new();
    let sessions: Vec<_> = [5, 3, 9].map(|id| node.session(id)).into();
    node.call(request(sessions[0], 1, 1, &incr("n", 1)));
    node.call(Request::Cancel(of_seq(sessions[0], 3)));
    let mut page = |after: Option<u128>, limit| match node
        .call(Request::Sessions { after: after.map(SessionId), limit })
    {
        Answer::Sessions { sessions, more } => {
            (sessions.iter().map(|it| it.session.id.0).collect::<Vec<_>>(), more)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(page(None, 2), (vec![3, 5], true));
    assert_eq!(page(Some(5), 2), (vec![9], false));
    let Answer::Session(Some(shown)) = node.call(Request::Session(SessionId(5))) else { panic!() };
    assert_eq!(shown.status.session, sessions[0]);
    let saved: Vec<_> = shown.saved.iter().map(|it| (it.seq.0, it.reply_bytes)).collect();
    assert_eq!(saved, [(1, Some(2)), (3, None)]);
    assert_eq!(node.call(Request::Session(SessionId(4))), Answer::Session(None));
}
