//! What only etcd can get wrong: several endpoints, other keys, foreign values, lost histories.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use etcd_client::Client;
use onlyonce_node::authority::{Authority, Swap};
use onlyonce_wire::authority::{Revision, Versioned};
use onlyonce_wire::limits::NAME_BYTES_MAX;

use super::server::{Server, answers, etcd_client, free_address};
use super::{register, swapped};

async fn raw(server: &Server) -> Client {
    Client::connect([server.address()], None).await.expect("connects")
}

/// Dead and silent endpoints before the one that works delay a call, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn dead_endpoints_do_not_stall() {
    let server = Server::etcd();
    answers(&server.etcd_client("default")).await;
    // Its system takes connections; nobody ever reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").expect("binds");
    let silent = silent.local_addr().expect("an address").to_string();
    let (dead, live) = (free_address(), server.address());
    for endpoints in [format!("{dead},{silent},{live}"), format!("{silent},{dead},{live}")] {
        let authority = etcd_client(&format!("etcd://{endpoints}/{}", endpoints.len()));
        let begun = Instant::now();
        let now = authority.read().await.expect("one is alive");
        let revision = swapped(&authority, now.revision, register(1, 1)).await;
        assert_eq!(authority.watch(now.revision).await.expect("news").revision, revision);
        assert!(begun.elapsed() < Duration::from_secs(2), "{endpoints}: {:?}", begun.elapsed());
    }
    let none = etcd_client(&format!("etcd://{dead},{}", free_address()));
    let error = none.read().await.expect_err("both are dead").to_string();
    assert!(error.contains(&dead) && error.contains("refused"), "{error}");
}

/// Registers of several names share one etcd: changes of one do not move the revision of another.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_apart() {
    let server = Server::etcd();
    let (one, two) = (server.etcd_client("one"), server.etcd_client("two"));
    answers(&one).await;
    let first = swapped(&one, Revision(0), register(1, 1)).await;
    let mut other = Revision(0);
    for view in 1..=3 {
        other = swapped(&two, other, register(view, 2)).await;
    }
    let now = one.read().await.expect("a read");
    assert_eq!(now, Versioned { revision: first, register: Some(register(1, 1)) });
    let second = swapped(&one, first, register(2, 1)).await;
    assert!(second > other, "etcd counts the changes of all keys: {second:?} after {other:?}");
}

/// A value that is no register is named with its key and the endpoint, and never swapped silently.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_value_is_refused() {
    let server = Server::etcd();
    let authority = server.etcd_client("x");
    answers(&authority).await;
    raw(&server).await.put("/onlyonce/x/view", "hello", None).await.expect("put");
    let error = authority.read().await.expect_err("no register").to_string();
    for word in [server.address(), "/onlyonce/x/view", "format"] {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    let error = authority.watch(Revision(0)).await.expect_err("no register").to_string();
    assert!(error.contains("/onlyonce/x/view"), "{error}");
    let swap = authority.compare_and_swap(Revision(0), register(1, 1)).await;
    assert!(matches!(swap, Swap::Unknown(_)), "{swap:?}");
}

/// A key that somebody deletes reads as never written, and the watch tells at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_was_never_written() {
    let server = Server::etcd();
    let authority = std::sync::Arc::new(server.etcd_client("default"));
    answers(&*authority).await;
    let revision = swapped(&*authority, Revision(0), register(1, 1)).await;
    let watching = std::sync::Arc::clone(&authority);
    let watch = tokio::spawn(async move { watching.watch(revision).await });
    raw(&server).await.delete("/onlyonce/default/view", None).await.expect("deleted");
    let begun = Instant::now();
    let empty = Versioned { revision: Revision(0), register: None };
    assert_eq!(watch.await.expect("no panic").expect("news"), empty);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(authority.watch(Revision(0)).await.expect("waits"), empty);
    assert!(begun.elapsed() > Duration::from_secs(3), "no change was waited for: it would spin");
}

/// A watch does not need the history of the key, which etcd forgets.
#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_history_is_not_needed() {
    let server = Server::etcd();
    let authority = std::sync::Arc::new(server.etcd_client("default"));
    answers(&*authority).await;
    let mut revision = Revision(0);
    for view in 1..=5 {
        revision = swapped(&*authority, revision, register(view, 1)).await;
    }
    let now = i64::try_from(revision.0).expect("small");
    raw(&server).await.compact(now, None).await.expect("compacted");
    assert_eq!(authority.watch(Revision(1)).await.expect("at once").revision, revision);
    let watching = std::sync::Arc::clone(&authority);
    let watch = tokio::spawn(async move { watching.watch(revision).await });
    let newer = swapped(&*authority, revision, register(6, 1)).await;
    assert_eq!(watch.await.expect("no panic").expect("news").revision, newer);
}

/// A register over its limit is refused before it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn the_length_is_limited() {
    let server = Server::etcd();
    let authority = server.etcd_client("default");
    answers(&authority).await;
    let mut long = register(1, 1);
    long.primary.name = "x".repeat(NAME_BYTES_MAX);
    long.backups = vec![long.primary.clone(); 40];
    let swap = authority.compare_and_swap(Revision(0), long).await;
    assert!(matches!(&swap, Swap::Unknown(error) if error.0.contains("at most")), "{swap:?}");
    assert_eq!(authority.read().await.expect("a read").revision, Revision(0));
}
