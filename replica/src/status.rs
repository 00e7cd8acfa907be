//! What a node says about itself.

use onlyonce_wire::authority::Register;
use onlyonce_wire::status::{NodeStatus, Role as StatusRole};

use crate::primary::Primary;
use crate::replica::{Replica, Role};

impl Primary {
    /// The names of the learners that it feeds.
    fn learners(&self, register: Option<&Register>) -> Vec<String> {
        self.followers
            .values()
            .map(|progress| &progress.member)
            .chain(self.sending.iter().map(|sending| &sending.member))
            .filter(|member| register.is_some_and(|it| it.replica(member.store).is_none()))
            .map(|member| member.name.clone())
            .collect()
    }
}

impl Replica {
    /// Whether this node takes requests and may answer reads: an open primary with its leases.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        match &self.role {
            Role::Primary(primary) => primary.table.is_some() && self.lease_holds(),
            Role::Starting(_) | Role::Recovering(_) | Role::Follower(_) | Role::Stopped => false,
        }
    }

    /// What this node says about itself.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let register = self.known.as_ref().map(|known| &known.register);
        let role = match &self.role {
            Role::Starting(_) | Role::Recovering(_) | Role::Stopped => StatusRole::Starting,
            Role::Primary(_) => StatusRole::Primary,
            Role::Follower(_) if self.is_backup() => StatusRole::Backup,
            Role::Follower(_) => StatusRole::Learner,
        };
        let (learners, table) = match &self.role {
            Role::Primary(primary) => (primary.learners(register), primary.table.as_ref()),
            Role::Starting(_) | Role::Recovering(_) | Role::Follower(_) | Role::Stopped => {
                (Vec::new(), None)
            }
        };
        let wall = self.wall();
        let refused_until = table.and_then(|table| table.keys().refused_until(wall));
        NodeStatus {
            name: self.config.me.name.clone(),
            store: self.config.me.store,
            cluster: self.cluster(),
            incarnation: self.saved.incarnation,
            role,
            serving: self.is_serving(),
            view: onlyonce_wire::View(self.view().0),
            primary: register.map(|register| register.primary.name.clone()),
            primary_address: register.map(|register| register.primary.client_address.clone()),
            backups: register.map_or(Vec::new(), |register| {
                register.backups.iter().map(|backup| backup.name.clone()).collect()
            }),
            learners,
            prepared: self.state.persisted().0,
            committed: self.state.committed().0,
            applied: self.state.applied().0,
            sessions: table.map_or(0, |table| table.sessions() as u64),
            idempotency_keys: table.map_or(0, |table| table.keys().count()),
            timed_keys_refused_ms: refused_until.map_or(0, |until| until.0 - wall.0),
            logged_bytes: self.logged_bytes,
        }
    }
}
