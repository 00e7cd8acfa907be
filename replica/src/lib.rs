//! The deterministic core of Onlyonce: one state machine, events in, effects out.
//!
//! A [`Replica`] is one node of a cluster without its clock, sockets, threads and disk writes:
//! [`Replica::step`] takes one [`Event`] and returns the [`Effect`]s to be carried out, in order.
//! The same code runs in production, under tests and in simulation. It reads rows through
//! [`onlyonce_storage::State`]; it writes by handing out records.
//!
//! - `requests` → what the primary does with a client's request,
//! - `duplicates` → which requests ran, and what they were answered,
//! - `keys` → those that have an idempotency key, and how these age,
//! - `questions` → what became of a request, and cancels,
//! - `expiry` → what is forgotten, and when,
//! - `kv` → what an operation does to rows,
//! - `primary` → records, followers, commit, leases,
//! - `members` → who belongs to the primary's view,
//! - `follower` → a backup's or learner's side of it,
//! - `progress` → what the primary knows of one follower,
//! - `source` → what a snapshot of the tables is made of,
//! - `snapshot` → one for a learner that the log cannot feed,
//! - `backup` → one for a client that keeps it,
//! - `waiters` → the answers that wait for a commit,
//! - `views` → the start, and following the register,
//! - `proposal` → changing it,
//! - `incarnation` → a forced view, and the end of the sessions before it,
//! - `recovery` → a restarted primary,
//! - `status` → what a node says about itself,
//! - `checkpoint` → when entries are folded into the tables,
//! - `agreement` → whether the replicas' tables agree, and who stops if not,
//! - `marks` → which rare paths a process took,
//! - `mutations` → which rules a test can break, to prove that breaking them is noticed.
//!
//! # Properties
//! The invariants are stated, and argued for, in `docs/replication.md`; those that one type keeps are
//! repeated on it.
//!
//! # Life of a put
//! [`Event::Request`] → looked up in the duplicate table → executed against the newest staged state
//! → effects, reply and duplicate row are one entry of the open record → on [`Event::Drained`] the
//! record is closed: [`Effect::Persist`] and, at the same time, an `Append` to every follower →
//! [`Event::Persisted`] and every `AppendOk` → committed → [`Effect::Reply`].

mod agreement;
mod backup;
mod checkpoint;
mod config;
mod duplicates;
mod event;
mod expiry;
mod follower;
mod forgetful;
mod incarnation;
mod keys;
mod kv;
mod limits;
mod marks;
mod members;
mod message;
mod mutations;
mod primary;
mod progress;
mod proposal;
mod questions;
mod recovery;
mod replica;
mod requests;
mod rows;
mod saved;
mod snapshot;
mod source;
mod status;
mod views;
mod waiters;

pub use config::{Config, DRIFT_PER_MILLE, Duplicates, Limits, Mode, Timing};
pub use event::{Effect, Event, Moment, ProposalResult, ReadId, ReplyTo, WallTime};
pub use incarnation::{forced_view, is_forced_view};
pub use limits::{CHECKPOINT_BYTES, LOG_PIN_BYTES, LOG_TAIL_BYTES, PIECE_BYTES};
pub use marks::{Mark, Marks};
pub use message::{FeedId, PeerHello, PeerMessage, Piece, Position, SnapshotId};
#[cfg(feature = "mutations")]
pub use mutations::Rule;
pub use replica::{Replica, StartError, Stop};
pub use rows::KeyRow;
pub use saved::{Owner, Saved, SavedProposal};
