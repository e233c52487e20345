//! Random VMs come back, written again they are the same bytes, and no damage of any kind goes unnoticed.

mod pieces;
mod sections;
mod vms;

use std::boxed::Box;
use std::format;
use std::println;
use std::string::String;
use std::vec;
use std::vec::Vec;

use abi::bundle::testing::largest;
use abi::bundle::{Doors, Quota, Vm};
use abi::crc32c;
use cpu::saved::Name;
use pack::Boxed;
use proptest::prelude::*;
use vmware::saved::{SavedService, SavedValue};

use super::{Content, Description, FileError, HEAD, HEADER, Kind, PAGE, Reader, SavedMoment, Section, Writer};
use crate::bounds::{HEAP_TO_READ, HEAP_TO_WRITE};
use crate::tests::{any_vm, vm};
use crate::{SavedMachine, SavedVcpu, SavedVm};

/// Pages, each by one number: the word that it holds again and again, or one of which every third byte is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
    Word(u64),
    Bytes(u8),
}

fn page(page: Page) -> Box<[u8; PAGE]> {
    let mut bytes = Box::new([0; PAGE]);
    match page {
        Page::Word(word) => bytes.as_chunks_mut::<8>().0.fill(word.to_le_bytes()),
        Page::Bytes(value) => bytes.iter_mut().step_by(3).for_each(|byte| *byte = value),
    }
    bytes
}

/// So many pages that are alike, one after the other.
type Pages = Vec<(Page, u64)>;

fn any_pages() -> impl Strategy<Value = Pages> {
    let content = prop_oneof![
        3 => Just(Page::Word(0)),
        1 => (0..3_u64).prop_map(Page::Word),
        4 => (1..9_u8).prop_map(Page::Bytes),
    ];
    prop::collection::vec((content, prop_oneof![3 => Just(1), 1 => 1..99_u64]), 0..200)
}

fn moment() -> SavedMoment {
    SavedMoment { microseconds: 1_700_000_000_000_000, is_known: true }
}

/// A VM whose memory holds `pages`, and zeros up to a whole number of blocks.
fn written(state: &SavedVm, pages: &Pages) -> Vec<u8> {
    written_with(Doors { vmware: true, ..Doors::default() }, state, pages)
}

/// As well, with these doors.
fn written_with(doors: Doors, state: &SavedVm, pages: &Pages) -> Vec<u8> {
    let count: u64 = pages.iter().map(|(_, count)| count).sum();
    let memory = (count * PAGE as u64).next_multiple_of(units::BLOCK_SIZE).max(units::BLOCK_SIZE);
    let mut state = state.clone();
    state.machine.memory = memory;
    let description: Description<'_> = Vm { vcpus: 2, doors, ..Vm::new("guest", (), memory) };
    let mut writer = Writer::new(crc32c::compute);
    let mut bytes = writer.begin(&description, &state.machine, moment()).unwrap();
    bytes.extend(writer.state(&state).unwrap());
    for &(content, count) in pages {
        bytes.extend(writer.memory(Content::Page(&page(content)), count).unwrap());
    }
    let rest = memory / PAGE as u64 - count;
    if rest > 0 {
        bytes.extend(writer.memory(Content::Fill(0), rest).unwrap());
    }
    bytes.extend(writer.end().unwrap());
    bytes
}

/// What a file holds, or what is wrong with it; read in pieces of `step` bytes.
#[derive(Default, Debug)]
struct Read {
    vm: String,
    machine: Option<SavedMachine>,
    pages: u64,
    memory: Vec<(u64, u64, Vec<u8>)>,
    state: Option<SavedVm>,
    is_whole: bool,
    again: Vec<u8>,
    /// Where sections end.
    ends: Vec<usize>,
}

fn read(bytes: &[u8], step: usize) -> Result<Read, FileError> {
    let mut reader = Reader::new(crc32c::compute);
    let mut writer = Writer::new(crc32c::compute);
    let (mut read, mut at) = (Read::default(), 0);
    let (mut description, mut machine) = (None, None);
    for piece in bytes.chunks(step) {
        let mut input = piece;
        while let Some(section) = reader.read(&mut input)? {
            match section {
                Section::Vm(vm) => {
                    read.vm = vm.name.into();
                    description = Some((vm.vcpus, vm.memory, vm.doors));
                }
                Section::Machine(found) => machine = Some((*found).clone()),
                Section::Moment(moment) => {
                    let (vcpus, memory, doors) = description.unwrap();
                    let vm: Description<'_> = Vm { vcpus, doors, ..Vm::new(read.vm.as_str(), (), memory) };
                    let begin = writer.begin(&vm, machine.as_ref().unwrap(), moment).unwrap();
                    read.again.extend(begin);
                }
                Section::Memory(runs) => {
                    for run in runs {
                        assert_eq!(run.first, read.pages);
                        read.pages += run.count;
                        read.again.extend(writer.memory(run.content, run.count).unwrap());
                        let content = match run.content {
                            Content::Fill(word) => page(Page::Word(word)).to_vec(),
                            Content::Page(page) => page.to_vec(),
                        };
                        read.memory.push((run.first, run.count, content));
                    }
                }
                Section::State(state) => {
                    read.again.extend(writer.state(&state).unwrap());
                    read.state = Some((*state).clone());
                }
                Section::End => {
                    read.again.extend(writer.end().unwrap());
                    read.is_whole = true;
                }
            }
            read.ends.push(at + piece.len() - input.len());
        }
        at += piece.len();
    }
    reader.finish()?;
    read.machine = machine;
    Ok(read)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read_and_written_again(state in any_vm(), pages in any_pages(), step in 1..9000_usize) {
        let bytes = written(&state, &pages);
        let read = read(&bytes, step).unwrap();
        prop_assert!(read.is_whole && read.vm == "guest" && read.again == bytes);
        let found = read.state.unwrap();
        prop_assert_eq!(Some(&*found.machine), read.machine.as_ref());
        let expected = SavedVm { machine: found.machine.clone(), ..state };
        prop_assert_eq!(found, expected);
        // Page by page: what runs of them say, whichever they are.
        let flat = |runs: Vec<(Vec<u8>, u64)>| {
            let mut all: Vec<(Vec<u8>, u64)> = Vec::new();
            for (content, count) in runs {
                match all.last_mut() {
                    Some((last, sum)) if *last == content => *sum += count,
                    _ => all.push((content, count)),
                }
            }
            all
        };
        let count: u64 = pages.iter().map(|(_, count)| count).sum();
        let mut expected: Vec<_> = pages.iter().map(|&(content, count)| (page(content).to_vec(), count)).collect();
        if read.pages > count {
            expected.push((page(Page::Word(0)).to_vec(), read.pages - count));
        }
        let found = read.memory.into_iter().map(|(_, count, content)| (content, count)).collect();
        prop_assert!(flat(found) == flat(expected), "memory is another one");
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), keeps_header in any::<bool>()) {
        let mut all = if keeps_header { small()[..HEADER].to_vec() } else { Vec::new() };
        all.extend(bytes);
        prop_assert!(read(&all, 64).is_err());
    }
}

/// A file with a page of each sort.
fn small() -> Vec<u8> {
    let pages = [(Page::Bytes(7), 3), (Page::Word(5), 2), (Page::Bytes(8), 1), (Page::Word(0), 30)];
    written(&vm([1, 2, 3, 4], Vec::from([5; 9]), true), &Vec::from(pages))
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = small();
    for place in 0..good.len() {
        let mut bytes = good.clone();
        // All bits where there is a structure, one of each byte in what a checksum is over.
        let bits = if place < 2000 || place + 600 > good.len() { 0..8 } else { place % 8..place % 8 + 1 };
        for bit in bits {
            bytes[place] ^= 1 << bit;
            let found = read(&bytes, good.len()).err();
            let line = found.map(|error| format!("{error}")).unwrap_or_default();
            assert!(line.contains("damaged") || line.contains("no saved VM"), "byte {place}, bit {bit}: {line:?}");
            bytes[place] ^= 1 << bit;
        }
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_incomplete() {
    let good = small();
    for end in (0..good.len()).filter(|end| *end < 3000 || end % 7 == 0 || end + 300 > good.len()) {
        let expected = if end < 8 { FileError::NoSnapshot } else { FileError::Short(end as u64) };
        assert_eq!(read(&good[..end], 5000).err(), Some(expected), "{end}");
    }
    // And at the end of every section, where all that is there is whole.
    for end in read(&good, 100).unwrap().ends.into_iter().rev().skip(1) {
        assert_eq!(read(&good[..end], 5000).err(), Some(FileError::Short(end as u64)), "{end}");
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(read(&longer, 5000).err(), Some(FileError::Surplus));
}

/// Sections that are right in themselves, but missing, doubled, or in another order.
#[test]
fn sections_that_were_moved_are_noticed() {
    let pages = (1..40).map(|value| (Page::Bytes(value), 1)).collect();
    let good = written(&vm([1, 2, 3, 4], Vec::new(), false), &pages);
    let ends = read(&good, 100).unwrap().ends;
    let begins: Vec<usize> = [HEADER].into_iter().chain(ends.iter().copied()).collect();
    assert!(ends.len() >= 8, "there are three sections of memory: {ends:?}");
    let section = |number: usize| &good[begins[number]..ends[number]];
    for left_out in 0..ends.len() {
        let bytes = [&good[..begins[left_out]], &good[ends[left_out]..]].concat();
        let error = read(&bytes, 5000).err();
        let is_last = left_out + 1 == ends.len();
        let expected = if is_last { FileError::Short(bytes.len() as u64) } else { error.unwrap() };
        assert_eq!(error, Some(expected), "{left_out}");
        assert!(is_last || matches!(expected, FileError::Misplaced(..)), "{left_out}: {expected:?}");
    }
    for doubled in 0..ends.len() - 1 {
        let bytes = [&good[..ends[doubled]], &good[begins[doubled]..]].concat();
        assert!(matches!(read(&bytes, 5000), Err(FileError::Misplaced(..))), "{doubled}");
    }
    let swapped = [&good[..begins[4]], section(5), section(4), &good[begins[6]..]].concat();
    assert!(matches!(read(&swapped, 5000), Err(FileError::Misplaced("memory", 4))));
}

/// Whole sections, none of them damaged, of which the last pages are not there.
#[test]
fn an_end_behind_a_part_of_the_memory_is_noticed() {
    let mut state = vm([1, 2, 3, 4], Vec::new(), false);
    state.machine.memory = units::BLOCK_SIZE;
    let description: Description<'_> = Vm { vcpus: 2, ..Vm::new("guest", (), units::BLOCK_SIZE) };
    let mut writer = Writer::new(crc32c::compute);
    let mut bytes = writer.begin(&description, &state.machine, moment()).unwrap();
    bytes.extend(writer.state(&state).unwrap());
    bytes.extend(writer.memory(Content::Fill(0), 511).unwrap());
    bytes.extend(writer.end().unwrap());
    assert_eq!(read(&bytes, 5000).err(), Some(FileError::Pages(511, 512)));
}

/// A head or header that says something else, with a checksum that is right: by another release, or by somebody who means ill.
#[test]
fn what_is_another_releases_is_said_to_be() {
    let good = small();
    let ends = read(&good, 100).unwrap().ends;
    let forged = |place: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[place..place + bytes.len()].copy_from_slice(bytes);
        let (begin, length) = if place < HEADER { (0, 12) } else { (ends[1], 28) };
        let checksum = crc32c::compute(0, &file[begin..begin + length]).to_le_bytes();
        file[begin + length..begin + length + 4].copy_from_slice(&checksum);
        read(&file, 5000).unwrap_err()
    };
    // The third section is the moment.
    let at = ends[1];
    assert_eq!(&good[at..at + 6], b"moment");
    assert_eq!(forged(8, &[1]), FileError::Version(1));
    assert_eq!(forged(8, &[3]), FileError::Version(3));
    assert_eq!(forged(at + 12, &[2]), FileError::SectionVersion("moment", 2, 1));
    assert_eq!(forged(at, b"device"), FileError::Unknown(2));
    assert_eq!(forged(at, b"moments"), FileError::Unknown(2));
    assert_eq!(forged(at, b"memory"), FileError::Misplaced("memory", 2));
    assert_eq!(forged(at + 24, &[3]), FileError::Misplaced("moment", 2));
    assert_eq!(forged(at + 16, &[0, 0, 0, 0x80]), FileError::Long("moment"));
    assert_eq!(
        [64, 65].map(|length| forged(at + 16, &[length])),
        [FileError::Body("moment", 2), FileError::Long("moment")]
    );
    let text = format!("{}", FileError::SectionVersion("moment", 2, 1));
    assert!(text.ends_with("version 2; version 1 is known here: use the release that wrote it"), "{text}");
}

/// What a site file says of a VM's time is compared with its description: so its clock may say nothing else, and have no frequency that a
/// site file could not give it.
#[test]
fn a_clock_that_is_not_the_vms_is_refused() {
    let error_of = |rate, frequency| {
        let mut state = vm([1, 2, 3, 4], Vec::new(), true);
        (state.time.clock.rate, state.time.clock.frequency) = (rate, frequency);
        read(&written(&state, &Vec::new()), 5000).err()
    };
    for frequency in [1_000_000, 62_500_000, 1_000_000_000] {
        assert_eq!(error_of(1_000_000, frequency), None);
    }
    for frequency in [0, 999_999, 1_000_000_001, 62_500_000 + (1 << 32), u64::MAX] {
        assert_eq!(error_of(1_000_000, frequency), Some(FileError::Frequency(frequency)));
    }
    assert_eq!(error_of(10_000_000, 1_000_000), Some(FileError::Rate(10_000_000, 1_000_000)));
    let said = [FileError::Rate(10_000_000, 1_000_000), FileError::Frequency(7)].map(|error| format!("{error}"));
    assert_eq!(
        said[0],
        "the saved VM is damaged: its clock runs at a rate of 10.0, and it says that its time passes at 1.0"
    );
    assert!(said[1].ends_with("its clock counts at 7 Hz; a VM's counts at 1000000 to 1000000000 Hz"), "{}", said[1]);
}

/// Of pages that hold what the one before held, or one word, nothing but their number is written.
#[test]
fn pages_that_are_alike_take_no_room() {
    let state = vm([1, 2, 3, 4], Vec::new(), false);
    let none = written(&state, &Vec::from([(Page::Word(0), 512)])).len();
    assert_eq!(none - HEADER, read(&written(&state, &Vec::new()), 100).unwrap().again.len() - HEADER);
    let one = written(&state, &Vec::from([(Page::Bytes(1), 512)])).len();
    assert_eq!(one - none, 1 + PAGE + 1 + 8 - (1 + 8 + 8));
    let large = written(&state, &Vec::from([(Page::Word(0x0101), 1 << 24)])).len();
    // Its size itself takes some bytes more.
    assert!(large - none < 8, "64 GiB of one word: {large}, 2 MiB of zeros: {none}");
    assert!(none < HEADER + 6 * HEAD + 20_000, "{none}");
}

/// The hypervisor leaves itself so much of its heap, and no VM without VMware's calls takes more: written, and read again.
#[test]
fn what_is_left_for_it_is_enough_for_the_largest_state() {
    let mut state = vm([1, 2, 3, 4], Vec::new(), false);
    (state.machine.vcpus, state.machine.memory) = (8, units::BLOCK_SIZE);
    let mut vcpu = state.vcpus[0].clone();
    vcpu.registers.system = (0..38).map(|number| (Name::new(&format!("register{number}")), number)).collect();
    state.vcpus = (0..8).map(|number| SavedVcpu { number, ..vcpu.clone() }).collect();
    let longest = crate::bounds::of_state(8, &Doors::default());
    // As long as it may be, in a list that has grown.
    let mut devices = Vec::with_capacity(2 * crate::bounds::DEVICES);
    devices.resize(crate::bounds::DEVICES, 7);
    state.devices = devices;
    let description: Description<'_> = Vm { vcpus: 8, ..Vm::new("guest", (), units::BLOCK_SIZE) };
    let mut writer = Writer::new(crc32c::compute);
    let mut bytes = writer.begin(&description, &state.machine, moment()).unwrap();
    let (section, took) = scarce::most_held(|| writer.state(&state).unwrap());
    assert!((longest / 2..=longest).contains(&(section.len() - HEAD)), "{} of {longest}", section.len());
    let kept = state.devices.capacity() + 8 * (size_of::<SavedVcpu>() + 38 * size_of::<(Name, u64)>());
    println!("written with {took} bytes beside {kept}, of {HEAP_TO_WRITE}");
    assert!(took + kept <= HEAP_TO_WRITE, "{took} bytes beside {kept}");
    bytes.extend(section);
    let (memory, took) = scarce::most_held(|| {
        let mut out = Vec::new();
        for number in 0..512 {
            out.extend(writer.memory(Content::Page(&page(Page::Bytes(number as u8 | 1))), 1).unwrap());
        }
        out.extend(writer.end().unwrap());
        out
    });
    println!("memory of {} bytes is written with {took}", memory.len());
    bytes.extend(memory);
    let (_, took) = scarce::most_held(|| {
        let (mut reader, mut input, mut kept) = (Reader::new(crc32c::compute), &bytes[..], None);
        while let Some(section) = reader.read(&mut input).unwrap() {
            if let Section::State(found) = section {
                kept = Some(found);
            }
        }
        kept
    });
    println!("read with {took} bytes of {HEAP_TO_READ}");
    assert!(took <= HEAP_TO_READ, "{took} bytes");
    assert!(took >= HEAP_TO_READ / 2, "it asks for more than twice of what it needs: {took} bytes");
}

/// What the state of a VM may have follows from what its description lets its guest have: a longer one is refused by its length, and
/// none takes more memory than itself, what is made of it, and a section of memory.
#[test]
fn a_state_is_as_large_as_its_vms_at_most() {
    let mut state = vm([1, 2, 3, 4], Vec::new(), true);
    let value =
        |number: usize, length| SavedValue { key: format!("guestinfo.{number}").into(), value: vec![7; length] };
    let service = SavedService { store: (0..8).map(|number| value(number, 50_000)).collect(), ..Default::default() };
    state.calls = Some(Boxed::new(service).unwrap());
    let quota = |store| Doors { vmware: true, quota: Quota { store, ..Quota::USUAL }, ..Doors::default() };
    // What the messages on their way may have is in it too.
    let with = |doors| read(&written_with(doors, &state, &Vec::new()), 5000).err();
    assert_eq!(with(quota(400_000)), None);
    assert_eq!(with(Doors::default()), Some(FileError::Long("state")));
    let whole = written_with(quota(400_000), &state, &Vec::new());
    let longest = crate::bounds::of_state(2, &quota(400_000));
    let (_, most) = scarce::most_held(|| {
        let (mut reader, mut input) = (Reader::new(crc32c::compute), &whole[..]);
        let mut kept = None;
        while let Some(section) = reader.read(&mut input).unwrap() {
            if let Section::State(found) = section {
                kept = Some(found);
            }
        }
        kept
    });
    assert!(most < 2 * 400_000 + 100_000 && most < 2 * longest, "{most} bytes");
}

/// The bytes of a description describe nothing of themselves: of an older file, they would be taken for other fields. So whoever changes
/// what [`Vm`] holds hears here which number to raise.
#[test]
fn the_bytes_of_a_section_belong_to_its_version() {
    /// A version, and the checksum of this description in it. A row for each layout, the last one is today's.
    const LAYOUTS: [(u16, u32); 5] =
        [(4, 0xdc44_30e9), (5, 0xc769_eb61), (6, 0x82b3_70ec), (7, 0x0417_66b9), (8, 0x0d3b_34d4)];
    let vm: Description<'_> = largest((), Some(()));
    let mut room = [0; 256];
    let found = crc32c::compute(0, postcard::to_slice(&vm, &mut room).unwrap());
    let (version, known) = LAYOUTS[LAYOUTS.len() - 1];
    let today = Kind::Vm.version();
    assert!(LAYOUTS.is_sorted_by(|one, next| one.0 < next.0) && version <= today);
    assert!(
        found == known || version < today,
        "what a saved VM says of itself has changed, and the version of its section `vm` has not: raise `Kind::Vm`'s in \
         `Kind::version` (core/snapshot/src/file.rs); then add ({}, {found:#x}) here",
        today + 1
    );
    assert_eq!(found, known, "the version of the section `vm` was raised to {today}: add ({today}, {found:#x}) here");
}
