//! Checks of how the host's devices are reached: their registers as regions, their interrupts by a table, and those that never end.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use hw::mmio::RegionError;
use hw::percpu::this_cpu;
use hw::sync::{unmask_irqs, without_irqs};
use hw::{clock, selftest, stack, sysreg};
use platform::InterruptLine;
use undercroft::exit::interrupts::{self, Handler, Unconnectable};
use undercroft::host;
use undercroft::sched::{self, Thread};
use units::{CpuId, IntId, Pa, Range, Ticks, Trigger};

/// The GIC of QEMU's virt machine has it, and no device.
const NOBODYS: IntId = IntId(32 + 200);

/// What is not mapped as a device's is no region; an interrupt has one handler, and one without is disabled when it comes.
pub(crate) fn check() -> Result<(), String> {
    let image = stack::image();
    let data = Range { start: image.data.start, size: 0x1000 };
    let nowhere = Range { start: Pa(0xffff_ffff_0000), size: 0x1000 };
    let regions = [
        ("the image", data, RegionError::NoDevice),
        ("no device", nowhere, RegionError::NoDevice),
        ("nothing", Range { start: Pa(0x901_0000), size: 0 }, RegionError::Misplaced),
        ("an odd place", Range { start: Pa(0x901_0004), size: 0x100 }, RegionError::Misplaced),
        ("a piece", Range { start: Pa(0x901_0000), size: 8 }, RegionError::TooSmall),
    ];
    for (what, range, right) in regions {
        let found = clock::open(range).err();
        if found != Some(right) {
            return Err(format!("{what} as a clock's registers: {found:?}, and right is {right:?}"));
        }
    }
    let line = |interrupt, trigger| InterruptLine { interrupt, trigger };
    let private = interrupts::connect(line(IntId(31), None), Handler::Console, 0);
    let beyond = interrupts::connect(line(IntId(1020), None), Handler::Console, 0);
    if (private, beyond) != (Err(Unconnectable::NotShared), Err(Unconnectable::NotShared)) {
        return Err(format!("connected: {private:?}, {beyond:?}"));
    }
    let before = interrupts::unclaimed();
    selftest::raise_spi(NOBODYS);
    unmask_irqs();
    let limit = sysreg::cntpct_el0() + host::ticks(1_000_000);
    while interrupts::unclaimed() == before && sysreg::cntpct_el0() < limit {
        hw::sync::relax();
    }
    let came = interrupts::unclaimed() - before;
    let is_enabled = selftest::is_spi_enabled(NOBODYS);
    if came != 1 || is_enabled {
        return Err(format!("the interrupt of nobody came {came} times, and is enabled: {is_enabled}"));
    }
    let edge = line(NOBODYS, Some(Trigger::Edge));
    let connected = [(); 2].map(|()| interrupts::connect(edge, Handler::Console, 0));
    if connected != [Ok(()), Err(Unconnectable::Taken)] {
        return Err(format!("connected twice: {connected:?}"));
    }
    let triggers = [NOBODYS, IntId(NOBODYS.0 + 1)].map(selftest::trigger_of_spi);
    if triggers != [Some(Trigger::Edge), Some(Trigger::Level)] {
        return Err(format!("the one that was connected, and another one, are {triggers:?}"));
    }
    Ok(())
}

/// The real-time clock of QEMU's virt machine, and its interrupt.
const CLOCK: Range<Pa> = Range { start: Pa(0x901_0000), size: 0x1000 };
const CLOCK_INTERRUPT: IntId = IntId(32 + 2);

/// Who waits for the CPU has had it, and the interrupt is over.
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// It has not, for very many turns of another CPU, which ended the interrupt.
static IS_IN_VAIN: AtomicBool = AtomicBool::new(false);

/// An interrupt that its handler cannot end comes again and again. A thread that is woken meanwhile on the same CPU gets the CPU: as many
/// are handled in one go as that is worth, and no more.
pub(crate) fn without_end() -> Result<(), String> {
    let own = without_irqs(|| {
        let own = this_cpu().cpu;
        sched::current().restrict_to(own);
        own
    });
    let other = CpuId(u16::from(own.0 == 0));
    let rescuer = Thread::spawn("selftest", end_in_vain, 0, (100, 1 << other.0)).map_err(|error| format!("{error}"))?;
    sched::wake(rescuer);
    let line = InterruptLine { interrupt: CLOCK_INTERRUPT, trigger: Some(Trigger::Level) };
    // Masked also while it is woken: it is not interrupted before it has ended what interrupts.
    without_irqs(|| {
        // The UART's handler takes nothing back of what the clock says.
        interrupts::connect(line, Handler::Console, 0).map_err(|why| format!("not connected: {}", why.sentence()))?;
        selftest::hold_line_of_clock(CLOCK, true).map_err(|why| format!("no clock: {}", why.sentence()))?;
        sched::block(Some(Ticks(sysreg::cntpct_el0() + host::ticks(20_000))));
        selftest::hold_line_of_clock(CLOCK, false).map_err(|why| format!("no clock: {}", why.sentence()))
    })?;
    IS_OVER.store(true, Ordering::Relaxed);
    if IS_IN_VAIN.load(Ordering::Relaxed) {
        return Err("a thread that was woken beside an interrupt without end did not get its CPU".into());
    }
    Ok(())
}

/// Ends the interrupt for the other CPU if that never comes to it.
fn end_in_vain(_: usize) -> ! {
    for _ in 0..500 {
        if IS_OVER.load(Ordering::Relaxed) {
            break;
        }
        crate::selftest::sleep(10_000);
    }
    if !IS_OVER.load(Ordering::Relaxed) {
        IS_IN_VAIN.store(true, Ordering::Relaxed);
        // There is a clock, or nobody would wait.
        let _ = selftest::hold_line_of_clock(CLOCK, false);
    }
    loop {
        sched::block(None);
    }
}
