//! What checks the hypervisor on the machine itself, or makes it fail on purpose. Boot arguments start it; nothing else does.

pub(crate) mod crash_test;
pub(crate) mod selftest;
pub(crate) mod switch_cost;
pub(crate) mod wander;
