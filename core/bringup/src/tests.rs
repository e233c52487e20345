//! A machine in memory, with the tables of QEMU's `virt`, whose CPUs come, or do not.

extern crate std;

mod exact;
mod trees;

use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;
use std::{assert, assert_eq, format};

use platform::Conduit;
use proptest::prelude::*;
use units::{Pa, Range};

use crate::acpi::{self, Flaw, Memory, Oem, Root};
use crate::convert::{Boots, Conversion, Failure, Machine, Outcome, convert};
use crate::mailbox;
use crate::original::{KnownPlatform, StartProtocol};

const RSDP: u64 = 0x4c43_0018;
const XSDT: u64 = 0x4c43_fe98;
const FADT: u64 = 0x4c43_fa98;
const MADT: u64 = 0x4c43_fc18;
/// Where the first structure of the MADT is that describes a CPU: behind the Distributor's.
const FIRST_GICC: usize = 44 + 24;
const GICC_SIZE: usize = 80;

const SMC: [(u64, &[u8]); 4] = [
    (RSDP, include_bytes!("../testdata/qemu-smc/RSDP.4c430018")),
    (XSDT, include_bytes!("../testdata/qemu-smc/XSDT.4c43fe98")),
    (FADT, include_bytes!("../testdata/qemu-smc/FACP.4c43fa98")),
    (MADT, include_bytes!("../testdata/qemu-smc/APIC.4c43fc18")),
];
const HVC: [(u64, &[u8]); 4] = [
    (RSDP, include_bytes!("../testdata/qemu-hvc/RSDP.4c430018")),
    (XSDT, include_bytes!("../testdata/qemu-hvc/XSDT.4c43fe98")),
    (FADT, include_bytes!("../testdata/qemu-hvc/FACP.4c43fa98")),
    (MADT, include_bytes!("../testdata/qemu-hvc/APIC.4c43fc18")),
];

/// What was done, in its order.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Mailbox(u64),
    Sent(u64, StartProtocol, u64),
    Announced(u64),
    Changed(u64),
}

/// How a CPU behaves that is sent to a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Behaviour {
    ComesAfter(u32),
    Refuses(i64),
    NeverComes,
}

#[derive(Clone)]
struct Fake {
    memory: BTreeMap<u64, Vec<u8>>,
    read_only: Vec<u64>,
    next: u64,
    pages: usize,
    behaviours: BTreeMap<u64, Behaviour>,
    sent: Vec<(u64, u64, u32)>,
    looks: u32,
    patience: u32,
    level: u8,
    is_preset: bool,
    steps: Vec<Step>,
}

impl Fake {
    fn new(tables: &[(u64, &[u8])]) -> Self {
        Self {
            memory: tables.iter().map(|&(at, bytes)| (at, bytes.to_vec())).collect(),
            read_only: Vec::new(),
            next: 0x4800_0000,
            pages: 100,
            behaviours: BTreeMap::new(),
            sent: Vec::new(),
            looks: 0,
            patience: 5,
            level: 2,
            is_preset: false,
            steps: Vec::new(),
        }
    }

    fn table(&mut self, at: u64) -> &mut Vec<u8> {
        self.memory.get_mut(&at).expect("there is a table")
    }

    /// Makes a table's checksum right after it was changed by a test.
    fn seal(&mut self, at: u64) {
        let table = self.table(at);
        table[9] = 0;
        let sum = table.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        table[9] = sum.wrapping_neg();
    }

    fn gicc(&mut self, index: usize) -> &mut [u8] {
        let from = FIRST_GICC + index * GICC_SIZE;
        &mut self.table(MADT)[from..from + GICC_SIZE]
    }

    fn convert(&mut self) -> Result<Conversion, Failure> {
        convert(self, Pa(RSDP), Boots { mpidr: 0, level: 2 }, &[])
    }

    fn outcomes(&mut self) -> Vec<Outcome> {
        self.convert().expect("it is converted").cpus.iter().map(|&(_, outcome)| outcome).collect()
    }

    fn find(&self, range: Range<Pa>) -> Option<(u64, usize)> {
        let (&at, bytes) = self.memory.range(..=range.start.0).next_back()?;
        let from = (range.start.0 - at) as usize;
        (from + range.size as usize <= bytes.len()).then_some((at, from))
    }
}

impl Memory for Fake {
    fn read(&self, range: Range<Pa>) -> Option<&[u8]> {
        let (at, from) = self.find(range)?;
        self.memory[&at].get(from..from + range.size as usize)
    }

    fn write(&mut self, range: Range<Pa>) -> Option<&mut [u8]> {
        let (at, from) = self.find(range)?;
        if self.read_only.contains(&at) {
            return None;
        }
        self.steps.push(Step::Changed(at));
        self.memory.get_mut(&at)?.get_mut(from..from + range.size as usize)
    }

    fn allocate(&mut self, bytes: u64) -> Option<Pa> {
        self.pages = self.pages.checked_sub(1)?;
        let at = self.next;
        self.next += bytes.next_multiple_of(4096);
        self.memory.insert(at, vec![0; bytes as usize]);
        Some(Pa(at))
    }
}

impl Machine for Fake {
    fn publish(&mut self, mailbox: Pa) {
        let bytes = &self.memory[&mailbox.0];
        let own = mailbox::OWN_NUMBER..mailbox::OWN_NUMBER + 4;
        let number =
            if self.is_preset { u32::from_le_bytes(bytes[own.clone()].try_into().unwrap()) } else { mailbox::NOBODY };
        assert_eq!((&bytes[..16], bytes.len()), (mailbox::fresh(number).as_slice(), 4096));
        // But for whose it is there is nothing else.
        assert!(
            bytes
                .iter()
                .enumerate()
                .skip(16)
                .all(|(at, &byte)| byte == 0 || (mailbox::OWN_NUMBER..mailbox::NEXT + 8).contains(&at))
        );
        self.steps.push(Step::Mailbox(mailbox.0));
    }

    fn send(&mut self, mpidr: u64, original: StartProtocol, mailbox: Pa) -> Result<(), i64> {
        let behaviour = self.behaviours.get(&mpidr).copied().unwrap_or(Behaviour::ComesAfter(0));
        self.steps.push(Step::Sent(mpidr, original, mailbox.0));
        match behaviour {
            Behaviour::Refuses(code) => return Err(code),
            Behaviour::ComesAfter(looks) => self.sent.push((mpidr, mailbox.0, looks)),
            Behaviour::NeverComes => {}
        }
        Ok(())
    }

    fn announcement(&mut self, mailbox: Pa) -> u64 {
        let has_come = self.sent.iter().any(|&(_, at, looks)| at == mailbox.0 && looks < self.looks);
        if has_come {
            self.steps.push(Step::Announced(mailbox.0));
        }
        if has_come { mailbox::announced(self.level) } else { 0 }
    }

    fn is_late(&mut self) -> bool {
        self.looks += 1;
        self.looks > self.patience
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// P7-A1, P7-A2: QEMU's tables, by SMC and by HVC.
#[test]
fn p7_a1_each_cpu_has_a_mailbox_and_nothing_else_has_changed() {
    for (tables, conduit) in [(SMC, Conduit::Smc), (HVC, Conduit::Hvc)] {
        let mut fake = Fake::new(&tables);
        let root = Root::new(&fake, Pa(RSDP)).expect("there is a root");
        assert_eq!(acpi::psci(&fake, &root), Ok(Some(conduit)));
        let before = fake.memory.clone();
        let mailboxes = [0x4800_0000, 0x4800_1000, 0x4800_2000];
        let parked = mailboxes.map(|at| Outcome::Parked(Pa(at)));
        assert_eq!(fake.outcomes(), [[Outcome::Boots].as_slice(), &parked].concat());
        for step in [(1, mailboxes[0]), (2, mailboxes[1]), (3, mailboxes[2])] {
            assert!(fake.steps.contains(&Step::Sent(step.0, StartProtocol::Psci(conduit), step.1)), "{:?}", fake.steps);
        }
        // What is different, byte by byte.
        let (madt, fadt) = (&fake.memory[&MADT], &fake.memory[&FADT]);
        let mut expected = before[&MADT].clone();
        for (index, at) in mailboxes.into_iter().enumerate() {
            let gicc = &mut expected[FIRST_GICC + (index + 1) * GICC_SIZE..];
            gicc[16..20].copy_from_slice(&1_u32.to_le_bytes());
            gicc[24..32].copy_from_slice(&at.to_le_bytes());
        }
        expected[9] = madt[9];
        assert_eq!(*madt, expected);
        let mut expected = before[&FADT].clone();
        expected[129] &= !3;
        expected[9] = fadt[9];
        assert_eq!(*fadt, expected);
        assert_eq!([sum(madt), sum(fadt)], [0, 0]);
        assert_eq!((&fake.memory[&RSDP], &fake.memory[&XSDT]), (&before[&RSDP], &before[&XSDT]));
        // Nobody finds PSCI any more, and all find the mailboxes.
        let root = Root::new(&fake, Pa(RSDP)).expect("there is a root");
        assert_eq!(acpi::psci(&fake, &root), Ok(None));
        let mut found = Vec::new();
        acpi::cpus(&fake, &root, |gicc| found.push((gicc.number, gicc.mpidr, gicc.is_enabled, gicc.parking())))
            .expect("a MADT");
        let expected = [None, Some(mailboxes[0]), Some(mailboxes[1]), Some(mailboxes[2])];
        let expected: Vec<_> =
            (0..).zip(expected).map(|(index, at)| (index, u64::from(index), true, at.map(Pa))).collect();
        assert_eq!(found, expected);
    }
}

/// P7-A12.
#[test]
fn p7_a12_parse_create_park_modify() {
    let mut fake = Fake::new(&SMC);
    fake.behaviours.insert(2, Behaviour::ComesAfter(3));
    fake.convert().expect("it is converted");
    let place = |wanted: &dyn Fn(&Step) -> bool| {
        let places: Vec<_> = fake.steps.iter().enumerate().filter(|(_, step)| wanted(step)).map(|(at, _)| at).collect();
        assert!(!places.is_empty(), "{:?}", fake.steps);
        (places[0], places[places.len() - 1])
    };
    let mailboxes = place(&|step| matches!(step, Step::Mailbox(_)));
    let sent = place(&|step| matches!(step, Step::Sent(..)));
    let announced = place(&|step| matches!(step, Step::Announced(_)));
    let changed = place(&|step| matches!(step, Step::Changed(MADT | FADT)));
    assert!(mailboxes.1 < sent.0 && sent.1 < announced.0 && announced.1 < changed.0, "{:?}", fake.steps);
}

/// P7-A6: the firmware's own mailboxes stay, and stay in use.
#[test]
fn p7_a6_what_is_parked_already_is_left() {
    let mut fake = Fake::new(&SMC);
    fake.table(FADT)[129] = 0;
    fake.seal(FADT);
    for index in 1..4 {
        fake.gicc(index)[16] = 1;
        fake.gicc(index)[24..32].copy_from_slice(&(0x5000_0000 + index as u64 * 0x1000).to_le_bytes());
    }
    // A version without an address, and an address without a version, are no mailbox.
    fake.gicc(2)[16] = 0;
    fake.gicc(3)[24..32].fill(0);
    fake.seal(MADT);
    let before = fake.memory.clone();
    let outcomes = fake.outcomes();
    assert_eq!(outcomes, [Outcome::Boots, Outcome::WasParked(Pa(0x5000_1000)), Outcome::Unknown, Outcome::Unknown]);
    assert!(!fake.steps.iter().any(|step| matches!(step, Step::Sent(..) | Step::Mailbox(_))));
    assert_eq!(fake.gicc(1).to_vec(), before[&MADT][FIRST_GICC + GICC_SIZE..][..GICC_SIZE]);
    // Those of whom nobody knows how they wait are not offered.
    assert_eq!((fake.gicc(2)[12] & 1, fake.gicc(3)[12] & 1), (0, 0));
    assert_eq!((sum(&fake.memory[&MADT]), &fake.memory[&FADT]), (0, &before[&FADT]));
}

/// P7-A5, as far as it can be told by tables.
#[test]
fn p7_a5_a_platform_of_its_own_is_known_by_its_maker() {
    let mut fake = Fake::new(&SMC);
    fake.table(FADT)[129] = 0;
    fake.seal(FADT);
    let root = Root::new(&fake, Pa(RSDP)).expect("there is a root");
    let oem = root.find(&fake, "MADT").expect("a MADT").oem(&fake).expect("a maker");
    assert_eq!(oem, Oem { id: *b"BOCHS ", table: *b"BXPC    " });
    let others = [
        KnownPlatform { oem: Oem { id: *b"BOCHS!", ..oem } },
        KnownPlatform { oem: Oem { table: *b"BXPC   !", ..oem } },
        KnownPlatform { oem },
    ];
    let report =
        convert(&mut fake.clone(), Pa(RSDP), Boots { mpidr: 0, level: 2 }, &others[..2]).expect("it is converted");
    assert_eq!(report.cpus[1].1, Outcome::Unknown);
    let report = convert(&mut fake, Pa(RSDP), Boots { mpidr: 0, level: 2 }, &others).expect("it is converted");
    assert_eq!(report.cpus[1].1, Outcome::Parked(Pa(0x4800_0000)));
    assert!(fake.steps.contains(&Step::Sent(1, StartProtocol::Custom(2), 0x4800_0000)));
}

/// P7-A9: who does not come is disabled, and the others work.
#[test]
fn p7_a9_who_does_not_come_is_disabled() {
    let mut fake = Fake::new(&SMC);
    fake.behaviours.insert(1, Behaviour::NeverComes);
    fake.behaviours.insert(2, Behaviour::Refuses(-2));
    // In the last look that there is.
    fake.behaviours.insert(3, Behaviour::ComesAfter(5));
    fake.gicc(1)[12] |= 8;
    fake.seal(MADT);
    let outcomes = fake.outcomes();
    assert_eq!(outcomes[1..], [Outcome::Late, Outcome::Refused(-2), Outcome::Parked(Pa(0x4800_2000))]);
    let flags: Vec<_> = (0..4).map(|index| fake.gicc(index)[12] & 9).collect();
    assert_eq!(flags, [1, 0, 0, 1]);
    assert!(fake.gicc(1)[24..32].iter().all(|&byte| byte == 0) && fake.gicc(1)[16] == 0);
    assert_eq!(sum(&fake.memory[&MADT]), 0);
}

#[test]
fn the_boot_cpu_and_disabled_ones_are_left() {
    let mut fake = Fake::new(&SMC);
    fake.gicc(1)[12] = 0;
    fake.seal(MADT);
    let report = convert(&mut fake, Pa(RSDP), Boots { mpidr: 3, level: 2 }, &[]).expect("it is converted");
    let outcomes: Vec<_> = report.cpus.iter().map(|&(_, outcome)| outcome).collect();
    let parked = |at| Outcome::Parked(Pa(at));
    assert_eq!(outcomes, [parked(0x4800_0000), Outcome::Disabled, parked(0x4800_1000), Outcome::Boots]);
    assert_eq!(fake.gicc(1)[12], 0);
    assert_eq!(fake.gicc(3)[16], 0);
}

#[test]
fn without_memory_for_a_mailbox_a_cpu_is_disabled() {
    let mut fake = Fake::new(&SMC);
    fake.pages = 2;
    assert_eq!(fake.outcomes()[3], Outcome::NoMailbox);
    assert_eq!(fake.gicc(3)[12] & 1, 0);
}

#[test]
fn a_table_that_cannot_be_written_is_copied_and_named() {
    let mut fake = Fake::new(&SMC);
    fake.read_only = vec![MADT, FADT];
    let before = fake.memory.clone();
    fake.convert().expect("it is converted");
    assert_eq!([&fake.memory[&MADT], &fake.memory[&FADT]], [&before[&MADT], &before[&FADT]]);
    let root = Root::new(&fake, Pa(RSDP)).expect("there is a root");
    assert_eq!(acpi::psci(&fake, &root), Ok(None));
    let madt = root.find(&fake, "MADT").expect("a MADT");
    assert_eq!((madt.range().start, madt.length()), (Pa(0x4800_3000), before[&MADT].len() as u32));
    assert_eq!((sum(&fake.memory[&XSDT]), sum(&fake.memory[&0x4800_3000]), sum(&fake.memory[&0x4800_4000])), (0, 0, 0));
    // The other entries of the XSDT stand where they stood.
    let entries = |bytes: &[u8]| bytes[36..].chunks(8).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (old, new) = (entries(&before[&XSDT]), entries(&fake.memory[&XSDT]));
    assert_eq!(old.iter().zip(&new).filter(|(old, new)| old != new).count(), 2);
    // And an XSDT that cannot be written is copied, too, and named by the RSDP, by both of its checksums.
    let mut fake = Fake::new(&SMC);
    fake.read_only = vec![MADT, FADT, XSDT];
    fake.convert().expect("it is converted");
    assert_eq!(fake.memory[&XSDT], before[&XSDT]);
    assert_eq!((sum(&fake.memory[&RSDP]), sum(&fake.memory[&RSDP][..20])), (0, 0));
    let root = Root::new(&fake, Pa(RSDP)).expect("there is a root");
    assert_eq!(acpi::psci(&fake, &root), Ok(None));
    // Not if the RSDP cannot be written either, or there is no memory.
    let mut fake = Fake::new(&SMC);
    fake.read_only = vec![MADT, FADT, XSDT, RSDP];
    assert_eq!(fake.convert(), Err(Failure::Change(Flaw::NoRoom { table: "RSDP" })));
    let mut fake = Fake::new(&SMC);
    (fake.read_only, fake.pages) = (vec![MADT], 3);
    assert_eq!(fake.convert(), Err(Failure::Change(Flaw::NoRoom { table: "MADT" })));
    assert_eq!(fake.memory[&FADT], before[&FADT], "PSCI goes only with the mailboxes");
}

/// P7-A10: each is refused with its reason, and nothing has happened.
#[test]
fn p7_a10_malformed_tables_are_refused() {
    type Break = fn(&mut Fake);
    let resealed: [(&str, Break); 12] = [
        ("RSDP: there is another signature at 0x4c430018", |fake| fake.table(RSDP)[0] = b'r'),
        ("the RSDP is of revision 1: there is no XSDT", |fake| fake.table(RSDP)[15] = 1),
        ("RSDP: its checksum is wrong", |fake| fake.table(RSDP)[9] ^= 1),
        ("RSDP: its checksum is wrong", |fake| fake.table(RSDP)[33] ^= 1),
        ("MADT: its checksum is wrong", |fake| fake.table(MADT)[100] ^= 1),
        ("XSDT: its checksum is wrong", |fake| fake.table(XSDT)[40] ^= 1),
        ("MADT: the structure at offset 148 says that it has 0 bytes", |fake| {
            fake.gicc(1)[1] = 0;
            fake.seal(MADT);
        }),
        ("MADT: the structure at offset 148 says that it has 1 bytes", |fake| {
            fake.gicc(1)[1] = 1;
            fake.seal(MADT);
        }),
        ("MADT: the structure at offset 148 says that it has 75 bytes", |fake| {
            fake.gicc(1)[1] = 75;
            fake.seal(MADT);
        }),
        ("MADT: the structure at offset 44 says that it has 24 bytes", |fake| {
            fake.table(MADT)[4..8].copy_from_slice(&60_u32.to_le_bytes());
            fake.table(MADT).truncate(60);
            fake.seal(MADT);
        }),
        ("FADT: it has 130 bytes, and must have 131", |fake| {
            fake.table(FADT)[4..8].copy_from_slice(&130_u32.to_le_bytes());
            fake.table(FADT).truncate(130);
            fake.seal(FADT);
        }),
        ("there is no MADT", |fake| {
            fake.table(MADT)[0] = b'X';
            fake.seal(MADT);
        }),
    ];
    for (reason, damage) in resealed {
        let mut fake = Fake::new(&SMC);
        damage(&mut fake);
        let before = fake.memory.clone();
        let failure = fake.convert().expect_err(reason).to_string();
        assert_eq!(failure, format!("the description is not converted: {reason}"));
        assert!(fake.memory == before && fake.steps.is_empty(), "{reason}: {:?}", fake.steps);
    }
}

#[test]
fn tables_that_lead_out_of_memory_are_refused() {
    let mut fake = Fake::new(&SMC);
    fake.table(RSDP)[31] = 0xff;
    fake.table(RSDP)[32] = fake.memory[&RSDP][32].wrapping_add(1);
    let failure = fake.convert().expect_err("it leads nowhere").to_string();
    assert!(failure.contains("XSDT: nothing can be read at 0xff0000004c43fe98"), "{failure}");
    for length in [0_u32, 35, u32::MAX, 1 << 20 | 1, 425] {
        let mut fake = Fake::new(&SMC);
        fake.table(MADT)[4..8].copy_from_slice(&length.to_le_bytes());
        fake.seal(MADT);
        let failure = fake.convert().expect_err("it is no length").to_string();
        let expected =
            if length == 425 { String::from("nothing can be read") } else { format!("it has {length} bytes") };
        assert!(failure.contains("MADT: ") && failure.contains(&expected), "{failure}");
    }
}

/// More CPUs than there is room for: the first are converted.
#[test]
fn cpus_beyond_the_most_are_left_out() {
    let mut fake = Fake::new(&SMC);
    let gicc = fake.gicc(1).to_vec();
    for number in 4_u32..70 {
        let mut another = gicc.clone();
        another[4..8].copy_from_slice(&number.to_le_bytes());
        another[68..72].copy_from_slice(&number.to_le_bytes());
        // Before the Redistributors' structure and others, which may stand anywhere.
        let table = fake.table(MADT);
        table.splice(FIRST_GICC..FIRST_GICC, another);
    }
    let length = fake.memory[&MADT].len() as u32;
    fake.table(MADT)[4..8].copy_from_slice(&length.to_le_bytes());
    fake.seal(MADT);
    let report = fake.convert().expect("it is converted");
    assert_eq!((report.cpus.len(), report.left_out), (64, 6));
    assert_eq!(sum(&fake.memory[&MADT]), 0);
}

/// P7-A7: what is not all there lets nobody go.
#[test]
fn p7_a7_number_and_address_let_a_cpu_go() {
    let goes = |number, address| mailbox::lets_go(3, number, address);
    assert_eq!(goes(3, 0x4000_0000), Some(Pa(0x4000_0000)));
    assert_eq!([goes(2, 0x4000_0000), goes(mailbox::NOBODY, 0x4000_0000), goes(3, 0)], [None; 3]);
    assert_eq!(mailbox::lets_go(mailbox::NOBODY, mailbox::NOBODY, 1), None);
    assert_eq!(mailbox::lets_go(0, 0, 1), Some(Pa(1)));
}

proptest! {
    /// Any byte of any table changed, with the checksums made right again: it is converted or refused, never written beyond what may
    /// change, and if it is refused then nothing was.
    #[test]
    fn any_byte_of_the_tables_may_be_wrong(table in 0_usize..4, at in 0_usize..424, value: u8, reseal: bool, other in 0_usize..424) {
        let mut fake = Fake::new(&SMC);
        let place = SMC[table].0;
        for at in [at, other] {
            let bytes = fake.table(place);
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if reseal && place != RSDP {
            fake.seal(place);
        }
        let before = fake.memory.clone();
        match fake.convert() {
            Ok(_) => {
                prop_assert_eq!(&fake.memory[&RSDP], &before[&RSDP]);
                prop_assert_eq!(&fake.memory[&XSDT], &before[&XSDT]);
                prop_assert_eq!((sum(&fake.memory[&MADT]), sum(&fake.memory[&FADT])), (0, 0));
            }
            Err(Failure::Description(_)) => prop_assert!(fake.memory == before && fake.steps.is_empty()),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
