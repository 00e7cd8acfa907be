//! Shell completions and man pages, made from the definitions of the arguments.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::args;
use crate::output::{End, Printer};

/// In which manual the pages are, and as of which release.
const MANUAL: &str = "Onlyonce";
const SOURCE: &str = concat!("Onlyonce ", env!("CARGO_PKG_VERSION"));

/// Prints what completes commands and options in `shell`.
pub fn completions(shell: Shell, printer: &Printer) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "once", &mut script);
    let mut script = String::from_utf8(script).expect("a script is text");
    if shell == Shell::Bash {
        script = with_file_names(&script);
    }
    match io::stdout().write_all(script.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => printer.end(&End::Output(error)),
    }
}

/// Completes file names in bash, whose script knows of those behind options only: a command whose
/// argument is one offers its options where a '-' was typed, and leaves the rest to the shell.
fn with_file_names(script: &str) -> String {
    let mut script = script.to_owned();
    for command in args::command().get_subcommands() {
        let is_path = |hint| matches!(hint, ValueHint::FilePath | ValueHint::DirPath);
        if command.get_positionals().any(|argument| is_path(argument.get_value_hint())) {
            let case = format!("once__subcmd__{})\n", command.get_name());
            let rest = "            [[ ${cur} == -* || ${prev} == --* ]] || return 0\n";
            script = script.replace(&format!("        {case}"), &format!("        {case}{rest}"));
        }
    }
    script
}

/// Writes a man page for `once` and one for each of its commands into `folder`.
pub fn man(folder: &Path, printer: &Printer) -> ExitCode {
    let mut command = args::command().disable_help_subcommand(true);
    command.build();
    match write_pages(&command, &[], folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => printer.end(&End::Pages(folder.to_owned(), error)),
    }
}

/// Writes the page of a command, and those of the commands below it.
fn write_pages(command: &Command, above: &[&str], folder: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    fs::write(folder.join(format!("{name}.1")), page(command, above)?)?;
    let above = [above, &[name]].concat();
    command.get_subcommands().try_for_each(|below| write_pages(below, &above, folder))
}

fn page(command: &Command, above: &[&str]) -> io::Result<Vec<u8>> {
    let shown = command.clone().mut_args(|argument| match argument.get_id().as_str() {
        // A page would not tell that there may be several.
        "statements" => argument.value_name("STATEMENT..."),
        _ => argument,
    });
    // No date: a blank, as one that is empty would leave its place to the source.
    let man = Man::new(shown).date(" ").source(SOURCE).manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(help) = command.get_after_help() {
        notes(&help.to_string()).to_writer(&mut page)?;
    }
    if !above.is_empty() {
        let pages: Vec<_> = above.iter().map(|name| format!("{name}(1)")).collect();
        let mut also = Roff::new();
        also.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
        also.to_writer(&mut page)?;
    }
    Ok(page)
}

/// What is said after the options, in the sections of a man page. Indented lines stay as they are.
fn notes(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut section = "";
    for block in help.split("\n\n") {
        let (title, is_said) = match block.lines().next() {
            Some("Example:" | "Examples:") => ("EXAMPLES", true),
            Some("Exit codes:") => ("EXIT STATUS", true),
            Some(line) if line.starts_with("Environment,") => ("ENVIRONMENT", false),
            Some(_) | None => ("NOTES", false),
        };
        if title == section {
            roff.control("PP", []);
        } else {
            roff.control("SH", [title]);
            section = title;
        }
        let mut is_kept = false;
        for line in block.lines().skip(usize::from(is_said)) {
            if line.starts_with(' ') != is_kept {
                is_kept = !is_kept;
                roff.control(if is_kept { "nf" } else { "fi" }, []);
            }
            roff.text([roman(line)]);
        }
        if is_kept {
            roff.control("fi", []);
        }
    }
    roff
}
