//! A child process that is owned: nothing of it outlives its [`Daemon`].

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{binaries, wait};

/// How long a program may take to be ready, on a machine that is busy with other tests.
pub const READY_BOUND: Duration = Duration::from_secs(60);

/// A running `onced`, or one that ran. Dropped, it is killed and reaped; when the test is failing,
/// what it said on standard error is shown.
pub struct Daemon {
    name: String,
    child: Child,
    output: Arc<Mutex<Output>>,
    readers: Vec<JoinHandle<()>>,
    paused: bool,
}

#[derive(Default)]
struct Output {
    ready: Option<HashMap<String, String>>,
    stderr: String,
}

/// How a process ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code, or signal.
    pub status: ExitStatus,
    /// All that it said on standard error.
    pub stderr: String,
}

impl Daemon {
    /// Starts `command`, called `name` in reports.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let output = Arc::new(Mutex::new(Output::default()));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let seen = Arc::clone(&output);
        let mut readers = Vec::new();
        readers.push(std::thread::spawn(move || {
            for line in BufReader::new(stdout.expect("piped")).lines().map_while(Result::ok) {
                if let Some(words) = line.strip_prefix("ready ") {
                    let pairs = words.split(' ').filter_map(|word| word.split_once('='));
                    let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
                    lock(&seen).ready = Some(pairs.collect());
                }
            }
        }));
        let seen = Arc::clone(&output);
        readers.push(std::thread::spawn(move || {
            for line in BufReader::new(stderr.expect("piped")).lines().map_while(Result::ok) {
                let mut seen = lock(&seen);
                seen.stderr.push_str(&line);
                seen.stderr.push('\n');
            }
        }));
        Self { name: name.to_owned(), child, output, readers, paused: false }
    }

    /// `onced`, or a `program` like it, with `arguments`.
    #[must_use]
    pub fn onced(
        program: &Path,
        name: &str,
        arguments: &[String],
        environment: &[(String, String)],
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).env("ONCED_FAULTS", "1");
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        Self::spawn(name, command)
    }

    /// Waits until it says that it is ready, or ends.
    ///
    /// # Errors
    /// How it ended, when it did.
    ///
    /// # Panics
    /// When it does neither for [`READY_BOUND`].
    pub fn ready(&mut self) -> Result<(), Exit> {
        let name = self.name.clone();
        wait::wait_for(&format!("{name} to be ready or to end"), READY_BOUND, || {
            if lock(&self.output).ready.is_some() {
                return Ok(Ok(()));
            }
            match self.try_exit() {
                Some(exit) => Ok(Err(exit)),
                None => Err("neither".to_owned()),
            }
        })
    }

    /// The value of `key` in its ready line.
    #[must_use]
    pub fn announced(&self, key: &str) -> Option<String> {
        lock(&self.output).ready.as_ref().and_then(|ready| ready.get(key).cloned())
    }

    /// The address that its ready line announces as `key`.
    ///
    /// # Panics
    /// When it announced none.
    #[must_use]
    pub fn address(&self, key: &str) -> SocketAddr {
        let address = self.announced(key).unwrap_or_else(|| panic!("{}: no {key}", self.name));
        address.parse().unwrap_or_else(|_| panic!("{}: {key}={address}", self.name))
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When the system cannot tell.
    pub fn try_exit(&mut self) -> Option<Exit> {
        let status = self.child.try_wait().expect("a child can be asked for")?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Some(Exit { status, stderr: self.stderr() })
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// When it does not within `bound`.
    pub fn exit(&mut self, bound: Duration) -> Exit {
        let name = self.name.clone();
        wait::wait_for(&format!("{name} to end"), bound, || {
            self.try_exit().ok_or_else(|| "it runs".to_owned())
        })
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    /// SIGTERM, and waits until it has ended.
    ///
    /// # Panics
    /// When it does not within `bound`.
    pub fn terminate(&mut self, bound: Duration) -> Exit {
        self.signal(Signal::TERM);
        self.exit(bound)
    }

    /// SIGSTOP, and waits until every thread stands still: on a busy machine some go on for a while.
    ///
    /// # Panics
    /// When they do not.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        self.paused = true;
        let name = &self.name;
        wait::wait_for(&format!("{name} to stand still"), READY_BOUND, || self.stands_still());
    }

    /// Whether every thread is stopped.
    fn stands_still(&self) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let threads = format!("/proc/{}/task", self.pid());
        for thread in std::fs::read_dir(threads).map_err(failed)? {
            let path = thread.map_err(failed)?.path().join("stat");
            let stat = std::fs::read_to_string(path).map_err(failed)?;
            // Its state follows its name, which stands in parentheses and may hold any.
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if !matches!(state, Some('T' | 't')) {
                return Err(stat);
            }
        }
        Ok(())
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
        self.paused = false;
    }

    /// Whether it is stopped by SIGSTOP.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, so the pid is still this child's.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The memory that it has in use, in bytes.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a process that runs has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("it names its memory") << 10
    }

    /// What it has said on standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        lock(&self.output).stderr.clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let stderr = self.stderr();
            let lines: Vec<_> = stderr.lines().collect();
            let shown = lines[lines.len().saturating_sub(60)..].join("\n  ");
            let state = ended.map_or("ran".to_owned(), |status| format!("had ended: {status}"));
            println!("--- {} (pid {}, {state}) said:\n  {shown}", self.name, self.child.id());
        }
    }
}

fn lock(output: &Mutex<Output>) -> std::sync::MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command line, which is to ask these nodes.
#[must_use]
pub fn once(nodes: &[String], arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries::once());
    command.args(["--nodes", &nodes.join(",")]).args(arguments);
    command
}

/// What a command that ran to its end said.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started, or runs for longer than `bound` (it is killed then).
#[track_caller]
#[must_use]
pub fn run(mut command: Command, bound: Duration) -> Ran {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let file = |name: &str| std::fs::File::create(path(name)).expect("a temporary file");
    command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let ended = wait::poll(bound, || match child.try_wait().expect("a child can be asked for") {
        Some(status) => Ok(status),
        None => Err("it runs".to_owned()),
    });
    let text = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(path(name)).unwrap_or_default()).into_owned()
    };
    let Ok(status) = ended else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{command:?} ran for over {bound:?}:\n{}{}", text("stdout"), text("stderr"));
    };
    Ran { code: status.code(), stdout: text("stdout"), stderr: text("stderr") }
}
