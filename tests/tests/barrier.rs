//! Before a reply leaves, its effect is behind a real barrier on every replica: seen from outside,
//! in the system calls of both nodes.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use onlyonce_tests::raw::{ask, executed, put};
use onlyonce_tests::trace::attach;
use onlyonce_tests::{Cluster, Daemon, RawSession};
use onlyonce_wire::client::Operation;

/// Of every system call that can read a message, write one, or sync a file.
const CALLS: &str = "trace=fdatasync,fsync,read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg";

/// Traces a running node.
fn trace(pid: u32, output: &Path) -> Daemon {
    attach(pid, &["-ttt", "-y", "-s", "4096", "-e", CALLS], output)
}

/// A completed system call: the lines and times where it began and ended, and its text.
#[derive(Debug)]
struct Call {
    began: usize,
    begin_time: f64,
    ended: usize,
    end_time: f64,
    text: String,
}

/// The completed calls in a trace. Calls of several threads interleave: one that is cut in two by
/// others is put together again.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (usize, f64, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (ended, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((time, text)) = rest.trim_start().split_once(' ') else { continue };
        let Ok(end_time) = time.parse() else { continue };
        if let Some(head) = text.strip_suffix("<unfinished ...>") {
            open.insert(thread, (ended, end_time, head));
        } else if text.starts_with("<... ") {
            let Some((began, begin_time, head)) = open.remove(thread) else { continue };
            let tail = text.split_once("resumed>").map_or("", |(_, tail)| tail);
            let text = format!("{head}{tail}");
            calls.push(Call { began, begin_time, ended, end_time, text });
        } else {
            let text = text.to_owned();
            calls.push(Call { began: ended, begin_time: end_time, ended, end_time, text });
        }
    }
    calls
}

impl Call {
    fn sends(&self) -> bool {
        ["write(", "writev(", "sendto(", "sendmsg("].iter().any(|name| self.text.starts_with(name))
    }

    /// The socket that it is about.
    fn socket(&self) -> Option<&str> {
        let (_, rest) = self.text.split_once("socket:[")?;
        rest.split_once(']').map(|(socket, _)| socket)
    }

    /// Whether it synced a file of the log, and succeeded.
    fn syncs_log(&self) -> bool {
        self.text.starts_with("fdatasync(")
            && self.text.contains("/log/")
            && self.text.ends_with("= 0")
    }
}

/// The call by which `marker` arrived from a socket.
#[track_caller]
fn arrival<'a>(calls: &'a [Call], marker: &str) -> &'a Call {
    calls
        .iter()
        .find(|call| !call.sends() && call.socket().is_some() && call.text.contains(marker))
        .unwrap_or_else(|| panic!("{marker} never arrived: {calls:#?}"))
}

/// The first call after `request` that sends on its socket.
#[track_caller]
fn reply<'a>(calls: &'a [Call], request: &Call) -> &'a Call {
    calls
        .iter()
        .find(|call| {
            call.began > request.ended && call.sends() && call.socket() == request.socket()
        })
        .unwrap_or_else(|| panic!("no reply to {request:?}: {calls:#?}"))
}

/// Whether a sync of the log began after `arrival` and ended before the time `before`.
fn synced(calls: &[Call], arrival: &Call, before: f64) -> bool {
    calls
        .iter()
        .any(|call| call.syncs_log() && call.began > arrival.ended && call.end_time < before)
}

/// Between an isolated request and its reply, each of two nodes completes an fdatasync of its log:
/// the primary after the request came, the backup after the entry came.
#[test]
fn both_logs_are_synced_before_a_reply() {
    let mut cluster = Cluster::start(2, &[]);
    let nodes = cluster.sockets();
    let session = RawSession::open(&nodes);
    executed(ask(&nodes, &session.request(1, 1, &put("quiet", "the-old-value"))));
    let primary = cluster.wait_whole();
    let backup = cluster.other(primary);
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = [folder.path().join("primary"), folder.path().join("backup")];
    let mut stracers = [
        trace(cluster.nodes[primary].daemon().pid(), &outputs[0]),
        trace(cluster.nodes[backup].daemon().pid(), &outputs[1]),
    ];
    // A compare that fails: logged like any request, and the reply that is logged with it carries a
    // text that can be found on the backup.
    let operation = Operation::Cas {
        key: "quiet".into(),
        expected: Some("the-marker-value".into()),
        value: "never".into(),
    };
    let address = [cluster.nodes[primary].client_address()];
    executed(ask(&address, &session.request(2, 2, &operation)));
    for tracer in &mut stracers {
        tracer.terminate(Duration::from_secs(10));
    }
    let [on_primary, on_backup] =
        outputs.map(|trace| calls(&std::fs::read_to_string(trace).expect("strace wrote it")));
    let request = arrival(&on_primary, "the-marker-value");
    let reply = reply(&on_primary, request);
    assert!(reply.text.contains("the-old-value"), "{reply:?}");
    let replied = reply.begin_time;
    assert!(synced(&on_primary, request, replied), "not on the primary: {on_primary:#?}");
    let entry = arrival(&on_backup, "the-old-value");
    assert!(synced(&on_backup, entry, replied), "not on the backup: {on_backup:#?}");
}

/// The parser puts calls together that others interrupt, and a sync that ends too late, fails, or is
/// of another file does not count.
#[test]
fn an_early_reply_would_be_found() {
    let found = |sync: &str, reply: &str| {
        let trace = format!(
            "13  1.0 recvfrom(9<TCP:socket:[1]>, \"marker\", 99, 0, NULL, NULL) = 6\n\
             12 1.1 fdatasync(5<{sync} <unfinished ...>\n\
             13 {reply} sendto(8<TCP:socket:[2]>, \"other\", 5, MSG_NOSIGNAL, NULL, 0) = 5\n\
             12 1.3 <... fdatasync resumed>) = 0\n\
             13 {reply} sendto(9<TCP:socket:[1]>, \"old\", 3, MSG_NOSIGNAL, NULL, 0) = 3\n"
        );
        let calls = calls(&trace);
        let request = arrival(&calls, "marker");
        synced(&calls, request, reply_time(&calls, request))
    };
    assert!(found("/d/log/db>", "1.4"), "synced in time");
    assert!(!found("/d/log/db>", "1.2"), "the reply was sent before the sync had ended");
    assert!(!found("/d/head>", "1.4"), "only head was synced");
}

fn reply_time(calls: &[Call], request: &Call) -> f64 {
    reply(calls, request).begin_time
}
