//! The world: nodes, clients, an authority and the network between them, from one seed.

use std::collections::BTreeMap;

use onlyonce_replica::{Effect, Event, PeerMessage, ReadId, Replica, ReplyTo};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::{Register, Revision, Versioned};
use onlyonce_wire::client::{Answer, Request};
use rand::Rng;
use rand::rngs::StdRng;

use crate::audit::has_settled;
use crate::client::Client;
use crate::faults::Fault;
use crate::history::History;
use crate::ledger::{Finding, Ledger};
use crate::node::{Clock, Node};
use crate::operator::Operator;
use crate::plan::Plan;
use crate::run::AT_REST;
use crate::tally::{Report, Sight};
use crate::time::{Agenda, MILLISECOND, SECOND, Span};
use crate::timeline::{self, Standing, Timeline};
use crate::witness::Copies;

pub(crate) const TICK: Span = 5 * MILLISECOND;
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
    Message { between: [(usize, StoreId); 2], message: PeerMessage },
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
    /// A client goes on after a rest.
    Wake { client: usize },
    /// A process dies of what it just did.
    Die { node: usize, generation: u64 },
    /// A client that crashed is started again.
    StartClient { client: usize },
    /// A client's disk has synced what its outbox wrote.
    OutboxSynced { client: usize, crashes: u64 },
    /// The operator asks (again) for a piece of a backup.
    BackUp { asked: u64 },
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

/// The world.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: StdRng,
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Vec<Client>,
    pub(crate) operator: Operator,
    pub(crate) history: History,
    pub(crate) ledger: Ledger,
    pub(crate) copies: Copies,
    pub(crate) register: Versioned,
    pub(crate) authority_down_until: u64,
    pub(crate) cut_off: BTreeMap<(usize, usize), u64>,
    pub(crate) healed: bool,
    pub(crate) next_store: u128,
    pub(crate) report: Report,
    /// Compare-and-swaps on their way to the authority.
    pub(crate) swaps_under_way: u64,
    pub(crate) timeline: Timeline,
    /// What the timeline last told of each node.
    standings: Vec<Option<Standing>>,
}

impl World {
    /// The world of a plan, as it begins.
    pub fn new(mut rng: StdRng, plan: Plan, timeline: Timeline) -> Self {
        let drift = u64::from(plan.drift_per_mille) * 1_000;
        let nodes = (0..plan.nodes).map(|at| {
            let clock = Clock {
                offset: rng.random_range(0..1_000 * SECOND),
                rate: rng.random_range(1_000_000 - drift..=1_000_000 + drift),
            };
            Node::new(at, StoreId(at as u128 + 1), clock, plan.draw_calendar(&mut rng))
        });
        let nodes: Vec<Node> = nodes.collect();
        let clients = (0..plan.clients).map(|_| Client::new(&mut rng, &plan)).collect();
        let mut world = Self {
            next_store: 100,
            rng,
            agenda: Agenda::new(),
            standings: vec![None; nodes.len()],
            nodes,
            clients,
            operator: Operator::default(),
            history: History::default(),
            ledger: Ledger::default(),
            copies: Copies::default(),
            register: Versioned { revision: Revision(0), register: None },
            authority_down_until: 0,
            cut_off: BTreeMap::new(),
            healed: false,
            report: Report::default(),
            swaps_under_way: 0,
            timeline,
            plan,
        };
        world.ledger.fold.requests.times.retention_ms = world.plan.key_retention / MILLISECOND;
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
        if self.plan.faults.contains_key(&Fault::Restore) {
            self.agenda.schedule(SECOND / 2, Happening::BackUp { asked: 0 });
        }
        for (fault, mean) in &self.plan.faults {
            let after = self.rng.random_range(0..2 * mean);
            self.agenda.schedule(after, Happening::Fault(*fault));
        }
        self.agenda.schedule(self.plan.duration, Happening::Heal);
    }

    /// Runs the world to its end.
    pub fn run(&mut self) -> Finding {
        let end = self.agenda.now() + self.plan.duration + HEALING;
        while let Some(happening) = self.agenda.next() {
            self.report.steps += 1;
            self.happen(happening).map_err(|finding| self.place(&finding))?;
            if self.healed && self.report.steps.is_multiple_of(64) && self.is_at_rest() {
                self.audit().map_err(|finding| self.place(&finding))?;
                for replica in self.nodes.iter().filter_map(|node| node.process.as_ref()) {
                    self.report.marks.add(replica.replica.marks());
                }
                let ran_anew = self.ledger.fold.requests.ran_anew();
                self.report.sights[Sight::KeyRanAnew as usize] += ran_anew;
                let lost_ran_anew = self.ledger.fold.requests.lost_ran_anew;
                self.report.sights[Sight::LostKeyRanAnew as usize] += lost_ran_anew;
                self.report.end_world();
                return Ok(());
            }
            if self.agenda.now() > end {
                break;
            }
        }
        Err(self.place(&format!(
            "{AT_REST}: the healed world does not come to rest: {}",
            self.describe()
        )))
    }

    fn place(&self, finding: &str) -> String {
        format!("at {:.6} s: {finding}", self.agenda.now() as f64 / 1e9)
    }

    /// Adds a line to the timeline, if there is one.
    pub(crate) fn say(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.timeline.is_on() {
            let text = text(self);
            self.timeline.add(self.agenda.now(), &text);
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

    pub(crate) fn happen(&mut self, happening: Happening) -> Finding {
        match happening {
            Happening::Tick { node, generation } => {
                if self.nodes[node].generation == generation {
                    self.agenda.schedule(TICK, Happening::Tick { node, generation });
                    let wall = self.nodes[node].calendar.show(self.agenda.now());
                    return self.give(node, Event::Tick(wall));
                }
            }
            Happening::Drained { node, generation } => {
                if let Some(process) = self.process(node, generation) {
                    process.draining = false;
                    return self.give(node, Event::Drained);
                }
            }
            Happening::Flushed { node, generation } => return self.flushed(node, generation),
            Happening::Worked { node, generation } => return self.worked(node, generation),
            Happening::Message { between: [(from, sender), (to, store)], message } => {
                // A connection is one between stores: an emptied disk's node is a stranger.
                if !self.is_cut_off(from, to) && self.nodes[to].store == store {
                    if let Some(text) =
                        timeline::message(&message).filter(|_| self.timeline.is_on())
                    {
                        self.say(|_| format!("n{} → n{}: {text}", from + 1, to + 1));
                    }
                    return self.give(to, Event::Peer { from: sender, message });
                }
            }
            Happening::Ask { node, generation, ask } => {
                return self.ask_authority(node, generation, ask);
            }
            Happening::Told { node, generation, event } => {
                if self.nodes[node].generation == generation {
                    return self.give(node, event);
                }
            }
            Happening::Request { node, from, request } => {
                self.say(|_| format!("n{} is asked: {}", node + 1, timeline::request(&request)));
                let from = self.copies.arrive(from, request.clone());
                return self.give(node, Event::Request { from, request });
            }
            Happening::Answer { to, answer } => return self.answer(to, answer),
            Happening::Client { client } => self.drive(client),
            Happening::Wake { client } => self.wake(client),
            Happening::Die { node, generation } => {
                if self.nodes[node].generation == generation && !self.healed {
                    let power = self.rng.random();
                    let back_after = self.rng.random_range(0..30 * MILLISECOND);
                    self.crash(node, power, back_after);
                }
            }
            Happening::Retry { client, call } => self.retry(client, call),
            Happening::StartClient { client } => self.start_client(client),
            Happening::OutboxSynced { client, crashes } => self.outbox_synced(client, crashes),
            Happening::BackUp { asked } => self.back_up(asked),
            Happening::Fault(fault) => return self.break_something(fault),
            Happening::Start { node } => return self.start(node),
            Happening::Resume { node, generation } => return self.resume(node, generation),
            Happening::Heal => self.heal(),
        }
        Ok(())
    }

    pub(crate) fn process(
        &mut self,
        node: usize,
        generation: u64,
    ) -> Option<&mut crate::node::Process> {
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
        let times = &mut self.ledger.fold.requests.times;
        times.now = world;
        if let Event::Tick(wall) = &event {
            node.wall = *wall;
            times.latest_wall_ms = times.latest_wall_ms.max(wall.0);
        }
        if let Event::Request { from, .. } = &event {
            self.copies.take_up(*from, &self.ledger, node.wall);
        }
        // A drained queue stays so until something else comes.
        let drained = matches!(event, Event::Drained);
        let effects = process.replica.step(now, event);
        let generation = node.generation;
        if !process.draining && !drained {
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
        let register = self.register.register.as_ref();
        if process.replica.is_serving()
            && let Some(known) = process.replica.register()
        {
            let process = (node.store, node.generation);
            self.ledger.leads(known.view.0, process, register)?;
        }
        process.check_committed(&format!("n{}", at + 1), register, &mut self.ledger)?;
        self.tell_standing(at);
        Ok(())
    }

    /// Tells what changed of a node.
    fn tell_standing(&mut self, at: usize) {
        let Some(process) = self.nodes[at].process.as_ref().filter(|_| self.timeline.is_on())
        else {
            return;
        };
        let status = process.replica.status();
        let standing = Standing {
            role: status.role,
            view: status.view.0,
            serving: status.serving,
            committed: status.committed,
            prepared: status.prepared,
        };
        if let Some(news) = standing.since(self.standings[at].replace(standing)) {
            self.say(|_| format!("n{} {news}", at + 1));
        }
    }

    pub(crate) fn carry_out(&mut self, at: usize, effects: Vec<Effect>) -> Finding {
        for effect in effects {
            match effect {
                Effect::Reply { to, answer } => {
                    if matches!(answer, Answer::Executed { replayed: true, .. }) {
                        self.report.see(Sight::Replayed);
                    }
                    let to = self.copies.answer(to, &answer, &mut self.ledger)?;
                    self.transmit(|_| Happening::Answer { to, answer: answer.clone() });
                }
                Effect::Know(_) | Effect::Release(_) => {}
                Effect::Send { to, message } => {
                    let Some(node) = self.nodes.iter().position(|node| node.store == to) else {
                        continue;
                    };
                    let between = [(at, self.nodes[at].store), (node, to)];
                    self.transmit(|_| Happening::Message { between, message: message.clone() });
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
                // No disk of a simulation loses rows of the tables.
                Effect::Scrub => {
                    return Err(format!("I9: n{} does not trust the tables", at + 1));
                }
                Effect::Stop(reason) => return Err(format!("P6: n{} stops: {reason}", at + 1)),
            }
        }
        Ok(())
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).map(|process| &process.replica)
    }

    fn is_at_rest(&self) -> bool {
        let answered = self.clients.iter().all(|it| it.calls.is_empty() && !it.is_down);
        let last = self.ledger.last();
        let is_settled = |replica: &&Replica| {
            replica.state().committed() == last && replica.state().last().1 == last
        };
        let settled = self.replicas().filter(is_settled).count();
        let members =
            self.replicas().filter_map(Replica::register).map(|it| 1 + it.backups.len()).min();
        answered
            && settled == self.nodes.len()
            && members == Some(self.nodes.len())
            && self.replicas().all(has_settled)
    }
}
