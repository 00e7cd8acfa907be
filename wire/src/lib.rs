//! What travels between Onlyonce's processes, as data only.
//!
//! Everything here is a plain value: identifiers ([`ids`]), the requests and replies of clients
//! ([`client`]), the view register and the messages of its authority ([`authority`]), a node's
//! [`status`], the byte [`frame`]s that carry them, the file of a [`backup`], and the [`limits`] that
//! bound them. Nothing in
//! this crate opens a socket or reads a clock, and it uses no other crate of the workspace.
//!
//! The byte layout is described in `docs/wire-protocol.md`.

pub mod authority;
pub mod backup;
pub mod check;
pub mod client;
pub mod codec;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod status;

pub use ids::{
    CallId, ClusterId, IdempotencyKey, Incarnation, OpenedAt, ProposalId, Seq, Session, SessionId,
    StoreId, View,
};
