//! The clock of the protocol.

use onlyonce_replica::Moment;
use rustix::time::{ClockId, clock_gettime};

/// Now, on the clock that never jumps and goes on while the machine is suspended.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("the boot-time clock starts at zero");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
    Moment(seconds * 1_000_000_000 + nanoseconds)
}
