//! Idempotency keys: how long each is remembered, and what a request under it is told afterwards.

mod solo;

use std::time::Duration;

use onlyonce_replica::{Timing, WallTime};
use onlyonce_wire::client::{Answer, Outcome, Refusal, Request};
use onlyonce_wire::{IdempotencyKey, limits};

use solo::{Solo, WALL, incr, keyed, outcome, refusal, with_key};

const HOUR: Duration = Duration::from_secs(3_600);

/// A timed key that was made `ago` before the first moment of these tests.
fn timed(ago: Duration) -> IdempotencyKey {
    IdempotencyKey::fresh(WALL.0 - ago.as_millis() as u64, [7; 10])
}

fn count(key: &IdempotencyKey) -> Request {
    with_key(key.clone(), &incr("n", 1))
}

fn kept_for(answer: &Answer) -> Duration {
    let Answer::Executed { kept_for_ms: Some(kept), .. } = answer else { panic!("{answer:?}") };
    Duration::from_millis(*kept)
}

fn remembered(node: &Solo) -> u64 {
    node.replica.status().idempotency_keys
}

/// A named key is remembered for the whole retention, which the reply tells, by what is logged of
/// the primaries' own clocks; then it is as good as new.
#[test]
fn a_named_key_is_kept_for_the_retention() {
    let mut node = Solo::new();
    let retention = Timing::default().key_retention;
    let first = node.call(keyed("order-1", &incr("n", 1)));
    assert_eq!(kept_for(&first), retention);
    node.pass(23 * HOUR);
    let again = node.call(keyed("order-1", &incr("n", 1)));
    assert_eq!(outcome(&again), (Outcome::Integer(1), true));
    assert_eq!(kept_for(&again), HOUR);
    node.pass(Duration::from_secs(3_600 - 120));
    let again = node.call(keyed("order-1", &incr("n", 1)));
    assert_eq!(outcome(&again), (Outcome::Integer(1), true));
    node.pass(Duration::from_secs(120));
    assert_eq!(remembered(&node), 0);
    let anew = node.call(keyed("order-1", &incr("n", 1)));
    assert_eq!(outcome(&anew), (Outcome::Integer(2), false));
}

/// A key is not forgotten while its request is under way, however long that takes: its copies join it.
#[test]
fn a_key_under_way_is_not_forgotten() {
    for key in [IdempotencyKey::new("order-1").expect("a key"), timed(Duration::ZERO)] {
        let mut node = Solo::new();
        let first = node.ask(count(&key));
        for _ in 0..60 {
            node.now = node.now.after(HOUR);
            node.wall = WallTime(node.wall.0 + HOUR.as_millis() as u64);
            node.tick();
        }
        let copy = node.ask(count(&key));
        assert_eq!((node.answer_to(first), node.answer_to(copy)), (None, None), "the disk hangs");
        node.flush();
        let mut told = |call| node.answer_to(call).map(|answer| outcome(&answer));
        assert_eq!(told(first), Some((Outcome::Integer(1), false)), "{key}");
        assert_eq!(told(copy), Some((Outcome::Integer(1), true)), "{key}");
        node.tick();
        node.flush();
        assert_eq!(remembered(&node), 0, "now it is due");
    }
}

/// The calendar has no say in when a named key is forgotten, nor have restarts: what a process did
/// not log of its time does not count.
#[test]
fn a_named_key_outlives_jumps_of_the_calendar() {
    let mut node = Solo::new();
    node.call(keyed("order-1", &incr("n", 1)));
    for days in [40, 2, 90] {
        node.wall = WallTime(WALL.0 + days * 24 * HOUR.as_millis() as u64);
        node.pass(HOUR);
        node = node.reopen();
        let again = node.call(keyed("order-1", &incr("n", 1)));
        assert_eq!(outcome(&again), (Outcome::Integer(1), true), "{days}");
        let kept = kept_for(&again);
        assert!(kept > 20 * HOUR && kept < 24 * HOUR, "{kept:?}");
    }
}

/// A timed key that was forgotten is refused, and never runs again.
#[test]
fn a_timed_key_is_never_taken_for_new() {
    let mut node = Solo::new();
    let retention = Timing::default().key_retention;
    let key = timed(Duration::ZERO);
    let first = node.call(count(&key));
    assert_eq!(kept_for(&first), retention / 2, "the floor may rise twice as fast as time goes");
    node.pass(23 * HOUR);
    assert_eq!(outcome(&node.call(count(&key))), (Outcome::Integer(1), true));
    node.pass(2 * HOUR);
    assert_eq!(remembered(&node), 0);
    assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten);
    assert_eq!(node.get("n").as_deref(), Some("1"));

    let mut node = node.reopen();
    assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten, "the floor is in the log");
    let never_sent = timed(Duration::from_millis(1));
    assert_eq!(refusal(node.call(count(&never_sent))), Refusal::Forgotten, "nobody can know");
}

/// A calendar that is days ahead forgets nothing at once: the floor rises at most twice as fast as
/// time goes. One that is behind never lowers it.
#[test]
fn a_wrong_calendar_moves_the_floor_slowly_and_never_back() {
    let mut node = Solo::new();
    let key = timed(HOUR);
    node.call(count(&key));
    node.wall = WallTime(WALL.0 + 1_000 * HOUR.as_millis() as u64);
    node.pass(HOUR);
    assert_eq!(outcome(&node.call(count(&key))), (Outcome::Integer(1), true));
    node.pass(11 * HOUR);
    assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten, "24 h for 12");
    node.wall = WallTime(WALL.0 - 1_000 * HOUR.as_millis() as u64);
    node.pass(HOUR);
    assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten);
}

/// A timed key from the future would be kept for as long: it is refused, and what is wrong named.
#[test]
fn a_timed_key_from_the_future_is_refused() {
    let mut node = Solo::new();
    let ahead = |milliseconds: u64| {
        let most = limits::KEY_AHEAD_MAX.as_millis() as u64;
        IdempotencyKey::fresh(WALL.0 + most + milliseconds, [7; 10])
    };
    assert_eq!(outcome(&node.call(count(&ahead(0)))), (Outcome::Integer(1), false));
    let Refusal::Invalid(text) = refusal(node.call(count(&ahead(1_000)))) else { panic!() };
    assert!(text.contains("3601 s ahead of this node's clock"), "{text}");
}

/// However many keys are due at once, they go by entries of bounded size, and all of them go.
#[test]
fn keys_are_swept_in_small_entries() {
    let mut node = Solo::new();
    for i in 0..700 {
        node.call(keyed(&format!("order-{i}"), &incr("n", 1)));
        let mut random = [0; 10];
        random[6..].copy_from_slice(&u32::to_le_bytes(i));
        node.call(count(&IdempotencyKey::fresh(WALL.0, random)));
    }
    assert_eq!(remembered(&node), 1_400);
    node.pass(25 * HOUR);
    for _ in 0..3 {
        node.tick();
        node.flush();
    }
    assert_eq!(remembered(&node), 0);
    let mut node = node.reopen();
    assert_eq!(remembered(&node), 0, "their end is in the log");
    assert_eq!(outcome(&node.call(keyed("order-7", &incr("n", 1)))).0, Outcome::Integer(1_401));
}
