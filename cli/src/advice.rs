//! What to do about a request whose fate is not known.

use onlyonce_client::{
    Consequence, Handle, IdempotencyKey, Refusal, RequestId, Unresolved, UnresolvedReason,
};

const GOES_ON: &str = "keep the handle, it names this request: 'once resume HANDLE' goes on with it, \
                       'once outcome HANDLE' asks what became of it, 'once cancel HANDLE' rules it out";
const ASK_OR_CANCEL: &str =
    "'once outcome HANDLE' asks what became of it, 'once cancel HANDLE' rules it out";
const VOID: &str = "do not resume the handle: nothing of it runs from now on, and the cluster cannot tell whether it ran";
const KEY_EXPIRED: &str =
    "do not resume the handle; 'once outcome HANDLE' tells what is still known of the request";

/// What to do about a request that is unresolved.
pub fn advice(unresolved: &Unresolved) -> String {
    let handle = unresolved.handle();
    match unresolved.reason() {
        UnresolvedReason::Deadline(_)
        | UnresolvedReason::BadReply(_)
        | UnresolvedReason::Unusable(_)
        | UnresolvedReason::Unanswered => GOES_ON.to_owned(),
        UnresolvedReason::NoContent => match key(handle).map(argument) {
            Some(Some(key)) => format!(
                "give the command again, with the same arguments and --key {key}: 'once resume' cannot \
                 go on with it; {ASK_OR_CANCEL}"
            ),
            Some(None) => format!(
                "whoever has its key and its content can give the command again, 'once resume' \
                 cannot; {ASK_OR_CANCEL}"
            ),
            None => format!(
                "a program that has its content can go on with it, 'once resume' cannot; \
                 {ASK_OR_CANCEL}"
            ),
        },
        UnresolvedReason::KeyExpired(_) => KEY_EXPIRED.to_owned(),
        UnresolvedReason::Refused(refusal) => match refusal.consequence() {
            Consequence::IdVoid => {
                let elsewhere = elsewhere(handle, refusal);
                elsewhere.map_or(VOID.to_owned(), |elsewhere| format!("{VOID}; but {elsewhere}"))
            }
            Consequence::NeverRuns | Consequence::ThisCopy | Consequence::TryLater => {
                GOES_ON.to_owned()
            }
        },
    }
}

/// Who may still know a request that is void in a new incarnation of the cluster: its key's reply can be
/// in what the cluster goes on with.
pub fn elsewhere(handle: &Handle, refusal: &Refusal) -> Option<String> {
    let Refusal::OtherIncarnation { .. } = refusal else { return None };
    let key = argument(key(handle)?)?;
    Some(format!(
        "'once outcome --key {key}' asks for its key in the history that the cluster goes on with, and \
         tells the reply if that holds it"
    ))
}

fn key(handle: &Handle) -> Option<&IdempotencyKey> {
    match handle.id() {
        RequestId::Key(key) => Some(key),
        RequestId::Seq { .. } => None,
    }
}

/// A key as it is typed in a shell; none if it cannot be.
fn argument(key: &IdempotencyKey) -> Option<String> {
    let text = match key {
        IdempotencyKey::Named(name) => std::str::from_utf8(name).ok()?.to_owned(),
        IdempotencyKey::Timed(uuid) => uuid.to_string(),
    };
    let is_typed = !text.chars().any(char::is_control);
    is_typed.then(|| format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key is quoted for a shell, or not printed at all.
    #[test]
    fn keys_are_quoted() {
        let quoted = |bytes: &[u8]| argument(&bytes.to_vec().try_into().expect("a key"));
        assert_eq!(quoted(b"order-1").as_deref(), Some("'order-1'"));
        assert_eq!(quoted("\u{e9} $x".as_bytes()).as_deref(), Some("'\u{e9} $x'"));
        assert_eq!(quoted(b"it's").as_deref(), Some(r"'it'\''s'"));
        assert_eq!(quoted(b"\x1b[2J"), None);
        assert_eq!(quoted(b"\xff"), None);
    }
}
