//! Catch-up of a learner whose log does not reach the primary's: a snapshot of the primary's tables.
//!
//! ```text
//! primary                                             learner
//! rows, from the first table and key on
//!   ReadRows ─▶ RowsRead ─▶ Snapshot{Effects} ──────▶ Receive ─▶ Received
//!   ...                              SnapshotOk ◀──── (durable or not: it is of use only whole)
//! the effects of the records after s, up to e, that no row shows
//!   Snapshot{Effects} ──────────────────────────────▶ ...
//! Snapshot{End at e} ───────────────────────────────▶ Install: a new process opens the new store
//!                                          Join ◀──── and is fed from e + 1 on
//! ```
//! - What the pieces are, and what `s` and `e`, is told in `source`. The log from `s` on is pinned until
//!   the learner has joined.
//! - Effects of records after `e` that the rows show already are in the primary's log, and no learner
//!   becomes a replica before it has all of that.
//! - One piece is on its way at a time, and is sent again until it is acknowledged; a rest follows. If either
//!   process dies, the snapshot begins anew under another id; a new view of the same process does
//!   not disturb it.
//! - A learner installs a snapshot only if this very process asked for it, and if it ends at or
//!   beyond all that it knows to be committed and all that it acknowledged in this view. What an
//!   earlier process acknowledged the primary may still count: a late copy of a snapshot from before
//!   must not take it away. And what any of them acknowledged before the snapshot was begun counts no
//!   more after it: the primary feeds what joins then by a new feed.

use onlyonce_storage::{Cursor, Digests, Entry, Mark, Rows, Table};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::Member;
use rand::Rng;

use crate::config::Timing;
use crate::event::{Effect, Moment};
use crate::marks;
use crate::message::{PeerMessage, Piece, SnapshotId};
use crate::mutations::Rule;
use crate::replica::{Replica, Role, Stop};
use crate::source::{Next, Source, rest_after};

/// A snapshot on its way to a learner.
pub(crate) struct Sending {
    pub(crate) source: Source,
    pub(crate) member: Member,
    process: u64,
    stage: Stage,
    /// The newest piece.
    number: u64,
    bytes: u64,
    /// When the newest piece was begun.
    begun: Moment,
    sent: Moment,
    progressed: Moment,
    told: Moment,
}

enum Stage {
    /// Rows are being read.
    Reading,
    /// A piece is on its way.
    Sent(Piece),
    /// A piece has arrived. What follows waits, so that requests have disks and processors for
    /// themselves for most of the time.
    Resting { until: Moment },
    /// The learner has all of it, and will join.
    Installing,
}

/// A snapshot on its way to this learner.
pub(crate) struct Receiving {
    id: SnapshotId,
    /// The number of the next piece.
    next: u64,
    /// Whether it is being written.
    writing: bool,
    /// What the rows of the pieces before it come to.
    digests: Digests,
    /// When the newest piece came.
    heard: Moment,
}

impl Receiving {
    /// Whether no piece came for so long that the primary is to be asked again.
    pub(crate) fn is_silent(&self, now: Moment, timing: &Timing) -> bool {
        now.since(self.heard) > timing.append_timeout
    }
}

/// How long a snapshot may stand still, in `append_timeout`s.
pub(crate) const STALL_APPEND_TIMEOUTS: u32 = 10;
/// How often its progress is told.
const PROGRESS_LOG_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);

impl Replica {
    /// Begins to send a snapshot to a store that the log cannot feed.
    pub(crate) fn begin_snapshot(&mut self, member: Member, process: u64) {
        let after = self.state.applied();
        let known = self.is_named(member.store);
        let Role::Primary(primary) = &mut self.role else { return };
        if known || primary.sending.is_some() {
            // It asks again.
            return;
        }
        let id = SnapshotId(self.rng.random());
        tracing::info!(follower = member.name, after = after.0, "send a snapshot");
        self.marks.hit(marks::Mark::TooFarBehindForLog);
        primary.sending = Some(Sending {
            source: Source::new(id, after, self.config.piece_bytes),
            member,
            process,
            stage: Stage::Reading,
            number: 0,
            bytes: 0,
            begun: self.now,
            sent: self.now,
            progressed: self.now,
            told: self.now,
        });
        self.effects.push(Effect::ReadRows { id, from: Cursor::start() });
    }

    /// Whether the view, or that of an unresolved proposal, names this store as a replica.
    fn is_named(&self, store: StoreId) -> bool {
        let known = self.known.iter().map(|known| &known.register);
        let proposed = self.proposal.iter().map(|proposal| &proposal.register);
        known.chain(proposed).any(|register| register.replica(store).is_some())
    }

    fn sending(&mut self, id: SnapshotId) -> Option<&mut Sending> {
        match &mut self.role {
            Role::Primary(primary) => primary.sending.as_mut().filter(|it| it.source.id == id),
            Role::Starting(_) | Role::Recovering(_) | Role::Follower(_) | Role::Stopped => None,
        }
    }

    /// Rows that a snapshot or a backup asked for.
    pub(crate) fn on_rows_read(&mut self, id: SnapshotId, mut rows: Rows) -> Result<(), Stop> {
        let incomplete = self.breaks(Rule::RepliesNotInSnapshot);
        let hasty = self.breaks(Rule::SnapshotWithoutRecords);
        rows.entry.effects.retain(|effect| !(incomplete && effect.table == Table::Replies));
        if let Some(sending) = self.sending(id) {
            sending.source.take_rows(rows, hasty);
            return self.next_piece();
        }
        if let Some(source) = self.backup_source(id) {
            source.take_rows(rows, hasty);
            return self.next_backup_piece();
        }
        Ok(())
    }

    /// Sends the newest piece (again).
    fn send_piece(&mut self) {
        let now = self.now;
        let view = self.view();
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(sending) = &mut primary.sending else { return };
        let Stage::Sent(piece) = &sending.stage else { return };
        sending.sent = now;
        let (process, id, number) = (sending.process, sending.source.id, sending.number);
        let (to, piece) = (sending.member.store, piece.clone());
        self.send(to, PeerMessage::Snapshot { view, process, id, number, piece });
    }

    /// A piece arrived: the next one follows, after a rest.
    pub(crate) fn on_snapshot_ok(
        &mut self,
        from: StoreId,
        id: SnapshotId,
        number: u64,
        digests: Digests,
    ) {
        let now = self.now;
        let Some(sending) = self.sending(id) else { return };
        let Stage::Sent(piece) = &sending.stage else { return };
        if from != sending.member.store || number != sending.number {
            return;
        }
        if sending.source.only_end_is_left() && digests != sending.source.digests {
            tracing::error!(
                "the learner's rows are not what this node's tables came to: check them"
            );
            self.abandon_snapshot("the learner has something else than was sent");
            self.effects.push(Effect::Scrub);
            return;
        }
        sending.bytes += piece.bytes() as u64;
        sending.progressed = now;
        if now.since(sending.told) > PROGRESS_LOG_INTERVAL {
            sending.told = now;
            let follower = &sending.member.name;
            tracing::info!(follower, bytes = sending.bytes, "sending a snapshot");
        }
        sending.number += 1;
        sending.stage = if sending.source.is_complete() {
            let (follower, bytes) = (&sending.member.name, sending.bytes);
            tracing::info!(follower, bytes, "the snapshot is sent");
            Stage::Installing
        } else {
            Stage::Resting { until: rest_after(sending.begun, now) }
        };
    }

    /// The rest is over, or rows were read: the next piece.
    fn next_piece(&mut self) -> Result<(), Stop> {
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let Some(sending) = &mut primary.sending else { return Ok(()) };
        match sending.source.next(&self.state)? {
            Next::Rows(from) => {
                sending.stage = Stage::Reading;
                self.effects.push(Effect::ReadRows { id: sending.source.id, from });
            }
            Next::Piece(piece) => {
                sending.stage = Stage::Sent(piece);
                self.send_piece();
            }
            Next::Lost => self.abandon_snapshot("the log no longer holds what it needs"),
            Next::Nothing => {}
        }
        Ok(())
    }

    fn abandon_snapshot(&mut self, why: &str) {
        let Role::Primary(primary) = &mut self.role else { return };
        if let Some(sending) = primary.sending.take() {
            tracing::warn!(follower = sending.member.name, "give up sending a snapshot: {why}");
            self.marks.hit(marks::Mark::SnapshotGivenUp);
        }
    }

    /// A store joins: if it was sent a snapshot, that has ended when another process asks (the new
    /// store's, or one after a crash), or the same one although it has all of it and dropped it.
    /// Returns whether it goes on.
    pub(crate) fn goes_on_sending(&mut self, to: StoreId, process: u64) -> bool {
        let Role::Primary(primary) = &mut self.role else { return false };
        let sending = primary.sending.as_ref().filter(|sending| sending.member.store == to);
        let Some(sending) = sending else { return false };
        let goes_on = sending.process == process && !matches!(sending.stage, Stage::Installing);
        if !goes_on {
            primary.sending = None;
        }
        goes_on
    }

    /// Repeats what got no answer, and ends what stands still.
    pub(crate) fn tick_snapshot(&mut self) -> Result<(), Stop> {
        let timing = self.config.timing;
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let Some(sending) = &mut primary.sending else { return Ok(()) };
        if let Stage::Resting { until } = sending.stage
            && now >= until
        {
            sending.begun = now;
            return self.next_piece();
        }
        if now.since(sending.progressed) > timing.append_timeout * STALL_APPEND_TIMEOUTS {
            self.abandon_snapshot("it makes no progress");
        } else if now.since(sending.sent) > timing.resend {
            self.send_piece();
        }
        Ok(())
    }

    /// Takes a piece of a snapshot from this view's primary.
    pub(crate) fn on_snapshot(&mut self, id: SnapshotId, number: u64, piece: Piece) {
        let now = self.now;
        let busy = !self.writing.is_empty();
        let committed = self.state.committed();
        if self.is_backup() {
            return;
        }
        let Role::Follower(follower) = &mut self.role else { return };
        if number == 0 && follower.receiving.as_ref().is_none_or(|it| it.id != id) {
            follower.receiving = Some(Receiving {
                id,
                next: 0,
                writing: false,
                digests: Digests::default(),
                heard: now,
            });
        }
        let acknowledged = follower.matched;
        let Some(receiving) = follower.receiving.as_mut().filter(|it| it.id == id) else { return };
        receiving.heard = now;
        if number > receiving.next || receiving.writing {
            return;
        }
        if number < receiving.next {
            self.acknowledge_piece(id, number);
            return;
        }
        match piece {
            Piece::Effects(bytes) => {
                let Ok(entry) = Entry::decode(&bytes) else {
                    tracing::warn!("ignore a piece of a snapshot that does not decode");
                    return;
                };
                receiving.writing = true;
                self.effects.push(Effect::Receive { id, number, entry });
            }
            Piece::End(end) if end.index < committed.max(acknowledged) => {
                tracing::info!(end = end.index.0, committed = committed.0, "drop an old snapshot");
                follower.receiving = None;
                self.acknowledge_piece(id, number);
            }
            // The primary sends it again; what is being written belongs to the old store.
            Piece::End(_) if busy => {}
            Piece::End(end) => self.install(id, number, end),
        }
    }

    /// The old store is at rest: the new one takes its place, with the same promises.
    fn install(&mut self, id: SnapshotId, number: u64, end: Mark) {
        assert!(self.durable_view == self.saved.view, "nothing is being written");
        assert!(self.saved.proposal.is_none(), "a learner has no proposal");
        tracing::info!(end = end.index.0, "install a snapshot");
        self.marks.hit(marks::Mark::SnapshotInstalled);
        self.acknowledge_piece(id, number);
        self.effects.push(Effect::Install { end, state: self.saved.encode() });
        self.role = Role::Stopped;
    }

    pub(crate) fn on_received(&mut self, id: SnapshotId, number: u64, digests: Digests) {
        let Role::Follower(follower) = &mut self.role else { return };
        let Some(receiving) = &mut follower.receiving else { return };
        if receiving.id == id && receiving.writing && receiving.next == number {
            receiving.writing = false;
            receiving.next += 1;
            receiving.digests = digests;
            self.acknowledge_piece(id, number);
        }
    }

    fn acknowledge_piece(&mut self, id: SnapshotId, number: u64) {
        let Some(known) = &self.known else { return };
        let to = known.register.primary.store;
        let Role::Follower(follower) = &self.role else { return };
        let receiving = follower.receiving.as_ref();
        let digests = receiving.map_or_else(Digests::default, |receiving| receiving.digests);
        self.send(to, PeerMessage::SnapshotOk { id, number, digests });
    }
}
