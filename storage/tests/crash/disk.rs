//! What a disk may hold after a power failure, given what was written to it.
//!
//! The model takes from the kernel and the file system everything that POSIX and Linux do not
//! promise, and little of what file systems do beyond it:
//!
//! - What was written to a file is durable when an `fsync` or `fdatasync` of that file has
//!   *returned* that *began* after the write had returned; so is the file's length. Nothing else
//!   makes it durable: no sync of another file, and no time that passes.
//! - Every other write that had begun may have reached the disk, whole, in part or not at all, and
//!   whatever became of those before it. In part: up to a sector or to any byte, or some of its
//!   sectors of 512 bytes, or some of its blocks of 4 KiB. What did not reach the disk shows what was
//!   there before, or zeros if the file had become longer, which it may have without its data.
//! - A change of names (made, moved, removed) is durable when a folder that it touches was synced
//!   after it. Each other one has happened or not, whole; but those in one folder happened in their
//!   order, as the journal of every common file system has it: the first that did not happen ends
//!   those of its folder. Folders are independent of each other, and the sync of a folder does not
//!   make that folder's own name durable.
//!
//! Not in the model: disks that lie about a barrier, or that change what was durable before.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};

use crate::judge::Said;
use crate::recording::{Action, Change, DATA, Object, Operation, ROOT, Recording};

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// The barriers that a disk ignores: none, if it is to be trusted. By the path that a file or folder
/// was made under.
pub type Ignores = fn(&Path) -> bool;

/// A folder as a crash leaves it.
#[derive(Debug, Default)]
pub struct Image {
    folders: Vec<PathBuf>,
    files: Vec<(PathBuf, Vec<u8>)>,
    /// How many writes and changes of names no barrier had made durable.
    pub pending: usize,
    /// How many of them did not happen, or in part only.
    pub missing: usize,
}

/// How likely it is that what is pending does not happen, in percent.
#[derive(Clone, Copy, Debug)]
struct Mood {
    lost: u32,
    torn: u32,
}

/// Picks where a run is cut off: anywhere, close to a barrier, or close to a write.
pub fn cut(recording: &Recording, rng: &mut StdRng) -> usize {
    let is_wanted: fn(&Action) -> bool = match rng.random_range(0..3) {
        0 => return rng.random_range(0..=recording.events),
        1 => |action| matches!(action, Action::Sync { .. }),
        _ => |action| matches!(action, Action::Write { .. }),
    };
    let wanted = recording.operations.iter().filter(|operation| is_wanted(&operation.action));
    let operation = wanted.choose(rng).expect("a run writes and syncs");
    let event = if rng.random() { operation.begin } else { operation.end };
    (event + rng.random_range(0..3)).min(recording.events)
}

impl Recording {
    /// What the run had said before event `cut`.
    pub fn said(&self, cut: usize) -> Said {
        let mut said = Said::default();
        for operation in self.operations.iter().take_while(|operation| operation.begin < cut) {
            if let Action::Line(line) = &operation.action {
                said.hear(line);
            }
        }
        said
    }

    /// What the disk may hold when the power fails before event `cut`.
    pub fn crash(&self, cut: usize, ignores: Ignores, rng: &mut StdRng) -> Image {
        let begun = self.operations.iter().take_while(|operation| operation.begin < cut);
        let mut crash = Crash {
            recording: self,
            operations: begun.collect(),
            barriers: vec![0; self.objects.len()],
            mood: Mood {
                lost: *[0, 10, 30, 60, 100].choose(rng).expect("some"),
                torn: *[0, 50, 100].choose(rng).expect("some"),
            },
            image: Image::default(),
            rng,
        };
        for operation in &crash.operations {
            if let Action::Sync { object } = operation.action
                && operation.end < cut
                && !ignores(&self.objects[object].path)
            {
                let barrier = &mut crash.barriers[object];
                *barrier = operation.begin.max(*barrier);
            }
        }
        crash.image()
    }

    /// What the run left.
    pub fn end(&self) -> Image {
        let crash = Crash {
            recording: self,
            operations: self.operations.iter().collect(),
            barriers: vec![self.events; self.objects.len()],
            mood: Mood { lost: 0, torn: 0 },
            image: Image::default(),
            rng: &mut StdRng::seed_from_u64(0),
        };
        crash.image()
    }
}

struct Crash<'a> {
    recording: &'a Recording,
    /// Those that had begun.
    operations: Vec<&'a Operation>,
    /// By object: when the last barrier began that counts; what had ended by then is durable.
    barriers: Vec<usize>,
    mood: Mood,
    image: Image,
    rng: &'a mut StdRng,
}

impl Crash<'_> {
    fn image(mut self) -> Image {
        let names = self.names();
        let mut writes: BTreeMap<Object, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            if let Action::Write { file, .. } | Action::Resize { file, .. } = operation.action {
                writes.entry(file).or_default().push(operation);
            }
        }
        let mut left = vec![(ROOT, PathBuf::new())];
        while let Some((folder, path)) = left.pop() {
            for (name, object) in names.get(&folder).into_iter().flatten() {
                let path = path.join(name);
                if self.recording.objects[*object].is_folder {
                    left.push((*object, path.clone()));
                    self.image.folders.push(path);
                } else {
                    let content = self.content(writes.get(object).map_or(&[][..], Vec::as_slice));
                    self.image.files.push((path, content));
                }
            }
        }
        self.image
    }

    /// The names in each folder.
    fn names(&mut self) -> BTreeMap<Object, BTreeMap<String, Object>> {
        let changes = self.operations.iter().filter_map(|operation| {
            let Action::Names(change) = &operation.action else { return None };
            Some((operation.end, change, self.touched(change)))
        });
        let changes: Vec<_> = changes.collect();
        // What comes before a durable change in one of its folders is durable too.
        let mut durable = vec![false; changes.len()];
        let mut settled: HashSet<Object> = HashSet::new();
        for (number, (end, _, touched)) in changes.iter().enumerate().rev() {
            durable[number] = touched
                .iter()
                .any(|folder| *end < self.barriers[*folder] || settled.contains(folder));
            if durable[number] {
                settled.extend(touched);
            }
        }
        let mut names: BTreeMap<Object, BTreeMap<String, Object>> = BTreeMap::new();
        let mut ended: HashSet<Object> = HashSet::new();
        for ((_, change, touched), durable) in changes.iter().zip(durable) {
            self.image.pending += usize::from(!durable);
            let happens = durable
                || (!self.percent(self.mood.lost)
                    && touched.iter().all(|folder| !ended.contains(folder)));
            if !happens {
                self.image.missing += 1;
                ended.extend(touched);
                continue;
            }
            match change {
                Change::Made { place: (folder, name), object } => {
                    names.entry(*folder).or_default().insert(name.clone(), *object);
                }
                Change::Removed { place: (folder, name), .. } => {
                    names.entry(*folder).or_default().remove(name);
                }
                Change::Moved { from, to } => {
                    let object = names.entry(from.0).or_default().remove(&from.1);
                    let object = object.expect("what was done to the folder before has happened");
                    names.entry(to.0).or_default().insert(to.1.clone(), object);
                }
            }
        }
        names
    }

    /// A file's content after `writes`.
    fn content(&mut self, writes: &[&Operation]) -> Vec<u8> {
        let mut content = Vec::new();
        for operation in writes {
            match &operation.action {
                Action::Write { file, at, bytes } => {
                    let bytes = &self.recording.raw[bytes.clone()];
                    if operation.end < self.barriers[*file] {
                        put(&mut content, *at, bytes);
                    } else {
                        self.pending_write(&mut content, *at, bytes);
                    }
                }
                Action::Resize { file, length } => {
                    let durable = operation.end < self.barriers[*file];
                    if durable || !self.is_lost() {
                        content.resize(*length as usize, 0);
                    }
                }
                Action::Sync { .. } | Action::Names(_) | Action::Line(_) => {
                    unreachable!("it writes nothing")
                }
            }
        }
        content
    }

    fn pending_write(&mut self, content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
        let length = bytes.len() as u64;
        let lost = self.is_lost();
        if !lost && !self.percent(self.mood.torn) {
            put(content, at, bytes);
            return;
        }
        self.image.missing += usize::from(!lost);
        if self.rng.random() {
            let end = (at + length) as usize;
            content.resize(content.len().max(end), 0);
        }
        if lost {
            return;
        }
        let some = self.rng.random_range(0..length);
        match self.rng.random_range(0..5) {
            0 => put(content, at, &bytes[..some as usize]),
            1 | 2 => {
                let end = ((at + some) / SECTOR * SECTOR).max(at);
                put(content, at, &bytes[..(end - at) as usize]);
            }
            3 => self.pieces(content, at, bytes, SECTOR),
            _ => self.pieces(content, at, bytes, BLOCK),
        }
    }

    /// Writes some of the pieces of `bytes` that lie in different units of the disk: half of them, or
    /// all but a few.
    fn pieces(&mut self, content: &mut Vec<u8>, at: u64, bytes: &[u8], unit: u64) {
        let end = at + bytes.len() as u64;
        let units = (end.div_ceil(unit) - at / unit) as u32;
        let lost = if self.rng.random() { units.div_ceil(2) } else { 1 };
        let mut from = at;
        while from < end {
            let next = (from / unit * unit + unit).min(end);
            if !self.rng.random_ratio(lost, units) {
                put(content, from, &bytes[(from - at) as usize..(next - at) as usize]);
            }
            from = next;
        }
    }

    /// The folders that a change touches. Nothing is in a folder any more that is removed.
    fn touched(&self, change: &Change) -> Vec<Object> {
        match change {
            Change::Removed { place, object } if self.recording.objects[*object].is_folder => {
                vec![place.0, *object]
            }
            Change::Made { place, .. } | Change::Removed { place, .. } => vec![place.0],
            Change::Moved { from, to } => vec![from.0, to.0],
        }
    }

    fn is_lost(&mut self) -> bool {
        let lost = self.percent(self.mood.lost);
        self.image.pending += 1;
        self.image.missing += usize::from(lost);
        lost
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }
}

fn put(content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = at as usize;
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

impl Image {
    /// Writes it below `root`. Files are sparse: blocks of zeros are left out.
    pub fn write(&self, root: &Path) {
        for folder in &self.folders {
            fs::create_dir(root.join(folder)).expect("a new folder");
        }
        for (path, content) in &self.files {
            let file = File::create_new(root.join(path)).expect("a new file");
            file.set_len(content.len() as u64).expect("a longer file");
            for (number, block) in content.chunks(BLOCK as usize).enumerate() {
                if block != &ZEROS[..block.len()] {
                    file.write_all_at(block, number as u64 * BLOCK).expect("a written block");
                }
            }
        }
    }

    /// Asserts that it is exactly what is below `root`: nothing that was done went unrecorded.
    pub fn assert_is(&self, root: &Path) {
        let data = root.join(DATA);
        let mut left = vec![data.clone()];
        let (mut folders, mut files) = (vec![data], Vec::new());
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    left.push(path.clone());
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        let mut wanted: Vec<_> = self.folders.iter().map(|folder| root.join(folder)).collect();
        wanted.sort();
        folders.sort();
        assert_eq!(wanted, folders, "the recorded folders, and those that are there");
        let ours = |(path, content)| (root.join::<&PathBuf>(path), content);
        let ours: BTreeMap<_, &Vec<u8>> = self.files.iter().map(|(p, c)| ours((p, c))).collect();
        for path in &files {
            let content = fs::read(path).expect("a file");
            let recorded = ours.get(path).unwrap_or_else(|| panic!("{} is new", path.display()));
            assert!(content == **recorded, "{} is not as recorded", path.display());
        }
        assert_eq!(
            files.len(),
            ours.keys().filter(|path| path.starts_with(root.join(DATA))).count()
        );
    }
}
