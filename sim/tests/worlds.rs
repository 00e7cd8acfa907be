//! A few worlds, in every run of the tests; `cargo run -p onlyonce-sim --release` runs thousands.

use onlyonce_sim::{Report, Sight, Trial, run_many};

/// The invariants hold in every step of every world, and every history has an order.
#[test]
fn worlds_keep_their_promises() {
    let mut sum = Report::default();
    let mut failed = Vec::new();
    run_many(0..100, Trial::default(), |result| {
        match result {
            Ok(report) => sum.add(&report),
            Err(failure) => failed.push(failure),
        }
        failed.is_empty()
    });
    if let Some(failure) = failed.first() {
        panic!("{failure}");
    }
    let (crashes, emptied) = (sum.seen(Sight::Crashed), sum.seen(Sight::DiskEmptied));
    let (restored, taken_up) = (sum.seen(Sight::Restored), sum.seen(Sight::OutboxTakenUp));
    assert!(restored > 3 && taken_up > 3, "{restored} restores, {taken_up} taken up of outboxes");
    assert!(
        crashes > 50 && emptied > 5 && sum.views > 200 && sum.answered > 5_000,
        "{crashes} crashes, {emptied} disks emptied, {} views, {} answered",
        sum.views,
        sum.answered
    );
}
