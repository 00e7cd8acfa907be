//! Until when a request under a named key may be sent again.
//!
//! The cluster remembers a named key for its retention, counted from when a copy ran, and then takes
//! it for a new one: a copy that comes later runs, even if an earlier one did. So the time of the
//! first copy that may have run is kept, and no copy leaves once that one is about as old as the
//! retention of the node that it was sent to.
//!
//! - The copy ran no earlier than it was sent, so counting from then errs on the safe side.
//! - The cluster counts by its primaries' clocks, which may be fast by 1 %, and this client by one that
//!   may be slow by as much. The [margin](MARGIN) is for that, and for how long a copy is under way.
//! - A handle takes the time along within its process ([`Remembered`]); its text cannot, as clocks of
//!   other processes do not count from the same moment.
//! - The clock goes on while the machine is suspended, and no calendar has a say in it.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The last part of a retention in which no copy is sent: one of so many.
const MARGIN: u32 = 8;
/// By how much clocks may differ at most, in parts per thousand: one fast, one slow, by 1 % each.
const DRIFT_PER_MILLE: u32 = 21;
// Most of the margin is left for a copy that is long under way.
const _: () = assert!(DRIFT_PER_MILLE * MARGIN * 2 < 1_000);

/// A moment of the clock that goes on during suspension (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    pub(crate) fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("the boot-time clock starts at zero");
        let nanoseconds = u32::try_from(time.tv_nsec).expect("nanoseconds are below a second's");
        Self(Duration::new(seconds, nanoseconds))
    }
}

/// When a named key may be forgotten, and the cluster take another copy for a new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyExpiry {
    at: Moment,
    /// How long the node that the copy was sent to remembers the key.
    pub(crate) retention: Duration,
}

impl KeyExpiry {
    /// That of a key under which a copy was sent, to a node that remembers it for so long.
    pub(crate) fn of(sent: Moment, retention: Duration) -> Self {
        let safe = retention / MARGIN * (MARGIN - 1);
        Self { at: Moment(sent.0.saturating_add(safe)), retention }
    }

    pub(crate) fn is_past(&self) -> bool {
        Moment::now() >= self.at
    }
}

/// What this process remembers of a request beside its handle; no part of what names it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Remembered(pub(crate) Option<KeyExpiry>);

impl Remembered {
    /// Whether the cluster may have forgotten that the request ran, and take its key for a new one.
    pub(crate) fn may_be_forgotten(self) -> bool {
        self.0.is_some_and(|expiry| expiry.is_past())
    }
}

impl PartialEq for Remembered {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Remembered {}

impl Hash for Remembered {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy is safe while the key is remembered on the fastest clock, and not after.
    #[test]
    fn the_last_eighth_is_not_used() {
        let sent = Moment::now();
        let day = Duration::from_secs(24 * 3_600);
        let expiry = KeyExpiry::of(sent, day);
        let safe = expiry.at.0.saturating_sub(sent.0);
        assert_eq!(safe, Duration::from_secs(21 * 3_600));
        assert!(!expiry.is_past());
        let by_a_fast_clock = safe * (1_000 + DRIFT_PER_MILLE) / 1_000;
        assert!(by_a_fast_clock < day, "{by_a_fast_clock:?}");
        assert!(KeyExpiry::of(sent, Duration::ZERO).is_past());
    }
}
