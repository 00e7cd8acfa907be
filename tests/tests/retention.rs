//! How long real nodes remember named keys, and what becomes of a call that is cut off for longer.

use std::time::Duration;

use onlyonce_client::{Cancellation, Client, Error, Fate, Outcome, Refusal, UnresolvedReason};
use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::raw::incr;
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Lone, Network, Place, Traffic};
use tokio::runtime::Runtime;

/// Short enough to wait it out, and longer than an attempt.
const RETENTION: Duration = Duration::from_secs(3);
const ENVIRONMENT: &[(&str, &str)] = &[("ONCED_KEY_RETENTION_MS", "3000")];
const KEY: &str = "order-1";

fn named() -> onlyonce_client::IdempotencyKey {
    KEY.try_into().expect("a fine key")
}

fn count(runtime: &Runtime, client: &Client) -> Option<bytes::Bytes> {
    runtime.block_on(client.get("n")).expect("it serves")
}

/// Waits the retention out.
fn wait_forgotten(runtime: &Runtime, client: &Client) {
    wait_for("the key to be forgotten", BOUND, || {
        match runtime.block_on(client.outcome(named())).expect("it serves") {
            Fate::NeverSeen => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// A named key is remembered for as long as its reply says, and is like a new one after that: for a
/// request that ran, and for one that was cancelled.
#[test]
fn a_named_key_is_forgotten() {
    let lone = Lone::start(ENVIRONMENT);
    let (runtime, client) = (runtime(2), client(&lone.addresses()));
    let keyed = client.with_key(KEY).expect("a fine key");
    for round in 1..=2 {
        let told = runtime.block_on(keyed.execute_told(incr("n"))).expect("it serves");
        assert_eq!(told.outcome, Outcome::Integer(round));
        assert!(told.kept_for.is_some_and(|kept| kept <= RETENTION), "{:?}", told.kept_for);
        wait_forgotten(&runtime, &client);
    }
    let (told, kept_for) = runtime.block_on(client.cancel_told(named())).expect("it serves");
    assert_eq!(told, Cancellation::Cancelled);
    assert!(kept_for.is_some_and(|kept| kept <= RETENTION), "{kept_for:?}");
    wait_forgotten(&runtime, &client);
    assert_eq!(runtime.block_on(keyed.incr("n", 1)).expect("it serves"), 3);
}

/// A client that is cut off with a request under way, until the cluster has forgotten its named key,
/// does not send it again when it is back: it ran once, and the call says that it does not know.
#[test]
fn a_call_does_not_outlive_its_key() {
    let lone = Lone::start(ENVIRONMENT);
    let network = Network::new();
    let way = network.proxy(Place::Clients, Place::Node(0), lone.node.client_address());
    let (runtime, observer) = (runtime(2), client(&lone.addresses()));
    let cut_off = Client::builder().nodes([way.to_string()]);
    let cut_off = cut_off.attempt_timeout(Duration::from_millis(200)).build().expect("an address");
    runtime.block_on(cut_off.put("greeting", "hello")).expect("the network is whole");

    network.set(Place::Node(0), Place::Clients, Traffic::Vanishes);
    let keyed = cut_off.with_key(KEY).expect("a fine key");
    let call = runtime.spawn(async move { keyed.incr("n", 1).await });
    wait_for("the request to run", BOUND, || match count(&runtime, &observer) {
        Some(_) => Ok(()),
        None => Err("it did not".to_owned()),
    });
    wait_forgotten(&runtime, &observer);
    network.mend();
    runtime.block_on(cut_off.put("greeting", "again")).expect("the network is whole again");
    let ended = runtime.block_on(call).expect("no panic");
    assert_eq!(count(&runtime, &observer).as_deref(), Some(&b"1"[..]), "{ended:?}");
    let Err(Error::Unresolved(unresolved)) = ended else { panic!("{ended:?}") };
    assert_eq!(*unresolved.reason(), UnresolvedReason::KeyExpired(RETENTION));
    let again = runtime.block_on(cut_off.resume(unresolved.handle()));
    assert!(matches!(again, Err(Error::Unresolved(_))), "{again:?}");
    assert_eq!(count(&runtime, &observer).as_deref(), Some(&b"1"[..]));
    // What the docs say of a key that is forgotten: by a handle that does not know its age, a resume is
    // a new request.
    let text = unresolved.handle().to_string().parse().expect("a handle");
    let resumed = runtime.block_on(cut_off.resume(&text)).expect("it serves");
    assert_eq!(resumed.outcome, Outcome::Integer(2));
    // Nobody knows any more that it ran: a cancel does not say that it did not.
    wait_forgotten(&runtime, &observer);
    let cancelled = runtime.block_on(cut_off.cancel(unresolved.handle())).expect("it serves");
    assert_eq!(cancelled, Cancellation::Forgotten(Refusal::Forgotten));
}
