//! Every answer that leaves a node, held against the committed history.
//!
//! A copy of a request that a node takes is an operation of its own, from the step that takes it to
//! the step that answers it. Its answer must be true of the committed history at a moment between
//! the two (I10), and rest on nothing that is not committed (I7).

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use onlyonce_replica::ReplyTo;
use onlyonce_storage::{Index, Table};
use onlyonce_wire::client::{
    Answer, Execute, ExecuteId, Fingerprint, Outcome, Read, Refusal, Request,
};
use onlyonce_wire::{CallId, Session};

use crate::fold::{Executed, Life};
use crate::ledger::{Finding, Ledger};

/// A copy of a request, on its way to a node or with it.
pub struct Copy {
    /// The client that sent it, and the call.
    pub from: ReplyTo,
    /// What it asks.
    pub request: Request,
    /// What was committed when the node took it.
    seen: Index,
    /// The state that this came to.
    moment: u64,
}

/// All copies that were not answered.
#[derive(Default)]
pub struct Copies {
    newest: u64,
    open: BTreeMap<u64, Copy>,
    /// The requests whose first answer, one that is no replay, has left.
    answered: HashSet<ExecuteId>,
}

impl Copies {
    /// A copy arrives at a node: where its answer goes is its own.
    pub fn arrive(&mut self, from: ReplyTo, request: Request) -> ReplyTo {
        self.newest += 1;
        self.open.insert(self.newest, Copy { from, request, seen: Index::ZERO, moment: 0 });
        ReplyTo { connection: from.connection, call: CallId(self.newest) }
    }

    /// A node takes a copy up.
    pub fn take_up(&mut self, to: ReplyTo, ledger: &Ledger) {
        if let Some(copy) = self.open.get_mut(&to.call.0) {
            copy.seen = ledger.last();
            copy.moment = ledger.fold.moment();
        }
    }

    /// A node answers a copy; returns the call that it answers.
    pub fn answer(
        &mut self,
        to: ReplyTo,
        answer: &Answer,
        ledger: &Ledger,
    ) -> Result<ReplyTo, String> {
        let Some(copy) = self.open.remove(&to.call.0) else {
            return Err(format!("I10: a copy of a request is answered twice, now {answer:?}"));
        };
        if let Request::Execute(Execute { id, .. }) = &copy.request
            && let Answer::Executed { replayed: false, .. } = answer
            && !self.answered.insert(id.clone())
        {
            return Err(format!("P3: {id:?} has two first answers"));
        }
        let told = |error: String| format!("{error} ({:?} was told {answer:?})", copy.request);
        check(&copy, answer, ledger).map_err(told)?;
        Ok(copy.from)
    }
}

fn check(copy: &Copy, answer: &Answer, ledger: &Ledger) -> Finding {
    match (&copy.request, answer) {
        // These promise nothing.
        (
            _,
            Answer::NotPrimary { .. }
            | Answer::AskAgain
            | Answer::Refused(Refusal::Busy(_) | Refusal::WindowFull { .. }),
        )
        | (Request::Status, Answer::Status(_)) => Ok(()),
        (Request::Open { session, .. }, Answer::Opened { opened_at }) => {
            let session = Session { id: *session, opened_at: *opened_at };
            is_open(ledger, session, copy.seen)
        }
        (Request::KeepAlive { session, .. }, Answer::Alive) => is_open(ledger, *session, copy.seen),
        (Request::Close { session, .. }, Answer::Closed) => match ledger.fold.life_of(*session) {
            Some(Life { ended: Some(_), .. }) => Ok(()),
            life => Err(format!("I10: it is closed, but in the history {life:?}")),
        },
        (
            Request::Close { session, .. } | Request::KeepAlive { session, .. },
            Answer::Refused(Refusal::SessionExpired),
        ) => is_over(ledger, *session),
        (Request::Execute(execute), Answer::Executed { reply, replayed, .. }) => {
            check_executed(copy, execute, reply, *replayed, ledger)
        }
        (Request::Execute(execute), Answer::Refused(refusal)) => {
            check_refusal(execute, refusal, ledger)
        }
        (Request::Read(read), Answer::Read(outcome)) => check_read(copy, read, outcome, ledger),
        _ => Err("I10: no such answer is possible".to_owned()),
    }
}

/// A session was open at some moment since `seen`.
fn is_open(ledger: &Ledger, session: Session, seen: Index) -> Finding {
    match ledger.fold.life_of(session) {
        Some(life) if life.ended.is_none_or(|ended| ended > seen) => Ok(()),
        life => {
            Err(format!("I10: the session is not open, but {life:?}, and {seen} was committed"))
        }
    }
}

/// A session is not open, and so never will be.
fn is_over(ledger: &Ledger, session: Session) -> Finding {
    match ledger.fold.life_of(session) {
        Some(Life { ended: None, .. }) => Err("I10: the session is open".to_owned()),
        _ => Ok(()),
    }
}

fn check_executed(
    copy: &Copy,
    execute: &Execute,
    reply: &Bytes,
    replayed: bool,
    ledger: &Ledger,
) -> Finding {
    let Some(Executed { index, fingerprint, reply: saved }) = ledger.fold.executed(&execute.id)
    else {
        return Err("I7: it is answered, but nothing of it is committed".to_owned());
    };
    if *fingerprint != Fingerprint::of(&execute.operation) {
        return Err("I10: it is answered with the reply to another request".to_owned());
    }
    if saved != reply {
        return Err(format!("P3: the reply that was saved is {}", saved.escape_ascii()));
    }
    if !replayed && *index <= copy.seen {
        return Err(format!("I10: it ran at {index} already, but {} was committed", copy.seen));
    }
    Ok(())
}

fn check_refusal(execute: &Execute, refusal: &Refusal, ledger: &Ledger) -> Finding {
    match (&execute.id, refusal) {
        (_, Refusal::Mismatch) => match ledger.fold.executed(&execute.id) {
            Some(ran) if ran.fingerprint != Fingerprint::of(&execute.operation) => Ok(()),
            ran => Err(format!("I10: no other request has this id, but {ran:?}")),
        },
        (ExecuteId::Session { session, seq, .. }, Refusal::Stale { first_unacked }) => match ledger
            .fold
            .life_of(*session)
        {
            Some(life) if seq < first_unacked && first_unacked.0 <= life.first_unacked => Ok(()),
            life => Err(format!("I10: it is not stale in {life:?}")),
        },
        (ExecuteId::Session { session, .. }, Refusal::SessionExpired) => is_over(ledger, *session),
        _ => Err("I10: no such refusal is possible".to_owned()),
    }
}

/// A read saw the rows as they were at one moment between what was committed before and now.
fn check_read(copy: &Copy, read: &Read, outcome: &Outcome, ledger: &Ledger) -> Finding {
    let was_so = (copy.moment..=ledger.fold.moment()).any(|moment| {
        let was = match read {
            Read::Get { key } => Outcome::Value(ledger.fold.value_at(Table::Kv, key, moment)),
            Read::Scan { .. } => {
                Outcome::Rows { rows: ledger.fold.rows_at(Table::Kv, moment), next: None }
            }
        };
        was == *outcome
    });
    if was_so {
        return Ok(());
    }
    Err(format!("I10: that was so at no moment from {} to {}", copy.seen, ledger.last()))
}
