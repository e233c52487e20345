//! A saved VM as a file, which may come from anybody: read in pieces, and written again.
//!
//! The input changes bytes of a good file, since no fuzzer finds a checksum. If its first byte is odd, all checksums are
//! corrected afterwards, as an attacker would.

use abi::bundle::{Doors, Vm};
use abi::crc32c;
use snapshot::SavedVm;
use snapshot::file::{Content, Description, HEAD, HEADER, PAGE, Reader, SavedMoment, Section, Writer};

use crate::saved_vm::good as good_state;

/// Of the VM that the file is of.
const MEMORY: u64 = 2 << 20;

/// Each three bytes of `data` after the first are a place and a value.
pub fn snapshot_file(data: &[u8]) {
    let Some((&how, changes)) = data.split_first() else { return };
    let mut bytes = good();
    let length = bytes.len();
    for change in changes.chunks_exact(3) {
        bytes[usize::from(u16::from_le_bytes([change[0], change[1]])) % length] = change[2];
    }
    if how & 1 != 0 {
        make_right(&mut bytes);
    }
    look(&bytes, 1 + usize::from(how) * 16);
    look(data, 7);
}

/// Checksums of the header, and of all sections as far as their lengths lead to one.
fn make_right(bytes: &mut [u8]) {
    let checksum = |bytes: &[u8]| crc32c::compute(0, bytes).to_le_bytes();
    let header = checksum(&bytes[..12]);
    bytes[12..16].copy_from_slice(&header);
    let mut at = HEADER;
    while let Some(head) = bytes.get(at..at + HEAD) {
        let length = u32::from_le_bytes(head[16..20].try_into().expect("four bytes")) as usize;
        let Some(body) = at.checked_add(HEAD + length).and_then(|end| bytes.get(at + HEAD..end)) else { return };
        let body = checksum(body);
        bytes[at + 20..at + 24].copy_from_slice(&body);
        let head = checksum(&bytes[at..at + 28]);
        bytes[at + 28..at + 32].copy_from_slice(&head);
        at += HEAD + length;
    }
}

fn look(bytes: &[u8], step: usize) {
    let mut reader = Reader::new(crc32c::compute);
    let mut pages = 0;
    let mut all = 0;
    let mut is_whole = false;
    for piece in bytes.chunks(step) {
        let mut input = piece;
        loop {
            match reader.read(&mut input) {
                Err(error) => {
                    assert!(!error.to_string().contains('\n'));
                    assert_eq!(reader.finish(), Err(error), "an error is the last word");
                    return;
                }
                Ok(None) => break,
                Ok(Some(Section::Vm(vm))) => all = vm.memory / PAGE as u64,
                Ok(Some(Section::Memory(runs))) => {
                    for run in runs {
                        assert!(run.first == pages && run.count > 0);
                        pages += run.count;
                        assert!(pages <= all);
                    }
                }
                Ok(Some(Section::State(state))) => {
                    assert_eq!(pages, 0, "memory without a state");
                    assert_eq!(SavedVm::from_bytes(&state.to_bytes().expect("there is memory")), Ok((*state).clone()));
                }
                Ok(Some(Section::End)) => {
                    assert_eq!(pages, all, "an end behind a part of the memory");
                    is_whole = true;
                }
                Ok(Some(Section::Machine(_) | Section::Moment(_))) => {}
            }
        }
    }
    assert_eq!(reader.finish().is_ok(), is_whole);
}

/// A file that has a little of everything, whose end has places that changes reach.
pub fn good() -> Vec<u8> {
    let mut state = SavedVm::from_bytes(&good_state()).expect("it is good");
    state.machine.memory = MEMORY;
    let doors = Doors { vmware: true, ..Doors::default() };
    let vm: Description<'_> = Vm { vcpus: state.machine.vcpus, doors, ..Vm::new("guest", (), MEMORY) };
    let mut writer = Writer::new(crc32c::compute);
    let moment = SavedMoment { microseconds: 5, is_known: true };
    let mut bytes = writer.begin(&vm, &state.machine, moment).expect("there is memory");
    bytes.extend(writer.state(&state).expect("there is memory"));
    let page: [u8; PAGE] = std::array::from_fn(|place| (place % 251) as u8);
    let contents =
        [(Content::Page(&page), 2), (Content::Fill(9), 3), (Content::Page(&page), 1), (Content::Fill(0), 506)];
    for (content, count) in contents {
        bytes.extend(writer.memory(content, count).expect("there is memory"));
    }
    bytes.extend(writer.end().expect("there is memory"));
    bytes
}
