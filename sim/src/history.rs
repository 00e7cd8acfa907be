//! What all clients asked for and were told, and the idempotency keys that they know of each other.

use std::ops::RangeInclusive;

use bytes::Bytes;
use onlyonce_history::{Action, Operation, Told};
use onlyonce_replica::WallTime;
use onlyonce_storage::Index;
use onlyonce_wire::IdempotencyKey;
use onlyonce_wire::client::{Execute, ExecuteId, Failure, Outcome, RequestId};
use rand::Rng;
use rand::rngs::StdRng;

use crate::requests::{Became, Fate, Requests};

/// All operations of all clients.
#[derive(Default)]
pub struct History {
    /// In the order of their invocation.
    pub operations: Vec<Invocation>,
    /// Those under idempotency keys, which anybody may repeat.
    pub keyed: Vec<(usize, Execute)>,
    /// Where the present incarnation begins.
    since: Since,
}

/// The beginning of an incarnation.
#[derive(Default)]
struct Since {
    /// The operations before this one were begun before it.
    operations: usize,
    /// The records up to this one are its beginning.
    index: Index,
    at: u64,
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
    /// How it stands with it in an outbox, if it is in one.
    pub kept: Option<Kept>,
    /// When it was first taken up by a client that was started again.
    pub taken_up: Option<u64>,
}

/// What its client knows of a request in an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was written there, and must not be sent yet.
    Written,
    /// A crash took it, before it was durable: nobody ever asked for it.
    Lost,
    /// It is durable, and may be sent at any time.
    Durable,
    /// It was told to have run.
    Ran,
    /// It was told to have been cancelled.
    NeverRan,
    /// It was refused, and may have run.
    Unresolved,
}

impl Kept {
    /// How often a request may have run that stands like this at the end; none if it may not end so.
    fn runs(self) -> Option<RangeInclusive<usize>> {
        match self {
            Self::Lost | Self::NeverRan => Some(0..=0),
            Self::Ran => Some(1..=1),
            Self::Unresolved => Some(0..=1),
            Self::Written | Self::Durable => None,
        }
    }
}

impl Invocation {
    /// Whether it may run again: a named key that is forgotten is like a new one.
    fn may_run_anew(&self) -> bool {
        self.under.as_ref().is_some_and(|key| key.time_ms().is_none())
    }

    /// What became of it under its key, if it has one.
    fn fates<'a>(&self, requests: &'a Requests) -> &'a [Fate] {
        let fates = self.under.as_ref().map(|key| requests.fates(&RequestId::Key(key.clone())));
        fates.unwrap_or_default()
    }
}

impl History {
    /// What the search for an order is to make of the operations on a key, which held `value` when the
    /// present incarnation began.
    pub fn judged(&self, key: usize, value: Option<Bytes>, requests: &Requests) -> Vec<Operation> {
        let at = self.since.at;
        let restored = value.map(|value| Operation {
            invoked: at,
            answered: Some(at),
            action: Action::Put(value),
            told: Some(Told::Done),
        });
        let of_key = (0..self.operations.len()).filter(|it| self.operations[*it].key == key);
        restored.into_iter().chain(of_key.flat_map(|it| self.runs(it, requests))).collect()
    }

    /// How often an operation may have run. What ran anew, or in the present incarnation though it was
    /// begun before, is told by the committed history itself: between the moment when its key was
    /// forgotten, or the incarnation began, and that of its commit. So is what was not answered under a
    /// key: a client whose requests are all refused would leave more open than can be searched.
    fn runs(&self, number: usize, requests: &Requests) -> Vec<Operation> {
        let invocation = &self.operations[number];
        let Invocation { operation, under, cancelled, .. } = invocation;
        let fates = invocation.fates(requests);
        let is_old = self.is_old(number);
        let is_answered = under.is_none() || operation.told.is_some();
        if fates.len() < 2 && is_answered && !is_old {
            return if *cancelled { Vec::new() } else { vec![operation.clone()] };
        }
        let mut invoked = if is_old { self.since.at } else { operation.invoked };
        let mut judged = Vec::new();
        for fate in fates {
            if let Became::Executed { reply, .. } = &fate.became
                && fate.index > self.since.index
            {
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

    /// A new incarnation begins with the records up to `index`.
    pub fn begin_anew(&mut self, index: Index, at: u64) {
        self.since = Since { operations: self.operations.len(), index, at };
    }

    /// The records up to this one are the beginning of the present incarnation.
    pub fn began_with(&self) -> Index {
        self.since.index
    }

    /// Whether an operation was begun in an earlier incarnation.
    fn is_old(&self, number: usize) -> bool {
        number < self.since.operations
    }

    /// Notes that an operation is written to an outbox, under a key that nobody else knows.
    pub fn keep(&mut self, operation: usize, key: &IdempotencyKey) {
        self.operations[operation].under = Some(key.clone());
        self.operations[operation].kept = Some(Kept::Written);
    }

    /// What came of writing it there.
    pub fn written(&mut self, operation: usize, came_to: Kept) {
        let kept = &mut self.operations[operation].kept;
        if *kept == Some(Kept::Written) {
            *kept = Some(came_to);
        }
    }

    /// Its client was told how it ended. What is known for certain is not forgotten: asked again, after
    /// a crash that took the note of that, it may be answered that nothing is known any more.
    pub fn end_kept(&mut self, operation: usize, end: Kept) {
        let kept = &mut self.operations[operation].kept;
        if !matches!(kept, Some(Kept::Ran | Kept::NeverRan)) {
            *kept = Some(end);
        }
    }

    /// P1: what is in an outbox ran as its client knows it did, and what never was has not run. What is
    /// of an earlier incarnation does not run in this one. With `ends` everything must have an end.
    /// Returns how many ran before they were taken up by another process of their client, and since.
    pub fn audit_outboxes(&self, requests: &Requests, ends: bool) -> Result<(u64, u64), String> {
        let (mut before, mut since) = (0, 0);
        for (number, invocation) in self.operations.iter().enumerate() {
            let Some(kept) = invocation.kept else { continue };
            let is_here = |fate: &&Fate| {
                matches!(fate.became, Became::Executed { .. }) && fate.index > self.since.index
            };
            let runs: Vec<&Fate> = invocation.fates(requests).iter().filter(is_here).collect();
            let may_run = match kept.runs() {
                _ if self.is_old(number) => 0..=0,
                Some(runs) => runs,
                None if ends => return Err(format!("P1: operation {number} ends as {kept:?}")),
                None => 0..=1,
            };
            if !may_run.contains(&runs.len()) || (kept == Kept::Written && !runs.is_empty()) {
                return Err(format!(
                    "P1: operation {number} is {kept:?} in its outbox, and it ran {} times: {runs:?}",
                    runs.len()
                ));
            }
            for (fate, taken_up) in runs.iter().zip(invocation.taken_up) {
                *if fate.at <= taken_up { &mut before } else { &mut since } += 1;
            }
        }
        Ok((before, since))
    }

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
        if self.is_old(number) {
            // It was judged when it left its node; what is told of it since is of another history.
            return Ok(());
        }
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
        if self.is_old(number) {
            return Ok(());
        }
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
