//! A new incarnation of a cluster's history: how it is forced, and how its first primary opens.
//!
//! See "A lost register, and force-view" in `docs/replication.md`. [`forced_view`] is what
//! `onced admin force-view` puts into the register, and [`Saved::in_forced_view`] what it then saves
//! in the one store that the view names. The node that is started on it finds a view that its own
//! process did not make, and wins the next one, as every restarted primary does.
//!
//! Before that primary executes anything it ends all sessions of earlier incarnations, by logged
//! entries. There may be more of them than one record holds, so it goes step by step: none of them
//! can be used meanwhile, since requests of an earlier incarnation are refused for that alone, and
//! all others are asked to come again.

use bytes::Bytes;
use onlyonce_storage::{Effect, Entry, Table, limits::OVERLAY_BYTES_MAX};
use onlyonce_wire::authority::{Member, Register};
use onlyonce_wire::client::Fingerprint;
use onlyonce_wire::{ClusterId, Incarnation, ProposalId, SessionId, StoreId, codec};

use crate::duplicates::remove_session_rows;
use crate::keys::clock_of_new_incarnation;
use crate::replica::{Replica, Role, Stop};
use crate::rows::{FIRST_SESSION, SESSIONS_INCARNATION, SessionRow, decode_incarnation};
use crate::saved::Saved;

/// How many sessions one step ends.
const ENDED_AT_ONCE: usize = 64;

/// The first view of `incarnation`: `primary` alone, whose store is yet to be told.
#[must_use]
pub fn forced_view(
    cluster: ClusterId,
    incarnation: Incarnation,
    view: onlyonce_wire::View,
    primary: Member,
) -> Register {
    let proposal = forced_proposal(cluster, incarnation, primary.store);
    Register { cluster, incarnation, view, proposal, bumps: 0, primary, backups: Vec::new() }
}

/// Whether `register` holds what [`forced_view`] made, and no node has changed it since: nothing was
/// executed in its incarnation.
#[must_use]
pub fn is_forced_view(register: &Register) -> bool {
    let Register { cluster, incarnation, proposal, primary, .. } = register;
    *proposal == forced_proposal(*cluster, *incarnation, primary.store)
}

/// The id tells that no node made the proposal: theirs are random.
fn forced_proposal(cluster: ClusterId, incarnation: Incarnation, store: StoreId) -> ProposalId {
    let name = codec::encode(&("force-view", cluster, incarnation, store));
    ProposalId(Fingerprint::of(&name).0)
}

impl Saved {
    /// What the store that a forced view names saves, so that a node may be started on it.
    #[must_use]
    pub fn in_forced_view(&self, register: &Register) -> Self {
        // A proposal that is left over was made to a register that is gone.
        let mut saved = Self { incarnation: register.incarnation, proposal: None, ..self.clone() };
        saved.enter(register);
        saved
    }
}

/// How far the sessions of an earlier incarnation are ended.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// The last session that was ended.
    last: Option<SessionId>,
}

impl Replica {
    /// Ends some of the sessions that an earlier incarnation opened, all that is before them being
    /// committed. Returns whether this primary has to wait with opening.
    pub(crate) fn end_old_sessions(&mut self) -> Result<bool, Stop> {
        let row = self.state.get(Table::Sessions, SESSIONS_INCARNATION)?.value;
        let current = self.saved.incarnation;
        if decode_incarnation(row.as_ref())? == current {
            return Ok(false);
        }
        if self.state.overlay_bytes() > OVERLAY_BYTES_MAX {
            // A checkpoint makes room.
            return Ok(true);
        }
        let Role::Primary(primary) = &self.role else { return Ok(true) };
        let sessions = self.sessions_after(primary.ending.last)?;
        let last = sessions.last().copied();
        let mut entries = Vec::new();
        for session in sessions {
            let mut effects = Vec::new();
            remove_session_rows(&self.state, session, &mut effects)?;
            entries.push(Entry { effects });
        }
        if last.is_none() {
            tracing::info!(%current, "no session of an earlier incarnation is left");
            let key = Bytes::from_static(SESSIONS_INCARNATION);
            let value = Some(Bytes::copy_from_slice(&current.0.to_le_bytes()));
            let clock = clock_of_new_incarnation(&self.state, self.wall())?;
            let effects = vec![Effect { table: Table::Sessions, key, value }, clock];
            entries.push(Entry { effects });
        }
        let mut opens_at = self.open_index();
        for entry in entries {
            opens_at = self.open_index();
            self.add_entry(entry)?;
        }
        if let Role::Primary(primary) = &mut self.role {
            primary.opens_at = opens_at;
            primary.ending.last = last;
        }
        self.close_record()?;
        Ok(true)
    }

    /// The next sessions to be ended.
    fn sessions_after(&self, last: Option<SessionId>) -> Result<Vec<SessionId>, Stop> {
        let start = last.map_or(Bytes::from_static(FIRST_SESSION), SessionRow::key);
        let mut sessions = Vec::new();
        for row in self.state.scan(Table::Sessions, &start, None) {
            let row = row?;
            if row.value.is_some() {
                sessions.push(SessionRow::id(&row.key)?);
            }
            if sessions.len() == ENDED_AT_ONCE {
                break;
            }
        }
        Ok(sessions)
    }

    /// Goes on where there was no room before.
    pub(crate) fn tick_ending(&mut self) -> Result<(), Stop> {
        let committed = self.state.committed();
        match &self.role {
            Role::Primary(primary) if primary.table.is_none() && committed >= primary.opens_at => {
                self.open()
            }
            Role::Primary(_)
            | Role::Starting(_)
            | Role::Recovering(_)
            | Role::Follower(_)
            | Role::Stopped => Ok(()),
        }
    }
}
