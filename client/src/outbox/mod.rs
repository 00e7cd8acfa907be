//! The outbox: requests that survive the death of their client.
//!
//! A request of a client with an outbox goes under a fresh timed key, and both are durable in a file
//! before the first copy leaves ([`file`]). A client that is killed at any moment finds it there
//! when it is started again, and sends the same bytes under the same key ([`Client::recover`]): if
//! it ran, that tells its reply; if not, it runs now.
//!
//! - All requests in a file are for one cluster, which the file names before the first of them. So a
//!   client with an outbox speaks to no node that has joined none yet: such a node executes nothing,
//!   but may later, in any cluster.
//! - A request is in the file before it is sent: what is not there never ran. One whose call is dropped
//!   before that is given up like any other; whoever takes it up waits until it is there.
//! - It leaves the file when its end is known. Of one that ran that need not be durable: asked again,
//!   it is answered from the duplicate table. That one never ran, and may be sent as a new one, is
//!   told only when the file durably has it no more: else it would run after all when it is found.
//! - It has room for so many requests whose end is not known. Beyond that one is refused before it is
//!   kept, and so before it is sent: who never recovers what was given up is told to.
//! - One thread writes: what gathers while it waits for the disk goes into the next frame. After its
//!   first failure nothing is kept any more, and so nothing is sent.
//!
//! [`Client::recover`]: crate::Client::recover

mod error;
mod file;
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use onlyonce_wire::ClusterId;
use onlyonce_wire::limits::OPERATION_BYTES_MAX;
use tokio::sync::oneshot;

pub use error::OutboxError;
pub(crate) use file::Sent;

use file::{FRAME_BYTES_TARGET, OutboxFile, Record};

/// The most requests whose end is not known.
const OPEN_REQUESTS_MAX: usize = 100_000;
/// The most bytes of their operations.
const OPEN_BYTES_MAX: usize = 64 << 20;
const _: () = assert!(OPEN_BYTES_MAX >= OPERATION_BYTES_MAX, "an empty outbox has room for any");
/// The most bytes that the end of a request takes in a frame.
const DONE_BYTES: usize = 16;

/// An open outbox.
pub(crate) struct Outbox {
    /// What is told to the thread that writes; none once that is to end.
    jobs: Mutex<Option<Sender<Job>>>,
    writer: Option<JoinHandle<()>>,
    /// The number of the next request.
    next: Mutex<u64>,
    open: Mutex<Open>,
    /// The requests that nobody awaits: an earlier client's, and those of this one that were given
    /// up, by their numbers.
    left: Mutex<BTreeMap<u64, Left>>,
    /// Why nothing is kept any more.
    failed: Arc<OnceLock<OutboxError>>,
    cluster: Option<ClusterId>,
    path: PathBuf,
}

/// The requests whose end is not known.
struct Open {
    requests: usize,
    /// Of their operations.
    bytes: usize,
}

/// A request that nobody awaits.
struct Left {
    sent: Sent,
    /// What tells when it is durable, where that is not known.
    keeping: Option<Durable>,
}

enum Job {
    /// Keep a request; tell when it is durable.
    Keep { number: u64, sent: Sent, cluster: ClusterId, told: Told },
    /// Let one go; tell when that is durable, if somebody wants to know.
    Done(u64, Option<Told>),
    /// Tell when all jobs before are durable.
    Flush(Told),
}

/// Who waits for a job to be durable.
type Told = oneshot::Sender<Result<(), OutboxError>>;

/// What tells when a job is durable.
#[must_use]
pub(crate) struct Durable(Result<oneshot::Receiver<Result<(), OutboxError>>, OutboxError>);

impl Durable {
    /// Waits until it is. Told once that it is, nobody may ask again.
    pub(crate) async fn wait(&mut self) -> Result<(), OutboxError> {
        let told = self.0.as_mut().map_err(|error| error.clone())?.await;
        let told = told.unwrap_or_else(|_| Err(OutboxError::Io("its writer ended".to_owned())));
        told.inspect_err(|error| self.0 = Err(error.clone()))
    }
}

impl Outbox {
    /// Opens the outbox at `path`, or makes one, for a client of the cluster `wanted`, if it names
    /// one.
    pub(crate) fn open(path: &Path, wanted: Option<ClusterId>) -> Result<Arc<Self>, OutboxError> {
        let file = OutboxFile::open(path)?;
        let cluster = file.contents.cluster.or(wanted);
        if let (Some(theirs), Some(wanted)) = (cluster, wanted)
            && theirs != wanted
        {
            return Err(OutboxError::OtherCluster { theirs, wanted });
        }
        if cluster.is_none() && !file.contents.open.is_empty() {
            return Err(OutboxError::NoCluster);
        }
        let (jobs, inbox) = channel();
        let mut outbox = Self::of(&file, cluster, path, jobs);
        let failed = Arc::clone(&outbox.failed);
        let writer = std::thread::Builder::new().name("outbox".to_owned());
        outbox.writer = Some(writer.spawn(move || write(file, &inbox, &failed))?);
        Ok(Arc::new(outbox))
    }

    /// The outbox in `file`, without anybody who does its jobs.
    fn of(file: &OutboxFile, cluster: Option<ClusterId>, path: &Path, jobs: Sender<Job>) -> Self {
        let open = &file.contents.open;
        let bytes = open.values().map(|sent| sent.operation.len()).sum();
        let left =
            |(number, sent): (&u64, &Sent)| (*number, Left { sent: sent.clone(), keeping: None });
        Self {
            jobs: Mutex::new(Some(jobs)),
            writer: None,
            next: Mutex::new(file.contents.next),
            open: Mutex::new(Open { requests: open.len(), bytes }),
            left: Mutex::new(open.iter().map(left).collect()),
            failed: Arc::default(),
            cluster,
            path: path.to_owned(),
        }
    }

    /// The cluster that it named when it was opened, or that its client named.
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
        let (number, Left { sent, keeping }) = lock(&self.left).pop_first()?;
        Some(Entry { outbox: Arc::clone(self), number, sent, keeping })
    }

    /// Keeps a request of `cluster`, which may be sent once it is [durable](Entry::durable). After a
    /// failure, or when there is no room, none is kept: this one is not in the file, for certain.
    pub(crate) fn keep(
        self: &Arc<Self>,
        sent: Sent,
        cluster: ClusterId,
    ) -> Result<Entry, OutboxError> {
        if let Some(error) = self.failed.get() {
            return Err(error.clone());
        }
        self.make_room(&sent)?;
        let number = {
            let mut next = lock(&self.next);
            *next += 1;
            *next - 1
        };
        let (told, durable) = oneshot::channel();
        self.tell(Job::Keep { number, sent: sent.clone(), cluster, told });
        let keeping = Some(Durable(Ok(durable)));
        Ok(Entry { outbox: Arc::clone(self), number, sent, keeping })
    }

    /// Everything that it was told so far becomes durable: the ends of requests too, which otherwise
    /// wait for the next one.
    pub(crate) fn flush(&self) -> Durable {
        let (told, durable) = oneshot::channel();
        self.tell(Job::Flush(told));
        Durable(Ok(durable))
    }

    /// Counts a request in, if there is room for it.
    fn make_room(&self, sent: &Sent) -> Result<(), OutboxError> {
        let left = self.left();
        let mut open = lock(&self.open);
        let bytes = open.bytes + sent.operation.len();
        if open.requests >= OPEN_REQUESTS_MAX || bytes > OPEN_BYTES_MAX {
            let Open { requests, bytes } = *open;
            return Err(OutboxError::Full { requests, bytes, left });
        }
        (open.requests, open.bytes) = (open.requests + 1, bytes);
        Ok(())
    }

    /// Lets a request go, whose end is known.
    fn end(&self, number: u64, sent: &Sent, told: Option<Told>) {
        let mut open = lock(&self.open);
        open.requests -= 1;
        open.bytes -= sent.operation.len();
        drop(open);
        self.tell(Job::Done(number, told));
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
    /// What tells when it is durable, where that is not known.
    keeping: Option<Durable>,
}

impl Entry {
    /// Waits until the request is durable. Nothing of it may leave before.
    pub(crate) async fn durable(&mut self) -> Result<(), OutboxError> {
        if let Some(keeping) = &mut self.keeping {
            keeping.wait().await?;
            self.keeping = None;
        }
        Ok(())
    }

    /// The request ran, or will be answered the same if it is asked again.
    pub(crate) fn done(self) {
        self.outbox.end(self.number, &self.sent, None);
    }

    /// The request never ran, and must not be found: its caller may send it as a new one.
    pub(crate) fn withdraw(self) -> Durable {
        let (told, durable) = oneshot::channel();
        self.outbox.end(self.number, &self.sent, Some(told));
        Durable(Ok(durable))
    }

    /// The outbox that it is in.
    pub(crate) fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }

    /// Its end is not known, and nobody awaits it any more: it stays, to be taken up.
    pub(crate) fn leave(self) {
        let Self { outbox, number, sent, keeping } = self;
        lock(&outbox.left).insert(number, Left { sent, keeping });
    }
}

/// The thread that writes. After an error nothing more is kept.
fn write(mut file: OutboxFile, inbox: &Receiver<Job>, failed: &OnceLock<OutboxError>) {
    // What nobody waits for goes with the next frame, or at the end: no flush is for it alone, unless
    // it fills a frame.
    let mut records = Vec::new();
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
                Job::Flush(told) => waiting.push(told),
                Job::Keep { number, sent, cluster, told } => {
                    if file.contents.cluster.is_none() {
                        file.contents.cluster = Some(cluster);
                        records.push(Record::Cluster(cluster));
                    }
                    bytes += sent.bytes();
                    records.push(Record::Sent(number, sent));
                    waiting.push(told);
                }
            }
            job = if bytes < FRAME_BYTES_TARGET { inbox.try_recv().ok() } else { None };
        }
        if waiting.is_empty() && bytes < FRAME_BYTES_TARGET {
            continue;
        }
        let records = std::mem::take(&mut records);
        let written = match failed.get() {
            None if records.is_empty() => Ok(()),
            None => file.write(records),
            Some(error) => Err(error.clone()),
        };
        if let Err(error) = &written {
            failed.get_or_init(|| error.clone());
        }
        for told in waiting {
            // Whoever dropped its call does not wait.
            let _ = told.send(written.clone());
        }
    }
    if failed.get().is_none() && !records.is_empty() {
        // Lost, it costs a question when the outbox is opened again.
        let _ = file.write(records);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use onlyonce_wire::client::ExecuteId;
    use onlyonce_wire::{IdempotencyKey, Incarnation};

    use super::*;
    use crate::errors::Error;
    use crate::progress::Progress;
    use crate::{Client, UnresolvedReason};

    const CLUSTER: ClusterId = ClusterId(5);

    /// A call may be dropped while its request is on its way to the disk. Whoever takes it up waits for
    /// the disk as well, and connects to nobody before.
    #[tokio::test]
    async fn nothing_leaves_before_it_is_durable() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let file = OutboxFile::open(&path).expect("opens");
        let (jobs, inbox) = channel();
        let outbox = Arc::new(Outbox::of(&file, None, &path, jobs));
        let node = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        node.set_nonblocking(true).expect("it never waits");
        let address = node.local_addr().expect("bound").to_string();
        let within = Duration::from_millis(100);
        let options = Client::builder().nodes([address]).deadline(within);
        let options = options.build().expect("an address").inner.cluster.options().clone();
        let client = Client::new(options, Some(Arc::clone(&outbox)));

        let key = IdempotencyKey::fresh(1, [7; 10]);
        let sent = Sent { incarnation: Incarnation(1), key, operation: vec![7; 9].into() };
        outbox.keep(sent, CLUSTER).expect("nothing has failed").leave();
        let [recovered] = &client.recover().await[..] else { panic!("it was dropped") };
        let Err(Error::Unresolved(open)) = &recovered.result else { panic!("{recovered:?}") };
        assert_eq!(*open.reason(), UnresolvedReason::Deadline(within));
        let caller = node.accept().expect_err("nobody calls").kind();
        assert_eq!(caller, std::io::ErrorKind::WouldBlock);

        let failed = Arc::clone(&outbox.failed);
        let writer = std::thread::spawn(move || write(file, &inbox, &failed));
        let mut left = outbox.take_up().expect("it stays");
        assert_eq!(left.durable().await, Ok(()));
        left.leave();
        drop((client, outbox));
        writer.join().expect("it ends");
        assert_eq!(OutboxFile::open(&path).expect("opens").contents.open.len(), 1);
    }

    /// A disk that does not answer is named when time is up, which is told once the disk has let go of
    /// the request.
    #[tokio::test]
    async fn a_disk_that_hangs_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let file = OutboxFile::open(&path).expect("opens");
        let (jobs, inbox) = channel();
        let outbox = Arc::new(Outbox::of(&file, None, &path, jobs));
        let within = Duration::from_millis(100);
        let options = Client::builder().nodes(["127.0.0.1:1"]).deadline(within);
        let options = options.build().expect("an address").inner.cluster.options().clone();
        let client = Client::new(options, Some(Arc::clone(&outbox)));

        let key = IdempotencyKey::fresh(1, [7; 10]);
        let operation = Bytes::from_static(&[7; 9]);
        let incarnation = Incarnation(1);
        let sent = Sent { incarnation, key: key.clone(), operation: operation.clone() };
        let entry = outbox.keep(sent, CLUSTER).expect("nothing has failed");
        let failed = Arc::clone(&outbox.failed);
        let writer = std::thread::spawn(move || {
            // The second job comes when time is up: that the request is to go from the file.
            let hung = [(); 2].map(|()| inbox.recv().expect("a job"));
            let (jobs, inbox) = channel();
            for job in hung {
                jobs.send(job).expect("the other end is here");
            }
            drop(jobs);
            write(file, &inbox, &failed);
        });
        let mut progress = Progress::default();
        (progress.identity, progress.entry) =
            (Some((incarnation, ExecuteId::Key(key))), Some(entry));
        let error = client.inner.finish(&operation, progress).await.expect_err("time is up");
        let expected = "waited 100ms for the outbox's disk; nothing was sent";
        assert_eq!(error.to_string(), expected);
        drop((client, outbox));
        writer.join().expect("it ends");
        assert!(OutboxFile::open(&path).expect("opens").contents.open.is_empty());
    }

    /// Requests without a cluster are taken up for the one that is named, and for none that is not:
    /// another could run them a second time.
    #[test]
    fn requests_are_for_one_cluster() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox");
        let key = IdempotencyKey::fresh(1, [7; 10]);
        let sent = Sent { incarnation: Incarnation(1), key, operation: vec![7; 9].into() };
        let mut file = OutboxFile::open(&path).expect("opens");
        file.write(vec![Record::Sent(0, sent.clone())]).expect("writes");
        drop(file);
        assert_eq!(Outbox::open(&path, None).err(), Some(OutboxError::NoCluster));
        let named = Outbox::open(&path, Some(CLUSTER)).expect("opens");
        assert_eq!((named.cluster(), named.left()), (Some(CLUSTER), 1));
        named.keep(sent, CLUSTER).expect("there is room").leave();
        drop(named);
        assert_eq!(Outbox::open(&path, None).expect("opens").cluster(), Some(CLUSTER));
        let wanted = ClusterId(6);
        let other = OutboxError::OtherCluster { theirs: CLUSTER, wanted };
        assert_eq!(Outbox::open(&path, Some(wanted)).err(), Some(other));
    }

    /// An outbox has room for so many requests and bytes, those of earlier clients among them. One that
    /// ends makes room for another.
    #[test]
    fn an_outbox_gets_full() {
        let sent = |bytes: usize| {
            let key = IdempotencyKey::fresh(1, [7; 10]);
            Sent { incarnation: Incarnation(1), key, operation: vec![7; bytes].into() }
        };
        let longest = OPEN_BYTES_MAX / OPERATION_BYTES_MAX;
        for (most, bytes) in [(OPEN_REQUESTS_MAX, 9), (longest, OPERATION_BYTES_MAX)] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("outbox");
            let first = Outbox::open(&path, None).expect("opens");
            let keep = |outbox: &Arc<Outbox>| outbox.keep(sent(bytes), CLUSTER);
            (0..most - 1).for_each(|_| keep(&first).expect("there is room").leave());
            drop(first);
            let second = Outbox::open(&path, None).expect("opens");
            let last = keep(&second).expect("there is room for one");
            let full = OutboxError::Full { requests: most, bytes: most * bytes, left: most - 1 };
            assert_eq!(keep(&second).err(), Some(full));
            last.done();
            keep(&second).expect("there is room for one").leave();
            assert!(keep(&second).is_err());
            second.take_up().expect("some are left").done();
            assert!(keep(&second).map(Entry::done).is_ok());
        }
    }

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
            tell(Job::Keep { number, sent, cluster: CLUSTER, told });
            kept.push(durable);
        }
        drop(jobs);
        write(file, &inbox, &OnceLock::new());
        for durable in kept {
            assert_eq!(durable.blocking_recv(), Ok(Ok(())));
        }
        let open = OutboxFile::open(&path).expect("opens").contents.open;
        assert_eq!(open.into_keys().collect::<Vec<_>>(), [30_000, 30_001]);
    }
}
