//! What a node says about itself.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Incarnation, StoreId, View};

/// The part that a node plays at this moment.
///
/// ```
/// # use onlyonce_wire::status::Role;
/// assert_eq!(Role::Learner.as_str(), "learner");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reading its store or the register; serves nothing yet.
    Starting,
    /// Executes requests.
    Primary,
    /// A replica of the view that does not execute.
    Backup,
    /// Not a replica: catching up to become one.
    Learner,
}

impl Role {
    /// The role's lower-case name.
    ///
    /// ```
    /// # use onlyonce_wire::status::Role;
    /// // The word of `once status` and of the metrics.
    /// assert_eq!(Role::Primary.as_str(), "primary");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Learner => "learner",
        }
    }
}

/// A node's view of itself and its cluster.
///
/// ```
/// # use onlyonce_wire::status::{NodeStatus, Role};
/// /// Whether this primary may be lost, and another node goes on with all that was replied.
/// fn has_backup(primary: &NodeStatus) -> bool {
///     primary.role == Role::Primary && primary.serving && !primary.backups.is_empty()
/// }
/// # let _ = has_backup;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name (`--name`).
    pub name: String,
    /// Its store.
    pub store: StoreId,
    /// Its cluster, once known.
    pub cluster: Option<ClusterId>,
    /// The cluster's incarnation.
    pub incarnation: Incarnation,
    /// What it is at the moment.
    pub role: Role,
    /// Whether it takes requests: a primary does once all that it found is committed.
    pub serving: bool,
    /// The newest view that it knows.
    pub view: View,
    /// The primary's name in that view.
    pub primary: Option<String>,
    /// The primary's client address in that view.
    pub primary_address: Option<String>,
    /// The names of the view's backups.
    pub backups: Vec<String>,
    /// The names of the learners that this primary feeds.
    pub learners: Vec<String>,
    /// The newest log index that is durable here.
    pub prepared: u64,
    /// The newest log index that is durable on every replica of the view.
    pub committed: u64,
    /// The newest log index that is folded into the tables.
    pub applied: u64,
    /// Open sessions (counted by the primary).
    pub sessions: u64,
    /// Remembered idempotency keys (counted by the primary).
    pub idempotency_keys: u64,
    /// For how long to come, by the primary's calendar, a timed key that is made now is refused as
    /// forgotten, in milliseconds. Not 0: that calendar is wrong, or an earlier one was.
    pub timed_keys_refused_ms: u64,
    /// The bytes of the records that it made as a primary, since the process started.
    pub logged_bytes: u64,
}
