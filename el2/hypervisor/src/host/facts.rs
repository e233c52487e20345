//! Facts about this host that are found at boot and never change again, and the EL2 registers that are the same for all
//! guests.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cpu::controls::{GuestControls, controls};
use cpu::id::{self, GuestIds, HostIds, Part, Trap};
use cpu::requirements::{self, Missing};
use hw::state::{Features, TimeControls};
use hw::sysreg;
use services::Workarounds;
use snapshot::SavedCpu;
use spin::Once;
use units::Hz;

/// The facts.
pub struct Host {
    /// What a guest reads from its identification registers.
    pub(crate) guest_ids: GuestIds,
    /// EL2's controls while a guest runs.
    pub controls: GuestControls,
    /// Which registers there are to be switched.
    pub features: Features,
    /// VTCR_EL2 for all guests.
    pub(crate) vtcr: u64,
    /// The system counter's frequency.
    pub(crate) counter: Hz,
    /// Whether AT S1E1RP and S1E1WP exist (FEAT_PAN2), which respect PSTATE.PAN.
    pub(crate) translates_alone: bool,
    /// Virtual priority bits, 5 to 8.
    pub(crate) priority_bits: u8,
    /// Whether VMIDs of more than 8 bits exist does not matter: there are at most 64 VMs.
    midr: u64,
    /// The identification registers that all of it follows from, and ICH_VTR_EL2.
    ids: (HostIds, u64),
}

static HOST: Once<Host> = Once::new();
static WFE_TRAPS: AtomicBool = AtomicBool::new(false);
static TELLS_OF_GROUP_0: AtomicBool = AtomicBool::new(false);
static TRAPS_DEACTIVATION: AtomicBool = AtomicBool::new(false);
static TICKS_PER_MICROSECOND: AtomicU64 = AtomicU64::new(1);

/// Why Undercroft cannot run here.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// A feature that it cannot do without.
    Missing(Missing),
    /// Stage 2 cannot be set up.
    Stage2(stage2::Stage2Error),
    /// The counter's frequency is not known.
    NoCounter,
}

impl core::fmt::Display for Unfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::Stage2(error) => error.fmt(f),
            Self::NoCounter => f.write_str(
                "the counter's frequency is unknown: firmware must set CNTFRQ_EL0 or the device tree clock-frequency",
            ),
        }
    }
}

/// Reads the host's identification registers and judges them.
///
/// # Errors
/// What the host lacks.
#[inline(never)]
pub(crate) fn init(frequency: Option<Hz>) -> Result<(), Unfit> {
    let ids = HostIds(hw::ids::read_all());
    requirements::check(&ids).map_err(Unfit::Missing)?;
    let mmfr = |op2| id::index(cpu::SysregEncoding::new(3, 0, 0, 7, op2)).and_then(|index| ids.0.get(index)).copied();
    let vtcr = stage2::vtcr_el2(mmfr(0).unwrap_or(0), mmfr(1).unwrap_or(0)).map_err(Unfit::Stage2)?;
    let counter = match sysreg::cntfrq_el0() {
        0 => frequency.ok_or(Unfit::NoCounter)?,
        hertz => Hz(hertz),
    };
    TICKS_PER_MICROSECOND.store((counter.0 / 1_000_000).max(1), Ordering::Relaxed);
    let vtr = sysreg::ich_vtr_el2();
    let has_counters = ids.has(Part::Trapped(Trap::PerformanceMonitors));
    let event_counters = if has_counters { hw::ids::event_counters() } else { 0 };
    let controls = controls(&ids, event_counters);
    let features = Features {
        switched: ids.switched(),
        fine_grained: controls.fine_grained.is_some(),
        physical_offset: controls.has_physical_offset,
        usual_time: TimeControls {
            cnthctl: controls.cnthctl,
            cntfrq: if controls.owns_frequency { u32::try_from(sysreg::cntfrq_el0()).ok() } else { None },
        },
        list_registers: (vtr & 0x1f) as u8 + 1,
        priority_words: 1 << ((vtr >> 26 & 7).saturating_sub(4)).min(2),
    };
    let guest_ids = GuestIds::new(&ids, id::Inputs { ipa_bits: units::IPA_BITS as u8 });
    let host = Host {
        guest_ids,
        controls,
        features,
        vtcr,
        counter,
        translates_alone: ids.field(id::fields::MMFR1_PAN) >= 2,
        priority_bits: (vtr >> 29 & 7) as u8 + 1,
        midr: sysreg::midr_el1(),
        ids: (ids, vtr),
    };
    HOST.call_once(|| host);
    Ok(())
}

/// Whether what was found out of the CPU that booted holds for this one, which has these identification registers. A vCPU runs here and
/// there, with the controls and the registers of the one: where another feature is, guests would share its registers, or lose
/// theirs.
#[must_use]
pub(crate) fn is_alike(ids: HostIds) -> bool {
    get().ids == (ids, sysreg::ich_vtr_el2())
}

/// The facts. After [`init`].
#[inline(always)]
#[must_use]
pub fn get() -> &'static Host {
    match HOST.get() {
        Some(host) => host,
        None => unreachable!("the host is examined before anything asks about it"),
    }
}

/// What guests know of their CPU beside its features, as this host shows it to all of them.
#[must_use]
pub(crate) fn guests_cpu() -> SavedCpu {
    let Workarounds { branch_target, store_bypass, branch_history } = super::speculation::workarounds();
    SavedCpu {
        midr: get().midr,
        cache_type: sysreg::ctr_el0(),
        zero_block: sysreg::dczid_el0(),
        workarounds: [branch_target, store_bypass, branch_history].map(|need| need.feature() as u32),
    }
}

/// The system counter's frequency. Not what CNTFRQ_EL0 says, once guests run: that may be what the loaded guest is told.
#[must_use]
pub(crate) fn frequency() -> Hz {
    HOST.get().map_or_else(|| Hz(sysreg::cntfrq_el0()), |host| host.counter)
}

/// Writes the EL2 registers that are the same for all guests. Once per CPU.
pub(crate) fn init_cpu() {
    let host = get();
    let controls = &host.controls;
    hw::cache::join();
    // Interrupts come to EL2 from the first moment (IMO), not only once a vCPU was loaded here.
    sysreg::hcr_el2::write(controls.hcr);
    sysreg::vtcr_el2::write(host.vtcr);
    sysreg::cnthctl_el2::write(controls.cnthctl);
    sysreg::hstr_el2::write(controls.hstr);
    sysreg::vpidr_el2::write(host.midr);
    if let Some(hcrx) = controls.hcrx {
        sysreg::hcrx_el2::write(hcrx);
    }
    if let Some(traps) = &controls.fine_grained {
        sysreg::hfgrtr_el2::write(traps.hfgrtr);
        sysreg::hfgwtr_el2::write(traps.hfgwtr);
        sysreg::hfgitr_el2::write(traps.hfgitr);
        sysreg::hdfgrtr_el2::write(traps.hdfgrtr);
        sysreg::hdfgwtr_el2::write(traps.hdfgwtr);
        if controls.has_activity_monitors {
            sysreg::hafgrtr_el2::write(traps.hafgrtr);
        }
    }
    if controls.has_fine_grained_2 {
        hw::ids::clear_fine_grained_2();
    }
    // EL1's own trap of EL0 would come before ours, and tell of a feature that is hidden: what EL0 does comes to EL2 too. The
    // registers of these enables trap, so no guest changes them.
    if controls.has_performance_monitors {
        sysreg::pmuserenr_el0::write(cpu::controls::PMUSERENR);
    }
    if controls.has_activity_monitors {
        sysreg::amuserenr_el0::write(cpu::controls::AMUSERENR);
    }
    if controls.has_control_stacks {
        sysreg::gcscre0_el1::write(cpu::controls::GCSCRE0);
    }
    if let Some(mpam2) = controls.mpam2 {
        sysreg::mpam2_el2::write(mpam2);
    }
    if host.features.switched.deferred_error {
        // The syndrome of SErrors that are injected: none in particular.
        sysreg::vsesr_el2::write(0);
    }
    // The channel's interrupts are no guest's business: its MDCCINT_EL1 is emulated.
    sysreg::mdccint_el1::write(0);
    // Whatever firmware left locked: a guest's own OS lock is emulated.
    sysreg::oslar_el1(0);
    // Whoever had this CPU before may have left it armed: it would fire for ever, with no guest loaded whose it is.
    sysreg::cntv_ctl_el0::write(0);
    sysreg::isb();
}

/// `microseconds` in ticks of the counter, roughly: for slices and timeouts.
#[inline(always)]
#[must_use]
pub fn ticks(microseconds: u64) -> u64 {
    microseconds.saturating_mul(TICKS_PER_MICROSECOND.load(Ordering::Relaxed))
}

/// Milliseconds since the counter began.
#[must_use]
pub(crate) fn milliseconds() -> u64 {
    get().counter.nanoseconds(sysreg::cntpct_el0()) / 1_000_000
}

/// Tries whether WFE traps here, on the boot CPU for all: the CPUs of one machine do not differ in that. IRQs are masked, and no
/// guest has run.
pub(crate) fn probe_wfe() -> bool {
    let traps = hw::probe::traps_wfe();
    WFE_TRAPS.store(traps, Ordering::Relaxed);
    traps
}

/// Tries whether the GIC tells that a guest disables Group 0, under the same conditions as [`probe_wfe`].
pub(crate) fn probe_group_0() {
    TELLS_OF_GROUP_0.store(hw::gic::tells_of_group_0(), Ordering::Relaxed);
}

/// See [`probe_group_0`].
#[must_use]
pub(crate) fn tells_of_group_0() -> bool {
    TELLS_OF_GROUP_0.load(Ordering::Relaxed)
}

/// Finds out whether ICC_DIR_EL1 traps by itself; `may` says whether that is used, which is [`crate::exit::checks::Checks`]'.
pub(crate) fn init_deactivation(may: fn(bool) -> bool) {
    let traps = may(requirements::traps_deactivation(sysreg::ich_vtr_el2()));
    TRAPS_DEACTIVATION.store(traps, Ordering::Relaxed);
    if !traps {
        log::info!("the GIC does not trap ICC_DIR_EL1 by itself: it traps with ICC_PMR_EL1 and ICC_CTLR_EL1");
    }
}

/// See [`init_deactivation`].
#[must_use]
pub(crate) fn traps_deactivation() -> bool {
    TRAPS_DEACTIVATION.load(Ordering::Relaxed)
}

/// See [`probe_wfe`].
#[must_use]
pub(crate) fn wfe_traps() -> bool {
    WFE_TRAPS.load(Ordering::Relaxed)
}
