//! Clients of the library, and the threads that they run on.

use onlyonce_client::Client;
use tokio::runtime::{Builder, Runtime};

/// A client with the library's defaults.
///
/// # Panics
/// Never, with real addresses.
#[must_use]
pub fn client(addresses: &[String]) -> Client {
    Client::builder().nodes(addresses.iter().cloned()).build().expect("addresses of nodes")
}

/// A runtime with so many threads.
///
/// # Panics
/// When the system has none left.
#[must_use]
pub fn runtime(threads: usize) -> Runtime {
    let built = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    built.expect("threads")
}
