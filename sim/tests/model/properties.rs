//! What must hold in every state, and what must be reached by some.

use stateright::Property;

use crate::Onlyonce;
use crate::rules::Broken;
use crate::state::{Fault, Log, Made, Register, Role, STORES, State, Store, VIEWS_MAX};

pub const ONE_PRIMARY: &str = "I2: one primary a view";
pub const CHOSEN_FROM_VIEW: &str = "I3: the primary of the next view was a replica";
pub const SAME_RECORD: &str = "I4: same view and index, same record";
pub const EVERYWHERE: &str = "I1: committed records are durable on every replica of the view";
pub const HELD_IS_COMMITTED: &str = "what a store knows as committed is the committed history";
pub const READ_SEES_ALL: &str = "a read under leases sees every acknowledged write";
pub const READ_SEES_VIEWS: &str = "no primary reads once one of a newer view has opened";
pub const COMMITS_AGREE: &str = "all primaries commit the same history";
pub const NEVER_CUT: &str = "no store cuts what it knows as committed";
pub const VIEWS_GROW: &str = "I2: views only grow, on disk too";
pub const NOT_USURPED: &str = "a process knows every proposal of its store that wins";

/// The model's properties.
pub fn all() -> Vec<Property<Onlyonce>> {
    [invariants(), worth_reaching()].into_iter().flatten().collect()
}

fn invariants() -> Vec<Property<Onlyonce>> {
    vec![
        Property::always(ONE_PRIMARY, |_, state: &State| one_primary(state)),
        Property::always(CHOSEN_FROM_VIEW, |_, state: &State| {
            state.fault != Some(Fault::ChosenFromOutside)
        }),
        Property::always(SAME_RECORD, |_, state: &State| same_record(state)),
        Property::always(EVERYWHERE, |_, state: &State| committed_everywhere(state)),
        Property::always(HELD_IS_COMMITTED, |_, state: &State| held_is_committed(state)),
        Property::always(READ_SEES_ALL, |model, state: &State| {
            let writes = state.committed.items().iter().rposition(|record| record.value > 0);
            reads_see(model, state, writes.map_or(0, |last| last + 1))
        }),
        Property::always(READ_SEES_VIEWS, |model, state: &State| {
            reads_see(model, state, usize::from(state.committed.length()))
        }),
        Property::always(COMMITS_AGREE, |_, state: &State| {
            state.fault != Some(Fault::CommitsDiffer)
        }),
        Property::always(NEVER_CUT, |_, state: &State| state.fault != Some(Fault::CommittedCut)),
        Property::always(VIEWS_GROW, |_, state: &State| state.fault != Some(Fault::ViewFell)),
        Property::always(NOT_USURPED, |_, state: &State| state.fault != Some(Fault::Usurped)),
    ]
}

/// Without these the search might hold because it is narrow.
fn worth_reaching() -> Vec<Property<Onlyonce>> {
    vec![
        Property::sometimes("a take-over commits", |_, state: &State| {
            (0..STORES).any(|store| state.stores[store].is_open() && took_over(state, store))
        }),
        Property::sometimes(
            "a take-over commits a write of the view before, and its own",
            |_, state: &State| {
                let mut writes = state.committed.items().iter().filter(|record| record.value > 0);
                let first = writes.next();
                let rises = first.zip(writes.next()).is_some_and(|(one, two)| one.view < two.view);
                rises && (0..STORES).any(|store| took_over(state, store))
            },
        ),
        Property::sometimes("a proposal wins after its process ended", |_, state: &State| {
            state.newest().made == Made::Late
        }),
        Property::sometimes(
            "a bump is faster than the proposal of a process that ended",
            |_, state: &State| state.newest().made == Made::BumpedInTime,
        ),
        Property::sometimes(
            "a primary commits while its proposal has won unknown to it",
            |_, state: &State| {
                (0..STORES).any(|store| {
                    let it = &state.stores[store];
                    it.role == Role::Primary && it.committed > 0 && won_unknown(state, store)
                })
            },
        ),
        Property::sometimes("a learner becomes a backup", |_, state: &State| {
            last_change(state)
                .is_some_and(|(before, after)| !after.backups.is_within(before.replicas()))
        }),
        Property::sometimes(
            "a restarted primary leads the next view with its backups",
            |_, state: &State| {
                last_change(state).is_some_and(|(before, after)| {
                    let restarted = !after.took_over && !before.alive && after.alive;
                    let leads = state.stores[after.primary()].role == Role::Primary;
                    restarted && leads && !after.backups.is_empty()
                })
            },
        ),
        Property::sometimes("a take-over reads under leases", |model, state: &State| {
            (0..STORES).any(|store| {
                can_read(model, state, store)
                    && took_over(state, store)
                    && !state.known(store).backups.is_empty()
            })
        }),
        Property::sometimes("two stores believe to be the primary", |_, state: &State| {
            let leads = |store: &&Store| store.role == Role::Primary;
            state.stores.iter().filter(leads).count() > 1
        }),
    ]
}

/// The newest two values of the register, unless the older one is forgotten.
fn last_change(state: &State) -> Option<(Register, Register)> {
    let before = state.at(state.revision().checked_sub(1)?);
    let remembered = state.stores.iter().any(|store| store.view <= before.view);
    remembered.then(|| (before, state.newest()))
}

/// Whether a store leads a view that it took over from another one.
fn took_over(state: &State, store: usize) -> bool {
    state.stores[store].role == Role::Primary && state.known(store).took_over
}

/// Whether the proposal of a store has won before it knows.
fn won_unknown(state: &State, store: usize) -> bool {
    let it = &state.stores[store];
    let mut newer = state.register.items()[usize::from(it.known) + 1..].iter();
    it.unresolved().is_some() && newer.any(|value| value.primary() == store && value.alive)
}

/// Whether a primary may answer a read from its newest state.
fn can_read(model: &Onlyonce, state: &State, store: usize) -> bool {
    state.stores[store].is_open()
        && state
            .others(store, model.broken != Some(Broken::ReadIgnoresProposal))
            .is_within(state.leases[store])
}

/// Whether every store that may read now has what is committed up to here.
fn reads_see(model: &Onlyonce, state: &State, upto: usize) -> bool {
    let committed = &state.committed.items()[..upto];
    (0..STORES).all(|store| {
        !can_read(model, state, store) || state.stores[store].log.starts_with(committed)
    })
}

fn one_primary(state: &State) -> bool {
    let mut led = [false; VIEWS_MAX];
    let mut primaries = state.stores.iter().filter(|store| store.role == Role::Primary);
    primaries.all(|store| !std::mem::replace(&mut led[usize::from(store.view - 1)], true))
}

/// Two logs agree up to the last position that has the same view in both.
fn logs_agree(one: &Log, other: &Log) -> bool {
    let both = usize::from(one.length().min(other.length()));
    let (one, other) = (&one.items()[..both], &other.items()[..both]);
    let same = one.iter().zip(other).rposition(|(one, other)| one.view == other.view);
    same.is_none_or(|last| one[..=last] == other[..=last])
}

fn same_record(state: &State) -> bool {
    let logs: Vec<&Log> = state
        .stores
        .iter()
        .map(|store| &store.log)
        .chain(state.sent.iter().map(|sent| &sent.log))
        .chain([&state.committed])
        .collect();
    logs.iter()
        .enumerate()
        .all(|(place, one)| logs[place + 1..].iter().all(|other| logs_agree(one, other)))
}

fn committed_everywhere(state: &State) -> bool {
    let committed = state.committed.items();
    state.newest().replicas().iter().all(|store| {
        let store = &state.stores[store];
        usize::from(store.durable) >= committed.len() && store.log.starts_with(committed)
    })
}

fn held_is_committed(state: &State) -> bool {
    let committed = state.committed.items();
    state.stores.iter().all(|store| {
        let held = usize::from(store.holds_committed);
        held <= committed.len() && store.log.starts_with(&committed[..held])
    })
}
