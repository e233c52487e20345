//! The hostile guest: every CPU of it does to the machine whatever a guest can do, at random: loads and stores all over its address
//! space, every encodable system register and system instruction, every register of the GIC, HVC and SMC with any number, page tables
//! made of noise, storms of SGIs, WFI and WFE, floods of the UART.
//!
//! Its neighbours and the hypervisor must not notice. It spares only what it needs to run on itself: its image, its own translation and
//! vectors, and the calls that end it. `seed=<n>` chooses the run, `loops=<n>` its length (actions per CPU, 20000). It prints its progress
//! and ends with SYSTEM_OFF; a panic in it means that the machine broke a rule (say, an exception where there can be none).
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use payload_rt::instruction::{self, execute};
use payload_rt::random::Random;
use payload_rt::{MAX_CPUS, cpu, fault, gic, machine, memory, mmu, print, println, psci, sysreg, timer, uart, virtio};

payload_rt::entry!(main);

/// Pages of its own that each CPU makes tables of: a level-2 and a level-3 table, and two to point at.
static TABLES: AtomicU64 = AtomicU64::new(0);
const PAGES_EACH: u64 = 4;

/// What each CPU has done, for the progress line.
static ACTIONS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// A frame of the hypervisor's link, as it would be on the line: the control message that VM 0 has powered itself off, and behind it
/// the start of another one (docs/formats/link.md).
const FRAME: [u8; 13] = [0xff, 0, 4, 0, 2, 0, 1, 0, 0xec, 0xe6, 0x0e, 0xa5, 0xff];

/// One kind of misbehaviour.
type Action = fn(&mut Hostile);

const ACTIONS_BY_WEIGHT: [Action; 16] = [
    Hostile::access_anything,
    Hostile::access_anything,
    Hostile::access_devices,
    Hostile::access_devices,
    Hostile::access_gic,
    Hostile::access_gic,
    Hostile::access_virtio,
    Hostile::read_register,
    Hostile::write_register,
    Hostile::write_register,
    Hostile::system_instruction,
    Hostile::call,
    Hostile::call,
    Hostile::noise_tables,
    Hostile::fetch_from_nowhere,
    Hostile::storm,
];

struct Hostile {
    random: Random,
    index: usize,
}

fn main() {
    TABLES.store(memory::pages(PAGES_EACH * cpu::count() as u64), Ordering::SeqCst);
    println!("hostile: seed {}, {} CPUs", machine::option_number("seed", 1), cpu::count());
    print!("a frame it is not: ");
    uart::print_bytes(&FRAME);
    println!("");
    for index in 1..cpu::count() {
        if let Err(error) = cpu::start(index, misbehave) {
            println!("hostile: CPU_ON of CPU {index} returns {error}");
        }
    }
    misbehave(0);
    for (index, actions) in ACTIONS.iter().enumerate().take(cpu::count()).skip(1) {
        // A CPU that still makes progress may go on.
        let mut last = u64::MAX;
        while !cpu::wait_off(index) {
            let done = actions.load(Ordering::SeqCst);
            assert!(done != last, "CPU {index} makes no progress behind action {done}");
            last = done;
        }
    }
    uart::enable();
    println!("\nhostile: done");
    println!("payload: 1 passed, 0 failed, 0 skipped");
}

fn misbehave(index: usize) {
    let loops = machine::option_number("loops", 20_000);
    let seed = machine::option_number("seed", 1) * MAX_CPUS as u64 + index as u64;
    let mut hostile = Hostile { random: Random::new(seed), index };
    for number in 1..=loops {
        let action = ACTIONS_BY_WEIGHT[hostile.random.below(16) as usize];
        action(&mut hostile);
        ACTIONS[index].store(number, Ordering::SeqCst);
        if index == 0 && number.is_multiple_of((loops / 10).max(1)) {
            uart::enable();
            println!("\nhostile: {number} of {loops}");
        }
    }
    timer::stop();
}

/// Loads and stores with base X0: all sizes, pairs, writeback, exclusive, ordered, SIMD, atomic (where there are such), prefetch.
const TRANSFERS: [u32; 40] = [
    0x3940_0001,
    0x3900_0001,
    0x7940_0001,
    0x7900_0001,
    0xb940_0001,
    0xb900_0001,
    0xf940_0001,
    0xf900_0001,
    0x39c0_0001,
    0x3980_0001,
    0x79c0_0001,
    0x7980_0001,
    0xb980_0001,
    0xb940_001f,
    0xf900_001f,
    0x2940_0801,
    0x2900_0801,
    0xa940_0801,
    0xa900_0801,
    0x28c1_0801,
    0x2981_0801,
    0xa8c1_0801,
    0xa981_0801,
    0x6940_0801,
    0xb840_4401,
    0xb800_4c01,
    0xf840_8401,
    0x3800_1401,
    0xb862_6801,
    0x885f_7c01,
    0x8803_7c01,
    0xc87f_8801,
    0x88df_fc01,
    0xc89f_fc01,
    0x3dc0_0000,
    0x3d80_0000,
    0xad40_0400,
    0xad00_0400,
    0xb822_0001,
    0xf980_0000,
];

impl Hostile {
    /// Anything, but numbers at the edges more often.
    fn value(&mut self) -> u64 {
        let word = self.random.word();
        match self.random.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (word % 64),
            3 => word & 0xff,
            4 => word & 0xffff_ffff,
            _ => word,
        }
    }

    /// One transfer at `address`, aligned to its size or not, with random operands.
    fn transfer(&mut self, address: u64) {
        let image = machine::image();
        if address > image.start.saturating_sub(0x2_0000) && address < image.end + 0x2_0000 {
            return;
        }
        let opcode = TRANSFERS[self.random.below(TRANSFERS.len() as u64) as usize];
        let mut x = [address, self.value(), self.random.word() & 0xfff, 0, 0, 0, 0, 0];
        // A fault is as good an answer as a value.
        let _ = execute(opcode, &mut x);
    }

    /// Mostly aligned, so that the access comes through.
    fn align(&mut self, address: u64) -> u64 {
        if self.random.below(8) == 0 { address } else { address & !7 }
    }

    /// The whole of the identity map but RAM, and the part of RAM that is for tests.
    fn access_anything(&mut self) {
        let ram = machine::machine().ram.clone();
        let address = match self.random.below(4) {
            0 => self.random.below(ram.start),
            1 => ram.end + self.random.below((512 << 30) - ram.end - 0x1000),
            2 => ram.end + self.random.below(0x10_0000),
            _ => {
                TABLES.load(Ordering::SeqCst)
                    + PAGES_EACH * 4096 * self.index as u64
                    + self.random.below(2 * 4096)
                    + 2 * 4096
            }
        };
        let address = self.align(address);
        if !is_spared(address) {
            self.transfer(address);
        }
    }

    /// The pages of the UART, the clock, the power button and flash.
    fn access_devices(&mut self) {
        let base = [0x0900_0000, 0x0901_0000, 0x0903_0000, 0x0400_0000, 0x0000_0000, 0x0904_0000]
            [self.random.below(6) as usize];
        let offset = if self.random.below(2) == 0 { self.random.below(0x50) & !3 } else { self.random.below(0x1000) };
        let address = self.align(base + offset);
        self.transfer(address);
    }

    /// Any register of the Distributor or a Redistributor, those that exist more often.
    fn access_gic(&mut self) {
        let frames = gic::REDISTRIBUTOR_STRIDE * (cpu::count() as u64 + 1);
        let base = match self.random.below(3) {
            0 => gic::DISTRIBUTOR,
            1 => {
                gic::REDISTRIBUTORS
                    + gic::SGI_FRAME
                    + gic::REDISTRIBUTOR_STRIDE * self.random.below(cpu::count() as u64)
            }
            _ => (gic::REDISTRIBUTORS + self.random.below(frames)) & !0xffff,
        };
        let offset =
            if self.random.below(3) == 0 { self.random.below(0x1_0000) } else { self.random.below(0x1000) & !3 };
        self.transfer(base + offset);
    }

    /// Registers of the virtio transports, through the queue addresses to the status.
    fn access_virtio(&mut self) {
        if machine::is_reference() {
            return;
        }
        let base = virtio::BASE + virtio::STRIDE * self.random.below(virtio::SLOTS);
        let size = if self.random.below(8) == 0 { 0x200 } else { 0x110 };
        let offset = self.random.below(size) & !3;
        // Queue addresses point where no memory is, so that no device can be talked into writing over the image.
        let high = matches!(offset, 0x84 | 0x94 | 0xa4);
        let value = if high { self.value() | 0x100 } else { self.value() };
        let _ = execute(
            if self.random.below(2) == 0 { 0xb940_0001 } else { 0xb900_0001 },
            &mut [base + offset, value, 0, 0, 0, 0, 0, 0],
        );
    }

    /// Any encoding of a system register.
    fn encoding(&mut self) -> [u32; 5] {
        let bits = self.random.word() as u32;
        // Half of them where most registers are: op0 = 3, op1 = 0 or 3.
        let op1 = if bits >> 31 == 0 { bits >> 20 & 7 } else { bits >> 20 & 1 | (bits >> 20 & 1) << 1 };
        [2 | (bits >> 30 & 1), op1, bits >> 4 & 0xf, bits >> 8 & 0xf, bits & 7]
    }

    fn read_register(&mut self) {
        for _ in 0..16 {
            let encoding = self.encoding();
            let _ = instruction::read_register(encoding);
        }
    }

    fn write_register(&mut self) {
        for _ in 0..16 {
            let encoding = self.encoding();
            if !is_vital(encoding) {
                let value = self.value();
                let _ = instruction::write_register(encoding, value);
            }
        }
    }

    /// SYS and SYSL with any operands: cache and TLB maintenance, address translation, what is undefined.
    fn system_instruction(&mut self) {
        let bits = self.random.word() as u32;
        let (op1, crn, crm, op2) =
            (bits & 7, [7, 8, bits >> 4 & 0xf, 11][(bits >> 3 & 3) as usize], bits >> 12 & 0xf, bits >> 16 & 7);
        let own = TABLES.load(Ordering::SeqCst) + PAGES_EACH * 4096 * self.index as u64 + 2 * 4096;
        let address = [own, machine::machine().ram.end + 64, 0x0b00_0000, self.random.word() | 1 << 48]
            [self.random.below(4) as usize];
        let read = bits >> 31 << 21;
        let _ = execute(instruction::sys(op1, crn, crm, op2) | read, &mut [address, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// HVC and SMC with any immediate, function and arguments but those that would end this payload.
    fn call(&mut self) {
        let word = self.random.word();
        let function = match self.random.below(4) {
            0 => word as u32,
            1 => 0x8400_0000 | word as u32 & 0x4000_00ff,
            2 => 0x8000_0000 | word as u32 & 0x7f00_00ff,
            _ => 0x8600_0000 | word as u32 & 0x4000_ffff,
        };
        // Bits above W0 are not part of the function's number.
        if ends_us(function) {
            return;
        }
        let immediate = if self.random.below(2) == 0 { 0 } else { self.random.word() as u16 };
        let opcode = if self.random.below(3) == 0 { instruction::smc(immediate) } else { instruction::hvc(immediate) };
        let mut x = [
            u64::from(function) | word & 0xffff_ffff_0000_0000,
            self.value(),
            self.value(),
            self.value(),
            0,
            0,
            0,
            word,
        ];
        // The general check on X0 is for transfers; calls may have anything in it.
        let _ = execute(opcode, &mut x);
        self.bad_cpu_on();
    }

    /// CPU_ON with arguments that must all be refused.
    fn bad_cpu_on(&mut self) {
        let beyond = machine::machine().ram.end + (self.value() & 0xffff_fffc);
        let target = if self.random.below(2) == 0 { gic::own_affinity() } else { self.random.word() | 0x80_0000 };
        if machine::is_reference() {
            return;
        }
        let answer = psci::cpu_on(target, beyond, self.value());
        assert!(answer < 0, "CPU_ON of {target:#x} at {beyond:#x} = {answer}");
    }

    /// A descriptor of noise, whose output lies anywhere but in RAM, or in a page of our own.
    fn descriptor(&mut self, own: u64) -> u64 {
        let word = self.random.word();
        let ram = &machine::machine().ram;
        let place = match self.random.below(4) {
            0 => own + (word & 1) * 4096,
            1 => self.random.below(ram.start) & !0x1f_ffff,
            2 => ram.end.next_multiple_of(1 << 30) + (self.random.word() & 0x7f_ffe0_0000),
            _ => 1 << 47 | word & 0x7fff_fff0_0000,
        };
        // A 2 MiB block over a page of ours would cover more than the page, the image among it: those become tables or pages.
        let kind = if place >> 12 == own >> 12 || place >> 12 == (own >> 12) + 1 { 3 } else { word >> 60 & 3 };
        let attributes = word & 0xfff0_0000_0000_0ffc;
        place & 0xffff_ffff_f000 | attributes | kind
    }

    /// Tables full of noise, walked by loads and stores.
    fn noise_tables(&mut self) {
        let tables = TABLES.load(Ordering::SeqCst) + PAGES_EACH * 4096 * self.index as u64;
        let own = tables + 2 * 4096;
        for slot in 0..64 {
            let (upper, lower) = (self.descriptor(own), self.descriptor(own));
            let chained = if self.random.below(2) == 0 { mmu::table(tables + 4096) } else { upper };
            memory::write64(tables + 8 * slot, chained);
            memory::write64(tables + 4096 + 8 * slot, lower);
        }
        let root = match self.random.below(4) {
            0 => self.descriptor(own) & !2 | 1,
            1 => mmu::table(machine::machine().ram.end + (self.random.word() & 0xffff_f000)),
            _ => mmu::table(tables),
        };
        // A block at level 1 covers a gigabyte: only one that starts outside of RAM may be used.
        let ram = &machine::machine().ram;
        let output = root & 0xffff_c000_0000;
        if root & 3 == 1 && output < ram.end && output + (1 << 30) > ram.start {
            return;
        }
        let slot = mmu::FREE_SLOT + self.index;
        let base = mmu::set_slot(slot, root);
        for _ in 0..8 {
            let offset = self.random.below(64) << 21 | self.random.below(64) << 12 | self.random.below(0xff8);
            let address = self.align(base + offset);
            // The tables may lead to the device that is spared; its offset in the page is avoided by reading only.
            let _ = fault::catch(|| memory::read32(address & !3));
            if self.random.below(2) == 0 {
                let _ = execute(instruction::sys(0, 7, 8, 0), &mut [address, 0, 0, 0, 0, 0, 0, 0]);
            }
        }
        mmu::reset_slot(slot);
    }

    /// Jumps to where nothing is.
    fn fetch_from_nowhere(&mut self) {
        let end = machine::machine().ram.end;
        let space = (255 << 30) - end;
        let address = (end + self.random.below(space)) & !3;
        if fault::catch(|| memory::call(address)).is_ok() {
            assert!(machine::is_reference(), "there is code at {address:#x}");
        }
    }

    /// Many SGIs, sleeps, events, or characters at once.
    fn storm(&mut self) {
        match self.random.below(16) {
            0..4 => {
                for _ in 0..100 {
                    sysreg::icc_sgi1r_el1::write(self.value() & !(1 << 40) | self.random.below(2) << 40);
                }
            }
            4..6 => self.sleep(),
            6..9 => {
                for _ in 0..50 {
                    cpu::send_event();
                    cpu::wait_for_event();
                }
            }
            9 => {
                for _ in 0..64 {
                    memory::write32(uart::BASE + uart::DR, self.random.word() as u32 & 0x1f | 0x20);
                }
            }
            _ => {
                for _ in 0..200 {
                    let _ = memory::read32(gic::DISTRIBUTOR + gic::GICD_IIDR);
                }
            }
        }
    }

    /// Many short sleeps. All that was done to the GIC is undone first, or nothing might wake us.
    fn sleep(&mut self) {
        gic::initialise_distributor();
        gic::initialise_cpu();
        gic::enable(timer::VIRTUAL_PPI);
        for _ in 0..20 {
            sysreg::cntv_tval_el0::write(self.random.below(2000));
            sysreg::cntv_ctl_el0::write(timer::ENABLE);
            // Another CPU may undo this at any time, so do not sleep for longer than it takes to look.
            if gic::read_bit(gic::ISENABLER, timer::VIRTUAL_PPI) && self.index == 0 && cpu::count() == 1 {
                cpu::wait_for_interrupt();
            }
            let intid = gic::acknowledge();
            gic::end(intid);
        }
        timer::stop();
    }
}

/// A device that could be talked into writing over the image (fw_cfg with its DMA; on the bare machine also the ITS and virtio).
fn is_spared(address: u64) -> bool {
    let page = address >> 16;
    page == 0x0902 || machine::is_reference() && (matches!(page, 0x0808..=0x0809 | 0x0a00) || address >= 0x40_0000_0000)
}

/// Registers without which this payload cannot go on: its translation, its vectors, its stack, its CPU number, its masks.
fn is_vital(encoding: [u32; 5]) -> bool {
    match encoding {
        // SCTLR and its like, and their masks.
        [3, 0, 1, 0, op2] => op2 != 2,
        [3, 0, 1, 4, _] => true,
        // TTBR, TCR; the guarded control stack; MAIR, PIR, POR; VBAR; TPIDR_EL1.
        [3, 0, 2, 0 | 5, _] | [3, 3, 2, 5, _] | [3, 0, 10, 2, _] | [3, 0, 12, 0, 0] | [3, 0, 13, 0, 4] => true,
        // SPSel, PAN and other PSTATE fields; DAIF, SVCR.
        [3, 0, 4, 2 | 3, _] | [3, 3, 4, 2, 1 | 2] => true,
        // CNTFRQ: writable only where EL1 is the highest level; then all times would be wrong.
        [3, 3, 14, 0, 0] => machine::is_reference(),
        _ => false,
    }
}

/// PSCI functions that stop this CPU or the machine, or go on at an address from the arguments.
fn ends_us(function: u32) -> bool {
    matches!(function & 0xbfff_ffff, 0x8400_0001..=0x8400_0003 | 0x8400_0008..=0x8400_0009 | 0x8400_000b..=0x8400_000e | 0x8400_0012)
}
