//! A lone node in memory, and its requests: for tests of the duplicate table.

#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_replica::{
    Config, Duplicates, Effect, Event, Mode, Moment, Replica, ReplyTo, WallTime,
};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{Checkpointer, LogWriter, Options, open};
use onlyonce_wire::authority::Member;
use onlyonce_wire::client::{
    Answer, Execute, ExecuteId, Operation, Outcome, Read, Refusal, Request, Write,
};
use onlyonce_wire::{
    CallId, IdempotencyKey, Incarnation, Seq, Session, SessionId, StoreId, codec, limits,
};

/// What its calendar says at first.
pub const WALL: WallTime = WallTime(1_700_000_000_000);

/// A lone node whose flushes take place when the test says so.
pub struct Solo {
    disk: MemoryDisk,
    pub replica: Replica,
    log: LogWriter,
    checkpointer: Checkpointer,
    flushes: VecDeque<Effect>,
    pub replies: Vec<(u64, Answer)>,
    pub now: Moment,
    pub wall: WallTime,
    call: u64,
}

impl Solo {
    pub fn new() -> Self {
        Self::open(MemoryDisk::new())
    }

    /// A new one, whose calendar says this at first.
    pub fn new_at(wall: WallTime) -> Self {
        Self::open_at(MemoryDisk::new(), Duplicates::Durable, wall)
    }

    pub fn open(disk: MemoryDisk) -> Self {
        Self::open_at(disk, Duplicates::Durable, WALL)
    }

    fn open_at(disk: MemoryDisk, duplicates: Duplicates, wall: WallTime) -> Self {
        let opened = open(disk.disk(), &Options::new(7)).expect("opens");
        let (store, name, none) = (StoreId(7), "n1".to_owned(), String::new());
        let me = Member { store, name, client_address: none.clone(), peer_address: none };
        let checkpoint_bytes = 1 << 20;
        let config = Config { checkpoint_bytes, duplicates, ..Config::new(me, Mode::Lone, 1) };
        let now = Moment(1_000_000_000);
        let (replica, effects) =
            Replica::new(config, opened.state, &opened.state_bytes, now).expect("starts");
        let mut solo = Self {
            disk,
            replica,
            log: opened.log,
            checkpointer: opened.checkpointer,
            flushes: VecDeque::new(),
            replies: Vec::new(),
            now,
            wall,
            call: 0,
        };
        solo.sort(effects);
        solo.flush();
        solo.tick();
        solo.flush();
        assert!(solo.replica.status().serving, "a lone node serves at once");
        solo
    }

    /// What a kill leaves behind, opened again.
    pub fn reopen(self) -> Self {
        self.reopen_as(Duplicates::Durable)
    }

    /// As [`reopen`](Self::reopen), by a node that keeps its duplicate table so.
    pub fn reopen_as(self, duplicates: Duplicates) -> Self {
        let (disk, wall) = (self.disk.clone(), self.wall);
        drop(self);
        disk.crash(1);
        Self::open_at(disk, duplicates, wall)
    }

    /// Time passes, with a tick each minute; the calendar goes on as well.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            let step = end.since(self.now).min(Duration::from_secs(60));
            self.now = self.now.after(step);
            self.wall = WallTime(self.wall.0 + step.as_millis() as u64);
            self.tick();
            self.flush();
        }
    }

    pub fn tick(&mut self) {
        self.give(Event::Tick(self.wall));
    }

    pub fn give(&mut self, event: Event) {
        let effects = self.replica.step(self.now, event);
        self.sort(effects);
    }

    fn sort(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Reply { to, answer } => self.replies.push((to.call.0, answer)),
                Effect::Persist(_) | Effect::Save { .. } | Effect::Checkpoint(_) => {
                    self.flushes.push_back(effect);
                }
                Effect::Release(_) => {}
                other => panic!("a lone node asks for {other:?}"),
            }
        }
    }

    pub fn flush(&mut self) {
        self.give(Event::Drained);
        while let Some(effect) = self.flushes.pop_front() {
            let event = match effect {
                Effect::Persist(record) => {
                    let index = record.index;
                    self.log.append(&[record]).expect("append");
                    Event::Persisted { index }
                }
                Effect::Save { state } => {
                    self.log.save(&state).expect("save");
                    Event::Saved
                }
                Effect::Checkpoint(generation) => {
                    Event::Checkpointed(self.checkpointer.fold(&generation, || {}).expect("fold"))
                }
                other => unreachable!("{other:?} is no flush"),
            };
            self.give(event);
        }
    }

    /// Asks without waiting; returns the call.
    pub fn ask(&mut self, request: Request) -> u64 {
        self.call += 1;
        let from = ReplyTo { connection: 1, call: CallId(self.call) };
        self.give(Event::Request { from, request });
        self.call
    }

    pub fn answer_to(&mut self, call: u64) -> Option<Answer> {
        let at = self.replies.iter().position(|(answered, _)| *answered == call)?;
        Some(self.replies.remove(at).1)
    }

    /// Asks, flushes, and returns the answer.
    pub fn call(&mut self, request: Request) -> Answer {
        let call = self.ask(request);
        self.flush();
        self.answer_to(call).expect("an answer after the flush")
    }

    pub fn session(&mut self, id: u128) -> Session {
        let session = SessionId(id);
        match self.call(Request::Open { incarnation: Incarnation(1), session }) {
            Answer::Opened { opened_at } => Session { id: session, opened_at },
            other => panic!("opening a session: {other:?}"),
        }
    }

    pub fn run(&mut self, operation: &Operation) -> Outcome {
        let key = format!("once-{}", self.call);
        outcome(&self.call(keyed(&key, operation))).0
    }

    pub fn get(&mut self, key: &str) -> Option<String> {
        match self.call(Request::Read(Read::Get { key: text(key) })) {
            Answer::Read(Outcome::Value(value)) => {
                value.map(|value| String::from_utf8(value.to_vec()).expect("text"))
            }
            other => panic!("a get: {other:?}"),
        }
    }
}

pub fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn incr(key: &str, by: i64) -> Operation {
    Operation::Write(Write::Incr { key: text(key), by })
}

pub fn put(key: &str, value: &str) -> Write {
    Write::Put { key: text(key), value: text(value) }
}

pub fn request(session: Session, seq: u64, first_unacked: u64, operation: &Operation) -> Request {
    let (seq, first_unacked) = (Seq(seq), Seq(first_unacked));
    execute(ExecuteId::Session { session, seq, first_unacked }, operation)
}

pub fn keyed(key: &str, operation: &Operation) -> Request {
    with_key(IdempotencyKey::new(text(key)).expect("a key"), operation)
}

pub fn with_key(key: IdempotencyKey, operation: &Operation) -> Request {
    execute(ExecuteId::Key(key), operation)
}

pub fn anonymous(operation: &Operation) -> Request {
    execute(ExecuteId::Anonymous, operation)
}

fn execute(id: ExecuteId, operation: &Operation) -> Request {
    let operation = codec::encode(operation).into();
    Request::Execute(Execute { incarnation: Incarnation(1), id, operation })
}

pub fn outcome(answer: &Answer) -> (Outcome, bool) {
    match answer {
        Answer::Executed { reply, replayed, .. } => (
            codec::decode::<Outcome, { limits::REPLY_BYTES_MAX }>(reply).expect("an outcome"),
            *replayed,
        ),
        other => panic!("not executed: {other:?}"),
    }
}

pub fn refusal(answer: Answer) -> Refusal {
    match answer {
        Answer::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
