//! Rows that make a store large enough for a snapshot of it to take a while, each with a value that
//! can be told: from nothing, a few bytes, up to values that take several rows of the database.

use std::sync::Arc;

use onlyonce_client::Client;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::client::{client, runtime};

/// The longest value, in bytes.
const VALUE_BYTES: u64 = 40_000;
/// How many writes are under way at once.
const OUTSTANDING: usize = 8;

/// Rows of a known generation: each one rewrites most of the rows, and deletes some.
pub struct Ballast {
    rows: u64,
    generation: u64,
    runtime: Runtime,
}

impl Ballast {
    /// Writes so many rows, of 20 kB on average.
    ///
    /// # Panics
    /// When the system has no threads left, or a write is refused.
    #[must_use]
    pub fn write(nodes: &[String], rows: u64) -> Self {
        let mut ballast = Self { rows, generation: 0, runtime: runtime(1) };
        ballast.rewrite(nodes);
        ballast
    }

    /// Writes the next generation.
    ///
    /// # Panics
    /// When a write is refused.
    pub fn rewrite(&mut self, nodes: &[String]) {
        self.generation += 1;
        let generation = self.generation;
        self.each_row(nodes, move |client, row| async move {
            let wrote = match value(row, generation) {
                Some(value) => client.put(key(row), value).await,
                None => client.delete(key(row)).await.map(drop),
            };
            wrote.unwrap_or_else(|error| panic!("row {row}: {error}"));
        });
    }

    /// Reads every row back.
    ///
    /// # Panics
    /// When one is not of the newest generation.
    pub fn check(&self, nodes: &[String]) {
        let generation = self.generation;
        self.each_row(nodes, move |client, row| async move {
            let found = client.get(key(row)).await.expect("a read without a deadline ends");
            let same = found.as_deref() == value(row, generation).as_deref();
            let bytes = found.map(|value| value.len());
            assert!(same, "row {row} has {bytes:?} bytes, none of generation {generation}");
        });
    }

    /// About how many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (0..self.rows).filter_map(|row| value(row, self.generation)).map(|it| it.len() as u64).sum()
    }

    fn each_row<F>(&self, nodes: &[String], work: impl Fn(Client, u64) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.runtime.block_on(async {
            let client = client(nodes);
            let room = Arc::new(Semaphore::new(OUTSTANDING));
            let mut tasks = tokio::task::JoinSet::new();
            for row in 0..self.rows {
                let place = Arc::clone(&room).acquire_owned().await;
                let work = work(client.clone(), row);
                tasks.spawn(async move {
                    work.await;
                    drop(place);
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.expect("no row is wrong");
            }
        });
    }
}

fn key(row: u64) -> String {
    format!("ballast/{row}")
}

/// What a row holds; every fifth is absent, another one in each generation.
fn value(row: u64, generation: u64) -> Option<Vec<u8>> {
    let present = !(row + generation).is_multiple_of(5);
    let pattern = format!("{row}.{generation};").into_bytes();
    let length = row * 7_919 % VALUE_BYTES;
    present.then(|| pattern.into_iter().cycle().take(length as usize).collect())
}
