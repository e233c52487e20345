//! Just enough of the flattened device tree (Devicetree Specification 0.4, chapter 5) to find properties by node and name.
//!
//! The tree is trusted no further than its length: every read is checked, and what is malformed ends the walk.

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// Bytes of the header that [`total_size`] needs.
pub const HEADER_SIZE: usize = 40;

fn word(blob: &[u8], offset: usize) -> Option<u32> {
    let bytes = blob.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn text(blob: &[u8], offset: usize) -> Option<&str> {
    let rest = blob.get(offset..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(rest.get(..end)?).ok()
}

/// The size in bytes that the header states, if it is a header.
#[must_use]
pub fn total_size(header: &[u8]) -> Option<usize> {
    (word(header, 0)? == MAGIC).then_some(())?;
    Some(word(header, 4)? as usize)
}

/// Calls `visit(depth, node name, property name, value)` for each property in order; the root's properties have depth 1.
pub fn walk<'a>(blob: &'a [u8], mut visit: impl FnMut(usize, &'a str, &'a str, &'a [u8])) -> Option<()> {
    let (mut at, strings) = (word(blob, 8)? as usize, word(blob, 12)? as usize);
    let mut names = [""; 16];
    let mut depth = 0;
    loop {
        let token = word(blob, at)?;
        at += 4;
        match token {
            BEGIN_NODE => {
                let name = text(blob, at)?;
                at += (name.len() + 1).next_multiple_of(4);
                depth += 1;
                *names.get_mut(depth)? = name;
            }
            END_NODE => depth = depth.checked_sub(1)?,
            PROPERTY => {
                let (length, name) = (word(blob, at)? as usize, word(blob, at + 4)? as usize);
                at += 8;
                visit(
                    depth,
                    names.get(depth)?,
                    text(blob, strings.checked_add(name)?)?,
                    blob.get(at..at.checked_add(length)?)?,
                );
                at += length.next_multiple_of(4);
            }
            NOP => {}
            _ => return Some(()),
        }
    }
}

/// A big-endian number of one or two cells.
#[must_use]
pub fn number(value: &[u8]) -> u64 {
    value.iter().take(8).fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// A string property without its terminator.
#[must_use]
pub fn string(value: &[u8]) -> &str {
    core::str::from_utf8(value).unwrap_or("").trim_end_matches('\0')
}
