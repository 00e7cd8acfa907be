//! What a primary knows of one follower: how far it got, and its lease.

use std::collections::VecDeque;
use std::time::Duration;

use onlyonce_storage::{Checkpoint, Index};
use onlyonce_wire::authority::Member;

use crate::checkpoint::REMEMBERED;
use crate::config::Timing;
use crate::event::Moment;
use crate::limits::{APPENDS_IN_FLIGHT_MAX, IN_FLIGHT_BYTES_MAX};
use crate::marks::Mark;
use crate::message::FeedId;

/// The most heartbeats without an echo that are remembered.
const HEARTBEATS_MAX: usize = 64;
/// How long a dropped store must acknowledge promptly before it is proposed again.
const PROBATION_MIN: Duration = Duration::from_secs(1);
/// The longest such time.
const PROBATION_MAX: Duration = Duration::from_secs(60);

/// An append on its way.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    last: Index,
    bytes: usize,
    sent: Moment,
}

/// A primary's knowledge of a follower. It is part of one view; [`Progress::begin_view`] starts the
/// next one.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Who it is.
    pub(crate) member: Member,
    /// Tells a restarted process from one that hung.
    pub(crate) process: u64,
    /// Answers to another one say nothing of what this follower holds now.
    pub(crate) feed: FeedId,
    /// Durable there and equal to this log, as acknowledged in this view and this feed.
    pub(crate) matched: Index,
    /// The next record to send.
    pub(crate) next: Index,
    /// Whether it is a replica of the view.
    pub(crate) replica: bool,
    /// Whether it is not known where the logs match: one append at a time asks.
    probing: bool,
    /// The index before the newest append.
    asked_after: Index,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// When the oldest record without an acknowledgement was first sent.
    unacknowledged_since: Option<Moment>,
    last_sent: Moment,
    resend_wait: Duration,
    heartbeats: VecDeque<(u128, Moment)>,
    lease_from: Option<Moment>,
    last_echo: Moment,
    probation: Duration,
    prompt_since: Moment,
    /// The newest checkpoints that its process named, oldest first.
    checkpoints: VecDeque<Checkpoint>,
}

impl Progress {
    /// A follower that was just met. `next` is where to try first.
    pub(crate) fn new(member: Member, feed: FeedId, next: Index, now: Moment) -> Self {
        Self {
            member,
            process: 0,
            feed,
            matched: Index::ZERO,
            next,
            replica: false,
            probing: true,
            asked_after: Index::ZERO,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unacknowledged_since: None,
            last_sent: now,
            resend_wait: Duration::ZERO,
            heartbeats: VecDeque::new(),
            lease_from: None,
            last_echo: now,
            probation: Duration::ZERO,
            prompt_since: now,
            checkpoints: VecDeque::new(),
        }
    }

    /// Acknowledgements of the old view mean nothing in the new one; an echo still does. Begins
    /// where the logs matched, or at `untried` if that is not known.
    pub(crate) fn begin_view(&mut self, untried: Index) {
        self.rewind(if self.matched > Index::ZERO { self.matched.next() } else { untried });
        self.matched = Index::ZERO;
        self.unacknowledged_since = None;
        self.heartbeats.clear();
    }

    /// What was sent may be lost: begin again at `next`, and ask whether the logs match there.
    pub(crate) fn rewind(&mut self, next: Index) {
        self.next = next;
        self.probing = true;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }

    /// What was sent may be lost: begin again after what was acknowledged.
    pub(crate) fn rewind_to_matched(&mut self) {
        self.rewind(if self.matched > Index::ZERO { self.matched.next() } else { self.next });
    }

    /// The log does not match before the newest append, as `previous` says, or something before it
    /// was lost. Answers to older appends say nothing new: false.
    pub(crate) fn mismatch(&mut self, previous: Index, common: Index) -> bool {
        if !self.probing {
            self.rewind_to_matched();
            return false;
        }
        let answers = previous == self.asked_after && !self.in_flight.is_empty();
        if answers {
            self.rewind(common.next());
        }
        answers
    }

    /// Notes an append of what follows `after`, up to `last`.
    pub(crate) fn note_sent(&mut self, after: Index, last: Index, bytes: usize, now: Moment) {
        self.next = last.next();
        self.asked_after = after;
        self.last_sent = now;
        self.unacknowledged_since.get_or_insert(now);
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(InFlight { last, bytes, sent: now });
    }

    /// Whether an append may be sent now, and would say something.
    pub(crate) fn wants_append(&self, last: Index) -> bool {
        if self.probing {
            return self.in_flight.is_empty();
        }
        self.next <= last
            && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
            && self.in_flight.len() < APPENDS_IN_FLIGHT_MAX
    }

    /// Takes an acknowledgement of this view.
    pub(crate) fn acknowledge(&mut self, matched: Index) {
        let advanced = matched > self.matched;
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched.next());
        while let Some(append) = self.in_flight.front()
            && append.last <= self.matched
        {
            self.in_flight_bytes -= append.bytes;
            self.in_flight.pop_front();
        }
        self.probing &= !self.in_flight.is_empty();
        match self.in_flight.front() {
            None => self.unacknowledged_since = None,
            Some(oldest) if advanced => self.unacknowledged_since = Some(oldest.sent),
            Some(_) => {}
        }
        self.resend_wait = Duration::ZERO;
    }

    /// Whether the newest append got no answer for so long that it is to be repeated. The wait
    /// doubles each time up to ten times `resend`.
    pub(crate) fn resend_is_due(&mut self, now: Moment, resend: Duration) -> bool {
        let wait = self.resend_wait.max(resend);
        if self.in_flight.is_empty() || now.since(self.last_sent) < wait {
            return false;
        }
        self.resend_wait = (wait * 2).min(resend * 10);
        true
    }

    /// How long the oldest append is unacknowledged, however often it was sent.
    fn oldest_in_flight(&self, now: Moment) -> Duration {
        self.unacknowledged_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Notes a heartbeat.
    pub(crate) fn note_heartbeat(&mut self, nonce: u128, now: Moment) {
        if self.heartbeats.len() == HEARTBEATS_MAX {
            self.heartbeats.pop_front();
        }
        self.heartbeats.push_back((nonce, now));
    }

    /// Takes an echo: the lease counts from the *sending* of its heartbeat.
    pub(crate) fn take_echo(&mut self, nonce: u128, now: Moment, from_receipt: bool) {
        let Some(at) = self.heartbeats.iter().position(|(sent, _)| *sent == nonce) else { return };
        let sent = if from_receipt { now } else { self.heartbeats[at].1 };
        self.heartbeats.drain(..=at);
        self.lease_from = self.lease_from.max(Some(sent));
        self.last_echo = now;
    }

    /// Whether this follower's lease holds.
    pub(crate) fn lease_holds(&self, now: Moment, lease: Duration) -> bool {
        self.lease_from.is_some_and(|from| now < from.after(lease))
    }

    /// Why a replica is to be dropped from the view, if it is.
    pub(crate) fn failure(&self, now: Moment, timing: &Timing) -> Option<Mark> {
        if now.since(self.last_echo) > timing.grace {
            Some(Mark::SilentBackupDropped)
        } else if self.oldest_in_flight(now) > timing.append_timeout {
            Some(Mark::StuckBackupDropped)
        } else {
            None
        }
    }

    /// Whether a learner is dead and not worth feeding.
    pub(crate) fn is_silent(&self, now: Moment, timing: &Timing) -> bool {
        now.since(self.last_echo) > timing.append_timeout
    }

    /// Whether a learner has acknowledged promptly for as long as its past demands.
    pub(crate) fn is_prompt(&mut self, now: Moment, timing: &Timing) -> bool {
        let prompt = !self.probing
            && self.lease_holds(now, timing.lease)
            && self.oldest_in_flight(now) <= timing.lease;
        if !prompt {
            self.prompt_since = now;
        }
        prompt && now.since(self.prompt_since) >= self.probation
    }

    /// Notes that the follower was dropped from the view; the next time it waits longer.
    pub(crate) fn note_dropped(&mut self, now: Moment) {
        self.probation = (self.probation * 2).clamp(PROBATION_MIN, PROBATION_MAX);
        self.prompt_since = now;
    }

    /// Begins to be fed (again): silence counts from now.
    pub(crate) fn meet(&mut self, now: Moment) {
        self.last_echo = now;
        self.prompt_since = now;
    }

    /// Notes which process the follower is: a restarted one has no past to make up for.
    pub(crate) fn note_process(&mut self, process: u64) {
        if self.process != 0 && self.process != process {
            self.probation = Duration::ZERO;
            self.checkpoints.clear();
        }
        self.process = process;
    }

    /// Notes its newest checkpoint.
    pub(crate) fn note_checkpoint(&mut self, checkpoint: Checkpoint) {
        if self.checkpoints.back() == Some(&checkpoint) {
            return;
        }
        if self.checkpoints.len() == REMEMBERED {
            self.checkpoints.pop_front();
        }
        self.checkpoints.push_back(checkpoint);
    }

    /// What its tables came to at this place, if it said so: its newest word.
    pub(crate) fn checkpoint_at(&self, index: Index) -> Option<Checkpoint> {
        self.checkpoints.iter().rev().find(|it| it.mark.index == index).copied()
    }
}
