//! What clients ask for.

use bytes::Bytes;
use onlyonce_history::Action;
use onlyonce_storage::limits::CHUNK;
use onlyonce_wire::client::{self as wire, Execute, ExecuteId, Request, Write};
use onlyonce_wire::{Incarnation, codec};
use rand::Rng;
use rand::rngs::StdRng;

/// The name of a key.
pub fn key_name(key: usize) -> Bytes {
    format!("key-{key}").into()
}

/// An action; with `short`, none whose reply grows with the value; with `long`, some values that take
/// more than a row.
pub fn draw_action(rng: &mut StdRng, unique: usize, short: bool, long: bool) -> Action {
    let value = || Bytes::from(format!("{}", unique * 1_000));
    match rng.random_range(0..20) {
        0 if long => Action::Put(Bytes::from(format!("{unique};").repeat(CHUNK / 2))),
        0 => Action::Put(value()),
        1..=4 => Action::Append(format!("{unique};").into()),
        5..=10 => Action::Incr,
        11 if !short => Action::Cas { expected: None, value: value() },
        12 => Action::Delete,
        _ => Action::Get,
    }
}

/// The request for an action; none for a read.
pub fn write_of(key: Bytes, action: Action) -> Option<wire::Operation> {
    Some(match action {
        Action::Put(value) => wire::Operation::Write(Write::Put { key, value }),
        Action::Append(value) => wire::Operation::Write(Write::Append { key, value }),
        Action::Incr => wire::Operation::Write(Write::Incr { key, by: 1 }),
        Action::Delete => wire::Operation::Write(Write::Delete { key }),
        Action::Cas { expected, value } => wire::Operation::Cas { key, expected, value },
        Action::Get => return None,
    })
}

/// Whether an id is a named key: forgotten, it is like a new one.
pub fn is_named(id: &ExecuteId) -> bool {
    matches!(id, ExecuteId::Key(key) if key.time_ms().is_none())
}

/// Whether a request is sent under a timed key.
pub fn is_timed(request: &Request) -> bool {
    let Request::Execute(Execute { id: ExecuteId::Key(key), .. }) = request else { return false };
    key.time_ms().is_some()
}

/// A request.
pub fn execute(incarnation: Incarnation, id: ExecuteId, write: &wire::Operation) -> Execute {
    let operation = codec::encode(write).into();
    Execute { incarnation, id, operation }
}

/// An operation that changes nothing, on a key that nothing changes.
pub fn nothing() -> wire::Operation {
    wire::Operation::Write(Write::Get { key: Bytes::from_static(b"nothing") })
}
