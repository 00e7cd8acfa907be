//! The workload and the mishaps of `scripts/demo`: a running cluster is put under load, its nodes
//! are killed and restarted through `scripts/cluster`, and at the end everything is audited.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use onlyonce_tests::{Report, Workload, WorkloadConfig, audit, wait};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How long requests may take to be answered once nothing is broken any more.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the cluster may take to become whole at the end.
const HEAL: Duration = Duration::from_secs(20);

/// Puts a running cluster under load, kills its nodes in turn, and audits.
#[derive(Debug, Parser)]
struct Args {
    /// The script that controls the cluster; the environment tells it which one.
    #[arg(long, value_name = "FILE")]
    cluster: PathBuf,
    /// How long the load runs.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The fewest kills; the load runs on until then.
    #[arg(long, default_value_t = 10)]
    kills: u64,
    /// Clients, each with 4 requests outstanding.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: u64,
    /// Of all random choices [default: a new one each time].
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs `scripts/cluster`.
#[derive(Clone, Debug)]
struct Cluster(PathBuf);

impl Cluster {
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.0)
            .args(arguments)
            .output()
            .map_err(|error| format!("{}: {error}", self.0.display()))?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            Ok(stdout.trim().to_owned())
        } else {
            Err(format!("cluster {}: {}", arguments.join(" "), stderr.trim()))
        }
    }

    fn primary(&self, bound: Duration) -> Result<String, String> {
        wait::poll(bound, || self.run(&["primary"]))
    }

    /// Whether one node is primary and the other backup.
    fn is_whole(&self) -> Result<(), String> {
        let status = self.run(&["status", "--json"])?;
        let role = |role: &str| status.contains(&format!("\"role\":\"{role}\""));
        if role("primary") && role("backup") { Ok(()) } else { Err(status) }
    }
}

/// What the display and the killer share.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    kills: AtomicU64,
    doing: Mutex<String>,
}

impl Progress {
    fn now(&self, text: impl Into<String>) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    fn doing(&self) -> String {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    let cluster = Cluster(args.cluster.clone());
    let begun = Instant::now();
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let nodes = cluster.run(&["nodes"])?.split(',').map(str::to_owned).collect();
    let mut config = WorkloadConfig::new(nodes, seed);
    config.clients = args.clients as usize;
    println!();
    println!(
        "{} clients with {} requests outstanding each, incrementing {} counters and appending",
        config.clients, config.lanes, config.counters
    );
    println!("tokens to {} keys, while nodes are killed with kill -9 (seed {seed})", config.keys);
    println!();
    println!("  time      ops/s   acknowledged   primary   kills   now");

    let progress = Arc::new(Progress::default());
    cluster.primary(HEAL)?;
    let workload = Workload::start(config.clone());
    let killer = {
        let (cluster, progress) = (cluster.clone(), Arc::clone(&progress));
        std::thread::spawn(move || kill_in_turn(&cluster, &progress, seed))
    };
    show(args, &cluster, &workload, &progress, &killer);
    killer.join().map_err(|_| "the thread that kills nodes panicked".to_owned())??;

    println!();
    println!("the load stops; every node runs again; open requests get their answers");
    let ledger = workload.finish(DRAIN);
    wait::poll(HEAL, || cluster.is_whole())
        .map_err(|status| format!("the cluster did not become whole again: {status}"))?;
    println!("everything is read back");
    let report = audit::audit(&config, &ledger)?;
    Ok(conclude(args, &report, progress.kills.load(Ordering::Relaxed), begun.elapsed()))
}

/// One line a second, until time is up, enough was killed, and what was killed runs again.
fn show(
    args: &Args,
    cluster: &Cluster,
    workload: &Workload,
    progress: &Progress,
    killer: &std::thread::JoinHandle<Result<(), String>>,
) {
    let begun = Instant::now();
    let (mut before, mut last) = (0, begun);
    let mut told = String::new();
    for line in 1.. {
        let kills = progress.kills.load(Ordering::Relaxed);
        if begun.elapsed() >= Duration::from_secs(args.seconds) && kills >= args.kills {
            progress.stop.store(true, Ordering::Relaxed);
        }
        if killer.is_finished() {
            return;
        }
        wait::moment((begun + Duration::from_secs(line)).saturating_duration_since(Instant::now()));
        let acknowledged = workload.acknowledged();
        let rate = (acknowledged - before) as f64 / last.elapsed().as_secs_f64();
        (before, last) = (acknowledged, Instant::now());
        let primary = cluster.run(&["primary"]).unwrap_or_else(|_| "-".to_owned());
        let (doing, kills) = (progress.doing(), progress.kills.load(Ordering::Relaxed));
        let news = if doing == told { "" } else { doing.as_str() };
        println!("{line:>4} s {rate:>10.0} {acknowledged:>14}   {primary:<7} {kills:>7}   {news}");
        told = doing;
    }
}

/// Kills the primary, the backup, and now and then both at once, and starts them again.
fn kill_in_turn(cluster: &Cluster, progress: &Progress, seed: u64) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let limit = Duration::from_secs(15);
    for round in 0_u64.. {
        progress.now("");
        wait::moment(Duration::from_millis(random.random_range(200..700)));
        if progress.stopped() {
            return Ok(());
        }
        let primary = cluster.primary(limit)?;
        let backup = if primary == "n1" { "n2" } else { "n1" };
        let (victims, what): (Vec<&str>, _) = match round % 3 {
            0 => (vec![&primary], "the primary"),
            1 => (vec![backup], "the backup"),
            _ => (vec![&primary, backup], "both nodes"),
        };
        let named = victims.join(" and ");
        for victim in &victims {
            cluster.run(&["kill", victim])?;
            progress.kills.fetch_add(1, Ordering::Relaxed);
        }
        progress.now(format!("kill -9 {named} ({what})"));
        if victims.len() == 1 {
            // Sometimes long enough for a new view, sometimes back before it.
            wait::moment(Duration::from_millis(random.random_range(100..1200)));
            progress.now(format!("{named} is down"));
        }
        for victim in &victims {
            cluster.run(&["start", victim])?;
        }
        progress.now(format!("{named} started again"));
        // Whole again before the next: else a kill could hit the only copy, which is allowed but
        // shows nothing.
        wait::poll(limit, || cluster.is_whole())
            .map_err(|status| format!("not whole {limit:?} after {named} was killed: {status}"))?;
    }
    Ok(())
}

fn conclude(args: &Args, report: &Report, kills: u64, took: Duration) -> bool {
    println!();
    print!("{report}");
    println!("  kills (kill -9)   {kills:>10}");
    println!("  time              {:>8} s", took.as_secs());
    println!();
    let enough = kills >= args.kills && report.acknowledged > 0;
    let (good, text) = if !report.is_clean() {
        (false, "FAILED: a promise was broken")
    } else if !enough {
        (false, "FAILED: too little happened to prove anything")
    } else {
        (true, "passed: every acknowledged request took effect exactly once")
    };
    if std::io::stdout().is_terminal() {
        let colour = if good { "32" } else { "31" };
        println!("\x1b[1;{colour}m{text}\x1b[0m");
    } else {
        println!("{text}");
    }
    good
}
