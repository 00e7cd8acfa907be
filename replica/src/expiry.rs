//! What an open primary forgets, and when: idle sessions, and idempotency keys. Each by logged entries
//! of bounded size, so that all replicas forget the same.

use std::time::Duration;

use onlyonce_storage::Entry;
use onlyonce_storage::limits::OVERLAY_BYTES_MAX;

use crate::event::WallTime;
use crate::marks::Mark;
use crate::mutations::Rule;
use crate::replica::{Replica, Role, Stop};

impl Replica {
    /// Logs how time goes on for idempotency keys, and forgets those that are due.
    pub(crate) fn tick_keys(&mut self) -> Result<(), Stop> {
        if self.state.overlay_bytes() > OVERLAY_BYTES_MAX {
            return Ok(());
        }
        self.log_key_clock()?;
        self.forget_keys()
    }

    fn log_key_clock(&mut self) -> Result<(), Stop> {
        let (now, wall, index) = (self.now, self.wall(), self.open_index());
        let Some(keys) = self.role.open_keys() else { return Ok(()) };
        let Some(effects) = keys.advance(now, wall, index, &mut self.marks) else { return Ok(()) };
        if let Some(WallTime(until)) = keys.refused_until(wall) {
            tracing::warn!(
                calendar_ms = wall.0,
                until_ms = until,
                "timed idempotency keys, as one-shot commands use, are refused as forgotten: by this node's calendar the cluster remembers the future. Set the calendar, if this one is wrong; else an earlier one was"
            );
        }
        self.add_entry(Entry { effects })
    }

    fn forget_keys(&mut self) -> Result<(), Stop> {
        /// Keys are forgotten in small steps, so that no record grows large.
        const FORGOTTEN_AT_ONCE: usize = 256;
        let (at, early) = ((self.wall(), self.open_index()), self.breaks(Rule::KeySweptEarly));
        let Some(keys) = self.role.open_keys() else { return Ok(()) };
        let forgotten = keys.sweep(&self.state, at, FORGOTTEN_AT_ONCE, early, &mut self.marks)?;
        forgotten.map_or(Ok(()), |effects| self.add_entry(Entry { effects }))
    }

    pub(crate) fn expire_sessions(&mut self) -> Result<(), Stop> {
        /// Sessions expire in small steps, so that no record grows large.
        const EXPIRED_AT_ONCE: usize = 64;
        const INTERVAL: Duration = Duration::from_millis(500);
        let now = self.now;
        let idle = self.config.timing.session_idle;
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        if now.since(primary.last_expiry) < INTERVAL {
            return Ok(());
        }
        primary.last_expiry = now;
        let Some(table) = &mut primary.table else { return Ok(()) };
        let expired = table.expire(&self.state, now, idle, EXPIRED_AT_ONCE)?;
        if !expired.is_empty() {
            self.marks.hit(Mark::SessionExpired);
        }
        expired.into_iter().try_for_each(|effects| self.add_entry(Entry { effects }))
    }
}
