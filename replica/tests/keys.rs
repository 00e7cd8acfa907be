//! Idempotency keys: how long each is remembered, and what a request under it is told afterwards.

mod solo;

use std::time::Duration;

use onlyonce_replica::{Timing, WallTime};
use onlyonce_wire::client::{Answer, Outcome, Refusal, Request};
use onlyonce_wire::{IdempotencyKey, limits};

use solo::{Solo, WALL, incr, keyed, outcome, refusal, with_key};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// So long after the first moment of these tests.
fn after(time: Duration) -> WallTime {
    WallTime(WALL.0 + time.as_millis() as u64)
}

/// So long before it.
fn before(time: Duration) -> WallTime {
    WallTime(WALL.0 - time.as_millis() as u64)
}

/// A timed key that was made at this time; keys of different `number`s differ.
fn made_at(time: WallTime, number: u8) -> IdempotencyKey {
    IdempotencyKey::fresh(time.0, [number; 10])
}

/// A timed key that was made `ago` before the first moment of these tests.
fn timed(ago: Duration) -> IdempotencyKey {
    made_at(before(ago), 7)
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
    assert_eq!(kept_for(&first), retention);
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

/// A timed key is kept for the retention by the primaries' own clocks, whatever calendars say, and is
/// forgotten then; the floor rises no further than above it, and never falls.
#[test]
fn no_calendar_makes_a_timed_key_forgotten_sooner() {
    let mut node = Solo::new();
    let key = timed(HOUR);
    node.call(count(&key));
    node.wall = after(10 * YEAR);
    node.pass(23 * HOUR);
    let again = node.call(count(&key));
    assert_eq!((outcome(&again), kept_for(&again)), ((Outcome::Integer(1), true), HOUR));
    node.pass(2 * HOUR);
    assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten);
    for wall in [WALL, before(10 * YEAR), after(DAY)] {
        node.wall = wall;
        node.pass(HOUR);
        assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten);
    }
    let later = made_at(WallTime(before(HOUR).0 + 1), 7);
    assert_eq!(outcome(&node.call(count(&later))).0, Outcome::Integer(2), "it never ran");
}

/// A primary whose calendar is years ahead, the first of a cluster or a later one, for a day or for
/// weeks, shuts out no client whose calendar is right; nor are keys remembered without end.
#[test]
fn a_calendar_ahead_shuts_nobody_out() {
    for right_for in [Duration::ZERO, 3 * DAY] {
        let mut node = Solo::new_at(if right_for.is_zero() { after(30 * YEAR) } else { WALL });
        node.pass(right_for);
        let mut time = after(right_for);
        node.wall = after(30 * YEAR);
        for number in 0..20 {
            let key = made_at(time, number);
            let n = i64::from(number) + 1;
            assert_eq!(outcome(&node.call(count(&key))), (Outcome::Integer(n), false));
            assert_eq!(kept_for(&node.call(count(&key))), DAY);
            node.pass(DAY + HOUR);
            time = WallTime(time.0 + (DAY + HOUR).as_millis() as u64);
            assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten);
        }
        assert_eq!(remembered(&node), 0);
        node.wall = time;
        let mut node = node.reopen();
        assert_eq!(outcome(&node.call(count(&made_at(time, 99)))).0, Outcome::Integer(21));
    }
}

/// The same with one client whose calendar is as wrong as the primary's, for a retention and more: its
/// key is of the future, once the calendar is set. It is kept, and does not take the floor with it.
#[test]
fn a_key_of_the_future_is_kept() {
    let ahead = after(30 * YEAR);
    for (first, wrong_for) in [(ahead, 23 * HOUR), (WALL, 20 * DAY)] {
        let mut node = Solo::new_at(first);
        // Once keys can be due, the logged calendar believes no leap.
        node.pass(if first == WALL { 2 * DAY } else { Duration::ZERO });
        node.wall = ahead;
        node.tick();
        node.flush();
        let wrong = made_at(ahead, 1);
        assert_eq!(outcome(&node.call(count(&wrong))), (Outcome::Integer(1), false));
        node.pass(wrong_for);
        node.wall = after(30 * DAY);
        node.pass(3 * DAY);
        assert_eq!(outcome(&node.call(count(&wrong))), (Outcome::Integer(1), true));
        let honest = made_at(node.wall, 2);
        assert_eq!(outcome(&node.call(count(&honest))), (Outcome::Integer(2), false));
        node.pass(2 * DAY);
        assert_eq!(refusal(node.call(count(&honest))), Refusal::Forgotten);
        assert_eq!(remembered(&node), 1, "the one of the future");
    }
}

/// Also when the logged calendar has gone along for weeks: what the primary's own says counts as soon
/// as it is set.
#[test]
fn a_calendar_that_was_set_counts_at_once() {
    let mut node = Solo::new();
    node.pass(2 * DAY);
    node.wall = after(30 * YEAR);
    node.pass(20 * DAY);
    let wrong = made_at(after(10 * YEAR), 1);
    assert_eq!(outcome(&node.call(count(&wrong))), (Outcome::Integer(1), false));
    node.wall = after(22 * DAY);
    node.pass(3 * DAY);
    assert_eq!(outcome(&node.call(count(&wrong))), (Outcome::Integer(1), true));
    let honest = made_at(node.wall, 2);
    assert_eq!(outcome(&node.call(count(&honest))), (Outcome::Integer(2), false));
}

/// With a calendar years behind, the first of a cluster or a later one, timed keys are refused as
/// being of the future; when it is set they run, and are forgotten like any others.
#[test]
fn a_calendar_behind_leaves_nothing_behind() {
    for right_for in [Duration::ZERO, 3 * DAY] {
        let mut node = Solo::new_at(if right_for.is_zero() { WallTime(0) } else { WALL });
        node.pass(right_for);
        let known = made_at(after(right_for), 1);
        if !right_for.is_zero() {
            node.call(count(&known));
        }
        node.wall = WallTime(0);
        node.pass(HOUR);
        let key = made_at(after(right_for + HOUR), 2);
        assert!(matches!(refusal(node.call(count(&key))), Refusal::Invalid(_)));
        node.wall = after(right_for + HOUR);
        node.pass(HOUR);
        let first = node.call(count(&key));
        assert_eq!((outcome(&first).1, kept_for(&first)), (false, DAY));
        node.pass(2 * DAY);
        assert_eq!(remembered(&node), 0);
        assert_eq!(refusal(node.call(count(&key))), Refusal::Forgotten);
    }
}

/// A cluster that was off for months forgets as before when it is back: its logged calendar catches up
/// within hours.
#[test]
fn a_cluster_that_was_off_forgets_again() {
    let mut node = Solo::new();
    node.pass(2 * DAY);
    node.wall = after(90 * DAY);
    let mut node = node.reopen();
    node.tick();
    node.flush();
    for number in 0..3 {
        node.call(count(&made_at(node.wall, number)));
        node.pass(6 * HOUR);
    }
    node.pass(2 * DAY);
    assert_eq!(remembered(&node), 0);
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
