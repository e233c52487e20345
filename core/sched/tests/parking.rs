//! A thread's state and home, one step after the other; `tests/models` runs the steps of several CPUs in all orders.

use sched::Parking;

#[test]
fn a_thread_is_at_home_where_it_was_put_last() {
    let thread = Parking::running(3);
    assert_eq!(thread.home(), 3);
    thread.set_home(5);
    assert_eq!(thread.home(), 5);
}

#[test]
fn two_wake_ups_count_as_one_and_survive_a_switch() {
    let thread = Parking::running(0);
    assert!(!thread.try_wake() && !thread.try_wake());
    thread.preempted();
    assert!(!thread.is_running());
    assert!(!thread.try_wake());
    thread.picked();
    assert!(thread.is_running());
    assert!(!thread.try_sleep());
    assert!(thread.try_sleep());
    assert!(thread.try_wake());
}

/// Two wake-ups before a thread sleeps are one, not none.
#[test]
fn a_second_wake_up_does_not_take_back_the_first() {
    let parking = Parking::running(0);
    assert!(!parking.try_wake() && !parking.try_wake());
    assert!(!parking.try_sleep() && parking.is_running());
    assert!(parking.try_sleep() && !parking.is_running());
    assert!(parking.try_wake(), "it slept");
}
