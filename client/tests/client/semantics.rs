//! What a client does about replies that do not come, by its semantics.

use std::time::Duration;

use onlyonce_client::{Client, Error, ExecuteId, Semantics, UnresolvedReason};
use onlyonce_wire::View;
use onlyonce_wire::client::{Answer, Limit, Refusal};

use crate::builder;
use crate::fake::{FakeNode, Model, Reaction, Received, executes, until};

fn client(node: &FakeNode, semantics: Semantics) -> Client {
    builder([node]).semantics(semantics).build().expect("an address")
}

fn lose_replies(received: &Received) -> Reaction {
    if received.execute().is_some() { Reaction::LoseAnswer } else { Reaction::Serve }
}

/// Best effort sends copies without an id, each of which runs; then it says how many there were.
#[tokio::test]
async fn best_effort_repeats_and_gives_up() {
    let model = Model::shared();
    let node = FakeNode::start(&model, lose_replies).await;
    let client = client(&node, Semantics::BestEffort);
    let error = client.incr("n", 1).await.expect_err("no reply comes");
    let Error::Uncounted(uncounted) = &error else { panic!("{error:?}") };
    assert_eq!(uncounted.reason, UnresolvedReason::Unanswered);
    let executes = node.executes();
    assert_eq!(executes.len(), uncounted.copies as usize);
    assert!(executes.len() > 1, "it was never sent again");
    for copy in &executes {
        assert_eq!(copy.execute().expect("an execute").id, ExecuteId::Anonymous);
    }
    assert_eq!(model.lock().expect("kept rules").executed, executes.len());
    assert!(model.lock().expect("kept rules").sessions.is_empty(), "it needs no session");
}

/// Best effort takes the first reply that comes, and knows nothing of the copies before.
#[tokio::test]
async fn best_effort_counts_twice() {
    let model = Model::shared();
    let mut replies = [Reaction::ServeAndCut, Reaction::Serve].into_iter();
    let node = FakeNode::start(&model, move |_| replies.next().unwrap_or(Reaction::Serve)).await;
    let client = client(&node, Semantics::BestEffort);
    assert_eq!(client.incr("n", 1).await.expect("a reply"), 2);
}

/// A deadline ends best effort with the same honesty.
#[tokio::test]
async fn best_effort_at_its_deadline() {
    let node = FakeNode::start(&Model::shared(), lose_replies).await;
    let client = builder([&node]).semantics(Semantics::BestEffort);
    let limit = Duration::from_millis(100);
    let client = client.deadline(limit).build().expect("an address");
    let error = client.incr("n", 1).await.expect_err("no reply comes");
    let Error::Uncounted(uncounted) = &error else { panic!("{error:?}") };
    assert_eq!((uncounted.copies, &uncounted.reason), (1, &UnresolvedReason::Deadline(limit)));
}

/// At most once sends one copy: no reply, a cut connection or "cannot say" leave it unresolved.
#[tokio::test]
async fn at_most_once_sends_once() {
    let again = || Reaction::Answer(Answer::AskAgain);
    for reaction in [Reaction::LoseAnswer, Reaction::ServeAndCut, Reaction::Cut, again()] {
        let model = Model::shared();
        let mut reactions = [reaction].into_iter();
        let script = executes(move || reactions.next().unwrap_or(Reaction::Serve));
        let node = FakeNode::start(&model, script).await;
        let client = client(&node, Semantics::AtMostOnce);
        let error = client.incr("n", 1).await.expect_err("no reply comes");
        let Error::Unresolved(unresolved) = &error else { panic!("{error:?}") };
        assert_eq!(*unresolved.reason(), UnresolvedReason::Unanswered);
        let executes = node.executes();
        assert_eq!(executes.len(), 1, "{executes:?}");
        let id = executes[0].execute().expect("an execute").id.request().expect("it has an id");
        assert_eq!(*unresolved.handle().id(), id);
    }
}

/// A copy that was answered with "not done" is out of the world: at most once sends the next.
#[tokio::test]
async fn at_most_once_follows_what_did_nothing() {
    let model = Model::shared();
    let not_primary = Answer::NotPrimary { view: View(1), primary: None };
    let busy = Answer::Refused(Refusal::Busy(Limit::Queue));
    let mut answers = [not_primary, busy].into_iter();
    let script = executes(move || answers.next().map_or(Reaction::Serve, Reaction::Answer));
    let node = FakeNode::start(&model, script).await;
    let client = client(&node, Semantics::AtMostOnce);
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    assert_eq!(node.executes().len(), 3);
}

/// With one outstanding request the next waits for the reply, and acknowledges all before it.
#[tokio::test]
async fn one_outstanding_waits() {
    let hold = executes(|| Reaction::Hold);
    let node = FakeNode::start(&Model::shared(), hold).await;
    let client = builder([&node]).attempt_timeout(Duration::from_secs(60)).one_outstanding();
    let client = client.build().expect("an address");
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.incr("n", 1).await })
        })
        .collect();
    for sent in 1..=3 {
        until("a request to come", || node.held() == 1).await;
        let executes = node.executes();
        assert_eq!(executes.len(), sent, "the next did not wait: {executes:?}");
        let (_, seq, first_unacked) = executes[sent - 1].place().expect("in a session");
        assert_eq!((seq.0, first_unacked), (sent as u64, seq));
        node.release(|_| {});
    }
    for call in calls {
        call.await.expect("no panic").expect("counted");
    }
}
