//! The operator: makes backups all the while, and restores the cluster from one.
//!
//! A backup is asked for over the network, as `once backup` does, and judged when it is complete. A
//! restore does what `onced restore` does: all nodes end for good, and one begins anew on a store that
//! is built of the backup, alone or with an authority that holds nothing; the others join it with
//! empty disks. What was committed after the backup is no part of the history any more.

use std::collections::BTreeMap;

use bytes::Bytes;
use onlyonce_replica::{ReplyTo, Saved};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{
    Digests, Effect, Entry, Index, Mark, OpenError, Options, Table, View, open,
};
use onlyonce_wire::authority::{Revision, Versioned};
use onlyonce_wire::backup::{BackupBegin, BackupEnd, BackupRecord};
use onlyonce_wire::client::{Answer, Refusal, Request};
use onlyonce_wire::{CallId, Incarnation, StoreId};
use rand::Rng;

use crate::client::Purpose;
use crate::ledger::Finding;
use crate::plan::Blunder;
use crate::tally::Sight;
use crate::time::{Calendar, MILLISECOND, SECOND, Span};
use crate::world::{Happening, World};

/// How long a piece may take until it is asked for again.
const PATIENCE: Span = 200 * MILLISECOND;

/// The operator, and the backups of the present incarnation.
#[derive(Default)]
pub struct Operator {
    /// Counts what was asked; an answer to anything but the newest is left aside.
    asked: u64,
    target: usize,
    making: Making,
    backups: Vec<Backup>,
}

/// A backup that is being made.
#[derive(Default)]
struct Making {
    /// 0 if none is.
    id: u128,
    number: u64,
    /// Everything up to here was committed before it was begun: it must have that.
    needs: Index,
    begin: Option<BackupBegin>,
    rows: Vec<Entry>,
}

/// A complete backup.
struct Backup {
    begin: BackupBegin,
    rows: Vec<Entry>,
    end: BackupEnd,
}

impl World {
    /// Asks for the next piece (again), unless another one was asked for since.
    pub(crate) fn back_up(&mut self, asked: u64) {
        if self.healed || asked != self.operator.asked {
            return;
        }
        if self.operator.making.id == 0 {
            let (id, needs) = (self.rng.random_range(1..=u128::MAX), self.ledger.last());
            self.operator.making = Making { id, needs, ..Making::default() };
        }
        let other = self.rng.random_range(0..self.nodes.len());
        let node = if self.rng.random_ratio(1, 4) { other } else { self.operator.target };
        self.operator.asked += 1;
        let Operator { asked, making: Making { id, number, .. }, .. } = self.operator;
        let from = ReplyTo { connection: self.clients.len() as u64, call: CallId(asked) };
        let request = Request::Backup { id, number };
        self.transmit(|_| Happening::Request { node, from, request: request.clone() });
        self.agenda.schedule(PATIENCE, Happening::BackUp { asked });
    }

    /// Takes a piece.
    pub(crate) fn take_piece(&mut self, asked: u64, answer: Answer) -> Finding {
        if asked != self.operator.asked {
            return Ok(());
        }
        let operator = &mut self.operator;
        let making = &mut operator.making;
        match answer {
            Answer::NotPrimary { primary: Some(primary), .. } => {
                operator.target = primary.parse().expect("addresses are numbers here");
                return Ok(());
            }
            Answer::NotPrimary { primary: None, .. }
            | Answer::AskAgain
            | Answer::Refused(Refusal::Busy(_)) => return Ok(()),
            Answer::Backup(Some(BackupRecord::Begin(begin))) => making.begin = Some(begin),
            Answer::Backup(Some(BackupRecord::Rows(rows))) => {
                making.rows.push(Entry::decode(&rows).map_err(|error| error.to_string())?);
            }
            Answer::Backup(Some(BackupRecord::End(end))) => {
                let Making { needs, begin, rows, .. } = std::mem::take(making);
                let begin = begin.ok_or("I9: a backup has no begin")?;
                let backup = Backup { begin, rows, end };
                self.judge(&backup, needs)?;
                self.say(|_| format!("a backup holds what was up to {}", backup.end.index));
                self.operator.backups.push(backup);
                self.operator.asked += 1;
                let asked = self.operator.asked;
                let rest = self.rng.random_range(0..SECOND);
                self.agenda.schedule(rest, Happening::BackUp { asked });
                return Ok(());
            }
            // It has ended: another one.
            Answer::Backup(None) | Answer::Refused(Refusal::Invalid(_)) => {
                *making = Making::default();
                return Ok(());
            }
            other => return Err(format!("I9: the operator is told {other:?}")),
        }
        making.number += 1;
        self.back_up(asked);
        Ok(())
    }

    /// I9: a backup is the state after one record of this incarnation, and everything that was
    /// acknowledged before it was begun is in it.
    fn judge(&self, backup: &Backup, needs: Index) -> Finding {
        let end = Index(backup.end.index);
        let mut rows: BTreeMap<(Table, Bytes), Bytes> = BTreeMap::new();
        for Effect { table, key, value } in backup.rows.iter().flat_map(|entry| &entry.effects) {
            match value {
                Some(value) => rows.insert((*table, key.clone()), value.clone()),
                None => rows.remove(&(*table, key.clone())),
            };
        }
        let fold = &self.ledger.fold;
        let is_so = backup.begin.incarnation == fold.incarnation && rows == fold.rows_after(end);
        if is_so && (needs..=self.ledger.last()).contains(&end) {
            return Ok(());
        }
        Err(format!("I9: a backup up to {end}, begun after {needs}, is not the history"))
    }

    /// Restores the cluster from some backup, if there is one.
    pub(crate) fn restore(&mut self) -> Finding {
        if self.operator.backups.is_empty() {
            return Ok(());
        }
        self.audit_history(false)?;
        let at = self.rng.random_range(0..self.operator.backups.len());
        let backup = self.operator.backups.swap_remove(at);
        let end = Index(backup.end.index);
        let incarnation = match self.plan.blunder {
            Some(Blunder::RestoredInSameIncarnation) => backup.begin.incarnation,
            _ => backup.begin.incarnation.following(Calendar(0).show(self.agenda.now()).0),
        };
        self.say(|_| format!("all is restored up to {end}, in incarnation {incarnation}"));
        self.see_restore(end);
        self.operator = Operator { asked: self.operator.asked + 1, ..Operator::default() };
        let asked = self.operator.asked;
        self.agenda.schedule(SECOND / 2, Happening::BackUp { asked });
        // The authority is another one. What was on its way to the one before arrives nowhere.
        self.agenda.retain(|it| !matches!(it, Happening::Ask { .. } | Happening::Told { .. }));
        self.swaps_under_way = 0;
        self.register = Versioned { revision: Revision(0), register: None };
        self.ledger.restore(end, incarnation)?;
        self.copies.restore(end);
        self.history.begin_anew(end, self.agenda.now());
        for node in 0..self.nodes.len() {
            self.replace_disk(node);
            let after = self.rng.random_range(0..SECOND / 2);
            self.agenda.schedule(after, Happening::Start { node });
        }
        let first = &mut self.nodes[0];
        let built = build(&first.disk, first.store, &backup, incarnation);
        first.replaced = Some(built.map_err(|error| format!("I9: a restore fails: {error}"))?);
        Ok(())
    }

    fn see_restore(&mut self, end: Index) {
        self.report.see(Sight::Restored);
        if end < self.ledger.last() {
            self.report.see(Sight::RestoredWithLoss);
        }
        let mut calls = self.clients.iter().flat_map(|client| client.calls.values());
        if calls.any(|call| matches!(call.purpose, Purpose::Execute { .. })) {
            self.report.see(Sight::RestoredUnderWay);
        }
    }
}

/// Builds the store on an empty disk, as `node/src/restore.rs` does.
fn build(
    disk: &MemoryDisk,
    store: StoreId,
    backup: &Backup,
    incarnation: Incarnation,
) -> Result<Mark, OpenError> {
    let Backup { begin, rows, end } = backup;
    let mut incoming = open(disk.disk(), &Options::new(store.0))?.checkpointer.begin_incoming()?;
    for entry in rows {
        incoming.fold(entry)?;
    }
    assert_eq!(incoming.digests(), Digests::from_sums(end.digests), "I9: the digests of a backup");
    let mark = Mark { index: Index(end.index), view: View(end.view.0), chain: end.chain };
    let state = Saved::restored(begin.cluster, incarnation, mark.view).encode();
    incoming.finish(mark, state)?;
    Ok(mark)
}
