//! A check of how the host's devices are reached: their registers as regions, their interrupts by a table.

use alloc::format;
use alloc::string::String;

use hw::mmio::RegionError;
use hw::sync::unmask_irqs;
use hw::{clock, selftest, stack, sysreg};
use platform::InterruptLine;
use undercroft::exit::interrupts::{self, Handler, Unconnectable};
use undercroft::host;
use units::{IntId, Pa, Range, Trigger};

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
