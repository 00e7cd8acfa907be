//! Nodes that kill themselves, as by `kill -9`, when they reach a named point; and the account of
//! what each such death cost the requests that were under way.
//!
//! The points are those of `storage/src/failpoints.rs`; only the program `onced-failpoints` has them.

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

    /// As [`arm`](Self::arm), for the next process, and that alone.
    ///
    /// # Panics
    /// When one runs already.
    pub fn spawn_armed(&mut self, point: &str, passes: u32) {
        self.set(VARIABLE, &format!("{point}={passes}*off->return"));
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
    loads: Vec<Finished>,
    acknowledged: u64,
}

impl Deaths {
    /// None yet; prints the test's seed.
    #[must_use]
    pub fn new(test: &'static str) -> Self {
        Self { test, random: seed::rng(test), loads: Vec::new(), acknowledged: 0 }
    }

    /// A random number below `bound`.
    pub fn random(&mut self, bound: u32) -> u32 {
        self.random.random_range(0..bound)
    }

    /// A node in this role dies at this point, after so many passes of it: `die` sees to that, under
    /// load, and that all runs again afterwards. Prints a line with what was lost and doubled.
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
        let what = format!("{point:<20} {role:<18}");
        assert!(report.is_clean(), "{what}: the audit failed\n{report}");
        println!(
            "{:<9} {what} passes {passes:>2}   died 1   acknowledged {:>6}   lost {}   doubled {}",
            self.test, report.acknowledged, report.lost, report.doubled
        );
        self.acknowledged += report.acknowledged;
        self.loads.push(finished);
    }

    /// Audits everything once more, as it is after all the deaths.
    ///
    /// # Panics
    /// When anything is lost or doubled.
    #[track_caller]
    pub fn conclude(&self) {
        let (mut lost, mut doubled) = (0, 0);
        for load in &self.loads {
            let report = load.audit();
            lost += report.lost;
            doubled += report.doubled;
        }
        println!(
            "{:<9} {} deaths in all: acknowledged {}, lost {lost}, doubled {doubled}",
            self.test,
            self.loads.len(),
            self.acknowledged
        );
    }
}
