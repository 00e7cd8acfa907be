//! The authorities under test, as real processes: the embedded one, and etcd with one member.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use onlyonce_node::authority::Authority;
use onlyonce_node::authority::client::EmbeddedClient;
use onlyonce_node::authority::etcd::EtcdClient;
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a process may take to answer, on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// An authority that is killed and started again on its data; reaped when dropped.
pub struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    address: String,
    child: Option<Child>,
    folder: TempDir,
}

impl Server {
    /// `onced authority`.
    pub fn embedded() -> Self {
        Self::embedded_in(tempfile::tempdir().expect("a folder"))
    }

    /// `onced authority`, with its data in `folder`.
    pub fn embedded_in(folder: TempDir) -> Self {
        let address = free_address();
        let data = folder.path().join("data");
        let arguments = ["authority", "--data", text(&data), "--listen", &address];
        let program = env!("CARGO_BIN_EXE_onced").into();
        Self::new(program, &arguments, address.clone(), folder)
    }

    /// etcd with one member.
    pub fn etcd() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (client, peer) = (free_address(), format!("http://{}", free_address()));
        let (data, url) = (folder.path().join("data"), format!("http://{client}"));
        let member = format!("m1={peer}");
        let arguments = [
            ["--name", "m1"],
            ["--data-dir", text(&data)],
            ["--listen-client-urls", &url],
            ["--advertise-client-urls", &url],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &member],
            ["--logger", "zap"],
            ["--log-level", "error"],
        ];
        Self::new(etcd_program(), arguments.as_flattened(), client, folder)
    }

    fn new(program: PathBuf, arguments: &[&str], address: String, folder: TempDir) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut server = Self { program, arguments, address, child: None, folder };
        server.start();
        server
    }

    /// A client of the embedded authority.
    pub fn embedded_client(&self) -> EmbeddedClient {
        EmbeddedClient::new(self.address.clone())
    }

    /// A client of etcd, for the register `name`.
    pub fn etcd_client(&self, name: &str) -> EtcdClient {
        etcd_client(&format!("etcd://{}/{name}", self.address))
    }

    /// How often a test under load kills it. etcd takes seconds to come back, and is tested elsewhere.
    pub fn kills(&self) -> usize {
        if self.program.ends_with("onced") { 40 } else { 6 }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its folder, in which `data` is its own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What all its processes have said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Starts it, and waits for nothing.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = Command::new(&self.program);
        let log = OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"));
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.expect("a file for its log"));
        let started = command.spawn();
        self.child = Some(started.unwrap_or_else(|error| {
            panic!("{command:?}: {error} (etcd: scripts/tools etcd, or Debian's etcd-server)")
        }));
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signalled");
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let status =
            wait_for("the process to end", async || child.try_wait().expect("waited")).await;
        self.child = None;
        status
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!("--- {} said:\n{}", self.program.display(), self.log());
        }
    }
}

/// A client of the register at an address of etcd.
pub fn etcd_client(address: &str) -> EtcdClient {
    EtcdClient::new(address.parse().expect("an address of etcd"))
}

/// Waits until `authority` answers.
pub async fn answers(authority: &impl Authority) {
    wait_for("the authority to answer", async || authority.read().await.ok()).await;
}

/// Waits until `condition` gives a value.
pub async fn wait_for<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + READY;
    while Instant::now() < deadline {
        if let Some(value) = condition().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited {READY:?} for {what}");
}

/// The program `etcd`: in `PATH`, else where `scripts/tools` puts it.
fn etcd_program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("etcd"));
    let profile = Path::new(env!("CARGO_BIN_EXE_onced")).parent().expect("a folder");
    let fetched = profile.parent().expect("a target folder").join("tools/etcd");
    found.chain([fetched]).find(|program| program.is_file()).unwrap_or_else(|| "etcd".into())
}

/// A free loopback address below the ports of outgoing connections: it is free again after a kill.
pub fn free_address() -> String {
    for _ in 0..1_000 {
        let address = format!("127.0.0.1:{}", rand::rng().random_range(10_000..32_768));
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
    panic!("no free port");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have readable names")
}
