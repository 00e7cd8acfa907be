//! A deadline never turns "not known" into "failed".

use std::time::Duration;

use onlyonce_client::{Client, Error, ExecuteId, Handle, RequestId, Unresolved, UnresolvedReason};
use onlyonce_wire::Seq;
use onlyonce_wire::View;
use onlyonce_wire::client::{Answer, Fingerprint, Operation, Request, Write};
use onlyonce_wire::codec;

use crate::builder;
use crate::fake::{CLUSTER, FakeNode, Model, Reaction, Received, executes, until};

const DEADLINE: Duration = Duration::from_millis(300);

fn client(node: &FakeNode) -> Client {
    builder([node]).deadline(DEADLINE).build().expect("an address")
}

fn ignore_executes(received: &Received) -> Reaction {
    if received.execute().is_some() { Reaction::Ignore } else { Reaction::Serve }
}

fn unresolved(error: Error) -> Unresolved {
    match error {
        Error::Unresolved(unresolved) => unresolved,
        other => panic!("{other:?}"),
    }
}

/// The handle names the request; later requests use another session; the first one is kept alive as
/// long as the error lives, and is not closed after it.
#[tokio::test]
async fn a_request_without_an_answer_is_unresolved() {
    let model = Model::shared();
    let node = FakeNode::start(&model, ignore_executes).await;
    node.greet_with(|welcome| {
        if let Ok(welcome) = welcome {
            welcome.session_idle_ms = 60;
        }
    });
    let client = client(&node);
    let error = client.incr("n", 1).await.expect_err("no answer");
    let unresolved = unresolved(error);
    assert_eq!(*unresolved.reason(), UnresolvedReason::Deadline(DEADLINE));
    let (session, seq, _) = node.executes()[0].place().expect("in a session");
    let handle = unresolved.handle();
    assert_eq!(*handle.id(), RequestId::Seq { session, seq });
    assert_eq!(handle.cluster(), Some(CLUSTER));
    let operation = Operation::Write(Write::Incr { key: "n".into(), by: 1 });
    assert_eq!(handle.fingerprint(), Fingerprint::of(&codec::encode(&operation)));
    assert_eq!(handle.to_string().parse::<Handle>().as_ref(), Ok(handle));
    assert!(unresolved.to_string().contains(&handle.to_string()), "{unresolved}");

    node.script(|_| Reaction::Serve);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1, "the first never arrived");
    let second = node.executes().last().and_then(Received::place).expect("in a session");
    assert_ne!(second.0, session);
    assert_eq!(second.1, Seq(1));
    let kept = |received: &Received| matches!(received.request, Request::KeepAlive { session: kept, .. } if kept == session);
    let keeps = || node.received().iter().filter(|&received| kept(received)).count();
    until("the first session is kept alive", || keeps() >= 2).await;
    drop(unresolved);
    drop(client);
    let closed = || model.lock().expect("kept rules").closed.contains(&second.0);
    until("the second session is closed", closed).await;
    assert!(model.lock().expect("kept rules").sessions.contains_key(&session));
}

/// Requests that were under way beside an unresolved one keep their ids and end well.
#[tokio::test]
async fn neighbours_of_an_unresolved_request_end_well() {
    let model = Model::shared();
    let mut first = true;
    let node = FakeNode::start(&model, move |received| match received.execute() {
        Some(_) if std::mem::replace(&mut first, false) => Reaction::Ignore,
        Some(_) => Reaction::Hold,
        None => Reaction::Serve,
    })
    .await;
    let client = builder([&node]).deadline(DEADLINE).attempt_timeout(DEADLINE * 100);
    let client = client.build().expect("an address");
    let early = tokio::spawn({
        let client = client.clone();
        async move { client.incr("n", 1).await }
    });
    until("it is under way", || node.executes().len() == 1).await;
    // Its own deadline is later: released after the first one's has passed.
    let patient = tokio::spawn({
        let client = client.clone();
        async move { client.incr("n", 1).await }
    });
    until("both are under way", || node.held() == 1).await;
    let early = early.await.expect("no panic").expect_err("ignored");
    node.release(|_| ());
    match patient.await.expect("no panic") {
        Ok(value) => assert_eq!(value, 1),
        // A slow machine let its deadline pass as well.
        Err(error) => drop(unresolved(error)),
    }
    drop(unresolved(early));
}

/// Each copy was answered with "did nothing": that is no reason for doubt.
#[tokio::test]
async fn a_request_that_nobody_took_is_definitely_not_sent() {
    let model = Model::shared();
    let node = FakeNode::start(
        &model,
        executes(|| Reaction::Answer(Answer::NotPrimary { view: View(1), primary: None })),
    )
    .await;
    let mut client = client(&node);
    let mut error = client.incr("n", 1).await.expect_err("no primary");
    // The deadline may pass in the very moment when a copy is under way.
    while matches!(error, Error::Unresolved(_)) {
        client = self::client(&node);
        error = client.incr("n", 1).await.expect_err("no primary");
    }
    let Error::NotSent(not_sent) = &error else { panic!("{error:?}") };
    assert!(not_sent.delivered);
    let expected = format!(
        "no node took the request within 300ms: {}: is not the primary; it was not executed",
        node.address
    );
    assert_eq!(error.to_string(), expected);
    // Its seq is done with: the session goes on.
    node.script(|_| Reaction::Serve);
    client.incr("n", 1).await.expect("counted");
    let place = node.executes().last().and_then(Received::place).expect("in a session");
    assert_eq!((place.1, place.2), (Seq(2), Seq(2)));
}

/// One unanswered copy among many that did nothing: doubt.
#[tokio::test]
async fn one_unanswered_copy_is_reason_for_doubt() {
    let model = Model::shared();
    let mut first = true;
    let node = FakeNode::start(&model, move |received| match received.execute() {
        Some(_) if std::mem::replace(&mut first, false) => Reaction::Cut,
        Some(_) => Reaction::Answer(Answer::NotPrimary { view: View(1), primary: None }),
        None => Reaction::Serve,
    })
    .await;
    drop(unresolved(client(&node).incr("n", 1).await.expect_err("no primary")));
}

/// No session could be opened in time: the request itself was not sent. The error says who was asked.
#[tokio::test]
async fn an_unanswered_opening_is_no_unresolved_request() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Ignore).await;
    let error = client(&node).incr("n", 1).await.expect_err("no session");
    let expected = format!(
        "waited 300ms for a session to be opened: {}: connected, no answer yet; nothing was sent",
        node.address
    );
    assert!(matches!(error, Error::NotSent(_)), "{error:?}");
    assert_eq!(error.to_string(), expected);
    assert!(node.executes().is_empty());
}

/// A read changes nothing, so its deadline leaves no doubt.
#[tokio::test]
async fn a_read_is_never_unresolved() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Ignore).await;
    let error = client(&node).get("n").await.expect_err("no answer");
    let Error::NoAnswer(no_answer) = &error else { panic!("{error:?}") };
    assert_eq!(no_answer.nodes.to_string(), format!("{}: connected, no answer yet", node.address));
}

/// A one-shot request's handle has its key.
#[tokio::test]
async fn one_shot_requests_have_handles_too() {
    let model = Model::shared();
    let node = FakeNode::start(&model, ignore_executes).await;
    let client = builder([&node]).one_shot().deadline(DEADLINE).build().expect("an address");
    let unresolved = unresolved(client.incr("n", 1).await.expect_err("no answer"));
    let sent = node.executes()[0].execute().expect("an execute").id.clone();
    assert_eq!(Some(unresolved.handle().id()), sent.request().as_ref());
    assert!(matches!(sent, ExecuteId::Key(_)));
}
