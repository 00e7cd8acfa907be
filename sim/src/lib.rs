//! Deterministic simulation of whole Onlyonce clusters.
//!
//! A world is drawn from a seed: nodes running the real `replica` and `storage` on memory disks,
//! clients, an authority, and a network between them. Everything that can go wrong does, at times
//! that follow from the seed; after every step the invariants are checked against what really
//! happened, and at the end the world heals, comes to rest, and is audited.

mod audit;
mod client;
mod faults;
mod ledger;
mod linearizable;
mod node;
mod plan;
mod time;
mod world;

pub use world::{Report, run};
