//! The GIC as a guest sees it (IHI 0069): SGIs, PPIs, SPIs; pending, active and enabled state; priorities, preemption and masks; what a
//! GIC with few list registers has to do when many interrupts are pending; the identification registers.
//!
//! Most tests keep interrupts masked in PSTATE and poll ICC_IAR1_EL1, so that each step of an interrupt's life can be looked at.
#![no_std]
#![no_main]

mod any;
mod changes;
mod shortage;

use core::sync::atomic::{AtomicU32, Ordering};

use any::{spi_to_any_cpu_that_is_on, spi_to_any_cpu_that_takes_part};
use changes::{changes_while_active, changes_while_many_are_active};
use shortage::{
    all_active_at_once, eoi_mode_changes_between, masked_group_starves_nobody, more_active_than_list_registers,
    more_active_than_list_registers_eoi_mode_1, registers_of_group_0,
};

use payload_rt::gic::{self, Target, Trigger};
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, cpu, interrupt, machine, memory, skip, sysreg, test, tests, timer};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("gic":
        identification, redistributors, registers_read_as_written, registers_beyond_the_implemented,
        nothing_pending_is_spurious, sgi_to_self, sgi_as_interrupt, sgi_to_each_other_cpu, sgi_to_all_others,
        ppi_set_pending, spi_set_pending, pending_reads, disabled_stays_pending, priorities_order_delivery,
        equal_priority_lowest_number_first, priority_mask, preemption, binary_point_groups, group_enables,
        edge_is_latched_once, level_follows_its_line, twenty_four_pending_at_once, more_pending_than_list_registers_by_interrupt,
        active_and_pending, eoi_mode_1, active_bit_by_register, more_active_than_list_registers,
        more_active_than_list_registers_eoi_mode_1, all_active_at_once, eoi_mode_changes_between, masked_group_starves_nobody, registers_of_group_0,
        spi_routed_to_other_cpu, spi_to_any_cpu, spi_to_any_cpu_that_takes_part,
        spi_to_any_cpu_that_is_on, changes_while_active, changes_while_many_are_active, sgi_storm,
    ));
}

/// SPIs at the end of what is implemented, where the machine has no devices.
fn free_spis(count: u32) -> core::ops::Range<u32> {
    let end = gic::spis().end;
    end - count..end
}

/// An SPI that no device drives, edge-triggered and enabled.
fn one_spi() -> u32 {
    let spi = free_spis(1).start;
    gic::set_trigger(spi, Trigger::Edge);
    gic::enable(spi);
    spi
}

/// Polls for up to a second; 1023 if nothing came.
fn acknowledge() -> u32 {
    let mut intid = gic::SPURIOUS;
    timer::wait_until(1000, || {
        intid = gic::acknowledge();
        intid != gic::SPURIOUS
    });
    intid
}

/// Polls for a fifth of a millisecond and expects nothing.
fn acknowledge_nothing() -> u32 {
    timer::delay(200);
    gic::acknowledge()
}

fn identification() -> Verdict {
    let typer = memory::read32(gic::DISTRIBUTOR + gic::GICD_TYPER);
    check!(gic::spis().len() >= 32, "GICD_TYPER {typer:#x} states only {} SPIs", gic::spis().len());
    let revision = memory::read32(gic::DISTRIBUTOR + gic::GICD_PIDR2) >> 4 & 0xf;
    check_equal!(revision, 3, "GICD_PIDR2.ArchRev");
    let iidr = memory::read32(gic::DISTRIBUTOR + gic::GICD_IIDR);
    check_equal!(memory::read32(gic::DISTRIBUTOR + gic::GICD_IIDR), iidr, "GICD_IIDR read twice");
    memory::write32(gic::DISTRIBUTOR + gic::GICD_TYPER, !typer);
    check_equal!(memory::read32(gic::DISTRIBUTOR + gic::GICD_TYPER), typer, "GICD_TYPER after a write");
    check!(sysreg::icc_sre_el1::read() & 1 == 1, "ICC_SRE_EL1.SRE is not set");
    check!(
        sysreg::field(sysreg::id_aa64pfr0_el1::read(), 24) == 1,
        "ID_AA64PFR0_EL1.GIC says that there is no system register interface"
    );
    Ok(())
}

fn redistributors() -> Verdict {
    for index in 0..cpu::count() {
        let base = gic::redistributor(cpu::affinity(index));
        let typer = memory::read64(base + gic::GICR_TYPER);
        check_equal!(typer >> 8 & 0xffff, index as u64, "GICR_TYPER.Processor_Number of CPU {index}");
        check_equal!(typer >> 4 & 1 == 1, index == cpu::count() - 1, "GICR_TYPER.Last of CPU {index}");
        let revision = memory::read32(base + gic::GICD_PIDR2) >> 4 & 0xf;
        check_equal!(revision, 3, "GICR_PIDR2.ArchRev of CPU {index}");
        check_equal!(memory::read32(base + gic::GICR_TYPER), typer as u32, "low half of GICR_TYPER of CPU {index}");
        check_equal!(
            memory::read32(base + gic::GICR_TYPER + 4),
            (typer >> 32) as u32,
            "high half of GICR_TYPER of CPU {index}"
        );
    }
    Ok(())
}

fn registers_read_as_written() -> Verdict {
    let spi = free_spis(1).start;
    for (set, clear) in
        [(gic::ISENABLER, gic::ICENABLER), (gic::ISPENDR, gic::ICPENDR), (gic::ISACTIVER, gic::ICACTIVER)]
    {
        for step in 0..2 {
            gic::write_bit(set, spi);
            check!(gic::read_bit(set, spi) && gic::read_bit(clear, spi), "bank {set:#x}: set bit reads 0, pass {step}");
            gic::write_bit(clear, spi);
            check!(
                !gic::read_bit(set, spi) && !gic::read_bit(clear, spi),
                "bank {set:#x}: cleared bit reads 1, pass {step}"
            );
        }
    }
    gic::set_priority(spi, 0x50);
    check_equal!(gic::priority(spi), 0x50, "priority as a byte");
    let word = gic::DISTRIBUTOR + gic::IPRIORITYR + u64::from(spi & !3);
    check_equal!(memory::read32(word) >> (8 * (spi & 3)) & 0xff, 0x50, "priority in a word");
    gic::set_priority(spi, 0xff);
    let implemented = gic::priority(spi);
    check!(
        implemented >= 0xf0 && implemented.leading_ones() + implemented.trailing_zeros() == 8,
        "priority bits {implemented:#x}"
    );
    for trigger in [Trigger::Edge, Trigger::Level] {
        gic::set_trigger(spi, trigger);
        let field = memory::read32(gic::DISTRIBUTOR + gic::ICFGR + u64::from(spi / 16) * 4) >> (spi % 16 * 2) & 3;
        check_equal!(field, if trigger == Trigger::Edge { 2 } else { 0 }, "GICD_ICFGR of SPI {spi}");
    }
    let sgis = memory::read32(gic::own_redistributor() + gic::SGI_FRAME + gic::ICFGR);
    check_equal!(sgis, 0xaaaa_aaaa, "GICR_ICFGR0: SGIs are edge-triggered");
    gic::route(spi, cpu::affinity(cpu::count() - 1));
    let router = memory::read64(gic::DISTRIBUTOR + gic::GICD_IROUTER + u64::from(spi) * 8);
    check_equal!(router, cpu::affinity(cpu::count() - 1), "GICD_IROUTER of SPI {spi}");
    Ok(())
}

fn registers_beyond_the_implemented() -> Verdict {
    for bank in [gic::IGROUPR, gic::ISENABLER, gic::ISPENDR, gic::ISACTIVER, gic::IPRIORITYR, gic::ICFGR] {
        check_equal!(
            memory::read32(gic::DISTRIBUTOR + bank),
            0,
            "Distributor bank {bank:#x}, word of SGIs and PPIs, with affinity routing"
        );
    }
    let end = gic::spis().end;
    if end < 1020 {
        let address = gic::DISTRIBUTOR + gic::ISENABLER + u64::from(end / 32) * 4;
        memory::write32(address, u32::MAX);
        check_equal!(memory::read32(address), 0, "GICD_ISENABLER behind the last SPI");
    }
    // Reserved registers read as zero and ignore writes; none of these may fault or disturb.
    for offset in [0x000c, 0x0010, 0x00fc, 0x0e00, 0x5ffc, 0xc000, 0xffcc] {
        memory::write32(gic::DISTRIBUTOR + offset, u32::MAX);
        let _ = memory::read32(gic::DISTRIBUTOR + offset);
    }
    check_equal!(memory::read32(gic::DISTRIBUTOR + gic::GICD_CTLR) & 0x12, 0x12, "GICD_CTLR enables afterwards");
    Ok(())
}

fn nothing_pending_is_spurious() -> Verdict {
    check_equal!(gic::acknowledge(), gic::SPURIOUS, "ICC_IAR1_EL1");
    check_equal!(sysreg::icc_hppir1_el1::read(), u64::from(gic::SPURIOUS), "ICC_HPPIR1_EL1");
    check_equal!(sysreg::icc_rpr_el1::read(), 0xff, "ICC_RPR_EL1");
    gic::end(gic::SPURIOUS);
    check_equal!(gic::acknowledge(), gic::SPURIOUS, "ICC_IAR1_EL1 after ending 1023");
    Ok(())
}

fn own() -> Target {
    Target::Affinity(gic::own_affinity())
}

fn sgi_to_self() -> Verdict {
    for sgi in 0..16 {
        gic::send(sgi, own());
        check!(acknowledge_nothing() == gic::SPURIOUS, "SGI {sgi} came while disabled");
        check!(gic::read_bit(gic::ISPENDR, sgi), "SGI {sgi} sent but not pending");
        gic::enable(sgi);
        check_equal!(acknowledge(), sgi, "acknowledged");
        gic::end(sgi);
        check_equal!(acknowledge_nothing(), gic::SPURIOUS, "SGI {sgi} came twice; acknowledged");
    }
    for sgi in (0..16).rev() {
        gic::send(sgi, own());
    }
    for sgi in 0..16 {
        check_equal!(acknowledge(), sgi, "of 16 SGIs together");
        gic::end(sgi);
    }
    Ok(())
}

fn sgi_as_interrupt() -> Verdict {
    for sgi in 0..16 {
        gic::enable(sgi);
    }
    cpu::unmask_interrupts();
    for round in 1..=50 {
        for sgi in 0..16 {
            gic::send(sgi, own());
            check!(
                timer::wait_until(1000, || interrupt::seen(0, sgi) == round),
                "SGI {sgi}, round {round}: seen {}",
                interrupt::seen(0, sgi)
            );
        }
    }
    check_equal!(interrupt::spurious(0), 0, "spurious interrupts");
    Ok(())
}

/// How many helpers are ready to take interrupts.
static READY: AtomicU32 = AtomicU32::new(0);
/// Set to let the helpers end.
static STOP: AtomicU32 = AtomicU32::new(0);

/// A secondary CPU that takes SGIs and SPIs until told to stop.
fn take_interrupts(_index: usize) {
    for sgi in 0..16 {
        gic::enable(sgi);
    }
    cpu::unmask_interrupts();
    READY.fetch_add(1, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) == 0 {
        cpu::relax();
    }
    cpu::mask_interrupts();
}

/// Starts the helpers, runs `body`, stops them.
fn with_other_cpus(body: impl FnOnce() -> Verdict) -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    READY.store(0, Ordering::SeqCst);
    STOP.store(0, Ordering::SeqCst);
    for index in 1..cpu::count() {
        let started = cpu::start(index, take_interrupts);
        check!(started.is_ok(), "CPU_ON of CPU {index}: {started:?}");
    }
    let ready = timer::wait_until(10_000, || READY.load(Ordering::SeqCst) as usize == cpu::count() - 1);
    let verdict = if ready { body() } else { Ok(()) };
    STOP.store(1, Ordering::SeqCst);
    for index in 1..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} does not switch off");
    }
    check!(ready, "only {} other CPUs came up", READY.load(Ordering::SeqCst));
    verdict
}

fn sgi_to_each_other_cpu() -> Verdict {
    with_other_cpus(|| {
        for index in 1..cpu::count() {
            for sgi in 0..16 {
                gic::send(sgi, Target::Affinity(cpu::affinity(index)));
                check!(
                    timer::wait_until(5000, || interrupt::seen(index, sgi) == 1),
                    "CPU {index} did not get SGI {sgi}"
                );
            }
        }
        for index in 1..cpu::count() {
            for sgi in 0..16 {
                check_equal!(interrupt::seen(index, sgi), 1, "SGI {sgi} seen by CPU {index}");
            }
        }
        Ok(())
    })
}

fn sgi_to_all_others() -> Verdict {
    with_other_cpus(|| {
        gic::enable(7);
        for round in 1..=20 {
            gic::send(7, Target::Others);
            for index in 1..cpu::count() {
                check!(
                    timer::wait_until(5000, || interrupt::seen(index, 7) == round),
                    "CPU {index} did not get round {round}"
                );
            }
        }
        check_equal!(acknowledge_nothing(), gic::SPURIOUS, "the sender got");
        Ok(())
    })
}

fn ppi_set_pending() -> Verdict {
    // PPI 20 has no source on this machine.
    let ppi = 20;
    gic::set_trigger(ppi, Trigger::Edge);
    gic::enable(ppi);
    gic::write_bit(gic::ISPENDR, ppi);
    check_equal!(acknowledge(), ppi, "acknowledged");
    gic::end(ppi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "afterwards");
    Ok(())
}

fn spi_set_pending() -> Verdict {
    let spi = one_spi();
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge(), spi, "acknowledged");
    gic::end(spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "afterwards");
    interrupt::clear();
    cpu::unmask_interrupts();
    for round in 1..=100 {
        gic::write_bit(gic::ISPENDR, spi);
        check!(
            timer::wait_until(1000, || interrupt::seen(0, spi) == round),
            "round {round}: seen {}",
            interrupt::seen(0, spi)
        );
    }
    Ok(())
}

fn pending_reads() -> Verdict {
    let spi = one_spi();
    gic::write_bit(gic::ISPENDR, spi);
    check!(gic::read_bit(gic::ISPENDR, spi), "pending, but ISPENDR reads 0");
    check_equal!(sysreg::icc_hppir1_el1::read(), u64::from(spi), "ICC_HPPIR1_EL1");
    gic::write_bit(gic::ICPENDR, spi);
    check!(!gic::read_bit(gic::ICPENDR, spi), "cleared, but ICPENDR reads 1");
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "after ICPENDR");
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge(), spi, "acknowledged");
    check!(!gic::read_bit(gic::ISPENDR, spi), "acknowledged, but still pending");
    check!(gic::read_bit(gic::ISACTIVER, spi), "acknowledged, but not active");
    gic::end(spi);
    check!(!gic::read_bit(gic::ISACTIVER, spi), "ended, but still active");
    Ok(())
}

fn disabled_stays_pending() -> Verdict {
    let spi = one_spi();
    gic::disable(spi);
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "while disabled");
    gic::enable(spi);
    check!(gic::read_bit(gic::ISPENDR, spi), "no longer pending after enabling");
    gic::disable(spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "disabled again before it was acknowledged");
    gic::enable(spi);
    check_equal!(acknowledge(), spi, "once enabled");
    gic::end(spi);
    Ok(())
}

fn priorities_order_delivery() -> Verdict {
    let spis = free_spis(4);
    for (step, spi) in spis.clone().enumerate() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::set_priority(spi, 0x80 - 0x10 * step as u8);
        gic::enable(spi);
        gic::write_bit(gic::ISPENDR, spi);
    }
    for spi in spis.rev() {
        check_equal!(acknowledge(), spi, "acknowledged");
        check_equal!(sysreg::icc_rpr_el1::read(), u64::from(gic::priority(spi)), "ICC_RPR_EL1");
        gic::end(spi);
    }
    Ok(())
}

fn equal_priority_lowest_number_first() -> Verdict {
    let spis = free_spis(3);
    for spi in spis.clone().rev() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::enable(spi);
        gic::write_bit(gic::ISPENDR, spi);
    }
    for spi in spis {
        check_equal!(acknowledge(), spi, "acknowledged");
        gic::end(spi);
    }
    Ok(())
}

fn priority_mask() -> Verdict {
    let spi = one_spi();
    gic::set_priority(spi, 0x80);
    sysreg::icc_pmr_el1::write(0x80);
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "priority 0x80 under mask 0x80");
    sysreg::icc_pmr_el1::write(0x90);
    check_equal!(acknowledge(), spi, "priority 0x80 under mask 0x90");
    gic::end(spi);
    gic::write_bit(gic::ISPENDR, spi);
    sysreg::icc_pmr_el1::write(0);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "under mask 0");
    cpu::unmask_interrupts();
    timer::delay(200);
    check_equal!(interrupt::seen(0, spi), 0, "taken under mask 0");
    sysreg::icc_pmr_el1::write(0xff);
    check!(timer::wait_until(1000, || interrupt::seen(0, spi) == 1), "not taken after unmasking");
    Ok(())
}

/// What the nesting handler saw: one hexadecimal digit an event, the latest lowest.
static TRACE: AtomicU32 = AtomicU32::new(0);

fn trace(event: u32) {
    TRACE.store(TRACE.load(Ordering::SeqCst) << 4 | event, Ordering::SeqCst);
}

/// Acknowledges; in the first SPI of three makes the others pending with interrupts open.
fn nesting_handler() {
    let first = free_spis(3).start;
    let intid = gic::acknowledge();
    let which = intid.wrapping_sub(first) + 1;
    trace(which);
    if which == 1 {
        gic::write_bit(gic::ISPENDR, first + 1);
        gic::write_bit(gic::ISPENDR, first + 2);
        cpu::unmask_interrupts();
        timer::delay(500);
        cpu::mask_interrupts();
    }
    trace(which + 8);
    gic::end(intid);
}

fn nest(priorities: [u8; 3], binary_point: u64) -> u32 {
    TRACE.store(0, Ordering::SeqCst);
    let spis = free_spis(3);
    for (spi, priority) in spis.clone().zip(priorities) {
        gic::set_trigger(spi, Trigger::Edge);
        gic::set_priority(spi, priority);
        gic::enable(spi);
    }
    sysreg::icc_bpr1_el1::write(binary_point);
    interrupt::set_handler(nesting_handler);
    cpu::unmask_interrupts();
    gic::write_bit(gic::ISPENDR, spis.start);
    timer::wait_until(1000, || TRACE.load(Ordering::SeqCst) >= 0x10_0000);
    cpu::mask_interrupts();
    sysreg::icc_bpr1_el1::write(0);
    TRACE.load(Ordering::SeqCst)
}

fn preemption() -> Verdict {
    // The second is less urgent than the first, the third more: the third comes inside of the first, the second behind it.
    check_equal!(nest([0x80, 0xa0, 0x40], 0), 0x13_b92a, "order of entry (1, 2, 3) and exit (9, a, b)");
    check_equal!(sysreg::icc_rpr_el1::read(), 0xff, "ICC_RPR_EL1 afterwards");
    Ok(())
}

fn binary_point_groups() -> Verdict {
    // With binary point 7 only bit 7 of a priority decides about preemption; the order behind the first is still by priority.
    check_equal!(nest([0xa0, 0xc0, 0x80], 7), 0x19_3b2a, "order with binary point 7");
    check_equal!(nest([0xa0, 0xc0, 0x40], 7), 0x13_b92a, "order with binary point 7, bit 7 different");
    Ok(())
}

fn group_enables() -> Verdict {
    let spi = one_spi();
    sysreg::icc_igrpen1_el1::write(0);
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "with ICC_IGRPEN1_EL1 = 0");
    sysreg::icc_igrpen1_el1::write(1);
    check_equal!(acknowledge(), spi, "with ICC_IGRPEN1_EL1 = 1");
    gic::end(spi);
    memory::write32(gic::DISTRIBUTOR + gic::GICD_CTLR, 1 << 4);
    gic::wait_for_writes();
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "with group 1 disabled in GICD_CTLR");
    memory::write32(gic::DISTRIBUTOR + gic::GICD_CTLR, gic::CTLR_ENABLE);
    gic::wait_for_writes();
    check_equal!(acknowledge(), spi, "with group 1 enabled in GICD_CTLR");
    gic::end(spi);
    Ok(())
}

fn edge_is_latched_once() -> Verdict {
    let spi = one_spi();
    gic::write_bit(gic::ISPENDR, spi);
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge(), spi, "acknowledged");
    gic::end(spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "two edges before the acknowledge are one");
    Ok(())
}

fn level_follows_its_line() -> Verdict {
    let ppi = timer::VIRTUAL_PPI;
    gic::enable(ppi);
    sysreg::cntv_cval_el0::write(0);
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
    for round in 0..3 {
        check_equal!(acknowledge(), ppi, "round {round}, with the timer's line high");
        gic::end(ppi);
    }
    check!(gic::read_bit(gic::ISPENDR, ppi), "line high, but not pending");
    sysreg::cntv_ctl_el0::write(0);
    check!(timer::wait_until(100, || !gic::read_bit(gic::ISPENDR, ppi)), "line low, but still pending");
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "with the line low");
    Ok(())
}

fn twenty_four_pending_at_once() -> Verdict {
    let spis = free_spis(24);
    for spi in spis.clone() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::enable(spi);
        // Priorities in an order that is neither that of the numbers nor its reverse, eight steps of 0x10.
        gic::set_priority(spi, 0x20 + (spi * 5 % 8) as u8 * 0x10);
    }
    for spi in spis.clone() {
        gic::write_bit(gic::ISPENDR, spi);
    }
    let mut last = (0, 0);
    for step in 0..24 {
        let intid = acknowledge();
        check!(spis.contains(&intid), "step {step}: acknowledged {intid}");
        let this = (gic::priority(intid), intid);
        check!(this > last, "step {step}: {this:x?} came after {last:x?}");
        last = this;
        gic::end(intid);
    }
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "after all");
    Ok(())
}

fn more_pending_than_list_registers_by_interrupt() -> Verdict {
    let spis = free_spis(24);
    for spi in spis.clone() {
        gic::set_trigger(spi, Trigger::Edge);
        gic::enable(spi);
    }
    for round in 1..=20 {
        for spi in spis.clone() {
            gic::write_bit(gic::ISPENDR, spi);
        }
        for sgi in 0..16 {
            gic::enable(sgi);
            gic::send(sgi, own());
        }
        cpu::unmask_interrupts();
        let all = || spis.clone().chain(0..16).all(|intid| interrupt::seen(0, intid) == round);
        let complete = timer::wait_until(2000, all);
        cpu::mask_interrupts();
        if !complete {
            let odd = spis.clone().chain(0..16).find(|&intid| interrupt::seen(0, intid) != round).unwrap_or(0);
            check!(false, "round {round}: interrupt {odd} seen {} times", interrupt::seen(0, odd));
        }
    }
    Ok(())
}

fn active_and_pending() -> Verdict {
    let spi = one_spi();
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge(), spi, "acknowledged");
    gic::write_bit(gic::ISPENDR, spi);
    check!(gic::read_bit(gic::ISPENDR, spi) && gic::read_bit(gic::ISACTIVER, spi), "not both active and pending");
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "while active");
    gic::end(spi);
    check_equal!(acknowledge(), spi, "after the end of the first");
    gic::end(spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "afterwards");
    Ok(())
}

fn eoi_mode_1() -> Verdict {
    let spi = one_spi();
    sysreg::icc_ctlr_el1::write(2);
    check!(sysreg::icc_ctlr_el1::read() & 2 != 0, "ICC_CTLR_EL1.EOImode does not stick");
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge(), spi, "acknowledged");
    gic::end(spi);
    check_equal!(sysreg::icc_rpr_el1::read(), 0xff, "ICC_RPR_EL1 after the priority drop");
    check!(gic::read_bit(gic::ISACTIVER, spi), "not active between EOIR and DIR");
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "active, and pending again");
    gic::deactivate(spi);
    check_equal!(acknowledge(), spi, "after DIR");
    gic::end(spi);
    gic::deactivate(spi);
    check!(!gic::read_bit(gic::ISACTIVER, spi), "active after DIR");
    // An SGI, and the timer's PPI, which a hypervisor may link to the physical interrupt.
    for (intid, raise) in [(3, send_three as fn()), (timer::VIRTUAL_PPI, fire_timer as fn())] {
        gic::enable(intid);
        for round in 0..3 {
            raise();
            check_equal!(acknowledge(), intid, "round {round}");
            gic::end(intid);
            sysreg::cntv_ctl_el0::write(0);
            check!(gic::read_bit(gic::ISACTIVER, intid), "{intid} not active between EOIR and DIR");
            gic::deactivate(intid);
            check!(!gic::read_bit(gic::ISACTIVER, intid), "{intid} active after DIR");
        }
    }
    sysreg::icc_ctlr_el1::write(0);
    Ok(())
}

fn send_three() {
    gic::send(3, own());
}

fn fire_timer() {
    sysreg::cntv_cval_el0::write(0);
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
}

fn active_bit_by_register() -> Verdict {
    let spi = one_spi();
    gic::write_bit(gic::ISACTIVER, spi);
    check!(gic::read_bit(gic::ISACTIVER, spi), "ISACTIVER does not stick");
    gic::write_bit(gic::ISPENDR, spi);
    check_equal!(acknowledge_nothing(), gic::SPURIOUS, "while made active");
    gic::write_bit(gic::ICACTIVER, spi);
    check_equal!(acknowledge(), spi, "after ICACTIVER");
    gic::end(spi);
    Ok(())
}

fn spi_routed_to_other_cpu() -> Verdict {
    let spi = one_spi();
    with_other_cpus(|| {
        for index in 1..cpu::count() {
            gic::route(spi, cpu::affinity(index));
            gic::write_bit(gic::ISPENDR, spi);
            check!(timer::wait_until(5000, || interrupt::seen(index, spi) == 1), "CPU {index} did not get SPI {spi}");
        }
        // Pending while routed to a CPU, then routed here before it is taken: it must move.
        gic::disable(spi);
        gic::write_bit(gic::ISPENDR, spi);
        gic::route(spi, cpu::affinity(0));
        gic::enable(spi);
        check_equal!(acknowledge(), spi, "routed back");
        gic::end(spi);
        let total: u32 = (1..cpu::count()).map(|index| interrupt::seen(index, spi)).sum();
        check_equal!(total as usize, cpu::count() - 1, "taken by the others");
        Ok(())
    })
}

fn spi_to_any_cpu() -> Verdict {
    let spi = one_spi();
    with_other_cpus(|| {
        gic::route(spi, 1 << 31);
        cpu::unmask_interrupts();
        let total = || (0..cpu::count()).map(|index| interrupt::seen(index, spi)).sum::<u32>();
        for round in 1..=20 {
            gic::write_bit(gic::ISPENDR, spi);
            check!(timer::wait_until(5000, || total() == round), "round {round}: taken {} times", total());
        }
        timer::delay(500);
        check_equal!(total(), 20, "taken in all");
        cpu::mask_interrupts();
        Ok(())
    })
}

fn sgi_storm() -> Verdict {
    let rounds = machine::option_number("loops", 2000) as u32;
    with_other_cpus(|| {
        for round in 1..=rounds {
            gic::send(round % 16, Target::Others);
            let sent = |sgi| round / 16 + u32::from(sgi <= round % 16) - u32::from(sgi == 0);
            let sgi = round % 16;
            for index in 1..cpu::count() {
                check!(
                    timer::wait_until(5000, || interrupt::seen(index, sgi) == sent(sgi)),
                    "CPU {index} lost SGI {sgi} in round {round}"
                );
            }
        }
        Ok(())
    })
}
