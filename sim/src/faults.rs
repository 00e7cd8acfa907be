//! What goes wrong in a world, and how it heals.

use std::collections::VecDeque;

use onlyonce_storage::OpenError;
use onlyonce_storage::engine::Tree;
use onlyonce_storage::engine::memory::Part;
use onlyonce_wire::StoreId;
use rand::Rng;

use crate::ledger::Finding;
use crate::node::{Node, Started};
use crate::tally::Sight;
use crate::time::{MILLISECOND, SECOND, Span};
use crate::world::{Happening, TICK, World};

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process ends; what it did not flush is lost, or not.
    Crash,
    /// All processes end, and nothing unflushed is kept.
    Blackout,
    /// Messages between two nodes, or a node and the authority, are lost, one way or both.
    Partition,
    /// The node that leads is cut off from all others, and mostly from the authority too.
    Isolate,
    /// A process stands still.
    Pause,
    /// The authority does not answer.
    Outage,
    /// A disk is replaced by an empty one.
    Empty,
    /// A client forgets everything but what is durable in its outbox, and is started again.
    ClientCrash,
    /// A disk is slow.
    Slow,
    /// A disk completes nothing, while its process goes on.
    Hang,
    /// A write fails: the process must stop, and starts again on what is durable.
    Fail,
    /// A process ends, and a bit flips on its disk.
    Rot,
    /// Somebody sets a calendar, of a node or a client.
    Calendar,
    /// All is given up, and the cluster restored from a backup.
    Restore,
}

impl World {
    pub(crate) fn break_something(&mut self, fault: Fault) -> Finding {
        if self.healed {
            return Ok(());
        }
        let node = self.rng.random_range(0..self.nodes.len());
        let while_ = self.rng.random_range(10 * MILLISECOND..3 * SECOND);
        let until = self.agenda.now() + while_;
        self.say(|_| format!("{fault:?} (n{}) for {:.3} s", node + 1, while_ as f64 / 1e9));
        match fault {
            Fault::Crash => {
                // Some are worth a crash: one that proposes, for its proposal may win without it,
                // and one that writes a group of records, which may be torn.
                let writes = self.nodes.iter().position(Node::writes_group);
                let node = self.nodes.iter().position(Node::proposes).or(writes).unwrap_or(node);
                let power = self.nodes[node].writes_group() || self.rng.random();
                self.crash(node, power, while_);
            }
            Fault::Blackout => {
                for node in 0..self.nodes.len() {
                    let back = self.rng.random_range(0..while_);
                    self.crash(node, true, back);
                }
            }
            Fault::Partition => {
                // The last place is the authority's.
                let other = self.rng.random_range(0..=self.nodes.len());
                let both = self.rng.random();
                self.part(node, other, both, until);
            }
            // Long enough for another to take over and be used.
            Fault::Isolate => self.isolate_leader(until + while_),
            Fault::Pause => self.pause(node, while_),
            Fault::Outage => {
                self.authority_down_until = until;
                self.report.see(Sight::AuthorityAway);
            }
            Fault::Empty => self.empty(node, while_),
            Fault::ClientCrash => self.crash_client(while_),
            Fault::Slow => {
                self.nodes[node].ailing.slow_until = until;
                self.report.see(Sight::DiskSlow);
            }
            Fault::Hang => {
                self.nodes[node].ailing.hangs_until = until + 2 * while_;
                if 3 * while_ > 2 * SECOND {
                    self.report.see(Sight::DiskHung);
                }
            }
            Fault::Fail => self.order_failure(node),
            Fault::Rot => self.rot(node, while_),
            Fault::Calendar => self.set_a_calendar(node),
            Fault::Restore => self.restore()?,
        }
        let mean = self.plan.faults[&fault];
        let after = self.rng.random_range(0..2 * mean);
        self.agenda.schedule(after, Happening::Fault(fault));
        Ok(())
    }

    pub(crate) fn part(&mut self, one: usize, other: usize, both: bool, until: u64) {
        self.report.see(Sight::Partitioned);
        self.cut_off.insert((one, other), until);
        if both {
            self.cut_off.insert((other, one), until);
        }
    }

    fn set_a_calendar(&mut self, node: usize) {
        let calendar = self.plan.draw_calendar(&mut self.rng);
        if self.rng.random_ratio(1, 4) {
            let client = self.rng.random_range(0..self.clients.len());
            self.clients[client].calendar = calendar;
        } else {
            self.nodes[node].calendar = calendar;
        }
        self.report.see(Sight::CalendarSet);
    }

    fn isolate_leader(&mut self, until: u64) {
        let leads =
            |node: &Node| node.process.as_ref().is_some_and(|process| process.replica.is_serving());
        let Some(leader) = self.nodes.iter().position(leads) else { return };
        let wholly = self.rng.random_ratio(3, 4);
        let all = self.nodes.len() + usize::from(wholly);
        let both = self.rng.random_ratio(2, 3);
        for other in (0..all).filter(|other| *other != leader) {
            self.part(leader, other, both, until);
        }
    }

    /// Lets a later write of the node's disk fail.
    fn order_failure(&mut self, at: usize) {
        let writes = self.rng.random_range(0..20);
        let node = &mut self.nodes[at];
        if node.process.is_some() {
            node.disk.fail_after(writes);
            node.ailing.fails = true;
        }
    }

    /// A write failed as ordered: the process stops at once. What its disk holds is what it held,
    /// or what a failing disk makes of it.
    pub(crate) fn stop_on_disk_error(&mut self, at: usize, error: &OpenError) -> Finding {
        if !self.nodes[at].ailing.fails {
            return Err(format!("P6: n{}: {error}", at + 1));
        }
        self.say(|_| format!("n{} stops: {error}", at + 1));
        self.report.see(Sight::DiskFailed);
        let power = self.rng.random();
        let back_after = self.rng.random_range(0..SECOND);
        self.crash(at, power, back_after);
        Ok(())
    }

    pub(crate) fn crash(&mut self, at: usize, power: bool, back_after: Span) {
        let seed = self.rng.random();
        let Some(marks) = self.nodes[at].crash(power, seed, &mut self.ledger) else { return };
        self.say(|_| format!("n{} is down", at + 1));
        self.report.marks.add(&marks);
        self.report.see(Sight::Crashed);
        self.agenda.schedule(back_after, Happening::Start { node: at });
    }

    pub(crate) fn pause(&mut self, at: usize, while_: Span) {
        let node = &mut self.nodes[at];
        if node.process.is_some() && node.paused.is_none() {
            node.paused = Some(VecDeque::new());
            self.report.see(Sight::Paused);
            let generation = node.generation;
            self.agenda.schedule(while_, Happening::Resume { node: at, generation });
        }
    }

    pub(crate) fn resume(&mut self, at: usize, generation: u64) -> Finding {
        if self.nodes[at].generation != generation {
            return Ok(());
        }
        let waiting = self.nodes[at].paused.take().unwrap_or_default();
        waiting.into_iter().try_for_each(|event| self.give(at, event))
    }

    /// Whether by the promises nothing is lost with a node's disk: every acknowledged entry is on
    /// another replica of the view, everybody knows the view, and no proposal is about, even of a
    /// process that is dead, that would leave only this node.
    fn may_lose(&self, at: usize) -> bool {
        let store = self.nodes[at].store;
        let Some(register) = &self.register.register else { return false };
        // The others' disks must be the ones that the view means, not empty ones in their places.
        let is_there = |store| self.nodes.iter().any(|node| node.store == store);
        let others = register.replicas().filter(|it| it.store != store && is_there(it.store));
        let alone = register.replica(store).is_some() && others.count() == 0;
        let everybody_agrees = self.nodes.iter().all(|node| {
            node.at == at
                || node.process.as_ref().is_some_and(|process| {
                    process.replica.register().is_some_and(|it| it.view == register.view)
                })
        });
        !alone && everybody_agrees && self.swaps_under_way == 0 && !self.proposals_are_about()
    }

    /// Empties a node's disk, if it may be lost.
    fn empty(&mut self, at: usize, back_after: Span) {
        if self.may_lose(at) {
            self.report.see(Sight::DiskEmptied);
            self.replace_disk(at);
            self.agenda.schedule(back_after, Happening::Start { node: at });
        }
    }

    /// The node gets an empty disk: a new store.
    pub(crate) fn replace_disk(&mut self, at: usize) {
        if let Some(marks) = self.nodes[at].crash(true, 0, &mut self.ledger) {
            self.report.marks.add(&marks);
        }
        self.next_store += 1;
        let Node { clock, calendar, generation, .. } = self.nodes[at];
        self.nodes[at] = Node::new(at, StoreId(self.next_store), clock, calendar);
        self.nodes[at].generation = generation + 1;
        self.say(|world| format!("n{} has an empty disk: {}", at + 1, world.nodes[at].store));
    }

    /// Kills a process and flips a bit of its log or its head, if its disk may be lost.
    fn rot(&mut self, at: usize, back_after: Span) {
        if self.nodes[at].process.is_none() || !self.may_lose(at) {
            return;
        }
        self.crash(at, false, back_after);
        let seed = self.rng.random();
        let node = &mut self.nodes[at];
        // One slot of the head: its others are copies, as long as no power failed.
        node.ailing.rotten = match self.rng.random_range(0..4) {
            slot @ 0..3 => node.disk.flip_head_bit(slot, seed),
            _ => node.disk.flip_bit(Part::Log, Tree::Records, seed),
        };
    }

    pub(crate) fn proposals_are_about(&self) -> bool {
        self.nodes.iter().any(Node::proposes)
    }

    pub(crate) fn start(&mut self, at: usize) -> Finding {
        if self.nodes[at].process.is_some() {
            return Ok(());
        }
        let seed = self.rng.random();
        let now = self.agenda.now();
        let rotten = self.nodes[at].ailing.rotten;
        match self.nodes[at].start(&self.plan, seed, now, &mut self.ledger)? {
            Started::Refused(damage) => {
                self.say(|_| format!("n{} does not start: {damage}", at + 1));
                self.report.see(Sight::DamagedStoreReplaced);
                self.replace_disk(at);
                self.agenda.schedule(0, Happening::Start { node: at });
                Ok(())
            }
            Started::Runs { effects, torn } => {
                self.nodes[at].ailing.rotten = false;
                if rotten {
                    self.report.see(Sight::DamageHarmless);
                }
                if torn {
                    self.report.see(Sight::TornGroupRemoved);
                }
                let generation = self.nodes[at].generation;
                self.say(|_| format!("n{} starts", at + 1));
                self.agenda.schedule(TICK, Happening::Tick { node: at, generation });
                self.carry_out(at, effects)
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.say(|_| "heal".to_owned());
        self.healed = true;
        self.cut_off.clear();
        self.authority_down_until = 0;
        for node in 0..self.nodes.len() {
            self.nodes[node].ailing.slow_until = 0;
            self.nodes[node].ailing.hangs_until = 0;
            self.agenda.schedule(0, Happening::Start { node });
            let generation = self.nodes[node].generation;
            self.agenda.schedule(0, Happening::Resume { node, generation });
        }
    }
}
