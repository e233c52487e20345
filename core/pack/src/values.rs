//! Numbers, addresses, and what is composed of them.

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

numbers!(u16 u32 u64);

/// Several of them go as a whole: messages and values have many.
impl Value for u8 {
    fn pack(&self, out: &mut Writer) {
        out.bytes(&[*self]);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        from.bytes(1)?.first().copied().ok_or(Damaged::Short)
    }

    fn pack_all(all: &[Self], out: &mut Writer) {
        out.bytes(all);
    }

    fn unpack_all(from: &mut Reader<'_>, count: usize, all: &mut Vec<Self>) -> Result<(), Damaged> {
        all.extend_from_slice(from.bytes(count)?);
        Ok(())
    }
}

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
