//! One replica, step by step: its disk and its authority answer at once, and the test plays all others.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_replica::{
    Config, Effect, Event, FeedId, Mode, Moment, PeerMessage, Piece, ProposalResult, ReadId,
    Replica, ReplyTo, SnapshotId, WallTime,
};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{
    Checkpoint, Checkpointer, Digests, Entry, Generation, Index, LogWriter, Mark, Opened, Options,
    View, open,
};
use onlyonce_wire::authority::{Member, Register, Revision, Versioned};
use onlyonce_wire::client::{Answer, Execute, ExecuteId, Operation, Request, Write};
use onlyonce_wire::{CallId, ClusterId, IdempotencyKey, Incarnation, ProposalId, StoreId, codec};

/// What every calendar says at first.
pub const WALL: WallTime = WallTime(1_700_000_000_000);

pub fn member(number: u128) -> Member {
    Member {
        store: StoreId(number),
        name: format!("n{number}"),
        client_address: number.to_string(),
        peer_address: number.to_string(),
    }
}

pub fn register(view: u64, primary: u128, backups: &[u128]) -> Register {
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
pub struct Node {
    pub replica: Replica,
    pub log: LogWriter,
    pub checkpointer: Checkpointer,
    pub now: Moment,
    pub wall: WallTime,
    pub sent: Vec<PeerMessage>,
    /// That of the newest append.
    pub feed: FeedId,
    /// Those of the newest append to each.
    pub feeds: BTreeMap<StoreId, FeedId>,
    /// Who was told that it differs, and after which record.
    pub told: Vec<(StoreId, Index)>,
    pub register: Versioned,
    pub proposed: usize,
    /// What it proposed last.
    pub proposal: Option<Register>,
    /// What waits for the disk, while that hangs.
    pub hanging: Option<Vec<Effect>>,
    /// Whether the authority carries proposals out, and says so.
    pub swaps: bool,
    pub calls: u64,
    /// What clients were answered, by their calls.
    pub answers: Vec<(CallId, Answer)>,
    pub stopped: Option<String>,
    /// Where the snapshot ends on which it is to begin anew.
    pub installs: Option<Index>,
    /// How often its tables were to be scrubbed; the test gives the end.
    pub scrubs: usize,
    /// The checkpoint that n2's echoes name.
    pub echoed: Option<Checkpoint>,
    /// Whether folds take until the test ends them.
    pub folds_slowly: bool,
    /// What is being folded slowly.
    pub folding: Option<Generation>,
}

impl Node {
    /// On an empty disk, with an empty register.
    pub fn new(number: u128) -> Self {
        let opened = open(MemoryDisk::new().disk(), &Options::new(number)).expect("opens");
        Self::on(opened, number, Versioned { revision: Revision(0), register: None })
    }

    /// On an open store, with this in the register.
    pub fn on(opened: Opened, number: u128, register: Versioned) -> Self {
        Self::with(opened, number, register, true)
    }

    /// With an authority that does not get its proposals.
    pub fn refused(opened: Opened, number: u128, register: Versioned) -> Self {
        Self::with(opened, number, register, false)
    }

    pub fn with(opened: Opened, number: u128, register: Versioned, swaps: bool) -> Self {
        Self::configured(Self::config(number), opened, register, swaps)
    }

    pub fn config(number: u128) -> Config {
        let mode = Mode::Cluster { bootstrap: true };
        Config {
            log_tail_bytes: 0,
            piece_bytes: 1 << 10,
            ..Config::new(member(number), mode, number)
        }
    }

    pub fn configured(config: Config, opened: Opened, register: Versioned, swaps: bool) -> Self {
        let now = Moment(1_000_000_000);
        let (replica, effects) =
            Replica::new(config, opened.state, &opened.state_bytes, now).expect("starts");
        let mut node = Self {
            replica,
            log: opened.log,
            checkpointer: opened.checkpointer,
            now,
            wall: WALL,
            sent: Vec::new(),
            feed: FeedId::default(),
            feeds: BTreeMap::new(),
            told: Vec::new(),
            hanging: None,
            register,
            proposed: 0,
            proposal: None,
            swaps,
            calls: 0,
            answers: Vec::new(),
            stopped: None,
            installs: None,
            scrubs: 0,
            echoed: None,
            folds_slowly: false,
            folding: None,
        };
        node.carry_out(effects);
        node
    }

    /// The serving primary of a cluster of its own.
    pub fn serving() -> Self {
        let mut node = Self::new(1);
        node.tick(5);
        assert!(node.replica.status().serving);
        node
    }

    /// A learner of n2.
    pub fn learner() -> Self {
        let opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
        let now = Versioned { revision: Revision(1), register: Some(register(1, 2, &[])) };
        Self::on(opened, 1, now)
    }

    /// n2 sends a snapshot that ends at `end`, for the learner's process `process`.
    pub fn hear_snapshot(&mut self, process: u64, id: u128, end: u64) {
        let (view, id) = (View(1), SnapshotId(id));
        let end = Mark { index: Index(end), view, chain: 0 };
        let pieces = [Piece::Effects(Entry::default().encode()), Piece::End(end)];
        for (number, piece) in (0..).zip(pieces) {
            self.hear(PeerMessage::Snapshot { view, process, id, number, piece });
        }
    }

    /// A backup of n2.
    pub fn backup() -> Self {
        let opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
        let now = Versioned { revision: Revision(1), register: Some(register(1, 2, &[1])) };
        Self::on(opened, 1, now)
    }

    pub fn give(&mut self, event: Event) {
        let effects = self.replica.step(self.now, event);
        self.carry_out(effects);
    }

    pub fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let writes =
                matches!(effect, Effect::Persist(_) | Effect::Cut { .. } | Effect::Save { .. });
            if let Some(waiting) = self.hanging.as_mut().filter(|_| writes) {
                waiting.push(effect);
                continue;
            }
            match effect {
                Effect::Send { to, message } => {
                    if let PeerMessage::Append { feed, .. } = &message {
                        self.feed = *feed;
                        self.feeds.insert(to, *feed);
                    }
                    if let PeerMessage::Differs { index, .. } = &message {
                        self.told.push((to, *index));
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
                Effect::ReadRegister(id) => self.register_read(id),
                Effect::Propose { expected, register } => self.swap(expected, register),
                Effect::Stop(reason) => self.stopped = Some(reason),
                Effect::Checkpoint(generation) if self.folds_slowly => {
                    self.folding = Some(generation);
                }
                Effect::Checkpoint(generation) => {
                    let checkpoint = self.checkpointer.fold(&generation, || {}).expect("fold");
                    self.give(Event::Checkpointed(checkpoint));
                }
                Effect::Prune { upto } => while self.log.prune(upto).expect("prune") {},
                Effect::ReadRows { id, from } => {
                    let rows = self.checkpointer.read_rows(&from, 1 << 10).expect("rows");
                    self.give(Event::RowsRead { id, rows });
                }
                Effect::Reply { to, answer } => self.answers.push((to.call, answer)),
                Effect::Know(_) | Effect::Release(_) => {}
                Effect::Receive { id, number, .. } => {
                    self.give(Event::Received { id, number, digests: Digests::default() });
                }
                Effect::Scrub => self.scrubs += 1,
                Effect::Install { end, .. } => self.installs = Some(end.index),
            }
        }
    }

    /// Ends the fold that is under way.
    pub fn fold(&mut self) {
        let generation = self.folding.take().expect("it folds");
        let checkpoint = self.checkpointer.fold(&generation, || {}).expect("fold");
        self.give(Event::Checkpointed(checkpoint));
    }

    /// Carries out the oldest write that waits for the hanging disk.
    pub fn write_one(&mut self) {
        let waiting = self.hanging.as_mut().filter(|waiting| !waiting.is_empty());
        match waiting.map(|waiting| waiting.remove(0)) {
            Some(Effect::Persist(record)) => {
                let index = record.index;
                self.log.append(&[record]).expect("append");
                self.give(Event::Persisted { index });
            }
            Some(Effect::Save { state }) => {
                self.log.save(&state).expect("save");
                self.give(Event::Saved);
            }
            Some(other) => panic!("{other:?} is not expected here"),
            None => {}
        }
        self.give(Event::Drained);
    }

    /// Asks, and returns the answer if there is one at once.
    pub fn call(&mut self, request: Request) -> Option<Answer> {
        self.calls += 1;
        let call = CallId(self.calls);
        self.give(Event::Request { from: ReplyTo { connection: 1, call }, request });
        self.give(Event::Drained);
        let place = self.answers.iter().position(|(answered, _)| *answered == call)?;
        Some(self.answers.remove(place).1)
    }

    pub fn register_read(&mut self, id: ReadId) {
        let now = self.register.clone();
        self.give(Event::RegisterRead { asked: Some(id), now });
    }

    pub fn swap(&mut self, expected: Revision, register: Register) {
        self.proposed += 1;
        self.proposal = Some(register.clone());
        let id = register.proposal;
        if self.swaps && expected == self.register.revision {
            let revision = Revision(expected.0 + 1);
            self.register = Versioned { revision, register: Some(register) };
            self.give(Event::Proposed { id, result: ProposalResult::Won(revision) });
        }
    }

    pub fn put(&mut self, bytes: usize) {
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

    pub fn tick(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
        self.give(Event::Tick(self.wall));
    }

    pub fn hear(&mut self, message: PeerMessage) {
        self.give(Event::Peer { from: StoreId(2), message });
    }

    /// n2 asks to be fed.
    pub fn join(&mut self, committed: u64) {
        self.join_as(5, committed);
    }

    /// A process of n2 asks to be fed.
    pub fn join_as(&mut self, process: u64, committed: u64) {
        let committed = Index(committed);
        self.hear(PeerMessage::Join { member: member(2), process, committed });
    }

    /// n2 joins, takes all that it is sent, and becomes a backup.
    pub fn gain_backup(&mut self) {
        self.join(0);
        for _ in 0..400 {
            self.acknowledge(self.replica.status().prepared);
            self.echo();
            self.tick(5);
        }
        assert_eq!(self.backups(), ["n2"]);
    }

    /// The process that asks to be fed, as it says.
    pub fn process(&self) -> u64 {
        let asked = self.sent.iter().find_map(|message| match message {
            PeerMessage::Join { process, .. } => Some(*process),
            _ => None,
        });
        asked.expect("it asks to be fed")
    }

    /// The serving primary of a cluster of its own, whose log begins after all that it wrote.
    pub fn pruned() -> Self {
        let mut node = Self::serving();
        (0..10).for_each(|_| node.put(10));
        node.prune();
        node
    }

    /// Folds all that is committed, and prunes it; n2, if it is a backup, has all of it.
    pub fn prune(&mut self) {
        self.tick(31_000);
        self.acknowledge(self.replica.status().prepared);
        let state = self.replica.state();
        assert_eq!(state.first(), state.applied(), "all is pruned");
    }

    /// A process of n2 joins and says that its log has nothing in common.
    pub fn refuse_all(&mut self, process: u64) {
        self.join_as(process, 0);
        let (view, committed) = (View(self.replica.status().view.0), Index(0));
        let (feed, previous) = (self.feed, self.previous().expect("an append"));
        self.hear(PeerMessage::AppendMismatch { view, feed, previous, committed });
    }

    /// Whether a piece of a snapshot is on its way.
    pub fn sends_snapshot(&self) -> bool {
        let is_snapshot = |message: &PeerMessage| matches!(message, PeerMessage::Snapshot { .. });
        self.sent.iter().any(is_snapshot)
    }

    /// The position before the newest append.
    pub fn previous(&self) -> Option<Index> {
        self.sent.iter().rev().find_map(|message| match message {
            PeerMessage::Append { previous, .. } => Some(previous.index),
            _ => None,
        })
    }

    /// n2 takes the whole snapshot that is sent to it; returns where that ends.
    pub fn take_snapshot(&mut self) -> Index {
        loop {
            let message = self.sent.iter().rev().find_map(|message| match message {
                PeerMessage::Snapshot { id, number, piece, .. } => {
                    Some((*id, *number, piece.clone()))
                }
                _ => None,
            });
            let (id, number, piece) = message.expect("a snapshot is sent");
            let digests = self.checkpointer.checkpoint().digests;
            self.hear(PeerMessage::SnapshotOk { id, number, digests });
            self.tick(5);
            if let Piece::End(end) = piece {
                return end.index;
            }
        }
    }

    pub fn acknowledge(&mut self, matched: u64) {
        let view = View(self.replica.status().view.0);
        self.hear(PeerMessage::AppendOk { view, feed: self.feed, matched: Index(matched) });
    }

    /// n2 echoes all heartbeats that were sent, and everything sent is forgotten.
    pub fn echo(&mut self) {
        for message in std::mem::take(&mut self.sent) {
            if let PeerMessage::Heartbeat { nonce, register, .. } = message {
                let (view, checkpoint) = (View(register.view.0), self.echoed);
                self.hear(PeerMessage::Echo { view, nonce, checkpoint });
            }
        }
    }

    pub fn appended_bytes(&self) -> usize {
        let records = self.sent.iter().filter_map(|message| match message {
            PeerMessage::Append { records, .. } => Some(records),
            _ => None,
        });
        records.flatten().map(Bytes::len).sum()
    }

    pub fn backups(&self) -> Vec<String> {
        self.replica.status().backups
    }
}
