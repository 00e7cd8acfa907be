//! Which role dies at which failpoint, and what brings it there; and which it cannot reach, and why.

use Cause::{
    Ask, GoOnAlone, LargeValue, Learn, PrimaryRestarts, Receive, Restart, Resume, Return, Send,
    TailIsCut, TakeOver,
};
use Passes::{Below, Exactly};
use Role::{Backup, Learner, Lone, Primary};

/// What a node is when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has no authority, and no other nodes.
    Lone,
    /// The view names it as the one that executes.
    Primary,
    /// The view names it as one that must have everything.
    Backup,
    /// The view does not name it; it catches up.
    Learner,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Lone, Primary, Backup, Learner];

    /// What is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Lone => "lone",
            Primary => "primary",
            Backup => "backup",
            Learner => "learner",
        }
    }
}

/// What makes a node reach a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Requests; a learner was cut off before, and must prove itself for a while.
    Load,
    /// As `Load`, with a value as large as a checkpoint's slice.
    LargeValue,
    /// As `Load`, with a client that knows this node alone.
    Ask,
    /// It was killed, and starts again: the primary before it is replaced, if it is quick.
    Restart,
    /// As `Load`; it died in a checkpoint, and starts again.
    Resume,
    /// It is a backup, and the primary was killed; no other backup reaches the authority.
    TakeOver,
    /// It is the primary, and a backup was killed.
    GoOnAlone,
    /// It was the primary, was cut off and replaced, and is back with records that nobody else has.
    Return,
    /// It is a backup, and another one took over that lacks the newest records.
    TailIsCut,
    /// It was away, and not missed any more; the log has what it lacks.
    Learn,
    /// It is the backup, and the primary was killed and starts again.
    PrimaryRestarts,
    /// It was away, and the log no longer has what it lacks.
    Receive,
    /// It is the primary of such a node.
    Send,
}

impl Cause {
    /// Whether all may be well again without the point: the order of events is the nodes' own then.
    pub const fn may_miss(self, role: Role) -> bool {
        match self {
            Restart | PrimaryRestarts | Return | TailIsCut | Send => true,
            Self::Load | LargeValue | Ask | Resume | Learn | Receive => {
                // It may be let into the view before.
                matches!(role, Learner)
            }
            TakeOver | GoOnAlone => false,
        }
    }
}

/// How often a point is passed before it kills.
#[derive(Clone, Copy)]
pub enum Passes {
    /// So often: it is another occasion each time.
    Exactly(u32),
    /// At random, less often than this.
    Below(u32),
}

type Points = &'static [(&'static str, Passes)];

/// Points that a node reaches in a role by one cause.
pub struct Group {
    pub role: Role,
    /// Where it comes from, if it was something else before.
    pub phase: &'static str,
    pub cause: Cause,
    pub points: Points,
}

const fn group(role: Role, phase: &'static str, cause: Cause, points: Points) -> Group {
    Group { role, phase, cause, points }
}

/// What every node that holds records does all the time.
const DISK: Points = &[
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
const CLIENTS: Points =
    &[("request.received", Below(50)), ("reply.ready", Below(50)), ("reply.written", Below(50))];
/// A client is told who the primary is.
const ASKED: Points =
    &[("request.received", Exactly(0)), ("reply.ready", Exactly(0)), ("reply.written", Exactly(0))];
const FEEDING: Points = &[
    ("append.sending", Below(20)),
    ("peer.written", Below(20)),
    ("append_ok.received", Below(20)),
];
const FED: Points = &[
    ("append.received", Below(20)),
    ("append_ok.sending", Below(20)),
    ("peer.written", Below(20)),
];
const LARGE: Points = &[("checkpoint.slice", Exactly(0))];
const OPENING: Points = &[
    ("open.barrier", Exactly(0)),
    ("open.replaying", Below(5)),
    ("open.replayed", Exactly(0)),
    ("open.end", Exactly(0)),
];
/// What an open does about a checkpoint that was cut short.
const RESUMING: Points = &[
    ("checkpoint.resuming", Below(5)),
    ("checkpoint.folded", Exactly(0)),
    ("checkpoint.applied", Exactly(0)),
    ("checkpoint.end", Exactly(0)),
];
/// The view is saved.
const SAVING: Points = &[("state.saving", Exactly(0)), ("state.saved", Exactly(0))];
/// A proposal, and the view that it makes.
const PROPOSING: Points = &[
    ("state.saving", Exactly(0)),
    ("state.saved", Exactly(0)),
    ("proposal.sending", Exactly(0)),
    ("proposal.won", Exactly(0)),
    ("state.saving", Exactly(1)),
    ("state.saved", Exactly(1)),
];
/// A restarted primary gets what it may have lost, and the next view.
const RECOVERING: Points = &[
    ("state.saving", Exactly(0)),
    ("state.saved", Exactly(0)),
    ("tail.received", Exactly(0)),
    ("state.saving", Exactly(1)),
    ("proposal.sending", Exactly(0)),
    ("proposal.won", Exactly(0)),
    ("state.saved", Exactly(2)),
];
const TELLING: Points = &[("tail.asked", Exactly(0))];
const CUTTING: Points = &[
    ("cut.begin", Exactly(0)),
    ("cut.announced", Exactly(0)),
    ("cut.row", Exactly(0)),
    ("cut.flushed", Exactly(0)),
    ("cut.end", Exactly(0)),
];

/// A node without others.
pub const LONE: &[Group] = &[
    group(Lone, "", Cause::Load, CLIENTS),
    group(Lone, "", Cause::Load, DISK),
    group(Lone, "", LargeValue, LARGE),
    group(Lone, "starting", Restart, OPENING),
    group(Lone, "starting", Resume, RESUMING),
    group(Lone, "starting", Restart, SAVING),
];

/// Two nodes, and nothing but load.
pub const WHOLE: &[Group] = &[
    group(Primary, "", Cause::Load, CLIENTS),
    group(Primary, "", Cause::Load, DISK),
    group(Primary, "", Cause::Load, FEEDING),
    group(Primary, "", LargeValue, LARGE),
    group(Backup, "", Cause::Load, DISK),
    group(Backup, "", Cause::Load, FED),
    group(Backup, "", Ask, ASKED),
    group(Backup, "", LargeValue, LARGE),
    group(Primary, "starting", Resume, RESUMING),
    group(Backup, "starting", Resume, RESUMING),
];

/// Two nodes whose view changes.
pub const VIEWS: &[Group] = &[
    group(Backup, "", TakeOver, PROPOSING),
    group(Primary, "", GoOnAlone, PROPOSING),
    group(Primary, "starting", Restart, RECOVERING),
    group(Primary, "starting", Restart, OPENING),
    group(Backup, "starting", Restart, OPENING),
    group(Backup, "starting", Restart, SAVING),
    group(Backup, "", PrimaryRestarts, TELLING),
    group(Learner, "replaced", Return, CUTTING),
];

/// Three nodes, of which the primary dies.
pub const PRIMARY_OF_THREE: &[Group] = &[
    group(Primary, "", Cause::Load, CLIENTS),
    group(Primary, "", Cause::Load, DISK),
    group(Primary, "", Cause::Load, FEEDING),
    group(Primary, "", LargeValue, LARGE),
    group(Primary, "", GoOnAlone, PROPOSING),
    group(Primary, "starting", Restart, RECOVERING),
];

/// Three nodes, of which one backup dies; then the other one.
pub const BACKUP_OF_THREE: &[Group] = &[
    group(Backup, "", Cause::Load, DISK),
    group(Backup, "", Cause::Load, FED),
    group(Backup, "", Ask, ASKED),
    group(Backup, "", LargeValue, LARGE),
    group(Backup, "", TakeOver, PROPOSING),
    group(Backup, "", PrimaryRestarts, TELLING),
    group(Backup, "", TailIsCut, CUTTING),
];

/// A third node that catches up by the log.
pub const LEARNER: &[Group] = &[
    group(Learner, "", Cause::Load, DISK),
    group(Learner, "", Cause::Load, FED),
    group(Learner, "", Ask, ASKED),
    group(Learner, "", LargeValue, LARGE),
    group(Learner, "starting", Learn, OPENING),
    group(Learner, "starting", Learn, SAVING),
    group(Learner, "starting", Resume, RESUMING),
    group(
        Learner,
        "starting",
        Learn,
        &[
            ("append.received", Exactly(0)),
            ("log.begin", Exactly(0)),
            ("log.row", Exactly(0)),
            ("log.rows", Exactly(0)),
            ("log.flushed", Exactly(0)),
            ("log.appended", Exactly(0)),
            ("log.persisted", Exactly(0)),
            ("append_ok.sending", Exactly(0)),
        ],
    ),
];

/// A third node that catches up by a snapshot, and its sender.
pub const SNAPSHOTS: &[Group] = &[
    group(
        Primary,
        "",
        Send,
        &[
            ("snapshot.read", Below(5)),
            ("snapshot.sending", Below(5)),
            ("snapshot_ok.received", Below(5)),
        ],
    ),
    group(
        Learner,
        "receiving",
        Receive,
        &[
            ("snapshot.received", Below(5)),
            ("snapshot.folded", Below(5)),
            ("snapshot.built", Exactly(0)),
            ("snapshot.accepted", Exactly(0)),
            ("replace.removed", Below(3)),
            ("replace.moved", Below(3)),
            ("replace.end", Exactly(0)),
        ],
    ),
    // The process was started, and begins anew on the store that the snapshot made.
    group(
        Learner,
        "beginning anew",
        Receive,
        &[("open.barrier", Exactly(1)), ("open.replayed", Exactly(1)), ("open.end", Exactly(1))],
    ),
    group(
        Learner,
        "beginning anew",
        Receive,
        &[
            ("log.begin", Exactly(0)),
            ("log.flushed", Exactly(0)),
            ("log.persisted", Exactly(0)),
            ("append_ok.sending", Exactly(0)),
        ],
    ),
];

/// All of them.
pub const GROUPS: [&[Group]; 7] =
    [LONE, WHOLE, VIEWS, PRIMARY_OF_THREE, BACKUP_OF_THREE, LEARNER, SNAPSHOTS];

/// Points that a role never reaches, and why.
pub struct OutOfReach {
    pub role: Role,
    pub points: &'static [&'static str],
    pub why: &'static str,
}

const fn never(role: Role, points: &'static [&'static str], why: &'static str) -> OutOfReach {
    OutOfReach { role, points, why }
}

const APPEND_OF_PRIMARY: &[&str] = &["append.sending", "append_ok.received"];
const APPEND_OF_FOLLOWER: &[&str] = &["append.received", "append_ok.sending"];
const PROPOSAL: &[&str] = &["proposal.sending", "proposal.won"];
const CUT: &[&str] = &["cut.begin", "cut.announced", "cut.row", "cut.flushed", "cut.end"];
const SNAPSHOT_OF_PRIMARY: &[&str] = &["snapshot.read", "snapshot.sending", "snapshot_ok.received"];
const SNAPSHOT_OF_LEARNER: &[&str] = &[
    "snapshot.received",
    "snapshot.folded",
    "snapshot.built",
    "snapshot.accepted",
    "replace.removed",
    "replace.moved",
    "replace.end",
];

/// For each role, the failpoints that it does not die at.
pub const OUT_OF_REACH: &[OutOfReach] = &[
    never(Lone, &["peer.written"], "it has no peers"),
    never(Lone, APPEND_OF_PRIMARY, "it has no peers"),
    never(Lone, APPEND_OF_FOLLOWER, "it has no peers"),
    never(Lone, &["tail.asked", "tail.received"], "it has no peers"),
    never(Lone, SNAPSHOT_OF_PRIMARY, "it has no peers"),
    never(Lone, SNAPSHOT_OF_LEARNER, "it has no peers"),
    never(Lone, PROPOSAL, "it has no authority: each open is the next view"),
    never(Lone, CUT, "it commits all of its log when it opens"),
    never(Primary, APPEND_OF_FOLLOWER, "it makes the records, and feeds others"),
    never(Primary, &["tail.asked"], "a restarted primary asks backups"),
    never(Primary, CUT, "its log rules: others cut theirs"),
    never(Primary, SNAPSHOT_OF_LEARNER, "it has everything that is committed"),
    never(Backup, APPEND_OF_PRIMARY, "only the primary feeds others"),
    never(Backup, &["tail.received"], "only a restarted primary asks"),
    never(Backup, SNAPSHOT_OF_PRIMARY, "only the primary feeds others"),
    never(Backup, SNAPSHOT_OF_LEARNER, "it is dropped from the view before it gets a snapshot"),
    never(Learner, APPEND_OF_PRIMARY, "only the primary feeds others"),
    never(Learner, PROPOSAL, "only replicas of a view propose the next one"),
    never(Learner, &["tail.asked"], "a restarted primary asks backups"),
    never(Learner, &["tail.received"], "only a restarted primary asks"),
    never(Learner, SNAPSHOT_OF_PRIMARY, "only the primary feeds others"),
];

/// The points that the role never reaches.
pub fn out_of_reach(role: Role) -> impl Iterator<Item = &'static str> {
    let rows = OUT_OF_REACH.iter().filter(move |row| row.role == role);
    rows.flat_map(|row| row.points).copied()
}
