//! `onced authority`: serves the register over `Port::Authority`.
//!
//! Readers see a change only after it is durable, through one watched cell; changes pass one at a
//! time through [`Slots`]. A failed write stops the process: what is on disk is not known then.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use onlyonce_wire::authority::{
    AuthorityAnswer, AuthorityCall, AuthorityReply, AuthorityRequest, Register, Revision, Versioned,
};
use onlyonce_wire::codec;
use onlyonce_wire::frame::{Port, preamble, put_frame};
use onlyonce_wire::limits::{
    AUTHORITY_FRAME_BYTES_MAX, FIRST_FRAME_TIMEOUT, IDLE_TIMEOUT, REGISTER_BYTES_MAX,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::slots::{SlotSwap, Slots, SlotsError};
use crate::exit::{self, ExitError};
use crate::frames::{FrameReader, ReadError};
use crate::listeners::listen;
use crate::serve::{Signals, WORKERS, say, tokio_runtime};

/// How long a watch waits for a change before it is answered with what there is.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The most connections at once; one more waits until another closes.
const CONNECTIONS_MAX: usize = 1_024;
/// The most watches that wait on one connection.
const WATCHES_MAX: usize = 16;
/// The most answers that wait to be written on one connection.
const ANSWERS_MAX: usize = 32;

/// Runs the authority until SIGTERM or SIGINT.
pub fn run(data: &Path, address: &str) -> Result<(), ExitError> {
    let runtime = tokio_runtime(WORKERS)?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let listening = listen("--listen", address).await?;
        let server = Server::open(data).map_err(|error| ExitError::Runtime(error.to_string()))?;
        let now = server.now.borrow().revision;
        tracing::info!("the register is at revision {}", now.0);
        let serving = Arc::clone(&server).serve(listening.listener()?);
        say(&format!("ready authority={}", listening.address));
        tokio::select! {
            () = serving => {}
            name = signals.wait() => tracing::info!("{name}: shutting down"),
        }
        // A change under way ends before the process does.
        drop(server.slots.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    })
}

/// The register and those who wait for it to change.
pub struct Server {
    slots: Mutex<Slots>,
    now: watch::Sender<Versioned>,
}

impl Server {
    /// Opens the register in `folder`.
    pub fn open(folder: &Path) -> Result<Arc<Self>, SlotsError> {
        let slots = Slots::open(folder)?;
        let now = watch::Sender::new(slots.now().clone());
        Ok(Arc::new(Self { slots: Mutex::new(slots), now }))
    }

    /// Serves connections for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let room = Arc::clone(&connections).acquire_owned().await;
            let room = room.expect("the semaphore is never closed");
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = server.connection(stream).await {
                    tracing::warn!("closed the connection of {address}: {error}");
                }
                drop(room);
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) -> Result<(), ReadError> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        write.write_all(&preamble(Port::Authority)).await?;
        let mut reader = FrameReader::new(read, AUTHORITY_FRAME_BYTES_MAX);
        let (answers, mut outbox) = mpsc::channel::<AuthorityReply>(ANSWERS_MAX);
        let writer = tokio::spawn(async move {
            while let Some(reply) = outbox.recv().await {
                let mut bytes = BytesMut::new();
                put_frame(&mut bytes, &codec::encode(&reply));
                match timeout(FIRST_FRAME_TIMEOUT, write.write_all(&bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
            let _ = write.shutdown().await;
        });
        let ended = self.answer_calls(&mut reader, answers).await;
        // Every answer goes out before the socket closes, a slow reader's for a while.
        let _ = timeout(FIRST_FRAME_TIMEOUT, writer).await;
        if ended.is_err() {
            reader.linger().await;
        }
        ended
    }

    async fn answer_calls(
        self: &Arc<Self>,
        reader: &mut FrameReader<tokio::net::tcp::OwnedReadHalf>,
        answers: mpsc::Sender<AuthorityReply>,
    ) -> Result<(), ReadError> {
        match timeout(FIRST_FRAME_TIMEOUT, reader.preamble(Port::Authority)).await {
            Ok(Err(ReadError::Silent)) | Err(_) => return Ok(()),
            Ok(read) => read?,
        }
        let mut watches = JoinSet::new();
        loop {
            let Ok(frame) = timeout(IDLE_TIMEOUT, reader.frame()).await else { return Ok(()) };
            let Some(payload) = frame? else { return Ok(()) };
            while watches.try_join_next().is_some() {}
            let decoded = codec::decode::<AuthorityCall, AUTHORITY_FRAME_BYTES_MAX>(&payload);
            let AuthorityCall { call, request } = match decoded {
                Ok(call) => call,
                Err(error) => {
                    let answer = AuthorityAnswer::Refused(error.to_string());
                    let call = onlyonce_wire::CallId(0);
                    let _ = answers.send(AuthorityReply { call, answer }).await;
                    return Ok(());
                }
            };
            let answer = match request {
                AuthorityRequest::Read => AuthorityAnswer::Now(self.now.borrow().clone()),
                AuthorityRequest::CompareAndSwap { expected, value } => {
                    self.swap(expected, value).await
                }
                AuthorityRequest::Watch { after } if watches.len() < WATCHES_MAX => {
                    let (server, answers) = (Arc::clone(self), answers.clone());
                    watches.spawn(async move {
                        let answer = AuthorityAnswer::Now(server.other_than(after).await);
                        let _ = answers.send(AuthorityReply { call, answer }).await;
                    });
                    continue;
                }
                AuthorityRequest::Watch { .. } => AuthorityAnswer::Refused(format!(
                    "at most {WATCHES_MAX} watches may wait on one connection"
                )),
            };
            if answers.send(AuthorityReply { call, answer }).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn swap(self: &Arc<Self>, expected: Revision, value: Register) -> AuthorityAnswer {
        let server = Arc::clone(self);
        let swap = tokio::task::spawn_blocking(move || server.swap_now(expected, value)).await;
        match swap.expect("a panic aborts the process") {
            SlotSwap::Swapped(now) => AuthorityAnswer::Swapped(now.revision),
            SlotSwap::Conflict(now) => AuthorityAnswer::Conflict(now),
            SlotSwap::TooLong(bytes) => AuthorityAnswer::Refused(format!(
                "the register would be {bytes} bytes long; at most {REGISTER_BYTES_MAX} are allowed"
            )),
        }
    }

    fn swap_now(&self, expected: Revision, value: Register) -> SlotSwap {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let swap = slots.compare_and_swap(expected, value).unwrap_or_else(|error| {
            exit::stop(&format!(
                "writing the register failed, so what it holds is unknown: {error}"
            ))
        });
        if let SlotSwap::Swapped(now) = &swap {
            let register = now.register.as_ref().expect("a swap writes a value");
            tracing::info!(
                "revision {}: view {} of cluster {}, primary {}, {} backups",
                now.revision.0,
                register.view,
                register.cluster,
                register.primary.name,
                register.backups.len(),
            );
            // Still under the lock, so that readers see changes in their order.
            self.now.send_replace(now.clone());
        }
        swap
    }

    /// The register once its revision is other than `after`, or as it is after a while.
    async fn other_than(&self, after: Revision) -> Versioned {
        let mut changes = self.now.subscribe();
        // A lower one is news too: the register was put back.
        let newer = changes.wait_for(|now| now.revision != after);
        if let Ok(Ok(now)) = timeout(WATCH_TIMEOUT, newer).await {
            return now.clone();
        }
        self.now.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_wire::CallId;
    use tokio::io::AsyncReadExt;

    use super::super::client::EmbeddedClient;
    use super::super::slots::tests::register;
    use super::super::{Authority, Swap};
    use super::*;

    async fn started(folder: &Path) -> (String, tokio::task::JoinHandle<()>) {
        let server = Server::open(folder).expect("opens");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address").to_string();
        (address, tokio::spawn(server.serve(listener)))
    }

    /// Over a real socket: of two swaps at one revision one wins; a watch and a restart show it.
    #[tokio::test]
    async fn compare_and_swap_over_a_socket() {
        let folder = tempfile::tempdir().expect("a folder");
        let (address, serving) = started(folder.path()).await;
        let client = Arc::new(EmbeddedClient::new(address));
        let empty = client.read().await.expect("answers");
        assert_eq!(empty, Versioned { revision: Revision(0), register: None });

        let waiting = Arc::clone(&client);
        let watch = tokio::spawn(async move { waiting.watch(Revision(0)).await });
        let (one, two) = tokio::join!(
            client.compare_and_swap(Revision(0), register(1)),
            client.compare_and_swap(Revision(0), register(2)),
        );
        let winner = match (&one, &two) {
            (Swap::Swapped(Revision(1)), Swap::Conflict(now)) => (now, 1),
            (Swap::Conflict(now), Swap::Swapped(Revision(1))) => (now, 2),
            other => panic!("not one winner: {other:?}"),
        };
        assert_eq!(winner.0.register, Some(register(winner.1)));
        let news = watch.await.expect("no panic").expect("answers");
        assert_eq!(&news, winner.0);

        serving.abort();
        assert!(serving.await.is_err_and(|error| error.is_cancelled()));
        let (address, _serving) = restarted(folder.path()).await;
        let again = EmbeddedClient::new(address).read().await.expect("answers");
        assert_eq!(again, news);
    }

    /// Connections of the server before hold the folder until they notice.
    async fn restarted(folder: &Path) -> (String, tokio::task::JoinHandle<()>) {
        for _ in 0..100 {
            if Server::open(folder).is_ok() {
                return started(folder).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the folder stayed locked");
    }

    /// Garbage closes its own connection only, with a reason where one can be given.
    #[tokio::test]
    async fn garbage_is_answered_and_survived() {
        let folder = tempfile::tempdir().expect("a folder");
        let (address, _serving) = started(folder.path()).await;
        let mut bad_frame = BytesMut::from(&preamble(Port::Authority)[..]);
        put_frame(&mut bad_frame, &[0xff; 40]);
        let mut wrong_port = preamble(Port::Client).to_vec();
        wrong_port.extend_from_slice(&[0; 8]);
        let mut long_frame = preamble(Port::Authority).to_vec();
        long_frame.extend_from_slice(&[0xff; 8]);
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &bad_frame, &wrong_port, &long_frame, b"x"] {
            let mut stream = TcpStream::connect(&address).await.expect("connects");
            stream.write_all(bytes).await.expect("written");
            stream.shutdown().await.expect("half closed");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("closed in order");
            assert_eq!(&answer[..16], preamble(Port::Authority));
            if bytes == &bad_frame[..] {
                let mut reader = FrameReader::new(&answer[16..], AUTHORITY_FRAME_BYTES_MAX);
                let payload = reader.frame().await.expect("a frame").expect("an answer");
                let reply = codec::decode::<AuthorityReply, AUTHORITY_FRAME_BYTES_MAX>(&payload);
                let reply = reply.expect("a reply");
                let refused = matches!(&reply.answer, AuthorityAnswer::Refused(text)
                    if text.contains("AuthorityCall"));
                assert!(refused && reply.call == CallId(0), "{reply:?}");
            }
        }
        EmbeddedClient::new(address).read().await.expect("still answers");
    }

    /// A compare-and-swap without an answer is unknown, never a failure.
    #[tokio::test]
    async fn no_answer_is_unknown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address").to_string();
        let client = EmbeddedClient::new(address);
        let deaf = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut bytes = [0; 20];
            stream.read_exact(&mut bytes).await.expect("a call");
        });
        let swap = client.compare_and_swap(Revision(0), register(1)).await;
        assert!(matches!(swap, Swap::Unknown(_)), "{swap:?}");
        deaf.await.expect("no panic");
        let swap = client.compare_and_swap(Revision(0), register(1)).await;
        assert!(matches!(swap, Swap::Unknown(_)), "{swap:?}");
    }
}
