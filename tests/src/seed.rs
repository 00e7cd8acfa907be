//! Random tests that can be repeated.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// The seed of this run: `ONCE_SEED`, or a fresh one. Printed, so that a failure can be repeated.
///
/// # Panics
/// When `ONCE_SEED` is not a number.
#[must_use]
pub fn seed(test: &str) -> u64 {
    let seed = match std::env::var("ONCE_SEED") {
        Ok(set) => set.parse().unwrap_or_else(|_| panic!("ONCE_SEED={set:?}: a number is needed")),
        Err(_) => u64::from(rand::random::<u32>()),
    };
    println!("{test}: ONCE_SEED={seed}");
    seed
}

/// A generator for this test's choices.
#[must_use]
pub fn rng(test: &str) -> StdRng {
    StdRng::seed_from_u64(seed(test))
}
