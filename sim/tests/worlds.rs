//! A few worlds, in every run of the tests; `cargo run -p onlyonce-sim --release` runs thousands.

/// The invariants hold in every step of every world, and every history has an order.
#[test]
fn worlds_keep_their_promises() {
    let seeds: Vec<u64> = (0..60).collect();
    let mut crashes = 0;
    let mut views = 0;
    let mut answered = 0;
    for seed in seeds {
        match onlyonce_sim::run(seed, false) {
            Ok(report) => {
                crashes += report.crashes;
                views += report.views;
                answered += report.answered;
            }
            Err(finding) => {
                panic!("{finding}\n`cargo run -p onlyonce-sim -- --seed {seed} --trace` tells more")
            }
        }
    }
    assert!(crashes > 20 && views > 100 && answered > 5_000, "{crashes} {views} {answered}");
}
