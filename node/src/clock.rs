//! The clocks of the protocol.

use std::time::{SystemTime, UNIX_EPOCH};

use onlyonce_replica::{Moment, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Now, on the clock that never jumps and goes on while the machine is suspended.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("the boot-time clock starts at zero");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
    Moment(seconds * 1_000_000_000 + nanoseconds)
}

/// What the machine's calendar says. Before 1970 it is 1970.
pub fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
