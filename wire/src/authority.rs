//! The view register, and the messages by which the authority that holds it is asked.
//!
//! The register is one value with a revision that every successful change raises. It is changed by
//! compare-and-swap on that revision only, so of two proposals that saw the same revision at most
//! one wins.

use serde::{Deserialize, Serialize};

use crate::ids::{CallId, ClusterId, Incarnation, ProposalId, StoreId, View};

/// One replica of a view, and where to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who it is. Name and addresses are only labels.
    pub store: StoreId,
    /// The name it was started with (`--name`).
    pub name: String,
    /// Where it listens for clients.
    pub client_address: String,
    /// Where it listens for other nodes.
    pub peer_address: String,
}

/// What the register holds: the current view of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The cluster whose view this is.
    pub cluster: ClusterId,
    /// The cluster's incarnation.
    pub incarnation: Incarnation,
    /// The view's number.
    pub view: View,
    /// The proposal that made this view.
    pub proposal: ProposalId,
    /// Raised without any other change when somebody gives an unresolved proposal up: it moves the
    /// revision, so that the proposal can no longer win. The view stays the same view.
    pub bumps: u64,
    /// The one replica that executes requests.
    pub primary: Member,
    /// The other replicas: an acknowledged request is durable on each of them too.
    pub backups: Vec<Member>,
}

impl Register {
    /// Every replica of the view, the primary first.
    pub fn replicas(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.primary).chain(&self.backups)
    }

    /// The replica with this store id.
    #[must_use]
    pub fn replica(&self, store: StoreId) -> Option<&Member> {
        self.replicas().find(|member| member.store == store)
    }
}

/// How often the register was changed. Zero means that it was never written.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision(pub u64);

/// The register and its revision, as one linearizable read saw them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The revision.
    pub revision: Revision,
    /// The value; none when it was never written.
    pub register: Option<Register>,
}

/// A call to the authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityCall {
    /// Returned with the reply.
    pub call: CallId,
    /// What is asked.
    pub request: AuthorityRequest,
}

/// What the authority can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorityRequest {
    /// A linearizable read.
    Read,
    /// Set the register to `value` if its revision is still `expected`.
    CompareAndSwap {
        /// The revision on which the proposal rests.
        expected: Revision,
        /// The new value.
        value: Register,
    },
    /// Answer like `Read`, but not before the revision is other than `after` (or some seconds passed).
    Watch {
        /// The revision that the asker has.
        after: Revision,
    },
}

/// The authority's answer. A lost answer to a compare-and-swap means *unknown*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityReply {
    /// The call that is answered.
    pub call: CallId,
    /// The answer.
    pub answer: AuthorityAnswer,
}

/// What the authority can answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorityAnswer {
    /// To `Read` and `Watch`.
    Now(Versioned),
    /// The compare-and-swap took place and is durable; this is the new revision.
    Swapped(Revision),
    /// The register was not at the expected revision; nothing was changed.
    Conflict(Versioned),
    /// The call cannot be carried out; the text says why. Nothing was changed.
    Refused(String),
}
