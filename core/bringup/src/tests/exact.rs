//! Bounds, numbers and sentences, one by one: where a byte more or less would be another thing.

extern crate std;

use std::string::ToString;
use std::vec::Vec;
use std::{assert, assert_eq, vec};

use platform::{BootMethod, Platform};
use units::{Pa, Range};

use super::{Fake, MADT, RSDP, SMC};
use crate::acpi::{self, Flaw, Root, Whereabouts};
use crate::convert::Outcome;
use crate::{mailbox, tree};

/// By the numbers of the parking protocol: the operating system's half has the number and the address, the firmware's is the second.
#[test]
fn a_mailbox_is_laid_out_as_the_protocol_says() {
    assert_eq!((mailbox::SIZE, mailbox::NUMBER, mailbox::ADDRESS, mailbox::FIRMWARE), (4096, 0, 8, 2048));
    assert_eq!(mailbox::fresh(0x0102_0304), [4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(mailbox::fresh(mailbox::NOBODY)[..5], [0xff, 0xff, 0xff, 0xff, 0]);
    // In the firmware's half nothing lies upon another: a word of 4 bytes, three of 8, and the code at a cache line of its own.
    let places = [
        (mailbox::ANNOUNCEMENT, 8),
        (mailbox::OWN_NUMBER, 4),
        (mailbox::OWNER, 8),
        (mailbox::NEXT, 8),
        (mailbox::CODE, 4),
    ];
    assert_eq!(places[0].0, mailbox::FIRMWARE);
    assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{places:?}");
    assert_eq!(mailbox::CODE, 2048 + 64);
}

#[test]
fn each_outcome_has_a_sentence() {
    let says = [
        (Outcome::Boots, "it boots"),
        (Outcome::Disabled, "it is disabled"),
        (Outcome::Parked(Pa(0x1000)), "it waits at mailbox 0x1000"),
        (Outcome::WasParked(Pa(0x2000)), "it waits at mailbox 0x2000"),
        (Outcome::Unknown, "nobody knows how it is started"),
        (Outcome::NoMailbox, "there is no memory for its mailbox"),
        (Outcome::Refused(-4), "the firmware refused to start it: -4"),
        (Outcome::Late, "it was started, and did not come in time"),
        (Outcome::WrongLevel(1), "it came at EL1, which is not the boot CPU's"),
    ];
    says.iter().for_each(|(outcome, sentence)| assert_eq!(outcome.to_string(), *sentence));
}

/// What is reserved are the mailboxes, and not a page more.
#[test]
fn the_mailboxes_are_all_that_is_reserved() {
    let mut fake = Fake::new(&SMC);
    let report = fake.convert().expect("it is converted");
    let pages: Vec<u64> = report
        .cpus
        .iter()
        .filter_map(|&(_, outcome)| if let Outcome::Parked(page) = outcome { Some(page.0) } else { None })
        .collect();
    let (first, last) = (pages[0], pages[pages.len() - 1]);
    assert!(pages.len() > 1);
    assert_eq!(report.mailboxes, Range { start: Pa(first), size: last + mailbox::SIZE - first });
}

/// A machine whose MADT has these structures.
fn with_structures(structures: &[u8]) -> Fake {
    let mut fake = Fake::new(&SMC);
    let table = fake.table(MADT);
    table.truncate(44);
    table.extend(structures);
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    fake.seal(MADT);
    fake
}

fn count(structures: &[u8]) -> Result<usize, Flaw> {
    let fake = with_structures(structures);
    let root = Root::new(&fake, Pa(RSDP))?;
    let mut count = 0;
    acpi::cpus(&fake, &root, |_| count += 1).map(|_| count)
}

#[test]
fn structures_are_as_long_as_they_must_be() {
    assert_eq!(count(&[]), Ok(0), "a table that ends where its structures begin");
    let mut fake = with_structures(&[]);
    fake.table(MADT).truncate(43);
    fake.table(MADT)[4..8].copy_from_slice(&43_u32.to_le_bytes());
    fake.seal(MADT);
    let root = Root::new(&fake, Pa(RSDP)).expect("a root");
    let short = Flaw::Short { table: "MADT", length: 43, least: 44 };
    assert_eq!(acpi::cpus(&fake, &root, |_| {}).unwrap_err(), short);
    // One that is nothing but its head, of a kind that we do not know.
    assert_eq!(count(&[0x7f, 2, 0x7f, 2]), Ok(0));
    for length in [0, 1] {
        assert_eq!(count(&[0x7f, length, 0, 0]), Err(Flaw::Structure { offset: 44, length }));
    }
    assert_eq!(count(&[0x7f]), Err(Flaw::Structure { offset: 44, length: 0 }), "a byte alone");
    let gicc = |length: u8| {
        let mut structure = vec![0; usize::from(length)];
        structure[..2].copy_from_slice(&[0x0b, length]);
        structure
    };
    assert_eq!(count(&[gicc(76), gicc(82), gicc(76)].concat()), Ok(3));
    assert_eq!(count(&gicc(75)), Err(Flaw::Structure { offset: 44, length: 75 }));
}

/// A device tree by hand, token by token.
#[derive(Default)]
struct ByHand {
    structure: Vec<u8>,
    strings: Vec<u8>,
    reservations: Vec<[u64; 2]>,
}

impl ByHand {
    fn word(&mut self, word: u32) -> &mut Self {
        self.structure.extend(word.to_be_bytes());
        self
    }

    fn begin(&mut self, name: &str) -> &mut Self {
        self.word(1);
        self.structure.extend(name.as_bytes());
        self.structure.push(0);
        self.pad()
    }

    fn end(&mut self) -> &mut Self {
        self.word(2)
    }

    fn property(&mut self, name: &str, value: &[u8]) -> &mut Self {
        let at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.word(3).word(value.len() as u32).word(at);
        self.structure.extend(value);
        self.pad()
    }

    fn pad(&mut self) -> &mut Self {
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
        self
    }

    fn finish(&mut self) -> Vec<u8> {
        self.word(9);
        let reservations: Vec<u8> =
            self.reservations.iter().chain(&[[0, 0]]).flatten().flat_map(|word| word.to_be_bytes()).collect();
        let structure = 40 + reservations.len();
        let strings = structure + self.structure.len();
        let size = strings + self.strings.len();
        let header = [0xd00d_feed, size, structure, strings, 40, 17, 16, 0, self.strings.len(), self.structure.len()];
        let header = header.iter().flat_map(|&field| (field as u32).to_be_bytes()).collect();
        [header, reservations, self.structure.clone(), self.strings.clone()].concat()
    }
}

/// The affinities of those that `tree` takes for CPUs, and the new tree.
fn named(tree: &[u8], cpus: usize) -> (Vec<u64>, Vec<u8>) {
    let mut to = vec![0; tree::room(tree, cpus)];
    let asked = core::cell::RefCell::new(Vec::new());
    let reserved = Range { start: Pa(0x4800_0000), size: 0x1000 };
    let size = tree::name_mailboxes(tree, &mut to, reserved, |mpidr| {
        asked.borrow_mut().push(mpidr);
        Whereabouts::Parked(Pa(0x4800_0000))
    });
    to.truncate(size.expect("it is written"));
    (asked.into_inner(), to)
}

const CPU: &[u8] = b"cpu\0";

/// Whose number has 64 bits, among nodes that say other things of cells, and others that call themselves CPUs.
#[test]
fn a_cpu_is_what_the_cpus_node_has() {
    let wide = |number: u64| number.to_be_bytes();
    let mut tree = ByHand::default();
    tree.begin("").property("#address-cells", &[0, 0, 0, 1]).begin("before").property("#address-cells", &[0, 0, 0, 1]);
    tree.begin("cpu@7").property("device_type", CPU).property("reg", &wide(7)).end().end();
    tree.begin("cpus").property("#address-cells", &[0, 0, 0, 2]).property("#size-cells", &[0, 0, 0, 1]);
    tree.begin("map").property("#address-cells", &[0, 0, 0, 1]).end();
    tree.word(4).begin("cpu@100000001").property("device_type", CPU).word(4).property("reg", &wide(1 << 32 | 1)).end();
    tree.begin("cpu@2")
        .property("device_type", CPU)
        .property("reg", &wide(2))
        .property("status", b"okay\0")
        .end()
        .end();
    tree.end();
    let (asked, new) = named(&tree.finish(), 2);
    assert_eq!(asked, [1 << 32 | 1, 2]);
    let changed = new.windows(23).filter(|bytes| bytes == b"spin-table\0undercroft,m").count();
    assert_eq!(changed, 2);
    let mut tree = ByHand::default();
    tree.begin("").begin("cpus").property("#address-cells", &[0, 0, 0, 1]).property("#size-cells", &[0, 0, 0, 0]);
    tree.begin("cpu@3").property("device_type", CPU).property("reg", &[0, 0, 0, 3]).end().end().end();
    assert_eq!(named(&tree.finish(), 1).0, [3]);
}

/// The room that is asked for is what CPUs take that said nothing of it before, and eight bytes.
#[test]
fn the_room_is_what_it_takes() {
    for (cpus, reservations) in [(0, 0), (1, 0), (1, 3), (5, 1)] {
        let mut tree = ByHand { reservations: vec![[0x4000_0000, 0x1000]; reservations], ..ByHand::default() };
        tree.begin("").begin("cpus").property("#address-cells", &[0, 0, 0, 1]);
        for cpu in 0..cpus {
            tree.begin("cpu").property("device_type", CPU).property("reg", &[0, 0, 0, cpu as u8]).end();
        }
        let tree = tree.end().end().finish();
        let (asked, new) = named(&tree, cpus);
        assert_eq!((asked.len(), new.len() + 8), (cpus, tree::room(&tree, cpus)), "{cpus} CPUs");
    }
}

/// A range that begins at address 0 is one, as is one without a size that does not.
#[test]
fn reservations_end_with_an_empty_one() {
    let kept = [[0, 0x1000], [0x4000_0000, 0], [0x5000_0000, 0x2000]];
    let mut tree = ByHand { reservations: kept.to_vec(), ..ByHand::default() };
    let (_, new) = named(&tree.begin("").end().finish(), 0);
    let word = |at: usize| u64::from_be_bytes(new[at..at + 8].try_into().expect("8 bytes"));
    let found: Vec<[u64; 2]> = (0..5).map(|index| [word(40 + 16 * index), word(48 + 16 * index)]).collect();
    assert_eq!(found, [&kept[..], &[[0x4800_0000, 0x1000], [0, 0]]].concat());
}

/// A mailbox that is a CPU's by its tree is found there by whoever reads that tree.
#[test]
fn the_reader_finds_each_mailbox() {
    let mut tree = super::trees::QEMU.to_vec();
    let at = tree.windows(5).rposition(|bytes| bytes == b"psci\0").expect("a method");
    tree[at] = b'q';
    let (asked, new) = named(&tree, 4);
    assert_eq!(asked, [0, 1, 2, 3]);
    let platform = Platform::from_device_tree(&new, Pa(0x4000_0000)).expect("it is a tree");
    assert!(platform.cpus.iter().all(|cpu| cpu.boot == BootMethod::Mailbox(Pa(0x4800_0000))), "{:?}", platform.cpus);
}
