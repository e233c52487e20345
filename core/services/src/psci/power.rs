//! Which of a VM's CPUs are on: the state behind CPU_ON, CPU_OFF, CPU_SUSPEND and AFFINITY_INFO.
//!
//! A CPU that was switched on is `ON_PENDING` until it runs (section 6.6): the caller of [`VmPower::cpu_on`] hands the
//! [`Start`] to the vCPU's thread, and that thread says [`VmPower::started`] before its first guest instruction. One VM's
//! calls must be serialized, by a lock of that VM; none of them is frequent.

use super::PsciError;
use pack::Damaged;
use units::{ByteOrder, Ipa, MAX_VCPUS, Range, VcpuId};

/// The affinity fields of `MPIDR_EL1`: Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0. All else must be zero in a target
/// (section 5.1.4).
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;
/// The highest affinity level there is.
const HIGHEST_LEVEL: u32 = 3;

/// Power states, original format: bit 16 says powerdown, bits 25:24 name the level, bits 15:0 are an identifier.
const POWER_STATE_POWERDOWN: u32 = 1 << 16;
/// All bits of a power state that must be zero: the reserved ones, and those of levels above the single CPU.
const POWER_STATE_MUST_BE_ZERO: u32 = !(POWER_STATE_POWERDOWN | 0xffff);

/// One CPU's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Power {
    Off,
    OnPending,
    On,
}

/// What `AFFINITY_INFO` says (section 5.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum AffinityState {
    /// At least one CPU of the group is on. A suspended CPU counts as on.
    On = 0,
    /// All are off.
    Off = 1,
    /// None is on, and at least one is about to be.
    OnPending = 2,
}

impl AffinityState {
    /// What X0 gets.
    #[must_use]
    pub const fn value(self) -> u64 {
        self as u64
    }
}

/// How a vCPU is to start: at EL1 with its MMU off and all interrupts masked (section 6.4), X0 holding `context`, and its data in the
/// byte order that its caller's had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// Which vCPU.
    pub vcpu: VcpuId,
    /// Its first instruction.
    pub entry: Ipa,
    /// Its X0.
    pub context: u64,
    /// Its byte order at EL1.
    pub order: ByteOrder,
}

/// What `CPU_SUSPEND` asks of the calling vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// Wait for an interrupt as WFI does, then return `SUCCESS`, keeping all registers.
    Standby,
    /// Wait for an interrupt, then start afresh at the entry.
    PowerDown(Start),
}

/// What is left of the VM after a `CPU_OFF`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuOffOutcome {
    /// Another CPU is on or starting.
    OthersRun,
    /// That was the last one. Nobody in the VM can ever switch one on again, so the VM has ended.
    NoneLeft,
}

/// The power state of one VM's CPUs. A suspended CPU is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedPower {
    /// How many there are.
    pub count: u8,
    /// Those that are on, a bit each.
    pub on: u8,
    /// Those that are about to be: how they start is known to whoever starts them.
    pub pending: u8,
}

impl SavedPower {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedPower versioned { count, on, pending });

/// The power state of one VM's CPUs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmPower {
    vcpus: [Power; MAX_VCPUS],
    count: u8,
    executable: Range<Ipa>,
}

impl VmPower {
    /// A VM with `count` vCPUs (at most [`MAX_VCPUS`]) of which number 0 is on; CPUs may start in `executable`, the VM's
    /// RAM. vCPU `n` is the one whose affinity fields are 0.0.0.n.
    #[must_use]
    pub fn new(count: u8, executable: Range<Ipa>) -> Self {
        let mut power = Self { vcpus: [Power::Off; MAX_VCPUS], count: count.min(MAX_VCPUS as u8), executable };
        power.reset();
        power
    }

    /// Back to the state at power on: vCPU 0 on, the others off.
    pub fn reset(&mut self) {
        self.vcpus = [Power::Off; MAX_VCPUS];
        if let Some(first) = self.vcpus.first_mut() {
            *first = Power::On;
        }
    }

    /// Takes the state out.
    #[must_use]
    pub fn save(&self) -> SavedPower {
        // Where CPUs may start follows from the machine.
        let &Self { vcpus, count, executable: _ } = self;
        let (mut on, mut pending) = (0, 0);
        for (number, power) in vcpus.into_iter().enumerate() {
            match power {
                Power::Off => {}
                Power::OnPending => pending |= 1 << number,
                Power::On => on |= 1 << number,
            }
        }
        SavedPower { count, on, pending }
    }

    /// Puts a state in.
    ///
    /// # Errors
    /// If it is not one of this VM's; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedPower) -> Result<(), Damaged> {
        let &SavedPower { count, on, pending } = saved;
        if count != self.count {
            return Err(Damaged::Impossible("the VM was saved with another number of vCPUs"));
        }
        if u32::from(on | pending) >> count != 0 || on & pending != 0 {
            return Err(Damaged::Impossible("a vCPU is on that the VM does not have, or on and about to be"));
        }
        for (number, power) in self.vcpus.iter_mut().enumerate() {
            *power = match (on >> number & 1, pending >> number & 1) {
                (0, 0) => Power::Off,
                (0, _) => Power::OnPending,
                _ => Power::On,
            };
        }
        Ok(())
    }

    /// Whether `vcpu` is on (running, or suspended).
    #[must_use]
    pub fn is_on(&self, vcpu: VcpuId) -> bool {
        self.vcpus.get(vcpu.index()) == Some(&Power::On)
    }

    /// The lowest vCPU that is on; where none is, the lowest that is about to be.
    #[must_use]
    pub fn first_on(&self) -> Option<VcpuId> {
        let first = |state| self.vcpus.iter().position(|&power| power == state);
        first(Power::On).or_else(|| first(Power::OnPending)).map(|number| VcpuId(number as u8))
    }

    /// `CPU_ON`: the vCPU with the affinity fields `target` is to start at `entry` with `context` in X0. It stays
    /// pending until [`started`](Self::started).
    ///
    /// # Errors
    /// `InvalidParameters` for a CPU that is not there, `InvalidAddress` for an entry that cannot be executed,
    /// `AlreadyOn`, `OnPending`; tested in this order.
    pub fn cpu_on(&mut self, target: u64, entry: u64, context: u64, order: ByteOrder) -> Result<Start, PsciError> {
        let vcpu = self.find(target).ok_or(PsciError::InvalidParameters)?;
        let entry = self.check_entry(entry)?;
        let power = self.vcpus.get_mut(vcpu.index()).ok_or(PsciError::InvalidParameters)?;
        match *power {
            Power::On => Err(PsciError::AlreadyOn),
            Power::OnPending => Err(PsciError::OnPending),
            Power::Off => {
                *power = Power::OnPending;
                Ok(Start { vcpu, entry, context, order })
            }
        }
    }

    /// Says that `vcpu`, pending until now, is about to run.
    pub fn started(&mut self, vcpu: VcpuId) {
        if let Some(power) = self.vcpus.get_mut(vcpu.index())
            && *power == Power::OnPending
        {
            *power = Power::On;
        }
    }

    /// `CPU_OFF`, called by `vcpu`.
    pub fn cpu_off(&mut self, vcpu: VcpuId) -> CpuOffOutcome {
        if let Some(power) = self.vcpus.get_mut(vcpu.index()) {
            *power = Power::Off;
        }
        if self.vcpus.iter().all(|&power| power == Power::Off) {
            CpuOffOutcome::NoneLeft
        } else {
            CpuOffOutcome::OthersRun
        }
    }

    /// `CPU_SUSPEND`, called by `vcpu`. The identifier in the power state (bits 15:0) is not looked at: there is one
    /// state of each type.
    ///
    /// # Errors
    /// `InvalidParameters` for a reserved bit or a level above the CPU, `InvalidAddress` for the entry of a powerdown
    /// state that cannot be executed.
    pub fn cpu_suspend(
        &self,
        vcpu: VcpuId,
        power_state: u32,
        entry: u64,
        context: u64,
        order: ByteOrder,
    ) -> Result<Suspension, PsciError> {
        if power_state & POWER_STATE_MUST_BE_ZERO != 0 {
            return Err(PsciError::InvalidParameters);
        }
        if power_state & POWER_STATE_POWERDOWN == 0 {
            return Ok(Suspension::Standby);
        }
        let entry = self.check_entry(entry)?;
        Ok(Suspension::PowerDown(Start { vcpu, entry, context, order }))
    }

    /// `AFFINITY_INFO`: the state of the CPUs whose affinity fields from `level` upwards equal those of `target`.
    ///
    /// # Errors
    /// `InvalidParameters` if there is no such level or no such CPU.
    pub fn affinity_info(&self, target: u64, level: u32) -> Result<AffinityState, PsciError> {
        if level > HIGHEST_LEVEL || target & !AFFINITY_MASK != 0 {
            return Err(PsciError::InvalidParameters);
        }
        if level == 0 {
            let vcpu = self.find(target).ok_or(PsciError::InvalidParameters)?;
            return Ok(match self.vcpus.get(vcpu.index()) {
                Some(Power::On) => AffinityState::On,
                Some(Power::OnPending) => AffinityState::OnPending,
                _ => AffinityState::Off,
            });
        }
        // All CPUs differ in affinity 0 only, so a group is all of them or none. Fields below the level don't count.
        let counts = AFFINITY_MASK & !0xff & !low_levels(level);
        if target & counts != 0 {
            return Err(PsciError::InvalidParameters);
        }
        let any = |state| self.vcpus.contains(&state);
        Ok(match () {
            () if any(Power::On) => AffinityState::On,
            () if any(Power::OnPending) => AffinityState::OnPending,
            () => AffinityState::Off,
        })
    }

    /// The vCPU with these affinity fields.
    fn find(&self, target: u64) -> Option<VcpuId> {
        u8::try_from(target).ok().filter(|&number| number < self.count).map(VcpuId)
    }

    /// An entry must be executable memory. Instructions are words: a caller of AArch64 cannot ask for another alignment.
    fn check_entry(&self, entry: u64) -> Result<Ipa, PsciError> {
        let entry = Ipa(entry);
        if entry.is_aligned(4) && self.executable.contains(entry) { Ok(entry) } else { Err(PsciError::InvalidAddress) }
    }
}

/// The affinity fields below `level` (1 to 3).
const fn low_levels(level: u32) -> u64 {
    match level {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xff_ffff,
    }
}
