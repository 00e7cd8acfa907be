//! Status, metrics and health over HTTP/1.1, for people and monitoring; faults for test scripts.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use onlyonce_wire::status::{NodeStatus, Role};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::counters::Counters;
use crate::faults::Faults;

const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the HTTP port shows.
pub struct Http {
    pub status: watch::Receiver<NodeStatus>,
    pub counters: Arc<Counters>,
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
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => plain(StatusCode::OK, "ok\n"),
            (&Method::GET, "/status") => {
                let status = self.status.borrow().clone();
                let text = serde_json::to_string(&StatusPage::from(&status))
                    .expect("a status is plain data");
                respond(StatusCode::OK, "application/json", text + "\n")
            }
            (&Method::GET, "/metrics") => {
                let text = metrics(&self.status.borrow().clone(), &self.counters);
                respond(StatusCode::OK, "text/plain; version=0.0.4", text)
            }
            (&Method::POST, "/fault/partition") if self.faults.enabled() => {
                self.partition(request.uri().query().unwrap_or_default())
            }
            _ => plain(StatusCode::NOT_FOUND, "not found: try /status, /metrics or /healthz\n"),
        }
    }

    fn partition(&self, query: &str) -> Response<Full<Bytes>> {
        let value = |key: &str| {
            query.split('&').filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == key)
        };
        let (Some((_, name)), Some((_, on @ ("true" | "false")))) = (value("peer"), value("on"))
        else {
            let usage = "usage: POST /fault/partition?peer=NAME&on=true|false\n";
            return plain(StatusCode::BAD_REQUEST, usage);
        };
        self.faults.set(name, on == "true");
        tracing::warn!("fault: {name} is {}", if on == "true" { "cut off" } else { "back" });
        plain(StatusCode::OK, "ok\n")
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
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain", text)
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
fn metrics(status: &NodeStatus, counters: &Counters) -> String {
    let mut text = String::new();
    let role = |role: Role| u64::from(status.role == role);
    text.push_str("# TYPE onlyonce_role gauge\n");
    for one in [Role::Starting, Role::Primary, Role::Backup, Role::Learner] {
        let _ = writeln!(text, "onlyonce_role{{role=\"{}\"}} {}", one.as_str(), role(one));
    }
    for (name, value) in [
        ("serving", u64::from(status.serving)),
        ("view", status.view.0),
        ("backups", status.backups.len() as u64),
        ("learners", status.learners.len() as u64),
        ("prepared_index", status.prepared),
        ("committed_index", status.committed),
        ("applied_index", status.applied),
        ("sessions", status.sessions),
        ("idempotency_keys", status.idempotency_keys),
        ("client_connections", counters.connections_open.get()),
    ] {
        let _ = writeln!(text, "# TYPE onlyonce_{name} gauge\nonlyonce_{name} {value}");
    }
    let flush_seconds = counters.flush_nanoseconds.get() as f64 / 1e9;
    for (name, value) in [
        ("requests_total", counters.requests.get() as f64),
        ("replies_total", counters.replies.get() as f64),
        ("busy_refusals_total", counters.busy.get() as f64),
        ("client_connections_total", counters.connections_accepted.get() as f64),
        ("peer_sent_bytes_total", counters.peer_bytes_sent.get() as f64),
        ("peer_received_bytes_total", counters.peer_bytes_received.get() as f64),
        ("peer_messages_dropped_total", counters.peer_messages_dropped.get() as f64),
        ("log_flushes_total", counters.flushes.get() as f64),
        ("log_flush_seconds_total", flush_seconds),
        ("log_records_total", counters.records.get() as f64),
        ("checkpoints_total", counters.checkpoints.get() as f64),
    ] {
        let _ = writeln!(text, "# TYPE onlyonce_{name} counter\nonlyonce_{name} {value}");
    }
    text
}
