//! A guest's memory is the same through a reference, and a guest that has none is refused everything.

use std::cell::{Cell, RefCell};

use devices::memory::{Fault, GuestMemory, NoMemory};
use units::Ipa;

/// Sixteen bytes, which refuse for now once they were told to.
struct Bytes(RefCell<[u8; 16]>, Cell<bool>);

impl Bytes {
    fn place(at: Ipa, length: usize) -> Result<core::ops::Range<usize>, Fault> {
        let from = at.0 as usize;
        if from + length <= 16 { Ok(from..from + length) } else { Err(Fault(at)) }
    }
}

impl GuestMemory for Bytes {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        into.copy_from_slice(&self.0.borrow()[Self::place(from, into.len())?]);
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        self.0.borrow_mut()[Self::place(to, bytes.len())?].copy_from_slice(bytes);
        Ok(())
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.write(at, &value.to_le_bytes())
    }

    fn is_refused_for_now(&self) -> bool {
        self.1.get()
    }
}

/// What a device does that takes its memory by value, as a queue does with a reference.
fn exercise<M: GuestMemory>(memory: M, refused: bool) {
    let mut bytes = [0; 3];
    assert_eq!(memory.write(Ipa(5), &[1, 2, 3]), Ok(()));
    assert_eq!(memory.read(Ipa(6), &mut bytes), Ok(()));
    assert_eq!(bytes, [2, 3, 0]);
    assert_eq!(memory.store_u16(Ipa(8), 0x1234), Ok(()));
    assert_eq!((memory.load_u16(Ipa(8)), memory.load_u16(Ipa(6))), (Ok(0x1234), Ok(0x0302)));
    let outside = Ipa(16);
    assert_eq!(memory.read(outside, &mut bytes), Err(Fault(outside)));
    assert_eq!(
        (memory.write(outside, &bytes), memory.store_u16(outside, 1)),
        (Err(Fault(outside)), Err(Fault(outside)))
    );
    assert_eq!((memory.load_u16(outside), memory.is_refused_for_now()), (Err(Fault(outside)), refused));
}

#[test]
fn memory_is_the_same_through_a_reference() {
    for refused in [false, true] {
        let memory = || Bytes(RefCell::default(), Cell::new(refused));
        let reference: &Bytes = &memory();
        exercise(reference, refused);
        let object: &dyn GuestMemory = &memory();
        exercise(object, refused);
    }
}

#[test]
fn who_has_no_memory_is_refused_for_ever() {
    let (at, mut bytes) = (Ipa(0x4000_0000), [0]);
    assert_eq!((NoMemory.read(at, &mut bytes), NoMemory.write(at, &bytes)), (Err(Fault(at)), Err(Fault(at))));
    assert_eq!((NoMemory.load_u16(at), NoMemory.store_u16(at, 1)), (Err(Fault(at)), Err(Fault(at))));
    assert!(!NoMemory.is_refused_for_now(), "it would be asked again and again");
    assert_eq!(
        Fault(at).to_string(),
        format!("{at} is not in the guest's memory; a buffer has to lie in it as a whole")
    );
}
