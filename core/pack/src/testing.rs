//! For tests of saved types, each in the crate of its part: through bytes and back, and the bound of each list.

use core::fmt::Debug;

use crate::{Damaged, Part, Reader, Writer};

/// What is read of a part that was written.
///
/// # Errors
/// What is wrong with the bytes.
pub fn through_bytes<P: Part>(part: &P) -> Result<P, Damaged> {
    let mut out = Writer::new();
    out.part(part);
    Reader::new(&out.finish()?).part()
}

/// Of `list` as many values are read as any VM may have, which are `most`, and one more is refused by the list's name. `with` makes a
/// part that has so many.
///
/// # Panics
/// If it is not so.
pub fn assert_bounded<P: Part + PartialEq + Debug>(list: &'static str, most: usize, with: impl Fn(usize) -> P) {
    let longest = with(most);
    assert_eq!(through_bytes(&longest), Ok(longest));
    assert_eq!(through_bytes(&with(most + 1)), Err(Damaged::Many(list, most as u32 + 1, most)));
}
