//! What worlds met: the marks of the replicas, and those of the world around them.

use std::fmt::Write as _;

use onlyonce_replica::{Mark, Marks};

/// Declares the sights once: the enum, the list of all, and their names.
macro_rules! sights {
    ($($(#[doc = $doc:literal])+ $sight:ident => $name:literal,)+) => {
        /// Something rare that happens around the replicas.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Sight {
            $($(#[doc = $doc])+ $sight,)+
        }

        impl Sight {
            /// Every sight.
            pub const ALL: &[Self] = &[$(Self::$sight,)+];

            /// Its name in tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$sight => $name,)+
                }
            }
        }
    };
}

sights! {
    /// A process was killed or lost its power.
    Crashed => "crashed",
    /// A disk was emptied.
    DiskEmptied => "disk_emptied",
    /// A write failed, and the process stopped.
    DiskFailed => "disk_failed",
    /// A disk stood still longer than an append may stay unacknowledged.
    DiskHung => "disk_hung",
    /// A disk was slow for a while.
    DiskSlow => "disk_slow",
    /// A store opened in spite of a flipped bit.
    DamageHarmless => "damage_harmless",
    /// A damaged store refused to open, and was replaced by an empty one.
    DamagedStoreReplaced => "damaged_store_replaced",
    /// A torn last group was removed from a log.
    TornGroupRemoved => "torn_group_removed",
    /// A process stood still.
    Paused => "paused",
    /// Messages between two nodes were lost for a while.
    Partitioned => "partitioned",
    /// The authority was away.
    AuthorityAway => "authority_away",
    /// A compare-and-swap came from a process that was dead by then, and took place.
    DeadSwapTookPlace => "dead_swap_took_place",
    /// A client forgot everything, but what is durable in its outbox.
    ClientCrashed => "client_crashed",
    /// A crash of a client took a request that was not yet durable in its outbox, and was never sent.
    OutboxLost => "outbox_lost",
    /// A client that was started again found a request in its outbox.
    OutboxTakenUp => "outbox_taken_up",
    /// It had run before the client was started again.
    OutboxTakenUpDone => "outbox_taken_up_done",
    /// It ran only then.
    OutboxTakenUpRan => "outbox_taken_up_ran",
    /// The cluster was restored from a backup.
    Restored => "restored",
    /// It was restored while requests were under way.
    RestoredUnderWay => "restored_under_way",
    /// It was restored, and records that were committed after the backup are no part of its history.
    RestoredWithLoss => "restored_with_loss",
    /// A client was told that its request is of an incarnation before a restore.
    OtherIncarnationTold => "other_incarnation_told",
    /// A request under a named key ran again, after a restore from a backup that does not know it.
    LostKeyRanAnew => "lost_key_ran_anew",
    /// A client's session expired under it.
    ClientExpired => "client_expired",
    /// A calendar was set.
    CalendarSet => "calendar_set",
    /// A request under a named key ran again, long after it was forgotten.
    KeyRanAnew => "key_ran_anew",
    /// A copy of a request was answered from the duplicate table.
    Replayed => "replayed",
}

/// What a world, or many, came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many worlds.
    pub worlds: u64,
    /// Events handled.
    pub steps: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests whose outcome stays unknown.
    pub unknown: u64,
    /// Views made.
    pub views: u64,
    /// How often each sight was seen.
    pub sights: [u64; Sight::ALL.len()],
    /// How often each mark was met.
    pub marks: Marks,
    sights_in_worlds: [u64; Sight::ALL.len()],
    marks_in_worlds: Marks,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            worlds: 0,
            steps: 0,
            answered: 0,
            unknown: 0,
            views: 0,
            sights: [0; Sight::ALL.len()],
            marks: Marks::default(),
            sights_in_worlds: [0; Sight::ALL.len()],
            marks_in_worlds: Marks::default(),
        }
    }
}

impl Report {
    /// Notes a sight.
    pub fn see(&mut self, sight: Sight) {
        self.sights[sight as usize] += 1;
    }

    /// How often a sight was seen.
    #[must_use]
    pub fn seen(&self, sight: Sight) -> u64 {
        self.sights[sight as usize]
    }

    /// Ends the report of one world.
    pub(crate) fn end_world(&mut self) {
        self.worlds = 1;
        for (count, worlds) in self.sights.iter().zip(&mut self.sights_in_worlds) {
            *worlds = u64::from(*count > 0);
        }
        for mark in Mark::ALL.iter().filter(|mark| self.marks.count(**mark) > 0) {
            self.marks_in_worlds.hit(*mark);
        }
    }

    /// Adds other worlds.
    pub fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.steps += other.steps;
        self.answered += other.answered;
        self.unknown += other.unknown;
        self.views += other.views;
        self.marks.add(&other.marks);
        self.marks_in_worlds.add(&other.marks_in_worlds);
        for at in 0..Sight::ALL.len() {
            self.sights[at] += other.sights[at];
            self.sights_in_worlds[at] += other.sights_in_worlds[at];
        }
    }

    /// Every mark and sight: its name, how often it was met, and in how many worlds.
    fn rows(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let mark =
            |mark: &Mark| (mark.name(), self.marks.count(*mark), self.marks_in_worlds.count(*mark));
        let sight = |(at, sight): (usize, &Sight)| {
            (sight.name(), self.sights[at], self.sights_in_worlds[at])
        };
        Mark::ALL.iter().map(mark).chain(Sight::ALL.iter().enumerate().map(sight))
    }

    /// The names of what was never met.
    #[must_use]
    pub fn never_met(&self) -> Vec<&'static str> {
        self.rows().filter(|(_, count, _)| *count == 0).map(|(name, _, _)| name).collect()
    }

    /// A table of the marks and sights.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{:<36} {:>12} {:>8}\n", "mark", "count", "worlds");
        for (name, count, worlds) in self.rows() {
            let _ = writeln!(text, "{name:<36} {count:>12} {worlds:>8}");
        }
        text
    }
}
