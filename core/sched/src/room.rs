//! Whether a thread that waits for an event may keep its CPU.
//!
//! A thread may keep it if no other thread will ever need it. This is so if the number of threads that may run on any
//! CPU of its set is at most the number of those CPUs. A thread pinned to a CPU that no other thread may use is the
//! usual case; all threads of a machine that has a CPU for each are another.

use crate::Affinity;

/// Whether the thread that may run on `own` finds a CPU that nobody else needs, whoever of `all` (itself among them) runs.
/// `online` are the CPUs that there are.
pub fn has_cpu_of_its_own(own: Affinity, all: impl IntoIterator<Item = Affinity>, online: u64) -> bool {
    let cpus = own.0 & online;
    let competitors = all.into_iter().filter(|other| other.0 & cpus != 0).count();
    competitors as u64 <= u64::from(cpus.count_ones())
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::has_cpu_of_its_own;
    use crate::Affinity;
    use proptest::prelude::{prop_assert, proptest};
    use std::vec::Vec;

    fn ask(own: usize, all: &[u64], online: u64) -> bool {
        has_cpu_of_its_own(Affinity(all[own]), all.iter().map(|&set| Affinity(set)), online)
    }

    #[test]
    fn a_pinned_one_alone_has_one_and_shares_only_with_those_who_may_come() {
        assert!(ask(0, &[0b1, 0b110, 0b110, 0b110], 0b111));
        assert!(!ask(1, &[0b1, 0b110, 0b110, 0b110], 0b111));
        assert!(!ask(0, &[0b1, u64::MAX, 0b110], 0b111));
    }

    #[test]
    fn all_have_one_where_there_are_enough() {
        assert!((0..4).all(|own| ask(own, &[u64::MAX; 4], 0b1111)));
        assert!((0..4).all(|own| !ask(own, &[u64::MAX; 4], 0b111)));
    }

    proptest! {
        /// Whoever has one can be given one, wherever the others are: they cannot fill all of its CPUs.
        #[test]
        fn the_others_leave_one_free(all in proptest::collection::vec(1..64_u64, 1..8), places in proptest::collection::vec(0..6_u32, 8)) {
            let online = 0b11_1111;
            for own in 0..all.len() {
                if ask(own, &all, online) {
                    let others = all.iter().zip(&places).enumerate().filter(|(other, _)| *other != own);
                    let taken: Vec<u64> = others.map(|(_, (set, place))| set & 1 << place).collect();
                    prop_assert!(taken.iter().fold(0, |sum, cpu| sum | cpu) & all[own] != all[own]);
                }
            }
        }
    }
}
