//! One call from its beginning to its end: an id, the retry loop, a deadline, and what the outcome
//! allows the caller to conclude.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use onlyonce_wire::check::check_size;
use onlyonce_wire::client::{
    Answer, Consequence, Execute, ExecuteId, Operation, Outcome, Part, Read, Refusal, Request,
};
use onlyonce_wire::limits::{OPERATION_BYTES_MAX, REPLY_BYTES_MAX};
use onlyonce_wire::{IdempotencyKey, codec};

use crate::cluster::Cluster;
use crate::errors::{Error, NoAnswer, NotSent, Unresolved, UnresolvedReason, answer_name};
use crate::handle::Handle;
use crate::outbox::{Entry, Outbox, Sent};
use crate::retry::{Progress, Stop};
use crate::session::Sessions;

/// Why a fresh key can count as forgotten.
const CLOCK_BEHIND: &str = "this machine's clock is far behind the cluster's, which takes its fresh \
                            idempotency keys for old ones: set the clock";

/// What the clones of a client share.
pub(crate) struct Inner {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) sessions: Sessions,
    pub(crate) outbox: Option<Arc<Outbox>>,
}

impl Inner {
    /// Executes an operation exactly once.
    pub(crate) async fn execute(&self, operation: &Operation) -> Result<Outcome, Error> {
        operation.check().map_err(Error::Refused)?;
        let operation: Bytes = codec::encode(operation).into();
        check_size(Part::Operation, operation.len(), OPERATION_BYTES_MAX)
            .map_err(Error::Refused)?;
        self.finish(&operation, Progress::default()).await
    }

    /// Carries out a request that was left in the outbox.
    pub(crate) async fn take_up(&self, entry: Entry) -> Result<Outcome, Error> {
        let operation = entry.sent.operation.clone();
        self.finish(&operation, Progress::taken_up(entry)).await
    }

    /// Asks until the end of a request is known, or the deadline passes.
    async fn finish(&self, operation: &Bytes, mut progress: Progress) -> Result<Outcome, Error> {
        let running = self.run(operation, &mut progress);
        let reply = match self.cluster.options().deadline {
            None => running.await,
            Some(limit) => match tokio::time::timeout(limit, running).await {
                Ok(reply) => reply,
                Err(_) => return Err(self.at_deadline(limit, operation, progress)),
            },
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(stop) => return Err(self.stopped(stop, operation, progress)),
        };
        match codec::decode::<Outcome, REPLY_BYTES_MAX>(&reply) {
            Ok(Outcome::Failed(failure)) => Err(Error::Failed(failure)),
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(Error::BadReply(error.to_string())),
        }
    }

    /// Asks under one id until the reply is there; under another one only when no copy of the first
    /// can ever have run.
    async fn run(&self, operation: &Bytes, progress: &mut Progress) -> Result<Bytes, Stop> {
        loop {
            if progress.identity.is_none() {
                self.identify(operation, progress).await?;
            }
            let request = encode(operation, progress);
            match self.cluster.call(&request, progress).await? {
                Answer::Executed { reply, .. } => {
                    progress.settle();
                    return Ok(reply);
                }
                Answer::Refused(refusal) => self.refused(refusal, progress).await?,
                other => {
                    return Err(Stop::BadReply(format!("{} to an operation", answer_name(&other))));
                }
            }
        }
    }

    /// Gives the request a fresh id.
    async fn identify(&self, operation: &Bytes, progress: &mut Progress) -> Result<(), Stop> {
        let (incarnation, id) = if let Some(outbox) = &self.outbox {
            let incarnation = self.cluster.first_incarnation(progress).await?;
            let key = fresh_key();
            let sent = Sent { incarnation, key: key.clone(), operation: operation.clone() };
            let kept = outbox.keep(sent, self.cluster.id()).await;
            progress.entry = Some(kept.map_err(|error| Stop::Unusable(outbox.error(&error)))?);
            (incarnation, ExecuteId::Key(key))
        } else if self.cluster.options().one_shot {
            let incarnation = self.cluster.first_incarnation(progress).await?;
            (incarnation, ExecuteId::Key(fresh_key()))
        } else {
            let ticket = self.sessions.begin(&self.cluster, progress).await?;
            let named = (ticket.registration.incarnation, ticket.id());
            progress.ticket = Some(ticket);
            named
        };
        progress.identity = Some((incarnation, id));
        Ok(())
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
        if matches!(refusal, Refusal::Forgotten) {
            // Its key was drawn just now.
            return Err(Stop::Unusable(CLOCK_BEHIND.to_owned()));
        }
        progress.settle();
        progress.identity = None;
        self.cluster.pause(progress).await
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
            waiting_for: progress.waiting_for,
            nodes: std::mem::take(&mut progress.reports),
        })
    }

    /// Gives the request up without forgetting it.
    fn unresolved(
        &self,
        reason: UnresolvedReason,
        operation: &Bytes,
        mut progress: Progress,
    ) -> Error {
        let (incarnation, id) = progress.identity.take().expect("it was sent under an id");
        let id = id.request().expect("requests without an id are never unresolved");
        let handle = Handle::new(self.cluster.id(), incarnation, id, operation);
        let registration = progress.ticket.take().map(|ticket| {
            ticket.registration.leave_open();
            ticket.abandon()
        });
        if let Some(entry) = progress.entry.take() {
            match &reason {
                // It will never be answered otherwise.
                UnresolvedReason::Refused(_) => entry.done(),
                UnresolvedReason::Deadline(_)
                | UnresolvedReason::BadReply(_)
                | UnresolvedReason::Unusable(_) => entry.leave(),
            }
        }
        let nodes = std::mem::take(&mut progress.reports);
        Error::Unresolved(Unresolved::new(handle, reason, nodes, registration))
    }

    /// The nodes' addresses; an authority that does not answer matters only if no node is known.
    pub(crate) async fn nodes(&self) -> Result<Vec<String>, Error> {
        let mut progress = Progress::default();
        self.cluster.discover(&mut progress).await.map_err(|stop| match stop {
            Stop::Refused(refusal) => Error::Refused(refusal),
            Stop::Unusable(why) | Stop::BadReply(why) => Error::Unusable(why),
        })?;
        let addresses = self.cluster.addresses();
        if addresses.is_empty() {
            let within = self.cluster.options().attempt_timeout;
            let nodes = std::mem::take(&mut progress.reports);
            return Err(Error::NoAnswer(NoAnswer { within, nodes }));
        }
        Ok(addresses)
    }

    /// Reads, as often as it takes.
    pub(crate) async fn read(&self, read: Read) -> Result<Outcome, Error> {
        read.check().map_err(Error::Refused)?;
        let request = codec::encode(&Request::Read(read));
        let mut progress = Progress::default();
        let reading = self.cluster.call(&request, &mut progress);
        let answer = match self.cluster.options().deadline {
            None => reading.await,
            Some(within) => {
                let Ok(answer) = tokio::time::timeout(within, reading).await else {
                    let nodes = std::mem::take(&mut progress.reports);
                    return Err(Error::NoAnswer(NoAnswer { within, nodes }));
                };
                answer
            }
        };
        match answer {
            Ok(Answer::Read(outcome)) => Ok(outcome),
            Ok(Answer::Refused(refusal)) | Err(Stop::Refused(refusal)) => {
                Err(Error::Refused(refusal))
            }
            Ok(other) => Err(Error::BadReply(format!("{} to a read", answer_name(&other)))),
            Err(Stop::Unusable(why)) => Err(Error::Unusable(why)),
            Err(Stop::BadReply(text)) => Err(Error::BadReply(text)),
        }
    }
}

/// The request under its id.
fn encode(operation: &Bytes, progress: &Progress) -> Vec<u8> {
    let (incarnation, id) = progress.identity.clone().expect("it was given an id");
    codec::encode(&Request::Execute(Execute { incarnation, id, operation: operation.clone() }))
}

/// A timed key that nobody else has.
fn fresh_key() -> IdempotencyKey {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    IdempotencyKey::fresh(u64::try_from(since.as_millis()).unwrap_or(0), rand::random())
}
