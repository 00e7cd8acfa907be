//! Coverage marks: how often a process took each of the rare paths of the protocol.
//!
//! A simulation that never met a path proves nothing about it; the marks tell which ones it met
//! (as the `testcase` macro of `SQLite` does for its branches).

/// Declares the marks once: the enum, the list of all, and their names.
macro_rules! marks {
    ($($(#[doc = $doc:literal])+ $mark:ident => $name:literal,)+) => {
        /// A rare path of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mark {
            $($(#[doc = $doc])+ $mark,)+
        }

        impl Mark {
            /// Every mark, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$mark,)+];

            /// The mark's name in tables and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$mark => $name,)+
                }
            }
        }
    };
}

marks! {
    /// A backup that heard nothing for a grace proposed itself.
    TakeOver => "take_over",
    /// A backup would have taken over, but had itself stood still.
    JudgementWithheld => "judgement_withheld",
    /// The view changed under a follower that had not yet all that was committed.
    ViewChangedDuringCatchUp => "view_changed_during_catch_up",
    /// A follower cut records of an older view from its log's end.
    TailCut => "tail_cut",
    /// The log writer's report of records from before a cut was left aside.
    ReportBeforeCutIgnored => "report_before_cut_ignored",
    /// Who spoke for an older view was told of the newer one.
    StalePrimaryTold => "stale_primary_told",
    /// A primary lost its view while answers waited.
    SteppedDownWithWaiters => "stepped_down_with_waiters",
    /// A restarted primary appended records that a backup held beyond its log.
    TailRecovered => "tail_recovered",
    /// A restarted primary went on though not every backup had answered.
    RecoveryTimedOut => "recovery_timed_out",
    /// An own proposal without a clear answer had won.
    UnknownProposalWon => "unknown_proposal_won",
    /// An own proposal without a clear answer had lost.
    UnknownProposalLost => "unknown_proposal_lost",
    /// A proposal was sent again: it may still win, and only once.
    ProposalSentAgain => "proposal_sent_again",
    /// An answer to an earlier proposal came while another was under way, or none.
    AnswerToOtherProposal => "answer_to_other_proposal",
    /// A dead process's proposal was given up by raising the register's revision.
    LeftoverBumped => "leftover_bumped",
    /// An answer of the register was older than what was known.
    OldRegisterIgnored => "old_register_ignored",
    /// A record was on all replicas of the view, but not of the view that was proposed.
    CommitWaitedForBothViews => "commit_waited_for_both_views",
    /// A record was on all replicas of the view, but not on the candidate.
    CommitWaitedForCandidate => "commit_waited_for_candidate",
    /// The view had too few copies for a record to commit.
    CommitHeldByMinCopies => "commit_held_by_min_copies",
    /// A failed backup stayed in the view, which would have had too few copies.
    DropHeldByMinCopies => "drop_held_by_min_copies",
    /// A backup that echoed nothing was left out of the proposed view.
    SilentBackupDropped => "silent_backup_dropped",
    /// A backup that echoed, but acknowledged nothing, was left out of the proposed view.
    StuckBackupDropped => "stuck_backup_dropped",
    /// A learner became a backup.
    LearnerPromoted => "learner_promoted",
    /// A silent learner was forgotten.
    SilentLearnerForgotten => "silent_learner_forgotten",
    /// A learner that was nearly ready became the candidate.
    CandidateNamed => "candidate_named",
    /// A candidate did not catch up in time.
    CandidateGivenUp => "candidate_given_up",
    /// A store that had been dropped came back.
    DroppedStoreReturned => "dropped_store_returned",
    /// A primary whose flush was stuck sent no heartbeat.
    HeartbeatWithheld => "heartbeat_withheld",
    /// A follower whose flush was stuck echoed nothing.
    EchoWithheldByFlush => "echo_withheld_by_flush",
    /// A backup with a proposal of its own echoed nothing.
    EchoWithheldByProposal => "echo_withheld_by_proposal",
    /// A backup with a proposal of its own took no records.
    AppendIgnoredByProposal => "append_ignored_by_proposal",
    /// An append's beginning was not in the follower's log.
    AppendMismatched => "append_mismatched",
    /// An append without an answer was repeated.
    AppendRepeated => "append_repeated",
    /// A request came to a primary that was still opening.
    AskedWhileOpening => "asked_while_opening",
    /// A read was refused for want of a lease.
    ReadWithoutLease => "read_without_lease",
    /// A read waited until what it saw was committed.
    ReadWaited => "read_waited",
    /// So many answers waited for a commit that another one was not taken on.
    WaiterTurnedAway => "waiter_turned_away",
    /// A duplicate found its request pending, and waited with it.
    DuplicateJoined => "duplicate_joined",
    /// A duplicate was answered with a saved reply.
    DuplicateAnswered => "duplicate_answered",
    /// A duplicate was answered with a reply that an earlier primary, or process, had saved.
    DuplicateAnsweredByLaterPrimary => "duplicate_answered_by_later_primary",
    /// An open session was opened again.
    SessionOpenedAgain => "session_opened_again",
    /// The present of a session was not told for want of a lease.
    SessionWithoutLease => "session_without_lease",
    /// A session was closed.
    SessionClosed => "session_closed",
    /// An idle session was ended by an entry.
    SessionExpired => "session_expired",
    /// A request of an unknown session was refused.
    ExpiredRefused => "expired_refused",
    /// A request came of a session that this primary did not know yet.
    SessionFromTheFuture => "session_from_the_future",
    /// A request below the watermark was refused.
    StaleRefused => "stale_refused",
    /// A used id with other content was refused.
    MismatchRefused => "mismatch_refused",
    /// A request too far ahead of the watermark was refused.
    WindowFull => "window_full",
    /// A request of a session with too many bytes of saved replies was refused.
    SavedRepliesFull => "saved_replies_full",
    /// An idempotency key was forgotten by an entry.
    KeysForgotten => "keys_forgotten",
    /// The logged calendar went less far than the primary's: a year a day of the age.
    CalendarHeldByAge => "calendar_held_by_age",
    /// The logged calendar stayed where it was: the primary's was behind it.
    CalendarHeldByLog => "calendar_held_by_log",
    /// A timed key was due, but of the future: it was kept.
    KeyPutOff => "key_put_off",
    /// A timed key below the floor was refused.
    ForgottenRefused => "forgotten_refused",
    /// An id that makes no sense was refused, such as a key from the future.
    InvalidIdRefused => "invalid_id_refused",
    /// What is remembered of a key, or that a request is new, was not told for want of a lease.
    RequestWithoutLease => "request_without_lease",
    /// A request was cancelled before it ran.
    CancelledBeforeItRan => "cancelled_before_it_ran",
    /// A request that was to be cancelled had run.
    CancelCameTooLate => "cancel_came_too_late",
    /// A request that had been cancelled was refused.
    CancelledRefused => "cancelled_refused",
    /// Somebody asked what became of a request that was not yet committed.
    OutcomePending => "outcome_pending",
    /// Somebody asked what became of a request that nobody had seen.
    OutcomeNeverSeen => "outcome_never_seen",
    /// Somebody asked what became of a request that had ended.
    OutcomeKnown => "outcome_known",
    /// A checkpoint began while later records were not committed.
    CheckpointBelowUncommitted => "checkpoint_below_uncommitted",
    /// A checkpoint began elsewhere than at a mark: the marks had passed during the one before.
    CheckpointWithoutMark => "checkpoint_without_mark",
    /// A follower's checkpoint was compared with the primary's at the same place.
    CheckpointsCompared => "checkpoints_compared",
    /// Records left the log.
    LogPruned => "log_pruned",
    /// A learner needed records that had left the log: a snapshot was begun.
    TooFarBehindForLog => "too_far_behind_for_log",
    /// A snapshot was given up.
    SnapshotGivenUp => "snapshot_given_up",
    /// A learner put a snapshot in its store's place.
    SnapshotInstalled => "snapshot_installed",
}

/// How often each mark was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks([u64; Mark::ALL.len()]);

impl Default for Marks {
    fn default() -> Self {
        Self([0; Mark::ALL.len()])
    }
}

impl Marks {
    /// Counts a mark.
    pub fn hit(&mut self, mark: Mark) {
        self.0[mark as usize] += 1;
    }

    /// How often the mark was met.
    #[must_use]
    pub fn count(&self, mark: Mark) -> u64 {
        self.0[mark as usize]
    }

    /// Adds another process's counts.
    pub fn add(&mut self, other: &Self) {
        for (mine, more) in self.0.iter_mut().zip(other.0) {
            *mine += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each mark has a place, and a name, of its own.
    #[test]
    fn marks_are_told_apart() {
        let names: BTreeSet<&str> = Mark::ALL.iter().map(|mark| mark.name()).collect();
        assert_eq!(names.len(), Mark::ALL.len());
        for (place, mark) in Mark::ALL.iter().enumerate() {
            assert_eq!(*mark as usize, place, "{mark:?}");
        }
    }
}
