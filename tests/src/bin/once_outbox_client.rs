//! A client with an outbox, for a test that kills it at any moment.
//!
//! ```text
//! once-outbox-client NODES OUTBOX RUN     carries out what is left, then works until it is killed
//! once-outbox-client NODES OUTBOX         carries out what is left, and ends
//! ```
//! Each request marks a token of its own, and counts it. Every line is one system call, so what was
//! said before a kill is there: `asks TOKEN`, `ok TOKEN`, `recovered TOKEN`.

use std::error::Error;
use std::io::Write as _;

use onlyonce_client::{Client, Operation, Txn, TxnOutcome, Write};
use onlyonce_tests::client::runtime;

/// Requests under way at a time.
const OUTSTANDING: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [nodes, outbox, run @ ..] = &arguments[..] else {
        return Err("usage: once-outbox-client NODES OUTBOX [RUN]".into());
    };
    let client = Client::builder().nodes(nodes.split(',')).outbox(outbox).build()?;
    runtime(2).block_on(async {
        for recovered in client.recover().await {
            recovered.result?;
            let operation = recovered.operation.ok_or("an operation that cannot be read")?;
            say("recovered", &token_of(&operation)?)?;
        }
        let Some(run) = run.first() else { return Ok(()) };
        let workers: Vec<_> = (0..OUTSTANDING)
            .map(|worker| tokio::spawn(work(client.clone(), format!("{run}-{worker}"))))
            .collect();
        for worker in workers {
            worker.await?.map_err(|error| error.to_string())?;
        }
        Ok(())
    })
}

async fn work(client: Client, name: String) -> Result<(), Box<dyn Error + Send + Sync>> {
    for number in 0.. {
        let token = format!("{name}-{number}");
        say("asks", &token)?;
        let mark = Txn::new().append(format!("token/{token}"), "x").incr("count", 1);
        match client.txn(mark).await? {
            TxnOutcome::Committed(_) => say("ok", &token)?,
            other => return Err(format!("{token}: {other:?}").into()),
        }
    }
    Ok(())
}

fn token_of(operation: &Operation) -> Result<String, String> {
    let Operation::Txn { writes, .. } = operation else { return Err(format!("{operation:?}")) };
    let Some(Write::Append { key, .. }) = writes.first() else {
        return Err(format!("{operation:?}"));
    };
    Ok(String::from_utf8_lossy(key).trim_start_matches("token/").to_owned())
}

fn say(what: &str, token: &str) -> std::io::Result<()> {
    std::io::stdout().write_all(format!("{what} {token}\n").as_bytes())
}
