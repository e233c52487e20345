//! From a VM's files in the bundle to bytes with addresses in its memory. What `croft` has checked is checked again:
//! the bundle may be made for another host, or by another program.

extern crate alloc;

use crate::host::text::{Sentence, sentence};

use abi::bundle::VmConfig;
use arrayvec::ArrayVec;
use machine::MachinePlan;
use machine::image::ImageHeader;
use machine::placement::{MAX_SEGMENTS, Placement, Segment};
use units::{Ipa, Range};

use crate::host;

/// Where a VM's files go.
pub(crate) struct Layout<'a> {
    /// Kernel, device tree and initrd.
    pub(crate) placement: Placement,
    /// The kernel's pieces and where each begins.
    pub(crate) kernel: ArrayVec<(Ipa, &'a [u8]), MAX_SEGMENTS>,
}

/// Finds the places for `kernel` and an initrd of so many bytes in the memory of `plan`.
///
/// # Errors
/// A sentence for the log.
pub(crate) fn lay_out<'a>(
    config: &VmConfig<'_>,
    plan: &MachinePlan,
    kernel: &'a [u8],
    initrd_bytes: u64,
) -> Result<Layout<'a>, Sentence> {
    let Some(program) = &config.program else {
        let judge = || {
            let header = ImageHeader::parse(kernel)?;
            header.check_pages(host::get().guest_ids.get(cpu::id::fields::MMFR0_TGRAN4.register))?;
            Ok(header)
        };
        let header = judge().map_err(|error: machine::image::ImageError| sentence!("kernel: {error}"))?;
        let placement = Placement::of_image(plan, &header, kernel.len() as u64, initrd_bytes);
        let placement = placement.map_err(|error| sentence!("{error}"))?;
        return Ok(Layout { placement, kernel: [(placement.kernel.start, kernel)].into_iter().collect() });
    };
    let range = |segment: &abi::bundle::Segment| Range { start: Ipa(segment.address), size: segment.size };
    let segments: ArrayVec<Segment, MAX_SEGMENTS> = program
        .pieces()
        .map(|(segment, _)| Segment { range: range(&segment), file_bytes: segment.file_bytes })
        .collect();
    let placement = Placement::of_program(plan, &segments, Ipa(program.entry), initrd_bytes);
    let placement = placement.map_err(|error| sentence!("kernel: {error}"))?;
    let bytes = |segment: &abi::bundle::Segment, start: u64| {
        kernel.get(start as usize..)?.get(..segment.file_bytes as usize).map(|bytes| (Ipa(segment.address), bytes))
    };
    let kernel = program.pieces().filter_map(|(segment, start)| bytes(&segment, start)).collect();
    Ok(Layout { placement, kernel })
}
