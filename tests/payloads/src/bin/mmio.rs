//! Accesses to emulated devices with every form of load and store: those whose abort has a syndrome, and those (pairs, writeback, ...)
//! that a hypervisor has to decode by itself.
//!
//! The devices are the PL031 and the PL011 with their identification registers, and the GIC's priority and routing registers.
#![no_std]
#![no_main]

use payload_rt::fault::{EC_DATA_ABORT, FSC_ALIGNMENT, FSC_UNSUPPORTED_ATOMIC};
use payload_rt::instruction::execute;
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, fault, gic, machine, memory, mmu, skip, test, tests, uart};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("mmio":
        identification_by_size, sign_extension, zero_register, pair_loads, pair_stores, loads_with_writeback, stores_with_writeback,
        register_offsets, unscaled_offsets, ordered_accesses, eight_bytes, pair_of_eight_bytes, byte_stores, pair_of_signed_words,
        simd_registers, prefetch, unaligned_faults, unaligned_through_normal_memory, exclusives_end,
    ));
}

const RTC: u64 = 0x0901_0000;
/// First of the eight identification registers of a PrimeCell.
const ID: u64 = RTC + 0xfe0;
/// What they hold; the upper half of the third is the revision.
const RTC_ID: [u64; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
/// Two registers of the UART beside each other that only hold what is written: the baud rate, 16 and 6 bits.
const BAUD: u64 = uart::BASE + 0x24;

/// Registers to play with: the priorities of the last 16 SPIs.
fn priorities() -> u64 {
    gic::DISTRIBUTOR + gic::IPRIORITYR + u64::from(gic::spis().end) - 16
}

/// Executes `opcode` with `x`, which must not fault, and returns X0 to X7.
macro_rules! run {
    ($opcode:expr, $($x:expr),+) => {{
        let opcode: u32 = $opcode;
        let given = [$($x),+];
        let mut x = [0; 8];
        x[..given.len()].copy_from_slice(&given);
        let outcome = execute(opcode, &mut x);
        check!(outcome.is_ok(), "{opcode:#x}: {outcome:x?}");
        x
    }};
}

fn identification_by_size() -> Verdict {
    for (index, &value) in RTC_ID.iter().enumerate().filter(|&(index, _)| index != 2) {
        let address = ID + 4 * index as u64;
        check_equal!(u64::from(memory::read32(address)), value, "PL031 identification {index} as a word");
        check_equal!(u64::from(memory::read16(address)), value, "PL031 identification {index} as a half-word");
        check_equal!(u64::from(memory::read8(address)), value, "PL031 identification {index} as a byte");
    }
    check_equal!(memory::read32(uart::BASE + 0xfe0), 0x11, "PL011 identification 0");
    check_equal!(memory::read32(uart::BASE + 0xfe4), 0x10, "PL011 identification 1");
    Ok(())
}

fn sign_extension() -> Verdict {
    let at = priorities();
    memory::write32(at, 0x10f0_a080);
    check_equal!(run!(0x39c0_0001, at, u64::MAX)[1], 0xffff_ff80, "LDRSB W1");
    check_equal!(run!(0x3980_0001, at, 0)[1], 0xffff_ffff_ffff_ff80, "LDRSB X1");
    check_equal!(run!(0x3940_0001, at, u64::MAX)[1], 0x80, "LDRB W1");
    check_equal!(run!(0x3980_0c01, at, 0)[1], 0x10, "LDRSB X1, fourth byte");
    check_equal!(run!(0xb940_0001, at, u64::MAX)[1], 0x10f0_a080, "LDR W1");
    check_equal!(run!(0xb980_0001, at, u64::MAX)[1], 0x10f0_a080, "LDRSW X1 of a positive number");
    memory::write32(at, 0x90f0_a080);
    check_equal!(run!(0xb980_0001, at, 0)[1], 0xffff_ffff_90f0_a080, "LDRSW X1 of a negative number");
    Ok(())
}

fn zero_register() -> Verdict {
    let at = priorities();
    memory::write32(at, 0x4040_4040);
    run!(0xb940_001f, at);
    check_equal!(memory::read32(at), 0x4040_4040, "after LDR WZR");
    run!(0xb900_001f, at);
    check_equal!(memory::read32(at), 0, "after STR WZR");
    Ok(())
}

fn pair_loads() -> Verdict {
    let x = run!(0x2940_0801, ID, u64::MAX, u64::MAX);
    check_equal!([x[0], x[1], x[2]], [ID, RTC_ID[0], RTC_ID[1]], "LDP W1, W2, [X0]");
    let x = run!(0x2942_0801, ID, 0, 0);
    check_equal!([x[0], x[1], x[2]], [ID, RTC_ID[4], RTC_ID[5]], "LDP W1, W2, [X0, #16]");
    let x = run!(0x28c2_0801, ID, 0, 0);
    check_equal!([x[0], x[1], x[2]], [ID + 16, RTC_ID[0], RTC_ID[1]], "LDP W1, W2, [X0], #16");
    let x = run!(0x29c2_0801, ID, 0, 0);
    check_equal!([x[0], x[1], x[2]], [ID + 16, RTC_ID[4], RTC_ID[5]], "LDP W1, W2, [X0, #16]!");
    let x = run!(0x297e_0801, ID + 32, 0, 0);
    check_equal!([x[0], x[1], x[2]], [ID + 32, RTC_ID[4], RTC_ID[5]], "LDP W1, W2, [X0, #-16]");
    let x = run!(0x2840_0801, ID, 0, 0);
    check_equal!([x[0], x[1], x[2]], [ID, RTC_ID[0], RTC_ID[1]], "LDNP W1, W2, [X0]");
    Ok(())
}

fn pair_stores() -> Verdict {
    let before = [memory::read32(BAUD), memory::read32(BAUD + 4)];
    run!(0x2900_0801, BAUD, 0x1234, 0x15);
    let plain = [memory::read32(BAUD), memory::read32(BAUD + 4)];
    let post = run!(0x2881_0801, BAUD, 0x4321, 0x2a)[0];
    let after_post = [memory::read32(BAUD), memory::read32(BAUD + 4)];
    let pre = run!(0x2981_0801, BAUD - 8, 0x5678, 0x3)[0];
    let after_pre = [memory::read32(BAUD), memory::read32(BAUD + 4)];
    memory::write32(BAUD, before[0]);
    memory::write32(BAUD + 4, before[1]);
    check_equal!(plain, [0x1234, 0x15], "after STP W1, W2, [X0]");
    check_equal!((post, after_post), (BAUD + 8, [0x4321, 0x2a]), "X0, and what was stored, after STP W1, W2, [X0], #8");
    check_equal!((pre, after_pre), (BAUD, [0x5678, 0x3]), "X0, and what was stored, after STP W1, W2, [X0, #8]!");
    Ok(())
}

fn loads_with_writeback() -> Verdict {
    let x = run!(0xb840_4401, ID, 0);
    check_equal!([x[0], x[1]], [ID + 4, RTC_ID[0]], "LDR W1, [X0], #4");
    let x = run!(0xb840_4c01, ID, 0);
    check_equal!([x[0], x[1]], [ID + 4, RTC_ID[1]], "LDR W1, [X0, #4]!");
    let x = run!(0xb85f_cc01, ID + 4, 0);
    check_equal!([x[0], x[1]], [ID, RTC_ID[0]], "LDR W1, [X0, #-4]!");
    let x = run!(0x3840_1401, ID, 0);
    check_equal!([x[0], x[1]], [ID + 1, RTC_ID[0]], "LDRB W1, [X0], #1");
    let x = run!(0x7840_2401, ID, 0);
    check_equal!([x[0], x[1]], [ID + 2, RTC_ID[0]], "LDRH W1, [X0], #2");
    let x = run!(0xb880_4401, ID, u64::MAX);
    check_equal!([x[0], x[1]], [ID + 4, RTC_ID[0]], "LDRSW X1, [X0], #4");
    Ok(())
}

fn stores_with_writeback() -> Verdict {
    let at = priorities();
    let x = run!(0xb800_4401, at, 0x1111_1111 & 0xf0f0_f0f0);
    check_equal!([x[0], u64::from(memory::read32(at))], [at + 4, 0x1010_1010], "STR W1, [X0], #4");
    let x = run!(0xb800_4c01, at, 0x2020_2020);
    check_equal!([x[0], u64::from(memory::read32(at + 4))], [at + 4, 0x2020_2020], "STR W1, [X0, #4]!");
    let x = run!(0x3800_1401, at, 0xffff_ff30);
    check_equal!([x[0], u64::from(memory::read32(at))], [at + 1, 0x1010_1030], "STRB W1, [X0], #1");
    Ok(())
}

fn register_offsets() -> Verdict {
    let x = run!(0xb862_6801, ID - 8, 0, 8);
    check_equal!(x[1], RTC_ID[0], "LDR W1, [X0, X2]");
    let x = run!(0xb862_7801, ID, 0, 1);
    check_equal!(x[1], RTC_ID[1], "LDR W1, [X0, X2, LSL #2]");
    let x = run!(0xb862_d801, ID + 8, 0, 0xdead_0000_ffff_ffff);
    check_equal!(x[1], RTC_ID[1], "LDR W1, [X0, W2, SXTW #2]");
    let x = run!(0xb862_5801, ID, 0, 0xdead_0000_0000_0004);
    check_equal!(x[1], RTC_ID[4], "LDR W1, [X0, W2, UXTW #2]");
    Ok(())
}

fn unscaled_offsets() -> Verdict {
    check_equal!(run!(0xb85f_c001, ID + 4, 0)[1], RTC_ID[0], "LDUR W1, [X0, #-4]");
    check_equal!(run!(0x385f_c001, ID + 4, 0)[1], RTC_ID[0], "LDURB W1, [X0, #-4]");
    Ok(())
}

fn ordered_accesses() -> Verdict {
    check_equal!(run!(0x88df_fc01, ID, 0)[1], RTC_ID[0], "LDAR W1, [X0]");
    check_equal!(run!(0x08df_fc01, ID, 0)[1], RTC_ID[0], "LDARB W1, [X0]");
    let at = priorities();
    run!(0x889f_fc01, at, 0x7070_7070);
    check_equal!(memory::read32(at), 0x7070_7070, "after STLR W1, [X0]");
    Ok(())
}

fn eight_bytes() -> Verdict {
    let router = gic::DISTRIBUTOR + gic::GICD_IROUTER + 8 * u64::from(gic::spis().end - 2);
    memory::write64(router, 1 << 31);
    check_equal!(memory::read64(router), 1 << 31, "GICD_IROUTER as eight bytes");
    check_equal!(memory::read32(router), 1 << 31, "its lower half");
    check_equal!(memory::read32(router + 4), 0, "its upper half");
    memory::write32(router, 0);
    check_equal!(memory::read64(router), 0, "after a store to its lower half");
    let x = run!(0xf840_8401, router, 0);
    check_equal!(x[0], router + 8, "X0 after LDR X1, [X0], #8");
    let typer = memory::read64(gic::own_redistributor() + gic::GICR_TYPER);
    check_equal!(run!(0xf940_0001, gic::own_redistributor() + gic::GICR_TYPER, 0)[1], typer, "GICR_TYPER by LDR X1");
    Ok(())
}

fn pair_of_eight_bytes() -> Verdict {
    let router = gic::DISTRIBUTOR + gic::GICD_IROUTER + 8 * u64::from(gic::spis().end - 2);
    run!(0xa900_0801, router, 1 << 31, 0);
    check_equal!([memory::read64(router), memory::read64(router + 8)], [1 << 31, 0], "after STP X1, X2, [X0]");
    let x = run!(0xa940_0801, router, 7, 7);
    check_equal!([x[1], x[2]], [1 << 31, 0], "LDP X1, X2, [X0]");
    let x = run!(0xa8c1_0801, router, 7, 7);
    check_equal!([x[0], x[1], x[2]], [router + 16, 1 << 31, 0], "LDP X1, X2, [X0], #16");
    Ok(())
}

fn byte_stores() -> Verdict {
    let at = priorities();
    memory::write32(at, 0);
    for offset in 0..4 {
        memory::write8(at + offset, 0x10 * (offset as u8 + 1));
    }
    check_equal!(memory::read32(at), 0x4030_2010, "four bytes read as a word");
    check_equal!([memory::read8(at), memory::read8(at + 3)], [0x10, 0x40], "bytes read as bytes");
    Ok(())
}

fn pair_of_signed_words() -> Verdict {
    let x = run!(0x6940_0801, ID, u64::MAX, u64::MAX);
    check_equal!([x[1], x[2]], [RTC_ID[0], RTC_ID[1]], "LDPSW X1, X2, [X0]");
    Ok(())
}

fn simd_registers() -> Verdict {
    // LDR S0, [X0] then UMOV W1, V0.S[0]: allowed to fault, not to give something else.
    let outcome = execute(0xbd40_0000, &mut [ID, 0, 0, 0, 0, 0, 0, 0]);
    if let Err(fault) = outcome {
        check!(fault.class() == EC_DATA_ABORT, "LDR S0 from a device: {fault:x?}");
        skip!("the machine refuses SIMD loads from devices with an abort, as it may");
    }
    check_equal!(run!(0x0e04_3c01, 0, 0)[1], RTC_ID[0], "LDR S0, [X0]");
    Ok(())
}

fn prefetch() -> Verdict {
    // PRFM PLDL1KEEP, [X0] has no effect, wherever it points.
    for address in [ID, machine::machine().ram.end, 0x0b00_0000] {
        run!(0xf980_0000, address);
    }
    Ok(())
}

fn unaligned_faults() -> Verdict {
    for (address, width) in [(ID + 1, 4), (ID + 2, 4), (ID + 1, 2), (gic::DISTRIBUTOR + 4, 8)] {
        let outcome = match width {
            2 => fault::catch(|| u64::from(memory::read16(address))),
            4 => fault::catch(|| u64::from(memory::read32(address))),
            _ => fault::catch(|| memory::read64(address)),
        };
        let right = outcome.is_err_and(|fault| {
            fault.class() == EC_DATA_ABORT && fault.status() == FSC_ALIGNMENT && fault.far == address
        });
        check!(right, "{width} bytes at {address:#x}: {outcome:x?}, expected an alignment fault");
    }
    Ok(())
}

fn unaligned_through_normal_memory() -> Verdict {
    // A guest may map a device as Normal memory; then stage 1 lets odd accesses through, and they must end, one way or the other.
    let base = mmu::set_slot(mmu::FREE_SLOT, mmu::normal_block(0));
    for offset in
        [ID + 1, ID + 0x1e, gic::DISTRIBUTOR + gic::GICD_TYPER + 2, gic::DISTRIBUTOR + 0xfffe, uart::BASE + 0xfe2]
    {
        for opcode in [0xb940_0001, 0xf940_0001, 0xa940_0801, 0x3dc0_0000, 0x7940_0001] {
            let outcome = execute(opcode, &mut [base + offset, 0, 0, 0, 0, 0, 0, 0]);
            let right = outcome.is_ok() || outcome.is_err_and(|fault| fault.class() == EC_DATA_ABORT);
            check!(right, "{opcode:#x} at {offset:#x}: {outcome:x?}");
        }
    }
    mmu::reset_slot(mmu::FREE_SLOT);
    Ok(())
}

fn exclusives_end() -> Verdict {
    // LDXR, LDAXP: done, or "unsupported exclusive or atomic access"; STXR W3 may also fail without an access.
    for opcode in [0x885f_7c01, 0x8803_7c01, 0x887f_8801] {
        let outcome = execute(opcode, &mut [priorities() & !7, 0, 0, 0, 0, 0, 0, 0]);
        let refused = |fault: fault::Fault| fault.class() == EC_DATA_ABORT && fault.status() == FSC_UNSUPPORTED_ATOMIC;
        let right = outcome.is_ok() || outcome.is_err_and(refused);
        check!(right, "{opcode:#x}: {outcome:x?}");
    }
    Ok(())
}
