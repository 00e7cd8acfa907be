//! The store of one replica: what it has promised to remember, on its own disk.
//!
//! # Properties
//!
//! - *Durable*: what [`LogWriter`] and [`Checkpointer`] report as done is behind a true barrier. A
//!   kill or a power failure at any moment loses none of it.
//! - *Nothing comes back*: a record that was cut is never seen again.
//! - *Never silently wrong*: a store that lost or changed anything it had made durable is not
//!   opened, and the error names what is missing.
//! - *Newest reads*: [`State`] shows every staged effect at once, and exactly what was below when
//!   records are cut.
//!
//! # Parts and threads
//!
//! A store is a log and tables, two databases on an [`engine`], and a `head` file.
//!
//! ```text
//! core thread         State: stage ─► push ───────────► commit ─► freeze ─┐       ┌─► folded
//!                              │      │                    ▲              ▼       │
//!                              │      ▼ (queue)            │ persisted    │       │
//! log-writer thread            │  LogWriter: append ───────┘              │       │
//!                              ▼                                          ▼       │
//! checkpoint thread        overlay, in memory              Checkpointer: fold ────┘
//! ```
//!
//! An [`Entry`] is staged: its effects are on top of the overlay, and later requests see them. The
//! record that it is in is pushed, and appended to the log by the writer; once it is durable on
//! every replica it is committed. From time to time what is committed is frozen as a
//! [`Generation`], folded into the tables by the checkpoint thread, and dropped from memory; then
//! the log up to it may be pruned. When the view changes, records that were not committed are cut:
//! [`State::unstage_after`] in memory, [`LogWriter::cut`] on the disk.
//!
//! [`open()`] reads all of it back; it says what is checked and repaired. [`open_dir`] does so for
//! a folder.
//!
//! # Caveats
//!
//! The store neither knows views' rules nor limits its overlay: its user decides what is committed
//! and cut, and when requests must wait for a checkpoint. After any [`StorageError`] the process
//! must stop.
//!
//! The layout on disk is described in `docs/disk-format.md`.

pub mod checkpoint;
pub mod digest;
pub mod engine;
pub mod error;
pub mod failpoints;
pub mod limits;
pub mod open;
pub mod overlay;
pub mod record;
pub mod scrub;
pub mod snapshot;
pub mod state;
pub mod writer;

mod folder;
mod head;
mod log;
mod tables;

// Each part of a store can be given to its thread.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_shared<T: Send + Sync + Clone>() {}
    is_send::<State>();
    is_send::<LogWriter>();
    is_send::<Checkpointer>();
    is_shared::<Generation>();
    is_shared::<Toucher>();
};

pub use checkpoint::Checkpointer;
pub use digest::{Checkpoint, Digests};
pub use error::{Cause, Damage, DecodeError, EngineError, OpenError, StorageError};
pub use folder::{build_dir, holds_store, open_dir};
pub use open::{Disk, Opened, Options, Recovered, open};
pub use overlay::Generation;
pub use record::{Effect, Entry, Index, Mark, Record, Table, View};
pub use scrub::Scrubbed;
pub use snapshot::{Coverage, Cursor, Incoming, Rows, Site};
pub use state::{Scan, ScanRow, Seen, State, Toucher};
pub use writer::LogWriter;
