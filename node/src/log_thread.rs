//! The one thread that writes the log and its head, in the order in which the core asked.
//!
//! - Group commit: records that were queued during the last flush go into one append.
//! - The head is synced within [`HEAD_SYNC`] of a commit.
//! - Old records are removed a bounded step at a time, between commits.
//! - Any error ends the process: what is on disk is unknown then, and is never guessed (P6).

use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use onlyonce_replica::Event;
use onlyonce_storage::{Index, LogWriter, Record};

use crate::core_thread::CoreQueue;
use crate::counters::Counters;
use crate::exit;
use crate::watchdog::Watched;

const HEAD_SYNC: Duration = Duration::from_millis(100);
/// The most records in one append. It bounds how long the first of them waits for the last.
const GROUP_RECORDS_MAX: usize = 256;

enum Command {
    Persist(Arc<Record>),
    Cut { after: Index, state: Bytes },
    Save { state: Bytes },
    Prune { upto: Index },
    Finish,
}

/// The core's way to the log.
#[derive(Clone)]
pub struct LogQueue(Sender<Command>);

impl LogQueue {
    /// A queue, and its end for [`LogThread`].
    pub fn new() -> (Self, LogInbox) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), LogInbox(receiver))
    }

    /// Makes a record durable; ends in `Event::Persisted`.
    pub fn persist(&self, record: Arc<Record>) {
        self.put(Command::Persist(record));
    }

    /// Removes what follows `after` and saves `state`; ends in `Event::Saved`.
    pub fn cut(&self, after: Index, state: Bytes) {
        self.put(Command::Cut { after, state });
    }

    /// Saves `state`; ends in `Event::Saved`.
    pub fn save(&self, state: Bytes) {
        self.put(Command::Save { state });
    }

    /// Removes what is not after `upto`, when there is time.
    pub fn prune(&self, upto: Index) {
        self.put(Command::Prune { upto });
    }

    /// Ends the thread after what is queued, the head synced.
    pub fn finish(&self) {
        self.put(Command::Finish);
    }

    fn put(&self, command: Command) {
        // Fails only when the log thread has ended: the process is ending.
        let _ = self.0.send(command);
    }
}

/// The log thread's end of its queue.
pub struct LogInbox(Receiver<Command>);

/// The log and those who are told about it.
pub struct LogThread {
    pub log: LogWriter,
    pub inbox: LogInbox,
    pub core: Arc<CoreQueue>,
    pub counters: Arc<Counters>,
    pub watched: Arc<Watched>,
}

/// What is left to do when no command waits.
#[derive(Default)]
struct Chores {
    /// When the first commit that the synced head does not know was made.
    head_behind_since: Option<Instant>,
    prune_upto: Option<Index>,
}

impl LogThread {
    /// Carries out commands until it is told to finish.
    pub fn run(mut self) {
        let mut chores = Chores::default();
        let mut next = None;
        loop {
            let command = match next.take() {
                Some(command) => Some(command),
                None => self.wait(&chores),
            };
            match command {
                Some(Command::Persist(record)) => next = self.append(record, &mut chores),
                Some(Command::Cut { after, state }) => {
                    self.watch("cut the log", |log| log.cut(after, &state));
                    chores.head_behind_since = None;
                    self.core.send(Event::Saved);
                }
                Some(Command::Save { state }) => {
                    self.watch("save the view", |log| log.save(&state));
                    chores.head_behind_since = None;
                    self.core.send(Event::Saved);
                }
                Some(Command::Prune { upto }) => chores.prune_upto = Some(upto),
                Some(Command::Finish) => {
                    self.watch("sync the head", LogWriter::sync_head);
                    return;
                }
                None => {}
            }
            self.do_chores(&mut chores);
        }
    }

    /// The next command; none when a chore is due first.
    fn wait(&self, chores: &Chores) -> Option<Command> {
        let patience = match (chores.prune_upto, chores.head_behind_since) {
            (Some(_), _) => Duration::ZERO,
            (None, Some(since)) => HEAD_SYNC.saturating_sub(since.elapsed()),
            (None, None) => Duration::MAX,
        };
        if patience == Duration::MAX {
            // The core lives as long as the process; without it there is nothing more to write.
            return Some(self.inbox.0.recv().unwrap_or(Command::Finish));
        }
        match self.inbox.0.recv_timeout(patience) {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Command::Finish),
        }
    }

    /// Appends `first` and the records queued behind it; returns the command that follows them.
    fn append(&mut self, first: Arc<Record>, chores: &mut Chores) -> Option<Command> {
        let mut records = vec![first];
        let mut next = None;
        while records.len() < GROUP_RECORDS_MAX {
            match self.inbox.0.try_recv() {
                Ok(Command::Persist(record)) => records.push(record),
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let began = Instant::now();
        self.watch("append to the log", |log| log.append(&records));
        self.counters.flushed(began.elapsed());
        self.counters.records.add(records.len() as u64);
        chores.head_behind_since.get_or_insert_with(Instant::now);
        let index = records.last().expect("at least the first").index;
        self.core.send(Event::Persisted { index });
        next
    }

    fn do_chores(&mut self, chores: &mut Chores) {
        if chores.head_behind_since.is_some_and(|since| since.elapsed() >= HEAD_SYNC) {
            self.watch("sync the head", LogWriter::sync_head);
            chores.head_behind_since = None;
        }
        if let Some(upto) = chores.prune_upto {
            let more = self.watch("prune the log", |log| log.prune(upto));
            if !more {
                chores.prune_upto = None;
            }
        }
    }

    /// Carries `write` out under the watchdog's eyes; any error is final.
    fn watch<T, E: Display>(
        &mut self,
        what: &str,
        write: impl FnOnce(&mut LogWriter) -> Result<T, E>,
    ) -> T {
        let _underway = self.watched.begin();
        write(&mut self.log).unwrap_or_else(|error| {
            exit::stop(&format!(
                "could not {what}: {error}. What is on disk is unknown now, so nothing more is \
                 acknowledged"
            ))
        })
    }
}
