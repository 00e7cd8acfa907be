//! What really happened: the committed history and every disk's log, kept beside the nodes, and the
//! invariants checked against them after every step.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use onlyonce_storage::{Index, Mark, Record, State};
use onlyonce_wire::authority::Register;
use onlyonce_wire::{Incarnation, StoreId};

use crate::fold::Fold;

/// The truth that no node knows as a whole.
#[derive(Default)]
pub struct Ledger {
    /// The records that some primary committed, by index: one history.
    committed: BTreeMap<Index, Bytes>,
    /// What the committed history comes to.
    pub fold: Fold,
    /// What each store's disk holds durably, as its writer reported it. That of an emptied disk
    /// stays: what it acknowledged it held at the time.
    disks: HashMap<StoreId, Log>,
    /// Every record ever made, by view and index (I4).
    made: HashMap<(u64, u64), Bytes>,
    /// The process that leads each view (I2).
    leaders: HashMap<u64, (StoreId, u64)>,
}

/// A store's durable log.
#[derive(Default)]
struct Log {
    records: BTreeMap<Index, Bytes>,
    /// A cut to this index began and was not seen to end: what follows may be there or not.
    cutting: Option<Index>,
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
        self.disks.entry(store).or_default().records.insert(record.index, bytes);
        Ok(())
    }

    /// A store's log ends at `after`.
    pub fn cut(&mut self, store: StoreId, after: Index) {
        self.disks.entry(store).or_default().records.split_off(&after.next());
    }

    /// A store's content was replaced by a snapshot: it holds the committed history up to `end`.
    pub fn replace(&mut self, store: StoreId, end: Mark) -> Finding {
        let history = self.committed.range(..=end.index);
        let records: BTreeMap<_, _> = history.map(|(at, record)| (*at, record.clone())).collect();
        let view = records.get(&end.index).map(|record| Record::decode(record.clone()));
        match view {
            Some(Ok(record)) if record.view == end.view => {
                self.disks.insert(store, Log { records, cutting: None });
                Ok(())
            }
            _ => Err(format!("I9: a snapshot ends at {end:?}, which is not committed")),
        }
    }

    /// A store's process ended while it cut its log to `after`.
    pub fn cut_short(&mut self, store: StoreId, after: Index) {
        let log = self.disks.entry(store).or_default();
        log.cutting = Some(log.cutting.map_or(after, |earlier| earlier.min(after)));
    }

    /// A store was opened again: everything that was durable must be there (P2), and what else is
    /// there counts from now on. Its tables and its log must come to what the history comes to.
    pub fn reopen(&mut self, store: StoreId, state: &State) -> Finding {
        let read = |error| format!("reading an open store: {error}");
        let log = self.disks.entry(store).or_default();
        let (_, last) = state.last();
        if let Some(after) = log.cutting.take() {
            log.records.split_off(&after.max(last).next());
        }
        for (index, bytes) in log.records.range(state.first()..) {
            let held = state.record(*index).map_err(read)?.map(|record| record.encode());
            if held.as_ref() != Some(bytes) {
                return Err(format!("P2: {index} was durable on {store} and is lost or changed"));
            }
        }
        let known = log.records.last_key_value();
        let mut next = known.map_or(state.first(), |(index, _)| index.next());
        while next <= last {
            if let Some(record) = state.record(next).map_err(read)? {
                log.records.insert(next, record.encode());
            }
            next = next.next();
        }
        self.fold.compare(state).map_err(|error| format!("I9: {store} after a restart: {error}"))
    }

    /// I2: a view has one primary, and that is one process. Nobody serves once the register may
    /// name another primary: leases end before that.
    pub fn leads(
        &mut self,
        view: u64,
        (store, process): (StoreId, u64),
        register: Option<&Register>,
    ) -> Finding {
        let leader = *self.leaders.entry(view).or_insert((store, process));
        if leader != (store, process) {
            return Err(format!("I2: two primaries of view {view}: {leader:?}, {store} {process}"));
        }
        if let Some(now) = register.filter(|now| now.view.0 > view && now.primary.store != store) {
            return Err(format!(
                "I2: the primary of view {view} has a lease in view {} of {}",
                now.view, now.primary.name
            ));
        }
        Ok(())
    }

    /// The register gets a new value: only a replica of the view before may make the next one
    /// (I3), and whoever is in it has all that is committed.
    pub fn new_view(&self, old: Option<&Register>, new: &Register) -> Finding {
        if let Some(old) = old
            && old.view != new.view
        {
            if new.view != old.view.next() {
                return Err(format!("I2: view {} follows view {}", new.view, old.view));
            }
            if old.replica(new.primary.store).is_none() {
                return Err(format!(
                    "I3: {} leads view {}, but was no replica of view {}",
                    new.primary.name, new.view, old.view
                ));
            }
        }
        self.committed.iter().try_for_each(|(index, bytes)| self.is_held(*index, bytes, new))
    }

    /// I1: a committed record is durable on every replica of a view.
    fn is_held(&self, index: Index, bytes: &Bytes, register: &Register) -> Finding {
        for replica in register.replicas() {
            let log = self.disks.get(&replica.store);
            if log.and_then(|log| log.records.get(&index)) != Some(bytes) {
                return Err(format!(
                    "I1: {index} is committed, but not durable on {} of view {} (store {})",
                    replica.name, register.view, replica.store
                ));
            }
        }
        Ok(())
    }

    /// A primary commits a record: every replica of its view must hold it, and of the view that the
    /// register holds in truth (I1, I7), it must be *the* record of that index, and it must follow
    /// from the history before it (I5, I6).
    pub fn commit(
        &mut self,
        record: &Record,
        known: &Register,
        actual: Option<&Register>,
    ) -> Finding {
        let bytes = record.encode();
        let index = record.index;
        self.is_held(index, &bytes, known)?;
        if let Some(actual) = actual {
            self.is_held(index, &bytes, actual)?;
        }
        if let Some(known) = self.committed.get(&index) {
            if *known != bytes {
                return Err(format!("I4: {index} was committed with other content"));
            }
            return Ok(());
        }
        if index != self.last().next() {
            return Err(format!("I4: {index} is committed after {}", self.last()));
        }
        self.committed.insert(index, bytes);
        self.fold.take(record)
    }

    /// A follower takes a record for committed: it must be.
    pub fn follow(&self, name: &str, record: &Record) -> Finding {
        match self.committed.get(&record.index) {
            Some(known) if *known == record.encode() => Ok(()),
            Some(_) => Err(format!("I1: {name} has committed another record at {}", record.index)),
            None => Err(format!("I1: {name} has committed {}, which nobody did", record.index)),
        }
    }

    /// The history goes on from `end` on, in a new incarnation and on other stores.
    pub fn restore(&mut self, end: Index, incarnation: Incarnation) -> Finding {
        self.committed.split_off(&end.next());
        self.disks.clear();
        self.made.clear();
        self.leaders.clear();
        self.fold.restore(end, incarnation)
    }

    /// The newest committed index.
    pub fn last(&self) -> Index {
        self.committed.last_key_value().map_or(Index::ZERO, |(index, _)| *index)
    }
}
