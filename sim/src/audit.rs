//! The end of a world: what must be true of it as a whole.

use onlyonce_replica::Replica;

use crate::ledger::Finding;
use crate::linearizable::is_linearizable;
use crate::world::World;

impl World {
    /// The end: replicas are equal, and every client's history has an order.
    pub(crate) fn audit(&self) -> Finding {
        let dumps: Vec<_> = self.replicas().map(dump).collect::<Result<_, _>>()?;
        if let Some(at) = dumps.iter().position(|dump| *dump != dumps[0]) {
            return Err(format!("I9: n1 and n{} hold different rows", at + 1));
        }
        for key in 0..self.plan.keys {
            let history: Vec<_> = self
                .history
                .operations
                .iter()
                .filter(|(of, _)| *of == key)
                .map(|(_, operation)| operation.clone())
                .collect();
            if !is_linearizable(&history) {
                return Err(format!("I10: the history of key-{key} has no order: {history:#?}"));
            }
        }
        Ok(())
    }
}

type Rows = Vec<(onlyonce_storage::Table, bytes::Bytes, bytes::Bytes)>;

/// All rows that a replica holds.
fn dump(replica: &Replica) -> Result<Rows, String> {
    let mut rows = Vec::new();
    for table in onlyonce_storage::Table::ALL {
        for row in replica.state().scan(table, &[], None) {
            let row = row.map_err(|error| error.to_string())?;
            if let Some(value) = row.value {
                rows.push((table, row.key, value));
            }
        }
    }
    Ok(rows)
}
