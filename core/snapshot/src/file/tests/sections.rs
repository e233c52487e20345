//! How much a section of memory takes in, how it is found again, and what a reader says of a body that is damaged.

use std::vec::Vec;

use abi::crc32c;

use super::super::memory::{Builder, MOST, Memory, PAGES, RUNS};
use super::super::{Content, FileError, HEAD, MOST_ZEROS, PAGES_OF_A_BLOCK, Pieces, Reader, Run, Section};
use super::{Page, page, read, small, written};
use crate::tests::vm;

/// Takes in `count` pages of one word each, no two alike; says how many it takes.
fn fill(builder: &mut Builder, count: usize) -> usize {
    (1..=count as u64).take_while(|&word| builder.put(Content::Fill(word), 1).is_ok_and(|taken| taken)).count()
}

fn put(builder: &mut Builder, content: Content<'_>) -> bool {
    builder.put(content, 1).is_ok_and(|taken| taken)
}

#[test]
fn a_section_has_so_many_runs_and_no_more() {
    let page = page(Page::Bytes(7));
    let mut builder = Builder::default();
    assert_eq!(fill(&mut builder, RUNS + 9), RUNS);
    assert!(put(&mut builder, Content::Fill(RUNS as u64)), "as the page before: it is in the last run");
    // A page that is written out may need a run for those behind it that are alike.
    let mut builder = Builder::default();
    assert_eq!(fill(&mut builder, RUNS - 2), RUNS - 2);
    assert!(put(&mut builder, Content::Page(&page)));
    assert_eq!(fill(&mut builder, 9), 1, "with the page's own run they are all");
    let mut builder = Builder::default();
    assert_eq!(fill(&mut builder, RUNS - 1), RUNS - 1);
    assert!(!put(&mut builder, Content::Page(&page)));
}

#[test]
fn pages_of_one_word_are_one_run() {
    let mut builder = Builder::default();
    assert!((0..1000).all(|_| put(&mut builder, Content::Fill(5))));
    assert_eq!(builder.take().len(), 8 + 1 + 8 + 8);
}

/// A section's memory is asked for at once: one that grew would take more than what is in it.
#[test]
fn a_section_takes_the_memory_that_it_may_have() {
    let pages: Vec<_> = (1..=PAGES as u8 + 1).map(|value| page(Page::Bytes(value))).collect();
    let (taken, took) = scarce::most_held(|| {
        let mut builder = Builder::default();
        let taken = pages.iter().filter(|page| put(&mut builder, Content::Page(page))).count();
        (taken, builder.take().capacity())
    });
    assert_eq!((taken, took), ((PAGES, MOST), MOST));
}

/// A section that was read is found in the file again by its place, unless it is another one by now.
#[test]
fn a_section_is_found_again() {
    let file = small();
    let ends = read(&file, 100).unwrap().ends;
    let mut section = Vec::from(&file[ends[3]..ends[4]]);
    assert_eq!(section[..6], *b"memory");
    let first = u64::from_le_bytes(section[HEAD..HEAD + 8].try_into().unwrap());
    let runs = |section: &[u8]| {
        let memory = Memory::of_section(crc32c::compute, section, first, PAGES_OF_A_BLOCK).unwrap()?;
        Some(memory.map(|run| (run.first, run.count)).collect::<Vec<_>>())
    };
    assert_eq!(runs(&section).unwrap()[..3], [(0, 1), (1, 2), (3, 2)]);
    assert_eq!(runs(&section[..HEAD - 1]), None);
    section[HEAD + 9] ^= 1;
    assert_eq!(runs(&section), None);
}

/// Blocks of zeros are counted in pages.
#[test]
fn zeros_are_as_many_pages_as_their_blocks_have() {
    let mut stream = Vec::new();
    let mut pieces = Pieces::begin(crc32c::compute, &mut stream, 4);
    let zeros = pieces.zeros(3, MOST_ZEROS).unwrap();
    let (memory, count) = Memory::parse_piece(&zeros[HEAD..], u64::MAX).unwrap().unwrap();
    let runs: Vec<Run<'_>> = memory.collect();
    assert_eq!(count, MOST_ZEROS * PAGES_OF_A_BLOCK);
    assert_eq!(runs, [Run { first: 3 * PAGES_OF_A_BLOCK, count, content: Content::Fill(0) }]);
}

/// How far a file has come is told, and which section of it is damaged.
#[test]
fn a_reader_counts_what_it_has_read() {
    let pages = (1..40).map(|value| (Page::Bytes(value), 1)).collect();
    let good = written(&vm([1, 2, 3, 4], Vec::new(), false), &pages);
    let ends = read(&good, 100).unwrap().ends;
    let (mut reader, mut input) = (Reader::new(crc32c::compute), &good[..]);
    let (mut sections, mut memory) = (0, 0);
    assert_eq!((reader.sections(), reader.pages()), (0, 0));
    while let Some(section) = reader.read(&mut input).unwrap() {
        sections += 1;
        if let Section::Memory(runs) = section {
            memory += runs.map(|run| run.count).sum::<u64>();
        }
        assert_eq!((reader.sections(), reader.pages()), (sections, memory));
    }
    assert_eq!((sections as usize, memory), (ends.len(), PAGES_OF_A_BLOCK));
    for (number, &end) in ends.iter().enumerate().take(ends.len() - 1) {
        let mut bytes = good.clone();
        bytes[end - 1] ^= 1;
        let error = read(&bytes, 5000).err();
        assert!(matches!(error, Some(FileError::Body(_, found)) if found as usize == number), "{number}: {error:?}");
    }
}
