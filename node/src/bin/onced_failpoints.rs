//! The program `onced` with failpoints: it can be told to kill itself at a named point. For tests.

use std::process::ExitCode;

/// As `onced`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    onlyonce_node::run()
}
