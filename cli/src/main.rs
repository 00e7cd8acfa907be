//! `once`: the command line of Onlyonce.
//!
//! `args` is what can be typed, `run` does it, `output` prints it (bare or as JSON); `writes` turns
//! commands into operations and prints what they came to, `requests` is about requests and sessions
//! of before, `advice` about what to do when the fate of one is not known, `txn` the little language
//! of transactions, `backup` makes backups, `bench` the load generator, `compare` what exactly once
//! costs, `pages` what is generated from the definitions of `args`.
//!
//! Exit codes: 0 done, 1 refused or a negative result, 2 usage, 3 not known.

mod advice;
mod args;
mod backup;
mod bench;
mod compare;
mod output;
mod pages;
mod requests;
mod run;
mod status;
mod txn;
mod writes;

use std::process::ExitCode;

use crate::args::Command;
use crate::output::Printer;

fn main() -> ExitCode {
    let args = args::parse().unwrap_or_else(|error| misused(error));
    let printer = Printer::new(args.json);
    match &args.command {
        Command::Completions { shell } => return pages::completions(*shell, &printer),
        Command::Man { folder } => return pages::man(folder, &printer),
        _ => {}
    }
    let mut runtime = match &args.command {
        Command::Bench(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("once: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(run::run(args, &printer)).unwrap_or_else(|end| printer.end(&end));
    // Nothing that is left to do (a name lookup, say) is waited for.
    runtime.shutdown_background();
    exit
}

/// Says what is wrong with the command line; or prints the help or the version, if it asks for that.
fn misused(error: clap::Error) -> ! {
    let error = args::abridged(error);
    if error.use_stderr() {
        Printer::new(args::asks_for_json()).usage_line(&args::problem(&error));
    }
    error.exit()
}
