//! The rows above the tables, in memory.
//!
//! Two ordered maps a table: `live` holds what was staged or committed since the last freeze, and
//! the frozen [`Generation`] what is being folded. A row keeps its versions by index: the newest is
//! what readers see, and the older ones are what it falls back to when records are cut. So a commit
//! only moves a mark, and a cut touches only the rows that it takes back.
//!
//! - A version at or below `settled` is never taken back: only the newest such one is kept.
//! - `touched` lists the rows written above `settled`, in order: what a cut takes back, and what a
//!   freeze carries over into the next live map.
//! - Bytes are counted an effect, whatever it overwrites: they bound what the maps hold, the
//!   buffers that their slices keep alive, and the log that an open would replay.

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::limits::OVERLAY_ROW_OVERHEAD;
use crate::record::{Effect, Index, Record, Table, View};

/// What a record made of a row: `None` is a deletion.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) index: Index,
    pub(crate) value: Option<Bytes>,
}

/// The versions of a row, by index: at most one a record.
#[derive(Clone, Debug)]
pub(crate) struct Versions {
    newest: Version,
    /// Ascending, all below `newest`.
    older: Vec<Version>,
}

impl Versions {
    fn push(&mut self, version: Version, settled: Index) {
        if self.newest.index == version.index {
            self.newest = version;
            return;
        }
        let old = std::mem::replace(&mut self.newest, version);
        debug_assert!(old.index < self.newest.index, "indexes only grow");
        if old.index <= settled {
            self.older.clear();
        } else {
            let settled_versions = self.older.partition_point(|older| older.index <= settled);
            self.older.drain(..settled_versions.saturating_sub(1));
        }
        if self.older.capacity() == 0 {
            self.older.reserve_exact(1);
        }
        self.older.push(old);
    }

    /// The newest version at or below `upto`.
    fn at(&self, upto: Index) -> Option<&Version> {
        if self.newest.index <= upto {
            return Some(&self.newest);
        }
        self.older.iter().rev().find(|older| older.index <= upto)
    }

    /// Takes back the versions above `after`; false if none is left.
    fn take_back(&mut self, after: Index) -> bool {
        while self.newest.index > after {
            match self.older.pop() {
                Some(older) => self.newest = older,
                None => return false,
            }
        }
        true
    }

    /// Only the versions above `after`, if there are any.
    fn above(&self, after: Index) -> Option<Self> {
        let older = self.older.iter().filter(|older| older.index > after).cloned().collect();
        (self.newest.index > after).then(|| Self { newest: self.newest.clone(), older })
    }
}

/// The rows of one table.
type Layer = BTreeMap<Bytes, Versions>;
type Layers = [Layer; Table::ALL.len()];

/// A row written above `settled`.
#[derive(Debug)]
struct Touched {
    index: Index,
    table: Table,
    key: Bytes,
    bytes: usize,
}

fn overlay_bytes(effect: &Effect) -> usize {
    effect.bytes() + OVERLAY_ROW_OVERHEAD
}

/// Committed rows on their way into the tables: those of the records after [`Self::after`], up to
/// and with [`Self::upto`]. Cloning it is cheap; the last clone to be dropped frees the rows, which
/// takes a while and is best done by the checkpoint thread.
#[derive(Clone, Debug)]
pub struct Generation {
    frozen: Arc<Frozen>,
}

/// A row of a generation: `None` is a deletion.
pub(crate) type GenerationRow<'a> = (Table, &'a Bytes, Option<&'a Bytes>);

#[derive(Debug)]
struct Frozen {
    after: Index,
    upto: Index,
    view: View,
    bytes: usize,
    /// Versions above `upto` belong to the live map and are ignored.
    layers: Layers,
}

impl Generation {
    /// The generation of `records`, which follow record `after`.
    pub(crate) fn of(after: Index, records: &[Arc<Record>]) -> Self {
        let mut overlay = Overlay::new(after);
        let mut view = View::ZERO;
        for record in records {
            for effect in record.entries.iter().flat_map(|entry| &entry.effects) {
                overlay.stage(record.index, effect);
            }
            overlay.settle(record.index);
            view = record.view;
        }
        overlay.freeze(after, view)
    }

    /// The index up to which the tables hold everything already.
    #[must_use]
    pub fn after(&self) -> Index {
        self.frozen.after
    }

    /// The index of the last record that is folded.
    #[must_use]
    pub fn upto(&self) -> Index {
        self.frozen.upto
    }

    /// The view of the record at [`Self::upto`].
    #[must_use]
    pub fn view(&self) -> View {
        self.frozen.view
    }

    /// Its size as [`State::overlay_bytes`](crate::State::overlay_bytes) counts it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frozen.bytes
    }

    /// The rows, in the order of tables and keys, each in its state as of [`Self::upto`].
    pub(crate) fn all_rows(&self) -> impl Iterator<Item = GenerationRow<'_>> {
        Table::ALL.into_iter().flat_map(move |table| {
            self.frozen.layers[table.slot()].iter().filter_map(move |(key, versions)| {
                let version = versions.at(self.frozen.upto)?;
                Some((table, key, version.value.as_ref()))
            })
        })
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    live: Layers,
    live_bytes: usize,
    touched: VecDeque<Touched>,
    touched_bytes: usize,
    settled: Index,
    folding: Option<Generation>,
}

impl Overlay {
    /// An overlay above tables that hold everything up to `settled`.
    pub(crate) fn new(settled: Index) -> Self {
        Self { settled, ..Self::default() }
    }

    /// Writes a row on top.
    pub(crate) fn stage(&mut self, index: Index, effect: &Effect) {
        let bytes = overlay_bytes(effect);
        let version = Version { index, value: effect.value.clone() };
        match self.live[effect.table.slot()].entry(effect.key.clone()) {
            btree_map::Entry::Occupied(mut versions) => {
                versions.get_mut().push(version, self.settled);
            }
            btree_map::Entry::Vacant(row) => {
                row.insert(Versions { newest: version, older: Vec::new() });
            }
        }
        let key = effect.key.clone();
        self.touched.push_back(Touched { index, table: effect.table, key, bytes });
        self.live_bytes += bytes;
        self.touched_bytes += bytes;
    }

    /// Takes back everything above `after`.
    pub(crate) fn take_back(&mut self, after: Index) {
        assert!(after >= self.settled, "{after} is cut though {} is settled", self.settled);
        while self.touched.back().is_some_and(|touched| touched.index > after) {
            let touched = self.touched.pop_back().expect("just seen");
            self.live_bytes -= touched.bytes;
            self.touched_bytes -= touched.bytes;
            let layer = &mut self.live[touched.table.slot()];
            // A row that the record wrote twice is taken back once.
            if layer.get_mut(&touched.key).is_some_and(|versions| !versions.take_back(after)) {
                layer.remove(&touched.key);
            }
        }
    }

    /// Records up to `index` will never be taken back.
    pub(crate) fn settle(&mut self, index: Index) {
        assert!(index >= self.settled, "{index} settles after {}", self.settled);
        self.settled = index;
        while self.touched.front().is_some_and(|touched| touched.index <= index) {
            let touched = self.touched.pop_front().expect("just seen");
            self.touched_bytes -= touched.bytes;
        }
    }

    /// Makes everything settled after `after` a generation. Costs what is not settled.
    pub(crate) fn freeze(&mut self, after: Index, view: View) -> Generation {
        assert!(self.folding.is_none(), "one generation is folded at a time");
        let layers = std::mem::take(&mut self.live);
        for Touched { table, key, .. } in &self.touched {
            let live = &mut self.live[table.slot()];
            if !live.contains_key(key)
                && let Some(above) = layers[table.slot()][key].above(self.settled)
            {
                live.insert(key.clone(), above);
            }
        }
        let bytes = self.live_bytes - self.touched_bytes;
        self.live_bytes = self.touched_bytes;
        let upto = self.settled;
        let generation =
            Generation { frozen: Arc::new(Frozen { after, upto, view, bytes, layers }) };
        self.folding = Some(generation.clone());
        generation
    }

    /// The tables hold the frozen generation.
    pub(crate) fn unfreeze(&mut self) -> Option<Generation> {
        self.folding.take()
    }

    /// The generation that is being folded.
    pub(crate) fn folding(&self) -> Option<&Generation> {
        self.folding.as_ref()
    }

    /// Bytes of everything here.
    pub(crate) fn bytes(&self) -> usize {
        self.live_bytes + self.folding.as_ref().map_or(0, Generation::bytes)
    }

    /// Bytes that a freeze would take.
    pub(crate) fn settled_bytes(&self) -> usize {
        self.live_bytes - self.touched_bytes
    }

    /// The newest version of a row, unless only the tables know it.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Option<&Version> {
        if let Some(versions) = self.live[table.slot()].get(key) {
            return Some(&versions.newest);
        }
        let frozen = &self.folding.as_ref()?.frozen;
        frozen.layers[table.slot()].get(key)?.at(frozen.upto)
    }

    /// The newest versions of the rows from `start` on, up to but without `end`.
    pub(crate) fn range(&self, table: Table, start: &[u8], end: Option<&[u8]>) -> Range<'_> {
        let mut range = Range { live: None, folding: None, upto: Index::ZERO };
        if end.is_some_and(|end| end <= start) {
            return range;
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        range.live = Some(self.live[table.slot()].range::<[u8], _>(bounds).peekable());
        if let Some(Generation { frozen }) = &self.folding {
            let layer = &frozen.layers[table.slot()];
            range.folding = Some(layer.range::<[u8], _>(bounds).peekable());
            range.upto = frozen.upto;
        }
        range
    }
}

type LayerRange<'a> = std::iter::Peekable<btree_map::Range<'a, Bytes, Versions>>;

/// Rows of the overlay, merged in key order.
pub(crate) struct Range<'a> {
    live: Option<LayerRange<'a>>,
    folding: Option<LayerRange<'a>>,
    upto: Index,
}

impl<'a> Range<'a> {
    fn next_folding(&mut self) -> Option<(&'a Bytes, &'a Version)> {
        let (key, versions) = self.folding.as_mut()?.next()?;
        Some((key, versions.at(self.upto)?))
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a Bytes, &'a Version);

    fn next(&mut self) -> Option<Self::Item> {
        let upto = self.upto;
        if let Some(folding) = &mut self.folding {
            // Rows that were new when the generation was frozen are not part of it.
            while folding.next_if(|(_, versions)| versions.at(upto).is_none()).is_some() {}
        }
        let live = self.live.as_mut().and_then(|live| live.peek()).map(|(key, _)| *key);
        let folding = self.folding.as_mut().and_then(|rows| rows.peek()).map(|(key, _)| *key);
        match (live, folding) {
            (None, _) => self.next_folding(),
            (Some(live), Some(folding)) if folding < live => self.next_folding(),
            (Some(live), folding) => {
                if folding == Some(live) {
                    self.next_folding();
                }
                self.live.as_mut()?.next().map(|(key, versions)| (key, &versions.newest))
            }
        }
    }
}
