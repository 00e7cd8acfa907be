//! `onced serve`: puts a node together, runs it, and takes it apart.
//!
//! ```text
//!  clients ─┐                    ┌─▶ log thread ────────┐
//!  peers  ──┼─▶ queue ─▶ core ───┼─▶ checkpoint thread ─┼─▶ events, back into the queue
//!  authority┘        (Replica)   ├─▶ authority agent ───┘
//!  (tokio)                       └─▶ connections, peers (tokio)
//! ```

use std::io::Write as _;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use onlyonce_replica::{Config, Duplicates, Effect, Mode, Replica};
use onlyonce_storage::{Checkpointer, LogWriter, OpenError, Opened, Options};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::Member;
use onlyonce_wire::status::NodeStatus;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::authority::agent::Agent;
use crate::authority::client::EmbeddedClient;
use crate::authority::etcd::EtcdClient;
use crate::checkpoint_thread::{CheckpointThread, Work};
use crate::clients::{Clients, Connections};
use crate::clock;
use crate::config::{AuthorityAddress, ServeConfig};
use crate::core_thread::{CoreInbox, CoreQueue, CoreThread, Outlets, core_queue};
use crate::counters::Counters;
use crate::exit::{self, ExitError};
use crate::faults::Faults;
use crate::http::Http;
use crate::listeners::{Listening, listen};
use crate::log_thread::{LogInbox, LogQueue, LogThread};
use crate::peers::Peers;
use crate::rate_limit::RateLimit;
use crate::warm::Warmer;
use crate::watchdog::{self, Watched};

/// How long requests that were taken may still run after SIGTERM.
const DRAIN: Duration = Duration::from_secs(2);
/// The threads of a runtime for sockets.
pub const WORKERS: usize = 2;
/// How many times `flush_timeout` one work of the checkpoint thread may take.
const WORK_FLUSHES: u32 = 30;

/// Runs a node until SIGTERM or SIGINT.
pub fn run(config: &ServeConfig) -> Result<(), ExitError> {
    allow_many_files();
    if config.duplicates == Duplicates::Memory {
        tracing::error!(
            "UNSAFE DEMONSTRATION: --duplicates memory deletes all sessions, saved replies and \
             idempotency keys at each start; requests that are repeated after a restart RUN TWICE"
        );
    }
    // Signals and listening sockets outlive a change of the store.
    let outer = tokio_runtime(1)?;
    let mut signals = outer.block_on(async { Signals::new() })?;
    let mut surroundings = Surroundings {
        listeners: outer.block_on(Listeners::bind(config))?,
        counters: Arc::default(),
        faults: Arc::new(Faults::new(std::env::var("ONCED_FAULTS").is_ok_and(|on| on == "1"))),
        replaced: Arc::default(),
        is_ready: false,
    };
    let mut opened = open(config)?;
    loop {
        let runtime = tokio_runtime(WORKERS)?;
        let node = Node::start(config, &runtime, &mut surroundings, opened)?;
        let replaced = Arc::clone(&surroundings.replaced);
        let signal = outer.block_on(async {
            tokio::select! {
                name = signals.wait() => Some(name),
                () = replaced.notified() => None,
            }
        });
        if let Some(name) = signal {
            tracing::info!("{name}: shutting down");
            node.stop(true);
            return Ok(());
        }
        tracing::info!("begin anew on the store that a snapshot made");
        node.stop(false);
        // With its tasks goes the last that had the old store open, at the latest when it comes
        // back from the disk.
        runtime.shutdown_timeout(DRAIN);
        opened = reopen(config)?;
    }
}

fn open(config: &ServeConfig) -> Result<Opened, OpenError> {
    let new_store_id = rand::random();
    let options = Options { tables_cache_bytes: config.cache_bytes, ..Options::new(new_store_id) };
    exit::reading(&config.data, || onlyonce_storage::open_dir(&config.data, &options))
}

/// Opens the folder again, which this process itself may still be letting go of.
fn reopen(config: &ServeConfig) -> Result<Opened, OpenError> {
    let deadline = Instant::now() + config.flush_timeout;
    loop {
        match open(config) {
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

/// Raises the limit on open files to what the system allows: each connection is one.
fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot raise the limit on open files: {error}");
    }
}

/// A runtime for sockets only.
pub fn tokio_runtime(workers: usize) -> Result<Runtime, ExitError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("sockets")
        .enable_all()
        .build()
        .map_err(|error| ExitError::Runtime(format!("cannot start the socket threads: {error}")))
}

/// The signals that end the process in good order.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they are caught.
    pub fn new() -> Result<Self, ExitError> {
        let catch = |kind| {
            signal(kind)
                .map_err(|error| ExitError::Runtime(format!("cannot catch signals: {error}")))
        };
        let terminate = catch(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: catch(SignalKind::interrupt())? })
    }

    /// Waits for one; returns its name.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

struct Listeners {
    client: Listening,
    peer: Listening,
    http: Listening,
}

impl Listeners {
    async fn bind(config: &ServeConfig) -> Result<Self, ExitError> {
        Ok(Self {
            client: listen("--listen", &config.listen).await?,
            peer: listen("--peer", &config.peer).await?,
            http: listen("--http", &config.http).await?,
        })
    }
}

/// What stays when a node begins anew on another store.
struct Surroundings {
    listeners: Listeners,
    counters: Arc<Counters>,
    faults: Arc<Faults>,
    /// Told when the store was replaced.
    replaced: Arc<Notify>,
    /// Whether the ready line was said.
    is_ready: bool,
}

/// A running node.
struct Node {
    core: Arc<CoreQueue>,
    log: LogQueue,
    connections: Arc<Connections>,
    closing: watch::Sender<bool>,
    core_thread: JoinHandle<()>,
    disk_threads: DiskThreads,
}

struct DiskThreads {
    log: JoinHandle<()>,
    checkpoint: JoinHandle<()>,
}

/// What every part of the node uses.
struct Common {
    core: Arc<CoreQueue>,
    counters: Arc<Counters>,
    faults: Arc<Faults>,
}

impl Node {
    fn start(
        config: &ServeConfig,
        runtime: &Runtime,
        surroundings: &mut Surroundings,
        opened: Opened,
    ) -> Result<Self, ExitError> {
        let _context = runtime.enter();
        let listeners = &surroundings.listeners;
        let me = member(config, listeners, StoreId(opened.store_id))?;
        let ready = ready_line(&me, listeners);
        let warmer = Warmer::new(opened.state.toucher());
        let (replica, first) = Replica::new(
            replica_config(config, me.clone()),
            opened.state,
            &opened.state_bytes,
            clock::now(),
        )
        .map_err(|error| ExitError::Runtime(error.to_string()))?;

        let (core, inbox) = core_queue();
        let common = Common {
            core,
            counters: Arc::clone(&surroundings.counters),
            faults: Arc::clone(&surroundings.faults),
        };
        let status = watch::Sender::new(replica.status());
        let connections = Arc::new(Connections::new(Arc::clone(&common.counters)));
        let peers = start_peers(&common, me, config.authority.is_none(), &status, runtime);
        let clients = Clients {
            connections: Arc::clone(&connections),
            core: Arc::clone(&common.core),
            counters: Arc::clone(&common.counters),
            status: status.subscribe(),
            session_idle: config.timing.session_idle,
            key_retention: config.timing.key_retention,
            warmer,
            refusals: RateLimit::new(Duration::from_secs(1)),
        };
        let http = Http {
            status: status.subscribe(),
            counters: Arc::clone(&common.counters),
            connections: Arc::clone(&connections),
            peers: Arc::clone(&peers),
            faults: Arc::clone(&common.faults),
        };
        let authority = config.authority.as_ref();
        let authority = authority.map(|it| start_agent(it, &common, &status, runtime));
        let (log, log_inbox) = LogQueue::new();
        let (checkpoints, work) = mpsc::channel();
        let tables = Tables {
            checkpointer: opened.checkpointer,
            work,
            replaced: Arc::clone(&surroundings.replaced),
        };
        let disk_threads = start_disk_threads(&common, config, opened.log, log_inbox, tables)?;
        let outlets = Outlets {
            connections: Arc::clone(&connections),
            peers: Arc::clone(&peers),
            log: log.clone(),
            checkpoints,
            authority,
            status,
        };
        let core_thread = start_core(replica, inbox, outlets, first)?;
        let closing = watch::Sender::new(false);
        runtime.spawn(Arc::new(clients).serve(listeners.client.listener()?, closing.subscribe()));
        runtime.spawn(peers.serve(listeners.peer.listener()?));
        runtime.spawn(Arc::new(http).serve(listeners.http.listener()?));
        if !std::mem::replace(&mut surroundings.is_ready, true) {
            say(&ready);
        }
        Ok(Self { core: common.core, log, connections, closing, core_thread, disk_threads })
    }

    /// Takes no more requests, finishes those that were taken (if they are to be drained), and
    /// leaves the log synced and nothing of the store in use by a thread.
    fn stop(self, drain: bool) {
        self.closing.send_replace(true);
        let deadline = Instant::now() + DRAIN;
        while drain && self.connections.count() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.core.stop();
        self.core_thread.join().expect("a panic aborts the process");
        self.log.finish();
        let DiskThreads { log, checkpoint } = self.disk_threads;
        for thread in [log, checkpoint] {
            thread.join().expect("a panic aborts the process");
        }
    }
}

/// Prints the one line of standard output.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be reading; the node runs all the same.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn ready_line(me: &Member, listeners: &Listeners) -> String {
    format!(
        "ready name={} client={} peer={} http={} store={}",
        me.name, listeners.client.address, listeners.peer.address, listeners.http.address, me.store
    )
}

/// This node, as others are told of it.
fn member(
    config: &ServeConfig,
    listeners: &Listeners,
    store: StoreId,
) -> Result<Member, ExitError> {
    let tell =
        |flag: &str, key: &str, advertised: &Option<String>, bound: &Listening| match advertised {
            Some(address) => Ok(address.clone()),
            None if bound.address.ip().is_unspecified() && config.authority.is_some() => {
                Err(ExitError::Usage(format!(
                    "{flag} {} is no address that others can connect to: set {key} (or \
                     ONCED_{}) to the HOST:PORT that they are to use",
                    bound.address,
                    key.to_uppercase()
                )))
            }
            None => Ok(bound.address.to_string()),
        };
    Ok(Member {
        store,
        name: config.name.clone(),
        client_address: tell(
            "--listen",
            "advertise_client",
            &config.advertise_client,
            &listeners.client,
        )?,
        peer_address: tell("--peer", "advertise_peer", &config.advertise_peer, &listeners.peer)?,
    })
}

fn replica_config(config: &ServeConfig, me: Member) -> Config {
    let mode = match config.authority {
        Some(_) => Mode::Cluster { bootstrap: config.bootstrap },
        None => Mode::Lone,
    };
    Config {
        min_copies: config.min_copies,
        timing: config.timing,
        log_tail_bytes: config.log_tail_bytes,
        log_pin_bytes: config.log_pin_bytes,
        checkpoint_bytes: config.checkpoint_bytes,
        duplicates: config.duplicates,
        ..Config::new(me, mode, rand::random())
    }
}

fn start_peers(
    common: &Common,
    me: Member,
    alone: bool,
    status: &watch::Sender<NodeStatus>,
    runtime: &Runtime,
) -> Arc<Peers> {
    Arc::new(Peers::new(
        me,
        alone,
        Arc::clone(&common.core),
        status.subscribe(),
        Arc::clone(&common.counters),
        Arc::clone(&common.faults),
        runtime.handle().clone(),
    ))
}

fn start_agent(
    address: &AuthorityAddress,
    common: &Common,
    status: &watch::Sender<NodeStatus>,
    runtime: &Runtime,
) -> Agent {
    let (core, faults) = (Arc::clone(&common.core), Arc::clone(&common.faults));
    let (runtime, status) = (runtime.handle(), status.subscribe());
    match address.clone() {
        AuthorityAddress::Embedded(address) => {
            Agent::start(runtime, EmbeddedClient::new(address), core, faults, status)
        }
        AuthorityAddress::Etcd(address) => {
            Agent::start(runtime, EtcdClient::new(address), core, faults, status)
        }
    }
}

fn start_core(
    replica: Replica,
    inbox: CoreInbox,
    outlets: Outlets,
    first: Vec<Effect>,
) -> Result<JoinHandle<()>, ExitError> {
    spawn("core", move || CoreThread::new(replica, inbox, outlets).run(first))
}

/// What the checkpoint thread owns.
struct Tables {
    checkpointer: Checkpointer,
    work: mpsc::Receiver<Work>,
    replaced: Arc<Notify>,
}

/// Starts the log, the checkpoint and the watchdog thread.
fn start_disk_threads(
    common: &Common,
    config: &ServeConfig,
    log: LogWriter,
    inbox: LogInbox,
    tables: Tables,
) -> Result<DiskThreads, ExitError> {
    let log_watched = Watched::new("log", config.flush_timeout);
    // Some of its works are many flushes; its disk is the log's, which is watched closely.
    let work_watched = Watched::new("checkpoint", config.flush_timeout * WORK_FLUSHES);
    let watched = [Arc::downgrade(&log_watched), Arc::downgrade(&work_watched)];
    let (core, counters) = (Arc::clone(&common.core), Arc::clone(&common.counters));
    let Tables { checkpointer, work, replaced } = tables;
    let scrub_pause = config.scrub_pause;
    let checkpoint = spawn("checkpoint", move || {
        let watched = work_watched;
        CheckpointThread { checkpointer, work, core, counters, watched, scrub_pause, replaced }
            .run();
    })?;
    let (core, counters) = (Arc::clone(&common.core), Arc::clone(&common.counters));
    let log = spawn("log", move || {
        LogThread { log, inbox, core, counters, watched: log_watched }.run();
    })?;
    spawn("watchdog", move || watchdog::run(&watched))?;
    Ok(DiskThreads { log, checkpoint })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ExitError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| ExitError::Runtime(format!("cannot start the {name} thread: {error}")))
}
