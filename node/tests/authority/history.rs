//! What was seen of a register: each revision belongs to one value for ever.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use onlyonce_node::authority::{Authority, Swap};
use onlyonce_wire::authority::{Revision, Versioned};

use super::register;

/// All that writers and readers saw.
#[derive(Debug, Default)]
pub struct History(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// The proposal that made each revision.
    made_by: BTreeMap<Revision, u128>,
    /// The newest revision that was acknowledged or read.
    newest: Revision,
    acknowledged: u64,
    proposals: u128,
}

impl History {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many swaps were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.seen().acknowledged
    }

    /// The newest revision that anybody was told of.
    pub fn newest(&self) -> Revision {
        self.seen().newest
    }

    /// Checks what was read or won, and keeps it.
    #[track_caller]
    pub fn check(&self, now: &Versioned) {
        let proposal = now.register.as_ref().map_or(0, |register| register.proposal.0);
        let mut seen = self.seen();
        let first = *seen.made_by.entry(now.revision).or_insert(proposal);
        assert_eq!(first, proposal, "{:?} was given twice", now.revision);
        seen.newest = seen.newest.max(now.revision);
    }

    /// Swaps on and on, each time a value that was never proposed before, until an outcome is unknown.
    pub async fn swap_until_unknown(&self, authority: &impl Authority, writer: u64) {
        let Ok(mut now) = authority.read().await else { return };
        loop {
            self.check(&now);
            let proposal = {
                let mut seen = self.seen();
                seen.proposals += 1;
                seen.proposals
            };
            let value = register(writer, proposal);
            now = match authority.compare_and_swap(now.revision, value.clone()).await {
                Swap::Swapped(revision) => {
                    assert!(revision > now.revision, "{revision:?} after {:?}", now.revision);
                    self.seen().acknowledged += 1;
                    Versioned { revision, register: Some(value) }
                }
                Swap::Conflict(found) => {
                    assert_ne!(found.revision, now.revision, "a conflict at the right revision");
                    found
                }
                Swap::Unknown(_) => return,
            };
        }
    }
}
