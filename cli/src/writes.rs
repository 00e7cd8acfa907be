//! Writes: what they are as operations, and what is printed of what they came to.

use std::ffi::OsString;
use std::io::{self, Read};

use bytes::Bytes;
use onlyonce_client::{
    Client, Executed, IdempotencyKey, Operation, Outcome, TxnOutcome, Write, limits,
};
use serde_json::{Value, json};

use crate::args::Command;
use crate::output::{End, Printer, escape, json_bytes, print_value};
use crate::run::bytes;
use crate::txn;

/// The operation of a command that writes.
pub fn operation(command: Command) -> Result<Operation, End> {
    let mut stdin = Stdin::default();
    Ok(match command {
        Command::Put { key, value } => {
            Operation::Write(Write::Put { key: bytes(key), value: stdin.value(value)? })
        }
        Command::Append { key, value } => {
            Operation::Write(Write::Append { key: bytes(key), value: stdin.value(value)? })
        }
        Command::Incr { key, by } => Operation::Write(Write::Incr { key: bytes(key), by }),
        Command::Delete { key } => Operation::Write(Write::Delete { key: bytes(key) }),
        Command::Cas { key, expected, value } => {
            let (expected, value) = (Some(stdin.value(expected)?), stdin.value(value)?);
            Operation::Cas { key: bytes(key), expected, value }
        }
        Command::PutIfAbsent { key, value } => {
            Operation::Cas { key: bytes(key), expected: None, value: stdin.value(value)? }
        }
        Command::Txn { statements } => {
            let txn = txn::parse(&statements).map_err(|error| End::Usage(error.to_string()))?;
            txn.into_operation()
        }
        other => unreachable!("`run` takes {other:?}"),
    })
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

/// Executes a write, and prints what it came to.
pub async fn write(
    client: &Client,
    key: Option<IdempotencyKey>,
    operation: Operation,
    printer: &Printer,
) -> Result<(), End> {
    let Some(key) = key else {
        let outcome = client.execute(operation.clone()).await?;
        return print(&outcome, &operation, json!({}), printer);
    };
    let keyed = client.with_key(key).map_err(|error| End::Usage(error.to_string()))?;
    let executed = keyed.execute_told(operation.clone()).await?;
    print_told(&executed, &operation, printer)
}

/// Prints what an operation came to; as JSON also what its id adds to that.
pub fn print_told(
    executed: &Executed,
    operation: &Operation,
    printer: &Printer,
) -> Result<(), End> {
    let Executed { outcome, replayed, kept_for } = executed;
    let mut about = json!({ "replayed": replayed });
    if let Some(kept_for) = kept_for {
        about["kept_for_ms"] = (kept_for.as_millis() as u64).into();
    }
    print(outcome, operation, about, printer)
}

/// Prints what an operation came to, as its command does; JSON is told `about` it beside that.
fn print(
    outcome: &Outcome,
    operation: &Operation,
    about: Value,
    printer: &Printer,
) -> Result<(), End> {
    if printer.json {
        printer.line("", &merged(outcome_json(outcome), about))?;
    } else {
        match outcome {
            Outcome::Compared { swapped: false, actual: Some(actual) } => print_value(actual)?,
            Outcome::Txn(TxnOutcome::Committed(outcomes)) => {
                let lines: Vec<_> = outcomes.iter().map(outcome_line).collect();
                printer.line(lines.join("\n"), &Value::Null)?;
            }
            Outcome::Done | Outcome::Compared { .. } | Outcome::Txn(_) => {}
            outcome => printer.line(outcome_line(outcome), &Value::Null)?,
        }
    }
    let negative = match (outcome, operation) {
        (Outcome::Compared { swapped: false, actual }, Operation::Cas { expected, .. }) => {
            let why = match (actual, expected) {
                (None, _) => "no such key",
                (Some(_), Some(_)) => "the key holds another value",
                (Some(_), None) => "the key exists already",
            };
            format!("not swapped: {why}")
        }
        (Outcome::Txn(TxnOutcome::CompareFailed(place)), Operation::Txn { compares, .. }) => {
            let statement = compares.get(*place as usize).map_or(String::new(), txn::statement);
            format!("not committed: {statement:?} does not hold; nothing was written")
        }
        (Outcome::Txn(TxnOutcome::WriteFailed(place, why)), Operation::Txn { writes, .. }) => {
            let write = writes.get(*place as usize).map_or("", write_name);
            format!("not committed: {write} {place}: {why}; nothing was written")
        }
        _ => return Ok(()),
    };
    eprintln!("once: {negative}");
    Err(End::Negative)
}

fn merged(mut json: Value, about: Value) -> Value {
    if let (Value::Object(json), Value::Object(about)) = (&mut json, about) {
        json.extend(about);
    }
    json
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

/// What a write came to, on a line.
pub fn outcome_line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Value(Some(value)) => escape(value),
        Outcome::Value(None) => "(absent)".to_owned(),
        Outcome::Length(bytes) => bytes.to_string(),
        Outcome::Integer(value) => value.to_string(),
        Outcome::Deleted(existed) => existed.to_string(),
        Outcome::Compared { swapped: true, .. } => "swapped".to_owned(),
        Outcome::Compared { swapped: false, actual } => match actual {
            Some(actual) => format!("not swapped: {}", escape(actual)),
            None => "not swapped: (absent)".to_owned(),
        },
        Outcome::Txn(TxnOutcome::Committed(outcomes)) => {
            outcomes.iter().map(outcome_line).collect::<Vec<_>>().join("\n")
        }
        Outcome::Txn(TxnOutcome::CompareFailed(place)) => {
            format!("not committed: compare {place} did not hold")
        }
        Outcome::Txn(TxnOutcome::WriteFailed(place, why)) => {
            format!("not committed: write {place}: {why}")
        }
        Outcome::Failed(why) => format!("impossible: {why}; nothing was changed"),
        Outcome::Rows { .. } => "(not understood by this release)".to_owned(),
    }
}

/// What a write came to, as JSON.
pub fn outcome_json(outcome: &Outcome) -> Value {
    let value =
        |value: &Option<Bytes>| value.as_ref().map_or(Value::Null, |value| json_bytes(value));
    match outcome {
        Outcome::Done => json!({ "done": true }),
        Outcome::Value(held) => json!({ "exists": held.is_some(), "value": value(held) }),
        Outcome::Length(bytes) => json!({ "length": bytes }),
        Outcome::Integer(value) => json!({ "value": value }),
        Outcome::Deleted(existed) => json!({ "existed": existed }),
        Outcome::Compared { swapped, actual } => {
            json!({ "swapped": swapped, "actual": value(actual) })
        }
        Outcome::Txn(TxnOutcome::Committed(outcomes)) => {
            let outcomes: Vec<_> = outcomes.iter().map(outcome_json).collect();
            json!({ "committed": true, "outcomes": outcomes })
        }
        Outcome::Txn(TxnOutcome::CompareFailed(place)) => {
            json!({ "committed": false, "compare": place })
        }
        Outcome::Txn(TxnOutcome::WriteFailed(place, why)) => {
            json!({ "committed": false, "write": place, "reason": why.to_string() })
        }
        Outcome::Failed(why) => json!({ "failed": why.to_string() }),
        Outcome::Rows { .. } => json!({ "unknown": true }),
    }
}
