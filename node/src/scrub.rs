//! `onced scrub`: whether a stopped node's data folder is what was written.

use std::path::Path;

use onlyonce_storage::{OpenError, Opened, Options, Scrubbed, holds_store, open_dir};

use crate::exit::{self, ExitError};
use crate::serve::say;

/// The bytes of rows that are added up at a time.
const PIECE_BYTES: usize = 4 << 20;

/// Opens the store in `data`, which checks its log, and reads all rows of its tables.
pub fn run(data: &Path) -> Result<(), ExitError> {
    if !holds_store(data)? {
        let problem = format!("--data {}: no data folder of a node is there", data.display());
        return Err(ExitError::Usage(problem));
    }
    let (store, rows) = exit::reading(data, || read_all(data))?;
    let checkpoint = store.checkpointer.checkpoint();
    let records = match (store.recovered.first, store.recovered.last) {
        (first, last) if first > last => "no records".to_owned(),
        (first, last) => format!("records {first} to {last}"),
    };
    say(&format!(
        "store {:032x}: all is what was written: {records}, and {rows} rows as of record {} (digest {})",
        store.store_id, checkpoint.mark.index, checkpoint.digests,
    ));
    Ok(())
}

/// The store, and how many rows its tables have.
fn read_all(data: &Path) -> Result<(Opened, u64), OpenError> {
    let mut store = open_dir(data, &Options::new(0))?;
    loop {
        if let Scrubbed::Whole { rows } = store.checkpointer.scrub(PIECE_BYTES)? {
            return Ok((store, rows));
        }
    }
}
