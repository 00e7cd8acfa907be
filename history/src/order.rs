//! Whether a history has a legal order.
//!
//! The search of Wing and Gong (*Testing and Verifying Concurrent Objects*, 1993) with the memory of
//! Lowe (*Testing for Linearizability*, 2017): it puts operations in an order that respects real time
//! and gives every answered operation its answer, and remembers which sets of operations, together
//! with the value that they leave, lead nowhere. Keys are judged one by one, since a history is
//! linearizable exactly when it is on each of them (Herlihy and Wing, 1990).
//!
//! An operation without an answer may stand anywhere after its invocation, or nowhere. What keeps the
//! search short, without any loss:
//!
//! - an answered operation that fits and, with this answer, changes nothing anywhere is put next, and
//!   no other order is tried: where a later place is legal, this one is too,
//! - who used fewer open operations to get to the same place can do all that others can: all that
//!   can be reached with few of them is searched before any more is used,
//! - of equal open operations only the earliest is tried.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use bytes::Bytes;

use crate::operation::{Operation, Recorded};

/// How many operations around the place where the search ended are shown.
const SHOWN: usize = 12;

/// Why a history has no order.
#[derive(Clone, Debug)]
pub struct NoOrder {
    /// The key, where it is known.
    pub key: Option<String>,
    /// How many of the answered operations could be ordered at most.
    pub ordered: usize,
    /// How many were answered.
    pub answered: usize,
    /// What the key held there.
    pub value: Option<Bytes>,
    /// The operations one of which should have been next, and none could.
    pub stuck: Vec<Operation>,
}

impl fmt::Display for NoOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.as_deref().unwrap_or("a key");
        let Self { ordered, answered, value, .. } = self;
        writeln!(
            f,
            "the history of {key} has no order: {ordered} of {answered} answered operations can be \
             ordered and leave {value:?}, then none of these explains its answer:"
        )?;
        self.stuck.iter().take(SHOWN).try_for_each(|operation| writeln!(f, "  {operation:?}"))?;
        match self.stuck.len().checked_sub(SHOWN) {
            Some(more @ 1..) => writeln!(f, "  and {more} more"),
            Some(0) | None => Ok(()),
        }
    }
}

impl std::error::Error for NoOrder {}

/// Checks the operations on all keys.
pub fn check_all(history: &[Recorded]) -> Result<(), NoOrder> {
    let mut keys: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
    for recorded in history {
        keys.entry(&recorded.key).or_default().push(recorded.operation.clone());
    }
    keys.into_iter().try_for_each(|(key, operations)| {
        check(&operations).map_err(|found| NoOrder { key: Some(key.to_owned()), ..found })
    })
}

/// Checks the operations on one key, which held nothing before: they must have an order that
/// explains every answer.
pub fn check(history: &[Operation]) -> Result<(), NoOrder> {
    Search::new(history).run()
}

/// How far an order has come.
#[derive(Clone, Debug, Default)]
struct Place {
    done: Done,
    /// The open operations that have a place.
    used: BTreeSet<usize>,
}

/// The answered operations that have a place, and the value that is left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Done {
    /// All before this one.
    before: usize,
    /// And these.
    beyond: BTreeSet<usize>,
    value: Option<Bytes>,
}

impl Done {
    fn has(&self, at: usize) -> bool {
        at < self.before || self.beyond.contains(&at)
    }

    fn count(&self) -> usize {
        self.before + self.beyond.len()
    }

    fn with(&self, at: usize, value: Option<Bytes>) -> Self {
        let mut next = Self { value, ..self.clone() };
        next.beyond.insert(at);
        while next.beyond.remove(&next.before) {
            next.before += 1;
        }
        next
    }
}

struct Search<'a> {
    /// The answered operations and when, by invocation.
    answered: Vec<(&'a Operation, u64)>,
    /// The others, by invocation.
    open: Vec<&'a Operation>,
    /// Which open operations were used by those who were there.
    seen: HashMap<Done, Vec<BTreeSet<usize>>>,
}

impl<'a> Search<'a> {
    fn new(history: &'a [Operation]) -> Self {
        let answered = history.iter().filter_map(|it| Some((it, it.answered?)));
        let mut answered: Vec<_> = answered.collect();
        answered.sort_by_key(|(operation, _)| operation.invoked);
        let mut open: Vec<_> = history.iter().filter(|it| it.answered.is_none()).collect();
        open.sort_by_key(|operation| operation.invoked);
        Self { answered, open, seen: HashMap::new() }
    }

    fn run(&mut self) -> Result<(), NoOrder> {
        let mut furthest = Done::default();
        // By how many open operations were used.
        let mut left = BTreeMap::from([(0, vec![Place::default()])]);
        while let Some(mut fewest) = left.first_entry() {
            let Some(place) = fewest.get_mut().pop() else {
                fewest.remove();
                continue;
            };
            if place.done.before == self.answered.len() {
                return Ok(());
            }
            if !self.is_new(&place) {
                continue;
            }
            if place.done.count() > furthest.count() {
                furthest = place.done.clone();
            }
            // The last one is tried first.
            for next in self.next_places(&place).into_iter().rev() {
                left.entry(next.used.len()).or_default().push(next);
            }
        }
        let stuck = self.candidates(&furthest);
        Err(NoOrder {
            key: None,
            ordered: furthest.count(),
            answered: self.answered.len(),
            stuck: stuck.iter().map(|&at| self.answered[at].0.clone()).collect(),
            value: furthest.value,
        })
    }

    /// Whether nobody was there who could do as much.
    fn is_new(&mut self, place: &Place) -> bool {
        let seen = self.seen.entry(place.done.clone()).or_default();
        if seen.iter().any(|used| used.is_subset(&place.used)) {
            return false;
        }
        seen.push(place.used.clone());
        true
    }

    /// The answered operations that may be next, those answered first before others: none that was
    /// invoked after another one was answered that has no place yet.
    fn candidates(&self, done: &Done) -> Vec<usize> {
        let mut end = u64::MAX;
        let mut found = Vec::new();
        for (at, (operation, answered)) in self.answered.iter().enumerate().skip(done.before) {
            if operation.invoked > end {
                break;
            }
            if !done.has(at) {
                end = end.min(*answered);
                found.push(at);
            }
        }
        found.retain(|&at| self.answered[at].0.invoked <= end);
        found.sort_by_key(|&at| self.answered[at].1);
        found
    }

    fn next_places(&self, place: &Place) -> Vec<Place> {
        let candidates = self.candidates(&place.done);
        let value = &place.done.value;
        let mut places = Vec::new();
        for &at in &candidates {
            let operation = self.answered[at].0;
            let (next, told) = operation.action.apply(value.as_ref());
            if operation.told.as_ref() != Some(&told) {
                continue;
            }
            let next = Place { done: place.done.with(at, next), used: place.used.clone() };
            if told.changed_nothing() {
                return vec![next];
            }
            places.push(next);
        }
        let end = self.answered[candidates[0]].1;
        let mut tried: Vec<&Operation> = Vec::new();
        for (at, operation) in self.open.iter().enumerate() {
            if operation.invoked > end {
                break;
            }
            let is_used = place.used.contains(&at);
            if is_used || tried.iter().any(|other| other.action == operation.action) {
                continue;
            }
            tried.push(operation);
            let (next, _) = operation.action.apply(value.as_ref());
            if next != *value {
                let mut used = place.used.clone();
                used.insert(at);
                places.push(Place { done: Done { value: next, ..place.done.clone() }, used });
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Action, Told};

    fn operation(invoked: u64, answered: u64, action: Action, told: Told) -> Operation {
        Operation { invoked, answered: Some(answered), action, told: Some(told) }
    }

    fn open(invoked: u64, action: Action) -> Operation {
        Operation { invoked, answered: None, action, told: None }
    }

    fn incr(invoked: u64, answered: u64, told: i64) -> Operation {
        operation(invoked, answered, Action::Incr, Told::Number(told))
    }

    fn put(invoked: u64, answered: u64, value: &'static str) -> Operation {
        operation(invoked, answered, Action::Put(value.into()), Told::Done)
    }

    fn append(invoked: u64, answered: u64, value: &'static str, told: i64) -> Operation {
        operation(invoked, answered, Action::Append(value.into()), Told::Number(told))
    }

    fn get(invoked: u64, answered: u64, value: Option<&'static str>) -> Operation {
        operation(invoked, answered, Action::Get, Told::Value(value.map(Bytes::from)))
    }

    fn is_linearizable(history: &[Operation]) -> bool {
        check(history).is_ok()
    }

    /// Overlapping operations may take effect in either order; others only in theirs.
    #[test]
    fn real_time_is_respected() {
        assert!(is_linearizable(&[incr(0, 10, 2), incr(5, 15, 1)]));
        assert!(!is_linearizable(&[incr(0, 4, 2), incr(5, 15, 1)]));
        assert!(is_linearizable(&[put(0, 9, "a"), put(1, 8, "b"), get(10, 11, Some("a"))]));
        assert!(!is_linearizable(&[put(0, 1, "a"), put(2, 3, "b"), get(4, 5, Some("a"))]));
    }

    /// A stale read is found, also one that two readers saw in opposite orders.
    #[test]
    fn a_stale_read_is_found() {
        assert!(is_linearizable(&[incr(0, 1, 1), get(2, 3, Some("1"))]));
        assert!(!is_linearizable(&[incr(0, 1, 1), get(2, 3, None)]));
        let writes = [put(0, 9, "a"), put(0, 9, "b")];
        let reads = |one, other| [get(1, 2, Some(one)), get(3, 4, Some(other))];
        assert!(is_linearizable(&[writes.clone(), reads("a", "b")].concat()));
        let back = [get(5, 6, Some("a"))];
        assert!(!is_linearizable(&[&writes[..], &reads("a", "b"), &back].concat()));
    }

    /// A lost write and a doubled one are found.
    #[test]
    fn loss_and_doubling_are_found() {
        let appends = [append(0, 1, "a;", 2), append(2, 3, "b;", 4)];
        let then = |value| [&appends[..], &[get(4, 5, Some(value))]].concat();
        assert!(is_linearizable(&then("a;b;")));
        for wrong in ["a;", "b;", "a;b;b;", "b;a;", "a;b;c;"] {
            assert!(!is_linearizable(&then(wrong)), "{wrong}");
        }
        assert!(!is_linearizable(&[incr(0, 1, 1), incr(2, 3, 3)]), "one ran twice");
        assert!(!is_linearizable(&[incr(0, 1, 1), incr(2, 3, 1)]), "two got one number");
    }

    /// An unanswered operation may have taken effect once, at any time after it was sent.
    #[test]
    fn an_unknown_outcome_counts_at_most_once() {
        let unknown = open(0, Action::Incr);
        assert!(is_linearizable(&[unknown.clone(), get(2, 3, None), get(4, 5, Some("1"))]));
        assert!(is_linearizable(&[unknown.clone(), get(2, 3, None)]), "it may never run");
        assert!(!is_linearizable(&[unknown, get(2, 3, Some("1")), get(4, 5, Some("2"))]));
        let late = open(3, Action::Incr);
        assert!(!is_linearizable(&[get(0, 1, Some("1")), late]), "it was not sent yet");
    }

    /// Of equal operations without an answer any number may have run, and of others any set.
    #[test]
    fn many_unknown_outcomes_are_searched() {
        let unknown: Vec<_> = (0..30).map(|_| open(0, Action::Incr)).collect();
        let puts = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"];
        let unknown_puts = puts.map(|value| open(0, Action::Put(value.into())));
        let read = |value| [&unknown[..], &[get(1, 2, Some(value))]].concat();
        assert!(is_linearizable(&read("30")));
        assert!(!is_linearizable(&read("31")));
        let reads = |first, second| {
            let reads = [get(1, 2, Some(first)), put(3, 4, "z"), get(5, 6, Some(second))];
            [&unknown_puts[..], &reads].concat()
        };
        assert!(is_linearizable(&reads("n", "a")));
        assert!(!is_linearizable(&reads("n", "n")));
    }

    /// A compare that fails is answered with what was there, and changes nothing.
    #[test]
    fn compares_tell_what_was_there() {
        let cas = |expected: &'static str, swapped, actual: &'static str| {
            let action = Action::Cas { expected: Some(expected.into()), value: "new".into() };
            operation(2, 3, action, Told::Compared { swapped, actual: Some(actual.into()) })
        };
        let after = |cas, value| [put(0, 1, "old"), cas, get(4, 5, Some(value))];
        assert!(is_linearizable(&after(cas("old", true, "old"), "new")));
        assert!(is_linearizable(&after(cas("other", false, "old"), "old")));
        assert!(!is_linearizable(&after(cas("other", false, "other"), "old")));
        assert!(!is_linearizable(&after(cas("other", false, "old"), "new")));
        assert!(!is_linearizable(&after(cas("old", false, "old"), "old")));
    }

    /// What is impossible and what removes are judged too.
    #[test]
    fn impossible_and_absent_are_judged() {
        let impossible = operation(2, 3, Action::Incr, Told::Impossible);
        assert!(is_linearizable(&[put(0, 1, "text"), impossible.clone()]));
        assert!(!is_linearizable(&[put(0, 1, "7"), impossible]));
        let delete = |told| operation(2, 3, Action::Delete, Told::Bool(told));
        assert!(is_linearizable(&[put(0, 1, "x"), delete(true), get(4, 5, None)]));
        assert!(!is_linearizable(&[put(0, 1, "x"), delete(false)]));
        assert!(!is_linearizable(&[put(0, 1, "x"), delete(true), get(4, 5, Some("x"))]));
    }

    /// Each key has an order of its own, and the one without is named with what was left.
    #[test]
    fn keys_are_judged_one_by_one() {
        let on = |key: &str, operation| Recorded { client: 0, key: key.to_owned(), operation };
        let good = [on("a", incr(0, 1, 1)), on("b", incr(2, 3, 1)), on("a", incr(4, 5, 2))];
        check_all(&good).expect("an order");
        let bad = [&good[..], &[on("b", incr(6, 7, 3))]].concat();
        let text = check_all(&bad).expect_err("there is none").to_string();
        assert!(text.contains("of b ") && text.contains("1 of 2"), "{text}");
        assert!(text.contains("Number(3)"), "{text}");
    }

    /// The judgement of every order of a few operations, tried one by one without any short cut.
    fn brute(value: Option<&Bytes>, left: &[Operation]) -> bool {
        let Some(end) = left.iter().filter_map(|operation| operation.answered).min() else {
            return true;
        };
        (0..left.len()).any(|at| {
            let (next, told) = left[at].action.apply(value);
            let mut rest = left.to_vec();
            let operation = rest.remove(at);
            operation.invoked <= end
                && operation.told.is_none_or(|answer| answer == told)
                && brute(next.as_ref(), &rest)
        })
    }

    /// The short cuts change no judgement: on many small histories, most of them without an order.
    #[test]
    fn short_cuts_change_nothing() {
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            // Numerical Recipes' linear congruential generator.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let values = ["", "1", "2", "a", "aa"];
        let mut judged = [0; 2];
        for _ in 0..20_000 {
            let history: Vec<_> = (0..5)
                .map(|_| {
                    let mut value = || Bytes::from(values[random(5) as usize]);
                    let (some, other) = (value(), value());
                    let (action, told) = match random(6) {
                        0 => (Action::Put(some), Told::Done),
                        1 => {
                            (Action::Append("a".into()), Told::Number(1 + random(2).cast_signed()))
                        }
                        2 => (Action::Incr, Told::Number(1 + random(2).cast_signed())),
                        3 => (Action::Delete, Told::Bool(random(2) == 0)),
                        4 => {
                            let swapped = random(2) == 0;
                            let actual = Some(if swapped { some.clone() } else { other.clone() });
                            let action = Action::Cas { expected: Some(some), value: other };
                            (action, Told::Compared { swapped, actual })
                        }
                        _ => (Action::Get, Told::Value(Some(some).filter(|it| !it.is_empty()))),
                    };
                    let invoked = random(20);
                    match random(3) {
                        0 => open(invoked, action),
                        _ => operation(invoked, invoked + random(10), action, told),
                    }
                })
                .collect();
            let found = is_linearizable(&history);
            assert_eq!(found, brute(None, &history), "{history:#?}");
            judged[usize::from(found)] += 1;
        }
        assert!(judged[0] > 1_000 && judged[1] > 1_000, "{judged:?}");
    }
}
