//! A model of views, unknown proposals and leases, searched exhaustively within bounds.
//!
//! The simulator drives the real code through random worlds; this searches *every* world, of a
//! protocol written down once more in its smallest form. Three stores, one register, and steps
//! ([`steps::Step`]) that any of them may take at any time: a pause, a delay and a loss are steps that
//! come late or never. The rules are those of `docs/replication.md`; [`rules::Broken`] leaves one out,
//! and a test shows for each that the search then finds a counterexample.
//!
//! # What is modelled
//! - The register with every value that it had. A compare-and-swap under way may arrive at any later
//!   time, also after its proposer crashed and restarted, or never. Its answer, reads, the watch and
//!   news from other nodes are one step: a process learns *any* value that it has not passed, however
//!   old. Only a process that starts reads linearizably.
//! - On disk: the view, the proposal, the log. A record reaches the disk in a step of its own, and a
//!   crash loses what has not. Restarted primaries fetch tails or do not, and win the next view.
//! - Opening records, commits in any portion, views without a backup or with a learner, take-overs.
//! - Per store, the highest index that it ever knew as committed: never cut, also after a restart.
//!
//! # What is abstracted, and why a fault would still show
//! - *Messages of a view* are not counted. A primary only appends in its view, so everything it sent is
//!   its log: any follower of the view may take the next record out of that at any time, even when
//!   the sender is gone. Acknowledgements only grow, so the highest of each store stands for
//!   all; it is given as early as the rules allow, and the primary acts on it at any later step.
//! - *Time.* An echo is given whenever it may be, and the lease lasts until the store that gave it
//!   proposes itself: that is the moment by which the grace has ended it, whatever the pauses. Real
//!   leases end earlier, so they allow fewer reads. That the grace is longer than the lease on
//!   drifting clocks is arithmetic, asserted by `Timing::is_safe`. A primary that crashed has no lease.
//!   Every primary reads all the time: a read that misses a write shows as a state.
//! - *Saves and cuts* are one step. The log writer handles them in order, and nothing that rests on
//!   them leaves before; a crash in between is a crash before.
//! - *A fetched tail* arrives at once, a record at a time. A later arrival brings the same records, by
//!   I4, or finds that the log has gone on.
//! - A proposal that expects an old revision is not made: it cannot win, and only binds its proposer.
//! - After a take-over a primary's own idea of what is committed begins at nothing, the weakest it may be.
//! - What no step can ask for any more is forgotten ([`state::State::forget_old_views`]), and states that
//!   differ in the stores' numbers only are searched once ([`state::State::representative`]):
//!   no rule looks at a number but to tell stores apart.
//!
//! Left out: bootstrap and lone nodes, incarnations, damaged stores, `min_copies`, candidates, snapshots
//! and pruned logs, the contents of records. The simulator has these.

mod properties;
mod rules;
mod state;
mod steps;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

use rules::{Bounds, Broken};
use state::{Register, Role, State, Store, Stores};
use steps::Step;

/// What every run of the tests searches: one is long in views, one in writes and crashes.
const WORLDS: [Bounds; 2] =
    [Bounds { views: 3, writes: 1, crashes: 1 }, Bounds { views: 2, writes: 2, crashes: 2 }];
/// Names larger bounds: `views,writes,crashes`.
const BOUNDS_VARIABLE: &str = "ONCE_MODEL_BOUNDS";

/// The protocol within bounds, whole or with one rule broken.
#[derive(Clone, Debug)]
struct Onlyonce {
    bounds: Bounds,
    broken: Option<Broken>,
}

impl Model for Onlyonce {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        [Stores::of(&[1, 2]), Stores::of(&[1])].into_iter().map(first).collect()
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        steps::possible(state, self.bounds, self.broken, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        Some(steps::take(*state, step, self.broken))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// View 1 has begun and is known to all; store 0 leads it, nothing is written. A store that is not
/// among the backups is a learner.
fn first(backups: Stores) -> State {
    let mut state = State::default();
    state.register.push(Register { view: 1, alive: true, backups, ..Register::default() });
    for (store, it) in state.stores.iter_mut().enumerate() {
        let role = if store == 0 { Role::Primary } else { Role::Follower };
        *it = Store { view: 1, role, ..Store::default() };
    }
    state
}

/// The steps of a counterexample, one a line.
fn told(steps: Vec<Step>) -> String {
    steps.into_iter().fold(String::new(), |mut text, step| {
        let _ = writeln!(text, "  {step:?}");
        text
    })
}

/// Searches every state within the bounds; returns what was reached of that which must be.
fn search(bounds: Bounds) -> BTreeSet<&'static str> {
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let checker = Onlyonce { bounds, broken: None }
        .checker()
        .threads(threads)
        .symmetry_fn(State::representative)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    println!(
        "{bounds:?}: {} states, {} steps, at most {} in a row, in {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f32()
    );
    let mut reached = BTreeSet::new();
    for (name, path) in checker.discoveries() {
        let steps = || told(path.clone().into_actions());
        match checker.model().property(name).expectation {
            Expectation::Sometimes => reached.insert(name),
            Expectation::Always | Expectation::Eventually => {
                panic!("{bounds:?} breaks \"{name}\":\n{}", steps())
            }
        };
    }
    reached
}

/// The bounds asked for by the environment.
fn wanted() -> Option<Bounds> {
    let text = std::env::var(BOUNDS_VARIABLE).ok()?;
    let numbers: Option<Vec<u8>> = text.split(',').map(|number| number.parse().ok()).collect();
    let Some([views, writes, crashes]) = numbers.as_deref() else {
        panic!("{BOUNDS_VARIABLE} is \"{text}\", not views,writes,crashes such as 3,2,1")
    };
    Some(Bounds { views: *views, writes: *writes, crashes: *crashes }.checked())
}

/// The protocol keeps its invariants in every state within the bounds, and the search reaches what
/// is worth reaching.
#[test]
fn every_state_keeps_the_invariants() {
    if let Some(bounds) = wanted() {
        println!("reached: {:#?}", search(bounds));
        return;
    }
    let reached: BTreeSet<_> = WORLDS.into_iter().flat_map(search).collect();
    for property in properties::all() {
        if property.expectation == Expectation::Sometimes {
            assert!(reached.contains(property.name), "no state shows that {}", property.name);
        }
    }
}

/// The shortest way to break a property when one rule is left out.
#[track_caller]
fn assert_breaks(broken: Broken, property: &'static str) {
    // Two records at one place take two writes.
    let writes = if broken == Broken::RestartedPrimaryResumes { 2 } else { 1 };
    let bounds = Bounds { views: 3, writes, crashes: 1 };
    let checker = Onlyonce { bounds, broken: Some(broken) }
        .checker()
        .finish_when(HasDiscoveries::AnyOf([property].into()))
        .spawn_bfs()
        .join();
    let found = checker.discovery(property);
    let path = found.unwrap_or_else(|| panic!("{broken:?} does not break \"{property}\""));
    let steps = told(path.into_actions());
    println!(
        "{broken:?} breaks \"{property}\" ({} states):\n{steps}",
        checker.unique_state_count()
    );
}

/// Two records at one place of a view: the restarted process does not know what the dead one sent.
#[test]
fn a_restarted_primary_must_not_go_on() {
    assert_breaks(Broken::RestartedPrimaryResumes, properties::SAME_RECORD);
}

#[test]
fn commits_must_wait_for_the_view_proposed() {
    assert_breaks(Broken::CommitIgnoresProposal, properties::EVERYWHERE);
}

#[test]
fn reads_must_wait_for_the_view_proposed() {
    assert_breaks(Broken::ReadIgnoresProposal, properties::READ_SEES_ALL);
}

#[test]
fn a_take_over_must_wait_for_the_leases() {
    assert_breaks(Broken::TakeOverWithoutGrace, properties::READ_SEES_ALL);
}

#[test]
fn a_proposer_must_not_echo() {
    assert_breaks(Broken::EchoWhileProposing, properties::READ_SEES_ALL);
}

#[test]
fn an_acknowledgement_must_wait_for_the_disk() {
    assert_breaks(Broken::AcknowledgeBeforePersist, properties::EVERYWHERE);
}

#[test]
fn a_leftover_must_be_given_up() {
    assert_breaks(Broken::LeftoverNotBumped, properties::READ_SEES_ALL);
}

#[test]
fn a_leftover_must_be_resolved_before_following() {
    assert_breaks(Broken::FollowsWithLeftover, properties::READ_SEES_ALL);
}

#[test]
fn an_opening_primary_must_not_trust_what_it_knows_committed() {
    assert_breaks(Broken::LearnerReadyAtCommitted, properties::EVERYWHERE);
}
