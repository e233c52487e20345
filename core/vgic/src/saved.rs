//! The interrupt controller's state as a value: taken out of a [`Vgic`] and put into another one, on this host or on
//! another.
//!
//! Only what the guest can see, or what decides about what it will see, is in here. What belongs to the host is not:
//! how many list registers there are, what its CPUs tell of, which physical interrupt stands behind a timer's, what was left to deactivate.
//! Before a VM is taken out, each vCPU is synced and detached from its CPU ([`Vgic::sync`], [`Vgic::detach_hardware`]);
//! a timer's interrupt that was pending then is pending again once the timer, put back, fires on the new CPU.
//!
//! The values may come from a file. A state that no guest could have reached is refused, so the rest of the model need
//! not expect it.
//!
//! Each type is taken apart by naming all of its fields: a field that is added and forgotten here does not compile.

use crate::bank::{Bank, Held, bits};
use crate::distributor::{ROUTER_AFFINITY, ROUTER_ANY, ROUTER_MASK};
use crate::{Config, Group, SGI_EDGES, SHARED_WORDS, SPIS, Vcpu, Vgic, WORDS};
use units::{MAX_VCPUS, VcpuId};

/// The state of one VM's interrupt controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// GICD_CTLR.EnableGrp0 and EnableGrp1, a bit each.
    pub groups: u8,
    /// How many bits of a priority the guest can write, 5 to 8.
    pub priority_bits: u8,
    /// How many of them decide about preemption, 5 to 7.
    pub preemption_bits: u8,
    /// The SPIs, 32 in each.
    pub shared: [SavedBank; SHARED_WORDS],
    /// GICD_IROUTER of each SPI.
    pub router: [u64; SPIS],
    /// How many vCPUs there are; of the others nothing is looked at.
    pub vcpu_count: u8,
    /// The vCPUs.
    pub vcpus: [SavedVcpu; MAX_VCPUS],
}

/// The state of 32 interrupts; bit *n* is interrupt *n*.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedBank {
    /// ISENABLER.
    pub enabled: u32,
    /// IGROUPR: set for Group 1.
    pub group: u32,
    /// ICFGR: set for edge-triggered.
    pub edge: u32,
    /// Pending by an edge or by a write to ISPENDR.
    pub latched: u32,
    /// The input lines.
    pub level: u32,
    /// IPRIORITYR.
    pub priority: [u8; 32],
    /// Active ones whose priorities or groups may be others than when they were acknowledged,
    pub kept: u32,
    /// what their priorities were then; 0 for all others,
    pub kept_priority: [u8; 32],
    /// and their groups.
    pub kept_group: u32,
}

/// The state of one vCPU's Redistributor, and what its vCPU is handling.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedVcpu {
    /// SGIs and PPIs.
    pub private: SavedBank,
    /// Active on this vCPU, 32 interrupts in each word.
    pub active: [u32; WORDS],
    /// Of those, the ones that no end of interrupt is going to end: made active through ISACTIVER, or their priority was
    /// dropped with EOImode one.
    pub set_aside: [u32; WORDS],
    /// GICR_WAKER.ProcessorSleep.
    pub asleep: bool,
    /// It is switched on.
    pub on: bool,
    /// The groups that its CPU interface has enabled: bit *n* is Group *n*.
    pub interface: u8,
    /// GICR_CTLR.DPG0 and DPG1NS.
    pub declines: u8,
}

/// Why a state cannot be taken out or put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// This vCPU still has interrupts in its list registers, or linked to a physical one.
    NotSettled(VcpuId),
    /// It has so many vCPUs, this VM another number.
    Vcpus(u8),
    /// Its guest knows so many priority bits, this host has fewer.
    PriorityBits(u8),
    /// Its guest knows so many preemption bits, this host has fewer.
    PreemptionBits(u8),
    /// No guest could have brought this about.
    Impossible(&'static str),
}

impl core::fmt::Display for Unfit {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotSettled(vcpu) => write!(out, "vCPU {} still has interrupts in its list registers", vcpu.0),
            Self::Vcpus(count) => write!(out, "the interrupt controller was saved with {count} vCPUs"),
            Self::PriorityBits(bits) => write!(out, "its guest knows {bits} priority bits, this CPU has fewer"),
            Self::PreemptionBits(bits) => write!(out, "its guest knows {bits} preemption bits, this CPU has fewer"),
            Self::Impossible(what) => write!(out, "the interrupt controller's state is damaged: {what}"),
        }
    }
}

impl core::error::Error for Unfit {}

impl Saved {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 2;
}

pack::value!(Saved as "gic" { groups, priority_bits, preemption_bits, shared, router, vcpu_count, vcpus });
pack::value!(SavedBank { enabled, group, edge, latched, level, priority, kept, kept_priority, kept_group });
pack::value!(SavedVcpu { private, active, set_aside, asleep, on, interface, declines });

impl Vgic {
    /// Takes the state out. Each vCPU has been synced and detached from its CPU, and none is flushed meanwhile.
    ///
    /// # Errors
    /// [`Unfit::NotSettled`] if that was forgotten.
    pub fn save(&self) -> Result<Saved, Unfit> {
        let Self {
            vcpu_count,
            // The host's.
            list_register_count: _,
            preemption_bits: _,
            tells_of_group_0: _,
            always: _,
            priority_mask,
            known_preemption_bits,
            group0,
            group1,
            shared,
            router,
            // It says what `router` says.
            anywhere: _,
            vcpus,
        } = self;
        let mut saved = Saved {
            groups: u8::from(*group0 != 0) << Group::Zero as u8 | u8::from(*group1 != 0) << Group::One as u8,
            priority_bits: priority_mask.leading_ones() as u8,
            preemption_bits: *known_preemption_bits,
            shared: core::array::from_fn(|word| shared[word].save(active_anywhere(vcpus, word + 1))),
            router: *router,
            vcpu_count: *vcpu_count as u8,
            vcpus: [SavedVcpu::default(); MAX_VCPUS],
        };
        let places = saved.vcpus.iter_mut().zip(vcpus).zip(0..).take(*vcpu_count);
        for ((place, vcpu), number) in places {
            *place = vcpu.save().ok_or(Unfit::NotSettled(VcpuId(number)))?;
        }
        Ok(saved)
    }

    /// Makes the interrupt controller that `saved` describes, on a host that `config` describes. All vCPUs are to be flushed
    /// before they run.
    ///
    /// # Errors
    /// It does not fit, or nobody could have saved it.
    pub fn restore(config: Config, saved: &Saved) -> Result<Self, Unfit> {
        let mut vgic = Self::new(config);
        let Saved { groups, priority_bits, preemption_bits, shared, router, vcpu_count, vcpus } = saved;
        if usize::from(*vcpu_count) != vgic.vcpu_count {
            return Err(Unfit::Vcpus(*vcpu_count));
        }
        if *priority_bits > vgic.priority_mask.leading_ones() as u8 {
            return Err(Unfit::PriorityBits(*priority_bits));
        }
        if *preemption_bits > vgic.preemption_bits {
            return Err(Unfit::PreemptionBits(*preemption_bits));
        }
        if *groups > 0b11 || *priority_bits < 5 || *preemption_bits < 5 {
            return Err(Unfit::Impossible("a control register has bits that do not exist"));
        }
        vgic.priority_mask = u8::MAX << (8 - priority_bits);
        vgic.known_preemption_bits = *preemption_bits;
        let mask = vgic.priority_mask;
        vgic.group0 = if groups >> Group::Zero as u8 & 1 != 0 { u32::MAX } else { 0 };
        vgic.group1 = if groups >> Group::One as u8 & 1 != 0 { u32::MAX } else { 0 };
        let mut active = [0; WORDS];
        for (place, vcpu) in vgic.vcpus.iter_mut().zip(vcpus).take(vgic.vcpu_count) {
            *place = Vcpu::restore(vcpu, mask)?;
            for (all, own) in active.iter_mut().zip(vcpu.active).skip(1) {
                if *all & own != 0 {
                    return Err(Unfit::Impossible("an SPI is active on two vCPUs"));
                }
                *all |= own;
            }
        }
        for ((place, bank), active) in vgic.shared.iter_mut().zip(shared).zip(active.into_iter().skip(1)) {
            *place = Bank::restore(bank, active, mask)?;
        }
        vgic.restore_routes(router)?;
        Ok(vgic)
    }

    /// Routes each SPI as its register says; the participants in 1-of-N must be known by then.
    fn restore_routes(&mut self, router: &[u64; SPIS]) -> Result<(), Unfit> {
        if router.iter().any(|route| route & !ROUTER_MASK != 0) {
            return Err(Unfit::Impossible("a GICD_IROUTER has bits that do not exist"));
        }
        self.router = *router;
        for (spi, route) in router.iter().enumerate() {
            let (word, bit) = (spi / 32 + 1, 1 << (spi % 32));
            if route & ROUTER_ANY != 0 {
                self.route_anywhere(word, bit);
            } else {
                self.route_to(word, bit, (route & ROUTER_AFFINITY) as usize);
            }
        }
        Ok(())
    }
}

/// What is active on any vCPU, of the interrupts of `word`.
fn active_anywhere(vcpus: &[Vcpu], word: usize) -> u32 {
    vcpus.iter().filter_map(|vcpu| vcpu.held.get(word)).fold(0, |all, held| all | held.active)
}

impl Bank {
    /// `active` are its active interrupts.
    #[inline(never)]
    fn save(&self, active: u32) -> SavedBank {
        let &Self { enabled, group, edge, latched, level, priority, kept, kept_priority: all, kept_group } = self;
        let kept = kept & active;
        let mut kept_priority = [0; 32];
        for number in bits(kept) {
            kept_priority[number as usize & 31] = all[number as usize & 31];
        }
        let kept_group = kept_group & kept;
        SavedBank { enabled, group, edge, latched, level, priority, kept, kept_priority, kept_group }
    }

    #[inline(never)]
    fn restore(saved: &SavedBank, active: u32, priority_mask: u8) -> Result<Self, Unfit> {
        let &SavedBank { enabled, group, edge, latched, level, priority, kept, kept_priority, kept_group } = saved;
        if priority.iter().chain(&kept_priority).any(|priority| priority & !priority_mask != 0) {
            return Err(Unfit::Impossible("a priority has bits that do not exist"));
        }
        let bank = Self { enabled, group, edge, latched, level, priority, kept, kept_priority, kept_group };
        if bank.save(active) != *saved {
            return Err(Unfit::Impossible("an interrupt that is not active has what it was acknowledged with"));
        }
        Ok(bank)
    }
}

impl Vcpu {
    /// Nothing if it is not settled.
    fn save(&self) -> Option<SavedVcpu> {
        let Self {
            private,
            held,
            // It follows from GICD_IROUTER.
            routed: _,
            hardware,
            hardware_pending,
            hardware_carried,
            // The host's.
            physical: _,
            deactivate: _,
            // The next flush finds out.
            overflow: _,
            asleep,
            on,
            interface,
            declines,
        } = self;
        if *hardware | *hardware_pending | *hardware_carried != 0 {
            return None;
        }
        let mut saved = SavedVcpu {
            private: private.save(held[0].active),
            active: [0; WORDS],
            set_aside: [0; WORDS],
            asleep: *asleep,
            on: *on,
            interface: *interface,
            declines: *declines,
        };
        for ((active, aside), held) in saved.active.iter_mut().zip(&mut saved.set_aside).zip(held) {
            // The other three say something of what is loaded.
            let Held { active: now, set_aside, loaded, carried_latch: _, carried_active: _, cancel_active: _ } = held;
            if *loaded != 0 {
                return None;
            }
            (*active, *aside) = (*now, set_aside & now);
        }
        Some(saved)
    }

    fn restore(saved: &SavedVcpu, priority_mask: u8) -> Result<Self, Unfit> {
        let &SavedVcpu { ref private, active, set_aside, asleep, on, interface, declines } = saved;
        if private.edge & SGI_EDGES != SGI_EDGES {
            return Err(Unfit::Impossible("an SGI is level-sensitive"));
        }
        if interface > 0b11 || declines > 0b11 {
            return Err(Unfit::Impossible("a vCPU has more than two groups"));
        }
        if set_aside.iter().zip(active).any(|(aside, active)| aside & !active != 0) {
            return Err(Unfit::Impossible("an interrupt is set aside that is not active"));
        }
        let mut vcpu = Self {
            private: Bank::restore(private, active[0], priority_mask)?,
            asleep,
            on,
            interface,
            declines,
            ..Self::new()
        };
        for (held, (active, set_aside)) in vcpu.held.iter_mut().zip(active.into_iter().zip(set_aside)) {
            *held = Held { active, set_aside, ..Held::NOTHING };
        }
        Ok(vcpu)
    }
}
