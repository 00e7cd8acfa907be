//! `once bench`: closed loops that load the cluster, and a histogram of what they saw.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use onlyonce_client::{Client, ClientBuilder, Error};
use rand::distr::Alphanumeric;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;

use crate::args::{Bench, BenchOperation};
use crate::output::{End, Printer};
use crate::run::patiently;

/// The longest latency that the histogram tells apart, in microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;
/// How long requests that are under way at the end are waited for.
const DRAIN: Duration = Duration::from_secs(10);

/// What all loops of one client share.
struct Shard {
    latencies_us: Histogram<u32>,
    errors: u64,
    last_error: Option<String>,
    /// Those that ended after the clock.
    late: u64,
}

/// One closed loop.
struct Loop {
    client: Client,
    shard: Arc<Mutex<Shard>>,
    stop: Arc<AtomicBool>,
    options: Bench,
    value: Bytes,
    random: SmallRng,
    /// Of all loops: the next key to fill.
    fill: Arc<AtomicU64>,
}

/// What was measured.
pub struct Report {
    pub latencies_us: Histogram<u64>,
    elapsed: Duration,
    pub errors: u64,
    last_error: Option<String>,
    /// All that succeeded, also what ended after the clock.
    pub succeeded: u64,
}

impl Report {
    pub fn per_second(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Loads the cluster and prints what came of it. Exit 1 if nothing succeeded.
pub async fn bench(
    builder: ClientBuilder,
    options: &Bench,
    printer: &Printer,
) -> Result<ExitCode, End> {
    let report = load(&builder, options).await?;
    print(&report, options, printer)?;
    Ok(if report.latencies_us.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Loads the cluster.
pub async fn load(builder: &ClientBuilder, options: &Bench) -> Result<Report, End> {
    if !(options.seconds > 0.0 && options.seconds < 1e6) {
        return Err(End::Usage("--seconds must be more than 0".to_owned()));
    }
    let mut clients = Vec::new();
    for _ in 0..options.connections {
        let client = builder.clone().build()?;
        // Connected and with an open session before the clock runs.
        let warm = async { Ok(warm_up(&client, options.op).await?) };
        patiently(&client, warm).await?;
        clients.push(client);
    }
    let report = measure(&clients, options).await;
    for client in &clients {
        client.close().await;
    }
    Ok(report)
}

async fn warm_up(client: &Client, operation: BenchOperation) -> Result<(), Error> {
    match operation {
        BenchOperation::Get => client.get(key(0)).await.map(drop),
        BenchOperation::Incr => client.incr(counter_key(0), 0).await.map(drop),
        BenchOperation::Put | BenchOperation::Fill | BenchOperation::Mixed => {
            client.delete("bench-warm-up").await.map(drop)
        }
    }
}

async fn measure(clients: &[Client], options: &Bench) -> Report {
    let stop = Arc::new(AtomicBool::new(false));
    let letters = rand::rng().sample_iter(Alphanumeric).take(options.value_size as usize);
    let value: Bytes = letters.collect::<Vec<u8>>().into();
    let fill = Arc::new(AtomicU64::new(0));
    let (mut loops, mut shards) = (JoinSet::new(), Vec::new());
    let started = Instant::now();
    for number in 0..options.clients as usize {
        let shard = Arc::new(Mutex::new(Shard::new()));
        for _ in 0..options.outstanding {
            let one = Loop {
                client: clients[number % clients.len()].clone(),
                shard: Arc::clone(&shard),
                stop: Arc::clone(&stop),
                options: options.clone(),
                value: value.clone(),
                random: SmallRng::from_rng(&mut rand::rng()),
                fill: Arc::clone(&fill),
            };
            loops.spawn(one.run());
        }
        shards.push(shard);
    }
    let end = started + Duration::from_secs_f64(options.seconds);
    let all_ended = async { while loops.join_next().await.is_some() {} };
    let early = tokio::time::timeout_at(end.into(), all_ended).await.is_ok();
    stop.store(true, Ordering::Relaxed);
    let elapsed = started.elapsed();
    if !early {
        let drained = async { while loops.join_next().await.is_some() {} };
        // Loops that still wait are counted below.
        let _ = tokio::time::timeout(DRAIN, drained).await;
    }
    let stuck = loops.len() as u64;
    loops.shutdown().await;
    let mut report = Report {
        latencies_us: Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("fine bounds"),
        elapsed,
        errors: stuck,
        last_error: (stuck > 0).then(|| format!("no answer {DRAIN:?} after the end")),
        succeeded: 0,
    };
    for shard in shards {
        let shard = shard.lock().expect("a loop panicked");
        for bucket in shard.latencies_us.iter_recorded() {
            let count = u64::from(bucket.count_at_value());
            report.latencies_us.saturating_record_n(bucket.value_iterated_to(), count);
        }
        report.errors += shard.errors;
        report.succeeded += shard.latencies_us.len() + shard.late;
        report.last_error = report.last_error.or_else(|| shard.last_error.clone());
    }
    report
}

impl Shard {
    fn new() -> Self {
        let latencies_us = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("fine bounds");
        Self { latencies_us, errors: 0, last_error: None, late: 0 }
    }
}

impl Loop {
    async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(number) = self.number() else { return };
            let began = Instant::now();
            let done = self.once(number).await;
            let latency_us = began.elapsed().as_micros() as u64;
            let stopped = self.stop.load(Ordering::Relaxed);
            let mut shard = self.shard.lock().expect("a loop panicked");
            match done {
                // What ended after the clock is not part of the rate.
                Ok(()) if stopped => shard.late += 1,
                Ok(()) => shard.latencies_us.saturating_record(latency_us.max(1)),
                Err(error) => {
                    shard.errors += 1;
                    shard.last_error = Some(error.to_string());
                    // The cluster cannot serve this client: more of the same is of no use.
                    if matches!(error, Error::Unusable(_) | Error::Refused(_) | Error::BadReply(_))
                    {
                        return;
                    }
                }
            }
        }
    }

    /// The next key; none when every one is filled.
    fn number(&mut self) -> Option<u64> {
        if self.options.op == BenchOperation::Fill {
            let number = self.fill.fetch_add(1, Ordering::Relaxed);
            (number < self.options.keys).then_some(number)
        } else {
            Some(self.random.random_range(0..self.options.keys))
        }
    }

    async fn once(&mut self, number: u64) -> Result<(), Error> {
        match self.options.op {
            BenchOperation::Put | BenchOperation::Fill => {
                self.client.put(key(number), self.value.clone()).await
            }
            BenchOperation::Incr => self.client.incr(counter_key(number), 1).await.map(drop),
            BenchOperation::Mixed if self.random.random() => {
                self.client.put(key(number), self.value.clone()).await
            }
            BenchOperation::Get | BenchOperation::Mixed => {
                self.client.get(key(number)).await.map(drop)
            }
        }
    }
}

/// A key of 16 bytes.
fn key(number: u64) -> Bytes {
    format!("bench-{number:010}").into()
}

/// Counters have keys of their own: what put wrote is no integer.
fn counter_key(number: u64) -> Bytes {
    format!("count-{number:010}").into()
}

fn print(report: &Report, options: &Bench, printer: &Printer) -> Result<(), End> {
    let latencies = &report.latencies_us;
    let ops_per_s = report.per_second();
    let at = |quantile: f64| latencies.value_at_quantile(quantile);
    let (p50, p99, p999, max) = (at(0.5), at(0.99), at(0.999), latencies.max());
    if let Some(error) = &report.last_error {
        eprintln!("once: {} errors, among them: {error}", report.errors);
    }
    let json = json!({
        "ops_per_s": (ops_per_s * 10.0).round() / 10.0,
        "p50_us": p50,
        "p99_us": p99,
        "p999_us": p999,
        "max_us": max,
        "errors": report.errors,
        "operations": latencies.len(),
        "seconds": report.elapsed.as_secs_f64(),
    });
    let operation = match options.op {
        BenchOperation::Put => "put",
        BenchOperation::Fill => "fill",
        BenchOperation::Incr => "incr",
        BenchOperation::Get => "get",
        BenchOperation::Mixed => "mixed",
    };
    let milliseconds = |us: u64| us as f64 / 1_000.0;
    let table = format!(
        "{operation}: {} clients x {} outstanding, {} connections, values of {} bytes, {} keys\n\
         \n\
         operations  {:>12}  in {:.1} s\n\
         per second  {ops_per_s:>12.0}\n\
         p50         {:>12.3}  ms\n\
         p99         {:>12.3}  ms\n\
         p99.9       {:>12.3}  ms\n\
         max         {:>12.3}  ms\n\
         errors      {:>12}",
        options.clients,
        options.outstanding,
        options.connections,
        options.value_size,
        options.keys,
        latencies.len(),
        report.elapsed.as_secs_f64(),
        milliseconds(p50),
        milliseconds(p99),
        milliseconds(p999),
        milliseconds(max),
        report.errors,
    );
    printer.line(table, &json)
}
