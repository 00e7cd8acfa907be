//! Views: following the register, proposing the next one, starting and taking over.
//!
//! See "Views" in `docs/replication.md`. The register is changed by compare-and-swap only; a view
//! begins for this node when it is saved. Whatever is not known to have been won is unresolved
//! until the register's revision shows how it ended.

use onlyonce_storage::{Index, View};
use onlyonce_wire::authority::{Register, Revision, Versioned};
use onlyonce_wire::{ClusterId, ProposalId};
use rand::Rng;

use crate::config::Mode;
use crate::event::{Effect, Moment, ReadId};
use crate::follower::Follower;
use crate::marks::Mark;
use crate::mutations::Rule;
use crate::replica::{Known, Replica, Role, Stop, Then, view_of};
use crate::saved::{Owner, Saved, SavedProposal};
use crate::snapshot::Receiving;

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

impl Replica {
    /// A lone node: the next view is its own.
    pub(crate) fn start_lone(&mut self) {
        self.saved.owner.get_or_insert(Owner::Lone);
        self.saved.view = self.saved.view.next();
        self.save(Then::BeginLone);
    }

    pub(crate) fn begin_lone(&mut self) -> Result<(), Stop> {
        let register = Register {
            cluster: self.cluster().expect("it belongs to itself"),
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
    ///
    /// `asked` is the newest question that was put before the read began; none for a watch.
    pub(crate) fn on_register_read(
        &mut self,
        asked: Option<ReadId>,
        versioned: Versioned,
    ) -> Result<(), Stop> {
        let Versioned { revision, register } = versioned;
        if revision < self.reads.newest {
            // A late answer, unless the read began after the newer revision was known.
            if asked > Some(self.reads.asked_when_seen) {
                return Err(self.lost_register(register.as_ref()));
            }
            self.marks.hit(Mark::OldRegisterIgnored);
            if asked.is_none() {
                // It may be late news, or the register lost what it held: only a read tells.
                self.read_register();
            }
            return Ok(());
        }
        let known = self.known.as_ref().filter(|known| known.revision == revision);
        if known.is_some_and(|known| Some(&known.register) != register.as_ref()) {
            // One revision has one value.
            return Err(self.lost_register(register.as_ref()));
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
            (Some(register), _) if self.is_usurped(&register) => Err(Stop(format!(
                "view {} names this store as its primary, but another process made it: a second node runs on a copy of this data folder. Stop one of them, and give it a new, empty folder",
                register.view
            ))),
            (Some(register), _) => {
                self.observe(register, revision);
                Ok(())
            }
            (None, Role::Starting(_)) => self.start_without_register(revision),
            (None, _) if self.known.is_some() => Err(self.lost_register(None)),
            (None, _) => Ok(()),
        }
    }

    /// Whether nothing was ever promised here: at most an attempt to make a cluster failed.
    fn never_took_part(&self) -> bool {
        self.state.last().1 == Index::ZERO && self.saved.view == View(0)
    }

    /// A register of another cluster, of another incarnation, or of an older view than this store
    /// took part in, means that going on could contradict somebody.
    fn check_register(&self, register: &Register) -> Result<(), Stop> {
        if self.never_took_part() {
            return Ok(());
        }
        match self.saved.owner {
            Some(Owner::Lone) => {
                return Err(Stop(format!(
                    "the authority holds the view of cluster {}, but this data folder belongs to a lone node: start it alone, or give the node a new, empty folder",
                    register.cluster
                )));
            }
            Some(Owner::Restored(_)) => {
                return Err(Stop(format!(
                    "the authority holds the view of cluster {}, but this data folder was restored from a backup, and begins a new history: start it alone, or with --bootstrap and an authority that holds nothing. The nodes of the history before must never serve again",
                    register.cluster
                )));
            }
            Some(Owner::Cluster(_)) | None => {}
        }
        if let Some(Owner::Cluster(mine)) = self.saved.owner {
            if register.cluster != mine {
                return Err(Stop(format!(
                    "the authority holds the view of cluster {}, but this store belongs to cluster {mine}: start it with its own authority. If that one lost its data, and another cluster was made there by mistake, `onced admin force-view` is the way out; give the node a new, empty folder only if nobody needs this store",
                    register.cluster
                )));
            }
            let (theirs, mine) = (register.incarnation, self.saved.incarnation);
            if theirs > mine && register.primary.store == self.config.me.store {
                return Err(Stop(format!(
                    "the authority names this store as the primary of incarnation {theirs}, but it is still of incarnation {mine}: either `onced admin force-view` was cut short, then repeat it with this data folder; or this folder is an old copy, then give the node a new, empty one"
                )));
            }
            if theirs > mine {
                return Err(Stop(format!(
                    "the cluster is in incarnation {theirs}, begun by `onced admin force-view` or from a backup without this store, which is of incarnation {mine}: it must never serve again. Keep this folder aside, give the node a new, empty one, and it catches up"
                )));
            }
        }
        let older = register.incarnation < self.saved.incarnation;
        let is_other = view_of(register) == self.saved.view
            && self.saved.made_by.is_some_and(|made_by| made_by != register.proposal);
        if older || is_other || view_of(register) < self.saved.view {
            return Err(self.lost_register(Some(register)));
        }
        Ok(())
    }

    /// The register was changed other than by proposals: it holds nothing, or what it held long ago.
    fn lost_register(&self, found: Option<&Register>) -> Stop {
        let found = found.map_or("nothing".to_owned(), |register| {
            format!("view {} of incarnation {}", register.view, register.incarnation)
        });
        let Saved { view, incarnation, .. } = &self.saved;
        let cluster = self.cluster().map_or("?".to_owned(), |id| id.to_string());
        Stop(format!(
            "the authority's register holds {found}, but this store holds data of cluster {cluster} and took part in view {view} of incarnation {incarnation}: the authority has lost data, or --authority names another one. This node has lost nothing, and serves no more, since another primary could rise; --bootstrap does not apply to it. Put the authority's data back as it was last; if that is gone for good, `onced admin force-view` is the way out"
        ))
    }

    /// Follows news of a view that another node sent.
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
        if self.is_usurped(register) {
            // Only the register itself may stop a node.
            self.read_register();
            return;
        }
        self.observe(register.clone(), revision);
    }

    /// Whether a newer view names this store as its primary by a proposal that is not this
    /// process's, although this process has resolved those of all earlier ones.
    fn is_usurped(&self, register: &Register) -> bool {
        let is_new = self.known.as_ref().is_some_and(|known| known.register.view < register.view);
        is_new && register.primary.store == self.config.me.store
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
        if unresolved && !self.breaks(Rule::LeftoverForgotten) {
            self.marks.hit(Mark::LeftoverBumped);
            // Moving the revision takes the dead process's proposal its only chance.
            let register = Register { bumps: register.bumps + 1, ..register };
            self.effects.push(Effect::Propose { expected: revision, register });
            return;
        }
        self.saved.proposal = None;
        if self.never_took_part() {
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
        let lone = matches!(self.saved.owner, Some(Owner::Lone | Owner::Restored(_)));
        let tried = starting.leftover.is_some_and(|leftover| leftover.expected == revision);
        if self.proposal.is_some() {
            return Ok(());
        }
        if !(self.never_took_part() || lone || tried) {
            return Err(self.lost_register(None));
        }
        if !bootstrap {
            return Ok(());
        }
        let cluster = match self.saved.owner {
            Some(Owner::Cluster(id) | Owner::Restored(id)) => id,
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
                assert_eq!(
                    register.proposal, known.register.proposal,
                    "I2: two values of view {}",
                    register.view
                );
                known.register = register;
                known.revision = revision;
                return;
            }
        }
        self.adopt(register, revision);
    }

    /// Takes part in a view that somebody else (or an earlier process of this node) made.
    fn adopt(&mut self, register: Register, revision: Revision) {
        if let Role::Follower(follower) = &self.role
            && follower.is_catching_up()
        {
            self.marks.hit(Mark::ViewChangedDuringCatchUp);
        }
        self.step_down();
        let receiving = self.keep_receiving(&register);
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
        self.saved.enter(&register);
        self.known = Some(Known { register, revision });
        self.save(Then::Acknowledge);
        if is_primary && self.breaks(Rule::ResumesOldView) {
            self.become_primary().expect("the log can be read");
        } else if is_primary {
            self.recover();
        } else {
            let jitter = self.jitter();
            let mut follower = Follower::new(self.now, jitter);
            follower.receiving = receiving;
            self.role = Role::Follower(follower);
        }
    }

    /// A snapshot on its way here goes on in a new view of the same primary.
    fn keep_receiving(&mut self, register: &Register) -> Option<Receiving> {
        let same = self
            .known
            .as_ref()
            .is_some_and(|known| known.register.primary.store == register.primary.store);
        match &mut self.role {
            Role::Follower(follower) if same => follower.receiving.take(),
            Role::Follower(_)
            | Role::Starting(_)
            | Role::Recovering(_)
            | Role::Primary(_)
            | Role::Stopped => None,
        }
    }

    fn jitter(&mut self) -> std::time::Duration {
        self.config.timing.grace_jitter.mul_f64(self.rng.random::<f64>())
    }

    /// Repeats what got no answer.
    pub(crate) fn tick_views(&mut self) {
        self.tick_proposal();
        let resend = self.config.timing.resend;
        match &mut self.role {
            Role::Starting(starting) if self.config.mode != Mode::Lone => {
                if self.proposal.is_none() && self.now.since(starting.asked) > resend {
                    starting.asked = self.now;
                    self.read_register();
                }
            }
            Role::Recovering(_) if self.proposal.is_none() => self.tick_recovery(),
            Role::Starting(_)
            | Role::Recovering(_)
            | Role::Primary(_)
            | Role::Follower(_)
            | Role::Stopped => {}
        }
    }

    /// Asks for the register as it is now.
    pub(crate) fn read_register(&mut self) {
        self.reads.asked = self.reads.asked.next();
        self.effects.push(Effect::ReadRegister(self.reads.asked));
    }
}
