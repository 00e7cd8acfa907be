//! Every answer that leaves a node, held against the committed history.
//!
//! A copy of a request that a node takes is an operation of its own, from the step that takes it to
//! the step that answers it. Its answer must be true of the committed history at a moment between
//! the two (I10), and rest on nothing that is not committed (I7).

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use onlyonce_replica::{ReplyTo, WallTime};
use onlyonce_storage::{Index, Table};
use onlyonce_wire::client::{
    self as wire, Answer, Fingerprint, Outcome, Question, Read, Refusal, Request, RequestId,
};
use onlyonce_wire::{CallId, Incarnation, Session, limits};

use crate::fold::Life;
use crate::ledger::{Finding, Ledger};
use crate::requests::{Became, Fate};

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
    /// The world's time then.
    since: u64,
    /// What the node took for the date.
    wall: WallTime,
}

/// All copies that were not answered.
#[derive(Default)]
pub struct Copies {
    newest: u64,
    open: BTreeMap<u64, Copy>,
    /// The requests, and where they ran, whose first answer, one that is no replay, has left.
    answered: HashSet<(RequestId, Index)>,
}

impl Copies {
    /// A copy arrives at a node: where its answer goes is its own.
    pub fn arrive(&mut self, from: ReplyTo, request: Request) -> ReplyTo {
        self.newest += 1;
        let (seen, moment, since, wall) = (Index::ZERO, 0, 0, WallTime::default());
        self.open.insert(self.newest, Copy { from, request, seen, moment, since, wall });
        ReplyTo { connection: from.connection, call: CallId(self.newest) }
    }

    /// A node takes a copy up.
    pub fn take_up(&mut self, to: ReplyTo, ledger: &Ledger, wall: WallTime) {
        if let Some(copy) = self.open.get_mut(&to.call.0) {
            copy.seen = ledger.last();
            copy.moment = ledger.fold.moment();
            copy.since = ledger.fold.requests.times.now;
            copy.wall = wall;
        }
    }

    /// A node answers a copy; returns the call that it answers.
    pub fn answer(
        &mut self,
        to: ReplyTo,
        answer: &Answer,
        ledger: &mut Ledger,
    ) -> Result<ReplyTo, String> {
        let Some(copy) = self.open.remove(&to.call.0) else {
            return Err(format!("I10: a copy of a request is answered twice, now {answer:?}"));
        };
        let told = |error: String| format!("{error} ({:?} was told {answer:?})", copy.request);
        if copy.request.incarnation().is_some_and(|it| it != ledger.fold.incarnation) {
            is_refused(answer, ledger.fold.incarnation).map_err(told)?;
            return Ok(copy.from);
        }
        match tale(&copy, answer).map_err(told)? {
            Some(tale) => self.take_tale(&copy, tale, ledger).map_err(told)?,
            None => check(&copy, answer, ledger).map_err(told)?,
        }
        Ok(copy.from)
    }

    /// A restore ends all nodes: nobody answers what was open, and what came after `end` never was.
    pub fn restore(&mut self, end: Index) {
        self.open.clear();
        self.answered.retain(|(_, index)| *index <= end);
    }

    fn take_tale(&mut self, copy: &Copy, tale: Tale, ledger: &mut Ledger) -> Finding {
        let index = self.find(copy, &tale, ledger)?;
        let Tale { id, first, tells_how_long, kept_for_ms, .. } = tale;
        if first && is_from_the_future(copy, &id) {
            return Err("P5: it ran, though it comes from the future".to_owned());
        }
        if first {
            self.answered.insert((id.clone(), index));
        }
        if kept_for_ms.is_some() != (tells_how_long && matches!(id, RequestId::Key(_))) {
            return Err("P3: for how long is told of keys, and of nothing else".to_owned());
        }
        let Some(kept_for_ms) = kept_for_ms else { return Ok(()) };
        ledger.fold.requests.promise(&id, (index, copy.since), kept_for_ms)
    }

    /// Where that is committed which an answer tells of: not forgotten when the node took the copy;
    /// and if it is the first answer, then new since, and not yet told to anybody.
    fn find(&self, copy: &Copy, tale: &Tale, ledger: &Ledger) -> Result<Index, String> {
        let fates = ledger.fold.requests.fates(&tale.id);
        if fates.is_empty() {
            return Err("I7: it is answered, but nothing of it is committed".to_owned());
        }
        let fits = |fate: &&Fate| is_since(&tale.id, fate, copy.seen) && tale.tells_of(fate);
        let mut fitting = fates.iter().filter(fits).peekable();
        if fitting.peek().is_none() {
            return Err(format!("P3, I10: after {}, it came to {fates:?}", copy.seen));
        }
        let is_news = |fate: &&Fate| {
            fate.index > copy.seen && !self.answered.contains(&(tale.id.clone(), fate.index))
        };
        let fate = if tale.first { fitting.find(is_news) } else { fitting.last() };
        let fate = fate.ok_or_else(|| {
            format!("P3, I10: it ran before, {} was committed: {fates:?}", copy.seen)
        })?;
        Ok(fate.index)
    }
}

/// P5: a request of an earlier incarnation is refused for that, and told nothing else.
fn is_refused(answer: &Answer, now: Incarnation) -> Finding {
    match answer {
        Answer::NotPrimary { .. } | Answer::AskAgain => Ok(()),
        Answer::Refused(Refusal::OtherIncarnation { current }) if *current == now => Ok(()),
        _ => Err(format!("P5: it is of another incarnation than {now}")),
    }
}

/// What an answer tells of a request that ended.
struct Tale {
    id: RequestId,
    /// Its reply, and of which content; none if it was cancelled.
    reply: Option<(Bytes, Option<Fingerprint>)>,
    /// Whether this is the answer to the copy that ran.
    first: bool,
    /// Whether such an answer tells for how long a key is remembered, and for how long.
    tells_how_long: bool,
    kept_for_ms: Option<u64>,
}

impl Tale {
    fn tells_of(&self, fate: &Fate) -> bool {
        match (&fate.became, &self.reply) {
            (Became::Executed { fingerprint, reply }, Some((told, of))) => {
                reply == told && of.is_none_or(|of| of == *fingerprint)
            }
            (Became::Cancelled, None) => true,
            (Became::Executed { .. }, None) | (Became::Cancelled, Some(_)) => false,
        }
    }
}

fn tale(copy: &Copy, answer: &Answer) -> Result<Option<Tale>, String> {
    Ok(Some(match (&copy.request, answer) {
        (Request::Execute(execute), Answer::Executed { reply, replayed, kept_for_ms }) => {
            let id = execute.id.request().ok_or("I10: it has no id")?;
            let reply = Some((reply.clone(), Some(Fingerprint::of(&execute.operation))));
            Tale { id, reply, first: !replayed, tells_how_long: true, kept_for_ms: *kept_for_ms }
        }
        (Request::Execute(execute), Answer::Refused(Refusal::Cancelled)) => {
            let id = execute.id.request().ok_or("I10: it has no id")?;
            Tale { id, reply: None, first: false, tells_how_long: false, kept_for_ms: None }
        }
        (
            Request::Outcome(Question { id, fingerprint, .. })
            | Request::Cancel(Question { id, fingerprint, .. }),
            Answer::Fate { fate, kept_for_ms },
        ) => {
            let reply = match fate {
                wire::Fate::Done { reply } => Some((reply.clone(), *fingerprint)),
                wire::Fate::Cancelled => None,
                wire::Fate::Pending | wire::Fate::NeverSeen => return Ok(None),
            };
            let (id, kept_for_ms) = (id.clone(), *kept_for_ms);
            Tale { id, reply, first: false, tells_how_long: true, kept_for_ms }
        }
        _ => return Ok(None),
    }))
}

/// Whether a fate was not forgotten when `seen` was committed. What can never run anew keeps its fate
/// for ever.
fn is_since(id: &RequestId, fate: &Fate, seen: Index) -> bool {
    let is_named = matches!(id, RequestId::Key(key) if key.time_ms().is_none());
    !is_named || fate.forgotten.is_none_or(|(at, _)| at > seen)
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
        | (Request::Outcome(_), Answer::Fate { fate: wire::Fate::Pending, .. })
        | (Request::Status, Answer::Status(_))
        // Backups are judged whole, by the operator.
        | (Request::Backup { .. }, Answer::Backup(_) | Answer::Refused(Refusal::Invalid(_))) => {
            Ok(())
        }
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
        (Request::Execute(execute), Answer::Refused(refusal)) => {
            let id = execute.id.request().ok_or("I10: it has no id")?;
            let fingerprint = Some(Fingerprint::of(&execute.operation));
            check_refusal(copy, &id, fingerprint, refusal, ledger)
        }
        (
            Request::Outcome(Question { id, fingerprint, .. })
            | Request::Cancel(Question { id, fingerprint, .. }),
            Answer::Refused(refusal),
        ) => check_refusal(copy, id, *fingerprint, refusal, ledger),
        (
            Request::Outcome(question),
            Answer::Fate { fate: wire::Fate::NeverSeen, kept_for_ms: None },
        ) => is_new(copy, &question.id, ledger),
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

fn check_refusal(
    copy: &Copy,
    id: &RequestId,
    fingerprint: Option<Fingerprint>,
    refusal: &Refusal,
    ledger: &Ledger,
) -> Finding {
    let requests = &ledger.fold.requests;
    match (id, refusal) {
        (_, Refusal::Mismatch) => {
            let asked = fingerprint.ok_or("I10: any content is as good as another")?;
            let is_other = |fate: &&Fate| match fate.became {
                Became::Executed { fingerprint, .. } => fingerprint != asked,
                Became::Cancelled => false,
            };
            let mut others = requests.fates(id).iter().filter(is_other);
            if others.any(|fate| is_since(id, fate, copy.seen)) {
                return Ok(());
            }
            Err("I10: no other request has this id".to_owned())
        }
        (RequestId::Seq { session, seq }, Refusal::Stale { first_unacked }) => {
            match ledger.fold.life_of(*session) {
                Some(life) if seq < first_unacked && first_unacked.0 <= life.first_unacked => {
                    Ok(())
                }
                life => Err(format!("I10: it is not stale in {life:?}")),
            }
        }
        (RequestId::Seq { session, .. }, Refusal::SessionExpired) => is_over(ledger, *session),
        (RequestId::Key(key), Refusal::Forgotten) => {
            let (time, floor) = (key.time_ms(), requests.known_from_ms());
            let is_remembered = requests.fates(id).iter().any(|fate| fate.forgotten.is_none());
            if time.is_some_and(|time| time < floor) && !is_remembered {
                return Ok(());
            }
            Err(format!("I10: it is not forgotten: {time:?}, and the floor is {floor}"))
        }
        (RequestId::Key(_), Refusal::Invalid(_)) if is_from_the_future(copy, id) => Ok(()),
        _ => Err("I10: no such refusal is possible".to_owned()),
    }
}

/// Whether a timed key is too far ahead of the calendar of the node that took the copy.
fn is_from_the_future(copy: &Copy, id: &RequestId) -> bool {
    let latest = copy.wall.0 + limits::KEY_AHEAD_MAX.as_millis() as u64;
    matches!(id, RequestId::Key(key) if key.time_ms().is_some_and(|time| time > latest))
}

/// A request was new at some moment between what was committed before and now.
fn is_new(copy: &Copy, id: &RequestId, ledger: &Ledger) -> Finding {
    for moment in copy.moment..=ledger.fold.moment() {
        if ledger.fold.was_new(id, moment)? {
            return Ok(());
        }
    }
    let fates = ledger.fold.requests.fates(id);
    Err(format!("I10: it was new at no moment from {} to {}: {fates:?}", copy.seen, ledger.last()))
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
