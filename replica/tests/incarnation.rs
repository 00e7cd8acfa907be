//! A register that lost what it held stops every store that knew better; a forced view begins a new
//! incarnation, in which nothing of the old sessions is left.

mod one_node;

use onlyonce_replica::{
    Effect, Event, Saved, SavedProposal, WallTime, forced_view, is_forced_view,
};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{Opened, Options, Table, open};
use onlyonce_wire::authority::{Register, Revision, Versioned};
use onlyonce_wire::client::{
    Answer, Execute, ExecuteId, Operation, Outcome, Read, Refusal, Request, Write,
};
use onlyonce_wire::{
    ClusterId, IdempotencyKey, Incarnation, ProposalId, Seq, Session, SessionId, View, codec,
    limits,
};

use one_node::{Node, WALL, member, register};

/// More than one step ends, and not a multiple of it.
const SESSIONS: u128 = 150;
/// Of the forced view.
const LATER: Incarnation = Incarnation(1_700_000_000_000);

fn opened(disk: &MemoryDisk) -> Opened {
    disk.crash(1);
    open(disk.disk(), &Options::new(1)).expect("opens")
}

fn empty() -> Versioned {
    Versioned { revision: Revision(0), register: None }
}

fn execute(incarnation: Incarnation, id: ExecuteId) -> Request {
    let write = Write::Incr { key: "n".into(), by: 1 };
    let operation = codec::encode(&Operation::Write(write)).into();
    Request::Execute(Execute { incarnation, id, operation })
}

fn in_session(incarnation: Incarnation, session: Session, seq: u64) -> Request {
    let id = ExecuteId::Session { session, seq: Seq(seq), first_unacked: Seq(1) };
    execute(incarnation, id)
}

fn keyed(incarnation: Incarnation, key: &str) -> Request {
    execute(incarnation, ExecuteId::Key(IdempotencyKey::new(key.to_owned()).expect("a key")))
}

fn executed(answer: Option<Answer>) -> (Outcome, bool) {
    let Some(Answer::Executed { reply, replayed, .. }) = answer else { panic!("{answer:?}") };
    (codec::decode::<_, 1024>(&reply).expect("an outcome"), replayed)
}

fn open_session(node: &mut Node, incarnation: Incarnation, id: u128) -> Session {
    let id = SessionId(id);
    match node.call(Request::Open { incarnation, session: id }) {
        Some(Answer::Opened { opened_at }) => Session { id, opened_at },
        other => panic!("opening a session: {other:?}"),
    }
}

/// A store whose sessions have executed two requests each; returns them.
fn used(disk: &MemoryDisk) -> Vec<Session> {
    let mut node = Node::on(opened(disk), 1, empty());
    node.tick(5);
    let mut sessions = Vec::new();
    for id in 1..=SESSIONS {
        let session = open_session(&mut node, Incarnation(1), id);
        for seq in 1..=2 {
            executed(node.call(in_session(Incarnation(1), session, seq)));
        }
        sessions.push(session);
    }
    let (counted, _) = executed(node.call(keyed(Incarnation(1), "order-1")));
    assert_eq!(counted, Outcome::Integer(2 * SESSIONS as i64 + 1));
    sessions
}

/// Does what the tool does: the view is forced, and the store told. Its last process had proposed
/// something to the register that is lost.
fn force(disk: &MemoryDisk) -> Register {
    let mut opened = opened(disk);
    let mut saved = Saved::decode(&opened.state_bytes).expect("a state");
    saved.proposal = Some(SavedProposal { expected: Revision(1), id: ProposalId(5) });
    let (cluster, me) = (ClusterId(9), saved.me.clone().expect("it was used"));
    let register = forced_view(cluster, LATER, View(saved.view.0 + 1), me);
    let mut saved = saved.in_forced_view(&register);
    saved.owner = Some(onlyonce_replica::Owner::Cluster(cluster));
    opened.log.save(&saved.encode()).expect("saved");
    register
}

fn restarted(disk: &MemoryDisk, register: Register) -> Node {
    let now = Versioned { revision: Revision(1), register: Some(register) };
    restarted_at(disk, now, WALL)
}

/// With a calendar that says this.
fn restarted_at(disk: &MemoryDisk, register: Versioned, wall: WallTime) -> Node {
    let mut node = Node::on(opened(disk), 1, register);
    node.wall = wall;
    node.tick(5);
    node
}

fn rows(node: &Node, table: Table) -> usize {
    let rows = node.replica.state().scan(table, &[], None);
    rows.filter(|row| row.as_ref().expect("a row").value.is_some()).count()
}

/// After a forced view the data is there, and nothing of the sessions: no request of theirs runs or
/// is answered, whatever incarnation it names; keys are remembered; new sessions work, and stay.
#[test]
fn a_new_incarnation_ends_all_sessions() {
    let disk = MemoryDisk::new();
    let sessions = used(&disk);
    let forced = force(&disk);
    assert!(is_forced_view(&forced));
    let mut node = restarted(&disk, forced.clone());
    assert_eq!(node.stopped, None);
    let status = node.replica.status();
    assert!(status.serving, "{status:?}");
    assert_eq!((status.incarnation, status.view.0), (LATER, forced.view.0 + 1));
    assert_eq!((status.sessions, status.idempotency_keys), (0, 1));
    assert_eq!(node.proposed, 1, "what was proposed to the lost register is forgotten");
    assert!(!is_forced_view(node.register.register.as_ref().expect("won")), "it is its own view");
    assert_eq!((rows(&node, Table::Replies), rows(&node, Table::Sessions)), (0, 1));

    for session in sessions {
        for seq in [1, 2, 3] {
            let refusal = Refusal::OtherIncarnation { current: LATER };
            let answer = node.call(in_session(Incarnation(1), session, seq));
            assert_eq!(answer, Some(Answer::Refused(refusal)));
            let answer = node.call(in_session(LATER, session, seq));
            assert_eq!(answer, Some(Answer::Refused(Refusal::SessionExpired)));
        }
    }
    let all = 2 * SESSIONS as i64 + 1;
    let read = Request::Read(Read::Get { key: "n".into() });
    let value = Outcome::Value(Some(all.to_string().into()));
    assert_eq!(node.call(read), Some(Answer::Read(value)), "nothing ran");
    assert_eq!(executed(node.call(keyed(LATER, "order-1"))), (Outcome::Integer(all), true));

    let session = open_session(&mut node, LATER, 1);
    let first = executed(node.call(in_session(LATER, session, 1)));
    assert_eq!(first, (Outcome::Integer(all + 1), false));
    let now = node.register.clone();
    drop(node);
    let mut node = Node::on(opened(&disk), 1, now);
    node.tick(5);
    let again = executed(node.call(in_session(LATER, session, 1)));
    assert_eq!(again, (Outcome::Integer(all + 1), true), "its own sessions outlive a restart");
}

/// A timed key from before a forced view is answered if it is known; else nobody can tell whether it
/// ran, and it is refused. One that is made afterwards is new.
#[test]
fn a_timed_key_of_an_earlier_incarnation_never_runs_anew() {
    let disk = MemoryDisk::new();
    let timed = |at: i64| {
        let time = WALL.0.checked_add_signed(at).expect("a time");
        ExecuteId::Key(IdempotencyKey::fresh(time, [7; 10]))
    };
    let mut node = Node::on(opened(&disk), 1, empty());
    node.tick(5);
    let known = executed(node.call(execute(Incarnation(1), timed(-2))));
    assert_eq!(known, (Outcome::Integer(1), false));
    drop(node);

    let forced = force(&disk);
    let mut node = restarted(&disk, forced);
    for _ in 0..2 {
        let again = executed(node.call(execute(LATER, timed(-2))));
        assert_eq!(again, (Outcome::Integer(1), true));
        let lost = node.call(execute(LATER, timed(-1)));
        assert_eq!(lost, Some(Answer::Refused(Refusal::Forgotten)));
        let now = node.register.clone();
        drop(node);
        node = Node::on(opened(&disk), 1, now);
        node.tick(5);
    }
    assert_eq!(executed(node.call(execute(LATER, timed(0)))), (Outcome::Integer(2), false));
}

/// A new incarnation begins by its first primary's calendar. One that is behind what the log knows is
/// not believed: it would take keys of the lost history for new.
#[test]
fn an_incarnation_does_not_begin_before_its_history() {
    let disk = MemoryDisk::new();
    let lost = ExecuteId::Key(IdempotencyKey::fresh(WALL.0 - 1, [7; 10]));
    let mut node = Node::on(opened(&disk), 1, empty());
    node.tick(5);
    executed(node.call(keyed(Incarnation(1), "order-1")));
    drop(node);

    let now = Versioned { revision: Revision(1), register: Some(force(&disk)) };
    let mut node = restarted_at(&disk, now, WallTime(0));
    node.wall = WALL;
    node.tick(5);
    assert_eq!(node.call(execute(LATER, lost)), Some(Answer::Refused(Refusal::Forgotten)));
}

/// One that is years ahead shuts out timed keys until then; the status says so, for how long, and
/// nothing else is refused.
#[test]
fn an_incarnation_that_begins_in_the_future_is_seen() {
    const YEAR_MS: u64 = 365 * 24 * 3_600 * 1_000;
    let disk = MemoryDisk::new();
    let timed = |number| ExecuteId::Key(IdempotencyKey::fresh(WALL.0, [number; 10]));
    let mut node = Node::on(opened(&disk), 1, empty());
    node.tick(5);
    executed(node.call(execute(Incarnation(1), timed(1))));
    assert_eq!(node.replica.status().timed_keys_refused_ms, 0);
    drop(node);

    let now = Versioned { revision: Revision(1), register: Some(force(&disk)) };
    let mut node = restarted_at(&disk, now, WallTime(WALL.0 + 2 * YEAR_MS));
    assert_eq!(node.replica.status().timed_keys_refused_ms, 0, "by its own calendar all is well");
    node.wall = WALL;
    node.tick(5);
    assert_eq!(node.replica.status().timed_keys_refused_ms, 2 * YEAR_MS);
    let fresh = node.call(execute(LATER, timed(2)));
    assert_eq!(fresh, Some(Answer::Refused(Refusal::Forgotten)));
    assert_eq!(executed(node.call(execute(LATER, timed(1)))), (Outcome::Integer(1), true));
    assert_eq!(executed(node.call(keyed(LATER, "order-1"))), (Outcome::Integer(2), false));
    let session = open_session(&mut node, LATER, 1);
    let own = executed(node.call(in_session(LATER, session, 1)));
    assert_eq!(own, (Outcome::Integer(3), false));
}

/// A crash after any write of the opening leaves no session behind either; what is of an earlier
/// incarnation is refused from the first moment, what is not is asked to come again.
#[test]
fn ending_the_sessions_survives_every_crash() {
    let (mut crashes, mut writes) = (0, 0);
    loop {
        let disk = MemoryDisk::new();
        let sessions = used(&disk);
        let forced = force(&disk);
        let now = Versioned { revision: Revision(1), register: Some(forced.clone()) };
        let mut node = Node::refused(opened(&disk), 1, now);
        node.hanging = Some(Vec::new());
        node.swaps = true;
        node.tick(300);
        node.tick(300);
        for _ in 0..writes {
            node.write_one();
        }
        let status = node.replica.status();
        if status.role == onlyonce_wire::status::Role::Primary && !status.serving {
            let refusal = Answer::Refused(Refusal::OtherIncarnation { current: LATER });
            assert_eq!(node.call(in_session(Incarnation(1), sessions[0], 1)), Some(refusal));
            let answer = node.call(in_session(LATER, sessions[0], 1));
            assert_eq!(answer, Some(Answer::AskAgain), "after {writes} writes");
            crashes += 1;
        }
        let now = node.register.clone();
        drop(node);
        let mut node = Node::on(opened(&disk), 1, now);
        node.tick(5);
        assert_eq!(node.stopped, None, "after {writes} writes");
        assert_eq!((rows(&node, Table::Replies), rows(&node, Table::Sessions)), (0, 1));
        let answer = node.call(in_session(LATER, sessions[9], 1));
        assert_eq!(answer, Some(Answer::Refused(Refusal::SessionExpired)));
        if status.serving {
            break;
        }
        writes += 1;
        assert!(writes < 40, "it never opens");
    }
    assert!(crashes >= 4, "{crashes} crashes while the sessions ended, {writes} writes");
}

/// As many sessions as there can be end in bounded steps: no record is large, and no step waits for
/// more than the one before.
#[test]
fn as_many_sessions_as_there_can_be_end_in_steps() {
    let disk = MemoryDisk::new();
    let mut node = Node::on(opened(&disk), 1, empty());
    node.tick(5);
    for id in 1..=limits::SESSIONS_MAX as u128 {
        open_session(&mut node, Incarnation(1), id);
    }
    drop(node);
    let now = Versioned { revision: Revision(1), register: Some(force(&disk)) };
    let mut node = Node::refused(opened(&disk), 1, now);
    node.hanging = Some(Vec::new());
    node.swaps = true;
    node.tick(300);
    node.tick(300);
    let (mut records, mut largest) = (0, 0);
    while !node.replica.status().serving {
        let waiting = node.hanging.as_ref().expect("it hangs");
        assert!(waiting.len() <= 1, "{} writes wait", waiting.len());
        if let Some(Effect::Persist(record)) = waiting.first() {
            records += 1;
            largest = largest.max(record.bytes());
        }
        node.write_one();
    }
    println!("{records} records, the largest of {largest} bytes");
    assert!(records > 1_000 && largest < 64 << 10, "{records} records, at most {largest} bytes");
    assert_eq!((rows(&node, Table::Replies), rows(&node, Table::Sessions)), (0, 1));
}

/// What a store that took part in view 5 of incarnation 3 makes of a register.
fn verdict(found: Option<Register>) -> Node {
    let disk = MemoryDisk::new();
    let mut first = opened(&disk);
    let register = Register { incarnation: Incarnation(3), ..register(5, 1, &[2]) };
    let mut saved = Saved::fresh();
    saved.owner = Some(onlyonce_replica::Owner::Cluster(ClusterId(9)));
    first.log.save(&saved.in_forced_view(&register).encode()).expect("saved");
    drop(first);
    let revision = Revision(u64::from(found.is_some()));
    Node::on(opened(&disk), 1, Versioned { revision, register: found })
}

/// A store with a history serves under no register that is not its own, as new or newer: it stops,
/// says what happened and what to do, and proposes nothing, `--bootstrap` or not.
#[test]
fn a_lost_register_stops_a_store_with_data() {
    let at = |incarnation, view, primary| {
        let incarnation = Incarnation(incarnation);
        Some(Register { incarnation, ..register(view, primary, &[]) })
    };
    let forced = Some(forced_view(ClusterId(9), LATER, View(6), member(1)));
    for (found, words) in [
        (None, ["holds nothing", "view 5 of incarnation 3", "onced admin force-view"]),
        (at(3, 4, 1), ["holds view 4 of incarnation 3", "lost nothing", "onced admin force-view"]),
        (at(2, 9, 1), ["holds view 9 of incarnation 2", "lost data", "onced admin force-view"]),
        (at(4, 6, 2), ["without this store", "must never serve again", "new, empty"]),
        (forced, ["names this store", "cut short", "repeat it with this data folder"]),
    ] {
        let what = format!("{found:?}");
        let node = verdict(found);
        let said = node.stopped.unwrap_or_else(|| panic!("it goes on under {what}"));
        assert!(words.iter().all(|word| said.contains(word)), "{what}: {said}");
        assert_eq!(node.proposed, 0, "{what}");
    }
}

/// A running node hears by its watch, which may be late, that the register is older than it was; a
/// read tells that this is no old news, and the node stops.
#[test]
fn a_register_that_is_emptied_stops_a_running_primary() {
    let mut node = Node::serving();
    node.put(10);
    let old = Versioned { revision: Revision(0), register: None };
    node.give(Event::RegisterRead { asked: None, now: old.clone() });
    assert_eq!(node.stopped, None, "the register itself still holds the view");
    assert!(node.replica.status().serving);
    node.register = old.clone();
    node.give(Event::RegisterRead { asked: None, now: old });
    let said = node.stopped.expect("it stops");
    assert!(said.contains("holds nothing") && said.contains("force-view"), "{said}");
}
