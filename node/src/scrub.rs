//! `onced scrub`: whether a stopped node's data folder is what was written.

use std::path::Path;

use onlyonce_storage::{OpenError, Options, Scrubbed, open_dir};

use crate::exit::ExitError;
use crate::serve::say;

/// The bytes of rows that are added up at a time.
const PIECE_BYTES: usize = 4 << 20;

/// Opens the store in `data`, which checks its log, and reads all rows of its tables.
pub fn run(data: &Path) -> Result<(), ExitError> {
    if !data.join("format").exists() {
        let problem = format!("--data {}: no data folder of a node is there", data.display());
        return Err(ExitError::Usage(problem));
    }
    let mut store = open_dir(data, &Options::new(0))?;
    let rows = loop {
        match store.checkpointer.scrub(PIECE_BYTES).map_err(OpenError::from)? {
            Scrubbed::Part => {}
            Scrubbed::Whole { rows } => break rows,
        }
    };
    let checkpoint = store.checkpointer.checkpoint();
    say(&format!(
        "store {:032x}: all is what was written: records {} to {}, and {rows} rows as of record {} \
         (digest {})",
        store.store_id,
        store.recovered.first,
        store.recovered.last,
        checkpoint.mark.index,
        checkpoint.digests,
    ));
    Ok(())
}
