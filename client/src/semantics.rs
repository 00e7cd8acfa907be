//! The ladder: what a client does about a reply that does not come.
//!
//! The three differ in two things only: whether a request has an id, and how many copies of it may
//! go unanswered before the client gives up. `docs/semantics.md` tells the whole story.

/// How many unanswered copies best effort sends: the first, and some more.
const BEST_EFFORT_COPIES: u32 = 4;

/// What a client promises of each of its writes.
///
/// They differ in what follows when a copy of a request has left and no reply comes. While no node
/// can be reached nothing has left: then each waits for one, without limit, or until the
/// [deadline](crate::ClientBuilder::deadline).
///
/// ```
/// # use onlyonce_client::{Client, Semantics};
/// let client = Client::builder()
///     .nodes(["127.0.0.1:7400"])
///     .semantics(Semantics::AtMostOnce)
///     .build()
///     .expect("an address was given");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Semantics {
    /// Requests have no id. One that gets no reply is sent again a few times, and takes effect as
    /// often as a copy of it arrives: not at all, once, or several times, at once or long after.
    /// Then the call ends with [`Error::Uncounted`](crate::Error::Uncounted). Only for writes that
    /// may be repeated in any order, and to see what an id is for. A [key](crate::Client::with_key) of
    /// the caller's is an id all the same.
    BestEffort,
    /// Requests have an id, and are sent once. One that gets no reply took effect once or not at all:
    /// the call ends with [`Error::Unresolved`](crate::Error::Unresolved), as in Go's `net/rpc`, but
    /// with a handle.
    AtMostOnce,
    /// Requests have an id, and are sent until there is a reply, however long that takes (or until
    /// the [deadline](crate::ClientBuilder::deadline)).
    #[default]
    ExactlyOnce,
}

impl Semantics {
    /// Whether requests have an id, by which the cluster knows their copies.
    pub(crate) fn has_ids(self) -> bool {
        match self {
            Self::BestEffort => false,
            Self::AtMostOnce | Self::ExactlyOnce => true,
        }
    }

    /// After how many copies without a reply the client gives up; none: never.
    pub(crate) fn unanswered_max(self) -> Option<u32> {
        match self {
            Self::BestEffort => Some(BEST_EFFORT_COPIES),
            Self::AtMostOnce => Some(1),
            Self::ExactlyOnce => None,
        }
    }
}
