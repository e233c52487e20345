//! What a feature adds beside instructions: its own registers.
//!
//! A guest may reach registers only if they are switched with its vCPU, or if they trap. The policy's table says which, in the
//! row of each field that says that a CPU has them; several fields may add the same registers.

/// Something that is switched, or something that traps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// Registers that are moved with the vCPU.
    Switched(State),
    /// Registers or instructions that guests find undefined.
    Trapped(Trap),
}

/// Registers that only some CPUs have, and that are moved with the vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// AP\*Key\*_EL1 (FEAT_PAuth), whichever algorithm uses them; enabled by HCR_EL2.APK and API.
    PointerKeys,
    /// VDISR_EL2 (FEAT_RAS), which a guest reaches as DISR_EL1.
    DeferredError,
    /// SCXTNUM_EL0 and SCXTNUM_EL1 (FEAT_CSV2_2, FEAT_CSV2_1p2); enabled by HCR_EL2.EnSCXT.
    ContextNumbers,
}

/// What only some CPUs have, and no guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trap {
    /// FEAT_SVE.
    ScalableVectors,
    /// FEAT_SME.
    ScalableMatrices,
    /// FEAT_PMUv3.
    PerformanceMonitors,
    /// FEAT_SPE.
    Profiling,
    /// FEAT_TRF.
    TraceFilter,
    /// FEAT_AMUv1.
    ActivityMonitors,
    /// FEAT_LOR.
    OrderingRegions,
    /// The error records of FEAT_RAS.
    ErrorRecords,
    /// FEAT_MPAM.
    Partitioning,
    /// FEAT_MTE2.
    Tags,
    /// FEAT_NMI.
    InterruptMask,
    /// FEAT_GCS.
    ControlStack,
    /// AT S1E1A (FEAT_ATS1A).
    CheckedTranslation,
}

/// Which registers a host's CPUs have to be switched, beyond what all have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Switched {
    /// [`State::PointerKeys`].
    pub pointer_keys: bool,
    /// [`State::DeferredError`].
    pub deferred_error: bool,
    /// [`State::ContextNumbers`].
    pub context_numbers: bool,
    /// Hardware breakpoints, 1 to 16: as many as a guest is shown.
    pub breakpoints: u8,
    /// Hardware watchpoints, 1 to 16: as many as a guest is shown.
    pub watchpoints: u8,
}
