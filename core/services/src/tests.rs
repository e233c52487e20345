//! Tests of what guests see.
