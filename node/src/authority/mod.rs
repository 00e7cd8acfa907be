//! The authority: one register, changed by compare-and-swap only, that decides who is in the view.
//!
//! [`Authority`] is what a node needs of it. Two keep it: the embedded server, which [`client`] asks
//! and which is `server` over two copies of the register on disk in `slots`; and a key of
//! [`etcd`]. `agent` is the node's side: it carries out what the core asks for and watches for
//! news. `node/tests/authority` holds both to the same promises.
//!
//! A compare-and-swap is sent once and never again: whatever is not a definite success is
//! *unknown*, and only the core knows how to resolve that.

pub(crate) mod agent;
pub mod client;
pub mod etcd;
pub(crate) mod server;
pub(crate) mod slots;

use onlyonce_wire::authority::{Register, Revision, Versioned};

/// Why the authority gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthorityError(pub String);

/// How a compare-and-swap ended.
#[derive(Debug)]
pub enum Swap {
    /// It took place and is durable; this is the new revision.
    Swapped(Revision),
    /// It did not take place at this call; an earlier copy of it may have.
    Conflict(Versioned),
    /// It may have taken place, or may still; the text says why that is not known.
    Unknown(AuthorityError),
}

/// A linearizable register with compare-and-swap.
pub trait Authority: Send + Sync + 'static {
    /// Reads the register. The read begins after the call, and is linearizable.
    fn read(&self) -> impl Future<Output = Result<Versioned, AuthorityError>> + Send;

    /// Sets the register to `value` if its revision is `expected`. Sends at most one message.
    fn compare_and_swap(
        &self,
        expected: Revision,
        value: Register,
    ) -> impl Future<Output = Swap> + Send;

    /// Reads like [`Self::read`], but waits a while for another revision than `after`.
    fn watch(
        &self,
        after: Revision,
    ) -> impl Future<Output = Result<Versioned, AuthorityError>> + Send;
}
