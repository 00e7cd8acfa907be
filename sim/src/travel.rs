//! What travels: messages, answers, flushes, questions to the authority, and clients' requests.

use onlyonce_replica::{Effect, Event, ProposalResult, ReplyTo};
use onlyonce_wire::CallId;
use onlyonce_wire::authority::{Revision, Versioned};
use onlyonce_wire::client::Answer;
use rand::Rng;

use crate::client::Taken;
use crate::ledger::Finding;
use crate::node::Worked;
use crate::tally::Sight;
use crate::time::{MILLISECOND, SECOND, Span};
use crate::timeline;
use crate::world::{Ask, Happening, World};

const RETRY: Span = 100 * MILLISECOND;

impl World {
    /// Lets something travel: late, twice, or not at all.
    pub(crate) fn transmit(&mut self, parcel: impl Fn(usize) -> Happening) {
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
        let most = if late { self.plan.late_max } else { self.plan.delay_max };
        self.rng.random_range(MILLISECOND / 20..=most)
    }

    pub(crate) fn begin_flush(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let generation = node.generation;
        let Some(process) = &mut node.process else { return };
        if process.flushing || process.queue.is_empty() {
            return;
        }
        process.flushing = true;
        let stalled = self.chance(self.plan.stalled_per_mille);
        let now = self.agenda.now();
        let ailing = self.nodes[at].ailing;
        let most = match () {
            () if stalled => 5 * SECOND,
            () if now < ailing.slow_until => SECOND / 2,
            () => self.plan.flush_max,
        };
        let hung = ailing.hangs_until.saturating_sub(now);
        let after = hung + self.rng.random_range(MILLISECOND / 10..=most);
        self.agenda.schedule(after, Happening::Flushed { node: at, generation });
    }

    pub(crate) fn begin_work(&mut self, at: usize) {
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

    pub(crate) fn worked(&mut self, at: usize, generation: u64) -> Finding {
        let piece_bytes = self.plan.piece_bytes;
        let Some(process) = self.process(at, generation) else { return Ok(()) };
        match process.work(piece_bytes) {
            Ok(Worked::Told(event)) => self.give(at, *event)?,
            Ok(Worked::Replaced(end)) => {
                self.say(|_| format!("n{} begins anew on a snapshot up to {}", at + 1, end.index));
                self.crash(at, false, MILLISECOND);
                self.nodes[at].replaced = Some(end);
            }
            Err(error) => return self.stop_on_disk_error(at, &error),
        }
        self.begin_work(at);
        Ok(())
    }

    pub(crate) fn flushed(&mut self, at: usize, generation: u64) -> Finding {
        let node = &mut self.nodes[at];
        if node.generation != generation {
            return Ok(());
        }
        let Some(process) = &mut node.process else { return Ok(()) };
        let done = match process.flush() {
            Ok(done) => done,
            Err(error) => return self.stop_on_disk_error(at, &error.into()),
        };
        let event = done.note(node.store, &mut self.ledger)?;
        if let Some(event) = event {
            self.give(at, event)?;
        }
        self.begin_flush(at);
        Ok(())
    }

    pub(crate) fn is_cut_off(&self, from: usize, to: usize) -> bool {
        self.cut_off.get(&(from, to)).is_some_and(|until| self.agenda.now() < *until)
    }

    pub(crate) fn ask(&mut self, node: usize, ask: Ask) {
        let generation = self.nodes[node].generation;
        if self.chance(self.plan.lost_per_mille) {
            return;
        }
        let swaps = matches!(ask, Ask::Swap(..));
        self.swaps_under_way += u64::from(swaps);
        let late = swaps && self.chance(self.plan.late_swap_per_mille);
        let most = if late { self.plan.late_max } else { MILLISECOND };
        let mut after = self.delay() + self.rng.random_range(0..most);
        if swaps && self.chance(self.plan.die_proposing_per_mille) {
            let dies = self.rng.random_range(0..20 * MILLISECOND);
            self.agenda.schedule(dies, Happening::Die { node, generation });
            after += self.rng.random_range(50 * MILLISECOND..2 * SECOND);
        }
        self.agenda.schedule(after, Happening::Ask { node, generation, ask });
    }

    pub(crate) fn ask_authority(&mut self, node: usize, generation: u64, ask: Ask) -> Finding {
        self.swaps_under_way -= u64::from(matches!(ask, Ask::Swap(..)));
        let away = self.agenda.now() < self.authority_down_until;
        if away || self.is_cut_off(node, self.nodes.len()) {
            return Ok(());
        }
        let event = match ask {
            Ask::Read(id) => Event::RegisterRead { asked: Some(id), now: self.register.clone() },
            Ask::Swap(expected, register) if expected == self.register.revision => {
                let id = register.proposal;
                self.say(|_| format!("the register holds view {} of n{}", register.view, node + 1));
                let revision = Revision(expected.0 + 1);
                self.report.views = self.report.views.max(register.view.0);
                if self.nodes[node].generation != generation {
                    self.report.see(Sight::DeadSwapTookPlace);
                }
                self.ledger.new_view(self.register.register.as_ref(), &register)?;
                self.register = Versioned { revision, register: Some(register) };
                Event::Proposed { id, result: ProposalResult::Won(revision) }
            }
            Ask::Swap(_, register) => {
                Event::Proposed { id: register.proposal, result: ProposalResult::Unknown }
            }
        };
        if !self.chance(self.plan.lost_per_mille) && !self.is_cut_off(self.nodes.len(), node) {
            let after = self.delay();
            self.agenda.schedule(after, Happening::Told { node, generation, event });
        }
        Ok(())
    }

    pub(crate) fn drive(&mut self, client: usize) {
        if self.healed {
            return;
        }
        let now = self.agenda.now();
        if self.clients[client].has_room(&self.plan) {
            let one = &mut self.clients[client];
            let call = one.begin(&mut self.rng, &self.plan, now, &mut self.history);
            self.retry(client, call);
            self.sync_outbox(client);
            let one = &mut self.clients[client];
            if let Some(call) = one.race(&mut self.rng, &self.plan, &self.history) {
                self.retry(client, call);
            }
            if let Some(call) = self.clients[client].doubt() {
                self.retry(client, call);
            }
        }
        // Now and then it rests for so long that its session may expire.
        let rests = self.rng.random_ratio(self.plan.rest_per_mille, 1_000);
        let most = if rests { 2 * self.plan.session_idle } else { 60 * MILLISECOND };
        let after = self.rng.random_range(0..most);
        let happening =
            if rests { Happening::Wake { client } } else { Happening::Client { client } };
        self.agenda.schedule(after, happening);
    }

    pub(crate) fn wake(&mut self, client: usize) {
        if self.healed {
            return;
        }
        if let Some(call) = self.clients[client].wake() {
            self.retry(client, call);
        }
        self.drive(client);
    }

    /// Sends a call's bytes (again).
    pub(crate) fn retry(&mut self, client: usize, number: u64) {
        let nodes = self.nodes.len();
        let other = self.rng.random_range(0..nodes);
        let one = &mut self.clients[client];
        let anybody = one.is_probe(number);
        let Some(request) = one.send(number) else { return };
        let node = if anybody || self.rng.random_ratio(1, 3) { other } else { one.target };
        let from = ReplyTo { connection: client as u64, call: CallId(number) };
        self.transmit(|_| Happening::Request { node, from, request: request.clone() });
        let after = RETRY + self.rng.random_range(0..RETRY);
        self.agenda.schedule(after, Happening::Retry { client, call: number });
    }

    pub(crate) fn answer(&mut self, to: ReplyTo, answer: Answer) -> Finding {
        let client = usize::try_from(to.connection).expect("clients are few");
        if client == self.clients.len() {
            return self.take_piece(to.call.0, answer);
        }
        self.say(|_| format!("c{} #{}: {}", client + 1, to.call, timeline::answer(&answer)));
        let now = self.agenda.now();
        match self.clients[client].take(to.call.0, answer, now, &mut self.history) {
            Taken::Nothing => Ok(()),
            Taken::Done => {
                self.report.answered += 1;
                Ok(())
            }
            Taken::Refused => {
                self.report.unknown += 1;
                Ok(())
            }
            Taken::Expired { lost } => {
                self.report.unknown += lost as u64;
                self.report.see(Sight::ClientExpired);
                Ok(())
            }
            Taken::OtherIncarnation { lost } => {
                self.report.unknown += lost as u64;
                self.report.see(Sight::OtherIncarnationTold);
                Ok(())
            }
            Taken::Broken(finding) => Err(format!("P5: client {}: {finding}", client + 1)),
        }
    }
}
