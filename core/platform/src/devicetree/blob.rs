//! The bytes of a flattened device tree as a stream of tokens (Devicetree Specification 0.4, section 5).
//!
//! The tree of QEMU's `virt` machine with four CPUs has 60 nodes and 230 properties in 8 KiB. A reader that first
//! checks everything and then offers the tree as nodes to search in reads those 8 KiB many times, which is more than
//! all the rest of our start costs. This reader makes one pass, and checks each length when it uses it.

use crate::PlatformError;

const MAGIC: u32 = 0xd00d_feed;
/// The version that this reader knows. Versions 16 and 17 differ in a header field that is not used here.
const VERSION: u32 = 17;
const OLDEST_VERSION: u32 = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

const TRUNCATED: PlatformError = PlatformError::Malformed("it ends in the middle");

/// A flattened device tree whose header has been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blob<'t> {
    bytes: &'t [u8],
    structure: usize,
    strings: &'t [u8],
    reservations: usize,
}

/// A property's name, as its offset in the strings block: all properties of one name share it, as a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NameOffset(pub(super) u32);

/// What the structure block is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token<'t> {
    /// A node begins; its name, with the unit address.
    Begin(&'t [u8]),
    /// A property of the node that began last.
    Property {
        /// Its name, for [`Blob::string`].
        name: NameOffset,
        /// Its value.
        value: &'t [u8],
    },
    /// The node that began last and has not ended ends.
    End,
}

impl<'t> Blob<'t> {
    /// Checks the header.
    pub(super) fn new(bytes: &'t [u8]) -> Result<Self, PlatformError> {
        let field = |index: usize| word(bytes, index * 4).ok_or(TRUNCATED);
        if field(0)? != MAGIC {
            return Err(PlatformError::Malformed("its magic number is not 0xd00dfeed"));
        }
        let bytes = bytes.get(..field(1)? as usize).ok_or(TRUNCATED)?;
        let (version, oldest_compatible) = (field(5)?, field(6)?);
        if version < OLDEST_VERSION || oldest_compatible > VERSION {
            return Err(PlatformError::Version(version));
        }
        let strings = bytes.get(field(3)? as usize..).ok_or(TRUNCATED)?;
        let (structure, reservations) = (field(2)? as usize, field(4)? as usize);
        if structure % 4 != 0 {
            return Err(PlatformError::Malformed("its structure block is not aligned"));
        }
        Ok(Self { bytes, structure, strings, reservations })
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The entries of the memory reservation block: address and size, up to the one that is all zero.
    pub(super) fn reservations(&self) -> impl Iterator<Item = (u64, u64)> {
        let entries = self.bytes.get(self.reservations..).unwrap_or_default();
        entries.chunks_exact(16).map_while(|entry| {
            let (address, size) = (doubleword(entry, 0)?, doubleword(entry, 8)?);
            (address != 0 || size != 0).then_some((address, size))
        })
    }

    /// The tokens from the root on.
    pub(super) fn tokens(&self) -> Tokens<'t> {
        Tokens { blob: *self, offset: self.structure }
    }

    /// The tokens from the one at `offset`, which [`find`](Self::find) or [`Tokens::offset`] said.
    pub(super) fn tokens_at(&self, offset: usize) -> Tokens<'t> {
        Tokens { blob: *self, offset }
    }

    /// A property's name.
    pub(super) fn string(&self, name: NameOffset) -> Result<&'t [u8], PlatformError> {
        let name = self.strings.get(name.0 as usize..).and_then(until_zero);
        name.ok_or(PlatformError::Malformed("a property has no name"))
    }

    /// The offset of the node with this path: names separated by slashes, as `/soc/serial@9000000`. A name without a unit
    /// address finds the first node of that name whatever its address is.
    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        let mut tokens = self.tokens();
        let Ok(Some(Token::Begin(_))) = tokens.next() else { return None };
        let mut depth = 0;
        let mut found = 0;
        let mut wanted = path.strip_prefix(b"/")?.split(|&byte| byte == b'/').peekable();
        loop {
            match tokens.next_step()? {
                Step::Down { offset, name } => {
                    if depth == found && wanted.peek().is_some_and(|&component| is_named(name, component)) {
                        found += 1;
                        wanted.next();
                        if wanted.peek().is_none() {
                            return Some(offset);
                        }
                    }
                    depth += 1;
                }
                // The node that holds the rest of the path has ended without it.
                Step::Up if depth <= found => return None,
                Step::Up => depth -= 1,
            }
        }
    }
}

/// Whether a node called `name` is what the component of a path means.
fn is_named(name: &[u8], component: &[u8]) -> bool {
    match name.strip_prefix(component) {
        Some([]) => true,
        Some([b'@', ..]) => !component.contains(&b'@'),
        _ => false,
    }
}

/// A step through the tree that does not care about properties.
enum Step<'t> {
    /// A node begins, at this offset and with this name.
    Down { offset: usize, name: &'t [u8] },
    /// A node ends.
    Up,
}

/// The stream of tokens.
#[derive(Clone, Debug)]
pub(super) struct Tokens<'t> {
    blob: Blob<'t>,
    offset: usize,
}

impl<'t> Tokens<'t> {
    /// Where the next token is.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// The next token; `None` at the end of the structure block.
    pub(super) fn next(&mut self) -> Result<Option<Token<'t>>, PlatformError> {
        loop {
            let tag = self.word()?;
            return Ok(Some(match tag {
                BEGIN_NODE => Token::Begin(self.name()?),
                PROPERTY => {
                    let (length, name) = (self.word()?, self.word()?);
                    Token::Property { name: NameOffset(name), value: self.take(length as usize)? }
                }
                END_NODE => Token::End,
                NOP => continue,
                END => return Ok(None),
                _ => return Err(PlatformError::Malformed("its structure block holds an unknown token")),
            }));
        }
    }

    /// The next beginning or end of a node, past all properties; `None` at the end, of whatever kind it is.
    fn next_step(&mut self) -> Option<Step<'t>> {
        loop {
            let offset = self.offset;
            match self.word().ok()? {
                BEGIN_NODE => return Some(Step::Down { offset, name: self.name().ok()? }),
                END_NODE => return Some(Step::Up),
                PROPERTY => {
                    let length = self.word().ok()?;
                    self.word().ok()?;
                    self.take(length as usize).ok()?;
                }
                NOP => {}
                _ => return None,
            }
        }
    }

    fn word(&mut self) -> Result<u32, PlatformError> {
        let word = word(self.blob.bytes, self.offset).ok_or(TRUNCATED)?;
        self.offset += 4;
        Ok(word)
    }

    /// A string that ends with a zero byte.
    fn name(&mut self) -> Result<&'t [u8], PlatformError> {
        let rest = self.blob.bytes.get(self.offset..).ok_or(TRUNCATED)?;
        let name = until_zero(rest).ok_or(TRUNCATED)?;
        self.take(name.len() + 1)?;
        Ok(name)
    }

    /// `length` bytes and the padding behind them.
    fn take(&mut self, length: usize) -> Result<&'t [u8], PlatformError> {
        let end = self.offset.checked_add(length).ok_or(TRUNCATED)?;
        let bytes = self.blob.bytes.get(self.offset..end).ok_or(TRUNCATED)?;
        self.offset = end.next_multiple_of(4);
        Ok(bytes)
    }
}

/// The bytes before the first zero; `None` if there is none.
fn until_zero(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.iter().position(|&byte| byte == 0)?)
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

fn doubleword(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|word| u64::from_be_bytes(*word))
}
