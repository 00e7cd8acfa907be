//! What a replica is told at its start.

use std::time::Duration;

use onlyonce_wire::authority::Member;
use onlyonce_wire::limits as wire;

use crate::limits::{
    APPEND_BYTES_MAX, CHECKPOINT_BYTES, LOG_PIN_BYTES, LOG_TAIL_BYTES, PIECE_BYTES,
};

/// How a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One node alone: crash-durable, no replica, no authority.
    Lone,
    /// A replica of a cluster whose view the authority holds.
    Cluster {
        /// Whether an empty register and an empty store make a new cluster.
        bootstrap: bool,
    },
}

/// What becomes of the duplicate table when the process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// It is as durable as the data.
    #[default]
    Durable,
    /// It is forgotten: **requests run twice**. For a lone node that demonstrates it.
    Memory,
}

/// Everything that shapes a replica's behaviour.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub me: Member,
    /// Alone, or in a cluster.
    pub mode: Mode,
    /// A primary commits nothing while its view has fewer replicas than this.
    pub min_copies: usize,
    /// Durations.
    pub timing: Timing,
    /// Where ids, nonces and random delays come from. Never the same for two processes.
    pub seed: u128,
    /// How many bytes of records below the checkpoint stay in the log, for nodes that come back.
    pub log_tail_bytes: usize,
    /// How many bytes of records stay in the log while a learner that is catching up needs them.
    pub log_pin_bytes: usize,
    /// About how many bytes a piece of a snapshot has.
    pub piece_bytes: usize,
    /// How many committed bytes make a checkpoint due.
    pub checkpoint_bytes: usize,
    /// Bounds that tests and simulations make tighter.
    pub limits: Limits,
    /// What becomes of the duplicate table.
    pub duplicates: Duplicates,
    /// The rule that this node breaks.
    #[cfg(feature = "mutations")]
    pub broken: Option<crate::Rule>,
}

impl Config {
    /// The defaults of production; a cluster of tests or simulation names what it has otherwise.
    #[must_use]
    pub fn new(me: Member, mode: Mode, seed: u128) -> Self {
        Self {
            me,
            mode,
            min_copies: 1,
            timing: Timing::default(),
            seed,
            log_tail_bytes: LOG_TAIL_BYTES,
            log_pin_bytes: LOG_PIN_BYTES,
            piece_bytes: PIECE_BYTES,
            checkpoint_bytes: CHECKPOINT_BYTES,
            limits: Limits::default(),
            duplicates: Duplicates::default(),
            #[cfg(feature = "mutations")]
            broken: None,
        }
    }
}

/// Bounds that are met sooner when they are tighter. None may be above its default, which the
/// other bounds rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How far a session's newest request may be ahead of its oldest unacknowledged one.
    pub window: u64,
    /// The most bytes of saved replies a session.
    pub saved_reply_bytes: u64,
    /// The most bytes of records in one append or tail, but always at least one record.
    pub append_bytes: usize,
    /// The most bytes of answers that wait for a commit; the last one may go beyond.
    pub waiting_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: wire::WINDOW,
            saved_reply_bytes: wire::SAVED_REPLY_BYTES_MAX,
            append_bytes: APPEND_BYTES_MAX,
            waiting_bytes: wire::WAITING_BYTES_MAX,
        }
    }
}

impl Limits {
    /// Whether no bound is above its default.
    pub(crate) fn are_safe(&self) -> bool {
        let most = Self::default();
        self.window <= most.window
            && self.saved_reply_bytes <= most.saved_reply_bytes
            && self.append_bytes <= most.append_bytes
            && self.waiting_bytes <= most.waiting_bytes
    }
}

/// The durations of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// How long an echoed heartbeat lets the primary answer reads, counted from its sending.
    pub lease: Duration,
    /// How long a node that hears no primary waits, at least, before it proposes itself.
    pub grace: Duration,
    /// The most random delay on top of `grace`.
    pub grace_jitter: Duration,
    /// How long an append may stay unacknowledged before its backup is dropped.
    pub append_timeout: Duration,
    /// When an unacknowledged append, a question to the register or a join is repeated.
    pub resend: Duration,
    /// How long a session may be idle.
    pub session_idle: Duration,
    /// How long idempotency keys are remembered.
    pub key_retention: Duration,
    /// The longest time between two checkpoints while there is something to fold.
    pub checkpoint_interval: Duration,
}

/// The bound on the drift rate of clocks, in parts per thousand.
pub const DRIFT_PER_MILLE: u32 = 10;

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            lease: Duration::from_millis(400),
            grace: Duration::from_millis(600),
            grace_jitter: Duration::from_millis(150),
            append_timeout: Duration::from_secs(2),
            resend: Duration::from_millis(200),
            session_idle: Duration::from_secs(600),
            key_retention: Duration::from_secs(24 * 3_600),
            checkpoint_interval: Duration::from_secs(30),
        }
    }
}

impl Timing {
    /// Whether a lease always ends before a grace that began later, even on clocks that drift.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.grace * (1000 - DRIFT_PER_MILLE) >= self.lease * (1000 + DRIFT_PER_MILLE)
            && self.heartbeat * 2 < self.lease
    }
}
