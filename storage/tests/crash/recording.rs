//! What a run did to its files, in order: written down by `record.c`, read back here.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::script::Script;
use crate::workload;

/// The file below the root that a run writes its lines to.
pub const LINES: &str = "lines";
/// The store's folder below the root.
pub const DATA: &str = "data";
/// The recorded root, as an object.
pub const ROOT: usize = 0;

/// A file or folder, whatever its name. Numbered as they were made.
pub type Object = usize;
/// A name in a folder.
pub type Place = (Object, String);

/// Something that was done, from event `begin` to event `end`.
#[derive(Debug)]
pub struct Operation {
    pub begin: usize,
    pub end: usize,
    pub action: Action,
}

#[derive(Debug)]
pub enum Action {
    /// Bytes of the record were written to a file.
    Write { file: Object, at: u64, bytes: Range<usize> },
    /// A file was cut, or made longer.
    Resize { file: Object, length: u64 },
    /// The barrier: `fsync` or `fdatasync` of a file or folder.
    Sync { object: Object },
    /// Names were changed.
    Names(Change),
    /// A line of the run.
    Line(String),
}

/// A change of names.
#[derive(Debug)]
pub enum Change {
    Made { place: Place, object: Object },
    Removed { place: Place, object: Object },
    Moved { from: Place, to: Place },
}

/// The operations of a run, in the order in which they began.
#[derive(Debug)]
pub struct Recording {
    pub script: Script,
    pub raw: Vec<u8>,
    pub operations: Vec<Operation>,
    /// One after the last event.
    pub events: usize,
    /// The files and folders.
    pub objects: Vec<Made>,
}

/// How a file or folder was made.
#[derive(Debug)]
pub struct Made {
    /// Its path below the root.
    pub path: PathBuf,
    pub is_folder: bool,
}

/// Compiles `record.c` into `folder`.
pub fn recorder(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/record.c");
    let library = folder.join("record.so");
    let compiled = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(compiled.expect("a C compiler, cc").success(), "cc compiles record.c");
    library
}

impl Recording {
    /// Has a process run the script below `folder`, and records it in `record`.
    pub fn of(seed: u64, steps: usize, recorder: &Path, folder: &Path, record: &Path) -> Self {
        let root = folder.join("root");
        fs::create_dir(&root).expect("a folder");
        let mut run = workload::process(seed, steps, &root.join(DATA), &root.join(LINES));
        run.env("LD_PRELOAD", recorder).env("CRASH_ROOT", &root).env("CRASH_RECORD", record);
        let output = run.output().expect("the run starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "run {seed} ended with {}: {said}", output.status);
        fs::write(record.with_extension("root"), root.as_os_str().as_encoded_bytes())
            .expect("a file");
        let recording = Self::read(record);
        recording.end().assert_is(&root);
        fs::remove_dir_all(&root).expect("the folder");
        recording
    }

    /// Reads a record.
    pub fn read(record: &Path) -> Self {
        let root = fs::read_to_string(record.with_extension("root")).expect("the run's root");
        let raw = fs::read(record).expect("a record");
        let mut reader = Reader::new(PathBuf::from(root));
        let mut at = 0;
        while at < raw.len() {
            at = reader.event(&raw, at);
        }
        let Reader { mut operations, events, names, paths, .. } = reader;
        operations.sort_by_key(|operation| operation.begin);
        let line = operations.iter().find_map(|operation| match &operation.action {
            Action::Line(line) => Some(line.clone()),
            _ => None,
        });
        let line = line.expect("the run says what it is");
        let numbers: Vec<_> =
            line.split(' ').skip(1).map(|n| n.parse().expect("a number")).collect();
        let script = Script::new(numbers[0], numbers[1] as usize);
        let made = paths.into_iter().zip(names);
        let objects = made.map(|(path, names)| Made { path, is_folder: names.is_some() }).collect();
        Self { script, raw, operations, events, objects }
    }
}

mod kind {
    pub const OPEN: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const TRUNCATE: u32 = 3;
    pub const SYNC: u32 = 4;
    pub const RENAME: u32 = 5;
    pub const REMOVE: u32 = 6;
    pub const MKDIR: u32 = 7;
    pub const END: u32 = 8;
}

const HEADER: usize = 24;
/// Flags of an open: the file is made, or emptied.
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;

/// An operation that has begun.
struct Begun {
    begin: usize,
    kind: u32,
    file: u32,
    at: u64,
    bytes: Range<usize>,
}

/// Takes events one by one, and knows what each name means at that time.
struct Reader {
    root: PathBuf,
    begun: HashMap<u32, Begun>,
    operations: Vec<Operation>,
    events: usize,
    /// By object: the names in a folder; none for a file.
    names: Vec<Option<BTreeMap<String, Object>>>,
    paths: Vec<PathBuf>,
    /// The files by their opening.
    openings: HashMap<u32, Object>,
}

impl Reader {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            begun: HashMap::new(),
            operations: Vec::new(),
            events: 0,
            names: vec![Some(BTreeMap::new())],
            paths: vec![PathBuf::new()],
            openings: HashMap::new(),
        }
    }

    /// Takes the event at `at` of the record; returns where the next one is.
    fn event(&mut self, raw: &[u8], at: usize) -> usize {
        let header: &[u8; HEADER] = raw[at..].first_chunk().expect("a whole event");
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let [kind, id, file, length] = [0, 4, 8, 12].map(word);
        let number = u64::from(word(16)) | u64::from(word(20)) << 32;
        let bytes = at + HEADER..at + HEADER + length as usize;
        let next = bytes.end;
        if kind == kind::END {
            let begun = self.begun.remove(&id).expect("an operation begins before it ends");
            self.ended(&begun, number.cast_signed(), raw);
        } else {
            self.begun.insert(id, Begun { begin: self.events, kind, file, at: number, bytes });
        }
        self.events += 1;
        next
    }

    /// What the operation has done, unless it failed.
    fn ended(&mut self, begun: &Begun, result: i64, raw: &[u8]) {
        let Ok(result) = usize::try_from(result) else { return };
        let text = || String::from_utf8_lossy(&raw[begun.bytes.clone()]).into_owned();
        let opened = |file: u32| self.openings[&file];
        match begun.kind {
            kind::OPEN => self.opened(begun, &text()),
            kind::WRITE => {
                let file = opened(begun.file);
                let bytes = begun.bytes.start..begun.bytes.start + result;
                if self.paths[file] == Path::new(LINES) {
                    self.add(begun, Action::Line(text().trim_end().to_owned()));
                } else {
                    self.add(begun, Action::Write { file, at: begun.at, bytes });
                }
            }
            kind::TRUNCATE => {
                let file = opened(begun.file);
                self.add(begun, Action::Resize { file, length: begun.at });
            }
            kind::SYNC => {
                let object = opened(begun.file);
                self.add(begun, Action::Sync { object });
            }
            kind::RENAME => {
                let both = text();
                let (from, to) = both.split_once('\0').expect("two paths");
                let (from, to) = (self.place(from), self.place(to));
                let object = self.names_in(from.0).remove(&from.1).expect("it was there");
                self.names_in(to.0).insert(to.1.clone(), object);
                self.add(begun, Action::Names(Change::Moved { from, to }));
            }
            kind::REMOVE => {
                let place = self.place(&text());
                let object = self.names_in(place.0).remove(&place.1).expect("it was there");
                self.add(begun, Action::Names(Change::Removed { place, object }));
            }
            kind::MKDIR => {
                let path = text();
                self.make(begun, &path, Some(BTreeMap::new()));
            }
            other => panic!("an event of kind {other}"),
        }
    }

    fn opened(&mut self, begun: &Begun, path: &str) {
        let object = match self.find(path) {
            Some(object) => {
                if begun.at & O_TRUNC != 0 {
                    self.add(begun, Action::Resize { file: object, length: 0 });
                }
                object
            }
            None if begun.at & O_CREAT != 0 => self.make(begun, path, None),
            None => panic!("{path} was opened, but not made"),
        };
        self.openings.insert(begun.file, object);
    }

    fn make(
        &mut self,
        begun: &Begun,
        path: &str,
        names: Option<BTreeMap<String, Object>>,
    ) -> Object {
        let place = self.place(path);
        let object = self.names.len();
        self.names.push(names);
        let path = Path::new(path).strip_prefix(&self.root).expect("below the root");
        self.paths.push(path.to_owned());
        self.names_in(place.0).insert(place.1.clone(), object);
        self.add(begun, Action::Names(Change::Made { place, object }));
        object
    }

    fn add(&mut self, begun: &Begun, action: Action) {
        self.operations.push(Operation { begin: begun.begin, end: self.events, action });
    }

    fn names_in(&mut self, folder: Object) -> &mut BTreeMap<String, Object> {
        self.names[folder].as_mut().expect("a folder")
    }

    fn find(&self, path: &str) -> Option<Object> {
        let path = Path::new(path).strip_prefix(&self.root).expect("below the root");
        path.iter().try_fold(ROOT, |folder, name| {
            self.names[folder].as_ref()?.get(&*name.to_string_lossy()).copied()
        })
    }

    /// The folder that `path` is in, and its name there.
    fn place(&self, path: &str) -> Place {
        let (folder, name) = path.rsplit_once('/').expect("a whole path");
        (self.find(folder).unwrap_or_else(|| panic!("the folder of {path}")), name.to_owned())
    }
}
