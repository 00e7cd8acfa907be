//! Whether a history of one key has a legal order.
//!
//! The search of Wing and Gong (*Testing and Verifying Concurrent Objects*, 1993) with the memory of
//! Lowe (*Testing for Linearizability*, 2017): it tries to put the operations in an order that
//! respects real time and gives every answered operation its answer, and remembers which sets of
//! operations, together with the value they leave, lead nowhere.

use std::collections::HashSet;

use bytes::Bytes;

/// What was done to the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The value was set.
    Put(Bytes),
    /// Bytes were added to its end.
    Append(Bytes),
    /// It was counted up by one; the answer is the new count.
    Incr,
    /// It was set if it was `expected`.
    Cas {
        /// What it had to be.
        expected: Option<Bytes>,
        /// What it became.
        value: Bytes,
    },
    /// It was removed.
    Delete,
    /// It was read.
    Get,
}

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing but that it is done.
    Done,
    /// The value.
    Value(Option<Bytes>),
    /// A number.
    Number(i64),
    /// Yes or no.
    Bool(bool),
    /// That it was impossible and changed nothing.
    Impossible,
}

/// One operation as its client saw it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// When it was sent first.
    pub invoked: u64,
    /// When it was answered; never, for one whose outcome is unknown.
    pub answered: Option<u64>,
    /// What was asked.
    pub action: Action,
    /// The answer.
    pub told: Option<Told>,
}

/// The value that `action` leaves and what it is answered.
fn apply(value: Option<&Bytes>, action: &Action) -> (Option<Bytes>, Told) {
    match action {
        Action::Put(new) => (Some(new.clone()), Told::Done),
        Action::Append(more) => {
            let new = [value.cloned().unwrap_or_default(), more.clone()].concat();
            let length = i64::try_from(new.len()).expect("a short value");
            (Some(new.into()), Told::Number(length))
        }
        Action::Incr => {
            let old = match value {
                None => Some(0),
                Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            };
            match old.and_then(|old: i64| old.checked_add(1)) {
                Some(new) => (Some(new.to_string().into()), Told::Number(new)),
                None => (value.cloned(), Told::Impossible),
            }
        }
        Action::Cas { expected, value: new } => {
            let holds = value == expected.as_ref();
            (if holds { Some(new.clone()) } else { value.cloned() }, Told::Bool(holds))
        }
        Action::Delete => (None, Told::Bool(value.is_some())),
        Action::Get => (value.cloned(), Told::Value(value.cloned())),
    }
}

/// Whether the operations on one key have an order that explains every answer. An operation
/// without an answer may be anywhere after its invocation, or nowhere.
pub fn is_linearizable(history: &[Operation]) -> bool {
    let mut search = Search {
        history,
        done: vec![false; history.len()],
        tried: HashSet::new(),
        left: history.iter().filter(|operation| operation.answered.is_some()).count(),
    };
    search.run(None)
}

struct Search<'a> {
    history: &'a [Operation],
    done: Vec<bool>,
    tried: HashSet<(Vec<u64>, Option<Bytes>)>,
    /// Answered operations that have no place yet.
    left: usize,
}

impl Search<'_> {
    fn run(&mut self, value: Option<&Bytes>) -> bool {
        if self.left == 0 {
            return true;
        }
        if !self.tried.insert((self.bits(), value.cloned())) {
            return false;
        }
        // Nothing may come before an operation that was answered before it was invoked.
        let open = self.history.iter().zip(&self.done).filter(|(_, done)| !**done);
        let end = open.filter_map(|(operation, _)| operation.answered).min();
        let end = end.expect("some answered operation is left");
        for at in 0..self.history.len() {
            let operation = &self.history[at];
            if self.done[at] || operation.invoked > end {
                continue;
            }
            let (next, told) = apply(value, &operation.action);
            if operation.told.as_ref().is_some_and(|answer| *answer != told) {
                continue;
            }
            self.done[at] = true;
            self.left -= usize::from(operation.answered.is_some());
            if self.run(next.as_ref()) {
                return true;
            }
            self.done[at] = false;
            self.left += usize::from(self.history[at].answered.is_some());
        }
        false
    }

    fn bits(&self) -> Vec<u64> {
        self.done
            .chunks(64)
            .map(|chunk| chunk.iter().fold(0, |bits, done| bits << 1 | u64::from(*done)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incr(invoked: u64, answered: Option<u64>, told: i64) -> Operation {
        let told = answered.map(|_| Told::Number(told));
        Operation { invoked, answered, action: Action::Incr, told }
    }

    fn get(invoked: u64, answered: u64, value: Option<&'static str>) -> Operation {
        let told = Some(Told::Value(value.map(Bytes::from)));
        Operation { invoked, answered: Some(answered), action: Action::Get, told }
    }

    /// Overlapping operations may take effect in either order; others only in theirs.
    #[test]
    fn real_time_is_respected() {
        assert!(is_linearizable(&[incr(0, Some(10), 2), incr(5, Some(15), 1)]));
        assert!(!is_linearizable(&[incr(0, Some(4), 2), incr(5, Some(15), 1)]));
    }

    /// A stale read is found.
    #[test]
    fn a_stale_read_is_found() {
        assert!(is_linearizable(&[incr(0, Some(1), 1), get(2, 3, Some("1"))]));
        assert!(!is_linearizable(&[incr(0, Some(1), 1), get(2, 3, None)]));
    }

    /// An unanswered operation may have taken effect once, at any time after it was sent.
    #[test]
    fn an_unknown_outcome_counts_at_most_once() {
        let unknown = incr(0, None, 0);
        assert!(is_linearizable(&[unknown.clone(), get(2, 3, None), get(4, 5, Some("1"))]));
        assert!(!is_linearizable(&[unknown, get(2, 3, Some("1")), get(4, 5, Some("2"))]));
    }
}
