//! Points at which a test can kill the process, as `kill -9` would.
//!
//! A [`Point`] is a place between two effects that must not be torn apart. There the code says
//! `failpoint(Point::X)`. Without the feature `failpoints` that is no code at all, and the program
//! that is shipped is always built without it; `onced-failpoints` is the one that has them.
//!
//! The points of the whole server are in this one list, here because this crate is the lowest that
//! has any. `tests/tests/failpoints/` kills at each of them, in every role that reaches it.

/// Declares the points once: the enum, the list of all, and their names.
macro_rules! points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A place where the process can be killed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $doc])+ $point,)+
        }

        impl Point {
            /// Every point.
            pub const ALL: &[Self] = &[$(Self::$point,)+];

            /// What tests call it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// The core took a client's request out of its queue.
    RequestReceived = "request.received",
    /// An answer is about to go to its connection; if it tells of a write, that is committed.
    ReplyReady = "reply.ready",
    /// Answers were written to a client's socket.
    ReplyWritten = "reply.written",

    /// Messages were written to another node's socket.
    PeerWritten = "peer.written",

    /// Records are about to be written to the log.
    LogBegin = "log.begin",
    /// One more row of them is written.
    LogRow = "log.row",
    /// All their rows are written, and not flushed.
    LogRows = "log.rows",
    /// They are flushed; the head does not know.
    LogFlushed = "log.flushed",
    /// The head knows; the core does not.
    LogAppended = "log.appended",
    /// The core is being told.
    LogPersisted = "log.persisted",

    /// The core hands records to a backup's or learner's connection.
    AppendSending = "append.sending",
    /// Records came from the primary.
    AppendReceived = "append.received",
    /// They are durable here; the acknowledgement is about to go.
    AppendOkSending = "append_ok.sending",
    /// An acknowledgement came.
    AppendOkReceived = "append_ok.received",

    /// A slot of the head is about to be written, to be synced.
    HeadBegin = "head.begin",
    /// It is written, and not synced.
    HeadWritten = "head.written",
    /// It is synced; its copy is not written.
    HeadSynced = "head.synced",
    /// Its copy is written too.
    HeadEnd = "head.end",

    /// A generation is about to be folded into the tables.
    CheckpointBegin = "checkpoint.begin",
    /// What a slice of it will make of the tables is written and flushed; none of that is folded.
    CheckpointIntended = "checkpoint.intended",
    /// A slice of it is folded, and not flushed; another one follows.
    CheckpointSlice = "checkpoint.slice",
    /// All of it is folded and flushed; the applied point is the old one.
    CheckpointFolded = "checkpoint.folded",
    /// The new applied point is written, and not flushed.
    CheckpointApplied = "checkpoint.applied",
    /// It is flushed; the core does not know.
    CheckpointEnd = "checkpoint.end",
    /// An open has folded one more row that a fold which was cut short had begun.
    CheckpointResuming = "checkpoint.resuming",

    /// Old records are about to be removed from the log.
    PruneBegin = "prune.begin",
    /// The head says so; no row is removed yet.
    PruneAnnounced = "prune.announced",
    /// One more of their rows is removed.
    PruneRow = "prune.row",
    /// A step of the removal is done.
    PruneEnd = "prune.end",

    /// The replication's state (a proposal, or a view) is about to be saved.
    StateSaving = "state.saving",
    /// It is durable, and the core is being told.
    StateSaved = "state.saved",
    /// A saved proposal is about to be sent to the authority.
    ProposalSending = "proposal.sending",
    /// The authority has taken the proposal; nothing here says so yet.
    ProposalWon = "proposal.won",
    /// A restarted primary asks this backup for what it may have lost.
    TailAsked = "tail.asked",
    /// A restarted primary gets it.
    TailReceived = "tail.received",

    /// A tail of the log is about to be cut off.
    CutBegin = "cut.begin",
    /// The head says so; no row is removed yet.
    CutAnnounced = "cut.announced",
    /// One more of its rows is removed.
    CutRow = "cut.row",
    /// All are removed and flushed; the head says that the cut is under way.
    CutFlushed = "cut.flushed",
    /// The head says that the cut is done; the core does not know.
    CutEnd = "cut.end",

    /// Rows for a learner's snapshot are read.
    SnapshotRead = "snapshot.read",
    /// A piece of it is about to be sent.
    SnapshotSending = "snapshot.sending",
    /// The learner asks for the next piece.
    SnapshotOkReceived = "snapshot_ok.received",
    /// A piece came.
    SnapshotReceived = "snapshot.received",
    /// It is folded into the store that is being built.
    SnapshotFolded = "snapshot.folded",
    /// That store is whole; the old one is still the store.
    SnapshotBuilt = "snapshot.built",
    /// It is accepted: the next open puts it in the old one's place.
    SnapshotAccepted = "snapshot.accepted",
    /// A part of the old store is removed; the new one's is not in its place.
    ReplaceRemoved = "replace.removed",
    /// It is in its place.
    ReplaceMoved = "replace.moved",
    /// All parts are in their places; what is left of the new store's folder is not removed.
    ReplaceEnd = "replace.end",

    /// What an open found is durable; nothing of it is read yet.
    OpenBarrier = "open.barrier",
    /// One more record of the log is read.
    OpenReplaying = "open.replaying",
    /// All are read; the head does not say so yet.
    OpenReplayed = "open.replayed",
    /// The store is open; nobody has it yet.
    OpenEnd = "open.end",
}

/// A place where the process can be killed.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn failpoint(_point: Point) {}

#[cfg(feature = "failpoints")]
pub use armed::{arm, arm_from_environment, failpoint};

#[cfg(feature = "failpoints")]
mod armed {
    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    /// Kills the process if this point was armed, and it is time.
    pub fn failpoint(point: Point) {
        fail::fail_point!(point.name(), |_| die(point));
    }

    fn die(point: Point) {
        tracing::warn!("killed at the failpoint {}", point.name());
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }

    /// From now on the point called `name` is passed `passes` times, and then kills.
    ///
    /// # Errors
    /// When there is no such point.
    pub fn arm(name: &str, passes: u32) -> Result<(), String> {
        check(name)?;
        // `fail` takes a count of zero for a term that is used up.
        fail::cfg(name, &format!("{passes}*off->return"))
    }

    /// Arms what the variable `FAILPOINTS` says, in the syntax of the crate `fail`: `return` kills.
    ///
    /// # Errors
    /// When it names a point that there is not.
    pub fn arm_from_environment() -> Result<(), String> {
        // Its drop would disarm them: they stay for the life of the process.
        std::mem::forget(fail::FailScenario::setup());
        fail::list().iter().try_for_each(|(name, _)| check(name))
    }

    fn check(name: &str) -> Result<(), String> {
        let known = Point::ALL.iter().any(|point| point.name() == name);
        if known { Ok(()) } else { Err(format!("there is no failpoint {name:?}")) }
    }
}
