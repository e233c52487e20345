//! Streams whose memory comes by pieces in any order: what the link carries while a guest runs already.

use std::boxed::Box;
use std::vec::Vec;

use abi::crc32c;
use proptest::prelude::*;

use super::super::{
    Content, FileError, MOST_ZEROS, PAGE, PAGES_OF_A_BLOCK, PAGES_OF_A_PIECE, Pieces, Reader, Run, Section,
};
use super::{Page, Pages, any_pages, page, read, written};
use crate::tests::{any_vm, vm};

/// All pages of a VM whose memory holds `pages`.
fn flat(pages: &Pages) -> Vec<Box<[u8; PAGE]>> {
    let mut all: Vec<_> = pages.iter().flat_map(|&(content, count)| (0..count).map(move |_| page(content))).collect();
    let blocks = (all.len() as u64).div_ceil(PAGES_OF_A_BLOCK).max(1);
    all.resize((blocks * PAGES_OF_A_BLOCK) as usize, page(Page::Word(0)));
    all
}

/// The stream of a file, its pieces in this order.
fn by_pieces(file: &[u8], all: &[Box<[u8; PAGE]>], order: &[u64]) -> Vec<u8> {
    let end = read(file, 5000).unwrap().ends[3];
    let mut stream = Vec::from(&file[..end]);
    let mut pieces = Pieces::begin(crc32c::compute, &mut stream, 4);
    for piece in order {
        let first = piece * PAGES_OF_A_PIECE;
        let runs = (first..first + PAGES_OF_A_PIECE).map(|number| Run {
            first: number,
            count: 1,
            content: Content::Page(&all[number as usize]),
        });
        stream.extend(pieces.piece(runs).unwrap());
    }
    stream.extend(pieces.end().unwrap());
    stream
}

/// The pages that came, by their numbers.
fn read_pieces(bytes: &[u8], step: usize) -> Result<Vec<(u64, Vec<u8>)>, FileError> {
    let (mut reader, mut found) = (Reader::of_stream(crc32c::compute), Vec::new());
    for mut input in bytes.chunks(step) {
        while let Some(section) = reader.read(&mut input)? {
            let Section::Memory(runs) = section else { continue };
            for run in runs {
                let content = match run.content {
                    Content::Fill(word) => page(Page::Word(word)).to_vec(),
                    Content::Page(page) => page.to_vec(),
                };
                found.extend((run.first..run.first + run.count).map(|number| (number, content.clone())));
            }
        }
    }
    reader.finish()?;
    assert!(reader.is_by_pieces());
    Ok(found)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn memory_comes_by_pieces_in_any_order(
        state in any_vm(), pages in any_pages(), turn in 0..99_u64, step in 1..9000_usize,
    ) {
        let (file, all) = (written(&state, &pages), flat(&pages));
        let count = all.len() as u64 / PAGES_OF_A_PIECE;
        let order: Vec<u64> = (0..count).map(|piece| count - 1 - (piece + turn) % count).collect();
        let stream = by_pieces(&file, &all, &order);
        // No file is one.
        prop_assert_eq!(read(&stream, step).err(), Some(FileError::Header));
        let mut found = read_pieces(&stream, step).unwrap();
        prop_assert_eq!(found.first().map(|(number, _)| *number), Some(order[0] * PAGES_OF_A_PIECE));
        found.sort();
        let expected: Vec<(u64, Vec<u8>)> = (0..).zip(all.iter().map(|page| page.to_vec())).collect();
        prop_assert!(found == expected, "other pages came");
        let missing = by_pieces(&file, &all, &order[1..]);
        let pages = count * PAGES_OF_A_PIECE;
        prop_assert_eq!(read_pieces(&missing, step).err(), Some(FileError::Pages(pages - PAGES_OF_A_PIECE, pages)));
    }
}

/// A section of a stream is one whole piece, or some whole blocks of zeros: no more than can be dealt with at once.
#[test]
fn no_section_of_a_stream_is_more_than_a_piece() {
    let blocks = MOST_ZEROS + 1;
    let file = written(&vm([1, 2, 3, 4], Vec::new(), false), &Vec::from([(Page::Word(0), blocks * PAGES_OF_A_BLOCK)]));
    let end = read(&file, 5000).unwrap().ends[3];
    let with = |first, count, word| {
        let mut stream = Vec::from(&file[..end]);
        let mut pieces = Pieces::begin(crc32c::compute, &mut stream, 4);
        stream.extend(pieces.piece([Run { first, count, content: Content::Fill(word) }]).unwrap());
        read_pieces(&stream, 5000).err()
    };
    let incomplete = |found: Option<FileError>| matches!(found, Some(FileError::Short(_)));
    let most = MOST_ZEROS * PAGES_OF_A_BLOCK;
    for (first, count, word) in [(0, 16, 7), (16, 16, 0), (1520, 16, 9), (512, 1024, 0), (0, 512, 0), (512, most, 0)] {
        assert!(incomplete(with(first, count, word)), "{count} from {first} with {word}");
    }
    let others = [(0, 32, 0), (0, 32, 7), (8, 16, 0), (1, 15, 7), (0, 15, 0), (0, 512, 7), (16, 512, 0), (0, 528, 0)];
    for (first, count, word) in others.into_iter().chain([(0, most + 512, 0), (most + 512, 16, 0)]) {
        assert_eq!(with(first, count, word), Some(FileError::Impossible("memory")), "{count} from {first} with {word}");
    }
}
