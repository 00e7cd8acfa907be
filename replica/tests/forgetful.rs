//! A duplicate table in memory alone, for demonstration: what a restart then costs, and that nothing
//! of it reaches a node that was not asked for it.

mod solo;

use onlyonce_replica::Duplicates;
use onlyonce_wire::client::{Outcome, Refusal};

use solo::{Solo, incr, keyed, outcome, refusal, request};

/// With a session and a reply each, more rows than one step deletes.
const SESSIONS: u128 = 700;

/// A forgetful node remembers until it restarts; then it runs everything again.
#[test]
fn a_restart_forgets() {
    let mut node = Solo::new().reopen_as(Duplicates::Memory);
    let sessions: Vec<_> = (1..=SESSIONS).map(|id| node.session(id)).collect();
    for session in &sessions {
        node.call(request(*session, 1, 1, &incr("n", 1)));
    }
    let repeated = request(sessions[0], 1, 1, &incr("n", 1));
    assert_eq!(outcome(&node.call(repeated.clone())), (Outcome::Integer(1), true));
    let order = keyed("order-1", &incr("n", 1));
    assert_eq!(outcome(&node.call(order.clone())), (Outcome::Integer(701), false));

    let mut node = node.reopen_as(Duplicates::Memory);
    let status = node.replica.status();
    assert_eq!((status.sessions, status.idempotency_keys), (0, 0));
    assert_eq!(outcome(&node.call(repeated.clone())), (Outcome::Integer(702), false));
    assert_eq!(outcome(&node.call(repeated)), (Outcome::Integer(702), true));
    assert_eq!(outcome(&node.call(order)), (Outcome::Integer(703), false));
    let last = request(sessions[699], 1, 1, &incr("n", 1));
    assert_eq!(outcome(&node.call(last)), (Outcome::Integer(704), false));
}

/// An honest node on such a store knows that its table has holes: it ends the sessions, and refuses
/// what it cannot know.
#[test]
fn an_honest_node_ends_the_sessions_of_a_forgetful_one() {
    let mut node = Solo::new().reopen_as(Duplicates::Memory);
    let session = node.session(1);
    let repeated = request(session, 1, 1, &incr("n", 1));
    node.call(repeated.clone());
    let mut node = node.reopen_as(Duplicates::Memory);
    assert_eq!(outcome(&node.call(request(session, 2, 1, &incr("n", 1)))).0, Outcome::Integer(2));
    let mut node = node.reopen();
    assert_eq!(refusal(node.call(repeated.clone())), Refusal::SessionExpired);
    assert_eq!(node.get("n").as_deref(), Some("2"));

    let again = node.session(2);
    let repeated = request(again, 1, 1, &incr("n", 1));
    assert_eq!(outcome(&node.call(repeated.clone())), (Outcome::Integer(3), false));
    let mut node = node.reopen();
    assert_eq!(outcome(&node.call(repeated)), (Outcome::Integer(3), true), "honest again");
}
