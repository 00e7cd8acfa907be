//! A workload with what its test needs around it: random choices, progress, and the audit.

use rand::Rng;
use rand::rngs::StdRng;

use crate::audit::{Report, audit};
use crate::cluster::BOUND;
use crate::seed;
use crate::wait::wait_more;
use crate::workload::{Ledger, Workload, WorkloadConfig};

/// A running workload of a test.
pub struct Load {
    /// Of all choices of the test.
    pub random: StdRng,
    config: WorkloadConfig,
    workload: Workload,
}

impl Load {
    /// Starts one on the nodes with these client addresses; prints the test's seed.
    #[must_use]
    pub fn start(test: &str, nodes: Vec<String>) -> Self {
        Self::with(seed::rng(test), nodes)
    }

    /// Starts one with these random choices.
    #[must_use]
    pub fn with(mut random: StdRng, nodes: Vec<String>) -> Self {
        let config = WorkloadConfig::new(nodes, random.random());
        let workload = Workload::start(config.clone());
        Self { random, config, workload }
    }

    /// How many requests were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.workload.acknowledged()
    }

    /// Waits until so many more requests were acknowledged.
    ///
    /// # Panics
    /// When that takes longer than [`BOUND`].
    #[track_caller]
    pub fn progress(&self, requests: u64) {
        wait_more("acknowledged requests", BOUND, requests, || self.acknowledged());
    }

    /// Waits until some more requests were acknowledged: a random moment of a busy server.
    ///
    /// # Panics
    /// As [`progress`](Self::progress).
    #[track_caller]
    pub fn random_moment(&mut self) {
        let requests = self.random.random_range(1..=400);
        self.progress(requests);
    }

    /// Ends the load: every request gets its answer, and every effect is there once.
    ///
    /// # Panics
    /// With everything that is wrong.
    #[track_caller]
    pub fn finish(self) -> Finished {
        let finished = self.settle();
        print!("{}", finished.audit());
        finished
    }

    /// Ends the load without an audit: every request gets its answer.
    ///
    /// # Panics
    /// When one gets none.
    #[track_caller]
    #[must_use]
    pub fn settle(self) -> Finished {
        let ledger = self.workload.finish(BOUND);
        assert_eq!(ledger.unresolved(), 0, "clients retry without limit, so all are answered");
        Finished { config: self.config, ledger }
    }
}

/// A workload that has ended.
pub struct Finished {
    config: WorkloadConfig,
    ledger: Ledger,
}

impl Finished {
    /// Reads everything back from the cluster as it is now.
    ///
    /// # Panics
    /// When anything is lost, doubled or foreign.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "mostly called to check")]
    pub fn audit(&self) -> Report {
        let report = self.report();
        report.assert_clean();
        report
    }

    /// As [`audit`](Self::audit), whatever it finds.
    ///
    /// # Panics
    /// When the cluster cannot be read.
    #[must_use]
    pub fn report(&self) -> Report {
        audit(&self.config, &self.ledger).expect("everything can be read")
    }

    /// As [`report`](Self::report), by what the nodes with other client addresses hold.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn report_at(&self, nodes: &[String]) -> Report {
        let config = WorkloadConfig { nodes: nodes.to_vec(), ..self.config.clone() };
        audit(&config, &self.ledger).expect("everything can be read")
    }
}
