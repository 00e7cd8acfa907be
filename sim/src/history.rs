//! What all clients asked for and were told, and the idempotency keys that they know of each other.

use onlyonce_history::{Operation, Told};
use onlyonce_replica::WallTime;
use onlyonce_wire::IdempotencyKey;
use onlyonce_wire::client::{Execute, ExecuteId, Failure, Outcome, RequestId};
use rand::Rng;
use rand::rngs::StdRng;

use crate::requests::{Became, Requests};

/// All operations of all clients.
#[derive(Default)]
pub struct History {
    /// In the order of their invocation.
    pub operations: Vec<Invocation>,
    /// Those under idempotency keys, which anybody may repeat.
    pub keyed: Vec<(usize, Execute)>,
}

/// An operation of some client.
pub struct Invocation {
    /// The key that it is about.
    pub key: usize,
    /// What is known of it, by whoever was told first.
    pub operation: Operation,
    /// Its idempotency key, if it has one.
    pub under: Option<IdempotencyKey>,
    /// Somebody was told that it never ran and never will.
    pub cancelled: bool,
}

impl Invocation {
    /// Whether it may run again: a named key that is forgotten is like a new one.
    fn may_run_anew(&self) -> bool {
        self.under.as_ref().is_some_and(|key| key.time_ms().is_none())
    }

    /// What the search for an order is to make of it. What ran anew is told by the committed history
    /// itself: between the moment when its key was forgotten, and that of its commit.
    pub fn judged(&self, requests: &Requests) -> Vec<Operation> {
        let Self { operation, under, cancelled, .. } = self;
        let fates = under.as_ref().map(|key| requests.fates(&RequestId::Key(key.clone())));
        let fates = fates.unwrap_or_default();
        if fates.len() < 2 {
            return if *cancelled { Vec::new() } else { vec![operation.clone()] };
        }
        let mut invoked = operation.invoked;
        let mut judged = Vec::new();
        for fate in fates {
            if let Became::Executed { reply, .. } = &fate.became {
                judged.push(Operation {
                    invoked,
                    answered: Some(fate.at),
                    action: operation.action.clone(),
                    told: Some(told(decode(reply))),
                });
            }
            invoked = fate.forgotten.map_or(invoked, |(_, at)| at);
        }
        judged
    }
}

impl History {
    /// Notes a new operation under a key.
    pub fn add_keyed(&mut self, operation: usize, execute: Execute) {
        if let ExecuteId::Key(key) = &execute.id {
            self.operations[operation].under = Some(key.clone());
            self.keyed.push((operation, execute));
        }
    }

    /// A request under a key that somebody used: often a late one, sometimes any.
    pub fn any_keyed(&self, rng: &mut StdRng) -> Option<&(usize, Execute)> {
        let all = self.keyed.len();
        let first = if rng.random() { all.saturating_sub(4) } else { 0 };
        (all > 0).then(|| &self.keyed[rng.random_range(first..all)])
    }

    /// Somebody is told the reply to an operation. Whoever was told before was told the same.
    pub fn tell(&mut self, number: usize, now: u64, outcome: Outcome) -> Result<(), String> {
        let invocation = &mut self.operations[number];
        let told = told(outcome);
        if !invocation.may_run_anew() {
            if invocation.cancelled {
                return Err(format!("operation {number} came to {told:?}, but it was cancelled"));
            }
            if let Some(before) = invocation.operation.told.as_ref().filter(|it| **it != told) {
                return Err(format!("operation {number} came to {told:?}, and to {before:?}"));
            }
        }
        if invocation.operation.told.is_none() {
            invocation.operation.answered = Some(now);
            invocation.operation.told = Some(told);
        }
        Ok(())
    }

    /// Somebody is told that an operation never ran and never will.
    pub fn cancel(&mut self, number: usize) -> Result<(), String> {
        let invocation = &mut self.operations[number];
        invocation.cancelled = true;
        match &invocation.operation.told {
            Some(told) if !invocation.may_run_anew() => {
                Err(format!("operation {number} was cancelled, but it came to {told:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// Draws an idempotency key for an operation: a name, or a time by a calendar.
pub fn draw_key(rng: &mut StdRng, wall: WallTime, operation: usize) -> IdempotencyKey {
    if rng.random() {
        return IdempotencyKey::fresh(wall.0, rng.random());
    }
    IdempotencyKey::new(format!("once-{operation}")).expect("a short key")
}

/// A saved reply's outcome.
pub fn decode(reply: &[u8]) -> Outcome {
    onlyonce_wire::codec::decode::<Outcome, 65_536>(reply).expect("an outcome decodes")
}

fn told(outcome: Outcome) -> Told {
    match outcome {
        Outcome::Done => Told::Done,
        Outcome::Value(value) => Told::Value(value),
        Outcome::Length(length) => Told::Number(i64::try_from(length).expect("short")),
        Outcome::Integer(value) => Told::Number(value),
        Outcome::Deleted(existed) => Told::Bool(existed),
        Outcome::Compared { swapped, actual } => Told::Compared { swapped, actual },
        Outcome::Failed(Failure::NotAnInteger | Failure::Overflow) => Told::Impossible,
        other @ (Outcome::Failed(_) | Outcome::Rows { .. } | Outcome::Txn(_)) => {
            panic!("an outcome that nothing here leads to: {other:?}")
        }
    }
}
