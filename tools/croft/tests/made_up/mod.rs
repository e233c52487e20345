//! Saved VMs that never were, for tests of what becomes of them.

use abi::bundle::Vm;
use abi::crc32c;
use clock::saved::{Away, Clock, Timer};
use cpu::pstate::{EL0T, EL1H, EL1T};
use cpu::saved::{Name, SavedRegisters};
use pack::Boxed;
use services::psci::SavedPower;
use snapshot::file::{Content, Description, PAGE, SavedMoment, Writer};
use snapshot::{SavedCpu, SavedMachine, SavedTime, SavedVcpu, SavedVm};
use vgic::{Config, Vgic};
use vm::{SavedLife, SavedWatchdogs};
use watchdog::SavedWatchdog;

/// Bytes of memory that they have.
pub(crate) const MEMORY: u64 = 4 << 20;
/// What stands in a page of it.
pub(crate) const INFO: &[u8] =
    b"OSRELEASE=6.12.1\nBUILD-ID=00ff\nPAGESIZE=4096\nNUMBER(kimage_voffset)=0xffff7fffc0000000\n";

fn vcpu(number: u8, pstate: u64) -> SavedVcpu {
    let base = u64::from(number) << 32;
    let mut registers = SavedRegisters { pc: base | 0x80, pstate, fpcr: 3, fpsr: 4, ..Default::default() };
    for (place, value) in registers.x.iter_mut().zip(1..) {
        *place = base | value;
    }
    registers.q[31] = [5, 6];
    registers.system =
        vec![(Name::new("sctlr_el1"), 1), (Name::new("sp_el0"), base | 0xe0), (Name::new("sp_el1"), base | 0xe1)];
    let physical_timer = Timer { version: 1, control: 0, compare: 0 };
    SavedVcpu { number, registers, physical_timer, stolen: 0, stolen_frequency: 1 }
}

/// A saved VM of which three of four vCPUs are on, with this page in the end of its memory.
pub(crate) fn saved(last: &[u8; PAGE]) -> Vec<u8> {
    saved_with(MEMORY, 0, last)
}

/// As well, with so much memory, most of which holds this word.
pub(crate) fn saved_with(memory: u64, word: u64, last: &[u8; PAGE]) -> Vec<u8> {
    let cpu = SavedCpu::default();
    let machine =
        SavedMachine { vcpus: 4, memory, devices: 0, memory_timer: false, identification: [0; cpu::id::COUNT], cpu };
    let config = Config {
        vcpus: 4,
        list_registers: 4,
        priority_bits: 5,
        preemption_bits: 5,
        tells_of_group_0: true,
        traps_deactivation: true,
    };
    let watchdog = SavedWatchdog { timeout: 1, action: 2, remaining: None, acted: 0 };
    let state = SavedVm {
        machine: Boxed::new(machine.clone()).expect("there is memory"),
        time: SavedTime {
            clock: Clock {
                version: Clock::VERSION,
                count: 0,
                frequency: 1_000_000,
                rate: 1_000_000,
                is_stopped: true,
                stood: 0,
                virtual_count: 0,
            },
            away: Away::Advance,
        },
        life: SavedLife { power: SavedPower { count: 4, on: 0b1101, pending: 0 }, starts: [None; 8] },
        gic: Boxed::new(Vgic::new(config).save().expect("no error")).expect("there is memory"),
        vcpus: vec![vcpu(0, EL1H), vcpu(2, EL0T), vcpu(3, EL1T | 0x3c0)],
        devices: Vec::new(),
        watchdogs: SavedWatchdogs { has_begun: true, vm: watchdog, own: [watchdog; 8] },
        calls: None,
    };
    let vm: Description<'_> = Vm { vcpus: 4, ..Vm::new("a-guest", (), memory) };
    let mut writer = Writer::new(crc32c::compute);
    let mut bytes = writer.begin(&vm, &machine, SavedMoment { microseconds: 0, is_known: false }).expect("no error");
    bytes.extend(writer.state(&state).expect("no error"));
    let mut info = [0; PAGE];
    info[..INFO.len()].copy_from_slice(INFO);
    // Nearly one, before the right one.
    let mut none = info;
    none[20] = 0x1b;
    let rest = memory / PAGE as u64 - 10;
    let pages = [
        (Content::Fill(0), 1),
        (Content::Page(&counted(7)), 1),
        (Content::Fill(0x5a5a), 2),
        (Content::Page(&counted(9)), 3),
        (Content::Page(&none), 1),
        (Content::Page(&info), 1),
        (Content::Fill(word), rest),
        (Content::Page(last), 1),
    ];
    for (content, count) in pages {
        bytes.extend(writer.memory(content, count).expect("no error"));
    }
    bytes.extend(writer.end().expect("no error"));
    bytes
}

/// A page that holds another word at each place.
pub(crate) fn counted(seed: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for (word, value) in page.as_chunks_mut::<8>().0.iter_mut().zip(seed << 32..) {
        *word = value.to_le_bytes();
    }
    page
}
