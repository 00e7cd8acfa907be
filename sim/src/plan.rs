//! What a seed makes of the world: how large it is, and what goes wrong how often.
//!
//! Each seed draws its own probabilities, many of them zero: worlds that are unkind in one way only
//! reach states that an average of all faults never does ("swarm testing", Groce et al. 2012).

use std::collections::BTreeMap;
use std::ops::Range;

use onlyonce_replica::{Limits, Timing};
use rand::Rng;
use rand::rngs::StdRng;

use crate::faults::Fault;
use crate::run::Trial;
use crate::time::{Calendar, MILLISECOND, SECOND, Span};

/// One world's parameters.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes there are; one is a lone node.
    pub nodes: usize,
    /// How many clients.
    pub clients: usize,
    /// How many requests a client has under way at once, at most.
    pub outstanding: usize,
    /// How many keys they share.
    pub keys: usize,
    /// How long faults and requests go on.
    pub duration: Span,
    /// The longest usual delay of a message.
    pub delay_max: Span,
    /// How often, of a thousand, a message is late.
    pub late_per_mille: u32,
    /// The longest delay of a late message.
    pub late_max: Span,
    /// How often, of a thousand, a compare-and-swap is late on top of that.
    pub late_swap_per_mille: u32,
    /// How often, of a thousand, a process dies right after it sent a compare-and-swap, and is back
    /// before that arrives.
    pub die_proposing_per_mille: u32,
    /// How often, of a thousand, a message is lost.
    pub lost_per_mille: u32,
    /// How often, of a thousand, a message arrives twice.
    pub repeated_per_mille: u32,
    /// The longest usual time of a flush.
    pub flush_max: Span,
    /// How often, of a thousand, a flush takes up to seconds.
    pub stalled_per_mille: u32,
    /// How often, of a thousand, a client sends what breaks the rules.
    pub probe_per_mille: u32,
    /// How often, of a thousand, a change goes under an idempotency key.
    pub keyed_per_mille: u32,
    /// How often, of a thousand, a client repeats a request under a key that anybody used.
    pub repeat_per_mille: u32,
    /// How often, of a thousand, a client asks what became of a request, or cancels it.
    pub question_per_mille: u32,
    /// How often, of a thousand, a client rests for long between two requests.
    pub rest_per_mille: u32,
    /// How often, of a thousand, a client has an outbox.
    pub outbox_per_mille: u32,
    /// Whether some values are longer than a row of the tables may be.
    pub long_values: bool,
    /// The mean time between two faults of each kind that happens.
    pub faults: BTreeMap<Fault, Span>,
    /// Clocks run faster or slower by up to so many parts in a thousand.
    pub drift_per_mille: u32,
    /// By how many milliseconds calendars may be wrong, of nodes and clients.
    pub calendar_error_ms: i64,
    /// How long idempotency keys are remembered.
    pub key_retention: Span,
    /// How many committed bytes make a checkpoint due.
    pub checkpoint_bytes: usize,
    /// How many bytes of records stay in the log.
    pub log_tail_bytes: usize,
    /// How many bytes of records stay there while a learner needs them.
    pub log_pin_bytes: usize,
    /// How many bytes a piece of a snapshot has.
    pub piece_bytes: usize,
    /// How many copies a primary insists on.
    pub min_copies: usize,
    /// How long a session may be idle.
    pub session_idle: Span,
    /// Bounds.
    pub limits: Limits,
    /// What is done wrong around the nodes.
    pub blunder: Option<Blunder>,
    /// The rule that every node breaks.
    #[cfg(feature = "mutations")]
    pub broken: Option<onlyonce_replica::Rule>,
}

/// A rule that is kept around the nodes, by what breaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blunder {
    /// A restored store goes on in the incarnation of its backup.
    RestoredInSameIncarnation,
    /// A client with an outbox sends a request before that is durable there.
    SentBeforeKept,
}

impl Blunder {
    /// Every blunder.
    pub const ALL: [Self; 2] = [Self::RestoredInSameIncarnation, Self::SentBeforeKept];
}

const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// Every fault: one world in so many has it, with a mean time of up to so many milliseconds between
/// two.
const FAULTS: [(Fault, u32, u64); 14] = [
    (Fault::Crash, 2, 4_000),
    (Fault::Blackout, 6, 10_000),
    (Fault::Partition, 2, 4_000),
    (Fault::Pause, 3, 4_000),
    (Fault::Outage, 4, 6_000),
    (Fault::Empty, 3, 5_000),
    (Fault::ClientCrash, 4, 6_000),
    (Fault::Slow, 3, 4_000),
    (Fault::Hang, 4, 5_000),
    (Fault::Fail, 5, 5_000),
    (Fault::Rot, 6, 6_000),
    (Fault::Isolate, 2, 4_000),
    (Fault::Calendar, 4, 4_000),
    (Fault::Restore, 6, 8_000),
];

impl Plan {
    /// The plan of a seed.
    pub fn draw(rng: &mut StdRng, trial: Trial) -> Self {
        let nodes = [1, 2, 2, 2, 3, 3, 4][rng.random_range(0..7)];
        let mut sometimes = |one_in: u32, value: u32| {
            if rng.random_ratio(1, one_in) { value } else { 0 }
        };
        let (late_per_mille, lost_per_mille) =
            (sometimes(2, 20), sometimes(2, 40) + sometimes(6, 100));
        let (repeated_per_mille, stalled_per_mille) = (sometimes(2, 40), sometimes(4, 5));
        let (drift_per_mille, probe_per_mille) = (sometimes(2, 9), sometimes(2, 60));
        let (late_swap_per_mille, die_proposing_per_mille) = (sometimes(3, 400), sometimes(4, 200));
        let (keyed_per_mille, repeat_per_mille) = (100 + sometimes(2, 400), 10 + sometimes(2, 200));
        let question_per_mille = 20 + sometimes(2, 200);
        let outbox_per_mille = sometimes(2, 700);
        let mut faults = BTreeMap::new();
        for (fault, one_in, milliseconds) in FAULTS {
            if rng.random_ratio(1, one_in) {
                let mean = rng.random_range(milliseconds / 4..milliseconds) * MILLISECOND;
                faults.insert(fault, mean);
            }
        }
        let mut tight = |one_in: u32, bound: Range<u64>, default: u64| {
            if rng.random_ratio(1, one_in) { rng.random_range(bound) } else { default }
        };
        let most = Limits::default();
        let limits = Limits {
            window: tight(3, 1..8, most.window),
            saved_reply_bytes: tight(6, 17..70, most.saved_reply_bytes),
            append_bytes: tight(2, 1..300, most.append_bytes as u64) as usize,
            waiting_bytes: tight(6, 1..1_500, most.waiting_bytes as u64) as usize,
        };
        Self {
            nodes,
            clients: rng.random_range(1..=4),
            outstanding: rng.random_range(1..=4),
            keys: rng.random_range(1..=4),
            duration: rng.random_range(3..10) * SECOND,
            delay_max: rng.random_range(1..10) * MILLISECOND,
            late_per_mille,
            late_max: rng.random_range(1..10) * SECOND,
            late_swap_per_mille,
            die_proposing_per_mille,
            lost_per_mille,
            repeated_per_mille,
            flush_max: rng.random_range(1..5) * MILLISECOND,
            stalled_per_mille,
            probe_per_mille,
            keyed_per_mille,
            repeat_per_mille,
            question_per_mille,
            rest_per_mille: 5,
            outbox_per_mille,
            long_values: rng.random_ratio(1, 8),
            faults,
            drift_per_mille,
            calendar_error_ms: match rng.random_range(0..4) {
                0 | 1 => 0,
                2 => rng.random_range(1..10_000),
                _ => rng.random_range(1..10 * DAY_MS),
            },
            key_retention: match rng.random_range(0..3) {
                0 => Timing::default().key_retention.as_nanos() as Span,
                _ => rng.random_range(200..4_000) * MILLISECOND,
            },
            checkpoint_bytes: rng.random_range(1_000..20_000),
            log_tail_bytes: match rng.random_range(0..4) {
                0 => 64 << 20,
                1 | 2 => rng.random_range(0..2_000),
                _ => rng.random_range(200..20_000),
            },
            log_pin_bytes: match rng.random_range(0..4) {
                0 | 1 => rng.random_range(100..2_000),
                _ => rng.random_range(1_000..200_000),
            },
            piece_bytes: rng.random_range(50..4_000),
            min_copies: if nodes > 1 && rng.random_ratio(1, 4) { 2 } else { 1 },
            session_idle: rng.random_range(3..100) * rng.random_range(100..200) * MILLISECOND,
            limits,
            blunder: trial.blunder,
            #[cfg(feature = "mutations")]
            broken: trial.broken,
        }
    }
    /// A calendar as it may be in this world.
    pub fn draw_calendar(&self, rng: &mut StdRng) -> Calendar {
        Calendar(rng.random_range(-self.calendar_error_ms..=self.calendar_error_ms))
    }
}
