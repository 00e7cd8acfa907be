//! Partitions by a network between the processes: both ways, one way, and late. The processes are
//! told nothing; all that clients saw meanwhile is recorded, and judged afterwards.

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Cluster, Place, Recorder, Status, Traffic};

/// A cluster under recorded load.
struct Scene {
    cluster: Cluster,
    recorder: Recorder,
}

impl Scene {
    fn new(test: &str) -> Self {
        let cluster = Cluster::start_networked(&[]);
        let mut recorder = Recorder::start(test, cluster.addresses(), 6, 1);
        recorder.observe(&cluster.sockets());
        Self { cluster, recorder }
    }

    /// A whole cluster under load; returns the primary's place.
    #[track_caller]
    fn whole(&self) -> usize {
        let primary = self.cluster.wait_whole();
        self.recorder.progress(200);
        primary
    }

    /// Waits until a node serves without the other one; returns its place.
    #[track_caller]
    fn wait_alone(&self) -> usize {
        wait_for("a node to go on alone", BOUND, || {
            let primary = self.cluster.try_primary()?;
            let status = self.cluster.nodes[primary].status()?;
            if status.backups.is_empty() { Ok(primary) } else { Err(format!("{status:?}")) }
        })
    }

    fn cut(&self, one: Place, other: Place) {
        self.cluster.network().set_both(one, other, Traffic::Vanishes);
    }

    /// The load goes on, the links are mended, and the cluster becomes whole. Who leads it then is no
    /// promise: a machine that stands still for longer than the grace makes another change of view.
    #[track_caller]
    fn mend(&self) {
        self.recorder.progress(200);
        self.cluster.network().mend();
        self.whole();
    }

    #[track_caller]
    fn finish(self, happened: &str) {
        assert!(self.cluster.network().vanished() > 0, "nothing vanished: nothing was cut");
        self.recorder.finish(happened);
    }
}

/// Nodes that cannot reach each other, but the authority and the clients both: one of them goes on
/// alone.
#[test]
fn nodes_are_cut_off_from_each_other() {
    let scene = Scene::new("nodes_are_cut_off_from_each_other");
    for _ in 0..2 {
        scene.whole();
        scene.cut(Place::Node(0), Place::Node(1));
        scene.wait_alone();
        scene.mend();
    }
    scene.finish("2 partitions both ways");
}

/// A backup that hears its primary, but is not heard, is dropped; the primary stays.
#[test]
fn a_backup_that_is_not_heard_is_dropped() {
    let scene = Scene::new("a_backup_that_is_not_heard_is_dropped");
    let primary = scene.whole();
    let (leader, backup) = (Place::Node(primary), Place::Node(1 - primary));
    scene.cluster.network().set(backup, leader, Traffic::Vanishes);
    assert_eq!(scene.wait_alone(), primary);
    scene.mend();
    scene.finish("1 partition one way, backup to primary");
}

/// A primary that hears its backup, but is not heard: whoever is faster at the authority goes on, and
/// the other one serves nothing.
#[test]
fn a_primary_that_is_not_heard_is_left() {
    let scene = Scene::new("a_primary_that_is_not_heard_is_left");
    let primary = scene.whole();
    let (leader, backup) = (Place::Node(primary), Place::Node(1 - primary));
    scene.cluster.network().set(leader, backup, Traffic::Vanishes);
    scene.wait_alone();
    scene.mend();
    scene.finish("1 partition one way, primary to backup");
}

/// A primary cut off from backup and authority, though not from its clients, is replaced, and
/// whoever asks it meanwhile is told nothing that the new one contradicts.
#[test]
fn a_primary_that_only_clients_reach_is_replaced() {
    let scene = Scene::new("a_primary_that_only_clients_reach_is_replaced");
    for _ in 0..2 {
        let primary = scene.whole();
        scene.cut(Place::Node(primary), Place::Node(1 - primary));
        scene.cut(Place::Node(primary), Place::Authority);
        scene.cluster.nodes[1 - primary].wait_status("to take over", Status::serves);
        scene.mend();
    }
    scene.finish("2 partitions of the primary from backup and authority");
}

/// A backup cut off from everybody is dropped, and comes back.
#[test]
fn a_backup_that_nobody_reaches_is_dropped() {
    let scene = Scene::new("a_backup_that_nobody_reaches_is_dropped");
    let primary = scene.whole();
    let backup = Place::Node(1 - primary);
    for other in [Place::Node(primary), Place::Authority, Place::Clients] {
        scene.cut(backup, other);
    }
    assert_eq!(scene.wait_alone(), primary);
    scene.mend();
    scene.finish("1 partition of the backup from all");
}

/// What the nodes sent each other comes after one of them went on alone: messages out of an older
/// view, which change nothing.
#[test]
fn messages_of_an_older_view_arrive_late() {
    let scene = Scene::new("messages_of_an_older_view_arrive_late");
    for _ in 0..2 {
        scene.whole();
        let (one, other) = (Place::Node(0), Place::Node(1));
        scene.cluster.network().set_both(one, other, Traffic::Waits);
        scene.wait_alone();
        scene.mend();
    }
    // A slow link only makes writes slow.
    scene.whole();
    let late = Traffic::Late(std::time::Duration::from_millis(20));
    scene.cluster.network().set_both(Place::Node(0), Place::Node(1), late);
    scene.recorder.progress(200);
    scene.cluster.network().mend();
    scene.recorder.finish("2 partitions with late messages, 1 slow link");
}
