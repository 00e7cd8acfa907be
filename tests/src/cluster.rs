//! Clusters of real processes, on ports that stay the same over restarts.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::binaries;
use crate::http;
use crate::network::{Network, Place};
use crate::port;
use crate::process::{Daemon, Exit};
use crate::status::Status;
use crate::wait::wait_for;

/// How long anything that a healthy cluster does by itself may take, on a busy machine.
pub const BOUND: Duration = Duration::from_secs(60);

/// Environment variables of a node.
pub type Environment<'a> = &'a [(&'a str, &'a str)];

/// A node's data, its addresses, and its process while it has one.
pub struct Node {
    name: String,
    program: PathBuf,
    data: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    addresses: Addresses,
    /// Where clients are told to connect, if elsewhere.
    advertised: Option<SocketAddr>,
    daemon: Option<Daemon>,
    /// What earlier processes said.
    log: String,
}

#[derive(Clone, Copy)]
struct Addresses {
    client: SocketAddr,
    peer: SocketAddr,
    http: SocketAddr,
}

impl Addresses {
    fn free() -> Self {
        let [client, peer, http] = std::array::from_fn(|_| port::free_address());
        Self { client, peer, http }
    }
}

impl Node {
    /// A node that does not run yet. Its addresses are free now, and stay the same.
    #[must_use]
    pub fn new(name: &str, data: &Path, arguments: &[&str], environment: Environment) -> Self {
        Self {
            name: name.to_owned(),
            program: binaries::onced(),
            data: data.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: environment
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            addresses: Addresses::free(),
            advertised: None,
            daemon: None,
            log: String::new(),
        }
    }

    /// Starts a process on the data folder and waits until it is ready.
    ///
    /// # Errors
    /// How the process ended, when it did.
    ///
    /// # Panics
    /// When one runs already, or gets neither ready nor ends.
    pub fn try_start(&mut self) -> Result<(), Exit> {
        self.spawn();
        let daemon = self.daemon.as_mut().expect("just spawned");
        if let Err(exit) = daemon.ready() {
            self.bury();
            return Err(exit);
        }
        Ok(())
    }

    /// As [`try_start`](Self::try_start), where it must work.
    ///
    /// # Panics
    /// When the process ends.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(Exit { status, stderr }) = self.try_start() {
            panic!("{} ended with {status} at its start:\n{stderr}", self.name);
        }
    }

    /// Starts a process and does not wait for anything.
    ///
    /// # Panics
    /// When one runs already.
    pub fn spawn(&mut self) {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        let Addresses { client, peer, http } = self.addresses;
        let data = self.data.to_str().expect("temporary folders have readable names").to_owned();
        let mut arguments = vec!["serve".to_owned(), "--data".to_owned(), data];
        for (flag, value) in [
            ("--name", self.name.clone()),
            ("--listen", client.to_string()),
            ("--peer", peer.to_string()),
            ("--http", http.to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments.extend(self.arguments.iter().cloned());
        let _ = writeln!(self.log, "--- {} starts", self.name);
        let program = &self.program;
        self.daemon = Some(Daemon::onced(program, &self.name, &arguments, &self.environment));
    }

    /// Forgets a process that has ended.
    fn bury(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            let _ = writeln!(self.log, "{}--- {} ended", daemon.stderr(), self.name);
        }
    }

    /// `kill -9`; nothing happens when it does not run.
    pub fn kill(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.kill();
        }
        self.bury();
    }

    /// SIGTERM, and the end of the process.
    ///
    /// # Panics
    /// When it does not run, or does not end in time.
    pub fn terminate(&mut self) -> Exit {
        let exit = self.daemon().terminate(BOUND);
        self.bury();
        exit
    }

    /// Waits until the process ends by itself.
    ///
    /// # Panics
    /// When it does not run, or does not end in time.
    pub fn exit(&mut self) -> Exit {
        let exit = self.daemon().exit(BOUND);
        self.bury();
        exit
    }

    /// How the process ended, if it has.
    pub fn try_exit(&mut self) -> Option<Exit> {
        let exit = self.daemon.as_mut()?.try_exit()?;
        self.bury();
        Some(exit)
    }

    /// Sets the program of the processes to come.
    pub fn run_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// Sets a variable for the processes to come.
    pub fn set(&mut self, key: &str, value: &str) {
        self.environment.retain(|(other, _)| other != key);
        self.environment.push((key.to_owned(), value.to_owned()));
    }

    /// Deletes everything in the data folder of a node that does not run.
    ///
    /// # Panics
    /// When it runs, or the folder cannot be emptied.
    pub fn empty_disk(&self) {
        assert!(self.daemon.is_none(), "{} runs", self.name);
        std::fs::remove_dir_all(&self.data).expect("the folder can be removed");
    }

    /// Its process.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// Whether it has a process.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What all its processes have said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.clone() + &self.daemon.as_ref().map(Daemon::stderr).unwrap_or_default()
    }

    /// Where clients connect.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        self.addresses.client
    }

    /// Where clients are told to connect.
    #[must_use]
    pub fn advertised_address(&self) -> SocketAddr {
        self.advertised.unwrap_or(self.addresses.client)
    }

    /// Tells others to connect to these addresses, rather than to where it listens.
    fn advertise(&mut self, client: SocketAddr, peer: SocketAddr) {
        self.set("ONCED_ADVERTISE_CLIENT", &client.to_string());
        self.set("ONCED_ADVERTISE_PEER", &peer.to_string());
        self.advertised = Some(client);
    }

    /// Where other nodes connect.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.addresses.peer
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.addresses.http
    }

    /// What it says about itself.
    ///
    /// # Errors
    /// When it does not run, is paused, or does not answer.
    pub fn status(&self) -> Result<Status, String> {
        match &self.daemon {
            None => Err(format!("{} is down", self.name)),
            Some(daemon) if daemon.is_paused() => Err(format!("{} is paused", self.name)),
            Some(_) => Status::parse(&http::request("GET", self.addresses.http, "/status")?),
        }
    }

    /// How many lines of all its processes so far hold `text`.
    #[must_use]
    pub fn said(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    /// A number of its `/metrics`.
    ///
    /// # Errors
    /// When it does not answer, or has no such number.
    pub fn metric(&self, name: &str) -> Result<f64, String> {
        let page = http::request("GET", self.addresses.http, "/metrics")?;
        let values = page.lines().filter_map(|line| line.split_once(' '));
        let found = values.filter(|(found, _)| *found == name).find_map(|(_, it)| it.parse().ok());
        found.ok_or_else(|| format!("no {name} in {page}"))
    }

    /// Waits until its status is as wanted.
    ///
    /// # Panics
    /// When it is not within [`BOUND`].
    #[track_caller]
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        wait_for(&format!("{} {what}", self.name), BOUND, || {
            let status = self.status()?;
            if wanted(&status) { Ok(status) } else { Err(format!("{status:?}")) }
        })
    }

    /// Drops, or lets through again, all traffic with the node or authority called `peer`.
    ///
    /// # Panics
    /// When the node does not take the order.
    pub fn cut_off(&self, peer: &str, on: bool) {
        let path = format!("/fault/partition?peer={peer}&on={on}");
        http::request("POST", self.http_address(), &path).expect("faults are enabled");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.log.is_empty() {
            let lines: Vec<_> = self.log.lines().collect();
            let shown = lines[lines.len().saturating_sub(120)..].join("\n  ");
            println!("--- earlier processes of {} said:\n  {shown}", self.name);
        }
    }
}

/// A folder for a test's data; `ONCE_KEEP=1` keeps it.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn folder() -> TempDir {
    let mut folder = TempDir::with_prefix("once-test-").expect("a temporary folder");
    if std::env::var_os("ONCE_KEEP").is_some() {
        folder.disable_cleanup(true);
        println!("data: {}", folder.path().display());
    }
    folder
}

/// An authority and nodes `n1`, `n2`, ... of one cluster.
pub struct Cluster {
    /// The nodes, `n1` first.
    pub nodes: Vec<Node>,
    /// The authority, while it runs.
    pub authority: Option<Daemon>,
    /// What nodes are given as `--authority`.
    authority_argument: String,
    /// What the nodes run.
    program: PathBuf,
    /// What is between them, where it is not only loopback.
    network: Option<Network>,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl Cluster {
    /// Starts a new cluster and waits until it is whole.
    ///
    /// # Panics
    /// When it does not become so.
    #[must_use]
    #[track_caller]
    pub fn start(nodes: usize, environment: Environment) -> Self {
        Self::with_authority().grown(nodes, environment)
    }

    /// As [`start`](Self::start); the nodes run this program.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    #[track_caller]
    pub fn start_program(program: &Path, nodes: usize, environment: Environment) -> Self {
        let cluster = Self { program: program.to_owned(), ..Self::with_authority() };
        cluster.grown(nodes, environment)
    }

    /// Starts a new cluster of two nodes on a [`Network`] that can be broken.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    #[track_caller]
    pub fn start_networked(environment: Environment) -> Self {
        let cluster = Self { network: Some(Network::new()), ..Self::with_authority() };
        cluster.grown(2, environment)
    }

    /// As [`start`](Self::start), with an authority that somebody else runs.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    #[track_caller]
    pub fn start_on(authority: &str, nodes: usize, environment: Environment) -> Self {
        Self::empty(None, authority.to_owned(), folder()).grown(nodes, environment)
    }

    fn with_authority() -> Self {
        let folder = folder();
        let authority = start_authority(&folder, &port::free_address().to_string());
        let argument = authority.address("authority").to_string();
        Self::empty(Some(authority), argument, folder)
    }

    fn empty(authority: Option<Daemon>, authority_argument: String, folder: TempDir) -> Self {
        Self {
            nodes: Vec::new(),
            authority,
            authority_argument,
            program: binaries::onced(),
            network: None,
            environment: Vec::new(),
            folder,
        }
    }

    #[track_caller]
    fn grown(mut self, nodes: usize, environment: Environment) -> Self {
        let environment =
            environment.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        self.environment = environment.collect();
        for _ in 0..nodes {
            let node = self.add();
            self.nodes[node].start();
        }
        self.wait_whole();
        self
    }

    /// Adds a node that does not run yet; returns its place.
    pub fn add(&mut self) -> usize {
        let place = self.nodes.len();
        let name = format!("n{}", place + 1);
        let authority = match &self.network {
            Some(network) => {
                let address = self.authority_address();
                network.proxy(Place::Node(place), Place::Authority, address).to_string()
            }
            None => self.authority_argument.clone(),
        };
        let mut arguments = vec!["--authority", &authority];
        if place == 0 {
            arguments.push("--bootstrap");
        }
        let mut node = Node::new(&name, &self.folder.path().join(&name), &arguments, &[]);
        node.run_program(&self.program);
        for (key, value) in &self.environment {
            node.set(key, value);
        }
        if let Some(network) = &self.network {
            // Of two nodes it is clear who connects to which.
            assert!(place < 2, "a cluster with a network has two nodes");
            node.advertise(
                network.proxy(Place::Clients, Place::Node(place), node.client_address()),
                network.proxy(Place::Node(1 - place), Place::Node(place), node.peer_address()),
            );
        }
        self.nodes.push(node);
        place
    }

    /// The network that can be broken.
    ///
    /// # Panics
    /// When the cluster was started without.
    #[must_use]
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("the cluster was started with a network")
    }

    /// Kills the authority, the embedded one.
    pub fn kill_authority(&mut self) {
        if let Some(mut authority) = self.authority.take() {
            authority.kill();
        }
    }

    /// The data folder of the authority.
    #[must_use]
    pub fn authority_data(&self) -> PathBuf {
        self.folder.path().join("authority")
    }

    /// Kills the authority, and deletes all that it had.
    ///
    /// # Panics
    /// When its folder cannot be removed.
    pub fn lose_authority(&mut self) {
        self.kill_authority();
        std::fs::remove_dir_all(self.authority_data()).expect("the folder can be removed");
    }

    /// Starts the authority again, at its address.
    pub fn restart_authority(&mut self) {
        self.authority = Some(start_authority(&self.folder, &self.authority_argument));
    }

    /// Where the embedded authority listens.
    ///
    /// # Panics
    /// When the cluster has another one.
    #[must_use]
    pub fn authority_address(&self) -> SocketAddr {
        self.authority_argument.parse().expect("the address of the embedded authority")
    }

    /// What a client is told to connect to.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.advertised_address().to_string()).collect()
    }

    /// Where the nodes themselves listen, for connections made by hand.
    #[must_use]
    pub fn sockets(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::client_address).collect()
    }

    /// The place of the node that serves at the moment.
    ///
    /// # Errors
    /// What each node said, when none does.
    pub fn try_primary(&self) -> Result<usize, String> {
        let statuses: Vec<_> = self.nodes.iter().map(Node::status).collect();
        // Of two that think so, the one of the later view is right.
        let serving = statuses.iter().enumerate().filter_map(|(place, status)| {
            let status = status.as_ref().ok().filter(|status| status.serves())?;
            Some((status.view, place))
        });
        serving.max().map(|(_, place)| place).ok_or_else(|| format!("{statuses:?}"))
    }

    /// Waits until a node serves; returns its place.
    ///
    /// # Panics
    /// When none does within [`BOUND`].
    #[track_caller]
    pub fn wait_primary(&self) -> usize {
        wait_for("a node to serve", BOUND, || self.try_primary())
    }

    /// Waits until one node serves and every other one is its backup; returns the primary's place.
    ///
    /// # Panics
    /// When that takes longer than [`BOUND`].
    #[track_caller]
    pub fn wait_whole(&self) -> usize {
        wait_for("a primary that serves, with every other node as backup", BOUND, || {
            self.try_whole()
        })
    }

    /// The place of the primary, if every other node is its backup.
    ///
    /// # Errors
    /// What each node said, when it is not so.
    pub fn try_whole(&self) -> Result<usize, String> {
        let primary = self.try_primary()?;
        let statuses: Vec<_> = self.nodes.iter().map(Node::status).collect();
        let is_whole = match &statuses[primary] {
            Ok(view) if view.backups.len() + 1 == self.nodes.len() => {
                statuses.iter().enumerate().all(|(place, status)| {
                    let role = if place == primary { "primary" } else { "backup" };
                    let follows = |it: &Status| it.role == role && it.view == view.view;
                    status.as_ref().is_ok_and(follows)
                })
            }
            Ok(_) | Err(_) => false,
        };
        if is_whole { Ok(primary) } else { Err(format!("{statuses:#?}")) }
    }

    /// The place of some node that is not `primary`.
    #[must_use]
    pub fn other(&self, primary: usize) -> usize {
        (primary + 1) % self.nodes.len()
    }
}

fn start_authority(folder: &TempDir, address: &str) -> Daemon {
    let data = folder.path().join("authority");
    let data = data.to_str().expect("temporary folders have readable names");
    let arguments = ["authority", "--data", data, "--listen", address].map(str::to_owned);
    let mut authority = Daemon::onced(&binaries::onced(), "authority", &arguments, &[]);
    if let Err(Exit { status, stderr }) = authority.ready() {
        panic!("the authority ended with {status} at its start:\n{stderr}");
    }
    authority
}
