//! Saved VMs whose memory is compressed (`docs/formats/snapshot.md`): a section `memory-lz4` stands in the file for a section `memory`.
//!
//! The hypervisor knows nothing of that. What it sends is compressed on its way to the disk, and what it is sent is what it would
//! have sent. So each section is changed by itself, into one at the same place with the same number, and all others are left as they
//! are: also what is wrong with them, which whoever reads them finds out.
//!
//! What is read may come from anybody: no more than one section is held, as it is in the file and as it was, and neither is longer than
//! a section `memory` may be.

use abi::crc32c;
use snapshot::file::{FileError, HEAD, HEADER, MAGIC, MOST_OF_MEMORY};
use std::io::{Read, Result as Done};

/// What such a section is called, as in its head and as it is said.
const PACKED: &[u8; 12] = b"memory-lz4\0\0";
const PACKED_NAME: &str = "memory-lz4";
/// The version of such sections that is written, and the only one that is read.
const VERSION: u16 = 1;
/// What it stands for, and that section's version.
const PLAIN: &[u8; 12] = b"memory\0\0\0\0\0\0";
const PLAIN_VERSION: u16 = 1;
/// Behind this section nothing comes.
const LAST: &[u8; 12] = b"end\0\0\0\0\0\0\0\0\0";
/// Before the block there is the length of what was compressed.
const LENGTH: usize = 4;
/// Bytes that are passed on at a time.
const PIECE: usize = 64 << 10;

/// A section's head.
#[derive(Clone, Copy, Debug)]
struct Head([u8; HEAD]);

impl Head {
    fn new(name: [u8; 12], version: u16, number: u32, body: &[u8]) -> Self {
        let mut head = [0; HEAD];
        let fields = [
            (0, &name[..]),
            (12, &version.to_le_bytes()),
            (16, &(body.len() as u32).to_le_bytes()),
            (20, &crc32c::compute(0, body).to_le_bytes()),
            (24, &number.to_le_bytes()),
        ];
        let mut put = |place: usize, bytes: &[u8]| {
            head.iter_mut().skip(place).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        fields.into_iter().for_each(|(place, bytes)| put(place, bytes));
        let checksum = Self(head).checksum();
        head.iter_mut().skip(28).zip(checksum.to_le_bytes()).for_each(|(to, from)| *to = from);
        Self(head)
    }

    fn checksum(&self) -> u32 {
        crc32c::compute(0, self.0.get(..28).unwrap_or_default())
    }

    fn word(&self, place: usize) -> u32 {
        self.0.get(place..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Whether it is as somebody wrote it. Of one that is not nothing else is known.
    fn is_whole(&self) -> bool {
        self.checksum() == self.word(28)
    }

    fn is_of(&self, name: &[u8; 12]) -> bool {
        self.0.starts_with(name)
    }

    fn version(&self) -> u16 {
        self.word(12) as u16
    }

    fn length(&self) -> usize {
        self.word(16) as usize
    }

    fn body_checksum(&self) -> u32 {
        self.word(20)
    }

    fn number(&self) -> u32 {
        self.word(24)
    }
}

/// What comes next in the stream.
#[derive(Clone, Copy, Debug)]
enum Next {
    Header,
    Head,
    /// So many bytes of a section that is left as it is.
    Pass(u64),
    /// The body of a section that is changed.
    Body(Head),
    /// No more is understood: all of it is left as it is.
    Rest,
}

impl Next {
    /// What comes behind a header.
    fn after_header(header: &[u8]) -> Self {
        if header.len() == HEADER && header.starts_with(&MAGIC) { Self::Head } else { Self::Rest }
    }

    /// What comes behind a head, if sections of this `name` are changed.
    fn after_head(head: Head, name: &[u8; 12]) -> Self {
        match head {
            head if !head.is_whole() => Self::Rest,
            head if head.is_of(name) => Self::Body(head),
            head => Self::Pass(head.length() as u64),
        }
    }
}

/// Compresses what comes of a saved VM, which was looked at before.
#[derive(Debug)]
pub(crate) struct Compressor {
    next: Next,
    gathered: Vec<u8>,
}

impl Compressor {
    pub(crate) fn new() -> Self {
        Self { next: Next::Header, gathered: Vec::new() }
    }

    /// Takes what comes next, and gives what that is in the file, as far as it is known.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let wanted = match self.next {
                Next::Header => HEADER,
                Next::Head => HEAD,
                Next::Body(head) => head.length(),
                Next::Pass(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (now, later) = bytes.split_at(count);
                    out.extend_from_slice(now);
                    bytes = later;
                    let left = left - count as u64;
                    self.next = if left == 0 { Next::Head } else { Next::Pass(left) };
                    continue;
                }
                Next::Rest => {
                    out.extend_from_slice(bytes);
                    return out;
                }
            };
            let (now, later) = bytes.split_at(bytes.len().min(wanted - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == wanted {
                self.is_gathered(&mut out);
            }
        }
        out
    }

    fn is_gathered(&mut self, out: &mut Vec<u8>) {
        let gathered = std::mem::take(&mut self.gathered);
        self.next = match self.next {
            Next::Body(head) => {
                out.extend(pack(head, &gathered));
                Next::Head
            }
            Next::Head => {
                let head = gathered.first_chunk().map_or(Head([0; HEAD]), |head| Head(*head));
                let next = Next::after_head(head, PLAIN);
                if !matches!(next, Next::Body(_)) {
                    out.extend(&gathered);
                }
                next
            }
            other => {
                out.extend(&gathered);
                if matches!(other, Next::Header) { Next::after_header(&gathered) } else { other }
            }
        };
    }
}

/// A section of memory as it is in the file: compressed, if that makes it shorter.
fn pack(head: Head, body: &[u8]) -> Vec<u8> {
    let mut packed = (body.len() as u32).to_le_bytes().to_vec();
    packed.extend(lz4_flex::block::compress(body));
    if head.version() != PLAIN_VERSION || packed.len() >= body.len() {
        return [&head.0, body].concat();
    }
    [&Head::new(*PACKED, VERSION, head.number(), &packed).0, &*packed].concat()
}

/// A saved VM as the hypervisor knows it, from a file in which it may be compressed.
#[derive(Debug)]
pub(crate) struct Expanded<R> {
    from: R,
    next: Next,
    /// Bytes that came so far, and whether all that should have come did.
    taken: u64,
    has_ended: bool,
    ready: Vec<u8>,
    given: usize,
    packed: Vec<u8>,
}

/// Why it cannot be read: the file, or what is in it.
#[derive(Debug)]
pub(crate) enum ExpandError {
    /// The file.
    Io(std::io::Error),
    /// What is in it.
    Damaged(FileError),
}

impl From<std::io::Error> for ExpandError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl<R: Read> Expanded<R> {
    /// From the begin of a file.
    pub(crate) const fn new(from: R) -> Self {
        Self { from, next: Next::Header, taken: 0, has_ended: false, ready: Vec::new(), given: 0, packed: Vec::new() }
    }

    /// From where a section begins.
    pub(crate) fn at_section(from: R) -> Self {
        let mut expanded = Self::new(from);
        expanded.next = Next::Head;
        expanded
    }

    /// How many bytes of the file came so far.
    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }

    /// The bytes that come next, at most `most`; none at the end.
    ///
    /// # Errors
    /// What is wrong with the file, or with a section that is compressed.
    pub(crate) fn next(&mut self, most: usize) -> Result<&[u8], ExpandError> {
        while self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
            if !self.advance()? {
                break;
            }
        }
        let from = self.given;
        self.given = self.ready.len().min(from.saturating_add(most));
        Ok(self.ready.get(from..self.given).unwrap_or_default())
    }

    /// Makes more ready, which may be nothing yet. Says whether there is more.
    fn advance(&mut self) -> Result<bool, ExpandError> {
        self.next = match self.next {
            Next::Header => {
                self.fetch(HEADER)?;
                Next::after_header(&self.ready)
            }
            Next::Head => {
                self.fetch(HEAD)?;
                let Some(head) = self.ready.first_chunk().map(|head| Head(*head)) else {
                    // Whoever reads it would count the bytes that were made of those in the file.
                    return if self.has_ended { Ok(!self.ready.is_empty()) } else { self.short() };
                };
                self.has_ended = head.is_of(LAST);
                let next = Next::after_head(head, PACKED);
                if matches!(next, Next::Body(_)) {
                    self.ready.clear();
                }
                next
            }
            Next::Pass(0) => Next::Head,
            Next::Pass(left) => {
                self.fetch(usize::try_from(left).unwrap_or(PIECE).min(PIECE))?;
                if self.ready.is_empty() {
                    return self.short();
                }
                Next::Pass(left - self.ready.len() as u64)
            }
            Next::Body(head) => {
                self.expand(head)?;
                Next::Head
            }
            Next::Rest => {
                self.fetch(PIECE)?;
                return Ok(!self.ready.is_empty());
            }
        };
        Ok(true)
    }

    /// Makes so many bytes ready as they are, fewer where the file ends.
    fn fetch(&mut self, count: usize) -> Done<()> {
        let read = Read::by_ref(&mut self.from).take(count as u64).read_to_end(&mut self.ready)?;
        self.taken += read as u64;
        Ok(())
    }

    fn short<T>(&self) -> Result<T, ExpandError> {
        Err(ExpandError::Damaged(FileError::Short(self.taken)))
    }

    fn expand(&mut self, head: Head) -> Result<(), ExpandError> {
        let (number, length) = (head.number(), head.length());
        let wrong = |error| Err(ExpandError::Damaged(error));
        if head.version() != VERSION {
            return wrong(FileError::SectionVersion(PACKED_NAME, head.version(), VERSION));
        }
        if length > MOST_OF_MEMORY {
            return wrong(FileError::Long(PACKED_NAME));
        }
        self.packed.clear();
        let read = Read::by_ref(&mut self.from).take(length as u64).read_to_end(&mut self.packed)?;
        self.taken += read as u64;
        if read < length {
            return self.short();
        }
        if crc32c::compute(0, &self.packed) != head.body_checksum() {
            return wrong(FileError::Body(PACKED_NAME, number));
        }
        let plain = self.packed.split_first_chunk::<LENGTH>().and_then(|(length, block)| {
            let length =
                usize::try_from(u32::from_le_bytes(*length)).ok().filter(|&length| length <= MOST_OF_MEMORY)?;
            let mut plain = vec![0; length];
            let count = lz4_flex::block::decompress_into(block, &mut plain).ok()?;
            (count == length).then_some(plain)
        });
        let Some(plain) = plain else { return wrong(FileError::Impossible(PACKED_NAME)) };
        self.ready.extend_from_slice(&Head::new(*PLAIN, PLAIN_VERSION, number, &plain).0);
        self.ready.extend_from_slice(&plain);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Compressor, ExpandError, Expanded, HEAD, Head, LAST, MOST_OF_MEMORY, PACKED, PLAIN, VERSION};
    use proptest::prelude::*;
    use snapshot::file::{FileError, MAGIC};

    /// Sections of some names, one behind the other, and behind them the end.
    fn stream(sections: &[([u8; 12], Vec<u8>)]) -> Vec<u8> {
        let mut out = [&MAGIC[..], &[2, 0, 0, 0, 1, 2, 3, 4]].concat();
        let end = (*LAST, Vec::from([1; 8]));
        for (number, (name, body)) in (0..).zip(sections.iter().chain([&end])) {
            out.extend(Head::new(*name, 1, number, body).0);
            out.extend(body);
        }
        out
    }

    /// Bytes before and behind the sections.
    const AROUND: usize = 16 + HEAD + 8;

    fn compress(bytes: &[u8], step: usize) -> Vec<u8> {
        let mut compressor = Compressor::new();
        bytes.chunks(step).flat_map(|piece| compressor.take(piece)).collect()
    }

    fn expand(bytes: &[u8], step: usize) -> Result<Vec<u8>, FileError> {
        let (mut expanded, mut out) = (Expanded::new(bytes), Vec::new());
        loop {
            match expanded.next(step) {
                Ok([]) => return Ok(out),
                Ok(piece) => out.extend_from_slice(piece),
                Err(ExpandError::Damaged(error)) => return Err(error),
                Err(ExpandError::Io(error)) => panic!("{error}"),
            }
            assert!(expanded.ready.capacity() <= 2 * (HEAD + MOST_OF_MEMORY), "it holds too much");
        }
    }

    fn any_section() -> impl Strategy<Value = ([u8; 12], Vec<u8>)> {
        let name = prop_oneof![4 => Just(*PLAIN), 1 => Just(*b"state\0\0\0\0\0\0\0")];
        let noise = prop::collection::vec(any::<u8>(), 0..300);
        let body = prop_oneof![
            2 => noise.clone(),
            2 => (noise, 1..200_usize).prop_map(|(bytes, count)| bytes.repeat(count)),
            1 => (any::<u8>(), 0..=MOST_OF_MEMORY).prop_map(|(byte, count)| vec![byte; count]),
        ];
        (name, body).prop_map(|(name, mut body)| {
            body.truncate(MOST_OF_MEMORY);
            (name, body)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_compressed_comes_back(
            sections in prop::collection::vec(any_section(), 0..8),
            (read, write) in (1..9000_usize, 1..9000_usize),
        ) {
            let plain = stream(&sections);
            let packed = compress(&plain, write);
            prop_assert!(packed.len() <= plain.len());
            prop_assert!(compress(&plain, plain.len()) == packed, "it depends on how it comes");
            prop_assert!(expand(&packed, read).unwrap() == plain, "other bytes");
            // What is not compressed is left as it is, and so is what is no saved VM.
            prop_assert!(expand(&plain, read).unwrap() == plain);
            prop_assert!(expand(&plain[1..], read).unwrap() == plain[1..]);
        }

        #[test]
        fn any_block_is_survived(block in prop::collection::vec(any::<u8>(), 0..400), length in any::<u32>()) {
            let body = [&(length % 100_000).to_le_bytes()[..], &block].concat();
            if let Ok(bytes) = expand(&stream(&[(*PACKED, body)]), 5000) {
                prop_assert!(bytes.len() <= AROUND + HEAD + MOST_OF_MEMORY);
            }
        }
    }

    #[test]
    fn what_is_alike_gets_short_and_what_is_not_stays() {
        let alike = stream(&[(*PLAIN, vec![7; 60_000])]);
        let packed = compress(&alike, 1000);
        assert!(packed.len() < 500 && packed.windows(12).any(|bytes| bytes == PACKED), "{}", packed.len());
        let mut random = 1_u32;
        let noise: Vec<u8> = (0..60_000)
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) as u8
            })
            .collect();
        let noise = stream(&[(*PLAIN, noise)]);
        assert!(compress(&noise, 1000) == noise, "it would have become longer");
    }

    #[test]
    fn what_is_wrong_with_a_compressed_section_is_said() {
        let body = |length: u32, block: &[u8]| [&length.to_le_bytes()[..], block].concat();
        let one = |body: Vec<u8>| stream(&[(*PACKED, body)]);
        let impossible = Err(FileError::Impossible("memory-lz4"));
        // A block of four literals that is fine, and said to be longer, or shorter; one that ends early; one as long as all memory.
        assert_eq!(expand(&one(body(4, &[0x40, 1, 2, 3, 4])), 99).map(|bytes| bytes.len()), Ok(AROUND + HEAD + 4));
        for (length, block) in
            [(5, &[0x40, 1, 2, 3, 4][..]), (3, &[0x40, 1, 2, 3, 4]), (4, &[0x40, 1]), (u32::MAX, &[])]
        {
            assert_eq!(expand(&one(body(length, block)), 99), impossible, "{length}, {block:?}");
        }
        assert_eq!(expand(&one(vec![1, 2]), 99), impossible);
        assert_eq!(expand(&one(vec![0; MOST_OF_MEMORY + 1]), 99), Err(FileError::Long("memory-lz4")));
        let packed = compress(&stream(&[(*PLAIN, vec![7; 60_000])]), 9000);
        let mut flipped = packed.clone();
        flipped[16 + HEAD + 9] ^= 4;
        assert_eq!(expand(&flipped, 99), Err(FileError::Body("memory-lz4", 0)));
        // In a head, behind one, in a body, behind one, and in what is left as it is: all bytes of the file are counted.
        for end in [20, 16 + HEAD, 16 + HEAD + 3, packed.len() - HEAD - 8, packed.len() - 1] {
            assert_eq!(expand(&packed[..end], 99), Err(FileError::Short(end as u64)));
        }
        let mut newer = [&MAGIC[..], &[0; 8]].concat();
        newer.extend(Head::new(*PACKED, VERSION + 1, 0, &[]).0);
        assert_eq!(expand(&newer, 99), Err(FileError::SectionVersion("memory-lz4", 2, 1)));
    }
}
