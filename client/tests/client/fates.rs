//! Handles: what became of a request, that it may never run, and sending it again.

use std::time::Duration;

use onlyonce_client::{
    Cancellation, Client, Error, Fate, Handle, IdempotencyKey, Incarnation, Operation, Outcome,
    Refusal, UnresolvedReason, Write,
};
use onlyonce_wire::StoreId;
use onlyonce_wire::client::{Answer, ExecuteId};
use onlyonce_wire::{ClusterId, Seq};

use crate::fake::{CLUSTER, FakeNode, KEPT_FOR_MS, Model, Reaction, Received};
use crate::{builder, client};

const DEADLINE: Duration = Duration::from_millis(200);

fn lose_executes(received: &Received) -> Reaction {
    if received.execute().is_some() { Reaction::LoseAnswer } else { Reaction::Serve }
}

fn ignore_executes(received: &Received) -> Reaction {
    if received.execute().is_some() { Reaction::Ignore } else { Reaction::Serve }
}

fn impatient(node: &FakeNode) -> Client {
    builder([node]).deadline(DEADLINE).build().expect("an address")
}

/// A request that was given up, as a text; its client is gone without a word.
async fn give_up(client: Client, operation: &Operation) -> Handle {
    let error = client.execute(operation.clone()).await.expect_err("no answer");
    let Error::Unresolved(unresolved) = error else { panic!("{error:?}") };
    unresolved.handle().to_string().parse().expect("a handle")
}

fn incr() -> Operation {
    Operation::Write(Write::Incr { key: "n".into(), by: 1 })
}

fn long_put() -> Operation {
    Operation::Write(Write::Put { key: "n".into(), value: vec![b'7'; 300].into() })
}

/// Another client with the handle sends the very same operation under the same id, with the watermark
/// of then.
#[tokio::test]
async fn another_process_resumes() {
    for is_one_shot in [false, true] {
        let model = Model::shared();
        let node = FakeNode::start(&model, ignore_executes).await;
        let first = builder([&node]).deadline(DEADLINE);
        let first = if is_one_shot { first.one_shot() } else { first };
        let handle = give_up(first.build().expect("an address"), &incr()).await;
        assert_eq!(handle.operation(), Some(incr()));
        let original = node.executes()[0].execute().expect("an execute").clone();

        node.script(|_| Reaction::Serve);
        let client = client(&node);
        assert_eq!(client.outcome(&handle).await.expect("an answer"), Fate::NeverSeen);
        let told = client.resume(&handle).await.expect("counted");
        assert_eq!((&told.outcome, told.replayed), (&Outcome::Integer(1), false));
        assert_eq!(told.kept_for.is_some(), is_one_shot);
        let again = client.resume(&handle).await.expect("counted");
        assert_eq!((again.outcome, again.replayed), (Outcome::Integer(1), true));
        let resumed = node.executes().last().expect("sent").execute().expect("it is one").clone();
        assert_eq!(resumed.operation, original.operation);
        assert_eq!(resumed.incarnation, original.incarnation);
        assert_eq!(resumed.id.request(), original.id.request());
        if let ExecuteId::Session { first_unacked, .. } = resumed.id {
            assert_eq!(first_unacked, Seq(1));
        }
        let done = Fate::Done(Outcome::Integer(1));
        assert_eq!(client.outcome(&handle).await.expect("an answer"), done);
        let late = Cancellation::Done(Outcome::Integer(1));
        assert_eq!(client.cancel(&handle).await.expect("an answer"), late);
        assert_eq!(model.lock().expect("kept rules").executed, 1);
    }
}

/// What was too long for the handle is given again, and must be the same.
#[tokio::test]
async fn long_operations_are_given_again() {
    let model = Model::shared();
    let node = FakeNode::start(&model, lose_executes).await;
    let handle = give_up(impatient(&node), &long_put()).await;
    let before = node.executes().len();
    node.script(|_| Reaction::Serve);
    let client = client(&node);
    let error = client.resume(&handle).await.expect_err("it has no content");
    let Error::Unresolved(unresolved) = &error else { panic!("{error:?}") };
    assert_eq!(*unresolved.reason(), UnresolvedReason::NoContent);
    assert_eq!(*unresolved.handle(), handle);
    let error = client.resume_with(&handle, &incr()).await.expect_err("other content");
    assert!(matches!(error, Error::Refused(Refusal::Mismatch)), "{error:?}");
    assert_eq!(node.executes().len(), before, "nothing was sent");
    let told = client.resume_with(&handle, &long_put()).await.expect("done");
    assert_eq!((told.outcome, told.replayed), (Outcome::Done, true));
}

/// A cancelled request is refused for ever, whoever resumes it.
#[tokio::test]
async fn a_cancel_is_the_end() {
    let model = Model::shared();
    let node = FakeNode::start(&model, ignore_executes).await;
    let handle = give_up(impatient(&node), &incr()).await;
    let mut lost = false;
    node.script(move |_| {
        if std::mem::replace(&mut lost, true) { Reaction::Serve } else { Reaction::ServeAndCut }
    });
    let client = client(&node);
    assert_eq!(client.cancel(&handle).await.expect("an answer"), Cancellation::Cancelled);
    assert_eq!(client.cancel(&handle).await.expect("an answer"), Cancellation::Cancelled);
    assert_eq!(client.outcome(&handle).await.expect("an answer"), Fate::Cancelled);
    let error = client.resume(&handle).await.expect_err("cancelled");
    assert!(matches!(error, Error::Refused(Refusal::Cancelled)), "{error:?}");
    assert_eq!(model.lock().expect("kept rules").executed, 0);

    // Under a key it is told for how long that holds; in a session, for as long as the session lives.
    let told = client.cancel_told(&handle).await.expect("an answer");
    assert_eq!(told, (Cancellation::Cancelled, None));
    let key = IdempotencyKey::new("order-1").expect("a fine key");
    let told = client.cancel_told(key).await.expect("an answer");
    assert_eq!(told, (Cancellation::Cancelled, Some(Duration::from_millis(KEPT_FOR_MS))));
}

/// A request whose session expired, or whose incarnation is over, stays unresolved, and says why.
#[tokio::test]
async fn a_void_handle_is_told_so() {
    let model = Model::shared();
    let node = FakeNode::start(&model, lose_executes).await;
    let handle = give_up(impatient(&node), &incr()).await;
    node.script(|_| Reaction::Serve);
    let client = client(&node);
    let current = Incarnation(2);
    for refusal in [Refusal::SessionExpired, Refusal::OtherIncarnation { current }] {
        {
            let mut model = model.lock().expect("kept rules");
            model.sessions.clear();
            if refusal != Refusal::SessionExpired {
                model.incarnation = current;
            }
        }
        let forgotten = Fate::Forgotten(refusal.clone());
        assert_eq!(client.outcome(&handle).await.expect("an answer"), forgotten);
        let forgotten = Cancellation::Forgotten(refusal.clone());
        assert_eq!(client.cancel(&handle).await.expect("an answer"), forgotten);
        let error = client.resume(&handle).await.expect_err("void");
        let Error::Unresolved(unresolved) = error else { panic!("{error:?}") };
        assert_eq!(*unresolved.reason(), UnresolvedReason::Refused(refusal));
        assert_eq!(*unresolved.handle(), handle);
    }
    // A key is looked up in the incarnation that is.
    let key = IdempotencyKey::new("order-1").expect("a fine key");
    assert_eq!(client.outcome(&key).await.expect("an answer"), Fate::NeverSeen);
}

/// A handle of another cluster, or of another lone store, is refused and nothing is sent; so with a
/// client that has not connected yet, and with one that has.
#[tokio::test]
async fn a_handle_of_elsewhere_is_refused() {
    let (one, two) = (Model::shared(), Model::shared());
    let home = FakeNode::start(&one, ignore_executes).await;
    let other = FakeNode::start(&two, |_| Reaction::Serve).await;
    for (mine, theirs) in [
        (Some(CLUSTER), Some(ClusterId(9))),
        (None, Some(ClusterId(9))),
        (Some(CLUSTER), None),
        (None, None),
    ] {
        for (node, cluster, store) in [(&home, mine, StoreId(7)), (&other, theirs, StoreId(8))] {
            node.greet_with(|welcome| {
                let welcome = welcome.as_mut().expect("a welcome");
                (welcome.cluster, welcome.store) = (cluster, store);
            });
        }
        let handle = give_up(impatient(&home), &incr()).await;
        assert_eq!(handle.cluster(), mine);
        for is_connected in [false, true] {
            let client = client(&other);
            if is_connected {
                client.get("n").await.expect("connected");
            }
            let before = other.received().len();
            for error in [
                client.outcome(&handle).await.expect_err("elsewhere"),
                client.cancel(&handle).await.map(drop).expect_err("elsewhere"),
            ] {
                assert!(matches!(error, Error::Unusable(_)), "{error:?}");
                let theirs = mine.map_or(StoreId(7).to_string(), |mine| mine.to_string());
                assert!(error.to_string().contains(&theirs), "{error}");
            }
            let error = client.resume(&handle).await.expect_err("elsewhere");
            let Error::Unresolved(unresolved) = error else { panic!("{error:?}") };
            let reason = unresolved.reason();
            assert!(matches!(reason, UnresolvedReason::Unusable(_)), "{reason:?}");
            assert_eq!(*unresolved.handle(), handle);
            assert_eq!(other.received().len(), before, "something was sent");
            client.get("n").await.expect("the client itself is none the worse for it");
        }
    }
}

/// A node that had joined no cluster, and has since, still knows its requests; others do not get to
/// see them by a handle that does not know their cluster.
#[tokio::test]
async fn a_store_keeps_its_requests_in_a_cluster() {
    let model = Model::shared();
    let node = FakeNode::start(&model, ignore_executes).await;
    let stranger = FakeNode::start(&Model::shared(), |_| Reaction::Serve).await;
    for (node, store) in [(&node, StoreId(7)), (&stranger, StoreId(8))] {
        node.greet_with(|welcome| {
            let welcome = welcome.as_mut().expect("a welcome");
            (welcome.cluster, welcome.store) = (None, store);
        });
    }
    let handle = give_up(impatient(&node), &incr()).await;
    for node in [&node, &stranger] {
        node.greet_with(|welcome| {
            welcome.as_mut().expect("a welcome").cluster = Some(CLUSTER);
        });
    }
    node.script(|_| Reaction::Serve);
    let client = builder([&stranger, &node]).build().expect("addresses");
    assert_eq!(client.resume(&handle).await.expect("counted").outcome, Outcome::Integer(1));
    assert!(stranger.received().is_empty());
}

/// A node that welcomed its client before it was in a cluster may execute in one later: what it did
/// not answer is asked of its neighbours.
#[tokio::test]
async fn a_node_that_joined_late_has_neighbours() {
    let model = Model::shared();
    let late = FakeNode::start(&model, |_| Reaction::ServeAndCut).await;
    late.greet_with(|welcome| welcome.as_mut().expect("a welcome").cluster = None);
    let neighbour = FakeNode::start(&model, |_| Reaction::Serve).await;
    neighbour.greet_with(|welcome| welcome.as_mut().expect("a welcome").store = StoreId(8));
    let client = builder([&late, &neighbour]).deadline(DEADLINE * 20).build().expect("addresses");
    let keyed = client.with_key("order-1").expect("a fine key");
    assert_eq!(keyed.incr("n", 1).await.expect("counted"), 1);
    assert_eq!((late.executes().len(), neighbour.executes().len()), (1, 1));
    assert_eq!(model.lock().expect("kept rules").executed, 1);
}

/// A question that goes on for too long ends, and may be asked again.
#[tokio::test]
async fn questions_have_a_deadline() {
    let model = Model::shared();
    let node = FakeNode::start(&model, ignore_executes).await;
    let handle = give_up(impatient(&node), &incr()).await;
    node.script(|_| Reaction::Answer(Answer::AskAgain));
    let client = impatient(&node);
    let error = client.cancel(&handle).await.expect_err("no answer");
    assert!(matches!(error, Error::NoAnswer(_)), "{error:?}");
    assert!(error.to_string().contains("asking again is harmless"), "{error}");
    let error = client.resume(&handle).await.expect_err("no answer");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");
}
