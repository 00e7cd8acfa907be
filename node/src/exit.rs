//! How the process ends: wrong usage, a stop that keeps a promise, a panic.
//!
//! A stop at run time is immediate. Destructors do not run: the log on disk is what a restart goes
//! by, and a thread that is stuck in a flush must not hold the exit up.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Why a process could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The command line, the environment or the config file is wrong.
    #[error("{0}")]
    Usage(String),
    /// It cannot start or go on, for a reason outside of its settings.
    #[error("{0}")]
    Runtime(String),
}

impl From<onlyonce_storage::OpenError> for ExitError {
    fn from(error: onlyonce_storage::OpenError) -> Self {
        Self::Runtime(error.to_string())
    }
}

impl ExitError {
    /// Reports the error on standard error, in one line.
    pub fn report(&self) -> ExitCode {
        eprintln!("onced: {self}");
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Runtime(_) => ExitCode::from(1),
        }
    }
}

/// Ends the process with exit code 1 because going on could break a promise.
pub fn stop(message: &str) -> ! {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("stopped: {message}");
    } else {
        eprintln!("onced: stopped: {message}");
    }
    // `exit` waits for whoever holds a lock of the C library; this does not.
    let _ = std::thread::Builder::new().name("exit".to_owned()).spawn(|| {
        std::thread::sleep(Duration::from_secs(2));
        std::process::abort();
    });
    std::process::exit(1)
}

/// The data folder that is being opened or read through, if one is.
static READING: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Does what reads all of the data folder `data`. The database panics over some damage that it has no
/// error for: if it does, the message names the folder.
pub fn reading<T>(data: &Path, read: impl FnOnce() -> T) -> T {
    let set = |path| *READING.lock().unwrap_or_else(PoisonError::into_inner) = path;
    set(Some(data.to_owned()));
    let result = read();
    set(None);
    result
}

/// From now on a panic on any thread is reported and aborts the process: a broken invariant must
/// not leave the other threads running on it.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!("panic, aborting: {info}");
        report(info);
        if let Ok(Some(data)) = READING.try_lock().as_deref() {
            eprintln!(
                "onced: panic while it read the data folder {}: if that happens again, its files are damaged: move it away and start the node on a new, empty one: it catches up from the others (a lone node has no other copy)",
                data.display()
            );
        }
        std::process::abort();
    }));
}
