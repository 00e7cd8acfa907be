//! The replication state in a store's `head`: what a node must not forget, and what helps to make
//! sense of its store when nothing else is left.

use bytes::Bytes;
use onlyonce_storage::View;
use onlyonce_wire::authority::{Member, Register, Revision};
use onlyonce_wire::codec::{self, CodecError};
use onlyonce_wire::limits::{NAME_BYTES_MAX, REGISTER_BYTES_MAX};
use onlyonce_wire::{ClusterId, Incarnation, ProposalId};
use serde::{Deserialize, Serialize};

/// The replication state that is on disk, or on its way there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Whom the store belongs to; none until it first served or joined.
    pub owner: Option<Owner>,
    /// The incarnation of the cluster's history.
    pub incarnation: Incarnation,
    /// The highest view that this node took part in.
    pub view: View,
    /// The proposal that made it, if one did. Another view of the same number is of a history that
    /// this store has no part in.
    pub made_by: Option<ProposalId>,
    /// An attempt to change the register whose outcome was not known when this was written.
    pub proposal: Option<SavedProposal>,
    /// This node, as it last introduced itself. For people, and for a forced view.
    pub me: Option<Member>,
    /// The replicas of `view`, its primary first; none of a lone node. Nothing of the protocol rests
    /// on them: they show whether the stores at hand can hold everything.
    pub replicas: Vec<Member>,
}

/// Whom a store belongs to. It never changes, but that what runs alone may become a cluster's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// A lone node.
    Lone,
    /// A cluster.
    Cluster(ClusterId),
    /// A node alone, with what a backup of this cluster held. Clients know it as that cluster.
    Restored(ClusterId),
}

/// What is needed to find out how a proposal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedProposal {
    /// It can only win at this revision.
    pub expected: Revision,
    /// By this id it is recognised in the register.
    pub id: ProposalId,
}

/// The most bytes that an encoded [`Saved`] takes: a register's replicas, this node, some numbers.
const SAVED_BYTES_MAX: usize = REGISTER_BYTES_MAX + 3 * NAME_BYTES_MAX + 128;

impl Saved {
    /// What a store without a history starts with.
    #[must_use]
    pub fn fresh() -> Self {
        Self {
            owner: None,
            incarnation: Incarnation(1),
            view: View(0),
            made_by: None,
            proposal: None,
            me: None,
            replicas: Vec::new(),
        }
    }

    /// What a store saves that is made from a backup of `cluster`, in a new `incarnation` of its history;
    /// `view` is that of the last record whose effects it holds.
    #[must_use]
    pub fn restored(cluster: ClusterId, incarnation: Incarnation, view: View) -> Self {
        Self { owner: Some(Owner::Restored(cluster)), incarnation, view, ..Self::fresh() }
    }

    /// The node takes part in the view that `register` holds.
    pub(crate) fn enter(&mut self, register: &Register) {
        self.view = View(register.view.0);
        self.made_by = Some(register.proposal);
        self.replicas = register.replicas().cloned().collect();
    }

    /// The bytes for `head`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bytes = codec::encode(self);
        assert!(bytes.len() <= SAVED_BYTES_MAX, "a saved state of {} bytes", bytes.len());
        bytes.into()
    }

    /// Reads what [`encode`](Self::encode) wrote; no bytes at all are a fresh store.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.is_empty() {
            return Ok(Self::fresh());
        }
        codec::decode::<Self, SAVED_BYTES_MAX>(bytes)
    }
}

const _: () = assert!(SAVED_BYTES_MAX <= onlyonce_storage::limits::STATE_BYTES_MAX);
