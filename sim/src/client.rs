//! Model clients: they know the protocol's rules for clients, keep a history, and retry for ever.
//! Now and then one probes: it sends what no client that keeps the rules would, and must be refused.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use onlyonce_history::{Action, Operation, Told};
use onlyonce_replica::Limits;
use onlyonce_storage::limits::CHUNK;
use onlyonce_wire::client::{
    Answer, Consequence, Execute, ExecuteId, Failure, Outcome, Read, Refusal, Request, Write,
};
use onlyonce_wire::{
    IdempotencyKey, Incarnation, OpenedAt, Seq, Session, SessionId, client as wire, codec,
};
use rand::Rng;
use rand::rngs::StdRng;

use crate::plan::Plan;

/// The only incarnation of a simulated cluster.
pub const INCARNATION: Incarnation = Incarnation(1);

/// A client and what it remembers.
pub struct Client {
    /// The session, once drawn, and once open.
    session: SessionId,
    opened_at: Option<OpenedAt>,
    next_seq: u64,
    /// Seqs that a probe used up.
    skipped: BTreeSet<u64>,
    /// The last request whose reply is known, and the last session that ended: for probes.
    last_done: Option<Request>,
    last_over: Option<Session>,
    doubts: bool,
    /// Whether it only reads.
    pub reads: bool,
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
    /// Sent again and again.
    pub request: Request,
    /// Whether it was refused until the session's watermark has moved: the next copy moves it.
    blocked: bool,
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It opens the session.
    Open,
    /// It closes the session.
    Close,
    /// It asks whether the session lives.
    KeepAlive,
    /// It executes the operation with this number in the history; its seq, if it has one.
    Execute { operation: usize, seq: Option<u64> },
    /// It reads; the operation with this number in the history.
    Read { operation: usize },
    /// It reads all rows, which is judged where it is answered.
    Scan,
    /// It breaks the rules: what it must never get is judged where it is answered. Sent a few times.
    Probe { left: u32 },
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
            skipped: BTreeSet::new(),
            last_done: None,
            last_over: None,
            doubts: false,
            reads: rng.random_ratio(1, 4),
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
    pub fn has_room(&self, plan: &Plan) -> bool {
        let changing = |call: &Call| matches!(call.purpose, Purpose::Open | Purpose::Close);
        let oldest = self.first_unacked(self.next_seq);
        self.calls.len() < plan.outstanding
            && !self.calls.values().any(changing)
            && self.next_seq - oldest < plan.limits.window
    }

    /// Begins a request; returns the number of its call.
    pub fn begin(&mut self, rng: &mut StdRng, plan: &Plan, now: u64, history: &mut History) -> u64 {
        if rng.random_ratio(plan.probe_per_mille, 1_000)
            && let Some(request) = self.probe(rng, plan)
        {
            return self.call(Purpose::Probe { left: 4 }, request);
        }
        let Some(opened_at) = self.opened_at else {
            let request = Request::Open { incarnation: INCARNATION, session: self.session };
            return self.call(Purpose::Open, request);
        };
        let session = Session { id: self.session, opened_at };
        match rng.random_range(0..if self.reads { 10 } else { 100 }) {
            0 | 1 if self.calls.is_empty() => {
                let request = Request::Close { incarnation: INCARNATION, session };
                return self.call(Purpose::Close, request);
            }
            2 => {
                let request = Request::KeepAlive { incarnation: INCARNATION, session };
                return self.call(Purpose::KeepAlive, request);
            }
            3 | 4 => {
                let read = Read::Scan { start: Bytes::new(), end: None, limit: 100 };
                return self.call(Purpose::Scan, Request::Read(read));
            }
            _ => {}
        }
        let key = rng.random_range(0..plan.keys);
        let short = plan.limits.saved_reply_bytes < Limits::default().saved_reply_bytes;
        let action = if self.reads {
            Action::Get
        } else {
            draw_action(rng, history.operations.len(), short, plan.long_values && !short)
        };
        let operation = history.operations.len();
        let invoked =
            Operation { invoked: now, answered: None, action: action.clone(), told: None };
        history.operations.push((key, invoked));
        let name = key_name(key);
        let Some(write) = write_of(name.clone(), action) else {
            let request = Request::Read(Read::Get { key: name });
            return self.call(Purpose::Read { operation }, request);
        };
        if rng.random_ratio(1, 10) {
            let key = IdempotencyKey::new(format!("once-{operation}")).expect("a short key");
            let request = execute(ExecuteId::Key(key), &write);
            return self.call(Purpose::Execute { operation, seq: None }, request);
        }
        let (seq, id) = self.next_id(session);
        self.call(Purpose::Execute { operation, seq: Some(seq) }, execute(id, &write))
    }

    fn next_id(&mut self, session: Session) -> (u64, ExecuteId) {
        while self.skipped.remove(&self.next_seq) {
            self.next_seq += 1;
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        let first_unacked = Seq(self.first_unacked(seq));
        (seq, ExecuteId::Session { session, seq: Seq(seq), first_unacked })
    }

    fn first_unacked(&self, newest: u64) -> u64 {
        let open = self.calls.values().filter_map(|call| match call.purpose {
            Purpose::Execute { seq, .. } => seq,
            Purpose::Open
            | Purpose::Close
            | Purpose::KeepAlive
            | Purpose::Read { .. }
            | Purpose::Scan
            | Purpose::Probe { .. } => None,
        });
        open.min().unwrap_or(newest)
    }

    /// Asks anybody whether the session lives, after a rest.
    pub fn wake(&mut self) -> Option<u64> {
        let session = Session { id: self.session, opened_at: self.opened_at? };
        let request = Request::KeepAlive { incarnation: INCARNATION, session };
        Some(self.call(Purpose::Probe { left: 4 }, request))
    }

    /// Asks everybody about a session that ended just now.
    pub fn doubt(&mut self) -> Option<u64> {
        let session = self.last_over.filter(|_| std::mem::take(&mut self.doubts))?;
        let request = Request::KeepAlive { incarnation: INCARNATION, session };
        Some(self.call(Purpose::Probe { left: 12 }, request))
    }

    /// Something that no client that keeps the rules sends.
    fn probe(&mut self, rng: &mut StdRng, plan: &Plan) -> Option<Request> {
        match rng.random_range(0..4) {
            // Once more, what was answered: the same answer, or none that executes it.
            0 => self.last_done.clone(),
            // Its id, with other content.
            1 => match self.last_done.clone()? {
                Request::Execute(Execute { id, .. }) => Some(execute(id, &nothing())),
                _ => None,
            },
            // A session that is over.
            2 => {
                let session = self.last_over?;
                Some(match rng.random_range(0..4) {
                    0 => Request::Close { incarnation: INCARNATION, session },
                    1 => Request::Open { incarnation: INCARNATION, session: session.id },
                    2 => Request::KeepAlive { incarnation: INCARNATION, session },
                    _ => {
                        let (seq, first_unacked) = (Seq(1_000_000), Seq(1_000_000));
                        let id = ExecuteId::Session { session, seq, first_unacked };
                        execute(id, &nothing())
                    }
                })
            }
            // Too far ahead.
            _ => {
                let session = Session { id: self.session, opened_at: self.opened_at? };
                let first_unacked = self.first_unacked(self.next_seq);
                let seq = first_unacked + plan.limits.window + rng.random_range(0..3);
                if seq < self.next_seq || !self.skipped.insert(seq) {
                    return None;
                }
                let (seq, first_unacked) = (Seq(seq), Seq(first_unacked));
                Some(execute(ExecuteId::Session { session, seq, first_unacked }, &nothing()))
            }
        }
    }

    fn call(&mut self, purpose: Purpose, request: Request) -> u64 {
        self.next_call += 1;
        self.calls.insert(self.next_call, Call { purpose, request, blocked: false });
        self.next_call
    }

    /// Whether a call is sent to anybody, not to whom the client takes for the primary.
    pub fn is_probe(&self, number: u64) -> bool {
        let call = self.calls.get(&number);
        call.is_some_and(|call| matches!(call.purpose, Purpose::Probe { .. }))
    }

    /// The bytes to send (again); none when the call is done. A probe ends after a few times.
    pub fn send(&mut self, number: u64) -> Option<Request> {
        let oldest = Seq(self.first_unacked(self.next_seq));
        let call = self.calls.get_mut(&number)?;
        if let Request::Execute(Execute { id: ExecuteId::Session { first_unacked, .. }, .. }) =
            &mut call.request
            && call.blocked
            && !matches!(call.purpose, Purpose::Probe { .. })
        {
            // The watermark of a probe, which nobody waits for, may have passed it.
            *first_unacked = oldest;
        }
        if let Purpose::Probe { left } = &mut call.purpose {
            if *left == 0 {
                self.calls.remove(&number);
                return None;
            }
            *left -= 1;
        }
        Some(call.request.clone())
    }

    /// Takes an answer to a call. A late one to a call that is done is left aside: it was judged when
    /// it left its node.
    pub fn take(&mut self, number: u64, answer: Answer, now: u64, history: &mut History) -> Taken {
        let Some(call) = self.calls.get_mut(&number) else { return Taken::Nothing };
        let purpose = call.purpose;
        if let (Purpose::Probe { .. }, false) = (purpose, is_invitation(&answer)) {
            self.calls.remove(&number);
            return Taken::Done;
        }
        let told = match answer {
            Answer::NotPrimary { primary, .. } => {
                if let Some(primary) = primary {
                    self.target = primary.parse().expect("addresses are numbers here");
                }
                return Taken::Nothing;
            }
            Answer::AskAgain => return Taken::Nothing,
            Answer::Refused(refusal) => return self.refused(number, &refusal),
            Answer::Opened { opened_at } => {
                self.opened_at = Some(opened_at);
                None
            }
            Answer::Closed => {
                self.end_session(number);
                return Taken::Done;
            }
            Answer::Executed { reply, .. } => {
                let outcome = codec::decode::<Outcome, 65_536>(&reply).expect("an outcome decodes");
                self.last_done = Some(call.request.clone());
                Some(outcome)
            }
            Answer::Read(outcome) => Some(outcome),
            Answer::Alive
            | Answer::Fate { .. }
            | Answer::Sessions { .. }
            | Answer::Session(_)
            | Answer::Status(_) => None,
        };
        if let (Purpose::Execute { operation, .. } | Purpose::Read { operation }, Some(outcome)) =
            (purpose, told)
        {
            let (_, operation) = &mut history.operations[operation];
            operation.answered = Some(now);
            operation.told = Some(self::told(outcome));
        }
        self.calls.remove(&number);
        Taken::Done
    }

    /// A void id ends its session: what was under way in it stays unknown. Anything else that is
    /// definite must not happen to a client that keeps the rules.
    fn refused(&mut self, number: u64, refusal: &Refusal) -> Taken {
        match refusal.consequence() {
            Consequence::TryLater => {
                self.calls.get_mut(&number).expect("it is under way").blocked = true;
                Taken::Nothing
            }
            Consequence::IdVoid if matches!(refusal, Refusal::SessionExpired) => {
                let lost = self.calls.len();
                let closing = self.calls[&number].purpose == Purpose::Close;
                self.calls.clear();
                self.end_session(number);
                if closing { Taken::Done } else { Taken::Expired { lost } }
            }
            Consequence::IdVoid | Consequence::NeverRuns | Consequence::ThisCopy => {
                Taken::Broken(format!("call {number} was refused: {refusal}"))
            }
        }
    }

    fn end_session(&mut self, number: u64) {
        self.calls.remove(&number);
        self.last_over = self.opened_at.map(|opened_at| Session { id: self.session, opened_at });
        self.opened_at = None;
        self.doubts = true;
        self.next_seq = 1;
        self.skipped.clear();
        self.session = SessionId(self.session.0.wrapping_add(1));
    }
}

/// Whether an answer only says to ask again, or elsewhere.
fn is_invitation(answer: &Answer) -> bool {
    matches!(
        answer,
        Answer::NotPrimary { .. } | Answer::AskAgain | Answer::Refused(Refusal::Busy(_))
    )
}

fn execute(id: ExecuteId, write: &wire::Operation) -> Request {
    let operation = codec::encode(write).into();
    Request::Execute(Execute { incarnation: INCARNATION, id, operation })
}

/// An operation that changes nothing, on a key that nothing changes.
fn nothing() -> wire::Operation {
    wire::Operation::Write(Write::Get { key: Bytes::from_static(b"nothing") })
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

/// An action; with `short`, none whose reply grows with the value; with `long`, some values that take
/// more than a row.
fn draw_action(rng: &mut StdRng, unique: usize, short: bool, long: bool) -> Action {
    let value = || Bytes::from(format!("{}", unique * 1_000));
    match rng.random_range(0..20) {
        0 if long => Action::Put(Bytes::from(format!("{unique};").repeat(CHUNK / 2))),
        0 => Action::Put(value()),
        1..=4 => Action::Append(format!("{unique};").into()),
        5..=10 => Action::Incr,
        11 if !short => Action::Cas { expected: None, value: value() },
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
        Outcome::Compared { swapped, actual } => Told::Compared { swapped, actual },
        Outcome::Failed(Failure::NotAnInteger | Failure::Overflow) => Told::Impossible,
        other @ (Outcome::Failed(_) | Outcome::Rows { .. } | Outcome::Txn(_)) => {
            panic!("an outcome that nothing here leads to: {other:?}")
        }
    }
}
