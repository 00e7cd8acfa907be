//! Model clients: they know the protocol's rules for clients, keep a history, and retry for ever.
//! They repeat what others sent under idempotency keys, ask what became of requests, and cancel some.
//! Now and then one probes: it sends what no client that keeps the rules would, and must be refused.
//! Some have an [outbox], and send nothing that changes something before it is durable there.

mod outbox;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use onlyonce_history::{Action, Operation};
use onlyonce_replica::Limits;
use onlyonce_wire::client::{
    Answer, Consequence, Execute, ExecuteId, Fate, Fingerprint, Question, Read, Refusal, Request,
    RequestId,
};
use onlyonce_wire::{IdempotencyKey, Incarnation, OpenedAt, Seq, Session, SessionId};
use rand::Rng;
use rand::rngs::StdRng;

use crate::actions::{draw_action, execute, is_named, is_timed, key_name, nothing, write_of};
use crate::history::{History, Invocation, decode, draw_key};
use crate::plan::Plan;
use crate::time::Calendar;

use outbox::{Outbox, ended};

/// The incarnation that a cluster begins with.
pub const FIRST_INCARNATION: Incarnation = Incarnation(1);

/// A client and what it remembers.
pub struct Client {
    /// The newest incarnation that it was told of.
    incarnation: Incarnation,
    /// Where its requests outlive it, if it has one.
    pub outbox: Option<Outbox>,
    /// It crashed, and was not started again.
    pub is_down: bool,
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
    /// What it takes for the date.
    pub calendar: Calendar,
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
    /// Its number in the client's outbox, if it is there.
    pub kept: Option<u64>,
    /// Not sent before that is durable.
    pub held: bool,
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
    /// It asks what became of a request, or cancels it: that of the operation with this number, if
    /// it is one. Sent some times.
    Question { operation: Option<usize>, left: u32 },
    /// It reads all rows, which is judged where it is answered.
    Scan,
    /// It breaks the rules: what it must never get is judged where it is answered. Sent a few times.
    Probe { left: u32 },
}

impl Client {
    /// A client that has done nothing yet.
    pub fn new(rng: &mut StdRng, plan: &Plan) -> Self {
        let outbox = rng.random_ratio(plan.outbox_per_mille, 1_000).then(Outbox::default);
        Self {
            incarnation: FIRST_INCARNATION,
            is_down: false,
            calendar: plan.draw_calendar(rng),
            session: SessionId(rng.random()),
            opened_at: None,
            next_seq: 1,
            skipped: BTreeSet::new(),
            last_done: None,
            last_over: None,
            doubts: false,
            reads: rng.random_ratio(1, 4) && outbox.is_none(),
            outbox,
            calls: BTreeMap::new(),
            next_call: 0,
            target: 0,
        }
    }

    /// Whether it may begin another request.
    pub fn has_room(&self, plan: &Plan) -> bool {
        let changing = |call: &Call| matches!(call.purpose, Purpose::Open | Purpose::Close);
        let oldest = self.first_unacked(self.next_seq);
        !self.is_down
            && self.calls.len() < plan.outstanding
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
        if rng.random_ratio(plan.question_per_mille, 1_000)
            && let Some(call) = self.ask(rng, history)
        {
            return call;
        }
        if rng.random_ratio(plan.repeat_per_mille, 1_000)
            && let Some((operation, mut execute)) = history.any_keyed(rng).cloned()
        {
            execute.incarnation = self.incarnation;
            let purpose = Purpose::Execute { operation, seq: None };
            return self.call(purpose, Request::Execute(execute));
        }
        let Some(opened_at) = self.opened_at else {
            // A key needs no session.
            if self.outbox.is_some() || rng.random_ratio(plan.keyed_per_mille, 1_000) {
                return self.operate(rng, plan, now, None, history);
            }
            let request = Request::Open { incarnation: self.incarnation, session: self.session };
            return self.call(Purpose::Open, request);
        };
        let session = Session { id: self.session, opened_at };
        match rng.random_range(0..if self.reads { 10 } else { 100 }) {
            0 | 1 if self.calls.is_empty() => {
                let request = Request::Close { incarnation: self.incarnation, session };
                self.call(Purpose::Close, request)
            }
            2 => {
                let request = Request::KeepAlive { incarnation: self.incarnation, session };
                self.call(Purpose::KeepAlive, request)
            }
            3 | 4 => {
                let read = Read::Scan { start: Bytes::new(), end: None, limit: 100 };
                self.call(Purpose::Scan, Request::Read(read))
            }
            _ => self.operate(rng, plan, now, Some(session), history),
        }
    }

    /// Begins an operation: in a session, if there is one, or under a key.
    fn operate(
        &mut self,
        rng: &mut StdRng,
        plan: &Plan,
        now: u64,
        session: Option<Session>,
        history: &mut History,
    ) -> u64 {
        let key = rng.random_range(0..plan.keys);
        let short = plan.limits.saved_reply_bytes < Limits::default().saved_reply_bytes;
        let number = history.operations.len();
        let action = if self.reads {
            Action::Get
        } else {
            draw_action(rng, number, short, plan.long_values && !short)
        };
        let operation =
            Operation { invoked: now, answered: None, action: action.clone(), told: None };
        let invocation = Invocation {
            key,
            operation,
            under: None,
            cancelled: false,
            kept: None,
            taken_up: None,
        };
        history.operations.push(invocation);
        let name = key_name(key);
        let Some(write) = write_of(name.clone(), action) else {
            let request = Request::Read(Read::Get { key: name });
            return self.call(Purpose::Read { operation: number }, request);
        };
        if self.outbox.is_some() {
            let key = IdempotencyKey::fresh(self.calendar.show(now).0, rng.random());
            return self.keep(plan, number, &key, &write, history);
        }
        let keyed = rng.random_ratio(plan.keyed_per_mille, 1_000);
        let Some(session) = session.filter(|_| !keyed) else {
            let key = draw_key(rng, self.calendar.show(now), number);
            let execute = execute(self.incarnation, ExecuteId::Key(key), &write);
            history.add_keyed(number, execute.clone());
            let purpose = Purpose::Execute { operation: number, seq: None };
            return self.call(purpose, Request::Execute(execute));
        };
        let (seq, id) = self.next_id(session);
        let purpose = Purpose::Execute { operation: number, seq: Some(seq) };
        self.call(purpose, Request::Execute(execute(self.incarnation, id, &write)))
    }

    /// Asks what became of a request, or cancels it: of its own, one under way, one that it is yet to
    /// send, one that was answered; or anybody's with a key.
    fn ask(&mut self, rng: &mut StdRng, history: &History) -> Option<u64> {
        let under_way = |call: &Call| match (&call.purpose, &call.request) {
            (Purpose::Execute { operation, .. }, Request::Execute(execute)) => {
                Some((Some(*operation), execute.clone()))
            }
            _ => None,
        };
        let (operation, execute) = match rng.random_range(0..8) {
            0 => match self.last_done.clone()? {
                Request::Execute(execute) => (None, execute),
                _ => return None,
            },
            1 => {
                let session = Session { id: self.session, opened_at: self.opened_at? };
                let (seq, first_unacked) = (Seq(self.next_seq), Seq(1));
                let id = ExecuteId::Session { session, seq, first_unacked };
                (None, execute(self.incarnation, id, &nothing()))
            }
            2..5 => self.calls.values().rev().find_map(under_way)?,
            _ => {
                let (operation, execute) = history.any_keyed(rng)?;
                (Some(*operation), execute.clone())
            }
        };
        let fingerprint = match rng.random_range(0..8) {
            0 => Some(Fingerprint(rng.random())),
            1..4 => Some(Fingerprint::of(&execute.operation)),
            _ => None,
        };
        let id: RequestId = execute.id.request()?;
        let (incarnation, first_unacked) = (execute.incarnation, Seq(1));
        let question = Question { incarnation, id, first_unacked, fingerprint };
        let cancels = rng.random_ratio(2, 3);
        let request = if cancels { Request::Cancel(question) } else { Request::Outcome(question) };
        Some(self.call(Purpose::Question { operation, left: 12 }, request))
    }

    /// Asks about the request that it began last, at once: the two race each other.
    pub fn race(&mut self, rng: &mut StdRng, plan: &Plan, history: &History) -> Option<u64> {
        let races = rng.random_ratio(plan.question_per_mille, 2_000);
        if races { self.ask(rng, history) } else { None }
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
            | Purpose::Question { .. }
            | Purpose::Scan
            | Purpose::Probe { .. } => None,
        });
        open.min().unwrap_or(newest)
    }

    /// Asks anybody whether the session lives, after a rest.
    pub fn wake(&mut self) -> Option<u64> {
        let session = Session { id: self.session, opened_at: self.opened_at? };
        let request = Request::KeepAlive { incarnation: self.incarnation, session };
        Some(self.call(Purpose::Probe { left: 4 }, request))
    }

    /// Asks everybody about a session that ended just now.
    pub fn doubt(&mut self) -> Option<u64> {
        let session = self.last_over.filter(|_| std::mem::take(&mut self.doubts))?;
        let request = Request::KeepAlive { incarnation: self.incarnation, session };
        Some(self.call(Purpose::Probe { left: 12 }, request))
    }

    /// Something that no client that keeps the rules sends.
    fn probe(&mut self, rng: &mut StdRng, plan: &Plan) -> Option<Request> {
        match rng.random_range(0..4) {
            // Once more, what was answered: the same answer, or none that executes it.
            0 => self.last_done.clone(),
            // Its id, with other content; but a named key may be forgotten, and then that would run.
            1 => match self.last_done.clone()? {
                Request::Execute(Execute { incarnation, id, .. }) if !is_named(&id) => {
                    Some(Request::Execute(execute(incarnation, id, &nothing())))
                }
                _ => None,
            },
            // A session that is over.
            2 => {
                let session = self.last_over?;
                Some(match rng.random_range(0..4) {
                    0 => Request::Close { incarnation: self.incarnation, session },
                    1 => Request::Open { incarnation: self.incarnation, session: session.id },
                    2 => Request::KeepAlive { incarnation: self.incarnation, session },
                    _ => {
                        let (seq, first_unacked) = (Seq(1_000_000), Seq(1_000_000));
                        let id = ExecuteId::Session { session, seq, first_unacked };
                        Request::Execute(execute(self.incarnation, id, &nothing()))
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
                let id = ExecuteId::Session { session, seq, first_unacked };
                Some(Request::Execute(execute(self.incarnation, id, &nothing())))
            }
        }
    }

    fn call(&mut self, purpose: Purpose, request: Request) -> u64 {
        self.next_call += 1;
        let call = Call { purpose, request, blocked: false, kept: None, held: false };
        self.calls.insert(self.next_call, call);
        self.next_call
    }

    /// Whether a call is sent to anybody, not to whom the client takes for the primary.
    pub fn is_probe(&self, number: u64) -> bool {
        let call = self.calls.get(&number);
        call.is_some_and(|call| matches!(call.purpose, Purpose::Probe { .. }))
    }

    /// The bytes to send (again); none when the call is done, or not to be sent yet. A probe or a
    /// question ends after a few times.
    pub fn send(&mut self, number: u64) -> Option<Request> {
        let oldest = Seq(self.first_unacked(self.next_seq));
        let call = self.calls.get_mut(&number).filter(|call| !call.held)?;
        if let Request::Execute(Execute { id: ExecuteId::Session { first_unacked, .. }, .. }) =
            &mut call.request
            && call.blocked
            && !matches!(call.purpose, Purpose::Probe { .. })
        {
            // The watermark of a probe, which nobody waits for, may have passed it.
            *first_unacked = oldest;
        }
        if let Purpose::Probe { left } | Purpose::Question { left, .. } = &mut call.purpose {
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
        let kept = self.calls.get(&number).and_then(|call| Some((call.purpose, call.kept?)));
        let end = ended(&answer);
        let taken = self.take_answer(number, answer, now, history);
        if let Some((Purpose::Execute { operation, .. }, kept)) = kept
            && !self.calls.contains_key(&number)
        {
            self.outbox.iter_mut().for_each(|outbox| outbox.done(kept));
            history.end_kept(operation, end);
        }
        taken
    }

    fn take_answer(
        &mut self,
        number: u64,
        answer: Answer,
        now: u64,
        history: &mut History,
    ) -> Taken {
        let Some(call) = self.calls.get_mut(&number) else { return Taken::Nothing };
        let purpose = call.purpose;
        if let (Purpose::Probe { .. }, false) = (purpose, is_invitation(&answer)) {
            self.calls.remove(&number);
            return Taken::Done;
        }
        let outcome = match answer {
            Answer::NotPrimary { primary, .. } => {
                if let Some(primary) = primary {
                    self.target = primary.parse().expect("addresses are numbers here");
                }
                return Taken::Nothing;
            }
            Answer::AskAgain => return Taken::Nothing,
            Answer::Refused(refusal) => return self.refused(number, &refusal, history),
            Answer::Opened { opened_at } => {
                self.opened_at = Some(opened_at);
                None
            }
            Answer::Closed => {
                self.calls.remove(&number);
                self.end_session();
                return Taken::Done;
            }
            Answer::Executed { reply, .. } => {
                self.last_done = Some(call.request.clone());
                Some(decode(&reply))
            }
            Answer::Read(outcome) => Some(outcome),
            Answer::Fate { fate: Fate::Done { reply }, .. } => Some(decode(&reply)),
            Answer::Fate { fate: Fate::Cancelled, .. } => {
                self.calls.remove(&number);
                return cancelled(purpose, history);
            }
            Answer::Alive
            | Answer::Fate { fate: Fate::Pending | Fate::NeverSeen, .. }
            | Answer::Sessions { .. }
            | Answer::Session(_)
            | Answer::Backup(_)
            | Answer::Status(_) => None,
        };
        self.calls.remove(&number);
        match (operation_of(purpose), outcome) {
            (Some(operation), Some(outcome)) => match history.tell(operation, now, outcome) {
                Ok(()) => Taken::Done,
                Err(finding) => Taken::Broken(finding),
            },
            _ => Taken::Done,
        }
    }

    /// A void id ends its session: what was under way in it stays unknown. A timed key may be
    /// forgotten, or come from the future, and a request may be cancelled. Anything else that is
    /// definite must not happen to a client that keeps the rules.
    fn refused(&mut self, number: u64, refusal: &Refusal, history: &mut History) -> Taken {
        let call = self.calls.get_mut(&number).expect("it is under way");
        let purpose = call.purpose;
        match (refusal.consequence(), refusal) {
            (Consequence::TryLater, _) => {
                call.blocked = true;
                Taken::Nothing
            }
            (_, Refusal::OtherIncarnation { current }) if *current > self.incarnation => {
                self.incarnation = *current;
                self.calls.remove(&number);
                self.end_session();
                Taken::OtherIncarnation { lost: 1 + self.give_up() }
            }
            (_, Refusal::OtherIncarnation { .. }) => {
                self.calls.remove(&number);
                Taken::OtherIncarnation { lost: 1 }
            }
            _ if matches!(purpose, Purpose::Question { .. }) => {
                self.calls.remove(&number);
                Taken::Done
            }
            (_, Refusal::SessionExpired) => {
                let closing = purpose == Purpose::Close;
                self.calls.remove(&number);
                self.end_session();
                let lost = 1 + self.give_up();
                if closing { Taken::Done } else { Taken::Expired { lost } }
            }
            (_, Refusal::Cancelled) => {
                self.calls.remove(&number);
                cancelled(purpose, history)
            }
            (_, Refusal::Forgotten | Refusal::Invalid(_)) if is_timed(&call.request) => {
                self.calls.remove(&number);
                Taken::Refused
            }
            (Consequence::IdVoid | Consequence::NeverRuns | Consequence::ThisCopy, _) => {
                Taken::Broken(format!("call {number} was refused: {refusal}"))
            }
        }
    }

    fn end_session(&mut self) {
        self.last_over = self.opened_at.map(|opened_at| Session { id: self.session, opened_at });
        self.opened_at = None;
        self.doubts = true;
        self.next_seq = 1;
        self.skipped.clear();
        self.session = SessionId(self.session.0.wrapping_add(1));
    }

    /// What is under way, but for what is in the outbox, stays unknown. Returns how much that is.
    fn give_up(&mut self) -> usize {
        let calls = self.calls.len();
        self.calls.retain(|_, call| call.kept.is_some());
        calls - self.calls.len()
    }
}

/// Whether an answer only says to ask again, or elsewhere.
fn is_invitation(answer: &Answer) -> bool {
    matches!(
        answer,
        Answer::NotPrimary { .. } | Answer::AskAgain | Answer::Refused(Refusal::Busy(_))
    )
}

/// The operation that a call is about.
fn operation_of(purpose: Purpose) -> Option<usize> {
    match purpose {
        Purpose::Execute { operation, .. } | Purpose::Read { operation } => Some(operation),
        Purpose::Question { operation, .. } => operation,
        Purpose::Open
        | Purpose::Close
        | Purpose::KeepAlive
        | Purpose::Scan
        | Purpose::Probe { .. } => None,
    }
}

fn cancelled(purpose: Purpose, history: &mut History) -> Taken {
    match operation_of(purpose).map(|operation| history.cancel(operation)) {
        Some(Err(finding)) => Taken::Broken(finding),
        Some(Ok(())) | None => Taken::Done,
    }
}

/// What an answer came to.
pub enum Taken {
    /// The call goes on.
    Nothing,
    /// The call is done.
    Done,
    /// The call is done, and what became of its request stays unknown.
    Refused,
    /// The session is gone, and with it calls whose outcome stays unknown.
    Expired {
        /// How many.
        lost: usize,
    },
    /// The cluster is in another incarnation, and calls of the one before stay unknown.
    OtherIncarnation {
        /// How many.
        lost: usize,
    },
    /// An answer that no client that keeps the rules may get.
    Broken(String),
}
