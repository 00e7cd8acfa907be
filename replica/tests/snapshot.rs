//! Snapshots, step by step: who gets one, who takes one, and what may go on beside it.

mod one_node;

use onlyonce_replica::{FeedId, PeerMessage, Piece, Position, SnapshotId};
use onlyonce_storage::{Digests, Entry, Index, Record, View};
use onlyonce_wire::authority::Revision;

use one_node::{Node, register};

/// A snapshot must not take away what the primary may count on: one that ends before what this
/// process acknowledged is dropped, and so is one that an earlier process asked for.
#[test]
fn a_learner_takes_no_old_snapshot() {
    let mut node = Node::learner();
    node.tick(300);
    let process = node.process();
    node.hear_snapshot(process + 1, 1, 9);
    assert_eq!(node.installs, None, "another process asked for it");

    let record = |index| Record::new(View(1), Index(index), Index(0), vec![Entry::default()]);
    let records = (1..=3).map(|index| record(index).encode()).collect();
    let (view, previous, committed) = (View(1), Position::default(), Index(0));
    let feed = FeedId(7);
    node.hear(PeerMessage::Append { view, feed, previous, committed, records });
    let acknowledged = PeerMessage::AppendOk { view, feed, matched: Index(3) };
    assert!(node.sent.contains(&acknowledged), "{:?}", node.sent);
    node.hear_snapshot(process, 2, 2);
    assert_eq!(node.installs, None, "record 3 was acknowledged");
    node.hear_snapshot(process, 3, 3);
    assert_eq!(node.installs, Some(Index(3)));
}

/// What a learner said of its log, or acknowledged, before a snapshot took the place of its store says
/// nothing of what it holds now, however late that comes, and in the same view too. A learner that was
/// proposed for it could take over without committed records.
#[test]
fn an_acknowledgement_from_before_a_snapshot_counts_no_more() {
    let mut node = Node::serving();
    (0..10).for_each(|_| node.put(10));
    node.tick(31_000);
    assert_eq!(node.replica.state().first(), node.replica.state().applied(), "all is pruned");
    node.join_as(5, 0);
    let (view, committed) = (View(node.replica.status().view.0), Index(0));
    let end = node.previous().expect("an append");
    let refusal = |feed| PeerMessage::AppendMismatch { view, feed, previous: end, committed };
    let first = node.feed;
    node.hear(refusal(first));
    assert_eq!(node.take_snapshot(), end, "nothing was folded since");
    node.join_as(6, end.0);
    node.sent.clear();
    node.hear(refusal(first));
    let is_snapshot = |message: &&PeerMessage| matches!(message, PeerMessage::Snapshot { .. });
    assert_eq!(node.sent.iter().find(is_snapshot), None, "a late copy leads to no other one");
    // It acknowledges ten more records, and that is late.
    (0..10).for_each(|_| node.put(10));
    let (feed, matched) = (node.feed, Index(node.replica.status().prepared));
    let acknowledged = PeerMessage::AppendOk { view, feed, matched };
    // It restarts, and for whatever reason gets another snapshot of the same place.
    node.join_as(7, end.0);
    node.hear(refusal(feed));
    assert_eq!(node.take_snapshot(), end, "n2 has no more than this now");
    node.join_as(8, end.0);
    node.hear(acknowledged);
    for _ in 0..40 {
        node.echo();
        node.tick(5);
    }
    assert!(node.backups().is_empty(), "n2 is a replica without records {end} to {matched}");
}

/// A learner to whom a snapshot is of no use is not kept waiting by it: it says so, and its next
/// question is answered.
#[test]
fn a_dropped_snapshot_keeps_nobody_waiting() {
    let mut learner = Node::learner();
    learner.tick(300);
    let process = learner.process();
    let record = Record::new(View(1), Index(1), Index(0), vec![Entry::default()]);
    let (view, feed, previous, committed) = (View(1), FeedId(7), Position::default(), Index(0));
    let records = vec![record.encode()];
    learner.hear(PeerMessage::Append { view, feed, previous, committed, records });
    learner.hear_snapshot(process, 2, 0);
    assert_eq!(learner.installs, None);
    let dropped =
        PeerMessage::SnapshotOk { id: SnapshotId(2), number: 1, digests: Digests::default() };
    assert!(learner.sent.contains(&dropped), "{:?}", learner.sent);

    let mut primary = Node::pruned();
    primary.refuse_all(5);
    primary.take_snapshot();
    primary.sent.clear();
    primary.join_as(5, 0);
    assert!(primary.previous().is_some(), "the same process is asked again what it has");
}

/// A store that the view names must hold what the primary's log begins after. One that does not is
/// dropped first: a snapshot would replace what a replica may have acknowledged.
#[test]
fn a_replica_gets_no_snapshot() {
    let mut node = Node::serving();
    node.put(10);
    node.gain_backup();
    node.prune();
    node.refuse_all(6);
    assert_eq!(node.backups(), ["n2"]);
    assert!(!node.sends_snapshot(), "n2 is a replica of the view");
    (0..30).for_each(|_| node.tick(5));
    assert!(node.backups().is_empty(), "it has lost something");
    node.refuse_all(6);
    assert!(node.sends_snapshot());
}

/// A new view of the same primary does not disturb a snapshot that is on its way.
#[test]
fn a_snapshot_goes_on_in_a_new_view_of_its_primary() {
    let mut node = Node::learner();
    node.tick(300);
    let (process, id) = (node.process(), SnapshotId(1));
    let piece = |view, number| {
        let piece = Piece::Effects(Entry::default().encode());
        PeerMessage::Snapshot { view: View(view), process, id, number, piece }
    };
    node.hear(piece(1, 0));
    let (register, revision) = (register(2, 2, &[]), Revision(2));
    node.hear(PeerMessage::NewerView { register, revision });
    node.sent.clear();
    node.hear(piece(2, 1));
    assert_eq!(node.sent, [PeerMessage::SnapshotOk { id, number: 1, digests: Digests::default() }]);
}
