//! The enclave device as a guest sees it: the registers of its page, commands and completions of its two rings, and the numbers in
//! them. The same for each mechanism that a host may have below. What a command does is `core/enclave`'s business.
//!
//! Both rings lie in the guest's memory. A guest writes commands into the one and then the register [`register::CQ_TAIL`], which is
//! what inserts them; the device writes completions into the other one. An index counts entries and is less than the ring's size; a
//! ring whose head is its tail is empty, so one entry is always free. An enclave runs on the time of the vCPU that has inserted its call.

/// What the device tree calls it.
pub const COMPATIBLE: &str = "undercroft,enclave-v1";
/// What [`register::ID`] reads as ("VSE1").
pub const ID: u32 = 0x3145_5356;
/// What [`register::VERSION`] reads as, and each command has.
pub const VERSION: u16 = 1;
/// What each command begins with ("VSEC").
pub const MAGIC: u32 = 0x4345_5356;

/// Bytes of a command.
pub const COMMAND_SIZE: usize = 64;
/// Bytes of a completion.
pub const COMPLETION_SIZE: usize = 32;
/// The most entries of a ring, as a power of two; the fewest are two.
pub const MAX_RING_BITS: u32 = 8;
/// How many enclaves a VM may have at a time.
pub const MAX_ENCLAVES: usize = 4;
/// How much memory one may have: so many blocks of 2 MiB.
pub const MAX_BLOCKS: usize = 4;
/// The most bytes that one command adds.
pub const MAX_ADDED: u32 = 1 << 20;
/// Bytes of a measurement.
pub const MEASUREMENT_SIZE: usize = 32;
/// Where an enclave sees its memory.
pub const ENCLAVE_BASE: u64 = 0x4000_0000;

/// Offsets of the device's registers, each of 32 bits.
pub mod register {
    /// [`ID`](super::ID).
    pub const ID: u64 = 0x00;
    /// [`VERSION`](super::VERSION).
    pub const VERSION: u64 = 0x04;
    /// Which operations there are: bit *n* is operation number *n*.
    pub const FEATURES: u64 = 0x08;
    /// See [`status_bits`](super::status_bits).
    pub const STATUS: u64 = 0x0c;
    /// The ring of commands, in 64-byte steps. A write empties the ring, and is ignored while there are commands in it.
    pub const CQ_BASE_LOW: u64 = 0x10;
    /// Its upper half.
    pub const CQ_BASE_HIGH: u64 = 0x14;
    /// How many entries, as a power of two; likewise.
    pub const CQ_SIZE: u64 = 0x18;
    /// The next command that the device takes; read only.
    pub const CQ_HEAD: u64 = 0x1c;
    /// Behind the last command: a write inserts.
    pub const CQ_TAIL: u64 = 0x20;
    /// The ring of completions, in 32-byte steps, as the other one.
    pub const RQ_BASE_LOW: u64 = 0x28;
    /// Its upper half.
    pub const RQ_BASE_HIGH: u64 = 0x2c;
    /// How many entries, as a power of two.
    pub const RQ_SIZE: u64 = 0x30;
    /// The next completion that the guest has not seen; the guest writes it. While all entries but one are unseen the device stands still.
    pub const RQ_HEAD: u64 = 0x34;
    /// Behind the last completion; read only.
    pub const RQ_TAIL: u64 = 0x38;
    /// What has happened: [`interrupt`](super::interrupt).
    pub const INT_STATUS: u64 = 0x40;
    /// A one takes a bit of it back.
    pub const INT_ACK: u64 = 0x44;
    /// Bits that do not raise the interrupt; all, at first.
    pub const INT_MASK: u64 = 0x48;
    /// A write of any value ends all enclaves and empties both rings.
    pub const RESET: u64 = 0x50;
}

/// Bits of [`register::STATUS`].
pub mod status_bits {
    /// A ring cannot be used: it is not in the guest's memory, or has no size, or an index is beyond it. Only a reset helps.
    pub const BROKEN: u32 = 1;
    /// The VM goes on from a saved state, and the enclaves that it had then are gone. A reset takes the bit back.
    pub const GONE: u32 = 2;
    /// A reset is under way.
    pub const RESETTING: u32 = 4;
}

/// Bits of [`register::INT_STATUS`].
pub mod interrupt {
    /// A completion was written.
    pub const COMPLETION: u32 = 1;
    /// BROKEN or GONE was set.
    pub const STATUS: u32 = 2;
    /// All that there are.
    pub const ALL: u32 = COMPLETION | STATUS;
}

/// Bits of a command's flags.
pub mod flags {
    /// `AddPages`: pages of zeroes; there is no payload but its length.
    pub const ZEROES: u32 = 1;
    /// `AddPages`: what is in them is not measured; where they are, and with which rights, is.
    pub const UNMEASURED: u32 = 2;
}

/// What an enclave may do with a page: the second argument of `AddPages`.
pub mod rights {
    /// Read it; always.
    pub const READ: u64 = 1;
    /// Write it; not with EXECUTE.
    pub const WRITE: u64 = 2;
    /// Execute it.
    pub const EXECUTE: u64 = 4;
}

/// What an enclave asks by SVC, as the instruction's number.
pub mod service {
    /// It returns X0 to whoever has called it.
    pub const RETURN: u16 = 0;
    /// It calls outside, with X0; X0 is then what the guest resumes it with.
    pub const OUTCALL: u16 = 1;
}

macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident: $type:ty { $($(#[$each:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$each])* $variant = $value,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// By its number.
            #[must_use]
            pub const fn from_number(number: $type) -> Option<Self> {
                match number {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbers! {
    /// What a command asks.
    EnclaveOpcode: u16 {
        /// What there is: the value is FEATURES, and above it the most enclaves (bits 39:32) and the most blocks of one (47:40).
        Query = 0,
        /// Makes an enclave out of the payload's memory, which are whole blocks: the guest has them no more. The first argument is the
        /// offset of its entry, the others are zero. The completion names it.
        Create = 1,
        /// Copies pages of the payload to the offset that is the first argument, with the rights that are the second.
        AddPages = 2,
        /// Ends its making, if what was measured is the payload's 32 bytes.
        Finalise = 3,
        /// Calls it with the arguments in X0 to X2. The value is what it returns, or what it calls outside with.
        Enter = 4,
        /// Continues it where it was interrupted, or called outside: then the first argument is the answer.
        Resume = 5,
        /// Ends it. Its memory is the guest's again, as zeroes.
        Destroy = 6,
        /// Writes its measurement to the payload's memory.
        Measurement = 7,
        /// Proves to somebody else what it is.
        Report = 8,
        /// Gives it a key of its own.
        DeriveKey = 9,
        /// Encrypts for it alone.
        Seal = 10,
        /// And back.
        Unseal = 11,
    }
}

numbers! {
    /// How a command ended.
    EnclaveStatus: i32 {
        /// It is done.
        Done = 0,
        /// The enclave calls outside: it waits for `Resume`.
        Outcall = 1,
        /// The vCPU has something else to do: the enclave waits for `Resume`.
        Interrupted = 2,
        /// No command of this version.
        Malformed = -1,
        /// There is no such operation, or not on this host.
        Unsupported = -2,
        /// Arguments, flags or lengths are none that the operation has.
        Invalid = -3,
        /// The payload is not in the guest's memory.
        Address = -4,
        /// Not in this state of the enclave.
        State = -5,
        /// This VM has no such enclave.
        Unknown = -6,
        /// It has as many as it may have.
        Limit = -7,
        /// What was measured is something else.
        Measurement = -8,
        /// The enclave did what it may not do. It can only be destroyed.
        Fault = -9,
        /// The mechanism has failed.
        Mechanism = -10,
        /// This host has no mechanism.
        NoMechanism = -11,
        /// The VM goes on from a saved state, and the enclave is gone.
        Gone = -12,
    }
}

/// A command, as its 64 bytes say it: nothing is checked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EnclaveCommand {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// The number of an [`EnclaveOpcode`].
    pub opcode: u16,
    /// The guest's own, for the completion.
    pub cookie: u64,
    /// Which enclave, if there is one yet.
    pub enclave: u64,
    /// See [`flags`].
    pub flags: u32,
    /// How long the payload is.
    pub payload_length: u32,
    /// What they mean depends on the operation.
    pub arguments: [u64; 3],
    /// Where the payload is.
    pub payload: u64,
}

impl EnclaveCommand {
    /// A command of this version.
    #[must_use]
    pub fn new(opcode: EnclaveOpcode, cookie: u64) -> Self {
        Self { magic: MAGIC, version: VERSION, opcode: opcode as u16, cookie, ..Self::default() }
    }

    /// From the bytes in the ring.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; COMMAND_SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h] = words(bytes);
        Self {
            magic: low(a),
            version: (a >> 32 & 0xffff) as u16,
            opcode: (a >> 48) as u16,
            cookie: b,
            enclave: c,
            flags: low(d),
            payload_length: (d >> 32) as u32,
            arguments: [e, f, g],
            payload: h,
        }
    }

    /// As it stands in the ring.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; COMMAND_SIZE] {
        let &Self { magic, version, opcode, cookie, enclave, flags, payload_length, arguments: [e, f, g], payload } =
            self;
        let first = u64::from(magic) | u64::from(version) << 32 | u64::from(opcode) << 48;
        let fourth = u64::from(flags) | u64::from(payload_length) << 32;
        bytes([first, cookie, enclave, fourth, e, f, g, payload])
    }
}

/// What became of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EnclaveCompletion {
    /// The command's.
    pub cookie: u64,
    /// The number of an [`EnclaveStatus`].
    pub status: i32,
    /// How many bytes were written to the payload's memory, or added from there.
    pub length: u32,
    /// What the operation has as a value.
    pub value: u64,
    /// The command's; of `Create`, which one it has made.
    pub enclave: u64,
}

impl EnclaveCompletion {
    /// From the bytes in the ring.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; COMPLETION_SIZE]) -> Self {
        let [a, b, c, d] = words(bytes);
        Self { cookie: a, status: low(b).cast_signed(), length: (b >> 32) as u32, value: c, enclave: d }
    }

    /// As it stands in the ring.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; COMPLETION_SIZE] {
        let &Self { cookie, status, length, value, enclave } = self;
        bytes([cookie, u64::from(status.cast_unsigned()) | u64::from(length) << 32, value, enclave])
    }
}

const fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

fn words<const COUNT: usize>(bytes: &[u8]) -> [u64; COUNT] {
    let mut words = [0; COUNT];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

fn bytes<const COUNT: usize, const SIZE: usize>(words: [u64; COUNT]) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{EnclaveCommand, EnclaveCompletion, EnclaveOpcode, EnclaveStatus, ID, MAGIC};

    #[test]
    fn each_field_of_a_command_has_its_bytes() {
        assert_eq!((ID.to_le_bytes(), MAGIC.to_le_bytes()), (*b"VSE1", *b"VSEC"));
        let command = EnclaveCommand {
            enclave: 0x1716_1514_1312_1110,
            flags: 0x1b1a_1918,
            payload_length: 0x1f1e_1d1c,
            arguments: [0x2726_2524_2322_2120, 0x2f2e_2d2c_2b2a_2928, 0x3736_3534_3332_3130],
            payload: 0x3f3e_3d3c_3b3a_3938,
            ..EnclaveCommand::new(EnclaveOpcode::Resume, 0x0f0e_0d0c_0b0a_0908)
        };
        let bytes = command.to_bytes();
        assert_eq!(bytes[..8], [b'V', b'S', b'E', b'C', 1, 0, 5, 0]);
        assert!(bytes[8..].iter().zip(8..).all(|(&byte, place)| byte == place));
        assert_eq!(EnclaveCommand::from_bytes(&bytes), command);
    }

    #[test]
    fn each_field_of_a_completion_has_its_bytes() {
        let completion = EnclaveCompletion {
            cookie: 0x0706_0504_0302_0100,
            status: 0x0b0a_0908,
            length: 0x0f0e_0d0c,
            value: 0x1716_1514_1312_1110,
            enclave: 0x1f1e_1d1c_1b1a_1918,
        };
        let bytes = completion.to_bytes();
        assert!(bytes.iter().zip(0..).all(|(&byte, place)| byte == place));
        assert_eq!(EnclaveCompletion::from_bytes(&bytes), completion);
        let failed = EnclaveCompletion { status: EnclaveStatus::Gone as i32, ..completion };
        assert_eq!(EnclaveCompletion::from_bytes(&failed.to_bytes()), failed);
    }

    #[test]
    fn every_number_has_one_meaning() {
        for &opcode in EnclaveOpcode::ALL {
            assert_eq!(EnclaveOpcode::from_number(opcode as u16), Some(opcode));
        }
        for &status in EnclaveStatus::ALL {
            assert_eq!(EnclaveStatus::from_number(status as i32), Some(status));
        }
        assert_eq!((EnclaveOpcode::from_number(12), EnclaveStatus::from_number(3)), (None, None));
    }
}
