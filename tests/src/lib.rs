//! What the multi-process tests and the demo are made of: real `onced` processes, killed for real.
//!
//! - [`process`]: a child that is owned: its ready line, its standard error, its end.
//! - [`cluster`]: an authority and nodes, with ports that stay the same; their [`status`] pages.
//!   [`lone`]: a node alone.
//! - [`etcd`]: a cluster of etcd, the other authority.
//! - [`raw`]: the wire protocol spoken by hand, for what the client library would never send.
//! - [`workload`] and [`audit`]: clients that count and append while things break, and the proof
//!   afterwards that each acknowledged request took effect exactly once.
//! - [`load`]: a workload with a test's random choices and its audit. [`ballast`]: rows that make a
//!   store large. [`register`]: reads by hand at every node, none of which may be stale.
//! - [`failpoints`]: nodes that kill themselves at a named point, and what each death cost.
//! - [`recorder`]: clients whose every request and answer is recorded, and judged at the end.
//! - [`network`]: proxies between nodes, authority and clients: partitions of any kind.
//! - [`trace`]: strace, which sees system calls and makes them fail. [`files`]: copies of data folders,
//!   and flipped bits in them.
//! - [`wait`]: the one place that sleeps; everything else waits for a condition.
//!
//! Random tests print their seed; `ONCE_SEED` sets it.

pub mod audit;
pub mod ballast;
pub mod binaries;
pub mod client;
pub mod cluster;
pub mod etcd;
pub mod failpoints;
pub mod files;
pub mod http;
pub mod load;
pub mod lone;
pub mod network;
mod observer;
pub mod port;
pub mod process;
pub mod raw;
pub mod recorder;
pub mod register;
pub mod seed;
pub mod status;
pub mod trace;
pub mod wait;
pub mod workload;

pub use audit::Report;
pub use ballast::Ballast;
pub use cluster::{Cluster, Node};
pub use etcd::Etcd;
pub use failpoints::Deaths;
pub use load::Load;
pub use lone::Lone;
pub use network::{Network, Place, Traffic};
pub use process::{Daemon, Exit, once};
pub use raw::{RawConnection, RawSession};
pub use recorder::{Recorder, Verdict};
pub use register::Register;
pub use status::Status;
pub use workload::{Ledger, Workload, WorkloadConfig};
