//! The same machine, as its device tree describes it.

extern crate std;

use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{assert, assert_eq, format, vec};

use platform::{BootMethod, Conduit, Platform};
use proptest::prelude::*;
use units::{Pa, Range};

use super::{Behaviour, Fake, Step};
use crate::acpi::{Memory as _, Whereabouts};
use crate::convert::{Boots, Failure, Outcome, TreeConversion, convert_tree};
use crate::original::StartProtocol;
use crate::{mailbox, tree};

/// QEMU's `virt` with four CPUs.
pub(super) const QEMU: &[u8] = include_bytes!("../../testdata/qemu-virt.dtb");
const BOOTS: Boots = Boots { mpidr: 0, level: 2 };

/// A machine in which numbers stand in mailboxes from the beginning.
fn tree_machine() -> Fake {
    Fake { is_preset: true, ..Fake::new(&[]) }
}

/// Each property by its path, as a reader sees them who knows nothing of [`tree`].
fn properties(tree: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let word = |at: usize| u32::from_be_bytes(tree[at..at + 4].try_into().unwrap()) as usize;
    let text = |at: usize| {
        let end = at + tree[at..].iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(tree[at..end].to_vec()).unwrap()
    };
    let (mut at, mut path, mut found) = (word(8), Vec::<String>::new(), BTreeMap::new());
    loop {
        match word(at) {
            1 => {
                path.push(text(at + 4));
                at += (4 + path.last().unwrap().len() + 1).next_multiple_of(4);
            }
            2 => {
                path.pop();
                at += 4;
            }
            3 => {
                let (size, name) = (word(at + 4), text(word(12) + word(at + 8)));
                let before = found.insert(format!("{}/{name}", path.join("/")), tree[at + 12..at + 12 + size].to_vec());
                assert_eq!(before, None, "{name} is there twice");
                at = (at + 12 + size).next_multiple_of(4);
            }
            4 => at += 4,
            9 => break,
            other => panic!("{other} is no token"),
        }
    }
    assert_eq!((path, at + 4), (Vec::<String>::new(), word(8) + word(36)));
    found
}

fn described(tree: &[u8]) -> Platform<'_> {
    Platform::from_device_tree(tree, Pa(0x4000_0000)).expect("it is a tree")
}

fn run(fake: &mut Fake, old: &[u8]) -> Result<(TreeConversion, Vec<u8>), Failure> {
    let platform = described(old);
    let cpus = platform.cpus.iter().map(|cpu| (cpu.mpidr, cpu.boot));
    let report = convert_tree(fake, old, cpus, platform.psci.map(|psci| psci.conduit), BOOTS)?;
    let size = fake.read(Range { start: report.tree, size: 8 }).unwrap()[4..8].try_into().unwrap();
    let size = u64::from(u32::from_be_bytes(size));
    let new = fake.read(Range { start: report.tree, size }).unwrap().to_vec();
    Ok((report, new))
}

/// P7-A2, of a device tree.
#[test]
fn p7_a2_the_tree_names_mailboxes_and_nothing_else_has_changed() {
    let mut fake = tree_machine();
    let (report, new) = run(&mut fake, QEMU).unwrap();
    let pages: [u64; 3] = [0x4800_3000, 0x4800_4000, 0x4800_5000];
    let outcomes: Vec<_> = report.cpus.iter().map(|&(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [[Outcome::Boots].as_slice(), &pages.map(|page| Outcome::Parked(Pa(page)))].concat());
    let (before, mut after) = (properties(QEMU), properties(&new));
    for (cpu, page) in (1..).zip(pages) {
        let mut put = |name: &str, value: &[u8]| {
            let key = format!("/cpus/cpu@{cpu}/{name}");
            let changed = after.get(&key).map(Vec::as_slice);
            assert_eq!(changed, Some(value), "{key}");
            match before.get(&key) {
                Some(old) => after.insert(key, old.clone()),
                None => after.remove(&key),
            };
        };
        put("enable-method", b"spin-table\0undercroft,mailbox\0");
        put("cpu-release-addr", &(page + 8).to_be_bytes());
    }
    assert_eq!(after, before);
    // As the hypervisor's core reads it.
    let (old, new) = (described(QEMU), described(&new));
    let boot: Vec<_> = new.cpus.iter().map(|cpu| cpu.boot).collect();
    assert_eq!(boot, [[BootMethod::Psci].as_slice(), &pages.map(|page| BootMethod::Mailbox(Pa(page)))].concat());
    let mailboxes = Range { start: Pa(pages[0]), size: 3 * mailbox::SIZE };
    let reserved = |platform: &Platform<'_>| platform.reserved.iter().any(|range| range.contains_range(mailboxes));
    assert!(!reserved(&old) && reserved(&new), "{:?}", new.reserved);
    assert_eq!((new.psci, &new.gic, &new.memory, new.bootargs), (old.psci, &old.gic, &old.memory, old.bootargs));
    // The number stands there: an address alone lets a CPU go.
    for (number, page) in (1_u32..).zip(pages) {
        let bytes = &fake.memory[&page];
        assert_eq!(bytes[..16], mailbox::fresh(number));
        assert_eq!(bytes[mailbox::OWN_NUMBER..mailbox::OWN_NUMBER + 4], number.to_le_bytes());
    }
    // First the room, then the mailboxes, then the CPUs, and at last the tree.
    let first = |wanted: fn(&Step) -> bool| fake.steps.iter().position(wanted).unwrap();
    let last = |wanted: fn(&Step) -> bool| fake.steps.iter().rposition(wanted).unwrap();
    assert!(last(|step| matches!(step, Step::Mailbox(_))) < first(|step| matches!(step, Step::Sent(..))));
    assert!(last(|step| matches!(step, Step::Sent(..))) < first(|step| matches!(step, Step::Announced(_))));
    // It was written before, too, to see that it can be.
    let tree: Vec<_> = (0..fake.steps.len()).filter(|&at| fake.steps[at] == Step::Changed(0x4800_0000)).collect();
    assert_eq!((tree.len(), tree[1]), (2, fake.steps.len() - 1));
    assert!(tree[0] < first(|step| matches!(step, Step::Sent(..))));
    // Each names the next, and the last the first.
    for (number, page) in (0..).zip(pages) {
        let word = |at: usize| u64::from_le_bytes(fake.memory[&page][at..at + 8].try_into().unwrap());
        assert_eq!((word(mailbox::OWNER), word(mailbox::NEXT)), (number as u64 + 1, pages[(number + 1) % 3]));
    }
}

/// P7-A9, of a device tree: who does not come, or comes at another level, has failed.
#[test]
fn p7_a9_who_does_not_come_has_failed() {
    let mut fake = tree_machine();
    fake.behaviours = [(1, Behaviour::Refuses(-2)), (3, Behaviour::NeverComes)].into();
    let (report, new) = run(&mut fake, QEMU).unwrap();
    let page = Pa(0x4800_4000);
    assert_eq!(
        report.cpus.as_slice(),
        [(0, Outcome::Boots), (1, Outcome::Refused(-2)), (2, Outcome::Parked(page)), (3, Outcome::Late)]
    );
    let new_platform = described(&new);
    let cpus: Vec<_> = new_platform.cpus.iter().map(|cpu| (cpu.mpidr, cpu.boot)).collect();
    assert_eq!(cpus, [(0, BootMethod::Psci), (2, BootMethod::Mailbox(page))]);
    // One that has not come may come yet: its mailbox stays where it is, too.
    let late = Range { start: Pa(page.0 + mailbox::SIZE), size: mailbox::SIZE };
    assert!(new_platform.reserved.iter().any(|range| range.contains_range(late)), "{:?}", new_platform.reserved);
    assert_eq!(properties(&new)["/cpus/cpu@1/status"], b"fail\0");
    // Who is converted once more comes by the mailbox that it has.
    let (again, newer) = run(&mut fake, &new).unwrap();
    let newer_page = Pa(again.tree.0 + 0x3000);
    assert_eq!(again.cpus.as_slice(), [(0, Outcome::Boots), (2, Outcome::Parked(newer_page))]);
    let by_its_word = StartProtocol::SpinTable(Pa(page.0 + mailbox::ADDRESS as u64));
    assert!(fake.steps.contains(&Step::Sent(2, by_its_word, newer_page.0)), "{:?}", fake.steps);
    let cpus: Vec<_> = described(&newer).cpus.iter().map(|cpu| cpu.boot).collect();
    assert_eq!(cpus, [BootMethod::Psci, BootMethod::Mailbox(newer_page)]);

    let mut fake = Fake { level: 1, ..tree_machine() };
    let (report, new) = run(&mut fake, QEMU).unwrap();
    assert!(report.cpus.iter().skip(1).all(|&(_, outcome)| outcome == Outcome::WrongLevel(1)), "{report:?}");
    assert_eq!(described(&new).cpus.len(), 1);
}

/// CPUs that wait by something else than PSCI: by an address, or in a way that nobody knows.
#[test]
fn each_waits_in_its_own_way() {
    let mut old = QEMU.to_vec();
    // What stands there of cpu@1 becomes a method that nobody knows.
    let methods: Vec<_> = old.windows(5).enumerate().filter(|(_, at)| *at == b"psci\0").map(|(at, _)| at).collect();
    let of_cpus = &methods[methods.len() - 4..];
    assert_eq!(described(&old).cpus.len(), 4);
    old[of_cpus[2]..of_cpus[2] + 4].copy_from_slice(b"pscj");
    let mut fake = tree_machine();
    let (report, new) = run(&mut fake, &old).unwrap();
    let unknown: Vec<_> = report.cpus.iter().filter(|(_, outcome)| *outcome == Outcome::Unknown).collect();
    assert_eq!((unknown.len(), described(&new).cpus.len()), (1, 3), "{report:?}");
    // Spin tables.
    let cpus = [(0, BootMethod::Unknown), (1, BootMethod::SpinTable(Pa(0xd8))), (2, BootMethod::Psci)];
    let mut fake = tree_machine();
    let report = convert_tree(&mut fake, QEMU, cpus.into_iter(), None, BOOTS).unwrap();
    let page = report.tree.0 + QEMU.len().next_multiple_of(4096) as u64;
    assert_eq!(report.cpus.as_slice(), [(0, Outcome::Boots), (1, Outcome::Parked(Pa(page))), (2, Outcome::Unknown)]);
    assert!(fake.steps.contains(&Step::Sent(1, StartProtocol::SpinTable(Pa(0xd8)), page)), "{:?}", fake.steps);
    let mut fake = tree_machine();
    let cpus = [(0, BootMethod::Psci), (1, BootMethod::Psci)].into_iter();
    convert_tree(&mut fake, QEMU, cpus, Some(Conduit::Hvc), BOOTS).unwrap();
    assert!(fake.steps.contains(&Step::Sent(1, StartProtocol::Psci(Conduit::Hvc), page)), "{:?}", fake.steps);
}

/// What cannot be named is not begun: nobody is sent anywhere.
#[test]
fn p7_a10_a_tree_that_cannot_be_changed_leaves_all_as_it_was() {
    let twice = [(0, BootMethod::Psci), (1, BootMethod::Psci), (1 | 1 << 31, BootMethod::Psci)];
    let mut fake = tree_machine();
    let failure = convert_tree(&mut fake, QEMU, twice.into_iter(), Some(Conduit::Smc), BOOTS).unwrap_err();
    assert_eq!((failure.to_string(), fake.steps.len()), (String::from("two CPUs have the affinity 0x1"), 0));
    let once = || twice.into_iter().take(2);
    let mut bad = QEMU.to_vec();
    bad[36..40].copy_from_slice(&4_u32.to_be_bytes());
    let failure = convert_tree(&mut fake, &bad, once(), Some(Conduit::Smc), BOOTS).unwrap_err();
    assert_eq!(failure.to_string(), "the device tree: it is malformed at byte 64");
    assert!(!fake.steps.iter().any(|step| matches!(step, Step::Sent(..) | Step::Mailbox(_))), "{:?}", fake.steps);
    // One that is off stays so, whatever number it has.
    let (_, with_failed) = {
        let mut fake = Fake { behaviours: [(1, Behaviour::NeverComes)].into(), ..tree_machine() };
        run(&mut fake, QEMU).unwrap()
    };
    let mut to = vec![0; tree::room(&with_failed, 4)];
    let reserved = Range { start: Pa(0x4800_0000), size: 0x1000 };
    let size = tree::name_mailboxes(&with_failed, &mut to, reserved, |_| Whereabouts::Parked(Pa(0x4800_0000))).unwrap();
    assert_eq!(properties(&to[..size])["/cpus/cpu@1/status"], b"fail\0");
}

/// Without memory for a tree nothing is done; without memory for a mailbox its CPU is lost.
#[test]
fn without_memory_there_is_less() {
    let mut fake = Fake { pages: 0, ..tree_machine() };
    assert_eq!(run(&mut fake, QEMU).unwrap_err(), Failure::NoMemory);
    assert_eq!(fake.steps, []);
    let mut fake = Fake { pages: 2, ..tree_machine() };
    let (report, new) = run(&mut fake, QEMU).unwrap();
    let outcomes: Vec<_> = report.cpus.iter().map(|&(_, outcome)| outcome).collect();
    let parked = Outcome::Parked(Pa(0x4800_3000));
    assert_eq!(outcomes, [Outcome::Boots, parked, Outcome::NoMailbox, Outcome::NoMailbox]);
    assert_eq!(described(&new).cpus.len(), 2);
}

/// P7-A10, of a device tree: the writer reads nothing beside it, and goes on for ever nowhere.
#[test]
fn p7_a10_malformed_trees_are_refused() {
    let reserved = Range { start: Pa(0x4800_0000), size: 0x1000 };
    let all = |_| Whereabouts::Parked(Pa(0x4800_0000));
    let mut to = vec![0; tree::room(QEMU, 4)];
    let size = tree::name_mailboxes(QEMU, &mut to, reserved, all).unwrap();
    assert!(size <= to.len() && to.len() - size < 128, "{size} of {}", to.len());
    for length in 0..QEMU.len() {
        assert!(tree::name_mailboxes(&QEMU[..length], &mut to, reserved, all).is_err(), "{length}");
    }
    for length in 0..size {
        let failure = tree::name_mailboxes(QEMU, &mut to[..length], reserved, all).unwrap_err().to_string();
        assert_eq!(failure, "there is no room for the one that names mailboxes");
    }
    // The header's fields, and a token, with the byte that is complained of.
    let structure = 64;
    for (at, value, said) in [
        (0, 0xd00d_feee, 0),
        (4, u32::MAX, 4),
        (8, 0x41, 8),
        (12, u32::MAX, 32),
        (20, 15, 20),
        (24, 18, 20),
        (32, u32::MAX, 32),
        (structure, 5, structure),
        (structure, 2, structure),
        (36, 4, structure),
    ] {
        let mut bad = QEMU.to_vec();
        bad[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        let failure = tree::name_mailboxes(&bad, &mut to, reserved, all).unwrap_err().to_string();
        assert_eq!(failure, format!("it is malformed at byte {said}"), "{at}: {value:#x}");
    }
}

proptest! {
    #[test]
    fn p7_a10_any_tree_is_written_or_refused(changes in prop::collection::vec((0..QEMU.len(), any::<u8>()), 1..8)) {
        let mut tree = QEMU.to_vec();
        for (at, byte) in changes {
            tree[at] = byte;
        }
        let mut to = vec![0; 4 * QEMU.len()];
        let reserved = Range { start: Pa(0x4800_0000), size: 0x1000 };
        // What was asked for is enough.
        let mut asked = vec![0; tree::room(&tree, 4)];
        let whereabouts = |_| Whereabouts::Parked(Pa(0x4800_0000));
        let written = tree::name_mailboxes(&tree, &mut to, reserved, whereabouts);
        prop_assert_eq!(tree::name_mailboxes(&tree, &mut asked, reserved, whereabouts), written);
    }
}
