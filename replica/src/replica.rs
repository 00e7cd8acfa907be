//! The state machine: what a node holds, and the one function that changes it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use onlyonce_storage::{Index, Record, State, View};
use onlyonce_wire::authority::{Member, Register, Revision};
use onlyonce_wire::{ClusterId, Incarnation, StoreId};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::checkpoint::Checkpointing;
use crate::config::{Config, Duplicates, Mode};
use crate::duplicates::DuplicateTable;
use crate::event::{Effect, Event, Moment, ReadId, WallTime};
use crate::follower::Follower;
use crate::keys::Keys;
use crate::marks::{Mark, Marks};
use crate::message::{PeerMessage, Position};
use crate::mutations::Rule;
use crate::primary::Primary;
use crate::proposal::Proposal;
use crate::recovery::Recovering;
use crate::saved::{Owner, Saved};
use crate::views::Starting;

/// Why a replica must not go on. The process ends with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Stop(pub String);

impl From<onlyonce_storage::StorageError> for Stop {
    fn from(error: onlyonce_storage::StorageError) -> Self {
        Self(format!("the store cannot be read: {error}"))
    }
}

impl From<crate::rows::BadRow> for Stop {
    fn from(error: crate::rows::BadRow) -> Self {
        Self(format!("the store is damaged: {error}"))
    }
}

/// One node of Onlyonce, without its clock, sockets and threads.
///
/// # Invariants
/// - I2: `saved.view` never falls; `durable_view ≤ saved.view`; nothing is acknowledged in a view
///   above `durable_view`, and no record is made in it.
/// - I8: applied ≤ committed ≤ persisted ≤ last, of `state`.
/// - There is at most one unresolved proposal, and it was durable before it was sent.
pub struct Replica {
    pub(crate) config: Config,
    pub(crate) rng: StdRng,
    /// Random for each process; tells peers a restart.
    pub(crate) process: u64,
    pub(crate) state: State,
    /// The replication state as last handed out to be saved.
    pub(crate) saved: Saved,
    /// What the log writer was given and has not reported, oldest first.
    pub(crate) writing: VecDeque<Writing>,
    /// The highest view that is on disk.
    pub(crate) durable_view: View,
    /// The newest view that is known, with the revision of the register that held it.
    pub(crate) known: Option<Known>,
    pub(crate) proposal: Option<Proposal>,
    pub(crate) reads: Reads,
    /// The last tick, and until when this node judges nobody's silence: having stood still, it may not
    /// have handled what the others sent; with a disk that hung, it did not speak or listen itself.
    pub(crate) last_tick: Moment,
    pub(crate) lenient_until: Moment,
    pub(crate) role: Role,
    pub(crate) checkpointing: Checkpointing,
    pub(crate) marks: Marks,
    /// The bytes of the records that it made.
    pub(crate) logged_bytes: u64,
    pub(crate) now: Moment,
    /// As the last tick told it; none before the first.
    pub(crate) wall: Option<WallTime>,
    pub(crate) effects: Vec<Effect>,
}

/// What this node is at the moment.
pub(crate) enum Role {
    Starting(Starting),
    Recovering(Recovering),
    Primary(Box<Primary>),
    Follower(Follower),
    /// Does nothing more: the process ends, or begins anew on another store.
    Stopped,
}

impl Role {
    /// The duplicate table of an open primary.
    ///
    /// # Panics
    /// If this is none: requests go no further at other nodes.
    pub(crate) fn open_table(&mut self) -> &mut DuplicateTable {
        match self {
            Self::Primary(primary) => primary.table.as_mut().expect("the primary is open"),
            Self::Starting(_) | Self::Recovering(_) | Self::Follower(_) | Self::Stopped => {
                panic!("only an open primary looks at requests")
            }
        }
    }

    /// What an open primary knows of idempotency keys; other nodes know nothing of them.
    pub(crate) fn open_keys(&mut self) -> Option<&mut Keys> {
        let Self::Primary(primary) = self else { return None };
        primary.table.as_mut().map(DuplicateTable::keys_mut)
    }
}

/// A value of the register and the revision at which it was seen.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) register: Register,
    pub(crate) revision: Revision,
}

/// The reads of the register, and what they must at least see.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The newest read that was asked for.
    pub(crate) asked: ReadId,
    /// The newest revision that this process knows of.
    pub(crate) newest: Revision,
    /// What had been asked for when it came to know it: any later read must see as much.
    pub(crate) asked_when_seen: ReadId,
}

/// Something that the log writer has in its queue.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) what: Write,
    /// When it was given to the log writer.
    pub(crate) since: Moment,
}

#[derive(Debug)]
pub(crate) enum Write {
    Record(Index),
    /// A save or a cut.
    Save {
        /// The view that is durable with it.
        view: View,
        /// What waits for it.
        then: Then,
    },
}

/// What waits for a save or a cut.
#[derive(Debug)]
pub(crate) enum Then {
    /// Acknowledgements of the view only.
    Acknowledge,
    /// The log ends at this index now.
    EndCut(Index),
    /// The proposal with this id is to be sent.
    Propose(onlyonce_wire::ProposalId),
    /// The view that this proposal won is to begin.
    BeginView(onlyonce_wire::ProposalId),
    /// A lone node's view is to begin.
    BeginLone,
}

/// Why a replica cannot be started on a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The replication state does not decode.
    #[error(
        "the head of the data folder holds a replication state that this release cannot read ({0}): use the release that wrote it, or give the node a new, empty folder"
    )]
    Unreadable(String),
    /// A lone node's store, or one made from a backup, opened for a cluster.
    #[error(
        "this data folder belongs to a lone node or was restored from a backup, but --authority was given: start it without --authority, or with --bootstrap beside it to make it the first primary of a new cluster, or give the node a new, empty folder"
    )]
    StoreIsLone,
    /// A cluster's store, opened alone.
    #[error(
        "this data folder belongs to cluster {0}, but no --authority was given: alone it could contradict the other replicas. Start it with the cluster's --authority, or give the node a new, empty folder"
    )]
    StoreIsInCluster(ClusterId),
    /// Timings under which a lease could outlive a grace.
    #[error(
        "unsafe timing: grace ({grace_ms} ms) must be longer than lease ({lease_ms} ms) by 2 %, and lease longer than two heartbeats ({heartbeat_ms} ms)"
    )]
    UnsafeTiming {
        /// As configured.
        grace_ms: u128,
        /// As configured.
        lease_ms: u128,
        /// As configured.
        heartbeat_ms: u128,
    },
}

impl Replica {
    /// A replica on an open store, and the first things to do.
    ///
    /// `saved` are the bytes of the head's replication state, empty for a new store.
    pub fn new(
        config: Config,
        state: State,
        saved: &[u8],
        now: Moment,
    ) -> Result<(Self, Vec<Effect>), StartError> {
        let timing = &config.timing;
        if !timing.is_safe() {
            return Err(StartError::UnsafeTiming {
                grace_ms: timing.grace.as_millis(),
                lease_ms: timing.lease.as_millis(),
                heartbeat_ms: timing.heartbeat.as_millis(),
            });
        }
        assert!(config.limits.are_safe(), "bounds above their defaults: {:?}", config.limits);
        assert!(
            config.duplicates == Duplicates::Durable || config.mode == Mode::Lone,
            "only a lone node may forget duplicates"
        );
        let mut saved =
            Saved::decode(saved).map_err(|error| StartError::Unreadable(error.to_string()))?;
        saved.me = Some(config.me.clone());
        match (saved.owner, config.mode) {
            (None, _)
            | (
                Some(Owner::Lone | Owner::Restored(_)),
                Mode::Lone | Mode::Cluster { bootstrap: true },
            )
            | (Some(Owner::Cluster(_)), Mode::Cluster { .. }) => {}
            (Some(Owner::Lone | Owner::Restored(_)), Mode::Cluster { bootstrap: false }) => {
                return Err(StartError::StoreIsLone);
            }
            (Some(Owner::Cluster(id)), Mode::Lone) => {
                return Err(StartError::StoreIsInCluster(id));
            }
        }
        let mut rng = seeded(config.seed);
        let mut replica = Self {
            process: rand::Rng::random::<u64>(&mut rng).max(1),
            durable_view: saved.view,
            role: Role::Starting(Starting::new(saved.proposal, now)),
            rng,
            writing: VecDeque::new(),
            known: None,
            proposal: None,
            reads: Reads::default(),
            last_tick: now,
            lenient_until: now,
            checkpointing: Checkpointing::new(now),
            marks: Marks::default(),
            logged_bytes: 0,
            now,
            wall: None,
            effects: Vec::new(),
            saved,
            state,
            config,
        };
        match replica.config.mode {
            Mode::Lone => replica.start_lone(),
            Mode::Cluster { .. } => replica.read_register(),
        }
        let effects = std::mem::take(&mut replica.effects);
        Ok((replica, effects))
    }

    /// Takes one event at a moment that was sampled after it left its queue; returns what is to be
    /// done, in order.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        if matches!(self.role, Role::Stopped) {
            return Vec::new();
        }
        if let Err(Stop(reason)) = self.handle(event) {
            self.role = Role::Stopped;
            self.effects.push(Effect::Stop(reason));
        }
        self.note_revision();
        let state = &self.state;
        let (applied, committed, persisted) =
            (state.applied(), state.committed(), state.persisted());
        assert!(
            applied <= committed && committed <= persisted && persisted <= state.last().1,
            "I8: applied {applied}, committed {committed}, persisted {persisted}, last {}",
            state.last().1
        );
        std::mem::take(&mut self.effects)
    }

    fn handle(&mut self, event: Event) -> Result<(), Stop> {
        match event {
            Event::Request { from, request } => self.on_request(from, request)?,
            Event::Peer { from, message } => self.on_message(from, message)?,
            Event::PeerConnected(peer) => self.on_peer_connected(peer)?,
            Event::Persisted { index } => self.on_persisted(index)?,
            Event::Saved => self.on_saved()?,
            Event::RegisterRead { asked, now } => self.on_register_read(asked, now)?,
            Event::Proposed { id, result } => self.on_proposed(id, result),
            Event::Checkpointed(checkpoint) => self.on_checkpointed(checkpoint),
            Event::RowsRead { id, rows } => self.on_rows_read(id, rows)?,
            Event::Received { id, number, digests } => self.on_received(id, number, digests),
            Event::Scrubbed => self.on_scrubbed(),
            Event::Drained => self.close_record()?,
            Event::Tick(wall) => {
                self.wall = Some(wall);
                self.on_tick()?;
            }
        }
        Ok(())
    }

    fn on_message(&mut self, from: StoreId, message: PeerMessage) -> Result<(), Stop> {
        match message {
            PeerMessage::Heartbeat { nonce, register, revision, committed } => {
                self.on_heartbeat(from, nonce, &register, revision, committed);
            }
            PeerMessage::Append { view, feed, previous, committed, records } => {
                self.on_append(from, (view, feed), previous, committed, records)?;
            }
            PeerMessage::FetchTail { view, after } => self.on_fetch_tail(from, view, after)?,
            PeerMessage::Tail { view, after, records } => self.on_tail(from, view, after, records),
            PeerMessage::NewerView { register, revision } => self.hear_of_view(&register, revision),
            PeerMessage::Echo { view, nonce, checkpoint } => {
                self.on_echo(from, view, nonce, checkpoint)?;
            }
            PeerMessage::Differs { view, index } => self.on_differs(from, view, index)?,
            PeerMessage::AppendOk { view, feed, matched } => {
                self.on_append_ok(from, view, feed, matched)?;
            }
            PeerMessage::AppendMismatch { view, feed, previous, committed } => {
                self.on_append_mismatch(from, view, feed, previous, committed)?;
            }
            PeerMessage::HoldsCommitted { view, index } => {
                self.on_holds_committed(from, view, index)?;
            }
            PeerMessage::Snapshot { view, process, id, number, piece } => {
                if self.is_from_my_primary(from, view) && process == self.process {
                    self.on_snapshot(id, number, piece);
                }
            }
            PeerMessage::SnapshotOk { id, number, digests } => {
                self.on_snapshot_ok(from, id, number, digests);
            }
            PeerMessage::Join { member, process, committed } => {
                self.on_join(from, member, process, committed)?;
            }
        }
        Ok(())
    }

    fn on_tick(&mut self) -> Result<(), Stop> {
        let enough = self.config.timing.heartbeat * 2;
        if self.now.since(self.last_tick) > enough || self.flush_is_stuck() {
            self.lenient_until = self.now.after(enough);
        }
        self.last_tick = self.now;
        self.tick_views();
        match &self.role {
            Role::Primary(_) => self.tick_primary()?,
            Role::Follower(_) => self.tick_follower(),
            Role::Starting(_) | Role::Recovering(_) | Role::Stopped => {}
        }
        self.tick_checkpoint()
    }

    fn on_persisted(&mut self, index: Index) -> Result<(), Stop> {
        while let Some(Writing { what: Write::Record(written), .. }) = self.writing.front() {
            if *written > index {
                break;
            }
            self.writing.pop_front();
        }
        if self.is_cutting() {
            // It speaks of the log before the cut; what remains of that, the cut's end tells.
            self.marks.hit(Mark::ReportBeforeCutIgnored);
            return Ok(());
        }
        self.state.note_persisted(index);
        match &self.role {
            Role::Primary(_) => self.advance_commit()?,
            Role::Follower(_) => self.acknowledge(),
            Role::Starting(_) | Role::Recovering(_) | Role::Stopped => {}
        }
        Ok(())
    }

    fn is_cutting(&self) -> bool {
        self.writing
            .iter()
            .any(|writing| matches!(writing.what, Write::Save { then: Then::EndCut(_), .. }))
    }

    fn on_saved(&mut self) -> Result<(), Stop> {
        let oldest = self.writing.pop_front().map(|writing| writing.what);
        let Some(Write::Save { view, then }) = oldest else {
            panic!("a save ended, but the oldest write is {oldest:?}");
        };
        self.durable_view = self.durable_view.max(view);
        match then {
            Then::Acknowledge => {}
            // All that was handed out before is durable or gone, unless another cut follows.
            Then::EndCut(_) if self.is_cutting() => {}
            Then::EndCut(index) => self.state.note_persisted(index),
            Then::Propose(id) => self.send_proposal(id),
            Then::BeginView(id) => self.begin_won_view(id)?,
            Then::BeginLone => self.begin_lone()?,
        }
        if matches!(self.role, Role::Follower(_)) {
            self.acknowledge();
        }
        Ok(())
    }

    /// Stages a closed record and hands it to the log writer.
    pub(crate) fn persist(&mut self, record: Arc<Record>) {
        self.state.stage_record(Arc::clone(&record));
        self.write(record);
    }

    /// Hands a record that is staged already to the log writer.
    pub(crate) fn write(&mut self, record: Arc<Record>) {
        self.checkpointing.note_record(&record);
        self.writing.push_back(Writing { what: Write::Record(record.index), since: self.now });
        self.effects.push(Effect::Persist(record));
    }

    /// Hands the replication state out to be saved.
    pub(crate) fn save(&mut self, then: Then) {
        self.note_save(then);
        self.effects.push(Effect::Save { state: self.saved.encode() });
    }

    /// Removes what follows `after` from the log.
    pub(crate) fn cut(&mut self, after: Index) {
        let committed = self.state.committed();
        assert!(after >= committed, "a cut to {after} below committed {committed}");
        self.state.unstage_after(after);
        self.note_save(Then::EndCut(after));
        self.effects.push(Effect::Cut { after, state: self.saved.encode() });
    }

    fn note_save(&mut self, then: Then) {
        let what = Write::Save { view: self.saved.view, then };
        self.writing.push_back(Writing { what, since: self.now });
    }

    /// The number of the newest known view.
    pub(crate) fn view(&self) -> View {
        self.known.as_ref().map_or(self.saved.view, |known| view_of(&known.register))
    }

    /// The last position of the log.
    pub(crate) fn last_position(&self) -> Position {
        let (view, index) = self.state.last();
        Position { view, index }
    }

    pub(crate) fn send(&mut self, to: StoreId, message: PeerMessage) {
        self.effects.push(Effect::Send { to, message });
    }

    /// The calendar of an open primary, which has heard a tick.
    pub(crate) fn wall(&self) -> WallTime {
        self.wall.unwrap_or_default()
    }

    /// Whether a write takes so long that others should take over.
    pub(crate) fn flush_is_stuck(&self) -> bool {
        let timeout = self.config.timing.append_timeout;
        self.writing.front().is_some_and(|oldest| self.now.since(oldest.since) > timeout)
    }

    /// The cluster that this store belongs to, once it does.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        match self.saved.owner {
            None => None,
            Some(Owner::Lone) => Some(ClusterId(self.config.me.store.0)),
            Some(Owner::Cluster(id) | Owner::Restored(id)) => Some(id),
        }
    }

    /// The incarnation that this node knows.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.saved.incarnation
    }

    /// How often this process took each of the rare paths.
    #[must_use]
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// What this node holds; for checks and tools.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The newest view that this node knows.
    #[must_use]
    pub fn register(&self) -> Option<&Register> {
        self.known.as_ref().map(|known| &known.register)
    }

    /// Whether an attempt of this process to change the view is not yet known to be won or lost.
    #[must_use]
    pub fn is_proposing(&self) -> bool {
        self.proposal.is_some()
    }

    /// Notes the newest revision that this step brought news of.
    fn note_revision(&mut self) {
        let known = self.known.as_ref().map(|known| known.revision);
        let won = self.proposal.as_ref().and_then(Proposal::won_at);
        let newest = known.max(won).unwrap_or_default();
        if newest > self.reads.newest {
            self.reads.newest = newest;
            self.reads.asked_when_seen = self.reads.asked;
        }
    }

    /// Whether the newest known view names this store as a backup.
    pub(crate) fn is_backup(&self) -> bool {
        let me = &self.config.me;
        let by_name = self.breaks(Rule::MembershipByName);
        let is_me = |it: &Member| it.store == me.store || (by_name && it.name == me.name);
        self.known.as_ref().is_some_and(|known| known.register.backups.iter().any(is_me))
    }
}

/// The register's view, as the log counts views.
pub(crate) fn view_of(register: &Register) -> View {
    View(register.view.0)
}

fn seeded(seed: u128) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&seed.to_le_bytes());
    StdRng::from_seed(bytes)
}

/// Decodes records that another node sent.
pub(crate) fn decode_records(
    records: Vec<Bytes>,
) -> Result<Vec<Arc<Record>>, onlyonce_storage::DecodeError> {
    records.into_iter().map(|record| Record::decode(record).map(Arc::new)).collect()
}
