//! Images of an ext4 file system that a run was writing to, mounted again.
//!
//! The run's file system lies in a file (a loop device) of another ext4 file system. That outer one
//! is frozen for the copy: what the kernel had written to the run's disk by then is all in the image,
//! and nothing later; what it had not written, data and journal alike, is lost. So this is a machine
//! that stops between two requests to a disk without a volatile cache, with the kernel's own choice
//! of what was written: the counterpart to the permuted states, which know no file system. (Freezing
//! the run's own file system instead would write everything out, and could find nothing.)
//!
//! Whatever a test mounts goes with it, also when it fails.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::judge::{Found, Said, Verdict, judge};
use crate::recording::{DATA, LINES};
use crate::script::Script;
use crate::{search, workload};

const OUTER_BYTES: u64 = 640 << 20;
const INNER_BYTES: u64 = 448 << 20;
/// How long anything here may take, with a large allowance.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk that a run writes to, and that can be copied at any moment.
pub struct Disk {
    script: Script,
    // In the order in which they must end.
    run: Run,
    _inner: Mount,
    outer: Mount,
    folder: tempfile::TempDir,
}

impl Disk {
    /// Starts the run of a script on a disk of its own; `prepare` may change the process.
    pub fn start(script: Script, prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        let folder = search::memory_folder();
        let outer = Mount::new(&format(&folder.path().join("outer.img"), OUTER_BYTES));
        let inner = Mount::new(&format(&outer.folder.join("inner.img"), INNER_BYTES));
        let lines = folder.path().join(LINES);
        let data = inner.folder.join(DATA);
        let mut process = workload::process(script.seed, script.steps.len(), &data, &lines);
        process.stdout(Stdio::null());
        prepare(&mut process, folder.path());
        let run = Run(process.spawn().expect("the run starts"));
        Self { script, run, _inner: inner, outer, folder }
    }

    /// Waits for `steps` more steps, copies the disk in the middle of whatever goes on, and judges
    /// the store on the copy. The run cannot go on before that is done.
    pub fn crash_after(&mut self, steps: usize) -> (Said, Verdict<Found>) {
        let wanted = self.said().begun + steps;
        let patience = Instant::now() + PATIENCE;
        while self.said().begun < wanted {
            let ended = self.run.0.try_wait().expect("a child");
            assert!(ended.is_none(), "the run ended with {ended:?}, {:?}", self.said());
            assert!(Instant::now() < patience, "the run hangs at {:?}", self.said());
            thread::sleep(Duration::from_micros(200));
        }
        let frozen = Frozen::new(&self.outer.folder);
        // All that it says by now rests on what is in the image.
        let said = self.said();
        let image = self.folder.path().join("copy.img");
        command(
            "cp",
            &[Path::new("--sparse=always"), &self.outer.folder.join("inner.img"), &image],
        );
        let copy = Mount::new(&image);
        let verdict = judge(&self.script, said, &copy.folder.join(DATA));
        drop(copy);
        drop(frozen);
        fs::remove_file(&image).expect("the copy");
        (said, verdict)
    }

    /// What the run has said.
    fn said(&self) -> Said {
        let mut said = Said::default();
        let text = fs::read_to_string(self.folder.path().join(LINES)).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().for_each(|line| said.hear(line));
        said
    }
}

/// Makes a file with an empty file system.
fn format(image: &Path, bytes: u64) -> PathBuf {
    let file = fs::File::create_new(image).expect("a new file");
    file.set_len(bytes).expect("a sparse file");
    command("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), image]);
    image.to_owned()
}

/// Runs a command, which must succeed.
fn command(name: &str, arguments: &[&Path]) {
    let output = Command::new(name).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{name} (see scripts/verify): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}, which needs root: {said}");
}

/// A process, which ends with its owner.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file system that does not change.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(folder: &'a Path) -> Self {
        command("fsfreeze", &[Path::new("--freeze"), folder]);
        Self(folder)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status();
    }
}

/// A mounted image.
struct Mount {
    folder: PathBuf,
}

impl Mount {
    fn new(image: &Path) -> Self {
        let folder =
            tempfile::Builder::new().prefix("mounted-").tempdir().expect("a folder").keep();
        let mount = Self { folder };
        let options = [Path::new("-o"), Path::new("loop,noatime"), image, &mount.folder];
        command("mount", &options);
        mount
    }

    /// A database that was just closed may hold its files a little longer.
    fn unmount(&self) -> io::Result<()> {
        let patience = Instant::now() + PATIENCE;
        while let Err(said) = self.try_unmount()? {
            if !said.contains("busy") || Instant::now() > patience {
                return Err(io::Error::other(said));
            }
            thread::sleep(Duration::from_millis(5));
        }
        fs::remove_dir(&self.folder)
    }

    /// Unmounts it, or returns what was said against it.
    fn try_unmount(&self) -> io::Result<Result<(), String>> {
        let output = Command::new("umount").arg(&self.folder).output()?;
        let said = || String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(output.status.success().then_some(()).ok_or_else(said))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{} stays mounted until it is free: {error}", self.folder.display());
            let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
        }
    }
}
