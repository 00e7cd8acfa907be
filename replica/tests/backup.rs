//! Backups, step by step: what is in one, who gets one, and what a store that is made of it is.

mod one_node;

use onlyonce_replica::{Config, Mode, Saved};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{Digests, Entry, Index, Mark, Opened, Options, View, open};
use onlyonce_wire::authority::{Revision, Versioned};
use onlyonce_wire::backup::{BackupBegin, BackupEnd, BackupRecord};
use onlyonce_wire::client::{
    Answer, Execute, ExecuteId, Limit, Operation, Outcome, Read, Refusal, Request, Write,
};
use onlyonce_wire::limits::BACKUP_PIECE_BYTES_MAX;
use onlyonce_wire::{CallId, IdempotencyKey, Incarnation, Seq, Session, SessionId, StoreId, codec};

use one_node::{Node, member};

/// Of the restored store. The calendar of the tests is a little before.
const LATER: Incarnation = Incarnation(1_700_000_000_001);
/// What the calendar of the tests says, in milliseconds.
const NOW_MS: u64 = 1_700_000_000_000;

fn incr(incarnation: Incarnation, id: ExecuteId) -> Request {
    let write = Write::Incr { key: "n".into(), by: 1 };
    let operation = codec::encode(&Operation::Write(write)).into();
    Request::Execute(Execute { incarnation, id, operation })
}

fn in_session(incarnation: Incarnation, session: Session, seq: u64) -> Request {
    incr(incarnation, ExecuteId::Session { session, seq: Seq(seq), first_unacked: Seq(1) })
}

fn keyed(incarnation: Incarnation, key: IdempotencyKey) -> Request {
    incr(incarnation, ExecuteId::Key(key))
}

fn named(name: &str) -> IdempotencyKey {
    IdempotencyKey::new(name.to_owned()).expect("a key")
}

#[track_caller]
fn counted(answer: Option<Answer>) -> (i64, bool) {
    let Some(Answer::Executed { reply, replayed, .. }) = answer else { panic!("{answer:?}") };
    match codec::decode::<_, 1024>(&reply).expect("an outcome") {
        Outcome::Integer(value) => (value, replayed),
        other => panic!("{other:?}"),
    }
}

fn value(node: &mut Node, key: &str) -> Option<String> {
    let answer = node.call(Request::Read(Read::Get { key: key.to_owned().into() }));
    let Some(Answer::Read(Outcome::Value(value))) = answer else { panic!("{answer:?}") };
    value.map(|value| String::from_utf8(value.to_vec()).expect("text"))
}

/// Asks for a piece, and waits for it.
fn piece(node: &mut Node, id: u128, number: u64) -> Answer {
    let answer = node.call(Request::Backup { id, number });
    let call = CallId(node.calls);
    if let Some(answer) = answer {
        return answer;
    }
    for _ in 0..100 {
        node.tick(5);
        node.give(onlyonce_replica::Event::Drained);
        if let Some(place) = node.answers.iter().position(|(answered, _)| *answered == call) {
            return node.answers.remove(place).1;
        }
    }
    panic!("piece {number} does not come");
}

/// A whole backup.
struct Taken {
    begin: BackupBegin,
    rows: Vec<Entry>,
    end: BackupEnd,
}

/// Takes a backup, with `between` run after each piece.
fn take(node: &mut Node, id: u128, mut between: impl FnMut(&mut Node)) -> Taken {
    let (mut begin, mut rows) = (None, Vec::new());
    for number in 0.. {
        let first = piece(node, id, number);
        assert_eq!(piece(node, id, number), first, "the same piece, asked for again");
        let Answer::Backup(Some(record)) = first else { panic!("{first:?} to piece {number}") };
        match record {
            BackupRecord::Begin(it) => begin = Some(it),
            BackupRecord::Rows(bytes) => {
                assert!(bytes.len() <= BACKUP_PIECE_BYTES_MAX);
                rows.push(Entry::decode(&bytes).expect("its rows"));
            }
            BackupRecord::End(end) => return Taken { begin: begin.expect("the first"), rows, end },
        }
        between(node);
    }
    unreachable!("a backup ends");
}

/// Makes a store of a backup, as the tool does.
fn restore(taken: &Taken) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let store = open(disk.disk(), &Options::new(70)).expect("opens");
    let mut incoming = store.checkpointer.begin_incoming().expect("begins");
    for entry in &taken.rows {
        incoming.fold(entry).expect("folds");
    }
    assert_eq!(incoming.digests(), Digests::from_sums(taken.end.digests), "the very rows");
    let BackupEnd { index, view, chain, .. } = taken.end;
    let mark = Mark { index: Index(index), view: View(view.0), chain };
    let state = Saved::restored(taken.begin.cluster, LATER, mark.view).encode();
    incoming.finish(mark, state).expect("whole");
    drop(store);
    disk.crash(1);
    disk
}

fn opened(disk: &MemoryDisk) -> Opened {
    open(disk.disk(), &Options::new(1)).expect("opens")
}

/// The serving primary of a cluster of its own, which folds at every tick, and keeps so much of its log
/// for others.
fn folding(log_pin_bytes: usize) -> Node {
    let config = Config { log_pin_bytes, checkpoint_bytes: 1, ..Node::config(1) };
    let mut node = Node::configured(config, opened(&MemoryDisk::new()), empty(), true);
    node.tick(5);
    node
}

fn empty() -> Versioned {
    Versioned { revision: Revision(0), register: None }
}

/// The store of a backup, started alone.
fn alone(taken: &Taken) -> Node {
    let config = Config { mode: Mode::Lone, ..Node::config(70) };
    let mut node = Node::configured(config, opened(&restore(taken)), empty(), false);
    node.tick(5);
    node
}

/// Everything that was acknowledged before is in it; the state is that of one moment, whatever is
/// written and folded meanwhile. The store made of it is of the same cluster and a later incarnation:
/// nothing of before is executed anew, or answered as if it were known.
#[test]
fn a_restored_store_is_a_new_incarnation_of_the_backups_state() {
    let mut node = folding(1 << 30);
    let first = Incarnation(1);
    let session = SessionId(5);
    let opened = node.call(Request::Open { incarnation: first, session });
    let Some(Answer::Opened { opened_at }) = opened else { panic!("{opened:?}") };
    let session = Session { id: session, opened_at };
    let timed = |number| IdempotencyKey::fresh(NOW_MS - 1, [number; 10]);
    assert_eq!(counted(node.call(in_session(first, session, 1))), (1, false));
    assert_eq!(counted(node.call(keyed(first, named("order")))), (2, false));
    assert_eq!(counted(node.call(keyed(first, timed(1)))), (3, false));
    (0..40).for_each(|_| node.put(100));
    let committed = node.replica.state().committed();

    let mut pieces = 0;
    let taken = take(&mut node, 1, |node| {
        pieces += 1;
        node.put(if pieces == 3 { 1 << 20 } else { 100 });
        if pieces % 3 == 0 {
            node.tick(5);
        }
    });
    assert!(taken.end.index >= committed.0, "it ends at {}, before {committed}", taken.end.index);
    assert!(pieces > 5, "{pieces} pieces");
    assert_eq!(counted(node.call(keyed(first, timed(2)))), (4, false), "too late for the backup");
    assert_eq!(taken.begin.cluster, node.replica.cluster().expect("its cluster"));

    let mut restored = alone(&taken);
    let status = restored.replica.status();
    assert!(status.serving, "{status:?}");
    assert_eq!((status.incarnation, status.sessions), (LATER, 0));
    assert_eq!(restored.replica.cluster(), Some(taken.begin.cluster));
    assert_eq!(value(&mut restored, "n").as_deref(), Some("3"));
    let refused = |refusal| Some(Answer::Refused(refusal));
    for seq in [1, 2] {
        let answer = restored.call(in_session(first, session, seq));
        assert_eq!(answer, refused(Refusal::OtherIncarnation { current: LATER }));
        let answer = restored.call(in_session(LATER, session, seq));
        assert_eq!(answer, refused(Refusal::SessionExpired));
    }
    let question = onlyonce_wire::client::Question {
        incarnation: first,
        id: onlyonce_wire::client::RequestId::Key(timed(2)),
        first_unacked: Seq(1),
        fingerprint: None,
    };
    let answer = restored.call(Request::Outcome(question));
    assert_eq!(answer, refused(Refusal::OtherIncarnation { current: LATER }));
    assert_eq!(counted(restored.call(keyed(LATER, named("order")))), (2, true));
    assert_eq!(counted(restored.call(keyed(LATER, timed(1)))), (3, true));
    assert_eq!(restored.call(keyed(LATER, timed(2))), refused(Refusal::Forgotten));
    assert_eq!(value(&mut restored, "n").as_deref(), Some("3"), "nothing ran");
    for _ in 0..100 {
        restored.tick(60_000);
    }
    assert_eq!(counted(restored.call(keyed(LATER, timed(1)))), (3, true), "what is known stays so");
    assert_eq!(counted(restored.call(keyed(LATER, named("new")))), (4, false));
}

/// An idle primary, which has nothing to fold, gives a backup too, and so does one without any data.
#[test]
fn there_need_be_nothing_to_fold() {
    let mut node = Node::serving();
    take(&mut node, 1, |_| {});
    node.put(10);
    take(&mut node, 2, |_| {});
    node.tick(60_000);
    let taken = take(&mut node, 3, |_| {});
    assert!(alone(&taken).replica.status().serving);
}

/// One backup is made at a time; who falls silent loses his place, and is told so.
#[test]
fn one_backup_is_made_at_a_time() {
    let mut node = Node::serving();
    (0..40).for_each(|_| node.put(100));
    let busy = Answer::Refused(Refusal::Busy(Limit::Backups));
    assert!(matches!(piece(&mut node, 1, 0), Answer::Backup(Some(BackupRecord::Begin(_)))));
    assert_eq!(piece(&mut node, 2, 0), busy);
    assert!(matches!(piece(&mut node, 1, 1), Answer::Backup(Some(BackupRecord::Rows(_)))));
    assert!(matches!(piece(&mut node, 1, 3), Answer::Refused(Refusal::Invalid(_))), "out of turn");
    assert_eq!(piece(&mut node, 2, 0), busy);
    assert_eq!(piece(&mut node, 2, 7), Answer::Backup(None), "never begun");
    for _ in 0..21 {
        node.tick(1_000);
    }
    take(&mut node, 2, |_| {});
    assert_eq!(piece(&mut node, 1, 2), Answer::Backup(None), "silent for too long");
    take(&mut node, 3, |_| {});
}

/// Who asks again before the piece is there gets it; the copy that waited is answered too, as its
/// connection counts what is outstanding.
#[test]
fn every_copy_of_a_question_is_answered() {
    let mut node = Node::serving();
    (0..40).for_each(|_| node.put(100));
    assert_eq!(node.call(Request::Backup { id: 1, number: 0 }), None, "it is not folded yet");
    let earlier = CallId(node.calls);
    assert!(matches!(piece(&mut node, 1, 0), Answer::Backup(Some(BackupRecord::Begin(_)))));
    assert!(node.answers.contains(&(earlier, Answer::AskAgain)), "{:?}", node.answers);
}

/// The log that a backup needs is kept up to a limit; beyond it the backup is over, and told so.
#[test]
fn a_backup_whose_log_is_gone_is_over() {
    for (pin_bytes, is_over) in [(1 << 30, false), (10_000, true)] {
        let mut node = folding(pin_bytes);
        (0..40).for_each(|_| node.put(100));
        let mut number = 0;
        let last = loop {
            match piece(&mut node, 1, number) {
                Answer::Backup(Some(BackupRecord::End(_))) => break false,
                Answer::Backup(Some(_)) => number += 1,
                Answer::Backup(None) => break true,
                other => panic!("{other:?}"),
            }
            (0..10).for_each(|_| node.put(1_000));
            node.tick(5);
        };
        assert_eq!(last, is_over, "with {pin_bytes} bytes kept");
        let (first, applied) = (node.replica.state().first(), node.replica.state().applied());
        node.put(10);
        node.tick(31_000);
        let after = node.replica.state().first();
        assert!(after > applied, "nothing is kept after it: {first} to {applied}, {after}");
    }
}

/// A restored store starts a cluster under an empty register, with the id that clients know; under the
/// register of the history before it does not start, and no store of that history does under its own.
#[test]
fn two_histories_refuse_each_other() {
    let mut node = Node::serving();
    (0..40).for_each(|_| node.put(100));
    let taken = take(&mut node, 1, |_| {});
    let before = node.register.clone();

    let mut first = Node::on(opened(&restore(&taken)), 70, empty());
    first.tick(5);
    assert_eq!(first.stopped, None);
    let status = first.replica.status();
    assert!(status.serving && status.incarnation == LATER, "{status:?}");
    let register = first.register.register.clone().expect("it is the first primary");
    assert_eq!((register.cluster, register.incarnation), (taken.begin.cluster, LATER));
    assert_eq!(register.primary.store, StoreId(70));

    let stopped = Node::on(opened(&restore(&taken)), 70, before).stopped.expect("it stops");
    assert!(stopped.contains("restored from a backup"), "{stopped}");
    let now = Versioned { revision: Revision(9), register: Some(register) };
    node.give(onlyonce_replica::Event::RegisterRead { asked: None, now });
    let stopped = node.stopped.expect("it stops");
    assert!(stopped.contains("without this store"), "{stopped}");

    let without = Config { mode: Mode::Cluster { bootstrap: false }, ..Node::config(70) };
    let me = member(70);
    let opened = opened(&restore(&taken));
    let config = Config { me, ..without };
    let refused =
        onlyonce_replica::Replica::new(config, opened.state, &opened.state_bytes, node.now);
    let refused = refused.err().expect("no cluster of its own").to_string();
    assert!(refused.contains("--bootstrap"), "{refused}");
}
