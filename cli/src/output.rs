//! What is printed, and how a command ends.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use onlyonce_client::{BuildError, Error, Unresolved, UnresolvedReason, limits};
use serde_json::{Value, json};

use crate::advice::advice;

/// The exit code where 1, "it did not take effect", would say too much.
const NOT_KNOWN: u8 = 3;

/// How a command ends otherwise than by being done.
#[derive(Debug)]
pub enum End {
    /// The client could not be built, or an argument makes no sense.
    Usage(String),
    /// The call did not succeed.
    Call(Error),
    /// A question about a request has no answer: nothing may be concluded.
    Untold(Error),
    /// Executed, with a negative result that has been printed.
    Negative,
    /// Whether the request in question took effect is not known, which has been printed.
    NotKnown,
    /// Standard input has more than a value may; nothing was sent.
    InputTooLarge,
    /// Standard input failed; nothing was sent.
    Input(io::Error),
    /// What was done to the file of a backup failed: none was made.
    BackupFile(PathBuf, io::Error),
    /// Man pages cannot be written into a folder.
    Pages(PathBuf, io::Error),
    /// A backup on standard output was begun anew: what was written is of no use.
    BackupCut,
    /// Standard output failed, after the answer had come.
    Output(io::Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<BuildError> for End {
    fn from(error: BuildError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl End {
    /// Something that was done to the file of a backup failed.
    pub fn backup_file(path: &Path, error: io::Error) -> Self {
        Self::BackupFile(path.to_owned(), error)
    }
}

/// Prints results, bare or as JSON.
pub struct Printer {
    pub json: bool,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line of JSON with `--json`, else `bare`. Whoever closes the output before has seen enough:
    /// the command goes on, and its exit code tells how that ended.
    pub fn line(&self, bare: impl AsRef<str>, json: &Value) -> Result<(), End> {
        unless_closed(self.page(bare, json))
    }

    /// As [`line`](Self::line), with more to follow: a closed output ends the command.
    pub fn page(&self, bare: impl AsRef<str>, json: &Value) -> Result<(), End> {
        let mut stdout = io::stdout().lock();
        let written = if self.json {
            writeln!(stdout, "{json}")
        } else if !bare.as_ref().is_empty() {
            writeln!(stdout, "{}", bare.as_ref())
        } else {
            Ok(())
        };
        written.and_then(|()| stdout.flush()).map_err(End::Output)
    }

    /// Reports how a command ended, and returns its exit code.
    pub fn end(&self, end: &End) -> ExitCode {
        match end {
            End::Usage(text) => {
                eprintln!("once: {text}");
                self.usage_line(text);
                ExitCode::from(2)
            }
            // Whoever read the pages, or the script, has seen enough.
            End::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            End::Output(error) => {
                eprintln!("once: the answer came, but standard output cannot be written: {error}");
                ExitCode::from(NOT_KNOWN)
            }
            End::Input(error) => {
                let text = format!("standard input cannot be read: {error}; nothing was sent");
                eprintln!("once: {text}");
                self.error_line(&json!({ "error": "input", "message": text }));
                ExitCode::from(1)
            }
            End::BackupFile(path, error) => {
                let text = format!("{}: {error}", path.display());
                eprintln!("once: no backup was made: {text}");
                self.error_line(&json!({ "error": "file", "message": text }));
                ExitCode::from(1)
            }
            End::Pages(folder, error) => {
                let text = format!("{}: {error}", folder.display());
                eprintln!("once: {text}");
                self.error_line(&json!({ "error": "file", "message": text }));
                ExitCode::from(1)
            }
            End::BackupCut => {
                let text = "the node that made the backup does not go on with it, and what is on \
                            standard output is of no use: repeat it";
                eprintln!("once: no backup was made: {text}");
                ExitCode::from(1)
            }
            End::InputTooLarge => {
                let most = limits::VALUE_BYTES_MAX;
                let text = format!(
                    "the value on standard input is over {most} bytes, the most that is allowed"
                );
                eprintln!("once: refused (too-large): {text}");
                self.error_line(&json!({ "error": "too-large", "message": text }));
                ExitCode::from(1)
            }
            End::Negative => ExitCode::from(1),
            End::NotKnown => ExitCode::from(NOT_KNOWN),
            End::Call(error) => ExitCode::from(self.call_ended(error)),
            End::Untold(error) => {
                self.call_ended(error);
                ExitCode::from(NOT_KNOWN)
            }
        }
    }

    fn call_ended(&self, error: &Error) -> u8 {
        let message = match error {
            Error::Unresolved(unresolved) => unresolved_text(unresolved),
            error => error.to_string(),
        };
        match error {
            Error::NotSent(_) => eprintln!("once: not sent: {message}"),
            Error::Refused(refusal) => eprintln!("once: refused ({}): {refusal}", refusal.name()),
            _ => eprintln!("once: {message}"),
        }
        let (status, code) = match error {
            Error::Refused(refusal) => (refusal.name(), 1),
            Error::Failed(_) => ("failed", 1),
            Error::NotSent(_) => ("not-sent", 1),
            Error::Unusable(_) => ("unusable", 1),
            Error::NoAnswer(_) => ("no-answer", NOT_KNOWN),
            Error::BadReply(_) => ("bad-reply", NOT_KNOWN),
            Error::Unresolved(_) => ("unresolved", NOT_KNOWN),
            Error::Uncounted(_) => ("uncounted", NOT_KNOWN),
        };
        let mut json = json!({ "error": status, "message": message });
        if let Error::Unresolved(unresolved) = error {
            eprintln!("once: {}", advice(unresolved));
            json["handle"] = unresolved.handle().to_string().into();
        }
        self.error_line(&json);
        code
    }

    /// What is wrong with the command line, for programs.
    pub fn usage_line(&self, text: &str) {
        self.error_line(&json!({ "error": "usage", "message": text }));
    }

    /// What went wrong, for programs.
    fn error_line(&self, json: &Value) {
        // The exit code tells the same; there is nobody to tell of a closed output.
        let _ = self.line("", json);
    }
}

/// That a request is unresolved, with each reason once.
fn unresolved_text(unresolved: &Unresolved) -> String {
    let text = Error::Unresolved(unresolved.clone()).to_string();
    match unresolved.reason() {
        // It is what the nodes said.
        UnresolvedReason::Unusable(_) => {
            text.replacen(&format!(" ({})", unresolved.nodes()), "", 1)
        }
        UnresolvedReason::Deadline(_)
        | UnresolvedReason::Refused(_)
        | UnresolvedReason::BadReply(_)
        | UnresolvedReason::NoContent
        | UnresolvedReason::Unanswered
        | UnresolvedReason::KeyExpired(_) => text,
    }
}

/// Prints a value as it is; a newline follows only on a terminal.
pub fn print_value(value: &[u8]) -> Result<(), End> {
    let mut stdout = io::stdout().lock();
    let end: &[u8] = if stdout.is_terminal() { b"\n" } else { b"" };
    let written = stdout.write_all(value).and_then(|()| stdout.write_all(end));
    unless_closed(written.and_then(|()| stdout.flush()).map_err(End::Output))
}

/// What is left to report where nobody reads the output any more.
fn unless_closed(written: Result<(), End>) -> Result<(), End> {
    match written {
        Err(End::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Bytes in JSON: a string if they are UTF-8, else an object with their base64.
pub fn json_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": base64(bytes) }),
    }
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                text.push(char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Bytes on a line of their own: what would break the line or is not UTF-8 is escaped.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' | '\t' | '\n' | '\r' => text.extend(character.escape_default()),
                control if control.is_control() => {
                    hexadecimal(control.encode_utf8(&mut [0; 4]).as_bytes(), &mut text);
                }
                other => text.push(other),
            }
        }
        hexadecimal(chunk.invalid(), &mut text);
    }
    text
}

fn hexadecimal(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push_str("\\x");
        let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
        text.extend([digit(byte >> 4), digit(byte & 15)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648, section 10.
    #[test]
    fn base64_is_the_standard_one() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    /// A row stays on its line.
    #[test]
    fn rows_are_escaped() {
        assert_eq!(escape(b"a\tb\nc\\d\xff\x01\xc3\xa9"), "a\\tb\\nc\\\\d\\xff\\x01\u{e9}");
    }
}
