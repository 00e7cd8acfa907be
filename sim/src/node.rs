//! One simulated node: a disk that stays, and a process that comes and goes.

use std::collections::VecDeque;
use std::sync::Arc;

use onlyonce_replica::{Config, Effect, Event, Marks, Mode, Moment, Replica, Timing, WallTime};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{
    Checkpointer, Incoming, Index, LogWriter, Mark, OpenError, Options, Record, StorageError, open,
};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::{Member, Register};
use onlyonce_wire::status::Role;

use crate::ledger::{Finding, Ledger};
use crate::plan::Plan;
use crate::time::{Calendar, Span};

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
    /// What it takes for the date.
    pub calendar: Calendar,
    /// What its process was told of it last.
    pub wall: WallTime,
    /// The snapshot that took the place of its store, until that is opened.
    pub replaced: Option<Mark>,
    /// Events that wait while it stands still.
    pub paused: Option<VecDeque<Event>>,
    /// What is wrong with its disk.
    pub ailing: Ailing,
}

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ailing {
    /// Until then every flush takes long.
    pub slow_until: u64,
    /// Until then no flush ends.
    pub hangs_until: u64,
    /// A write was told to fail: the process is to stop.
    pub fails: bool,
    /// A bit was flipped: the store may refuse to open.
    pub rotten: bool,
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
    /// Where to the log is being cut.
    cutting: Option<Index>,
}

impl Node {
    /// A node with an empty disk.
    pub fn new(at: usize, store: StoreId, clock: Clock, calendar: Calendar) -> Self {
        let (disk, ailing) = (MemoryDisk::new(), Ailing::default());
        Self {
            at,
            store,
            disk,
            process: None,
            generation: 0,
            clock,
            calendar,
            wall: WallTime::default(),
            replaced: None,
            paused: None,
            ailing,
        }
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

    /// Whether its process has a proposal that may be won or lost.
    pub fn proposes(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.replica.is_proposing())
    }

    /// Whether its log writer is about to write several records as one group.
    pub fn writes_group(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            let mut front = process.queue.iter().take(2);
            process.queue.len() > 1 && front.all(|effect| matches!(effect, Effect::Persist(_)))
        })
    }

    /// Opens the store and starts a process on it.
    pub fn start(
        &mut self,
        plan: &Plan,
        seed: u128,
        now: u64,
        ledger: &mut Ledger,
    ) -> Result<Started, String> {
        // Slices of a few rows: folds are cut short between them, too.
        let options = Options { fold_slice_bytes: 300, ..Options::new(self.store.0) };
        let opened = match open(self.disk.disk(), &options) {
            Ok(opened) => opened,
            Err(OpenError::Storage(StorageError::Damaged { damage, .. })) if self.ailing.rotten => {
                return Ok(Started::Refused(damage.to_string()));
            }
            Err(error) => return Err(format!("n{} cannot open its store: {error}", self.at + 1)),
        };
        if let Some(end) = self.replaced.take() {
            ledger.replace(self.store, end)?;
        }
        ledger.reopen(self.store, &opened.state)?;
        let torn = opened.recovered.removed_rows > 0;
        let checked = opened.state.committed();
        let mode = match plan.nodes {
            1 => Mode::Lone,
            _ => Mode::Cluster { bootstrap: self.at == 0 },
        };
        let config = Config {
            min_copies: plan.min_copies,
            timing: timing(plan),
            log_tail_bytes: plan.log_tail_bytes,
            log_pin_bytes: plan.log_pin_bytes,
            piece_bytes: plan.piece_bytes,
            checkpoint_bytes: plan.checkpoint_bytes,
            limits: plan.limits,
            #[cfg(feature = "mutations")]
            broken: plan.broken,
            ..Config::new(self.member(), mode, seed)
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
            cutting: None,
        });
        Ok(Started::Runs { effects, torn })
    }

    /// Ends the process. With `power`, what was not flushed is lost or torn, with the write under
    /// way cut off after some steps. Returns the marks that the process met.
    pub fn crash(&mut self, power: bool, seed: u64, ledger: &mut Ledger) -> Option<Marks> {
        let mut process = self.process.take()?;
        self.generation += 1;
        self.paused = None;
        self.ailing.fails = false;
        if process.flushing {
            // Mostly a group is written, but not flushed: it may be torn.
            let group = process.queue.iter().take_while(|it| matches!(it, Effect::Persist(_)));
            let rows = group.count() as u64;
            self.disk.fail_after(if rows > 1 && seed % 16 < 12 { rows } else { seed % 8 });
            // Fails, or not: either way nobody is told.
            let _ = process.carry_out_front();
        }
        if process.working {
            self.disk.fail_after(seed % 16);
            if let Ok(Worked::Replaced(end)) = process.work(1_000) {
                self.replaced = Some(end);
            }
        }
        if let Some(after) = process.cutting {
            ledger.cut_short(self.store, after);
        }
        let marks = process.replica.marks().clone();
        drop(process);
        if power {
            self.disk.crash(seed);
        } else {
            self.disk.kill();
        }
        Some(marks)
    }
}

/// What came of starting a process.
pub enum Started {
    /// It runs; `torn` if a torn last group had to be removed.
    Runs { effects: Vec<Effect>, torn: bool },
    /// Its store is damaged, as it says, and it was.
    Refused(String),
}

impl Process {
    /// Carries out what the log writer would do in one go: all records at the front of the queue,
    /// or one other command. Returns the event that ends it.
    pub fn flush(&mut self) -> Result<Done, StorageError> {
        self.flushing = false;
        self.carry_out_front()
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
                self.cutting = Some(after);
                self.log.cut(after, &state)?;
                self.cutting = None;
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
    pub fn work(&mut self, piece_bytes: usize) -> Result<Worked, OpenError> {
        self.working = false;
        let front = self.work.pop_front().expect("it is at work");
        match front {
            Effect::Checkpoint(generation) => {
                let checkpoint = self.checkpointer.fold(&generation, || {})?;
                self.checkpointer.scrub(piece_bytes)?;
                Ok(Worked::Told(Box::new(Event::Checkpointed(checkpoint))))
            }
            Effect::ReadRows { id, from } => {
                let rows = self.checkpointer.read_rows(&from, piece_bytes)?;
                Ok(Worked::Told(Box::new(Event::RowsRead { id, rows })))
            }
            Effect::Receive { id, number, entry } => {
                if number == 0 {
                    self.incoming = None;
                    self.incoming = Some(self.checkpointer.begin_incoming()?);
                }
                let incoming = self.incoming.as_mut().expect("piece 0 came first");
                incoming.fold(&entry)?;
                let digests = incoming.digests();
                Ok(Worked::Told(Box::new(Event::Received { id, number, digests })))
            }
            Effect::Install { end, state } => {
                let incoming = self.incoming.take().expect("piece 0 came first");
                incoming.finish(end, state)?;
                Ok(Worked::Replaced(end))
            }
            other => unreachable!("{other:?} is not for the checkpoint thread"),
        }
    }

    /// Checks the records that this node has committed since the last check.
    pub fn check_committed(
        &mut self,
        name: &str,
        actual: Option<&Register>,
        ledger: &mut Ledger,
    ) -> Finding {
        let state = self.replica.state();
        let committed = state.committed();
        if self.checked == committed {
            return Ok(());
        }
        let leads = self.replica.status().role == Role::Primary;
        while self.checked < committed {
            let next = self.checked.next();
            let record: Option<Arc<Record>> =
                state.record(next).map_err(|error| error.to_string())?;
            let Some(record) = record else {
                return Err(format!("{name} has committed {next} and does not have it"));
            };
            match self.replica.register() {
                Some(register) if leads => ledger.commit(&record, register, actual)?,
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

/// What the log writer did.
pub enum Done {
    /// Nothing to tell of.
    Nothing,
    /// Saved the replication state.
    Saved,
    /// Cut the log.
    Cut(Index),
    /// Appended these.
    Appended(Vec<Arc<Record>>),
}

impl Done {
    /// Notes it in the ledger; returns the event that tells the core.
    pub fn note(self, store: StoreId, ledger: &mut Ledger) -> Result<Option<Event>, String> {
        match self {
            Self::Nothing => Ok(None),
            Self::Saved => Ok(Some(Event::Saved)),
            Self::Cut(after) => {
                ledger.cut(store, after);
                Ok(Some(Event::Saved))
            }
            Self::Appended(records) => {
                let index = records.last().expect("at least one").index;
                records.iter().try_for_each(|record| ledger.append(store, record))?;
                Ok(Some(Event::Persisted { index }))
            }
        }
    }
}

fn timing(plan: &Plan) -> Timing {
    let span = |span: Span| std::time::Duration::from_nanos(span);
    Timing {
        session_idle: span(plan.session_idle),
        key_retention: span(plan.key_retention),
        checkpoint_interval: std::time::Duration::from_millis(300),
        ..Timing::default()
    }
}
