//! Data folders as files: copies of them, and bytes that are flipped.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::Rng;
use rand::rngs::StdRng;

/// Copies a folder with all that is below it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Puts a copy of the folder `from` in the place of the folder `to`.
pub fn replace_folder(from: &Path, to: &Path) {
    fs::remove_dir_all(to).expect("a folder");
    copy_folder(from, to);
}

/// All files below a folder.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A byte of a file.
#[derive(Clone, Debug)]
pub struct Position {
    /// The file.
    pub file: PathBuf,
    /// The byte's offset.
    pub offset: usize,
}

impl Position {
    /// Flips a bit there, in a copy of the folder `of` that lies at `copy`.
    pub fn flip(&self, of: &Path, copy: &Path) {
        let file = copy.join(self.file.strip_prefix(of).expect("a file of the folder"));
        Self { file, offset: self.offset }.flip_in_place();
    }

    /// Flips a bit there.
    pub fn flip_in_place(&self) {
        let file = OpenOptions::new().read(true).write(true).open(&self.file).expect("a file");
        let (mut byte, offset) = ([0], self.offset as u64);
        file.read_exact_at(&mut byte, offset).expect("a byte");
        file.write_all_at(&[byte[0] ^ 1 << (offset % 8)], offset).expect("written");
    }
}

/// About `count` positions in the files below `folder`: 8 anywhere in each file, the others spread evenly
/// over the bytes that are not zero.
pub fn positions(folder: &Path, count: usize, random: &mut StdRng) -> Vec<Position> {
    let files: Vec<_> = files_below(folder)
        .into_iter()
        .map(|path| (fs::read(&path).expect("a file"), path))
        .filter(|(content, _)| !content.is_empty())
        .collect();
    let used: Vec<(&PathBuf, usize)> = files
        .iter()
        .flat_map(|(content, path)| {
            let bytes = content.iter().enumerate().filter(|(_, byte)| **byte != 0);
            bytes.map(move |(offset, _)| (path, offset))
        })
        .collect();
    let mut positions = Vec::new();
    for (content, file) in &files {
        for _ in 0..8 {
            let offset = random.random_range(0..content.len());
            positions.push(Position { file: file.clone(), offset });
        }
    }
    let left = count.saturating_sub(positions.len());
    for number in 0..left {
        let span = used.len() / left;
        let (file, offset) = used[number * span + random.random_range(0..span)];
        positions.push(Position { file: file.clone(), offset });
    }
    positions
}

/// What a flipped bit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flipped {
    /// The store is refused, with a message that names what is damaged.
    Named,
    /// All is there that was there before.
    Harmless,
    /// Anything else.
    Wrong,
}

/// Flips a bit at each position, each in a copy of the folder `data` of its own, and has the copy
/// judged: what it came to, and what was seen. Prints how many came to what, with examples.
///
/// # Panics
/// When one was wrong, or none was ever noticed.
#[track_caller]
pub fn flip_each(
    data: &Path,
    positions: &[Position],
    judge: impl Fn(&Path) -> (Flipped, String) + Sync,
) {
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<_, Vec<String>>::new()));
    let folder = tempfile::tempdir().expect("a folder");
    let work = |copy: &Path| {
        while let Some(position) = positions.get(next.fetch_add(1, Ordering::SeqCst)) {
            let _ = fs::remove_dir_all(copy);
            copy_folder(data, copy);
            position.flip(data, copy);
            let (flipped, text) = judge(copy);
            let text = format!("{} at {}: {text}", position.file.display(), position.offset);
            seen.lock().expect("no panic").entry(flipped).or_default().push(text);
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (work, copy) = (&work, folder.path().join(format!("copy {worker}")));
            scope.spawn(move || work(&copy));
        }
    });
    let seen = seen.into_inner().expect("no panic");
    for (flipped, texts) in &seen {
        println!("{flipped:?}: {} of {}", texts.len(), positions.len());
    }
    for named in seen.get(&Flipped::Named).into_iter().flatten().step_by(20) {
        println!("for example {}", named.trim());
    }
    let wrong = seen.get(&Flipped::Wrong).map_or(&[][..], Vec::as_slice);
    assert!(wrong.is_empty(), "{} positions:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen.contains_key(&Flipped::Named), "no flip was ever noticed");
}
