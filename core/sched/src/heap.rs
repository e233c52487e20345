//! A binary heap of waiting threads: least virtual run time first, among equals the one that came first.

use alloc::vec::Vec;

use crate::Entity;

/// A waiting thread and when it came.
#[derive(Clone, Copy, Debug)]
struct Slot {
    entity: Entity,
    arrival: u64,
}

/// Bytes of a thread's place here.
pub(crate) const BYTES_OF_A_PLACE: usize = size_of::<Slot>();

impl Slot {
    fn is_before(&self, other: &Self) -> bool {
        // The difference decides, so that virtual run times may wrap.
        match self.entity.virtual_time.wrapping_sub(other.entity.virtual_time) as i64 {
            0 => self.arrival < other.arrival,
            difference => difference < 0,
        }
    }
}

/// The heap: no slot comes before its parent, which is at half its index.
#[derive(Debug)]
pub(crate) struct Heap {
    slots: Vec<Slot>,
    arrivals: u64,
}

impl Heap {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), arrivals: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn first(&self) -> Option<&Entity> {
        self.slots.first().map(|slot| &slot.entity)
    }

    /// All that wait, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entity> {
        self.slots.iter().map(|slot| &slot.entity)
    }

    /// Adds `time` to what each of them has had that is not before `floor`, which leaves them in order.
    pub(crate) fn advance(&mut self, time: u64, floor: u64) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.entity.virtual_time_is_before(floor)) {
            slot.entity.virtual_time = slot.entity.virtual_time.wrapping_add(time);
        }
    }

    /// Makes room for `threads` in all, so that no push allocates.
    pub(crate) fn reserve(&mut self, threads: usize) {
        self.slots.reserve(threads.saturating_sub(self.slots.len()));
    }

    pub(crate) fn push(&mut self, entity: Entity) {
        self.arrivals += 1;
        self.slots.push(Slot { entity, arrival: self.arrivals });
        self.rise(self.slots.len() - 1);
    }

    pub(crate) fn pop(&mut self) -> Option<Entity> {
        if self.slots.is_empty() { None } else { Some(self.remove(0)) }
    }

    /// Takes out the first and puts `entity` in at once, which is cheaper than one after the other. `None`, and nothing
    /// changes, if nobody waits.
    pub(crate) fn replace_first(&mut self, entity: Entity) -> Option<Entity> {
        let first = self.slots.first_mut()?;
        self.arrivals += 1;
        let replaced = core::mem::replace(first, Slot { entity, arrival: self.arrivals });
        if self.slots.len() > 1 {
            self.sink(0);
        }
        Some(replaced.entity)
    }

    /// Takes out a waiting thread that `wanted` accepts: of several, one that would have to wait rather long.
    pub(crate) fn take_late(&mut self, wanted: impl Fn(&Entity) -> bool) -> Option<Entity> {
        let index = self.slots.iter().rposition(|slot| wanted(&slot.entity))?;
        Some(self.remove(index))
    }

    fn remove(&mut self, index: usize) -> Entity {
        let removed = self.slots.swap_remove(index);
        if index < self.slots.len() {
            // What has come here from the end may belong further up as well as further down.
            self.rise(index);
            self.sink(index);
        }
        removed.entity
    }

    fn rise(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / 2;
            if !self.slots[index].is_before(&self.slots[parent]) {
                return;
            }
            self.slots.swap(index, parent);
            index = parent;
        }
    }

    fn sink(&mut self, mut index: usize) {
        loop {
            let mut least = index;
            for child in [2 * index + 1, 2 * index + 2] {
                if child < self.slots.len() && self.slots[child].is_before(&self.slots[least]) {
                    least = child;
                }
            }
            if least == index {
                return;
            }
            self.slots.swap(index, least);
            index = least;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::Heap;
    use crate::{Affinity, Entity, RunQueue, ThreadId, Timing, Weight};
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use std::vec::Vec;

    fn entity(thread: u32, virtual_time: u64) -> Entity {
        Entity { virtual_time, ..Entity::new(ThreadId(thread), Weight::DEFAULT, Affinity::ANY) }
    }

    #[test]
    fn who_is_put_in_for_the_first_comes_behind_its_equals() {
        let mut heap = Heap::new();
        heap.reserve(4);
        assert!(heap.slots.capacity() >= 4);
        (0..3).for_each(|thread| heap.push(entity(thread, 7)));
        assert_eq!(heap.replace_first(entity(3, 7)).map(|entity| entity.thread), Some(ThreadId(0)));
        heap.push(entity(4, 7));
        let order: Vec<_> = core::iter::from_fn(|| heap.pop()).map(|entity| entity.thread.0).collect();
        assert_eq!(order, [1, 2, 3, 4]);
    }

    /// Whoever stands before the floor is not to catch up, and stays before those that are.
    #[test]
    fn who_stands_at_the_floor_or_behind_it_advances() {
        let mut heap = Heap::new();
        [(0, 9), (1, 10), (2, 20)].into_iter().for_each(|(thread, time)| heap.push(entity(thread, time)));
        heap.advance(100, 10);
        let order: Vec<_> = core::iter::from_fn(|| heap.pop()).map(|entity| entity.virtual_time).collect();
        assert_eq!(order, [9, 110, 120]);
    }

    /// Where a thread is woken no memory may be asked for.
    #[test]
    fn a_queue_has_the_room_that_was_made_for_it() {
        let mut queue = RunQueue::new(Timing { period: 1_000, minimum_slice: 100 });
        queue.reserve(4);
        assert!(queue.waiting.slots.capacity() >= 4);
    }

    proptest! {
        #[test]
        fn replacing_the_first_is_taking_it_and_putting_in(
            times in proptest::collection::vec(0..50_u64, 0..32), new in 0..50_u64,
        ) {
            let mut heap = Heap::new();
            times.iter().zip(0..).for_each(|(&time, thread)| heap.push(entity(thread, time)));
            let least = times.iter().min().copied();
            let replaced = heap.replace_first(entity(99, new));
            prop_assert_eq!(replaced.map(|entity| entity.virtual_time), least);
            let mut expected = times;
            if let Some(index) = expected.iter().position(|&time| Some(time) == least) {
                expected[index] = new;
            }
            expected.sort_unstable();
            let actual: Vec<_> = core::iter::from_fn(|| heap.pop()).map(|entity| entity.virtual_time).collect();
            prop_assert_eq!(actual, expected);
        }

        #[test]
        fn comes_out_in_order_even_across_the_wrap(
            times in proptest::collection::vec(0..50_u64, 0..32), base in any::<u64>(), removed in 0..32_u32,
        ) {
            let mut heap = Heap::new();
            let mut expected = Vec::new();
            for (thread, &time) in times.iter().enumerate() {
                heap.push(entity(thread as u32, base.wrapping_add(time)));
                expected.push((time, thread as u32));
            }
            let taken = heap.take_late(|entity| entity.thread == ThreadId(removed));
            prop_assert_eq!(taken.is_some(), (removed as usize) < times.len());
            expected.retain(|&(_, thread)| thread != removed);
            expected.sort_unstable();
            let actual: Vec<_> = core::iter::from_fn(|| heap.pop())
                .map(|entity| (entity.virtual_time.wrapping_sub(base), entity.thread.0))
                .collect();
            prop_assert_eq!(actual, expected);
        }
    }
}
