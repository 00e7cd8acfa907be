//! Nodes that kill themselves, as by `kill -9`, when they reach a named point; and the account of
//! what each such death cost the requests that were under way.
//!
//! The points are those of `storage/src/failpoints.rs`; only the program `onced-failpoints` has them.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cluster::Node;
use crate::load::{Finished, Load};
use crate::process::Exit;
use crate::{http, seed};

/// The variable that arms a point from the start of a process on.
const VARIABLE: &str = "FAILPOINTS";

impl Node {
    /// The names of all failpoints.
    ///
    /// # Panics
    /// When the node does not tell: it must be an `onced-failpoints` that runs.
    #[must_use]
    pub fn failpoints(&self) -> Vec<String> {
        let names = http::request("GET", self.http_address(), "/fault/failpoint");
        names.expect("it has failpoints").lines().map(str::to_owned).collect()
    }

    /// From now on the process passes the point so often, and then kills itself there.
    ///
    /// # Panics
    /// When the node does not take the order.
    #[track_caller]
    pub fn arm(&self, point: &str, passes: u32) {
        let path = format!("/fault/failpoint?name={point}&passes={passes}");
        http::request("POST", self.http_address(), &path).expect("it has this failpoint");
    }

    /// As [`arm`](Self::arm) for each of these points, for the next process, and that alone.
    ///
    /// # Panics
    /// When one runs already.
    pub fn spawn_armed(&mut self, points: &[(&str, u32)]) {
        let terms = points.iter().map(|(point, passes)| format!("{point}={passes}*off->return"));
        self.set(VARIABLE, &terms.collect::<Vec<_>>().join(";"));
        self.spawn();
        self.set(VARIABLE, "");
    }

    /// Whether the process has killed itself at this point.
    ///
    /// # Panics
    /// When it ended in any other way.
    #[track_caller]
    pub fn died_at(&mut self, point: &str) -> bool {
        let Some(Exit { status, stderr }) = self.try_exit() else { return false };
        let said = stderr.contains(&format!("killed at the failpoint {point}\n"));
        assert!(
            status.signal() == Some(9) && said,
            "{} was to die at {point}, and ended with {status}:\n{stderr}",
            self.name()
        );
        true
    }
}

/// Deaths at failpoints, each under a load of its own, whose requests are audited afterwards, and
/// once more at the end.
pub struct Deaths {
    test: &'static str,
    random: StdRng,
    /// Each with the role that died under it.
    loads: Vec<(String, Finished)>,
}

impl Deaths {
    /// None yet; prints the test's seed.
    #[must_use]
    pub fn new(test: &'static str) -> Self {
        Self { test, random: seed::rng(test), loads: Vec::new() }
    }

    /// A random number below `bound`.
    pub fn random(&mut self, bound: u32) -> u32 {
        self.random.random_range(0..bound)
    }

    /// A node in this role (and, after a comma, where it comes from) dies at this point, after so many
    /// passes of it: `die` sees to that, under load, and that all runs again afterwards. Prints a line
    /// with what was lost and doubled.
    ///
    /// # Panics
    /// When that is anything.
    #[track_caller]
    pub fn add(
        &mut self,
        [point, role]: [&str; 2],
        passes: u32,
        nodes: Vec<String>,
        die: impl FnOnce(&mut Self, &Load),
    ) {
        let load = Load::with(StdRng::seed_from_u64(self.random.random()), nodes);
        load.progress(20);
        die(self, &load);
        load.progress(20);
        let finished = load.settle();
        let report = finished.report();
        let what = format!("{point:<20} {role:<23}");
        assert!(report.is_clean(), "{what}: the audit failed\n{report}");
        println!(
            "{:<9} {what} passes {passes:>2}   died 1   acknowledged {:>6}   lost {}   doubled {}",
            self.test, report.acknowledged, report.lost, report.doubled
        );
        let role = role.split_once(',').map_or(role, |(role, _)| role);
        self.loads.push((role.to_owned(), finished));
    }

    /// Audits everything once more, as it is after all the deaths. Prints a line for each role.
    ///
    /// # Panics
    /// When anything is lost or doubled.
    #[track_caller]
    pub fn conclude(&self) {
        let mut roles: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
        for (role, load) in &self.loads {
            let report = load.audit();
            let sums = roles.entry(role).or_default();
            let counts = [1, report.acknowledged, report.lost, report.doubled];
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        for (role, [deaths, acknowledged, lost, doubled]) in roles {
            println!(
                "{:<9} {role:<9} {deaths:>3} deaths in all: acknowledged {acknowledged:>7}, \
                 lost {lost}, doubled {doubled}",
                self.test
            );
        }
    }
}
