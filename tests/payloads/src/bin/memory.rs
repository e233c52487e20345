//! The guest's physical memory: all of the stated RAM is there and was clean, everything else answers with the external abort that the
//! architecture has for an address where nothing is, and stage-1 tables may point where they like.
#![no_std]
#![no_main]

use core::ops::Range;

use payload_rt::fault::{self, EC_DATA_ABORT, EC_INSTRUCTION_ABORT, FSC_ALIGNMENT, FSC_EXTERNAL, Fault};
use payload_rt::instruction::{execute, sys};
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, machine, memory, mmu, skip, sysreg, test, tests, uart};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("memory":
        tree_where_ram_begins, ram_is_zero_at_start, ram_is_all_there, loads_outside_of_ram, stores_outside_of_ram, every_load_form_outside_of_ram,
        fetch_from_nowhere, fetch_from_a_device, table_walk_to_nowhere, table_walk_to_a_device, address_translation_to_nowhere,
        address_translation_through_a_device,
        unaligned_accesses, zeroing_by_cache_instruction, cache_maintenance_anywhere, exclusives_outside_of_ram,
    ));
}

/// The parts of RAM that nobody has put anything into: all but image, device tree and ramdisk, rounded to pages.
fn untouched() -> [Range<u64>; 4] {
    let machine = machine::machine();
    let mut taken = [machine::image(), machine.device_tree.clone(), machine.initrd.clone()];
    taken.sort_unstable_by_key(|range| range.start);
    // The bare machine has a boot stub in the first page.
    let mut start = machine.ram.start + if machine::is_reference() { 4096 } else { 0 };
    let mut gaps = [const { 0..0 }; 4];
    for (gap, range) in
        gaps.iter_mut().zip(taken.iter().filter(|range| !range.is_empty()).chain([&(machine.ram.end..machine.ram.end)]))
    {
        *gap = start..range.start & !0xfff;
        start = range.end.next_multiple_of(4096);
    }
    gaps
}

/// This image may lie anywhere and does not say how far from a boundary: what kernels that know QEMU's `virt` by heart are like,
/// which look for the tree where RAM begins and for themselves 2 MiB behind.
fn tree_where_ram_begins() -> Verdict {
    if machine::is_reference() {
        skip!("QEMU treats such an image like Linux");
    }
    let machine = machine::machine();
    check_equal!(machine.device_tree.start, machine.ram.start, "the tree's address");
    check_equal!(machine::image().start, machine.ram.start + 0x20_0000, "the image's address");
    Ok(())
}

fn ram_is_zero_at_start() -> Verdict {
    for gap in untouched() {
        if let Some(address) = memory::first_not_zero(gap.clone()) {
            check!(
                false,
                "{:#x} at {address:#x}, in a part of RAM that nobody has filled ({gap:#x?})",
                memory::read64(address)
            );
        }
    }
    Ok(())
}

fn ram_is_all_there() -> Verdict {
    let ram = &machine::machine().ram;
    check!(!ram.is_empty(), "the device tree states no RAM");
    let pattern = |address: u64| address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for gap in untouched() {
        for address in gap.clone().step_by(0x1_0000) {
            memory::write64(address, pattern(address));
        }
        for address in gap.end.saturating_sub(4096).max(gap.start)..gap.end {
            memory::write8(address, address as u8);
        }
    }
    for gap in untouched() {
        for address in gap.clone().step_by(0x1_0000) {
            if gap.end - address > 4096 {
                check_equal!(memory::read64(address), pattern(address), "RAM at {address:#x}");
            }
        }
        for address in gap.end.saturating_sub(4096).max(gap.start)..gap.end {
            check_equal!(memory::read8(address), address as u8, "RAM at {address:#x}");
        }
    }
    Ok(())
}

/// Addresses behind RAM and in holes of the machine's map.
fn nowhere() -> [u64; 6] {
    let end = machine::machine().ram.end;
    [end, end + 0x1234_5678, end + (3 << 30), 0x0b00_0000, 0x7f_0000_0000, 0x0a00_4000]
}

fn is_external(fault: Fault, class: u64, address: u64) -> bool {
    // FnV clear, so FAR counts.
    fault.class() == class && fault.status() == FSC_EXTERNAL && fault.esr & 1 << 10 == 0 && fault.far == address
}

fn loads_outside_of_ram() -> Verdict {
    for address in nowhere() {
        let outcome = fault::catch(|| memory::read64(address));
        let right = outcome.is_err_and(|fault| is_external(fault, EC_DATA_ABORT, address) && fault.esr & 1 << 6 == 0);
        check!(right, "load from {address:#x}: {outcome:x?}, expected a synchronous external abort");
    }
    Ok(())
}

fn stores_outside_of_ram() -> Verdict {
    for address in nowhere() {
        let outcome = fault::catch(|| memory::write32(address, 1));
        let right = outcome.is_err_and(|fault| is_external(fault, EC_DATA_ABORT, address) && fault.esr & 1 << 6 != 0);
        check!(right, "store to {address:#x}: {outcome:x?}, expected a synchronous external abort of a write");
    }
    Ok(())
}

fn every_load_form_outside_of_ram() -> Verdict {
    // LDP, STP, LDP 64, LDR post, LDR pre, LDRSB, LDAR, LDR Q, LDPSW: with and without syndrome.
    for opcode in [
        0x2940_0801,
        0x2900_0801,
        0xa940_0801,
        0xb840_4401,
        0xb840_4c01,
        0x3980_0001,
        0x88df_fc01,
        0x3dc0_0000,
        0x6940_0801,
    ] {
        for address in nowhere() {
            let outcome = execute(opcode, &mut [address, 0, 0, 0, 0, 0, 0, 0]);
            let right = outcome.is_err_and(|fault| is_external(fault, EC_DATA_ABORT, fault.far) && fault.elr == 0);
            check!(right, "{opcode:#x} at {address:#x}: {outcome:x?}, expected a synchronous external abort");
        }
    }
    Ok(())
}

fn fetch_from_nowhere() -> Verdict {
    // Slots up to 255 GiB are mapped executable.
    let end = machine::machine().ram.end;
    for address in [end, end + 0x10_0000, end + (2 << 30)] {
        let outcome = fault::catch(|| memory::call(address));
        let right = outcome.is_err_and(|fault| is_external(fault, EC_INSTRUCTION_ABORT, address));
        check!(right, "fetch from {address:#x}: {outcome:x?}, expected a synchronous external abort");
    }
    Ok(())
}

fn fetch_from_a_device() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine fetches from devices as it likes");
    }
    // The UART through a mapping that says it were executable memory.
    let base = mmu::set_slot(mmu::FREE_SLOT, mmu::normal_block(0));
    let outcome = fault::catch(|| memory::call(base + uart::BASE));
    mmu::reset_slot(mmu::FREE_SLOT);
    check!(outcome.is_err_and(|fault| fault.class() == EC_INSTRUCTION_ABORT), "fetch from the UART: {outcome:x?}");
    Ok(())
}

fn walk(table: u64) -> [Result<(), Fault>; 3] {
    let address = mmu::set_slot(mmu::FREE_SLOT, mmu::table(table)) + 0x1000;
    let outcomes = [
        fault::catch(|| {
            let _ = memory::read32(address);
        }),
        fault::catch(|| memory::write32(address, 1)),
        fault::catch(|| memory::call(address)),
    ];
    mmu::reset_slot(mmu::FREE_SLOT);
    outcomes
}

fn table_walk_to_nowhere() -> Verdict {
    let end = machine::machine().ram.end;
    for table in [end, end + 0x10_0000, 0x0b00_0000, 0x40_0000_0000 - 0x1000] {
        for (outcome, what) in walk(table).into_iter().zip(["load", "store", "fetch"]) {
            // External abort on a table walk, level 2.
            let class = if what == "fetch" { EC_INSTRUCTION_ABORT } else { EC_DATA_ABORT };
            let right = outcome
                .is_err_and(|fault| fault.class() == class && fault.status() == 0x16 && fault.far == 0x40_0000_1000);
            check!(
                right,
                "{what} through a table at {table:#x}: {outcome:x?}, expected an external abort on the walk, level 2"
            );
        }
    }
    Ok(())
}

fn table_walk_to_a_device() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine reads tables from devices");
    }
    for table in [uart::BASE, payload_rt::gic::DISTRIBUTOR] {
        for (outcome, what) in walk(table).into_iter().zip(["load", "store", "fetch"]) {
            check!(outcome.is_err(), "{what} through a table at {table:#x} succeeded");
        }
    }
    Ok(())
}

fn address_translation_to_nowhere() -> Verdict {
    // AT S1E1R looks at stage 1 only: an address behind RAM translates; one through a table that is nowhere does not.
    let end = machine::machine().ram.end;
    let outcome = execute(sys(0, 7, 8, 0), &mut [end, 0, 0, 0, 0, 0, 0, 0]);
    sysreg::isb();
    let result = sysreg::par_el1::read();
    check!(outcome.is_ok() && result & 1 == 0, "AT S1E1R of {end:#x}: {outcome:x?}, PAR_EL1 {result:#x}");
    check_equal!(result & 0xff_ffff_f000, end & !0xfff, "PAR_EL1.PA");
    translation_through(end)
}

fn address_translation_through_a_device() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine reads tables from devices");
    }
    [uart::BASE, payload_rt::gic::DISTRIBUTOR].into_iter().try_for_each(translation_through)
}

/// AT through a table where there is no RAM: S1E1R, S1E1W, S1E0R, S1E0W.
fn translation_through(table: u64) -> Verdict {
    for kind in 0..4 {
        let address = mmu::set_slot(mmu::FREE_SLOT, mmu::table(table)) + 0x1000;
        let outcome = execute(sys(0, 7, 8, kind), &mut [address, 0, 0, 0, 0, 0, 0, 0]);
        sysreg::isb();
        let result = sysreg::par_el1::read();
        mmu::reset_slot(mmu::FREE_SLOT);
        // The architecture lets the abort be taken; a PAR with F set is the other right answer.
        // The abort then says CM and WnR, the level of the guest's own table, and the address that was to be translated.
        let told = |fault: Fault| {
            fault.class() == EC_DATA_ABORT && fault.esr & 0x17f == 1 << 8 | 1 << 6 | 0x16 && fault.far == address
        };
        let reported = outcome.is_ok() && result & 1 == 1 || outcome.is_err_and(told);
        check!(reported, "AT {kind} through a table at {table:#x}: {outcome:x?}, PAR_EL1 {result:#x}");
    }
    Ok(())
}

fn unaligned_accesses() -> Verdict {
    let page = memory::pages(2);
    for offset in [1, 3, 7, 4093, 4095] {
        memory::write64(page + offset, 0x1122_3344_5566_7788);
        check_equal!(memory::read64(page + offset), 0x1122_3344_5566_7788, "unaligned in RAM, offset {offset}");
    }
    let device = payload_rt::gic::DISTRIBUTOR + 1;
    let outcome = fault::catch(|| memory::read32(device));
    let right = outcome
        .is_err_and(|fault| fault.class() == EC_DATA_ABORT && fault.status() == FSC_ALIGNMENT && fault.far == device);
    check!(right, "unaligned device access: {outcome:x?}, expected an alignment fault");
    Ok(())
}

fn zeroing_by_cache_instruction() -> Verdict {
    let page = memory::pages(1);
    for offset in (0..4096).step_by(8) {
        memory::write64(page + offset, u64::MAX);
    }
    // DC ZVA.
    let outcome = execute(sys(3, 7, 4, 1), &mut [page + 0x800, 0, 0, 0, 0, 0, 0, 0]);
    check!(outcome.is_ok(), "DC ZVA: {outcome:x?}");
    check_equal!(memory::read64(page + 0x800), 0, "after DC ZVA");
    check_equal!(memory::read64(page), u64::MAX, "elsewhere after DC ZVA");
    // On a device it is an alignment fault (the emulated machine stores zeros instead; these are identification registers).
    let outcome = execute(sys(3, 7, 4, 1), &mut [0x0901_0fc0, 0, 0, 0, 0, 0, 0, 0]);
    let right = outcome.is_ok() || outcome.is_err_and(|fault| fault.class() == EC_DATA_ABORT);
    check!(right, "DC ZVA on a device: {outcome:x?}, expected a data abort");
    let outcome = execute(sys(3, 7, 4, 1), &mut [machine::machine().ram.end, 0, 0, 0, 0, 0, 0, 0]);
    check!(
        outcome.is_err_and(|fault| fault.status() == FSC_EXTERNAL),
        "DC ZVA behind RAM: {outcome:x?}, expected an external abort"
    );
    Ok(())
}

fn cache_maintenance_anywhere() -> Verdict {
    // DC CVAC, DC CVAU, DC CIVAC, DC IVAC, IC IVAU: they may fault or not where nothing is, but end either way.
    let opcodes = [sys(3, 7, 10, 1), sys(3, 7, 11, 1), sys(3, 7, 14, 1), sys(0, 7, 6, 1), sys(3, 7, 5, 1)];
    for opcode in opcodes {
        for address in nowhere().into_iter().chain([uart::BASE, memory::arena().start]) {
            let outcome = execute(opcode, &mut [address, 0, 0, 0, 0, 0, 0, 0]);
            let right = outcome.is_ok() || outcome.is_err_and(|fault| fault.class() == EC_DATA_ABORT);
            check!(right, "{opcode:#x} at {address:#x}: {outcome:x?}");
        }
    }
    // IC IALLU, IC IALLUIS, TLBI VMALLE1IS, which take no register, and TLBI ASIDE1.
    for opcode in [sys(0, 7, 5, 0) | 0x1f, sys(0, 7, 1, 0) | 0x1f, sys(0, 8, 3, 0) | 0x1f, sys(0, 8, 7, 2)] {
        let outcome = execute(opcode, &mut [0; 8]);
        check!(outcome.is_ok(), "{opcode:#x}: {outcome:x?}");
    }
    Ok(())
}

fn exclusives_outside_of_ram() -> Verdict {
    // LDXR W1, [X0]; LDAXR X1, [X0].
    for opcode in [0x885f_7c01, 0xc85f_fc01] {
        let outcome = execute(opcode, &mut [machine::machine().ram.end, 0, 0, 0, 0, 0, 0, 0]);
        check!(
            outcome.is_err_and(|fault| fault.status() == FSC_EXTERNAL),
            "{opcode:#x} behind RAM: {outcome:x?}, expected an external abort"
        );
    }
    Ok(())
}
