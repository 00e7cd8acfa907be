//! Shell completions and man pages, made from the definitions of the arguments.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::output::{End, Printer};

/// Prints what completes commands and options in `shell`.
pub fn completions(shell: Shell, printer: &Printer) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "once", &mut script);
    match io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => printer.end(&End::Output(error)),
    }
}

/// Writes a man page for `once` and one for each of its commands into `folder`.
pub fn man(folder: &Path, printer: &Printer) -> ExitCode {
    match clap_mangen::generate_to(Args::command(), folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => printer.end(&End::Usage(format!("{}: {error}", folder.display()))),
    }
}
