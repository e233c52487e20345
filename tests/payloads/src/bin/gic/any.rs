//! 1-of-N interrupts (GICD_IROUTER.Interrupt_Routing_Mode): who may take them.

use core::sync::atomic::{AtomicU32, Ordering};

use payload_rt::test::Verdict;
use payload_rt::{away, check, check_equal, cpu, gic, interrupt, memory, psci, skip, sysreg, timer};

use crate::{READY, STOP, one_spi, take_interrupts, with_other_cpus};

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

/// The interrupt for [`call_first_back`].
static SPI: AtomicU32 = AtomicU32::new(0);
/// How often CPU 0 was off and is on again.
static BACK: AtomicU32 = AtomicU32::new(0);
/// How often another CPU has taken the interrupt while CPU 0 was off.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// How often a CPU other than the first has taken the interrupt.
fn taken_by_others() -> u32 {
    (1..cpu::count()).map(|index| interrupt::seen(index, SPI.load(Ordering::SeqCst))).sum()
}

/// A CPU that takes interrupts, and twice waits until CPU 0 is off, sees what becomes of the interrupt, and calls CPU 0 back. The
/// first time it is made pending here.
fn call_first_back(_index: usize) {
    cpu::unmask_interrupts();
    READY.fetch_add(1, Ordering::SeqCst);
    for round in 0..2 {
        if !cpu::wait_off(0) {
            return;
        }
        if round == 0 {
            gic::write_bit(gic::ISPENDR, SPI.load(Ordering::SeqCst));
        }
        if timer::wait_until(5000, || taken_by_others() == round + 1) {
            TAKEN.fetch_add(1, Ordering::SeqCst);
        }
        if away::call_back(0) != psci::SUCCESS || !timer::wait_until(10_000, || BACK.load(Ordering::SeqCst) > round) {
            return;
        }
    }
    while STOP.load(Ordering::SeqCst) == 0 {
        cpu::relax();
    }
    cpu::mask_interrupts();
}

/// A CPU that is off takes no 1-of-N interrupts, also none that waited for it when it switched itself off: another CPU does.
pub(crate) fn spi_to_any_cpu_that_is_on() -> Verdict {
    if memory::read32(gic::DISTRIBUTOR + gic::GICD_TYPER) >> 25 & 1 != 0 {
        skip!("GICD_TYPER.No1N: this GIC has no 1-of-N interrupts");
    }
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    let spi = one_spi();
    SPI.store(spi, Ordering::SeqCst);
    for word in [&READY, &STOP, &BACK, &TAKEN] {
        word.store(0, Ordering::SeqCst);
    }
    for index in 1..cpu::count() {
        let started = cpu::start(index, if index == 1 { call_first_back } else { take_interrupts });
        check!(started.is_ok(), "CPU_ON of CPU {index}: {started:?}");
    }
    check!(timer::wait_until(10_000, || READY.load(Ordering::SeqCst) as usize == cpu::count() - 1), "not all came up");
    gic::route(spi, 1 << 31);
    let mut verdict = Ok(());
    for round in 1..=2 {
        if round == 2 {
            gic::write_bit(gic::ISPENDR, spi);
            timer::delay(500);
        }
        let answer = away::switch_off();
        BACK.store(round, Ordering::SeqCst);
        verdict = (|| {
            check_equal!(answer, 0, "CPU_OFF of CPU 0, and its way back");
            check_equal!(TAKEN.load(Ordering::SeqCst), round, "interrupts taken by other CPUs while CPU 0 was off");
            Ok(())
        })();
        if verdict.is_err() {
            break;
        }
    }
    STOP.store(1, Ordering::SeqCst);
    for index in 1..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} does not switch off");
    }
    verdict
}
