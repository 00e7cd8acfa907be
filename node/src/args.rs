//! The command line. Flags only; [`crate::config`] lays them over environment, file and defaults.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{LogFormat, Settings};

// Help is wrapped where the terminal ends: a paragraph is one line here, and what must keep its lines
// has at most 80 columns.

const EXAMPLES: &str = "\
Examples:
  One node alone, crash-durable, no replica:
    onced serve --data ./n1 --name n1

  Two copies and an authority on one machine:
    onced authority --data ./authority
    onced serve --data ./n1 --name n1 --authority 127.0.0.1:7300 --bootstrap
    onced serve --data ./n2 --name n2 --authority 127.0.0.1:7300 \\
        --listen 127.0.0.1:7401 --peer 127.0.0.1:7501 --http 127.0.0.1:7601

  The same with the view in an etcd cluster, of which one member may be down:
    onced serve --data ./n1 --name n1 --bootstrap \\
        --authority etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379

  When the authority's data is lost (see onced admin force-view --help):
    onced admin force-view --authority 127.0.0.1:7300 --data ./n1 --data ./n2

  See what a node would run with:
    ONCED_LEASE_MS=300 onced serve --data ./n1 --name n1 --print-config

Exit codes: 0 after SIGTERM or SIGINT, 1 when it had to stop, 2 for wrong usage.";

const SERVE_AFTER: &str = "\
A setting comes from its flag, else from ONCED_<KEY> in the environment (ONCED_LISTEN, ...), else \
from the TOML file given with --config, else from its default. File and environment also know \
heartbeat_ms, lease_ms, grace_ms, append_timeout_ms, flush_timeout_ms, session_idle_ms, \
key_retention_ms, cache_bytes, checkpoint_bytes, checkpoint_interval_ms, scrub_pause_ms, \
log_tail_bytes, log_pin_bytes, advertise_client and advertise_peer.

ONCED_LOG filters the log (default: info).

Example:
  onced serve --data ./n1 --name n1 \\
      --listen 127.0.0.1:0 --peer 127.0.0.1:0 --http 127.0.0.1:0";

/// A replicated key/value store and RPC service in which every request takes effect exactly once.
#[derive(Debug, Parser)]
#[command(name = "onced", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node.
    Serve(Box<ServeArgs>),
    /// Run the small server that holds the view register of a cluster.
    Authority(AuthorityArgs),
    /// Read all of a stopped node's data folder and tell whether it is what was written.
    Scrub(ScrubArgs),
    /// Make a new store from a backup (see `once backup`).
    #[command(long_about = RESTORE_ABOUT, after_help = RESTORE_AFTER)]
    Restore(RestoreArgs),
    /// Mend what nothing mends by itself.
    #[command(subcommand)]
    Admin(AdminCommand),
}

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Make one store the only primary of its cluster again, when the authority's data is lost.
    #[command(long_about = FORCE_VIEW_ABOUT, after_help = FORCE_VIEW_AFTER)]
    ForceView(ForceViewArgs),
}

#[derive(Debug, Default, clap::Args)]
#[command(after_help = SERVE_AFTER)]
pub struct ServeArgs {
    /// The data folder; made if its parent exists.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The node's name: a label for people, not its identity.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where clients connect [default: 127.0.0.1:7400].
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where other nodes connect [default: 127.0.0.1:7500].
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: Option<String>,
    /// Status, metrics and health over HTTP [default: 127.0.0.1:7600].
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// The authority that holds the cluster's view. Without it: one node alone.
    #[arg(long, value_name = "HOST:PORT|etcd://HOST:PORT,...[/NAME]")]
    pub authority: Option<String>,
    /// Make a new cluster if the authority's register was never written.
    #[arg(long)]
    pub bootstrap: bool,
    /// Commit nothing while the view has fewer copies than this [default: 1].
    #[arg(long, value_name = "COPIES")]
    pub min_copies: Option<usize>,
    /// A TOML file with settings; its keys are the flags' names with underscores.
    #[arg(long, value_name = "FILE", env = "ONCED_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the effective settings as TOML and exit.
    #[arg(long)]
    pub print_config: bool,
    /// How log lines look on standard error [default: text].
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<LogFormat>,
    /// UNSAFE with "memory": forget at each start which requests were executed [default: durable].
    ///
    /// A request that is repeated after a restart then runs twice: see docs/semantics.md. Only for a
    /// node alone, and only with --unsafe-demo; no file and no variable can ask for it.
    #[arg(long, value_name = "durable|memory")]
    pub duplicates: Option<DuplicatesPlace>,
    /// I know that --duplicates memory makes requests run twice, and want to see it.
    #[arg(long)]
    pub unsafe_demo: bool,
}

/// Where the duplicate table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DuplicatesPlace {
    Durable,
    Memory,
}

impl ServeArgs {
    /// What the flags set.
    pub fn settings(&self) -> Settings {
        Settings {
            data: self.data.clone(),
            name: self.name.clone(),
            listen: self.listen.clone(),
            peer: self.peer.clone(),
            http: self.http.clone(),
            authority: self.authority.clone(),
            bootstrap: self.bootstrap.then_some(true),
            min_copies: self.min_copies,
            log_format: self.log_format,
            ..Settings::default()
        }
    }
}

const SCRUB_AFTER: &str = "\
The folder is opened as a start of the node would open it: what a crash cut short is finished first. \
Then every row of the tables is read, and compared with the digests that each checkpoint keeps.

Exit codes: 0 when all is what was written, 1 when it is not (the message says what to do), 2 for \
wrong usage.

Example:
  onced scrub --data ./n1";

#[derive(Debug, clap::Args)]
#[command(after_help = SCRUB_AFTER)]
pub struct ScrubArgs {
    /// The data folder.
    #[arg(long, value_name = "DIR", env = "ONCED_DATA")]
    pub data: PathBuf,
}

const RESTORE_ABOUT: &str = "\
Make a new store from a backup, in an empty or missing folder.

The whole file is checked before anything is written, and the store's rows against the digests of the \
cluster before it counts. It begins a new incarnation of the cluster's history: all sessions of before \
are expired then, and clients learn that requests of before cannot be told, rather than having them \
executed anew.

Start it as a lone node, or with --bootstrap and an authority that holds nothing as the first primary \
of a cluster, which nodes on empty folders join. No node may serve from the history before any more: \
clients could still be answered by it. See docs/operations.md, \"Backup and restore\".";

const RESTORE_AFTER: &str = "\
Exit codes: 0 when the store is made, 1 when it is not (the message says what to do), 2 for wrong usage.

Example:
  once backup ./monday.once
  onced restore --data ./n1 ./monday.once
  onced serve --data ./n1 --name n1";

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The data folder of the new store: empty, or missing (then its parent must exist).
    #[arg(long, value_name = "DIR", env = "ONCED_DATA")]
    pub data: PathBuf,
    /// The backup.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How log lines look on standard error.
    #[arg(long, value_name = "text|json", env = "ONCED_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

const FORCE_VIEW_ABOUT: &str = "\
Make one store the only primary of its cluster again, when the authority's data is lost.

It works on the data folders of stopped nodes. Without --fenced it changes nothing: it shows what \
each store holds, which one it would choose, and what may be lost. With --fenced it begins a new \
incarnation of the cluster's history, with that store alone: first in the register, then in the \
store. All sessions of before are expired then: clients learn that their outstanding requests are \
unresolved, and go on in new sessions by themselves.

--fenced is a promise: no node will ever run again on any other store of this cluster, given here \
or not. A node that still runs could answer clients from the old history.

The command may be repeated whenever it was cut short: it goes on from what the register holds. \
See docs/operations.md, \"The authority's data is lost\".";

const FORCE_VIEW_AFTER: &str = "\
Exit codes: 0 the view is forced (or was before), 1 refused or failed, and the last line says why, \
2 nothing was written: wrong usage, or --fenced is not given.

Example:
  onced authority --data ./new-authority --listen 127.0.0.1:7300
  onced admin force-view --authority 127.0.0.1:7300 --data ./n1 --data ./n2
  onced admin force-view --authority 127.0.0.1:7300 --data ./n1 --data ./n2 \\
      --fenced";

#[derive(Debug, clap::Args)]
pub struct ForceViewArgs {
    /// The authority, whose register is empty, or older than the stores: HOST:PORT, or
    /// etcd://HOST:PORT,...[/NAME].
    #[arg(long, value_name = "ADDRESS")]
    pub authority: String,
    /// The data folder of a stopped node; give those of all nodes of the cluster that are left.
    #[arg(long, value_name = "DIR", required = true)]
    pub data: Vec<PathBuf>,
    /// The node that goes on, by its name or store id [default: the one whose log goes furthest].
    #[arg(long, value_name = "NAME|STORE")]
    pub primary: Option<String>,
    /// Do it: every other store of this cluster is stopped for good.
    #[arg(long)]
    pub fenced: bool,
    /// How log lines look on standard error.
    #[arg(long, value_name = "text|json", env = "ONCED_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  onced authority --data ./authority --listen 127.0.0.1:7300")]
pub struct AuthorityArgs {
    /// The data folder; made if its parent exists.
    #[arg(long, value_name = "DIR", env = "ONCED_AUTHORITY_DATA")]
    pub data: PathBuf,
    /// Where nodes and clients connect.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "ONCED_AUTHORITY_LISTEN",
        default_value = "127.0.0.1:7300"
    )]
    pub listen: String,
    /// How log lines look on standard error.
    #[arg(long, value_name = "text|json", env = "ONCED_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Each setting of a node is a flag, or the help names it.
    #[test]
    fn settings_are_told() {
        let command = Args::command();
        let serve = command.find_subcommand("serve").expect("it is one");
        let is_flag = |key: &&&str| serve.get_arguments().any(|flag| flag.get_id() == **key);
        let words: Vec<_> = SERVE_AFTER.split([' ', ',', '.', '\n']).collect();
        for key in Settings::KEYS.iter().filter(|key| !is_flag(key)) {
            assert!(words.contains(key), "{key}");
        }
    }
}
