//! As many sessions as a cluster may have, and what they cost.

use onlyonce_tests::Lone;
use onlyonce_tests::raw::{RawConnection, incarnation};
use onlyonce_tests::status::Status;
use onlyonce_wire::client::{Answer, Limit, Refusal, Request};
use onlyonce_wire::{Seq, SessionId, limits};

/// Opens under way at a time.
const OUTSTANDING: usize = 512;
/// What a session may take of a node's memory. Measured: see `docs/operations.md`.
const BYTES_MAX: u64 = 2_048;

/// A node holds as many sessions as it promises within the memory it states, turns one more away,
/// and knows them all again after a kill.
#[test]
fn a_node_holds_all_sessions() {
    let mut lone = Lone::start(&[]);
    let address = lone.node.client_address();
    let incarnation = incarnation(&[address]);
    let before = lone.node.daemon().resident_bytes();
    let mut node = RawConnection::open(address).expect("connects");
    let open = |id: usize| Request::Open { incarnation, session: SessionId(id as u128 + 1) };
    let mut waiting = Vec::new();
    for id in 0..limits::SESSIONS_MAX {
        waiting.push(node.send(&open(id)).expect("sends"));
        if waiting.len() == OUTSTANDING || id + 1 == limits::SESSIONS_MAX {
            for call in std::mem::take(&mut waiting) {
                let answer = node.receive(call).expect("answers");
                assert!(matches!(answer, Answer::Opened { .. }), "{answer:?}");
            }
        }
    }
    let after = lone.node.daemon().resident_bytes();
    let each = after.saturating_sub(before) / limits::SESSIONS_MAX as u64;
    println!("{} sessions: {each} bytes of memory each", limits::SESSIONS_MAX);
    assert!(each <= BYTES_MAX, "{each} bytes a session");
    let busy = Answer::Refused(Refusal::Busy(Limit::Sessions));
    assert_eq!(node.call(&open(limits::SESSIONS_MAX)).expect("answers"), busy);

    lone.node.kill();
    lone.node.start();
    let status = lone.node.wait_status("to serve", Status::serves);
    assert_eq!(status.sessions, limits::SESSIONS_MAX as u64);
    let mut node = RawConnection::open(address).expect("connects");
    let last = Request::Session(SessionId(limits::SESSIONS_MAX as u128));
    let Answer::Session(Some(shown)) = node.call(&last).expect("answers") else { panic!("gone") };
    assert_eq!(shown.status.first_unacked, Seq(1));
}
