//! From the bytes of a command to the operation that it describes, with everything checked that can be without the enclave.

use abi::enclave::{
    EnclaveCommand, EnclaveOpcode, EnclaveStatus, MAGIC, MAX_ADDED, MAX_BLOCKS, MEASUREMENT_SIZE, VERSION, flags,
    rights,
};
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE, Range};

/// What an enclave may do with its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageRights {
    /// Read them.
    Read,
    /// Read and write them.
    ReadWrite,
    /// Read and execute them.
    ReadExecute,
}

impl PageRights {
    const fn from_bits(bits: u64) -> Option<Self> {
        const READ_WRITE: u64 = rights::READ | rights::WRITE;
        const READ_EXECUTE: u64 = rights::READ | rights::EXECUTE;
        match bits {
            rights::READ => Some(Self::Read),
            READ_WRITE => Some(Self::ReadWrite),
            READ_EXECUTE => Some(Self::ReadExecute),
            _ => None,
        }
    }

    /// As the guest says it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::Read => rights::READ,
            Self::ReadWrite => rights::READ | rights::WRITE,
            Self::ReadExecute => rights::READ | rights::EXECUTE,
        }
    }
}

/// Where the pages of an `AddPages` come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// The guest's memory, from here on.
    Copied(Ipa),
    /// They are zeroes.
    Zeroes,
}

/// What a command asks, with numbers that are possible ones. Whether the enclave is there, and can be asked this, is not known yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnclaveOperation {
    /// What there is.
    Query,
    /// An enclave out of this memory, with its entry at this offset.
    Create {
        /// Whole blocks, as many as an enclave may have.
        memory: Range<Ipa>,
        /// A multiple of 4 within them.
        entry: u64,
    },
    /// So many pages at this offset.
    AddPages {
        /// A multiple of the page's size.
        offset: u64,
        /// At least one.
        count: u32,
        /// What the enclave may do with them.
        rights: PageRights,
        /// What is in them.
        contents: Contents,
        /// Whether that is measured.
        measured: bool,
    },
    /// The end of its making; the expected measurement is here.
    Finalise {
        /// In the guest's memory.
        expected: Ipa,
    },
    /// A call.
    Enter {
        /// X0 to X2.
        arguments: [u64; 3],
    },
    /// Continues it.
    Resume {
        /// The answer to a call outside.
        answer: u64,
    },
    /// Ends it.
    Destroy,
    /// Its measurement, to here.
    Measurement {
        /// In the guest's memory.
        to: Ipa,
    },
}

/// The operation that `command` describes.
///
/// # Errors
/// The status with which it ends instead.
pub fn parse(command: &EnclaveCommand) -> Result<EnclaveOperation, EnclaveStatus> {
    use EnclaveStatus::{Invalid, Malformed, Unsupported};
    let &EnclaveCommand { magic, version, opcode, cookie: _, enclave, flags, payload_length, arguments, payload } =
        command;
    if magic != MAGIC || version != VERSION {
        return Err(Malformed);
    }
    let opcode = EnclaveOpcode::from_number(opcode).ok_or(Unsupported)?;
    let allowed = if opcode == EnclaveOpcode::AddPages { flags::ZEROES | flags::UNMEASURED } else { 0 };
    if flags & !allowed != 0 {
        return Err(Invalid);
    }
    let no_payload = payload_length == 0 && payload == 0;
    let a_measurement = payload_length as usize == MEASUREMENT_SIZE;
    match (opcode, arguments) {
        (EnclaveOpcode::Query, [0, 0, 0]) if no_payload && enclave == 0 => Ok(EnclaveOperation::Query),
        (EnclaveOpcode::Create, [entry, 0, 0]) if enclave == 0 => {
            let size = u64::from(payload_length);
            let memory = Range { start: Ipa(payload), size };
            let is_whole = memory.start.is_aligned(BLOCK_SIZE) && size % BLOCK_SIZE == 0;
            let fits = size != 0 && size / BLOCK_SIZE <= MAX_BLOCKS as u64 && payload.checked_add(size).is_some();
            if !is_whole || !fits || entry >= size || entry % 4 != 0 {
                return Err(Invalid);
            }
            Ok(EnclaveOperation::Create { memory, entry })
        }
        (EnclaveOpcode::AddPages, [offset, bits, 0]) => {
            let rights = PageRights::from_bits(bits).ok_or(Invalid)?;
            let zeroes = flags & flags::ZEROES != 0;
            let contents = if zeroes { Contents::Zeroes } else { Contents::Copied(Ipa(payload)) };
            let are_pages = (offset | payload | u64::from(payload_length)) % PAGE_SIZE == 0;
            if !are_pages || payload_length == 0 || payload_length > MAX_ADDED || zeroes && payload != 0 {
                return Err(Invalid);
            }
            let count = payload_length / PAGE_SIZE as u32;
            Ok(EnclaveOperation::AddPages { offset, count, rights, contents, measured: flags & flags::UNMEASURED == 0 })
        }
        (EnclaveOpcode::Finalise, [0, 0, 0]) if a_measurement => {
            Ok(EnclaveOperation::Finalise { expected: Ipa(payload) })
        }
        (EnclaveOpcode::Enter, arguments) if no_payload => Ok(EnclaveOperation::Enter { arguments }),
        (EnclaveOpcode::Resume, [answer, 0, 0]) if no_payload => Ok(EnclaveOperation::Resume { answer }),
        (EnclaveOpcode::Destroy, [0, 0, 0]) if no_payload => Ok(EnclaveOperation::Destroy),
        (EnclaveOpcode::Measurement, [0, 0, 0]) if a_measurement => {
            Ok(EnclaveOperation::Measurement { to: Ipa(payload) })
        }
        (EnclaveOpcode::Report | EnclaveOpcode::DeriveKey | EnclaveOpcode::Seal | EnclaveOpcode::Unseal, _) => {
            Err(Unsupported)
        }
        _ => Err(Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::{Contents, EnclaveOperation, PageRights, parse};
    use abi::enclave::{EnclaveCommand, EnclaveOpcode, EnclaveStatus, flags};
    use units::{Ipa, Range};

    const BLOCK: u32 = 2 << 20;

    fn command(opcode: EnclaveOpcode) -> EnclaveCommand {
        EnclaveCommand::new(opcode, 7)
    }

    #[test]
    fn each_operation_has_its_form() {
        let parses = |command: EnclaveCommand| parse(&command);
        assert_eq!(parses(command(EnclaveOpcode::Query)), Ok(EnclaveOperation::Query));
        let create =
            EnclaveCommand { payload: 0x4020_0000, payload_length: 2 * BLOCK, ..command(EnclaveOpcode::Create) };
        let memory = Range { start: Ipa(0x4020_0000), size: u64::from(2 * BLOCK) };
        assert_eq!(
            parses(EnclaveCommand { arguments: [8, 0, 0], ..create }),
            Ok(EnclaveOperation::Create { memory, entry: 8 })
        );
        for wrong in [
            EnclaveCommand { payload: 0x4020_1000, ..create },
            EnclaveCommand { payload_length: BLOCK + 0x1000, ..create },
            EnclaveCommand { payload_length: 0, ..create },
            EnclaveCommand { payload_length: 5 * BLOCK, ..create },
            EnclaveCommand { payload: u64::MAX - 0x1f_ffff, ..create },
            EnclaveCommand { arguments: [2, 0, 0], ..create },
            EnclaveCommand { arguments: [u64::from(2 * BLOCK), 0, 0], ..create },
            EnclaveCommand { arguments: [0, 1, 0], ..create },
            EnclaveCommand { enclave: 1, ..create },
            EnclaveCommand { flags: 1, ..create },
        ] {
            assert_eq!(parses(wrong), Err(EnclaveStatus::Invalid), "{wrong:?}");
        }
        let add = EnclaveCommand {
            arguments: [0x3000, 5, 0],
            payload: 0x4000_0000,
            payload_length: 0x2000,
            ..command(EnclaveOpcode::AddPages)
        };
        let copied = EnclaveOperation::AddPages {
            offset: 0x3000,
            count: 2,
            rights: PageRights::ReadExecute,
            contents: Contents::Copied(Ipa(0x4000_0000)),
            measured: true,
        };
        assert_eq!(parses(add), Ok(copied));
        for wrong in [
            EnclaveCommand { arguments: [0x3001, 5, 0], ..add },
            EnclaveCommand { arguments: [0x3000, 7, 0], ..add },
            EnclaveCommand { arguments: [0x3000, 2, 0], ..add },
            EnclaveCommand { arguments: [0x3000, 5, 1], ..add },
            EnclaveCommand { payload: 0x4000_0800, ..add },
            EnclaveCommand { payload_length: 0x800, ..add },
            EnclaveCommand { payload_length: 0, ..add },
            EnclaveCommand { payload_length: (1 << 20) + 0x1000, ..add },
            EnclaveCommand { flags: flags::ZEROES, ..add },
            EnclaveCommand { flags: 4, ..add },
        ] {
            assert_eq!(parses(wrong), Err(EnclaveStatus::Invalid), "{wrong:?}");
        }
        let zeroes = EnclaveCommand { flags: flags::ZEROES | flags::UNMEASURED, payload: 0, ..add };
        let Ok(EnclaveOperation::AddPages { contents: Contents::Zeroes, measured: false, .. }) = parses(zeroes) else {
            panic!()
        };
        let short = EnclaveCommand { payload_length: 31, ..command(EnclaveOpcode::Finalise) };
        assert_eq!(parses(short), Err(EnclaveStatus::Invalid));
    }

    #[test]
    fn what_is_no_command_of_this_version_is_malformed() {
        let query = command(EnclaveOpcode::Query);
        assert_eq!(parse(&EnclaveCommand { magic: 0, ..query }), Err(EnclaveStatus::Malformed));
        assert_eq!(parse(&EnclaveCommand { version: 2, ..query }), Err(EnclaveStatus::Malformed));
        assert_eq!(parse(&EnclaveCommand { opcode: 12, ..query }), Err(EnclaveStatus::Unsupported));
        assert_eq!(parse(&command(EnclaveOpcode::Seal)), Err(EnclaveStatus::Unsupported));
    }
}
