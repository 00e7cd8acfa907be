//! Deterministic simulation of whole Onlyonce clusters.
//!
//! A world is drawn from a seed: nodes running the real `replica` and `storage` on memory disks,
//! clients, an authority, and a network between them. Everything that can go wrong does, at times
//! that follow from the seed; after every step the invariants are checked against what really
//! happened, and at the end the world heals, comes to rest, and is audited.
//!
//! - `run` → seeds, and how those end that find something,
//! - `plan` → what a seed makes of the world,
//! - `world` → the agenda, and a step of a node,
//! - `travel` → messages, answers, flushes, the authority, requests,
//! - `faults` → what goes wrong, within what the promises allow to go wrong,
//! - `node`, `client` → the two kinds of participants; `client/outbox` → requests that outlive theirs,
//! - `actions` → what clients ask for,
//! - `operator` → backups, and the restores from them,
//! - `history` → what the clients asked for and were told,
//! - `ledger`, `fold`, `requests` → the truth, and the invariants checked against it,
//! - `witness` → every answer, held against the truth,
//! - `audit` → the end,
//! - `outage` → how long one failure holds clients up,
//! - `tally` → which rare paths were met,
//! - `timeline` → what happened, for a reader.

mod actions;
mod audit;
mod client;
mod faults;
mod fold;
mod history;
mod ledger;
mod node;
mod operator;
mod outage;
mod plan;
mod requests;
mod run;
mod tally;
mod time;
mod timeline;
mod travel;
mod witness;
mod world;

pub use outage::{Mishap, longest_outage};
pub use plan::Blunder;
pub use run::{AT_REST, Failure, Trial, run_many, trace};
pub use tally::{Report, Sight};
