//! Finds the programs under test, beside the program that runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The crates whose sources the programs are made of.
const CRATES: [&str; 6] = ["wire", "storage", "replica", "node", "client", "cli"];

/// The server.
#[must_use]
pub fn onced() -> PathBuf {
    folder().join("onced")
}

/// The command line.
#[must_use]
pub fn once() -> PathBuf {
    folder().join("once")
}

/// The server that can be killed at named points, built when it is missing or old.
///
/// # Panics
/// When cargo cannot build it.
#[must_use]
pub fn onced_failpoints() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let program = folder().join("onced-failpoints");
        if std::env::var_os("ONCE_BIN_DIR").is_none() && !is_fresh(&program) {
            let only = ["--package", "onlyonce-node", "--features", "failpoints", "--bin"];
            build(folder(), &[&only[..], &["onced-failpoints"]].concat());
        }
        program
    };
    PROGRAM.get_or_init(find).clone()
}

/// The load and the mischief of `scripts/demo`.
#[must_use]
pub fn once_demo() -> PathBuf {
    folder().join("once-demo")
}

/// A client with an outbox, to be killed.
#[must_use]
pub fn once_outbox_client() -> PathBuf {
    folder().join("once-outbox-client")
}

/// The server of etcd: in `PATH`, else where `scripts/tools` puts it.
///
/// # Panics
/// When it is in neither.
#[must_use]
pub fn etcd() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("etcd"));
    let own = own_folder();
    let fetched = own.parent().expect("a profile's folder is in another").join("tools/etcd");
    found
        .chain([fetched])
        .find(|program| program.is_file())
        .expect("etcd is missing: run scripts/tools etcd, or install Debian's etcd-server")
}

/// The folder of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a crate of the workspace")
}

/// The folder that holds the programs: `ONCE_BIN_DIR`, else that of this build. What is missing
/// there, or older than its sources, is built first, once a process.
///
/// # Panics
/// When cargo cannot build them.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("ONCE_BIN_DIR") {
            return PathBuf::from(folder);
        }
        let folder = own_folder();
        if !is_fresh(&folder.join("onced")) || !is_fresh(&folder.join("once")) {
            build(&folder, &["--bins"]);
        }
        folder
    })
}

/// `target/debug` or its like: tests run in its `deps`.
fn own_folder() -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its path");
    let folder = own.parent().expect("a program is in a folder");
    if folder.ends_with("deps") { folder.parent().expect("deps is in a folder") } else { folder }
        .to_owned()
}

fn is_fresh(program: &Path) -> bool {
    let Ok(built) = program.metadata().and_then(|metadata| metadata.modified()) else {
        return false;
    };
    CRATES.iter().all(|name| newest(&workspace().join(name)).is_none_or(|source| source <= built))
}

/// When the newest source below `folder` was changed.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("tests") {
                newest(&path)
            } else if path.extension().is_some_and(|end| end == "rs" || end == "toml") {
                entry.metadata().and_then(|metadata| metadata.modified()).ok()
            } else {
                None
            }
        })
        .max()
}

fn build(folder: &Path, what: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args(["build", "--locked", "--quiet"]).args(what);
    command.arg("--target-dir").arg(folder.parent().expect("a profile's folder is in another"));
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("cargo runs");
    assert!(status.success(), "cannot build the programs: {command:?} ended with {status}");
}
