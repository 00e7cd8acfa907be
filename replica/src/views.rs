//! Views: following the register, proposing the next one, starting and taking over.
//!
//! See "Views" in `docs/replication.md`. The register is changed by compare-and-swap only; a view
//! begins for this node when it is saved. Whatever is not known to have been won is unresolved
//! until the register's revision shows how it ended.

use std::collections::BTreeMap;

use bytes::Bytes;
use onlyonce_storage::{Index, View};
use onlyonce_wire::authority::{Member, Register, Revision, Versioned};
use onlyonce_wire::{ClusterId, ProposalId, StoreId};
use rand::Rng;

use crate::config::Mode;
use crate::event::{Effect, Moment, ProposalResult};
use crate::follower::Follower;
use crate::limits::FETCHED_BYTES_MAX;
use crate::message::{PeerMessage, Position};
use crate::replica::{Known, Replica, Role, Stop, Then, decode_records, view_of};
use crate::saved::{Owner, SavedProposal};

/// A node that has not read the register yet.
pub(crate) struct Starting {
    /// A proposal of a dead process, not known to be won or lost.
    leftover: Option<SavedProposal>,
    asked: Moment,
}

impl Starting {
    pub(crate) fn new(leftover: Option<SavedProposal>, now: Moment) -> Self {
        Self { leftover, asked: now }
    }
}

/// A restarted primary that asks its backups for what it may have lost.
pub(crate) struct Recovering {
    since: Moment,
    asked: Moment,
    /// Per backup: whether it said that it has nothing more.
    finished: BTreeMap<StoreId, bool>,
}

/// An attempt of this process to change the register.
#[derive(Debug)]
pub(crate) struct Proposal {
    /// The value proposed.
    pub(crate) register: Register,
    expected: Revision,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Being saved; not sent yet.
    Saving,
    /// Sent then; no answer yet.
    Sent(Moment),
    /// Answered by no clear success, or not answered: a read was asked for then.
    Unknown(Moment),
    /// Won at this revision; the view is being saved.
    Won(Revision),
}

impl Replica {
    /// A lone node: the next view is its own.
    pub(crate) fn start_lone(&mut self) {
        self.saved.owner = Some(Owner::Lone);
        self.saved.view = self.saved.view.next();
        self.save(Then::BeginLone);
    }

    pub(crate) fn begin_lone(&mut self) -> Result<(), Stop> {
        let register = Register {
            cluster: ClusterId(self.config.me.store.0),
            incarnation: self.saved.incarnation,
            view: onlyonce_wire::View(self.saved.view.0),
            proposal: ProposalId(0),
            bumps: 0,
            primary: self.config.me.clone(),
            backups: Vec::new(),
        };
        self.known = Some(Known { register, revision: Revision(0) });
        self.become_primary()
    }

    /// Takes what a linearizable read (or the watch) saw.
    pub(crate) fn on_register_read(&mut self, versioned: Versioned) -> Result<(), Stop> {
        let Versioned { revision, register } = versioned;
        if revision < self.newest_revision() {
            // The late answer of an earlier read.
            return Ok(());
        }
        if let Some(register) = &register {
            self.check_register(register)?;
        }
        if self.resolve_proposal(revision, register.as_ref()) {
            return Ok(());
        }
        match (register, &self.role) {
            (Some(register), Role::Starting(starting)) => {
                let leftover = starting.leftover;
                self.start_from(revision, register, leftover);
                Ok(())
            }
            (Some(register), _) => {
                self.observe(register, revision);
                Ok(())
            }
            (None, Role::Starting(_)) => self.start_without_register(revision),
            (None, _) if self.known.is_some() => Err(Stop(LOST_REGISTER.to_owned())),
            (None, _) => Ok(()),
        }
    }

    /// The newest revision of the register that this process has seen.
    fn newest_revision(&self) -> Revision {
        let known = self.known.as_ref().map(|known| known.revision);
        let won = self.proposal.as_ref().and_then(|proposal| match proposal.stage {
            Stage::Won(revision) => Some(revision),
            Stage::Saving | Stage::Sent(_) | Stage::Unknown(_) => None,
        });
        known.max(won).unwrap_or_default()
    }

    /// A register of another cluster, of another incarnation, or of an older view than this store
    /// took part in, means that going on could contradict somebody.
    fn check_register(&self, register: &Register) -> Result<(), Stop> {
        if self.saved.owner == Some(Owner::Lone) {
            return Err(Stop(format!(
                "the authority holds the view of cluster {}, but this data folder belongs to a lone node: start it alone, or give the node a new, empty folder",
                register.cluster
            )));
        }
        if let Some(Owner::Cluster(mine)) = self.saved.owner {
            if register.cluster != mine {
                return Err(Stop(format!(
                    "the authority holds the view of cluster {}, but this store belongs to cluster {mine}: start it with its own authority, or give the node a new, empty folder",
                    register.cluster
                )));
            }
            if register.incarnation != self.saved.incarnation {
                return Err(Stop(format!(
                    "the cluster is in incarnation {}, but this store is of incarnation {}: give the node a new, empty folder and it catches up",
                    register.incarnation, self.saved.incarnation
                )));
            }
        }
        if view_of(register) < self.saved.view {
            return Err(Stop(format!(
                "the authority holds view {}, but this store already took part in view {}: the authority has lost data. Restore its folder",
                register.view, self.saved.view
            )));
        }
        Ok(())
    }

    /// Follows news of a view that another node sent. Only the register itself may stop a node.
    pub(crate) fn hear_of_view(&mut self, register: &Register, revision: Revision) {
        if self.check_register(register).is_err() || self.saved.owner.is_none() {
            return;
        }
        if self.resolve_proposal(revision, Some(register)) {
            return;
        }
        if let Role::Starting(starting) = &self.role {
            // Enough to follow a primary, but only a read shows who the primary is *now*.
            let follows = starting.leftover.is_none()
                && register.backups.iter().any(|backup| backup.store == self.config.me.store);
            if !follows {
                return;
            }
        }
        self.observe(register.clone(), revision);
    }

    /// What to do with the register found at the start.
    fn start_from(
        &mut self,
        revision: Revision,
        register: Register,
        leftover: Option<SavedProposal>,
    ) {
        let unresolved = leftover.is_some_and(|leftover| {
            leftover.id != register.proposal && leftover.expected == revision
        });
        if unresolved {
            // Moving the revision takes the dead process's proposal its only chance.
            let register = Register { bumps: register.bumps + 1, ..register };
            self.effects.push(Effect::Propose { expected: revision, register });
            return;
        }
        self.saved.proposal = None;
        if self.saved.owner.is_none() {
            self.saved.owner = Some(Owner::Cluster(register.cluster));
            self.saved.incarnation = register.incarnation;
        }
        self.adopt(register, revision);
    }

    /// The register was never written. With `--bootstrap` an empty store, or a lone node's, makes
    /// a new cluster; an earlier attempt at that which may have failed is no reason not to.
    fn start_without_register(&mut self, revision: Revision) -> Result<(), Stop> {
        let Mode::Cluster { bootstrap } = self.config.mode else { return Ok(()) };
        let Role::Starting(starting) = &self.role else { return Ok(()) };
        let empty = self.state.last().1 == Index::ZERO && self.saved.view == View(0);
        let lone = self.saved.owner == Some(Owner::Lone);
        let tried = starting.leftover.is_some_and(|leftover| leftover.expected == revision);
        if self.proposal.is_some() {
            return Ok(());
        }
        if !(empty || lone || tried) {
            return Err(Stop(LOST_REGISTER.to_owned()));
        }
        if !bootstrap {
            return Ok(());
        }
        let cluster = match self.saved.owner {
            Some(Owner::Cluster(id)) => id,
            // Clients of the lone node know it by this id, and their sessions live on.
            Some(Owner::Lone) => ClusterId(self.config.me.store.0),
            None => ClusterId(self.rng.random()),
        };
        self.saved.owner = Some(Owner::Cluster(cluster));
        let register = Register {
            cluster,
            incarnation: self.saved.incarnation,
            view: onlyonce_wire::View(self.saved.view.next().0),
            proposal: ProposalId(self.rng.random()),
            bumps: 0,
            primary: self.config.me.clone(),
            backups: Vec::new(),
        };
        self.propose(register, revision);
        Ok(())
    }

    /// Follows a newer revision of the register, and with it perhaps a newer view.
    fn observe(&mut self, register: Register, revision: Revision) {
        if let Some(known) = &mut self.known {
            if revision <= known.revision {
                return;
            }
            if register.view == known.register.view {
                known.register = register;
                known.revision = revision;
                return;
            }
        }
        self.adopt(register, revision);
    }

    /// Takes part in a view that somebody else (or an earlier process of this node) made.
    fn adopt(&mut self, register: Register, revision: Revision) {
        self.step_down();
        self.proposal = None;
        self.saved.proposal = None;
        let me = self.config.me.store;
        for member in register.replicas().filter(|member| member.store != me) {
            self.effects.push(Effect::Know(member.clone()));
        }
        tracing::info!(
            view = register.view.0,
            primary = register.primary.name,
            backups = ?register.backups.iter().map(|backup| &backup.name).collect::<Vec<_>>(),
            "follow view"
        );
        let is_primary = register.primary.store == me;
        self.saved.view = view_of(&register);
        self.known = Some(Known { register, revision });
        self.save(Then::Acknowledge);
        if is_primary {
            self.recover();
        } else {
            let jitter = self.jitter();
            self.role = Role::Follower(Follower::new(self.now, jitter));
        }
    }

    fn jitter(&mut self) -> std::time::Duration {
        self.config.timing.grace_jitter.mul_f64(self.rng.random::<f64>())
    }

    /// A restarted primary never goes on in its view: first it asks for what it may have lost.
    fn recover(&mut self) {
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
            for record in self.state.records(after.index.next(), FETCHED_BYTES_MAX)? {
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

    /// Proposes the next view with this node as its primary.
    pub(crate) fn propose_view(&mut self, backups: Vec<Member>) {
        if self.proposal.is_some() {
            return;
        }
        let known = self.known.as_ref().expect("only a replica of a view proposes the next");
        let register = Register {
            view: known.register.view.next(),
            proposal: ProposalId(self.rng.random()),
            bumps: 0,
            primary: self.config.me.clone(),
            backups,
            ..known.register.clone()
        };
        let revision = known.revision;
        self.propose(register, revision);
    }

    fn propose(&mut self, register: Register, expected: Revision) {
        tracing::info!(
            view = register.view.0,
            backups = ?register.backups.iter().map(|backup| &backup.name).collect::<Vec<_>>(),
            "propose view"
        );
        let id = register.proposal;
        self.saved.proposal = Some(SavedProposal { expected, id });
        self.proposal = Some(Proposal { register, expected, stage: Stage::Saving });
        self.save(Then::Propose(id));
    }

    /// The proposal is on disk: now it may be sent.
    pub(crate) fn send_proposal(&mut self, id: ProposalId) {
        let now = self.now;
        let Some(proposal) = &mut self.proposal else { return };
        if proposal.register.proposal == id && proposal.stage == Stage::Saving {
            proposal.stage = Stage::Sent(now);
            let register = proposal.register.clone();
            self.effects.push(Effect::Propose { expected: proposal.expected, register });
        }
    }

    pub(crate) fn on_proposed(&mut self, result: ProposalResult) {
        let now = self.now;
        if let Some(proposal) = &mut self.proposal
            && let Stage::Sent(_) = proposal.stage
        {
            match result {
                ProposalResult::Won(revision) => {
                    self.note_won(revision);
                    return;
                }
                ProposalResult::Unknown => proposal.stage = Stage::Unknown(now),
            }
        }
        self.effects.push(Effect::ReadRegister);
    }

    /// Finds out how an own proposal ended. Returns whether the register holds it.
    fn resolve_proposal(&mut self, revision: Revision, register: Option<&Register>) -> bool {
        let now = self.now;
        let Some(proposal) = &mut self.proposal else { return false };
        if matches!(proposal.stage, Stage::Won(_)) {
            return register.is_some_and(|register| register.view <= proposal.register.view);
        }
        if register.is_some_and(|register| register.proposal == proposal.register.proposal) {
            self.note_won(revision);
            return true;
        }
        if revision > proposal.expected {
            tracing::info!(view = proposal.register.view.0, "proposal lost");
            self.proposal = None;
            self.saved.proposal = None;
        } else if let Stage::Unknown(_) = proposal.stage {
            // It can still only win at this revision, and only once: the very same again.
            proposal.stage = Stage::Sent(now);
            let register = proposal.register.clone();
            self.effects.push(Effect::Propose { expected: proposal.expected, register });
        }
        false
    }

    fn note_won(&mut self, revision: Revision) {
        let proposal = self.proposal.as_mut().expect("a proposal was won");
        proposal.stage = Stage::Won(revision);
        let id = proposal.register.proposal;
        self.saved.view = view_of(&proposal.register);
        self.saved.proposal = None;
        self.save(Then::BeginView(id));
    }

    /// The won view is on disk: it begins.
    pub(crate) fn begin_won_view(&mut self, id: ProposalId) -> Result<(), Stop> {
        let Some(Proposal { register, stage: Stage::Won(revision), .. }) =
            self.proposal.take_if(|proposal| proposal.register.proposal == id)
        else {
            return Ok(());
        };
        tracing::info!(view = register.view.0, "won view");
        let me = self.config.me.store;
        for member in register.replicas().filter(|member| member.store != me) {
            self.effects.push(Effect::Know(member.clone()));
        }
        self.known = Some(Known { register, revision });
        match &self.role {
            Role::Primary(_) => self.continue_in_view(),
            Role::Starting(_) | Role::Recovering(_) | Role::Follower(_) => self.become_primary(),
            Role::Stopped => Ok(()),
        }
    }

    /// A backup's own attempt to take over.
    pub(crate) fn propose_myself(&mut self) {
        let known = self.known.as_ref().expect("a backup knows its view");
        let me = self.config.me.store;
        let others = known.register.backups.iter().filter(|backup| backup.store != me);
        let backups = others.cloned().collect();
        self.propose_view(backups);
    }

    /// Repeats what got no answer.
    pub(crate) fn tick_views(&mut self) {
        let timing = self.config.timing;
        let now = self.now;
        if let Some(proposal) = &mut self.proposal {
            match proposal.stage {
                Stage::Sent(at) | Stage::Unknown(at) if now.since(at) > timing.resend => {
                    proposal.stage = Stage::Unknown(now);
                    self.effects.push(Effect::ReadRegister);
                }
                Stage::Saving | Stage::Sent(_) | Stage::Unknown(_) | Stage::Won(_) => {}
            }
        }
        match &mut self.role {
            Role::Starting(starting) if self.config.mode != Mode::Lone => {
                if self.proposal.is_none() && now.since(starting.asked) > timing.resend {
                    starting.asked = now;
                    self.effects.push(Effect::ReadRegister);
                }
            }
            Role::Recovering(recovering) if self.proposal.is_none() => {
                if now.since(recovering.since) > timing.append_timeout {
                    self.propose_same_members();
                } else if now.since(recovering.asked) > timing.resend {
                    self.ask_for_tail();
                }
            }
            Role::Starting(_)
            | Role::Recovering(_)
            | Role::Primary(_)
            | Role::Follower(_)
            | Role::Stopped => {}
        }
    }
}

const LOST_REGISTER: &str = "the authority's register is empty, but this store holds a cluster's data: the authority has lost its data. Restore the authority's folder, or check --authority";
