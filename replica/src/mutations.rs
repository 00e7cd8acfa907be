//! Safety rules that a test can break, to prove that the simulator would notice.
//!
//! Each rule has one site, `if self.breaks(Rule::X)`. Without the feature `mutations` that is
//! constantly false, and nothing outside this crate can name a rule.

use crate::replica::Replica;

/// Declares the rules once: the enum and the list of all.
macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $rule:ident,)+) => {
        /// A safety rule, by what a node does that breaks it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Rule {
            $($(#[doc = $doc])+ $rule,)+
        }

        #[cfg(feature = "mutations")]
        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$rule,)+];
        }
    };
}

rules! {
    /// A follower acknowledges records before they are durable.
    AcknowledgesUnpersisted,
    /// A follower takes records from the primary of an older view.
    AcceptsOldView,
    /// A primary commits without waiting for one of its backups.
    CommitsWithoutBackup,
    /// A lease counts from the receipt of the echo, not from the sending of the heartbeat.
    LeaseFromReceipt,
    /// The duplicate row is in another entry, of another record, than the effect.
    DuplicateRowApart,
    /// Learners are proposed before they have what is committed.
    LearnerProposedEarly,
    /// A new primary forgets the watermarks of sessions.
    WatermarkForgotten,
    /// A restarted primary goes on in its old view.
    ResumesOldView,
    /// A primary with an unresolved proposal commits with the replicas of the old view only.
    IgnoresUnresolvedProposal,
    /// A node takes itself for a backup because the view names one like it.
    MembershipByName,
    /// A request of an ended session opens it again, and executes.
    SessionReopened,
    /// What is true of a session now is told without a lease.
    TableWithoutLease,
    /// A duplicate is answered before what the answer rests on is committed.
    TableBeforeCommit,
    /// A checkpoint folds records that are not committed.
    UncommittedFolded,
    /// A snapshot lacks the saved replies.
    RepliesNotInSnapshot,
    /// A snapshot lacks the effects of the records that were folded while its rows were read.
    SnapshotWithoutRecords,
    /// A follower acknowledges its log's end, matched or not.
    AcknowledgesLogEnd,
    /// A dead process's proposal is not given up before the register is followed.
    LeftoverForgotten,
    /// A backup with a proposal of its own goes on acknowledging and echoing.
    ProposerPromises,
    /// A cancel is told before anything of it is logged.
    CancelNotLogged,
    /// Idempotency keys are forgotten a quarter of the retention before they are due.
    KeySweptEarly,
    /// A new primary begins with a floor of its own, below the logged one.
    FloorLowered,
}

impl Replica {
    /// Whether this node is to break the rule.
    #[cfg(feature = "mutations")]
    pub(crate) fn breaks(&self, rule: Rule) -> bool {
        self.config.broken == Some(rule)
    }

    /// Whether this node is to break the rule: never.
    #[cfg(not(feature = "mutations"))]
    #[inline]
    #[expect(clippy::unused_self, reason = "the sites are the same with the feature")]
    pub(crate) const fn breaks(&self, _rule: Rule) -> bool {
        false
    }
}
