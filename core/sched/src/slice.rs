//! When the thread that runs on a CPU has to let others run.
//!
//! A CPU's timer serves the end of a slice only while somebody waits. While somebody waits who is in a [hurry](RunQueue::hurry),
//! slices are the shortest.

use crate::RunQueue;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// The slice of the thread that runs on a CPU, in counts of its counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    end: u64,
    /// Until when slices are the shortest.
    hurry_until: u64,
}

impl Slice {
    /// There is none: nobody waits.
    pub const NONE: Self = Self { end: NEVER, hurry_until: 0 };

    /// When it ends; `u64::MAX` if there is none.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Whether there is none.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.end == NEVER
    }

    /// The slice of whoever was just chosen on `queue` begins, if somebody waits.
    #[inline(always)]
    pub fn begin(&mut self, queue: &RunQueue, now: u64) {
        let hurries = now < self.hurry_until;
        let slice = if hurries { (queue.waiting() > 0).then(|| queue.hurry().1) } else { queue.slice() };
        self.end = slice.map_or(NEVER, |slice| now.saturating_add(slice));
    }

    /// The running thread's slice begins, if there is none yet and somebody waits.
    #[inline(always)]
    pub fn begin_if_none(&mut self, queue: &RunQueue, now: u64) {
        if self.is_none()
            && let Some(slice) = queue.slice()
        {
            self.end = now.saturating_add(slice);
        }
    }

    /// Somebody came to `queue` who is to be served soon and not at once: slices are the shortest until it was. Says whether this one
    /// ends earlier by that.
    pub fn hurry(&mut self, queue: &RunQueue, now: u64) -> bool {
        let (time, slice) = queue.hurry();
        self.hurry_until = now.saturating_add(time);
        let end = now.saturating_add(slice);
        let is_earlier = end < self.end;
        self.end = self.end.min(end);
        is_earlier
    }

    /// Whether somebody waits on `queue`. If not, as others may have taken whoever did, there is no slice: it would end again and again,
    /// also that of an idle thread, which never gives way to nobody.
    #[inline(always)]
    pub fn somebody_waits(&mut self, queue: &RunQueue) -> bool {
        let somebody_waits = queue.waiting() > 0;
        if !somebody_waits {
            self.end = NEVER;
        }
        somebody_waits
    }
}

#[cfg(test)]
mod tests {
    use units::CpuId;

    use super::Slice;
    use crate::{Affinity, Arrival, Entity, RunQueue, ThreadId, Timing, Weight};

    fn thread(id: u32) -> Entity {
        Entity::new(ThreadId(id), Weight::DEFAULT, Affinity::ANY)
    }

    /// Two wake on an idle CPU, the second behind the first; before that CPU looks, others take both.
    #[test]
    fn no_slice_is_left_where_others_took_who_hurried() {
        let (mut queue, mut slice) = (RunQueue::new(Timing { period: 10_000, minimum_slice: 1_000 }), Slice::NONE);
        // What is before the floor is little, and a queue that idled has a floor above nothing.
        queue.charge(1_000);
        assert!(!queue.enqueue(thread(0), Arrival::Woken) && queue.enqueue(thread(1), Arrival::Woken));
        assert!(slice.hurry(&queue, 500) && slice.end() == 1_500);
        assert!(slice.somebody_waits(&queue) && slice.end() == 1_500);
        assert!((1..3).all(|cpu| queue.steal(CpuId(cpu), |_| true).is_some()));
        assert!(!slice.somebody_waits(&queue));
        assert!(slice.is_none(), "it ends at {} for nobody", slice.end());
    }

    /// Who hurried was served elsewhere: whoever is chosen then runs until somebody comes, and is not interrupted for nobody.
    #[test]
    fn a_hurry_that_is_over_leaves_no_slice() {
        let (mut queue, mut slice) = (RunQueue::new(Timing { period: 10_000, minimum_slice: 1_000 }), Slice::NONE);
        for id in 0..2 {
            queue.enqueue(thread(id), Arrival::Woken);
        }
        assert!(slice.hurry(&queue, 0));
        assert!(!slice.hurry(&queue, 0), "it ends then already");
        assert!(queue.steal(CpuId(1), |_| true).is_some() && queue.pick().is_some());
        slice.begin(&queue, 100);
        assert!(slice.is_none(), "it ends at {} for nobody", slice.end());
    }

    #[test]
    fn slices_are_the_shortest_for_as_long_as_somebody_hurries() {
        let (mut queue, mut slice) = (RunQueue::new(Timing { period: 10_000, minimum_slice: 1_000 }), Slice::NONE);
        queue.enqueue(thread(0), Arrival::Woken);
        queue.pick();
        slice.begin(&queue, 0);
        assert!(slice.is_none(), "nobody waits");
        queue.enqueue(thread(1), Arrival::Woken);
        slice.begin_if_none(&queue, 100);
        assert_eq!(slice.end(), 5_100);
        slice.begin_if_none(&queue, 200);
        assert_eq!(slice.end(), 5_100, "it has begun");
        assert!(slice.hurry(&queue, 300) && slice.end() == 1_300);
        assert!(!slice.hurry(&queue, 400) && slice.end() == 1_300, "it ends before that anyway");
        queue.enqueue(thread(2), Arrival::Woken);
        slice.hurry(&queue, 1_000);
        slice.begin(&queue, 2_999);
        assert_eq!(slice.end(), 3_999);
        slice.begin(&queue, 3_000);
        assert_eq!(slice.end(), 3_000 + 10_000 / 3);
    }
}
