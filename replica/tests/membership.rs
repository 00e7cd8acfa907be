//! One primary, step by step: who becomes a replica, who is fed how much, and what is ignored.

mod one_node;

use bytes::Bytes;
use onlyonce_replica::{Event, FeedId, PeerMessage, Position, ProposalResult};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::limits::OVERLAY_BYTES_MAX;
use onlyonce_storage::{Effect, Entry, Index, Options, Record, Table, View, open};
use onlyonce_wire::authority::{Revision, Versioned};
use onlyonce_wire::{ClusterId, ProposalId};

use one_node::{Node, register};

/// A primary that has not committed what it found must not take a learner for complete that has
/// only what is *known* to be committed: the rest may be acknowledged.
#[test]
fn an_opening_primary_admits_only_learners_that_have_everything() {
    let mut opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
    for index in 1..=10_u64 {
        let committed = Index(index.saturating_sub(4));
        // Two do not fit one append, so that a learner can hold a part of them.
        let row = Effect::put(Table::Kv, "k", vec![0; 600_000]);
        let entries = vec![Entry { effects: vec![row] }];
        let record = std::sync::Arc::new(Record::new(View(5), Index(index), committed, entries));
        opened.state.stage_record(std::sync::Arc::clone(&record));
        opened.log.append(&[record]).expect("append");
        opened.state.note_persisted(Index(index));
    }
    opened.state.commit(Index(6));
    // n3, the backup of view 5, is dead; n2 has what came up to record 7, and its disk is slow.
    let now = Versioned { revision: Revision(7), register: Some(register(5, 1, &[3])) };
    let mut node = Node::on(opened, 1, now);
    for round in 0..1_400 {
        node.tick(5);
        if node.replica.status().view.0 >= 6 && round % 40 == 0 {
            node.join(6);
        }
        node.acknowledge(7);
        node.echo();
        let backups = node.backups();
        assert!(!backups.contains(&"n2".to_owned()), "a learner that lacks 8 to 10: {backups:?}");
    }
}

/// Under steady load a learner is always a record behind; it becomes a backup all the same.
#[test]
fn a_learner_catches_up_under_load() {
    let mut node = Node::serving();
    node.put(10);
    node.join(0);
    for _ in 0..200 {
        let behind = node.replica.status().prepared;
        node.put(10);
        node.acknowledge(behind);
        node.echo();
        node.tick(5);
        if node.backups() == ["n2"] {
            return;
        }
    }
    panic!("a learner that is one record behind is no backup after a second");
}

/// A learner for whom commits wait and that does not come nearer does not stall writes for long.
#[test]
fn a_candidate_cannot_stall_writes() {
    let mut node = Node::serving();
    node.put(10);
    node.join(0);
    let last = node.replica.status().prepared;
    node.acknowledge(last);
    node.put(10);
    for _ in 0..200 {
        node.echo();
        node.tick(5);
    }
    node.put(10);
    let status = node.replica.status();
    assert_eq!(status.committed, status.prepared, "writes go on");
    assert!(node.backups().is_empty());
}

/// One lost append among many in flight makes one of them be sent again, not each of them.
#[test]
fn a_lost_append_is_no_storm() {
    let mut node = Node::serving();
    node.put(1_000);
    node.join(0);
    node.acknowledge(node.replica.status().prepared);
    node.sent.clear();
    for _ in 0..500 {
        node.put(1_000);
    }
    let appends: Vec<Index> = node
        .sent
        .iter()
        .filter_map(|message| match message {
            PeerMessage::Append { previous, .. } => Some(previous.index),
            _ => None,
        })
        .collect();
    assert!(appends.len() > 100, "they are in flight");
    node.sent.clear();
    for previous in &appends[1..] {
        let (view, feed, previous) = (View(1), node.feed, *previous);
        node.hear(PeerMessage::AppendMismatch { view, feed, previous, committed: Index(0) });
    }
    let bytes = node.appended_bytes();
    assert!(bytes < 3 << 20, "{bytes} bytes were sent again");
}

/// A late append of records that this backup has folded and pruned since is no contradiction: it
/// must not make a healthy primary stop.
#[test]
fn a_late_append_of_pruned_records_accuses_nobody() {
    let mut opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
    let mut records = Vec::new();
    for index in 1..=3 {
        let entries = vec![Entry::default()];
        let record = std::sync::Arc::new(Record::new(View(1), Index(index), Index(0), entries));
        records.push(record.encode());
        opened.state.stage_record(std::sync::Arc::clone(&record));
        opened.log.append(&[record]).expect("append");
    }
    opened.state.note_persisted(Index(3));
    opened.state.commit(Index(3));
    let generation = opened.state.freeze().expect("something to fold");
    opened.checkpointer.fold(&generation, || {}).expect("fold");
    opened.state.note_folded(Index(3));
    while opened.log.prune(Index(2)).expect("prune") {}
    assert_eq!(opened.state.view_at(Index(1)).expect("a read"), None, "record 1 is gone");
    let now = Versioned { revision: Revision(1), register: Some(register(1, 2, &[1])) };
    let mut node = Node::on(opened, 1, now);
    node.sent.clear();
    let (view, feed, previous, committed) = (View(1), FeedId(7), Position::default(), Index(3));
    node.hear(PeerMessage::Append { view, feed, previous, committed, records });
    let accused = |message: &PeerMessage| matches!(message, PeerMessage::HoldsCommitted { .. });
    assert!(!node.sent.iter().any(accused), "{:?}", node.sent);
    let acknowledged = PeerMessage::AppendOk { view, feed, matched: Index(3) };
    assert!(node.sent.contains(&acknowledged), "{:?}", node.sent);
}

/// An append whose records do not follow each other is ignored, whoever made it.
#[test]
fn a_malformed_append_is_ignored() {
    let record =
        |view, index| Record::new(View(view), Index(index), Index(0), vec![Entry::default()]);
    for records in [
        vec![record(1, 2)],
        vec![record(1, 1), record(1, 3)],
        vec![record(1, 1), record(0, 2)],
        vec![record(2, 1)],
    ] {
        let mut node = Node::backup();
        let records: Vec<Bytes> = records.iter().map(Record::encode).collect();
        let (view, feed, previous, committed) = (View(1), FeedId(7), Position::default(), Index(0));
        node.hear(PeerMessage::Append { view, feed, previous, committed, records });
        assert_eq!(node.replica.status().prepared, 0, "nothing of it is taken");
        assert_eq!(node.stopped, None);
        let garbage = vec![Bytes::from_static(b"garbage")];
        node.hear(PeerMessage::Append { view, feed, previous, committed, records: garbage });
        assert_eq!(node.stopped, None);
    }
}

/// A backup whose memory is full folds what is committed before it takes more, though no mark came:
/// else it would refuse all that follows, or outgrow its bound.
#[test]
fn a_full_backup_makes_room() {
    // They fill the memory by what a row costs there beyond its bytes.
    let entries = vec![Entry { effects: vec![Effect::delete(Table::Kv, "k"); 500_000] }];
    let append = |node: &mut Node, index: u64| {
        let (view, committed) = (View(1), Index(index - 1));
        let previous = match committed {
            Index::ZERO => Position { view: View::ZERO, index: Index::ZERO },
            index => Position { view, index },
        };
        let records = vec![Record::new(view, Index(index), committed, entries.clone()).encode()];
        node.hear(PeerMessage::Append { view, feed: FeedId(1), previous, committed, records });
    };
    let mut node = Node::backup();
    let mut last = 0;
    while node.replica.state().overlay_bytes() <= OVERLAY_BYTES_MAX {
        last += 1;
        append(&mut node, last);
        assert_eq!(node.replica.status().prepared, last);
    }
    assert_eq!(node.replica.status().applied, 0, "nothing made it fold");
    append(&mut node, last + 1);
    assert_eq!(node.replica.status().applied, last - 1, "what was known to be committed");
    assert_eq!(node.replica.status().prepared, last, "it is to be sent again");
    append(&mut node, last + 1);
    assert_eq!(node.replica.status().prepared, last + 1);
}

/// A primary that stood still hears what was said meanwhile before it judges anybody's silence.
#[test]
fn a_primary_that_stood_still_drops_nobody_at_once() {
    let mut node = Node::serving();
    node.put(10);
    node.gain_backup();
    node.tick(700);
    assert_eq!(node.backups(), ["n2"], "dropped on waking");
    for _ in 0..30 {
        node.tick(5);
    }
    assert!(node.backups().is_empty(), "a silent one is dropped in the end");
}

/// A primary whose own disk hung, and that withheld its heartbeats, does not blame its backups for
/// their silence: the view would lose a copy, and the one on the bad disk would be left.
#[test]
fn a_primary_whose_disk_hung_drops_nobody_for_it() {
    let mut node = Node::serving();
    let backup = |node: &mut Node, ticks| {
        for _ in 0..ticks {
            node.acknowledge(node.replica.state().last().1.0);
            node.echo();
            node.tick(5);
        }
    };
    node.join(0);
    backup(&mut node, 400);
    assert_eq!(node.backups(), ["n2"]);
    node.hanging = Some(Vec::new());
    node.put(10);
    backup(&mut node, 600);
    let waiting = node.hanging.take().unwrap_or_default();
    node.carry_out(waiting);
    backup(&mut node, 100);
    assert_eq!(node.backups(), ["n2"]);
    assert_eq!(node.replica.status().committed, node.replica.status().prepared);
}

/// Of two nodes that found a cluster at once, the one that comes late joins the other's.
#[test]
fn a_late_founder_joins() {
    let opened = open(MemoryDisk::new().disk(), &Options::new(2)).expect("opens");
    let first = Versioned { revision: Revision(0), register: None };
    let mut late = Node::refused(opened, 2, first);
    assert_eq!(late.proposed, 1, "it tries to found a cluster");
    late.register = Versioned { revision: Revision(1), register: Some(register(1, 1, &[])) };
    late.tick(300);
    assert_eq!(late.stopped, None);
    assert_eq!(late.replica.cluster(), Some(ClusterId(9)));
    assert_eq!(late.replica.status().primary.as_deref(), Some("n1"));
}

/// An answer to an earlier proposal says nothing about the present one.
#[test]
fn an_answer_counts_for_its_own_proposal_only() {
    let mut node = Node::serving();
    node.put(10);
    let view = node.replica.status().view;
    // The proposal that takes the learner in gets no answer; that of an earlier one arrives.
    node.swaps = false;
    node.join(0);
    for _ in 0..20 {
        node.acknowledge(node.replica.status().prepared);
        node.echo();
        node.tick(5);
    }
    assert!(node.replica.is_proposing(), "the proposal is unresolved");
    let result = ProposalResult::Won(Revision(2));
    node.give(Event::Proposed { id: ProposalId(77), result });
    assert_eq!(node.replica.status().view, view);
}
