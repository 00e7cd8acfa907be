//! What became of a request so far: the account that the [retry loop](crate::retry) keeps, and that
//! outlives the loop's future when a deadline or the caller drops it.

use std::sync::Arc;
use std::time::Duration;

use onlyonce_wire::client::{ExecuteId, Welcome};
use onlyonce_wire::{ClusterId, IdempotencyKey, Incarnation};

use crate::errors::NodeReports;
use crate::expiry::{KeyExpiry, Moment, Remembered};
use crate::handle::{Handle, Home};
use crate::outbox::Entry;
use crate::retry::Stop;
use crate::session::Ticket;

/// What became of a request so far. Dropping it with an unsettled ticket abandons the request.
#[derive(Default)]
pub(crate) struct Progress {
    /// What each node said last.
    pub(crate) reports: NodeReports,
    /// What is waited for, where it is no node.
    pub(crate) waiting_for: Option<&'static str>,
    /// The key that its caller chose for it.
    pub(crate) key: Option<IdempotencyKey>,
    /// The id under which the request goes out; none before it is settled.
    pub(crate) identity: Option<(Incarnation, ExecuteId)>,
    /// The request's place in its session, if it has one.
    pub(crate) ticket: Option<Ticket>,
    /// Where it is kept, if its client has an outbox.
    pub(crate) entry: Option<Entry>,
    pub(crate) copies: Copies,
    /// Where the home is that of a handle, and not this client's own finding: the nodes that turned
    /// out to be of another. When all are, there is nothing to wait for.
    pub(crate) strays: Option<Vec<Arc<str>>>,
    /// Tries without success since the last one.
    pub(crate) fruitless: usize,
    /// Times a node asked to try later.
    pub(crate) deferred: u32,
}

/// What this client knows of a request's copies.
#[derive(Default)]
pub(crate) struct Copies {
    /// One may have left and its answer is still awaited.
    pub(crate) in_flight: bool,
    /// One is neither answered nor awaited any more; it may be another client's.
    pub(crate) exposed: bool,
    /// How many of this client's are so.
    pub(crate) unanswered: u32,
    /// One was answered.
    answered: bool,
    /// Where one may have run: nobody else may be sent one, it would run it a second time.
    pub(crate) home: Option<Home>,
    /// Where the last one went.
    asked: Option<Home>,
    /// Under a named key: when that may be forgotten, if the last one ran.
    last: Option<KeyExpiry>,
    /// The same of the first one that may have run.
    first: Option<KeyExpiry>,
}

impl Copies {
    /// Under a named key: when that may be forgotten, if an earlier one ran, or one that is under way.
    fn key_expiry(&self, under_way: bool) -> Option<KeyExpiry> {
        self.first.into_iter().chain(self.last.filter(|_| under_way)).min()
    }
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
        (progress.copies.home, progress.strays) = (Some(home), Some(Vec::new()));
        progress
    }

    /// A request that somebody sent before, as its handle says.
    pub(crate) fn resumed(handle: &Handle) -> Self {
        let mut progress = Self::at(handle.home);
        progress.identity = Some((handle.incarnation(), handle.execute_id()));
        (progress.copies.exposed, progress.copies.first) = (true, handle.remembered.0);
        progress
    }

    /// A request that an earlier client may have sent, to `home` if that is known.
    pub(crate) fn taken_up(entry: Entry, home: Option<Home>) -> Self {
        let id = ExecuteId::Key(entry.sent.key.clone());
        let mut progress = Self::default();
        progress.identity = Some((entry.sent.incarnation, id));
        progress.entry = Some(entry);
        (progress.copies.exposed, progress.copies.home) = (true, home);
        progress
    }

    /// Where the request may have run, for its handle; a client speaks to one `cluster` only.
    pub(crate) fn home(&self, cluster: Option<ClusterId>) -> Home {
        let found = cluster.map(Home::Cluster).filter(|_| self.strays.is_none());
        found.or(self.copies.home).or(self.copies.asked).unwrap_or(Home::Unknown)
    }

    /// Whether a node may be asked for what may have run at home.
    pub(crate) fn may_ask(&self, node: &Welcome) -> bool {
        match self.copies.home {
            None => true,
            // The node that was asked had joined no cluster when it was connected to. It has since, if
            // it executed anything.
            Some(Home::Store(_)) if self.strays.is_none() && node.cluster.is_some() => true,
            Some(home) => home.is_of(node),
        }
    }

    /// Whether the request may have taken effect, as far as this client can know.
    pub(crate) fn maybe_sent(&self) -> bool {
        self.identity.is_some() && (self.copies.exposed || self.copies.in_flight)
    }

    /// Whether a node was asked for a session, which the request needs before it has an id.
    pub(crate) fn asked_for_session(&self) -> bool {
        self.identity.is_none() && self.copies.asked.is_some()
    }

    /// How many of this client's copies of the request may have run, or may run yet.
    pub(crate) fn exposed_copies(&self) -> u32 {
        self.copies.unanswered + u32::from(self.copies.in_flight)
    }

    /// Whether a copy of the request was answered.
    pub(crate) fn delivered(&self) -> bool {
        self.identity.is_some() && self.copies.answered
    }

    /// What to remember beside the handle of a request that is given up.
    pub(crate) fn remembered(&self) -> Remembered {
        Remembered(self.copies.key_expiry(self.copies.in_flight))
    }

    /// Fails once another copy could run a second time.
    pub(crate) fn check_key(&self) -> Result<(), Stop> {
        match self.copies.first {
            Some(expiry) if expiry.is_past() => Err(Stop::KeyExpired(expiry.retention)),
            Some(_) | None => Ok(()),
        }
    }

    /// A copy goes to a node now.
    pub(crate) fn sends(&mut self, to: &Welcome) {
        self.copies.asked = Some(Home::of(to));
        self.copies.last = match &self.identity {
            Some((_, ExecuteId::Key(key))) if key.time_ms().is_none() => {
                let retention = Duration::from_millis(to.key_retention_ms);
                Some(KeyExpiry::of(Moment::now(), retention))
            }
            Some(_) | None => None,
        };
    }

    /// The copy in flight was answered, and did nothing.
    pub(crate) fn did_nothing(&mut self) {
        (self.copies.in_flight, self.copies.answered) = (false, true);
    }

    /// The copy in flight will not be answered.
    pub(crate) fn unanswered(&mut self, by: &Welcome) {
        self.copies.in_flight = false;
        // What has no id is no request, and may be answered by anybody.
        if self.identity.is_some() {
            self.copies.exposed = true;
            self.copies.unanswered = self.copies.unanswered.saturating_add(1);
            self.copies.home.get_or_insert(Home::of(by));
            self.copies.first = self.copies.key_expiry(true);
        }
    }

    /// Tells the server with the next copy what was seen meanwhile: that may be just what it needs
    /// to have room. The watermark is no part of what makes the request the same.
    pub(crate) fn raise_watermark(&mut self) {
        if let (Some(ticket), Some((_, id))) = (&mut self.ticket, &mut self.identity) {
            ticket.raise_watermark();
            *id = ticket.id();
        }
    }

    /// What went out so far were no copies of the request itself.
    pub(crate) fn nothing_sent(&mut self) {
        self.copies = Copies::default();
    }

    /// The request's fate is known: its id is done with.
    pub(crate) fn settle(&mut self) {
        self.nothing_sent();
        if let Some(ticket) = self.ticket.take() {
            ticket.settle();
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
