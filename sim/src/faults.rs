//! What goes wrong in a world, and how it heals.

use std::collections::VecDeque;

use onlyonce_wire::StoreId;
use rand::Rng;

use crate::ledger::Finding;
use crate::node::Node;
use crate::time::{MILLISECOND, SECOND, Span};
use crate::world::{Happening, TICK, World};

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process ends; what it did not flush is lost, or not.
    Crash,
    /// All processes end, and nothing unflushed is kept.
    Blackout,
    /// Messages between two nodes are lost, one way or both.
    Partition,
    /// A process stands still.
    Pause,
    /// The authority does not answer.
    Outage,
    /// A disk is replaced by an empty one.
    Empty,
    /// A client forgets everything.
    ClientCrash,
}

impl World {
    pub(crate) fn break_something(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        let faults = self.plan.faults;
        let node = self.rng.random_range(0..self.nodes.len());
        let while_ = self.rng.random_range(10 * MILLISECOND..3 * SECOND);
        let until = self.agenda.now() + while_;
        self.say(|_| format!("{fault:?} (n{}) for {:.3} s", node + 1, while_ as f64 / 1e9));
        let mean = match fault {
            Fault::Crash => {
                let power = self.rng.random();
                self.crash(node, power, while_);
                faults.crash
            }
            Fault::Blackout => {
                for node in 0..self.nodes.len() {
                    let back = self.rng.random_range(0..while_);
                    self.crash(node, true, back);
                }
                faults.blackout
            }
            Fault::Partition => {
                let other = self.rng.random_range(0..self.nodes.len());
                self.cut_off.insert((node, other), until);
                if self.rng.random() {
                    self.cut_off.insert((other, node), until);
                }
                faults.partition
            }
            Fault::Pause => {
                self.pause(node, while_);
                faults.pause
            }
            Fault::Outage => {
                self.authority_down_until = until;
                faults.outage
            }
            Fault::Empty => {
                self.empty(node, while_);
                faults.empty
            }
            Fault::ClientCrash => {
                let client = self.rng.random_range(0..self.clients.len());
                self.report.unknown += self.clients[client].calls.len() as u64;
                self.clients[client].crash(&mut self.rng);
                faults.client_crash
            }
        };
        let after = self.rng.random_range(0..2 * mean);
        self.agenda.schedule(after, Happening::Fault(fault));
    }

    pub(crate) fn crash(&mut self, at: usize, power: bool, back_after: Span) {
        if self.nodes[at].process.is_none() {
            return;
        }
        let seed = self.rng.random();
        self.nodes[at].crash(power, seed);
        self.report.crashes += 1;
        self.agenda.schedule(back_after, Happening::Start { node: at });
    }

    pub(crate) fn pause(&mut self, at: usize, while_: Span) {
        let node = &mut self.nodes[at];
        if node.process.is_some() && node.paused.is_none() {
            node.paused = Some(VecDeque::new());
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

    /// Loses a node's disk, if by the promises nothing is lost with it: every acknowledged entry is
    /// on another replica of the view, and no proposal is about that would leave only this node.
    pub(crate) fn empty(&mut self, at: usize, back_after: Span) {
        let store = self.nodes[at].store;
        let Some(register) = &self.register.register else { return };
        // The others' disks must be the ones that the view means, not empty ones in their places.
        let is_there = |store| self.nodes.iter().any(|node| node.store == store);
        let others = register.replicas().filter(|it| it.store != store && is_there(it.store));
        let others = others.count();
        let alone = register.replica(store).is_some() && others == 0;
        let everybody_agrees = self.nodes.iter().all(|node| {
            node.at == at
                || node.process.as_ref().is_some_and(|process| {
                    process.replica.register().is_some_and(|it| it.view == register.view)
                })
        });
        if alone || !everybody_agrees || self.proposals_are_about() {
            return;
        }
        self.nodes[at].crash(true, 0);
        self.report.emptied += 1;
        self.next_store += 1;
        let clock = self.nodes[at].clock;
        let generation = self.nodes[at].generation;
        self.nodes[at] = Node::new(at, StoreId(self.next_store), clock);
        self.nodes[at].generation = generation + 1;
        self.agenda.schedule(back_after, Happening::Start { node: at });
    }

    pub(crate) fn proposals_are_about(&self) -> bool {
        let proposing = |node: &Node| {
            node.process.as_ref().is_some_and(|process| process.replica.is_proposing())
        };
        self.nodes.iter().any(proposing)
    }

    pub(crate) fn start(&mut self, at: usize) -> Finding {
        if self.nodes[at].process.is_some() {
            return Ok(());
        }
        let seed = self.rng.random();
        let now = self.agenda.now();
        let effects = self.nodes[at].start(&self.plan, seed, now, &mut self.ledger)?;
        let generation = self.nodes[at].generation;
        self.say(|_| format!("n{} starts", at + 1));
        self.agenda.schedule(TICK, Happening::Tick { node: at, generation });
        self.carry_out(at, effects)
    }

    pub(crate) fn heal(&mut self) {
        self.say(|_| "heal".to_owned());
        self.healed = true;
        self.cut_off.clear();
        self.authority_down_until = 0;
        for node in 0..self.nodes.len() {
            self.agenda.schedule(0, Happening::Start { node });
            let generation = self.nodes[node].generation;
            self.agenda.schedule(0, Happening::Resume { node, generation });
        }
    }
}
