//! Reads by hand at one node, again and again, whoever the primary is: what a node that should serve
//! no more still answers gets into the recorded history, and there it must fit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_history::{Action, Operation, Recorded, Told};
use onlyonce_wire::client::{Answer, Outcome, Read, Request};

use crate::raw::RawConnection;
use crate::recorder::Shared;
use crate::wait::moment;

/// Between two reads: they are not to take the processors from those who serve.
const NEXT: Duration = Duration::from_millis(5);

/// Reads `key` at `node` until the clients are to stop. Only answers are recorded: a refused read
/// changes nothing.
pub(crate) fn observe(shared: &Arc<Shared>, number: u64, node: SocketAddr, key: &str) {
    let request = Request::Read(Read::Get { key: Bytes::copy_from_slice(key.as_bytes()) });
    let mut connection = None;
    while !shared.stop.load(Ordering::Relaxed) {
        if connection.is_none() {
            connection = RawConnection::open(node).ok();
        }
        let invoked = shared.now();
        let answer = connection.as_mut().map(|connection| connection.call(&request));
        let answered = shared.now();
        match answer {
            Some(Ok(Answer::Read(Outcome::Value(value)))) => {
                let told = Some(Told::Value(value));
                let answered = Some(answered);
                let operation = Operation { invoked, answered, action: Action::Get, told };
                shared.record(Recorded { client: number, key: key.to_owned(), operation });
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => connection = None,
        }
        moment(NEXT);
    }
}
