//! Log lines: to standard error, filtered by `ONCED_LOG`, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::exit::ExitError;

/// From now on log lines are written.
pub fn start(format: LogFormat) -> Result<(), ExitError> {
    let filter = std::env::var("ONCED_LOG").unwrap_or_default();
    let filter = if filter.is_empty() { "info" } else { &filter };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        ExitError::Usage(format!("environment variable ONCED_LOG={filter:?}: {error}"))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
