//! How much of endless work is done in one go.

/// Takes and does what `next` gives, at most `most` times: what is left is there for the next go, and whoever waited for this one
/// to end has a turn before. Says how often it did something.
///
/// What nobody can do in this go is not taken: whoever takes an interrupt, for one, must also handle it.
#[inline(always)]
pub fn go<T>(most: usize, mut next: impl FnMut() -> Option<T>, mut act: impl FnMut(T)) -> usize {
    for done in 0..most {
        match next() {
            Some(one) => act(one),
            None => return done,
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::go;
    use std::vec::Vec;

    #[test]
    fn what_comes_without_end_is_left_for_the_next_go() {
        // As a level-triggered interrupt that a guest keeps asserted: it ends some time, so that this test does.
        let (mut taken, mut handled) = (0, 0);
        let next = || {
            taken += 1;
            (taken < 1000).then_some(taken)
        };
        assert_eq!(go(16, next, |_| handled += 1), 16);
        assert_eq!((taken, handled), (16, 16), "each that was taken was handled, and none was taken for nothing");
    }

    #[test]
    fn what_ends_is_done_in_order() {
        let mut pending = [27, 30, 33].into_iter();
        let mut handled = Vec::new();
        assert_eq!(go(16, || pending.next(), |one| handled.push(one)), 3);
        assert_eq!(handled, [27, 30, 33]);
        assert_eq!(go(0, || -> Option<u32> { unreachable!("nothing is taken that cannot be done") }, |_| ()), 0);
    }
}
