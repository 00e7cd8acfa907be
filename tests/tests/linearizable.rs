//! Everything that clients of real processes saw while these were killed, paused and cut off from
//! each other: recorded, and judged by the checker of the simulator. `ONCE_HISTORIES=FOLDER`
//! writes the histories for other checkers.

use std::time::Duration;

use bytes::Bytes;
use onlyonce_history::{Action, Operation, Recorded, Told, read_lines, write_lines};
use onlyonce_tests::wait::moment;
use onlyonce_tests::{Cluster, Place, Recorder, Report, Status, Traffic, Verdict};
use rand::Rng;
use rand::seq::SliceRandom;

/// What happens to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    /// `kill -9`, and a restart.
    Kill,
    /// SIGSTOP for longer than the grace.
    Pause,
    /// One node sends and hears nothing of the other, nor the other of it.
    CutBothWays,
    /// One node hears nothing of the other.
    CutOneWay,
    /// What the nodes send each other comes after the grace.
    HeldBack,
    /// A node cannot reach the authority.
    CutAuthority,
    /// All connections of clients end, whatever is on its way.
    ResetClients,
}

const MISHAPS: [(Mishap, usize); 7] = [
    (Mishap::Kill, 5),
    (Mishap::Pause, 3),
    (Mishap::CutBothWays, 2),
    (Mishap::CutOneWay, 2),
    (Mishap::HeldBack, 2),
    (Mishap::CutAuthority, 1),
    (Mishap::ResetClients, 4),
];

/// Longer or shorter than the grace.
fn around_the_grace(recorder: &mut Recorder) {
    moment(Duration::from_millis(recorder.random.random_range(200..1_500)));
}

fn happen(mishap: Mishap, cluster: &mut Cluster, recorder: &mut Recorder) {
    let victim = recorder.random.random_range(0..2);
    let (one, other) = (Place::Node(victim), Place::Node(1 - victim));
    match mishap {
        Mishap::Kill => {
            cluster.nodes[victim].kill();
            around_the_grace(recorder);
            cluster.nodes[victim].start();
        }
        Mishap::Pause => {
            let primary = cluster.wait_whole();
            cluster.nodes[primary].daemon().pause();
            cluster.nodes[1 - primary].wait_status("to take over", Status::serves);
            around_the_grace(recorder);
            cluster.nodes[primary].daemon().resume();
        }
        Mishap::CutBothWays => {
            cluster.network().set_both(one, other, Traffic::Vanishes);
            around_the_grace(recorder);
        }
        Mishap::CutOneWay => {
            cluster.network().set(one, other, Traffic::Vanishes);
            around_the_grace(recorder);
        }
        Mishap::HeldBack => {
            cluster.network().set_both(one, other, Traffic::Waits);
            around_the_grace(recorder);
        }
        Mishap::CutAuthority => {
            cluster.network().set_both(one, Place::Authority, Traffic::Vanishes);
            around_the_grace(recorder);
        }
        Mishap::ResetClients => {
            for place in [one, other] {
                cluster.network().reset(Place::Clients, place);
            }
        }
    }
    cluster.network().mend();
}

/// Nodes killed, paused and cut off in a random order, often before they recovered from what was
/// before: all that twelve clients saw has one order, and everything took effect exactly once.
#[test]
fn whatever_happens_is_linearizable() {
    let mut cluster = Cluster::start_networked(&[]);
    let mut recorder =
        Recorder::start("whatever_happens_is_linearizable", cluster.addresses(), 10, 2);
    recorder.observe(&cluster.sockets());
    let repeated = MISHAPS.iter().flat_map(|&(mishap, times)| std::iter::repeat_n(mishap, times));
    let mut mishaps: Vec<_> = repeated.collect();
    mishaps.shuffle(&mut recorder.random);
    let count = |kinds: &[Mishap]| mishaps.iter().filter(|one| kinds.contains(one)).count();
    let happened = format!(
        "{} partitions, {} pauses, {} kills, {} resets of all clients",
        count(&[Mishap::CutBothWays, Mishap::CutOneWay, Mishap::HeldBack, Mishap::CutAuthority]),
        count(&[Mishap::Pause]),
        count(&[Mishap::Kill]),
        count(&[Mishap::ResetClients]),
    );
    for mishap in mishaps {
        recorder.random_moment();
        happen(mishap, &mut cluster, &mut recorder);
        if recorder.random.random() {
            cluster.wait_whole();
        }
    }
    cluster.wait_whole();
    recorder.progress(100);
    let verdict = recorder.finish(&happened);
    assert!(verdict.report.acknowledged > 1_000, "{verdict}");
}

/// A history after it went through a file.
fn through_lines(history: &[Recorded]) -> Vec<Recorded> {
    let mut bytes = Vec::new();
    write_lines(history, &mut bytes).expect("memory takes it");
    read_lines(&bytes[..]).expect("what was written")
}

/// The last operation on a key that begins so.
fn last_on<'a>(history: &'a mut [Recorded], key: &str) -> &'a mut Operation {
    let found = history.iter_mut().rev().find(|recorded| recorded.key.starts_with(key));
    &mut found.unwrap_or_else(|| panic!("no operation on {key}")).operation
}

/// Changes what the last read of a key that begins so was told.
fn retell(history: &mut [Recorded], key: &str, change: impl Fn(&str) -> String) {
    let read = last_on(history, key);
    assert_eq!(read.action, Action::Get, "all keys are read at the end");
    let Some(Told::Value(value)) = &mut read.told else { panic!("{read:?}") };
    let text = String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned();
    *value = Some(change(&text).into());
}

/// A read in the middle of the run, after an increment was answered, tells of the value before it.
fn make_stale(history: &mut [Recorded]) {
    let key = "counter/0";
    let of_key = history.iter().filter(|recorded| recorded.key == key);
    let (answered, before) = of_key
        .filter_map(|recorded| match &recorded.operation {
            Operation {
                action: Action::Incr, told: Some(Told::Number(value)), answered, ..
            } => Some((*answered, value - 1)),
            _ => None,
        })
        .nth(100)
        .expect("100 increments");
    let is_later = |it: &Operation| it.action == Action::Get && Some(it.invoked) > answered;
    let later = history.iter_mut().find(|it| it.key == key && is_later(&it.operation));
    let read = &mut later.expect("a read after it").operation;
    read.told = Some(Told::Value(Some(Bytes::from(before.to_string()))));
}

/// The answers of two increments that followed each other change places.
fn swap_answers(history: &mut [Recorded]) {
    let increments = history.iter_mut().filter(|recorded| {
        let Operation { action, told, .. } = &recorded.operation;
        recorded.key == "counter/1" && *action == Action::Incr && told.is_some()
    });
    let mut increments: Vec<_> = increments.map(|recorded| &mut recorded.operation).collect();
    let first_answered = increments[0].answered;
    let later = increments.iter().position(|it| Some(it.invoked) > first_answered);
    let later = later.expect("one that followed the first");
    let (first, rest) = increments.split_at_mut(1);
    std::mem::swap(&mut first[0].told, &mut rest[later - 1].told);
}

/// The first token is gone from a list.
fn lose(list: &str) -> String {
    list.split_once(';').expect("a token").1.to_owned()
}

/// The first token is in a list twice.
fn double(list: &str) -> String {
    format!("{list}{};", list.split_once(';').expect("a token").0)
}

fn plus(count: &str, more: i64) -> String {
    (count.parse::<i64>().expect("a count") + more).to_string()
}

/// What was recorded of real processes is accepted, and refused with any one answer changed: the
/// judges can fail on just such data.
#[test]
fn a_changed_history_is_refused() {
    let mut cluster = Cluster::start_networked(&[]);
    let recorder = Recorder::start("a_changed_history_is_refused", cluster.addresses(), 6, 0);
    recorder.progress(3_000);
    let primary = cluster.wait_whole();
    cluster.nodes[primary].kill();
    recorder.progress(500);
    let history = recorder.finish("1 kill").history;
    let judge = |change: &dyn Fn(&mut Vec<Recorded>)| {
        let mut changed = history.clone();
        change(&mut changed);
        Verdict::of(through_lines(&changed), Vec::new())
    };
    assert!(judge(&|_| {}).is_clean(), "nothing was changed");
    for (name, change, lost, doubled) in [
        ("a stale read", &make_stale as &dyn Fn(&mut [Recorded]), 0, 0),
        ("swapped answers", &swap_answers, 0, 0),
        ("a lost append", &|it| retell(it, "list/", lose), 1, 0),
        ("a doubled append", &|it| retell(it, "list/", double), 0, 1),
        ("a foreign value", &|it| retell(it, "register/", |_| "foreign".to_owned()), 0, 0),
        ("a lost increment", &|it| retell(it, "counter/", |it| plus(it, -1)), 1, 0),
        ("a doubled increment", &|it| retell(it, "counter/", |it| plus(it, 1)), 0, 1),
    ] {
        let verdict = judge(&|it| change(it));
        let why = verdict.no_order.as_ref().map(ToString::to_string);
        println!("{name}: {verdict}");
        assert!(why.is_some_and(|why| why.contains("has no order")), "{name} was not noticed");
        let Report { lost: is_lost, doubled: is_doubled, .. } = verdict.report;
        assert_eq!((is_lost, is_doubled), (lost, doubled), "{name}: {}", verdict.report);
    }
}
