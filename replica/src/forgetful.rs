//! **Unsafe, for demonstration only:** a duplicate table that does not outlive the process.
//!
//! With [`Duplicates::Memory`] a lone node does what a server does that keeps its duplicate table in
//! memory: after a restart it takes a repeated request for a new one, and runs it a second time. All
//! of that is here, and in the two places that ask [`Replica::is_forgetful`].
//!
//! While it runs it remembers as always. Each opening deletes first, by logged entries and step by
//! step as at the begin of an [incarnation](crate::incarnation), all that is remembered of requests.
//! Then a session that is not known is taken as open. The store is marked as of no incarnation's
//! sessions: started again without the demonstration, it ends all sessions of that time before it
//! opens, so that none of them meets a table with holes.

use bytes::Bytes;
use onlyonce_storage::{Effect, Entry, Table, limits::OVERLAY_BYTES_MAX};
use onlyonce_wire::Incarnation;

use crate::config::Duplicates;
use crate::duplicates::{delete, put};
use crate::replica::{Replica, Role, Stop};
use crate::rows::{KEY_COUNT, SESSIONS_INCARNATION};

/// Where requests are remembered, sessions first: what is left after a crash in between is refused.
const TABLES: [Table; 4] = [Table::Sessions, Table::Replies, Table::Keys, Table::Expiry];
/// The row before, with an empty key, is a count, a clock or a mark.
const FIRST_ROW: &[u8] = &[0];
/// How many rows one step deletes.
const DELETED_AT_ONCE: usize = 1_024;
/// No sessions are of this one.
const NO_INCARNATION: Incarnation = Incarnation(0);

/// How far it has got.
#[derive(Clone, Debug)]
pub(crate) struct Forgetting {
    /// The tables that are left.
    tables: &'static [Table],
    /// Where to go on in the first of them.
    start: Bytes,
}

impl Default for Forgetting {
    fn default() -> Self {
        Self { tables: &TABLES, start: Bytes::from_static(FIRST_ROW) }
    }
}

impl Replica {
    /// Whether duplicates are forgotten at each start.
    pub(crate) fn is_forgetful(&self) -> bool {
        match self.config.duplicates {
            Duplicates::Durable => false,
            Duplicates::Memory => true,
        }
    }

    /// Deletes some of what is remembered, all that is before it being committed. Returns whether
    /// this primary has to wait with opening.
    pub(crate) fn forget_duplicates(&mut self) -> Result<bool, Stop> {
        let Role::Primary(primary) = &self.role else { return Ok(true) };
        if primary.forgetting.tables.is_empty() {
            return Ok(false);
        }
        if self.state.overlay_bytes() > OVERLAY_BYTES_MAX {
            // A checkpoint makes room.
            return Ok(true);
        }
        let mut at = primary.forgetting.clone();
        let mut effects = self.deletions(&mut at)?;
        if at.tables.is_empty() {
            for (table, key, number) in [
                (Table::Keys, KEY_COUNT, 0),
                (Table::Sessions, SESSIONS_INCARNATION, NO_INCARNATION.0),
            ] {
                let value = Bytes::copy_from_slice(&u64::to_le_bytes(number));
                put(&mut effects, table, Bytes::from_static(key), value);
            }
        }
        let opens_at = self.open_index();
        self.add_entry(Entry { effects })?;
        if let Role::Primary(primary) = &mut self.role {
            primary.opens_at = opens_at;
            primary.forgetting = at;
        }
        self.close_record()?;
        Ok(true)
    }

    /// Deletes the next rows.
    fn deletions(&self, at: &mut Forgetting) -> Result<Vec<Effect>, Stop> {
        let mut effects = Vec::new();
        while let [table, rest @ ..] = at.tables {
            for row in self.state.scan(*table, &at.start.clone(), None) {
                let row = row?;
                if effects.len() == DELETED_AT_ONCE {
                    at.start = row.key;
                    return Ok(effects);
                }
                if row.value.is_some() {
                    delete(&mut effects, *table, row.key);
                }
            }
            *at = Forgetting { tables: rest, ..Forgetting::default() };
        }
        Ok(effects)
    }
}
