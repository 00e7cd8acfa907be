//! What a primary knows of one follower: how far it got, and its lease.

use std::collections::VecDeque;
use std::time::Duration;

use onlyonce_storage::Index;
use onlyonce_wire::authority::Member;

use crate::config::Timing;
use crate::event::Moment;
use crate::limits::IN_FLIGHT_BYTES_MAX;

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
    /// Durable there and equal to this log, as acknowledged in this view.
    pub(crate) matched: Index,
    /// The next record to send.
    pub(crate) next: Index,
    /// Whether an append was sent in this view that asks where the logs match.
    pub(crate) probed: bool,
    in_flight: VecDeque<InFlight>,
    /// When the oldest record without an acknowledgement was first sent.
    unacknowledged_since: Option<Moment>,
    last_sent: Moment,
    resend_wait: Duration,
    heartbeats: VecDeque<(u128, Moment)>,
    lease_from: Option<Moment>,
    last_echo: Moment,
    probation: Duration,
    prompt_since: Moment,
}

impl Progress {
    /// A follower that was just met. `next` is where to try first.
    pub(crate) fn new(member: Member, next: Index, now: Moment) -> Self {
        Self {
            member,
            process: 0,
            matched: Index::ZERO,
            next,
            probed: false,
            in_flight: VecDeque::new(),
            unacknowledged_since: None,
            last_sent: now,
            resend_wait: Duration::ZERO,
            heartbeats: VecDeque::new(),
            lease_from: None,
            last_echo: now,
            probation: Duration::ZERO,
            prompt_since: now,
        }
    }

    /// Acknowledgements of the old view mean nothing in the new one; an echo still does.
    pub(crate) fn begin_view(&mut self) {
        self.rewind(self.matched.next());
        self.matched = Index::ZERO;
        self.unacknowledged_since = None;
        self.heartbeats.clear();
    }

    /// What was sent may be lost: begin again at `next`.
    pub(crate) fn rewind(&mut self, next: Index) {
        self.next = next;
        self.probed = false;
        self.in_flight.clear();
    }

    /// Notes an append whose last record is `last`.
    pub(crate) fn note_sent(&mut self, last: Index, bytes: usize, now: Moment) {
        self.next = last.next();
        self.probed = true;
        self.last_sent = now;
        self.unacknowledged_since.get_or_insert(now);
        self.in_flight.push_back(InFlight { last, bytes, sent: now });
    }

    /// Whether more may be sent before the next acknowledgement.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.iter().map(|append| append.bytes).sum::<usize>() < IN_FLIGHT_BYTES_MAX
    }

    /// Takes an acknowledgement of this view.
    pub(crate) fn acknowledge(&mut self, matched: Index) {
        let advanced = matched > self.matched;
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched.next());
        while self.in_flight.front().is_some_and(|append| append.last <= self.matched) {
            self.in_flight.pop_front();
        }
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
    pub(crate) fn take_echo(&mut self, nonce: u128, now: Moment) {
        let Some(at) = self.heartbeats.iter().position(|(sent, _)| *sent == nonce) else { return };
        let (_, sent) = self.heartbeats[at];
        self.heartbeats.drain(..=at);
        self.lease_from = self.lease_from.max(Some(sent));
        self.last_echo = now;
    }

    /// Whether this follower's lease holds.
    pub(crate) fn lease_holds(&self, now: Moment, lease: Duration) -> bool {
        self.lease_from.is_some_and(|from| now < from.after(lease))
    }

    /// Whether a replica is to be dropped from the view.
    pub(crate) fn has_failed(&self, now: Moment, timing: &Timing) -> bool {
        now.since(self.last_echo) > timing.grace
            || self.oldest_in_flight(now) > timing.append_timeout
    }

    /// Whether a learner is dead and not worth feeding.
    pub(crate) fn is_silent(&self, now: Moment, timing: &Timing) -> bool {
        now.since(self.last_echo) > timing.append_timeout
    }

    /// Whether a learner is to be proposed: it has all that is committed, and has acknowledged
    /// promptly for as long as its past demands.
    pub(crate) fn is_ready(&mut self, now: Moment, committed: Index, timing: &Timing) -> bool {
        let prompt = self.probed
            && self.lease_holds(now, timing.lease)
            && self.oldest_in_flight(now) <= timing.lease;
        if !prompt {
            self.prompt_since = now;
        }
        prompt && self.matched >= committed && now.since(self.prompt_since) >= self.probation
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
        }
        self.process = process;
    }
}
