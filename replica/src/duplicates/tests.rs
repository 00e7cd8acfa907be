//! What the table itself bounds.

use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{Options, open};

use super::*;

/// The table of a new store, and that store.
fn empty(limits: Limits) -> (DuplicateTable, State) {
    let state = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens").state;
    let retention = Duration::from_secs(1);
    (DuplicateTable::load(&state, Moment(1), limits, retention).expect("loads"), state)
}

/// One session more than there may be is turned away for now; those that are open stay so, and
/// one that is closed makes room.
#[test]
fn sessions_are_bounded() {
    let (mut table, state) = empty(Limits::default());
    let open = |table: &mut DuplicateTable, id| {
        table.open(SessionId(id), Index(1), Moment(1), &mut Vec::new())
    };
    let most = limits::SESSIONS_MAX as u128;
    for id in 1..=most {
        assert!(matches!(open(&mut table, id), Verdict::New), "{id}");
    }
    let verdict = open(&mut table, most + 1);
    assert!(matches!(verdict, Verdict::NotNow(Refusal::Busy(Limit::Sessions))), "{verdict:?}");
    assert!(matches!(open(&mut table, 1), Verdict::Known { .. }), "it is open");
    let first = Session { id: SessionId(1), opened_at: OpenedAt(1) };
    let closed = table.close(&state, first, Moment(1), &mut Vec::new()).expect("reads");
    assert!(matches!(closed, Verdict::New), "{closed:?}");
    assert!(matches!(open(&mut table, most + 1), Verdict::New), "there is room");
}

/// Replies to later requests never keep out the oldest one, whose reply alone lets them go.
#[test]
fn the_oldest_request_is_never_busy_for_later_replies() {
    let (mut table, state) = empty(Limits { saved_reply_bytes: 50, ..Limits::default() });
    let session = Session { id: SessionId(1), opened_at: OpenedAt(1) };
    let _ = table.open(session.id, Index(1), Moment(1), &mut Vec::new());
    let mut record = |seq| {
        let id = RequestId::Seq { session, seq: Seq(seq) };
        let reply = Bytes::from_static(b"8 bytes.");
        let row = ReplyRow::Executed { fingerprint: Fingerprint(1), reply };
        let at = (Moment(1), Index(2));
        table.record(&state, at, (&id, Seq(1)), row, &mut Vec::new()).expect("reads")
    };
    let row = || Recorded::Row { kept_for_ms: None };
    assert_eq!((record(2), record(3)), (row(), row()));
    assert_eq!(record(4), Recorded::Refused(Refusal::Busy(Limit::SavedReplies)));
    assert_eq!(record(1), row());
}
