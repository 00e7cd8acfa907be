//! Carries out one command.

use std::env::VarError;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_client::{Client, ClientBuilder, Compared, Outcome, TxnOutcome, Write, limits};
use serde_json::{Value, json};

use crate::args::{Args, Command};
use crate::output::{End, Printer, escape, json_bytes, print_value};
use crate::{bench, compare, status, txn};

/// Whom to ask when nobody is named.
const DEFAULT_NODE: &str = "127.0.0.1:7400";
/// What to say of it when it does not answer.
const DEFAULT_HINT: &str = " (the default; --nodes or ONCE_NODES names others)";

/// Names nodes where `--nodes` does not.
const NODES_VARIABLE: &str = "ONCE_NODES";
/// Names the authority where `--authority` does not.
const AUTHORITY_VARIABLE: &str = "ONCE_AUTHORITY";

/// How long to wait before saying what is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Carries out what was asked.
pub async fn run(args: Args, printer: &Printer) -> Result<ExitCode, End> {
    let builder = builder(&args)?;
    match args.command {
        Command::Status => return status::status(builder, printer).await,
        Command::Bench(options) if options.compare => {
            return compare::compare(&builder, &options, printer).await;
        }
        Command::Bench(options) => return bench::bench(builder, &options, printer).await,
        command => {
            let client = builder.one_shot().build()?;
            patiently(&client, single(&client, command, printer)).await?;
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
        let mut lines = Vec::new();
        for address in client.nodes().await.unwrap_or_default() {
            let state = match client.status(&address).await {
                Ok(status) if status.serving => format!("{}, serving", status.role.as_str()),
                Ok(status) => format!("{}, not serving", status.role.as_str()),
                Err(error) => status::reason(&error),
            };
            let hint = if address == DEFAULT_NODE { DEFAULT_HINT } else { "" };
            lines.push(format!("\n  {address}: {state}{hint}"));
        }
        lines.concat()
    };
    tokio::select! {
        done = &mut call => return done,
        text = diagnosis => {
            eprintln!("once: no answer yet, trying on (--deadline bounds that){text}");
        }
    }
    call.await
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

async fn single(client: &Client, command: Command, printer: &Printer) -> Result<(), End> {
    let mut stdin = Stdin::default();
    match command {
        Command::Get { key } => get(client, bytes(key), printer).await,
        Command::Put { key, value } => {
            client.put(bytes(key), stdin.value(value)?).await?;
            printer.line("", &json!({ "done": true }))
        }
        Command::Append { key, value } => {
            let length = client.append(bytes(key), stdin.value(value)?).await?;
            printer.line(length.to_string(), &json!({ "length": length }))
        }
        Command::Incr { key, by } => {
            let value = client.incr(bytes(key), by).await?;
            printer.line(value.to_string(), &json!({ "value": value }))
        }
        Command::Delete { key } => {
            let existed = client.delete(bytes(key)).await?;
            printer.line(existed.to_string(), &json!({ "existed": existed }))
        }
        Command::Cas { key, expected, value } => {
            let (expected, value) = (stdin.value(expected)?, stdin.value(value)?);
            let other = "the key holds another value";
            compared(client.cas(bytes(key), Some(expected), value).await?, other, printer)
        }
        Command::PutIfAbsent { key, value } => {
            let value = stdin.value(value)?;
            let other = "the key exists already";
            compared(client.put_if_absent(bytes(key), value).await?, other, printer)
        }
        Command::Scan { start, end, prefix, limit } => {
            let (start, end) = match prefix.map(bytes) {
                Some(prefix) => (prefix.clone(), after_prefix(&prefix)),
                None => (start.map(bytes).unwrap_or_default(), end.map(bytes)),
            };
            scan(client, start, end, limit, printer).await
        }
        Command::Txn { statements } => transact(client, &statements, printer).await,
        Command::Status | Command::Bench(_) | Command::Completions { .. } | Command::Man { .. } => {
            unreachable!("taken before")
        }
    }
}

fn bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

/// Standard input, which can be one value.
#[derive(Default)]
struct Stdin {
    used: bool,
}

impl Stdin {
    /// An argument, or standard input where it is `-`.
    fn value(&mut self, argument: OsString) -> Result<Bytes, End> {
        if argument != "-" {
            return Ok(bytes(argument));
        }
        if std::mem::replace(&mut self.used, true) {
            return Err(End::Usage("'-' (standard input) can stand for one value only".to_owned()));
        }
        let mut value = Vec::new();
        // One byte more than can be stored is enough for a refusal.
        let most = limits::VALUE_BYTES_MAX as u64 + 1;
        io::stdin().lock().take(most).read_to_end(&mut value).map_err(End::Input)?;
        if value.len() > limits::VALUE_BYTES_MAX {
            return Err(End::InputTooLarge);
        }
        Ok(value.into())
    }
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

/// `other` says why a key that exists is in the way.
fn compared(compared: Compared, other: &str, printer: &Printer) -> Result<(), End> {
    let Compared { swapped, actual } = compared;
    if printer.json {
        let actual = actual.as_ref().map_or(Value::Null, |value| json_bytes(value));
        printer.line("", &json!({ "swapped": swapped, "actual": actual }))?;
    } else if let (false, Some(actual)) = (swapped, &actual) {
        print_value(actual)?;
    }
    if swapped {
        return Ok(());
    }
    eprintln!(
        "once: not swapped: {}",
        match actual {
            Some(_) => other,
            None => "no such key",
        }
    );
    Err(End::Negative)
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
            printer.line(lines.join("\n"), &Value::Null)?;
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

async fn transact(client: &Client, statements: &[String], printer: &Printer) -> Result<(), End> {
    let parsed = txn::parse(statements).map_err(|error| End::Usage(error.to_string()))?;
    match client.txn(parsed.txn).await? {
        TxnOutcome::Committed(outcomes) => {
            let json: Vec<_> = outcomes.iter().map(outcome_json).collect();
            let lines: Vec<_> = outcomes.iter().map(outcome_line).collect();
            printer.line(lines.join("\n"), &json!({ "committed": true, "outcomes": json }))
        }
        TxnOutcome::CompareFailed(place) => {
            let statement = parsed.compares.get(place as usize).map_or("", String::as_str);
            eprintln!("once: not committed: {statement:?} does not hold; nothing was written");
            printer.line("", &json!({ "committed": false, "compare": place }))?;
            Err(End::Negative)
        }
        TxnOutcome::WriteFailed(place, failure) => {
            let write = parsed.writes.get(place as usize).map_or("", write_name);
            eprintln!("once: not committed: {write} {place}: {failure}; nothing was written");
            let reason = failure.to_string();
            let json = json!({ "committed": false, "write": place, "reason": reason });
            printer.line("", &json)?;
            Err(End::Negative)
        }
    }
}

fn write_name(write: &Write) -> &'static str {
    match write {
        Write::Put { .. } => "put",
        Write::Append { .. } => "append",
        Write::Incr { .. } => "incr",
        Write::Delete { .. } => "delete",
        Write::Get { .. } => "get",
    }
}

fn outcome_line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Value(Some(value)) => escape(value),
        Outcome::Value(None) => "(absent)".to_owned(),
        Outcome::Length(bytes) => bytes.to_string(),
        Outcome::Integer(value) => value.to_string(),
        Outcome::Deleted(existed) => existed.to_string(),
        Outcome::Compared { .. } | Outcome::Rows { .. } | Outcome::Txn(_) | Outcome::Failed(_) => {
            "(not understood by this release)".to_owned()
        }
    }
}

fn outcome_json(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Done => json!({ "done": true }),
        Outcome::Value(Some(value)) => json!({ "exists": true, "value": json_bytes(value) }),
        Outcome::Value(None) => json!({ "exists": false, "value": null }),
        Outcome::Length(bytes) => json!({ "length": bytes }),
        Outcome::Integer(value) => json!({ "value": value }),
        Outcome::Deleted(existed) => json!({ "existed": existed }),
        Outcome::Compared { .. } | Outcome::Rows { .. } | Outcome::Txn(_) | Outcome::Failed(_) => {
            json!({ "unknown": true })
        }
    }
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
