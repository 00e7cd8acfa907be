//! Sessions: the watermark, the window, dropped calls, keeping alive and closing.

use std::time::Duration;

use onlyonce_client::Client;
use onlyonce_wire::Seq;
use onlyonce_wire::client::{ExecuteId, Request, ServerFrame};
use onlyonce_wire::limits::WINDOW;
use tokio::task::JoinHandle;

use crate::fake::{FakeNode, Model, Reaction, Received, until};
use crate::{builder, client};

fn hold_executes(received: &Received) -> Reaction {
    if received.execute().is_some() { Reaction::Hold } else { Reaction::Serve }
}

fn spawn_incr(client: &Client) -> JoinHandle<i64> {
    let client = client.clone();
    tokio::spawn(async move { client.incr("n", 1).await.expect("counted") })
}

/// The watermark of the next request that is sent.
async fn watermark(client: &Client, node: &FakeNode) -> Seq {
    client.incr("n", 1).await.expect("counted");
    node.executes().last().and_then(Received::place).expect("in a session").2
}

/// Answers in any order: the watermark stays at the oldest request that has none.
#[tokio::test]
async fn the_watermark_follows_the_oldest_open_request() {
    let model = Model::shared();
    let node = FakeNode::start(&model, hold_executes).await;
    let client = client(&node);
    let calls: Vec<_> = (0..4).map(|_| spawn_incr(&client)).collect();
    until("all are under way", || node.held() == 4).await;
    let mut oldest = Vec::new();
    node.release(|answers| oldest = answers.drain(..1).collect());
    until("three have ended", || calls.iter().filter(|call| call.is_finished()).count() == 3).await;

    node.script(|_| Reaction::Serve);
    assert_eq!(watermark(&client, &node).await, Seq(1));
    assert_eq!(watermark(&client, &node).await, Seq(1));

    // The oldest is repeated after its attempt timed out, and answered.
    for call in calls {
        call.await.expect("counted");
    }
    assert!(matches!(oldest[..], [ServerFrame::Reply { .. }]));
    assert_eq!(watermark(&client, &node).await, Seq(7), "1 to 6 are answered");
    assert_eq!(model.lock().expect("kept rules").executed, 7);
}

/// However many calls there are, none is sent beyond the window, and all are in the end.
#[tokio::test]
async fn the_window_is_never_exceeded() {
    let model = Model::shared();
    let node = FakeNode::start(&model, hold_executes).await;
    let client = builder([&node]).attempt_timeout(Duration::from_secs(60)).build();
    let client = client.expect("an address");
    let calls: Vec<_> = (0..3 * WINDOW).map(|_| spawn_incr(&client)).collect();
    until("the window is full", || node.held() == WINDOW as usize).await;
    // All but the oldest are answered: it alone keeps the others back.
    let mut oldest = Vec::new();
    node.release(|answers| oldest = answers.drain(..1).collect());
    let ended = || calls.iter().filter(|call| call.is_finished()).count();
    until("all others have ended", || ended() == WINDOW as usize - 1).await;
    assert_eq!(node.executes().len(), WINDOW as usize, "a request passed the window");

    node.script(|_| Reaction::Serve);
    node.cut_all();
    for call in calls {
        call.await.expect("counted");
    }
    assert_eq!(model.lock().expect("kept rules").executed, 3 * WINDOW as usize);
}

/// A dropped call may still run: its session takes no more requests, and is closed after the others.
#[tokio::test]
async fn a_dropped_call_retires_its_session() {
    let model = Model::shared();
    let node = FakeNode::start(&model, hold_executes).await;
    let client = client(&node);
    let (dropped, kept) = (spawn_incr(&client), spawn_incr(&client));
    until("both are under way", || node.held() == 2).await;
    let first = node.executes()[0].place().expect("in a session").0;
    dropped.abort();
    assert!(dropped.await.is_err());

    node.script(|_| Reaction::Serve);
    client.incr("n", 1).await.expect("counted");
    let second = node.executes().last().and_then(Received::place).expect("in a session");
    assert_ne!(second.0, first, "the session's watermark is pinned");
    assert_eq!((second.1, second.2), (Seq(1), Seq(1)));

    kept.await.expect("counted");
    let closed = || model.lock().expect("kept rules").closed.contains(&first);
    until("the first session is closed", closed).await;
}

/// A call that is dropped before a byte of it left costs nothing.
#[tokio::test]
async fn a_call_dropped_before_it_was_sent_is_forgotten() {
    let model = Model::shared();
    let node = FakeNode::start(&model, hold_executes).await;
    let client = builder([&node]).attempt_timeout(Duration::from_secs(60)).build();
    let client = client.expect("an address");
    let full: Vec<_> = (0..WINDOW).map(|_| spawn_incr(&client)).collect();
    until("the window is full", || node.held() == WINDOW as usize).await;
    let dropped = spawn_incr(&client);
    tokio::task::yield_now().await;
    dropped.abort();
    assert!(dropped.await.is_err());
    node.script(|_| Reaction::Serve);
    node.release(|_| ());
    for call in full {
        call.await.expect("counted");
    }
    assert_eq!(watermark(&client, &node).await, Seq(WINDOW + 1));
    assert_eq!(model.lock().expect("kept rules").sessions.len(), 1);
}

/// An idle session is kept alive; the last clone's end closes it.
#[tokio::test]
async fn idle_sessions_are_kept_and_dropped_clients_close_theirs() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    node.greet_with(|welcome| {
        if let Ok(welcome) = welcome {
            welcome.session_idle_ms = 60;
        }
    });
    let client = client(&node);
    client.incr("n", 1).await.expect("counted");
    let session = node.executes()[0].place().expect("in a session").0;
    let alive = |received: &Received| matches!(received.request, Request::KeepAlive { session: kept, .. } if kept == session);
    until("it is kept alive", || node.received().iter().filter(|&r| alive(r)).count() >= 2).await;
    let clone = client.clone();
    drop(client);
    clone.incr("n", 1).await.expect("counted");
    assert!(model.lock().expect("kept rules").closed.is_empty());
    drop(clone);
    let closed = || model.lock().expect("kept rules").closed.contains(&session);
    until("it is closed", closed).await;
}

/// Closing waits for the answer; the client stays usable.
#[tokio::test]
async fn close() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let client = client(&node);
    client.close().await;
    assert_eq!(node.received().len(), 0, "there was nothing to close");
    client.incr("n", 1).await.expect("counted");
    client.close().await;
    assert_eq!(model.lock().expect("kept rules").closed.len(), 1);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 2);
    assert_eq!(model.lock().expect("kept rules").sessions.len(), 1);
}

/// Many first calls at once open one session; an opening whose answer is lost is repeated as it was.
#[tokio::test]
async fn one_session_is_opened() {
    let model = Model::shared();
    let mut lost = false;
    let node = FakeNode::start(&model, move |received| match received.request {
        Request::Open { .. } if !std::mem::replace(&mut lost, true) => Reaction::LoseAnswer,
        _ => Reaction::Serve,
    })
    .await;
    let client = client(&node);
    let calls: Vec<_> = (0..20).map(|_| spawn_incr(&client)).collect();
    for call in calls {
        call.await.expect("counted");
    }
    let opens: Vec<_> = node
        .received()
        .into_iter()
        .filter(|received| matches!(received.request, Request::Open { .. }))
        .collect();
    assert_eq!(opens.len(), 2);
    assert_eq!(opens[0].bytes, opens[1].bytes);
    assert_eq!(model.lock().expect("kept rules").sessions.len(), 1);
}

/// A one-shot client needs no session; its copies have one key, and its next request another.
#[tokio::test]
async fn one_shot_requests_have_keys() {
    let model = Model::shared();
    let mut copies = 0;
    let node = FakeNode::start(&model, move |_| {
        copies += 1;
        if copies == 1 { Reaction::ServeAndCut } else { Reaction::Serve }
    })
    .await;
    let client = builder([&node]).one_shot().build().expect("an address");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 2);
    let executes = node.executes();
    assert_eq!(executes.len(), 3);
    assert_eq!(executes[0].bytes, executes[1].bytes);
    let key = |copy: &Received| match copy.execute().expect("an execute").id.clone() {
        ExecuteId::Key(key) => key,
        ExecuteId::Session { .. } | ExecuteId::Anonymous => panic!("no key"),
    };
    assert_ne!(key(&executes[1]), key(&executes[2]));
    assert!(model.lock().expect("kept rules").sessions.is_empty());
}
