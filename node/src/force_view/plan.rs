//! What is to be done with the stores and the register as they were found: a pure function, so that
//! each case can be tested.
//!
//! The register decides. A store enters an incarnation only when the register names it as the primary
//! of that incarnation's first view; so of two attempts only one can lead to anything, and whatever
//! is cut short is finished, or begun anew, by what the register holds.

use std::path::PathBuf;

use onlyonce_replica::{Owner, Position, Saved, forced_view, is_forced_view};
use onlyonce_storage::{Checkpoint, Index};
use onlyonce_wire::authority::{Member, Register, Revision, Versioned};
use onlyonce_wire::{ClusterId, Incarnation, StoreId, View};

/// A store, as its folder shows it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where it lies.
    pub folder: PathBuf,
    /// Its id.
    pub store: StoreId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node, as it last introduced itself.
    pub me: Member,
    /// Its replication state.
    pub saved: Saved,
    /// The end of its log.
    pub last: Position,
    /// The newest record that it knows to be committed.
    pub committed: Index,
    /// The state that its tables hold.
    pub checkpoint: Checkpoint,
}

impl Found {
    /// A store that belongs to a cluster; else why it cannot be used.
    pub fn new(
        folder: PathBuf,
        store: StoreId,
        saved: Saved,
        last: Position,
        committed: Index,
        checkpoint: Checkpoint,
    ) -> Result<Self, String> {
        match (saved.owner, saved.me.clone()) {
            (Some(Owner::Cluster(cluster)), Some(me)) => {
                Ok(Self { folder, store, cluster, me, saved, last, committed, checkpoint })
            }
            (Some(Owner::Lone | Owner::Restored(_)), _) => Err(format!(
                "{} belongs to a lone node, which needs no view: start it without --authority, or \
                 with --bootstrap beside it to make it the first primary of a new cluster",
                folder.display()
            )),
            (Some(Owner::Cluster(_)) | None, _) => Err(format!(
                "{} belongs to no cluster yet: leave it out. A node on it joins by itself",
                folder.display()
            )),
        }
    }

    /// What it was in the newest view that it knows.
    pub fn role(&self) -> &'static str {
        match self.saved.replicas.iter().position(|member| member.store == self.store) {
            Some(0) => "primary",
            Some(_) => "backup",
            None => "learner",
        }
    }

    /// Where its history stands; later is higher.
    fn era(&self) -> (Incarnation, View) {
        (self.saved.incarnation, View(self.saved.view.0))
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The store that goes on, by its place.
    pub chosen: usize,
    /// How.
    pub step: Step,
}

/// How far it is done already.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The register is to be changed, then the store.
    Swap {
        /// The revision that the register must still have.
        expected: Revision,
        /// The view to be forced.
        register: Register,
    },
    /// The register names the store already; the store is to be told.
    Finish(Register),
    /// Both are done.
    Done(Register),
}

impl Step {
    /// The view that is forced.
    pub fn register(&self) -> &Register {
        match self {
            Self::Swap { register, .. } | Self::Finish(register) | Self::Done(register) => register,
        }
    }
}

/// Decides what to do; `wanted` is the name or the store id that the user chose, `now_ms` the time in
/// milliseconds since 1970. Else says why nothing may be done, and what to do instead.
pub fn decide(
    stores: &[Found],
    now: &Versioned,
    wanted: Option<&str>,
    now_ms: u64,
) -> Result<Plan, String> {
    let cluster = one_cluster(stores)?;
    let (newest, newest_view) = stores.iter().map(Found::era).max().expect("a store is given");
    let chosen = choose(stores, newest, wanted)?;
    let Versioned { revision, register } = now;
    let mut view = stores.iter().map(|found| found.era().1).max().expect("a store is given");
    let mut incarnation = newest;
    if let Some(register) = register {
        if register.cluster != cluster {
            return Err(format!(
                "the register holds the view of cluster {}, and these stores are of cluster \
                 {cluster}: check --authority. If somebody made a new cluster there by mistake, stop \
                 its nodes, start the authority on a new, empty folder (with etcd choose another \
                 NAME), and run this again",
                register.cluster
            ));
        }
        if let Some(plan) = begun_already(stores, register, chosen, wanted)? {
            return Ok(plan);
        }
        if (register.incarnation, register.view) >= (newest, newest_view) {
            return Err(intact(register));
        }
        view = view.max(register.view);
        incarnation = incarnation.max(register.incarnation);
    }
    let incarnation = incarnation.following(now_ms);
    let me = stores[chosen].me.clone();
    let register = forced_view(cluster, incarnation, view.next(), me);
    Ok(Plan { chosen, step: Step::Swap { expected: *revision, register } })
}

/// The cluster that all belong to; else why they do not go together.
fn one_cluster(stores: &[Found]) -> Result<ClusterId, String> {
    let first = &stores[0];
    for (place, found) in stores.iter().enumerate().skip(1) {
        if found.cluster != first.cluster {
            return Err(format!(
                "{} belongs to cluster {}, and {} to cluster {}: give the stores of one cluster only",
                first.folder.display(),
                first.cluster,
                found.folder.display(),
                found.cluster
            ));
        }
        stores[..place].iter().try_for_each(|other| check_pair(other, found))?;
    }
    Ok(first.cluster)
}

/// Two stores of a cluster are no copies of one, are of one history, and hold the same after the same
/// record.
fn check_pair(one: &Found, other: &Found) -> Result<(), String> {
    let (mine, theirs) = (one.folder.display(), other.folder.display());
    if one.store == other.store {
        return Err(format!(
            "{mine} and {theirs} are copies of one store, {}: give the one that a node used last, and \
             never start a node on the other",
            one.store
        ));
    }
    let made = one.saved.made_by.zip(other.saved.made_by);
    if one.era() == other.era() && made.is_some_and(|(one, other)| one != other) {
        return Err(format!(
            "{mine} and {theirs} both took part in view {} of incarnation {}, but not in the same one: \
             two proposals made a view of this number, as after an authority was put back to an older \
             copy. What one of them acknowledged is not in the other's history: give only the stores of \
             the history that is to go on",
            one.era().1,
            one.era().0
        ));
    }
    let mark = one.checkpoint.mark;
    if mark == other.checkpoint.mark && one.checkpoint != other.checkpoint {
        return Err(format!(
            "the tables of {mine} and {theirs} differ, though both are as of record {}: one of them is \
             damaged. `onced scrub` tells which: leave it out",
            mark.index
        ));
    }
    Ok(())
}

/// The store that goes on: the one that the user wants, else the one whose log goes furthest, by the
/// view and then the index of its last record; of equals one that was the primary, then the first.
fn choose(stores: &[Found], newest: Incarnation, wanted: Option<&str>) -> Result<usize, String> {
    let is_newest = |found: &Found| found.saved.incarnation == newest;
    let Some(wanted) = wanted else {
        let candidates = stores.iter().enumerate().filter(|(_, found)| is_newest(found));
        let rank = |place: usize, found: &Found| {
            (found.last.view, found.last.index, found.role() == "primary", usize::MAX - place)
        };
        let best = candidates.max_by_key(|(place, found)| rank(*place, found));
        return Ok(best.expect("one store is of the newest incarnation").0);
    };
    let is_wanted = |found: &Found| found.me.name == wanted || found.store.to_string() == wanted;
    let mut places = (0..stores.len()).filter(|place| is_wanted(&stores[*place]));
    let Some(place) = places.next() else {
        return Err(format!("--primary {wanted}: none of these stores has this name or id"));
    };
    if places.next().is_some() {
        return Err(format!(
            "--primary {wanted}: several of these stores have this name: give an id"
        ));
    }
    if !is_newest(&stores[place]) {
        return Err(format!(
            "--primary {wanted}: its store is of incarnation {}, and another one here of {newest}: \
             its history ended there",
            stores[place].saved.incarnation
        ));
    }
    Ok(place)
}

/// What an earlier run, cut short or not, has left to do.
fn begun_already(
    stores: &[Found],
    register: &Register,
    chosen: usize,
    wanted: Option<&str>,
) -> Result<Option<Plan>, String> {
    let named = stores.iter().position(|found| found.store == register.primary.store);
    let Some(named) = named.filter(|_| is_forced_view(register)) else { return Ok(None) };
    let found = &stores[named];
    let (theirs, mine) = ((register.incarnation, register.view), found.era());
    if wanted.is_some() && chosen != named {
        return Err(format!(
            "an earlier run has put {} into the register already, for incarnation {}: repeat it with \
             --primary {}, or without --primary",
            found.me.name, register.incarnation, found.store
        ));
    }
    let step = if theirs == mine {
        Step::Done(register.clone())
    } else if theirs.0 > mine.0 && theirs.1 > mine.1 {
        Step::Finish(register.clone())
    } else {
        return Ok(None);
    };
    Ok(Some(Plan { chosen: named, step }))
}

fn intact(register: &Register) -> String {
    let replicas: Vec<_> = register
        .replicas()
        .map(|member| format!("{} (store {})", member.name, member.store))
        .collect();
    format!(
        "the register is not lost: it holds view {} of incarnation {}, and none of these stores knows \
         a later one. Start the nodes of that view: {}. If the folders of all of them are lost for \
         good, start the authority on a new, empty folder (with etcd choose another NAME), and run \
         this again",
        register.view,
        register.incarnation,
        replicas.join(", ")
    )
}

/// What of all that was acknowledged the chosen store may lack, as far as the stores tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: all replicas of the newest view are here.
    None,
    /// Nothing of the newest view that is known; but these replicas of it are not here, and may have
    /// made later ones.
    UnlessLater(Vec<Member>),
    /// Whatever the replicas of the newest view have after the chosen store's last record.
    Tail(Vec<Member>),
}

/// See [`Loss`]; with it goes the newest view that the stores know.
pub fn loss(stores: &[Found], chosen: usize) -> (View, Loss) {
    let newest = stores.iter().max_by_key(|found| found.era()).expect("a store is given");
    let replicas = &newest.saved.replicas;
    let here = |member: &Member| stores.iter().find(|found| found.store == member.store);
    let chosen = &stores[chosen];
    let end = |found: &Found| (found.last.view, found.last.index);
    // A replica holds all that was acknowledged, and so does every log that goes as far.
    let has_all = replicas.iter().any(|member| {
        member.store == chosen.store || here(member).is_some_and(|found| end(found) <= end(chosen))
    });
    let missing: Vec<_> =
        replicas.iter().filter(|member| here(member).is_none()).cloned().collect();
    let loss = match (has_all, missing.is_empty()) {
        (true, true) => Loss::None,
        (true, false) => Loss::UnlessLater(missing),
        (false, _) => Loss::Tail(replicas.clone()),
    };
    (newest.era().1, loss)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use onlyonce_storage::{Digests, Table};
    use onlyonce_wire::{ProposalId, codec};

    use super::super::report::intention;
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;
    const CLUSTER: ClusterId = ClusterId(9);

    fn member(number: u128) -> Member {
        let address = format!("127.0.0.1:{number}");
        Member {
            store: StoreId(number),
            name: format!("n{number}"),
            client_address: address.clone(),
            peer_address: address,
        }
    }

    /// Store `number`, which took part in `view` beside `replicas`; its log ends at `last`.
    fn found(number: u128, view: u64, replicas: &[u128], last: (u64, u64)) -> Found {
        let saved = Saved {
            owner: Some(Owner::Cluster(CLUSTER)),
            view: onlyonce_storage::View(view),
            me: Some(member(number)),
            replicas: replicas.iter().map(|number| member(*number)).collect(),
            ..Saved::fresh()
        };
        let last = Position { view: onlyonce_storage::View(last.0), index: Index(last.1) };
        let folder = format!("/n{number}").into();
        let checkpoint = Checkpoint::default();
        Found::new(folder, StoreId(number), saved, last, Index(0), checkpoint)
            .expect("of a cluster")
    }

    /// Of tables that hold something.
    fn digests() -> Digests {
        let sums = codec::encode(&[1_u128; Table::ALL.len()]);
        codec::decode::<Digests, 128>(&sums).expect("digests are their sums")
    }

    fn empty() -> Versioned {
        Versioned { revision: Revision(0), register: None }
    }

    fn holds(register: Register) -> Versioned {
        Versioned { revision: Revision(4), register: Some(register) }
    }

    /// A register that nodes made.
    fn made(incarnation: u64, view: u64, primary: u128) -> Register {
        let register = forced_view(CLUSTER, Incarnation(incarnation), View(view), member(primary));
        Register { proposal: ProposalId(77), ..register }
    }

    fn chosen(stores: &[Found], wanted: Option<&str>) -> u128 {
        let plan = decide(stores, &empty(), wanted, NOW_MS).expect("it can be done");
        stores[plan.chosen].store.0
    }

    fn refusal(stores: &[Found], now: &Versioned, wanted: Option<&str>) -> String {
        decide(stores, now, wanted, NOW_MS).expect_err("it must not be done")
    }

    /// The log that goes furthest is chosen, first by view; of equals the primary's.
    #[test]
    fn the_longest_log_of_the_newest_view_goes_on() {
        let older_but_longer = found(1, 2, &[1, 2], (2, 90));
        let newer = found(2, 3, &[2], (3, 80));
        assert_eq!(chosen(&[older_but_longer.clone(), newer.clone()], None), 2);
        assert_eq!(chosen(&[newer.clone(), older_but_longer.clone()], Some("n1")), 1);
        let id = StoreId(1).to_string();
        assert_eq!(chosen(&[newer, older_but_longer], Some(&id)), 1);
        let (backup, primary) = (found(2, 5, &[1, 2], (5, 7)), found(1, 5, &[1, 2], (5, 7)));
        assert_eq!(chosen(&[backup.clone(), primary.clone()], None), 1);
        let longer = Found { last: Position { index: Index(8), ..backup.last }, ..backup };
        assert_eq!(chosen(&[longer, primary], None), 2);
    }

    /// The forced view is above all that any store or the register ever knew, and its incarnation too.
    #[test]
    fn the_forced_view_is_above_everything() {
        let stores = [found(1, 2, &[1, 2], (2, 9)), found(2, 7, &[2], (2, 9))];
        let plan = decide(&stores, &holds(made(1, 4, 1)), None, NOW_MS).expect("older register");
        let Step::Swap { expected, register } = plan.step else { panic!("{plan:?}") };
        assert_eq!((expected, register.view, register.cluster), (Revision(4), View(8), CLUSTER));
        assert_eq!(register.incarnation, Incarnation(NOW_MS));
        assert!(is_forced_view(&register) && register.backups.is_empty());
        let mut later = stores.clone();
        later[0].saved.incarnation = Incarnation(NOW_MS + 5);
        let plan = decide(&later, &empty(), None, NOW_MS).expect("it can be done");
        assert_eq!(plan.step.register().incarnation, Incarnation(NOW_MS + 6), "a clock put back");
        assert_eq!(later[plan.chosen].store, StoreId(1), "the other history ended before");
        let text = refusal(&later, &empty(), Some("n2"));
        assert!(text.contains("its history ended there"), "{text}");
    }

    /// Whatever an earlier run left is gone on with, and with nothing else; once a node has made a
    /// view of its own, the register is not lost any more, whoever comes with an old copy.
    #[test]
    fn an_earlier_run_is_finished() {
        let stores = [found(1, 2, &[1, 2], (2, 9)), found(2, 2, &[1, 2], (2, 9))];
        let forced = forced_view(CLUSTER, Incarnation(50), View(3), member(2));
        let plan = decide(&stores, &holds(forced.clone()), None, NOW_MS).expect("unfinished");
        assert_eq!(plan, Plan { chosen: 1, step: Step::Finish(forced.clone()) });
        let text = refusal(&stores, &holds(forced.clone()), Some("n1"));
        assert!(text.contains("an earlier run"), "{text}");
        let mut told = stores.clone();
        told[1].saved = told[1].saved.in_forced_view(&forced);
        let plan = decide(&told, &holds(forced.clone()), None, NOW_MS).expect("finished");
        assert_eq!(plan, Plan { chosen: 1, step: Step::Done(forced) });
        for stores in [&stores, &told] {
            let text = refusal(stores, &holds(made(50, 4, 2)), None);
            assert!(text.contains("the register is not lost"), "{text}");
        }
        // The register was lost once more: the next incarnation, by the store that is of the newest.
        let plan = decide(&told, &empty(), None, NOW_MS).expect("lost again");
        assert_eq!((plan.chosen, plan.step.register().view), (1, View(4)));
    }

    /// What does not belong together is refused.
    #[test]
    fn what_does_not_belong_is_refused() {
        let one = found(1, 2, &[1, 2], (2, 9));
        let text = refusal(from_ref(&one), &holds(made(1, 2, 1)), None);
        assert!(text.contains("view 2 of incarnation 1") && text.contains("n1"), "{text}");
        let other = Register { cluster: ClusterId(3), ..made(1, 1, 5) };
        let text = refusal(from_ref(&one), &holds(other), None);
        assert!(text.contains(&ClusterId(3).to_string()), "{text}");
        let stranger = Found { cluster: ClusterId(3), ..found(2, 2, &[2], (2, 9)) };
        let text = refusal(&[one.clone(), stranger], &empty(), None);
        assert!(text.contains("the stores of one cluster only"), "{text}");
        let text = refusal(&[one.clone(), one.clone()], &empty(), None);
        assert!(text.contains("copies of one store"), "{text}");
        let two = found(2, 2, &[1, 2], (2, 9));
        let damaged =
            Found { checkpoint: Checkpoint { digests: digests(), ..two.checkpoint }, ..two };
        let text = refusal(&[one.clone(), damaged], &empty(), None);
        assert!(text.contains("differ") && text.contains("onced scrub"), "{text}");
        let made_by = |found: &Found, proposal| {
            let made_by = Some(ProposalId(proposal));
            Found { saved: Saved { made_by, ..found.saved.clone() }, ..found.clone() }
        };
        let two = found(2, 2, &[1, 2], (2, 9));
        let text = refusal(&[made_by(&one, 7), made_by(&two, 8)], &empty(), None);
        assert!(text.contains("/n1 and /n2") && text.contains("view 2 of incarnation 1"), "{text}");
        assert_eq!(chosen(&[made_by(&one, 7), made_by(&two, 7)], None), 1, "one view");
        let later = found(2, 3, &[1, 2], (3, 9));
        assert_eq!(chosen(&[made_by(&one, 7), made_by(&later, 8)], None), 2, "two views");
        let text = refusal(from_ref(&one), &empty(), Some("n7"));
        assert!(text.contains("none of these stores"), "{text}");
        let twin = Found { me: one.me.clone(), ..found(2, 2, &[1, 2], (2, 9)) };
        let text = refusal(&[one, twin], &empty(), Some("n1"));
        assert!(text.contains("several of these stores"), "{text}");
    }

    /// Only the replicas of the newest view, all of them, show that nothing is lost.
    #[test]
    fn what_may_be_lost_is_told() {
        let (primary, backup) = (found(1, 4, &[1, 2], (4, 20)), found(2, 4, &[1, 2], (4, 18)));
        let both = [primary.clone(), backup.clone()];
        assert_eq!(loss(&both, 0), (View(4), Loss::None));
        assert_eq!(loss(&both, 1), (View(4), Loss::None), "it is a replica of the view");
        assert_eq!(loss(&[backup], 0), (View(4), Loss::UnlessLater(vec![member(1)])));
        let learner = found(3, 4, &[1, 2], (4, 11));
        let tail = Loss::Tail(vec![member(1), member(2)]);
        assert_eq!(loss(from_ref(&learner), 0), (View(4), tail.clone()));
        assert_eq!(loss(&[learner, primary.clone()], 0), (View(4), tail));
        let level = found(3, 4, &[1, 2], (4, 20));
        assert_eq!(
            loss(&[level, primary.clone()], 0),
            (View(4), Loss::UnlessLater(vec![member(2)]))
        );
        let (dropped, alone) = (found(2, 4, &[1, 2], (4, 18)), found(1, 5, &[1], (5, 30)));
        let tail = Loss::Tail(vec![member(1)]);
        assert_eq!(loss(&[dropped, alone], 0), (View(5), tail));
    }

    /// Where something may be lost, the line says what becomes of it when it is sent again; where
    /// nothing is, it does not.
    #[test]
    fn it_is_told_what_runs_anew() {
        let both = [found(1, 4, &[1, 2], (4, 20)), found(2, 4, &[1, 2], (4, 20))];
        let learner = found(3, 4, &[1, 2], (4, 11));
        let cases = [(&both[..], false), (&both[..1], true), (from_ref(&learner), true)];
        for (stores, may_lose) in cases {
            let plan = decide(stores, &empty(), None, NOW_MS).expect("it can be done");
            let text = intention(stores, &plan, false);
            let lost = text.lines().find(|line| line.starts_with("lost")).expect("the line");
            assert_eq!(lost.contains("a named idempotency key, it runs anew"), may_lose, "{lost}");
        }
    }
}
