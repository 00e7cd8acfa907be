//! One primary, step by step: who becomes a replica, who is fed how much, and what is ignored.

use std::time::Duration;

use bytes::Bytes;
use onlyonce_replica::{
    Config, Effect, Event, FeedId, Mode, Moment, PeerMessage, Piece, Position, ProposalResult,
    ReadId, Replica, ReplyTo, SnapshotId,
};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{
    Checkpointer, Entry, Index, LogWriter, Mark, Opened, Options, Record, Table, View, open,
};
use onlyonce_wire::authority::{Member, Register, Revision, Versioned};
use onlyonce_wire::client::{Execute, ExecuteId, Operation, Request, Write};
use onlyonce_wire::{CallId, ClusterId, IdempotencyKey, Incarnation, ProposalId, StoreId, codec};

fn member(number: u128) -> Member {
    Member {
        store: StoreId(number),
        name: format!("n{number}"),
        client_address: number.to_string(),
        peer_address: number.to_string(),
    }
}

fn register(view: u64, primary: u128, backups: &[u128]) -> Register {
    Register {
        cluster: ClusterId(9),
        incarnation: Incarnation(1),
        view: onlyonce_wire::View(view),
        proposal: ProposalId(u128::from(view)),
        bumps: 0,
        primary: member(primary),
        backups: backups.iter().map(|backup| member(*backup)).collect(),
    }
}

/// Node n1, whose disk and authority answer at once; the test plays everybody else.
struct Node {
    replica: Replica,
    log: LogWriter,
    checkpointer: Checkpointer,
    now: Moment,
    sent: Vec<PeerMessage>,
    /// That of the newest append.
    feed: FeedId,
    register: Versioned,
    proposed: usize,
    /// What waits for the disk, while that hangs.
    hanging: Option<Vec<Effect>>,
    /// Whether the authority carries proposals out, and says so.
    swaps: bool,
    calls: u64,
    stopped: Option<String>,
    /// Where the snapshot ends on which it is to begin anew.
    installs: Option<Index>,
}

impl Node {
    /// On an empty disk, with an empty register.
    fn new(number: u128) -> Self {
        let opened = open(MemoryDisk::new().disk(), &Options::new(number)).expect("opens");
        Self::on(opened, number, Versioned { revision: Revision(0), register: None })
    }

    /// On an open store, with this in the register.
    fn on(opened: Opened, number: u128, register: Versioned) -> Self {
        Self::with(opened, number, register, true)
    }

    /// With an authority that does not get its proposals.
    fn refused(opened: Opened, number: u128, register: Versioned) -> Self {
        Self::with(opened, number, register, false)
    }

    fn with(opened: Opened, number: u128, register: Versioned, swaps: bool) -> Self {
        let mode = Mode::Cluster { bootstrap: true };
        let config = Config {
            log_tail_bytes: 0,
            piece_bytes: 1 << 10,
            ..Config::new(member(number), mode, number)
        };
        let now = Moment(1_000_000_000);
        let (replica, effects) =
            Replica::new(config, opened.state, &opened.state_bytes, now).expect("starts");
        let mut node = Self {
            replica,
            log: opened.log,
            checkpointer: opened.checkpointer,
            now,
            sent: Vec::new(),
            feed: FeedId::default(),
            hanging: None,
            register,
            proposed: 0,
            swaps,
            calls: 0,
            stopped: None,
            installs: None,
        };
        node.carry_out(effects);
        node
    }

    /// The serving primary of a cluster of its own.
    fn serving() -> Self {
        let mut node = Self::new(1);
        node.tick(5);
        assert!(node.replica.status().serving);
        node
    }

    /// A learner of n2.
    fn learner() -> Self {
        let opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
        let now = Versioned { revision: Revision(1), register: Some(register(1, 2, &[])) };
        Self::on(opened, 1, now)
    }

    /// n2 sends a snapshot that ends at `end`, for the learner's process `process`.
    fn hear_snapshot(&mut self, process: u64, id: u128, end: u64) {
        let (view, id) = (View(1), SnapshotId(id));
        let end = Mark { index: Index(end), view, chain: 0 };
        let pieces = [Piece::Effects(Entry::default().encode()), Piece::End(end)];
        for (number, piece) in (0..).zip(pieces) {
            self.hear(PeerMessage::Snapshot { view, process, id, number, piece });
        }
    }

    /// A backup of n2.
    fn backup() -> Self {
        let opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
        let now = Versioned { revision: Revision(1), register: Some(register(1, 2, &[1])) };
        Self::on(opened, 1, now)
    }

    fn give(&mut self, event: Event) {
        let effects = self.replica.step(self.now, event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let writes =
                matches!(effect, Effect::Persist(_) | Effect::Cut { .. } | Effect::Save { .. });
            if let Some(waiting) = self.hanging.as_mut().filter(|_| writes) {
                waiting.push(effect);
                continue;
            }
            match effect {
                Effect::Send { message, .. } => {
                    if let PeerMessage::Append { feed, .. } = &message {
                        self.feed = *feed;
                    }
                    self.sent.push(message);
                }
                Effect::Persist(record) => {
                    let index = record.index;
                    self.log.append(&[record]).expect("append");
                    self.give(Event::Persisted { index });
                }
                Effect::Cut { after, state } => {
                    self.log.cut(after, &state).expect("cut");
                    self.give(Event::Saved);
                }
                Effect::Save { state } => {
                    self.log.save(&state).expect("save");
                    self.give(Event::Saved);
                }
                Effect::ReadRegister(id) => self.told(id),
                Effect::Propose { expected, register } => self.swap(expected, register),
                Effect::Stop(reason) => self.stopped = Some(reason),
                Effect::Checkpoint(generation) => {
                    self.checkpointer.fold(&generation).expect("fold");
                    self.give(Event::Checkpointed);
                }
                Effect::Prune { upto } => while self.log.prune(upto).expect("prune") {},
                Effect::ReadRows { id, from } => {
                    let rows = self.checkpointer.read_rows(&from, 1 << 10).expect("rows");
                    self.give(Event::RowsRead { id, rows });
                }
                Effect::Reply { .. } | Effect::Know(_) | Effect::Release(_) => {}
                Effect::Receive { id, number, .. } => self.give(Event::Received { id, number }),
                Effect::Install { end, .. } => self.installs = Some(end.index),
            }
        }
    }

    fn told(&mut self, id: ReadId) {
        let now = self.register.clone();
        self.give(Event::RegisterRead { asked: Some(id), now });
    }

    fn swap(&mut self, expected: Revision, register: Register) {
        self.proposed += 1;
        let id = register.proposal;
        if self.swaps && expected == self.register.revision {
            let revision = Revision(expected.0 + 1);
            self.register = Versioned { revision, register: Some(register) };
            self.give(Event::Proposed { id, result: ProposalResult::Won(revision) });
        }
    }

    fn put(&mut self, bytes: usize) {
        self.calls += 1;
        let name = format!("{}", self.calls);
        let write = Write::Put { key: name.clone().into(), value: vec![1; bytes].into() };
        let request = Request::Execute(Execute {
            incarnation: Incarnation(1),
            id: ExecuteId::Key(IdempotencyKey::new(name).expect("a key")),
            operation: codec::encode(&Operation::Write(write)).into(),
        });
        let from = ReplyTo { connection: 1, call: CallId(self.calls) };
        self.give(Event::Request { from, request });
        self.give(Event::Drained);
    }

    fn tick(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
        self.give(Event::Tick);
    }

    fn hear(&mut self, message: PeerMessage) {
        self.give(Event::Peer { from: StoreId(2), message });
    }

    /// n2 asks to be fed.
    fn join(&mut self, committed: u64) {
        self.join_as(5, committed);
    }

    /// A process of n2 asks to be fed.
    fn join_as(&mut self, process: u64, committed: u64) {
        let committed = Index(committed);
        self.hear(PeerMessage::Join { member: member(2), process, committed });
    }

    /// The position before the newest append.
    fn previous(&self) -> Option<Index> {
        self.sent.iter().rev().find_map(|message| match message {
            PeerMessage::Append { previous, .. } => Some(previous.index),
            _ => None,
        })
    }

    /// n2 takes the whole snapshot that is sent to it; returns where that ends.
    fn take_snapshot(&mut self) -> Index {
        loop {
            let message = self.sent.iter().rev().find_map(|message| match message {
                PeerMessage::Snapshot { id, number, piece, .. } => {
                    Some((*id, *number, piece.clone()))
                }
                _ => None,
            });
            let (id, number, piece) = message.expect("a snapshot is sent");
            self.hear(PeerMessage::SnapshotOk { id, number });
            self.tick(5);
            if let Piece::End(end) = piece {
                return end.index;
            }
        }
    }

    fn acknowledge(&mut self, matched: u64) {
        let view = View(self.replica.status().view.0);
        self.hear(PeerMessage::AppendOk { view, feed: self.feed, matched: Index(matched) });
    }

    /// n2 echoes all heartbeats that were sent, and everything sent is forgotten.
    fn echo(&mut self) {
        for message in std::mem::take(&mut self.sent) {
            if let PeerMessage::Heartbeat { nonce, register, .. } = message {
                self.hear(PeerMessage::Echo { view: View(register.view.0), nonce });
            }
        }
    }

    fn appended_bytes(&self) -> usize {
        let records = self.sent.iter().filter_map(|message| match message {
            PeerMessage::Append { records, .. } => Some(records),
            _ => None,
        });
        records.flatten().map(Bytes::len).sum()
    }

    fn backups(&self) -> Vec<String> {
        self.replica.status().backups
    }
}

/// A primary that has not committed what it found must not take a learner for complete that has
/// only what is *known* to be committed: the rest may be acknowledged.
#[test]
fn an_opening_primary_admits_only_learners_that_have_everything() {
    let mut opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
    for index in 1..=10_u64 {
        let committed = Index(index.saturating_sub(4));
        // Two do not fit one append, so that a learner can hold a part of them.
        let row = onlyonce_storage::Effect::put(Table::Kv, "k", vec![0; 600_000]);
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
    opened.checkpointer.fold(&generation).expect("fold");
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

/// A snapshot must not take away what the primary may count on: one that ends before what this
/// process acknowledged is dropped, and so is one that an earlier process asked for.
#[test]
fn a_learner_takes_no_old_snapshot() {
    let mut node = Node::learner();
    node.tick(300);
    let asked = node.sent.iter().find_map(|message| match message {
        PeerMessage::Join { process, .. } => Some(*process),
        _ => None,
    });
    let process = asked.expect("it asks to be fed");
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

/// A primary that stood still hears what was said meanwhile before it judges anybody's silence.
#[test]
fn a_primary_that_stood_still_drops_nobody_at_once() {
    let mut node = Node::serving();
    node.put(10);
    node.join(0);
    for _ in 0..400 {
        node.acknowledge(node.replica.status().prepared);
        node.echo();
        node.tick(5);
    }
    assert_eq!(node.backups(), ["n2"]);
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
