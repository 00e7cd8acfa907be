//! Sessions: where requests get their ids, and when the server may forget their replies.
//!
//! A [`Registration`] is one session as the cluster knows it. It numbers requests from 1 and tells
//! the server with each of them how far it has seen *all* replies (`first_unacked`, the watermark):
//! below it, replies are forgotten. So the watermark must never pass a request whose fate is open.
//!
//! - `first_unacked` is the smallest outstanding seq, or the next one when none is outstanding.
//! - A seq is handed out only below `first_unacked + WINDOW`; with one outstanding request at a time
//!   only `first_unacked` itself is.
//! - A seq is never handed out twice, and a request keeps its seq as long as a copy may be under way.
//! - A request that may have been sent and whose answer nobody awaits any more (its deadline passed,
//!   or its future was dropped) never counts as answered. It *pins* the watermark, so its
//!   registration is retired: requests under way keep their ids, new ones go to a new registration.
//!
//! A registration lives as long as it is current, has requests under way, or an
//! [`Unresolved`](crate::Unresolved) refers to it; meanwhile the [`Keeper`] keeps it from expiring.
//! Afterwards it is closed, unless an unresolved request's handle was given out: somebody may still
//! ask for that, so it is left to expire in its own time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use onlyonce_wire::client::{Answer, ExecuteId, Refusal, Request};
use onlyonce_wire::limits::WINDOW;
use onlyonce_wire::{Incarnation, Seq, Session, SessionId, codec};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::Cluster;
use crate::errors::answer_name;
use crate::progress::Progress;
use crate::retry::Stop;

/// What a request that has no session waits for.
pub(crate) const SESSION: &str = "a session to be opened";

/// One session of this client, as the cluster knows it.
pub(crate) struct Registration {
    pub(crate) session: Session,
    pub(crate) incarnation: Incarnation,
    window: Mutex<Window>,
    /// Wakes one waiter for each seq that became free, and all of them on retirement.
    room: Notify,
    /// Told once for each seq by which the watermark rises.
    rises: Notify,
    /// Whether to close the session when nothing refers to it any more.
    close: AtomicBool,
    keeper: mpsc::UnboundedSender<Errand>,
}

#[derive(Debug)]
struct Window {
    /// How far a new seq may be ahead of the watermark.
    limit: u64,
    /// The watermark: the smallest outstanding seq.
    first_unacked: u64,
    /// Whether each seq from `first_unacked` on is answered. Its first element is false.
    answered: VecDeque<bool>,
    retired: bool,
}

impl Window {
    fn next(&self) -> u64 {
        self.first_unacked + self.answered.len() as u64
    }

    /// Hands out a seq and the watermark to send with it; none while the window is full.
    fn begin(&mut self) -> Option<(Seq, Seq)> {
        if self.answered.len() as u64 >= self.limit {
            return None;
        }
        let seq = self.next();
        self.answered.push_back(false);
        Some((Seq(seq), Seq(self.first_unacked)))
    }

    /// Marks a seq as answered; returns by how much the watermark rose.
    fn settle(&mut self, seq: Seq) -> u64 {
        let place = (seq.0 - self.first_unacked) as usize;
        assert!(!self.answered[place], "seq {seq} was settled twice");
        self.answered[place] = true;
        let before = self.first_unacked;
        while self.answered.front() == Some(&true) {
            self.answered.pop_front();
            self.first_unacked += 1;
        }
        self.first_unacked - before
    }
}

impl Registration {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().expect("nothing panics while it holds the lock")
    }

    /// Takes the next seq, waiting for room in the window. None once the registration is retired.
    async fn begin(self: &Arc<Self>, progress: &mut Progress) -> Option<Ticket> {
        if let Some(begun) = self.try_begin() {
            return begun;
        }
        progress.waiting_for = Some("room in the session's window");
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before looking again, so that no wake-up falls in between.
            room.as_mut().enable();
            if let Some(begun) = self.try_begin() {
                progress.waiting_for = None;
                return begun;
            }
            room.await;
        }
    }

    /// `Some(None)`: retired. `None`: full.
    #[expect(clippy::option_option, reason = "three answers, all used at once by `begin`")]
    fn try_begin(self: &Arc<Self>) -> Option<Option<Ticket>> {
        let mut window = self.lock();
        if window.retired {
            return Some(None);
        }
        let (seq, first_unacked) = window.begin()?;
        Some(Some(Ticket { registration: Arc::clone(self), seq, first_unacked }))
    }

    /// No request gets an id from it any more.
    pub(crate) fn retire(&self) {
        self.lock().retired = true;
        self.room.notify_waiters();
    }

    /// Leaves the session to expire in its own time: somebody outside knows of it.
    pub(crate) fn leave_open(&self) {
        self.close.store(false, Ordering::Relaxed);
    }

    fn is_retired(&self) -> bool {
        self.lock().retired
    }

    fn request(&self, close: bool) -> Request {
        let (incarnation, session) = (self.incarnation, self.session);
        if close {
            Request::Close { incarnation, session }
        } else {
            Request::KeepAlive { incarnation, session }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.close.load(Ordering::Relaxed) {
            // No keeper: the runtime is gone, and the session expires by itself.
            let _ = self.keeper.send(Errand::Close(self.request(true)));
        }
    }
}

/// A request's place in its session.
///
/// Exactly one of [`settle`](Self::settle) and [`abandon`](Self::abandon) ends it.
#[must_use]
pub(crate) struct Ticket {
    pub(crate) registration: Arc<Registration>,
    pub(crate) seq: Seq,
    /// The watermark to send with it: that of when the ticket was drawn, or of a "try later" since.
    pub(crate) first_unacked: Seq,
}

impl Ticket {
    pub(crate) fn id(&self) -> ExecuteId {
        let session = self.registration.session;
        ExecuteId::Session { session, seq: self.seq, first_unacked: self.first_unacked }
    }

    /// Takes the newest watermark, for the next copy.
    pub(crate) fn raise_watermark(&mut self) {
        self.first_unacked = Seq(self.registration.lock().first_unacked);
    }

    /// Ends when the session's watermark has risen: the server may have room again.
    pub(crate) async fn watermark_rises(&self) {
        self.registration.rises.notified().await;
    }

    /// The request's fate is known, and no copy of it can run any more: its reply may be forgotten.
    pub(crate) fn settle(self) {
        let rose = self.registration.lock().settle(self.seq);
        for _ in 0..rose {
            self.registration.room.notify_one();
            self.registration.rises.notify_one();
        }
    }

    /// The request's fate is open, and nobody asks any more: the watermark stays below it.
    pub(crate) fn abandon(self) -> Arc<Registration> {
        self.registration.retire();
        self.registration
    }
}

/// The client's sessions: the current one, and the keeper of all.
pub(crate) struct Sessions {
    current: Mutex<Option<Arc<Registration>>>,
    /// Held while a session is opened; the id that is being opened, so that an opening that was
    /// given up is gone on with and leaves no orphan.
    opening: tokio::sync::Mutex<Option<SessionId>>,
    keeper: OnceLock<mpsc::UnboundedSender<Errand>>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self {
            current: Mutex::new(None),
            opening: tokio::sync::Mutex::new(None),
            keeper: OnceLock::new(),
        }
    }

    /// A fresh id in the current session, which is opened if need be.
    pub(crate) async fn begin(
        &self,
        cluster: &Arc<Cluster>,
        progress: &mut Progress,
    ) -> Result<Ticket, Stop> {
        loop {
            let Some(registration) = self.current(cluster) else {
                self.open(cluster, progress).await?;
                continue;
            };
            if let Some(ticket) = registration.begin(progress).await {
                return Ok(ticket);
            }
        }
    }

    /// The session that new requests go to, unless it is retired or of an earlier incarnation.
    fn current(&self, cluster: &Cluster) -> Option<Arc<Registration>> {
        let mut current = self.lock();
        let registration = current.as_ref()?;
        if registration.is_retired() || Some(registration.incarnation) != cluster.incarnation() {
            registration.retire();
            *current = None;
        }
        current.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Registration>>> {
        self.current.lock().expect("nothing panics while it holds the lock")
    }

    /// Opens a session, or finds that another call did. Returns without one when the cluster turned
    /// out to be in another incarnation.
    async fn open(&self, cluster: &Arc<Cluster>, progress: &mut Progress) -> Result<(), Stop> {
        progress.waiting_for = Some(SESSION);
        let mut opening = self.opening.lock().await;
        progress.waiting_for = None;
        if self.current(cluster).is_some() {
            return Ok(());
        }
        let incarnation = cluster.first_incarnation(progress).await?;
        let id = *opening.get_or_insert_with(|| SessionId(rand::random()));
        let request = codec::encode(&Request::Open { incarnation, session: id });
        let answer = cluster.call(&request, progress).await?;
        // Copies of `Open` are no copies of the request that waits for it.
        progress.nothing_sent();
        match answer {
            Answer::Opened { opened_at } => {
                *opening = None;
                *self.lock() = Some(self.register(cluster, Session { id, opened_at }, incarnation));
                Ok(())
            }
            Answer::Refused(Refusal::OtherIncarnation { current }) => {
                cluster.adopt_incarnation(current);
                *opening = None;
                cluster.pause(progress).await
            }
            Answer::Refused(refusal) => Err(Stop::Refused(refusal)),
            other => {
                Err(Stop::BadReply(format!("{} to the opening of a session", answer_name(&other))))
            }
        }
    }

    fn register(
        &self,
        cluster: &Arc<Cluster>,
        session: Session,
        incarnation: Incarnation,
    ) -> Arc<Registration> {
        let registration = Arc::new(Registration {
            session,
            incarnation,
            window: Mutex::new(Window {
                limit: if cluster.options().one_outstanding { 1 } else { WINDOW },
                first_unacked: 1,
                answered: VecDeque::new(),
                retired: false,
            }),
            room: Notify::new(),
            rises: Notify::new(),
            close: AtomicBool::new(true),
            keeper: self.keeper(cluster).clone(),
        });
        // No keeper: the runtime shuts down, and so does everything else.
        let _ = registration.keeper.send(Errand::Keep(Arc::downgrade(&registration)));
        registration
    }

    fn keeper(&self, cluster: &Arc<Cluster>) -> &mpsc::UnboundedSender<Errand> {
        self.keeper.get_or_init(|| {
            let (errands, inbox) = mpsc::unbounded_channel();
            let keeper = Keeper { cluster: Arc::clone(cluster), inbox, kept: Vec::new() };
            tokio::spawn(keeper.run());
            errands
        })
    }

    /// Closes the current session and waits for the answer, but not for long. Requests that are
    /// under way keep it; then it is closed after the last of them.
    pub(crate) async fn close(&self, cluster: &Arc<Cluster>) {
        let Some(registration) = self.lock().take() else { return };
        registration.retire();
        if registration.lock().answered.is_empty() {
            registration.leave_open();
            attempt(cluster, &registration.request(true)).await;
        }
    }
}

/// Something for the keeper to do.
enum Errand {
    Keep(Weak<Registration>),
    Close(Request),
}

/// The background task that keeps idle sessions alive, and closes those that nothing refers to. It
/// ends after the client and every registration.
struct Keeper {
    cluster: Arc<Cluster>,
    inbox: mpsc::UnboundedReceiver<Errand>,
    /// The registrations, and what their next seq was at the last look: one whose seq moved sent
    /// requests meanwhile, and those keep it alive.
    kept: Vec<(Weak<Registration>, u64)>,
}

impl Keeper {
    async fn run(mut self) {
        let mut look = Instant::now() + self.cluster.session_idle() / 3;
        loop {
            match timeout_at(look, self.inbox.recv()).await {
                Ok(None) => return,
                Ok(Some(Errand::Keep(registration))) => self.kept.push((registration, 0)),
                Ok(Some(Errand::Close(request))) => {
                    attempt(&self.cluster, &request).await;
                }
                Err(_) => {
                    look = Instant::now() + self.cluster.session_idle() / 3;
                    self.keep_alive().await;
                }
            }
        }
    }

    async fn keep_alive(&mut self) {
        let mut idle = Vec::new();
        self.kept.retain_mut(|(registration, seen)| {
            let Some(registration) = registration.upgrade() else { return false };
            let next = registration.lock().next();
            if std::mem::replace(seen, next) == next {
                idle.push(registration);
            }
            true
        });
        for registration in idle {
            let answer = attempt(&self.cluster, &registration.request(false)).await;
            if let Some(Answer::Refused(refusal)) = answer {
                tracing::debug!(session = %registration.session, %refusal, "session is gone");
                registration.retire();
                registration.leave_open();
            }
        }
    }
}

/// Asks for as long as one attempt may take; nothing rests on the answer.
async fn attempt(cluster: &Arc<Cluster>, request: &Request) -> Option<Answer> {
    let request = codec::encode(request);
    let mut progress = Progress::default();
    let limit = cluster.options().attempt_timeout;
    timeout(limit, cluster.call(&request, &mut progress)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        Window { limit: WINDOW, first_unacked: 1, answered: VecDeque::new(), retired: false }
    }

    /// The watermark is the smallest outstanding seq, whatever the order of the answers.
    #[test]
    fn the_watermark_waits_for_the_oldest() {
        let mut window = window();
        let seqs: Vec<_> = (0..4).map(|_| window.begin().expect("room").0).collect();
        assert_eq!(seqs, [Seq(1), Seq(2), Seq(3), Seq(4)]);
        assert_eq!(window.settle(Seq(3)), 0);
        assert_eq!(window.settle(Seq(1)), 1);
        assert_eq!(window.begin(), Some((Seq(5), Seq(2))));
        assert_eq!(window.settle(Seq(2)), 2);
        assert_eq!(window.begin(), Some((Seq(6), Seq(4))));
    }

    /// With one outstanding request each seq acknowledges all before it.
    #[test]
    fn one_outstanding_discards_all_before() {
        let mut window = Window { limit: 1, ..window() };
        for seq in 1..=3 {
            assert_eq!(window.begin(), Some((Seq(seq), Seq(seq))));
            assert_eq!(window.begin(), None, "{seq} is outstanding");
            assert_eq!(window.settle(Seq(seq)), 1);
        }
    }

    /// The window is counted from the oldest outstanding seq, not by how many are outstanding.
    #[test]
    fn the_window_is_a_distance() {
        let mut window = window();
        for seq in 1..=WINDOW {
            assert_eq!(window.begin().expect("room").0, Seq(seq));
        }
        for seq in 2..=WINDOW {
            assert_eq!(window.settle(Seq(seq)), 0);
        }
        assert_eq!(window.begin(), None, "only seq 1 is outstanding, but it is far behind");
        assert_eq!(window.settle(Seq(1)), WINDOW);
        assert_eq!(window.begin(), Some((Seq(WINDOW + 1), Seq(WINDOW + 1))));
    }
}
