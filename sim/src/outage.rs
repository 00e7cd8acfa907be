//! How long nothing commits when one thing fails in a world that is otherwise well.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::ledger::Finding;
use crate::plan::Plan;
use crate::time::{MILLISECOND, SECOND, Span};
use crate::timeline::Timeline;
use crate::world::World;

/// The one thing that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// The primary's process ends and stays away.
    PrimaryDies,
    /// The primary stands still.
    PrimaryPauses,
    /// The primary is cut off from all others and the authority.
    PrimaryCutOff,
    /// The primary's disk completes nothing.
    PrimaryDiskHangs,
    /// A backup's process ends and stays away.
    BackupDies,
    /// A backup's disk completes nothing, while its process goes on.
    BackupDiskHangs,
}

impl Mishap {
    /// Every mishap.
    pub const ALL: [Self; 6] = [
        Self::PrimaryDies,
        Self::PrimaryPauses,
        Self::PrimaryCutOff,
        Self::PrimaryDiskHangs,
        Self::BackupDies,
        Self::BackupDiskHangs,
    ];
}

/// How long a mishap is watched.
const WATCHED: Span = 10 * SECOND;
/// For ever, as far as that goes.
const AWAY: Span = 10 * WATCHED;

/// The longest time without a commit after `mishap`, while clients write all the time.
pub fn longest_outage(seed: u64, mishap: Mishap) -> Result<Span, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let plan = Plan::calm(&mut rng);
    let mut world = World::new(rng, plan, Timeline::Off);
    world.clients.iter_mut().for_each(|client| client.reads = false);
    world.run_until(30 * SECOND, World::is_whole)?;
    if !world.is_whole() {
        return Err("the world does not become whole".to_owned());
    }
    let moment = world.agenda.now() + world.rng.random_range(0..SECOND);
    world.run_until(moment, |_| false)?;
    world.befall(mishap);
    let end = world.agenda.now() + WATCHED;
    let (mut longest, mut since) = (0, world.agenda.now());
    while since < end {
        let last = world.ledger.last();
        world.run_until(end, |world| world.ledger.last() > last)?;
        longest = longest.max(world.agenda.now() - since);
        since = world.agenda.now();
    }
    Ok(longest)
}

impl World {
    /// Runs until `end`, or until `done`.
    fn run_until(&mut self, end: u64, done: impl Fn(&Self) -> bool) -> Finding {
        while !done(self) {
            let Some(happening) = self.agenda.next() else { return Ok(()) };
            self.happen(happening)?;
            if self.agenda.now() >= end {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The primary's place, if it serves and every other node is its backup.
    fn leader(&self) -> Option<usize> {
        let register = self.register.register.as_ref()?;
        let leader = self.nodes.iter().position(|node| node.store == register.primary.store)?;
        let serves = self.nodes[leader].process.as_ref()?.replica.is_serving();
        (serves && 1 + register.backups.len() == self.nodes.len()).then_some(leader)
    }

    fn is_whole(&self) -> bool {
        self.leader().is_some()
    }

    fn befall(&mut self, mishap: Mishap) {
        let until = self.agenda.now() + AWAY;
        let leader = self.leader().expect("the world is whole");
        let backup = (leader + 1) % self.nodes.len();
        match mishap {
            Mishap::PrimaryDies => self.crash(leader, false, AWAY),
            Mishap::BackupDies => self.crash(backup, false, AWAY),
            Mishap::PrimaryPauses => self.pause(leader, AWAY),
            Mishap::PrimaryCutOff => {
                for other in (0..=self.nodes.len()).filter(|other| *other != leader) {
                    self.part(leader, other, true, until);
                }
            }
            Mishap::PrimaryDiskHangs => self.nodes[leader].ailing.hangs_until = until,
            Mishap::BackupDiskHangs => self.nodes[backup].ailing.hangs_until = until,
        }
    }
}

impl Plan {
    /// A world in which nothing goes wrong by itself.
    fn calm(rng: &mut StdRng) -> Self {
        let drawn = Self::draw(rng, crate::run::Trial::default());
        Self {
            nodes: rng.random_range(2..=4),
            clients: 4,
            outstanding: 4,
            delay_max: rng.random_range(1..5) * MILLISECOND,
            late_per_mille: 0,
            late_swap_per_mille: 0,
            die_proposing_per_mille: 0,
            lost_per_mille: 0,
            repeated_per_mille: 0,
            stalled_per_mille: 0,
            probe_per_mille: 0,
            // Tables that grow with every write would outgrow snapshots in tiny pieces.
            keyed_per_mille: 100,
            question_per_mille: 0,
            repeat_per_mille: 0,
            rest_per_mille: 0,
            outbox_per_mille: 0,
            faults: BTreeMap::new(),
            duration: AWAY,
            min_copies: 1,
            session_idle: AWAY,
            key_retention: AWAY,
            limits: onlyonce_replica::Limits::default(),
            ..drawn
        }
    }
}
