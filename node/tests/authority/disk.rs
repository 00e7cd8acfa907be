//! The embedded authority on disks that fail, are full, are damaged, or are taken.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use onlyonce_node::authority::{Authority, Swap};
use onlyonce_wire::authority::Revision;
use tempfile::TempDir;

use super::server::{Server, answers, wait_for};
use super::{register, swapped};

/// Makes call number `number` of `call` fail with `error` in a running process, and later ones too.
async fn inject(server: &Server, call: &str, error: &str, number: usize) -> Child {
    let said = server.folder().join("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", &format!("trace={call}"), "-o", "/dev/null"]);
    strace.args(["-e", &format!("inject={call}:error={error}:when={number}+")]);
    strace.args(["-p", &server.pid().as_raw_nonzero().to_string()]);
    strace.stdin(Stdio::null()).stdout(Stdio::null());
    strace.stderr(std::fs::File::create(&said).expect("a file"));
    let strace = strace.spawn().expect("strace");
    wait_for("strace to be attached", async || {
        std::fs::read_to_string(&said).ok().filter(|text| text.contains("attached"))
    })
    .await;
    strace
}

/// A write or a barrier that fails ends the process: the swap is unknown, and a restart finds the
/// register before it or after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_stops_it() {
    for (call, error, number) in [
        ("pwrite64", "ENOSPC", 1),
        ("pwrite64", "EIO", 2),
        ("fdatasync", "ENOSPC", 1),
        ("fdatasync", "EIO", 2),
    ] {
        let mut server = Server::embedded();
        let authority = server.embedded_client();
        answers(&authority).await;
        let before = swapped(&authority, Revision(0), register(1, 1)).await;
        let mut strace = inject(&server, call, error, number).await;
        let swap = authority.compare_and_swap(before, register(2, 2)).await;
        assert!(matches!(swap, Swap::Unknown(_)), "{call} {number}: {swap:?}");
        assert_eq!(server.ended().await.code(), Some(1), "{call} {number}");
        assert!(server.log().contains("writing the register failed"), "{}", server.log());
        strace.wait().expect("strace ends with what it watches");
        server.start();
        answers(&authority).await;
        let now = authority.read().await.expect("a read");
        let is_old = now.revision == before && now.register == Some(register(1, 1));
        let is_new = now.revision > before && now.register == Some(register(2, 2));
        assert!(is_old || is_new, "{call} {number}: {now:?}");
        swapped(&authority, now.revision, register(3, 3)).await;
    }
}

/// A small file system, mounted at a folder until it is dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", text(folder.path())]);
        Self(folder)
    }

    fn fill(&self) {
        let path = self.0.path().join("ballast");
        let written = std::fs::write(path, vec![1; 128 << 10]);
        assert!(written.is_err(), "the disk takes more than its size");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", text(self.0.path())]).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("it runs");
    assert!(status.success(), "{program} {arguments:?}: {status} (as root?)");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have readable names")
}

/// A full disk stops no swap, as a register has its place; a new one is refused, and leaves nothing
/// that would be in the way once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_swaps_and_no_new_register() {
    let disk = SmallDisk::new();
    let mut old = Server::embedded_in(TempDir::new_in(disk.0.path()).expect("a folder"));
    let authority = old.embedded_client();
    answers(&authority).await;
    let folder = TempDir::new_in(disk.0.path()).expect("a folder");
    disk.fill();
    let mut revision = Revision(0);
    for view in 1..=3 {
        revision = swapped(&authority, revision, register(view, 1)).await;
    }
    old.kill();
    old.start();
    answers(&authority).await;
    assert_eq!(authority.read().await.expect("a read").revision, revision);

    let data = folder.path().join("data");
    let refused = authority_on(&data);
    assert!(refused.contains("No space left") && refused.contains("free space"), "{refused}");
    std::fs::remove_file(disk.0.path().join("ballast")).expect("removed");
    let new = Server::embedded_in(folder);
    answers(&new.embedded_client()).await;
}

/// Runs an authority that is to be refused; returns what it said.
fn authority_on(data: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onced"));
    let output = command.args(["authority", "--data", text(data), "--listen", "127.0.0.1:0"]);
    let output = output.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// A folder that is in use, and a register of which both copies are damaged, are refused; nothing
/// is changed by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_taken_or_damaged_folder_is_refused() {
    let mut server = Server::embedded();
    let authority = server.embedded_client();
    answers(&authority).await;
    let revision = swapped(&authority, Revision(0), register(1, 1)).await;
    let data = server.folder().join("data");
    let refused = authority_on(&data);
    assert!(refused.contains("in use by another process"), "{refused}");
    assert_eq!(authority.read().await.expect("a read").revision, revision);

    server.kill();
    let file = data.join("register");
    let good = std::fs::read(&file).expect("the register");
    let mut bad = good.clone();
    let (first, second) = bad.split_at_mut(good.len() / 2);
    (first[20], second[30]) = (!first[20], !second[30]);
    std::fs::write(&file, &bad).expect("damaged");
    let refused = authority_on(&data);
    assert!(refused.contains("both copies") && refused.contains("put the file"), "{refused}");
    assert_eq!(std::fs::read(&file).expect("the register"), bad, "it is left as it was");

    std::fs::write(&file, &good).expect("put back");
    server.start();
    answers(&authority).await;
    assert_eq!(authority.read().await.expect("a read").revision, revision);
}
