//! The one thread that owns the [`Replica`]: takes events from one queue, carries out effects.
//!
//! - The clock is read after an event left its queue.
//! - What was queued when a tick fell due is handled before the tick: after a pause of the process
//!   the heartbeats that waited count first.
//! - `Drained` is given when the queue is empty, and under endless load after every batch, so that
//!   the open record never waits for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use onlyonce_replica::{Effect, Event, Replica};
use onlyonce_wire::limits::{CLIENT_FRAME_BYTES_MAX, PEER_FRAME_BYTES_MAX, QUEUED_BYTES_MAX};
use onlyonce_wire::status::NodeStatus;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::authority::agent::Agent;
use crate::checkpoint_thread::Work;
use crate::clients::Connections;
use crate::clock;
use crate::exit;
use crate::failpoints;
use crate::log_thread::LogQueue;
use crate::peers::Peers;

const TICK: Duration = Duration::from_millis(5);
const PUBLISH: Duration = Duration::from_millis(100);
const BATCH_EVENTS_MAX: usize = 512;
/// The most bytes of other nodes' messages that wait for the core.
const PEER_QUEUED_BYTES_MAX: usize = 64 << 20;
/// What a queued event costs beside its message: its entry in the queue.
const EVENT_BYTES: usize = 256;

// What is over its room would be refused, or wait, for ever.
const _: () = {
    assert!(QUEUED_BYTES_MAX >= CLIENT_FRAME_BYTES_MAX + EVENT_BYTES, "one request");
    assert!(PEER_QUEUED_BYTES_MAX >= PEER_FRAME_BYTES_MAX + EVENT_BYTES, "one peer message");
};

/// An event, and the room that it takes while it is queued; no event ends the thread.
struct Input(Option<Event>, Option<OwnedSemaphorePermit>);

/// Too many requests wait for the core: this one was not queued.
#[derive(Debug)]
pub struct QueueFull;

/// Where events for the core go, from any thread.
pub struct CoreQueue {
    sender: Sender<Input>,
    sent: Arc<AtomicU64>,
    request_room: Arc<Semaphore>,
    peer_room: Arc<Semaphore>,
}

/// The core's end of its queue.
pub struct CoreInbox {
    receiver: Receiver<Input>,
    sent: Arc<AtomicU64>,
}

/// A queue for one core.
pub fn core_queue() -> (Arc<CoreQueue>, CoreInbox) {
    let (sender, receiver) = mpsc::channel();
    let sent = Arc::new(AtomicU64::new(0));
    let queue = CoreQueue {
        sender,
        sent: Arc::clone(&sent),
        request_room: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
        peer_room: Arc::new(Semaphore::new(PEER_QUEUED_BYTES_MAX)),
    };
    (Arc::new(queue), CoreInbox { receiver, sent })
}

#[cfg(test)]
impl CoreInbox {
    /// The next event; none if none comes for so long.
    pub fn next(&self, patience: Duration) -> Option<Event> {
        self.receiver.recv_timeout(patience).ok()?.0
    }
}

impl CoreQueue {
    /// Queues an event of the node itself.
    pub fn send(&self, event: Event) {
        self.put(Input(Some(event), None));
    }

    /// Queues a client's request of `bytes`, unless too much is queued already.
    pub fn try_send_request(&self, event: Event, bytes: usize) -> Result<(), QueueFull> {
        let Ok(room) = Arc::clone(&self.request_room).try_acquire_many_owned(charge(bytes)) else {
            return Err(QueueFull);
        };
        self.put(Input(Some(event), Some(room)));
        Ok(())
    }

    /// Queues a peer's message of `bytes` when there is room for it.
    pub async fn send_peer(&self, event: Event, bytes: usize) {
        let room = Arc::clone(&self.peer_room).acquire_many_owned(charge(bytes)).await;
        self.put(Input(Some(event), Some(room.expect("the semaphore is never closed"))));
    }

    /// Ends the core thread after what is queued.
    pub fn stop(&self) {
        self.put(Input(None, None));
    }

    fn put(&self, input: Input) {
        self.sent.fetch_add(1, Ordering::Release);
        // Fails only when the core has ended: the process is ending.
        let _ = self.sender.send(input);
    }
}

fn charge(bytes: usize) -> u32 {
    u32::try_from(bytes + EVENT_BYTES).expect("frames are far smaller")
}

/// Where effects go.
pub struct Outlets {
    pub connections: Arc<Connections>,
    pub peers: Arc<Peers>,
    pub log: LogQueue,
    pub checkpoints: Sender<Work>,
    /// None for a node alone.
    pub authority: Option<Agent>,
    pub status: watch::Sender<NodeStatus>,
}

/// The core and its surroundings.
pub struct CoreThread {
    replica: Replica,
    inbox: CoreInbox,
    outlets: Outlets,
    taken: u64,
    published: Instant,
    /// Whether the status says that this node serves; a change is told at once.
    told_serving: bool,
}

impl CoreThread {
    /// Around `replica`.
    pub fn new(replica: Replica, inbox: CoreInbox, outlets: Outlets) -> Self {
        outlets.status.send_replace(replica.status());
        Self { replica, inbox, outlets, taken: 0, published: Instant::now(), told_serving: false }
    }

    /// Carries out `first`, then handles events until it is told to stop.
    pub fn run(mut self, first: Vec<Effect>) {
        self.carry_out(first);
        let mut tick_at = Instant::now() + TICK;
        // Once a tick is due: how many events had been queued by then.
        let mut tick_after = None;
        loop {
            let wait = tick_at.saturating_duration_since(Instant::now());
            let empty = match self.inbox.receiver.recv_timeout(wait) {
                Ok(input) => match self.batch(input) {
                    Some(empty) => empty,
                    None => return,
                },
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if Instant::now() >= tick_at {
                let queued =
                    *tick_after.get_or_insert_with(|| self.inbox.sent.load(Ordering::Acquire));
                if empty || self.taken >= queued {
                    self.step(Event::Tick(clock::wall()));
                    tick_at = Instant::now() + TICK;
                    tick_after = None;
                }
            }
            let news = self.replica.is_serving() != self.told_serving;
            if news || self.published.elapsed() >= PUBLISH {
                self.publish();
            }
        }
    }

    /// Handles `first` and what is queued behind it, up to a bound. Returns whether the queue is
    /// empty now; none when the thread is to end.
    fn batch(&mut self, first: Input) -> Option<bool> {
        let mut next = first;
        let mut handled = 0;
        let empty = loop {
            self.taken += 1;
            handled += 1;
            let Input(event, room) = next;
            drop(room);
            self.step(event?);
            if handled == BATCH_EVENTS_MAX {
                break false;
            }
            match self.inbox.receiver.try_recv() {
                Ok(input) => next = input,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break true,
            }
        };
        self.step(Event::Drained);
        Some(empty)
    }

    fn step(&mut self, event: Event) {
        failpoints::before_event(&event);
        let changes_view = matches!(event, Event::RegisterRead { .. } | Event::Proposed { .. });
        let effects = self.replica.step(clock::now(), event);
        if changes_view {
            self.publish();
        }
        self.carry_out(effects);
    }

    fn publish(&mut self) {
        self.published = Instant::now();
        self.told_serving = self.replica.is_serving();
        self.outlets.status.send_replace(self.replica.status());
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let outlets = &self.outlets;
        for effect in effects {
            failpoints::before_effect(&effect);
            match effect {
                Effect::Reply { to, answer } => outlets.connections.reply(to, answer),
                Effect::Know(member) => outlets.peers.know(member),
                Effect::Send { to, message } => outlets.peers.send(to, message),
                Effect::Persist(record) => outlets.log.persist(record),
                Effect::Cut { after, state } => outlets.log.cut(after, state),
                Effect::Save { state } => outlets.log.save(state),
                Effect::Prune { upto } => outlets.log.prune(upto),
                Effect::ReadRegister(id) => self.authority().read(id),
                Effect::Propose { expected, register } => {
                    self.authority().propose(expected, register);
                }
                // These fail only when the checkpoint thread has ended: the process is ending.
                Effect::Checkpoint(generation) => {
                    let _ = outlets.checkpoints.send(Work::Fold(generation));
                }
                Effect::Release(generation) => {
                    let _ = outlets.checkpoints.send(Work::Release(generation));
                }
                Effect::Scrub => {
                    let _ = outlets.checkpoints.send(Work::Scrub);
                }
                Effect::ReadRows { id, from } => {
                    let _ = outlets.checkpoints.send(Work::ReadRows { id, from });
                }
                Effect::Receive { id, number, entry } => {
                    let _ = outlets.checkpoints.send(Work::Receive { id, number, entry });
                }
                Effect::Install { end, state } => {
                    let _ = outlets.checkpoints.send(Work::Install { end, state });
                }
                Effect::Stop(reason) => exit::stop(&reason),
            }
        }
    }

    fn authority(&self) -> &Agent {
        self.outlets.authority.as_ref().expect("a node alone asks no authority")
    }
}
