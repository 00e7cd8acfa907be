//! What happened in a world, in lines that an engineer can read.

use std::collections::VecDeque;

use onlyonce_replica::{PeerMessage, Piece};
use onlyonce_wire::client::{Answer, Execute, ExecuteId, Operation, Outcome, Read, Request};
use onlyonce_wire::codec;
use onlyonce_wire::status::Role;

/// How many lines a finding shows.
pub const LINES: usize = 40;

/// Where the lines go.
#[derive(Default)]
pub enum Timeline {
    /// Nowhere: they are not even made.
    #[default]
    Off,
    /// To standard output.
    Print,
    /// Into memory, the last of them.
    Keep(VecDeque<String>),
}

impl Timeline {
    /// Whether lines are made.
    pub fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Adds a line.
    pub fn add(&mut self, now: u64, text: &str) {
        let line = format!("{:>12.6} {text}", now as f64 / 1e9);
        match self {
            Self::Off => {}
            Self::Print => println!("{line}"),
            Self::Keep(lines) => {
                if lines.len() == LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        }
    }
}

/// What a timeline tells of a node when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its part in the newest view that it knows.
    pub role: Role,
    /// That view.
    pub view: u64,
    /// Whether it takes requests.
    pub serving: bool,
    /// What it knows to be committed.
    pub committed: u64,
    /// The last record of its log that is durable.
    pub prepared: u64,
}

impl Standing {
    /// What is new since `before`.
    pub fn since(self, before: Option<Self>) -> Option<String> {
        let Self { role, view, serving, committed, prepared } = self;
        let part = match role {
            Role::Starting => "is starting",
            Role::Primary => "is the primary",
            Role::Backup => "is a backup",
            Role::Learner => "is a learner",
        };
        let logs = format!("log up to {prepared}, committed {committed}");
        let Some(before) = before else { return Some(format!("{part}, view {view}; {logs}")) };
        if (before.role, before.view) != (role, view) {
            return Some(format!("{part} in view {view}; {logs}"));
        }
        if before.serving != serving {
            let text = if serving { "serves" } else { "serves no longer" };
            return Some(format!("{text} in view {view}; {logs}"));
        }
        if before.prepared > prepared {
            return Some(format!("cut its log: it ends at {prepared}, not {}", before.prepared));
        }
        (before.committed != committed).then(|| format!("committed {committed} of {prepared}"))
    }
}

/// A message in words; none for one that tells a reader nothing.
pub fn message(message: &PeerMessage) -> Option<String> {
    Some(match message {
        PeerMessage::Heartbeat { .. } | PeerMessage::Echo { .. } => return None,
        PeerMessage::Append { view, previous, records, committed, .. } => format!(
            "append in view {view}: {} records after {} of view {}, committed {committed}",
            records.len(),
            previous.index,
            previous.view
        ),
        PeerMessage::AppendOk { view, matched, .. } => {
            format!("matched up to {matched} in view {view}")
        }
        PeerMessage::AppendMismatch { view, previous, committed, .. } => {
            format!("no match at {previous} in view {view}, committed {committed}")
        }
        PeerMessage::HoldsCommitted { view, index } => {
            format!("another {index} is committed here (view {view})")
        }
        PeerMessage::Differs { index, .. } => format!("your tables are damaged at {index}"),
        PeerMessage::Join { committed, .. } => format!("feed me from {committed} on"),
        PeerMessage::FetchTail { view, after } => {
            format!("what do you hold of view {view} after {}?", after.index)
        }
        PeerMessage::Tail { view, after, records } => {
            format!("{} records of view {view} after {}", records.len(), after.index)
        }
        PeerMessage::NewerView { register, .. } => {
            format!("there is view {} of {}", register.view, register.primary.name)
        }
        PeerMessage::Snapshot { view, number, piece, .. } => match piece {
            Piece::Effects(bytes) => {
                format!("snapshot in view {view}: piece {number} of {} bytes", bytes.len())
            }
            Piece::End(end) => {
                format!("snapshot in view {view}: piece {number} ends it at {}", end.index)
            }
        },
        PeerMessage::SnapshotOk { number, .. } => format!("snapshot's piece {number} is here"),
    })
}

/// A request in words.
pub fn request(request: &Request) -> String {
    match request {
        Request::Open { session, .. } => format!("open session {session}"),
        Request::Close { session, .. } => format!("close session {}", session.id),
        Request::KeepAlive { session, .. } => format!("keep session {} alive", session.id),
        Request::Execute(Execute { id, operation, .. }) => {
            let what = codec::decode::<Operation, 65_536>(operation);
            let what = what.map_or_else(|error| error.to_string(), |it| format!("{it:?}"));
            match id {
                ExecuteId::Session { seq, first_unacked, .. } => {
                    format!("execute seq {seq} (all below {first_unacked} seen): {what}")
                }
                ExecuteId::Key(key) => format!("execute key {key}: {what}"),
                ExecuteId::Anonymous => format!("execute: {what}"),
            }
        }
        Request::Read(Read::Get { key }) => format!("get {}", key.escape_ascii()),
        Request::Read(Read::Scan { .. }) => "scan".to_owned(),
        Request::Outcome(question) => format!("outcome of {:?}", question.id),
        Request::Cancel(question) => format!("cancel {:?}", question.id),
        Request::Sessions { .. } => "list sessions".to_owned(),
        Request::Session(session) => format!("show session {session}"),
        Request::Status => "status".to_owned(),
        Request::Backup { number, .. } => format!("piece {number} of a backup"),
    }
}

/// An answer in words.
pub fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Opened { opened_at } => format!("opened at {opened_at}"),
        Answer::Closed => "closed".to_owned(),
        Answer::Alive => "alive".to_owned(),
        Answer::Executed { reply, replayed, kept_for_ms } => {
            let outcome = codec::decode::<Outcome, 65_536>(reply);
            let outcome = outcome.map_or_else(|error| error.to_string(), |it| format!("{it:?}"));
            let how = if *replayed { "executed before" } else { "executed" };
            let kept = kept_for_ms.map(|ms| format!(", kept for {ms} ms"));
            format!("{how}: {outcome}{}", kept.unwrap_or_default())
        }
        Answer::Read(outcome) => format!("read {outcome:?}"),
        Answer::Fate { fate, .. } => format!("fate: {fate:?}"),
        Answer::Sessions { sessions, .. } => format!("{} sessions", sessions.len()),
        Answer::Session(session) => format!("session: {session:?}"),
        Answer::Status(_) => "status".to_owned(),
        Answer::Refused(refusal) => format!("refused: {refusal}"),
        Answer::NotPrimary { view, .. } => format!("not the primary (view {view})"),
        Answer::AskAgain => "ask again".to_owned(),
        Answer::Backup(_) => "a piece of a backup".to_owned(),
    }
}
