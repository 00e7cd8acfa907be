//! Nodes die, as by kill -9, at every failpoint that the server has, in every role that reaches it.
//! Each death comes under a load of its own, after which nothing is lost and nothing doubled.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::{BOUND, Environment};
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Ballast, Cluster, Deaths, Load, Lone, Node, Status, binaries};

/// Checkpoints all the time, and a log that keeps next to nothing. A primary soon does without a
/// backup that is down.
const PRUNING: Environment = &[
    ("ONCED_LOG_TAIL_BYTES", "65536"),
    ("ONCED_CHECKPOINT_BYTES", "65536"),
    ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
    ("ONCED_APPEND_TIMEOUT_MS", "600"),
];
/// As `PRUNING`, with a log that reaches back to the beginning.
const KEEPING: Environment = &[
    ("ONCED_CHECKPOINT_BYTES", "65536"),
    ("ONCED_CHECKPOINT_INTERVAL_MS", "50"),
    ("ONCED_APPEND_TIMEOUT_MS", "600"),
];

/// What makes a node reach a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Requests.
    Load,
    /// A value as large as a checkpoint's slice.
    LargeValue,
    /// It was killed, and starts again: the primary before it is replaced, if it is quick.
    Restart,
    /// It died in a checkpoint, and starts again.
    Resume,
    /// It is the backup, and the primary was killed.
    TakeOver,
    /// It is the primary, and its backup was killed.
    GoOnAlone,
    /// It was the primary, was cut off and replaced, and is back with records that nobody else has.
    Return,
    /// It was away, and not missed any more; the log has what it lacks.
    Learn,
    /// It is the backup, and the primary was killed and starts again.
    PrimaryRestarts,
    /// It was away, and the log no longer has what it lacks.
    Receive,
    /// It is the primary of such a node.
    Send,
}
use Cause::{
    GoOnAlone, LargeValue, Learn, PrimaryRestarts, Receive, Restart, Resume, Return, Send, TakeOver,
};

/// Points that a node reaches in a role by one cause.
struct Group {
    role: &'static str,
    cause: Cause,
    points: &'static [(&'static str, Passes)],
}

/// How often a point is passed before it kills.
#[derive(Clone, Copy)]
enum Passes {
    /// So often: it is another occasion each time.
    Exactly(u32),
    /// At random, less often than this.
    Below(u32),
}
use Passes::{Below, Exactly};

/// What every node that holds records does all the time.
const DISK: &[(&str, Passes)] = &[
    ("log.begin", Below(20)),
    ("log.row", Below(20)),
    ("log.rows", Below(20)),
    ("log.flushed", Below(20)),
    ("log.appended", Below(20)),
    ("log.persisted", Below(20)),
    ("head.begin", Below(3)),
    ("head.written", Below(3)),
    ("head.synced", Below(3)),
    ("head.end", Below(3)),
    ("checkpoint.begin", Below(3)),
    ("checkpoint.intended", Below(3)),
    ("checkpoint.folded", Below(3)),
    ("checkpoint.applied", Below(3)),
    ("checkpoint.end", Below(3)),
    ("prune.begin", Below(3)),
    ("prune.announced", Below(3)),
    ("prune.row", Below(30)),
    ("prune.end", Below(3)),
];
const CLIENTS: &[(&str, Passes)] =
    &[("request.received", Below(50)), ("reply.ready", Below(50)), ("reply.written", Below(50))];
const LARGE: &[(&str, Passes)] = &[("checkpoint.slice", Exactly(0))];
const OPENING: &[(&str, Passes)] = &[
    ("open.barrier", Exactly(0)),
    ("open.replaying", Below(5)),
    ("open.replayed", Exactly(0)),
    ("open.end", Exactly(0)),
];

/// What an open does about a checkpoint that was cut short.
const RESUMING: &[(&str, Passes)] = &[
    ("checkpoint.resuming", Below(5)),
    ("checkpoint.folded", Exactly(0)),
    ("checkpoint.applied", Exactly(0)),
    ("checkpoint.end", Exactly(0)),
];

const LONE: &[Group] = &[
    Group { role: "lone", cause: Cause::Load, points: CLIENTS },
    Group { role: "lone", cause: Cause::Load, points: DISK },
    Group { role: "lone", cause: LargeValue, points: LARGE },
    Group { role: "lone, starting", cause: Restart, points: OPENING },
    Group { role: "lone, starting", cause: Resume, points: RESUMING },
    Group {
        role: "lone, starting",
        cause: Restart,
        points: &[("state.saving", Exactly(0)), ("state.saved", Exactly(0))],
    },
];

const WHOLE: &[Group] = &[
    Group { role: "primary", cause: Cause::Load, points: CLIENTS },
    Group { role: "primary", cause: Cause::Load, points: DISK },
    Group {
        role: "primary",
        cause: Cause::Load,
        points: &[
            ("append.sending", Below(20)),
            ("peer.written", Below(20)),
            ("append_ok.received", Below(20)),
        ],
    },
    Group { role: "primary", cause: LargeValue, points: LARGE },
    Group { role: "backup", cause: Cause::Load, points: DISK },
    Group {
        role: "backup",
        cause: Cause::Load,
        points: &[("append.received", Below(20)), ("append_ok.sending", Below(20))],
    },
    Group { role: "backup", cause: LargeValue, points: LARGE },
    Group { role: "primary, starting", cause: Resume, points: RESUMING },
    Group { role: "backup, starting", cause: Resume, points: RESUMING },
];

/// A proposal, and the view that it makes.
const PROPOSING: &[(&str, Passes)] = &[
    ("state.saving", Exactly(0)),
    ("state.saved", Exactly(0)),
    ("proposal.sending", Exactly(0)),
    ("proposal.won", Exactly(0)),
    ("state.saving", Exactly(1)),
    ("state.saved", Exactly(1)),
];

const VIEWS: &[Group] = &[
    Group { role: "backup", cause: TakeOver, points: PROPOSING },
    Group { role: "primary", cause: GoOnAlone, points: PROPOSING },
    Group {
        role: "primary, starting",
        cause: Restart,
        points: &[
            ("state.saving", Exactly(0)),
            ("state.saved", Exactly(0)),
            ("tail.received", Exactly(0)),
            ("state.saving", Exactly(1)),
            ("proposal.sending", Exactly(0)),
            ("proposal.won", Exactly(0)),
            ("state.saved", Exactly(2)),
        ],
    },
    Group { role: "primary, starting", cause: Restart, points: OPENING },
    Group { role: "backup, starting", cause: Restart, points: OPENING },
    Group {
        role: "backup, starting",
        cause: Restart,
        points: &[("state.saving", Exactly(0)), ("state.saved", Exactly(0))],
    },
    Group { role: "backup", cause: PrimaryRestarts, points: &[("tail.asked", Exactly(0))] },
    Group {
        role: "primary, replaced",
        cause: Return,
        points: &[
            ("cut.begin", Exactly(0)),
            ("cut.announced", Exactly(0)),
            ("cut.row", Exactly(0)),
            ("cut.flushed", Exactly(0)),
            ("cut.end", Exactly(0)),
        ],
    },
    Group {
        role: "learner",
        cause: Learn,
        points: &[
            ("append.received", Exactly(0)),
            ("log.begin", Exactly(0)),
            ("log.row", Exactly(0)),
            ("log.rows", Exactly(0)),
            ("log.flushed", Exactly(0)),
            ("log.appended", Exactly(0)),
            ("log.persisted", Exactly(0)),
            ("append_ok.sending", Exactly(0)),
        ],
    },
];

const SNAPSHOTS: &[Group] = &[
    Group {
        role: "primary",
        cause: Send,
        points: &[
            ("snapshot.read", Below(5)),
            ("snapshot.sending", Below(5)),
            ("snapshot_ok.received", Below(5)),
        ],
    },
    Group {
        role: "learner",
        cause: Receive,
        points: &[
            ("snapshot.received", Below(5)),
            ("snapshot.folded", Below(5)),
            ("snapshot.built", Exactly(0)),
            ("snapshot.accepted", Exactly(0)),
            ("replace.removed", Below(3)),
            ("replace.moved", Below(3)),
            ("replace.end", Exactly(0)),
        ],
    },
];

/// How often a death is provoked: what a restarted primary does first depends on who is quicker.
const ATTEMPTS: u32 = 5;

/// The deaths of some groups.
fn each(groups: &'static [Group], deaths: &mut Deaths) -> Vec<Death> {
    let mut each = Vec::new();
    for &Group { role, cause, points } in groups {
        for &(point, passes) in points {
            let passes = match passes {
                Exactly(passes) => passes,
                Below(bound) => deaths.random(bound),
            };
            each.push(Death { role, cause, point, passes });
        }
    }
    each
}

/// One node that is to die.
#[derive(Clone, Copy)]
struct Death {
    role: &'static str,
    cause: Cause,
    point: &'static str,
    passes: u32,
}

impl Death {
    /// Arms the point in a node that runs, or in the process that it starts.
    fn arm(self, node: &mut Node) {
        if node.runs() {
            node.arm(self.point, self.passes);
        } else {
            node.spawn_armed(self.point, self.passes);
        }
    }

    fn name(self) -> String {
        format!("the failpoint {} to kill a node (role: {})", self.point, self.role)
    }
}

/// A value that a checkpoint folds as a slice of its own.
const LARGE_BYTES: usize = 1 << 20;

/// A write beside the load, which is acknowledged sooner or later.
struct Write {
    runtime: tokio::runtime::Runtime,
    task: tokio::task::JoinHandle<()>,
}

impl Write {
    fn begin(nodes: &[String], bytes: usize) -> Self {
        let (runtime, client) = (runtime(1), client(nodes));
        let task = runtime.spawn(async move {
            client.put("beside", vec![b'x'; bytes]).await.expect("it is acknowledged");
        });
        Self { runtime, task }
    }

    fn join(self) {
        self.runtime.block_on(self.task).expect("the write succeeds");
    }
}

/// The node dies when a checkpoint has said what it will do, and done nothing of it.
fn die_in_a_checkpoint(node: &mut Node) {
    let death = Death { role: "any", cause: Cause::Load, point: "checkpoint.intended", passes: 0 };
    death.arm(node);
    wait_for(&death.name(), BOUND, || {
        if node.died_at(death.point) { Ok(()) } else { Err(node.log()) }
    });
}

/// A lone node dies at every point that it reaches.
#[test]
fn a_lone_node() {
    let mut lone = Lone::start(PRUNING);
    lone.node.kill();
    lone.node.run_program(&binaries::onced_failpoints());
    lone.node.start();
    let mut deaths = Deaths::new("lone");
    for death in each(LONE, &mut deaths) {
        let Death { role, cause, point, passes } = death;
        let nodes = lone.addresses();
        deaths.add([point, role], passes, nodes.clone(), |_, _| {
            let node = &mut lone.node;
            match cause {
                Restart => node.kill(),
                Resume => die_in_a_checkpoint(node),
                _ => {}
            }
            death.arm(node);
            let large = (cause == LargeValue).then(|| Write::begin(&nodes, LARGE_BYTES));
            wait_for(&death.name(), BOUND, || {
                if node.died_at(point) { Ok(()) } else { Err(node.log()) }
            });
            node.start();
            large.into_iter().for_each(Write::join);
        });
    }
    deaths.conclude();
}

/// Two nodes, of which one is to die and the other is not.
struct Pair {
    cluster: Cluster,
    /// What a snapshot has to carry.
    ballast: Option<Ballast>,
}

impl Pair {
    fn start(environment: Environment) -> Self {
        let cluster = Cluster::start_program(&binaries::onced_failpoints(), 2, environment);
        Self { cluster, ballast: None }
    }

    /// A node dies at every point of these groups.
    fn die_at_each(&mut self, deaths: &mut Deaths, groups: &'static [Group]) {
        for death in each(groups, deaths) {
            let Death { role, point, passes, .. } = death;
            deaths.add([point, role], passes, self.cluster.addresses(), |deaths, load| {
                let died = (0..ATTEMPTS).any(|_| self.die(death, deaths, load));
                assert!(died, "{point} never killed the {role} in {ATTEMPTS} attempts");
            });
        }
    }

    /// Makes the node in this role reach the point, waits for its death, and until all is well again.
    /// Returns whether it died.
    fn die(&mut self, death: Death, deaths: &mut Deaths, load: &Load) -> bool {
        let Death { role, cause, point, .. } = death;
        let primary = self.cluster.wait_whole();
        let other = self.cluster.other(primary);
        let (victim, other) =
            if role.starts_with("primary") { (primary, other) } else { (other, primary) };
        let write = self.provoke(death, [victim, other], deaths, load);
        // The order of events is the nodes' own then: all may be well again without the point.
        let mut well = None;
        let may_miss = matches!(cause, Restart | PrimaryRestarts | Return);
        let died = wait_for(&death.name(), BOUND, || {
            let nodes = &mut self.cluster.nodes;
            if nodes[victim].died_at(point) {
                return Ok(true);
            }
            match self.cluster.try_whole() {
                Ok(_) => {
                    let requests = load.acknowledged();
                    let missed = may_miss && requests > *well.get_or_insert(requests) + 200;
                    if missed { Ok(false) } else { Err("the cluster is whole".to_owned()) }
                }
                Err(statuses) => Err(statuses),
            }
        });
        if !died {
            self.cluster.nodes[victim].kill();
        }
        if cause == Cause::Load && victim == primary && deaths.random(3) == 0 {
            self.cluster.nodes[other].wait_status("to take over", Status::serves);
        }
        for node in &mut self.cluster.nodes {
            if !node.runs() {
                node.start();
            }
        }
        self.cluster.wait_whole();
        write.into_iter().for_each(Write::join);
        died
    }

    /// Brings the victim to where it will reach the point, and arms it: as it runs, or as it starts.
    /// Returns the write that this takes.
    fn provoke(
        &mut self,
        death: Death,
        [victim, other]: [usize; 2],
        deaths: &mut Deaths,
        load: &Load,
    ) -> Option<Write> {
        match death.cause {
            Cause::Load => death.arm(&mut self.cluster.nodes[victim]),
            LargeValue => {
                death.arm(&mut self.cluster.nodes[victim]);
                return Some(Write::begin(&self.cluster.addresses(), LARGE_BYTES));
            }
            Restart => {
                self.cluster.nodes[victim].kill();
                death.arm(&mut self.cluster.nodes[victim]);
            }
            Resume => {
                die_in_a_checkpoint(&mut self.cluster.nodes[victim]);
                death.arm(&mut self.cluster.nodes[victim]);
            }
            TakeOver | GoOnAlone => {
                death.arm(&mut self.cluster.nodes[victim]);
                self.cluster.nodes[other].kill();
            }
            PrimaryRestarts => {
                death.arm(&mut self.cluster.nodes[victim]);
                self.cluster.nodes[other].kill();
                self.cluster.nodes[other].spawn();
            }
            Return => {
                self.isolate(victim, true);
                let alone = &self.cluster.nodes[victim];
                let before = alone.status().expect("it runs").prepared;
                let write = Write::begin(&[alone.client_address().to_string()], 1);
                alone.wait_status("to log what nobody else has", |it| it.prepared > before);
                self.cluster.nodes[other].wait_status("to take over", Status::serves);
                death.arm(&mut self.cluster.nodes[victim]);
                self.isolate(victim, false);
                return Some(write);
            }
            Learn => {
                self.leave_alone(other, victim);
                load.progress(50);
                death.arm(&mut self.cluster.nodes[victim]);
            }
            Receive => {
                self.leave_behind(deaths, other, victim);
                death.arm(&mut self.cluster.nodes[victim]);
            }
            Send => {
                self.leave_behind(deaths, victim, other);
                death.arm(&mut self.cluster.nodes[victim]);
                self.cluster.nodes[other].spawn();
            }
        }
        None
    }

    /// Cuts a node off from everything but its clients, or lets it back.
    fn isolate(&self, node: usize, on: bool) {
        let (node, other) = (&self.cluster.nodes[node], &self.cluster.nodes[1 - node]);
        node.cut_off("authority", on);
        node.cut_off(other.name(), on);
        other.cut_off(node.name(), on);
    }

    /// Kills a node; the one that stays goes on without it.
    fn leave_alone(&mut self, stays: usize, goes: usize) {
        self.cluster.nodes[goes].kill();
        self.cluster.nodes[stays]
            .wait_status("to go on alone", |it| it.serves() && it.backups.is_empty());
    }

    /// As [`leave_alone`](Self::leave_alone), until the log no longer reaches back to what the dead
    /// node has; which is nothing, now and then.
    fn leave_behind(&mut self, deaths: &mut Deaths, stays: usize, goes: usize) {
        self.leave_alone(stays, goes);
        if deaths.random(2) == 0 {
            self.cluster.nodes[goes].empty_disk();
        }
        let addresses = self.cluster.addresses();
        self.ballast.as_mut().expect("something to carry").rewrite(&addresses);
        let stays = &self.cluster.nodes[stays];
        let written = stays.status().expect("it runs").committed;
        stays.wait_status("to fold what was written", |it| it.applied >= written);
    }
}

/// Primary and backup die at every point that they reach under load.
#[test]
fn a_whole_cluster() {
    let mut deaths = Deaths::new("whole");
    let mut pair = Pair::start(PRUNING);
    pair.die_at_each(&mut deaths, WHOLE);
    deaths.conclude();
}

/// Nodes die at every point of a view change: who proposes, who follows, who starts anew, who has a
/// tail to cut off, and who learns what it missed.
#[test]
fn view_changes() {
    let mut deaths = Deaths::new("views");
    let mut pair = Pair::start(KEEPING);
    pair.die_at_each(&mut deaths, VIEWS);
    deaths.conclude();
}

/// The sender and the receiver of a snapshot die at every point of it. In the end the receiver serves
/// alone, from what it received.
#[test]
fn snapshots() {
    let mut deaths = Deaths::new("snapshots");
    let mut pair = Pair::start(PRUNING);
    let addresses = pair.cluster.addresses();
    pair.ballast = Some(Ballast::write(&addresses, 100));
    pair.die_at_each(&mut deaths, SNAPSHOTS);
    let primary = pair.cluster.wait_whole();
    pair.leave_alone(pair.cluster.other(primary), primary);
    deaths.conclude();
    pair.ballast.expect("just written").check(&addresses);
}

/// Every failpoint of the server kills in one of these tests, and none kills that there is not.
#[test]
fn every_failpoint_is_in_a_test() {
    let mut lone = Lone::start(&[]);
    lone.node.kill();
    lone.node.run_program(&binaries::onced_failpoints());
    lone.node.start();
    let there: BTreeSet<String> = lone.node.failpoints().into_iter().collect();
    let groups = [LONE, WHOLE, VIEWS, SNAPSHOTS].into_iter().flatten();
    let points = groups.flat_map(|group| group.points);
    let tested: BTreeSet<String> = points.map(|(point, _)| (*point).to_owned()).collect();
    assert_eq!(there, tested);
}

/// The server that is shipped has no failpoints: not even their names are in it.
#[test]
fn the_shipped_server_has_none() {
    let holds = |program: &Path, name: &str| {
        let bytes = fs::read(program).expect("a program");
        bytes.windows(name.len()).any(|window| window == name.as_bytes())
    };
    for name in ["request.received", "checkpoint.folded", "/fault/failpoint", "FAILPOINTS"] {
        assert!(holds(&binaries::onced_failpoints(), name), "{name}: the check finds nothing");
        assert!(!holds(&binaries::onced(), name), "onced holds {name}");
    }
}
