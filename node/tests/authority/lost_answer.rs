//! A swap whose request or answer is lost on the way to etcd: sent once all the same, and unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_client::Client;
use onlyonce_node::authority::{Authority, Swap};
use onlyonce_wire::authority::{Revision, Versioned};
use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::server::{Server, answers, etcd_client};
use super::{register, swapped};

/// What a connection loses: with it, the connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Nothing,
    Swap,
    Answer,
}

/// The bytes with which a client's half of an HTTP/2 connection begins.
const PREFACE_BYTES: usize = 24;
/// The bytes before the payload of an HTTP/2 frame.
const FRAME_HEADER_BYTES: usize = 9;
/// The type of the frame with which a request begins.
const HEADERS: u8 = 1;
/// The stream of a connection's second call: the swap, after the read that found the endpoint alive.
const SWAP: u32 = 3;

/// What went through.
#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    swaps: AtomicUsize,
}

/// Starts a proxy to `upstream` that loses `loss`; returns its address.
async fn proxy(upstream: String, loss: Loss, counts: Arc<Counts>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            counts.connections.fetch_add(1, Ordering::Relaxed);
            let (upstream, counts) = (upstream.clone(), Arc::clone(&counts));
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(upstream).await else { return };
                let _ = pass(client, server, loss, &counts).await;
            });
        }
    });
    address
}

/// Passes frames both ways until one is to be lost.
async fn pass(client: TcpStream, server: TcpStream, loss: Loss, counts: &Counts) -> io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let requests = async {
        let mut preface = [0; PREFACE_BYTES];
        from_client.read_exact(&mut preface).await?;
        to_server.write_all(&preface).await?;
        loop {
            let (kind, stream, frame) = frame(&mut from_client).await?;
            if kind == HEADERS && stream >= SWAP {
                counts.swaps.fetch_add(1, Ordering::Relaxed);
            }
            if stream >= SWAP && loss == Loss::Swap {
                return Ok(());
            }
            to_server.write_all(&frame).await?;
        }
    };
    let answers = async {
        loop {
            let (_, stream, frame) = frame(&mut from_server).await?;
            if stream >= SWAP && loss == Loss::Answer {
                return Ok(());
            }
            to_client.write_all(&frame).await?;
        }
    };
    tokio::select! { ended = requests => ended, ended = answers => ended }
}

/// The next frame: its type, its stream, and all its bytes.
async fn frame(from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<(u8, u32, Vec<u8>)> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    let (kind, stream) = (frame[3], [frame[5] & 0x7f, frame[6], frame[7], frame[8]]);
    frame.resize(FRAME_HEADER_BYTES + length, 0);
    from.read_exact(&mut frame[FRAME_HEADER_BYTES..]).await?;
    Ok((kind, u32::from_be_bytes(stream), frame))
}

/// Each swap is sent once; lost before etcd it did not take place, after etcd it did, and here the
/// client says *unknown* to both.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_is_sent_once_and_then_unknown() {
    let server = Server::etcd();
    let direct = server.etcd_client("default");
    answers(&direct).await;
    let mut expected = Revision(0);
    for (round, loss) in (1..).zip([Loss::Answer, Loss::Swap, Loss::Nothing, Loss::Answer]) {
        let counts = Arc::new(Counts::default());
        let address = proxy(server.address().to_owned(), loss, Arc::clone(&counts)).await;
        let proxied = etcd_client(&format!("etcd://{address}"));
        let swap = proxied.compare_and_swap(expected, register(round, 1)).await;
        match loss {
            Loss::Nothing => assert!(matches!(swap, Swap::Swapped(_)), "{swap:?}"),
            Loss::Swap | Loss::Answer => assert!(matches!(swap, Swap::Unknown(_)), "{swap:?}"),
        }
        assert_eq!(counts.connections.load(Ordering::Relaxed), 1, "{loss:?}");
        assert_eq!(counts.swaps.load(Ordering::Relaxed), 1, "{loss:?}");
        let now = direct.read().await.expect("a read");
        if loss == Loss::Swap {
            assert_eq!(now.revision, expected, "it never arrived");
        } else {
            assert_eq!(now.register, Some(register(round, 1)), "it took place");
            expected = now.revision;
        }
    }
    let mut raw = Client::connect([server.address()], None).await.expect("connects");
    let row = raw.get("/onlyonce/default/view", None).await.expect("a read");
    assert_eq!(row.kvs()[0].version(), 3, "three of four took place, each once");
    let revision = swapped(&direct, expected, register(9, 9)).await;
    let now = Versioned { revision, register: Some(register(9, 9)) };
    assert_eq!(direct.read().await.expect("a read"), now);
}
