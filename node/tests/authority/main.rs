//! What a node may rely on in an authority, whichever it is: the same test, against real processes
//! of the embedded authority and of etcd; and beside it what only one of them can get wrong.

mod disk;
mod etcd;
mod history;
mod lost_answer;
mod server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use onlyonce_node::authority::{Authority, Swap};
use onlyonce_wire::authority::{Member, Register, Revision, Versioned};
use onlyonce_wire::{ClusterId, Incarnation, ProposalId, StoreId, View};
use rand::Rng;
use rustix::process::Signal;
use server::{Server, answers};
use tokio::task::JoinSet;

/// Runs each of these tests once an authority, on a new one.
macro_rules! conformance {
    ($($(#[doc = $doc:literal])* $test:ident,)*) => {
        mod embedded_conforms {
            $($(#[doc = $doc])* #[tokio::test(flavor = "multi_thread")] async fn $test() {
                let server = super::Server::embedded();
                let authority = std::sync::Arc::new(server.embedded_client());
                super::answers(&*authority).await;
                super::$test(server, authority).await;
            })*
        }
        mod etcd_conforms {
            $($(#[doc = $doc])* #[tokio::test(flavor = "multi_thread")] async fn $test() {
                let server = super::Server::etcd();
                let authority = std::sync::Arc::new(server.etcd_client("default"));
                super::answers(&*authority).await;
                super::$test(server, authority).await;
            })*
        }
    };
}

conformance! {
    /// Written never, once, again, at a wrong revision, with the same value.
    a_register_is_compared_and_swapped,
    /// Of many proposals at one revision, exactly one wins, and all hear of that one.
    one_of_many_wins,
    /// A watch ends with a change, and without one after a while.
    a_watch_tells_of_changes,
    /// Dead or silent: an error within a bound; a swap is unknown, never refused.
    a_dead_authority_is_an_unknown_outcome,
    /// A kill keeps value and revision.
    a_restart_keeps_the_register,
    /// Killed again and again while swaps stream in: what was acknowledged stays, no revision is
    /// given twice.
    kills_lose_nothing,
}

/// How long a call may take whatever happens, the longest watch aside.
const CALL_BOUND: Duration = Duration::from_secs(6);

/// A register of view `view`, made by proposal `proposal`.
fn register(view: u64, proposal: u128) -> Register {
    let primary = Member {
        store: StoreId(1),
        name: "n1".to_owned(),
        client_address: "127.0.0.1:1".to_owned(),
        peer_address: "127.0.0.1:2".to_owned(),
    };
    Register {
        cluster: ClusterId(7),
        incarnation: Incarnation(1),
        view: View(view),
        proposal: ProposalId(proposal),
        bumps: 0,
        primary,
        backups: vec![],
    }
}

async fn swapped(authority: &impl Authority, expected: Revision, value: Register) -> Revision {
    match authority.compare_and_swap(expected, value).await {
        Swap::Swapped(revision) => revision,
        other => panic!("no swap at {expected:?}: {other:?}"),
    }
}

async fn a_register_is_compared_and_swapped(_server: Server, authority: Arc<impl Authority>) {
    let empty = Versioned { revision: Revision(0), register: None };
    assert_eq!(authority.read().await.expect("a read"), empty);
    match authority.compare_and_swap(Revision(5), register(1, 1)).await {
        Swap::Conflict(now) => assert_eq!(now, empty),
        other => panic!("a swap of what never was: {other:?}"),
    }
    let mut newest = empty.revision;
    for (view, proposal) in [(1, 1), (2, 2), (2, 2), (1, 3)] {
        let value = register(view, proposal);
        let revision = swapped(&*authority, newest, value.clone()).await;
        assert!(revision > newest, "{revision:?} after {newest:?}");
        let now = Versioned { revision, register: Some(value) };
        assert_eq!(authority.read().await.expect("a read"), now);
        for wrong in [Revision(0), newest, Revision(revision.0 + 1), Revision(u64::MAX >> 1)] {
            match authority.compare_and_swap(wrong, register(9, 9)).await {
                Swap::Conflict(found) => assert_eq!(found, now, "at {wrong:?}"),
                other => panic!("a swap at {wrong:?} of {now:?}: {other:?}"),
            }
        }
        newest = revision;
    }
}

async fn one_of_many_wins(_server: Server, authority: Arc<impl Authority>) {
    let mut expected = Revision(0);
    for round in 1..=5 {
        let mut racing = JoinSet::new();
        for racer in 0..16 {
            let authority = Arc::clone(&authority);
            racing.spawn(async move {
                let value = register(round, racer);
                (racer, authority.compare_and_swap(expected, value).await)
            });
        }
        let (mut winners, mut heard) = (Vec::new(), Vec::new());
        for (racer, swap) in racing.join_all().await {
            match swap {
                Swap::Swapped(revision) => winners.push((racer, revision)),
                Swap::Conflict(now) => heard.push(now),
                Swap::Unknown(error) => panic!("racer {racer}: {error}"),
            }
        }
        let [(winner, revision)] = winners[..] else { panic!("round {round}: {winners:?} won") };
        let now = Versioned { revision, register: Some(register(round, winner)) };
        assert!(revision > expected, "{revision:?} after {expected:?}");
        assert_eq!(heard, vec![now.clone(); 15]);
        assert_eq!(authority.read().await.expect("a read"), now);
        expected = revision;
    }
}

async fn a_watch_tells_of_changes(_server: Server, authority: Arc<impl Authority>) {
    let mut newest = Revision(0);
    for view in 1..=3 {
        let watching = Arc::clone(&authority);
        let watch = tokio::spawn(async move { watching.watch(newest).await });
        // Mostly with the watch under way, and at times before it.
        let head_start = Duration::from_millis(rand::rng().random_range(0..300));
        let _ = tokio::time::timeout(head_start, std::future::pending::<()>()).await;
        let begun = Instant::now();
        let revision = swapped(&*authority, newest, register(view, 1)).await;
        let news = watch.await.expect("no panic").expect("news");
        assert_eq!(news, Versioned { revision, register: Some(register(view, 1)) });
        assert!(begun.elapsed() < Duration::from_secs(3), "it woke after {:?}", begun.elapsed());
        newest = revision;
    }
    let begun = Instant::now();
    let old = authority.watch(Revision(0)).await.expect("an answer");
    assert_eq!(old.revision, newest);
    assert!(begun.elapsed() < Duration::from_secs(3), "old news came {:?} late", begun.elapsed());
    let begun = Instant::now();
    let same = authority.watch(newest).await.expect("an answer without a change");
    assert_eq!(same, old);
    let waited = begun.elapsed();
    assert!(waited > Duration::from_secs(1), "it did not wait: {waited:?}");
    assert!(waited < Duration::from_secs(20), "it waited {waited:?}");
}

async fn a_dead_authority_is_an_unknown_outcome(
    mut server: Server,
    authority: Arc<impl Authority>,
) {
    let revision = swapped(&*authority, Revision(0), register(1, 1)).await;
    for dead in [false, true] {
        if dead {
            server.kill();
        } else {
            server.signal(Signal::STOP);
        }
        for expected in [revision, Revision(0)] {
            let begun = Instant::now();
            let swap = authority.compare_and_swap(expected, register(2, 2)).await;
            assert!(matches!(swap, Swap::Unknown(_)), "{swap:?}");
            assert!(begun.elapsed() < CALL_BOUND, "a swap took {:?}", begun.elapsed());
        }
        let begun = Instant::now();
        let error = authority.read().await.expect_err("nobody is there").to_string();
        assert!(error.contains(server.address()), "it names no address: {error}");
        assert!(begun.elapsed() < CALL_BOUND, "a read took {:?}", begun.elapsed());
        let begun = Instant::now();
        authority.watch(revision).await.expect_err("nobody is there");
        assert!(begun.elapsed() < CALL_BOUND * 2, "a watch took {:?}", begun.elapsed());
        if dead {
            server.start();
        } else {
            server.signal(Signal::CONT);
        }
        answers(&*authority).await;
    }
}

async fn a_restart_keeps_the_register(mut server: Server, authority: Arc<impl Authority>) {
    let mut revision = Revision(0);
    for view in 1..=3 {
        revision = swapped(&*authority, revision, register(view, 1)).await;
        server.kill();
        server.start();
        answers(&*authority).await;
        let now = authority.read().await.expect("a read");
        assert_eq!(now, Versioned { revision, register: Some(register(view, 1)) });
    }
}

async fn kills_lose_nothing(mut server: Server, authority: Arc<impl Authority>) {
    let history = Arc::new(history::History::default());
    let mut random = rand::rng();
    let kills = server.kills();
    for kill in 1..=kills {
        let mut swapping = JoinSet::new();
        for writer in 0..3 {
            let (authority, history) = (Arc::clone(&authority), Arc::clone(&history));
            swapping.spawn(async move { history.swap_until_unknown(&*authority, writer).await });
        }
        let acknowledged = history.acknowledged() + random.random_range(1..=10);
        server::wait_for("swaps", async || (history.acknowledged() >= acknowledged).then_some(()))
            .await;
        server.kill();
        // Each writer ends with a swap whose outcome is unknown.
        swapping.join_all().await;
        server.start();
        answers(&*authority).await;
        let now = authority.read().await.expect("a read");
        history.check(&now);
        assert!(now.revision >= history.newest(), "kill {kill}: {now:?} after {history:?}");
    }
    println!("{kills} kills, {} swaps acknowledged", history.acknowledged());
}
