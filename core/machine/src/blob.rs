//! Writes flattened device trees (Devicetree Specification 0.4, section 5).
//!
//! The format can be written front to back into one buffer, with the strings block collected beside it. Building a model
//! of the tree first, with maps of nodes and properties, costs some hundred thousand instructions a guest, a good part of
//! all that happens between reset and the guest's first instruction; this costs a tenth.
//!
//! A tree is written at every start of a VM, when other guests may have used up the heap. Only [`Writer::put`]
//! allocates, and it notes a failure; the rest of the tree is then left out, and [`Writer::finish`] says so.

use alloc::vec::Vec;
use arrayvec::ArrayVec;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const OLDEST_COMPATIBLE_VERSION: u32 = 16;
const HEADER_SIZE: usize = 40;
/// One entry of zeros: the end of the memory reservation block, which is empty.
const RESERVATIONS_SIZE: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// The most names that properties have; there are forty.
const NAMES: usize = 64;

/// There is no memory for the tree, or it has more names than there is room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoRoom;

/// A tree that is being written.
pub(crate) struct Writer {
    /// Header, reservations and structure block.
    bytes: Vec<u8>,
    /// The names of properties, each once, with their offsets in the strings block.
    names: ArrayVec<(&'static str, u32), NAMES>,
    /// The length of that block.
    names_length: u32,
    /// Something did not fit, and nothing has been written since.
    is_cut: bool,
}

impl Writer {
    /// A tree with nothing in it, and memory for about `capacity` bytes. Nodes and properties follow in their order, a
    /// node's properties before its children.
    pub(crate) fn new(capacity: usize) -> Self {
        let mut bytes = Vec::new();
        // If there is no memory, the first byte finds that out.
        let _ = bytes.try_reserve_exact(capacity);
        let mut writer = Self { bytes, names: ArrayVec::new(), names_length: 0, is_cut: false };
        writer.put(&[0; HEADER_SIZE + RESERVATIONS_SIZE]);
        writer
    }

    /// A node called `name`, with what `fill` writes into it.
    pub(crate) fn node(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.begin(name);
        fill(self);
        self.word(END_NODE);
    }

    // What each node and each property calls is not inlined: there are some hundred of them, and no hurry.
    #[inline(never)]
    fn begin(&mut self, name: &str) {
        self.word(BEGIN_NODE);
        self.put(name.as_bytes());
        self.put(&[0]);
        self.align();
    }

    /// A property of the current node.
    #[inline(never)]
    pub(crate) fn property(&mut self, name: &'static str, value: &[u8]) {
        self.begin_property(name, value.len() as u32);
        self.put(value);
        self.align();
    }

    /// What stands before a property's value, which has so many bytes. In one piece: there are a hundred of these at each start.
    fn begin_property(&mut self, name: &'static str, length: u32) {
        let words = [PROPERTY, length, self.string(name)].map(u32::to_be_bytes);
        self.put(words.as_flattened());
    }

    /// A property whose value is a list of cells.
    pub(crate) fn cells<const N: usize>(&mut self, name: &'static str, cells: [u32; N]) {
        self.property(name, cells.map(u32::to_be_bytes).as_flattened());
    }

    /// A property whose value is a list of 64-bit numbers, two cells each.
    pub(crate) fn numbers<const N: usize>(&mut self, name: &'static str, numbers: [u64; N]) {
        self.property(name, numbers.map(u64::to_be_bytes).as_flattened());
    }

    /// A property whose value is one string.
    pub(crate) fn text(&mut self, name: &'static str, text: &str) {
        self.texts(name, &[text]);
    }

    /// A property whose value is a list of strings.
    #[inline(never)]
    pub(crate) fn texts(&mut self, name: &'static str, texts: &[&str]) {
        self.begin_property(name, texts.iter().map(|text| text.len() as u32 + 1).sum());
        for text in texts {
            self.put(text.as_bytes());
            self.put(&[0]);
        }
        self.align();
    }

    /// A property that says what it says by being there.
    pub(crate) fn flag(&mut self, name: &'static str) {
        self.property(name, &[]);
    }

    /// The finished blob.
    ///
    /// # Errors
    /// When there was no memory for all of it.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, NoRoom> {
        self.word(END);
        let structure = HEADER_SIZE + RESERVATIONS_SIZE;
        let strings = self.bytes.len();
        for (name, _) in core::mem::take(&mut self.names) {
            self.put(name.as_bytes());
            self.put(&[0]);
        }
        if self.is_cut {
            return Err(NoRoom);
        }
        let header = [
            MAGIC,
            self.bytes.len() as u32,
            structure as u32,
            strings as u32,
            HEADER_SIZE as u32,
            VERSION,
            OLDEST_COMPATIBLE_VERSION,
            0, // the boot CPU's number
            self.names_length,
            (strings - structure) as u32,
        ];
        for (place, word) in self.bytes.chunks_exact_mut(4).zip(header) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        Ok(self.bytes)
    }

    /// Where `name` is in the strings block; adds it if it is not there yet. Few names are of the same length, so this is
    /// quick enough for the forty there are.
    fn string(&mut self, name: &'static str) -> u32 {
        // Most are the very same text that they were the last time.
        let mut names = self.names.iter();
        if let Some(&(_, offset)) = names.find(|&&(known, _)| core::ptr::eq(known, name)) {
            return offset;
        }
        if let Some(&(_, offset)) = self.names.iter().find(|&&(known, _)| known == name) {
            return offset;
        }
        let offset = self.names_length;
        self.is_cut |= self.names.try_push((name, offset)).is_err();
        self.names_length += name.len() as u32 + 1;
        offset
    }

    fn word(&mut self, word: u32) {
        self.put(&word.to_be_bytes());
    }

    fn align(&mut self) {
        let missing = self.bytes.len().wrapping_neg() % 4;
        if missing > 0 {
            self.put([0; 4].get(..missing).unwrap_or(&[]));
        }
    }

    /// Appends `bytes`, if there is memory for them: nothing else here may make the vector grow, because a vector that grows by
    /// itself stops the machine when there is none.
    fn put(&mut self, bytes: &[u8]) {
        self.is_cut |= self.bytes.try_reserve(bytes.len()).is_err();
        if !self.is_cut {
            self.bytes.extend_from_slice(bytes);
        }
    }
}
