//! The world: nodes, clients, an authority and the network between them, from one seed.

use std::collections::BTreeMap;

use onlyonce_replica::{Effect, Event, PeerMessage, ProposalResult, ReadId, Replica, ReplyTo};
use onlyonce_wire::authority::{Register, Revision, Versioned};
use onlyonce_wire::client::{Answer, Request};
use onlyonce_wire::{CallId, StoreId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::audit::has_settled;
use crate::client::{Client, History, Taken};
use crate::faults::Fault;
use crate::ledger::{Finding, Ledger};
use crate::node::{Clock, Node, Worked};
use crate::plan::{Faults, Plan};
use crate::time::{Agenda, MILLISECOND, SECOND, Span};

pub(crate) const TICK: Span = 5 * MILLISECOND;
const RETRY: Span = 100 * MILLISECOND;
/// How long a healed world may take until everything is answered and everybody is a replica.
const HEALING: Span = 120 * SECOND;

/// Something that will happen.
pub enum Happening {
    /// A node's timer.
    Tick { node: usize, generation: u64 },
    /// A node's queue is empty.
    Drained { node: usize, generation: u64 },
    /// A node's log writer is done.
    Flushed { node: usize, generation: u64 },
    /// A node's checkpoint thread is done.
    Worked { node: usize, generation: u64 },
    /// A message arrives.
    Message { from: usize, to: usize, store: StoreId, message: PeerMessage },
    /// The authority is asked.
    Ask { node: usize, generation: u64, ask: Ask },
    /// A node hears of the authority.
    Told { node: usize, generation: u64, event: Event },
    /// A request arrives at a node.
    Request { node: usize, from: ReplyTo, request: Request },
    /// An answer arrives at a client.
    Answer { to: ReplyTo, answer: Answer },
    /// A client does something.
    Client { client: usize },
    /// A client asks again.
    Retry { client: usize, call: u64 },
    /// A fault takes place.
    Fault(Fault),
    /// A dead node is started.
    Start { node: usize },
    /// A node goes on.
    Resume { node: usize, generation: u64 },
    /// Faults and new requests end.
    Heal,
}

/// A question to the authority.
pub enum Ask {
    /// What is it?
    Read(ReadId),
    /// Change it.
    Swap(Revision, Register),
}

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Events handled.
    pub steps: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests whose outcome stays unknown.
    pub unknown: u64,
    /// Views made.
    pub views: u64,
    /// Crashes of processes.
    pub crashes: u64,
    /// Disks emptied.
    pub emptied: u64,
    /// Snapshots installed.
    pub installed: u64,
}

/// The world.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: StdRng,
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Vec<Client>,
    pub(crate) history: History,
    pub(crate) ledger: Ledger,
    pub(crate) register: Versioned,
    pub(crate) authority_down_until: u64,
    pub(crate) cut_off: BTreeMap<(usize, usize), u64>,
    pub(crate) healed: bool,
    pub(crate) next_store: u128,
    pub(crate) report: Report,
    pub(crate) trace: bool,
}

/// Runs a seed to its end.
pub fn run(seed: u64, trace: bool) -> Result<Report, String> {
    let mut world = World::new(seed, trace);
    world.run()?;
    Ok(world.report)
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan::draw(&mut rng);
        let drift = u64::from(plan.drift_per_mille) * 1_000;
        let nodes = (0..plan.nodes).map(|at| {
            let clock = Clock {
                offset: rng.random_range(0..1_000 * SECOND),
                rate: rng.random_range(1_000_000 - drift..=1_000_000 + drift),
            };
            Node::new(at, StoreId(at as u128 + 1), clock)
        });
        let nodes: Vec<Node> = nodes.collect();
        let clients = (0..plan.clients).map(|_| Client::new(&mut rng)).collect();
        let mut world = Self {
            next_store: 100,
            rng,
            agenda: Agenda::new(),
            nodes,
            clients,
            history: History::default(),
            ledger: Ledger::default(),
            register: Versioned { revision: Revision(0), register: None },
            authority_down_until: 0,
            cut_off: BTreeMap::new(),
            healed: false,
            report: Report::default(),
            trace,
            plan,
        };
        world.say(|world| format!("plan {:?}", world.plan));
        world.populate();
        world
    }

    fn populate(&mut self) {
        for node in 0..self.nodes.len() {
            let after = self.rng.random_range(0..50 * MILLISECOND);
            self.agenda.schedule(after, Happening::Start { node });
        }
        for client in 0..self.clients.len() {
            self.agenda.schedule(MILLISECOND, Happening::Client { client });
        }
        let Faults { crash, blackout, partition, pause, outage, empty, client_crash } =
            self.plan.faults;
        for (mean, fault) in [
            (crash, Fault::Crash),
            (blackout, Fault::Blackout),
            (partition, Fault::Partition),
            (pause, Fault::Pause),
            (outage, Fault::Outage),
            (empty, Fault::Empty),
            (client_crash, Fault::ClientCrash),
        ] {
            if mean > 0 {
                let after = self.rng.random_range(0..2 * mean);
                self.agenda.schedule(after, Happening::Fault(fault));
            }
        }
        self.agenda.schedule(self.plan.duration, Happening::Heal);
    }

    fn run(&mut self) -> Finding {
        let end = self.agenda.now() + self.plan.duration + HEALING;
        while let Some(happening) = self.agenda.next() {
            self.report.steps += 1;
            self.happen(happening).map_err(|finding| self.place(&finding))?;
            if self.healed && self.report.steps.is_multiple_of(64) && self.is_at_rest() {
                return self.audit().map_err(|finding| self.place(&finding));
            }
            if self.agenda.now() > end {
                break;
            }
        }
        Err(self.place(&format!("the healed world does not come to rest: {}", self.describe())))
    }

    fn place(&self, finding: &str) -> String {
        format!("at {:.6} s: {finding}", self.agenda.now() as f64 / 1e9)
    }

    pub(crate) fn say(&self, text: impl FnOnce(&Self) -> String) {
        if self.trace {
            println!("{:>12.6} {}", self.agenda.now() as f64 / 1e9, text(self));
        }
    }

    fn describe(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.process.as_ref().map(|process| process.replica.status()))
            .collect();
        let calls: Vec<_> = self.clients.iter().map(|client| client.calls.len()).collect();
        format!("calls {calls:?}, register {:?}, nodes {nodes:#?}", self.register)
    }

    fn happen(&mut self, happening: Happening) -> Finding {
        match happening {
            Happening::Tick { node, generation } => {
                if self.nodes[node].generation == generation {
                    self.agenda.schedule(TICK, Happening::Tick { node, generation });
                    return self.give(node, Event::Tick);
                }
            }
            Happening::Drained { node, generation } => {
                if let Some(process) = self.process(node, generation) {
                    process.draining = false;
                    return self.give(node, Event::Drained);
                }
            }
            Happening::Flushed { node, generation } => return self.flushed(node, generation),
            Happening::Worked { node, generation } => {
                return self.worked(node, generation);
            }
            Happening::Message { from, to, store, message } => {
                if !self.is_cut_off(from, to) && self.nodes[to].store == store {
                    self.say(|_| format!("n{} → n{}: {}", from + 1, to + 1, brief(&message)));
                    let from = self.nodes[from].store;
                    return self.give(to, Event::Peer { from, message });
                }
            }
            Happening::Ask { node, generation, ask } => self.ask_authority(node, generation, ask),
            Happening::Told { node, generation, event } => {
                if self.nodes[node].generation == generation {
                    return self.give(node, event);
                }
            }
            Happening::Request { node, from, request } => {
                return self.give(node, Event::Request { from, request });
            }
            Happening::Answer { to, answer } => return self.answer(to, answer),
            Happening::Client { client } => self.drive(client),
            Happening::Retry { client, call } => self.retry(client, call),
            Happening::Fault(fault) => self.break_something(fault),
            Happening::Start { node } => return self.start(node),
            Happening::Resume { node, generation } => return self.resume(node, generation),
            Happening::Heal => self.heal(),
        }
        Ok(())
    }

    fn process(&mut self, node: usize, generation: u64) -> Option<&mut crate::node::Process> {
        let node = &mut self.nodes[node];
        if node.generation == generation { node.process.as_mut() } else { None }
    }

    /// Gives a node an event, carries out what it asks for, and checks the invariants.
    pub(crate) fn give(&mut self, at: usize, event: Event) -> Finding {
        let world = self.agenda.now();
        let node = &mut self.nodes[at];
        if let Some(paused) = &mut node.paused {
            paused.push_back(event);
            return Ok(());
        }
        let now = node.clock.show(world);
        let Some(process) = &mut node.process else { return Ok(()) };
        let effects = process.replica.step(now, event);
        let generation = node.generation;
        if !process.draining {
            process.draining = true;
            let after = self.rng.random_range(0..MILLISECOND / 5);
            self.agenda.schedule(after, Happening::Drained { node: at, generation });
        }
        self.check(at)?;
        self.carry_out(at, effects)
    }

    fn check(&mut self, at: usize) -> Finding {
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return Ok(()) };
        let name = format!("n{}", at + 1);
        let status = process.replica.status();
        if status.serving {
            self.ledger.leads(status.view.0, node.store, node.generation)?;
        }
        process.check_committed(&name, &mut self.ledger)
    }

    pub(crate) fn carry_out(&mut self, at: usize, effects: Vec<Effect>) -> Finding {
        for effect in effects {
            match effect {
                Effect::Reply { to, answer } => {
                    self.transmit(|_| Happening::Answer { to, answer: answer.clone() });
                }
                Effect::Know(_) | Effect::Release(_) => {}
                Effect::Send { to, message } => {
                    let Some(node) = self.nodes.iter().position(|node| node.store == to) else {
                        continue;
                    };
                    self.transmit(|_| Happening::Message {
                        from: at,
                        to: node,
                        store: to,
                        message: message.clone(),
                    });
                }
                Effect::Persist(_)
                | Effect::Cut { .. }
                | Effect::Save { .. }
                | Effect::Prune { .. } => {
                    let node = &mut self.nodes[at];
                    let process = node.process.as_mut().expect("it just took a step");
                    process.queue.push_back(effect);
                    self.begin_flush(at);
                }
                Effect::ReadRegister(id) => self.ask(at, Ask::Read(id)),
                Effect::Propose { expected, register } => {
                    self.say(|_| format!("n{} proposes view {}", at + 1, register.view));
                    self.ask(at, Ask::Swap(expected, register));
                }
                Effect::Checkpoint(_)
                | Effect::ReadRows { .. }
                | Effect::Receive { .. }
                | Effect::Install { .. } => {
                    let node = &mut self.nodes[at];
                    let process = node.process.as_mut().expect("it just took a step");
                    process.work.push_back(effect);
                    self.begin_work(at);
                }
                Effect::Stop(reason) => return Err(format!("n{} stops: {reason}", at + 1)),
            }
        }
        Ok(())
    }

    /// Lets something travel: late, twice, or not at all.
    fn transmit(&mut self, parcel: impl Fn(usize) -> Happening) {
        let copies = match () {
            () if self.chance(self.plan.lost_per_mille) => 0,
            () if self.chance(self.plan.repeated_per_mille) => 2,
            () => 1,
        };
        for copy in 0..copies {
            let after = self.delay();
            self.agenda.schedule(after, parcel(copy));
        }
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        !self.healed && per_mille > 0 && self.rng.random_ratio(per_mille, 1_000)
    }

    fn delay(&mut self) -> Span {
        let late = self.chance(self.plan.late_per_mille);
        let most = if late { 3 * SECOND } else { self.plan.delay_max };
        self.rng.random_range(MILLISECOND / 20..=most)
    }

    fn begin_flush(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let generation = node.generation;
        let Some(process) = &mut node.process else { return };
        if process.flushing || process.queue.is_empty() {
            return;
        }
        process.flushing = true;
        let stalled = self.chance(self.plan.stalled_per_mille);
        let most = if stalled { 3 * SECOND } else { self.plan.flush_max };
        let after = self.rng.random_range(MILLISECOND / 10..=most);
        self.agenda.schedule(after, Happening::Flushed { node: at, generation });
    }

    fn begin_work(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let generation = node.generation;
        let Some(process) = &mut node.process else { return };
        let most = match process.work.front() {
            Some(Effect::Checkpoint(_) | Effect::Install { .. }) => 50 * MILLISECOND,
            Some(_) => 2 * MILLISECOND,
            None => return,
        };
        if process.working {
            return;
        }
        process.working = true;
        let after = self.rng.random_range(0..most);
        self.agenda.schedule(after, Happening::Worked { node: at, generation });
    }

    fn worked(&mut self, at: usize, generation: u64) -> Finding {
        let piece_bytes = self.plan.piece_bytes;
        let Some(process) = self.process(at, generation) else { return Ok(()) };
        match process.work(piece_bytes)? {
            Worked::Told(event) => self.give(at, *event)?,
            Worked::Replaced(end) => {
                self.say(|_| format!("n{} begins anew on a snapshot up to {}", at + 1, end.index));
                self.report.installed += 1;
                let node = &mut self.nodes[at];
                node.crash(false, 0);
                node.replaced = Some(end);
                self.agenda.schedule(MILLISECOND, Happening::Start { node: at });
            }
        }
        self.begin_work(at);
        Ok(())
    }

    fn flushed(&mut self, at: usize, generation: u64) -> Finding {
        let node = &mut self.nodes[at];
        if node.generation != generation {
            return Ok(());
        }
        let Some(process) = &mut node.process else { return Ok(()) };
        let event = process.flush(node.store, &mut self.ledger)?;
        if let Some(event) = event {
            self.give(at, event)?;
        }
        self.begin_flush(at);
        Ok(())
    }

    fn is_cut_off(&self, from: usize, to: usize) -> bool {
        self.cut_off.get(&(from, to)).is_some_and(|until| self.agenda.now() < *until)
    }

    fn ask(&mut self, node: usize, ask: Ask) {
        let generation = self.nodes[node].generation;
        if self.chance(self.plan.lost_per_mille) {
            return;
        }
        let after = self.delay();
        self.agenda.schedule(after, Happening::Ask { node, generation, ask });
    }

    fn ask_authority(&mut self, node: usize, generation: u64, ask: Ask) {
        if self.agenda.now() < self.authority_down_until {
            return;
        }
        let event = match ask {
            Ask::Read(id) => Event::RegisterRead { asked: Some(id), now: self.register.clone() },
            Ask::Swap(expected, register) if expected == self.register.revision => {
                let id = register.proposal;
                self.say(|_| format!("the register holds view {} of n{}", register.view, node + 1));
                let revision = Revision(expected.0 + 1);
                self.report.views = register.view.0;
                self.register = Versioned { revision, register: Some(register) };
                Event::Proposed { id, result: ProposalResult::Won(revision) }
            }
            Ask::Swap(_, register) => {
                Event::Proposed { id: register.proposal, result: ProposalResult::Unknown }
            }
        };
        if !self.chance(self.plan.lost_per_mille) {
            let after = self.delay();
            self.agenda.schedule(after, Happening::Told { node, generation, event });
        }
    }

    fn drive(&mut self, client: usize) {
        if self.healed {
            return;
        }
        let now = self.agenda.now();
        if self.clients[client].has_room(self.plan.outstanding) {
            let keys = self.plan.keys;
            let one = &mut self.clients[client];
            let call = one.begin(&mut self.rng, keys, now, &mut self.history);
            self.retry(client, call);
        }
        let after = self.rng.random_range(0..60 * MILLISECOND);
        self.agenda.schedule(after, Happening::Client { client });
    }

    /// Sends a call's bytes (again).
    fn retry(&mut self, client: usize, number: u64) {
        let nodes = self.nodes.len();
        let other = self.rng.random_range(0..nodes);
        let one = &mut self.clients[client];
        let Some(call) = one.calls.get(&number) else { return };
        let request = call.request.clone();
        let node = if self.rng.random_ratio(1, 3) { other } else { one.target };
        let from = ReplyTo { connection: client as u64, call: CallId(number) };
        self.transmit(|_| Happening::Request { node, from, request: request.clone() });
        let after = RETRY + self.rng.random_range(0..RETRY);
        self.agenda.schedule(after, Happening::Retry { client, call: number });
    }

    fn answer(&mut self, to: ReplyTo, answer: Answer) -> Finding {
        let client = usize::try_from(to.connection).expect("clients are few");
        self.say(|_| format!("c{} #{}: {answer:?}", client + 1, to.call));
        let now = self.agenda.now();
        match self.clients[client].take(to.call.0, answer, now, &mut self.history) {
            Taken::Nothing => Ok(()),
            Taken::Done => {
                self.report.answered += 1;
                Ok(())
            }
            Taken::Expired { lost } => {
                self.report.unknown += lost as u64;
                Ok(())
            }
            Taken::Broken(finding) => Err(format!("client {}: {finding}", client + 1)),
        }
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).map(|process| &process.replica)
    }

    fn is_at_rest(&self) -> bool {
        let answered = self.clients.iter().all(|client| client.calls.is_empty());
        let last = self.ledger.last();
        let settled = self.replicas().filter(|replica| replica.state().committed() == last).count();
        let members =
            self.replicas().filter_map(Replica::register).map(|it| 1 + it.backups.len()).min();
        answered
            && settled == self.nodes.len()
            && members == Some(self.nodes.len())
            && self.replicas().all(has_settled)
    }
}

/// A message in a few words.
fn brief(message: &PeerMessage) -> String {
    match message {
        PeerMessage::Heartbeat { register, committed, .. } => {
            format!("heartbeat of view {}, committed {committed}", register.view)
        }
        PeerMessage::Echo { view, .. } => format!("echo in view {view}"),
        PeerMessage::Append { view, previous, records, committed } => format!(
            "append in view {view}: {} after {}@{}, committed {committed}",
            records.len(),
            previous.index,
            previous.view
        ),
        PeerMessage::AppendOk { view, matched } => format!("ok in view {view}: {matched}"),
        PeerMessage::NewerView { register, .. } => format!("there is view {}", register.view),
        other => format!("{other:?}"),
    }
}
