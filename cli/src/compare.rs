//! `once bench --compare`: what exactly once costs, measured against best effort on the same cluster.
//!
//! The same load is repeated in turn, so that what the machine does meanwhile meets all alike. Bytes
//! are those of the records that the primary makes: they go to its log, to its backups, and (as the
//! rows in them) into the tables.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use onlyonce_client::{Client, ClientBuilder, Role, Semantics};
use serde_json::{Value, json};

use crate::args::{Bench, BenchOperation};
use crate::bench::load;
use crate::output::{End, Printer};

/// How a request is known again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// Not at all: best effort.
    None,
    /// By its place in a session.
    Session,
    /// By a fresh key of its own.
    Key,
}

const IDENTITIES: [Identity; 3] = [Identity::None, Identity::Session, Identity::Key];

impl Identity {
    fn name(self) -> &'static str {
        match self {
            Self::None => "best effort",
            Self::Session => "exactly once, in a session",
            Self::Key => "exactly once, one-shot keys",
        }
    }

    fn json_name(self) -> &'static str {
        match self {
            Self::None => "best_effort",
            Self::Session => "exactly_once",
            Self::Key => "exactly_once_keys",
        }
    }

    fn builder(self, builder: &ClientBuilder) -> ClientBuilder {
        let builder = builder.clone();
        match self {
            Self::None => builder.semantics(Semantics::BestEffort),
            Self::Session => builder.semantics(Semantics::ExactlyOnce),
            Self::Key => builder.semantics(Semantics::ExactlyOnce).one_shot(),
        }
    }
}

/// What one round of one identity came to.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p50_us: f64,
    logged_bytes: f64,
    errors: u64,
}

/// Measures, and prints what came of it. Exit 1 if any request failed: then the figures mean little.
pub async fn compare(
    builder: &ClientBuilder,
    options: &Bench,
    printer: &Printer,
) -> Result<ExitCode, End> {
    if matches!(options.op, BenchOperation::Get | BenchOperation::Mixed) {
        return Err(End::Usage(
            "--compare: reads have no id; use --op put, incr or fill".to_owned(),
        ));
    }
    let mut rounds: [Vec<Round>; 3] = Default::default();
    for number in 0..options.rounds as usize {
        for place in 0..IDENTITIES.len() {
            // Another one begins each time.
            let place = (place + number) % IDENTITIES.len();
            let round = measure(&IDENTITIES[place].builder(builder), options).await?;
            rounds[place].push(round);
        }
    }
    print(&rounds, options, printer)?;
    let errors: u64 = rounds.iter().flatten().map(|round| round.errors).sum();
    Ok(if errors > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

async fn measure(builder: &ClientBuilder, options: &Bench) -> Result<Round, End> {
    let observer = builder.clone().build()?;
    // It also makes the primary known.
    observer.get("bench-warm-up").await?;
    let before = logged_bytes(&observer).await?;
    let report = load(builder, options).await?;
    let logged = logged_bytes(&observer).await?.checked_sub(before).ok_or_else(changed)?;
    Ok(Round {
        per_second: report.per_second(),
        p50_us: report.latencies_us.value_at_quantile(0.5) as f64,
        logged_bytes: logged as f64 / report.succeeded.max(1) as f64,
        errors: report.errors,
    })
}

fn changed() -> End {
    eprintln!("once: the primary changed meanwhile, or is not there: measure again");
    End::Negative
}

/// The bytes of all records that the primary made so far.
async fn logged_bytes(observer: &Client) -> Result<u64, End> {
    for address in observer.nodes().await? {
        if let Ok(status) = observer.status(&address).await
            && status.role == Role::Primary
        {
            return Ok(status.logged_bytes);
        }
    }
    Err(changed())
}

/// The middle one of some figures.
fn median(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> f64 {
    let mut figures: Vec<_> = rounds.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len() % 2 == 1 {
        figures[middle]
    } else {
        f64::midpoint(figures[middle - 1], figures[middle])
    }
}

fn print(rounds: &[Vec<Round>; 3], options: &Bench, printer: &Printer) -> Result<(), End> {
    let rate = |rounds: &[Round]| median(rounds, |round| round.per_second);
    // How long a request takes of all that run at a time: what it costs in throughput.
    let cost_us = |rounds: &[Round]| 1e6 / rate(rounds);
    let bytes = |rounds: &[Round]| median(rounds, |round| round.logged_bytes);
    let p50_us = |rounds: &[Round]| median(rounds, |round| round.p50_us);
    let errors = |rounds: &[Round]| rounds.iter().map(|round| round.errors).sum::<u64>();
    let ratio = |rounds_of: &[Round]| rate(rounds_of) / rate(&rounds[0]);
    let seconds = Duration::from_secs_f64(options.seconds);
    let mut table = format!(
        "medians of {} rounds of {seconds:?} each, {} clients x {} outstanding, {} connections\n\n\
         {:<28} {:>10} {:>7} {:>12} {:>9} {:>14} {:>7}\n",
        options.rounds,
        options.clients,
        options.outstanding,
        options.connections,
        "",
        "per second",
        "ratio",
        "us a request",
        "p50 ms",
        "bytes a request",
        "errors",
    );
    let mut json = json!({});
    for (identity, rounds) in IDENTITIES.into_iter().zip(rounds) {
        let _ = writeln!(
            table,
            "{:<28} {:>10.0} {:>7.3} {:>12.2} {:>9.3} {:>15.1} {:>7}",
            identity.name(),
            rate(rounds),
            ratio(rounds),
            cost_us(rounds),
            p50_us(rounds) / 1e3,
            bytes(rounds),
            errors(rounds),
        );
        json[identity.json_name()] = json!({
            "ops_per_s": rate(rounds),
            "ratio": ratio(rounds),
            "us_per_request": cost_us(rounds),
            "p50_us": p50_us(rounds),
            "logged_bytes_per_request": bytes(rounds),
            "errors": errors(rounds),
            "rounds_ops_per_s": rounds.iter().map(|round| round.per_second).collect::<Vec<_>>(),
        });
    }
    json["rounds"] = Value::from(options.rounds);
    printer.line(table.trim_end(), &json)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median is the middle, whatever the order.
    #[test]
    fn medians() {
        let round = |per_second| Round { per_second, p50_us: 0.0, logged_bytes: 0.0, errors: 0 };
        let rate = |rates: &[f64]| {
            let rounds: Vec<_> = rates.iter().copied().map(round).collect();
            median(&rounds, |round| round.per_second)
        };
        assert!((rate(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((rate(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
