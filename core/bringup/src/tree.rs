//! A flattened device tree (Devicetree Specification 0.4, section 5) that names mailboxes, written anew beside the one that names
//! what firmware offers.
//!
//! The tree is written in one pass over the old one: what says nothing about CPUs is copied as it is, in pieces as long as can be.
//! A CPU that waits at a mailbox gets the `enable-method`s `"spin-table"` and [`MAILBOX`], and a `cpu-release-addr`: the mailbox's
//! address word. The first is true for whoever knows no more, as Linux: the CPU's own number stands in its mailbox from the beginning
//! here, so that an address alone lets it go. The second tells whoever knows it that a whole mailbox of ours is there, whose address
//! the CPU brings along in X0. A CPU that did not come has failed (`status`), and cannot be started. The mailboxes are reserved.
//!
//! It does not change the old tree where it lies: that has no room, or not where it would be needed, and as long as the new one is not
//! whole, the old one is what holds.

use units::{Pa, Range};

use crate::acpi::Whereabouts;
use crate::mailbox;

/// What an `enable-method` calls our mailbox.
pub const MAILBOX: &str = "undercroft,mailbox";
/// Both ways to say it, as the property's value.
const METHODS: &[u8] = b"spin-table\0undercroft,mailbox\0";
/// The names of what is said of CPUs, as they are added to the strings.
const NAMES: &[u8] = b"enable-method\0cpu-release-addr\0status\0";
const ENABLE_METHOD: u32 = 0;
const RELEASE_ADDRESS: u32 = 14;
const STATUS: u32 = 31;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const OLDEST_VERSION: u32 = 16;
const HEADER_SIZE: usize = 40;
const RESERVATION_SIZE: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// The most bytes that a CPU's properties take, and those that no CPU asks for.
const ROOM_OF_A_CPU: usize = 12 + METHODS.len().next_multiple_of(4) + 12 + 8;
const ROOM_OF_THE_REST: usize = HEADER_SIZE + 2 * RESERVATION_SIZE + NAMES.len() + 8;

/// Why there is no new tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadTree {
    /// It has another form than the specification says.
    #[error("it is malformed at byte {0}")]
    Malformed(usize),
    /// There is no memory for the new one.
    #[error("there is no room for the one that names mailboxes")]
    NoRoom,
}

/// How many bytes a tree may take that names mailboxes for `cpus` CPUs, in place of `tree`.
#[must_use]
pub fn room(tree: &[u8], cpus: usize) -> usize {
    let used =
        Old::new(tree).map_or(0, |old| old.strings.len() + (old.end - old.structure) + 16 * old.reservations().count());
    used + cpus * ROOM_OF_A_CPU + ROOM_OF_THE_REST
}

/// Writes `tree` to `to` so that it names the mailboxes at which CPUs wait: `whereabouts` says of an MPIDR's affinity fields, as they
/// stand in the tree, what has become of the CPU. `reserved` are all mailboxes. Returns how many bytes there are now.
///
/// # Errors
/// If the tree is malformed, or `to` too short. What is in `to` is worth nothing then.
pub fn name_mailboxes(
    tree: &[u8],
    to: &mut [u8],
    reserved: Range<Pa>,
    whereabouts: impl Fn(u64) -> Whereabouts,
) -> Result<usize, BadTree> {
    let old = Old::new(tree)?;
    let mut new = New { to, at: HEADER_SIZE };
    for (start, size) in old.reservations().chain([(reserved.start.0, reserved.size), (0, 0)]) {
        new.put(&start.to_be_bytes())?;
        new.put(&size.to_be_bytes())?;
    }
    let structure = new.at;
    write_structure(&old, &mut new, whereabouts)?;
    let strings = new.at;
    new.put(old.strings)?;
    new.put(NAMES)?;
    let size = new.at;
    let header = [
        MAGIC,
        size as u32,
        structure as u32,
        strings as u32,
        HEADER_SIZE as u32,
        VERSION,
        OLDEST_VERSION,
        old.boot_cpu,
        (size - strings) as u32,
        (strings - structure) as u32,
    ];
    new.at = 0;
    header.into_iter().try_for_each(|field| new.put(&field.to_be_bytes()))?;
    Ok(size)
}

fn write_structure(old: &Old<'_>, new: &mut New<'_>, whereabouts: impl Fn(u64) -> Whereabouts) -> Result<(), BadTree> {
    let mut tokens = Tokens { old, at: old.structure };
    let mut copied = old.structure;
    // How deep the node is that began last, the root being 1; and whether /cpus is around it.
    let (mut depth, mut in_cpus, mut cells) = (0_u32, false, 2);
    loop {
        let (at, token) = tokens.next()?;
        match token {
            Token::Begin(name) => {
                depth += 1;
                match depth {
                    2 => (in_cpus, cells) = (name == b"cpus", 2),
                    3 if in_cpus => {
                        let first = tokens.at;
                        let cpu = OneCpu::read(Tokens { old, at: first }, cells)?;
                        let whereabouts = cpu.mpidr.map_or(Whereabouts::Left, &whereabouts);
                        if whereabouts == Whereabouts::Left {
                            continue;
                        }
                        new.put(old.piece(copied, first)?)?;
                        write_cpu(old, new, whereabouts)?;
                        copied = first;
                        for (from, behind) in cpu.said.into_iter().flatten() {
                            new.put(old.piece(copied, from)?)?;
                            copied = behind;
                        }
                    }
                    _ => {}
                }
            }
            Token::Property { name, value } => {
                if depth == 2 && in_cpus && old.name(name) == Some(b"#address-cells") {
                    cells = value.first_chunk().map_or(2, |cells| u32::from_be_bytes(*cells));
                }
            }
            Token::End => depth = depth.checked_sub(1).ok_or(BadTree::Malformed(at))?,
            Token::Last => break,
        }
    }
    if depth != 0 {
        return Err(BadTree::Malformed(tokens.at));
    }
    new.put(old.piece(copied, tokens.at)?)
}

fn write_cpu(old: &Old<'_>, new: &mut New<'_>, whereabouts: Whereabouts) -> Result<(), BadTree> {
    match whereabouts {
        Whereabouts::Parked(page) => {
            let address = page.0 + mailbox::ADDRESS as u64;
            new.property(old, ENABLE_METHOD, METHODS)?;
            new.property(old, RELEASE_ADDRESS, &address.to_be_bytes())
        }
        Whereabouts::Lost => new.property(old, STATUS, b"fail\0"),
        Whereabouts::Left => Ok(()),
    }
}

/// What the node of a CPU says.
struct OneCpu {
    /// Its affinity fields; `None` if it is no CPU, or one that is not to be used.
    mpidr: Option<u64>,
    /// From where to where it says what is said anew, in this order.
    said: [Option<(usize, usize)>; 3],
}

impl OneCpu {
    /// `tokens` begin with its properties.
    fn read(mut tokens: Tokens<'_>, cells: u32) -> Result<Self, BadTree> {
        let (mut mpidr, mut is_cpu, mut is_off, mut said) = (None, false, false, [None; 3]);
        while let (from, Token::Property { name, value }) = tokens.next()? {
            match tokens.old.name(name) {
                Some(b"reg") if cells == 1 => {
                    mpidr = value.first_chunk().map(|reg| u64::from(u32::from_be_bytes(*reg)))
                }
                Some(b"reg") => mpidr = value.first_chunk().map(|reg| u64::from_be_bytes(*reg)),
                Some(b"device_type") => is_cpu = value == b"cpu\0",
                Some(name @ (b"enable-method" | b"cpu-release-addr" | b"status")) => {
                    is_off |= name == b"status" && !matches!(value, b"okay\0" | b"ok\0");
                    // There is one of each: a fourth one would stay, and a reader may take the last.
                    let free = said.iter_mut().find(|place| place.is_none()).ok_or(BadTree::Malformed(from))?;
                    *free = Some((from, tokens.at));
                }
                _ => {}
            }
        }
        Ok(Self { mpidr: mpidr.filter(|_| is_cpu && !is_off), said })
    }
}

/// The tree that there is.
struct Old<'t> {
    bytes: &'t [u8],
    structure: usize,
    /// Behind the structure block.
    end: usize,
    strings: &'t [u8],
    reservations: usize,
    boot_cpu: u32,
}

impl<'t> Old<'t> {
    fn new(bytes: &'t [u8]) -> Result<Self, BadTree> {
        let field = |index: usize| word(bytes, 4 * index).ok_or(BadTree::Malformed(4 * index));
        if field(0)? != MAGIC {
            return Err(BadTree::Malformed(0));
        }
        let version = field(5)?;
        if version < OLDEST_VERSION || field(6)? > VERSION {
            return Err(BadTree::Malformed(20));
        }
        let bytes = bytes.get(..field(1)? as usize).ok_or(BadTree::Malformed(4))?;
        let (structure, strings, size) = (field(2)? as usize, field(3)? as usize, field(8)? as usize);
        if structure % 4 != 0 || structure > bytes.len() {
            return Err(BadTree::Malformed(8));
        }
        let strings =
            strings.checked_add(size).and_then(|end| bytes.get(strings..end)).ok_or(BadTree::Malformed(32))?;
        let mut old =
            Self { bytes, structure, end: bytes.len(), strings, reservations: field(4)? as usize, boot_cpu: field(7)? };
        if version >= VERSION {
            old.end = structure.saturating_add(field(9)? as usize).min(bytes.len());
        }
        Ok(old)
    }

    /// Address and size of each, without the last, which is zero.
    fn reservations(&self) -> impl Iterator<Item = (u64, u64)> {
        let entries = self.bytes.get(self.reservations..).unwrap_or_default().as_chunks::<RESERVATION_SIZE>().0;
        entries.iter().map_while(|entry| {
            let [start, size] = entry.as_chunks::<8>().0 else { return None };
            let (start, size) = (u64::from_be_bytes(*start), u64::from_be_bytes(*size));
            (start != 0 || size != 0).then_some((start, size))
        })
    }

    fn piece(&self, from: usize, to: usize) -> Result<&'t [u8], BadTree> {
        self.bytes.get(from..to).ok_or(BadTree::Malformed(from))
    }

    fn name(&self, offset: u32) -> Option<&'t [u8]> {
        until_zero(self.strings.get(offset as usize..)?)
    }
}

/// What the structure block is made of.
enum Token<'t> {
    Begin(&'t [u8]),
    Property { name: u32, value: &'t [u8] },
    End,
    Last,
}

struct Tokens<'o> {
    old: &'o Old<'o>,
    at: usize,
}

impl<'o> Tokens<'o> {
    /// Where the next token is, and what.
    fn next(&mut self) -> Result<(usize, Token<'o>), BadTree> {
        loop {
            let at = self.at;
            let token = match self.word()? {
                BEGIN_NODE => {
                    let name = until_zero(self.old.piece(self.at, self.old.end)?).ok_or(BadTree::Malformed(at))?;
                    self.take(name.len() + 1)?;
                    Token::Begin(name)
                }
                PROPERTY => {
                    let (length, name) = (self.word()?, self.word()?);
                    Token::Property { name, value: self.take(length as usize)? }
                }
                END_NODE => Token::End,
                NOP => continue,
                END => Token::Last,
                _ => return Err(BadTree::Malformed(at)),
            };
            return Ok((at, token));
        }
    }

    fn word(&mut self) -> Result<u32, BadTree> {
        let word = word(self.old.piece(0, self.old.end)?, self.at).ok_or(BadTree::Malformed(self.at))?;
        self.at += 4;
        Ok(word)
    }

    /// So many bytes, and past the padding behind them.
    fn take(&mut self, length: usize) -> Result<&'o [u8], BadTree> {
        let end = self.at.checked_add(length).ok_or(BadTree::Malformed(self.at))?;
        let bytes = self.old.piece(self.at, end)?;
        self.at = end.next_multiple_of(4);
        Ok(bytes)
    }
}

/// The tree that is written.
struct New<'n> {
    to: &'n mut [u8],
    at: usize,
}

impl New<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), BadTree> {
        let place = self.to.get_mut(self.at..).and_then(|rest| rest.get_mut(..bytes.len())).ok_or(BadTree::NoRoom)?;
        place.copy_from_slice(bytes);
        self.at += bytes.len();
        Ok(())
    }

    /// A property that has the name at `name` in ours, which stand behind the old ones.
    fn property(&mut self, old: &Old<'_>, name: u32, value: &[u8]) -> Result<(), BadTree> {
        for word in [PROPERTY, value.len() as u32, old.strings.len() as u32 + name] {
            self.put(&word.to_be_bytes())?;
        }
        self.put(value)?;
        let padding = value.len().next_multiple_of(4) - value.len();
        self.put([0; 3].get(..padding).unwrap_or_default())
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

/// The bytes before the first zero; `None` if there is none.
fn until_zero(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.iter().position(|&byte| byte == 0)?)
}
