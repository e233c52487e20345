//! When a CPU's timer must fire, and for whom.
//!
//! A binary heap of deadlines in which each *slot* (a number that the caller gives meaning to: a thread and what it
//! waits for) has at most one. A table says where in the heap a slot is, so that setting, moving and cancelling a
//! deadline take O(log n) like taking the first one, and nothing accumulates however often a deadline is changed.

use alloc::vec::Vec;

/// Where a slot without a deadline is.
const NOWHERE: u32 = u32::MAX;

/// A deadline and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alarm {
    /// The count at which it rings.
    pub deadline: u64,
    /// Whose it is.
    pub slot: u32,
}

/// The heap.
#[derive(Debug, Default)]
pub struct Alarms {
    heap: Vec<Alarm>,
    places: Vec<u32>,
}

impl Alarms {
    /// No slots.
    #[must_use]
    pub const fn new() -> Self {
        Self { heap: Vec::new(), places: Vec::new() }
    }

    /// Makes room for slots 0 to `slots` - 1, so that nothing here allocates for them.
    pub fn reserve(&mut self, slots: usize) {
        self.heap.reserve(slots.saturating_sub(self.heap.len()));
        if self.places.len() < slots {
            self.places.resize(slots, NOWHERE);
        }
    }

    /// Gives `slot` this deadline, whatever it had before.
    pub fn set(&mut self, slot: u32, deadline: u64) {
        if self.places.len() <= slot as usize {
            self.places.resize(slot as usize + 1, NOWHERE);
        }
        let place = self.places.get(slot as usize).copied().unwrap_or(NOWHERE);
        let index = match self.heap.get_mut(place as usize) {
            Some(alarm) => {
                alarm.deadline = deadline;
                place as usize
            }
            None => {
                self.heap.push(Alarm { deadline, slot });
                self.heap.len() - 1
            }
        };
        self.settle(index);
    }

    /// Gives `slot` this deadline unless it has an earlier one.
    pub fn set_earlier(&mut self, slot: u32, deadline: u64) {
        if self.deadline_of(slot).is_none_or(|known| deadline < known) {
            self.set(slot, deadline);
        }
    }

    /// Takes away `slot`'s deadline, if it has one.
    pub fn cancel(&mut self, slot: u32) {
        if let Some(&place) = self.places.get(slot as usize)
            && (place as usize) < self.heap.len()
        {
            self.remove(place as usize);
        }
    }

    /// The next deadline.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.heap.first().map(|alarm| alarm.deadline)
    }

    /// Takes out an alarm that is due at `now`; call it until there is none.
    pub fn take_due(&mut self, now: u64) -> Option<Alarm> {
        let first = self.heap.first().copied().filter(|alarm| alarm.deadline <= now)?;
        self.remove(0);
        Some(first)
    }

    /// The deadline that `slot` has.
    #[must_use]
    pub fn deadline_of(&self, slot: u32) -> Option<u64> {
        let place = *self.places.get(slot as usize)?;
        self.heap.get(place as usize).map(|alarm| alarm.deadline)
    }

    fn remove(&mut self, index: usize) {
        let removed = self.heap.swap_remove(index);
        self.place(removed.slot, NOWHERE);
        if index < self.heap.len() {
            self.settle(index);
        }
    }

    /// Moves what is at `index` to where it belongs.
    fn settle(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / 2;
            if self.heap[parent].deadline <= self.heap[index].deadline {
                break;
            }
            self.swap(index, parent);
            index = parent;
        }
        loop {
            let mut least = index;
            for child in [2 * index + 1, 2 * index + 2] {
                if child < self.heap.len() && self.heap[child].deadline < self.heap[least].deadline {
                    least = child;
                }
            }
            if least == index {
                break;
            }
            self.swap(index, least);
            index = least;
        }
        self.place(self.heap[index].slot, index as u32);
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.place(self.heap[one].slot, one as u32);
        self.place(self.heap[other].slot, other as u32);
    }

    fn place(&mut self, slot: u32, place: u32) {
        if let Some(known) = self.places.get_mut(slot as usize) {
            *known = place;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::Alarms;
    use proptest::prelude::{prop_assert_eq, proptest};
    use std::collections::BTreeMap;

    #[test]
    fn room_that_was_made_is_enough() {
        let mut alarms = Alarms::new();
        alarms.reserve(10);
        let room = (alarms.heap.capacity(), alarms.places.capacity());
        assert!(room.0 >= 10 && room.1 >= 10);
        (0..10).for_each(|slot| alarms.set(slot, u64::from(slot)));
        assert_eq!((alarms.heap.capacity(), alarms.places.capacity()), room);
        // Less room takes nothing away.
        alarms.reserve(1);
        assert_eq!(alarms.deadline_of(9), Some(9));
        alarms.reserve(11);
        assert_eq!((alarms.places.len(), alarms.deadline_of(10)), (11, None));
    }

    /// One that comes to be earlier goes past those that it was behind, and no other one out of its place.
    #[test]
    fn a_deadline_that_moves_keeps_the_others_in_order() {
        let mut alarms = Alarms::new();
        (0..).zip([12, 1, 11, 9, 15, 17, 4, 14, 16]).for_each(|(slot, deadline)| alarms.set(slot, deadline));
        alarms.set(6, 13);
        let order = core::array::from_fn(|_| alarms.take_due(u64::MAX).map_or(0, |alarm| alarm.deadline));
        assert_eq!(order, [1, 9, 11, 12, 13, 14, 15, 16, 17]);
    }

    #[test]
    fn what_is_due_now_rings_now() {
        let mut alarms = Alarms::new();
        alarms.set(1, 7);
        assert_eq!(alarms.take_due(6), None);
        assert_eq!(alarms.take_due(7).map(|alarm| alarm.slot), Some(1));
        assert_eq!(alarms.take_due(7), None);
        // Without a deadline there is nothing to take away.
        alarms.cancel(1);
        alarms.cancel(40);
        assert_eq!(alarms.next(), None);
    }

    proptest! {
        #[test]
        fn rings_in_order_whatever_is_changed_meanwhile(
            steps in proptest::collection::vec((0..4_u8, 0..12_u32, 0..100_u64), 0..200),
        ) {
            let mut alarms = Alarms::new();
            alarms.reserve(10);
            let mut expected = BTreeMap::<u32, u64>::new();
            for (kind, slot, deadline) in steps {
                match kind {
                    0 => {
                        alarms.set(slot, deadline);
                        expected.insert(slot, deadline);
                    }
                    1 => {
                        alarms.set_earlier(slot, deadline);
                        let known = expected.get(&slot).copied().unwrap_or(u64::MAX);
                        expected.insert(slot, known.min(deadline));
                    }
                    2 => {
                        alarms.cancel(slot);
                        expected.remove(&slot);
                    }
                    _ => while let Some(alarm) = alarms.take_due(deadline) {
                        let least = expected.values().min().copied();
                        prop_assert_eq!(Some(alarm.deadline), least);
                        prop_assert_eq!(expected.remove(&alarm.slot), Some(alarm.deadline));
                    },
                }
                prop_assert_eq!(alarms.next(), expected.values().min().copied());
                for slot in 0..12 {
                    prop_assert_eq!(alarms.deadline_of(slot), expected.get(&slot).copied());
                }
            }
        }
    }
}
