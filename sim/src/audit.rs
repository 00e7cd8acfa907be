//! The end of a world: what must be true of it as a whole.

use onlyonce_replica::Replica;
use onlyonce_storage::Table;

use crate::ledger::Finding;
use crate::linearizable::is_linearizable;
use crate::world::World;

impl World {
    /// The end: replicas are equal, and every client's history has an order.
    pub(crate) fn audit(&self) -> Finding {
        let dumps: Vec<_> = self.replicas().map(dump).collect::<Result<_, _>>()?;
        if let Some(at) = dumps.iter().position(|dump| *dump != dumps[0]) {
            let (mine, theirs) = (&dumps[0], &dumps[at]);
            let differ = |one: &Rows, other: &Rows| -> Rows {
                one.iter().filter(|row| !other.contains(row)).cloned().collect()
            };
            return Err(format!(
                "I9: n1 and n{} hold different rows: {:?}, and {:?}",
                at + 1,
                differ(mine, theirs),
                differ(theirs, mine)
            ));
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

/// Whether everything that a replica shows is committed: a primary may be expiring a session.
pub fn has_settled(replica: &Replica) -> bool {
    let state = replica.state();
    let mut rows = Table::ALL.into_iter().flat_map(|table| state.scan(table, &[], None));
    rows.all(|row| row.is_ok_and(|row| row.index <= state.committed()))
}

type Rows = Vec<(Table, bytes::Bytes, bytes::Bytes)>;

/// All rows that a replica holds.
fn dump(replica: &Replica) -> Result<Rows, String> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        for row in replica.state().scan(table, &[], None) {
            let row = row.map_err(|error| error.to_string())?;
            if let Some(value) = row.value {
                rows.push((table, row.key, value));
            }
        }
    }
    Ok(rows)
}
