//! A firmware that offers spin tables, as those of some boards: thirty instructions that a machine enters in place of the hypervisor. They
//! start its other CPUs, which wait for an address each, and go on to the hypervisor. The device tree that goes along says so.

use anyhow::{Context, Result};
use bringup::acpi::Whereabouts;
use bringup::{mailbox, tree};
use qemu::Machine;
use std::fs;
use std::path::Path;
use units::{Pa, Range};

use crate::host_tree;

/// How many CPUs the machine has.
pub const CPUS: u8 = 4;
/// Where the hypervisor is put, at which the last instruction but those of the others jumps.
const HYPERVISOR: u64 = 0x4400_0000;
/// Where QEMU puts an `Image` whose text offset is 0.
const HERE: u64 = 0x4020_0000;
/// How long the file is, with the words at which CPUs wait, and what is reserved.
const SIZE: u64 = 0x1000;
/// Where the words are at which they announce themselves, and, behind these, those at which they wait.
const WORDS: u64 = 0x800;
const RELEASE: u64 = WORDS + 0x100;
/// What the header takes.
const HEADER: u64 = 64;

/// Linked at offset 64 of the file.
const CODE: [u32; 30] = [
    0xaa00_03f4, // mov  x20, x0                the device tree
    0x1000_3df5, // adr  x21, WORDS
    0xd280_0036, // mov  x22, #1
    0xf100_12df, // 1: cmp x22, #4
    0x5400_0180, // b.eq 3f
    0xd280_0060, // mov  x0, #3                 CPU_ON, of 64 bits
    0xf2b8_8000, // movk x0, #0xc400, lsl #16
    0xaa16_03e1, // mov  x1, x22
    0x1000_01e2, // adr  x2, 6f
    0xaa16_03e3, // mov  x3, x22
    0xd400_0003, // smc  #0
    0xb500_0160, // cbnz x0, 5f
    0xf876_7aa4, // 2: ldr x4, [x21, x22, lsl #3]
    0xb4ff_ffe4, // cbz  x4, 2b
    0x9100_06d6, // add  x22, x22, #1
    0x17ff_fff4, // b    1b
    0xd2a8_8005, // 3: mov x5, #0x44000000      HYPERVISOR
    0xaa14_03e0, // mov  x0, x20
    0xaa1f_03e1, // mov  x1, xzr
    0xaa1f_03e2, // mov  x2, xzr
    0xaa1f_03e3, // mov  x3, xzr
    0xd61f_00a0, // br   x5
    0x1400_0000, // 5: b 5b
    0x1000_3b21, // 6: adr x1, WORDS            x0 is the CPU's number
    0xf820_7821, // str  x1, [x1, x0, lsl #3]
    0x9104_0021, // add  x1, x1, #0x100
    0xd503_205f, // 7: wfe
    0xf860_7822, // ldr  x2, [x1, x0, lsl #3]
    0xb4ff_ffc2, // cbz  x2, 7b
    0xd61f_0040, // br   x2
];

/// How a CPU looks at its word, and how it looks at the one that is for all, as some boards have it.
const LOOK: u32 = 0xf860_7822;
const LOOK_AT_THE_FIRST: u32 = 0xf940_0022;

/// Writes firmware and device tree for `machine`, which has [`CPUS`] CPUs, to `folder`; `is_shared` says whether one word is
/// for all CPUs. Returns what QEMU is to be told beside what starts `hypervisor`.
///
/// # Errors
/// If a file cannot be written, or QEMU has no device tree.
pub fn arguments(machine: &Machine, hypervisor: &Path, folder: &Path, is_shared: bool) -> Result<Vec<String>> {
    let (firmware, plain, described) =
        (folder.join("spin-table.img"), folder.join("plain.dtb"), folder.join("spin-table.dtb"));
    // The header of an arm64 `Image`: a branch, the text offset, the size, "little endian, 4 KiB pages, anywhere", the magic number.
    let mut file = Vec::new();
    file.extend((0x1400_0000 | (HEADER as u32 / 4)).to_le_bytes());
    file.extend([0; 12]);
    file.extend(SIZE.to_le_bytes());
    file.extend(0b1010_u64.to_le_bytes());
    file.extend([0; 24]);
    file.extend(b"ARM\x64\0\0\0\0");
    let code = CODE.map(|word| if is_shared && word == LOOK { LOOK_AT_THE_FIRST } else { word });
    file.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    file.resize(SIZE as usize, 0);
    fs::write(&firmware, file)?;
    host_tree::write(machine, &plain, |_| Ok(()))?;
    let old = fs::read(&plain)?;
    let mut new = vec![0; tree::room(&old, CPUS.into())];
    // Its address word is where the CPU waits; the page is nobody's.
    let place = |cpu: u64| {
        let word = if is_shared { RELEASE } else { RELEASE + 8 * cpu };
        Whereabouts::Parked(Pa(HERE + word - mailbox::ADDRESS as u64))
    };
    let reserved = Range { start: Pa(HERE), size: SIZE };
    let size = tree::name_mailboxes(&old, &mut new, reserved, |mpidr| match mpidr {
        0 => Whereabouts::Left,
        cpu => place(cpu),
    })?;
    new.truncate(size);
    // Nobody knows the second name then.
    let ours = tree::MAILBOX.as_bytes();
    while let Some(at) = new.windows(ours.len()).position(|window| window == ours) {
        new.get_mut(at..at + ours.len()).context("it is there")?.copy_from_slice(b"firmware,own-start");
    }
    fs::write(&described, new)?;
    let text = |path: &Path| path.display().to_string();
    Ok(vec![
        "-kernel".to_owned(),
        text(&firmware),
        "-dtb".to_owned(),
        text(&described),
        "-device".to_owned(),
        format!("loader,file={},addr={HYPERVISOR:#x},force-raw=on", text(hypervisor)),
    ])
}
