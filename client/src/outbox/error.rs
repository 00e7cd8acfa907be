//! Why an outbox cannot be used, and what to do.

use std::io;
use std::path::PathBuf;

use onlyonce_wire::ClusterId;

/// An outbox that cannot be used.
///
/// ```
/// # use onlyonce_client::{BuildError, Client, OutboxError};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.txt");
/// std::fs::write(&path, "no outbox at all")?;
/// // A wrong path never costs a file.
/// let built = Client::builder().nodes(["10.0.0.1:7400"]).outbox(&path).build();
/// assert!(matches!(built, Err(BuildError::Outbox { error: OutboxError::NotAnOutbox, .. })));
/// assert_eq!(std::fs::read_to_string(&path)?, "no outbox at all");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// Another process, or another client of this one, has it open.
    #[error("is in use by another client: close that one first, or choose another file")]
    InUse,
    /// The file has several names, and would become several files when it is replaced.
    #[error("has {names} names (hard links): remove all but one, or choose another file")]
    Linked {
        /// How many.
        names: u64,
    },
    /// There is no room for another request, which was not sent.
    #[error(
        "is full: it keeps {requests} requests ({bytes} bytes) whose end is not known. Not sent; call `recover`, which carries out the {left} of them that nobody awaits, or wait for the others"
    )]
    Full {
        /// How many it keeps.
        requests: usize,
        /// The bytes of their operations.
        bytes: usize,
        /// How many of them nobody awaits.
        left: usize,
    },
    /// Another outbox may need a file of this name beside it.
    #[error(
        "has a name ending with .lock or .new, as the files beside an outbox do: choose another"
    )]
    Reserved,
    /// A file that is in the way has the name of the one that takes the outbox's place.
    #[error("needs the name {} for itself, and a file that is not its own has it: move that one", path.display())]
    Beside {
        /// The file.
        path: PathBuf,
    },
    /// The file is not where it was any more: the next client would not find what is in it.
    #[error("was moved, replaced or removed while it was in use: put it back, and open it again")]
    Moved,
    /// The file is something else.
    #[error("is not an outbox: choose another file")]
    NotAnOutbox,
    /// It is an outbox, whole, and this release cannot read it. What it keeps stays open until the
    /// release that wrote it has carried it out.
    #[error("was written by another release: recover with that one first")]
    OtherRelease,
    /// A part of it was altered or lost, and requests with it.
    #[error(
        "is damaged at byte {at}: some of its requests cannot be read. What became of them is not known; look at the data, then choose another file"
    )]
    Damaged {
        /// Where.
        at: u64,
    },
    /// It keeps requests to another cluster than the one that is meant.
    #[error(
        "keeps requests to cluster {theirs}, this client is for cluster {wanted}: choose another file"
    )]
    OtherCluster {
        /// The outbox's cluster.
        theirs: ClusterId,
        /// The client's.
        wanted: ClusterId,
    },
    /// It keeps requests, and not which cluster they are for.
    #[error(
        "does not say which cluster its requests are for: name it (`ClientBuilder::cluster`), or choose another file"
    )]
    NoCluster,
    /// It cannot be read or written.
    #[error("{0}: put that right, then build the client again and call `recover`")]
    Io(String),
}

impl From<io::Error> for OutboxError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}
