//! What really happened: the committed history and every disk's log, kept beside the nodes, and the
//! invariants checked against them after every step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use onlyonce_storage::{Index, Mark, Record, State, Table};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::Register;

/// The truth that no node knows as a whole.
#[derive(Default)]
pub struct Ledger {
    /// The records that some primary committed, by index: one history.
    committed: BTreeMap<Index, Bytes>,
    /// What is durable in each store's log, as its writer reported it. That of an emptied disk stays:
    /// what it acknowledged it held at the time.
    durable: HashMap<StoreId, BTreeMap<Index, Bytes>>,
    /// Every record ever made, by view and index (I4).
    made: HashMap<(u64, u64), Bytes>,
    /// The process that leads each view (I2).
    leaders: HashMap<u64, (StoreId, u64)>,
    /// The duplicate rows of the committed history (I5).
    executed: HashSet<Bytes>,
}

/// What an invariant found.
pub type Finding = Result<(), String>;

impl Ledger {
    /// A store's log holds this record durably.
    pub fn append(&mut self, store: StoreId, record: &Arc<Record>) -> Finding {
        let bytes = record.encode();
        let made = self.made.entry((record.view.0, record.index.0)).or_insert(bytes.clone());
        if *made != bytes {
            return Err(format!("I4: two records at view {} index {}", record.view, record.index));
        }
        self.durable.entry(store).or_default().insert(record.index, bytes);
        Ok(())
    }

    /// A store's log ends at `after`.
    pub fn cut(&mut self, store: StoreId, after: Index) {
        self.durable.entry(store).or_default().split_off(&after.next());
    }

    /// A store's content was replaced by a snapshot: it holds the committed history up to `end`.
    pub fn replace(&mut self, store: StoreId, end: Mark) -> Finding {
        let history = self.committed.range(..=end.index);
        let log: BTreeMap<_, _> = history.map(|(index, record)| (*index, record.clone())).collect();
        let view = log.get(&end.index).map(|record| Record::decode(record.clone()));
        match view {
            Some(Ok(record)) if record.view == end.view => {
                self.durable.insert(store, log);
                Ok(())
            }
            _ => Err(format!("I9: a snapshot ends at {end:?}, which is not committed")),
        }
    }

    /// A store was opened again: everything that was durable must be there (P2), and what else is
    /// there counts from now on.
    pub fn reopen(&mut self, store: StoreId, state: &State) -> Finding {
        let read = |error| format!("reading an open store: {error}");
        let log = self.durable.entry(store).or_default();
        for (index, bytes) in log.range(state.first()..) {
            let held = state.record(*index).map_err(read)?.map(|record| record.encode());
            if held.as_ref() != Some(bytes) {
                return Err(format!("P2: {index} was durable on {store} and is lost or changed"));
            }
        }
        let (_, last) = state.last();
        let mut next = log.last_key_value().map_or(state.first(), |(index, _)| index.next());
        while next <= last {
            if let Some(record) = state.record(next).map_err(read)? {
                log.insert(next, record.encode());
            }
            next = next.next();
        }
        Ok(())
    }

    /// I2: a view has one primary, and that is one process.
    pub fn leads(&mut self, view: u64, store: StoreId, process: u64) -> Finding {
        let leader = *self.leaders.entry(view).or_insert((store, process));
        if leader != (store, process) {
            return Err(format!("I2: two primaries of view {view}: {leader:?}, {store} {process}"));
        }
        Ok(())
    }

    /// A primary commits a record: every replica of its view must hold it (I1, I7), it must be *the*
    /// record of that index, and nobody's request may be in the history twice (I5, I6).
    pub fn commit(&mut self, record: &Record, register: &Register) -> Finding {
        let bytes = record.encode();
        let index = record.index;
        for replica in register.replicas() {
            let held = self.durable.get(&replica.store).and_then(|log| log.get(&index));
            if held != Some(&bytes) {
                return Err(format!(
                    "I1: {index} is committed in view {}, but not durable on {}",
                    register.view, replica.name
                ));
            }
        }
        if let Some(known) = self.committed.get(&index) {
            if *known != bytes {
                return Err(format!("I4: {index} was committed with other content"));
            }
            return Ok(());
        }
        if index != self.last().next() {
            return Err(format!("{index} is committed after {}", self.last()));
        }
        self.committed.insert(index, bytes);
        self.check_entries(record)
    }

    fn check_entries(&mut self, record: &Record) -> Finding {
        for entry in &record.entries {
            let executed: Vec<_> = entry
                .effects
                .iter()
                .filter(|effect| effect.table == Table::Replies && effect.value.is_some())
                .collect();
            let writes = entry.effects.iter().any(|effect| effect.table == Table::Kv);
            if writes && executed.len() != 1 {
                return Err(format!(
                    "I6: an entry of {} has effects and {} duplicate rows",
                    record.index,
                    executed.len()
                ));
            }
            for row in executed {
                if !self.executed.insert(row.key.clone()) {
                    return Err(format!(
                        "I5: {} is executed twice, again at {}",
                        row.key.escape_ascii(),
                        record.index
                    ));
                }
            }
        }
        Ok(())
    }

    /// A follower takes a record for committed: it must be.
    pub fn follow(&self, name: &str, record: &Record) -> Finding {
        match self.committed.get(&record.index) {
            Some(known) if *known == record.encode() => Ok(()),
            Some(_) => Err(format!("I1: {name} has committed another record at {}", record.index)),
            None => Err(format!("I1: {name} has committed {}, which nobody did", record.index)),
        }
    }

    /// The newest committed index.
    pub fn last(&self) -> Index {
        self.committed.last_key_value().map_or(Index::ZERO, |(index, _)| *index)
    }
}
