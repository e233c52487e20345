//! Files whose checksums are right, and whose sections are not of one VM; what its disks add to one; and what there is no memory for.

use std::vec;
use std::vec::Vec;

use abi::bundle::{Backend, Disk, Disks, Doors, Quota, Vm};
use abi::crc32c;
use pack::Boxed;
use units::BLOCK_SIZE;
use vmware::saved::{SavedService, SavedValue};

use super::super::{Content, Description, FileError, HEAD, HEADER, PAGES_OF_A_BLOCK, Reader, Section, Writer};
use super::{moment, small, written_with};
use crate::tests::vm;
use crate::{SavedVm, bounds};

fn described() -> Description<'static> {
    Vm { vcpus: 2, ..Vm::new("guest", (), BLOCK_SIZE) }
}

/// A state of a VM that is described so.
fn state() -> SavedVm {
    let mut state = vm([1, 2, 3, 4], Vec::new(), false);
    state.machine.memory = BLOCK_SIZE;
    state
}

/// A file of a VM that is described so, with a machine and a state of another one perhaps, and so many pages of memory.
fn file(description: &Description<'_>, of_machine: &SavedVm, state: &SavedVm, pages: u64) -> Vec<u8> {
    let mut writer = Writer::new(crc32c::compute);
    let mut bytes = writer.begin(description, &of_machine.machine, moment()).unwrap();
    bytes.extend(writer.state(state).unwrap());
    bytes.extend(writer.memory(Content::Fill(0), pages).unwrap());
    bytes.extend(writer.end().unwrap());
    bytes
}

/// What is wrong with a file, which is looked at a section at a time.
fn error_of(file: &[u8]) -> Option<FileError> {
    let (mut reader, mut input) = (Reader::new(crc32c::compute), file);
    loop {
        match reader.read(&mut input) {
            Ok(Some(_)) => {}
            Ok(None) => return reader.finish().err(),
            Err(error) => return Some(error),
        }
    }
}

#[test]
fn machine_and_state_are_those_of_the_vm_that_is_described() {
    let own = state();
    assert_eq!(error_of(&file(&described(), &own, &own, PAGES_OF_A_BLOCK)), None);
    let [mut larger, mut wider] = [own.clone(), own.clone()];
    larger.machine.memory = 2 * BLOCK_SIZE;
    wider.machine.vcpus = 3;
    for other in [larger, wider] {
        let error = |machine, state| error_of(&file(&described(), machine, state, PAGES_OF_A_BLOCK));
        assert_eq!(error(&other, &own), Some(FileError::Impossible("machine")));
        assert_eq!(error(&own, &other), Some(FileError::Impossible("state")));
    }
}

/// What was written to its disks lies behind its memory.
#[test]
fn the_pages_of_disks_belong_to_the_memory() {
    let disk = |serial, changes| Disk { backend: Backend::Image { image: (), changes }, serial };
    let disks = Disks::of([disk("a", 2 * BLOCK_SIZE), disk("b", 0), disk("c", BLOCK_SIZE)]).unwrap();
    let description = Description { disks, ..described() };
    let all = 4 * PAGES_OF_A_BLOCK;
    let whole = file(&description, &state(), &state(), all);
    assert_eq!(error_of(&whole), None);
    let (mut reader, mut input) = (Reader::new(crc32c::compute), &whole[..]);
    let Some(Section::Vm(found)) = reader.read(&mut input).unwrap() else {
        panic!("the first section says what it is")
    };
    assert_eq!(*found, description);
    let short = file(&description, &state(), &state(), PAGES_OF_A_BLOCK);
    assert_eq!(error_of(&short), Some(FileError::Pages(PAGES_OF_A_BLOCK, all)));
}

/// A number can be written with more bytes than it needs, which no writer does.
#[test]
fn a_description_is_read_in_one_form_only() {
    let good = file(&described(), &state(), &state(), PAGES_OF_A_BLOCK);
    let head = &good[HEADER..HEADER + HEAD];
    let length = u32::from_le_bytes(head[16..20].try_into().unwrap()) as usize;
    let (body, rest) = good[HEADER + HEAD..].split_at(length);
    let memory = body.windows(4).position(|bytes| *bytes == [0x80, 0x80, 0x80, 1]).unwrap() + 3;
    let longer = [&body[..memory], &[0x81, 0], &body[memory + 1..]].concat();
    let again: Description<'_> = postcard::from_bytes(&longer).unwrap();
    assert_eq!(again, described(), "it says the same");
    for body in [longer, [body, &[0]].concat()] {
        let mut head = head.to_vec();
        head[16..20].copy_from_slice(&(body.len() as u32).to_le_bytes());
        head[20..24].copy_from_slice(&crc32c::compute(0, &body).to_le_bytes());
        let checksum = crc32c::compute(0, &head[..28]);
        head[28..].copy_from_slice(&checksum.to_le_bytes());
        let forged = [&good[..HEADER], &head, &body, rest].concat();
        assert_eq!(error_of(&forged), Some(FileError::Impossible("vm")));
    }
}

/// Also within a state, of which there is no saying that it is damaged.
#[test]
fn what_there_is_no_memory_for_is_said_to_be_that() {
    let (file, mut failed) = (small(), 0);
    loop {
        match scarce::with_only(failed, || error_of(&file)) {
            None => break,
            error => assert_eq!(error, Some(FileError::NoMemory), "{failed}"),
        }
        failed += 1;
    }
    assert!(failed > 8, "a state has several lists: {failed}");
}

/// A state is large, and no other section is: its memory is given back before that of the VM is read.
#[test]
fn the_memory_of_a_state_is_given_back_behind_it() {
    const STORE: usize = 400_000;
    let value = |number: u8| SavedValue { key: vec![number], value: vec![7; STORE / 8] };
    let service = SavedService { store: (0..8).map(value).collect(), ..Default::default() };
    let state = SavedVm { calls: Some(Boxed::new(service).unwrap()), ..vm([1, 2, 3, 4], Vec::new(), true) };
    let doors = Doors { vmware: true, quota: Quota { store: STORE as u32 + 1000, ..Quota::USUAL }, ..Doors::default() };
    let file = written_with(doors, &state, &Vec::new());
    let before = scarce::held();
    let (mut reader, mut input) = (Reader::new(crc32c::compute), &file[..]);
    let mut held = Vec::new();
    while let Some(section) = reader.read(&mut input).unwrap() {
        drop(section);
        held.push((scarce::held() - before) as usize);
    }
    assert!(held[3] > STORE && held[4] < STORE / 4, "{held:?}");
}

#[test]
fn nothing_is_written_that_no_vm_may_have() {
    let section = |devices| {
        let state = SavedVm { devices: vec![7; devices], ..state() };
        Writer::new(crc32c::compute).state(&state)
    };
    let rest = section(0).unwrap().len() - HEAD;
    assert_eq!(section(bounds::STATE - rest).map(|bytes| bytes.len()), Ok(HEAD + bounds::STATE));
    assert_eq!(section(bounds::STATE - rest + 1), Err(FileError::Long("state")));
}
