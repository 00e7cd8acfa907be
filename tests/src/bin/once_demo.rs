//! The workload and the mishaps of `scripts/demo`: a running cluster is put under load, its nodes
//! are killed, paused and cut off through `scripts/cluster`, and at the end everything is audited.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use onlyonce_tests::{Report, Workload, WorkloadConfig, audit, wait};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// How long requests may take to be answered once nothing is broken any more.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the cluster may take to become whole at the end.
const HEAL: Duration = Duration::from_secs(20);
/// How long it may take in between.
const RECOVERY: Duration = Duration::from_secs(15);
/// How long a node stands still, or is cut off: longer than the grace after which a backup takes over.
const ABSENCE_MS: std::ops::Range<u64> = 900..1_500;

/// Puts a running cluster under load, kills, pauses and cuts off its nodes in turn, and audits.
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

    /// The primary and its backups, if that is every node: all know the same view, and serve in it.
    fn is_whole(&self) -> Result<Roles, String> {
        let text = self.run(&["status", "--json"])?;
        let status: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let nodes = status["nodes"].as_array().ok_or("a status without nodes")?;
        let in_role = |role: &str| -> Vec<String> {
            let nodes = nodes.iter().filter(|node| node["role"] == role);
            nodes.filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect()
        };
        let same_view = nodes.iter().all(|node| node["view"] == nodes[0]["view"]);
        match <[String; 1]>::try_from(in_role("primary")) {
            Ok([primary]) if same_view && in_role("backup").len() + 1 == nodes.len() => {
                Ok(Roles { primary, backups: in_role("backup") })
            }
            Ok(_) | Err(_) => Err(text),
        }
    }
}

/// Who is what in a whole cluster.
struct Roles {
    primary: String,
    backups: Vec<String>,
}

/// What the display and the thread that does the mischief share.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    kills: AtomicU64,
    pauses: AtomicU64,
    partitions: AtomicU64,
    /// What was done since the last line.
    news: Mutex<Vec<String>>,
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Progress {
    fn tell(&self, text: String) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn news(&self) -> String {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *news).join("; ")
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
    println!(
        "tokens to {} keys, while nodes are killed, paused and cut off (seed {seed})",
        config.keys
    );
    println!();
    println!("  time      ops/s   acknowledged   primary   kills  pauses  partitions   now");

    let progress = Arc::new(Progress::default());
    cluster.primary(HEAL)?;
    let workload = Workload::start(config.clone());
    let mischief = {
        let (cluster, progress) = (cluster.clone(), Arc::clone(&progress));
        let random = StdRng::seed_from_u64(seed);
        let kills_a_second = args.kills as f64 / args.seconds as f64;
        let mischief =
            Mischief { cluster, progress, random, begun: Instant::now(), kills_a_second };
        std::thread::spawn(move || mischief.run())
    };
    show(args, &cluster, &workload, &progress, &mischief);
    mischief.join().map_err(|_| "the thread that kills nodes panicked".to_owned())??;

    println!();
    println!("the load stops; every node runs again; open requests get their answers");
    let ledger = workload.finish(DRAIN);
    wait::poll(HEAL, || cluster.is_whole())
        .map_err(|status| format!("the cluster did not become whole again: {status}"))?;
    println!("everything is read back");
    let report = audit::audit(&config, &ledger)?;
    Ok(conclude(args, &report, &progress, begun.elapsed()))
}

/// One line a second, until time is up, enough was killed, and what was killed runs again.
fn show(
    args: &Args,
    cluster: &Cluster,
    workload: &Workload,
    progress: &Progress,
    mischief: &std::thread::JoinHandle<Result<(), String>>,
) {
    let begun = Instant::now();
    let (mut before, mut last) = (0, begun);
    for line in 1.. {
        let is_enough = count(&progress.kills) >= args.kills;
        if begun.elapsed() >= Duration::from_secs(args.seconds) && is_enough {
            progress.stop.store(true, Ordering::Relaxed);
        }
        if mischief.is_finished() {
            return;
        }
        wait::moment((begun + Duration::from_secs(line)).saturating_duration_since(Instant::now()));
        let acknowledged = workload.acknowledged();
        let rate = (acknowledged - before) as f64 / last.elapsed().as_secs_f64();
        (before, last) = (acknowledged, Instant::now());
        let primary = cluster.run(&["primary"]).unwrap_or_else(|_| "-".to_owned());
        println!(
            "{line:>4} s {rate:>10.0} {acknowledged:>14}   {primary:<7} {:>7} {:>7} {:>11}   {}",
            count(&progress.kills),
            count(&progress.pauses),
            count(&progress.partitions),
            progress.news()
        );
    }
}

/// Kills, pauses and cuts off nodes in turn, and lets the cluster become whole each time.
struct Mischief {
    cluster: Cluster,
    progress: Arc<Progress>,
    random: StdRng,
    begun: Instant,
    kills_a_second: f64,
}

impl Mischief {
    fn run(mut self) -> Result<(), String> {
        for round in 0_u64.. {
            self.let_pass(100..400);
            if self.progress.stopped() {
                return Ok(());
            }
            // Whole before the next: else a kill could hit the only copy, which is allowed but shows
            // nothing.
            let roles = wait::poll(RECOVERY, || self.cluster.is_whole())
                .map_err(|status| format!("not whole within {RECOVERY:?}: {status}"))?;
            self.round(round, roles)?;
        }
        Ok(())
    }

    fn round(&mut self, round: u64, Roles { primary, backups }: Roles) -> Result<(), String> {
        let backup = backups.choose(&mut self.random).expect("a cluster has two nodes").clone();
        let everybody = [&backups[..], &["authority".to_owned()]].concat();
        let every = [std::slice::from_ref(&primary), &backups[..]].concat();
        let wanted = self.begun.elapsed().as_secs_f64() * self.kills_a_second;
        if round >= 5 && wanted > count(&self.progress.kills) as f64 {
            // A slow machine: the rest of the kills must still fit into the time.
            return self.kill(&every, "every node");
        }
        let is_even = (round / 5).is_multiple_of(2);
        match round % 5 {
            0 => self.kill(&[primary], "the primary"),
            1 if is_even => self.pause(&primary, "the primary"),
            1 => self.pause(&backup, "a backup"),
            2 => self.kill(&[backup], "a backup"),
            3 if is_even => self.cut_off(&primary, &everybody, "the primary from everybody"),
            3 => self.cut_off(&primary, &[backup], "the primary from a backup"),
            _ => self.kill(&every, "every node"),
        }
    }

    fn kill(&mut self, victims: &[String], what: &str) -> Result<(), String> {
        let named = victims.join(" ");
        for victim in victims {
            self.cluster.run(&["kill", victim])?;
            self.progress.kills.fetch_add(1, Ordering::Relaxed);
        }
        self.progress.tell(format!("kill -9 {named} ({what})"));
        if victims.len() == 1 {
            // Sometimes long enough for a new view, sometimes back before it.
            self.let_pass(100..1_200);
        }
        for victim in victims {
            self.cluster.run(&["start", victim])?;
        }
        self.progress.tell(format!("start {named}"));
        Ok(())
    }

    fn pause(&mut self, victim: &str, what: &str) -> Result<(), String> {
        self.cluster.run(&["pause", victim])?;
        self.progress.pauses.fetch_add(1, Ordering::Relaxed);
        self.progress.tell(format!("SIGSTOP {victim} ({what})"));
        self.let_pass(ABSENCE_MS);
        self.cluster.run(&["resume", victim])?;
        self.progress.tell(format!("SIGCONT {victim}"));
        Ok(())
    }

    fn cut_off(&mut self, node: &str, others: &[String], what: &str) -> Result<(), String> {
        for other in others {
            self.cluster.run(&["partition", node, other])?;
        }
        self.progress.partitions.fetch_add(1, Ordering::Relaxed);
        self.progress.tell(format!("partition {node} | {} ({what})", others.join(" ")));
        self.let_pass(ABSENCE_MS);
        self.cluster.run(&["heal"])?;
        self.progress.tell("heal".to_owned());
        Ok(())
    }

    /// Lets a random time of so many milliseconds pass.
    fn let_pass(&mut self, milliseconds: std::ops::Range<u64>) {
        wait::moment(Duration::from_millis(self.random.random_range(milliseconds)));
    }
}

fn conclude(args: &Args, report: &Report, progress: &Progress, took: Duration) -> bool {
    let kills = count(&progress.kills);
    println!();
    print!("{report}");
    println!("  kills (kill -9)   {kills:>10}");
    println!("  pauses (SIGSTOP)  {:>10}", count(&progress.pauses));
    println!("  partitions        {:>10}", count(&progress.partitions));
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
