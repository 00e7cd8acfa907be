//! strace, attached to a running node: to see its system calls, or to make some of them fail.

use std::path::Path;
use std::process::Command;

use crate::cluster::BOUND;
use crate::process::Daemon;
use crate::wait::wait_for;

/// Attaches strace to all threads of a process, with more `arguments`, and waits until it watches.
/// It writes to `output`.
///
/// # Panics
/// When it cannot be attached.
#[track_caller]
#[must_use]
pub fn attach(pid: u32, arguments: &[&str], output: &Path) -> Daemon {
    let mut command = Command::new("strace");
    command.arg("-f").args(arguments).arg("-o").arg(output);
    command.arg("-p").arg(pid.to_string());
    let strace = Daemon::spawn("strace", command);
    wait_for("strace to be attached", BOUND, || {
        let said = strace.stderr();
        if said.contains("attached") { Ok(()) } else { Err(format!("it said {said:?}")) }
    });
    strace
}
