//! 1-of-N interrupts (GICD_IROUTER.Interrupt_Routing_Mode): who may take them.

use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, cpu, gic, interrupt, memory, skip, sysreg, timer};

use crate::{one_spi, with_other_cpus};

/// A CPU that says by ICC_IGRPEN1_EL1, GICR_WAKER or GICR_CTLR.DPG1NS that it takes no 1-of-N interrupts gets none, also none
/// that waited for it already (IHI 0069H 2.4): another CPU does.
pub(crate) fn spi_to_any_cpu_that_takes_part() -> Verdict {
    if memory::read32(gic::DISTRIBUTOR + gic::GICD_TYPER) >> 25 & 1 != 0 {
        skip!("GICD_TYPER.No1N: this GIC has no 1-of-N interrupts");
    }
    let own = gic::own_redistributor();
    if memory::read32(own + gic::GICR_TYPER) >> 5 & 1 == 0 {
        check_equal!(memory::read32(own) >> 24 & 3, 0, "GICR_CTLR.DPG*, without GICR_TYPER.DPGS");
    }
    let spi = one_spi();
    with_other_cpus(|| {
        gic::route(spi, 1 << 31);
        let others = || (1..cpu::count()).map(|index| interrupt::seen(index, spi)).sum::<u32>();
        let set_group = |enabled: bool| sysreg::icc_igrpen1_el1::write(u64::from(enabled));
        let set_awake = |awake: bool| memory::write32(own + gic::GICR_WAKER, if awake { 0 } else { 2 });
        let set_willing = |willing: bool| memory::write32(own, if willing { 0 } else { 1 << 25 });
        let ways: [&dyn Fn(bool); 3] = [&set_group, &set_awake, &set_willing];
        for (round, way) in (0..).zip(ways) {
            way(false);
            gic::write_bit(gic::ISPENDR, spi);
            check!(timer::wait_until(5000, || others() == 2 * round + 1), "way {round}: no other CPU takes it");
            way(true);
            gic::write_bit(gic::ISPENDR, spi);
            timer::delay(500);
            way(false);
            check!(timer::wait_until(5000, || others() == 2 * round + 2), "way {round}: it waits for CPU 0 for ever");
            way(true);
        }
        Ok(())
    })
}
