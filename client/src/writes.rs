//! What each write's outcome means to its caller.

use onlyonce_wire::client::{Outcome, TxnOutcome};

use crate::Compared;
use crate::errors::{Error, outcome_name};

pub(crate) fn done(outcome: Outcome) -> Result<(), Error> {
    match outcome {
        Outcome::Done => Ok(()),
        other => Err(unexpected("a put", &other)),
    }
}

pub(crate) fn length(outcome: Outcome) -> Result<u64, Error> {
    match outcome {
        Outcome::Length(bytes) => Ok(bytes),
        other => Err(unexpected("an append", &other)),
    }
}

pub(crate) fn integer(outcome: Outcome) -> Result<i64, Error> {
    match outcome {
        Outcome::Integer(value) => Ok(value),
        other => Err(unexpected("an increment", &other)),
    }
}

pub(crate) fn existed(outcome: Outcome) -> Result<bool, Error> {
    match outcome {
        Outcome::Deleted(existed) => Ok(existed),
        other => Err(unexpected("a delete", &other)),
    }
}

pub(crate) fn compared(outcome: Outcome) -> Result<Compared, Error> {
    match outcome {
        Outcome::Compared { swapped, actual } => Ok(Compared { swapped, actual }),
        other => Err(unexpected("a compare-and-set", &other)),
    }
}

pub(crate) fn txn(outcome: Outcome) -> Result<TxnOutcome, Error> {
    match outcome {
        Outcome::Txn(outcome) => Ok(outcome),
        other => Err(unexpected("a transaction", &other)),
    }
}

pub(crate) fn unexpected(question: &str, outcome: &Outcome) -> Error {
    Error::BadReply(format!("{} to {question}", outcome_name(outcome)))
}
