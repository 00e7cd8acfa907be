//! The retry loop: the same bytes, again and again, until there is an answer that means something;
//! after a "try later", with the newest watermark beside the operation.
//!
//! What an answer means for the request depends on its other copies. A copy that was answered with
//! "did nothing" is out of the world; one that was lost, timed out, or answered with "cannot say" may
//! still run or have run: from then on the request is *exposed*, and only an answer about the request
//! itself ([`Answer::Executed`], or a refusal that covers every copy) ends it; or the client's
//! [`Semantics`](crate::Semantics), by which only so many copies may go unanswered; or, under a named
//! key, that one of them is so old that the key may be forgotten ([`expiry`](crate::expiry)).
//! [`Progress`] keeps that account, and outlives the loop's future when a deadline or the caller
//! drops it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use onlyonce_wire::client::{Answer, Consequence, ExecuteId, Refusal, Welcome};
use onlyonce_wire::{ClusterId, IdempotencyKey, Incarnation};
use tokio::time::sleep;

use crate::cluster::{Cluster, Node};
use crate::connection::{Connection, NoReply};
use crate::errors::NodeReports;
use crate::expiry::{KeyExpiry, Moment, Remembered};
use crate::handle::{Handle, Home};
use crate::outbox::Entry;
use crate::session::Ticket;

/// The first pause is drawn from up to this long; each further one from twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// The longest pause of the one call that looks for the primary, so that a failover ends soon.
const BACKOFF_SEEKING: Duration = Duration::from_millis(100);
/// After so many fruitless rounds looking for the primary is not urgent any more.
const SEEKING_ROUNDS_MAX: usize = 200;
/// After so many deferrals by one node the next is asked: the first may have been replaced.
const DEFERRED_MAX: u32 = 4;
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A random pause after `failures` failures: capped exponential backoff with full jitter.
pub(crate) fn backoff(failures: u32) -> Duration {
    jitter(
        failures,
        if (failures as usize) < SEEKING_ROUNDS_MAX { BACKOFF_SEEKING } else { BACKOFF_MAX },
    )
}

fn jitter(failures: u32, longest: Duration) -> Duration {
    let ceiling = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(longest);
    ceiling.mul_f64(rand::random::<f64>())
}

/// Why a call ends without a result.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A definite refusal.
    Refused(Refusal),
    /// No node can serve this client, and waiting will not change that; the text says why.
    Unusable(String),
    /// An answer that does not fit the question.
    BadReply(String),
    /// As many copies of the request are unanswered as the client's semantics send.
    Unanswered,
    /// Its named key, which is remembered for so long, may be forgotten: another copy could run a
    /// second time.
    KeyExpired(Duration),
}

/// What became of a request so far. Dropping it with an unsettled ticket abandons the request.
#[derive(Default)]
pub(crate) struct Progress {
    /// What each node said last.
    pub(crate) reports: NodeReports,
    /// What is waited for, where it is no node.
    pub(crate) waiting_for: Option<&'static str>,
    /// The id under which the request goes out; none before it is settled.
    pub(crate) identity: Option<(Incarnation, ExecuteId)>,
    /// The request's place in its session, if it has one.
    pub(crate) ticket: Option<Ticket>,
    /// Where it is kept, if its client has an outbox.
    pub(crate) entry: Option<Entry>,
    /// A copy may have left and its answer is still awaited.
    in_flight: bool,
    /// A copy is neither answered nor awaited any more; it may be another client's.
    exposed: bool,
    /// How many of this client's copies are so.
    unanswered: u32,
    /// The key that its caller chose for it.
    pub(crate) key: Option<IdempotencyKey>,
    /// Where a copy may have run: nobody else may be sent one, it would run it a second time.
    home: Option<Home>,
    /// Where the last copy went.
    asked: Option<Home>,
    /// Under a named key: when that may be forgotten, if the last copy ran.
    last_copy: Option<KeyExpiry>,
    /// The same of the first copy that may have run.
    first_exposed: Option<KeyExpiry>,
    /// Where `home` is that of a handle, and not this client's own finding: the nodes that turned
    /// out to be of another. When all are, there is nothing to wait for.
    strays: Option<Vec<Arc<str>>>,
    /// A copy was answered.
    delivered: bool,
    /// Tries without success since the last one.
    fruitless: usize,
    /// Times a node asked to try later.
    deferred: u32,
}

impl Progress {
    /// A request that goes out under a key of the caller's.
    pub(crate) fn keyed(key: IdempotencyKey) -> Self {
        let mut progress = Self::default();
        progress.key = Some(key);
        progress
    }

    /// Something about a request of `home`, which nobody else can know.
    pub(crate) fn at(home: Home) -> Self {
        let mut progress = Self::default();
        (progress.home, progress.strays) = (Some(home), Some(Vec::new()));
        progress
    }

    /// A request that somebody sent before, as its handle says.
    pub(crate) fn resumed(handle: &Handle) -> Self {
        let mut progress = Self::at(handle.home);
        progress.identity = Some((handle.incarnation(), handle.execute_id()));
        (progress.exposed, progress.first_exposed) = (true, handle.remembered.0);
        progress
    }

    /// Where the request may have run, for its handle; a client speaks to one `cluster` only.
    pub(crate) fn home(&self, cluster: Option<ClusterId>) -> Home {
        let found = cluster.map(Home::Cluster).filter(|_| self.strays.is_none());
        found.or(self.home).or(self.asked).unwrap_or(Home::Unknown)
    }

    /// Whether a node may be asked for what may have run at home.
    fn may_ask(&self, node: &Welcome) -> bool {
        match self.home {
            None => true,
            // The node that was asked had joined no cluster when it was connected to. It has since, if
            // it executed anything.
            Some(Home::Store(_)) if self.strays.is_none() && node.cluster.is_some() => true,
            Some(home) => home.is_of(node),
        }
    }

    /// Whether the request may have taken effect, as far as this client can know.
    pub(crate) fn maybe_sent(&self) -> bool {
        self.identity.is_some() && (self.exposed || self.in_flight)
    }

    /// How many of this client's copies of the request may have run, or may run yet.
    pub(crate) fn copies(&self) -> u32 {
        self.unanswered + u32::from(self.in_flight)
    }

    /// Whether a copy of the request was answered.
    pub(crate) fn delivered(&self) -> bool {
        self.identity.is_some() && self.delivered
    }

    /// What went out so far were no copies of the request itself.
    pub(crate) fn nothing_sent(&mut self) {
        (self.exposed, self.unanswered) = (false, 0);
        (self.in_flight, self.delivered) = (false, false);
        (self.home, self.asked) = (None, None);
        (self.last_copy, self.first_exposed) = (None, None);
    }

    /// The request's fate is known: its id is done with.
    pub(crate) fn settle(&mut self) {
        self.nothing_sent();
        if let Some(ticket) = self.ticket.take() {
            ticket.settle();
        }
    }

    /// A request that an earlier client may have sent, to `home` if that is known.
    pub(crate) fn taken_up(entry: Entry, home: Option<Home>) -> Self {
        let id = ExecuteId::Key(entry.sent.key.clone());
        let mut progress = Self::default();
        progress.identity = Some((entry.sent.incarnation, id));
        progress.entry = Some(entry);
        (progress.exposed, progress.home) = (true, home);
        progress
    }

    /// Tells the server with the next copy what was seen meanwhile: that may be just what it needs
    /// to have room. The watermark is no part of what makes the request the same.
    pub(crate) fn raise_watermark(&mut self) {
        if let (Some(ticket), Some((_, id))) = (&mut self.ticket, &mut self.identity) {
            ticket.raise_watermark();
            *id = ticket.id();
        }
    }

    /// The copy in flight was answered, and did nothing.
    fn did_nothing(&mut self) {
        self.in_flight = false;
        self.delivered = true;
    }

    /// The copy in flight will not be answered.
    fn unanswered(&mut self, by: &Welcome) {
        self.in_flight = false;
        // What has no id is no request, and may be answered by anybody.
        if self.identity.is_some() {
            self.exposed = true;
            self.unanswered = self.unanswered.saturating_add(1);
            self.home.get_or_insert(Home::of(by));
        }
        self.first_exposed = self.key_expiry(self.last_copy);
    }

    /// A copy goes to a node now.
    fn sends(&mut self, to: &Welcome) {
        self.asked = Some(Home::of(to));
        self.last_copy = match &self.identity {
            Some((_, ExecuteId::Key(key))) if key.time_ms().is_none() => {
                let retention = Duration::from_millis(to.key_retention_ms);
                Some(KeyExpiry::of(Moment::now(), retention))
            }
            Some(_) | None => None,
        };
    }

    /// Under a named key: when that may be forgotten, if an earlier copy ran, or one with this expiry.
    fn key_expiry(&self, other: Option<KeyExpiry>) -> Option<KeyExpiry> {
        self.first_exposed.into_iter().chain(other).min()
    }

    /// What to remember beside the handle of a request that is given up.
    pub(crate) fn remembered(&self) -> Remembered {
        Remembered(self.key_expiry(self.last_copy.filter(|_| self.in_flight)))
    }

    /// Fails once another copy could run a second time.
    fn check_key(&self) -> Result<(), Stop> {
        match self.first_exposed {
            Some(expiry) if expiry.is_past() => Err(Stop::KeyExpired(expiry.retention)),
            Some(_) | None => Ok(()),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let maybe_sent = self.maybe_sent();
        if let Some(entry) = self.entry.take() {
            entry.leave();
        }
        if let Some(ticket) = self.ticket.take() {
            if maybe_sent {
                drop(ticket.abandon());
            } else {
                ticket.settle();
            }
        }
    }
}

impl Cluster {
    /// Sends `request` until it has an answer that means something: a result, or a refusal that is
    /// not just "later" or "not this copy". In a session a "later" is passed on, after the wait.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: &[u8],
        progress: &mut Progress,
    ) -> Result<Answer, Stop> {
        loop {
            let (node, connection) = self.reach(progress).await?;
            let welcome = connection.welcome();
            if !progress.may_ask(welcome) {
                self.turn_away(&node, welcome, progress).await?;
                continue;
            }
            progress.check_key()?;
            progress.sends(welcome);
            let limit = self.options().attempt_timeout;
            match connection.call(request, limit, &mut progress.in_flight).await {
                Ok(answer) => {
                    if let Some(answer) = self.weigh(&node, &connection, answer, progress).await? {
                        return Ok(answer);
                    }
                }
                Err(no_reply) => {
                    self.mourn(&node, &connection, no_reply, progress);
                    self.pause(progress).await?;
                }
            }
        }
    }

    /// Leaves a node that is none of the request's home.
    async fn turn_away(
        &self,
        node: &Arc<Node>,
        welcome: &Welcome,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        if let (Some(home), Some(strays)) = (progress.home, &mut progress.strays) {
            strays.push(Arc::clone(&node.address));
            let strayed = |address: &String| strays.iter().any(|stray| **stray == **address);
            let all_strayed = self.addresses().iter().all(strayed);
            let found = Home::of(welcome);
            let reason = format!("is of {found}, the handle is of {home}: check the addresses");
            progress.reports.set(&node.address, reason);
            if all_strayed || self.is_settled_elsewhere(home) {
                return Err(Stop::Unusable(progress.reports.sentences()));
            }
        } else {
            let reason = "is another store than the one that was asked before";
            progress.reports.set(&node.address, reason.to_owned());
        }
        self.leave(node);
        self.pause(progress).await
    }

    /// Whether this client speaks to a cluster, and that is not `home`.
    fn is_settled_elsewhere(&self, home: Home) -> bool {
        matches!((home, self.id()), (Home::Cluster(theirs), Some(mine)) if theirs != mine)
    }

    /// Passes on an answer that means something; otherwise prepares the next attempt.
    async fn weigh(
        &self,
        node: &Arc<Node>,
        connection: &Connection,
        answer: Answer,
        progress: &mut Progress,
    ) -> Result<Option<Answer>, Stop> {
        match answer {
            Answer::NotPrimary { view, primary } => {
                progress.did_nothing();
                progress.reports.set(&node.address, "is not the primary".to_owned());
                self.redirect(node, view, primary.as_deref());
                self.pause(progress).await?;
                return Ok(None);
            }
            Answer::AskAgain => {
                progress.unanswered(connection.welcome());
                progress.reports.set(&node.address, "cannot say: ask again".to_owned());
                self.leave(node);
                self.pause(progress).await?;
                return Ok(None);
            }
            Answer::Refused(Refusal::OtherIncarnation { current })
                if Some(current) < self.incarnation() =>
            {
                progress.did_nothing();
                let reason = format!("is behind, in incarnation {current}");
                progress.reports.set(&node.address, reason);
                self.leave(node);
                self.pause(progress).await?;
                return Ok(None);
            }
            Answer::Refused(refusal) => {
                progress.did_nothing();
                let consequence = refusal.consequence();
                let again = match consequence {
                    Consequence::TryLater => true,
                    Consequence::ThisCopy => progress.exposed,
                    Consequence::NeverRuns | Consequence::IdVoid => false,
                };
                if again {
                    self.defer(node, &refusal, progress).await;
                    // Passed on, so that the next copy goes out with the newest watermark.
                    let renewed = progress.ticket.is_some() && consequence == Consequence::TryLater;
                    return Ok(renewed.then_some(Answer::Refused(refusal)));
                }
                self.served(node, progress);
                return Ok(Some(Answer::Refused(refusal)));
            }
            Answer::Opened { .. }
            | Answer::Closed
            | Answer::Alive
            | Answer::Executed { .. }
            | Answer::Fate { .. }
            | Answer::Sessions { .. }
            | Answer::Session(_)
            | Answer::Read(_)
            | Answer::Backup(_)
            | Answer::Status(_) => {}
        }
        self.served(node, progress);
        Ok(Some(answer))
    }

    /// Waits before the next copy, at most until the session's watermark rises.
    async fn defer(&self, node: &Arc<Node>, refusal: &Refusal, progress: &mut Progress) {
        progress.reports.set(&node.address, refusal.to_string());
        let pause = sleep(jitter(progress.deferred, BACKOFF_MAX));
        progress.deferred += 1;
        if progress.deferred.is_multiple_of(DEFERRED_MAX) {
            self.leave(node);
        }
        let Some(ticket) = &progress.ticket else { return pause.await };
        tokio::select! {
            () = pause => {}
            () = ticket.watermark_rises() => {}
        }
    }

    fn served(&self, node: &Arc<Node>, progress: &Progress) {
        if progress.fruitless > 0 {
            self.found(node);
        }
    }

    /// Takes note of an attempt without an answer.
    fn mourn(
        &self,
        node: &Arc<Node>,
        connection: &Arc<Connection>,
        no_reply: NoReply,
        progress: &mut Progress,
    ) {
        let reason = match no_reply {
            NoReply::NotSent(reason) => {
                node.forget(connection);
                reason
            }
            NoReply::Lost(reason) => {
                progress.unanswered(connection.welcome());
                node.forget(connection);
                self.leave(node);
                reason
            }
            NoReply::TimedOut { silent } => {
                // Not in flight: no room came up for it, so nothing left.
                if progress.in_flight {
                    progress.unanswered(connection.welcome());
                }
                let limit = self.options().attempt_timeout;
                if silent {
                    // Other calls on it have nothing to hope for either.
                    connection.end(&format!("silent for {limit:?}"));
                    node.forget(connection);
                }
                // It may be a primary that others have replaced: they know.
                self.leave(node);
                format!("no answer within {limit:?}").into()
            }
        };
        tracing::debug!(address = %node.address, %reason, "attempt without an answer");
        progress.reports.set(&node.address, reason.to_string());
    }

    /// Waits before the next attempt, not at all while there are nodes that this call did not try.
    ///
    /// One pausing call at a time looks for the primary at short intervals; the others come to take
    /// longer ones, and are woken as soon as any call finds a node that serves.
    pub(crate) async fn pause(&self, progress: &mut Progress) -> Result<(), Stop> {
        let semantics = self.options().semantics;
        if progress.identity.is_some()
            && semantics.unanswered_max().is_some_and(|most| progress.unanswered >= most)
        {
            return Err(Stop::Unanswered);
        }
        progress.check_key()?;
        progress.fruitless += 1;
        let nodes = self.nodes_known();
        if progress.fruitless <= nodes {
            return Ok(());
        }
        let rounds = progress.fruitless - nodes;
        let serves_again = self.serves_again.notified();
        self.discover(progress).await?;
        if nodes == 0 && self.nodes_known() > 0 {
            return Ok(());
        }
        let seeker = Seeker::try_new(self);
        let urgent = seeker.is_some() && rounds < SEEKING_ROUNDS_MAX;
        let longest = if urgent { BACKOFF_SEEKING } else { BACKOFF_MAX };
        tokio::select! {
            () = sleep(jitter(rounds.min(16) as u32, longest)) => {}
            () = serves_again => {}
        }
        Ok(())
    }
}

/// Held by the one call that pauses only shortly.
struct Seeker<'a>(&'a Cluster);

impl<'a> Seeker<'a> {
    fn try_new(cluster: &'a Cluster) -> Option<Self> {
        (!cluster.seeking.swap(true, Ordering::Relaxed)).then_some(Self(cluster))
    }
}

impl Drop for Seeker<'_> {
    fn drop(&mut self) {
        self.0.seeking.store(false, Ordering::Relaxed);
    }
}
