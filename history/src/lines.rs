//! Histories as JSON Lines: one operation a line, with its invocation and its answer.
//!
//! ```text
//! {"client":3,"key":"list/0","invoked":17,"answered":42,"action":{"append":"3.9;"},"told":{"number":12}}
//! {"client":5,"key":"list/0","invoked":18,"answered":null,"action":"incr","told":null}
//! ```
//! The second one was never answered: it may have taken effect at any time after 18, or never. A
//! value is a string, or an array of its bytes where it is no UTF-8 text. The units of time are
//! those of the recorder; only their order matters.

use std::io::{BufRead, Write};

use crate::operation::Recorded;

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The source failed.
    #[error("cannot read a history: {0}")]
    Io(#[from] std::io::Error),
    /// A line is no operation.
    #[error("line {number} of a history: {reason}")]
    Line {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Writes `history`, one operation a line.
pub fn write_lines(history: &[Recorded], mut to: impl Write) -> std::io::Result<()> {
    for recorded in history {
        serde_json::to_writer(&mut to, recorded)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Reads what [`write_lines`] wrote. Empty lines are skipped.
pub fn read_lines(from: impl BufRead) -> Result<Vec<Recorded>, LineError> {
    let mut history = Vec::new();
    for (at, line) in from.lines().enumerate() {
        let line = line?;
        if line.is_empty() {
            continue;
        }
        let bad = |reason: String| LineError::Line { number: at + 1, reason };
        let recorded: Recorded =
            serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?;
        let operation = &recorded.operation;
        if operation.answered.is_some() != operation.told.is_some() {
            return Err(bad("\"answered\" and \"told\" belong together".to_owned()));
        }
        if operation.answered.is_some_and(|answered| answered < operation.invoked) {
            return Err(bad("it was answered before it was invoked".to_owned()));
        }
        history.push(recorded);
    }
    Ok(history)
}

/// A value in JSON: a string where it is text.
pub(crate) mod text {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    impl From<&Bytes> for Form {
        fn from(value: &Bytes) -> Self {
            match std::str::from_utf8(value) {
                Ok(text) => Self::Text(text.to_owned()),
                Err(_) => Self::Bytes(value.to_vec()),
            }
        }
    }

    impl From<Form> for Bytes {
        fn from(form: Form) -> Self {
            match form {
                Form::Text(text) => text.into(),
                Form::Bytes(bytes) => bytes.into(),
            }
        }
    }

    pub(crate) fn serialize<S: Serializer>(value: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        Form::from(value).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        Form::deserialize(from).map(Bytes::from)
    }
}

/// A value that may be absent.
pub(crate) mod optional_text {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::text::Form;

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Bytes>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Form::from).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Form>::deserialize(from)?.map(Bytes::from))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::operation::{Action, Operation, Told};

    fn recorded(action: Action, told: Option<Told>) -> Recorded {
        let answered = told.as_ref().map(|_| 9);
        let operation = Operation { invoked: 7, answered, action, told };
        Recorded { client: 1, key: "a \"key\"".to_owned(), operation }
    }

    /// Every kind of operation and answer reads as it was written, one line each.
    #[test]
    fn lines_are_read_as_written() {
        let odd = Bytes::from_static(b"\xff\x00");
        let text = || Bytes::from("text");
        let history = [
            recorded(Action::Put(text()), Some(Told::Done)),
            recorded(Action::Put(odd.clone()), None),
            recorded(Action::Append(text()), Some(Told::Number(4))),
            recorded(Action::Incr, Some(Told::Impossible)),
            recorded(
                Action::Cas { expected: None, value: text() },
                Some(Told::Compared { swapped: false, actual: Some(odd) }),
            ),
            recorded(
                Action::Cas { expected: Some(text()), value: Bytes::new() },
                Some(Told::Compared { swapped: false, actual: None }),
            ),
            recorded(Action::Delete, Some(Told::Bool(true))),
            recorded(Action::Get, Some(Told::Value(None))),
            recorded(Action::Get, Some(Told::Value(Some(text())))),
        ];
        let mut bytes = Vec::new();
        write_lines(&history, &mut bytes).expect("memory takes it");
        assert_eq!(bytes.lines().count(), history.len());
        assert_eq!(read_lines(&bytes[..]).expect("lines"), history);
    }

    /// The form that the module promises, which other checkers read.
    #[test]
    fn the_form_is_the_promised_one() {
        let line = "{\"client\":1,\"key\":\"k\",\"invoked\":17,\"answered\":42,\
                    \"action\":{\"append\":\"3;\"},\"told\":{\"number\":12}}\n";
        let history = read_lines(line.as_bytes()).expect("a line");
        assert_eq!(history[0].operation.action, Action::Append("3;".into()));
        let mut bytes = Vec::new();
        write_lines(&history, &mut bytes).expect("memory takes it");
        assert_eq!(std::str::from_utf8(&bytes), Ok(line));
    }

    /// What is no history is refused, and the line is named.
    #[test]
    fn bad_lines_are_named() {
        let open = "{\"client\":1,\"key\":\"k\",\"invoked\":17,\"answered\":null,\"action\":\"incr\",\
                    \"told\":null}\n";
        for (bad, reason) in [
            ("nonsense", "expected"),
            (&open.replace("null,\"action", "18,\"action"), "belong together"),
            (
                &open.replace("null,\"action", "16,\"action").replace("null", "{\"number\":1}"),
                "before it was invoked",
            ),
        ] {
            let error = read_lines(format!("{open}\n{bad}").as_bytes()).expect_err(bad);
            let text = error.to_string();
            assert!(text.contains("line 3") && text.contains(reason), "{text}");
        }
    }
}
