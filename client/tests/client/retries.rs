//! A request is sent again as the very same bytes, and takes effect once.

use std::time::Duration;

use onlyonce_client::Refusal;
use onlyonce_wire::View;
use onlyonce_wire::client::{Answer, Goodbye, Limit};

use crate::fake::{FakeNode, Model, Reaction, Received, executes};
use crate::{builder, client};

/// Treats the executes one after the other as told, everything else well.
fn in_turn(reactions: Vec<Reaction>) -> impl FnMut(&Received) -> Reaction {
    let mut reactions = reactions.into_iter();
    executes(move || reactions.next().unwrap_or(Reaction::Serve))
}

/// Increments once while the first attempts go wrong in the given ways; all copies must be equal.
async fn increments_once(reactions: Vec<Reaction>) -> Vec<Received> {
    let copies = reactions.len() + 1;
    let model = Model::shared();
    let node = FakeNode::start(&model, in_turn(reactions)).await;
    let client = client(&node);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    let executes = node.executes();
    assert_eq!(executes.len(), copies, "{executes:#?}");
    for copy in &executes {
        assert_eq!(copy.bytes, executes[0].bytes, "a copy differs");
    }
    assert_eq!(model.lock().expect("kept rules").executed, 1);
    executes
}

/// The answer is lost, and the connection says nothing more.
#[tokio::test]
async fn a_lost_answer() {
    increments_once(vec![Reaction::LoseAnswer, Reaction::LoseAnswer]).await;
}

/// The request is lost.
#[tokio::test]
async fn a_lost_request() {
    increments_once(vec![Reaction::Ignore]).await;
}

/// The connection is cut before or after the execution: the copy comes over a new one.
#[tokio::test]
async fn a_cut_connection() {
    let executes = increments_once(vec![Reaction::ServeAndCut, Reaction::Cut]).await;
    let connections: Vec<_> = executes.iter().map(|copy| copy.connection).collect();
    assert_eq!(connections, [0, 1, 2]);
}

/// A node that lost its primacy cannot say what became of the request.
#[tokio::test]
async fn ask_again() {
    let again = || Reaction::Answer(Answer::AskAgain);
    increments_once(vec![again(), again(), again()]).await;
}

/// No primary yet.
#[tokio::test]
async fn not_primary_yet() {
    let not = || Reaction::Answer(Answer::NotPrimary { view: View(1), primary: None });
    increments_once(vec![not(), not(), not()]).await;
}

/// Busy is no end, however often it is said.
#[tokio::test]
async fn busy_then_success() {
    let busy = || Reaction::Answer(Answer::Refused(Refusal::Busy(Limit::Queue)));
    increments_once(vec![busy(), busy(), busy(), busy()]).await;
}

/// A node that shuts down.
#[tokio::test]
async fn shutting_down() {
    increments_once(vec![Reaction::Goodbye(Goodbye::ShuttingDown)]).await;
}

/// An attempt that times out on a busy connection leaves the connection alone.
#[tokio::test]
async fn a_slow_request_does_not_cost_the_connection() {
    let model = Model::shared();
    let mut ignored = false;
    let node = FakeNode::start(&model, move |received| {
        let first = received.execute().is_some() && !std::mem::replace(&mut ignored, true);
        if first { Reaction::Ignore } else { Reaction::Serve }
    })
    .await;
    let client = client(&node);
    let mut slow = tokio::spawn({
        let client = client.clone();
        async move { client.incr("n", 1).await }
    });
    // Reads keep the connection talking until the second copy is answered.
    let slow = loop {
        tokio::select! {
            done = &mut slow => break done.expect("no panic"),
            read = client.get("other") => drop(read.expect("served")),
        }
    };
    assert_eq!(slow.expect("counted"), 1);
    assert_eq!(node.connections(), 1);
}

/// The primary is killed with requests under way: each ends, once, on the node that takes over.
#[tokio::test]
async fn failover() {
    let model = Model::shared();
    let hint = |to: &str, view| {
        let answer = Answer::NotPrimary { view: View(view), primary: Some(to.to_owned()) };
        move |_: &Received| Reaction::Answer(answer.clone())
    };
    let first = FakeNode::start(&model, executes(|| Reaction::LoseAnswer)).await;
    let second = FakeNode::start(&model, hint(&first.address, 1)).await;
    let client = builder([&second, &first]).attempt_timeout(Duration::from_secs(60)).build();
    let client = client.expect("addresses");
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.incr("n", 1).await })
        })
        .collect();
    crate::fake::until("all requests are under way", || first.executes().len() == 50).await;
    first.kill();
    crate::fake::until("the second node is asked", || second.executes().len() > 50).await;
    second.script(|_| Reaction::Serve);
    for call in calls {
        call.await.expect("no panic").expect("counted");
    }
    assert_eq!(model.lock().expect("kept rules").executed, 50);
    assert_eq!(client.incr("n", 0).await.expect("counted"), 50);
}
