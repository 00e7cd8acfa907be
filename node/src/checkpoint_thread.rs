//! The thread that folds frozen generations into the tables.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use onlyonce_replica::Event;
use onlyonce_storage::{Checkpointer, Generation};

use crate::core_thread::CoreQueue;
use crate::counters::Counters;
use crate::exit;
use crate::watchdog::Watched;

/// Folds until no more generations come.
pub fn run(
    mut checkpointer: Checkpointer,
    generations: &Receiver<Generation>,
    core: &Arc<CoreQueue>,
    counters: &Arc<Counters>,
    watched: &Watched,
) {
    while let Ok(generation) = generations.recv() {
        let began = Instant::now();
        let underway = watched.begin();
        if let Err(error) = checkpointer.fold(&generation) {
            exit::stop(&format!("a checkpoint failed: {error}"));
        }
        drop(underway);
        counters.checkpoints.add(1);
        tracing::debug!("a checkpoint took {} ms", began.elapsed().as_millis());
        // Its rows may be dropped by the core now, after its readers.
        drop(generation);
        core.send(Event::Checkpointed);
    }
}
