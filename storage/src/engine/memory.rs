//! A disk in memory that fails like a real one, for tests and simulation.
//!
//! A [`MemoryDisk`] outlives the stores that are opened on it. [`MemoryDisk::crash`] decides, from
//! a seed, what becomes of everything that was not flushed: per database all of it is lost, a
//! prefix survives, or any subset of the row operations does; each unsynced slot of `head` is old,
//! new or torn. Stores that were open across the crash are cut off. Errors and flipped bits come on
//! command. The same seed does the same again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::{Engine, HeadFile, Row, Rows, Tree};
use crate::error::{Cause, EngineError, OpenError};
use crate::limits::SLOT_BYTES;
use crate::open::Disk;
use crate::snapshot::Site;

/// How many rows a scan copies at a time.
const SCAN_ROWS: usize = 32;
const SLOTS: usize = 3;

/// A small deterministic generator (splitmix64, Steele et al. 2014).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

type Key = (Tree, Bytes);

/// One database: what reads see, what is durable, and what lies between.
#[derive(Debug, Default)]
struct Database {
    visible: BTreeMap<Key, Bytes>,
    durable: BTreeMap<Key, Bytes>,
    unflushed: Vec<(Key, Option<Bytes>)>,
}

impl Database {
    fn write(&mut self, key: Key, value: Option<Bytes>) -> Option<Bytes> {
        let old = match value.clone() {
            Some(value) => self.visible.insert(key.clone(), value),
            None => self.visible.remove(&key),
        };
        self.unflushed.push((key, value));
        old
    }

    fn persist(&mut self, key: Key, value: Option<Bytes>) {
        match value {
            Some(value) => self.durable.insert(key, value),
            None => self.durable.remove(&key),
        };
    }

    fn flush(&mut self) {
        for (key, value) in std::mem::take(&mut self.unflushed) {
            self.persist(key, value);
        }
    }

    fn crash(&mut self, random: &mut Random) {
        let unflushed = std::mem::take(&mut self.unflushed);
        let kept = random.below(unflushed.len() + 1);
        match random.below(4) {
            0 => {}
            1 => {
                for (key, value) in unflushed {
                    self.persist(key, value);
                }
            }
            2 => {
                for (key, value) in unflushed.into_iter().take(kept) {
                    self.persist(key, value);
                }
            }
            _ => {
                for (key, value) in unflushed {
                    if random.below(2) == 0 {
                        self.persist(key, value);
                    }
                }
            }
        }
        self.visible = self.durable.clone();
    }
}

/// One of the two databases of a [`MemoryDisk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The log database.
    Log,
    /// The tables database.
    Tables,
}

#[derive(Debug, Default)]
struct Inner {
    log: Database,
    tables: Database,
    head: Vec<u8>,
    head_synced: Vec<u8>,
    /// Raised by each crash: stores opened before it are cut off.
    epoch: u64,
    /// Writes, flushes and syncs left until one fails, if one shall.
    fail_after: Option<u64>,
    writes: u64,
    /// A disk that a replacement is built on, and whether it is to take this one's place.
    incoming: Option<MemoryDisk>,
    accepted: bool,
}

impl Inner {
    fn database(&mut self, part: Part) -> &mut Database {
        match part {
            Part::Log => &mut self.log,
            Part::Tables => &mut self.tables,
        }
    }

    /// Counts a write, flush or sync, and fails when that was ordered.
    fn step(&mut self) -> Result<(), &'static str> {
        self.writes += 1;
        match &mut self.fail_after {
            Some(0) => Err("the disk fails as ordered"),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A handle to a disk in memory. Its clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    inner: Arc<Mutex<Inner>>,
}

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the disk was locked")
    }

    /// The parts of the disk, for [`open`](crate::open()). A replacement that was accepted takes
    /// its place first.
    ///
    /// # Panics
    /// If the replacement is still open.
    #[must_use]
    pub fn disk(&self) -> Disk {
        let epoch = {
            let inner = &mut *self.lock();
            let incoming = inner.incoming.take();
            if let Some(incoming) = incoming.filter(|_| inner.accepted) {
                let incoming = std::mem::take(&mut *incoming.lock());
                inner.log = incoming.log;
                inner.tables = incoming.tables;
                inner.head = incoming.head;
                inner.head_synced = incoming.head_synced;
            }
            inner.accepted = false;
            inner.epoch
        };
        let part = |part, place| Arc::new(MemoryEngine { disk: self.clone(), part, place, epoch });
        Disk {
            log: part(Part::Log, "memory log"),
            tables: part(Part::Tables, "memory tables"),
            head: Box::new(MemoryHead { disk: self.clone(), epoch }),
            site: Arc::new(MemorySite { disk: self.clone(), epoch }),
        }
    }

    /// Loses, tears or keeps what was not flushed, as `seed` decides, and cuts off every store
    /// that is open. Ordered failures end.
    pub fn crash(&self, seed: u64) {
        let mut random = Random(seed);
        let inner = &mut *self.lock();
        inner.log.crash(&mut random);
        inner.tables.crash(&mut random);
        crash_head(inner, &mut random);
        inner.epoch += 1;
        inner.fail_after = None;
        if let Some(incoming) = &inner.incoming {
            incoming.crash(random.next());
        }
    }

    /// Cuts off every store that is open, as when a process is killed: all that was written stays,
    /// flushed or not, and it is still not durable.
    pub fn kill(&self) {
        let inner = &mut *self.lock();
        inner.epoch += 1;
        inner.fail_after = None;
        if let Some(incoming) = &inner.incoming {
            incoming.kill();
        }
    }

    /// Lets `writes` more writes, flushes or syncs succeed; all later ones fail until a crash.
    pub fn fail_after(&self, writes: u64) {
        let inner = &mut *self.lock();
        inner.fail_after = Some(writes);
        if let Some(incoming) = &inner.incoming {
            incoming.fail_after(writes);
        }
    }

    /// How many writes, flushes and syncs were tried so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Flips one bit of a stored row's value, chosen by `seed`. False if there is no row.
    #[must_use]
    pub fn flip_bit(&self, part: Part, tree: Tree, seed: u64) -> bool {
        let mut random = Random(seed);
        let inner = &mut *self.lock();
        let database = inner.database(part);
        let keys: Vec<Key> = database
            .visible
            .iter()
            .filter(|((of, _), value)| *of == tree && !value.is_empty())
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return false;
        }
        let key = &keys[random.below(keys.len())];
        let mut value = database.visible[key].to_vec();
        let bit = random.below(8 * value.len());
        value[bit / 8] ^= 1 << (bit % 8);
        let value = Bytes::from(value);
        database.visible.insert(key.clone(), value.clone());
        database.durable.insert(key.clone(), value);
        true
    }

    /// Flips one bit of a slot of `head`, chosen by `seed`. False if the slot was never written.
    #[must_use]
    pub fn flip_head_bit(&self, slot: usize, seed: u64) -> bool {
        let inner = &mut *self.lock();
        if inner.head.len() < (slot + 1) * SLOT_BYTES {
            return false;
        }
        let bit = Random(seed).below(8 * SLOT_BYTES);
        let at = slot * SLOT_BYTES + bit / 8;
        inner.head[at] ^= 1 << (bit % 8);
        inner.head_synced = inner.head.clone();
        true
    }

    /// Silently loses a row, as a damaged database does. False if it is not there.
    #[must_use]
    pub fn lose(&self, part: Part, tree: Tree, key: &[u8]) -> bool {
        let inner = &mut *self.lock();
        let database = inner.database(part);
        let key = (tree, Bytes::copy_from_slice(key));
        database.durable.remove(&key);
        database.visible.remove(&key).is_some()
    }

    /// The keys of all rows of a tree, in order.
    #[must_use]
    pub fn keys(&self, part: Part, tree: Tree) -> Vec<Bytes> {
        let inner = &mut *self.lock();
        let rows = inner.database(part).visible.keys();
        rows.filter(|(of, _)| *of == tree).map(|(_, key)| key.clone()).collect()
    }
}

/// Each slot that differs from what was synced becomes the old one, the new one, or torn.
fn crash_head(inner: &mut Inner, random: &mut Random) {
    let mut synced = std::mem::take(&mut inner.head_synced);
    synced.resize(inner.head.len().max(synced.len()), 0);
    for slot in 0..synced.len() / SLOT_BYTES {
        let range = slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES;
        let (old, new) = (&mut synced[range.clone()], &inner.head[range]);
        let kept = match random.below(3) {
            0 => 0,
            1 => SLOT_BYTES,
            // Powers of two: most of a slot is zeros, and a tear in them would show nothing.
            _ => 1 << random.below(SLOT_BYTES.ilog2() as usize),
        };
        old[..kept].copy_from_slice(&new[..kept]);
    }
    inner.head.clone_from(&synced);
    inner.head_synced = synced;
}

#[derive(Debug)]
struct MemoryEngine {
    disk: MemoryDisk,
    part: Part,
    place: &'static str,
    epoch: u64,
}

impl MemoryEngine {
    fn error(&self, doing: &'static str, why: &'static str) -> EngineError {
        EngineError::new(self.place, doing, Cause::Other(why.to_owned()))
    }

    fn with<T>(
        &self,
        doing: &'static str,
        action: impl FnOnce(&mut Database) -> T,
    ) -> Result<T, EngineError> {
        let inner = &mut *self.disk.lock();
        if inner.epoch != self.epoch {
            return Err(self.error(doing, "the disk has crashed"));
        }
        Ok(action(inner.database(self.part)))
    }

    fn step(&self, doing: &'static str) -> Result<(), EngineError> {
        self.disk.lock().step().map_err(|why| self.error(doing, why))
    }

    fn batch(
        &self,
        tree: Tree,
        start: &Bytes,
        end: Option<&Bytes>,
    ) -> Result<Vec<Row>, EngineError> {
        self.with("scan rows", |database| {
            let rows = database.visible.range((tree, start.clone())..);
            rows.take_while(|((of, key), _)| *of == tree && end.is_none_or(|end| key < end))
                .take(SCAN_ROWS)
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .collect()
        })
    }
}

impl Engine for MemoryEngine {
    fn place(&self) -> &str {
        self.place
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let key = (tree, Bytes::copy_from_slice(key));
        self.with("read a row", |database| database.visible.get(&key).cloned())
    }

    fn scan(&self, tree: Tree, start: &[u8], end: Option<&[u8]>) -> Rows<'_> {
        let end = end.map(Bytes::copy_from_slice);
        let mut next = Some(Bytes::copy_from_slice(start));
        let mut batch = Vec::new().into_iter();
        Box::new(std::iter::from_fn(move || {
            if let Some(row) = batch.next() {
                return Some(Ok(row));
            }
            let start = next.take()?;
            let rows = match self.batch(tree, &start, end.as_ref()) {
                Ok(rows) => rows,
                Err(error) => return Some(Err(error)),
            };
            if rows.len() == SCAN_ROWS {
                // The least key after the last one.
                next = rows.last().map(|(key, _)| Bytes::from([&key[..], &[0]].concat()));
            }
            batch = rows.into_iter();
            batch.next().map(Ok)
        }))
    }

    fn last(&self, tree: Tree) -> Result<Option<Row>, EngineError> {
        self.with("read the last row", |database| {
            let rows = database.visible.iter().rev();
            rows.skip_while(|((of, _), _)| *of > tree)
                .take_while(|((of, _), _)| *of == tree)
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .next()
        })
    }

    fn insert(&self, tree: Tree, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let key = (tree, Bytes::copy_from_slice(key));
        let value = Bytes::copy_from_slice(value);
        self.step("write a row")?;
        self.with("write a row", |database| database.write(key, Some(value)))
    }

    fn remove(&self, tree: Tree, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let key = (tree, Bytes::copy_from_slice(key));
        self.step("remove a row")?;
        self.with("remove a row", |database| database.write(key, None))
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.step("flush")?;
        self.with("flush", Database::flush)
    }
}

#[derive(Debug)]
struct MemoryHead {
    disk: MemoryDisk,
    epoch: u64,
}

impl MemoryHead {
    fn with<T>(
        &self,
        doing: &'static str,
        action: impl FnOnce(&mut Inner) -> Result<T, &'static str>,
    ) -> Result<T, EngineError> {
        let inner = &mut *self.disk.lock();
        let result =
            if inner.epoch == self.epoch { action(inner) } else { Err("the disk has crashed") };
        result.map_err(|why| EngineError::new("memory head", doing, Cause::Other(why.to_owned())))
    }
}

impl HeadFile for MemoryHead {
    fn place(&self) -> &'static str {
        "memory head"
    }

    fn read(&mut self) -> Result<Vec<u8>, EngineError> {
        self.with("read it", |inner| Ok(inner.head.clone()))
    }

    fn write(&mut self, slot: usize, block: &[u8; SLOT_BYTES]) -> Result<(), EngineError> {
        self.with("write a slot", |inner| {
            inner.step()?;
            inner.head.resize(SLOTS * SLOT_BYTES, 0);
            inner.head[slot * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(block);
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.with("sync it", |inner| {
            inner.step()?;
            inner.head_synced = inner.head.clone();
            Ok(())
        })
    }
}

#[derive(Debug)]
struct MemorySite {
    disk: MemoryDisk,
    epoch: u64,
}

impl MemorySite {
    fn with<T>(
        &self,
        doing: &'static str,
        action: impl FnOnce(&mut Inner) -> T,
    ) -> Result<T, OpenError> {
        let inner = &mut *self.disk.lock();
        let crashed = (inner.epoch != self.epoch).then_some("the disk has crashed");
        match crashed.map_or_else(|| inner.step(), Err) {
            Ok(()) => Ok(action(inner)),
            Err(why) => {
                let cause = Cause::Other(why.to_owned());
                Err(EngineError::new("memory disk", doing, cause).into())
            }
        }
    }
}

impl Site for MemorySite {
    fn clear(&self) -> Result<Disk, OpenError> {
        let disk = MemoryDisk::new();
        self.with("begin a replacement", |inner| {
            disk.lock().fail_after = inner.fail_after;
            inner.incoming = Some(disk.clone());
        })?;
        Ok(disk.disk())
    }

    fn accept(&self) -> Result<(), OpenError> {
        {
            // The writes to the replacement were writes to this disk.
            let inner = &mut *self.disk.lock();
            let spent = inner.incoming.as_ref().map_or(0, MemoryDisk::writes);
            inner.fail_after = inner.fail_after.map(|left| left.saturating_sub(spent));
        }
        self.with("accept a replacement", |inner| inner.accepted = true)
    }
}
