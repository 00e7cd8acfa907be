//! One call from its beginning to its end: an id, the retry loop, a deadline, and what the outcome
//! allows the caller to conclude.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_wire::check::check_size;
use onlyonce_wire::client::{
    Answer, Consequence, Execute, ExecuteId, Operation, Outcome, Part, Refusal, Request,
};
use onlyonce_wire::codec;
use onlyonce_wire::limits::{OPERATION_BYTES_MAX, REPLY_BYTES_MAX};

use crate::cluster::Cluster;
use crate::errors::{Error, NotSent, Uncounted, Unresolved, UnresolvedReason, answer_name};
use crate::handle::{Handle, Home};
use crate::keyed::{Executed, fresh_key};
use crate::outbox::{Entry, Outbox, Sent};
use crate::progress::Progress;
use crate::retry::Stop;
use crate::session::{SESSION, Sessions};

/// Why a fresh key can count as forgotten.
const CLOCK_BEHIND: &str = "this machine's clock is far behind the cluster's, which takes its fresh \
                            idempotency keys for old ones: set the clock";

/// Why an outbox takes no named key: who finds the request there cannot know whether its key was
/// forgotten meanwhile, and the cluster would take it for a new one.
const NAMED_IN_OUTBOX: &str = "an outbox sends its requests again however long it was away, and a named key that is \
                               forgotten by then would let one run twice: give it a timed key";

/// A reply, whether it is a repeated one, and how long its key is kept.
type Told = (Bytes, bool, Option<Duration>);

/// What the clones of a client share.
pub(crate) struct Inner {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) sessions: Sessions,
    pub(crate) outbox: Option<Arc<Outbox>>,
}

impl Inner {
    /// Executes an operation exactly once.
    pub(crate) async fn execute(
        &self,
        operation: &Operation,
        progress: Progress,
    ) -> Result<Executed, Error> {
        self.finish(&encode_operation(operation)?, progress).await
    }

    /// Nothing of what ended has to be asked for again, by this client or the next.
    pub(crate) async fn close(&self) {
        self.sessions.close(&self.cluster).await;
        if let Some(outbox) = &self.outbox
            && let Err(error) = outbox.flush().wait().await
        {
            tracing::warn!("{}: the next client asks again for what ended", outbox.error(&error));
        }
    }

    /// Carries out a request that was left in the outbox.
    pub(crate) async fn take_up(&self, entry: Entry) -> Result<Outcome, Error> {
        let operation = entry.sent.operation.clone();
        let home = self.cluster.id().map(Home::Cluster);
        self.finish(&operation, Progress::taken_up(entry, home)).await.map(|told| told.outcome)
    }

    /// Asks until the end of a request is known, or the deadline passes.
    pub(crate) async fn finish(
        &self,
        operation: &Bytes,
        mut progress: Progress,
    ) -> Result<Executed, Error> {
        let running = self.run(operation, &mut progress);
        let told = match self.cluster.options().deadline {
            None => Ok(running.await),
            Some(limit) => tokio::time::timeout(limit, running).await.map_err(|_| limit),
        };
        let (reply, replayed, kept_for) = match told {
            Ok(Ok(told)) => told,
            Ok(Err(stop)) => {
                self.withdraw(operation, &mut progress).await?;
                return Err(self.stopped(stop, operation, progress));
            }
            Err(limit) => {
                self.withdraw(operation, &mut progress).await?;
                return Err(self.at_deadline(limit, operation, progress));
            }
        };
        match decode_reply(&reply)? {
            Outcome::Failed(failure) => Err(Error::Failed(failure)),
            outcome => Ok(Executed { outcome, replayed, kept_for }),
        }
    }

    /// Asks under one id until the reply is there; under another one only when no copy of the first
    /// can ever have run.
    async fn run(&self, operation: &Bytes, progress: &mut Progress) -> Result<Told, Stop> {
        loop {
            if progress.identity.is_none() {
                self.identify(operation, progress).await?;
            }
            self.await_disk(progress).await?;
            let request = encode(operation, progress);
            match self.cluster.call(&request, progress).await? {
                Answer::Executed { reply, replayed, kept_for_ms } => {
                    progress.settle();
                    if let Some(entry) = progress.entry.take() {
                        entry.done();
                    }
                    return Ok((reply, replayed, kept_for_ms.map(Duration::from_millis)));
                }
                Answer::Refused(refusal) => self.refused(refusal, progress).await?,
                other => {
                    return Err(Stop::BadReply(format!("{} to an operation", answer_name(&other))));
                }
            }
        }
    }

    /// Gives the request its key, or a fresh id; or makes it one without, as best effort has it.
    async fn identify(&self, operation: &Bytes, progress: &mut Progress) -> Result<(), Stop> {
        let is_named = progress.key.as_ref().is_some_and(|key| key.time_ms().is_none());
        if is_named && self.outbox.is_some() {
            return Err(Stop::Unusable(NAMED_IN_OUTBOX.to_owned()));
        }
        let options = self.cluster.options();
        let has_ids = options.semantics.has_ids();
        let is_keyed = progress.key.is_some() || (options.one_shot && has_ids);
        let (incarnation, id) = if is_keyed || self.outbox.is_some() {
            let incarnation = self.cluster.first_incarnation(progress).await?;
            let key = progress.key.clone().unwrap_or_else(fresh_key);
            if let Some(outbox) = &self.outbox {
                let sent = Sent { incarnation, key: key.clone(), operation: operation.clone() };
                let cluster = self.cluster.id().expect("whoever told the incarnation told it too");
                let kept = outbox.keep(sent, cluster);
                let entry = kept.map_err(|error| Stop::Unusable(outbox.error(&error)))?;
                if let Some(void) = progress.entry.replace(entry) {
                    void.done();
                }
            }
            (incarnation, ExecuteId::Key(key))
        } else if !has_ids {
            (self.cluster.first_incarnation(progress).await?, ExecuteId::Anonymous)
        } else {
            let ticket = self.sessions.begin(&self.cluster, progress).await?;
            let named = (ticket.registration.incarnation, ticket.id());
            progress.ticket = Some(ticket);
            named
        };
        progress.identity = Some((incarnation, id));
        Ok(())
    }

    /// With an outbox, no copy of a request leaves before it is durable there.
    async fn await_disk(&self, progress: &mut Progress) -> Result<(), Stop> {
        let Some(entry) = &mut progress.entry else { return Ok(()) };
        let outbox = entry.outbox();
        progress.waiting_for = Some("the outbox's disk");
        let durable = entry.durable().await;
        progress.waiting_for = None;
        durable.map_err(|error| Stop::Unusable(outbox.error(&error)))
    }

    /// Returns when the request may go on: under its id, or under a new one if it has none now.
    async fn refused(&self, refusal: Refusal, progress: &mut Progress) -> Result<(), Stop> {
        match refusal.consequence() {
            Consequence::NeverRuns => {
                progress.settle();
                return Err(Stop::Refused(refusal));
            }
            // The retry loop passes this on only when no other copy is about.
            Consequence::ThisCopy => return Err(Stop::Refused(refusal)),
            Consequence::TryLater => {
                progress.raise_watermark();
                return Ok(());
            }
            Consequence::IdVoid => {}
        }
        if let Refusal::OtherIncarnation { current } = refusal {
            self.cluster.adopt_incarnation(current);
        }
        if let Some(ticket) = &progress.ticket {
            ticket.registration.retire();
            ticket.registration.leave_open();
        }
        if progress.maybe_sent() {
            return Err(Stop::Refused(refusal));
        }
        progress.settle();
        if refusal == Refusal::Forgotten {
            return Err(match progress.key {
                Some(_) => Stop::Refused(refusal),
                // Its key was drawn just now.
                None => Stop::Unusable(CLOCK_BEHIND.to_owned()),
            });
        }
        progress.identity = None;
        self.cluster.pause(progress).await
    }

    /// That a request never took effect is told only once its outbox has it no more.
    async fn withdraw(&self, operation: &Bytes, progress: &mut Progress) -> Result<(), Error> {
        if progress.maybe_sent() {
            return Ok(());
        }
        let Some(entry) = progress.entry.take() else { return Ok(()) };
        let Sent { incarnation, key, .. } = entry.sent.clone();
        let (outbox, mut durable) = (entry.outbox(), entry.withdraw());
        durable.wait().await.map_err(|error| {
            let reason = UnresolvedReason::Unusable(outbox.error(&error));
            let handle = Handle::new(
                progress.home(self.cluster.id()),
                incarnation,
                &ExecuteId::Key(key),
                operation,
            );
            let handle = handle.expect("its key names it");
            let nodes = std::mem::take(&mut progress.reports);
            Error::Unresolved(Unresolved::new(handle, reason, nodes, None))
        })
    }

    fn stopped(&self, stop: Stop, operation: &Bytes, progress: Progress) -> Error {
        let exposed = progress.maybe_sent();
        match stop {
            Stop::Refused(refusal) if exposed => {
                self.unresolved(UnresolvedReason::Refused(refusal), operation, progress)
            }
            Stop::Unusable(why) if exposed => {
                self.unresolved(UnresolvedReason::Unusable(why), operation, progress)
            }
            Stop::BadReply(text) if exposed => {
                self.unresolved(UnresolvedReason::BadReply(text), operation, progress)
            }
            Stop::Unanswered => self.unresolved(UnresolvedReason::Unanswered, operation, progress),
            Stop::KeyExpired(retention) => {
                self.unresolved(UnresolvedReason::KeyExpired(retention), operation, progress)
            }
            Stop::Refused(refusal) => Error::Refused(refusal),
            Stop::Unusable(why) => Error::Unusable(why),
            Stop::BadReply(text) => Error::Unusable(format!("a node answered {text}")),
        }
    }

    fn at_deadline(&self, within: Duration, operation: &Bytes, mut progress: Progress) -> Error {
        if progress.maybe_sent() {
            return self.unresolved(UnresolvedReason::Deadline(within), operation, progress);
        }
        Error::NotSent(NotSent {
            within,
            delivered: progress.delivered(),
            waiting_for: progress.waiting_for.or_else(|| {
                // Whoever was asked for one was reached.
                progress.asked_for_session().then_some(SESSION)
            }),
            nodes: std::mem::take(&mut progress.reports),
        })
    }

    /// Gives the request up without forgetting it; one without an id cannot be asked for.
    fn unresolved(
        &self,
        reason: UnresolvedReason,
        operation: &Bytes,
        mut progress: Progress,
    ) -> Error {
        // Whoever has the handle cannot know what this client has seen.
        progress.raise_watermark();
        let (incarnation, id) = progress.identity.clone().expect("it was sent");
        let home = progress.home(self.cluster.id());
        let Some(mut handle) = Handle::new(home, incarnation, &id, operation) else {
            let (copies, nodes) =
                (progress.exposed_copies(), std::mem::take(&mut progress.reports));
            return Error::Uncounted(Uncounted { copies, reason, nodes });
        };
        handle.remembered = progress.remembered();
        let registration = progress.ticket.take().map(|ticket| {
            ticket.registration.leave_open();
            ticket.abandon()
        });
        if let Some(entry) = progress.entry.take() {
            match &reason {
                // It will never be answered otherwise.
                UnresolvedReason::Refused(_) => entry.done(),
                UnresolvedReason::Deadline(_)
                | UnresolvedReason::Unanswered
                | UnresolvedReason::KeyExpired(_)
                | UnresolvedReason::BadReply(_)
                | UnresolvedReason::Unusable(_)
                | UnresolvedReason::NoContent => entry.leave(),
            }
        }
        let nodes = std::mem::take(&mut progress.reports);
        Error::Unresolved(Unresolved::new(handle, reason, nodes, registration))
    }
}

/// The request under its id.
fn encode(operation: &Bytes, progress: &Progress) -> Vec<u8> {
    let (incarnation, id) = progress.identity.clone().expect("it was given an id");
    codec::encode(&Request::Execute(Execute { incarnation, id, operation: operation.clone() }))
}

/// An operation's bytes, unless it is over a limit.
pub(crate) fn encode_operation(operation: &Operation) -> Result<Bytes, Error> {
    operation.check().map_err(Error::Refused)?;
    let operation: Bytes = codec::encode(operation).into();
    check_size(Part::Operation, operation.len(), OPERATION_BYTES_MAX).map_err(Error::Refused)?;
    Ok(operation)
}

/// What a saved reply says.
pub(crate) fn decode_reply(reply: &Bytes) -> Result<Outcome, Error> {
    codec::decode::<_, REPLY_BYTES_MAX>(reply).map_err(|error| Error::BadReply(error.to_string()))
}
