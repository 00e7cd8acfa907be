//! Clients whose every request and answer is recorded, while whoever started them breaks the
//! cluster. At the end the same checker as the simulator's judges whether there is an order that
//! explains all answers, and an audit whether each acknowledged request took effect exactly once.
//!
//! A few hot keys, each hit by all clients: counters (counted up and read), lists (appended to and
//! read) and registers (everything else). Times are those of one monotonic clock: a request's
//! begins before the client library is called, and ends after it returned, so what it really was
//! lies within. Most clients wait without limit. Impatient ones have a deadline: what they do not
//! learn stays open, for ever. Observers read at one node, whoever is the primary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use onlyonce_client::{Client, Error, Operation as Request, Outcome, Write};
use onlyonce_history::{Action, NoOrder, Operation, Recorded, Told, check_all, write_lines};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::audit::{Report, compare};
use crate::client::runtime;
use crate::cluster::BOUND;
use crate::observer::observe;
use crate::seed;
use crate::wait::wait_more;
use crate::workload::{Increments, Ledger};

/// A folder to which every history is written, as JSON Lines.
const FOLDER: &str = "ONCE_HISTORIES";
/// How long impatient clients wait: less than a failover takes.
const IMPATIENCE: Duration = Duration::from_millis(300);
/// By how much clients may enter what they send out of order, in nanoseconds.
const DISORDER_MAX: u64 = 1_000_000_000;
/// Keys of each kind.
const KEYS: u64 = 3;
/// After so many tokens a client goes on to the next generation of lists: an append writes, and a
/// read records, the whole value.
const TOKENS_A_LIST: u64 = 60;

/// Running clients.
pub struct Recorder {
    /// Of all choices of the test.
    pub random: StdRng,
    test: String,
    seed: u64,
    nodes: Vec<String>,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
    observers: Vec<std::thread::JoinHandle<()>>,
    runtime: Runtime,
}

/// What all clients share.
pub(crate) struct Shared {
    began: Instant,
    pub(crate) stop: AtomicBool,
    answered: AtomicU64,
    recorded: Mutex<Vec<Entry>>,
    /// What no healthy cluster does to a client that waits without limit.
    violations: Mutex<Vec<String>>,
}

/// An operation, and whether it definitely never took effect.
struct Entry {
    recorded: Recorded,
    void: bool,
}

impl Shared {
    /// Nanoseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a test of under 500 years")
    }

    fn recorded(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters an operation of an observer, which has ended.
    pub(crate) fn record(&self, recorded: Recorded) {
        self.recorded().push(Entry { recorded, void: false });
    }

    fn violation(&self, text: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

impl Recorder {
    /// Starts `patient` clients that wait without limit and `impatient` ones that do not, on nodes
    /// with these client addresses; prints the test's seed.
    ///
    /// # Panics
    /// When the system has no threads left.
    #[must_use]
    pub fn start(test: &str, nodes: Vec<String>, patient: u64, impatient: u64) -> Self {
        let seed = seed::seed(test);
        let mut random = StdRng::seed_from_u64(seed);
        let runtime = runtime(2);
        let shared = Arc::new(Shared {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            recorded: Mutex::default(),
            violations: Mutex::default(),
        });
        let mut clients = Vec::new();
        for number in 0..patient + impatient {
            let deadline = (number >= patient).then_some(IMPATIENCE);
            let client = RecordedClient {
                number,
                deadline,
                client: build(&nodes, deadline),
                shared: Arc::clone(&shared),
                random: StdRng::seed_from_u64(random.random()),
                tokens: 0,
                expected: None,
            };
            clients.push(runtime.spawn(client.run()));
        }
        Self {
            random,
            test: test.to_owned(),
            seed,
            nodes,
            shared,
            clients,
            observers: Vec::new(),
            runtime,
        }
    }

    /// From now on the counters are also read by hand at each of these nodes, whoever is the primary.
    pub fn observe(&mut self, nodes: &[SocketAddr]) {
        for &node in nodes {
            for number in 0..KEYS {
                let shared = Arc::clone(&self.shared);
                let client = (self.clients.len() + self.observers.len()) as u64;
                self.observers.push(std::thread::spawn(move || {
                    observe(&shared, client, node, &counter(number));
                }));
            }
        }
    }

    /// How many operations of clients were answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// The time by the recorder's clock: nanoseconds since its start.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.shared.now()
    }

    /// When the first write that was sent at or after a time was acknowledged.
    #[must_use]
    pub fn first_acknowledged_since(&self, sent: u64) -> Option<u64> {
        let recorded = self.shared.recorded();
        let operations = recorded.iter().rev().map(|entry| &entry.recorded.operation);
        operations
            .filter(|operation| operation.action != Action::Get)
            .take_while(|operation| operation.invoked + DISORDER_MAX >= sent)
            .filter(|operation| operation.invoked >= sent)
            .filter_map(|operation| operation.answered)
            .min()
    }

    /// Waits until so many more operations were answered.
    ///
    /// # Panics
    /// When that takes longer than [`BOUND`].
    #[track_caller]
    pub fn progress(&self, operations: u64) {
        wait_more("answered operations", BOUND, operations, || self.answered());
    }

    /// Waits until some more operations were answered: a random moment of a busy server.
    ///
    /// # Panics
    /// As [`progress`](Self::progress).
    #[track_caller]
    pub fn random_moment(&mut self) {
        let operations = self.random.random_range(1..=200);
        self.progress(operations);
    }

    /// Ends the clients, reads every key once more, and judges. Prints what was lost and doubled,
    /// under what `happened`.
    ///
    /// # Panics
    /// With everything that is wrong; the history is written to a file then, which is named.
    #[track_caller]
    pub fn finish(self, happened: &str) -> Verdict {
        let Self { test, seed, nodes, shared, clients, observers, runtime, .. } = self;
        let count = clients.len() + observers.len();
        shared.stop.store(true, Ordering::Relaxed);
        for observer in observers {
            observer.join().expect("an observer panicked");
        }
        runtime.block_on(async {
            let ended = async {
                for client in clients {
                    if let Err(error) = client.await {
                        shared.violation(format!("a client: {error}"));
                    }
                }
            };
            let waited = tokio::time::timeout(BOUND, ended).await;
            assert!(waited.is_ok(), "clients without a limit got no answer for {BOUND:?}");
            read_all(&shared, &nodes, count as u64).await;
        });
        runtime.shutdown_timeout(Duration::from_secs(10));
        let entries = std::mem::take(&mut *shared.recorded());
        let void = entries.iter().filter(|entry| entry.void).count();
        let history = entries.into_iter().filter(|it| !it.void).map(|it| it.recorded).collect();
        let violations = shared.violations.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = Verdict::of(history, violations.clone());
        if let Some(folder) = std::env::var_os(FOLDER) {
            let path = Path::new(&folder).join(format!("{test}-{seed}.jsonl"));
            write(&verdict.history, &path);
            println!("{test}: the history is in {}", path.display());
        }
        println!("{test}: {happened}: {void} refused, {count} clients: {verdict}");
        verdict.assert_clean(&test);
        verdict
    }
}

fn counter(number: u64) -> String {
    format!("counter/{number}")
}

fn build(nodes: &[String], deadline: Option<Duration>) -> Client {
    let client = Client::builder().nodes(nodes.iter().cloned()).deadline(deadline);
    client.build().expect("addresses of nodes")
}

/// Reads, and records, every key that there is.
async fn read_all(shared: &Arc<Shared>, nodes: &[String], number: u64) {
    let keys: BTreeSet<String> =
        shared.recorded().iter().map(|entry| entry.recorded.key.clone()).collect();
    let mut reader = RecordedClient {
        number,
        deadline: None,
        client: build(nodes, None),
        shared: Arc::clone(shared),
        random: StdRng::seed_from_u64(0),
        tokens: 0,
        expected: None,
    };
    for key in keys {
        reader.record(key, Action::Get).await;
    }
    reader.client.close().await;
}

fn write(history: &[Recorded], path: &Path) {
    let file = File::create(path)
        .unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
    write_lines(history, BufWriter::new(file)).expect("the history can be written");
}

/// What became of a recorded run.
#[derive(Debug)]
pub struct Verdict {
    /// What every client saw, the definitely refused left out.
    pub history: Vec<Recorded>,
    /// Whether each acknowledged request took effect exactly once, by the counters and lists.
    pub report: Report,
    /// Why no order explains the answers, if none does.
    pub no_order: Option<NoOrder>,
}

impl Verdict {
    /// Judges a history, the last answers of which are reads of every key; `violations` are what
    /// went wrong besides.
    #[must_use]
    pub fn of(history: Vec<Recorded>, violations: Vec<String>) -> Self {
        let no_order = check_all(&history).err();
        let report = audit(&history, violations);
        Self { history, report, no_order }
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.no_order.is_none() && self.report.is_clean()
    }

    #[track_caller]
    fn assert_clean(&self, test: &str) {
        if self.is_clean() {
            return;
        }
        let kept = tempfile::Builder::new().prefix("once-history-").suffix(".jsonl").tempfile();
        let (_, path): (_, PathBuf) =
            kept.and_then(|file| Ok(file.keep()?)).expect("a temporary file");
        write(&self.history, &path);
        let order = self.no_order.as_ref().map(ToString::to_string).unwrap_or_default();
        panic!("{test}: {order}{}the history is in {}", self.report, path.display());
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.history.iter().filter(|it| it.operation.answered.is_none()).count();
        let order = if self.no_order.is_none() { "linearizable" } else { "NOT LINEARIZABLE" };
        let Report { acknowledged, lost, doubled, foreign, .. } = &self.report;
        write!(
            f,
            "{} operations, {open} of them open, {order}; {acknowledged} audited, lost {lost}, \
             doubled {doubled}, foreign {foreign}",
            self.history.len()
        )
    }
}

/// Compares the last reads of counters and lists with what was acknowledged.
fn audit(history: &[Recorded], violations: Vec<String>) -> Report {
    let mut ledger = Ledger { violations, ..Ledger::default() };
    ledger.counters.resize_with(KEYS as usize, Increments::default);
    let mut counters = vec![0; KEYS as usize];
    let mut lists = BTreeMap::new();
    for Recorded { key, operation, .. } in history {
        let place = (0..KEYS).position(|number| *key == counter(number));
        match (&operation.action, &operation.told, place) {
            (Action::Incr, Some(Told::Number(value)), Some(place)) => {
                ledger.counters[place].returned.push(*value);
            }
            (Action::Incr, None, Some(place)) => ledger.counters[place].unresolved += 1,
            (Action::Get, Some(Told::Value(value)), Some(place)) => {
                let text = value.as_deref().map_or("0".into(), String::from_utf8_lossy);
                counters[place] = text.parse().unwrap_or(-1);
            }
            (Action::Append(token), told, _) if key.starts_with("list/") => {
                let token = String::from_utf8_lossy(token).trim_end_matches(';').to_owned();
                let entry = (key.clone(), token);
                if told.is_some() {
                    ledger.appended.push(entry);
                } else {
                    ledger.unresolved.push(entry);
                }
            }
            (Action::Get, Some(Told::Value(value)), _) if key.starts_with("list/") => {
                lists.insert(key.clone(), value.clone().unwrap_or_default());
            }
            _ => {}
        }
    }
    let lists: Vec<_> = lists.into_iter().map(|(key, value)| (Bytes::from(key), value)).collect();
    compare(&ledger, &counters, &lists)
}

/// One client: its next request begins when the one before has ended.
struct RecordedClient {
    number: u64,
    deadline: Option<Duration>,
    client: Client,
    shared: Arc<Shared>,
    random: StdRng,
    tokens: u64,
    /// What a register was last seen to hold: what a compare expects.
    expected: Option<Bytes>,
}

impl RecordedClient {
    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let number = self.random.random_range(0..KEYS);
            self.tokens += 1;
            let token = Bytes::from(format!("{}.{};", self.number, self.tokens));
            let (key, action) = match self.random.random_range(0..100) {
                0..20 => (counter(number), Action::Incr),
                20..28 => (counter(number), Action::Get),
                28..48 => (self.list(number), Action::Append(token)),
                48..54 => (self.list(number), Action::Get),
                register => (format!("register/{number}"), self.register_action(register, token)),
            };
            self.record(key, action).await;
        }
        self.client.close().await;
    }

    fn list(&self, number: u64) -> String {
        format!("list/{number}/{}", self.tokens / TOKENS_A_LIST)
    }

    fn register_action(&mut self, choice: u32, token: Bytes) -> Action {
        match choice {
            54..62 => Action::Put(token),
            62..72 => Action::Append(token),
            72..74 => Action::Incr,
            74..84 => Action::Cas { expected: self.expected.clone(), value: token },
            84..87 => Action::Delete,
            _ => Action::Get,
        }
    }

    /// Carries out one operation, from before its invocation to after its answer.
    async fn record(&mut self, key: String, action: Action) {
        let request = request(&key, &action);
        let of_register = key.starts_with("register/");
        let operation =
            Operation { invoked: self.shared.now(), answered: None, action, told: None };
        let recorded = Recorded { client: self.number, key: key.clone(), operation };
        let at = {
            let mut all = self.shared.recorded();
            all.push(Entry { recorded, void: false });
            all.len() - 1
        };
        let outcome = match request {
            Some(request) => self.client.execute(request).await,
            None => self.client.get(key).await.map(Outcome::Value),
        };
        let answered = self.shared.now();
        if let (Err(error), None) = (&outcome, self.deadline)
            && !matches!(error, Error::Failed(_))
        {
            let text = format!("client {}: a request without a deadline: {error}", self.number);
            self.shared.violation(text);
        }
        let mut all = self.shared.recorded();
        let Entry { recorded, void } = &mut all[at];
        match outcome.map(told) {
            Ok(Some(told)) => {
                if let (true, Told::Value(value)) = (of_register, &told) {
                    self.expected.clone_from(value);
                }
                recorded.operation.answered = Some(answered);
                recorded.operation.told = Some(told);
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::Failed(_)) => {
                recorded.operation.answered = Some(answered);
                recorded.operation.told = Some(Told::Impossible);
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(None) => self.shared.violation(format!("an odd answer to {recorded:?}")),
            // It may take effect at any time, or never.
            Err(Error::Unresolved(_) | Error::Uncounted(_) | Error::BadReply(_)) => {}
            Err(
                Error::Refused(_) | Error::NotSent(_) | Error::NoAnswer(_) | Error::Unusable(_),
            ) => *void = true,
        }
    }
}

/// The request for an action; none for a read.
fn request(key: &str, action: &Action) -> Option<Request> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Some(match action.clone() {
        Action::Put(value) => Request::Write(Write::Put { key, value }),
        Action::Append(value) => Request::Write(Write::Append { key, value }),
        Action::Incr => Request::Write(Write::Incr { key, by: 1 }),
        Action::Delete => Request::Write(Write::Delete { key }),
        Action::Cas { expected, value } => Request::Cas { key, expected, value },
        Action::Get => return None,
    })
}

/// What an outcome tells; none for one that nothing here leads to.
fn told(outcome: Outcome) -> Option<Told> {
    Some(match outcome {
        Outcome::Done => Told::Done,
        Outcome::Value(value) => Told::Value(value),
        Outcome::Length(length) => Told::Number(i64::try_from(length).ok()?),
        Outcome::Integer(value) => Told::Number(value),
        Outcome::Deleted(existed) => Told::Bool(existed),
        Outcome::Compared { swapped, actual } => Told::Compared { swapped, actual },
        Outcome::Failed(_) | Outcome::Rows { .. } | Outcome::Txn(_) => return None,
    })
}
