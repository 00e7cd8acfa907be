//! The little language of `once txn`: one statement an argument.
//!
//! ```text
//! statement = "if" key "=" value | "if" key "present" | "if" key "absent"
//!           | "put" key value | "append" key value | "incr" key [integer]
//!           | "delete" key | "get" key
//! key, value = a word without blanks, or "text in double quotes" with \" \\ \n \t \r \xNN
//! ```

use onlyonce_client::{Compare, Condition, Txn, Write};

use crate::output::escape;

/// What `once txn --help` says about it.
pub const HELP: &str = "\
Statements, one an argument; all compares must hold, then all writes are carried out in order:
  if KEY = VALUE     KEY holds exactly VALUE
  if KEY present     KEY exists
  if KEY absent      KEY does not exist
  put KEY VALUE      append KEY VALUE      incr KEY [BY]      delete KEY
  get KEY            read KEY, as the writes before it left it

A KEY or VALUE is a word, or \"in double quotes\" with the escapes \\\" \\\\ \\n \\t \\r \\xNN.

Prints a line for each write: put done, append the length, incr the value, delete true or false, \
get the value or (absent). When a compare does not hold, nothing is written: exit 1.

Examples:
  once txn 'if balance = 10' 'incr balance -3' 'put note \"paid in full\"'
  once txn 'if lock absent' 'put lock me' && echo mine
  once txn 'get a' 'get b'";

/// A statement that cannot be read; the text points at the place.
#[derive(Debug, PartialEq, Eq)]
pub struct StatementError {
    statement: String,
    position: usize,
    message: String,
}

impl std::fmt::Display for StatementError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { statement, position, message } = self;
        write!(f, "{message}\n  {statement}\n  {:>1$}", "^", position + 1)
    }
}

/// Reads the statements of a transaction. Compares may stand anywhere: all are checked first.
pub fn parse(statements: &[String]) -> Result<Txn, StatementError> {
    statements.iter().try_fold(Txn::new(), |txn, statement| {
        Ok(match parse_statement(statement)? {
            Statement::If(key, condition) => txn.when(key, condition),
            Statement::Write(write) => txn.write(write),
        })
    })
}

/// A compare as a statement.
pub fn statement(compare: &Compare) -> String {
    let key = word(&compare.key);
    match &compare.condition {
        Condition::Equals(value) => format!("if {key} = {}", word(value)),
        Condition::Present => format!("if {key} present"),
        Condition::Absent => format!("if {key} absent"),
    }
}

/// A key or value as it stands in a statement.
fn word(bytes: &[u8]) -> String {
    let escaped = escape(bytes);
    let is_plain = |c: char| !c.is_whitespace() && c != '"' && c != '\\';
    if !escaped.is_empty() && escaped.chars().all(is_plain) {
        escaped
    } else {
        format!("\"{}\"", escaped.replace('"', "\\\""))
    }
}

enum Statement {
    If(Vec<u8>, Condition),
    Write(Write),
}

fn parse_statement(statement: &str) -> Result<Statement, StatementError> {
    let mut words = Words { statement, position: 0 };
    let (verb_at, verb) =
        (words.skip_blanks(), words.word("a statement: if, put, append, incr, delete or get")?);
    let parsed = match verb.as_slice() {
        b"if" => {
            let key = words.word("a key")?;
            let at = words.skip_blanks();
            let condition = match words.word("'= VALUE', 'present' or 'absent'")?.as_slice() {
                b"=" => Condition::Equals(words.word("a value")?.into()),
                b"present" => Condition::Present,
                b"absent" => Condition::Absent,
                _ => return Err(words.error(at, "'= VALUE', 'present' or 'absent' is needed here")),
            };
            Statement::If(key, condition)
        }
        b"put" => {
            let (key, value) = (words.word("a key")?.into(), words.word("a value")?.into());
            Statement::Write(Write::Put { key, value })
        }
        b"append" => {
            let (key, value) = (words.word("a key")?.into(), words.word("a value")?.into());
            Statement::Write(Write::Append { key, value })
        }
        b"incr" => {
            let key = words.word("a key")?.into();
            let at = words.skip_blanks();
            let by = if at == statement.len() {
                1
            } else {
                let by = words.word("a number")?;
                let by = std::str::from_utf8(&by).ok().and_then(|text| text.parse().ok());
                by.ok_or_else(|| words.error(at, "a 64-bit integer is needed here"))?
            };
            Statement::Write(Write::Incr { key, by })
        }
        b"delete" => Statement::Write(Write::Delete { key: words.word("a key")?.into() }),
        b"get" => Statement::Write(Write::Get { key: words.word("a key")?.into() }),
        _ => {
            let message = "a statement begins with if, put, append, incr, delete or get";
            return Err(words.error(verb_at, message));
        }
    };
    match words.skip_blanks() {
        end if end == statement.len() => Ok(parsed),
        extra => Err(words.error(extra, "this is too much (put a text with blanks in \"quotes\")")),
    }
}

/// A statement, read word by word.
struct Words<'a> {
    statement: &'a str,
    /// In bytes, at a character's beginning.
    position: usize,
}

impl Words<'_> {
    fn skip_blanks(&mut self) -> usize {
        let rest = &self.statement[self.position..];
        self.position += rest.len() - rest.trim_start().len();
        self.position
    }

    fn error(&self, position: usize, message: &str) -> StatementError {
        StatementError {
            statement: self.statement.to_owned(),
            position: self.statement[..position].chars().count(),
            message: message.to_owned(),
        }
    }

    /// The next word, bare or in quotes.
    fn word(&mut self, what: &str) -> Result<Vec<u8>, StatementError> {
        let start = self.skip_blanks();
        let rest = &self.statement[start..];
        if rest.is_empty() {
            return Err(self.error(start, &format!("{what} is missing here")));
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            let (word, length) = self.quoted(quoted, start)?;
            self.position = start + length;
            return Ok(word);
        }
        let length = rest.find(char::is_whitespace).unwrap_or(rest.len());
        if let Some(quote) = rest[..length].find('"') {
            let message =
                "a quote in the middle of a word: put the whole word in quotes, with \\\"";
            return Err(self.error(start + quote, message));
        }
        self.position = start + length;
        Ok(rest[..length].into())
    }

    /// The text after an opening quote at `start`; also returns its length with both quotes.
    fn quoted(&self, text: &str, start: usize) -> Result<(Vec<u8>, usize), StatementError> {
        let mut word = Vec::new();
        let mut characters = text.char_indices();
        while let Some((at, character)) = characters.next() {
            let place = start + 1 + at;
            match character {
                '"' => {
                    let after = &text[at + 1..];
                    if after.starts_with(|next: char| !next.is_whitespace()) {
                        return Err(self.error(place + 1, "a blank is needed after the quotes"));
                    }
                    return Ok((word, at + 2));
                }
                '\\' => match characters.next().map(|(_, escape)| escape) {
                    Some(escape @ ('"' | '\\')) => word.push(escape as u8),
                    Some('n') => word.push(b'\n'),
                    Some('t') => word.push(b'\t'),
                    Some('r') => word.push(b'\r'),
                    Some('x') => {
                        let digits = text.get(at + 2..at + 4).unwrap_or_default();
                        let byte = u8::from_str_radix(digits, 16)
                            .ok()
                            .filter(|_| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                            .ok_or_else(|| self.error(place, "\\x needs two hexadecimal digits"))?;
                        word.push(byte);
                        characters.nth(1);
                    }
                    Some(_) | None => {
                        let message = "an escape is one of \\\" \\\\ \\n \\t \\r \\xNN";
                        return Err(self.error(place, message));
                    }
                },
                other => word.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        Err(self.error(start, "this quote is not closed"))
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_client::Operation;

    use super::*;

    fn txn(statements: &[&str]) -> Result<Txn, String> {
        let statements: Vec<_> = statements.iter().map(ToString::to_string).collect();
        parse(&statements).map_err(|error| error.to_string())
    }

    /// Every statement means what the help says.
    #[test]
    fn statements_are_understood() {
        let given = txn(&[
            "if balance = 10",
            "if lock absent",
            "  if   x present ",
            "put a 1",
            "incr b -2",
            "incr c",
            "append d x=y",
            "delete e",
            "get f",
        ]);
        let meant = Txn::new()
            .when_equals("balance", "10")
            .when_absent("lock")
            .when_present("x")
            .put("a", "1")
            .incr("b", -2)
            .incr("c", 1)
            .append("d", "x=y")
            .delete("e")
            .get("f");
        assert_eq!(given, Ok(meant));
    }

    /// Quotes hold blanks, escapes and nothing at all.
    #[test]
    fn quotes_are_understood() {
        let given = txn(&[r#"put "a key" "say \"hi\"\n\x00\xff\\""#, r#"if é = """#]);
        let meant = Txn::new().put("a key", &b"say \"hi\"\n\x00\xff\\"[..]).when_equals("é", "");
        assert_eq!(given, Ok(meant));
    }

    /// What a compare prints reads as the same compare.
    #[test]
    fn statements_are_printed_as_they_are_read() {
        for printed in [
            "if balance = 10",
            "if a present",
            "if a absent",
            r#"if a = "\"\\ \xff\n""#,
            r#"if "a b" = """#,
        ] {
            let Operation::Txn { compares, .. } = txn(&[printed]).expect("fine").into_operation()
            else {
                panic!("it is a transaction");
            };
            assert_eq!(statement(&compares[0]), printed);
        }
    }

    /// A refusal names the problem and points at it.
    #[test]
    fn refusals_point_at_the_place() {
        for (statement, message, column) in [
            ("", "a statement: if, put, append, incr, delete or get is missing here", 0),
            ("frob a", "a statement begins with if, put, append, incr, delete or get", 0),
            ("put", "a key is missing here", 3),
            ("put a", "a value is missing here", 5),
            ("put a b c", "this is too much (put a text with blanks in \"quotes\")", 8),
            ("if a", "'= VALUE', 'present' or 'absent' is missing here", 4),
            ("if a is 3", "'= VALUE', 'present' or 'absent' is needed here", 5),
            ("if a =", "a value is missing here", 6),
            ("incr é 1.5", "a 64-bit integer is needed here", 7),
            ("put a \"b", "this quote is not closed", 6),
            ("put a \"b\"c", "a blank is needed after the quotes", 9),
            (
                "put a b\"c",
                "a quote in the middle of a word: put the whole word in quotes, with \\\"",
                7,
            ),
            (r#"put a "\q""#, "an escape is one of \\\" \\\\ \\n \\t \\r \\xNN", 7),
            (r#"put a "\x+1""#, "\\x needs two hexadecimal digits", 7),
        ] {
            let expected = format!("{message}\n  {statement}\n  {:>1$}", "^", column + 1);
            assert_eq!(txn(&[statement]), Err(expected));
        }
    }
}
