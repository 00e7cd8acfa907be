//! How long a cluster of two with the default timing is without its primary: from `kill -9` to the
//! first acknowledged write. `scripts/failover` measures it with a release build.

use std::time::Duration;

use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Cluster, Recorder};

/// How often the primary is killed, unless `ONCE_FAILOVERS` says otherwise.
const KILLS: usize = 5;
/// What half of the failovers may take at most. A debug build shares its machine with other tests.
const MEDIAN_MAX: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(2) } else { Duration::from_secs(1) };

/// Clients write all the while; after each kill the killed node comes back and becomes a backup. The
/// write that counts was sent after the primary was dead: no late answer of the dead one is taken for
/// a failover.
#[test]
fn a_killed_primary_is_replaced_in_time() {
    let kills = std::env::var("ONCE_FAILOVERS").ok().map_or(KILLS, |text| {
        text.parse().ok().filter(|kills| *kills > 0).expect("ONCE_FAILOVERS is a number from 1")
    });
    let mut cluster = Cluster::start(2, &[]);
    let recorder =
        Recorder::start("a_killed_primary_is_replaced_in_time", cluster.addresses(), 3, 0);
    let mut times = Vec::new();
    for _ in 0..kills {
        let primary = cluster.wait_whole();
        recorder.progress(100);
        let killed = recorder.now();
        cluster.nodes[primary].kill();
        let dead = recorder.now();
        let acknowledged = wait_for("an acknowledged write", BOUND, || {
            recorder.first_acknowledged_since(dead).ok_or_else(|| "there is none".to_owned())
        });
        times.push(Duration::from_nanos(acknowledged - killed));
        cluster.nodes[primary].start();
    }
    cluster.wait_whole();
    recorder.finish(&format!("{kills} kills of the primary"));
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    println!(
        "failover, {kills} kills: min {:?}, median {:?}, p90 {:?}, max {:?}",
        times[0],
        at(50),
        at(90),
        times[times.len() - 1]
    );
    println!("all: {times:.0?}");
    assert!(at(50) <= MEDIAN_MAX, "the median is over {MEDIAN_MAX:?}");
}
