//! Clients whose requests outlive them: an outbox, as `client/src/outbox` has one.
//!
//! A request and its key are durable there before the first copy leaves; it goes when its end is
//! known, and of that nothing waits for the disk. A client that crashes loses all else, and of what
//! it wrote last the disk keeps some, or nothing. Started again, it sends the same bytes under the
//! same keys.

use std::collections::BTreeMap;

use onlyonce_wire::IdempotencyKey;
use onlyonce_wire::client::{self as wire, Answer, Execute, ExecuteId, Refusal, Request};
use rand::Rng;
use rand::rngs::StdRng;

use super::{Client, Purpose};
use crate::actions::execute;
use crate::history::{History, Kept};
use crate::plan::{Blunder, Plan};
use crate::tally::Sight;
use crate::time::{MILLISECOND, SECOND, Span};
use crate::world::{Happening, World};

/// A request in an outbox: what is sent, again and again.
#[derive(Clone)]
pub struct Sent {
    /// Of the operation with this number in the history.
    pub operation: usize,
    /// The very same, whenever it is sent.
    pub execute: Execute,
}

enum Record {
    Sent(u64, Sent),
    Done(u64),
}

/// A log on a client's disk.
#[derive(Default)]
pub struct Outbox {
    next: u64,
    /// What a client that is started finds, by number.
    durable: BTreeMap<u64, Sent>,
    /// Written, but not known to be durable, in order.
    written: Vec<Record>,
    /// So many of these the sync under way is about.
    syncing: Option<usize>,
    /// Counts its clients' crashes, and tells the sync of a dead one.
    crashes: u64,
}

impl Outbox {
    /// Writes a request; returns its number.
    fn keep(&mut self, sent: Sent) -> u64 {
        self.next += 1;
        self.written.push(Record::Sent(self.next, sent));
        self.next
    }

    /// Lets a request go, with the next sync. Forgotten in a crash, it costs a question.
    pub fn done(&mut self, number: u64) {
        self.written.push(Record::Done(number));
    }

    /// Whether it waits for its disk.
    fn is_syncing(&self) -> bool {
        self.syncing.is_some()
    }

    /// Begins a sync, if somebody waits for one, and none is under way. Returns what to end it with.
    fn begin_sync(&mut self) -> Option<u64> {
        let waits = self.written.iter().any(|record| matches!(record, Record::Sent(..)));
        if self.is_syncing() || !waits {
            return None;
        }
        self.syncing = Some(self.written.len());
        Some(self.crashes)
    }

    /// The sync has ended: returns the requests that are durable since.
    fn end_sync(&mut self, crashes: u64) -> Vec<Sent> {
        match self.syncing.take_if(|_| self.crashes == crashes) {
            Some(records) => self.persist(records),
            None => Vec::new(),
        }
    }

    fn persist(&mut self, records: usize) -> Vec<Sent> {
        let mut durable = Vec::new();
        for record in self.written.drain(..records) {
            match record {
                Record::Sent(number, sent) => {
                    durable.push(sent.clone());
                    self.durable.insert(number, sent);
                }
                Record::Done(number) => {
                    self.durable.remove(&number);
                }
            }
        }
        durable
    }

    /// Its client crashes: of what was written the disk keeps a part. Returns what it lost, and what
    /// is durable since.
    fn crash(&mut self, rng: &mut StdRng) -> [Vec<Sent>; 2] {
        self.crashes += 1;
        self.syncing = None;
        let kept = if rng.random() { rng.random_range(0..=self.written.len()) } else { 0 };
        let durable = self.persist(kept);
        let lost = self.written.drain(..).filter_map(|record| match record {
            Record::Sent(_, sent) => Some(sent),
            Record::Done(_) => None,
        });
        [lost.collect(), durable]
    }

    /// What a client that is started finds, in order.
    fn left(&self) -> impl Iterator<Item = (u64, Sent)> {
        self.durable.iter().map(|(number, sent)| (*number, sent.clone()))
    }
}

/// What its client knows of a request in an outbox that ended with this answer.
pub fn ended(answer: &Answer) -> Kept {
    match answer {
        Answer::Executed { .. } => Kept::Ran,
        Answer::Refused(Refusal::Cancelled) => Kept::NeverRan,
        _ => Kept::Unresolved,
    }
}

impl Client {
    /// Forgets everything but what its outbox holds durably, until it is started again; what else was
    /// under way stays unknown for ever. Returns what it wrote to the outbox in vain, and what
    /// became durable at the last moment.
    pub fn crash(&mut self, rng: &mut StdRng, plan: &Plan) -> [Vec<Sent>; 2] {
        let (calendar, next_call, reads) = (self.calendar, self.next_call, self.reads);
        let mut outbox = self.outbox.take();
        let fate = outbox.as_mut().map(|outbox| outbox.crash(rng)).unwrap_or_default();
        *self = Self { calendar, next_call, reads, outbox, is_down: true, ..Self::new(rng, plan) };
        fate
    }

    /// Is started again: takes up what its outbox holds. Returns the calls and their operations.
    pub fn restart(&mut self) -> Vec<(u64, usize)> {
        self.is_down = false;
        let left: Vec<_> = self.outbox.iter().flat_map(Outbox::left).collect();
        let take_up = |(kept, Sent { operation, execute })| {
            let purpose = Purpose::Execute { operation, seq: None };
            let number = self.call(purpose, Request::Execute(execute));
            self.calls.entry(number).and_modify(|call| call.kept = Some(kept));
            (number, operation)
        };
        left.into_iter().map(take_up).collect()
    }

    /// The outbox's sync has ended: returns the calls that may be sent now.
    pub fn release(&mut self, durable: &[Sent]) -> Vec<u64> {
        let mut released = Vec::new();
        for (number, call) in self.calls.iter_mut().filter(|(_, call)| call.held) {
            let Purpose::Execute { operation, .. } = call.purpose else { continue };
            if durable.iter().any(|sent| sent.operation == operation) {
                call.held = false;
                released.push(*number);
            }
        }
        released
    }

    /// Begins an operation under a key of its own, both to be durable in the outbox before they leave.
    pub fn keep(
        &mut self,
        plan: &Plan,
        operation: usize,
        key: &IdempotencyKey,
        write: &wire::Operation,
        history: &mut History,
    ) -> u64 {
        let execute = execute(self.incarnation, ExecuteId::Key(key.clone()), write);
        history.keep(operation, key);
        let sent = Sent { operation, execute: execute.clone() };
        let kept = self.outbox.as_mut().map(|outbox| outbox.keep(sent));
        let purpose = Purpose::Execute { operation, seq: None };
        let number = self.call(purpose, Request::Execute(execute));
        let held = plan.blunder != Some(Blunder::SentBeforeKept);
        self.calls.entry(number).and_modify(|call| (call.kept, call.held) = (kept, held));
        number
    }
}

impl World {
    /// A client dies, at any instant; some are worth a crash, as their outboxes wait for the disk.
    pub(crate) fn crash_client(&mut self, back_after: Span) {
        let writes = |client: &Client| client.outbox.as_ref().is_some_and(Outbox::is_syncing);
        let writing = self.clients.iter().position(writes);
        let client = writing.unwrap_or_else(|| self.rng.random_range(0..self.clients.len()));
        if self.clients[client].is_down {
            return;
        }
        self.report.unknown += self.clients[client].calls.len() as u64;
        self.report.see(Sight::ClientCrashed);
        let [lost, durable] = self.clients[client].crash(&mut self.rng, &self.plan);
        for Sent { operation, .. } in lost {
            self.report.see(Sight::OutboxLost);
            self.history.written(operation, Kept::Lost);
        }
        for Sent { operation, .. } in durable {
            self.history.written(operation, Kept::Durable);
        }
        self.say(|_| format!("c{} is down", client + 1));
        self.agenda.schedule(back_after, Happening::StartClient { client });
    }

    /// A client that crashed is started again.
    pub(crate) fn start_client(&mut self, client: usize) {
        self.say(|_| format!("c{} starts", client + 1));
        let now = self.agenda.now();
        for (call, operation) in self.clients[client].restart() {
            self.report.see(Sight::OutboxTakenUp);
            self.history.operations[operation].taken_up.get_or_insert(now);
            self.retry(client, call);
        }
    }

    /// Lets a client's disk sync what its outbox wrote.
    pub(crate) fn sync_outbox(&mut self, client: usize) {
        let outbox = self.clients[client].outbox.as_mut();
        let Some(crashes) = outbox.and_then(Outbox::begin_sync) else { return };
        let slow = self.rng.random_ratio(1, 4);
        let most = if slow { SECOND / 4 } else { 10 * self.plan.flush_max };
        let after = self.rng.random_range(MILLISECOND / 10..=most);
        self.agenda.schedule(after, Happening::OutboxSynced { client, crashes });
    }

    /// A sync has ended: what is durable since may be sent.
    pub(crate) fn outbox_synced(&mut self, client: usize, crashes: u64) {
        let Some(outbox) = &mut self.clients[client].outbox else { return };
        let durable = outbox.end_sync(crashes);
        for Sent { operation, .. } in &durable {
            self.history.written(*operation, Kept::Durable);
        }
        for call in self.clients[client].release(&durable) {
            self.retry(client, call);
        }
        self.sync_outbox(client);
    }
}
