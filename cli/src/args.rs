//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{
    Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint,
};
use clap_complete::Shell;
use onlyonce_client::{
    ClusterId, Handle, IdempotencyKey, IdempotencyKeyError, Semantics, SessionId,
};

// Help is wrapped where the terminal ends: a paragraph is one line here, and what must keep its lines
// has at most 80 columns.

const EXAMPLES: &str = "\
Every command waits until it knows what became of its request, whatever happens to nodes and \
connections meanwhile; --deadline bounds that.

Examples:
  once put greeting hello
  once get greeting
  once incr visits
  date | once put now -
  once cas lock free mine
  once txn 'if balance = 10' 'incr balance -3' 'append journal \"-3;\"'
  once --key order-1234 incr balance -30
  once resume once1-06k7...
  once --nodes 10.0.0.1:7400,10.0.0.2:7400 status

Exit codes:
  0  done
  1  refused, not sent, or a negative result (no such key, not swapped, ...): it
     did not take effect
  2  usage
  3  not known. A write is unresolved: it may or may not have taken effect; do
     not send it again as a new request. Its handle is printed, and what can be
     done: mostly, 'once resume HANDLE' goes on with it, 'once outcome HANDLE'
     asks what became of it, 'once cancel HANDLE' sees to it that it never runs.
     With --semantics best-effort there is none: the request may have taken
     effect several times.
     A read or a question has no answer: ask again. Or the answer came, but
     could not be read or printed, which is then said

Environment, where the option is not given (empty means not set):
  ONCE_NODES      as --nodes
  ONCE_AUTHORITY  as --authority";

const VALUES: &str =
    "A value of '-' is read from standard input. Put '--' before an argument that begins with '-'.";

/// How much of a value that is refused is shown.
const SHOWN_CHARS_MAX: usize = 40;

/// The heading of the options that every command takes.
const GLOBAL: &str = "Global options";

const BACKUP: &str = "\
The backup is the state of one moment, with all that was acknowledged before the command began. It \
is written to FILE.partial, synced and renamed: what is called FILE is complete. Where FILE is a \
link, what it leads to is replaced. If the primary changes meanwhile it begins anew. Progress is told \
on standard error. With --deadline, no step may take longer.

Example:
  once backup ./monday.once
  onced restore --data ./restored ./monday.once";

const BENCH: &str = "\
It leaves what it writes in the store: keys 'bench-...' (put, mixed) and 'count-...' (incr). It \
deletes none of them, and overwrites what such keys held before.";

const COMPLETIONS: &str = "\
Examples:
  once completions bash > /etc/bash_completion.d/once
  once completions zsh > \"${fpath[1]}/_once\"
  once completions fish > ~/.config/fish/completions/once.fish";

const MAN: &str = "\
Examples:
  mkdir -p ./man1 && once man ./man1
  man -l ./man1/once-txn.1
  man -M . once-txn";

const OUTCOME: &str = "\
Prints one word, and what the request came to if it ran:
  done         it ran, once; exit 0
  cancelled    it never ran and never will; exit 1
  pending      it runs at this moment, which may still come to nothing; exit 3
  never-seen   nobody has seen it; it may still arrive, unless it is cancelled;
               exit 3
  forgotten    it will not run from now on; whether it did is not known any
               more; exit 3

With no answer, or one that refuses the question, it exits with 3 as well.

Examples:
  once outcome once1-06k7...
  once outcome --key order-1234";

const CANCEL: &str = "\
Prints one word, and what the request came to if it ran:
  cancelled    it never ran, and every copy of it, however late, is refused;
               exit 0
  done         too late, it had run; exit 1
  forgotten    nothing will run, but whether it did is not known any more;
               exit 3

With no answer, it exits with 3 as well: whether it is cancelled is not known, cancel it again.

Examples:
  once cancel once1-06k7...
  once cancel --key order-1234";

const RESUME: &str = "\
Sends the same bytes under the same id until the fate of the request is known, and prints what the \
command would have printed. It takes effect once, whoever else is at it. A handle does not carry a \
content of more than 256 bytes: such a command is given again, with its arguments and the --key that \
this prints.

Examples:
  once resume once1-06k7...
  once resume once1-06k7... --deadline 10s";

const SESSION: &str = "\
Examples:
  once session list
  once session show 0123456789abcdef0123456789abcdef
  once session close 0123456789abcdef0123456789abcdef";

/// A key/value store in which every request takes effect exactly once.
#[derive(Parser, Debug)]
#[command(name = "once", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    /// Addresses of nodes; any of them leads to the primary
    #[arg(
        long,
        help = "Addresses of nodes; any of them leads to the primary [env: ONCE_NODES] [default: 127.0.0.1:7400]",
        global = true,
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        help_heading = GLOBAL
    )]
    pub nodes: Vec<String>,

    /// The address of the cluster's authority, which knows the nodes (then --nodes is not needed)
    #[arg(
        long,
        help = "The address of the cluster's authority, which knows the nodes (then --nodes is not needed) [env: ONCE_AUTHORITY]",
        global = true,
        value_name = "HOST:PORT",
        help_heading = GLOBAL
    )]
    pub authority: Option<String>,

    /// The cluster that is meant: nodes of any other are refused
    #[arg(long, global = true, value_name = "ID", help_heading = GLOBAL)]
    pub cluster: Option<ClusterId>,

    /// How long to try, as in 500ms, 5s, 2m [default: until it is known]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, help_heading = GLOBAL)]
    pub deadline: Option<Duration>,

    /// What to do about a reply that does not come: see docs/semantics.md
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "LEVEL",
        default_value_t = SemanticsLevel::ExactlyOnce,
        help_heading = GLOBAL
    )]
    pub semantics: SemanticsLevel,

    /// Print JSON, errors as well. Keys and values that are UTF-8 are strings, others {"base64": "..."}
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,

    /// Put a write under this idempotency key: repeated under it, also by another process, it takes
    /// effect once. Of outcome and cancel, the request that is meant
    #[arg(
        long = "key",
        help = "The idempotency key of the request: a write repeated under it, by whomever, takes effect once",
        global = true,
        value_name = "KEY",
        value_parser = idempotency_key,
        help_heading = GLOBAL
    )]
    pub idempotency_key: Option<IdempotencyKey>,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The ladder of semantics.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SemanticsLevel {
    /// No id: sent again a few times, and takes effect as often as a copy arrives
    BestEffort,
    /// Under an id, sent once: unresolved when no reply comes
    AtMostOnce,
    /// Under an id, sent until there is a reply
    ExactlyOnce,
}

impl From<SemanticsLevel> for Semantics {
    fn from(level: SemanticsLevel) -> Self {
        match level {
            SemanticsLevel::BestEffort => Self::BestEffort,
            SemanticsLevel::AtMostOnce => Self::AtMostOnce,
            SemanticsLevel::ExactlyOnce => Self::ExactlyOnce,
        }
    }
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print a key's value, bare (a newline follows only on a terminal); exit 1 if it is absent
    Get {
        /// The key
        key: OsString,
    },
    /// Set a key
    #[command(after_help = VALUES)]
    Put {
        /// The key
        key: OsString,
        /// The value, or '-'
        value: OsString,
    },
    /// Add to the end of a key's value; print the new length in bytes
    #[command(after_help = VALUES)]
    Append {
        /// The key
        key: OsString,
        /// What is added, or '-'
        value: OsString,
    },
    /// Add to a key's value, a decimal integer (absent: 0); print the new value
    Incr {
        /// The key
        key: OsString,
        /// How much
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
    },
    /// Remove a key; print whether it existed (true or false)
    Delete {
        /// The key
        key: OsString,
    },
    /// Set a key if it holds the expected value; otherwise print what it holds and exit 1
    #[command(after_help = VALUES)]
    Cas {
        /// The key
        key: OsString,
        /// What it must hold, or '-'
        expected: OsString,
        /// What it will hold, or '-'
        value: OsString,
    },
    /// Set a key if it is absent; otherwise print what it holds and exit 1
    #[command(after_help = VALUES)]
    PutIfAbsent {
        /// The key
        key: OsString,
        /// The value, or '-'
        value: OsString,
    },
    /// Print rows in key order, a line each: `KEY<TAB>VALUE`
    ///
    /// Tabs, newlines, backslashes and bytes that are not UTF-8 are printed as \t, \n, \\ and \xNN.
    /// A long scan is read page by page, and each page is linearizable by itself.
    Scan {
        /// The first key, included [default: the first of all]
        start: Option<OsString>,
        /// The end, excluded [default: after the last of all]
        end: Option<OsString>,
        /// Only keys that begin with this
        #[arg(long, value_name = "KEY", conflicts_with_all = ["start", "end"])]
        prefix: Option<OsString>,
        /// The most rows to print
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Compare, then write, all or nothing, on any keys
    #[command(after_help = crate::txn::HELP)]
    Txn {
        /// The statements
        #[arg(required = true, value_name = "STATEMENT")]
        statements: Vec<String>,
    },
    /// Ask what became of a request, by its handle or its --key; changes nothing
    #[command(after_help = OUTCOME)]
    Outcome {
        /// The handle that was printed
        handle: Option<Handle>,
    },
    /// See to it that a request never runs, unless it did; by its handle or its --key
    #[command(after_help = CANCEL)]
    Cancel {
        /// The handle that was printed
        handle: Option<Handle>,
    },
    /// Go on with a request that was left unresolved
    #[command(after_help = RESUME)]
    Resume {
        /// The handle that was printed
        handle: Handle,
    },
    /// List, show or close the sessions of clients
    #[command(subcommand, after_help = SESSION)]
    Session(SessionCommand),
    /// Write all of the cluster into a file, while it runs; `onced restore` makes a store of it
    #[command(after_help = BACKUP)]
    Backup {
        /// The file, replaced once the backup is complete; '-' is standard output
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Ask every node what it is; exit 1 if none answers
    Status,
    /// Print what completes commands and options in a shell
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write man pages, one for each command, into a folder
    #[command(after_help = MAN)]
    Man {
        /// The folder; it must exist
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Load the cluster and measure throughput and latency; the keys stay in the store
    #[command(after_help = BENCH)]
    Bench(Bench),
}

/// What can be done about sessions.
#[derive(Subcommand, Debug)]
pub enum SessionCommand {
    /// Print a line for each open session, in the order of their ids
    List,
    /// Print one session and its saved replies; exit 1 if it is not open
    Show {
        /// Its id, of 32 hexadecimal digits
        id: SessionId,
    },
    /// Close a session and forget its replies; exit 1 if it is not open
    ///
    /// Nothing of it runs any more. A request of its client that got no reply yet is left unresolved if
    /// a copy of it may have run; if none can have, the client sends it in a new session.
    Close {
        /// Its id, of 32 hexadecimal digits
        id: SessionId,
    },
}

/// What `bench` does.
#[derive(ClapArgs, Debug, Clone)]
pub struct Bench {
    /// Clients, each a closed loop
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Connections (and sessions) that the clients share
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub connections: u32,
    /// Requests that each client has under way at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub outstanding: u32,
    /// How long to measure
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// What to do: mixed is half put, half get; fill puts each key once, in order, and then ends
    #[arg(long, value_enum, default_value_t = BenchOperation::Put)]
    pub op: BenchOperation,
    /// The length of a value, in bytes
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub value_size: u32,
    /// How many keys (of 16 bytes) to choose from, uniformly
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Measure what exactly once costs: the same load under an id in a session, under a one-shot key,
    /// and under none (best effort), in turn, and print the ratios
    #[arg(long)]
    pub compare: bool,
    /// With --compare: how many times each is measured
    #[arg(long, default_value_t = 3, value_name = "N", requires = "compare", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
}

/// The operations of `bench`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchOperation {
    /// Set a key.
    Put,
    /// Increment a key.
    Incr,
    /// Set every key once.
    Fill,
    /// Read a key.
    Get,
    /// Half put, half get.
    Mixed,
}

/// The commands that are about a request which a key can name.
const KEYED: [&str; 9] =
    ["put", "append", "incr", "delete", "cas", "put-if-absent", "txn", "outcome", "cancel"];

/// Reads the command line.
pub fn parse() -> Result<Args, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let args = Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    let takes_key = matches.subcommand_name().is_some_and(|name| KEYED.contains(&name));
    if args.idempotency_key.is_some() && !takes_key {
        let problem = "--key is for writes, outcome and cancel";
        return Err(command.error(ErrorKind::ArgumentConflict, problem));
    }
    Ok(args)
}

/// Whether the command line asks for JSON, though it could not be read.
pub fn asks_for_json() -> bool {
    std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// What is wrong with the command line, without the usage that is shown to people.
pub fn problem(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is needed".to_owned();
    }
    let text = error.to_string();
    let problem = text.split("\n\n").next().unwrap_or_default();
    problem.trim_start_matches("error: ").to_owned()
}

/// All that can be typed, as it is shown: `--key` only where it means something.
pub fn command() -> clap::Command {
    let command = Args::command();
    let key = command.get_arguments().find(|argument| argument.get_long() == Some("key"));
    let hidden = key.expect("it is defined").clone().hide(true);
    command.mut_subcommands(|command| {
        if KEYED.contains(&command.get_name()) { command } else { command.arg(&hidden) }
    })
}

/// A refusal that names a long value by its beginning and its length, and does not repeat all of it.
pub fn abridged(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some((end, _)) = value.char_indices().nth(SHOWN_CHARS_MAX)
    {
        let shown = format!("{}... ({} bytes)", &value[..end], value.len());
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
    }
    error
}

fn idempotency_key(text: &str) -> Result<IdempotencyKey, IdempotencyKeyError> {
    text.try_into()
}

/// Reads a time such as `500ms`, `5s`, `1.5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err("a number and ms, s, m or h are needed, as in 500ms or 5s".to_owned()),
    };
    let number: f64 = text[..text.len() - unit.len()]
        .parse()
        .map_err(|_| format!("{:?} is not a number", &text[..text.len() - unit.len()]))?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("it must be more than nothing, and less than for ever".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clap finds nothing wrong with the definitions.
    #[test]
    fn arguments_are_well_formed() {
        command().debug_assert();
    }

    /// Each command that takes a key is one.
    #[test]
    fn keyed_commands_exist() {
        let command = command();
        let exists = |name: &&str| command.find_subcommand(name).is_some();
        assert!(KEYED.iter().all(exists), "{KEYED:?}");
    }

    /// Times are read exactly, or refused.
    #[test]
    fn times_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "s", "0s", "-1s", "5 s", "1e9s", "1..5s"] {
            assert!(duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    /// Global flags may stand anywhere; negative increments need no escape.
    #[test]
    fn flags_stand_anywhere() {
        let args = Args::try_parse_from(["once", "incr", "k", "-5", "--json"]).expect("fine");
        assert!(args.json && matches!(args.command, Command::Incr { by: -5, .. }), "{args:?}");
        let args = Args::try_parse_from(["once", "--nodes", "a:1,b:2", "get", "k"]).expect("fine");
        assert_eq!(args.nodes, ["a:1", "b:2"]);
        let unknown = Args::try_parse_from(["once", "get", "k", "--foo"]).expect_err("unknown");
        assert_eq!(unknown.exit_code(), 2);
    }
}
