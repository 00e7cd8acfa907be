//! `head`: what must be true of the store before its databases are looked at.
//!
//! Three slots in blocks of their own, each with a checksum; the valid slot with the highest
//! generation counts. Slots 0 and 1 take turns and are synced, so one of them is always whole.
//! Slot 2 is written without a sync after every flush of the log (and after every synced slot, as
//! its copy): a kill of the process keeps it, a power failure may lose or tear it.
//!
//! ```text
//! 0  magic "oncehead" │ 8 crc u32 of all that follows │ 12 format u32 │ 16 generation u64 │
//! 24 store id u128 │ 40 first u64 │ 48 last index u64 │ 56 last view u64 │ 64 last chain u32 │
//! 68 cutting u32 │ 72 length of state u32 │ 76 state │ zeros to 4096
//! ```

use bytes::Bytes;

use crate::engine::HeadFile;
use crate::error::{EngineError, OpenError};
use crate::failpoints::{Point, failpoint};
use crate::limits::{FORMAT, SLOT_BYTES, STATE_BYTES_MAX};
use crate::record::{Index, Mark, View};

const MAGIC: [u8; 8] = *b"oncehead";
const STATE_AT: usize = 76;
/// The slot that is written without a sync.
const UNSYNCED: usize = 2;

/// The content of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) generation: u64,
    pub(crate) store_id: u128,
    /// The first record that the log must have; rows before it are being removed.
    pub(crate) first: Index,
    /// The last record that is known to be durable.
    pub(crate) last: Mark,
    /// A cut to `last` has begun: whatever the log holds beyond it is to be removed.
    pub(crate) cutting: bool,
    /// The opaque state of the replication.
    pub(crate) state: Bytes,
}

impl Slot {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        assert!(self.state.len() <= STATE_BYTES_MAX, "the state is over its limit");
        let mut block = [0; SLOT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(12, &FORMAT.to_le_bytes());
        put(16, &self.generation.to_le_bytes());
        put(24, &self.store_id.to_le_bytes());
        put(40, &self.first.0.to_le_bytes());
        put(48, &self.last.index.0.to_le_bytes());
        put(56, &self.last.view.0.to_le_bytes());
        put(64, &self.last.chain.to_le_bytes());
        put(68, &u32::from(self.cutting).to_le_bytes());
        put(72, &u32::try_from(self.state.len()).expect("within its limit").to_le_bytes());
        put(STATE_AT, &self.state);
        let crc = crc32fast::hash(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// The slot in `block`; `Err` holds the format of a whole slot of another version.
    fn decode(block: &[u8]) -> Result<Option<Self>, u32> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let whole = block[..8] == MAGIC && u32_at(8) == crc32fast::hash(&block[12..]);
        if !whole {
            return Ok(None);
        }
        if u32_at(12) != FORMAT {
            return Err(u32_at(12));
        }
        let length = u32_at(72) as usize;
        if length > STATE_BYTES_MAX {
            return Ok(None);
        }
        Ok(Some(Self {
            generation: u64_at(16),
            store_id: u128::from(u64_at(24)) | u128::from(u64_at(32)) << 64,
            first: Index(u64_at(40)),
            last: Mark { index: Index(u64_at(48)), view: View(u64_at(56)), chain: u32_at(64) },
            cutting: u32_at(68) != 0,
            state: Bytes::copy_from_slice(&block[STATE_AT..STATE_AT + length]),
        }))
    }
}

/// What was found in a head file.
pub(crate) enum Found {
    /// A head.
    Head(Head),
    /// Nothing, or no more than a first write that was cut short.
    Nothing(Box<dyn HeadFile>),
    /// Something, but no valid slot.
    NoValidSlot(Box<dyn HeadFile>),
}

/// The head of an open store.
#[derive(Debug)]
pub(crate) struct Head {
    file: Box<dyn HeadFile>,
    slot: Slot,
    /// Which of the synced slots is written next: never the newer one.
    next: usize,
    /// Whether `slot` has gone no further than the unsynced slot.
    ahead: bool,
}

impl Head {
    /// Reads the file.
    pub(crate) fn read(mut file: Box<dyn HeadFile>) -> Result<Found, OpenError> {
        let mut content = file.read()?;
        content.resize(3 * SLOT_BYTES, 0);
        let mut slots: [Option<Slot>; 3] = [None, None, None];
        for (slot, block) in slots.iter_mut().zip(content.chunks_exact(SLOT_BYTES)) {
            *slot = Slot::decode(block).map_err(|format| OpenError::Format {
                place: file.place().to_owned(),
                found: format!("format {format}"),
                wanted: format!("format {FORMAT}"),
            })?;
        }
        let generation = |slot: &Option<Slot>| slot.as_ref().map(|slot| slot.generation);
        let next = usize::from(generation(&slots[0]) > generation(&slots[1]));
        for (number, slot) in slots.iter().enumerate() {
            let block = &content[number * SLOT_BYTES..][..SLOT_BYTES];
            if slot.is_none() && block.iter().any(|byte| *byte != 0) {
                tracing::warn!(
                    file = file.place(),
                    slot = number,
                    "a slot of head is damaged or torn"
                );
            }
        }
        let newest = slots.into_iter().flatten().max_by_key(|slot| slot.generation);
        Ok(match newest {
            Some(slot) => Found::Head(Self { file, slot, next, ahead: true }),
            // A new head is written slot 0 first, and synced before the next slot is.
            None if content[SLOT_BYTES..].iter().all(|byte| *byte == 0) => Found::Nothing(file),
            None => Found::NoValidSlot(file),
        })
    }

    /// Writes the head of a new store, durably, into both synced slots. Its log begins after
    /// `applied`.
    pub(crate) fn create(
        file: Box<dyn HeadFile>,
        store_id: u128,
        applied: Mark,
        state: Bytes,
    ) -> Result<Self, EngineError> {
        let slot = Slot {
            generation: 0,
            store_id,
            first: applied.index.next(),
            last: applied,
            cutting: false,
            state,
        };
        let mut head = Self { file, slot, next: 0, ahead: true };
        head.write(|_| {})?;
        head.write(|_| {})?;
        Ok(head)
    }

    /// The newest content.
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Whether a synced slot would say more than the last one does.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// Changes the head durably.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut Slot)) -> Result<(), EngineError> {
        change(&mut self.slot);
        self.slot.generation += 1;
        failpoint(Point::HeadBegin);
        self.file.write(self.next, &self.slot.encode())?;
        failpoint(Point::HeadWritten);
        self.file.sync()?;
        failpoint(Point::HeadSynced);
        self.next = 1 - self.next;
        self.ahead = false;
        // A copy, so that a later flipped bit in the slot just written loses nothing.
        self.write_copy()?;
        failpoint(Point::HeadEnd);
        Ok(())
    }

    /// Changes the head without a sync.
    pub(crate) fn write_unsynced(&mut self, last: Mark) -> Result<(), EngineError> {
        self.slot.last = last;
        self.ahead = true;
        self.write_copy()
    }

    fn write_copy(&mut self) -> Result<(), EngineError> {
        self.slot.generation += 1;
        self.file.write(UNSYNCED, &self.slot.encode())
    }
}
