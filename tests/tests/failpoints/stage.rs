//! A cluster of which one node is to die at a time, and how it is brought to where it does.

use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::{BOUND, Environment};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Ballast, Cluster, Deaths, Load, Node, Status, binaries};

use crate::roles::{Cause, Group, Passes, Role, out_of_reach};

/// How often a death is provoked: which node is quicker decides what comes first.
const ATTEMPTS: u32 = 5;
/// A value that a checkpoint folds as a slice of its own.
pub const LARGE_BYTES: usize = 1 << 20;

/// One node that is to die.
#[derive(Clone, Copy)]
pub struct Death {
    pub role: Role,
    pub phase: &'static str,
    pub cause: Cause,
    pub point: &'static str,
    pub passes: u32,
}

impl Death {
    /// The deaths of some groups.
    pub fn each(groups: &'static [Group], deaths: &mut Deaths) -> Vec<Self> {
        let mut each = Vec::new();
        for &Group { role, phase, cause, points } in groups {
            for &(point, passes) in points {
                let passes = match passes {
                    Passes::Exactly(passes) => passes,
                    Passes::Below(bound) => deaths.random(bound),
                };
                each.push(Self { role, phase, cause, point, passes });
            }
        }
        each
    }

    /// Arms the point in a node that runs, or in the process that it starts; and all points that its
    /// role never reaches, where it stays in that role for sure.
    pub fn arm(self, node: &mut Node) {
        let stays = match self.role {
            Role::Lone => true,
            Role::Learner => self.cause != Cause::Return,
            Role::Primary | Role::Backup => false,
        };
        let never = out_of_reach(self.role).filter(|_| stays).map(|point| (point, 0));
        let points: Vec<_> = never.chain([(self.point, self.passes)]).collect();
        if node.runs() {
            for (point, passes) in points {
                node.arm(point, passes);
            }
        } else {
            node.spawn_armed(&points);
        }
    }

    /// Waits until it has happened.
    #[track_caller]
    pub fn wait(self, node: &mut Node) {
        wait_for(&self.name(), BOUND, || {
            if node.died_at(self.point) { Ok(()) } else { Err(node.log()) }
        });
    }

    /// The same node's death when a checkpoint has said what it will do, and done nothing of it.
    pub fn in_a_checkpoint(self) -> Self {
        Self { cause: Cause::Load, point: "checkpoint.intended", passes: 0, ..self }
    }

    fn name(self) -> String {
        let Self { role, phase, point, .. } = self;
        format!("the failpoint {point} to kill a node (role: {} {phase})", role.name())
    }

    /// The role, which one it is of those in it, and where it comes from.
    pub fn label(self, number: Option<usize>) -> String {
        let role = self.role.name();
        let number = number.map_or(String::new(), |number| format!(" {number}"));
        let phase = if self.phase.is_empty() { "" } else { ", " };
        format!("{role}{number}{phase}{}", self.phase)
    }
}

/// A write beside the load, which is acknowledged sooner or later.
pub struct Write {
    runtime: tokio::runtime::Runtime,
    task: tokio::task::JoinHandle<()>,
}

impl Write {
    pub fn begin(nodes: &[String], bytes: usize) -> Self {
        let (runtime, client) = (runtime(1), client(nodes));
        let task = runtime.spawn(async move {
            client.put("beside", vec![b'x'; bytes]).await.expect("it is acknowledged");
        });
        Self { runtime, task }
    }

    pub fn join(self) {
        self.runtime.block_on(self.task).expect("the write succeeds");
    }
}

/// Nodes of which one is to die at a time.
pub struct Stage {
    pub cluster: Cluster,
    /// What a snapshot has to carry.
    pub ballast: Option<Ballast>,
    /// Which of the nodes that are not primary is the one that dies, or is missed.
    pub turn: usize,
    /// Who is cut off from whom.
    cuts: Vec<(usize, String)>,
}

/// A death that is to come.
struct Provoked {
    /// What it takes.
    write: Option<Write>,
    /// The view that does not name the learner.
    view: Option<u64>,
}

impl Stage {
    pub fn start(nodes: usize, environment: Environment) -> Self {
        let cluster = Cluster::start_program(&binaries::onced_failpoints(), nodes, environment);
        Self { cluster, ballast: None, turn: 0, cuts: Vec::new() }
    }

    /// A node dies at every point of these groups.
    pub fn die_at_each(&mut self, deaths: &mut Deaths, groups: &'static [Group]) {
        for death in Death::each(groups, deaths) {
            let one_of_some = death.role == Role::Backup && self.cluster.nodes.len() > 2;
            let label = death.label(one_of_some.then_some(self.turn + 1));
            let Death { point, passes, .. } = death;
            deaths.add([point, &label], passes, self.cluster.addresses(), |deaths, load| {
                let died = (0..ATTEMPTS).any(|_| self.die(death, deaths, load));
                assert!(died, "{point} never killed the {label} in {ATTEMPTS} attempts");
            });
        }
    }

    /// Makes the node in this role reach the point, waits for its death, and until all is well again.
    /// Returns whether it died, and in this role.
    fn die(&mut self, death: Death, deaths: &mut Deaths, load: &Load) -> bool {
        let Death { role, cause, point, .. } = death;
        let primary = self.cluster.wait_whole();
        let other = self.backup_of(primary);
        let leads = role == Role::Primary || cause == Cause::Return;
        let (victim, other) = if leads { (primary, other) } else { (other, primary) };
        let Provoked { write, view } = self.provoke(death, [victim, other], deaths, load);
        let mut well = None;
        let died = wait_for(&death.name(), BOUND, || {
            if self.cluster.nodes[victim].died_at(point) {
                return Ok(true);
            }
            match self.try_well(death, other) {
                Ok(present) => {
                    let requests = load.acknowledged();
                    let enough = *well.get_or_insert(requests) + 200;
                    // On a busy machine a primary can be replaced for its slowness alone.
                    let strayed = match role {
                        Role::Primary => present != victim,
                        Role::Backup => present == victim,
                        Role::Lone | Role::Learner => false,
                    };
                    let missed = (cause.may_miss(role) || strayed) && requests > enough;
                    if missed { Ok(false) } else { Err("all is well".to_owned()) }
                }
                Err(statuses) => Err(statuses),
            }
        });
        let in_role = view.is_none_or(|view| self.is_in_view(view));
        if !died {
            self.cluster.nodes[victim].kill();
        }
        if cause == Cause::Load && victim == primary && deaths.random(3) == 0 {
            self.cluster.wait_primary();
        }
        self.let_back();
        for node in &mut self.cluster.nodes {
            if !node.runs() {
                node.start();
            }
        }
        self.cluster.wait_whole();
        write.into_iter().for_each(Write::join);
        died && in_role
    }

    /// The primary, if all is as it will be when the node does not die.
    fn try_well(&self, death: Death, other: usize) -> Result<usize, String> {
        if death.cause != Cause::TailIsCut {
            return self.cluster.try_whole();
        }
        // The primary of before is still cut off.
        let primary = self.cluster.try_primary()?;
        if primary == other { Err("it is not replaced yet".to_owned()) } else { Ok(primary) }
    }

    /// Whether this is the view, and not yet a later one.
    fn is_in_view(&self, view: u64) -> bool {
        let primary = self.cluster.try_primary().map(|primary| &self.cluster.nodes[primary]);
        primary.and_then(Node::status).is_ok_and(|it| it.view == view)
    }

    /// The backup whose turn it is.
    pub fn backup_of(&self, primary: usize) -> usize {
        let mut backups = (0..self.cluster.nodes.len()).filter(|&node| node != primary);
        backups.nth(self.turn).expect("there is a node for each turn")
    }

    fn all_but(&self, node: usize) -> Vec<usize> {
        (0..self.cluster.nodes.len()).filter(|&other| other != node).collect()
    }

    /// Cuts a node off from some others.
    fn part(&mut self, node: usize, others: &[usize]) {
        for &other in others {
            let name = self.cluster.nodes[other].name().to_owned();
            self.cut_off(node, name);
        }
    }

    fn cut_off(&mut self, node: usize, name: String) {
        self.cluster.nodes[node].cut_off(&name, true);
        self.cuts.push((node, name));
    }

    /// Cuts a node off from the authority.
    fn take_authority(&mut self, node: usize) {
        self.cut_off(node, "authority".to_owned());
    }

    /// Lets everyone reach everyone again.
    fn let_back(&mut self) {
        for (node, name) in self.cuts.drain(..) {
            if self.cluster.nodes[node].runs() {
                self.cluster.nodes[node].cut_off(&name, false);
            }
        }
    }

    /// Brings the victim to where it will reach the point, and arms it: as it runs, or as it starts.
    fn provoke(
        &mut self,
        death: Death,
        [victim, other]: [usize; 2],
        deaths: &mut Deaths,
        load: &Load,
    ) -> Provoked {
        let arm = |stage: &mut Self| death.arm(&mut stage.cluster.nodes[victim]);
        let (mut write, mut view) = (None, None);
        match death.cause {
            Cause::Load | Cause::LargeValue | Cause::Ask | Cause::Resume => {
                if death.role == Role::Learner {
                    view = Some(self.dismiss(victim));
                }
                if death.cause == Cause::Resume {
                    self.die_in_a_checkpoint(death, victim);
                }
                arm(self);
                if death.cause == Cause::LargeValue {
                    write = Some(Write::begin(&self.cluster.addresses(), LARGE_BYTES));
                }
                self.let_back();
                if death.cause == Cause::Ask {
                    let asked = self.cluster.nodes[victim].client_address().to_string();
                    write = Some(Write::begin(&[asked], 1));
                }
            }
            Cause::Restart => {
                self.cluster.nodes[victim].kill();
                arm(self);
            }
            Cause::TakeOver => {
                // Nobody else does.
                for bystander in self.all_but(victim) {
                    self.take_authority(bystander);
                }
                arm(self);
                self.cluster.nodes[other].kill();
            }
            Cause::GoOnAlone => {
                arm(self);
                self.cluster.nodes[other].kill();
            }
            Cause::PrimaryRestarts => {
                arm(self);
                self.cluster.nodes[other].kill();
                self.cluster.nodes[other].spawn();
            }
            Cause::Return => {
                write = Some(self.replace(other, victim));
                arm(self);
                self.let_back();
            }
            Cause::TailIsCut => {
                self.get_ahead(other, victim);
                arm(self);
            }
            Cause::Learn => {
                view = Some(self.leave(victim).1);
                load.progress(50);
                arm(self);
            }
            Cause::Receive => {
                view = Some(self.leave_behind(deaths, victim));
                arm(self);
            }
            Cause::Send => {
                self.leave_behind(deaths, other);
                arm(self);
                self.cluster.nodes[other].spawn();
            }
        }
        Provoked { write, view }
    }

    /// The node dies in a checkpoint; if it is a learner it was cut off, and is let back.
    fn die_in_a_checkpoint(&mut self, death: Death, victim: usize) {
        let death = death.in_a_checkpoint();
        death.arm(&mut self.cluster.nodes[victim]);
        self.let_back();
        death.wait(&mut self.cluster.nodes[victim]);
    }

    /// Makes a node that runs a learner: it is cut off from the others until the view goes on without
    /// it. When it is let back it must prove itself for a second. Returns the view.
    fn dismiss(&mut self, node: usize) -> u64 {
        self.part(node, &self.all_but(node));
        let (_, view) = self.wait_without(node);
        self.cluster.nodes[node].wait_status("to be a learner", |it| it.role == "learner");
        view
    }

    /// Waits until the cluster does without a node. Returns the primary, and the view.
    fn wait_without(&self, node: usize) -> (usize, u64) {
        let name = self.cluster.nodes[node].name();
        wait_for(&format!("the others to go on without {name}"), BOUND, || {
            let primary = self.cluster.try_primary()?;
            let status = self.cluster.nodes[primary].status()?;
            let is_named = primary == node || status.backups.iter().any(|other| other == name);
            if is_named { Err(format!("{status:?}")) } else { Ok((primary, status.view)) }
        })
    }

    /// A primary is cut off and replaced by its only backup, while it logs what nobody else has.
    fn replace(&mut self, backup: usize, primary: usize) -> Write {
        self.take_authority(primary);
        self.part(primary, &self.all_but(primary));
        let alone = &self.cluster.nodes[primary];
        let before = alone.status().expect("it runs").prepared;
        let write = Write::begin(&[alone.client_address().to_string()], 1);
        alone.wait_status("to log what nobody else has", |it| it.prepared > before);
        self.cluster.nodes[backup].wait_status("to take over", Status::serves);
        write
    }

    /// The primary still reaches this backup, but neither the other one nor the authority: the other
    /// one will take over, and lacks what these two log meanwhile.
    fn get_ahead(&mut self, primary: usize, backup: usize) {
        let others = self.all_but(primary);
        let lacking = *others.iter().find(|&&other| other != backup).expect("one of three");
        self.take_authority(primary);
        self.part(primary, &[lacking]);
        let behind = &self.cluster.nodes[lacking];
        let ahead = |it: &Status| behind.status().is_ok_and(|behind| it.prepared > behind.prepared);
        self.cluster.nodes[backup].wait_status("to log what another backup lacks", ahead);
    }

    /// Kills a node; the others go on without it. Returns the primary, and the view.
    pub fn leave(&mut self, goes: usize) -> (usize, u64) {
        self.cluster.nodes[goes].kill();
        self.wait_without(goes)
    }

    /// As [`leave`](Self::leave), until the log no longer reaches back to what the dead node has;
    /// which is nothing, now and then. Returns the view.
    fn leave_behind(&mut self, deaths: &mut Deaths, goes: usize) -> u64 {
        let (primary, view) = self.leave(goes);
        if deaths.random(2) == 0 {
            self.cluster.nodes[goes].empty_disk();
        }
        let addresses = self.cluster.addresses();
        self.ballast.as_mut().expect("something to carry").rewrite(&addresses);
        let primary = &self.cluster.nodes[primary];
        let written = primary.status().expect("it runs").committed;
        primary.wait_status("to fold what was written", |it| it.applied >= written);
        view
    }
}
