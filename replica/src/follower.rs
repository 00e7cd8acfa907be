//! A node that takes records from the primary: a backup of the view, or a learner.
//!
//! # Invariants
//! - `matched` is the last index that is known to equal the log of this view's primary, as told by
//!   that primary in this view. It is what is acknowledged, never the end of the log.
//! - Nothing at or below `committed` is ever cut.
//! - A backup with a proposal of its own neither acknowledges nor echoes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_storage::{Index, Record, View, limits::OVERLAY_BYTES_MAX};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::{Register, Revision};

use crate::event::Moment;
use crate::marks::Mark;
use crate::message::{FeedId, PeerMessage, Position};
use crate::mutations::Rule;
use crate::replica::{Replica, Role, Stop, decode_records, view_of};
use crate::snapshot::Receiving;

/// What a follower knows beside its log. It lives as long as one view.
pub(crate) struct Follower {
    /// Up to here this log equals the primary's, which said so in this view.
    pub(crate) matched: Index,
    /// The feed of the newest append.
    feed: FeedId,
    /// The highest index acknowledged in this view.
    acknowledged: Option<Index>,
    /// What the primary says is committed; this node takes it as far as it has matched.
    told_committed: Index,
    /// The latest of: the last echo, the learning of this view.
    grace_from: Moment,
    /// Random, beyond the grace.
    jitter: Duration,
    heard: Moment,
    joined: Moment,
    /// A snapshot on its way here.
    pub(crate) receiving: Option<Receiving>,
}

impl Follower {
    pub(crate) fn new(now: Moment, jitter: Duration) -> Self {
        Self {
            matched: Index::ZERO,
            feed: FeedId::default(),
            acknowledged: None,
            told_committed: Index::ZERO,
            grace_from: now,
            jitter,
            heard: now,
            joined: Moment::default(),
            receiving: None,
        }
    }

    /// Whether it is not known to have all that is committed.
    pub(crate) fn is_catching_up(&self) -> bool {
        self.matched < self.told_committed
    }
}

impl Replica {
    /// Whether `from` speaks as the primary of the view that this follower is in. Who speaks for an
    /// older view is told of the newer one.
    pub(crate) fn is_from_my_primary(&mut self, from: StoreId, view: View) -> bool {
        let Some(known) = &self.known else { return false };
        if view < view_of(&known.register) {
            if self.breaks(Rule::AcceptsOldView) {
                return matches!(self.role, Role::Follower(_));
            }
            self.marks.hit(Mark::StalePrimaryTold);
            let (register, revision) = (known.register.clone(), known.revision);
            self.send(from, PeerMessage::NewerView { register, revision });
            return false;
        }
        matches!(self.role, Role::Follower(_))
            && view == view_of(&known.register)
            && from == known.register.primary.store
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        from: StoreId,
        nonce: u128,
        register: &Register,
        revision: Revision,
        committed: Index,
    ) {
        let view = view_of(register);
        self.hear_of_view(register, revision);
        if !self.is_from_my_primary(from, view) {
            return;
        }
        let stuck = self.flush_is_stuck();
        let promises = self.proposal.is_none() || self.breaks(Rule::ProposerPromises);
        let now = self.now;
        let Role::Follower(follower) = &mut self.role else { return };
        follower.heard = now;
        follower.told_committed = follower.told_committed.max(committed);
        if promises && !stuck {
            follower.grace_from = now;
            let checkpoint = self.checkpointing.newest();
            self.send(from, PeerMessage::Echo { view, nonce, checkpoint });
        } else if promises {
            self.marks.hit(Mark::EchoWithheldByFlush);
        } else {
            self.marks.hit(Mark::EchoWithheldByProposal);
        }
        self.follow_committed();
    }

    pub(crate) fn on_append(
        &mut self,
        from: StoreId,
        (view, feed): (View, FeedId),
        previous: Position,
        committed: Index,
        records: Vec<Bytes>,
    ) -> Result<(), Stop> {
        if !self.is_from_my_primary(from, view) {
            return Ok(());
        }
        if self.proposal.is_some() && !self.breaks(Rule::ProposerPromises) {
            self.marks.hit(Mark::AppendIgnoredByProposal);
            return Ok(());
        }
        if self.state.overlay_bytes() > OVERLAY_BYTES_MAX && self.makes_room() {
            // The primary sends it again.
            return Ok(());
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.feed = feed;
        }
        if self.state.view_at(previous.index)? != Some(previous.view) {
            return self.refuse_append(from, view, feed, previous);
        }
        let Some(records) = decode_append(view, previous, records) else {
            tracing::warn!(%from, "ignore an append whose records do not follow each other");
            return Ok(());
        };
        self.note_matched(previous.index);
        for record in records {
            if !self.take_record(from, view, record)? {
                return Ok(());
            }
        }
        let Role::Follower(follower) = &mut self.role else { return Ok(()) };
        follower.told_committed = follower.told_committed.max(committed);
        follower.acknowledged = None;
        self.acknowledge();
        Ok(())
    }

    /// `previous` is not in this log. If it lies in the committed part, the primary's log is wrong.
    fn refuse_append(
        &mut self,
        from: StoreId,
        view: View,
        feed: FeedId,
        previous: Position,
    ) -> Result<(), Stop> {
        let committed = self.state.committed();
        let message =
            if previous.index <= committed && self.state.view_at(previous.index)?.is_some() {
                PeerMessage::HoldsCommitted { view, index: previous.index }
            } else {
                self.marks.hit(Mark::AppendMismatched);
                PeerMessage::AppendMismatch { view, feed, previous: previous.index, committed }
            };
        self.send(from, message);
        Ok(())
    }

    /// Takes one record whose predecessor matches; false when the primary's log is wrong.
    fn take_record(
        &mut self,
        from: StoreId,
        view: View,
        record: Arc<Record>,
    ) -> Result<bool, Stop> {
        let index = record.index;
        if index < self.state.first().min(self.state.committed().next()) {
            // Committed, folded and pruned: there is nothing left to compare it with.
            return Ok(true);
        }
        if index <= self.state.last().1 {
            if self.state.view_at(index)? == Some(record.view) {
                self.note_matched(index);
                return Ok(true);
            }
            if index <= self.state.committed() {
                self.send(from, PeerMessage::HoldsCommitted { view, index });
                return Ok(false);
            }
            tracing::info!(from = index.0, upto = self.state.last().1.0, "cut the log's tail");
            self.marks.hit(Mark::TailCut);
            self.cut(index.previous());
        }
        assert_eq!(index, self.state.last().1.next(), "records of an append are consecutive");
        self.persist(record);
        self.note_matched(index);
        Ok(true)
    }

    fn note_matched(&mut self, index: Index) {
        let Role::Follower(follower) = &mut self.role else { return };
        follower.matched = follower.matched.max(index);
    }

    /// Acknowledges what is matched and durable, once the view is.
    pub(crate) fn acknowledge(&mut self) {
        self.follow_committed();
        let view = self.view();
        let promises = self.proposal.is_none() || self.breaks(Rule::ProposerPromises);
        if self.durable_view < view || !promises {
            return;
        }
        let unpersisted = self.breaks(Rule::AcknowledgesUnpersisted);
        let persisted = if unpersisted { self.state.last().1 } else { self.state.persisted() };
        let log_end = self.breaks(Rule::AcknowledgesLogEnd);
        let Some(known) = &self.known else { return };
        let to = known.register.primary.store;
        let Role::Follower(follower) = &mut self.role else { return };
        let durable = if log_end { persisted } else { follower.matched.min(persisted) };
        if follower.matched > Index::ZERO && follower.acknowledged != Some(durable) {
            follower.acknowledged = Some(durable);
            let feed = follower.feed;
            self.send(to, PeerMessage::AppendOk { view, feed, matched: durable });
        }
    }

    /// I1, I8: committed here is what the primary says, as far as it is matched and durable here.
    fn follow_committed(&mut self) {
        let Role::Follower(follower) = &self.role else { return };
        let committed = follower.told_committed.min(follower.matched).min(self.state.persisted());
        if committed > self.state.committed() {
            self.commit(committed);
        }
    }

    /// Asks to be fed when it hears nothing, or nothing of where the logs match; a backup takes over
    /// after the grace.
    pub(crate) fn tick_follower(&mut self) {
        let timing = self.config.timing;
        let now = self.now;
        let is_backup = self.is_backup();
        let Role::Follower(follower) = &mut self.role else { return };
        let silent = now.since(follower.heard) > timing.resend;
        let receives = follower.receiving.as_ref().is_some_and(|it| !it.is_silent(now, &timing));
        let unmatched = follower.matched == Index::ZERO && !receives;
        if (silent || unmatched) && now.since(follower.joined) > timing.resend {
            follower.joined = now;
            self.join();
            if silent {
                // News of a view may have been missed too.
                self.read_register();
            }
        }
        let Role::Follower(follower) = &mut self.role else { return };
        let quiet = now.since(follower.grace_from);
        let judges = now >= self.lenient_until;
        let due = quiet > timing.grace + follower.jitter;
        if !is_backup || !due || self.proposal.is_some() {
            return;
        }
        if judges {
            tracing::warn!(quiet_ms = quiet.as_millis(), "the primary is silent: take over");
            self.marks.hit(Mark::TakeOver);
            self.propose_myself();
        } else {
            self.marks.hit(Mark::JudgementWithheld);
        }
    }

    fn join(&mut self) {
        let Some(known) = &self.known else { return };
        let to = known.register.primary.store;
        let message = PeerMessage::Join {
            member: self.config.me.clone(),
            process: self.process,
            committed: self.state.committed(),
        };
        self.send(to, message);
    }
}

/// Decodes the records of an append; none unless each follows the one before it, the first
/// `previous`, in views that never fall and never pass the primary's own.
fn decode_append(view: View, previous: Position, records: Vec<Bytes>) -> Option<Vec<Arc<Record>>> {
    let records = decode_records(records).ok()?;
    let mut last = previous;
    for record in &records {
        let follows = record.index == last.index.next();
        if !follows || record.view < last.view || record.view > view {
            return None;
        }
        last = Position { view: record.view, index: record.index };
    }
    Some(records)
}
