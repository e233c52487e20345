//! Which CPU each Redistributor belongs to. They follow each other in one or several regions, each knows its CPU (GICR_TYPER, IHI
//! 0069 section 12.11), and the last of a region says so. The Redistributor itself says how far it is to the next, or, where
//! hardware has holes between them, the description does (`redistributor-stride` of the binding `arm,gic-v3`).

use units::Pa;

use crate::{Cpu, Gicv3};

/// Bytes of one of a Redistributor's frames.
const FRAME: u64 = 0x1_0000;
/// GICR_TYPER.VLPIS: four frames instead of two.
const VIRTUAL_LPIS: u64 = 1 << 1;
/// GICR_TYPER.Last: no other one follows in this region.
const LAST: u64 = 1 << 4;

impl Gicv3 {
    /// What may be the distance from one Redistributor to the next: whole frames, two at least.
    pub(crate) const fn is_stride(bytes: u64) -> bool {
        bytes >= 2 * FRAME && bytes.is_multiple_of(FRAME)
    }

    /// The Redistributor of the CPU with the affinity fields of `mpidr`; `typer` reads the GICR_TYPER of one that begins there.
    #[must_use]
    pub fn redistributor(&self, mpidr: u64, mut typer: impl FnMut(Pa) -> u64) -> Option<Pa> {
        let mpidr = mpidr & Cpu::AFFINITY_MASK;
        let affinity = mpidr >> 32 << 24 | mpidr & 0xff_ffff;
        for region in &self.redistributors {
            let mut frame = region.start;
            while region.contains(frame) && region.end().0 - frame.0 >= 2 * FRAME {
                let kind = typer(frame);
                if kind >> 32 == affinity {
                    return Some(frame);
                }
                if kind & LAST != 0 {
                    break;
                }
                let own = if kind & VIRTUAL_LPIS != 0 { 4 * FRAME } else { 2 * FRAME };
                let Some(next) = frame.checked_add(self.stride.unwrap_or(own)) else { break };
                frame = next;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{FRAME, LAST, VIRTUAL_LPIS};
    use crate::{Gicv3, InterruptLine};
    use std::collections::BTreeMap;
    use units::{IntId, Pa, Range};

    fn gic(regions: &[(u64, u64)], stride: Option<u64>) -> Gicv3 {
        let range = |&(start, frames)| Range { start: Pa(start), size: frames * FRAME };
        Gicv3 {
            distributor: range(&(0, 1)),
            redistributors: regions.iter().map(range).collect(),
            stride,
            its: None,
            maintenance: InterruptLine { interrupt: IntId(25), trigger: None },
        }
    }

    /// Where `mpidr` finds its own among these; a read where none is fails the test, as it would be an abort on hardware.
    fn find(gic: &Gicv3, there: &[(u64, u64)], mpidr: u64) -> Option<u64> {
        let there: BTreeMap<u64, u64> = there.iter().copied().collect();
        gic.redistributor(mpidr, |at| *there.get(&at.0).unwrap_or_else(|| panic!("nothing is at {at}"))).map(|at| at.0)
    }

    #[test]
    fn they_lie_one_behind_the_other() {
        let base = 0x080a_0000;
        let there =
            [(base, 0), (base + 2 * FRAME, 1 << 32 | VIRTUAL_LPIS), (base + 6 * FRAME, 0x0102_0304 << 32 | LAST)];
        let gic = gic(&[(base, 100)], None);
        assert_eq!(find(&gic, &there, 0x8000_0000), Some(base), "the bits beside the affinity do not count");
        assert_eq!(find(&gic, &there, 1), Some(base + 2 * FRAME));
        assert_eq!(find(&gic, &there, 0x01_0002_0304), Some(base + 6 * FRAME));
        assert_eq!(find(&gic, &there, 2), None, "behind the last one nothing is read");
    }

    #[test]
    fn the_description_knows_better_how_far_it_is() {
        let base = 0x1000_0000;
        let there = [(base, 0), (base + 4 * FRAME, 1 << 32), (base + 8 * FRAME, 2 << 32)];
        let gic = gic(&[(base, 12)], Some(4 * FRAME));
        assert_eq!([0, 1, 2].map(|cpu| find(&gic, &there, cpu)), there.map(|(at, _)| Some(at)));
        assert_eq!(find(&gic, &there, 3), None, "the region ends");
    }

    #[test]
    fn each_region_is_looked_through() {
        let there = [(0x1000_0000, LAST), (0x2000_0000, 0x100 << 32), (0x2002_0000, 0x101 << 32)];
        // The second one ends with its last, without saying so; the third is too small for any.
        let regions = [(0x1000_0000, 8), (0x2000_0000, 4), (0x3000_0000, 1)];
        let gic = gic(&regions, None);
        assert_eq!([0, 0x100, 0x101].map(|cpu| find(&gic, &there, cpu)), there.map(|(at, _)| Some(at)));
        assert_eq!(find(&gic, &there, 7), None);
    }

    /// A description may say any size: a Redistributor has two frames, and what has a little more than one is none.
    #[test]
    fn a_region_ends_where_less_than_two_frames_are_left() {
        let whole = gic(&[(0x1000_0000, 2)], None);
        assert_eq!(find(&whole, &[(0x1000_0000, 0)], 0), Some(0x1000_0000));
        let mut short = gic(&[], None);
        for size in [FRAME + 4096, 2 * FRAME - 1] {
            short.redistributors = [Range { start: Pa(0x1000_0000), size }].into_iter().collect();
            assert_eq!(find(&short, &[], 0), None, "{size:#x}");
        }
    }

    #[test]
    fn strides_are_whole_frames() {
        assert!(Gicv3::is_stride(2 * FRAME) && Gicv3::is_stride(5 * FRAME));
        assert!(![0, 1, FRAME, 2 * FRAME + 4096].map(Gicv3::is_stride).contains(&true));
    }
}
