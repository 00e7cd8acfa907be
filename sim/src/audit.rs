//! The end of a world: what must be true of it as a whole.

use onlyonce_history::check;
use onlyonce_replica::Replica;
use onlyonce_storage::Table;

use crate::ledger::Finding;
use crate::world::World;

impl World {
    /// The end: every replica holds what the history comes to, and every client's history has an order.
    pub(crate) fn audit(&self) -> Finding {
        for (at, replica) in self.replicas().enumerate() {
            let compared = self.ledger.fold.compare(replica.state());
            compared.map_err(|error| format!("I9: n{} at the end: {error}", at + 1))?;
        }
        for key in 0..self.plan.keys {
            let of_key = self.history.operations.iter().filter(|it| it.key == key);
            let history: Vec<_> =
                of_key.flat_map(|it| it.judged(&self.ledger.fold.requests)).collect();
            check(&history).map_err(|found| format!("I10: key-{key}: {found}{history:#?}"))?;
        }
        Ok(())
    }
}

/// Whether everything that a replica shows is committed: a primary may be expiring a session.
pub fn has_settled(replica: &Replica) -> bool {
    let state = replica.state();
    let mut rows = Table::ALL.into_iter().flat_map(|table| state.scan(table, &[], None));
    rows.all(|row| row.is_ok_and(|row| row.index <= state.committed()))
}
