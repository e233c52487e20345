//! Cores of made-up VMs, read back by an independent ELF reader.

use cpu::pstate::{EL0T, EL1H, EL1T};
use croft::dump::{Dumping, Written, file};
use croft::saved::{Check, SavedError, Writing};
use made_up::{INFO, MEMORY, counted, saved, saved_with};
use object::LittleEndian;
use object::elf::{ET_CORE, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use snapshot::file::PAGE;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

mod made_up;

const RAM: u64 = 0x4000_0000;

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

/// A few bytes of a saved VM may stand for all of its memory. Whoever sends it is heard, and hears something, in between.
#[test]
fn gigabytes_of_one_word_are_written_in_pieces() {
    const LARGE: u64 = 96 << 20;
    let folder = tempfile::tempdir().expect("no error");
    let to = folder.path().join("vm.core");
    let mut dumping = Dumping::create(&to, None).expect("no error");
    let (mut goes, mut bytes) = (1, &*saved_with(LARGE, 0x5a5a, &counted(11)));
    while dumping.take(bytes).expect("no error") == Written::More {
        assert!(!dumping.is_whole());
        (goes, bytes) = (goes + 1, &[]);
    }
    assert!(dumping.is_whole() && goes >= LARGE / (16 << 20), "{LARGE} bytes were written in {goes} goes");
    dumping.keep().expect("no error");
    let core = fs::read(&to).expect("no error");
    let memory = core.get(core.len() - LARGE as usize..).expect("memory");
    let (words, last) = memory.split_at(memory.len() - PAGE);
    assert!(words.chunks(PAGE).skip(9).all(|page| page == 0x5a5a_u64.to_le_bytes().repeat(PAGE / 8)));
    assert_eq!(last, counted(11));
}

/// Compressed or not, it is read as the same VM; and what is wrong with it is said in a line, wherever it is.
#[test]
fn what_is_compressed_is_the_same_vm() {
    let folder = tempfile::tempdir().expect("no error");
    let path = |name: &str| folder.path().join(name);
    let good = saved(&counted(11));
    for (name, compress) in [("plain.saved", false), ("packed.saved", true)] {
        let mut writing = Writing::create(&path(name), compress).expect("no error");
        good.chunks(1000).for_each(|piece| writing.write(piece).expect("no error"));
        let bytes = writing.keep().expect("no error");
        assert_eq!(fs::metadata(path(name)).expect("no error").len(), bytes);
    }
    let [plain, packed] = ["plain.saved", "packed.saved"].map(|name| fs::read(path(name)).expect("no error"));
    assert!(plain == good && packed.len() < good.len() - 10_000, "{} bytes, and {}", plain.len(), packed.len());
    for (from, to) in [("plain.saved", "plain.core"), ("packed.saved", "packed.core")] {
        file(&path(from), &path(to)).expect("no error");
    }
    assert!(fs::read(path("plain.core")).expect("no error") == fs::read(path("packed.core")).expect("no error"));
    let look = |bytes: &[u8]| Check::file(&mut &*bytes, "vm.saved".as_ref()).map(|contents| contents.name);
    assert_eq!(look(&packed).expect("no error"), "a-guest");
    let mut damaged = packed.clone();
    for place in 0..packed.len() {
        damaged[place] ^= 1 << (place % 8);
        let said = look(&damaged).expect_err("it is damaged").to_string();
        let is_named = said.starts_with("vm.saved: the saved VM is damaged") || said.contains("this is no saved VM");
        assert!(is_named && said.lines().count() == 1, "byte {place}: {said}");
        damaged[place] = packed[place];
    }
    for end in 0..packed.len() {
        let said = look(&packed[..end]).expect_err("it is cut off").to_string();
        let expected = if end < 8 { "this is no saved VM" } else { "the saved VM is incomplete: it ends after" };
        assert!(said.contains(expected), "{end}: {said}");
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
