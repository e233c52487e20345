//! Cores of made-up VMs, read back by an independent ELF reader.

use abi::bundle::Vm;
use abi::crc32c;
use clock::saved::{Away, Clock, Timer};
use cpu::pstate::{EL0T, EL1H, EL1T};
use cpu::saved::{Name, SavedRegisters};
use croft::dump::{Dumping, file};
use croft::saved::SavedError;
use object::LittleEndian;
use object::elf::{ET_CORE, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use pack::Boxed;
use services::psci::SavedPower;
use snapshot::file::{Content, Description, PAGE, SavedMoment, Writer};
use snapshot::{SavedCpu, SavedMachine, SavedTime, SavedVcpu, SavedVm};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use vgic::{Config, Vgic};
use vm::{SavedLife, SavedWatchdogs};
use watchdog::SavedWatchdog;

const MEMORY: u64 = 4 << 20;
const RAM: u64 = 0x4000_0000;
const INFO: &[u8] = b"OSRELEASE=6.12.1\nBUILD-ID=00ff\nPAGESIZE=4096\nNUMBER(kimage_voffset)=0xffff7fffc0000000\n";

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
fn saved(last: &[u8; PAGE]) -> Vec<u8> {
    let cpu = SavedCpu::default();
    let machine = SavedMachine { vcpus: 4, memory: MEMORY, devices: 0, identification: [0; cpu::id::COUNT], cpu };
    let config = Config { vcpus: 4, list_registers: 4, priority_bits: 5, preemption_bits: 5 };
    let dog = SavedWatchdog { timeout: 1, action: 2, remaining: None, acted: 0 };
    let state = SavedVm {
        machine: machine.clone(),
        time: SavedTime {
            clock: Clock { version: 2, count: 0, frequency: 1, rate: 1_000_000, is_stopped: true, stood: 0 },
            away: Away::Advance,
        },
        life: SavedLife { power: SavedPower { count: 4, on: 0b1101, pending: 0 }, starts: [None; 8] },
        gic: Boxed::new(Vgic::new(config).save().expect("no error")).expect("there is memory"),
        vcpus: vec![vcpu(0, EL1H), vcpu(2, EL0T), vcpu(3, EL1T | 0x3c0)],
        devices: Vec::new(),
        watchdogs: SavedWatchdogs { has_begun: true, vm: dog, own: [dog; 8] },
        calls: None,
    };
    let vm: Description<'_> = Vm { vcpus: 4, ..Vm::new("a-guest", (), MEMORY) };
    let mut writer = Writer::new(crc32c::compute);
    let mut bytes = writer.begin(&vm, &machine, SavedMoment { microseconds: 0, is_known: false }).expect("no error");
    bytes.extend(writer.state(&state).expect("no error"));
    let mut info = [0; PAGE];
    info[..INFO.len()].copy_from_slice(INFO);
    // Nearly one, before the right one.
    let mut none = info;
    none[20] = 0x1b;
    let rest = MEMORY / PAGE as u64 - 10;
    let pages = [
        (Content::Fill(0), 1),
        (Content::Page(&counted(7)), 1),
        (Content::Fill(0x5a5a), 2),
        (Content::Page(&counted(9)), 3),
        (Content::Page(&none), 1),
        (Content::Page(&info), 1),
        (Content::Fill(0), rest),
        (Content::Page(last), 1),
    ];
    for (content, count) in pages {
        bytes.extend(writer.memory(content, count).expect("no error"));
    }
    bytes.extend(writer.end().expect("no error"));
    bytes
}

/// A page that holds another word at each place.
fn counted(seed: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for (word, value) in page.as_chunks_mut::<8>().0.iter_mut().zip(seed << 32..) {
        *word = value.to_le_bytes();
    }
    page
}

/// A core as the reader finds it: its notes, by name and kind, and what is where in memory.
struct Found {
    notes: Vec<(String, u32, Vec<u8>)>,
    memory: Vec<u8>,
}

fn read(core: &[u8]) -> Found {
    let header = FileHeader64::<LittleEndian>::parse(core).expect("no error");
    let endian = header.endian().expect("no error");
    assert_eq!((header.e_type(endian), header.e_machine(endian)), (ET_CORE, object::elf::EM_AARCH64));
    let segments = header.program_headers(endian, core).expect("no error");
    let [note, load] = segments else { panic!("{} segments", segments.len()) };
    assert_eq!((note.p_type(endian), load.p_type(endian)), (PT_NOTE, PT_LOAD), "crash wants this order");
    assert_eq!((load.p_paddr(endian), load.p_vaddr(endian), load.p_memsz(endian)), (RAM, RAM, MEMORY));
    assert_eq!((load.p_align(endian), load.p_offset(endian) % 4096), (0, 0));
    let mut notes = Vec::new();
    let mut iterator = note.notes(endian, core).expect("no error").expect("no error");
    while let Some(note) = iterator.next().expect("no error") {
        notes.push((String::from_utf8_lossy(note.name()).into(), note.n_type(endian).0, note.desc().to_vec()));
    }
    Found { notes, memory: load.data(endian, core).expect("no error").to_vec() }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

#[test]
fn a_core_holds_the_memory_and_the_registers() {
    let folder = tempfile::tempdir().expect("no error");
    let (from, to) = (folder.path().join("vm.saved"), folder.path().join("vm.core"));
    for last in [[0; PAGE], counted(11)] {
        fs::write(&from, saved(&last)).expect("no error");
        let dumped = file(&from, &to).expect("no error");
        assert_eq!((&*dumped.name, dumped.vcpus, dumped.memory), ("a-guest", 3, MEMORY));
        assert_eq!(dumped.show("x".as_ref()), "dumped to x, 3 vCPUs and 4M of memory");
        let core = fs::read(&to).expect("no error");
        let Found { notes, memory } = read(&core);
        let mut expected = vec![0; MEMORY as usize];
        let mut put = |page: usize, bytes: &[u8]| expected[page * PAGE..][..bytes.len()].copy_from_slice(bytes);
        put(1, &counted(7));
        (2..4).for_each(|page| put(page, &0x5a5a_u64.to_le_bytes().repeat(PAGE / 8)));
        (4..7).for_each(|page| put(page, &counted(9)));
        put(7, INFO);
        put(7, b"OSRELEASE=6.12.1\nBUI\x1b");
        put(8, INFO);
        put(1023, &last);
        assert!(memory == expected, "memory is another one");
        let kinds: Vec<_> = notes.iter().map(|(name, kind, contents)| (&**name, *kind, contents.len())).collect();
        let (status, fp) = (("CORE", 1, 392), ("CORE", 2, 528));
        let info = ("VMCOREINFO", 0, INFO.len());
        assert_eq!(kinds, [("CORE", 3, 136), status, fp, status, fp, status, fp, info]);
        assert_eq!(&notes[0].2[40..48], b"a-guest\0");
        assert_eq!(notes[7].2, INFO);
        for (index, (number, pstate, stack)) in
            [(0_u64, EL1H, 0xe1), (2, EL0T, 0xe0), (3, EL1T | 0x3c0, 0xe0)].into_iter().enumerate()
        {
            let base = number << 32;
            let status = &notes[1 + 2 * index].2;
            assert_eq!(u64::from(status[32]), number + 1);
            let registers: Vec<u64> = (1..32).map(|value| base | value).collect();
            assert_eq!(words(&status[112..384]), [registers, vec![base | stack, base | 0x80, pstate]].concat());
            assert_eq!(status[384..], [1, 0, 0, 0, 0, 0, 0, 0]);
            let fp = &notes[2 + 2 * index].2;
            assert_eq!(words(&fp[496..]), [5, 6, 4 | 3 << 32, 0]);
        }
        let on_disk = fs::metadata(&to).expect("no error").blocks() * 512;
        assert!(on_disk < 128 << 10, "eight pages of {MEMORY} bytes take {on_disk} bytes");
    }
}

/// GDB, the one that `cargo xtask setup --all` fetches, finds the vCPUs as threads, and memory by guest-physical addresses.
#[test]
fn gdb_opens_it() {
    let folder = tempfile::tempdir().expect("no error");
    let (from, to) = (folder.path().join("vm.saved"), folder.path().join("vm.core"));
    fs::write(&from, saved(&[0; PAGE])).expect("no error");
    file(&from, &to).expect("no error");
    let core = format!("core-file {}", to.display());
    let look = [
        "set architecture aarch64",
        &core,
        "thread apply all -q printf \"pc %#lx sp %#lx x30 %#lx\\n\", $pc, $sp, $x30",
        "printf \"word %#lx\\n\", *(unsigned long long *)0x40001008",
    ];
    let arguments = look.iter().flat_map(|command| ["-ex", command]);
    let gdb = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.undercroft/bin/gdb-multiarch");
    let gdb = Command::new(&gdb).args(["-nx", "-batch"]).args(arguments).output();
    let output = gdb.expect("`cargo xtask setup --all` fetches it");
    let said = String::from_utf8_lossy(&output.stdout);
    for line in [
        "Core was generated by `a-guest'",
        "pc 0x80 sp 0xe1 x30 0x1f",
        "pc 0x200000080 sp 0x2000000e0 x30 0x20000001f",
        "pc 0x300000080 sp 0x3000000e0 x30 0x30000001f",
        "word 0x700000001",
    ] {
        assert!(
            said.contains(line),
            "{line} is not in what it says:\n{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// A saved VM that ends early or is damaged leaves no core, nor does one take the name of something else.
#[test]
fn a_core_is_whole_or_not_there() {
    let folder = tempfile::tempdir().expect("no error");
    let (from, to) = (folder.path().join("vm.saved"), folder.path().join("vm.core"));
    let good = saved(&[0; PAGE]);
    for (bytes, expected) in [
        (&good[..good.len() - 60], "vm.saved: the saved VM is incomplete: it ends after"),
        (&b"MZMZ".repeat(20)[..], "vm.saved: this is no saved VM"),
    ] {
        fs::write(&from, bytes).expect("no error");
        let refused = file(&from, &to).expect_err("it is refused").to_string();
        assert!(refused.contains(expected), "{refused}");
        assert_eq!(fs::read_dir(folder.path()).expect("no error").count(), 1, "something is left");
    }
    fs::write(&to, "a site").expect("no error");
    let refused = Dumping::create(&to, None).expect_err("it is refused");
    assert!(matches!(refused, SavedError::InTheWay { what: "core", .. }), "{refused}");
    fs::write(&from, &good).expect("no error");
    assert!(file(&from, &from).expect_err("it is refused").to_string().contains("no core has this name"));
    assert_eq!((fs::read(&from).expect("no error"), fs::read(&to).expect("no error")), (good, b"a site".to_vec()));
}
