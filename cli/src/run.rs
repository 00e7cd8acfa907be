//! Carries out one command.

use std::env::VarError;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_client::{Client, ClientBuilder, IdempotencyKey, limits};
use serde_json::{Value, json};

use crate::args::{Args, Command, SemanticsLevel};
use crate::output::{End, Printer, escape, json_bytes, print_value};
use crate::{backup, bench, compare, requests, status, writes};

/// Whom to ask when nobody is named.
const DEFAULT_NODE: &str = "127.0.0.1:7400";
/// What to say of it when it does not answer.
const DEFAULT_HINT: &str = " (the default; --nodes or ONCE_NODES names others)";

/// Names nodes where `--nodes` does not.
const NODES_VARIABLE: &str = "ONCE_NODES";
/// Names the authority where `--authority` does not.
const AUTHORITY_VARIABLE: &str = "ONCE_AUTHORITY";

const KEY_WITHOUT_IDS: &str = "--key is an id of the request, and --semantics best-effort sends \
                               requests without an id: leave one of the two out";

/// How long to wait before saying what is waited for.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Carries out what was asked.
pub async fn run(args: Args, printer: &Printer) -> Result<ExitCode, End> {
    let builder = builder(&args)?;
    let is_question = matches!(args.command, Command::Outcome { .. } | Command::Cancel { .. });
    if args.idempotency_key.is_some()
        && args.semantics == SemanticsLevel::BestEffort
        && !is_question
    {
        return Err(End::Usage(KEY_WITHOUT_IDS.to_owned()));
    }
    match args.command {
        Command::Status => return status::status(builder, printer).await,
        Command::Bench(options) if options.compare => {
            return compare::compare(&builder, &options, printer).await;
        }
        Command::Bench(options) => return bench::bench(builder, &options, printer).await,
        Command::Backup { file } => {
            backup::backup(builder.one_shot(), args.deadline, &file, printer).await?;
        }
        command => {
            let client = builder.one_shot().build()?;
            patiently(&client, single(&client, args.idempotency_key, command, printer)).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for `call`; when that takes long, says once what is the matter.
pub async fn patiently<T>(
    client: &Client,
    call: impl Future<Output = Result<T, End>>,
) -> Result<T, End> {
    tokio::pin!(call);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut call).await {
        return done;
    }
    let diagnosis = async {
        let mut nodes = Vec::new();
        for address in client.nodes().await.unwrap_or_default() {
            let state = match client.status(&address).await {
                Ok(status) if status.serving => format!("{}, serving", status.role.as_str()),
                Ok(status) => format!("{}, not serving", status.role.as_str()),
                Err(error) => status::reason(&error),
            };
            nodes.push((address, state));
        }
        nodes
    };
    tokio::select! {
        done = &mut call => return done,
        nodes = diagnosis => {
            tell_waiting(nodes.iter().map(|(address, state)| (&**address, state.clone())));
        }
    }
    call.await
}

/// Says that it takes long, and what each node, by its address, has to do with it.
pub fn tell_waiting<'a>(nodes: impl Iterator<Item = (&'a str, String)>) {
    let line = |(address, state): (&str, String)| {
        let hint = if address == DEFAULT_NODE { DEFAULT_HINT } else { "" };
        format!("\n  {address}: {state}{hint}")
    };
    let lines: String = nodes.map(line).collect();
    eprintln!("once: no answer yet, trying on (--deadline bounds that){lines}");
}

fn builder(args: &Args) -> Result<ClientBuilder, End> {
    let nodes = match &args.nodes[..] {
        [] => variable(NODES_VARIABLE)?.map(|list| (NODES_VARIABLE, split(&list))),
        nodes => Some(("--nodes", nodes.to_vec())),
    };
    let authority = match &args.authority {
        None => variable(AUTHORITY_VARIABLE)?.map(|address| (AUTHORITY_VARIABLE, address)),
        Some(address) => Some(("--authority", address.clone())),
    };
    let mut builder = Client::builder().deadline(args.deadline).semantics(args.semantics.into());
    if nodes.is_none() && authority.is_none() {
        builder = builder.nodes([DEFAULT_NODE]);
    }
    if let Some((from, addresses)) = nodes {
        check(from, Client::builder().nodes(&addresses))?;
        builder = builder.nodes(addresses);
    }
    if let Some((from, address)) = authority {
        check(from, Client::builder().authority(&address))?;
        builder = builder.authority(address);
    }
    Ok(match args.cluster {
        Some(cluster) => builder.cluster(cluster),
        None => builder,
    })
}

/// The value of an environment variable; an empty one counts as not set.
fn variable(name: &str) -> Result<Option<String>, End> {
    match std::env::var(name) {
        Ok(value) if value.trim().is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(End::Usage(format!("{name}: it is not UTF-8"))),
    }
}

fn split(list: &str) -> Vec<String> {
    list.split(',').map(|address| address.trim().to_owned()).collect()
}

/// Refuses addresses that are none, and says where they are `from`.
fn check(from: &str, builder: ClientBuilder) -> Result<(), End> {
    builder.build().map(drop).map_err(|error| End::Usage(format!("{from}: {error}")))
}

async fn single(
    client: &Client,
    key: Option<IdempotencyKey>,
    command: Command,
    printer: &Printer,
) -> Result<(), End> {
    match command {
        Command::Get { key } => get(client, bytes(key), printer).await,
        Command::Scan { start, end, prefix, limit } => {
            let (start, end) = match prefix.map(bytes) {
                Some(prefix) => (prefix.clone(), after_prefix(&prefix)),
                None => (start.map(bytes).unwrap_or_default(), end.map(bytes)),
            };
            scan(client, start, end, limit, printer).await
        }
        Command::Outcome { handle } => {
            requests::outcome(client, handle.as_ref(), key, printer).await
        }
        Command::Cancel { handle } => requests::cancel(client, handle.as_ref(), key, printer).await,
        Command::Resume { handle } => requests::resume(client, &handle, printer).await,
        Command::Session(command) => requests::session(client, command, printer).await,
        write => writes::write(client, key, writes::operation(write)?, printer).await,
    }
}

pub fn bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

async fn get(client: &Client, key: Bytes, printer: &Printer) -> Result<(), End> {
    let value = client.get(key).await?;
    if printer.json {
        let json = value.as_ref().map_or(Value::Null, |value| json_bytes(value));
        printer.line("", &json!({ "exists": value.is_some(), "value": json }))?;
    } else if let Some(value) = &value {
        print_value(value)?;
    }
    if value.is_none() {
        eprintln!("once: no such key");
        return Err(End::Negative);
    }
    Ok(())
}

/// The first key that does not begin with `prefix` any more; none where there is no such key.
fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

async fn scan(
    client: &Client,
    mut start: Bytes,
    end: Option<Bytes>,
    limit: Option<u64>,
    printer: &Printer,
) -> Result<(), End> {
    let mut left = limit.unwrap_or(u64::MAX);
    let mut all = Vec::new();
    while left > 0 {
        let most = left.min(limits::SCAN_ROWS_MAX as u64) as u32;
        let page = client.scan(start, end.clone(), most).await?;
        left = left.saturating_sub(page.rows.len() as u64);
        if printer.json {
            let row = |(key, value): &(Bytes, Bytes)| json!({ "key": json_bytes(key), "value": json_bytes(value) });
            all.extend(page.rows.iter().map(row));
        } else {
            let row = |(key, value): &(Bytes, Bytes)| format!("{}\t{}", escape(key), escape(value));
            let lines: Vec<_> = page.rows.iter().map(row).collect();
            printer.page(lines.join("\n"), &Value::Null)?;
        }
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    if printer.json {
        printer.line("", &json!({ "rows": all }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prefix ends where its last byte that can grow grows.
    #[test]
    fn prefixes_end() {
        assert_eq!(after_prefix(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
