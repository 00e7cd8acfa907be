//! The protocol's steps. Each is one thing that one process, the authority or the disk does, and
//! between any two anything else may happen: a process that stands still is one whose steps do not
//! come. Which steps are possible is asked of [`possible`], what they do is in [`take`].

use crate::rules::{Bounds, Broken};
use crate::state::{Fault, Made, Proposal, Record, Register, Role, STORES, State, Stores, Swap};

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An open primary executes a client's write and sends it to everybody.
    Write { primary: usize },
    /// The next record of a log reaches the disk.
    Persist { store: usize },
    /// An append arrives with the record that follows what the two logs have in common.
    Receive { follower: usize },
    /// Acknowledgements up to `index` arrived everywhere they are needed from.
    Commit { primary: usize, index: u8 },
    /// A restarted primary gets the next record of its view from a backup.
    FetchTail { primary: usize, backup: usize },
    /// A proposal of the next view is saved and sent.
    Propose { store: usize, backups: Stores },
    /// A compare-and-swap arrives at the authority, and succeeds.
    Arrive { swap: Swap },
    /// News of the register as it is or was: an answer, a read, the watch, a heartbeat.
    Learn { store: usize, revision: u8 },
    /// A linearizable read by a process that starts.
    Start { store: usize },
    /// A process without a leftover hears that it is a backup, before it has read the register.
    Hear { store: usize, revision: u8 },
    /// The process ends and a new one begins: what is not on disk is gone.
    Crash { store: usize },
}

/// The steps that can be taken.
pub fn possible(state: &State, bounds: Bounds, broken: Option<Broken>, steps: &mut Vec<Step>) {
    for &swap in state.in_flight.items() {
        steps.push(Step::Arrive { swap });
    }
    for store in 0..STORES {
        let it = &state.stores[store];
        if it.durable < it.log.length() {
            steps.push(Step::Persist { store });
        }
        let newer = it.known + 1..=state.revision();
        match it.role {
            Role::Starting => {
                starts(state, store, broken, steps);
                continue;
            }
            Role::Primary => leads(state, store, bounds, broken, steps),
            Role::Recovering => recovers(state, store, steps),
            Role::Follower => follows(state, store, steps),
        }
        steps.extend(newer.map(|revision| Step::Learn { store, revision }));
        proposes(state, store, bounds, broken, steps);
        if state.crashes < bounds.crashes {
            steps.push(Step::Crash { store });
        }
    }
}

fn starts(state: &State, store: usize, broken: Option<Broken>, steps: &mut Vec<Step>) {
    let it = &state.stores[store];
    let open = it.proposal.is_some_and(|leftover| leftover.expected == state.revision());
    let waits = open && state.in_flight.items().contains(&Swap::Bump);
    if !waits {
        steps.push(Step::Start { store });
    }
    if it.proposal.is_none() || broken == Some(Broken::FollowsWithLeftover) {
        let old = (0..state.revision()).filter(|&revision| {
            let register = state.at(revision);
            register.view >= it.view && register.backups.contains(store)
        });
        steps.extend(old.map(|revision| Step::Hear { store, revision }));
    }
}

fn leads(
    state: &State,
    primary: usize,
    bounds: Bounds,
    broken: Option<Broken>,
    steps: &mut Vec<Step>,
) {
    let it = &state.stores[primary];
    if it.is_open() && state.writes < bounds.writes {
        steps.push(Step::Write { primary });
    }
    let acknowledged = &state.sent[usize::from(it.view - 1)].acknowledged;
    let others = state.others(primary, broken != Some(Broken::CommitIgnoresProposal));
    let durable = others.iter().map(|store| acknowledged[store]).fold(it.durable, u8::min);
    // To commit again what an earlier primary has committed changes nothing, whatever the portion.
    let first = (it.committed + 1).max(durable.min(state.committed.length() + 1));
    steps.extend((first..=durable).map(|index| Step::Commit { primary, index }));
}

fn recovers(state: &State, primary: usize, steps: &mut Vec<Step>) {
    let it = &state.stores[primary];
    let last = it.log.length();
    if it.proposal.is_some() {
        return;
    }
    for backup in state.known(primary).backups.iter() {
        let from = &state.stores[backup];
        let matches = from.log.view_at(last) == it.log.view_at(last);
        if matches && last < from.durable && from.log.view_at(last + 1) == Some(it.view) {
            steps.push(Step::FetchTail { primary, backup });
        }
    }
}

/// Up to where a follower's log equals that of its view's primary.
fn common(state: &State, follower: usize) -> u8 {
    let it = &state.stores[follower];
    let sent = &state.sent[usize::from(it.view - 1)].log;
    let mut index = it.log.length().min(sent.length());
    while it.log.view_at(index) != sent.view_at(index) {
        index -= 1;
    }
    index
}

fn follows(state: &State, follower: usize, steps: &mut Vec<Step>) {
    let it = &state.stores[follower];
    if it.proposal.is_some() {
        return;
    }
    if common(state, follower) < state.sent[usize::from(it.view - 1)].log.length() {
        steps.push(Step::Receive { follower });
    }
}

fn proposes(
    state: &State,
    store: usize,
    bounds: Bounds,
    broken: Option<Broken>,
    steps: &mut Vec<Step>,
) {
    let it = &state.stores[store];
    let known = state.known(store);
    // A proposal that expects an old revision cannot win, and only binds its proposer.
    if it.proposal.is_some() || it.known < state.revision() || known.view >= bounds.views {
        return;
    }
    match it.role {
        Role::Recovering => steps.push(Step::Propose { store, backups: known.backups }),
        Role::Follower if known.backups.contains(store) => {
            steps.push(Step::Propose { store, backups: known.backups.without(store) });
        }
        Role::Starting | Role::Follower => {}
        Role::Primary => {
            let trusts = broken == Some(Broken::LearnerReadyAtCommitted);
            let needed = if trusts { it.committed } else { it.committed.max(it.opens_at) };
            let acknowledged = &state.sent[usize::from(it.view - 1)].acknowledged;
            let ready = (0..STORES).filter(|&learner| acknowledged[learner] >= needed);
            let able = ready.fold(known.backups, Stores::with).without(store);
            let changes = able.subsets().filter(|&backups| backups != known.backups);
            steps.extend(changes.map(|backups| Step::Propose { store, backups }));
        }
    }
}

/// The state after a step that is possible.
pub fn take(mut state: State, step: Step, broken: Option<Broken>) -> State {
    match step {
        Step::Write { primary } => {
            state.writes += 1;
            let value = state.writes;
            append(&mut state, primary, value);
        }
        Step::Persist { store } => state.stores[store].durable += 1,
        Step::Receive { follower } => receive(&mut state, follower),
        Step::Commit { primary, index } => commit(&mut state, primary, index),
        Step::FetchTail { primary, backup } => {
            let next = usize::from(state.stores[primary].log.length());
            let record = state.stores[backup].log.items()[next];
            state.stores[primary].log.push(record);
        }
        Step::Propose { store, backups } => propose(&mut state, store, backups, broken),
        Step::Arrive { swap } => arrive(&mut state, swap),
        Step::Learn { store, revision } => learn(&mut state, store, revision, broken),
        Step::Start { store } => start(&mut state, store, broken),
        Step::Hear { store, revision } => adopt(&mut state, store, revision, broken),
        Step::Crash { store } => crash(&mut state, store),
    }
    answer(&mut state, broken);
    state.forget_old_views();
    state
}

/// A primary makes the next record of its view, and everybody may get it from now on.
fn append(state: &mut State, primary: usize, value: u8) {
    let it = &mut state.stores[primary];
    it.log.push(Record { view: it.view, value });
    state.sent[usize::from(it.view - 1)].log = it.log;
}

fn receive(state: &mut State, follower: usize) {
    let common = common(state, follower);
    let it = &mut state.stores[follower];
    let sent = &state.sent[usize::from(it.view - 1)].log;
    it.log.truncate(common);
    it.log.push(sent.items()[usize::from(common)]);
    it.durable = it.durable.min(common);
    if common < it.holds_committed {
        state.note_fault(Fault::CommittedCut);
    }
}

fn commit(state: &mut State, primary: usize, index: u8) {
    let it = &mut state.stores[primary];
    it.committed = index;
    it.holds_committed = it.holds_committed.max(index);
    let told = &mut state.sent[usize::from(it.view - 1)].committed;
    *told = index.max(*told);
    let mine = it.log;
    for (place, &record) in mine.items()[..usize::from(index)].iter().enumerate() {
        match state.committed.items().get(place) {
            None => state.committed.push(record),
            Some(earlier) if *earlier == record => {}
            Some(_) => state.note_fault(Fault::CommitsDiffer),
        }
    }
}

fn propose(state: &mut State, store: usize, backups: Stores, broken: Option<Broken>) {
    let it = &mut state.stores[store];
    it.proposal = Some(Proposal { alive: true, expected: it.known, backups });
    if it.role == Role::Follower && broken != Some(Broken::TakeOverWithoutGrace) {
        // It has waited until every lease that it may have given is over.
        state.leases.iter_mut().for_each(|held| *held = held.without(store));
    }
    state.send(Swap::View { primary: store as u8, alive: true, backups });
}

fn arrive(state: &mut State, swap: Swap) {
    let before = state.newest();
    let is_late = |swap: &Swap| matches!(swap, Swap::View { alive: false, .. });
    let register = match swap {
        Swap::Bump => {
            let in_time = state.in_flight.items().iter().any(is_late);
            let made = if in_time { Made::BumpedInTime } else { Made::Bumped };
            Register { made, ..before }
        }
        Swap::View { primary, alive, backups } => {
            let made = if alive { Made::InTime } else { Made::Late };
            let took_over = primary != before.primary;
            if !before.replicas().contains(usize::from(primary)) {
                state.note_fault(Fault::ChosenFromOutside);
            }
            Register { view: before.view + 1, primary, alive, backups, took_over, made }
        }
    };
    for old in state.register.items_mut() {
        old.made = Made::default();
    }
    state.register.push(register);
    state.in_flight.truncate(0);
}

fn learn(state: &mut State, store: usize, revision: u8, broken: Option<Broken>) {
    let register = state.at(revision);
    let known = state.known(store);
    let it = &mut state.stores[store];
    if it.proposal.is_some() {
        let mine = register.primary() == store && register.alive;
        it.proposal = None;
        if mine && register.view == known.view + 1 {
            begin_won_view(state, store, revision);
            return;
        }
    }
    if register.view == known.view {
        it.known = revision;
    } else {
        adopt(state, store, revision, broken);
    }
}

/// Goes into a view; it is on disk from here on.
fn enter(state: &mut State, store: usize, revision: u8) {
    let view = state.at(revision).view;
    let it = &mut state.stores[store];
    let fell = view < it.view;
    it.view = view;
    it.known = revision;
    it.proposal = None;
    if fell {
        state.note_fault(Fault::ViewFell);
    }
}

fn begin_won_view(state: &mut State, store: usize, revision: u8) {
    enter(state, store, revision);
    let it = &mut state.stores[store];
    let view = usize::from(it.view - 1);
    match it.role {
        Role::Primary => state.sent[view].log = it.log,
        Role::Starting | Role::Recovering | Role::Follower => {
            it.role = Role::Primary;
            it.committed = 0;
            it.opens_at = it.log.length() + 1;
            append(state, store, 0);
        }
    }
}

/// Takes part in a view that somebody else, or an earlier process, made.
fn adopt(state: &mut State, store: usize, revision: u8, broken: Option<Broken>) {
    enter(state, store, revision);
    let register = state.at(revision);
    let it = &mut state.stores[store];
    let started = it.role == Role::Starting;
    state.leases[store] = Stores::default();
    it.committed = 0;
    it.opens_at = 0;
    it.role = Role::Follower;
    if register.primary() != store {
        return;
    }
    if broken == Some(Broken::RestartedPrimaryResumes) {
        it.role = Role::Primary;
        it.opens_at = it.log.length();
        return;
    }
    it.role = Role::Recovering;
    if !started {
        state.note_fault(Fault::Usurped);
    }
}

fn start(state: &mut State, store: usize, broken: Option<Broken>) {
    let revision = state.revision();
    let leftover = state.stores[store].proposal;
    let open = leftover.is_some_and(|leftover| leftover.expected == revision);
    if open && broken != Some(Broken::LeftoverNotBumped) {
        state.send(Swap::Bump);
    } else {
        adopt(state, store, revision, broken);
    }
}

fn crash(state: &mut State, store: usize) {
    state.crashes += 1;
    state.leases[store] = Stores::default();
    state.end_process(store);
    let it = &mut state.stores[store];
    it.log.truncate(it.durable);
    it.role = Role::Starting;
    (it.known, it.committed, it.opens_at) = (0, 0, 0);
}

/// What followers do by themselves, as early as they may: they match their logs, acknowledge, echo,
/// and take in what is committed.
fn answer(state: &mut State, broken: Option<Broken>) {
    for follower in 0..STORES {
        let it = &state.stores[follower];
        if it.role != Role::Follower {
            continue;
        }
        let proposes = it.proposal.is_some();
        if !proposes {
            acknowledge(state, follower, broken);
        }
        let it = &state.stores[follower];
        let primary = state.known(follower).primary();
        let leads =
            state.stores[primary].role == Role::Primary && state.stores[primary].view == it.view;
        if leads && (!proposes || broken == Some(Broken::EchoWhileProposing)) {
            state.leases[primary] = state.leases[primary].with(follower);
        }
    }
}

fn acknowledge(state: &mut State, follower: usize, broken: Option<Broken>) {
    let matched = common(state, follower);
    let it = &mut state.stores[follower];
    let sent = &mut state.sent[usize::from(it.view - 1)];
    let durable = matched.min(it.durable);
    it.holds_committed = it.holds_committed.max(durable.min(sent.committed));
    let early = broken == Some(Broken::AcknowledgeBeforePersist);
    let acknowledged = &mut sent.acknowledged[follower];
    *acknowledged = (*acknowledged).max(if early { matched } else { durable });
}
