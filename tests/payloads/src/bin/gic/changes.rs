//! The priority and the group of an interrupt change while it is active. The CPU interface goes on by what they were at the
//! acknowledgement; what comes after its end goes by the new ones.

use payload_rt::gic::{self, Trigger};
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, memory, sysreg, timer};

use crate::shortage::nest_many;
use crate::{acknowledge, acknowledge_nothing, fire_timer, one_spi, send_three};

/// Puts an interrupt into group 0 or 1.
fn set_group(intid: u32, group: u32) {
    let word = gic::bit_register(gic::IGROUPR, intid);
    memory::write32(word, memory::read32(word) & !(1 << (intid % 32)) | group << (intid % 32));
}

/// An SGI, a timer and an SPI, each for itself.
pub(crate) fn changes_while_active() -> Verdict {
    let spi = one_spi();
    gic::enable(3);
    gic::enable(timer::VIRTUAL_PPI);
    let pend = || gic::write_bit(gic::ISPENDR, one_spi());
    for (intid, raise) in [(3, send_three as fn()), (timer::VIRTUAL_PPI, fire_timer as fn()), (spi, pend as fn())] {
        for (priority, group) in [(0x40, 1), (0xe0, 1), (gic::DEFAULT_PRIORITY, 0), (0x40, 0)] {
            raise();
            check_equal!(acknowledge(), intid, "raised");
            gic::set_priority(intid, priority);
            set_group(intid, group);
            check_equal!(gic::priority(intid), priority, "INTID {intid}: its new priority");
            check_equal!(sysreg::icc_rpr_el1::read(), 0xa0, "INTID {intid}: ICC_RPR_EL1, its old one");
            // And it is loaded anew with all else that changes.
            gic::write_bit(gic::ISPENDR, intid);
            check_equal!(acknowledge_nothing(), gic::SPURIOUS, "INTID {intid}: pending, and active still");
            sysreg::cntv_ctl_el0::write(0);
            gic::end(intid);
            check_equal!(sysreg::icc_rpr_el1::read(), 0xff, "INTID {intid}: ICC_RPR_EL1, ended");
            check!(!gic::read_bit(gic::ISACTIVER, intid), "INTID {intid} ended, and is active");
            if group == 0 {
                check_equal!(acknowledge_nothing(), gic::SPURIOUS, "INTID {intid}: of group 0, which is disabled");
                set_group(intid, 1);
            }
            check_equal!(acknowledge(), intid, "INTID {intid}: the second time");
            check_equal!(sysreg::icc_rpr_el1::read(), u64::from(priority), "INTID {intid}: ICC_RPR_EL1, its new one");
            gic::set_priority(intid, gic::DEFAULT_PRIORITY);
            gic::end(intid);
            check!(!gic::read_bit(gic::ISACTIVER, intid), "INTID {intid} ended twice, and is active");
            check_equal!(acknowledge_nothing(), gic::SPURIOUS, "INTID {intid}: afterwards");
        }
    }
    Ok(())
}

/// More than there are list registers for, so that the order of their ends has to be known too.
pub(crate) fn changes_while_many_are_active() -> Verdict {
    let spis = nest_many()?;
    for (step, spi) in spis.clone().enumerate() {
        // The other way round.
        gic::set_priority(spi, 0x10 + 8 * step as u8);
    }
    for spi in spis.clone().rev() {
        gic::end(spi);
        for other in spis.clone() {
            check_equal!(gic::read_bit(gic::ISACTIVER, other), other < spi, "SPI {other} active, once {spi} ended");
        }
    }
    check_equal!(sysreg::icc_rpr_el1::read(), 0xff, "ICC_RPR_EL1 afterwards");
    for spi in spis.clone() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::write_bit(gic::ISPENDR, spi);
    }
    for spi in spis {
        check_equal!(acknowledge(), spi, "in the new order");
        gic::end(spi);
    }
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "afterwards");
    Ok(())
}
