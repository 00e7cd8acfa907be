//! Which worlds are searched, and which rule is broken in them.

use crate::state::{LOG_MAX, REVISIONS_MAX, VIEWS_MAX};

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The highest view that is proposed.
    pub views: u8,
    /// Client writes.
    pub writes: u8,
    /// Crashes of all stores together, each with a restart.
    pub crashes: u8,
}

impl Bounds {
    /// These bounds, if the places of a state suffice for them.
    ///
    /// # Panics
    /// If they do not.
    pub fn checked(self) -> Self {
        let Self { views, writes, crashes } = self;
        let log = usize::from(writes + views - 1);
        let revisions = usize::from(views + crashes);
        assert!(
            1 <= views
                && usize::from(views) <= VIEWS_MAX
                && log <= LOG_MAX
                && revisions <= REVISIONS_MAX,
            "{self:?} are too large for a state: at most {VIEWS_MAX} views, {LOG_MAX} records, {REVISIONS_MAX} values of the register"
        );
        self
    }
}

/// A rule of the protocol that is left out, to show that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A restarted primary goes on in its view.
    RestartedPrimaryResumes,
    /// A primary commits with the replicas of its view only, whatever it has proposed.
    CommitIgnoresProposal,
    /// A primary reads with the leases of its view only, whatever it has proposed.
    ReadIgnoresProposal,
    /// A backup proposes itself while leases that it gave may be alive.
    TakeOverWithoutGrace,
    /// A backup echoes while its own proposal is unresolved.
    EchoWhileProposing,
    /// A follower acknowledges what is not on disk yet.
    AcknowledgeBeforePersist,
    /// A restarted store reads the register and forgets the proposal that it finds on disk, though
    /// the revision is the one expected.
    LeftoverNotBumped,
    /// A restarted store with a proposal on disk follows a primary that it hears of, before it has
    /// read the register.
    FollowsWithLeftover,
    /// A primary that is still opening proposes a learner which lacks part of what it found in its log.
    LearnerReadyAtCommitted,
}
