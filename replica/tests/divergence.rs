//! Replicas whose tables differ: found at the next checkpoint at the same place, and the one that is
//! not what was written stops.

mod one_node;

use std::collections::BTreeMap;

use onlyonce_replica::{Event, PeerMessage};
use onlyonce_storage::{Checkpoint, Digests, Index, Table, View};
use onlyonce_wire::{StoreId, codec};

use one_node::{Node, member};

/// The primary n1, and others that have every record at once.
struct Cluster {
    node: Node,
    /// What the echoes of the others name. Who is not here is silent.
    others: BTreeMap<u128, Option<Checkpoint>>,
}

impl Cluster {
    /// A primary with these backups.
    fn of(backups: &[u128]) -> Self {
        let mut cluster = Self { node: Node::serving(), others: BTreeMap::new() };
        for backup in backups {
            cluster.join(*backup);
            cluster.rounds(5);
        }
        assert_eq!(cluster.node.backups().len(), backups.len(), "all are replicas");
        cluster
    }

    fn hear(&mut self, from: u128, message: PeerMessage) {
        self.node.give(Event::Peer { from: StoreId(from), message });
    }

    fn join(&mut self, number: u128) {
        self.others.insert(number, None);
        let (member, committed) = (member(number), Index(0));
        self.hear(number, PeerMessage::Join { member, process: 5, committed });
    }

    /// All others acknowledge all records, and echo all heartbeats.
    fn rounds(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.node.tick(50);
            let sent = std::mem::take(&mut self.node.sent);
            for (number, checkpoint) in self.others.clone() {
                let status = self.node.replica.status();
                let (view, matched) = (View(status.view.0), Index(status.prepared));
                let feed = self.node.feeds[&StoreId(number)];
                self.hear(number, PeerMessage::AppendOk { view, feed, matched });
                for message in &sent {
                    if let PeerMessage::Heartbeat { nonce, .. } = message {
                        let nonce = *nonce;
                        self.hear(number, PeerMessage::Echo { view, nonce, checkpoint });
                    }
                }
            }
        }
    }

    /// Something is written, and folded at the next mark.
    fn mark(&mut self) -> Checkpoint {
        let before = self.node.checkpointer.checkpoint();
        self.node.put(10);
        // The longest time without a checkpoint: the primary puts a mark.
        self.rounds(700);
        let checkpoint = self.node.checkpointer.checkpoint();
        assert_ne!(checkpoint, before, "it is folded");
        checkpoint
    }

    /// From now on this one's echoes name this checkpoint.
    fn names(&mut self, number: u128, checkpoint: Checkpoint) {
        self.others.insert(number, Some(checkpoint));
        self.rounds(3);
    }

    /// The scrub finds nothing. Returns who is told then.
    fn scrubbed(&mut self) -> Vec<(StoreId, Index)> {
        assert_eq!((self.node.scrubs, &self.node.told[..]), (1, &[][..]), "one scrub, before all");
        self.node.give(Event::Scrubbed);
        self.node.scrubs = 0;
        std::mem::take(&mut self.node.told)
    }

    /// Nothing is done about what differs.
    fn goes_on(&self) {
        assert_eq!((self.node.scrubs, &self.node.told[..]), (0, &[][..]));
        assert_eq!(self.node.stopped, None);
    }
}

/// At the same place, but of other rows; equal numbers are equal rows.
fn other(checkpoint: Checkpoint, number: u128) -> Checkpoint {
    let sums = codec::encode(&[number; Table::ALL.len()]);
    let digests = codec::decode::<Digests, 128>(&sums).expect("digests are their sums");
    Checkpoint { digests, ..checkpoint }
}

/// Of two, the primary looks at its own tables first; only when these are what was written it tells
/// the other.
#[test]
fn a_backup_that_differs_is_told() {
    let mut cluster = Cluster::of(&[2]);
    let checkpoint = cluster.mark();
    cluster.names(2, checkpoint);
    cluster.goes_on();

    let mut elsewhere = other(checkpoint, 1);
    elsewhere.mark.index = Index(1_000);
    cluster.names(2, elsewhere);
    cluster.goes_on();

    cluster.names(2, other(checkpoint, 1));
    assert_eq!(cluster.scrubbed(), [(StoreId(2), checkpoint.mark.index)]);
    assert_eq!(cluster.node.stopped, None);
}

/// Of three, the odd one is told, and nobody before the third was heard.
#[test]
fn the_odd_one_of_three_is_told() {
    let mut cluster = Cluster::of(&[2, 3]);
    let checkpoint = cluster.mark();
    cluster.names(2, other(checkpoint, 1));
    cluster.rounds(100);
    cluster.goes_on();
    cluster.names(3, checkpoint);
    assert_eq!(cluster.scrubbed(), [(StoreId(2), checkpoint.mark.index)]);
    assert_eq!(cluster.node.stopped, None);
}

/// A primary whose memory was wrong before it was folded: its digests are those of its rows, but both
/// others have other ones.
#[test]
fn a_primary_that_both_others_contradict_stops() {
    let mut cluster = Cluster::of(&[2, 3]);
    let checkpoint = cluster.mark();
    cluster.names(2, other(checkpoint, 1));
    cluster.goes_on();
    cluster.names(3, other(checkpoint, 1));
    assert_eq!((cluster.node.scrubs, &cluster.node.told[..]), (0, &[][..]), "nobody is told");
    let reason = cluster.node.stopped.expect("it stops");
    let named = reason.contains("n2 and n3") && reason.contains("this store is damaged");
    assert!(named && reason.contains(&format!("record {}", checkpoint.mark.index)), "{reason}");
}

/// Three that all differ tell nothing of who is right; two of three do, also at a later mark only.
#[test]
fn without_a_majority_nobody_stops() {
    let mut cluster = Cluster::of(&[2, 3]);
    let checkpoint = cluster.mark();
    cluster.names(2, other(checkpoint, 1));
    cluster.names(3, other(checkpoint, 2));
    cluster.rounds(100);
    cluster.goes_on();
    let checkpoint = cluster.mark();
    cluster.names(3, other(checkpoint, 1));
    cluster.goes_on();
    cluster.names(2, checkpoint);
    assert_eq!(cluster.scrubbed(), [(StoreId(3), checkpoint.mark.index)]);
}

/// A third replica that missed the mark has no voice at it, and is heard at the next one. What differed
/// once, and does not any more, is nobody's fault then.
#[test]
fn a_replica_that_missed_the_mark_is_heard_at_the_next() {
    let mut cluster = Cluster::of(&[2, 3]);
    let checkpoint = cluster.mark();
    cluster.names(2, other(checkpoint, 1));
    let mut elsewhere = checkpoint;
    elsewhere.mark.index = elsewhere.mark.index.next();
    cluster.names(3, elsewhere);
    cluster.rounds(100);
    cluster.goes_on();
    let checkpoint = cluster.mark();
    cluster.names(2, checkpoint);
    cluster.others.remove(&3);
    cluster.rounds(100);
    assert_eq!(cluster.node.backups(), ["n2"], "n3 is dropped");
    cluster.goes_on();
}

/// When the third one is dropped, two are left: the rule of two. But a second store that contradicts
/// this primary is not told: of two against one, the one is wrong.
#[test]
fn a_primary_never_tells_a_second_store_that_contradicts_it_alone() {
    let mut cluster = Cluster::of(&[2, 3]);
    let checkpoint = cluster.mark();
    cluster.others.remove(&3);
    cluster.names(2, other(checkpoint, 1));
    cluster.rounds(100);
    assert_eq!(cluster.node.backups(), ["n2"], "n3 is dropped");
    assert_eq!(cluster.scrubbed(), [(StoreId(2), checkpoint.mark.index)]);
    cluster.others.remove(&2);
    cluster.rounds(100);
    assert_eq!(cluster.node.backups(), Vec::<String>::new(), "n2 has stopped");

    cluster.join(3);
    let checkpoint = cluster.mark();
    cluster.names(3, other(checkpoint, 1));
    assert_eq!((cluster.node.scrubs, &cluster.node.told[..]), (0, &[][..]), "n3 is not told");
    let reason = cluster.node.stopped.expect("it stops");
    assert!(reason.contains(&format!("{}", StoreId(2))) && reason.contains("Keep"), "{reason}");
}

/// A primary that another store agreed with since is believed again.
#[test]
fn a_primary_that_was_confirmed_since_tells_another_store() {
    let mut cluster = Cluster::of(&[2]);
    let checkpoint = cluster.mark();
    cluster.names(2, other(checkpoint, 1));
    assert_eq!(cluster.scrubbed(), [(StoreId(2), checkpoint.mark.index)]);
    cluster.others.remove(&2);
    cluster.rounds(100);
    cluster.join(3);
    let checkpoint = cluster.mark();
    cluster.names(3, checkpoint);
    cluster.goes_on();
    let checkpoint = cluster.mark();
    cluster.names(3, other(checkpoint, 1));
    assert_eq!(cluster.scrubbed(), [(StoreId(3), checkpoint.mark.index)]);
    assert_eq!(cluster.node.stopped, None);
}

/// A learner's tables are compared as well; the backup tells which of the two is right.
#[test]
fn a_learner_that_differs_is_told() {
    let mut cluster = Cluster::of(&[2]);
    let stays_learner = |cluster: &Cluster| assert_eq!(cluster.node.backups(), ["n2"]);
    let checkpoint = cluster.mark();
    let (member, committed) = (member(3), Index(0));
    cluster.hear(3, PeerMessage::Join { member, process: 5, committed });
    let echo = |nonce| {
        let (view, checkpoint) = (View(2), Some(other(checkpoint, 1)));
        PeerMessage::Echo { view, nonce, checkpoint }
    };
    cluster.hear(3, echo(1));
    stays_learner(&cluster);
    cluster.goes_on();
    cluster.names(2, checkpoint);
    cluster.hear(3, echo(2));
    stays_learner(&cluster);
    assert_eq!(cluster.scrubbed(), [(StoreId(3), checkpoint.mark.index)]);
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
