//! What answers take in memory, for the bounds on those that wait.

use bytes::Bytes;

use super::{Answer, Fate, Outcome, SavedRequest, SessionStatus, TxnOutcome};
use crate::backup::BackupRecord;

impl Answer {
    /// What the smallest answer takes, with its place in a queue.
    pub const BYTES_MIN: usize = 256;

    /// About what it takes in memory, with its place in a queue.
    ///
    /// ```
    /// # use onlyonce_wire::client::{Answer, Outcome};
    /// assert_eq!(Answer::AskAgain.bytes(), Answer::BYTES_MIN);
    /// let value = Outcome::Value(Some(vec![0; 5_000].into()));
    /// assert_eq!(Answer::Read(value).bytes(), Answer::BYTES_MIN + 5_000);
    /// ```
    #[must_use]
    pub fn bytes(&self) -> usize {
        let content = match self {
            Self::Executed { reply, .. } | Self::Fate { fate: Fate::Done { reply }, .. } => {
                reply.len()
            }
            Self::Sessions { sessions, .. } => sessions.len() * size_of::<SessionStatus>(),
            Self::Session(Some(session)) => session.saved.len() * size_of::<SavedRequest>(),
            Self::Read(outcome) => outcome_bytes(outcome),
            Self::Backup(Some(BackupRecord::Rows(entry))) => entry.len(),
            Self::Opened { .. }
            | Self::Closed
            | Self::Alive
            | Self::Fate { .. }
            | Self::Session(None)
            | Self::Backup(_)
            | Self::Status(_)
            | Self::Refused(_)
            | Self::NotPrimary { .. }
            | Self::AskAgain => 0,
        };
        Self::BYTES_MIN + content
    }
}

fn outcome_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Value(value) | Outcome::Compared { actual: value, .. } => {
            value.as_ref().map_or(0, Bytes::len)
        }
        Outcome::Rows { rows, .. } => {
            rows.iter().map(|(key, value)| key.len() + value.len() + 64).sum()
        }
        Outcome::Txn(TxnOutcome::Committed(outcomes)) => outcomes.iter().map(outcome_bytes).sum(),
        Outcome::Txn(TxnOutcome::CompareFailed(_) | TxnOutcome::WriteFailed(..))
        | Outcome::Done
        | Outcome::Length(_)
        | Outcome::Integer(_)
        | Outcome::Deleted(_)
        | Outcome::Failed(_) => 0,
    }
}
