//! A cluster of etcd on this machine: real members, killed for real.

use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::binaries;
use crate::cluster::{BOUND, folder};
use crate::http;
use crate::port::free_address;
use crate::process::Daemon;
use crate::wait::wait_for;

/// Members `m1`, `m2`, ... of one cluster, on addresses that stay the same.
pub struct Etcd {
    members: Vec<Member>,
    folder: TempDir,
}

struct Member {
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    /// Its process, while it has one.
    daemon: Option<Daemon>,
}

impl Etcd {
    /// Starts a new cluster and waits until it has a leader.
    ///
    /// # Panics
    /// When it gets none.
    #[must_use]
    #[track_caller]
    pub fn start(members: usize) -> Self {
        let member = |number| Member {
            name: format!("m{number}"),
            client: free_address(),
            peer: free_address(),
            daemon: None,
        };
        let mut etcd = Self { members: (1..=members).map(member).collect(), folder: folder() };
        for place in 0..members {
            etcd.restart(place);
        }
        etcd.wait_leader();
        etcd
    }

    /// What nodes are given as `--authority`.
    #[must_use]
    pub fn address(&self) -> String {
        let clients: Vec<_> = self.members.iter().map(|it| it.client.to_string()).collect();
        format!("etcd://{}", clients.join(","))
    }

    /// Starts a member that does not run; waits for nothing.
    ///
    /// # Panics
    /// When it runs.
    pub fn restart(&mut self, place: usize) {
        let urls = |it: &Member| format!("{}=http://{}", it.name, it.peer);
        let all: Vec<_> = self.members.iter().map(urls).collect();
        let member = &mut self.members[place];
        assert!(member.daemon.is_none(), "{} runs", member.name);
        let (client, peer) =
            (format!("http://{}", member.client), format!("http://{}", member.peer));
        let mut command = Command::new(binaries::etcd());
        command.args(["--name", &member.name, "--data-dir"]);
        command.arg(self.folder.path().join(&member.name));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &all.join(",")]);
        command.args(["--logger", "zap", "--log-level", "warn"]);
        member.daemon = Some(Daemon::spawn(&member.name, command));
    }

    /// `kill -9`; nothing happens to a member that does not run.
    pub fn kill(&mut self, place: usize) {
        if let Some(mut daemon) = self.members[place].daemon.take() {
            daemon.kill();
        }
    }

    /// A member's process.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    pub fn daemon(&mut self, place: usize) -> &mut Daemon {
        self.members[place].daemon.as_mut().expect("it runs")
    }

    /// Waits until a running member is the leader of a majority; returns its place.
    ///
    /// # Panics
    /// When none is within [`BOUND`].
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "also called to wait")]
    pub fn wait_leader(&self) -> usize {
        wait_for("a leader of etcd", BOUND, || {
            let leads = |member: &Member| {
                let runs = member.daemon.as_ref().is_some_and(|daemon| !daemon.is_paused());
                runs && http::request("GET", member.client, "/health").is_ok()
                    && http::request("GET", member.client, "/metrics")
                        .is_ok_and(|page| page.contains("\netcd_server_is_leader 1\n"))
            };
            self.members.iter().position(leads).ok_or_else(|| "none".to_owned())
        })
    }
}
