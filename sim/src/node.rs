//! One simulated node: a disk that stays, and a process that comes and goes.

use std::collections::VecDeque;
use std::sync::Arc;

use onlyonce_replica::{Config, Effect, Event, Mode, Moment, Replica, Timing};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{
    Checkpointer, Incoming, Index, LogWriter, Mark, OpenError, Options, Record, StorageError, open,
};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::Member;

use crate::ledger::{Finding, Ledger};
use crate::plan::Plan;
use crate::time::Span;

/// A node.
pub struct Node {
    /// Its place among the nodes, which is also its address.
    pub at: usize,
    /// The store on its disk.
    pub store: StoreId,
    /// Its disk.
    pub disk: MemoryDisk,
    /// Its process, while it runs.
    pub process: Option<Process>,
    /// Counts its processes, and tells events of a dead one.
    pub generation: u64,
    /// Its clock against the world's: an offset, and a rate in thousandths of a thousandth.
    pub clock: Clock,
    /// The snapshot that took the place of its store, until that is opened.
    pub replaced: Option<Mark>,
    /// Events that wait while it stands still.
    pub paused: Option<VecDeque<Event>>,
}

/// A clock that runs at its own rate from its own beginning.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it showed at the world's beginning.
    pub offset: u64,
    /// Its ticks in a million of the world's.
    pub rate: u64,
}

impl Clock {
    /// What the clock shows.
    pub fn show(self, world: u64) -> Moment {
        let ticks = u128::from(world) * u128::from(self.rate) / 1_000_000;
        Moment(self.offset + u64::try_from(ticks).expect("a simulation is short"))
    }
}

/// A running process.
pub struct Process {
    /// The code under test.
    pub replica: Replica,
    log: LogWriter,
    checkpointer: Checkpointer,
    /// What the log writer has still to do.
    pub queue: VecDeque<Effect>,
    /// Whether it is at work on the front of the queue.
    pub flushing: bool,
    /// What the checkpoint thread has still to do.
    pub work: VecDeque<Effect>,
    /// Whether it is at work on the front of that queue.
    pub working: bool,
    /// The store that is being built beside this one.
    incoming: Option<Incoming>,
    /// Whether a `Drained` is on its way.
    pub draining: bool,
    /// Up to here its committed records were checked.
    pub checked: Index,
}

impl Node {
    /// A node with an empty disk.
    pub fn new(at: usize, store: StoreId, clock: Clock) -> Self {
        let disk = MemoryDisk::new();
        Self { at, store, disk, process: None, generation: 0, clock, replaced: None, paused: None }
    }

    /// How others know it.
    pub fn member(&self) -> Member {
        Member {
            store: self.store,
            name: format!("n{}", self.at + 1),
            client_address: self.at.to_string(),
            peer_address: self.at.to_string(),
        }
    }

    /// Opens the store and starts a process on it.
    pub fn start(
        &mut self,
        plan: &Plan,
        seed: u128,
        now: u64,
        ledger: &mut Ledger,
    ) -> Result<Vec<Effect>, String> {
        let mut options = Options::new(self.store.0);
        options.fold_pause = std::time::Duration::ZERO;
        let opened = open(self.disk.disk(), &options)
            .map_err(|error| format!("n{} cannot open its store: {error}", self.at + 1))?;
        if let Some(end) = self.replaced.take() {
            ledger.replace(self.store, end)?;
        }
        ledger.reopen(self.store, &opened.state)?;
        let checked = opened.state.committed();
        let mode = match plan.nodes {
            1 => Mode::Lone,
            _ => Mode::Cluster { bootstrap: self.at == 0 },
        };
        let config = Config {
            me: self.member(),
            mode,
            min_copies: plan.min_copies,
            timing: timing(plan),
            seed,
            log_tail_bytes: plan.log_tail_bytes,
            log_pin_bytes: plan.log_pin_bytes,
            piece_bytes: plan.piece_bytes,
            checkpoint_bytes: plan.checkpoint_bytes,
            limits: onlyonce_replica::Limits::default(),
        };
        let moment = self.clock.show(now);
        let (replica, effects) = Replica::new(config, opened.state, &opened.state_bytes, moment)
            .map_err(|error| format!("n{} cannot start: {error}", self.at + 1))?;
        self.generation += 1;
        self.process = Some(Process {
            replica,
            log: opened.log,
            checkpointer: opened.checkpointer,
            queue: VecDeque::new(),
            flushing: false,
            work: VecDeque::new(),
            working: false,
            incoming: None,
            draining: false,
            checked,
        });
        Ok(effects)
    }

    /// Ends the process. With `power`, what was not flushed is lost or torn, with the write under
    /// way cut off after some steps.
    pub fn crash(&mut self, power: bool, seed: u64) {
        let Some(mut process) = self.process.take() else { return };
        self.generation += 1;
        self.paused = None;
        if process.flushing {
            self.disk.fail_after(seed % 8);
            // Fails, or not: either way nobody is told.
            let _ = process.carry_out_front();
        }
        if process.working {
            self.disk.fail_after(seed % 16);
            if let Ok(Worked::Replaced(end)) = process.work(1_000) {
                self.replaced = Some(end);
            }
        }
        drop(process);
        if power {
            self.disk.crash(seed);
        } else {
            self.disk.kill();
        }
    }
}

impl Process {
    /// Carries out what the log writer would do in one go: all records at the front of the queue,
    /// or one other command. Returns the event that ends it.
    pub fn flush(&mut self, store: StoreId, ledger: &mut Ledger) -> Result<Option<Event>, String> {
        self.flushing = false;
        let done = self.carry_out_front().map_err(|error| format!("a flush failed: {error}"))?;
        match done {
            Done::Nothing => Ok(None),
            Done::Saved => Ok(Some(Event::Saved)),
            Done::Cut(after) => {
                ledger.cut(store, after);
                Ok(Some(Event::Saved))
            }
            Done::Appended(records) => {
                let index = records.last().expect("at least one").index;
                records.iter().try_for_each(|record| ledger.append(store, record))?;
                Ok(Some(Event::Persisted { index }))
            }
        }
    }

    fn carry_out_front(&mut self) -> Result<Done, StorageError> {
        let Some(front) = self.queue.pop_front() else { return Ok(Done::Nothing) };
        match front {
            Effect::Persist(first) => {
                let mut records = vec![first];
                while let Some(Effect::Persist(_)) = self.queue.front() {
                    let Some(Effect::Persist(next)) = self.queue.pop_front() else { break };
                    records.push(next);
                }
                self.log.append(&records)?;
                Ok(Done::Appended(records))
            }
            Effect::Cut { after, state } => {
                self.log.cut(after, &state)?;
                Ok(Done::Cut(after))
            }
            Effect::Save { state } => {
                self.log.save(&state)?;
                Ok(Done::Saved)
            }
            Effect::Prune { upto } => {
                while self.log.prune(upto)? {}
                Ok(Done::Nothing)
            }
            other => unreachable!("{other:?} is not for the log writer"),
        }
    }

    /// Carries out what the checkpoint thread does next.
    pub fn work(&mut self, piece_bytes: usize) -> Result<Worked, String> {
        self.working = false;
        let Some(front) = self.work.pop_front() else { return Err("no work".to_owned()) };
        let failed = |error: OpenError| format!("building a store failed: {error}");
        match front {
            Effect::Checkpoint(generation) => {
                self.checkpointer
                    .fold(&generation)
                    .map_err(|error| format!("a fold failed: {error}"))?;
                Ok(Worked::Told(Box::new(Event::Checkpointed)))
            }
            Effect::ReadRows { id, from } => {
                let rows = self.checkpointer.read_rows(&from, piece_bytes);
                let rows = rows.map_err(|error| format!("reading rows failed: {error}"))?;
                Ok(Worked::Told(Box::new(Event::RowsRead { id, rows })))
            }
            Effect::Receive { id, number, entry } => {
                if number == 0 {
                    self.incoming = None;
                    self.incoming = Some(self.checkpointer.begin_incoming().map_err(failed)?);
                }
                let incoming = self.incoming.as_mut().expect("piece 0 came first");
                incoming.fold(&entry).map_err(|error| failed(error.into()))?;
                Ok(Worked::Told(Box::new(Event::Received { id, number })))
            }
            Effect::Install { end, state } => {
                let incoming = self.incoming.take().expect("piece 0 came first");
                incoming.finish(end, state).map_err(failed)?;
                Ok(Worked::Replaced(end))
            }
            other => unreachable!("{other:?} is not for the checkpoint thread"),
        }
    }

    /// Checks the records that this node has committed since the last check.
    pub fn check_committed(&mut self, name: &str, ledger: &mut Ledger) -> Finding {
        let state = self.replica.state();
        let status = self.replica.status();
        if status.committed > status.prepared || status.applied > status.committed {
            return Err(format!("I8: {name}: {status:?}"));
        }
        let committed = state.committed();
        while self.checked < committed {
            let next = self.checked.next();
            let record: Option<Arc<Record>> =
                state.record(next).map_err(|error| error.to_string())?;
            let Some(record) = record else {
                return Err(format!("{name} has committed {next} and does not have it"));
            };
            match (status.role, self.replica.register()) {
                (onlyonce_wire::status::Role::Primary, Some(register)) => {
                    ledger.commit(&record, register)?;
                }
                _ => ledger.follow(name, &record)?,
            }
            self.checked = next;
        }
        Ok(())
    }
}

/// What the checkpoint thread did.
pub enum Worked {
    /// Something that the replica is told of.
    Told(Box<Event>),
    /// It put another store in the place of this one: the node is to begin anew.
    Replaced(Mark),
}

enum Done {
    Nothing,
    Saved,
    Cut(Index),
    Appended(Vec<Arc<Record>>),
}

fn timing(plan: &Plan) -> Timing {
    let span = |span: Span| std::time::Duration::from_nanos(span);
    Timing {
        session_idle: span(plan.session_idle),
        checkpoint_interval: std::time::Duration::from_millis(300),
        ..Timing::default()
    }
}
