//! Brings the rows that a request will need into the cache before the request reaches the core, so
//! that the core does not wait for the disk.

use onlyonce_replica::KeyRow;
use onlyonce_storage::{Table, Toucher};
use onlyonce_wire::client::{
    Execute, ExecuteId, Operation, Question, Read, Request, RequestId, Write,
};
use onlyonce_wire::{IdempotencyKey, codec};

/// Operations over this many bytes are not decoded a second time only to be warmed.
const OPERATION_BYTES_MAX: usize = 16 << 10;

/// Touches rows, from any thread.
pub struct Warmer {
    toucher: Toucher,
}

impl Warmer {
    /// For the store of `toucher`.
    pub fn new(toucher: Toucher) -> Self {
        Self { toucher }
    }

    /// Touches what `request` will read. Errors are left to the core, which meets them again.
    pub fn warm(&self, request: &Request) {
        match request {
            Request::Execute(Execute { id, operation, .. }) => {
                if let ExecuteId::Key(key) = id {
                    self.key(key);
                }
                if operation.len() > OPERATION_BYTES_MAX {
                    return;
                }
                // What the core will refuse is not worth a look at the disk.
                if let Ok(operation) = codec::decode::<Operation, OPERATION_BYTES_MAX>(operation)
                    && operation.check().is_ok()
                {
                    self.operation(&operation);
                }
            }
            Request::Read(Read::Get { key }) => self.row(key),
            Request::Read(Read::Scan { start, .. }) => self.row(start),
            Request::Outcome(Question { id, .. }) | Request::Cancel(Question { id, .. }) => {
                if let RequestId::Key(key) = id {
                    self.key(key);
                }
            }
            Request::Open { .. }
            | Request::Close { .. }
            | Request::KeepAlive { .. }
            | Request::Sessions { .. }
            | Request::Session(_)
            | Request::Status
            | Request::Backup { .. } => {}
        }
    }

    fn operation(&self, operation: &Operation) {
        match operation {
            Operation::Write(write) => self.write(write),
            Operation::Cas { key, .. } => self.row(key),
            Operation::Txn { compares, writes } => {
                for compare in compares {
                    self.row(&compare.key);
                }
                for write in writes {
                    self.write(write);
                }
            }
        }
    }

    fn write(&self, write: &Write) {
        match write {
            // A put replaces the row unseen.
            Write::Put { .. } => {}
            Write::Append { key, .. }
            | Write::Incr { key, .. }
            | Write::Delete { key }
            | Write::Get { key } => self.row(key),
        }
    }

    fn key(&self, key: &IdempotencyKey) {
        self.toucher.touch(Table::Keys, &KeyRow::key(key));
    }

    fn row(&self, key: &[u8]) {
        self.toucher.touch(Table::Kv, key);
    }
}
