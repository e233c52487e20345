//! Which of a VM's vCPUs are on, as a value. All else about its life is the host's: what it waits for, what it is to do next.

use pack::{Damaged, value};
use services::psci::{SavedPower, Start};
use units::{ByteOrder, Ipa, MAX_VCPUS, VcpuId, VcpuSet};

use super::{Life, Phase};

/// A paused VM's vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedLife {
    /// Which are on, and which are about to be.
    pub power: SavedPower,
    /// How those begin that were switched on and have not begun.
    pub starts: [Option<SavedStart>; MAX_VCPUS],
}

impl SavedLife {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 2;
}

value!(SavedLife as "life" { power, starts });

/// How a vCPU begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedStart {
    /// Where.
    pub entry: Ipa,
    /// With what in X0.
    pub context: u64,
    /// In which byte order.
    pub is_big_endian: bool,
}

value!(SavedStart { entry, context, is_big_endian });

/// A VM is being restored, and its state is still to be put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoState;

impl<R: Clone + PartialEq> Life<R> {
    /// Takes the state out of a paused VM; of another one, nothing.
    #[must_use]
    pub fn save(&self) -> Option<SavedLife> {
        let Self {
            phase,
            machine,
            starts,
            is_paused,
            // They say whose registers there are; those are saved, or are not.
            inside: _,
            put_in: _,
            // The host's.
            boot: _,
            is_stalled: _,
            awaits_state: _,
            stop_next: _,
            again_until: _,
            boots: _,
            started_at: _,
            built: _,
            built_ended: _,
            restarts: _,
        } = self;
        let is_still = *phase == Phase::Running && *is_paused;
        is_still.then(|| SavedLife {
            power: machine.save(),
            starts: starts.map(|start| {
                start.map(|Start { vcpu: _, entry, context, order }| {
                    let is_big_endian = order == ByteOrder::Big;
                    SavedStart { entry, context, is_big_endian }
                })
            }),
        })
    }

    /// Puts a state into a paused VM, with the registers of these vCPUs, which the caller puts in. If it was built for that, they
    /// go on by them when the VM does; else they are those that have begun here, too.
    ///
    /// # Errors
    /// If it is not one of this VM's; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedLife, vcpus: VcpuSet) -> Result<(), Damaged> {
        let SavedLife { power, starts } = saved;
        if !self.awaits_state && vcpus != self.begun() {
            return Err(Damaged::Impossible("other vCPUs of it were on when it was saved"));
        }
        if vcpus.iter().any(|vcpu| vcpu.0 >= power.count) {
            return Err(Damaged::Impossible("a vCPU has registers that the VM does not have"));
        }
        let begins = |(id, start): (u8, &Option<_>)| start.is_none() || u32::from(power.count) > u32::from(id);
        if !(0..).zip(starts).all(begins) {
            return Err(Damaged::Impossible("a vCPU is to begin that the VM does not have"));
        }
        self.machine.restore(power)?;
        for (id, (place, start)) in (0..).zip(self.starts.iter_mut().zip(starts)) {
            *place = start.map(|SavedStart { entry, context, is_big_endian }| {
                let order = if is_big_endian { ByteOrder::Big } else { ByteOrder::Little };
                Start { vcpu: VcpuId(id), entry, context, order }
            });
        }
        if core::mem::take(&mut self.awaits_state) {
            self.put_in = vcpus;
        }
        Ok(())
    }

    /// The vCPUs that have begun and not ended: they have registers.
    #[must_use]
    pub fn begun(&self) -> VcpuSet {
        self.inside.union(self.put_in)
    }

    /// Whether a vCPU has registers only because they were put in: its thread waits for the VM to go on.
    #[must_use]
    pub fn was_put_in(&self, vcpu: VcpuId) -> bool {
        self.put_in.contains(vcpu)
    }

    /// Whether it was built for a state, which is not in it yet.
    #[must_use]
    pub const fn awaits_state(&self) -> bool {
        self.awaits_state
    }

    /// Lets something happen to its machine that comes from outside, a line that somebody types, say. Its life is borrowed until that
    /// is over, and so is the lock around it: between a look at its life and what is done by that look, nobody can take its state out
    /// or put one in. What came there would be lost.
    ///
    /// # Errors
    /// If it waits for a state, which would take the place of whatever came before it: nothing happens then.
    pub fn deliver<T>(&self, happens: impl FnOnce() -> T) -> Result<T, NoState> {
        if self.awaits_state { Err(NoState) } else { Ok(happens()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{NoState, SavedLife, SavedStart};
    use crate::{Life, Task};
    use core::cell::Cell;
    use pack::Damaged;
    use pack::testing::through_bytes;
    use proptest::prelude::*;
    use services::psci::{SavedPower, Start, VmPower};
    use units::{ByteOrder, Ipa, Range, VcpuId, VcpuSet};

    const RAM: Range<Ipa> = Range { start: Ipa(0x4000_0000), size: 0x1000_0000 };

    /// Paused, vCPU 0 inside.
    fn paused(vcpus: u8) -> Life<()> {
        let mut life = Life::new(VmPower::new(vcpus, RAM));
        life.start();
        assert_eq!(life.next_task(VcpuId(0)), Some(Task::Boot));
        life.started(Start { vcpu: VcpuId(0), entry: RAM.start, context: 7, order: ByteOrder::Little }, 0);
        assert!(matches!(life.next_task(VcpuId(0)), Some(Task::Run(_))));
        assert_eq!(life.save(), None, "it runs");
        life.pause();
        life
    }

    /// vCPU 0.
    fn first() -> VcpuSet {
        VcpuSet::only(VcpuId(0))
    }

    proptest! {
        /// Whatever was put in is taken out, and comes through bytes.
        #[test]
        fn what_was_put_in_is_taken_out(count in 1..=8_u8, bits in any::<[u8; 2]>(), starts in any::<[Option<(u64, u64, bool)>; 8]>()) {
            let all = 0xff >> (8 - count);
            let mut starts = starts.map(|start| start.map(|(entry, context, is_big_endian)| SavedStart { entry: Ipa(entry), context, is_big_endian }));
            starts[usize::from(count)..].fill(None);
            let power = SavedPower { count, on: bits[0] & all, pending: bits[1] & !bits[0] & all };
            let saved = SavedLife { power, starts };
            let mut life = paused(count);
            prop_assert_eq!(life.restore(&saved, first()), Ok(()));
            prop_assert_eq!(life.save(), Some(saved));
            prop_assert_eq!(through_bytes(&saved), Ok(saved));
        }
    }

    /// A vCPU that was switched on and had not begun begins where it was put in.
    #[test]
    fn a_start_that_was_moved_happens() {
        let mut here = paused(2);
        here.cpu_on(1, RAM.start.0 + 8, 9, ByteOrder::Big).unwrap();
        let mut there = paused(2);
        there.restore(&here.save().unwrap(), first()).unwrap();
        there.resume();
        let start = Start { vcpu: VcpuId(1), entry: Ipa(RAM.start.0 + 8), context: 9, order: ByteOrder::Big };
        assert_eq!(there.next_task(VcpuId(1)), Some(Task::Run(start)));
    }

    /// A VM that was off and is built for the state of one with two vCPUs, of which the first is off.
    #[test]
    fn what_is_built_for_a_state_goes_on_with_it() {
        let mut life: Life<()> = Life::new(VmPower::new(2, RAM));
        assert!(life.start_for_state() && !life.start_for_state() && life.start().is_empty());
        life.is_built(5);
        assert!(life.awaits_state() && life.is_paused() && life.begun().is_empty());
        let typed = Cell::new(0);
        let types = || typed.replace(typed.get() + 1);
        assert_eq!((life.deliver(types), typed.get()), (Err(NoState), 0), "the state would take its place");
        assert!(life.resume().is_empty(), "there is nothing in it that could go on");
        let power = SavedPower { count: 2, on: 2, pending: 0 };
        let second = VcpuSet::only(VcpuId(1));
        life.restore(&SavedLife { power, starts: [None; 8] }, second).unwrap();
        assert!(!life.awaits_state() && life.was_put_in(VcpuId(1)) && life.begun() == second);
        assert_eq!((life.deliver(types), typed.get()), (Ok(0), 1));
        assert_eq!((life.next_task(VcpuId(1)), life.end(6)), (None, None), "it is paused");
        assert!(!life.resume().is_empty());
        assert_eq!(life.next_task(VcpuId(0)), None);
        assert_eq!(life.next_task(VcpuId(1)), Some(Task::GoOn));
        assert_eq!((life.next_task(VcpuId(1)), life.was_put_in(VcpuId(1))), (None, false));
        assert!(life.begun() == second && life.is_running());
    }

    #[test]
    fn registers_of_others_do_not_fit() {
        let mut life = paused(2);
        let saved = life.save().unwrap();
        assert!(matches!(life.restore(&saved, VcpuSet::EMPTY), Err(Damaged::Impossible(_))));
        let mut other: Life<()> = Life::new(VmPower::new(2, RAM));
        other.start_for_state();
        other.is_built(0);
        let third = VcpuSet::only(VcpuId(2));
        assert!(matches!(other.restore(&saved, third), Err(Damaged::Impossible(_))));
        assert!(other.awaits_state(), "nothing has changed");
    }

    #[test]
    fn a_vcpu_that_is_not_there_does_not_begin() {
        let mut life = paused(2);
        let before = life.clone();
        let mut saved = life.save().unwrap();
        saved.starts[2] = Some(SavedStart { entry: RAM.start, context: 0, is_big_endian: false });
        assert!(matches!(life.restore(&saved, first()), Err(Damaged::Impossible(_))));
        saved.starts[2] = None;
        saved.power.count = 3;
        assert!(matches!(life.restore(&saved, first()), Err(Damaged::Impossible(_))));
        assert_eq!(life, before, "nothing has changed");
    }
}
