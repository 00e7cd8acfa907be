//! What a state of the model is made of. It is plain data of fixed size: states are copied and
//! hashed by the million.

use std::fmt;
use std::hash::{Hash, Hasher};

/// How many stores there are.
pub const STORES: usize = 3;
/// Stands for the primary of a view that all stores have left behind.
const FORGOTTEN: u8 = STORES as u8;
/// The highest view that any bounds allow.
pub const VIEWS_MAX: usize = 5;
/// The longest log: every client write, and the opening record of every view but the first.
pub const LOG_MAX: usize = 6;
/// The most values that the register can have had: views, and bumps.
pub const REVISIONS_MAX: usize = 9;
/// The most proposals that can be under way at one revision: two processes a store, and a bump.
const IN_FLIGHT_MAX: usize = 8;

/// A short list without an allocation. Unused places hold the default, so that equal lists are
/// equal in every byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short<T, const N: usize> {
    items: [T; N],
    length: u8,
}

impl<T: Copy + Default, const N: usize> Default for Short<T, N> {
    fn default() -> Self {
        Self { items: [T::default(); N], length: 0 }
    }
}

impl<T: Hash, const N: usize> Hash for Short<T, N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(self.length);
        for item in &self.items[..usize::from(self.length)] {
            item.hash(state);
        }
    }
}

impl<T: Copy + Default, const N: usize> Short<T, N> {
    pub fn items_mut(&mut self) -> &mut [T] {
        &mut self.items[..usize::from(self.length)]
    }

    pub fn items(&self) -> &[T] {
        &self.items[..usize::from(self.length)]
    }

    pub fn length(&self) -> u8 {
        self.length
    }

    pub fn push(&mut self, item: T) {
        self.items[usize::from(self.length)] = item;
        self.length += 1;
    }

    pub fn truncate(&mut self, length: u8) {
        while self.length > length {
            self.length -= 1;
            self.items[usize::from(self.length)] = T::default();
        }
    }
}

/// A set of stores.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stores(u8);

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Stores {
    pub fn of(stores: &[usize]) -> Self {
        stores.iter().fold(Self(0), |set, &store| set.with(store))
    }

    pub fn contains(self, store: usize) -> bool {
        self.0 & (1 << store) != 0
    }

    #[must_use]
    pub fn with(self, store: usize) -> Self {
        Self(self.0 | (1 << store))
    }

    #[must_use]
    pub fn without(self, store: usize) -> Self {
        Self(self.0 & !(1 << store))
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..STORES).filter(move |&store| self.contains(store))
    }

    /// Every set of these stores.
    pub fn subsets(self) -> impl Iterator<Item = Self> {
        (0..1 << STORES).map(Self).filter(move |set| set.is_within(self))
    }
}

/// One record of a log. Value 0 is the empty record that opens a view; the others are numbered
/// client writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub view: u8,
    pub value: u8,
}

impl Hash for Record {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(self.view << 4 | self.value);
    }
}

pub type Log = Short<Record, LOG_MAX>;

impl Log {
    /// The view at an index; index 0 has one in every log.
    pub fn view_at(&self, index: u8) -> Option<u8> {
        match index.checked_sub(1) {
            None => Some(0),
            Some(place) => self.items().get(usize::from(place)).map(|record| record.view),
        }
    }

    pub fn starts_with(&self, other: &[Record]) -> bool {
        self.items().starts_with(other)
    }
}

/// How a value came into the register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Made {
    /// By the process that still runs.
    #[default]
    InTime,
    /// By a process that was gone when its proposal arrived.
    Late,
    /// By a bump: the same view and proposal, at a new revision.
    Bumped,
    /// By a bump, while a proposal of a process that was gone was under way.
    BumpedInTime,
}

/// A value of the register. It needs no proposal id: a process has one proposal at a time, those
/// before it have lost, and `alive` tells its own from those of its store's dead processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Register {
    pub view: u8,
    pub primary: u8,
    /// Whether the process that proposed the view still runs.
    pub alive: bool,
    pub backups: Stores,
    /// Whether the view before had another primary.
    pub took_over: bool,
    /// Of the newest value only.
    pub made: Made,
}

impl Hash for Register {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let flags = u8::from(self.alive) << 1 | u8::from(self.took_over);
        state.write_u8(self.view << 4 | self.primary << 2 | flags);
        state.write_u8((self.made as u8) << 4 | self.backups.0);
    }
}

impl Register {
    pub fn primary(self) -> usize {
        usize::from(self.primary)
    }

    pub fn replicas(self) -> Stores {
        self.backups.with(self.primary())
    }
}

/// A compare-and-swap on its way, expecting the present revision: those that expect an older one
/// can never succeed and are forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Swap {
    /// The same view and proposal with one more bump, whoever sent it.
    #[default]
    Bump,
    /// The next view.
    View { primary: u8, alive: bool, backups: Stores },
}

/// A proposal as it is on disk, and while its process lives, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    /// Whether the process that made it still runs.
    pub alive: bool,
    /// The revision that it expects.
    pub expected: u8,
    /// The backups of the view proposed; a process that finds it on disk does not look at them.
    pub backups: Stores,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Has not read the register.
    #[default]
    Starting,
    /// A restarted primary.
    Recovering,
    Primary,
    /// A backup, or a learner.
    Follower,
}

/// One store and the process that runs on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Store {
    /// On disk: the highest view it took part in.
    pub view: u8,
    /// On disk: the unresolved proposal, or that of a dead process.
    pub proposal: Option<Proposal>,
    pub log: Log,
    /// How much of the log is on disk.
    pub durable: u8,
    pub role: Role,
    /// The newest revision known; 0 while starting.
    pub known: u8,
    /// The highest index that it ever knew as committed. A checkpoint may have folded it by then, so
    /// the search lets no crash take it away.
    pub holds_committed: u8,
    /// A primary's: what this process has committed; after a take-over it begins with nothing.
    pub committed: u8,
    /// A primary's: it executes once this index is committed.
    pub opens_at: u8,
}

impl Store {
    /// A primary that executes.
    pub fn is_open(&self) -> bool {
        self.role == Role::Primary && self.committed >= self.opens_at
    }

    /// The proposal of this very process, not known to be won or lost.
    pub fn unresolved(&self) -> Option<Proposal> {
        self.proposal.filter(|proposal| proposal.alive)
    }
}

/// Everything that was ever sent in one view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sent {
    /// The primary's log, as far as it got in this view: any part of it may arrive at any time.
    pub log: Log,
    /// Per store, the highest index acknowledged in this view.
    pub acknowledged: [u8; STORES],
    /// The highest index that its primary committed in this view.
    pub committed: u8,
}

/// What must never happen, and shows only in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Two primaries committed different records at an index.
    CommitsDiffer,
    /// A store was told to cut a record that it knew as committed.
    CommittedCut,
    /// A store took part in a lower view than its disk says.
    ViewFell,
    /// The primary of a view was no replica of the view before.
    ChosenFromOutside,
    /// A view names a store as its primary by a proposal that its process does not know of.
    Usurped,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// The register's values; the place in this list is the revision.
    pub register: Short<Register, REVISIONS_MAX>,
    pub in_flight: Short<Swap, IN_FLIGHT_MAX>,
    pub stores: [Store; STORES],
    /// By view.
    pub sent: [Sent; VIEWS_MAX],
    /// Per holder: whose leases it may hold.
    pub leases: [Stores; STORES],
    /// All that any primary ever committed.
    pub committed: Log,
    pub writes: u8,
    pub crashes: u8,
    pub fault: Option<Fault>,
}

impl State {
    pub fn revision(&self) -> u8 {
        self.register.length() - 1
    }

    pub fn newest(&self) -> Register {
        self.at(self.revision())
    }

    /// The register's value at a revision.
    pub fn at(&self, revision: u8) -> Register {
        self.register.items()[usize::from(revision)]
    }

    /// The register as a store knows it.
    pub fn known(&self, store: usize) -> Register {
        self.at(self.stores[store].known)
    }

    /// The replicas, `primary` left out, on which a record must be durable: those of its view, and
    /// those of the view that its unresolved proposal may have made.
    pub fn others(&self, primary: usize, with_proposal: bool) -> Stores {
        let proposed = self.stores[primary].unresolved().filter(|_| with_proposal);
        let proposed = proposed.map(|proposal| proposal.backups).unwrap_or_default();
        self.known(primary).backups.union(proposed).without(primary)
    }

    /// Puts a swap on its way; neither the order of those under way nor their number means anything.
    pub fn send(&mut self, swap: Swap) {
        if !self.in_flight.items().contains(&swap) {
            self.in_flight.push(swap);
            self.in_flight.items_mut().sort_unstable();
        }
    }

    /// The process of a store has ended: nothing that it proposed is its successor's own.
    pub fn end_process(&mut self, store: usize) {
        for register in self.register.items_mut() {
            register.alive &= register.primary() != store;
        }
        for swap in self.in_flight.items_mut() {
            if let Swap::View { primary, alive, .. } = swap {
                *alive &= usize::from(*primary) != store;
            }
        }
        self.in_flight.items_mut().sort_unstable();
        if let Some(leftover) = &mut self.stores[store].proposal {
            leftover.alive = false;
            leftover.backups = Stores::default();
        }
    }

    /// Forgets what nobody can ask for any more: views that all have left behind, and what was
    /// acknowledged to a primary that leads no more.
    pub fn forget_old_views(&mut self) {
        let oldest = self.stores.iter().map(|store| store.view).min().unwrap_or(0);
        for (sent, view) in self.sent.iter_mut().zip(1..) {
            let leads = |store: &Store| store.role == Role::Primary && store.view == view;
            if view < oldest {
                *sent = Sent::default();
            } else if !self.stores.iter().any(leads) {
                sent.acknowledged = [0; STORES];
            }
        }
        let newest = self.newest();
        for register in self.register.items_mut() {
            if register.view < oldest.min(newest.view) {
                let (view, primary) = (register.view, FORGOTTEN);
                *register = Register { view, primary, ..Register::default() };
            }
        }
    }

    /// The same state with the stores in the order of what they hold. Nothing depends on a store's
    /// number, so that states which differ by numbers only need to be searched once.
    pub fn representative(&self) -> Self {
        let mut order = [0, 1, 2];
        order.sort_by_cached_key(|&store| {
            let it = &self.stores[store];
            let acknowledged = self.sent.map(|sent| sent.acknowledged[store]);
            let named = self.register.items().iter().map(|register| {
                u8::from(register.primary() == store) * 2
                    + u8::from(register.backups.contains(store))
            });
            let named = named.fold(0_u32, |all, one| all << 2 | u32::from(one));
            let held = (it.role as u8, it.view, it.known, it.durable, it.committed);
            let log: [(u8, u8); LOG_MAX] = it.log.items.map(|record| (record.view, record.value));
            (named, held, it.holds_committed, it.proposal.is_some(), acknowledged, log)
        });
        let mut place = [usize::from(FORGOTTEN); STORES + 1];
        order.iter().enumerate().for_each(|(to, &from)| place[from] = to);
        self.renamed(&order, &place)
    }

    /// The store at `order[i]` becomes store `i`; `place` is the inverse.
    fn renamed(&self, order: &[usize; STORES], place: &[usize; STORES + 1]) -> Self {
        let set = |set: Stores| set.iter().map(|store| place[store]).fold(Stores(0), Stores::with);
        let mut to = *self;
        to.stores = order.map(|from| self.stores[from]);
        to.leases = order.map(|from| set(self.leases[from]));
        for proposal in to.stores.iter_mut().filter_map(|store| store.proposal.as_mut()) {
            proposal.backups = set(proposal.backups);
        }
        for sent in &mut to.sent {
            sent.acknowledged = order.map(|from| sent.acknowledged[from]);
        }
        for register in to.register.items_mut() {
            register.primary = place[register.primary()] as u8;
            register.backups = set(register.backups);
        }
        for swap in to.in_flight.items_mut() {
            if let Swap::View { primary, backups, .. } = swap {
                *primary = place[usize::from(*primary)] as u8;
                *backups = set(*backups);
            }
        }
        to.in_flight.items_mut().sort_unstable();
        to
    }

    pub fn note_fault(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }
}
