//! Status, metrics and health over HTTP/1.1, for people and monitoring; faults for test scripts.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use onlyonce_wire::status::{NodeStatus, Role};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::authority::agent::AUTHORITY;
use crate::clients::Connections;
use crate::counters::{Counter, Counters};
use crate::faults::Faults;
use crate::peers::Peers;

const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the HTTP port shows.
pub struct Http {
    pub status: watch::Receiver<NodeStatus>,
    pub counters: Arc<Counters>,
    pub connections: Arc<Connections>,
    pub peers: Arc<Peers>,
    pub faults: Arc<Faults>,
}

impl Http {
    /// Serves for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&room).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let http = Arc::clone(&self);
                    tokio::spawn(async move {
                        http.connection(stream).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept an HTTP connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let service = hyper::service::service_fn(move |request| {
            let http = Arc::clone(&self);
            async move { Ok::<_, Infallible>(http.answer(&request)) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!("an HTTP connection ended: {error}");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        // Hyper leaves the body of an answer to HEAD out.
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        match request.uri().path() {
            "/healthz" | "/status" | "/metrics" if !reads => not_allowed("GET, HEAD"),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/status" => {
                let status = self.status.borrow().clone();
                let text = serde_json::to_string(&StatusPage::from(&status))
                    .expect("a status is plain data");
                respond(StatusCode::OK, "application/json", text + "\n")
            }
            "/metrics" => {
                let status = self.status.borrow().clone();
                let text = metrics(&status, &self.counters, self.connections.count());
                respond(StatusCode::OK, "text/plain; version=0.0.4", text)
            }
            "/fault/partition" if self.faults.enabled() => {
                if request.method() == Method::POST {
                    self.partition(request.uri().query().unwrap_or_default())
                } else {
                    not_allowed("POST")
                }
            }
            #[cfg(feature = "failpoints")]
            "/fault/failpoint" if self.faults.enabled() => {
                failpoint(request.method(), request.uri().query().unwrap_or_default())
            }
            _ => plain(StatusCode::NOT_FOUND, "not found: try /status, /metrics or /healthz\n"),
        }
    }

    fn partition(&self, query: &str) -> Response<Full<Bytes>> {
        let (Some(name), Some(on @ ("true" | "false"))) =
            (value(query, "peer"), value(query, "on"))
        else {
            let usage = "usage: POST /fault/partition?peer=NAME&on=true|false\n";
            return plain(StatusCode::BAD_REQUEST, usage);
        };
        let on = on == "true";
        if name != AUTHORITY && !self.peers.possible(name) {
            let text = format!("there is no peer {name:?}\n");
            return plain(StatusCode::NOT_FOUND, text);
        }
        self.faults.set(name, on);
        tracing::warn!("fault: {name} is {}", if on { "cut off" } else { "back" });
        // A node can be cut off before it is heard of: only its primary knows a learner.
        if on && name != AUTHORITY && !self.peers.knows(name) {
            let text = format!("no node {name:?} is known here yet: it will be cut off\n");
            return plain(StatusCode::OK, text);
        }
        plain(StatusCode::OK, "ok\n")
    }
}

/// The value of `key` in a query.
fn value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|pair| pair.0 == key).map(|pair| pair.1)
}

/// `GET` lists the failpoints, `POST` arms one: it kills this process when it is reached after so
/// many passes.
#[cfg(feature = "failpoints")]
fn failpoint(method: &Method, query: &str) -> Response<Full<Bytes>> {
    use onlyonce_storage::failpoints::{Point, arm};
    if *method == Method::GET {
        let names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        return plain(StatusCode::OK, names.join("\n") + "\n");
    }
    let passes = value(query, "passes").and_then(|passes| passes.parse().ok());
    let (Some(name), Some(passes)) = (value(query, "name"), passes) else {
        let usage = "usage: POST /fault/failpoint?name=POINT&passes=N\n";
        return plain(StatusCode::BAD_REQUEST, usage);
    };
    match arm(name, passes) {
        Ok(()) => plain(StatusCode::OK, "ok\n"),
        Err(error) => plain(StatusCode::NOT_FOUND, error + "\n"),
    }
}

/// A node's status as JSON shows it: ids as the hexadecimal text that they are everywhere else.
#[derive(serde::Serialize)]
struct StatusPage<'a> {
    name: &'a str,
    store: String,
    cluster: Option<String>,
    incarnation: u64,
    role: Role,
    serving: bool,
    view: u64,
    primary: Option<&'a str>,
    primary_address: Option<&'a str>,
    backups: &'a [String],
    learners: &'a [String],
    prepared: u64,
    committed: u64,
    applied: u64,
    sessions: u64,
    idempotency_keys: u64,
    timed_keys_refused_ms: u64,
    logged_bytes: u64,
}

impl<'a> From<&'a NodeStatus> for StatusPage<'a> {
    fn from(status: &'a NodeStatus) -> Self {
        Self {
            name: &status.name,
            store: status.store.to_string(),
            cluster: status.cluster.map(|cluster| cluster.to_string()),
            incarnation: status.incarnation.0,
            role: status.role,
            serving: status.serving,
            view: status.view.0,
            primary: status.primary.as_deref(),
            primary_address: status.primary_address.as_deref(),
            backups: &status.backups,
            learners: &status.learners,
            prepared: status.prepared,
            committed: status.committed,
            applied: status.applied,
            sessions: status.sessions,
            idempotency_keys: status.idempotency_keys,
            timed_keys_refused_ms: status.timed_keys_refused_ms,
            logged_bytes: status.logged_bytes,
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, "text/plain", text)
}

fn not_allowed(methods: &'static str) -> Response<Full<Bytes>> {
    let text = format!("this path takes {methods} only\n");
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Everything in the text format of Prometheus.
fn metrics(status: &NodeStatus, counters: &Counters, connections: usize) -> String {
    let mut text = String::from(
        "# HELP onlyonce_role 1 for the part that the node plays, 0 for the others.\n\
         # TYPE onlyonce_role gauge\n",
    );
    for one in [Role::Starting, Role::Primary, Role::Backup, Role::Learner] {
        let value = u64::from(status.role == one);
        let _ = writeln!(text, "onlyonce_role{{role=\"{}\"}} {value}", one.as_str());
    }
    for (name, value, help) in gauges(status, connections) {
        metric(&mut text, name, "gauge", help, value as f64);
    }
    for (name, value, help) in totals(counters) {
        metric(&mut text, name, "counter", help, value);
    }
    text
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    let _ = writeln!(
        text,
        "# HELP onlyonce_{name} {help}\n# TYPE onlyonce_{name} {kind}\nonlyonce_{name} {value}"
    );
}

type Metric<T> = (&'static str, T, &'static str);

fn gauges(status: &NodeStatus, connections: usize) -> [Metric<u64>; 11] {
    [
        ("serving", u64::from(status.serving), "1 while the node takes requests."),
        ("view", status.view.0, "The newest view that the node knows."),
        ("backups", status.backups.len() as u64, "Backups of that view."),
        ("learners", status.learners.len() as u64, "Learners that this primary feeds."),
        ("prepared_index", status.prepared, "The newest log index that is durable here."),
        (
            "committed_index",
            status.committed,
            "The newest log index that is durable on every replica of the view.",
        ),
        (
            "applied_index",
            status.applied,
            "The newest log index that a checkpoint has put into the tables.",
        ),
        ("sessions", status.sessions, "Open sessions; 0 where the node is no primary."),
        (
            "idempotency_keys",
            status.idempotency_keys,
            "Remembered idempotency keys; 0 where the node is no primary.",
        ),
        (
            "timed_keys_refused_milliseconds",
            status.timed_keys_refused_ms,
            "How long fresh timed keys will be refused, for a calendar that is or was wrong.",
        ),
        ("client_connections", connections as u64, "Client connections open now."),
    ]
}

fn totals(counters: &Counters) -> [Metric<f64>; 14] {
    let seconds = counters.flush_nanoseconds.get() as f64 / 1e9;
    let count = |counter: &Counter| counter.get() as f64;
    [
        ("requests_total", count(&counters.requests), "Requests that came from clients."),
        ("replies_total", count(&counters.replies), "Answers to them."),
        (
            "busy_refusals_total",
            count(&counters.busy),
            "Requests refused because too many waited for the node.",
        ),
        (
            "client_connections_total",
            count(&counters.connections_accepted),
            "Client connections that were accepted.",
        ),
        ("peer_sent_bytes_total", count(&counters.peer_bytes_sent), "Bytes sent to other nodes."),
        (
            "peer_received_bytes_total",
            count(&counters.peer_bytes_received),
            "Bytes that came from other nodes.",
        ),
        (
            "peer_messages_dropped_total",
            count(&counters.peer_messages_dropped),
            "Messages to other nodes that were dropped: unreachable, over a limit, or cut off.",
        ),
        ("log_flushes_total", count(&counters.flushes), "Flushes of the log."),
        ("log_flush_seconds_total", seconds, "The time that they took together."),
        ("log_records_total", count(&counters.records), "Records that were made durable."),
        ("checkpoints_total", count(&counters.checkpoints), "Checkpoints that ended."),
        (
            "scrubs_total",
            count(&counters.scrubs),
            "Times that all of the tables was what was written.",
        ),
        (
            "snapshot_read_bytes_total",
            count(&counters.snapshot_bytes_read),
            "Bytes of rows that were read for learners' snapshots.",
        ),
        (
            "snapshot_received_bytes_total",
            count(&counters.snapshot_bytes_received),
            "Bytes of snapshots that were written here.",
        ),
    ]
}
