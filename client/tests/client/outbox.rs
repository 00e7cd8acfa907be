//! What the outbox has when a call ends, and when it is dropped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use onlyonce_client::{
    BuildError, Client, Error, Incarnation, OutboxError, Outcome, Refusal, UnresolvedReason,
    fresh_key,
};
use onlyonce_wire::client::{Answer, Limit};
use onlyonce_wire::{ClusterId, StoreId};
use tempfile::TempDir;

use crate::builder;
use crate::fake::{CLUSTER, FakeNode, Model, Reaction, Received, executes, until};

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outbox");
    (folder, path)
}

fn client(node: &FakeNode, outbox: &Path) -> Client {
    let deadline = Duration::from_millis(300);
    builder([node]).outbox(outbox).deadline(deadline).build().expect("opens")
}

/// What a client would find if this one were killed now.
async fn found(node: &FakeNode, outbox: &Path) -> Vec<Result<Outcome, Error>> {
    let copy = outbox.with_extension("copy");
    std::fs::copy(outbox, &copy).expect("copied");
    let recovered = client(node, &copy).recover().await;
    recovered.into_iter().map(|recovered| recovered.result).collect()
}

fn refuse(refusal: Refusal) -> impl FnMut(&Received) -> Reaction {
    executes(move || Reaction::Answer(Answer::Refused(refusal.clone())))
}

/// Whoever is told that a request never took effect may send it as a new one: the outbox has it no
/// more, whenever the client dies afterwards.
#[tokio::test]
async fn what_never_ran_is_withdrawn_before_that_is_told() {
    let model = Model::shared();
    for refusal in [Refusal::Busy(Limit::Queue), Refusal::Mismatch, Refusal::Invalid("no".into())] {
        let node = FakeNode::start(&model, refuse(refusal.clone())).await;
        let (_folder, path) = folder();
        let client = client(&node, &path);
        let error = client.incr("n", 1).await.expect_err("refused");
        assert!(matches!(error, Error::NotSent(_) | Error::Refused(_)), "{error:?}");
        node.script(|_| Reaction::Serve);
        assert!(found(&node, &path).await.is_empty(), "{refusal}");
        assert!(client.recover().await.is_empty(), "{refusal}");
    }
    assert_eq!(client_value(&model).await, None, "nothing ran");
}

async fn client_value(model: &std::sync::Arc<std::sync::Mutex<Model>>) -> Option<bytes::Bytes> {
    let node = FakeNode::start(model, |_| Reaction::Serve).await;
    builder([&node]).build().expect("an address").get("n").await.expect("read")
}

/// A request that nobody answers is found, by this client and by the next, and runs once.
#[tokio::test]
async fn what_may_run_is_found() {
    let model = Model::shared();
    let lose = executes(|| Reaction::LoseAnswer);
    let node = FakeNode::start(&model, lose).await;
    let (_folder, path) = folder();
    let client = client(&node, &path);
    let error = client.incr("n", 1).await.expect_err("no answer");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");
    node.script(|_| Reaction::Serve);
    for _ in 0..2 {
        let found = found(&node, &path).await;
        assert!(matches!(found[..], [Ok(Outcome::Integer(1))]), "{found:?}");
    }
    let [recovered] = &client.recover().await[..] else { panic!("it was given up") };
    assert!(matches!(recovered.result, Ok(Outcome::Integer(1))), "{recovered:?}");
    assert!(client.recover().await.is_empty());
    assert_eq!(client_value(&model).await.as_deref(), Some(&b"1"[..]));
}

/// In a new incarnation a request that never ran goes on under a new key, and one that may have run is
/// unresolved for good: neither is found again under the old one.
#[tokio::test]
async fn nothing_stays_from_an_earlier_incarnation() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let (_folder, path) = folder();
    let client = client(&node, &path);
    let renew = |incarnation| model.lock().expect("nobody panicked").incarnation = incarnation;
    assert_eq!(client.incr("n", 1).await.expect("runs"), 1);
    renew(Incarnation(2));
    assert_eq!(client.incr("n", 1).await.expect("runs anew"), 2);
    assert!(client.recover().await.is_empty());

    node.script(executes(|| Reaction::LoseAnswer));
    let error = client.incr("n", 1).await.expect_err("no answer");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");
    renew(Incarnation(3));
    node.script(|_| Reaction::Serve);
    let [recovered] = &client.recover().await[..] else { panic!("it was given up") };
    let Err(Error::Unresolved(open)) = &recovered.result else { panic!("{recovered:?}") };
    assert!(matches!(open.reason(), UnresolvedReason::Refused(_)), "{open:?}");
    assert!(client.recover().await.is_empty());
    client.close().await;
    assert!(found(&node, &path).await.is_empty());
}

/// A call that is dropped may still take effect, once: it stays in the outbox, sent or not.
#[tokio::test]
async fn a_dropped_call_is_left_behind() {
    let model = Model::shared();
    let node = FakeNode::start(&model, executes(|| Reaction::Ignore)).await;
    let (_folder, path) = folder();
    let client = builder([&node]).outbox(&path).build().expect("opens");
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.incr("n", 1).await }
    });
    until("a request", || !node.executes().is_empty()).await;
    call.abort();
    assert!(call.await.expect_err("it was aborted").is_cancelled());
    node.script(|_| Reaction::Serve);
    let [recovered] = &client.recover().await[..] else { panic!("it was dropped") };
    assert!(matches!(recovered.result, Ok(Outcome::Integer(1))), "{recovered:?}");
}

/// The next client finds nothing of a request whose answer came, or finds the same answer.
#[tokio::test]
async fn what_ran_is_let_go() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let (_folder, path) = folder();
    let first = client(&node, &path);
    assert_eq!(first.incr("n", 1).await.expect("counted"), 1);
    let found = found(&node, &path).await;
    assert!(matches!(found[..], [] | [Ok(Outcome::Integer(1))]), "{found:?}");
    drop(first);
    let second = client(&node, &path);
    assert!(second.recover().await.is_empty(), "a client that ends in order leaves nothing");
    assert_eq!(second.incr("n", 1).await.expect("counted"), 2);
}

/// The request whose record failed may be found by somebody, and is told as open; those after it are
/// not in the file for certain. None of them is sent.
#[tokio::test]
async fn what_is_not_kept_is_not_sent() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let (_folder, path) = folder();
    let moved = path.with_extension("moved");
    let first = builder([&node]).outbox(&path).build().expect("opens");
    assert_eq!(first.incr("n", 1).await.expect("counted"), 1);
    std::fs::rename(&path, &moved).expect("moved");
    let error = first.incr("n", 1).await.expect_err("its place is lost");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");
    let why = format!("this client cannot go on with it: outbox {}: was moved", path.display());
    assert!(error.to_string().contains(&why), "{error}");
    for _ in 0..2 {
        let error = first.incr("n", 1).await.expect_err("its place is lost");
        assert!(matches!(error, Error::Unusable(_)), "{error:?}");
        assert!(error.to_string().contains("was moved"), "{error}");
    }
    assert_eq!(node.executes().len(), 1);
    drop(first);
    std::fs::rename(&moved, &path).expect("moved back");
    let found = client(&node, &path).recover().await;
    let found: Vec<_> = found.into_iter().map(|recovered| recovered.result).collect();
    // That the first one ran went into the same frame.
    assert!(matches!(found[..], [Ok(Outcome::Integer(2))]), "{found:?}");
}

/// What is given up fills the outbox, and is all there; what is refused then was not sent. Recovering
/// makes room.
#[tokio::test]
async fn a_full_outbox_names_the_way_out() {
    // With its key and its header, one less than there are megabytes fit.
    const FIT: usize = 63;
    let model = Model::shared();
    let node = FakeNode::start(&model, executes(|| Reaction::Ignore)).await;
    let (_folder, path) = folder();
    let patient = builder([&node]).attempt_timeout(Duration::from_secs(60)).outbox(&path);
    let client = patient.build().expect("opens");
    let put = |number: usize| {
        let client = client.clone();
        async move { client.put(format!("{number}"), vec![7; 1 << 20]).await }
    };
    let calls: Vec<_> = (0..FIT).map(|number| tokio::spawn(put(number))).collect();
    until("the requests", || node.executes().len() == FIT).await;
    for call in calls {
        call.abort();
        assert!(call.await.expect_err("it was aborted").is_cancelled());
    }
    let error = put(FIT).await.expect_err("it is full");
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");
    assert!(error.to_string().contains("call `recover`, which carries out the 63"), "{error}");
    assert_eq!(node.executes().len(), FIT);
    node.script(|_| Reaction::Serve);
    let recovered = client.recover().await;
    assert_eq!(recovered.iter().filter(|recovered| recovered.result.is_ok()).count(), FIT);
    put(FIT).await.expect("there is room");
    assert_eq!(model.lock().expect("kept rules").executed, FIT + 1);
}

/// After a close nothing is asked for again, even if the client is killed right then, or goes on.
#[tokio::test]
async fn a_close_lets_go_of_what_ran() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let (_folder, path) = folder();
    let client = builder([&node]).outbox(&path).build().expect("opens");
    for round in 1..=3 {
        assert_eq!(client.incr("n", 1).await.expect("counted"), round);
        client.close().await;
        assert!(found(&node, &path).await.is_empty());
        client.close().await;
    }
}

/// The outbox names its cluster before its first request, so no other is ever asked for one: a node
/// that has joined none yet is not spoken to.
#[tokio::test]
async fn all_requests_are_for_one_cluster() {
    let model = Model::shared();
    let node = FakeNode::start(&model, executes(|| Reaction::LoseAnswer)).await;
    let join = |node: &FakeNode, cluster, store| {
        node.greet_with(|welcome| {
            let welcome = welcome.as_mut().expect("a welcome");
            (welcome.cluster, welcome.store) = (cluster, store);
        });
    };
    join(&node, None, StoreId(7));
    let (_folder, path) = folder();
    let early = client(&node, &path);
    let error = early.incr("n", 1).await.expect_err("it has joined no cluster");
    assert!(matches!(error, Error::NotSent(_)), "{error:?}");
    assert!(error.to_string().contains("has joined no cluster yet"), "{error}");
    join(&node, Some(CLUSTER), StoreId(7));
    drop(early);
    let patient = builder([&node]).outbox(&path).deadline(Duration::from_secs(1)).build();
    let error = patient.expect("opens").incr("n", 1).await.expect_err("no answer");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");

    let strange = Model::shared();
    let stranger = FakeNode::start(&strange, |_| Reaction::Serve).await;
    for cluster in [Some(ClusterId(2)), None] {
        join(&stranger, cluster, StoreId(8));
        let [recovered] = &client(&stranger, &path).recover().await[..] else {
            panic!("one is left")
        };
        assert!(matches!(recovered.result, Err(Error::Unresolved(_))), "{recovered:?}");
    }
    assert!(stranger.received().is_empty());
    let meant =
        builder([&stranger]).cluster(ClusterId(2)).outbox(&path).build().expect_err("its cluster");
    let error = OutboxError::OtherCluster { theirs: CLUSTER, wanted: ClusterId(2) };
    assert_eq!(meant, BuildError::Outbox { path: path.clone(), error });
    node.script(|_| Reaction::Serve);
    let found = found(&node, &path).await;
    assert!(matches!(found[..], [Ok(Outcome::Integer(1))]), "{found:?}");
}

/// A named key that is forgotten is like a new one, and an outbox may be opened after that: a request
/// under one is refused before it is sent. Under a timed key it is kept as all others are.
#[tokio::test]
async fn named_keys_are_not_for_an_outbox() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let (_folder, path) = folder();
    let client = client(&node, &path);
    let named = client.with_key("order-1234").expect("a fine key");
    let error = named.incr("n", 1).await.expect_err("a named key");
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");
    assert!(node.executes().is_empty() && client.recover().await.is_empty());
    let timed = client.with_key(fresh_key()).expect("a fine key");
    assert_eq!(timed.incr("n", 1).await.expect("counted"), 1);
}
