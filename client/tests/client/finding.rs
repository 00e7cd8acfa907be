//! Finding the primary, and telling apart what waiting cures from what it does not.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use onlyonce_client::{BuildError, Client, ClusterId, Error, Refusal, Role};
use onlyonce_wire::authority::{
    AuthorityAnswer, AuthorityCall, AuthorityReply, Member, Register, Revision, Versioned,
};
use onlyonce_wire::client::{Answer, Goodbye, Limit, ServerFrame};
use onlyonce_wire::frame::{self, PREAMBLE_BYTES, Port};
use onlyonce_wire::limits::AUTHORITY_FRAME_BYTES_MAX;
use onlyonce_wire::{Incarnation, ProposalId, StoreId, View, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::{CLUSTER, FakeNode, Model, Reaction, Received, until};
use crate::{builder, client};

/// A node that says who the primary is leads there at once.
#[tokio::test]
async fn hints_are_followed() {
    let model = Model::shared();
    let primary = FakeNode::start(&model, |_| Reaction::Serve).await;
    let to = primary.address.clone();
    let backup = FakeNode::start(&model, move |_| {
        let primary = Some(to.clone());
        Reaction::Answer(Answer::NotPrimary { view: View(4), primary })
    })
    .await;
    let client = client(&backup);
    assert_eq!(client.incr("n", 2).await.expect("counted"), 2);
    assert_eq!(client.incr("n", 2).await.expect("counted"), 4);
    assert_eq!(backup.received().len(), 1, "the primary is remembered");
    let known = client.nodes().await.expect("known");
    assert_eq!(known, [backup.address.clone(), primary.address.clone()]);
}

/// A hint of an older view than one heard of leads nowhere.
#[tokio::test]
async fn old_hints_are_ignored() {
    let model = Model::shared();
    let trap = FakeNode::start(&model, |_| Reaction::Ignore).await;
    let primary = FakeNode::start(&model, |_| Reaction::Serve).await;
    let not = |view, primary| Answer::NotPrimary { view: View(view), primary };
    let newer = not(5, None);
    let newer = FakeNode::start(&model, move |_| Reaction::Answer(newer.clone())).await;
    let older = not(4, Some(trap.address.clone()));
    let older = FakeNode::start(&model, move |_| Reaction::Answer(older.clone())).await;
    let client = builder([&newer, &older, &primary]).build().expect("addresses");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    assert_eq!(older.received().len(), 1);
    assert_eq!(trap.connections(), 0, "an old hint was followed");
}

/// Nobody listens: the client goes on, but quietly.
#[tokio::test]
async fn refused_connections_do_not_spin() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    // The tries cannot be counted where nobody listens, so count those at a node that hangs up.
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    node.greet_with(|welcome| *welcome = Err(Goodbye::ShuttingDown));
    let client = Client::builder()
        .nodes([address, node.address.clone()])
        .deadline(Duration::from_secs(1))
        .build()
        .expect("addresses");
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.incr("n", 1).await })
        })
        .collect();
    for call in calls {
        let error = call.await.expect("no panic").expect_err("nobody serves");
        assert!(matches!(error, Error::NotSent(_)), "{error:?}");
    }
    assert!((5..150).contains(&node.connections()), "{} connections", node.connections());
}

/// What cannot be sent is not sent, and the error names each node.
#[tokio::test]
async fn unreachable_nodes_are_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let client = Client::builder().nodes([&address]).deadline(Duration::from_millis(50));
    let error = client.build().expect("an address").put("a", "b").await.expect_err("unreachable");
    assert_eq!(
        error.to_string(),
        format!(
            "no node could be reached within 50ms: {address}: connection refused; nothing was sent"
        )
    );
}

/// A node that accepts but never welcomes anybody does not hold up a client that knows another.
#[tokio::test]
async fn a_mute_node_is_passed_over() {
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let client = Client::builder()
        .nodes([mute.local_addr().expect("bound").to_string(), node.address.clone()])
        .attempt_timeout(Duration::from_millis(50))
        .build()
        .expect("addresses");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
}

/// Nor does it use up a call's deadline, however patient an attempt may be otherwise.
#[tokio::test]
async fn a_mute_node_leaves_time_for_another() {
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let client = Client::builder()
        .nodes([mute.local_addr().expect("bound").to_string(), node.address.clone()])
        .deadline(Duration::from_millis(900))
        .one_shot()
        .build()
        .expect("addresses");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
}

/// A node that welcomes slowly is passed over, but the connection to it still comes about.
#[tokio::test]
async fn a_slow_welcome_is_not_lost() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let other = FakeNode::start(&model, |_| Reaction::Serve).await;
    other.greet_with(|welcome| *welcome = Err(Goodbye::ShuttingDown));
    let relay = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let slow = relay.local_addr().expect("bound").to_string();
    let (open, opened) = tokio::sync::watch::channel(false);
    let target = node.address.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            let (mut opened, target) = (opened.clone(), target.clone());
            tokio::spawn(async move {
                opened.wait_for(|opened| *opened).await.expect("the test goes on");
                let mut far = TcpStream::connect(target).await.expect("the node listens");
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    let began = Instant::now();
    let client = Client::builder().nodes([slow, other.address.clone()]).build().expect("addresses");
    let call = tokio::spawn(async move { client.incr("n", 1).await });
    until("the other node is asked", || other.connections() > 0).await;
    open.send(true).expect("the relay listens");
    assert_eq!(call.await.expect("no panic").expect("counted"), 1);
    // An attempt may take a second; one that was given up in time would have been made again.
    let (connections, elapsed) = (node.connections(), began.elapsed());
    assert!(
        connections == 1 || elapsed > Duration::from_millis(900),
        "{connections} in {elapsed:?}"
    );
}

/// The wrong cluster is named at once, although there is no deadline.
#[tokio::test]
async fn another_cluster() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let client = builder([&node]).cluster(ClusterId(0xbad)).build().expect("an address");
    let error = client.incr("n", 1).await.expect_err("another cluster");
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "node {}: belongs to cluster {CLUSTER}, this client to cluster {}: check the addresses; \
             nothing was done",
            node.address,
            ClusterId(0xbad)
        )
    );
}

/// Who was welcomed by one cluster speaks to no other: a retry there would run anew.
#[tokio::test]
async fn one_cluster_is_enough() {
    let (model, other_model) = (Model::shared(), Model::shared());
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let other = FakeNode::start(&other_model, |_| Reaction::Serve).await;
    other.greet_with(|welcome| {
        if let Ok(welcome) = welcome {
            welcome.cluster = Some(ClusterId(2));
        }
    });
    let client = builder([&node, &other]).deadline(Duration::from_millis(400)).build();
    let client = client.expect("addresses");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    node.script(|_| Reaction::Cut);
    let error = client.incr("n", 1).await.expect_err("the only node cuts");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");
    assert_eq!(other.received().len(), 0);
}

/// A node that is busy for ever may have been replaced: the others are asked now and then.
#[tokio::test]
async fn a_busy_node_is_not_asked_for_ever() {
    let model = Model::shared();
    let busy = || Reaction::Answer(Answer::Refused(Refusal::Busy(Limit::Queue)));
    let replaced = FakeNode::start(&model, move |_| busy()).await;
    let primary = FakeNode::start(&model, |_| Reaction::Serve).await;
    let client = builder([&replaced, &primary]).build().expect("addresses");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
}

/// Two nodes without a cluster are two databases: what one may have run is not sent to the other.
#[tokio::test]
async fn a_copy_stays_with_its_lone_node() {
    let (one, two) = (Model::shared(), Model::shared());
    let lone = async |model, store| {
        let node = FakeNode::start(model, |_| Reaction::ServeAndCut).await;
        node.greet_with(|welcome| {
            if let Ok(welcome) = welcome {
                (welcome.cluster, welcome.store) = (None, StoreId(store));
            }
        });
        node
    };
    let (first, second) = (lone(&one, 1).await, lone(&two, 2).await);
    let client = builder([&first, &second]).one_shot().deadline(Duration::from_millis(300));
    let error = client.build().expect("addresses").incr("n", 1).await.expect_err("cut");
    assert!(matches!(error, Error::Unresolved(_)), "{error:?}");
    assert!(first.executes().len() > 1, "it was not asked again");
    assert_eq!(second.executes().len(), 0, "it could run twice");
}

/// Another protocol version is named at once, with the node's last words.
#[tokio::test]
async fn another_version() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut words = BytesMut::from(&frame::preamble(Port::Client)[..]);
            words[8] = 2;
            let goodbye = Goodbye::Protocol("upgrade the client".to_owned());
            frame::put_frame(&mut words, &codec::encode(&ServerFrame::Goodbye(goodbye)));
            let _ = stream.write_all(&words).await;
        }
    });
    let client = Client::builder().nodes([&address]).build().expect("an address");
    let error = client.incr("n", 1).await.expect_err("another version");
    assert_eq!(
        error.to_string(),
        format!(
            "node {address}: speaks protocol version 2, this client 1: run the same release of \
             Onlyonce on both (it says: upgrade the client); nothing was done"
        )
    );
}

/// A port where something else listens is named at once.
#[tokio::test]
async fn not_a_node() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let client = Client::builder().nodes([&address]).build().expect("an address");
    let error = client.get("n").await.expect_err("not a node");
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("HTTP/1.1"), "{text}");
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");
}

/// The authority is the name server: no node need be known.
#[tokio::test]
async fn the_authority_knows_the_way() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let authority = authority(register(&node.address)).await;
    let client = Client::builder().authority(&authority).build().expect("an address");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);
    assert_eq!(client.nodes().await.expect("known"), std::slice::from_ref(&node.address));

    let client = Client::builder().authority(&authority).cluster(ClusterId(3)).build();
    let error = client.expect("an address").get("n").await.expect_err("another cluster");
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");

    let client = Client::builder().authority(&node.address).build().expect("an address");
    let error = client.get("n").await.expect_err("a node is no authority");
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");
}

/// Views of a new incarnation are counted anew: a hint of a lower one than was known before counts.
#[tokio::test]
async fn a_hint_of_a_new_incarnation_is_followed() {
    let model = Model::shared();
    let next = FakeNode::start(&model, |_| Reaction::Serve).await;
    let hint = move |view, to: &FakeNode| {
        let primary = Some(to.address.clone());
        move |_: &Received| {
            Reaction::Answer(Answer::NotPrimary { view: View(view), primary: primary.clone() })
        }
    };
    let primary = FakeNode::start(&model, |_| Reaction::Serve).await;
    let known = FakeNode::start(&model, hint(9, &primary)).await;
    let client = builder([&known]).deadline(Duration::from_secs(5)).build().expect("an address");
    assert_eq!(client.incr("n", 1).await.expect("counted"), 1);

    let current = Incarnation(2);
    {
        let mut model = model.lock().expect("kept rules");
        model.incarnation = current;
        model.sessions.clear();
    }
    let (refused, redirect) =
        (Answer::Refused(Refusal::OtherIncarnation { current }), hint(3, &next));
    primary.script(move |received| match received.execute() {
        Some(_) => Reaction::Answer(refused.clone()),
        None => redirect(received),
    });
    known.script(hint(3, &next));
    assert_eq!(client.incr("n", 1).await.expect("counted"), 2);
}

/// Any node answers for itself.
#[tokio::test]
async fn status() {
    let model = Model::shared();
    let node = FakeNode::start(&model, |_| Reaction::Serve).await;
    let status = client(&node).status(&node.address).await.expect("answered");
    assert_eq!((status.role, status.committed), (Role::Primary, 2));
    let address = node.address.clone();
    let client = client(&node);
    drop(node);
    let began = Instant::now();
    let error = client.status(&address).await.expect_err("gone");
    assert!(matches!(error, Error::NoAnswer(_)), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(Client::builder().build().err(), Some(BuildError::NoNodes));
}

fn register(node: &str) -> Register {
    let primary = Member {
        store: StoreId(7),
        name: "fake".to_owned(),
        client_address: node.to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
    };
    Register {
        cluster: CLUSTER,
        incarnation: Incarnation(1),
        view: View(1),
        proposal: ProposalId(1),
        bumps: 0,
        primary,
        backups: Vec::new(),
    }
}

async fn authority(register: Register) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = BytesMut::new();
            stream.read_exact(&mut [0; PREAMBLE_BYTES]).await.expect("a preamble");
            stream.write_all(&frame::preamble(Port::Authority)).await.expect("listens");
            let payload = loop {
                stream.read_buf(&mut buffer).await.expect("a call");
                let taken = frame::take_frame(&mut buffer, AUTHORITY_FRAME_BYTES_MAX);
                if let Some(payload) = taken.expect("whole") {
                    break payload;
                }
            };
            let call: AuthorityCall =
                codec::decode::<_, AUTHORITY_FRAME_BYTES_MAX>(&payload).expect("a call");
            let now = Versioned { revision: Revision(1), register: Some(register.clone()) };
            let reply = AuthorityReply { call: call.call, answer: AuthorityAnswer::Now(now) };
            let mut bytes = BytesMut::new();
            frame::put_frame(&mut bytes, &codec::encode(&reply));
            stream.write_all(&bytes).await.expect("listens");
        }
    });
    address
}
