//! A saved VM as a file, which may come from anybody: read in pieces, and written again.
//!
//! The input changes bytes of a good file, since no fuzzer finds a checksum. If its first byte is odd, all checksums are
//! corrected afterwards, as an attacker would. By the next bit it is no file but a stream, whose memory comes by pieces.

use abi::bundle::{Doors, Vm};
use abi::crc32c;
use snapshot::SavedVm;
use snapshot::file::{
    Content, Description, HEAD, HEADER, MOST_ZEROS, PAGE, PAGES_OF_A_BLOCK, PAGES_OF_A_PIECE, Pieces, Reader, Run,
    SavedMoment, Section, Writer,
};

use crate::saved_vm::good as good_state;

/// Of the VM that the file is of.
const MEMORY: u64 = 2 << 20;

/// Each three bytes of `data` after the first are a place and a value.
pub fn snapshot_file(data: &[u8]) {
    let Some((&how, changes)) = data.split_first() else { return };
    let mut bytes = if how & 2 == 0 { good() } else { good_stream() };
    let length = bytes.len();
    for change in changes.chunks_exact(3) {
        bytes[usize::from(u16::from_le_bytes([change[0], change[1]])) % length] = change[2];
    }
    if how & 1 != 0 {
        make_right(&mut bytes);
    }
    look(&bytes, 1 + usize::from(how) * 16);
    look_at_stream(&bytes, 1 + usize::from(how) * 16);
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

/// As the hypervisor reads what comes by the link, which may be a file as well.
fn look_at_stream(bytes: &[u8], step: usize) {
    let mut reader = Reader::of_stream(crc32c::compute);
    let (mut all, mut sum) = (0, 0);
    for mut input in bytes.chunks(step) {
        loop {
            match reader.read(&mut input) {
                Err(_) => return,
                Ok(None) => break,
                Ok(Some(Section::Vm(vm))) => all = vm.memory / PAGE as u64,
                Ok(Some(Section::Memory(runs))) => {
                    let first = runs.clone().next().expect("a section of memory has pages").first;
                    let are_zeros = runs.clone().all(|run| run.content == Content::Fill(0));
                    let count: u64 = runs.map(|run| run.count).sum();
                    sum += count;
                    assert!(first + count <= all, "pages that it does not have");
                    let is_piece = (first % PAGES_OF_A_PIECE, count) == (0, PAGES_OF_A_PIECE);
                    let is_bounded = (1..=MOST_ZEROS).contains(&(count / PAGES_OF_A_BLOCK));
                    let are_blocks = are_zeros && is_bounded && (first | count).is_multiple_of(PAGES_OF_A_BLOCK);
                    assert!(!reader.is_by_pieces() || is_piece || are_blocks, "{count} pages from {first} at once");
                }
                Ok(Some(Section::End)) => assert_eq!(sum, all, "an end behind a part of the memory"),
                Ok(Some(_)) => {}
            }
        }
    }
}

/// As [`good`], by pieces, the last one first.
fn good_stream() -> Vec<u8> {
    let file = good();
    let (mut reader, mut unread) = (Reader::new(crc32c::compute), &*file);
    while !matches!(reader.read(&mut unread), Ok(Some(Section::State(_)))) {}
    let mut stream = file[..file.len() - unread.len()].to_vec();
    let mut pieces = Pieces::begin(crc32c::compute, &mut stream, reader.sections());
    let page: [u8; PAGE] = std::array::from_fn(|place| (place % 251) as u8);
    for piece in (0..MEMORY / PAGE as u64 / PAGES_OF_A_PIECE).rev() {
        let first = piece * PAGES_OF_A_PIECE;
        let content = if piece % 8 == 0 { Content::Page(&page) } else { Content::Fill(piece % 3) };
        let run = Run { first, count: PAGES_OF_A_PIECE, content };
        stream.extend(pieces.piece([run]).expect("there is memory"));
    }
    stream.extend(pieces.end().expect("there is memory"));
    stream
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
