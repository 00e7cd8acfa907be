//! What the client knows of the cluster: its nodes, which of them to ask, and who it is.
//!
//! - The first welcome (or the authority, or the builder) settles which cluster it is. From then on
//!   no other cluster is spoken to: a request repeated there would run a second time.
//! - A hint to the primary is followed only if its view is not older than the newest one heard of.
//! - Connections to a node that cannot be reached are tried at growing intervals, however many calls
//!   want it; in between they share the last failure.
//! - A call that knows whom else to ask waits only shortly for a connection, which goes on coming
//!   about without it. Before a welcome nothing of a request is sent, so this doubles nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use onlyonce_wire::authority::Register;
use onlyonce_wire::client::Welcome;
use onlyonce_wire::{ClusterId, Incarnation, View};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;

use crate::builder::Options;
use crate::connection::Connection;
use crate::discovery::read_register;
use crate::errors::ConnectError;
use crate::progress::Progress;
use crate::retry::{Stop, backoff};

/// The most nodes to remember; hints beyond it are not followed.
const NODES_MAX: usize = 64;
/// The longest time that a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call waits for a connection when there is somebody else to ask.
const CONNECT_PATIENCE: Duration = Duration::from_millis(200);
const _: () = assert!(CONNECT_PATIENCE.as_millis() < CONNECT_TIMEOUT.as_millis());
/// How often the authority is asked at most.
const DISCOVERY_INTERVAL: Duration = Duration::from_millis(100);
/// Until a node says how long a session may be idle.
const SESSION_IDLE: Duration = Duration::from_secs(60);

/// The cluster, as this client knows it.
pub(crate) struct Cluster {
    options: Options,
    known: Mutex<Known>,
    /// Wakes calls that pause: the cluster serves again.
    pub(crate) serves_again: Notify,
    /// Whether some call asks around at short intervals; the others may take longer ones.
    pub(crate) seeking: AtomicBool,
    /// When the authority was asked last.
    asked_authority: tokio::sync::Mutex<Option<Instant>>,
}

struct Known {
    nodes: Vec<Arc<Node>>,
    /// Which of `nodes` to ask.
    current: usize,
    view: View,
    cluster: Option<ClusterId>,
    incarnation: Option<Incarnation>,
    session_idle: Duration,
}

/// A node, by its address.
pub(crate) struct Node {
    pub(crate) address: Arc<str>,
    /// Named by the user rather than by another node.
    configured: bool,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Held by the one attempt that is under way.
    connecting: Arc<tokio::sync::Mutex<Connecting>>,
    /// Its last connection failed for a reason that waiting does not cure.
    unusable: AtomicBool,
}

#[derive(Default)]
struct Connecting {
    failures: u32,
    /// The last failure, and until when it answers for new ones.
    last: Option<(ConnectError, Instant)>,
}

impl Node {
    fn new(address: &str, configured: bool) -> Arc<Self> {
        Arc::new(Self {
            address: address.into(),
            configured,
            connection: Mutex::new(None),
            connecting: Arc::default(),
            unusable: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().expect("nothing panics while it holds the lock")
    }

    /// Opens a connection, or takes the one that another call has opened meanwhile.
    ///
    /// Gives up early when there is somebody else to ask. The attempt then goes on by itself, and its
    /// connection is there when this node's turn comes again: a slow network is no reason to never
    /// arrive.
    async fn connect(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
    ) -> Result<Arc<Connection>, ConnectError> {
        let connecting = async {
            let connecting = Arc::clone(&self.connecting).lock_owned().await;
            if let Some(connection) = &*self.lock() {
                return Ok(Arc::clone(connection));
            }
            if let Some((error, until)) = &connecting.last
                && *until > Instant::now()
            {
                return Err(error.clone());
            }
            let opening = Arc::clone(self).open(Arc::clone(cluster), connecting);
            match tokio::spawn(opening).await {
                Ok(opened) => opened,
                Err(stopped) => Err(ConnectError::Unreachable(stopped.to_string())),
            }
        };
        match cluster.connect_patience() {
            None => connecting.await,
            Some(patience) => match tokio::time::timeout(patience, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(ConnectError::TimedOut(patience)),
            },
        }
    }

    /// The attempt itself, from its beginning to its end.
    async fn open(
        self: Arc<Self>,
        cluster: Arc<Cluster>,
        mut connecting: OwnedMutexGuard<Connecting>,
    ) -> Result<Arc<Connection>, ConnectError> {
        let limit = cluster.options.attempt_timeout.min(CONNECT_TIMEOUT);
        let opened = Connection::open(&self.address, cluster.id(), limit).await;
        match opened.and_then(|connection| cluster.greet(connection)) {
            Ok(connection) => {
                tracing::debug!(address = %self.address, "connected");
                *connecting = Connecting::default();
                self.unusable.store(false, Ordering::Relaxed);
                *self.lock() = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                if error.is_permanent() && !self.unusable.swap(true, Ordering::Relaxed) {
                    tracing::warn!(address = %self.address, "node unusable: {error}");
                }
                let until = Instant::now() + backoff(connecting.failures);
                connecting.failures += 1;
                connecting.last = Some((error.clone(), until));
                Err(error)
            }
        }
    }

    /// Lets go of a connection that is over, unless there is a new one already.
    pub(crate) fn forget(&self, over: &Arc<Connection>) {
        let mut connection = self.lock();
        if connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, over)) {
            *connection = None;
        }
    }
}

impl Cluster {
    pub(crate) fn new(options: Options) -> Self {
        let known = Known {
            nodes: options.nodes.iter().map(|address| Node::new(address, true)).collect(),
            current: 0,
            view: View(0),
            cluster: options.cluster,
            incarnation: None,
            session_idle: SESSION_IDLE,
        };
        Self {
            options,
            known: Mutex::new(known),
            serves_again: Notify::new(),
            seeking: AtomicBool::new(false),
            asked_authority: tokio::sync::Mutex::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while it holds the lock")
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn id(&self) -> Option<ClusterId> {
        self.lock().cluster
    }

    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.lock().incarnation
    }

    pub(crate) fn session_idle(&self) -> Duration {
        self.lock().session_idle
    }

    pub(crate) fn nodes_known(&self) -> usize {
        self.lock().nodes.len()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.lock().nodes.iter().map(|node| node.address.to_string()).collect()
    }

    /// How long a call waits for one node's connection; none where there is nobody else to ask.
    fn connect_patience(&self) -> Option<Duration> {
        let others = self.nodes_known() > 1 || self.options.authority.is_some();
        others.then(|| self.options.attempt_timeout.min(CONNECT_PATIENCE))
    }

    /// A later incarnation replaces an earlier one, never the other way round.
    pub(crate) fn adopt_incarnation(&self, incarnation: Incarnation) {
        self.lock().enter(incarnation);
    }

    /// Takes in what a node said of itself.
    fn greet(&self, connection: Connection) -> Result<Arc<Connection>, ConnectError> {
        let Welcome { cluster, incarnation, session_idle_ms, .. } = connection.welcome();
        if cluster.is_none() && self.options.outbox.is_some() {
            // It executes nothing before it has joined one. What it executed then could not be told
            // from what another node is asked for, once the outbox is all that is left of a request.
            return Err(ConnectError::NoCluster);
        }
        let mut known = self.lock();
        if let (Some(theirs), Some(wanted)) = (*cluster, known.cluster)
            && theirs != wanted
        {
            return Err(ConnectError::OtherCluster { theirs: Some(theirs), wanted });
        }
        known.cluster = known.cluster.or(*cluster);
        known.enter(*incarnation);
        known.session_idle = Duration::from_millis((*session_idle_ms).max(1));
        drop(known);
        Ok(Arc::new(connection))
    }

    /// An open connection to the node that most likely is the primary.
    pub(crate) async fn reach(
        self: &Arc<Self>,
        progress: &mut Progress,
    ) -> Result<(Arc<Node>, Arc<Connection>), Stop> {
        loop {
            let candidate = {
                let known = self.lock();
                known.nodes.get(known.current).cloned()
            };
            let Some(node) = candidate else {
                self.pause(progress).await?;
                continue;
            };
            let open = node.lock().clone();
            if let Some(connection) = open {
                return Ok((node, connection));
            }
            progress.reports.begin(&node.address, "no connection yet");
            match node.connect(self).await {
                Ok(connection) => {
                    progress.reports.clear(&node.address);
                    return Ok((node, connection));
                }
                Err(error) => {
                    progress.reports.set(&node.address, error.to_string());
                    self.judge(&node, &error, progress)?;
                    self.leave(&node);
                    self.pause(progress).await?;
                }
            }
        }
    }

    /// The cluster's incarnation; asks a node if none said it yet.
    pub(crate) async fn first_incarnation(
        self: &Arc<Self>,
        progress: &mut Progress,
    ) -> Result<Incarnation, Stop> {
        if self.incarnation().is_none() {
            self.reach(progress).await?;
        }
        Ok(self.incarnation().expect("a connection's welcome tells it"))
    }

    /// Whether it is any use to go on after `error`: not when the user named a node of another
    /// cluster than he named, nor when no node is left that waiting could help.
    fn judge(&self, node: &Node, error: &ConnectError, progress: &Progress) -> Result<(), Stop> {
        let misnamed = node.configured
            && self.options.cluster.is_some()
            && matches!(error, ConnectError::OtherCluster { theirs: Some(_), .. });
        if misnamed {
            return Err(Stop::Unusable(format!("node {}: {error}", node.address)));
        }
        let unusable = |node: &Arc<Node>| node.unusable.load(Ordering::Relaxed);
        if self.lock().nodes.iter().all(unusable) {
            return Err(Stop::Unusable(progress.reports.sentences()));
        }
        Ok(())
    }

    /// Turns to the next node, unless somebody did so already.
    pub(crate) fn leave(&self, node: &Arc<Node>) {
        let mut known = self.lock();
        if known.nodes.get(known.current).is_some_and(|current| Arc::ptr_eq(current, node)) {
            known.current = (known.current + 1) % known.nodes.len();
        }
    }

    /// `node` is not the primary of `view`, and says who is, if it knows.
    pub(crate) fn redirect(&self, node: &Arc<Node>, view: View, primary: Option<&str>) {
        let mut known = self.lock();
        if view < known.view {
            drop(known);
            return self.leave(node);
        }
        known.view = view;
        match primary {
            Some(address) if *address != *node.address => known.prefer(address),
            Some(_) | None => {
                drop(known);
                self.leave(node);
            }
        }
    }

    /// `node` serves: calls that pause need not wait any longer.
    pub(crate) fn found(&self, node: &Arc<Node>) {
        let mut known = self.lock();
        if let Some(place) = known.nodes.iter().position(|other| Arc::ptr_eq(other, node)) {
            known.current = place;
        }
        drop(known);
        self.serves_again.notify_waiters();
    }

    /// Asks the authority for the members, if there is one and it was not asked just now.
    pub(crate) async fn discover(&self, progress: &mut Progress) -> Result<(), Stop> {
        let Some(authority) = &self.options.authority else { return Ok(()) };
        let mut asked = self.asked_authority.lock().await;
        if asked.is_some_and(|at| at.elapsed() < DISCOVERY_INTERVAL) {
            return Ok(());
        }
        let limit = self.options.attempt_timeout.min(CONNECT_TIMEOUT);
        let read = read_register(authority, limit).await;
        *asked = Some(Instant::now());
        match read {
            Ok(register) => self.take_in(authority, &register),
            Err(error) if error.is_permanent() && self.nodes_known() == 0 => {
                Err(Stop::Unusable(format!("authority {authority}: {error}")))
            }
            Err(error) => {
                let label = format!("authority {authority}").into();
                progress.reports.set(&label, error.to_string());
                Ok(())
            }
        }
    }

    fn take_in(&self, authority: &str, register: &Register) -> Result<(), Stop> {
        let mut known = self.lock();
        let wanted = *known.cluster.get_or_insert(register.cluster);
        if wanted != register.cluster {
            let reason = format!(
                "holds the view of cluster {}, this client's cluster is {wanted}: check the address",
                register.cluster
            );
            return Err(Stop::Unusable(format!("authority {authority}: {reason}")));
        }
        known.enter(register.incarnation);
        let is_behind = Some(register.incarnation) < known.incarnation;
        let current = known.current;
        for member in register.backups.iter().chain([&register.primary]) {
            known.prefer(&member.client_address);
        }
        if is_behind || register.view < known.view {
            known.current = current;
        } else {
            known.view = register.view;
        }
        Ok(())
    }
}

impl Known {
    /// A later incarnation replaces an earlier one. Its views are counted anew: it may begin with a
    /// lower one than the last of the history before.
    fn enter(&mut self, incarnation: Incarnation) {
        if self.incarnation < Some(incarnation) {
            self.incarnation = Some(incarnation);
            self.view = View(0);
        }
    }

    /// Turns to the node at `address`, which may be new.
    fn prefer(&mut self, address: &str) {
        if let Some(place) = self.nodes.iter().position(|node| &*node.address == address) {
            self.current = place;
        } else if self.nodes.len() < NODES_MAX {
            self.nodes.push(Node::new(address, false));
            self.current = self.nodes.len() - 1;
        }
    }
}
