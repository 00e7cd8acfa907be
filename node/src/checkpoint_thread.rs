//! The thread that folds frozen generations into the tables, and drops them afterwards: freeing all
//! their rows takes longer than the core may be held up.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use onlyonce_replica::Event;
use onlyonce_storage::{Checkpointer, Generation};

use crate::core_thread::CoreQueue;
use crate::counters::Counters;
use crate::exit;
use crate::watchdog::Watched;

/// What the core asks of this thread.
pub enum Work {
    /// Fold; ends in `Event::Checkpointed`.
    Fold(Generation),
    /// Drop: nobody reads it any more.
    Release(Generation),
}

/// Folds until no more work comes.
pub fn run(
    mut checkpointer: Checkpointer,
    work: &Receiver<Work>,
    core: &Arc<CoreQueue>,
    counters: &Arc<Counters>,
    watched: &Watched,
) {
    while let Ok(work) = work.recv() {
        let generation = match work {
            Work::Fold(generation) => generation,
            Work::Release(generation) => {
                drop(generation);
                continue;
            }
        };
        let began = Instant::now();
        let underway = watched.begin();
        if let Err(error) = checkpointer.fold(&generation) {
            exit::stop(&format!("a checkpoint failed: {error}"));
        }
        drop(underway);
        counters.checkpoints.add(1);
        tracing::debug!("a checkpoint took {} ms", began.elapsed().as_millis());
        core.send(Event::Checkpointed);
    }
}
