//! Partitions on request, for scripts and tests: `POST /fault/partition?peer=NAME&on=true|false`.
//!
//! Only in a process that was started with `ONCED_FAULTS=1`. While a peer is cut off, every message
//! to and from it is dropped without a word, as a network would; `authority` names the authority.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// Who is cut off.
#[derive(Debug)]
pub struct Faults {
    enabled: bool,
    any: AtomicBool,
    names: RwLock<HashSet<String>>,
}

impl Faults {
    /// Nobody is cut off. Unless `enabled`, nobody ever will be.
    pub fn new(enabled: bool) -> Self {
        Self { enabled, any: AtomicBool::new(false), names: RwLock::default() }
    }

    /// Whether partitions can be asked for.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether messages to and from `name` are dropped.
    pub fn cut(&self, name: &str) -> bool {
        self.any.load(Ordering::Acquire)
            && self.names.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Cuts `name` off, or lets it back.
    pub fn set(&self, name: &str, on: bool) {
        assert!(self.enabled, "faults are only for processes started with ONCED_FAULTS=1");
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if on {
            names.insert(name.to_owned());
        } else {
            names.remove(name);
        }
        self.any.store(!names.is_empty(), Ordering::Release);
    }
}
