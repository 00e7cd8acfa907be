//! The one replica that executes: it closes records, feeds its followers and commits. Who belongs
//! to its view: `members`.
//!
//! # Invariants
//! - I1: committed is durable here and acknowledged, in this view, by every replica of the view,
//!   and of the view that an unresolved proposal may have made.
//! - I7: a reply waits in `waiters` for its index, and leaves by commit or as `AskAgain`.
//! - The duplicate table exists, and requests execute, only once everything that was found in the
//!   log is committed in this view.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use onlyonce_storage::{Checkpoint, Entry, Index, Record, View};
use onlyonce_wire::authority::Member;
use onlyonce_wire::client::Answer;
use onlyonce_wire::{StoreId, limits};
use rand::Rng;

use crate::agreement::Agreement;
use crate::backup::Backup;
use crate::duplicates::DuplicateTable;
use crate::event::{Effect, Moment};
use crate::follower::Follower;
use crate::forgetful::Forgetting;
use crate::incarnation::Ending;
use crate::limits::{RECORD_BYTES_TARGET, RECORDS_IN_FLIGHT_MAX, REMEMBERED_MAX};
use crate::marks::Mark;
use crate::message::{FeedId, PeerMessage, Position};
use crate::mutations::Rule;
use crate::progress::Progress;
use crate::replica::{Replica, Role, Stop};
use crate::snapshot::Sending;
use crate::waiters::Waiters;

/// What a primary knows beside its log.
pub(crate) struct Primary {
    /// The duplicate table; none while opening.
    pub(crate) table: Option<DuplicateTable>,
    /// Opens when this index is committed.
    pub(crate) opens_at: Index,
    /// How far the sessions of an earlier incarnation are ended, while this is not open.
    pub(crate) ending: Ending,
    /// How far a forgetful node has forgotten.
    pub(crate) forgetting: Forgetting,
    /// The view's backups, and learners.
    pub(crate) followers: BTreeMap<StoreId, Progress>,
    /// A learner that is nearly ready, and since when commits wait for it.
    pub(crate) candidate: Option<(StoreId, Moment)>,
    /// The entries of the record that is not yet closed; they are staged.
    pub(crate) open: Vec<Entry>,
    open_bytes: usize,
    pub(crate) waiters: Waiters,
    last_heartbeat: Moment,
    pub(crate) last_expiry: Moment,
    /// A snapshot on its way to a learner.
    pub(crate) sending: Option<Sending>,
    /// A backup that a client makes.
    pub(crate) backup: Option<Backup>,
    pub(crate) agreement: Agreement,
    /// What is remembered of stores that were dropped from the view.
    dropped: HashMap<StoreId, Progress>,
}

impl Primary {
    fn remember_dropped(&mut self, store: StoreId, progress: Progress) {
        if self.dropped.len() >= REMEMBERED_MAX {
            self.dropped.clear();
        }
        self.dropped.insert(store, progress);
    }
}

impl Replica {
    /// Begins to lead the view that is known and saved: first, everything in the log must commit.
    pub(crate) fn become_primary(&mut self) -> Result<(), Stop> {
        let opens_at = self.state.last().1.next();
        let primary = Primary {
            table: None,
            opens_at,
            ending: Ending::default(),
            forgetting: Forgetting::default(),
            followers: BTreeMap::new(),
            candidate: None,
            open: Vec::new(),
            open_bytes: 0,
            waiters: Waiters::default(),
            last_heartbeat: self.now,
            last_expiry: self.now,
            sending: None,
            backup: None,
            agreement: Agreement::default(),
            dropped: HashMap::new(),
        };
        self.role = Role::Primary(Box::new(primary));
        self.continue_in_view_with(opens_at);
        self.put_mark()
    }

    /// Whether requests execute.
    pub(crate) fn is_open(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.table.is_some())
    }

    /// Puts a record without entries after all that was executed.
    pub(crate) fn put_mark(&mut self) -> Result<(), Stop> {
        self.seal_record()?;
        let (view, index) = (self.view(), self.open_index());
        let record = Record::new(view, index, self.state.committed(), Vec::new());
        self.persist(Arc::new(record));
        self.feed_all()
    }

    /// The same primary, in the next view.
    pub(crate) fn continue_in_view(&mut self) -> Result<(), Stop> {
        let next = self.state.last().1.next();
        self.continue_in_view_with(next);
        self.feed_all()?;
        self.advance_commit()
    }

    fn continue_in_view_with(&mut self, next: Index) {
        let now = self.now;
        let known = self.known.as_ref().expect("a primary knows its view");
        let backups = known.register.backups.clone();
        let Role::Primary(primary) = &mut self.role else { return };
        primary.candidate = None;
        let mut old = std::mem::take(&mut primary.followers);
        for backup in backups {
            let learned = old.contains_key(&backup.store);
            let feed = FeedId(self.rng.random());
            let mut progress = old
                .remove(&backup.store)
                .unwrap_or_else(|| Progress::new(backup.clone(), feed, next, now));
            progress.begin_view(next);
            if !std::mem::replace(&mut progress.replica, true) && learned {
                self.marks.hit(Mark::LearnerPromoted);
            }
            primary.followers.insert(backup.store, progress);
        }
        for (store, mut progress) in old {
            if progress.replica {
                progress.replica = false;
                progress.note_dropped(now);
                primary.remember_dropped(store, progress);
            } else {
                progress.begin_view(next);
                primary.followers.insert(store, progress);
            }
        }
        self.send_heartbeats();
    }

    /// Loses the primacy: what waits gets no answer from here.
    pub(crate) fn step_down(&mut self) {
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return };
        let waiters = primary.waiters.take_upto(Index(u64::MAX - 1));
        tracing::warn!(waiting = waiters.len(), "step down");
        if !waiters.is_empty() {
            self.marks.hit(Mark::SteppedDownWithWaiters);
        }
        let backup = primary.backup.take().and_then(|backup| backup.waiter());
        let waiters = waiters.into_iter().map(|(to, _)| to);
        for to in waiters.chain(backup) {
            self.effects.push(Effect::Reply { to, answer: Answer::AskAgain });
        }
        self.state.unstage_after(self.state.last().1);
        self.role = Role::Follower(Follower::new(now, std::time::Duration::ZERO));
    }

    /// The index of the entry that is executed now.
    pub(crate) fn open_index(&self) -> Index {
        self.state.last().1.next()
    }

    /// Whether the record at `index`, or one before the checkpoint for [`Index::ZERO`], may be this
    /// primary's own work.
    pub(crate) fn may_have_made(&self, index: Index) -> bool {
        let Role::Primary(primary) = &self.role else { return false };
        let index = if index == Index::ZERO { self.state.applied() } else { index };
        index >= primary.opens_at
    }

    /// Adds the entry of one request to the open record.
    pub(crate) fn add_entry(&mut self, entry: Entry) -> Result<(), Stop> {
        let index = self.open_index();
        self.state.stage(index, &entry);
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        primary.open_bytes += entry.bytes();
        primary.open.push(entry);
        if primary.open_bytes >= RECORD_BYTES_TARGET { self.seal_record() } else { Ok(()) }
    }

    /// Group commit: what gathered while earlier records were under way becomes one record.
    pub(crate) fn close_record(&mut self) -> Result<(), Stop> {
        let in_flight = self.state.last().1.0 - self.state.committed().0;
        if in_flight >= RECORDS_IN_FLIGHT_MAX {
            return Ok(());
        }
        self.seal_record()
    }

    fn seal_record(&mut self) -> Result<(), Stop> {
        let view = self.view();
        let index = self.open_index();
        let committed = self.state.committed();
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        if primary.open.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut primary.open);
        primary.open_bytes = 0;
        let record = Arc::new(Record::new(view, index, committed, entries));
        self.logged_bytes += record.bytes() as u64;
        self.state.push(Arc::clone(&record));
        self.write(record);
        self.feed_all()
    }

    fn feed_all(&mut self) -> Result<(), Stop> {
        let Role::Primary(primary) = &self.role else { return Ok(()) };
        let stores: Vec<StoreId> = primary.followers.keys().copied().collect();
        stores.into_iter().try_for_each(|store| self.feed(store))
    }

    /// Sends a follower what it lacks, as far as there is room on the way.
    fn feed(&mut self, store: StoreId) -> Result<(), Stop> {
        let view = self.view();
        let committed = self.state.committed();
        let last = self.state.last().1;
        loop {
            let Role::Primary(primary) = &mut self.role else { return Ok(()) };
            let Some(progress) = primary.followers.get_mut(&store) else { return Ok(()) };
            if !progress.wants_append(last) {
                return Ok(());
            }
            let (floor_view, floor) = self.state.floor();
            if progress.next <= floor {
                // The log begins later: its lowest place may be in the follower's log too.
                progress.rewind(floor.next());
            }
            let before = progress.next.previous();
            let before_view =
                if before == floor { Some(floor_view) } else { self.state.view_at(before)? };
            // None if the log writer pruned it this very moment: the floor has risen.
            let Some(before_view) = before_view else { continue };
            let records = if progress.next > last {
                Vec::new()
            } else {
                self.state.records(progress.next, self.config.limits.append_bytes)?
            };
            let end = records.last().map_or(before, |record| record.index);
            let bytes = records.iter().map(|record| record.bytes()).sum();
            progress.note_sent(before, end, bytes, self.now);
            let feed = progress.feed;
            let records = records.iter().map(|record| record.encode()).collect();
            let previous = Position { view: before_view, index: before };
            self.send(store, PeerMessage::Append { view, feed, previous, committed, records });
        }
    }

    /// The follower that answers an append, if that was of the present view and feed.
    fn fed(&mut self, from: StoreId, view: View, feed: FeedId) -> Option<&mut Progress> {
        self.follower(from, view).filter(|progress| progress.feed == feed)
    }

    /// The follower with this store id, if the message is of the present view.
    fn follower(&mut self, from: StoreId, view: View) -> Option<&mut Progress> {
        if view != self.view() {
            return None;
        }
        match &mut self.role {
            Role::Primary(primary) => primary.followers.get_mut(&from),
            Role::Starting(_) | Role::Recovering(_) | Role::Follower(_) | Role::Stopped => None,
        }
    }

    pub(crate) fn on_append_ok(
        &mut self,
        from: StoreId,
        view: View,
        feed: FeedId,
        matched: Index,
    ) -> Result<(), Stop> {
        let last = self.state.last().1;
        let Some(progress) = self.fed(from, view, feed) else { return Ok(()) };
        if matched > last {
            return Err(Stop(format!(
                "node {from} acknowledged record {matched} of view {view}, but this primary's log ends at {last}: an acknowledgement of records that were never sent"
            )));
        }
        progress.acknowledge(matched);
        self.feed(from)?;
        self.advance_commit()
    }

    pub(crate) fn on_append_mismatch(
        &mut self,
        from: StoreId,
        view: View,
        feed: FeedId,
        previous: Index,
        committed: Index,
    ) -> Result<(), Stop> {
        let last = self.state.last().1;
        let floor = self.state.floor().1;
        let Some(progress) = self.fed(from, view, feed) else { return Ok(()) };
        let answers = progress.mismatch(previous, committed.min(last));
        if answers && previous == floor && committed < floor {
            // Its log has nothing in common with this one.
            let (member, process) = (progress.member.clone(), progress.process);
            if let Role::Primary(primary) = &mut self.role {
                primary.followers.remove(&from);
            }
            self.begin_snapshot(member, process);
            return Ok(());
        }
        self.feed(from)
    }

    /// The log from this index on is needed by learners, or by a backup: what follows it, and itself as
    /// the place after which that is sent.
    pub(crate) fn log_pin(&self) -> Option<Index> {
        let Role::Primary(primary) = &self.role else { return None };
        let learners = primary.followers.values().filter(|it| !it.replica);
        let floor = self.state.floor().1;
        let learners = learners.map(|learner| learner.matched.max(floor));
        let snapshot = primary.sending.iter().map(|sending| sending.source.after);
        let backup = primary.backup.iter().filter_map(Backup::pin);
        learners.chain(snapshot).chain(backup).min()
    }

    pub(crate) fn on_holds_committed(
        &mut self,
        from: StoreId,
        view: View,
        index: Index,
    ) -> Result<(), Stop> {
        if self.follower(from, view).is_none() {
            return Ok(());
        }
        Err(Stop(format!(
            "this primary's log differs from node {from}'s at the committed index {index}: this store has lost committed records. Give this node a new, empty folder; the others take over and it catches up"
        )))
    }

    pub(crate) fn on_echo(
        &mut self,
        from: StoreId,
        view: View,
        nonce: u128,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(), Stop> {
        let now = self.now;
        let from_receipt = self.breaks(Rule::LeaseFromReceipt);
        let Some(progress) = self.follower(from, view) else { return Ok(()) };
        progress.take_echo(nonce, now, from_receipt);
        checkpoint.map_or(Ok(()), |checkpoint| self.compare(from, checkpoint))
    }

    /// A follower asks to be fed: a new learner, or a replica that was restarted or cut off.
    pub(crate) fn on_join(
        &mut self,
        from: StoreId,
        member: Member,
        process: u64,
        committed: Index,
    ) -> Result<(), Stop> {
        let now = self.now;
        let next = committed.min(self.state.last().1).next();
        if !matches!(self.role, Role::Primary(_)) {
            self.redirect_join(from);
            return Ok(());
        }
        if member.store != from {
            return Ok(());
        }
        self.effects.push(Effect::Know(member.clone()));
        if self.goes_on_sending(from, process) {
            return Ok(());
        }
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let met = primary.followers.contains_key(&from);
        let feed = FeedId(self.rng.random());
        if !met && primary.followers.len() >= limits::REPLICAS_MAX {
            return Ok(());
        }
        let mut progress = match primary.followers.remove(&from) {
            Some(progress) => progress,
            None => match primary.dropped.remove(&from) {
                Some(progress) => {
                    self.marks.hit(Mark::DroppedStoreReturned);
                    progress
                }
                None => Progress::new(member.clone(), feed, next, now),
            },
        };
        if !met || progress.process != process {
            tracing::info!(follower = member.name, next = next.0, "feed follower");
            if !met {
                progress.feed = feed;
                progress.begin_view(next);
                progress.meet(now);
            }
            progress.rewind(next);
        }
        progress.member = member;
        progress.note_process(process);
        primary.followers.insert(from, progress);
        self.send_heartbeat(from);
        self.feed(from)
    }

    fn redirect_join(&mut self, from: StoreId) {
        if let Some(known) = &self.known {
            let (register, revision) = (known.register.clone(), known.revision);
            self.send(from, PeerMessage::NewerView { register, revision });
        }
    }

    pub(crate) fn on_peer_connected(&mut self, peer: StoreId) -> Result<(), Stop> {
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let Some(progress) = primary.followers.get_mut(&peer) else { return Ok(()) };
        progress.rewind_to_matched();
        self.send_heartbeat(peer);
        self.feed(peer)
    }

    /// The replicas, this one left out, on which a record must be durable: those of the view, and
    /// those of the view that an unresolved proposal may have made.
    fn others(&self) -> BTreeSet<StoreId> {
        let me = self.config.me.store;
        let known = self.known.iter().flat_map(|known| known.register.replicas());
        let proposal =
            self.proposal.iter().filter(|_| !self.breaks(Rule::IgnoresUnresolvedProposal));
        let proposed = proposal.flat_map(|proposal| proposal.register.replicas());
        known.chain(proposed).map(|member| member.store).filter(|store| *store != me).collect()
    }

    /// Commits what is durable everywhere, and lets the replies go.
    pub(crate) fn advance_commit(&mut self) -> Result<(), Stop> {
        let mut others = self.others();
        if self.breaks(Rule::CommitsWithoutBackup) {
            others.pop_last();
        }
        let copies = 1 + self.known.as_ref().map_or(0, |known| known.register.backups.len());
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        if copies < self.config.min_copies {
            if self.state.persisted() > self.state.committed() {
                self.marks.hit(Mark::CommitHeldByMinCopies);
            }
            return Ok(());
        }
        let candidate = primary.candidate.as_ref().map(|(store, _)| store);
        let matched = |store| primary.followers.get(store).map_or(Index::ZERO, |it| it.matched);
        let durable =
            others.iter().chain(candidate).map(matched).fold(self.state.persisted(), Index::min);
        self.mark_waiting(&others, durable);
        if durable <= self.state.committed() {
            return Ok(());
        }
        self.commit(durable);
        self.answer_waiters(durable);
        let Role::Primary(primary) = &self.role else { return Ok(()) };
        if primary.table.is_none() && durable >= primary.opens_at { self.open() } else { Ok(()) }
    }

    /// Everything that was found in the log is committed: from now on requests are executed, once
    /// no session is left that an earlier incarnation opened.
    pub(crate) fn open(&mut self) -> Result<(), Stop> {
        // The first tick tells the time, and comes soon.
        if self.wall.is_none() {
            return Ok(());
        }
        let waits =
            if self.is_forgetful() { self.forget_duplicates() } else { self.end_old_sessions() };
        if waits? {
            return Ok(());
        }
        let retention = self.config.timing.key_retention;
        let mut table = DuplicateTable::load(&self.state, self.now, self.config.limits, retention)?;
        if self.breaks(Rule::WatermarkForgotten) {
            table.forget_watermarks();
        }
        if self.breaks(Rule::FloorLowered) {
            table.keys_mut().lower_floor();
        }
        tracing::info!(
            sessions = table.sessions(),
            committed = self.state.committed().0,
            "open: everything found in the log is committed"
        );
        if let Role::Primary(primary) = &mut self.role {
            primary.table = Some(table);
        }
        // The clock is logged before the first key is remembered: how long that is kept rests on it.
        self.tick_keys()
    }

    /// Whether this node may answer from its newest state: nobody else can be the primary now.
    pub(crate) fn lease_holds(&self) -> bool {
        let Role::Primary(primary) = &self.role else { return false };
        let lease = self.config.timing.lease;
        self.others().iter().all(|store| {
            primary
                .followers
                .get(store)
                .is_some_and(|progress| progress.lease_holds(self.now, lease))
        })
    }

    fn send_heartbeats(&mut self) {
        let Role::Primary(primary) = &mut self.role else { return };
        primary.last_heartbeat = self.now;
        let sending = primary.sending.as_ref().map(|sending| sending.member.store);
        let stores: Vec<StoreId> = primary.followers.keys().copied().chain(sending).collect();
        for store in stores {
            self.send_heartbeat(store);
        }
    }

    /// Sends a heartbeat, unless this node's own disk hangs: then others are to take over, and
    /// nothing may make them wait, also not an answer to their asking.
    fn send_heartbeat(&mut self, store: StoreId) {
        if self.flush_is_stuck() {
            self.marks.hit(Mark::HeartbeatWithheld);
            return;
        }
        let Some(known) = &self.known else { return };
        let (register, revision) = (known.register.clone(), known.revision);
        let committed = self.state.committed();
        let nonce = self.rng.random();
        let Role::Primary(primary) = &mut self.role else { return };
        if let Some(progress) = primary.followers.get_mut(&store) {
            progress.note_heartbeat(nonce, self.now);
        }
        self.send(store, PeerMessage::Heartbeat { nonce, register, revision, committed });
    }

    pub(crate) fn tick_primary(&mut self) -> Result<(), Stop> {
        let timing = self.config.timing;
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        if now.since(primary.last_heartbeat) >= timing.heartbeat {
            self.send_heartbeats();
        }
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let mut late = Vec::new();
        for (store, progress) in &mut primary.followers {
            if progress.resend_is_due(now, timing.resend) {
                self.marks.hit(Mark::AppendRepeated);
                progress.rewind_to_matched();
                late.push(*store);
            }
        }
        late.into_iter().try_for_each(|store| self.feed(store))?;
        self.tick_snapshot()?;
        self.tick_backup()?;
        self.change_members();
        self.tick_ending()?;
        self.expire_sessions()?;
        self.tick_keys()
    }
}
