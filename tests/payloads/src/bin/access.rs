//! What the hypervisor may do when it emulates a guest's instruction: only what the instruction itself may, and all of it or nothing.
//!
//! Pairs, writeback and the like on a device are carried out by the hypervisor, which reads the instruction, translates for it and moves
//! the data. Here they have fewer rights than EL1, straddle what is a device and what is not, are swapped under the
//! hypervisor's eyes, cannot be read, and are big-endian.
#![no_std]
#![no_main]

use payload_rt::fault::{FSC_ALIGNMENT, FSC_EXTERNAL};
use payload_rt::foreign::{self, Tables};
use payload_rt::test::Verdict;
use payload_rt::user::{self, ACCESSED, DEVICE, DEVICE_AS_NORMAL, End, ExceptionLevel, FOR_USER, Page, READ_ONLY};
use payload_rt::{check, check_equal, gic, machine, memory, mmu, skip, sysreg, test, tests, timer, uart};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("access":
        second_half_has_rights_of_its_own, privileged_access_never, second_half_without_table, ram_beside_a_device,
        one_access_in_both, one_access_at_the_begin_of_a_page, execute_only_code, instruction_that_is_another, big_endian_kernel,
        big_endian_user, big_endian_tables,
    ));
}

/// The GIC's control register, at the begin of its page: 32 bits that keep what is written, the group enables.
const CONTROL: u64 = gic::DISTRIBUTOR;
const RTC: u64 = 0x0901_0000;
/// What the first two of the PL031's identification registers hold.
const ID: [u64; 2] = [0x31, 0x10];
/// Two registers of the UART that hold what is written: the baud rate, 16 and 6 bits.
const BAUD: u64 = uart::BASE + 0x24;
/// The UART's flags: RXFE, as nothing is sent to it here; TXFE and others come and go.
const FLAGS: u64 = uart::BASE + 0x18;
const RECEIVE_EMPTY: u64 = 1 << 4;
const TRANSMITTED: u32 = 1 << 7;
/// Pages of the window: two beside each other.
const FIRST: u64 = 2;
const SECOND: u64 = 3;

const PERMISSION_3: u64 = 0x0f;
const TRANSLATION_3: u64 = 0x07;
const ACCESS_FLAG_3: u64 = 0x0b;
const EC_DATA_ABORT_LOWER: u64 = 0x24;

fn registers(given: &[(usize, u64)]) -> [u64; 31] {
    let mut x = [0; 31];
    for &(number, value) in given {
        x[number] = value;
    }
    x
}

/// Whether it ended in a data abort of this status for `far`, and says what direction the access had.
fn is_abort(end: &End, level: ExceptionLevel, status: u64, far: u64, store: bool) -> bool {
    let class = if level == ExceptionLevel::User { EC_DATA_ABORT_LOWER } else { EC_DATA_ABORT_LOWER + 1 };
    end.esr >> 26 == class
        && end.esr & 0x3f == status
        && (end.esr & 1 << 6 != 0) == store
        && end.far == far
        && end.elr == 0
}

/// Pairs with base X0 and data W1, W2 (X1, X2): whether they store, how far the parts are apart, and the opcode.
const PAIRS: [(bool, u64, u32); 9] = [
    (false, 4, 0x2940_0801), // LDP W1, W2, [X0]
    (false, 8, 0xa940_0801), // LDP X1, X2, [X0]
    (false, 4, 0x28c1_0801), // LDP W1, W2, [X0], #8
    (false, 4, 0x2840_0801), // LDNP W1, W2, [X0]
    (false, 4, 0x6940_0801), // LDPSW X1, X2, [X0]
    (true, 4, 0x2900_0801),  // STP W1, W2, [X0]
    (true, 8, 0xa900_0801),  // STP X1, X2, [X0]
    (true, 4, 0x2881_0801),  // STP W1, W2, [X0], #8
    (true, 4, 0x2800_0801),  // STNP W1, W2, [X0]
];

/// Executes each pair whose second half is the GIC's control register, at the begin of page [`SECOND`], and tells `judge`
/// whether it stores, where that half is and how it ended.
fn pairs_to_the_second_page(
    level: ExceptionLevel,
    bits: u64,
    mut judge: impl FnMut(bool, u64, &End) -> bool,
) -> Verdict {
    let control = memory::read32(CONTROL);
    for (store, size, opcode) in PAIRS {
        let second = user::address(SECOND);
        let x = registers(&[(0, second - size), (1, 0x1111), (2, 0)]);
        let end = user::run_with(level, bits, &[opcode], x);
        let unchanged = end.is_svc() || end.x == x;
        let after = memory::read32(CONTROL);
        memory::write32(CONTROL, control);
        check!(
            judge(store, second, &end) && unchanged && after == control,
            "{opcode:#x} at {level:?}: {end:x?}, GICD_CTLR {control:#x} then {after:#x}"
        );
    }
    Ok(())
}

fn second_half_has_rights_of_its_own() -> Verdict {
    let user = ExceptionLevel::User;
    // What the second page is, where it is, and the status that stores and loads get; 0 if none.
    let cases = [
        (Page::Other(DEVICE | READ_ONLY), CONTROL, PERMISSION_3, 0),
        (Page::Other(DEVICE & !FOR_USER), CONTROL, PERMISSION_3, PERMISSION_3),
        (Page::Missing, 0, TRANSLATION_3, TRANSLATION_3),
        (Page::Other(DEVICE & !ACCESSED), CONTROL, ACCESS_FLAG_3, ACCESS_FLAG_3),
        (Page::Other(DEVICE), machine::machine().ram.end, FSC_EXTERNAL, FSC_EXTERNAL),
    ];
    for (page, to, stores, loads) in cases {
        user::map(FIRST, RTC, Page::Other(DEVICE));
        user::map(SECOND, to, page);
        pairs_to_the_second_page(user, 0, |store, far, end| match if store { stores } else { loads } {
            0 => end.is_svc(),
            status => is_abort(end, user, status, far, store),
        })?;
    }
    Ok(())
}

fn privileged_access_never() -> Verdict {
    if sysreg::field(sysreg::id_aa64mmfr1_el1::read(), 20) == 0 {
        skip!("the CPU has no PSTATE.PAN");
    }
    let kernel = ExceptionLevel::Kernel;
    for (page, bits, allowed) in
        [(DEVICE, user::PAN, false), (DEVICE & !FOR_USER, user::PAN, true), (DEVICE, user::PAN | user::UAO, false)]
    {
        user::map(FIRST, RTC, Page::Other(DEVICE & !FOR_USER));
        user::map(SECOND, CONTROL, Page::Other(page | READ_ONLY));
        pairs_to_the_second_page(kernel, bits, |store, far, end| {
            if allowed && !store { end.is_svc() } else { is_abort(end, kernel, PERMISSION_3, far, store) }
        })?;
    }
    Ok(())
}

fn second_half_without_table() -> Verdict {
    // The last page of the window, and behind it a table that is nowhere.
    let last = user::PAGES - 1;
    user::map(last, RTC, Page::Other(DEVICE));
    user::map_behind(mmu::table(machine::machine().ram.end));
    let behind = user::address(user::PAGES);
    for (store, size, opcode) in PAIRS {
        let x = registers(&[(0, behind - size), (1, 0x1111)]);
        let end = user::run(ExceptionLevel::User, &[opcode], x);
        check!(
            is_abort(&end, ExceptionLevel::User, 0x17, behind, store),
            "{opcode:#x}: {end:x?}, expected an abort on the walk, level 3"
        );
        check_equal!(end.x, x, "registers after {opcode:#x}");
    }
    user::map_behind(0);
    user::map(last, 0, Page::Missing);
    Ok(())
}

/// RAM in front of the GIC's page, or behind the RTC's.
fn ram_beside_a_device() -> Verdict {
    let ram = memory::pages(1);
    let control = memory::read32(CONTROL);
    for (place, at_end) in [(ram + 4096 - 8, true), (ram, false)] {
        if at_end {
            user::map(FIRST, ram, Page::Data);
            user::map(SECOND, CONTROL, Page::Other(DEVICE_AS_NORMAL));
        } else {
            user::map(FIRST, RTC, Page::Other(DEVICE_AS_NORMAL));
            user::map(SECOND, ram, Page::Data);
        }
        for level in [ExceptionLevel::User, ExceptionLevel::Kernel] {
            for (store, size, opcode) in PAIRS {
                memory::write64(place, 0x5555_5555_5555_5555);
                let x = registers(&[(0, user::address(SECOND) - size), (1, 0), (2, 0)]);
                let end = user::run(level, &[opcode], x);
                let after = (memory::read64(place), memory::read32(CONTROL));
                memory::write32(CONTROL, control);
                let status = end.esr & 0x3f;
                let right = end.esr >> 27 == EC_DATA_ABORT_LOWER >> 1 && status == FSC_EXTERNAL && end.x == x;
                check!(right && end.esr >> 6 & 1 == u64::from(store), "{opcode:#x} at {level:?}: {end:x?}");
                check_equal!(after, (0x5555_5555_5555_5555, control), "RAM and GICD_CTLR after {opcode:#x}");
            }
        }
    }
    Ok(())
}

/// Loads and stores of one register with base X0 and data X1: whether they store, their size, and the opcode.
const SINGLES: [(bool, u64, u32); 18] = [
    (false, 4, 0xb940_0001),  // LDR W1, [X0]
    (false, 8, 0xf940_0001),  // LDR X1, [X0]
    (false, 2, 0x7940_0001),  // LDRH W1, [X0]
    (false, 4, 0xb980_0001),  // LDRSW X1, [X0]
    (false, 4, 0xb840_0801),  // LDTR W1, [X0]
    (false, 8, 0xf840_0001),  // LDUR X1, [X0]
    (false, 4, 0xb840_4401),  // LDR W1, [X0], #4
    (false, 8, 0xf840_8401),  // LDR X1, [X0], #8
    (false, 4, 0xbd40_0001),  // LDR S1, [X0]
    (false, 16, 0x3dc0_0001), // LDR Q1, [X0]
    (true, 4, 0xb900_0001),   // STR W1, [X0]
    (true, 8, 0xf900_0001),   // STR X1, [X0]
    (true, 2, 0x7900_0001),   // STRH W1, [X0]
    (true, 4, 0xb800_0801),   // STTR W1, [X0]
    (true, 8, 0xf800_0001),   // STUR X1, [X0]
    (true, 4, 0xb800_4401),   // STR W1, [X0], #4
    (true, 8, 0xf800_8401),   // STR X1, [X0], #8
    (true, 4, 0xbd00_0001),   // STR S1, [X0]
];

fn one_access_in_both() -> Verdict {
    let ram = memory::pages(1);
    let place = ram + 4096 - 16;
    let nowhere = machine::machine().ram.end;
    let control = memory::read32(CONTROL);
    // A store to UARTDR, the first register of its page, has a path of its own.
    for to in [CONTROL, nowhere, uart::BASE] {
        user::map(FIRST, ram, Page::Data);
        user::map(SECOND, to, Page::Other(DEVICE_AS_NORMAL));
        for level in [ExceptionLevel::User, ExceptionLevel::Kernel] {
            for (store, size, opcode) in SINGLES {
                for before in 1..size {
                    memory::write64(place, 0x5555_5555_5555_5555);
                    memory::write64(place + 8, 0x5555_5555_5555_5555);
                    let x = registers(&[(0, user::address(SECOND) - before), (1, 0)]);
                    if to == uart::BASE {
                        // That path is taken only while there is output that the hypervisor has not fetched yet.
                        uart::print_bytes(b" ");
                    }
                    let end = user::run(level, &[opcode], x);
                    let after = [memory::read64(place), memory::read64(place + 8), memory::read32(CONTROL).into()];
                    memory::write32(CONTROL, control);
                    let status = end.esr & 0x3f;
                    let right =
                        end.esr >> 27 == EC_DATA_ABORT_LOWER >> 1 && end.x == x && end.esr >> 6 & 1 == u64::from(store);
                    let expected = if to == nowhere { FSC_EXTERNAL } else { FSC_ALIGNMENT };
                    let simd = opcode & 1 << 26 != 0 && status == FSC_EXTERNAL;
                    check!(
                        right && (status == expected || simd),
                        "{opcode:#x}, {before} bytes in front of {to:#x}, at {level:?}: {end:x?}"
                    );
                    let same = [0x5555_5555_5555_5555, 0x5555_5555_5555_5555, control.into()];
                    check_equal!(after, same, "RAM and GICD_CTLR after {opcode:#x}, {before} bytes in front");
                }
            }
        }
    }
    Ok(())
}

fn one_access_at_the_begin_of_a_page() -> Verdict {
    // RAM lies in front, but is not concerned.
    let control = memory::read32(CONTROL);
    user::map(FIRST, memory::pages(1), Page::Data);
    user::map(SECOND, CONTROL, Page::Other(DEVICE_AS_NORMAL));
    for level in [ExceptionLevel::User, ExceptionLevel::Kernel] {
        for (store, size, opcode) in SINGLES.into_iter().filter(|&(_, size, opcode)| size == 4 && opcode & 1 << 26 == 0)
        {
            let x = registers(&[(0, user::address(SECOND)), (1, control.into())]);
            let end = user::run(level, &[opcode], x);
            check!(
                end.is_svc() && end.x[1] == u64::from(control),
                "{opcode:#x}, {size} bytes, store {store}: {end:x?}"
            );
        }
    }
    check_equal!(memory::read32(CONTROL), control, "GICD_CTLR, stored as it was");
    Ok(())
}

fn execute_only_code() -> Verdict {
    user::map(FIRST, RTC, Page::Other(DEVICE));
    user::map_code(Page::ExecuteOnly);
    // LDP W1, W2, [X0]; LDR W3, [X0], #4; LDR W4, [X0]; then a load from where the code is, which must fault.
    let x = registers(&[(0, user::address(FIRST) + 0xfe0), (5, user::address(0))]);
    let end = user::run(ExceptionLevel::User, &[0x2940_0801, 0xb840_4403, 0xb940_0004, 0xb940_00a6], x);
    user::map_code(Page::Code);
    user::map(FIRST, 0, Page::Missing);
    check_equal!([end.x[1], end.x[2], end.x[3], end.x[4]], [ID[0], ID[1], ID[0], ID[1]], "what was loaded: {end:x?}");
    let refused = end.elr == 12 && end.esr >> 26 == EC_DATA_ABORT_LOWER && end.esr & 0x3f == PERMISSION_3;
    check!(refused, "a load of the code: {end:x?}, expected a permission fault");
    Ok(())
}

/// The page of the code is another one, or none, when the hypervisor looks: only the CPU's TLB still knows the first. It must come to an
/// end, and what is carried out is never the other instruction.
fn instruction_that_is_another() -> Verdict {
    let before = [memory::read32(BAUD), memory::read32(BAUD + 4)];
    let other = memory::pages(1);
    let load = 0x2940_0c02; // LDP W2, W3, [X0]
    let store = 0x2900_0c02; // STP W2, W3, [X0]
    let elsewhere = 0x2940_0ca2; // LDP W2, W3, [X5]
    let nop = 0xd503_201f;
    for (real, seen) in [
        (load, Some(store)),
        (store, Some(load)),
        (load, Some(elsewhere)),
        (load, Some(nop)),
        (load, Some(0xf980_0000)), // PRFM PLDL1KEEP, [X0]
        (load, Some(0xd50b_7420)), // DC ZVA, X0
        (load, None),
    ] {
        // STR X10, [X9]; DSB SY; the pair.
        let code = [0xf900_012a, 0xd503_3f9f, real];
        let entry = memory::read64(user::descriptor(0));
        let new = seen.map_or(0, |word| {
            memory::write32(other + 8, word);
            entry & 0xfff0_0000_0000_0fff | other
        });
        let baud = [0x1234, 0x15];
        memory::write32(BAUD, baud[0]);
        memory::write32(BAUD + 4, baud[1]);
        let x = registers(&[(0, BAUD), (2, 0x11), (3, 0x22), (5, RTC + 0xfe0), (9, user::descriptor(0)), (10, new)]);
        let end = user::run(ExceptionLevel::Kernel, &code, x);
        user::map_code(Page::Code);
        let after = [memory::read32(BAUD), memory::read32(BAUD + 4)];
        memory::write32(BAUD, before[0]);
        memory::write32(BAUD + 4, before[1]);
        // A data abort at the pair; or the CPU forgot its translation, and found nothing to execute there.
        let aborted = end.elr == 8 && matches!(end.esr >> 26, 0x25 | 0x21);
        check!(aborted && end.x == x, "{real:#x} while {seen:x?} is there: {end:x?}");
        check_equal!(after, baud, "the baud rate after {real:#x} while {seen:x?} is there");
    }
    Ok(())
}

/// Loads and stores whose data is turned, on registers that hold what is written.
fn big_endian(mut run: impl FnMut(u32, u64, [u64; 2]) -> Result<[u64; 3], test::Stop>) -> Verdict {
    let at = gic::DISTRIBUTOR + gic::IPRIORITYR + u64::from(gic::spis().end) - 16;
    let router = gic::DISTRIBUTOR + gic::GICD_IROUTER + 8 * u64::from(gic::spis().end - 2);
    memory::write32(at, 0x10f0_a080);
    memory::write32(at + 4, 0x2030_4090);
    memory::write64(router, 1 << 31);
    let baud = memory::read32(BAUD);
    memory::write32(BAUD, 0x1282);
    // While the console still takes bytes, its flags have no path of their own.
    timer::wait_until(1000, || memory::read32(FLAGS) & TRANSMITTED == TRANSMITTED);
    let loads = [
        (0xb940_0001, at, 0x80a0_f010, 0),                               // LDR W1, [X0]
        (0xb980_0001, at, 0xffff_ffff_80a0_f010, 0),                     // LDRSW X1, [X0]
        (0x7940_0001, BAUD, 0x8212, 0),                                  // LDRH W1, [X0]
        (0x7980_0001, BAUD, 0xffff_ffff_ffff_8212, 0),                   // LDRSH X1, [X0]
        (0x3940_0001, at, 0x80, 0),                                      // LDRB W1, [X0]
        (0xb840_4401, at, 0x80a0_f010, 0),                               // LDR W1, [X0], #4
        (0x2940_0801, at, 0x80a0_f010, 0x9040_3020),                     // LDP W1, W2, [X0]
        (0x6940_0801, at, 0xffff_ffff_80a0_f010, 0xffff_ffff_9040_3020), // LDPSW X1, X2, [X0]
        (0xf940_0001, router, 0x80_0000_0000, 0),                        // LDR X1, [X0]
        (0xa940_0801, router - 8, 0, 0x80_0000_0000),                    // LDP X1, X2, [X0]
        (0x88df_fc01, at, 0x80a0_f010, 0),                               // LDAR W1, [X0]
        (0xb940_0001, gic::DISTRIBUTOR + 8, u64::from(memory::read32(gic::DISTRIBUTOR + 8).swap_bytes()), 0),
        (0xb940_0001, CONTROL, u64::from(memory::read32(CONTROL).swap_bytes()), 0),
        (0x7940_0001, FLAGS, u64::from((RECEIVE_EMPTY as u16).swap_bytes()), 0), // LDRH W1, [X0]
    ];
    for (opcode, address, first, second) in loads {
        let mut x = run(opcode, address, [0, 0])?;
        if address == FLAGS {
            // The transmitter's and the modem's flags do not matter.
            x[1] &= u64::from((RECEIVE_EMPTY as u16).swap_bytes());
        }
        check_equal!([x[1], x[2]], [first, second], "big-endian {opcode:#x} at {address:#x}");
    }
    let stores = [
        (0xb900_0001, 0x8070_6050, 0, [0x5060_7080, 0]), // STR W1, [X0]
        (0xb800_4401, 0x8070_6050, 0, [0x5060_7080, 0]), // STR W1, [X0], #4
        (0x2900_0801, 0x8070_6050, 0x1020_3040, [0x5060_7080, 0x4030_2010]), // STP W1, W2, [X0]
        (0x889f_fc01, 0x8070_6050, 0, [0x5060_7080, 0]), // STLR W1, [X0]
        (0x3900_0001, 0x50, 0, [0x50, 0]),               // STRB W1, [X0]
    ];
    for (opcode, first, second, expected) in stores {
        memory::write32(at, 0);
        memory::write32(at + 4, 0);
        run(opcode, at, [first, second])?;
        check_equal!([memory::read32(at), memory::read32(at + 4)], expected, "after big-endian {opcode:#x}");
    }
    run(0x7900_0001, BAUD, [0x8312, 0])?; // STRH W1, [X0]
    check_equal!(memory::read32(BAUD), 0x1283, "the baud rate after a big-endian STRH");
    memory::write32(BAUD, baud);
    run(0xa900_0801, router - 8, [0, 0])?; // STP X1, X2, [X0]
    check_equal!(memory::read64(router), 0, "GICD_IROUTER after a big-endian STP of zeroes");
    run(0xf900_0001, router, [0x80_0000_0000, 0])?; // STR X1, [X0]
    check_equal!(memory::read64(router), 1 << 31, "GICD_IROUTER after a big-endian STR");
    memory::write64(router, 0);
    Ok(())
}

/// Whether both levels may be big-endian.
fn has_big_endian() -> bool {
    sysreg::field(sysreg::id_aa64mmfr0_el1::read(), 8) != 0
}

fn big_endian_kernel() -> Verdict {
    if !has_big_endian() {
        skip!("the CPU is little-endian alone");
    }
    for tables in [Tables::None, Tables::BigEndian(0)] {
        big_endian(|opcode, address, [first, second]| {
            let mut x = [address, first, second, 0, 0, 0, 0, 0];
            let (esr, far) = foreign::execute(opcode, &mut x, tables);
            check!(esr == 0, "{opcode:#x} at {address:#x}, {tables:x?}: ESR {esr:#x}, FAR {far:#x}");
            Ok([x[0], x[1], x[2]])
        })?;
    }
    Ok(())
}

fn big_endian_user() -> Verdict {
    if !has_big_endian() {
        skip!("the CPU is little-endian alone");
    }
    // The Distributor's pages, all of them.
    for page in 0..16 {
        user::map(FIRST + page, gic::DISTRIBUTOR + 4096 * page, Page::Other(DEVICE));
    }
    user::map(FIRST + 16, uart::BASE, Page::Other(DEVICE));
    user::set_big_endian(true);
    let verdict = big_endian(|opcode, address, [first, second]| {
        let at = match address.checked_sub(uart::BASE) {
            Some(offset) => user::address(FIRST + 16) + offset,
            None => user::address(FIRST) + (address - gic::DISTRIBUTOR),
        };
        let end = user::run(ExceptionLevel::User, &[opcode], registers(&[(0, at), (1, first), (2, second)]));
        check!(end.is_svc(), "{opcode:#x} at {address:#x}: {end:x?}");
        Ok([end.x[0], end.x[1], end.x[2]])
    });
    user::set_big_endian(false);
    for page in 0..17 {
        user::map(FIRST + page, 0, Page::Missing);
    }
    verdict
}

fn big_endian_tables() -> Verdict {
    if !has_big_endian() {
        skip!("the CPU is little-endian alone");
    }
    let tables = Tables::BigEndian(mmu::table(machine::machine().ram.end));
    for (opcode, write) in [(0xb940_0001, 0), (0xb900_0001, 1 << 6), (0xa940_0801, 0)] {
        let address = mmu::FREE_SLOT as u64 * mmu::SLOT_SIZE + 0x1000;
        let mut x = [address, 0, 0, 0, 0, 0, 0, 0];
        let (esr, far) = foreign::execute(opcode, &mut x, tables);
        let right = esr >> 26 == 0x25 && esr & 0x7f == 0x16 | write && far == address;
        check!(
            right,
            "{opcode:#x} through a table that is nowhere: ESR {esr:#x}, FAR {far:#x}, expected 0x16: level 2"
        );
    }
    Ok(())
}
