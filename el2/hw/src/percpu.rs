//! The per-CPU area, one constant address away.
//!
//! Each CPU owns one page. All CPUs map their own page at the same virtual address, [`ALIAS`], because each has its own
//! top-level table in which that one slot differs (`mmu`). "My CPU's data" is therefore a load or store from an
//! immediate address: no register is read first, so there is no moment between learning where the data is and using it
//! in which a thread could be moved and continue with the wrong CPU's. The page is also mapped where it physically is,
//! the address kept in TPIDR_EL2, so that others can look at it.
//!
//! The alias must not be cached across something that may move the thread: accessors read it afresh each time.

use core::cell::UnsafeCell;
use core::ops::Deref;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use units::{CpuId, Pa};

use crate::vcpu::VcpuContext;

/// Where every CPU sees its own area: slot 255 of its top-level table. One `movz` builds it.
pub const ALIAS: u64 = 0x7f80_0000_0000;

/// What runs when an interrupt arrives in EL2, with IRQs masked; it is given the address where EL2 will go on.
pub type InterruptHook = extern "C" fn(return_address: u64);
/// What runs when a preemption was deferred to the end of listed code (`nopreempt`), with IRQs masked.
pub type PreemptHook = fn();

/// One CPU's page. The area is at its start; what is left is nobody's, in the image that ships.
#[repr(C, align(4096))]
pub struct PerCpu(Area);

impl Deref for PerCpu {
    type Target = Area;

    #[inline(always)]
    fn deref(&self) -> &Area {
        &self.0
    }
}

/// One CPU's area. The first fields are used by the vectors, by offset.
#[repr(C)]
pub struct Area {
    /// The vCPU whose EL1 state is in this CPU's registers; what an exit stores the guest's registers into.
    pub(crate) vcpu: AtomicPtr<VcpuContext>,
    /// By how many rounds a guest's branch history is overwritten here; 0 if the CPU's own instruction does it, or nothing
    /// needs to ([`crate::speculation`]).
    pub(crate) history_rounds: AtomicU64,
    /// The function of the firmware's that each exit from a guest calls, with the vectors that do.
    pub(crate) workaround: AtomicU32,
    /// The branch history is a guest's, though another thread went on.
    pub(crate) foreign_history: AtomicU32,
    /// See [`InterruptHook`].
    pub(crate) interrupt_hook: UnsafeCell<Option<InterruptHook>>,
    /// Top of the stack for faults that the thread's own stack cannot take.
    pub(crate) emergency_stack: u64,
    /// Where a fault on a full stack leaves the stack pointer it came with.
    pub(crate) faulting_sp: u64,
    /// Two registers' worth of room for the vectors.
    pub(crate) scratch: [u64; 2],
    /// Bytes zeroed here, and the ticks of the counter that this took: see [`crate::nopreempt::add_zeroed`].
    pub zeroed: [AtomicU64; 2],
    /// See [`PreemptHook`].
    preempt_hook: UnsafeCell<Option<PreemptHook>>,
    /// Which CPU this is.
    pub cpu: CpuId,
    /// The running thread, an address that only the scheduler gives meaning to.
    pub thread: AtomicU64,
    /// Not zero while this CPU must look at its run queue before it enters a guest again.
    pub reschedule: AtomicU32,
    /// Not zero while a preemption waits for the end of listed code (`nopreempt`), or for a lock to be let go of (`sync`).
    pub preempt_pending: AtomicU32,
    /// How many locks the running thread holds for which it must stay on this CPU (`sync`).
    pub(crate) unpreemptible: AtomicU32,
    /// Where this CPU's Redistributor is.
    pub(crate) redistributor: AtomicU64,
    /// The affinity value of MPIDR_EL1 by which SGIs reach this CPU.
    pub affinity: u64,
}

// Both images have the same area, so one field that only checks use would ship. Whoever adds a field that every CPU needs changes the
// number; what only checks need has its place behind the area (`selftest`).
const _: () =
    assert!(size_of::<Area>() == 136, "the per-CPU area has another size: is what was added for more than checks?");

// SAFETY: the plain fields are written once before the CPU runs with this area; the `UnsafeCell`s likewise, by the CPU
// itself with IRQs masked; everything else is atomic.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// An area for `cpu`, to be written into its page before the CPU starts.
    pub(crate) const fn new(cpu: CpuId, affinity: u64, emergency_stack: u64) -> Self {
        Self(Area {
            vcpu: AtomicPtr::new(core::ptr::null_mut()),
            history_rounds: AtomicU64::new(0),
            workaround: AtomicU32::new(0),
            foreign_history: AtomicU32::new(0),
            interrupt_hook: UnsafeCell::new(None),
            emergency_stack,
            faulting_sp: 0,
            scratch: [0; 2],
            zeroed: [const { AtomicU64::new(0) }; 2],
            preempt_hook: UnsafeCell::new(None),
            cpu,
            thread: AtomicU64::new(0),
            reschedule: AtomicU32::new(0),
            preempt_pending: AtomicU32::new(0),
            unpreemptible: AtomicU32::new(0),
            redistributor: AtomicU64::new(0),
            affinity,
        })
    }
}

impl Area {
    /// See [`PreemptHook`].
    pub(crate) fn preempt_hook(&self) -> Option<PreemptHook> {
        // SAFETY: written once, by `set_hooks`, before listed code runs on this CPU.
        unsafe { *self.preempt_hook.get() }
    }
}

/// Where each CPU's area physically is; 0 for one that was not started.
static AREAS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// CPUs with a number from here on cannot be looked at.
const MAX_CPUS: usize = 64;

/// An area was written for `cpu`.
pub(crate) fn publish(cpu: CpuId, area: Pa) {
    if let Some(slot) = AREAS.get(usize::from(cpu.0)) {
        // Pairs with the acquire in `of`: whoever finds the area finds it written.
        slot.store(area.0, Ordering::Release);
    }
}

/// The ordinary address of another CPU's area, whose page holds it for ever.
pub(crate) fn address_of(cpu: CpuId) -> Option<usize> {
    // Pairs with the release in `publish`.
    let address = AREAS.get(usize::from(cpu.0))?.load(Ordering::Acquire);
    (address != 0).then_some(address as usize)
}

/// Another CPU's area, by its ordinary address: for statistics and debugging.
#[must_use]
pub fn of(cpu: CpuId) -> Option<&'static PerCpu> {
    let address = address_of(cpu)?;
    // SAFETY: `publish` is told of pages that hold a `PerCpu` for ever, identity-mapped with the alias's attributes.
    Some(unsafe { &*core::ptr::with_exposed_provenance(address) })
}

/// This CPU's area. The reference stays valid for ever, and *means another area* after the thread moves: that is the
/// point of it. It must not be kept in a place that another thread reads.
#[inline(always)]
#[must_use]
pub fn this_cpu() -> &'static PerCpu {
    // SAFETY: `mmu` maps a page that holds a `PerCpu` at ALIAS on each CPU before Rust code beyond the boot path runs
    // there, and never unmaps it; shared access is sound as `PerCpu` is `Sync`.
    unsafe { &*(ALIAS as *const PerCpu) }
}

/// Sets what this CPU does at interrupts. Called once per CPU, with IRQs masked, before either can happen.
pub fn set_hooks(interrupt: InterruptHook, preempt: PreemptHook) {
    let area = this_cpu();
    // SAFETY: the cells are read only by this CPU's vectors, none of which runs during this call: no guest has been
    // entered here yet and IRQs are masked.
    unsafe {
        *area.interrupt_hook.get() = Some(interrupt);
        *area.preempt_hook.get() = Some(preempt);
    }
}
