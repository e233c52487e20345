//! More interrupts than list registers: active ones, whose ends the hardware only counts (ICH_HCR_EL2.EOIcount), with either
//! EOImode, and pending ones that the CPU interface masks.

use payload_rt::gic::{self, Trigger};
use payload_rt::test::{Stop, Verdict};
use payload_rt::{check, check_equal, memory, sysreg, timer};

use crate::{acknowledge, acknowledge_nothing, fire_timer, free_spis, send_three};

/// As many as are active at once in the tests below: more than any GIC has list registers for half of them.
const MANY: u32 = 18;

/// Makes [`MANY`] SPIs active, each more important than the one before it, so that each is taken in the handler of that.
fn nest_many() -> Result<core::ops::Range<u32>, Stop> {
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
