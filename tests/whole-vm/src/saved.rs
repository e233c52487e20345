//! A paused VM as a value, as the hypervisor's `vm/saved.rs` and `vcpu/saved.rs` take it out and put it in.

use clock::{EmulatedTimer, GuestClock, VmClock};
use cpu::saved::{Name, SavedRegisters};
use pack::{Boxed, Damaged, Reader, Writer};
use snapshot::{SavedCpu, SavedMachine, SavedTime, SavedVcpu, SavedVm};
use units::{VcpuId, VcpuSet};
use vgic::Vgic;
use vm::Watchdogs;
use vm::exits::DebugState;
use vm::stolen::Stolen;

use crate::hardware::{POINTS, Registers};
use crate::whole::{GIC, HOST, VCPUS, WholeVm, devices, service};

impl WholeVm {
    /// Its state, if it is paused and all its vCPUs stand still.
    ///
    /// # Panics
    /// If a part of it cannot be taken out: never, of a VM that stands still.
    #[must_use]
    pub fn save(&self) -> Option<SavedVm> {
        let life = self.life.save()?;
        // Those that stand still, and those that will go on with registers that were put in.
        let begun = self.life.begun();
        let standing = (0..VCPUS).map(VcpuId).filter(|&id| begun.contains(id));
        let calls = self.service.save(self.milliseconds()).expect("there is memory");
        Some(SavedVm {
            machine: Boxed::new(self.shape()).expect("there is memory"),
            time: SavedTime { clock: self.clock.clock().save(self.now, false), away: self.clock.away() },
            life,
            gic: Boxed::new(self.shared.gic.borrow().save().expect("no vCPU is loaded")).expect("there is memory"),
            vcpus: standing.map(|id| self.save_vcpu(id)).collect(),
            devices: self.save_devices(),
            watchdogs: self.watchdogs.save(self.milliseconds()),
            calls: Some(Boxed::new(calls).expect("there is memory")),
        })
    }

    pub(crate) fn shape(&self) -> SavedMachine {
        SavedMachine {
            vcpus: VCPUS,
            memory: self.plan.ram().size,
            devices: self.plan.rows().len() as u32,
            memory_timer: false,
            identification: [0; cpu::id::COUNT],
            cpu: SavedCpu::default(),
        }
    }

    fn save_devices(&self) -> Vec<u8> {
        let mut out = Writer::new();
        self.devices.bus().slots().for_each(|slot| slot.enter(&mut |wired| wired.save_to(&mut out)));
        out.finish().expect("there is memory")
    }

    fn save_vcpu(&self, id: VcpuId) -> SavedVcpu {
        // Each field, so that one that is added is not forgotten. Which tries were alike is the host's.
        let Registers { x, state, sp, debug, points, os_lock, serror, physical, list, tries: _ } =
            &self.vcpus[id.index()].registers;
        let DebugState { policy: _, mdscr, mdccint, claim, breakpoints: _, watchpoints: _ } = debug;
        let pairs = |values: usize| {
            let some = points[values].iter().zip(&points[values + 1]).take(POINTS.into());
            some.map(|(&value, &control)| (value, control)).collect()
        };
        let system = [
            ("elr_el1", state.elr_el1),
            ("spsr_el1", state.spsr_el1),
            ("esr_el1", state.esr_el1),
            ("far_el1", state.far_el1),
            ("vbar_el1", state.vbar_el1),
            ("sctlr_el1", state.sctlr_el1),
            ("sp_el0", sp[0]),
            ("sp_el1", sp[1]),
        ];
        SavedVcpu {
            number: id.0,
            registers: SavedRegisters {
                x: *x,
                pc: state.pc,
                pstate: state.pstate,
                system: system.map(|(name, value)| (Name::new(name), value)).to_vec(),
                mdscr: *mdscr,
                mdccint: *mdccint,
                claim: *claim,
                breakpoints: pairs(0),
                watchpoints: pairs(2),
                os_lock: *os_lock,
                vmcr: list.vmcr,
                pending_error: *serror,
                ..SavedRegisters::default()
            },
            physical_timer: physical.save(),
            stolen: self.vcpus[id.index()].stolen.0,
            stolen_frequency: HOST.0,
        }
    }

    /// Puts a state in, in place of every part that there is: nothing of what was before is left but memory, which goes another
    /// way, and what is the host's.
    ///
    /// # Errors
    /// What does not fit. Some of it may have been put in.
    pub fn restore(&mut self, saved: SavedVm) -> Result<(), Damaged> {
        self.devices = devices(&self.plan);
        self.shared.pages.take();
        self.watchdogs = Watchdogs::new(&self.policy);
        self.service = service(&self.policy, &self.plan);
        self.put_in(saved)
    }

    /// As [`WholeVm::restore`], into the parts that there are. Nothing in it takes memory without asking.
    ///
    /// # Errors
    /// What does not fit. Some of it may have been put in.
    pub fn put_in(&mut self, saved: SavedVm) -> Result<(), Damaged> {
        let SavedVm { machine, time, life, gic, vcpus, devices, watchdogs, calls } = saved;
        if *machine != self.shape() {
            return Err(Damaged::Impossible("it is another machine"));
        }
        let mut numbers = VcpuSet::EMPTY;
        for vcpu in &vcpus {
            if vcpu.number >= VCPUS {
                return Err(Damaged::Impossible("it has more vCPUs"));
            }
            numbers.insert(VcpuId(vcpu.number));
        }
        self.life.restore(&life, numbers)?;
        let clock = GuestClock::restore(&time.clock, HOST, self.now);
        let stops = self.clock_stops;
        self.clock = VmClock::new(clock.map_err(|_| Damaged::Impossible("no such clock"))?, stops, time.away);
        self.clock.pause(self.now);
        let gic = Vgic::restore(GIC, &gic).map_err(|_| Damaged::Impossible("no such interrupt controller"))?;
        *self.shared.gic.borrow_mut() = gic;
        self.restore_devices(&devices)?;
        self.watchdogs.restore(&watchdogs, numbers)?;
        self.service.restore(calls.map(Boxed::into_inner).unwrap_or_default(), self.milliseconds())?;
        vcpus.iter().try_for_each(|vcpu| self.restore_vcpu(vcpu))
    }

    fn restore_devices(&mut self, saved: &[u8]) -> Result<(), Damaged> {
        let mut from = Reader::new(saved);
        let mut done = Ok(());
        self.each_device(|wired, outside| {
            if done.is_ok() {
                done = wired.restore_from(&mut from, outside);
            }
        });
        done?;
        if from.left() > 0 { Err(Damaged::Long("devices")) } else { Ok(()) }
    }

    fn restore_vcpu(&mut self, saved: &SavedVcpu) -> Result<(), Damaged> {
        let SavedVcpu { number, registers, physical_timer, stolen, stolen_frequency: _ } = saved;
        let has_begun = self.life.begun().contains(VcpuId(*number));
        let vcpu = self.vcpus.get_mut(usize::from(*number)).filter(|_| has_begun);
        let vcpu = vcpu.ok_or(Damaged::Impossible("another vCPU was on"))?;
        let mut put = Registers {
            x: registers.x,
            debug: DebugState {
                mdscr: registers.mdscr,
                mdccint: registers.mdccint,
                claim: registers.claim,
                ..DebugState::default()
            },
            os_lock: registers.os_lock,
            serror: registers.pending_error,
            physical: EmulatedTimer::restore(physical_timer).map_err(|_| Damaged::Impossible("no such timer"))?,
            ..Registers::default()
        };
        for (first, pairs) in [(0, &registers.breakpoints), (2, &registers.watchpoints)] {
            let [values, controls] = &mut put.points[first..first + 2] else { unreachable!("there are four banks") };
            for ((value, control), &pair) in values.iter_mut().zip(controls).zip(pairs) {
                (*value, *control) = pair;
            }
        }
        put.list.vmcr = registers.vmcr;
        put.state.pc = registers.pc;
        put.state.pstate = registers.pstate;
        for &(name, value) in &registers.system {
            let text = name.0.split(|&byte| byte == 0).next().and_then(|text| std::str::from_utf8(text).ok());
            let place = match text.unwrap_or_default() {
                "elr_el1" => &mut put.state.elr_el1,
                "spsr_el1" => &mut put.state.spsr_el1,
                "esr_el1" => &mut put.state.esr_el1,
                "far_el1" => &mut put.state.far_el1,
                "vbar_el1" => &mut put.state.vbar_el1,
                "sctlr_el1" => &mut put.state.sctlr_el1,
                "sp_el0" => &mut put.sp[0],
                "sp_el1" => &mut put.sp[1],
                _ => return Err(Damaged::Impossible("a register that a vCPU here does not have")),
            };
            *place = value;
        }
        vcpu.registers = put;
        vcpu.stolen = Stolen(*stolen);
        Ok(())
    }

    /// Whether its page of the clock says what another's does: one that stands still may have been put in, and shows it later.
    #[must_use]
    pub fn shows_time_like(&self, other: &Self) -> bool {
        self.life.is_paused() || self.shared.pages == other.shared.pages
    }

    /// Whether what another VM's guest could see is what this one's could: all but what a saved state has in it is compared.
    #[must_use]
    pub fn looks_like(&self, other: &Self) -> bool {
        let same_memory = {
            let (one, two) = (self.shared.memory.borrow(), other.shared.memory.borrow());
            one.contents() == two.contents()
        };
        let places = |vm: &Self| vm.vcpus.iter().map(|vcpu| vcpu.place).collect::<Vec<_>>();
        same_memory
            && places(self) == places(other)
            && self.life == other.life
            && self.watchdogs == other.watchdogs
            && self.shared.sent == other.shared.sent
            && self.shows_time_like(other)
    }
}
