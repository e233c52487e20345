//! What of the device is in a saved VM: its registers, and that there were enclaves. They themselves are not: their memory is not the
//! guest's to be read, and another host could not prove what they are. A guest that goes on from such a state finds `GONE` in the
//! device's status and by its interrupt, a command that was under way ends as `Gone`, and the identifiers that it has are nobody's.

use abi::enclave::{EnclaveCompletion, interrupt};
use devices::saved::Unfit;

use crate::rings::Ring;

/// The state of an enclave device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedEnclaveDevice {
    /// CQ_BASE.
    pub commands: u64,
    /// CQ_SIZE.
    pub commands_bits: u32,
    /// CQ_HEAD.
    pub commands_head: u32,
    /// CQ_TAIL.
    pub commands_tail: u32,
    /// RQ_BASE.
    pub completions: u64,
    /// RQ_SIZE.
    pub completions_bits: u32,
    /// RQ_HEAD.
    pub completions_head: u32,
    /// RQ_TAIL.
    pub completions_tail: u32,
    /// INT_STATUS.
    pub interrupts: u32,
    /// INT_MASK.
    pub masked: u32,
    /// STATUS.BROKEN.
    pub broken: bool,
    /// STATUS.GONE, or there were enclaves.
    pub gone: bool,
    /// How many enclaves were made in the VM's life.
    pub made: u64,
    /// A completion that had no room yet, or that of the command that was under way: its cookie, status, length, value and enclave.
    pub waiting: bool,
    /// Its cookie.
    pub waiting_cookie: u64,
    /// Its status, as 32 bits.
    pub waiting_status: u32,
    /// Its length.
    pub waiting_length: u32,
    /// Its value.
    pub waiting_value: u64,
    /// Its enclave.
    pub waiting_enclave: u64,
}

impl SavedEnclaveDevice {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;

    pub(crate) fn waiting(&self) -> Option<EnclaveCompletion> {
        self.waiting.then_some(EnclaveCompletion {
            cookie: self.waiting_cookie,
            status: self.waiting_status.cast_signed(),
            length: self.waiting_length,
            value: self.waiting_value,
            enclave: self.waiting_enclave,
        })
    }

    pub(crate) fn rings(&self) -> Result<(Ring<64>, Ring<32>), Unfit> {
        let commands =
            Ring { base: self.commands, bits: self.commands_bits, head: self.commands_head, tail: self.commands_tail };
        let completions = Ring {
            base: self.completions,
            bits: self.completions_bits,
            head: self.completions_head,
            tail: self.completions_tail,
        };
        if !commands.is_possible() || !completions.is_possible() {
            return Err(Unfit("an index of the enclave device is beyond its ring"));
        }
        if (self.interrupts | self.masked) & !interrupt::ALL != 0 {
            return Err(Unfit("the enclave device has interrupts that there are not"));
        }
        let is_empty = (self.waiting_cookie, self.waiting_status, self.waiting_length) == (0, 0, 0)
            && (self.waiting_value, self.waiting_enclave) == (0, 0);
        if !self.waiting && !is_empty {
            return Err(Unfit("no completion of the enclave device waits, and it has contents"));
        }
        Ok((commands, completions))
    }
}

pack::value!(SavedEnclaveDevice as "enclave" {
    commands, commands_bits, commands_head, commands_tail, completions, completions_bits, completions_head, completions_tail,
    interrupts, masked, broken, gone, made, waiting, waiting_cookie, waiting_status, waiting_length, waiting_value, waiting_enclave,
});
