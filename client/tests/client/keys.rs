//! Requests under keys of the caller's.

use std::time::{Duration, Instant};

use onlyonce_client::{
    Client, Error, Executed, IdempotencyKey, IdempotencyKeyError, Incarnation, Limit, Operation,
    Outcome, Refusal, RequestId, UnresolvedReason, Write, fresh_key, limits,
};
use onlyonce_wire::client::{Answer, ExecuteId};

use crate::client;
use crate::fake::{FakeNode, KEPT_FOR_MS, Model, Reaction, Received};

fn incr(key: &str) -> Operation {
    Operation::Write(Write::Incr { key: key.to_owned().into(), by: 1 })
}

fn key_of(received: &Received) -> IdempotencyKey {
    match &received.execute().expect("an execute").id {
        ExecuteId::Key(key) => key.clone(),
        other => panic!("{other:?}"),
    }
}

/// Text becomes a named key, the text of a `UUIDv7` a timed one, a key itself; bad ones are refused
/// at once.
#[tokio::test]
async fn keys_are_taken_as_they_come() {
    let client = Client::builder().nodes(["127.0.0.1:1"]).build().expect("an address");
    let named = client.with_key("order-1234").expect("a fine key");
    assert_eq!(named.key().time_ms(), None);
    let fresh = fresh_key();
    let timed = client.with_key(fresh.to_string()).expect("a fine key");
    assert_eq!(*timed.key(), fresh);
    assert_eq!(*client.with_key(fresh.clone()).expect("a key already").key(), fresh);
    assert_eq!(client.with_key("").err(), Some(IdempotencyKeyError::Empty));
    let bytes = 10 << 10;
    let too_long = client.with_key("k".repeat(bytes)).expect_err("too long");
    assert_eq!(too_long, IdempotencyKeyError::TooLong { bytes });
    let most = limits::IDEMPOTENCY_KEY_BYTES_MAX.to_string();
    assert!(too_long.to_string().contains(&most), "{too_long}");
}

/// Lost answers are asked for again, with the same bytes under the same key; another client with the
/// key gets the same reply, and is told that it is a repeated one.
#[tokio::test]
async fn one_key_is_one_request() {
    let model = Model::shared();
    let mut copies = 0;
    let node = FakeNode::start(&model, move |_| {
        copies += 1;
        if copies <= 3 { Reaction::ServeAndCut } else { Reaction::Serve }
    })
    .await;
    let keyed = client(&node).with_key("order-1").expect("a fine key");
    assert_eq!(keyed.incr("n", 1).await.expect("counted"), 1);
    let sent = node.executes();
    assert_eq!(sent.len(), 4);
    assert!(sent.iter().all(|copy| copy.bytes == sent[0].bytes), "{sent:?}");

    let other = client(&node).with_key("order-1").expect("a fine key");
    let told = other.execute_told(incr("n")).await.expect("counted");
    let kept_for = Some(Duration::from_millis(KEPT_FOR_MS));
    assert_eq!(told, Executed { outcome: Outcome::Integer(1), replayed: true, kept_for });
    assert_eq!(model.lock().expect("kept rules").executed, 1);
}

/// Other content under the key is refused, for good.
#[tokio::test]
async fn other_content_is_refused() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let keyed = client(&node).with_key("order-1").expect("a fine key");
    keyed.put("n", "1").await.expect("done");
    let error = keyed.put("n", "2").await.expect_err("other content");
    assert!(matches!(error, Error::Refused(Refusal::Mismatch)), "{error:?}");
    assert!(error.to_string().contains("this id or key was already used"), "{error}");
    assert_eq!(model.lock().expect("kept rules").values[&b"n"[..]], "1");
}

/// A key that is forgotten is refused; after an unanswered copy that leaves doubt.
#[tokio::test]
async fn a_forgotten_key_is_not_replaced() {
    let model = Model::shared();
    let refuse = || Reaction::Answer(Answer::Refused(Refusal::Forgotten));
    let node = FakeNode::start(&model, move |_| refuse()).await;
    let keyed = client(&node).with_key(fresh_key()).expect("a key");
    let error = keyed.incr("n", 1).await.expect_err("forgotten");
    assert!(matches!(error, Error::Refused(Refusal::Forgotten)), "{error:?}");

    let mut copies = 0;
    node.script(move |_| {
        copies += 1;
        if copies == 1 { Reaction::Cut } else { refuse() }
    });
    let error = keyed.incr("n", 1).await.expect_err("doubt");
    let Error::Unresolved(unresolved) = error else { panic!("{error:?}") };
    assert_eq!(*unresolved.reason(), UnresolvedReason::Refused(Refusal::Forgotten));
    assert_eq!(*unresolved.handle().id(), RequestId::Key(keyed.key().clone()));
}

/// A one-shot client whose clock is far behind is told so, and does not try for ever.
#[tokio::test]
async fn a_clock_that_is_behind_is_named() {
    let model = Model::shared();
    let node =
        FakeNode::start(&model, |_| Reaction::Answer(Answer::Refused(Refusal::Forgotten))).await;
    let client = crate::builder([&node]).one_shot().build().expect("an address");
    let error = client.incr("n", 1).await.expect_err("its key is too old");
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");
    assert!(error.to_string().contains("clock"), "{error}");
    assert_eq!(node.executes().len(), 1);
}

/// A key that was not used yet goes on into a new incarnation, as the same key.
#[tokio::test]
async fn a_key_goes_on_in_a_new_incarnation() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let client = client(&node);
    client.get("n").await.expect("connected");
    model.lock().expect("kept rules").incarnation = Incarnation(2);
    let keyed = client.with_key("order-1").expect("a fine key");
    assert_eq!(keyed.incr("n", 1).await.expect("counted"), 1);
    let sent = node.executes();
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|copy| key_of(copy) == *keyed.key()), "{sent:?}");
}

/// Under a named key no copy leaves once the key of an earlier one may be forgotten, however that was
/// lost: the call ends by itself, and says why.
#[tokio::test]
async fn no_copy_leaves_after_the_retention() {
    const RETENTION: Duration = Duration::from_millis(900);
    for lose in [|| Reaction::LoseAnswer, || Reaction::Cut, || Reaction::Answer(Answer::AskAgain)] {
        let model = Model::shared();
        let node = FakeNode::start(&model, move |_| lose()).await;
        remember_for(&node, RETENTION);
        let keyed = client(&node).with_key("order-1").expect("a fine key");
        let begun = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(10), keyed.incr("n", 1)).await;
        let Ok(Err(Error::Unresolved(unresolved))) = ended else { panic!("{ended:?}") };
        assert_eq!(*unresolved.reason(), UnresolvedReason::KeyExpired(RETENTION));
        assert!(begun.elapsed() >= RETENTION / 8 * 7, "given up after {:?}", begun.elapsed());
        assert!(node.executes().len() > 1, "it was sent once only");
        assert_eq!(*unresolved.handle().id(), RequestId::Key(keyed.key().clone()));
    }
}

/// Whoever resumes by a handle again and again comes to the same end: the handle takes the time of the
/// first copy along, within its process. Its text does not.
#[tokio::test]
async fn a_handle_takes_the_time_along() {
    const RETENTION: Duration = Duration::from_millis(900);
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::LoseAnswer).await;
    remember_for(&node, RETENTION);
    let client = crate::builder([&node]).deadline(RETENTION / 3).build().expect("an address");
    let begun = Instant::now();
    let mut ended = client.with_key("order-1").expect("a fine key").execute_told(incr("n")).await;
    let handle = loop {
        let Err(Error::Unresolved(unresolved)) = &ended else { panic!("{ended:?}") };
        let handle = unresolved.handle().clone();
        match unresolved.reason() {
            UnresolvedReason::KeyExpired(RETENTION) => break handle,
            UnresolvedReason::Deadline(_) => {
                assert!(begun.elapsed() < RETENTION * 10, "it is sent for ever");
                ended = client.resume(&handle).await;
            }
            other => panic!("{other:?}"),
        }
    };
    let sent = node.executes().len();
    let ended = client.resume(&handle).await;
    assert!(matches!(ended, Err(Error::Unresolved(_))) && node.executes().len() == sent);
    node.script(|_| Reaction::Serve);
    let text = handle.to_string().parse().expect("a handle");
    assert!(client.resume(&text).await.is_ok_and(|told| told.replayed));
}

/// A copy that did nothing is no reason to stop, however old it is; nor is any copy under a timed key,
/// which is refused once it is forgotten.
#[tokio::test]
async fn only_copies_that_may_have_run_age_a_named_key() {
    const RETENTION: Duration = Duration::from_millis(50);
    let timed = fresh_key();
    for (key, lose) in [(IdempotencyKey::new("order-1").expect("a fine key"), false), (timed, true)]
    {
        let model = Model::shared();
        let begun = Instant::now();
        let node =
            FakeNode::start(&model, move |_| match (begun.elapsed() < RETENTION * 4, lose) {
                (true, true) => Reaction::Cut,
                (true, false) => Reaction::Answer(Answer::Refused(Refusal::Busy(Limit::Queue))),
                (false, _) => Reaction::Serve,
            })
            .await;
        remember_for(&node, RETENTION);
        let keyed = client(&node).with_key(key).expect("a key");
        assert_eq!(keyed.incr("n", 1).await.expect("counted"), 1);
        assert!(begun.elapsed() >= RETENTION * 4 && node.executes().len() > 1);
    }
}

/// From now on the node says that it remembers named keys for so long.
fn remember_for(node: &FakeNode, retention: Duration) {
    node.greet_with(|greeting| {
        let welcome = greeting.as_mut().expect("it says welcome");
        welcome.key_retention_ms = retention.as_millis() as u64;
    });
}
