//! The outbox: requests that survive the death of their client.
//!
//! A request of a client with an outbox goes under a fresh timed key, and both are durable in a file
//! before the first copy leaves ([`file`]). A client that is killed at any moment finds it there
//! when it is started again, and sends the same bytes under the same key ([`Client::recover`]): if
//! it ran, that tells its reply; if not, it runs now.
//!
//! - A request is in the file before it is sent: what is not there never ran.
//! - It leaves the file when its end is known. Of one that ran that need not be durable: asked again,
//!   it is answered from the duplicate table. That one never ran, and may be sent as a new one, is
//!   told only when the file durably has it no more: else it would run after all when it is found.
//! - One thread writes: what gathers while it waits for the disk goes into the next frame.
//!
//! [`Client::recover`]: crate::Client::recover

mod file;
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use onlyonce_wire::ClusterId;
use tokio::sync::oneshot;

pub use file::OutboxError;
pub(crate) use file::Sent;

use file::{FRAME_BYTES_TARGET, OutboxFile, Record};

/// The most bytes that the end of a request takes in a frame.
const DONE_BYTES: usize = 16;

/// An open outbox.
pub(crate) struct Outbox {
    /// What is told to the thread that writes; none once that is to end.
    jobs: Mutex<Option<Sender<Job>>>,
    writer: Option<JoinHandle<()>>,
    /// The number of the next request.
    next: Mutex<u64>,
    /// The requests that nobody awaits: an earlier client's, and those of this one that were given
    /// up, by their numbers.
    left: Mutex<BTreeMap<u64, Sent>>,
    cluster: Option<ClusterId>,
    path: PathBuf,
}

enum Job {
    /// Keep a request; tell when it is durable.
    Keep(Record, Option<ClusterId>, Told),
    /// Let one go; tell when that is durable, if somebody wants to know.
    Done(u64, Option<Told>),
}

/// Who waits for a job to be durable.
type Told = oneshot::Sender<Result<(), OutboxError>>;

/// What tells when a job is durable.
#[must_use]
pub(crate) struct Durable(oneshot::Receiver<Result<(), OutboxError>>);

impl Durable {
    pub(crate) async fn wait(self) -> Result<(), OutboxError> {
        let ended = || OutboxError::Io("its writer has ended".to_owned());
        self.0.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Outbox {
    /// Opens the outbox at `path`, or makes one, for a client of the cluster `wanted`, if it names
    /// one.
    pub(crate) fn open(path: &Path, wanted: Option<ClusterId>) -> Result<Arc<Self>, OutboxError> {
        let file = OutboxFile::open(path)?;
        let cluster = file.contents.cluster;
        if let (Some(theirs), Some(wanted)) = (cluster, wanted)
            && theirs != wanted
        {
            return Err(OutboxError::OtherCluster { theirs, wanted });
        }
        let next = file.contents.next;
        let left = file.contents.open.clone();
        let (jobs, inbox) = channel();
        let writer = std::thread::Builder::new().name("outbox".to_owned());
        let writer = writer.spawn(move || write(file, &inbox))?;
        Ok(Arc::new(Self {
            jobs: Mutex::new(Some(jobs)),
            writer: Some(writer),
            next: Mutex::new(next),
            left: Mutex::new(left),
            cluster,
            path: path.to_owned(),
        }))
    }

    /// The cluster that its requests are for, once it has some.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// How many requests nobody awaits.
    pub(crate) fn left(&self) -> usize {
        lock(&self.left).len()
    }

    /// What is the matter with it.
    pub(crate) fn error(&self, error: &OutboxError) -> String {
        format!("outbox {}: {error}", self.path.display())
    }

    /// Takes up the oldest request that nobody awaits.
    pub(crate) fn take_up(self: &Arc<Self>) -> Option<Entry> {
        let (number, sent) = lock(&self.left).pop_first()?;
        Some(Entry { outbox: Arc::clone(self), number, sent })
    }

    /// Keeps a request of `cluster`, which may be sent once that is durable.
    pub(crate) fn keep(
        self: &Arc<Self>,
        sent: Sent,
        cluster: Option<ClusterId>,
    ) -> (Entry, Durable) {
        let number = {
            let mut next = lock(&self.next);
            *next += 1;
            *next - 1
        };
        let (told, durable) = oneshot::channel();
        self.tell(Job::Keep(Record::Sent(number, sent.clone()), cluster, told));
        (Entry { outbox: Arc::clone(self), number, sent }, Durable(durable))
    }

    fn tell(&self, job: Job) {
        if let Some(jobs) = &*lock(&self.jobs) {
            // A writer that ended has failed, and said so to whom it matters.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        lock(&self.jobs).take();
        if let Some(writer) = self.writer.take() {
            // It has only the last frame to write; then the file is free for others.
            let _ = writer.join();
        }
    }
}

/// A request in the outbox, and with somebody who awaits its end.
///
/// Exactly one of [`done`](Self::done), [`withdraw`](Self::withdraw) and [`leave`](Self::leave) ends
/// it.
#[must_use]
pub(crate) struct Entry {
    outbox: Arc<Outbox>,
    number: u64,
    pub(crate) sent: Sent,
}

impl Entry {
    /// The request ran, or will be answered the same if it is asked again.
    pub(crate) fn done(self) {
        self.outbox.tell(Job::Done(self.number, None));
    }

    /// The request never ran, and must not be found: its caller may send it as a new one.
    pub(crate) fn withdraw(self) -> Durable {
        let (told, durable) = oneshot::channel();
        self.outbox.tell(Job::Done(self.number, Some(told)));
        Durable(durable)
    }

    /// The outbox that it is in.
    pub(crate) fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }

    /// Its end is not known, and nobody awaits it any more: it stays, to be taken up.
    pub(crate) fn leave(self) {
        lock(&self.outbox.left).insert(self.number, self.sent);
    }
}

/// The thread that writes. After an error nothing more is kept.
fn write(mut file: OutboxFile, inbox: &Receiver<Job>) {
    // What nobody waits for goes with the next frame, or at the end: no flush is for it alone, unless
    // it fills a frame.
    let mut records = Vec::new();
    let mut failed = None;
    while let Ok(first) = inbox.recv() {
        let mut waiting = Vec::new();
        let mut bytes = records.len() * DONE_BYTES;
        let mut job = Some(first);
        while let Some(next) = job {
            match next {
                Job::Done(number, told) => {
                    records.push(Record::Done(number));
                    bytes += DONE_BYTES;
                    waiting.extend(told);
                }
                Job::Keep(record, cluster, told) => {
                    if let (None, Some(cluster)) = (file.contents.cluster, cluster) {
                        file.contents.cluster = Some(cluster);
                        records.push(Record::Cluster(cluster));
                    }
                    if let Record::Sent(_, sent) = &record {
                        bytes += sent.bytes();
                    }
                    records.push(record);
                    waiting.push(told);
                }
            }
            job = if bytes < FRAME_BYTES_TARGET { inbox.try_recv().ok() } else { None };
        }
        if waiting.is_empty() && bytes < FRAME_BYTES_TARGET {
            continue;
        }
        let records = std::mem::take(&mut records);
        let written = match &failed {
            None => file.write(records),
            Some(error) => Err(OutboxError::clone(error)),
        };
        failed = written.clone().err();
        for told in waiting {
            // Whoever dropped its call does not wait.
            let _ = told.send(written.clone());
        }
    }
    if failed.is_none() && !records.is_empty() {
        // Lost, it costs a question when the outbox is opened again.
        let _ = file.write(records);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use onlyonce_wire::limits::OPERATION_BYTES_MAX;
    use onlyonce_wire::{IdempotencyKey, Incarnation};

    use super::*;

    /// However many ends of requests wait for a frame, none gets longer than what is read back.
    #[test]
    fn no_frame_is_too_long() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let file = OutboxFile::open(&path).expect("opens");
        let (jobs, inbox) = channel();
        let tell = |job| jobs.send(job).expect("the writer's end is open");
        (0..30_000).for_each(|number| tell(Job::Done(number, None)));
        let mut kept = Vec::new();
        for (number, bytes) in [(30_000, FRAME_BYTES_TARGET - 1_024), (30_001, OPERATION_BYTES_MAX)]
        {
            let key = IdempotencyKey::fresh(number, [7; 10]);
            let sent = Sent { incarnation: Incarnation(1), key, operation: vec![7; bytes].into() };
            let (told, durable) = oneshot::channel();
            tell(Job::Keep(Record::Sent(number, sent), None, told));
            kept.push(durable);
        }
        drop(jobs);
        write(file, &inbox);
        for durable in kept {
            assert_eq!(durable.blocking_recv(), Ok(Ok(())));
        }
        let open = OutboxFile::open(&path).expect("opens").contents.open;
        assert_eq!(open.into_keys().collect::<Vec<_>>(), [30_000, 30_001]);
    }
}
