//! Real `onced` processes, and connections that speak to them in frames.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use onlyonce_wire::client::{
    Answer, ClientFrame, Execute, ExecuteId, Hello, Operation, Outcome, Request, ServerFrame,
    Write as WriteRequest,
};
use onlyonce_wire::codec::{decode, encode};
use onlyonce_wire::frame::{PREAMBLE_BYTES, Port, check_preamble, preamble, put_frame, take_frame};
use onlyonce_wire::limits::{CLIENT_FRAME_BYTES_MAX, PEER_FRAME_BYTES_MAX};
use onlyonce_wire::{CallId, IdempotencyKey, Incarnation};
use rustix::process::{Pid, Signal, kill_process};

pub const PATIENCE: Duration = Duration::from_secs(15);

/// A process that is killed and reaped with its owner; its stderr is this test's.
pub struct Process {
    pub child: Child,
    _stdout: BufReader<ChildStdout>,
    pub ready: String,
}

impl Process {
    pub fn start(arguments: &[&str]) -> Self {
        Self::spawn(&mut onced(arguments))
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        stdout.read_line(&mut ready).expect("a line");
        assert!(ready.starts_with("ready "), "{command:?} printed {ready:?}");
        Self { child, _stdout: stdout, ready }
    }

    pub fn node(folder: &Path, name: &str, more: &[&str]) -> Self {
        Self::spawn(&mut node(folder, name, more))
    }

    /// The value of `key` in the ready line.
    pub fn at(&self, key: &str) -> &str {
        let found = self.ready.split_whitespace().find_map(|word| word.strip_prefix(key));
        found.and_then(|rest| rest.strip_prefix('=')).expect("a key of the ready line")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signalled");
    }

    pub fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} did not end", self.ready);
    }

    pub fn status(&self) -> serde_json::Value {
        let (code, body) = http(self.at("http"), "GET", "/status");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    pub fn wait_for(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut status = self.status();
        while !wanted(&status) {
            assert!(Instant::now() < deadline, "never {what}; the status is {status}");
            std::thread::sleep(Duration::from_millis(10));
            status = self.status();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn onced(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onced"));
    command.args(arguments).env("ONCED_LOG", "warn");
    command
}

/// A node, with its data below `folder`, on any ports.
pub fn node(folder: &Path, name: &str, more: &[&str]) -> Command {
    let data = folder.join(name);
    let data = data.to_str().expect("a path of text");
    let mut arguments = vec!["serve", "--data", data, "--name", name];
    for flag in ["--listen", "--peer", "--http"] {
        arguments.extend([flag, "127.0.0.1:0"]);
    }
    arguments.extend(more);
    let mut command = onced(&arguments);
    if more.contains(&"--authority") {
        command.env("ONCED_FAULTS", "1");
    }
    command
}

/// Runs a process that is to fail; returns its exit code and its stderr.
pub fn fails(command: &mut Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty(), "it printed {:?}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().expect("an exit code"), text)
}

pub fn http(address: &str, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let code = head.split_whitespace().nth(1).expect("a status").parse().expect("a number");
    (code, body.to_owned())
}

/// A connection that speaks in frames.
pub struct Connection {
    pub stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    pub fn open(address: &str, port: Port, first: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&preamble(port)).expect("written");
        let mut connection = Self { stream, buffer: BytesMut::new() };
        connection.send(first);
        let mut theirs = [0; PREAMBLE_BYTES];
        connection.stream.read_exact(&mut theirs).expect("a preamble");
        check_preamble(&theirs, port).expect("a preamble");
        connection
    }

    pub fn client(address: &str) -> Self {
        let hello = encode(&ClientFrame::Hello(Hello { cluster: None }));
        let mut connection = Self::open(address, Port::Client, &hello);
        let welcome = connection.receive().expect("a welcome");
        assert!(matches!(welcome, ServerFrame::Welcome(_)), "{welcome:?}");
        connection
    }

    pub fn send(&mut self, payload: &[u8]) {
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, payload);
        self.stream.write_all(&bytes).expect("written");
    }

    /// The next payload; none at the end.
    pub fn payload(&mut self) -> Option<Bytes> {
        loop {
            if let Some(payload) = take_frame(&mut self.buffer, PEER_FRAME_BYTES_MAX).expect("good")
            {
                return Some(payload);
            }
            let mut bytes = vec![0; 64 << 10];
            let count = self.stream.read(&mut bytes).expect("bytes or the end");
            if count == 0 {
                return None;
            }
            self.buffer.extend_from_slice(&bytes[..count]);
        }
    }

    pub fn receive(&mut self) -> Option<ServerFrame> {
        let payload = self.payload()?;
        Some(decode::<_, CLIENT_FRAME_BYTES_MAX>(&payload).expect("a server frame"))
    }

    pub fn call(&mut self, request: Request) -> Answer {
        self.send(&encode(&ClientFrame::Call { call: CallId(1), request }));
        match self.receive() {
            Some(ServerFrame::Reply { call: CallId(1), answer }) => answer,
            other => panic!("not a reply: {other:?}"),
        }
    }

    pub fn execute(&mut self, key: &str, operation: &Operation) -> (Outcome, bool) {
        let id = ExecuteId::Key(IdempotencyKey::new(key.to_owned()).expect("a key"));
        let operation = Bytes::from(encode(operation));
        let execute = Execute { incarnation: Incarnation(1), id, operation };
        match self.call(Request::Execute(execute)) {
            Answer::Executed { reply, replayed, .. } => {
                (decode::<_, CLIENT_FRAME_BYTES_MAX>(&reply).expect("an outcome"), replayed)
            }
            other => panic!("not executed: {other:?}"),
        }
    }
}

pub fn incr() -> Operation {
    Operation::Write(WriteRequest::Incr { key: Bytes::from("c"), by: 1 })
}

pub fn serving(status: &serde_json::Value) -> bool {
    status["serving"] == true
}

/// All that was written to a file.
pub fn text_of(file: &mut std::fs::File) -> String {
    let mut text = String::new();
    file.seek(std::io::SeekFrom::Start(0)).expect("a file");
    file.read_to_string(&mut text).expect("text");
    text
}
