//! Clients that increment shared counters and append unique tokens to shared keys, with the client
//! library's defaults, while whoever started them breaks the cluster.
//!
//! A [`Ledger`] is what they know at the end: what was acknowledged, and what is open. Each reply is
//! also checked on its way, against the order of real time: an increment must return more than any
//! value that a reply told of before it began, and a read at least that.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onlyonce_client::{Client, Error, Refusal, UnresolvedReason};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::client::{client, runtime};

/// After so many tokens a lane goes on to the next key: an append writes the whole value anew.
const TOKENS_A_KEY: u64 = 300;

/// What to run.
#[derive(Clone, Debug)]
pub struct WorkloadConfig {
    /// The nodes' client addresses.
    pub nodes: Vec<String>,
    /// Clients, each with its own connections and session.
    pub clients: usize,
    /// Requests that each client keeps outstanding.
    pub lanes: usize,
    /// Shared counters.
    pub counters: usize,
    /// Shared keys that tokens are appended to at any one time.
    pub keys: usize,
    /// What every key begins with.
    pub prefix: String,
    /// Of the choices between them.
    pub seed: u64,
    /// Whether a new incarnation begins meanwhile: what is outstanding then ends as unresolved.
    pub new_incarnation: bool,
}

impl WorkloadConfig {
    /// A workload that keeps a small cluster busy.
    #[must_use]
    pub fn new(nodes: Vec<String>, seed: u64) -> Self {
        let prefix = format!("load-{seed}/");
        let new_incarnation = false;
        Self { nodes, clients: 4, lanes: 4, counters: 4, keys: 4, prefix, seed, new_incarnation }
    }

    /// The key of a counter.
    #[must_use]
    pub fn counter(&self, counter: usize) -> String {
        format!("{}counter/{counter}", self.prefix)
    }

    /// What the keys begin with that tokens are appended to.
    #[must_use]
    pub fn token_prefix(&self) -> String {
        format!("{}tokens/", self.prefix)
    }
}

/// Increments of one counter.
#[derive(Clone, Debug, Default)]
pub struct Increments {
    /// The value that each acknowledged increment returned.
    pub returned: Vec<i64>,
    /// How many are open: they may or may not have taken effect.
    pub unresolved: u64,
}

/// What the clients know at the end.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By counter.
    pub counters: Vec<Increments>,
    /// Acknowledged tokens, and the key that each was appended to.
    pub appended: Vec<(String, String)>,
    /// As `appended`, of requests that are open.
    pub unresolved: Vec<(String, String)>,
    /// As `appended`, of requests that definitely never took effect.
    pub refused: Vec<(String, String)>,
    /// Replies that contradict earlier ones, and errors that no healthy cluster gives.
    pub violations: Vec<String>,
}

impl Ledger {
    /// How many requests were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        let increments: usize = self.counters.iter().map(|counter| counter.returned.len()).sum();
        (increments + self.appended.len()) as u64
    }

    /// How many requests are open.
    #[must_use]
    pub fn unresolved(&self) -> u64 {
        let increments: u64 = self.counters.iter().map(|counter| counter.unresolved).sum();
        increments + self.unresolved.len() as u64
    }
}

impl AddAssign for Ledger {
    fn add_assign(&mut self, other: Self) {
        self.counters.resize_with(other.counters.len().max(self.counters.len()), Default::default);
        for (counter, more) in self.counters.iter_mut().zip(other.counters) {
            counter.returned.extend(more.returned);
            counter.unresolved += more.unresolved;
        }
        self.appended.extend(other.appended);
        self.unresolved.extend(other.unresolved);
        self.refused.extend(other.refused);
        self.violations.extend(other.violations);
    }
}

/// A running workload.
pub struct Workload {
    shared: Arc<Shared>,
    lanes: Vec<JoinHandle<()>>,
    runtime: Runtime,
}

struct Shared {
    config: WorkloadConfig,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// By counter: the highest value that a reply told of.
    highest: Vec<AtomicI64>,
    ledgers: Mutex<Ledger>,
}

impl Workload {
    /// Starts the clients.
    ///
    /// # Panics
    /// When the system has no threads left.
    #[must_use]
    pub fn start(config: WorkloadConfig) -> Self {
        let runtime = runtime(2);
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            highest: (0..config.counters).map(|_| AtomicI64::new(0)).collect(),
            ledgers: Mutex::default(),
            config,
        });
        let mut lanes = Vec::new();
        for number in 0..shared.config.clients {
            let client = client(&shared.config.nodes);
            for lane in 0..shared.config.lanes {
                let lane = Lane::new(Arc::clone(&shared), client.clone(), number, lane);
                lanes.push(runtime.spawn(lane.run()));
            }
        }
        Self { shared, lanes, runtime }
    }

    /// How many requests were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Begins no more requests, and waits for those under way: at most `bound`, then they are
    /// unresolved.
    pub fn finish(self, bound: Duration) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.runtime.block_on(async {
            let drained = async {
                for lane in self.lanes {
                    if let Err(error) = lane.await {
                        self.shared.lock().violations.push(format!("a client: {error}"));
                    }
                }
            };
            let _ = tokio::time::timeout(bound, drained).await;
        });
        // Ends what is still under way; a lane that is dropped enters its open request.
        self.runtime.shutdown_timeout(Duration::from_secs(10));
        std::mem::take(&mut *self.shared.lock())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One sequence of requests: the next begins when the one before is answered.
struct Lane {
    shared: Arc<Shared>,
    client: Client,
    /// What this lane's tokens begin with.
    name: String,
    tokens: u64,
    random: StdRng,
    /// The request under way.
    open: Option<Open>,
    ledger: Ledger,
}

enum Open {
    Increment(usize),
    Append { key: String, token: String },
}

impl Lane {
    fn new(shared: Arc<Shared>, client: Client, number: usize, lane: usize) -> Self {
        let lanes = shared.config.lanes;
        let random = StdRng::seed_from_u64(shared.config.seed ^ ((number * lanes + lane) as u64));
        let mut ledger = Ledger::default();
        ledger.counters.resize_with(shared.config.counters, Increments::default);
        let name = format!("{number}.{lane}");
        Self { shared, client, name, tokens: 0, random, open: None, ledger }
    }

    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.random.random_range(0..20) {
                0 => self.read().await,
                1..10 => self.increment().await,
                _ => self.append().await,
            }
        }
    }

    async fn increment(&mut self) {
        let counter = self.random.random_range(0..self.shared.config.counters);
        let key = self.shared.config.counter(counter);
        let before = self.shared.highest[counter].load(Ordering::SeqCst);
        self.open = Some(Open::Increment(counter));
        match self.client.incr(key, 1).await {
            Ok(value) => {
                self.open = None;
                if value <= before {
                    self.violation(&format!(
                        "counter {counter}: an increment returned {value}, after {before} was \
                         acknowledged"
                    ));
                }
                self.shared.highest[counter].fetch_max(value, Ordering::SeqCst);
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.ledger.counters[counter].returned.push(value);
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn append(&mut self) {
        let place = self.random.random_range(0..self.shared.config.keys);
        let generation = self.tokens / TOKENS_A_KEY;
        let key = format!("{}{place}/{generation}", self.shared.config.token_prefix());
        let token = format!("{}.{}", self.name, self.tokens);
        self.tokens += 1;
        self.open = Some(Open::Append { key: key.clone(), token: token.clone() });
        match self.client.append(key.clone(), format!("{token};")).await {
            Ok(_) => {
                self.open = None;
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.ledger.appended.push((key, token));
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn read(&mut self) {
        let counter = self.random.random_range(0..self.shared.config.counters);
        let key = self.shared.config.counter(counter);
        let before = self.shared.highest[counter].load(Ordering::SeqCst);
        match self.client.get(key).await {
            Ok(value) => {
                let text = value.as_deref().map_or("0".into(), String::from_utf8_lossy);
                if let Some(value) = text.parse().ok().filter(|value| *value >= before) {
                    self.shared.highest[counter].fetch_max(value, Ordering::SeqCst);
                    return;
                }
                self.violation(&format!(
                    "counter {counter}: a read returned {text:?}, after {before} was acknowledged"
                ));
            }
            Err(error) => self.violation(&format!("a read without a deadline ended: {error}")),
        }
    }

    /// Enters a request that ended with an error. With the library's defaults none does while the
    /// cluster keeps its promises, so each is worth a line; a new incarnation is a reason of its own.
    fn failed(&mut self, error: &Error) {
        if !(self.shared.config.new_incarnation && is_of_another_incarnation(error)) {
            self.violation(&format!("a request without a deadline ended: {error}"));
        }
        let open = self.open.take().expect("a request is under way");
        match (error, open) {
            (Error::Unresolved(_) | Error::Uncounted(_) | Error::BadReply(_), open) => {
                self.enter_open(open);
            }
            (_, Open::Increment(_)) => {}
            (_, Open::Append { key, token }) => self.ledger.refused.push((key, token)),
        }
    }

    fn enter_open(&mut self, open: Open) {
        match open {
            Open::Increment(counter) => self.ledger.counters[counter].unresolved += 1,
            Open::Append { key, token } => self.ledger.unresolved.push((key, token)),
        }
    }

    fn violation(&mut self, text: &str) {
        self.ledger.violations.push(format!("client {}: {text}", self.name));
    }
}

/// Whether the request is open because its incarnation is over.
fn is_of_another_incarnation(error: &Error) -> bool {
    let Error::Unresolved(unresolved) = error else { return false };
    let reason = unresolved.reason();
    matches!(reason, UnresolvedReason::Refused(Refusal::OtherIncarnation { .. }))
}

impl Drop for Lane {
    /// Hands over what it knows, also when it was ended in the middle of a request.
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.enter_open(open);
        }
        *self.shared.lock() += std::mem::take(&mut self.ledger);
    }
}
