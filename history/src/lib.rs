//! What clients of the key/value store asked and were told, and the check that it is linearizable.
//!
//! - [`operation`]: one operation on one key, as its client saw it, and the model of the store.
//! - [`order`]: the search for an order that explains a key's history.
//! - [`lines`]: whole histories as JSON Lines, for files and for other checkers.
//!
//! The simulator and the tests of real processes judge by this same code.

pub mod lines;
pub mod operation;
pub mod order;

pub use lines::{LineError, read_lines, write_lines};
pub use operation::{Action, Operation, Recorded, Told};
pub use order::{NoOrder, check, check_all};
