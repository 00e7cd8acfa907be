//! The client against a server that misbehaves on command.

mod deadlines;
mod fake;
mod fates;
mod finding;
mod keys;
mod outbox;
mod refusals;
mod retries;
mod semantics;
mod sessions;

use std::time::Duration;

use fake::FakeNode;
use onlyonce_client::{Client, ClientBuilder};

/// A client of one node that loses patience quickly.
fn client(node: &FakeNode) -> Client {
    builder([node]).build().expect("an address")
}

fn builder<'a>(nodes: impl IntoIterator<Item = &'a FakeNode>) -> ClientBuilder {
    let addresses = nodes.into_iter().map(|node| node.address.clone());
    Client::builder().nodes(addresses).attempt_timeout(Duration::from_millis(200))
}
