//! Data folders as files: copies of them, and bytes that are flipped.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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

/// A place in a file.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The byte's offset.
    pub offset: usize,
}

impl Place {
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

/// About `count` places in the files below `folder`: 8 anywhere in each file, the others spread evenly
/// over the bytes that are not zero.
pub fn places(folder: &Path, count: usize, random: &mut StdRng) -> Vec<Place> {
    let files: Vec<_> = files_below(folder)
        .into_iter()
        .map(|path| (fs::read(&path).expect("a file"), path))
        .filter(|(content, _)| !content.is_empty())
        .collect();
    let used: Vec<(&PathBuf, usize)> = files
        .iter()
        .flat_map(|(content, path)| {
            let places = content.iter().enumerate().filter(|(_, byte)| **byte != 0);
            places.map(move |(offset, _)| (path, offset))
        })
        .collect();
    let mut places = Vec::new();
    for (content, file) in &files {
        for _ in 0..8 {
            let offset = random.random_range(0..content.len());
            places.push(Place { file: file.clone(), offset });
        }
    }
    let left = count.saturating_sub(places.len());
    for number in 0..left {
        let span = used.len() / left;
        let (file, offset) = used[number * span + random.random_range(0..span)];
        places.push(Place { file: file.clone(), offset });
    }
    places
}
