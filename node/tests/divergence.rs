//! Replicas that hold different rows after the same record. Nothing in the log tells, and each store
//! is whole for itself: their digests tell.

mod common;

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use onlyonce_storage::{Cursor, Options, open_dir};
use onlyonce_wire::client::{Operation, Outcome, Write as WriteRequest};
use rustix::process::Signal;
use tempfile::TempDir;

use common::{Connection, PATIENCE, Process, incr, serving};

/// Everything that is committed is folded at once.
const FOLD_SOON: [(&str, &str); 1] = [("ONCED_CHECKPOINT_INTERVAL_MS", "100")];
/// Nothing is folded before there is a [`LONG`] value.
const FOLD_WHEN_LONG: [(&str, &str); 2] =
    [("ONCED_CHECKPOINT_INTERVAL_MS", "86400000"), ("ONCED_CHECKPOINT_BYTES", "65536")];
const LONG: usize = 100_000;
/// What primaries log by themselves as they open: that their view began, and what time it is. The first
/// row follows, and then a mark.
const LAST_BEFORE_ROWS: u64 = 2;

fn node(folder: &Path, name: &str, more: &[&str]) -> Command {
    let mut command = common::node(folder, name, more);
    command.envs(FOLD_SOON);
    command
}

/// Whether all is folded, the row that was put and the mark after it too.
fn is_settled(status: &serde_json::Value) -> bool {
    status["applied"] == status["prepared"]
        && status["applied"].as_u64() > Some(LAST_BEFORE_ROWS + 1)
}

fn authority(folder: &Path) -> Process {
    let data = folder.join("authority");
    let data = data.to_str().expect("a path of text");
    Process::start(&["authority", "--data", data, "--listen", "127.0.0.1:0"])
}

fn put(key: &'static str, value: impl Into<Bytes>) -> Operation {
    let (key, value) = (Bytes::from(key), value.into());
    Operation::Write(WriteRequest::Put { key, value })
}

/// Makes the store in `data` one with another value in a row, whose digests are those of its rows: as
/// a fault of the program could have made it. What it was when its node stopped must all be folded.
fn rewrite(data: &Path) {
    let store = open_dir(data, &Options::new(0)).expect("opens");
    let mut incoming = store.checkpointer.begin_incoming().expect("begins");
    let mut rows = store.checkpointer.read_rows(&Cursor::start(), usize::MAX).expect("reads");
    assert_eq!((rows.next, rows.applied.mark.index), (None, store.state.last().1));
    let row = rows.entry.effects.iter_mut().find(|effect| effect.key.ends_with(b"row"));
    row.expect("it was put").value = Some(Bytes::from("another value"));
    incoming.fold(&rows.entry).expect("folds");
    incoming.finish(rows.applied.mark, store.state_bytes.clone()).expect("installs");
}

/// The replica whose rows differ is told so by the primary, whose tables are what was written, and
/// stops; the primary serves on.
#[test]
fn a_replica_with_other_rows_stops() {
    let folder = TempDir::new().expect("a folder");
    let authority = authority(folder.path());
    let joins = ["--authority", authority.at("authority")];
    let begins = [joins[0], joins[1], "--bootstrap"];
    let first = Process::spawn(&mut node(folder.path(), "n1", &begins));
    first.wait_for("serving", serving);
    let second = Process::spawn(&mut node(folder.path(), "n2", &joins));
    second.wait_for("a backup", |status| status["role"] == "backup");
    let mut client = Connection::client(first.at("client"));
    assert_eq!(client.execute("a", &put("row", "value")), (Outcome::Done, false));
    second.wait_for("everything folded", is_settled);
    second.signal(Signal::TERM);
    assert_eq!(second.ended().code(), Some(0));
    rewrite(&folder.path().join("n2"));

    let mut said = tempfile::tempfile().expect("a file");
    let mut command = node(folder.path(), "n2", &joins);
    let second = Process::spawn(command.stderr(said.try_clone().expect("a file")));
    second.wait_for("a backup", |status| status["role"] == "backup");
    assert_eq!(client.execute("b", &incr()), (Outcome::Integer(1), false));
    assert_eq!(second.ended().code(), Some(1), "within {PATIENCE:?}");
    let text = common::text_of(&mut said);
    assert!(text.contains("differ from those of the primary"), "{text}");
    assert_eq!(client.execute("c", &incr()), (Outcome::Integer(2), false));
}

/// The primary of three whose rows differ stops, though its own tables are what was written to them; the
/// two that agree go on.
#[test]
fn a_primary_with_other_rows_than_both_replicas_stops() {
    let folder = TempDir::new().expect("a folder");
    let authority = authority(folder.path());
    let joins = ["--authority", authority.at("authority")];
    let begins = [joins[0], joins[1], "--bootstrap"];
    let start = |name| Process::spawn(&mut node(folder.path(), name, &joins));
    let first = Process::spawn(&mut node(folder.path(), "n1", &begins));
    first.wait_for("serving", serving);
    let backups = |number: usize| {
        move |status: &serde_json::Value| {
            status["serving"] == true && status["backups"].as_array().map(Vec::len) == Some(number)
        }
    };
    let others = [start("n2"), start("n3")];
    first.wait_for("with two backups", backups(2));
    let mut client = Connection::client(first.at("client"));
    assert_eq!(client.execute("a", &put("row", "value")), (Outcome::Done, false));
    // A store that lacks the row would get the primary's later.
    for other in &others {
        other.wait_for("everything folded", is_settled);
    }
    drop(others);
    first.wait_for("alone", backups(0));
    first.wait_for("everything folded", is_settled);
    first.signal(Signal::TERM);
    assert_eq!(first.ended().code(), Some(0));
    rewrite(&folder.path().join("n1"));

    // They are compared when all three are there: of two, the primary's word would count.
    let node = |name| {
        let mut command = node(folder.path(), name, &joins);
        command.envs(FOLD_WHEN_LONG);
        command
    };
    let mut said = tempfile::tempfile().expect("a file");
    let first = Process::spawn(node("n1").stderr(said.try_clone().expect("a file")));
    let others = [Process::spawn(&mut node("n2")), Process::spawn(&mut node("n3"))];
    first.wait_for("with two backups", backups(2));
    let mut client = Connection::client(first.at("client"));
    assert_eq!(client.execute("b", &put("long", vec![0; LONG])), (Outcome::Done, false));
    assert_eq!(first.ended().code(), Some(1), "within {PATIENCE:?}");
    let text = common::text_of(&mut said);
    let named = text.contains("n2 and n3") || text.contains("n3 and n2");
    assert!(named && text.contains("this store is damaged"), "{text}");

    others[0].wait_for("another primary", |status| status["primary"] != "n1");
    let next = &others[usize::from(others[0].status()["primary"] == "n3")];
    next.wait_for("the other one as its backup", backups(1));
    let mut client = Connection::client(next.at("client"));
    assert_eq!(client.execute("c", &incr()), (Outcome::Integer(1), false));
}
