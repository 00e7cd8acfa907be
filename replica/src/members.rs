//! Who belongs to the primary's view: failed backups are left out, learners that caught up join.

use std::collections::BTreeSet;

use onlyonce_storage::Index;
use onlyonce_wire::authority::Member;
use onlyonce_wire::{StoreId, limits};

use crate::config::Timing;
use crate::event::Moment;
use crate::limits::CANDIDATE_LAG_MAX;
use crate::marks::{Mark, Marks};
use crate::mutations::Rule;
use crate::primary::Primary;
use crate::replica::{Replica, Role};

impl Primary {
    /// The learners to be proposed: they hold everything that may be committed, and from the
    /// proposal on commits wait for them. While opening, that is everything found in the log,
    /// whatever this node knows of it.
    ///
    /// Under load a learner is always some records behind. One that is near becomes the candidate:
    /// commits wait for it, for a lease at most, until it has caught up.
    fn ready_learners(
        &mut self,
        committed: Index,
        now: Moment,
        timing: &Timing,
        early: bool,
        marks: &mut Marks,
    ) -> Vec<Member> {
        let needed = committed.max(self.opens_at);
        let mut ready = Vec::new();
        let mut near = None;
        for (store, progress) in &mut self.followers {
            if progress.replica || !(early || progress.is_prompt(now, timing)) {
                continue;
            }
            if early || progress.matched >= needed {
                ready.push(progress.member.clone());
            } else if progress.matched.0 + CANDIDATE_LAG_MAX >= needed.0 {
                near = near.or(Some(*store));
            }
        }
        if let Some((store, since)) = self.candidate
            && now.since(since) > timing.lease
        {
            self.candidate = None;
            marks.hit(Mark::CandidateGivenUp);
            if let Some(progress) = self.followers.get_mut(&store) {
                progress.note_dropped(now);
            }
        } else if self.candidate.is_none() {
            self.candidate = near.map(|store| (store, now));
            if near.is_some() {
                marks.hit(Mark::CandidateNamed);
            }
        }
        ready
    }
}

impl Replica {
    /// Proposes the view without failed backups and with learners that have caught up.
    pub(crate) fn change_members(&mut self) {
        let timing = self.config.timing;
        let now = self.now;
        if self.proposal.is_some() || now < self.lenient_until {
            return;
        }
        let committed = self.state.committed();
        let early = self.breaks(Rule::LearnerProposedEarly);
        let Some(known) = &self.known else { return };
        let register = &known.register;
        let Role::Primary(primary) = &mut self.role else { return };
        let met = primary.followers.len();
        primary
            .followers
            .retain(|_, progress| progress.replica || !progress.is_silent(now, &timing));
        if primary.followers.len() < met {
            self.marks.hit(Mark::SilentLearnerForgotten);
        }
        let learners = primary.ready_learners(committed, now, &timing, early, &mut self.marks);
        let mut backups: Vec<Member> = Vec::new();
        let mut failures: Vec<Mark> = Vec::new();
        for progress in primary.followers.values().filter(|progress| progress.replica) {
            match progress.failure(now, &timing) {
                None => backups.push(progress.member.clone()),
                Some(failure) => failures.push(failure),
            }
        }
        let stayed = backups.len();
        backups.extend(learners);
        backups.truncate(limits::REPLICAS_MAX - 1);
        let same = stayed == register.backups.len() && backups.len() == stayed;
        let shrinks = backups.len() < register.backups.len();
        let too_few = shrinks && 1 + backups.len() < self.config.min_copies;
        if too_few {
            self.marks.hit(Mark::DropHeldByMinCopies);
        }
        if same || too_few {
            return;
        }
        for failure in failures {
            self.marks.hit(failure);
        }
        self.propose_view(backups);
    }

    /// Counts commits that wait for more than the replicas of the view.
    pub(crate) fn mark_waiting(&mut self, others: &BTreeSet<StoreId>, durable: Index) {
        let Role::Primary(primary) = &self.role else { return };
        if self.proposal.is_none() && primary.candidate.is_none() {
            return;
        }
        let Some(known) = &self.known else { return };
        let matched = |store| primary.followers.get(store).map_or(Index::ZERO, |it| it.matched);
        let persisted = self.state.persisted();
        let in_view = others.iter().filter(|store| known.register.replica(**store).is_some());
        let of_view = in_view.map(matched).fold(persisted, Index::min);
        let of_both = others.iter().map(matched).fold(persisted, Index::min);
        if of_view > of_both {
            self.marks.hit(Mark::CommitWaitedForBothViews);
        }
        if of_both > durable {
            self.marks.hit(Mark::CommitWaitedForCandidate);
        }
    }
}
