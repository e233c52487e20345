//! More interrupts than list registers: active ones, whose ends the hardware only counts (ICH_HCR_EL2.EOIcount), with either
//! EOImode, and pending ones that the CPU interface masks.

use payload_rt::gic::{self, Trigger};
use payload_rt::test::{Stop, Verdict};
use payload_rt::{check, check_equal, memory, sysreg, timer};

use crate::{acknowledge, acknowledge_nothing, fire_timer, free_spis, send_three};

/// As many as are active at once in the tests below: more than any GIC has list registers for half of them.
const MANY: u32 = 18;

/// Makes [`MANY`] SPIs active, each more important than the one before it, so that each is taken in the handler of that.
pub(crate) fn nest_many() -> Result<core::ops::Range<u32>, Stop> {
    let spis = free_spis(MANY);
    for (step, spi) in spis.clone().enumerate() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::set_priority(spi, 0xa0 - 8 * step as u8);
        gic::enable(spi);
        gic::write_bit(gic::ISPENDR, spi);
        check_equal!(acknowledge(), spi, "nested {step} deep, acknowledged");
    }
    Ok(spis)
}

/// Checks that of `spis` exactly `active` are active.
fn check_active(spis: core::ops::Range<u32>, active: core::ops::Range<u32>, when: &str) -> Verdict {
    for spi in spis.clone() {
        check_equal!(
            gic::read_bit(gic::ISACTIVER, spi),
            active.contains(&spi),
            "{when}: SPI {} of {spis:?} active",
            spi
        );
    }
    Ok(())
}

pub(crate) fn more_active_than_list_registers() -> Verdict {
    let spis = nest_many()?;
    check_active(spis.clone(), spis.clone(), "all acknowledged")?;
    for spi in spis.clone().rev() {
        gic::end(spi);
        check_active(spis.clone(), spis.start..spi, "the more important ones ended")?;
    }
    check_equal!(sysreg::icc_rpr_el1::read(), 0xff, "ICC_RPR_EL1 afterwards");
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "afterwards");
    Ok(())
}

pub(crate) fn more_active_than_list_registers_eoi_mode_1() -> Verdict {
    let spis = free_spis(MANY);
    sysreg::icc_ctlr_el1::write(2);
    for spi in spis.clone() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::enable(spi);
        gic::write_bit(gic::ISPENDR, spi);
    }
    for spi in spis.clone() {
        check_equal!(acknowledge(), spi, "acknowledged");
        gic::end(spi);
    }
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "one came twice, before its DIR: acknowledged");
    check_active(spis.clone(), spis.clone(), "all between EOIR and DIR")?;
    for spi in spis.clone() {
        gic::write_bit(gic::ISPENDR, spi);
    }
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "all active, and pending again");
    for spi in spis.clone().rev() {
        gic::deactivate(spi);
        check_equal!(acknowledge(), spi, "after its DIR");
        gic::end(spi);
        gic::deactivate(spi);
        check_active(spis.clone(), spis.start..spi, "some deactivated")?;
    }
    sysreg::icc_ctlr_el1::write(0);
    Ok(())
}

/// How many SPIs are active.
fn count_active() -> u32 {
    gic::spis().step_by(32).map(|spi| memory::read32(gic::bit_register(gic::ISACTIVER, spi)).count_ones()).sum()
}

/// All SPIs that there are, active at once: by hand, but for one; and all of them, between their EOIR and their DIR.
pub(crate) fn all_active_at_once() -> Verdict {
    let spis = gic::spis();
    let all = spis.len() as u32;
    check_equal!(spis.start, 32, "the first SPI");
    let taken = free_spis(1).start;
    for word in spis.clone().step_by(32) {
        memory::write32(
            gic::bit_register(gic::ISACTIVER, word),
            if word / 32 == taken / 32 { !(1 << (taken % 32)) } else { !0 },
        );
    }
    check_equal!(count_active(), all - 1, "active by hand");
    gic::set_trigger(taken, Trigger::Edge);
    gic::enable(taken);
    // Each end is that of one, whatever was counted at the ones before.
    for round in 0..3 {
        gic::write_bit(gic::ISPENDR, taken);
        check_equal!(acknowledge(), taken, "beside all others: acknowledged, round {round}");
        check_equal!(count_active(), all, "all");
        gic::end(taken);
        check_equal!(count_active(), all - 1, "one has ended, round {round}: active");
        check!(!gic::read_bit(gic::ISACTIVER, taken), "it has ended, and is active");
    }
    for word in spis.clone().step_by(32) {
        memory::write32(gic::bit_register(gic::ICACTIVER, word), !0);
    }
    check_equal!(count_active(), 0, "none is active any more");

    sysreg::icc_ctlr_el1::write(2);
    for spi in spis.clone() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::enable(spi);
        gic::write_bit(gic::ISPENDR, spi);
    }
    for (count, spi) in (1..).zip(spis.clone()) {
        check_equal!(acknowledge(), spi, "acknowledged");
        gic::end(spi);
        check_equal!(count_active(), count, "between EOIR and DIR");
    }
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "one came twice, before its DIR: acknowledged");
    // From both ends to the middle.
    for step in 0..all {
        let spi = if step % 2 == 0 { spis.start + step / 2 } else { spis.end - 1 - step / 2 };
        gic::deactivate(spi);
        check_equal!(count_active(), all - 1 - step, "after the DIR of {spi}");
        check!(!gic::read_bit(gic::ISACTIVER, spi), "SPI {spi} is active after its DIR");
    }
    sysreg::icc_ctlr_el1::write(0);
    for spi in spis {
        gic::disable(spi);
        gic::set_trigger(spi, Trigger::Level);
    }
    Ok(())
}

pub(crate) fn eoi_mode_changes_between() -> Verdict {
    sysreg::icc_ctlr_el1::write(2);
    let spis = nest_many()?;
    let dropped = spis.start + 2..spis.end;
    for spi in dropped.clone().rev() {
        gic::end(spi);
    }
    check_active(spis.clone(), spis.clone(), "dropped only")?;
    // The two that still run are ended with EOImode zero; the others must not notice.
    sysreg::icc_ctlr_el1::write(0);
    gic::end(spis.start + 1);
    check!(!gic::read_bit(gic::ISACTIVER, spis.start + 1), "ended with EOImode zero, and still active");
    gic::end(spis.start);
    check_active(spis.clone(), dropped.clone(), "two ended with EOImode zero")?;
    sysreg::icc_ctlr_el1::write(2);
    for spi in dropped {
        gic::deactivate(spi);
        check_active(spis.clone(), spi + 1..spis.end, "deactivated one after the other")?;
    }
    sysreg::icc_ctlr_el1::write(0);
    Ok(())
}

/// Polls for an interrupt of group 0.
fn acknowledge_group_0() -> u32 {
    let mut intid = gic::SPURIOUS;
    timer::wait_until(1000, || {
        intid = sysreg::icc_iar0_el1::read() as u32 & 0xff_ffff;
        intid != gic::SPURIOUS
    });
    intid
}

pub(crate) fn masked_group_starves_nobody() -> Verdict {
    let spis = free_spis(MANY);
    memory::write32(gic::DISTRIBUTOR + gic::GICD_CTLR, gic::CTLR_ENABLE | 1);
    gic::wait_for_writes();
    let own_group = spis.start;
    let zeros = own_group + 1..spis.end;
    sysreg::icc_igrpen0_el1::write(0);
    for spi in spis.clone() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::enable(spi);
    }
    for spi in zeros.clone() {
        let word = gic::bit_register(gic::IGROUPR, spi);
        memory::write32(word, memory::read32(word) & !(1 << (spi % 32)));
        gic::set_priority(spi, 0);
        gic::write_bit(gic::ISPENDR, spi);
    }
    for (intid, raise) in [(3, send_three as fn()), (timer::VIRTUAL_PPI, fire_timer as fn())] {
        gic::enable(intid);
        raise();
        check_equal!(acknowledge(), intid, "with {} of group 0 pending and masked", zeros.len());
        sysreg::cntv_ctl_el0::write(0);
        gic::end(intid);
    }
    // They must come when the mask goes, and when it comes back, give way again, whatever the host's GIC tells of that.
    sysreg::icc_igrpen0_el1::write(1);
    check_equal!(acknowledge_group_0(), zeros.start, "of group 0, once enabled");
    sysreg::icc_eoir0_el1::write(u64::from(zeros.start));
    gic::write_bit(gic::ISPENDR, own_group);
    sysreg::icc_igrpen0_el1::write(0);
    check_equal!(acknowledge(), own_group, "with group 0 masked again");
    gic::end(own_group);
    sysreg::icc_igrpen0_el1::write(1);
    for spi in zeros.start + 1..zeros.end {
        check_equal!(acknowledge_group_0(), spi, "of group 0, the rest");
        sysreg::icc_eoir0_el1::write(u64::from(spi));
    }
    sysreg::icc_igrpen0_el1::write(0);
    Ok(())
}

/// The CPU interface's registers of group 0, both groups enabled: on a host whose GIC does not tell that a guest disables group 0 the
/// hypervisor answers to them, and a guest must not see that.
pub(crate) fn registers_of_group_0() -> Verdict {
    work_on_group_0(0)?;
    // And with more of both groups behind these two than any GIC has list registers.
    work_on_group_0(MANY)
}

fn work_on_group_0(behind: u32) -> Verdict {
    let spis = free_spis(2 + behind);
    let (zero, one) = (spis.start, spis.start + 1);
    let behind = spis.start + 2..spis.start + 2 + behind / 2;
    let last = behind.end..spis.end;
    // What shows while the first two are not pending.
    let rest = if behind.is_empty() { gic::SPURIOUS } else { behind.start };
    memory::write32(gic::DISTRIBUTOR + gic::GICD_CTLR, gic::CTLR_ENABLE | 1);
    gic::wait_for_writes();
    for spi in spis {
        gic::set_trigger(spi, Trigger::Edge);
        gic::set_priority(spi, 0x80);
        gic::enable(spi);
    }
    for spi in [zero].into_iter().chain(behind.clone()) {
        let word = gic::bit_register(gic::IGROUPR, spi);
        memory::write32(word, memory::read32(word) & !(1 << (spi % 32)));
    }
    sysreg::icc_bpr0_el1::write(0);
    sysreg::icc_igrpen0_el1::write(1);
    for (group, priority) in [(behind.clone(), 0xc0), (last.clone(), 0xe0)] {
        for spi in group {
            gic::set_priority(spi, priority);
            gic::write_bit(gic::ISPENDR, spi);
        }
    }
    check_equal!(sysreg::icc_igrpen0_el1::read(), 1, "ICC_IGRPEN0_EL1");
    let least = sysreg::icc_bpr0_el1::read();
    for written in 0..8 {
        sysreg::icc_bpr0_el1::write(written);
        check_equal!(sysreg::icc_bpr0_el1::read(), written.max(least), "ICC_BPR0_EL1 after {written}");
    }
    sysreg::icc_bpr0_el1::write(0);
    let is_there = timer::wait_until(1000, || sysreg::icc_hppir0_el1::read() == u64::from(rest));
    check!(is_there, "ICC_HPPIR0_EL1 {}, not {rest}", sysreg::icc_hppir0_el1::read());
    sysreg::icc_pmr_el1::write(0);
    check_equal!(sysreg::icc_iar0_el1::read(), u64::from(gic::SPURIOUS), "ICC_IAR0_EL1, all is masked");
    sysreg::icc_pmr_el1::write(0xff);

    gic::write_bit(gic::ISPENDR, one);
    let is_there = timer::wait_until(1000, || sysreg::icc_hppir1_el1::read() == u64::from(one));
    check!(is_there, "the one of group 1 is not there");
    check_equal!(sysreg::icc_iar0_el1::read(), u64::from(gic::SPURIOUS), "ICC_IAR0_EL1, group 1 is pending");
    check_equal!(acknowledge(), one, "of group 1");
    gic::end(one);

    // The priority that runs keeps others of the same, or a lower, out, whichever group it is of.
    gic::write_bit(gic::ISPENDR, zero);
    let is_there = timer::wait_until(1000, || sysreg::icc_hppir0_el1::read() == u64::from(zero));
    check!(is_there, "ICC_HPPIR0_EL1 {}", sysreg::icc_hppir0_el1::read());
    sysreg::icc_pmr_el1::write(0x80);
    check_equal!(sysreg::icc_iar0_el1::read(), u64::from(gic::SPURIOUS), "ICC_IAR0_EL1, masked by its priority");
    sysreg::icc_pmr_el1::write(0xff);
    let before = sysreg::icc_ap0r0_el1::read();
    check_equal!(before, 0, "ICC_AP0R0_EL1, nothing runs");
    check_equal!(acknowledge_group_0(), zero, "of group 0");
    let running = sysreg::icc_ap0r0_el1::read();
    check!(running.is_power_of_two(), "ICC_AP0R0_EL1 {running:#x}, one runs");
    check_equal!(sysreg::icc_rpr_el1::read() & 0xff, 0x80, "ICC_RPR_EL1");
    check!(gic::read_bit(gic::ISACTIVER, zero) && !gic::read_bit(gic::ISPENDR, zero), "not active alone");
    gic::write_bit(gic::ISPENDR, one);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "of group 1, while the same priority runs");
    sysreg::icc_ap0r0_el1::write(0);
    check_equal!(sysreg::icc_ap0r0_el1::read(), 0, "ICC_AP0R0_EL1, forgotten");
    check_equal!(acknowledge(), one, "of group 1, once that is forgotten");
    gic::end(one);
    sysreg::icc_ap0r0_el1::write(running);
    check_equal!(sysreg::icc_rpr_el1::read() & 0xff, 0x80, "ICC_RPR_EL1, brought back");
    sysreg::icc_eoir0_el1::write(u64::from(zero));
    check_equal!(sysreg::icc_ap0r0_el1::read(), 0, "ICC_AP0R0_EL1, ended");
    check!(!gic::read_bit(gic::ISACTIVER, zero), "ended, and active");
    for spi in behind {
        check_equal!(acknowledge_group_0(), spi, "of group 0, behind");
        check_equal!(sysreg::icc_rpr_el1::read() & 0xff, 0xc0, "ICC_RPR_EL1, behind");
        sysreg::icc_eoir0_el1::write(u64::from(spi));
    }
    sysreg::icc_igrpen0_el1::write(0);
    check_equal!(sysreg::icc_igrpen0_el1::read(), 0, "ICC_IGRPEN0_EL1, disabled");
    for spi in last {
        check_equal!(acknowledge(), spi, "of group 1, behind");
        gic::end(spi);
    }
    // As the tests find them.
    let word = gic::bit_register(gic::IGROUPR, zero);
    memory::write32(word, memory::read32(word) | 1 << (zero % 32));
    Ok(())
}
