//! The end of a world: what must be true of it as a whole.

use onlyonce_history::check;
use onlyonce_replica::Replica;
use onlyonce_storage::Table;

use crate::actions::key_name;
use crate::fold::Fold;
use crate::ledger::Finding;
use crate::tally::Sight;
use crate::world::World;

impl World {
    /// The end: every replica holds what the history comes to, and every client's history has an order.
    pub(crate) fn audit(&mut self) -> Finding {
        for (at, replica) in self.replicas().enumerate() {
            let compared = self.ledger.fold.compare(replica.state());
            compared.map_err(|error| format!("I9: n{} at the end: {error}", at + 1))?;
        }
        self.audit_history(true)
    }

    /// The end of an incarnation, or of the world: what clients were told of it has an order, and what
    /// they keep in outboxes took effect as they know it did.
    pub(crate) fn audit_history(&mut self, ends: bool) -> Finding {
        let Fold { requests, .. } = &self.ledger.fold;
        let began_with = self.history.began_with();
        for key in 0..self.plan.keys {
            let value = self.ledger.fold.value_after(Table::Kv, &key_name(key), began_with);
            let history = self.history.judged(key, value, requests);
            check(&history).map_err(|found| format!("I10: key-{key}: {found}{history:#?}"))?;
        }
        let (before, since) = self.history.audit_outboxes(requests, ends)?;
        self.report.sights[Sight::OutboxTakenUpDone as usize] += before;
        self.report.sights[Sight::OutboxTakenUpRan as usize] += since;
        Ok(())
    }
}

/// Whether everything that a replica shows is committed: a primary may be expiring a session.
pub fn has_settled(replica: &Replica) -> bool {
    let state = replica.state();
    let mut rows = Table::ALL.into_iter().flat_map(|table| state.scan(table, &[], None));
    rows.all(|row| row.is_ok_and(|row| row.index <= state.committed()))
}
