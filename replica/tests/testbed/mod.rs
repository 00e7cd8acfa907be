//! Several replicas on memory disks, an authority and some clients in one thread, from a seed.
//!
//! Messages, flushes and answers of the authority are delivered in random order, late, or never;
//! nodes are killed (losing or tearing what was not flushed) and opened again. Everything a test
//! sees follows from its seed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use onlyonce_replica::{
    Config, Effect, Event, Mode, Moment, PeerMessage, ProposalResult, ReadId, Replica, ReplyTo,
    Timing, WallTime,
};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{Checkpointer, Generation, LogWriter, Options, Table, open};
use onlyonce_wire::authority::{Member, Register, Revision, Versioned};
use onlyonce_wire::client::{Answer, Execute, ExecuteId, Operation, Outcome, Request, Write};
use onlyonce_wire::{CallId, Incarnation, OpenedAt, Seq, Session, SessionId, StoreId, codec};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What every calendar says.
const WALL: WallTime = WallTime(1_700_000_000_000);

/// How unkind the surroundings are.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// How often, in a thousand, a message is lost.
    pub lost_per_mille: u32,
    /// How often, in a thousand, it arrives twice.
    pub repeated_per_mille: u32,
    /// How often, in a hundred thousand steps, a node is killed.
    pub kills: u32,
    /// How often, in a hundred thousand steps, two nodes are cut off from each other.
    pub partitions: u32,
}

/// A calm world.
pub const CALM: Faults =
    Faults { lost_per_mille: 0, repeated_per_mille: 0, kills: 0, partitions: 0 };

/// A node: its disk stays, its process comes and goes.
pub struct Node {
    member: Member,
    disk: MemoryDisk,
    process: Option<Process>,
    /// When a killed node is started again.
    restart_at: Moment,
}

struct Process {
    replica: Replica,
    log: LogWriter,
    checkpointer: Checkpointer,
    flushes: VecDeque<Effect>,
    folding: Option<Generation>,
}

/// Something on its way.
enum Parcel {
    Peer { from: usize, to: usize, message: PeerMessage },
    Ask { node: usize, process: u64, ask: Ask },
    Told { node: usize, process: u64, event: Event },
    Request { node: usize, from: ReplyTo, request: Request },
    Reply { to: ReplyTo, answer: Answer },
}

enum Ask {
    Read(ReadId),
    Swap(Revision, Register),
}

/// A client that increments its own counter, one request at a time, for ever retrying.
pub struct Client {
    session: SessionId,
    opened: Option<OpenedAt>,
    seq: u64,
    call: u64,
    target: usize,
    retry_at: Moment,
    /// Increments that were acknowledged.
    pub acknowledged: i64,
    /// Whether a request is under way.
    pub waiting: bool,
    /// Whether it goes on with new requests.
    pub active: bool,
}

/// The whole world.
pub struct Testbed {
    rng: StdRng,
    /// The time of all clocks.
    pub now: Moment,
    /// The nodes.
    pub nodes: Vec<Node>,
    generation: Vec<u64>,
    /// The clients.
    pub clients: Vec<Client>,
    parcels: Vec<Parcel>,
    register: Versioned,
    cut_off: BTreeMap<(usize, usize), Moment>,
    /// What may go wrong.
    pub faults: Faults,
    /// How many kills there were.
    pub kills: u64,
    /// The primaries that were seen, by view: there is at most one each.
    primaries: BTreeMap<u64, StoreId>,
    /// Whether nodes are started alone, without the authority.
    pub lone: bool,
    /// Whether a node may stop by itself.
    pub may_stop: bool,
    /// Who did, and why.
    pub stopped: Vec<(usize, String)>,
}

impl Testbed {
    /// A world of `nodes` nodes and `clients` clients.
    pub fn new(seed: u64, nodes: usize, clients: usize, faults: Faults) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let node = |at: usize| Node {
            member: Member {
                store: StoreId(at as u128 + 1),
                name: format!("n{}", at + 1),
                client_address: at.to_string(),
                peer_address: at.to_string(),
            },
            disk: MemoryDisk::new(),
            process: None,
            restart_at: Moment(0),
        };
        let client = |_| Client {
            session: SessionId(rng.random()),
            opened: None,
            seq: 1,
            call: 0,
            target: 0,
            retry_at: Moment(0),
            acknowledged: 0,
            waiting: false,
            active: true,
        };
        Self {
            clients: (0..clients).map(client).collect(),
            rng,
            now: Moment(1_000_000_000),
            nodes: (0..nodes).map(node).collect(),
            generation: vec![0; nodes],
            parcels: Vec::new(),
            register: Versioned { revision: Revision(0), register: None },
            cut_off: BTreeMap::new(),
            faults,
            kills: 0,
            primaries: BTreeMap::new(),
            lone: nodes == 1,
            may_stop: false,
            stopped: Vec::new(),
        }
    }

    /// Opens a node's store and starts its process.
    pub fn start(&mut self, at: usize) {
        let seed = self.rng.random();
        let node = &mut self.nodes[at];
        assert!(node.process.is_none(), "node {at} runs already");
        let options = Options::new(node.member.store.0);
        let opened = open(node.disk.disk(), &options)
            .unwrap_or_else(|error| panic!("n{} cannot open its store: {error}", at + 1));
        let mode = if self.lone { Mode::Lone } else { Mode::Cluster { bootstrap: at == 0 } };
        let timing =
            Timing { checkpoint_interval: Duration::from_millis(300), ..Timing::default() };
        let config = Config {
            timing,
            log_tail_bytes: 1 << 20,
            piece_bytes: 1 << 10,
            checkpoint_bytes: 4_000,
            ..Config::new(node.member.clone(), mode, seed)
        };
        let (replica, effects) =
            Replica::new(config, opened.state, &opened.state_bytes, self.now).expect("starts");
        node.process = Some(Process {
            replica,
            log: opened.log,
            checkpointer: opened.checkpointer,
            flushes: VecDeque::new(),
            folding: None,
        });
        self.generation[at] += 1;
        self.carry_out(at, effects);
    }

    /// Kills a node's process: what was not flushed may be lost or torn.
    pub fn kill(&mut self, at: usize, restart_after: Duration) {
        if self.nodes[at].process.take().is_none() {
            return;
        }
        let seed = self.rng.random();
        self.nodes[at].disk.crash(seed);
        self.nodes[at].restart_at = self.now.after(restart_after);
        self.generation[at] += 1;
        self.kills += 1;
    }

    /// The authority loses its data.
    pub fn lose_register(&mut self) {
        self.register = Versioned { revision: Revision(0), register: None };
    }

    /// Another process on a copy of a node's disk wins a view.
    pub fn usurp(&mut self, at: usize) {
        let Versioned { revision, register } = &mut self.register;
        let register = register.as_mut().expect("a cluster");
        revision.0 += 1;
        register.view = register.view.next();
        register.proposal = onlyonce_wire::ProposalId(self.rng.random());
        register.primary = self.nodes[at].member.clone();
        register.backups.clear();
    }

    /// Keeps a node from being started before `until`.
    pub fn hold(&mut self, at: usize, until: Moment) {
        self.nodes[at].restart_at = until;
    }

    /// The number of the newest view.
    pub fn view(&self) -> u64 {
        self.register.register.as_ref().map_or(0, |register| register.view.0)
    }

    /// The replica of a running node.
    pub fn replica(&self, at: usize) -> Option<&Replica> {
        self.nodes[at].process.as_ref().map(|process| &process.replica)
    }

    /// The node that serves, if any.
    pub fn primary(&self) -> Option<usize> {
        (0..self.nodes.len())
            .filter(|at| self.replica(*at).is_some_and(|replica| replica.status().serving))
            .max_by_key(|at| self.replica(*at).map(|replica| replica.status().view))
    }

    fn give(&mut self, at: usize, event: Event) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else { return };
        let effects = process.replica.step(now, event);
        self.carry_out(at, effects);
        let Some(process) = &mut self.nodes[at].process else { return };
        let status = process.replica.status();
        assert!(status.applied <= status.committed, "I8 on n{}: {status:?}", at + 1);
        if status.serving {
            let store = *self.primaries.entry(status.view.0).or_insert(status.store);
            assert_eq!(store, status.store, "I2: two primaries of view {}", status.view);
        }
    }

    fn carry_out(&mut self, at: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Reply { to, answer } => self.parcels.push(Parcel::Reply { to, answer }),
                Effect::Know(_)
                | Effect::Release(_)
                | Effect::ReadRows { .. }
                | Effect::Receive { .. }
                | Effect::Install { .. } => {}
                Effect::Send { to, message } => {
                    let to = self.nodes.iter().position(|node| node.member.store == to);
                    let to = to.expect("a known store");
                    self.parcels.push(Parcel::Peer { from: at, to, message });
                }
                Effect::Persist(_)
                | Effect::Cut { .. }
                | Effect::Save { .. }
                | Effect::Prune { .. } => {
                    let process = self.nodes[at].process.as_mut().expect("it is stepped");
                    process.flushes.push_back(effect);
                }
                Effect::ReadRegister(id) => self.ask(at, Ask::Read(id)),
                Effect::Propose { expected, register } => {
                    self.ask(at, Ask::Swap(expected, register));
                }
                Effect::Checkpoint(generation) => {
                    let process = self.nodes[at].process.as_mut().expect("it is stepped");
                    process.folding = Some(generation);
                }
                Effect::Scrub => panic!("a node suspects its tables"),
                Effect::Stop(reason) if self.may_stop => {
                    self.stopped.push((at, reason));
                    self.nodes[at].process = None;
                    self.nodes[at].restart_at = Moment(u64::MAX);
                    return;
                }
                Effect::Stop(reason) => panic!("n{} stops: {reason}", at + 1),
            }
        }
    }

    fn ask(&mut self, node: usize, ask: Ask) {
        let process = self.generation[node];
        self.parcels.push(Parcel::Ask { node, process, ask });
    }

    /// Carries out everything that a node's log writer has in its queue, up to `limit` commands.
    fn flush(&mut self, at: usize, limit: usize) {
        for _ in 0..limit {
            let Some(process) = &mut self.nodes[at].process else { return };
            let Some(effect) = process.flushes.pop_front() else { return };
            let event = match effect {
                Effect::Persist(record) => {
                    let index = record.index;
                    process.log.append(&[record]).expect("append");
                    Event::Persisted { index }
                }
                Effect::Cut { after, state } => {
                    process.log.cut(after, &state).expect("cut");
                    Event::Saved
                }
                Effect::Save { state } => {
                    process.log.save(&state).expect("save");
                    Event::Saved
                }
                Effect::Prune { upto } => {
                    while process.log.prune(upto).expect("prune") {}
                    continue;
                }
                other => unreachable!("not a flush: {other:?}"),
            };
            self.give(at, event);
        }
    }

    fn is_cut_off(&self, one: usize, other: usize) -> bool {
        let pair = (one.min(other), one.max(other));
        self.cut_off.get(&pair).is_some_and(|until| self.now < *until)
    }

    fn deliver(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Peer { from, to, message } => {
                if self.is_cut_off(from, to) {
                    return;
                }
                if self.rng.random_ratio(self.faults.repeated_per_mille, 1000) {
                    let message = message.clone();
                    self.parcels.push(Parcel::Peer { from, to, message });
                }
                let from = self.nodes[from].member.store;
                self.give(to, Event::Peer { from, message });
            }
            Parcel::Ask { node, process, ask } => self.ask_authority(node, process, ask),
            Parcel::Told { node, process, event } => {
                if self.generation[node] == process {
                    self.give(node, event);
                }
            }
            Parcel::Request { node, from, request } => {
                self.give(node, Event::Request { from, request });
            }
            Parcel::Reply { to, answer } => self.take_answer(to, answer),
        }
    }

    fn ask_authority(&mut self, node: usize, process: u64, ask: Ask) {
        let event = match ask {
            Ask::Read(id) => Event::RegisterRead { asked: Some(id), now: self.register.clone() },
            Ask::Swap(expected, register) if expected == self.register.revision => {
                let id = register.proposal;
                if let Some(old) = &self.register.register {
                    let proposer = register.primary.store;
                    let bump = old.view == register.view && old.proposal == register.proposal;
                    assert!(bump || old.replica(proposer).is_some(), "I3: {register:?}");
                    assert!(bump || register.view == old.view.next(), "views skip: {register:?}");
                }
                let revision = Revision(expected.0 + 1);
                self.register = Versioned { revision, register: Some(register) };
                Event::Proposed { id, result: ProposalResult::Won(revision) }
            }
            Ask::Swap(_, register) => {
                Event::Proposed { id: register.proposal, result: ProposalResult::Unknown }
            }
        };
        if !self.is_lost() {
            self.parcels.push(Parcel::Told { node, process, event });
        }
    }

    fn is_lost(&mut self) -> bool {
        self.rng.random_ratio(self.faults.lost_per_mille, 1000)
    }

    /// One small step: something is delivered, flushed, folded, or time passes.
    pub fn step(&mut self) {
        self.break_something();
        let nodes = self.nodes.len();
        match self.rng.random_range(0..10) {
            0 => {
                let millis = self.rng.random_range(0..5);
                self.now = self.now.after(Duration::from_millis(millis));
                for at in 0..nodes {
                    self.give(at, Event::Tick(WALL));
                }
                self.drive_clients();
            }
            1 | 2 => {
                let at = self.rng.random_range(0..nodes);
                let limit = self.rng.random_range(1..4);
                self.flush(at, limit);
            }
            3 => {
                let at = self.rng.random_range(0..nodes);
                self.give(at, Event::Drained);
                self.fold(at);
            }
            _ if self.parcels.is_empty() => {}
            _ => {
                let at = self.rng.random_range(0..self.parcels.len().min(8));
                let parcel = self.parcels.remove(at);
                if !self.is_lost() {
                    self.deliver(parcel);
                }
            }
        }
    }

    fn fold(&mut self, at: usize) {
        if !self.rng.random_ratio(1, 4) {
            return;
        }
        let Some(process) = &mut self.nodes[at].process else { return };
        if let Some(generation) = process.folding.take() {
            let checkpoint = process.checkpointer.fold(&generation, || {}).expect("fold");
            self.give(at, Event::Checkpointed(checkpoint));
        }
    }

    fn break_something(&mut self) {
        let nodes = self.nodes.len();
        if self.rng.random_ratio(self.faults.kills, 100_000) {
            let at = self.rng.random_range(0..nodes);
            let millis = self.rng.random_range(0..2_000);
            self.kill(at, Duration::from_millis(millis));
        }
        if nodes > 1 && self.rng.random_ratio(self.faults.partitions, 100_000) {
            let one = self.rng.random_range(0..nodes);
            let other = (one + self.rng.random_range(1..nodes)) % nodes;
            let until = self.now.after(Duration::from_millis(self.rng.random_range(0..2_000)));
            self.cut_off.insert((one.min(other), one.max(other)), until);
        }
        for at in 0..nodes {
            if self.nodes[at].process.is_none() && self.now >= self.nodes[at].restart_at {
                self.start(at);
            }
        }
    }

    fn drive_clients(&mut self) {
        for at in 0..self.clients.len() {
            let now = self.now;
            let nodes = self.nodes.len();
            let other = self.rng.random_range(0..nodes);
            let client = &mut self.clients[at];
            if now < client.retry_at || !(client.active || client.waiting) {
                continue;
            }
            if client.waiting {
                client.target = other;
            }
            client.waiting = true;
            client.retry_at = now.after(Duration::from_millis(100));
            client.call += 1;
            let from = ReplyTo { connection: at as u64, call: CallId(client.call) };
            let request = client.request(at);
            self.parcels.push(Parcel::Request { node: client.target, from, request });
        }
    }

    fn take_answer(&mut self, to: ReplyTo, answer: Answer) {
        let at = to.connection as usize;
        let client = &mut self.clients[at];
        match answer {
            Answer::Opened { opened_at } => {
                assert!(client.opened.is_none_or(|known| known == opened_at), "two sessions");
                client.opened = Some(opened_at);
            }
            Answer::Executed { reply, .. } => {
                let outcome: Outcome = codec::decode::<_, 4096>(&reply).expect("an outcome");
                let Outcome::Integer(value) = outcome else { panic!("an integer: {outcome:?}") };
                // A late answer repeats what was answered before.
                if value == client.acknowledged + 1 && client.waiting {
                    client.acknowledged = value;
                    client.seq += 1;
                    client.waiting = false;
                    client.retry_at = self.now;
                }
                assert!(value <= client.acknowledged, "client {at} jumped to {value}");
            }
            Answer::Refused(refusal) => {
                let late = matches!(refusal, onlyonce_wire::client::Refusal::Stale { first_unacked }
                    if first_unacked.0 <= client.seq);
                assert!(late, "client {at} was refused: {refusal}");
            }
            Answer::NotPrimary { primary: Some(primary), .. } => {
                client.target = primary.parse().expect("an address");
            }
            Answer::NotPrimary { primary: None, .. } | Answer::AskAgain => {}
            other => panic!("client {at} was answered {other:?}"),
        }
    }

    /// Steps until `done` holds.
    pub fn run_until(&mut self, what: &str, steps: u64, done: impl Fn(&Self) -> bool) {
        for _ in 0..steps {
            if done(self) {
                return;
            }
            self.step();
        }
        let nodes: Vec<_> =
            (0..self.nodes.len()).map(|at| self.replica(at).map(Replica::status)).collect();
        panic!("not after {steps} steps: {what}; register {:?}; nodes {nodes:#?}", self.register);
    }

    /// Ends all faults, lets everything come to rest, and checks that each client's counter shows
    /// exactly what was acknowledged, on every node.
    pub fn heal_and_audit(&mut self) {
        self.faults = CALM;
        self.cut_off.clear();
        for client in &mut self.clients {
            client.active = false;
        }
        for node in &mut self.nodes {
            node.restart_at = self.now;
        }
        let nodes = self.nodes.len();
        self.run_until("everybody is a replica and every request answered", 400_000, |it| {
            let served = it.clients.iter().all(|client| !client.waiting);
            let status = it.primary().and_then(|at| it.replica(at)).map(Replica::status);
            served && status.is_some_and(|status| status.backups.len() + 1 == nodes)
        });
        let committed = |it: &Self, at| it.replica(at).map(|replica| replica.status().committed);
        self.run_until("everybody has committed the same", 400_000, |it| {
            (0..nodes).all(|at| committed(it, at) == committed(it, 0))
        });
        let counters: Vec<_> = self.clients.iter().map(|client| client.acknowledged).collect();
        for at in 0..nodes {
            let replica = self.replica(at).expect("it is up");
            let seen: Vec<i64> = (0..counters.len())
                .map(|client| {
                    let seen = replica.state().get(Table::Kv, &counter(client)).expect("a read");
                    seen.value.map_or(0, |value| {
                        std::str::from_utf8(&value).expect("text").parse().expect("a number")
                    })
                })
                .collect();
            assert_eq!(seen, counters, "n{}: counters against acknowledged", at + 1);
        }
    }
}

/// The key of a client's counter.
pub fn counter(client: usize) -> Bytes {
    format!("counter-{client}").into()
}

impl Client {
    fn request(&self, at: usize) -> Request {
        let incarnation = Incarnation(1);
        let Some(opened_at) = self.opened else {
            return Request::Open { incarnation, session: self.session };
        };
        let session = Session { id: self.session, opened_at };
        let seq = Seq(self.seq);
        let operation = Operation::Write(Write::Incr { key: counter(at), by: 1 });
        Request::Execute(Execute {
            incarnation,
            id: ExecuteId::Session { session, seq, first_unacked: seq },
            operation: codec::encode(&operation).into(),
        })
    }
}
