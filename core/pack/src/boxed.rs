//! A value on the heap, allocated fallibly.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use crate::Damaged;

/// A value on the heap. `Box::new` ends the program where there is no memory left, and whoever restores a VM may have filled it: so
/// what is made of a state asks. (A vector can be asked for without `unsafe`; a box of a single value cannot yet.)
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Boxed<T>(Box<[T; 1]>);

impl<T> Boxed<T> {
    /// Puts it there.
    ///
    /// # Errors
    /// [`Damaged::NoMemory`].
    pub fn new(value: T) -> Result<Self, Damaged> {
        let mut only = Vec::new();
        only.try_reserve_exact(1).map_err(|_| Damaged::NoMemory)?;
        only.push(value);
        // Of one value, and with room for that alone: nothing moves.
        only.into_boxed_slice().try_into().map(Self).map_err(|_| Damaged::NoMemory)
    }
}

impl<T> Boxed<T> {
    /// Takes it out.
    #[must_use]
    pub fn into_inner(self) -> T {
        let [value] = *self.0;
        value
    }
}

impl<T> Deref for Boxed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let [value] = &*self.0;
        value
    }
}

impl<T> DerefMut for Boxed<T> {
    fn deref_mut(&mut self) -> &mut T {
        let [value] = &mut *self.0;
        value
    }
}
