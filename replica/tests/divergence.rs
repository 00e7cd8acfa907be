//! Replicas whose tables differ: found at the next checkpoint at the same place, and the one that is
//! not what was written stops.

mod one_node;

use onlyonce_replica::{Event, PeerMessage};
use onlyonce_storage::{Checkpoint, Digests, Index, View};
use onlyonce_wire::StoreId;

use one_node::Node;

/// A primary whose backup n2 has everything; with n2's checkpoint, if it is the same as the primary's.
fn with_backup() -> (Node, Checkpoint) {
    let mut node = Node::serving();
    node.join(0);
    let everything = node.replica.status().prepared;
    node.acknowledge(everything);
    node.echo();
    node.tick(60);
    assert_eq!(node.replica.status().backups, ["n2"], "n2 is a replica");
    node.put(10);
    // The longest time without a checkpoint: the primary puts a mark.
    for _ in 0..700 {
        node.acknowledge(node.replica.status().prepared);
        node.tick(50);
        node.echo();
    }
    let checkpoint = node.checkpointer.checkpoint();
    assert_eq!(checkpoint.mark.index.0, node.replica.status().committed, "all is folded");
    (node, checkpoint)
}

/// n2 echoes a heartbeat, with this checkpoint.
fn echo(node: &mut Node, checkpoint: Checkpoint) {
    node.echoed = Some(checkpoint);
    node.sent.clear();
    node.tick(50);
    node.echo();
}

fn told(node: &Node) -> Option<Index> {
    node.sent.iter().find_map(|message| match message {
        PeerMessage::Differs { index, .. } => Some(*index),
        _ => None,
    })
}

/// The primary looks at its own tables first; only when these are what was written it tells the other.
#[test]
fn a_backup_that_differs_is_told() {
    let (mut node, checkpoint) = with_backup();
    echo(&mut node, checkpoint);
    assert_eq!(node.scrubs, 0, "they agree");

    let other = Checkpoint { digests: Digests::default(), ..checkpoint };
    let mut elsewhere = other;
    elsewhere.mark.index = Index(1_000);
    echo(&mut node, elsewhere);
    assert_eq!(node.scrubs, 0, "nothing to compare with");

    echo(&mut node, other);
    echo(&mut node, other);
    assert_eq!(node.scrubs, 1, "one scrub at a time");
    assert_eq!(told(&node), None);
    node.give(Event::Scrubbed);
    assert_eq!(told(&node), Some(checkpoint.mark.index));
    assert_eq!(node.stopped, None);
}

/// Only this view's primary is believed.
#[test]
fn a_backup_stops_when_its_primary_says_so() {
    let mut node = Node::backup();
    node.tick(5);
    let differs = |view| PeerMessage::Differs { view: View(view), index: Index(7) };
    node.hear(differs(0));
    node.give(Event::Peer { from: StoreId(3), message: differs(1) });
    assert_eq!(node.stopped, None);
    node.hear(differs(1));
    let reason = node.stopped.expect("it stops");
    assert!(reason.contains("after record 7") && reason.contains("new, empty folder"), "{reason}");
}

/// A snapshot that came to something else than the primary's tables is not completed.
#[test]
fn a_snapshot_that_differs_is_given_up() {
    let mut node = Node::pruned();
    node.refuse_all(5);
    loop {
        let piece = node.sent.iter().rev().find_map(|message| match message {
            PeerMessage::Snapshot { id, number, .. } => Some((*id, *number)),
            _ => None,
        });
        let (id, number) = piece.expect("a snapshot is sent");
        let digests = Digests::default();
        node.sent.clear();
        node.hear(PeerMessage::SnapshotOk { id, number, digests });
        if node.scrubs > 0 {
            break;
        }
        node.tick(50);
    }
    node.tick(5_000);
    assert!(!node.sends_snapshot(), "{:?}", node.sent);
}
