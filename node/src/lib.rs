//! The Onlyonce server: sockets, threads, clock, authority and HTTP around the deterministic core.
//!
//! [`run`] is the program `onced`. `serve.rs` puts a node together and shows its threads;
//! `core_thread.rs` owns the core; `clients.rs` and `peers.rs` are the sockets; `log_thread.rs` and
//! `checkpoint_thread.rs` write the store; [`authority`] holds the view register, both sides of it;
//! `force_view/` is the tool for when that is lost, `restore.rs` the one for when all stores are.

mod args;
pub mod authority;
mod checkpoint_thread;
mod clients;
mod clock;
mod config;
mod core_thread;
mod counters;
mod exit;
mod failpoints;
mod faults;
mod force_view;
mod frames;
mod http;
mod listeners;
mod log_thread;
mod logging;
mod peers;
mod rate_limit;
mod restore;
mod scrub;
mod serve;
mod warm;
mod watchdog;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{
    AdminCommand, Args, AuthorityArgs, Command, ForceViewArgs, RestoreArgs, ScrubArgs, ServeArgs,
};
use crate::authority::client::EmbeddedClient;
use crate::authority::etcd::EtcdClient;
use crate::config::{AuthorityAddress, LogFormat, ServeConfig, Settings};
use crate::exit::ExitError;

/// Runs `onced` with the arguments and the environment of this process.
#[must_use]
pub fn run() -> ExitCode {
    exit::abort_on_panic();
    #[cfg(feature = "failpoints")]
    if let Err(error) = onlyonce_storage::failpoints::arm_from_environment() {
        return ExitError::Usage(format!("FAILPOINTS: {error}")).report();
    }
    let ended = match Args::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Authority(args) => authority(&args),
        Command::Scrub(args) => scrub(&args),
        Command::Restore(args) => restore(&args),
        Command::Admin(AdminCommand::ForceView(args)) => force_view(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn serve(args: &ServeArgs) -> Result<(), ExitError> {
    let settings = Settings::effective(args, |name| std::env::var(name).ok())?;
    let log_format = settings.log_format.unwrap_or_default();
    let printed = args.print_config.then(|| settings.clone());
    let config = ServeConfig::check(settings)?.demonstrating(args)?;
    if let Some(settings) = printed {
        let text = toml::to_string(&settings).expect("settings are plain data");
        serve::say(text.trim_end());
        return Ok(());
    }
    logging::start(log_format)?;
    warn_of_unknown_variables();
    serve::run(&config)
}

fn authority(args: &AuthorityArgs) -> Result<(), ExitError> {
    config::check_address("--listen", &args.listen)?;
    logging::start(args.log_format)?;
    warn_of_unknown_variables();
    authority::server::run(&args.data, &args.listen)
}

fn scrub(args: &ScrubArgs) -> Result<(), ExitError> {
    logging::start(LogFormat::Text)?;
    scrub::run(&args.data)
}

fn restore(args: &RestoreArgs) -> Result<(), ExitError> {
    logging::start(args.log_format)?;
    restore::run(&args.data, &args.file)
}

fn force_view(args: &ForceViewArgs) -> Result<(), ExitError> {
    let authority = config::authority_address(&args.authority)?;
    logging::start(args.log_format)?;
    match authority {
        AuthorityAddress::Embedded(address) => force_view::run(args, &EmbeddedClient::new(address)),
        AuthorityAddress::Etcd(address) => force_view::run(args, &EtcdClient::new(address)),
    }
}

/// A variable with a typing error would silently leave its setting at the default.
fn warn_of_unknown_variables() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = config::unknown_variables(names);
    if !unknown.is_empty() {
        tracing::warn!("environment: nothing reads {}", unknown.join(", "));
    }
}
