//! Model clients: they know the protocol's rules for clients, keep a history, and retry for ever.

use std::collections::BTreeMap;

use bytes::Bytes;
use onlyonce_wire::client::{
    Answer, Consequence, Execute, ExecuteId, Failure, Outcome, Read, Refusal, Request, Write,
};
use onlyonce_wire::{Incarnation, OpenedAt, Seq, Session, SessionId, client as wire, codec};
use rand::Rng;
use rand::rngs::StdRng;

use crate::linearizable::{Action, Operation, Told};

/// The only incarnation of a simulated cluster.
pub const INCARNATION: Incarnation = Incarnation(1);

/// A client and what it remembers.
pub struct Client {
    /// The session, once drawn, and once open.
    session: SessionId,
    opened_at: Option<OpenedAt>,
    next_seq: u64,
    /// Calls under way, by the number that ties answers to them. Numbers are never used twice.
    pub calls: BTreeMap<u64, Call>,
    next_call: u64,
    /// The node that is asked first.
    pub target: usize,
}

/// A request on its way.
pub struct Call {
    /// What it is for.
    pub purpose: Purpose,
    /// Sent again and again as it is.
    pub request: Request,
    /// Whether some copy may have reached a primary that did not answer it.
    pub exposed: bool,
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It opens the session.
    Open,
    /// It executes the operation with this number in the history.
    Execute { operation: usize, seq: u64 },
    /// It reads; the operation with this number in the history.
    Read { operation: usize },
}

/// All operations of all clients, with their keys.
#[derive(Default)]
pub struct History {
    /// The operations in the order of their invocation.
    pub operations: Vec<(usize, Operation)>,
}

impl Client {
    /// A client that has done nothing yet.
    pub fn new(rng: &mut StdRng) -> Self {
        Self {
            session: SessionId(rng.random()),
            opened_at: None,
            next_seq: 1,
            calls: BTreeMap::new(),
            next_call: 0,
            target: 0,
        }
    }

    /// Forgets everything; what was under way stays unknown for ever.
    pub fn crash(&mut self, rng: &mut StdRng) {
        let next_call = self.next_call;
        *self = Self { next_call, ..Self::new(rng) };
    }

    /// Whether it may begin another request.
    pub fn has_room(&self, outstanding: usize) -> bool {
        let opening = self.calls.values().any(|call| call.purpose == Purpose::Open);
        self.calls.len() < outstanding && !opening
    }

    /// Begins a request; returns the number of its call.
    pub fn begin(&mut self, rng: &mut StdRng, keys: usize, now: u64, history: &mut History) -> u64 {
        let Some(opened_at) = self.opened_at else {
            let request = Request::Open { incarnation: INCARNATION, session: self.session };
            return self.call(Purpose::Open, request);
        };
        let session = Session { id: self.session, opened_at };
        let key = rng.random_range(0..keys);
        let action = draw_action(rng, history.operations.len());
        let operation = history.operations.len();
        let invoked =
            Operation { invoked: now, answered: None, action: action.clone(), told: None };
        history.operations.push((key, invoked));
        let name = key_name(key);
        let Some(write) = write_of(name.clone(), action) else {
            let request = Request::Read(Read::Get { key: name });
            return self.call(Purpose::Read { operation }, request);
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        let first_unacked = self.first_unacked(seq);
        let request = Request::Execute(Execute {
            incarnation: INCARNATION,
            id: ExecuteId::Session { session, seq: Seq(seq), first_unacked: Seq(first_unacked) },
            operation: codec::encode(&write).into(),
        });
        self.call(Purpose::Execute { operation, seq }, request)
    }

    fn first_unacked(&self, newest: u64) -> u64 {
        let open = self.calls.values().filter_map(|call| match call.purpose {
            Purpose::Execute { seq, .. } => Some(seq),
            Purpose::Open | Purpose::Read { .. } => None,
        });
        open.min().unwrap_or(newest)
    }

    fn call(&mut self, purpose: Purpose, request: Request) -> u64 {
        self.next_call += 1;
        self.calls.insert(self.next_call, Call { purpose, request, exposed: false });
        self.next_call
    }

    /// Takes an answer to a call. A late one to a call that is done is compared with nothing: it
    /// was compared when it was sent.
    pub fn take(&mut self, number: u64, answer: Answer, now: u64, history: &mut History) -> Taken {
        let Some(call) = self.calls.get_mut(&number) else { return Taken::Nothing };
        let told = match answer {
            Answer::Opened { opened_at } => {
                self.opened_at = Some(opened_at);
                self.calls.remove(&number);
                return Taken::Done;
            }
            Answer::Executed { reply, .. } => {
                let outcome = codec::decode::<Outcome, 65_536>(&reply).expect("an outcome decodes");
                told(outcome)
            }
            Answer::Read(outcome) => told(outcome),
            Answer::NotPrimary { primary, .. } => {
                if let Some(primary) = primary {
                    self.target = primary.parse().expect("addresses are numbers here");
                }
                return Taken::Nothing;
            }
            Answer::AskAgain => {
                call.exposed = true;
                return Taken::Nothing;
            }
            Answer::Refused(refusal) => return self.refused(number, &refusal),
            other @ (Answer::Closed | Answer::Alive | Answer::Status(_)) => {
                panic!("{other:?} to {:?}", call.purpose)
            }
        };
        match call.purpose {
            Purpose::Execute { operation, .. } | Purpose::Read { operation } => {
                let (_, operation) = &mut history.operations[operation];
                operation.answered = Some(now);
                operation.told = Some(told);
            }
            Purpose::Open => panic!("{told:?} to the opening of a session"),
        }
        self.calls.remove(&number);
        Taken::Done
    }

    /// A void id ends its session: what was under way in it stays unknown. Anything else that is
    /// definite must not happen to a client that keeps the rules.
    fn refused(&mut self, number: u64, refusal: &Refusal) -> Taken {
        match refusal.consequence() {
            Consequence::TryLater => Taken::Nothing,
            Consequence::IdVoid if matches!(refusal, Refusal::SessionExpired) => {
                let lost = self.calls.len();
                self.calls.clear();
                self.opened_at = None;
                self.next_seq = 1;
                self.session = SessionId(self.session.0 ^ (u128::from(number) + 1));
                Taken::Expired { lost }
            }
            Consequence::IdVoid | Consequence::NeverRuns | Consequence::ThisCopy => {
                Taken::Broken(format!("call {number} was refused: {refusal}"))
            }
        }
    }
}

/// What an answer came to.
pub enum Taken {
    /// The call goes on.
    Nothing,
    /// The call is done.
    Done,
    /// The session is gone, and with it calls whose outcome stays unknown.
    Expired {
        /// How many.
        lost: usize,
    },
    /// An answer that no client that keeps the rules may get.
    Broken(String),
}

/// The name of a key.
pub fn key_name(key: usize) -> Bytes {
    format!("key-{key}").into()
}

fn draw_action(rng: &mut StdRng, unique: usize) -> Action {
    let value = || Bytes::from(format!("{}", unique * 1_000));
    match rng.random_range(0..20) {
        0 => Action::Put(value()),
        1..=4 => Action::Append(format!("{unique};").into()),
        5..=10 => Action::Incr,
        11 => Action::Cas { expected: None, value: value() },
        12 => Action::Delete,
        _ => Action::Get,
    }
}

/// The request for an action; none for a read.
fn write_of(key: Bytes, action: Action) -> Option<wire::Operation> {
    Some(match action {
        Action::Put(value) => wire::Operation::Write(Write::Put { key, value }),
        Action::Append(value) => wire::Operation::Write(Write::Append { key, value }),
        Action::Incr => wire::Operation::Write(Write::Incr { key, by: 1 }),
        Action::Delete => wire::Operation::Write(Write::Delete { key }),
        Action::Cas { expected, value } => wire::Operation::Cas { key, expected, value },
        Action::Get => return None,
    })
}

fn told(outcome: Outcome) -> Told {
    match outcome {
        Outcome::Done => Told::Done,
        Outcome::Value(value) => Told::Value(value),
        Outcome::Length(length) => Told::Number(i64::try_from(length).expect("short")),
        Outcome::Integer(value) => Told::Number(value),
        Outcome::Deleted(existed) => Told::Bool(existed),
        Outcome::Compared { swapped, .. } => Told::Bool(swapped),
        Outcome::Failed(Failure::NotAnInteger | Failure::Overflow) => Told::Impossible,
        other @ (Outcome::Failed(_) | Outcome::Rows { .. } | Outcome::Txn(_)) => {
            panic!("an outcome that nothing here leads to: {other:?}")
        }
    }
}
