//! `once status`: what every node says of itself.

use std::process::ExitCode;

use onlyonce_client::{ClientBuilder, Error, NodeStatus};
use serde_json::{Value, json};

use crate::output::{End, Printer};

type Reported = (String, Result<NodeStatus, Error>);

/// Asks all nodes at once, and prints a row for each.
pub async fn status(builder: ClientBuilder, printer: &Printer) -> Result<ExitCode, End> {
    let client = builder.build()?;
    let mut asked = Vec::new();
    for address in client.nodes().await? {
        let client = client.clone();
        let asking = {
            let address = address.clone();
            tokio::spawn(async move { client.status(&address).await })
        };
        asked.push((address, asking));
    }
    let mut reports: Vec<Reported> = Vec::new();
    for (address, asking) in asked {
        let report = asking.await.expect("asking does not panic");
        reports.push((address, report));
    }
    if printer.json {
        let nodes: Vec<_> = reports.iter().map(json_report).collect();
        printer.line("", &json!({ "nodes": nodes }))?;
    } else {
        printer.line(table(&reports), &Value::Null)?;
    }
    let any = reports.iter().any(|(_, report)| report.is_ok());
    Ok(if any { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Why there is no status, without what the row says already.
pub fn reason(error: &Error) -> String {
    match error {
        Error::NoAnswer(no_answer) => {
            let reasons = no_answer.nodes.0.iter().map(|report| report.reason.clone());
            reasons.collect::<Vec<_>>().join("; ")
        }
        _ => error.to_string(),
    }
}

fn table(reports: &[Reported]) -> String {
    let titles =
        ["NAME", "ADDRESS", "ROLE", "VIEW", "PREPARED", "COMMITTED", "APPLIED", "SESSIONS", "KEYS"];
    let mut rows = vec![titles.map(str::to_owned)];
    let mut notes = vec![String::new()];
    for (address, report) in reports {
        let (row, note) = match report {
            Ok(status) => (row(address, status), note(status)),
            Err(error) => {
                let mut row = titles.map(|_| "-".to_owned());
                row[1].clone_from(address);
                "unreachable".clone_into(&mut row[2]);
                (row, reason(error))
            }
        };
        rows.push(row);
        notes.push(note);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..titles.len()).map(width).collect();
    let line = |(row, note): (&[String; 9], &String)| {
        let cell = |(text, width): (&String, &usize)| format!("{text:<width$}");
        let cells: Vec<_> = row.iter().zip(&widths).map(cell).collect();
        format!("{}  {note}", cells.join("  ")).trim_end().to_owned()
    };
    rows.iter().zip(&notes).map(line).collect::<Vec<_>>().join("\n")
}

fn row(address: &str, status: &NodeStatus) -> [String; 9] {
    [
        status.name.clone(),
        address.to_owned(),
        status.role.as_str().to_owned(),
        status.view.to_string(),
        status.prepared.to_string(),
        status.committed.to_string(),
        status.applied.to_string(),
        status.sessions.to_string(),
        status.idempotency_keys.to_string(),
    ]
}

fn note(status: &NodeStatus) -> String {
    let mut notes = Vec::new();
    if status.role == onlyonce_client::Role::Primary && !status.serving {
        notes.push("not serving yet".to_owned());
    }
    if !status.learners.is_empty() {
        notes.push(format!("feeds {}", status.learners.join(", ")));
    }
    if status.timed_keys_refused_ms > 0 {
        let seconds = status.timed_keys_refused_ms.div_ceil(1_000);
        notes.push(format!("refuses fresh timed keys for {seconds} s: a calendar is or was wrong"));
    }
    notes.join("; ")
}

fn json_report((address, report): &Reported) -> Value {
    let status = match report {
        Ok(status) => status,
        Err(error) => {
            return json!({ "address": address, "reachable": false, "reason": reason(error) });
        }
    };
    json!({
        "address": address,
        "reachable": true,
        "name": status.name,
        "store": status.store.to_string(),
        "cluster": status.cluster.map(|cluster| cluster.to_string()),
        "incarnation": status.incarnation.0,
        "role": status.role.as_str(),
        "serving": status.serving,
        "view": status.view.0,
        "primary": status.primary,
        "primary_address": status.primary_address,
        "backups": status.backups,
        "learners": status.learners,
        "prepared": status.prepared,
        "committed": status.committed,
        "applied": status.applied,
        "sessions": status.sessions,
        "idempotency_keys": status.idempotency_keys,
        "timed_keys_refused_ms": status.timed_keys_refused_ms,
        "logged_bytes": status.logged_bytes,
    })
}
