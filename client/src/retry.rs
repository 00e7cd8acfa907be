//! The retry loop: the same bytes, again and again, until there is an answer that means something;
//! after a "try later", with the newest watermark beside the operation.
//!
//! What an answer means for the request depends on its other copies. A copy that was answered with
//! "did nothing" is out of the world; one that was lost, timed out, or answered with "cannot say" may
//! still run or have run: from then on the request is *exposed*, and only an answer about the request
//! itself ([`Answer::Executed`], or a refusal that covers every copy) ends it; or the client's
//! [`Semantics`](crate::Semantics), by which only so many copies may go unanswered; or, under a named
//! key, that one of them is so old that the key may be forgotten ([`expiry`](crate::expiry)).
//! [`Progress`] keeps that account.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use onlyonce_wire::client::{Answer, Consequence, Refusal, Welcome};
use tokio::time::sleep;

use crate::cluster::{Cluster, Node};
use crate::connection::{Connection, NoReply};
use crate::handle::Home;
use crate::progress::Progress;

/// The first pause is drawn from up to this long; each further one from twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// The longest pause of the one call that looks for the primary, so that a failover ends soon.
const BACKOFF_SEEKING: Duration = Duration::from_millis(100);
/// After so many fruitless rounds looking for the primary is not urgent any more.
const SEEKING_ROUNDS_MAX: usize = 200;
/// After so many deferrals by one node the next is asked: the first may have been replaced.
const DEFERRED_MAX: u32 = 4;
/// What there is to say of a node that was asked.
const ASKED: &str = "connected, no answer yet";
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
            progress.reports.begin(&node.address, ASKED);
            let limit = self.options().attempt_timeout;
            match connection.call(request, limit, &mut progress.copies.in_flight).await {
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
        if let (Some(home), Some(strays)) = (progress.copies.home, &mut progress.strays) {
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
                    Consequence::ThisCopy => progress.copies.exposed,
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

    fn served(&self, node: &Arc<Node>, progress: &mut Progress) {
        progress.reports.end(&node.address, ASKED);
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
                if progress.copies.in_flight {
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
            && semantics.unanswered_max().is_some_and(|most| progress.copies.unanswered >= most)
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
