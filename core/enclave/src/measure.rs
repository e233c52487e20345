//! What an enclave is, as a number: SHA-256 over how it was made, step by step.
//!
//! Each step is a record of 64 bytes: eight of a name, and seven numbers, little-endian. `CREATE` has the size of its memory and the
//! offset of its entry. `PAGE` has the page's offset, its rights, and whether its contents are measured; 4096 bytes follow if they are.
//! So two enclaves have one measurement only if they were made by the same steps in the same order. The guest's addresses, the mechanism
//! and the host are not in it.

use abi::enclave::MEASUREMENT_SIZE;
use sha2::{Digest, Sha256};

use crate::parse::PageRights;

/// The measurement of an enclave that is being made.
#[derive(Clone, Debug)]
pub struct Measuring(Sha256);

impl Measuring {
    /// Begins with its making.
    #[must_use]
    pub fn new(size: u64, entry: u64) -> Self {
        let mut measuring = Self(Sha256::new());
        measuring.record(b"CREATE\0\0", [size, entry]);
        measuring
    }

    /// A page is added. If its contents are measured, they come next.
    pub fn page(&mut self, offset: u64, rights: PageRights, measured: bool) {
        self.record(b"PAGE\0\0\0\0", [offset, rights.bits(), u64::from(measured)]);
    }

    /// A part of a page's contents.
    pub fn contents(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The measurement.
    #[must_use]
    pub fn finish(self) -> [u8; MEASUREMENT_SIZE] {
        self.0.finalize().into()
    }

    fn record<const COUNT: usize>(&mut self, name: &[u8; 8], numbers: [u64; COUNT]) {
        let mut record = [[0; 8]; 8];
        for (place, bytes) in record.iter_mut().zip([*name].into_iter().chain(numbers.map(u64::to_le_bytes))) {
            *place = bytes;
        }
        self.0.update(record.as_flattened());
    }
}

#[cfg(test)]
mod tests {
    use super::Measuring;
    use crate::parse::PageRights;
    use std::string::String;

    fn hex(bytes: [u8; 32]) -> String {
        bytes.iter().map(|byte| std::format!("{byte:02x}")).collect()
    }

    /// The number was computed by `sha256sum` over the records, written by hand with `printf`.
    #[test]
    fn it_is_the_sum_of_the_records() {
        assert_eq!(hex(Measuring::new(0x20_0000, 0x10).finish()), include_str!("../tests/measurement.txt").trim());
    }

    #[test]
    fn every_step_counts() {
        let base = Measuring::new(0x20_0000, 0);
        let with = |offset, rights, measured, byte: u8| {
            let mut measuring = base.clone();
            measuring.page(offset, rights, measured);
            measuring.contents(&[byte; 4096]);
            measuring.finish()
        };
        let all = [
            with(0, PageRights::Read, true, 0),
            with(0x1000, PageRights::Read, true, 0),
            with(0, PageRights::ReadWrite, true, 0),
            with(0, PageRights::ReadExecute, true, 0),
            with(0, PageRights::Read, false, 0),
            with(0, PageRights::Read, true, 1),
            base.clone().finish(),
            Measuring::new(0x20_0000, 4).finish(),
            Measuring::new(0x40_0000, 0).finish(),
        ];
        for (number, one) in all.iter().enumerate() {
            assert!(all[..number].iter().all(|other| other != one), "{number}");
        }
    }
}
