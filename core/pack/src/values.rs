//! Numbers, addresses, and what values are made of.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use units::{Ipa, Range};

use crate::{Damaged, Reader, Value, Writer};

macro_rules! numbers {
    ($($type:ident)*) => {$(
        impl Value for $type {
            fn pack(&self, out: &mut Writer) {
                out.bytes(&self.to_le_bytes());
            }

            fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
                let bytes = from.bytes(size_of::<Self>())?;
                bytes.try_into().map(Self::from_le_bytes).map_err(|_| Damaged::Short)
            }
        }
    )*};
}

numbers!(u8 u16 u32 u64);

impl Value for bool {
    fn pack(&self, out: &mut Writer) {
        u8::from(*self).pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        match u8::unpack(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Damaged::Impossible("a flag is neither 0 nor 1")),
        }
    }
}

/// As 64 bits.
impl Value for usize {
    fn pack(&self, out: &mut Writer) {
        (*self as u64).pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        u64::unpack(from)?.try_into().map_err(|_| Damaged::Impossible("a count is larger than any can be"))
    }
}

impl Value for Ipa {
    fn pack(&self, out: &mut Writer) {
        self.0.pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        u64::unpack(from).map(Self)
    }
}

impl Value for Range<Ipa> {
    fn pack(&self, out: &mut Writer) {
        let Self { start, size } = self;
        start.pack(out);
        size.pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(Self { start: Value::unpack(from)?, size: Value::unpack(from)? })
    }
}

/// A flag, and the value if it is set.
impl<T: Value> Value for Option<T> {
    fn pack(&self, out: &mut Writer) {
        self.is_some().pack(out);
        if let Some(value) = self {
            value.pack(out);
        }
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(if bool::unpack(from)? { Some(T::unpack(from)?) } else { None })
    }
}

impl<A: Value, B: Value> Value for (A, B) {
    fn pack(&self, out: &mut Writer) {
        self.0.pack(out);
        self.1.pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok((A::unpack(from)?, B::unpack(from)?))
    }
}

impl<T: Value + Copy + Default, const COUNT: usize> Value for [T; COUNT] {
    fn pack(&self, out: &mut Writer) {
        self.iter().for_each(|value| value.pack(out));
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let mut all = [T::default(); COUNT];
        for value in &mut all {
            *value = T::unpack(from)?;
        }
        Ok(all)
    }
}

/// The number of values, 32 bits, and the values.
impl<T: Value> Value for Vec<T> {
    fn pack(&self, out: &mut Writer) {
        (self.len() as u32).pack(out);
        self.iter().for_each(|value| value.pack(out));
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let count = u32::unpack(from)?;
        let mut all = Self::new();
        // One at a time: a number that says more than there is takes no memory.
        for _ in 0..count {
            let value = T::unpack(from)?;
            all.try_reserve(1).map_err(|_| Damaged::NoMemory)?;
            all.push(value);
        }
        Ok(all)
    }
}

/// As a [`Vec`].
impl<T: Value> Value for VecDeque<T> {
    fn pack(&self, out: &mut Writer) {
        (self.len() as u32).pack(out);
        self.iter().for_each(|value| value.pack(out));
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Vec::unpack(from).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::VecDeque;
    use crate::{Reader, Value, Writer};

    #[test]
    fn a_queue_keeps_its_order_wherever_it_begins() {
        // It begins in the middle of its ring.
        let mut queue: VecDeque<u16> = (0..8).collect();
        queue.drain(..5);
        queue.extend([8, 9]);
        let mut out = Writer::new();
        queue.pack(&mut out);
        let bytes = out.finish().unwrap();
        assert_eq!(VecDeque::unpack(&mut Reader::new(&bytes)), Ok(VecDeque::from([5_u16, 6, 7, 8, 9])));
    }
}
