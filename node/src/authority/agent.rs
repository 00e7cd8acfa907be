//! The node's side of the authority: carries out the core's reads and proposals, and watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use onlyonce_replica::{Event, ProposalResult, ReadId};
use onlyonce_storage::failpoints::{Point, failpoint};
use onlyonce_wire::authority::{Register, Revision, Versioned};
use onlyonce_wire::status::NodeStatus;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::{Authority, AuthorityError, Swap};
use crate::core_thread::CoreQueue;
use crate::faults::Faults;
use crate::rate_limit::RateLimit;

/// The name under which [`Faults`] cuts the authority off.
pub const AUTHORITY: &str = "authority";
/// How long to rest after a read or a watch that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Takes what the core asks of the authority; the answers are events.
pub struct Agent {
    reads: Arc<Reads>,
    /// The newest proposal that was not sent yet: the core sends again what matters.
    proposals: watch::Sender<Option<(Revision, Register)>>,
}

impl Agent {
    /// Starts the tasks that talk to `authority`.
    pub fn start(
        runtime: &Handle,
        authority: impl Authority,
        core: Arc<CoreQueue>,
        faults: Arc<Faults>,
        status: watch::Receiver<NodeStatus>,
    ) -> Self {
        let reads = Arc::new(Reads::default());
        let (proposals, wanted) = watch::channel(None);
        let tasks = Arc::new(Tasks {
            authority,
            core,
            faults,
            status,
            warnings: RateLimit::new(WARN_INTERVAL),
        });
        runtime.spawn(Arc::clone(&tasks).read(Arc::clone(&reads)));
        runtime.spawn(Arc::clone(&tasks).propose(wanted));
        runtime.spawn(tasks.watch());
        Self { reads, proposals }
    }

    /// Reads the register; the read begins after this call, and answers all calls before it.
    pub fn read(&self, id: ReadId) {
        self.reads.asked.store(id.0, Ordering::Release);
        // Asked for while a read is under way, another one follows it.
        self.reads.wanted.notify_one();
    }

    /// Compare-and-swaps the register, once.
    pub fn propose(&self, expected: Revision, register: Register) {
        self.proposals.send_replace(Some((expected, register)));
    }
}

/// What was asked for and has not begun.
#[derive(Default)]
struct Reads {
    wanted: Notify,
    /// The newest `ReadId`.
    asked: AtomicU64,
}

const WARN_INTERVAL: Duration = Duration::from_secs(5);

/// What it means for a node in `status` that the authority gives no answer.
fn consequence(status: &NodeStatus) -> &'static str {
    match (status.cluster, &status.primary) {
        (None, _) => "this node belongs to no cluster yet, and waits for the authority",
        (Some(_), None) => "this node does not know its view yet, and waits to hear of it",
        (Some(_), Some(_)) => "a running view goes on, view changes wait",
    }
}

struct Tasks<A> {
    authority: A,
    core: Arc<CoreQueue>,
    faults: Arc<Faults>,
    status: watch::Receiver<NodeStatus>,
    warnings: RateLimit,
}

impl<A: Authority> Tasks<A> {
    async fn read(self: Arc<Self>, reads: Arc<Reads>) {
        loop {
            reads.wanted.notified().await;
            let asked = Some(ReadId(reads.asked.load(Ordering::Acquire)));
            let read = self.unless_cut_off(self.authority.read()).await;
            if let Some(now) = self.reported(read) {
                self.core.send(Event::RegisterRead { asked, now });
            } else {
                // The core asked for a reason, and may not ask again.
                tokio::time::sleep(RETRY).await;
                reads.wanted.notify_one();
            }
        }
    }

    async fn propose(self: Arc<Self>, mut wanted: watch::Receiver<Option<(Revision, Register)>>) {
        while wanted.changed().await.is_ok() {
            let Some((expected, register)) = wanted.borrow_and_update().clone() else { continue };
            let (view, id) = (register.view, register.proposal);
            let swap = async { Ok(self.authority.compare_and_swap(expected, register).await) };
            let swap = self.unless_cut_off(swap).await.unwrap_or_else(Swap::Unknown);
            let result = match swap {
                Swap::Swapped(revision) => {
                    failpoint(Point::ProposalWon);
                    ProposalResult::Won(revision)
                }
                Swap::Conflict(now) => {
                    tracing::info!(
                        "the proposal of view {view} at revision {} met revision {}",
                        expected.0,
                        now.revision.0
                    );
                    ProposalResult::Unknown
                }
                Swap::Unknown(error) => {
                    tracing::warn!("the proposal of view {view} has an unknown outcome: {error}");
                    ProposalResult::Unknown
                }
            };
            self.core.send(Event::Proposed { id, result });
        }
    }

    /// Tells the core whenever the revision differs from the one it was told before.
    async fn watch(self: Arc<Self>) {
        let mut known = Revision(0);
        loop {
            let watched = self.unless_cut_off(self.authority.watch(known)).await;
            match self.reported(watched) {
                Some(now) if now.revision != known => {
                    known = now.revision;
                    self.core.send(Event::RegisterRead { asked: None, now });
                }
                Some(_) => {}
                None => tokio::time::sleep(RETRY).await,
            }
        }
    }

    fn reported(&self, read: Result<Versioned, AuthorityError>) -> Option<Versioned> {
        match read {
            Ok(now) => Some(now),
            Err(error) => {
                if self.warnings.pass() {
                    tracing::warn!("{error}; {}", consequence(&self.status.borrow()));
                }
                None
            }
        }
    }

    /// Loses the question, or its answer, while a fault cuts the authority off.
    async fn unless_cut_off<T>(
        &self,
        question: impl Future<Output = Result<T, AuthorityError>>,
    ) -> Result<T, AuthorityError> {
        let lost = || AuthorityError("authority cut off by POST /fault/partition".to_owned());
        if self.faults.cut(AUTHORITY) {
            return Err(lost());
        }
        let answer = question.await;
        if self.faults.cut(AUTHORITY) { Err(lost()) } else { answer }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use onlyonce_wire::status::Role;
    use onlyonce_wire::{ClusterId, Incarnation, StoreId, View};

    use super::*;
    use crate::core_thread::core_queue;
    use crate::serve::tokio_runtime;

    const PATIENCE: Duration = Duration::from_secs(15);

    /// An authority whose data is lost, that cannot be reached for the first reads. It has no news.
    struct Lost {
        unreached: usize,
        reads: Arc<AtomicUsize>,
    }

    impl Authority for Lost {
        async fn read(&self) -> Result<Versioned, AuthorityError> {
            if self.reads.fetch_add(1, Ordering::SeqCst) < self.unreached {
                return Err(AuthorityError("not reached".to_owned()));
            }
            Ok(Versioned { revision: Revision(0), register: None })
        }

        async fn compare_and_swap(&self, _: Revision, _: Register) -> Swap {
            panic!("nothing is proposed")
        }

        async fn watch(&self, _: Revision) -> Result<Versioned, AuthorityError> {
            std::future::pending().await
        }
    }

    fn status() -> NodeStatus {
        NodeStatus {
            name: "n1".to_owned(),
            store: StoreId(1),
            cluster: Some(ClusterId(9)),
            incarnation: Incarnation(1),
            role: Role::Backup,
            serving: false,
            view: View(1),
            primary: None,
            primary_address: None,
            backups: Vec::new(),
            learners: Vec::new(),
            prepared: 0,
            committed: 0,
            applied: 0,
            sessions: 0,
            idempotency_keys: 0,
            timed_keys_refused_ms: 0,
            logged_bytes: 0,
        }
    }

    /// The core asks once, after news that the register may be lost, and may hear no more of it: a read
    /// that fails is repeated until there is an answer, and that answers the question.
    #[test]
    fn a_read_that_fails_is_repeated() {
        let runtime = tokio_runtime(1).expect("a runtime");
        let (core, inbox) = core_queue();
        let reads = Arc::new(AtomicUsize::new(0));
        let authority = Lost { unreached: 2, reads: Arc::clone(&reads) };
        let faults = Arc::new(Faults::new(false));
        let (_status, told) = watch::channel(status());
        let agent = Agent::start(runtime.handle(), authority, core, faults, told);
        agent.read(ReadId(7));
        let event = inbox.next(PATIENCE).expect("an answer");
        let Event::RegisterRead { asked, now } = event else { panic!("{event:?}") };
        assert_eq!((asked, now.revision, now.register), (Some(ReadId(7)), Revision(0), None));
        assert_eq!(reads.load(Ordering::SeqCst), 3, "no more than it takes");
    }
}
