//! Requests of before, and the sessions that they were in.

use std::time::Duration;

use onlyonce_client::{
    Cancellation, Client, Fate, Handle, IdempotencyKey, Outcome, Refusal, RequestName,
    SavedRequest, SessionDetail, SessionStatus,
};
use serde_json::{Value, json};

use crate::advice::elsewhere;
use crate::args::SessionCommand;
use crate::output::{End, Printer};
use crate::writes::{outcome_json, outcome_line, print_told};

/// How many sessions are asked for at a time.
const SESSIONS_PAGE: u32 = 1_000;

/// The request that is meant: by its handle, or its key.
fn name(handle: Option<&Handle>, key: Option<IdempotencyKey>) -> Result<RequestName, End> {
    match (handle, key) {
        (Some(handle), None) => Ok(handle.into()),
        (None, Some(key)) => Ok(key.into()),
        (None, None) => Err(End::Usage("a HANDLE or --key KEY is needed".to_owned())),
        (Some(_), Some(_)) => {
            Err(End::Usage("a HANDLE or --key KEY is needed, and not both".to_owned()))
        }
    }
}

/// Tells what became of a request.
pub async fn outcome(
    client: &Client,
    handle: Option<&Handle>,
    key: Option<IdempotencyKey>,
    printer: &Printer,
) -> Result<(), End> {
    let name = name(handle, key)?;
    let (fate, kept_for) = client.outcome_told(name).await.map_err(End::Untold)?;
    let told = |word: &str| {
        printer.line(word, &json!({ "fate": word, "kept_for_ms": milliseconds(kept_for) }))
    };
    match fate {
        Fate::Done(outcome) => done(&outcome, kept_for, printer),
        Fate::Cancelled => told("cancelled").and(Err(End::Negative)),
        Fate::Pending => told("pending").and(Err(End::NotKnown)),
        Fate::NeverSeen => told("never-seen").and(Err(End::NotKnown)),
        Fate::Forgotten(refusal) => forgotten(&refusal, handle, printer),
    }
}

/// Sees to it that a request never runs, unless it did.
pub async fn cancel(
    client: &Client,
    handle: Option<&Handle>,
    key: Option<IdempotencyKey>,
    printer: &Printer,
) -> Result<(), End> {
    let name = name(handle, key)?;
    let (cancellation, kept_for) = client.cancel_told(name).await.map_err(End::Untold)?;
    match cancellation {
        Cancellation::Cancelled => {
            let json = json!({ "fate": "cancelled", "kept_for_ms": milliseconds(kept_for) });
            printer.line("cancelled", &json)
        }
        Cancellation::Done(outcome) => {
            done(&outcome, kept_for, printer)?;
            eprintln!("once: too late to cancel: the request was executed");
            Err(End::Negative)
        }
        Cancellation::Forgotten(refusal) => forgotten(&refusal, handle, printer),
    }
}

fn milliseconds(time: Option<Duration>) -> Option<u64> {
    time.map(|time| time.as_millis() as u64)
}

fn done(outcome: &Outcome, kept_for: Option<Duration>, printer: &Printer) -> Result<(), End> {
    let bare = match outcome {
        Outcome::Done => "done".to_owned(),
        outcome => format!("done\n{}", outcome_line(outcome)),
    };
    let json = json!({
        "fate": "done", "outcome": outcome_json(outcome), "kept_for_ms": milliseconds(kept_for),
    });
    printer.line(bare, &json)
}

fn forgotten(refusal: &Refusal, handle: Option<&Handle>, printer: &Printer) -> Result<(), End> {
    eprintln!("once: whether the request took effect is not known any more: {refusal}");
    if let Some(elsewhere) = handle.and_then(|handle| elsewhere(handle, refusal)) {
        eprintln!("once: {elsewhere}");
    }
    let json = json!({
        "fate": "forgotten", "reason": refusal.name(), "message": refusal.to_string(),
    });
    printer.line("forgotten", &json)?;
    Err(End::NotKnown)
}

/// Goes on with a request, and prints what its command would have printed.
pub async fn resume(client: &Client, handle: &Handle, printer: &Printer) -> Result<(), End> {
    let executed = client.resume(handle).await?;
    let operation = handle.operation().expect("the client has sent it");
    print_told(&executed, &operation, printer)
}

/// Lists, shows or closes sessions.
pub async fn session(
    client: &Client,
    command: SessionCommand,
    printer: &Printer,
) -> Result<(), End> {
    match command {
        SessionCommand::List => list(client, printer).await,
        SessionCommand::Show { id } => match client.session(id).await? {
            Some(detail) => show(&detail, printer),
            None => not_open(&json!({ "open": false }), printer),
        },
        SessionCommand::Close { id } => match client.session(id).await? {
            Some(detail) => {
                client.close_session(detail.status.session).await?;
                printer.line("", &json!({ "closed": true }))
            }
            None => not_open(&json!({ "closed": false }), printer),
        },
    }
}

fn not_open(json: &Value, printer: &Printer) -> Result<(), End> {
    eprintln!("once: no such session is open");
    printer.line("", json)?;
    Err(End::Negative)
}

async fn list(client: &Client, printer: &Printer) -> Result<(), End> {
    let mut after = None;
    let mut all = Vec::new();
    loop {
        let page = client.sessions(after, SESSIONS_PAGE).await?;
        after = page.sessions.last().map(|status| status.session.id);
        all.extend(page.sessions);
        if !page.more || after.is_none() {
            break;
        }
    }
    let lines: Vec<_> = std::iter::once(TITLES.to_owned()).chain(all.iter().map(line)).collect();
    let json: Vec<_> = all.iter().map(status_json).collect();
    printer.line(lines.join("\n"), &json!({ "sessions": json }))
}

const TITLES: &str =
    "SESSION                           OPENED-AT  FIRST-UNACKED  SAVED-BYTES  IDLE-MS";

fn line(status: &SessionStatus) -> String {
    let SessionStatus { session, first_unacked, saved_bytes, idle_ms } = status;
    let (id, at) = (session.id, session.opened_at.0);
    format!("{id}  {at:>9}  {:>13}  {saved_bytes:>11}  {idle_ms:>7}", first_unacked.0)
}

fn status_json(status: &SessionStatus) -> Value {
    let SessionStatus { session, first_unacked, saved_bytes, idle_ms } = status;
    json!({
        "session": session.id.to_string(),
        "opened_at": session.opened_at.0,
        "first_unacked": first_unacked.0,
        "saved_bytes": saved_bytes,
        "idle_ms": idle_ms,
    })
}

fn show(detail: &SessionDetail, printer: &Printer) -> Result<(), End> {
    let mut lines = vec![TITLES.to_owned(), line(&detail.status)];
    let mut saved = Vec::new();
    for SavedRequest { seq, reply_bytes } in &detail.saved {
        lines.push(match reply_bytes {
            Some(bytes) => format!("request {seq}: a reply of {bytes} bytes"),
            None => format!("request {seq}: cancelled"),
        });
        saved.push(json!({ "seq": seq.0, "reply_bytes": reply_bytes }));
    }
    let mut json = status_json(&detail.status);
    json["saved"] = saved.into();
    printer.line(lines.join("\n"), &json)
}
