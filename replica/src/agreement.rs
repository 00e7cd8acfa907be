//! Whether the tables of the replicas agree, and which store stops if they do not.
//!
//! An echo names its sender's newest checkpoint. At a mark where this primary made one too, it counts
//! the stores that came to the same, and those that came to something else. Only a majority decides;
//! of two stores, whose tables differ, this one's word counts if its scrub finds nothing, but only
//! against one of them. `docs/replication.md` tells why.

use onlyonce_storage::{Checkpoint, Index, View};
use onlyonce_wire::StoreId;

use crate::event::Effect;
use crate::marks::Mark;
use crate::message::PeerMessage;
use crate::primary::Primary;
use crate::replica::{Replica, Role, Stop};

/// What a primary holds against other stores.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    /// Those who are told that they differ once this store was scrubbed.
    accused: Option<Accused>,
    /// The store that was told on this primary's word alone, and after which record it differed. No
    /// store has agreed with this primary after a later one.
    unconfirmed: Option<(StoreId, Index)>,
    /// The newest record after which a difference was logged that decided nothing.
    logged: Index,
}

/// Stores whose tables differ from this primary's after a record.
#[derive(Debug)]
struct Accused {
    stores: Vec<StoreId>,
    index: Index,
    /// Whether nobody confirms this primary.
    alone: bool,
}

/// Who is damaged, as far as the checkpoints at one mark tell.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// These differ from this primary and from most.
    Differing(Vec<StoreId>),
    /// This one differs, and nobody else can be asked.
    Either(StoreId),
    /// This primary: most stores came to the same, and these are they.
    Outvoted(Vec<StoreId>),
    /// Too few were heard, or no majority agrees.
    Open,
}

impl Primary {
    /// Who of this view's replicas, and of the learners that were heard at this mark, is damaged.
    fn verdict(&self, own: Checkpoint) -> Verdict {
        let mut agreeing = 1;
        let mut unheard = 0;
        let mut differing = Vec::new();
        for (store, progress) in &self.followers {
            match progress.checkpoint_at(own.mark.index) {
                Some(theirs) if theirs == own => agreeing += 1,
                Some(theirs) => differing.push((*store, theirs)),
                None => unheard += usize::from(progress.replica),
            }
        }
        let counted = agreeing + unheard + differing.len();
        let is_most = |stores: usize| 2 * stores > counted;
        if is_most(agreeing) {
            return Verdict::Differing(differing.into_iter().map(|(store, _)| store).collect());
        }
        if let ([(store, _)], 2) = (&differing[..], counted) {
            return Verdict::Either(*store);
        }
        for (_, theirs) in &differing {
            let same = differing.iter().filter(|(_, other)| other == theirs);
            let same: Vec<StoreId> = same.map(|(store, _)| *store).collect();
            if is_most(same.len()) {
                return Verdict::Outvoted(same);
            }
        }
        Verdict::Open
    }

    /// The followers' names.
    fn names(&self, stores: &[StoreId]) -> String {
        let names = stores.iter().filter_map(|store| self.followers.get(store));
        names.map(|progress| progress.member.name.as_str()).collect::<Vec<_>>().join(" and ")
    }
}

impl Replica {
    /// Takes a follower's newest checkpoint, and judges the marks at which it differs from this
    /// primary's since they last agreed.
    pub(crate) fn compare(&mut self, follower: StoreId, theirs: Checkpoint) -> Result<(), Stop> {
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let Some(progress) = primary.followers.get_mut(&follower) else { return Ok(()) };
        progress.note_checkpoint(theirs);
        let mut differing = Vec::new();
        for own in self.checkpointing.remembered() {
            let index = own.mark.index;
            let Some(theirs) = progress.checkpoint_at(index) else { continue };
            self.marks.hit(Mark::CheckpointsCompared);
            if theirs != *own {
                differing.push(*own);
                continue;
            }
            differing.clear();
            if primary.agreement.unconfirmed.is_some_and(|(_, told)| index > told) {
                primary.agreement.unconfirmed = None;
            }
        }
        differing.into_iter().try_for_each(|own| self.judge(follower, own))
    }

    /// A follower's tables differ from what this primary's were.
    fn judge(&mut self, follower: StoreId, own: Checkpoint) -> Result<(), Stop> {
        let index = own.mark.index;
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let (stores, alone) = match primary.verdict(own) {
            Verdict::Open => {
                if index > primary.agreement.logged {
                    primary.agreement.logged = index;
                    tracing::error!(
                        "the tables of node {} differ from this node's after record {index}: too few others tell which is right",
                        primary.names(&[follower])
                    );
                }
                return Ok(());
            }
            Verdict::Differing(stores) => (stores, false),
            Verdict::Either(store) => match primary.agreement.unconfirmed {
                Some((told, _)) if told != store => return Err(contradicted(told, store, index)),
                Some(_) | None => (vec![store], true),
            },
            Verdict::Outvoted(others) => return Err(outvoted(&primary.names(&others), index)),
        };
        if primary.agreement.accused.is_some() {
            return Ok(());
        }
        tracing::error!(
            "the tables of node {} differ from this node's after record {index}, {}: check this node's first",
            primary.names(&stores),
            if alone { "and nobody else can be asked" } else { "which most agree with" },
        );
        primary.agreement.accused = Some(Accused { stores, index, alone });
        self.effects.push(Effect::Scrub);
        Ok(())
    }

    /// This store is what its digests say. If the scrub was for others that differ, those are not what
    /// was written.
    pub(crate) fn on_scrubbed(&mut self) {
        let view = self.view();
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(Accused { stores, index, alone }) = primary.agreement.accused.take() else {
            return;
        };
        if alone {
            primary.agreement.unconfirmed = stores.first().map(|store| (*store, index));
        }
        for store in stores {
            self.send(store, PeerMessage::Differs { view, index });
        }
    }

    /// This follower's tables differ from the primary's, which are what was written.
    pub(crate) fn on_differs(
        &mut self,
        from: StoreId,
        view: View,
        index: Index,
    ) -> Result<(), Stop> {
        if !self.is_from_my_primary(from, view) {
            return Ok(());
        }
        Err(Stop(format!(
            "the tables of this store differ from those of the primary (node {from}) after record {index}, and the primary's are what was written. Give this node a new, empty folder: it catches up from the others"
        )))
    }
}

fn outvoted(others: &str, index: Index) -> Stop {
    Stop(format!(
        "the tables of this primary differ after record {index} from those of {others}, which agree with each other: this store is damaged. When another node has taken over, give this one a new, empty folder: it catches up"
    ))
}

fn contradicted(told: StoreId, store: StoreId, index: Index) -> Stop {
    Stop(format!(
        "the tables of node {store} differ from this primary's after record {index}, as those of node {told} did before, and no other store agrees with this one: more likely it is this store that is damaged. Keep the folders of all three, and compare them (`onced scrub`) before any is emptied"
    ))
}
