//! A restarted primary: what it may have lost, its backups still hold.
//!
//! It never goes on in its view. It asks every backup for the records of that view directly after
//! its own last one, appends them unchanged, and proposes the next view with the same members.

use std::collections::BTreeMap;

use bytes::Bytes;
use onlyonce_storage::View;
use onlyonce_wire::StoreId;

use crate::event::Moment;
use crate::marks::Mark;
use crate::message::{PeerMessage, Position};
use crate::replica::{Replica, Role, Stop, decode_records};

/// A restarted primary that asks its backups for what it may have lost.
pub(crate) struct Recovering {
    since: Moment,
    asked: Moment,
    /// Per backup: whether it said that it has nothing more.
    finished: BTreeMap<StoreId, bool>,
}

impl Replica {
    /// A restarted primary never goes on in its view: first it asks for what it may have lost.
    pub(crate) fn recover(&mut self) {
        let known = self.known.as_ref().expect("a view was adopted");
        let finished = known.register.backups.iter().map(|backup| (backup.store, false)).collect();
        self.role = Role::Recovering(Recovering { since: self.now, asked: self.now, finished });
        self.ask_for_tail();
    }

    fn ask_for_tail(&mut self) {
        let after = self.last_position();
        let view = self.view();
        let Role::Recovering(recovering) = &mut self.role else { return };
        recovering.asked = self.now;
        let open = recovering.finished.iter().filter(|(_, finished)| !**finished);
        let open: Vec<StoreId> = open.map(|(store, _)| *store).collect();
        if open.is_empty() {
            self.propose_same_members();
        }
        for store in open {
            self.send(store, PeerMessage::FetchTail { view, after });
        }
    }

    /// Answers a restarted primary with the records of `view` directly after `after`.
    pub(crate) fn on_fetch_tail(
        &mut self,
        from: StoreId,
        view: View,
        after: Position,
    ) -> Result<(), Stop> {
        let matches = self.state.view_at(after.index)? == Some(after.view);
        let mut records = Vec::new();
        if matches {
            for record in self.state.records(after.index.next(), self.config.limits.append_bytes)? {
                if record.view != view || record.index > self.state.persisted() {
                    break;
                }
                records.push(record.encode());
            }
        }
        self.send(from, PeerMessage::Tail { view, after, records });
        Ok(())
    }

    /// Takes the records that a backup holds beyond this restarted primary's log, unchanged.
    pub(crate) fn on_tail(
        &mut self,
        from: StoreId,
        view: View,
        after: Position,
        records: Vec<Bytes>,
    ) {
        if view != self.view() || self.proposal.is_some() {
            return;
        }
        let fits = after == self.last_position();
        let Role::Recovering(recovering) = &mut self.role else { return };
        let Some(finished) = recovering.finished.get_mut(&from) else { return };
        if records.is_empty() && fits {
            *finished = true;
        }
        let Ok(records) = decode_records(records) else { return };
        for record in records {
            let fits = record.index == self.state.last().1.next() && record.view == view;
            if fits {
                self.marks.hit(Mark::TailRecovered);
                self.persist(record);
            }
        }
        self.ask_for_tail();
    }

    fn propose_same_members(&mut self) {
        let known = self.known.as_ref().expect("a view was adopted");
        let backups = known.register.backups.clone();
        self.propose_view(backups);
    }

    /// Asks again, or goes on with what it has.
    pub(crate) fn tick_recovery(&mut self) {
        let timing = self.config.timing;
        let Role::Recovering(recovering) = &self.role else { return };
        if self.now.since(recovering.since) > timing.append_timeout {
            self.marks.hit(Mark::RecoveryTimedOut);
            self.propose_same_members();
        } else if self.now.since(recovering.asked) > timing.resend {
            self.ask_for_tail();
        }
    }
}
