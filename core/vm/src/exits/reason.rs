//! Why a guest exited, as it is counted and shown to operators.

/// Why guests exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Reason {
    /// A physical interrupt.
    Interrupt,
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
    /// An identification register.
    IdRegister,
    /// Another system register or instruction.
    SystemRegister,
    /// WFI.
    Wfi,
    /// WFE.
    Wfe,
    /// The first use of FP/SIMD since the vCPU came to its CPU.
    FloatingPoint,
    /// RAM touched for the first time, or refused to a store.
    Memory,
    /// RAM fetched from for the first time, since the hypervisor last stored there.
    Execution,
    /// A device's registers.
    Device,
    /// An access to nothing.
    Nothing,
    /// A call to the hypervisor through the debug channel, HVC #0x86 or WFE.
    Call,
    /// Anything else.
    Other,
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::Other as usize + 1;
    /// What they are called, by their numbers.
    pub const NAMES: [&str; Self::COUNT] = [
        "interrupt",
        "hvc",
        "smc",
        "id-register",
        "system-register",
        "wfi",
        "wfe",
        "floating-point",
        "memory",
        "execution",
        "device",
        "nothing",
        "call",
        "other",
    ];
}
