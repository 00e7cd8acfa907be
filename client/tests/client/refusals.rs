//! What a refusal means depends on the other copies of the request.

use onlyonce_client::{Error, Failure, Incarnation, Refusal, Txn, UnresolvedReason, limits};
use onlyonce_wire::Seq;
use onlyonce_wire::client::{Answer, Part};

use crate::client;
use crate::fake::{FakeNode, Model, Reaction, Received, executes, until};

/// Executes are treated in turn; everything else is served.
async fn node(reactions: Vec<Reaction>) -> (FakeNode, std::sync::Arc<std::sync::Mutex<Model>>) {
    let model = Model::shared();
    let mut reactions = reactions.into_iter();
    let node =
        FakeNode::start(&model, executes(move || reactions.next().unwrap_or(Reaction::Serve)))
            .await;
    (node, model)
}

fn refuse(refusal: Refusal) -> Reaction {
    Reaction::Answer(Answer::Refused(refusal))
}

/// The first copy ever meets an expired session: nothing ran, so it goes on in a new session.
#[tokio::test]
async fn an_expired_session_is_replaced() {
    let (node, model) = node(vec![]).await;
    let client = client(&node);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    model.lock().expect("kept rules").sessions.clear();
    assert_eq!(client.incr("n", 1).await.expect("counted"), 2);
    let places: Vec<_> = node.executes().iter().filter_map(Received::place).collect();
    assert_eq!(places.len(), 3);
    assert_eq!(places[0].0, places[1].0);
    assert_ne!(places[1].0, places[2].0);
    assert_eq!(places[2].1, Seq(1));
}

/// After an unanswered copy the same refusal leaves doubt, and the request is not run again.
#[tokio::test]
async fn an_expired_session_after_an_unanswered_copy_is_unresolved() {
    let (node, model) =
        node(vec![Reaction::Serve, Reaction::ServeAndCut, refuse(Refusal::SessionExpired)]).await;
    let client = client(&node);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    let error = client.incr("n", 1).await.expect_err("doubt");
    let Error::Unresolved(unresolved) = error else { panic!("{error:?}") };
    let reason = UnresolvedReason::Refused(Refusal::SessionExpired);
    assert_eq!(*unresolved.reason(), reason);
    assert_eq!(model.lock().expect("kept rules").executed, 2);
    assert_eq!(client.incr("n", 0).await.expect("a new session"), 2);
}

/// A new incarnation: what never ran goes on in it, what may have run does not.
#[tokio::test]
async fn a_new_incarnation_is_adopted() {
    let (node, model) = node(vec![]).await;
    let client = client(&node);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    {
        let mut model = model.lock().expect("kept rules");
        model.incarnation = Incarnation(2);
        model.sessions.clear();
    }
    assert_eq!(client.incr("n", 1).await.expect("counted"), 2);
    let last = node.executes().pop().expect("executed");
    assert_eq!(last.execute().expect("an execute").incarnation, Incarnation(2));

    let mut copies = 0;
    node.script(move |received| {
        copies += usize::from(received.execute().is_some());
        let current = Incarnation(3);
        if copies == 1 { Reaction::Cut } else { refuse(Refusal::OtherIncarnation { current }) }
    });
    let error = client.incr("n", 1).await.expect_err("doubt");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");
}

/// A refusal that covers every copy is definite, even after an unanswered one.
#[tokio::test]
async fn never_runs_is_definite() {
    let (node, _) = node(vec![Reaction::Ignore, refuse(Refusal::Cancelled)]).await;
    let client = client(&node);
    let error = client.incr("n", 1).await.expect_err("cancelled");
    assert!(matches!(error, Error::Refused(Refusal::Cancelled)), "{error:?}");
    client.incr("n", 1).await.expect("the session goes on");
    let place = node.executes().last().and_then(Received::place).expect("in a session");
    assert_eq!((place.1, place.2), (Seq(2), Seq(2)));
}

/// A refusal of this copy alone ends a request with no other copies, and no other.
#[tokio::test]
async fn this_copy_is_not_all_copies() {
    let invalid = || refuse(Refusal::Invalid("so they say".to_owned()));
    let (first, _) = node(vec![invalid()]).await;
    let error = client(&first).incr("n", 1).await.expect_err("invalid");
    assert!(matches!(error, Error::Refused(Refusal::Invalid(_))), "{error:?}");

    let (second, _) = node(vec![Reaction::ServeAndCut, invalid(), invalid()]).await;
    assert_eq!(client(&second).incr("n", 1).await.expect("the first copy ran"), 1);
    assert_eq!(second.executes().len(), 4);
}

/// An impossible operation was executed, and says so.
#[tokio::test]
async fn an_impossible_operation_has_a_definite_result() {
    let (node, _) = node(vec![]).await;
    let client = client(&node);
    client.put("n", "ten").await.expect("done");
    let error = client.incr("n", 1).await.expect_err("impossible");
    assert!(matches!(error, Error::Failed(Failure::NotAnInteger)), "{error:?}");
}

/// What is too large is refused before it is sent, with the size and the limit.
#[tokio::test]
async fn sizes_are_checked_before_sending() {
    let (node, _) = node(vec![]).await;
    let client = client(&node);
    let key = vec![b'k'; limits::KEY_BYTES_MAX + 1];
    let error = client.get(key).await.expect_err("too long");
    assert_eq!(
        error.to_string(),
        "refused: the key is too large: 4097 bytes, at most 4096 are allowed"
    );
    let value = vec![0; limits::VALUE_BYTES_MAX + 1];
    let error = client.put("k", value).await.expect_err("too long");
    let what = Part::Value;
    assert!(
        matches!(error, Error::Refused(Refusal::TooLarge { what: w, .. }) if w == what),
        "{error:?}"
    );
    let txn = (0..=limits::TXN_OPERATIONS_MAX).fold(Txn::new(), |txn, _| txn.incr("n", 1));
    let error = client.txn(txn).await.expect_err("too many");
    assert!(matches!(error, Error::Refused(Refusal::TooLarge { .. })), "{error:?}");
    assert!(node.received().is_empty());
    // The longest that fits does go through.
    client.put("k", vec![0; limits::VALUE_BYTES_MAX]).await.expect("done");
    until("it arrived", || node.executes().len() == 1).await;
}
